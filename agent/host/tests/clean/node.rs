//! A store in a temporary directory, with a runtime and namespaces that say what a test wants.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use headroom_core::ids::{ContainerId, NetnsInode};
use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Namespace, Outcome, Snapshot, SourceId};
use headroom_core::plan::clean::{Limits, Plan, plan};
use headroom_host::act::{self, Cleaned, Eyes, Step, journal};
use headroom_host::clock;
use headroom_host::root::HostRoot;
use headroom_host::source::host_local::HostLocalSource;
use headroom_host::source::{Sink, Source, observation};

pub(crate) const NETWORK: &str = "gke-pod-network";
pub(crate) const GRACE: Duration = Duration::from_secs(600);
const HOUR: Duration = Duration::from_secs(3600);

/// Who is alive, as runtime and namespaces say.
#[derive(Debug, Default)]
pub(crate) struct Alive {
    pub(crate) containers: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) runtime_fails: Option<&'static str>,
    /// Somebody else is the runtime.
    pub(crate) namespaces_only: bool,
}

/// Says it, as runtime and namespaces in one.
pub(crate) struct Says(Arc<Mutex<Alive>>);

impl Source for Says {
    fn id(&self) -> SourceId {
        SourceId::Cri
    }

    fn observe(&mut self, sink: Sink<'_>) {
        let alive = self.0.lock().unwrap();
        let mut emit = |fact| sink(observation(SourceId::Cri, fact));
        if !alive.namespaces_only {
            emit(Fact::Begin(Snapshot::Runtime));
            alive.containers.iter().for_each(|id| emit(Fact::Container(ContainerId(id.clone()))));
            let outcome = alive.runtime_fails.map_or(Outcome::Complete, |why| Outcome::Failed(Why::new(why)));
            emit(Fact::End { snapshot: Snapshot::Runtime, outcome });
        }
        emit(Fact::Begin(Snapshot::Namespaces));
        let addresses = Known::Present(alive.addresses.clone());
        let namespace = Namespace {
            inode: NetnsInode(2),
            host: false,
            pid: None,
            addresses,
            ports: Known::Absent,
            keepalive: Known::Absent,
        };
        emit(Fact::Namespace(namespace));
        emit(Fact::End { snapshot: Snapshot::Namespaces, outcome: Outcome::Complete });
    }
}

/// The store.
pub(crate) struct Node {
    pub(crate) data_dir: PathBuf,
    pub(crate) alive: Arc<Mutex<Alive>>,
    _dir: Option<tempfile::TempDir>,
}

impl Node {
    /// With four pods and three leaks.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Self::at(&dir.path().join("networks"), Some(dir));
        node.fill();
        node
    }

    /// Another process's.
    pub(crate) fn at(data_dir: &Path, dir: Option<tempfile::TempDir>) -> Self {
        let alive = Alive { containers: (1..=4).map(|n| format!("pod{n}")).collect(), ..Alive::default() };
        Self { data_dir: data_dir.to_owned(), alive: Arc::new(Mutex::new(alive)), _dir: dir }
    }

    /// Makes the reservations.
    pub(crate) fn fill(&self) {
        std::fs::create_dir_all(self.store()).unwrap();
        (1..=4).for_each(|n| self.reserve(&format!("10.0.0.{n}"), &format!("pod{n}")));
        (5..=7).for_each(|n| self.reserve(&format!("10.0.0.{n}"), &format!("gone{n}")));
        std::fs::write(self.store().join("last_reserved_ip.0"), "10.0.0.7").unwrap();
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data_dir.join(NETWORK)
    }

    /// As host-local writes it, an hour ago.
    pub(crate) fn reserve(&self, address: &str, container: &str) {
        let path = self.store().join(address);
        std::fs::write(&path, format!("{container}\r\neth0")).unwrap();
        age(&path, HOUR);
    }

    pub(crate) fn eyes(&self) -> Eyes {
        Eyes::of(self.stores(), vec![self.says()], vec![self.says()])
    }

    /// The reservations, as headroom reads them.
    pub(crate) fn stores(&self) -> Box<dyn Source> {
        let conf = self.data_dir.join("no-configuration");
        Box::new(HostLocalSource::new(HostRoot::live(), self.data_dir.clone(), conf))
    }

    /// Runtime and namespaces.
    pub(crate) fn says(&self) -> Box<dyn Source> {
        Box::new(Says(Arc::clone(&self.alive)))
    }

    /// Looks twice and plans.
    pub(crate) fn plan(&self, eyes: &mut Eyes) -> Plan {
        eyes.look();
        eyes.look();
        plan(eyes.ledger(), &Limits::default(), GRACE, clock::now())
    }

    /// Plans and carries it out.
    pub(crate) fn clean(&self, steps: &mut dyn FnMut(Step)) -> Cleaned {
        let mut eyes = self.eyes();
        let plan = self.plan(&mut eyes);
        act::clean(&plan, &mut eyes, GRACE, &run_name(), steps)
    }

    /// The addresses with a reservation, in order.
    pub(crate) fn reserved(&self) -> Vec<String> {
        names(&self.store()).into_iter().filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }

    /// Every reservation of a leaked container, wherever it is: path and content.
    pub(crate) fn leaked_anywhere(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        let mut folders = vec![self.data_dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() && path.file_name().unwrap() != journal::RECORDS {
                    let content = std::fs::read_to_string(&path).unwrap_or_default();
                    found.extend(content.starts_with("gone").then_some((path, content)));
                }
            }
        }
        found.sort_by(|a, b| a.1.cmp(&b.1));
        found
    }
}

/// A name of a run that no other test or process has.
pub(crate) fn run_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    format!("{}-{run}", journal::run_name(clock::now().wall, std::process::id()))
}

/// Dates a file back.
pub(crate) fn age(path: &Path, age: Duration) {
    let at = SystemTime::now().checked_sub(age).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
}

/// What is in a directory, in order.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
