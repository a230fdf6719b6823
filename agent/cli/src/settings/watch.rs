//! The daemon reads the files about its NAT again when they change: a gateway is set anew, a mapping saved anew, while it runs.
//! Only what is said about the NAT is taken; the rest of the configuration needs a new start.
//!
//! A thread of its own looks and reads, so that a file system that hangs delays no report.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use headroom_core::known::{Known, Why};
use headroom_core::model::nat::NatSettings;
use headroom_core::observe::{CoverageDetail, Fact, Observation, SourceId};
use headroom_core::time::NodeTime;
use headroom_core::watched::{Stamp, Watched};
use headroom_host::clock;

use super::Settings;
use crate::args::{NatArgs, NodeArgs};
use crate::engine::Engine;

/// Files are looked at this often …
const LOOK: Duration = Duration::from_secs(30);
/// … less often where reading them takes more than this part of the time: one in two hundred.
const IDLE_PER_READING: u32 = 200;
/// A look that comes so much later than it should hangs, on a file system that does not answer.
const LATE: Duration = Duration::from_secs(60);

/// What a look at the files tells.
#[derive(Debug)]
pub(crate) struct Look {
    /// New settings, if the files have changed and can be understood.
    settings: Option<Box<Settings>>,
    coverage: CoverageDetail,
    /// The next one comes so much later.
    pause: Duration,
}

impl Look {
    fn tell(self, engine: &mut Engine) {
        if let Some(settings) = self.settings {
            engine.set_nat(&settings);
        }
        tell(self.coverage, engine);
    }
}

fn tell(coverage: CoverageDetail, engine: &mut Engine) {
    let fact = Fact::Coverage(Known::Present(coverage));
    engine.observe(Observation { at: clock::node_time(), source: SourceId::NatFiles, fact });
}

/// The looks, as they come.
#[derive(Debug)]
pub(crate) struct Looks {
    queue: Receiver<Look>,
    heard: Instant,
    pause: Duration,
}

impl Looks {
    /// Lets the engine go by those that have come, or says that none has for too long.
    pub(crate) fn tell(&mut self, engine: &mut Engine) {
        for look in self.queue.try_iter() {
            (self.heard, self.pause) = (Instant::now(), look.pause);
            look.tell(engine);
        }
        let silent = self.heard.elapsed();
        if silent > self.pause + LATE {
            let why = format!(
                "nobody has looked for {} s: the thread `nat-files` hangs or has died; what was read before stays in force",
                silent.as_secs()
            );
            tell(
                CoverageDetail {
                    how: "files about the NAT".to_owned(),
                    degraded: Some(Why::new(why)),
                    as_of_dump: false,
                },
                engine,
            );
        }
    }
}

/// The files, and how they are read.
struct Files {
    node: NodeArgs,
    nat: NatArgs,
    paths: Vec<PathBuf>,
    watched: Watched,
    /// What is in force.
    in_force: Option<NatSettings>,
}

impl Files {
    /// Files that have just been read.
    fn of(node: &NodeArgs, nat: &NatArgs, settings: &Settings) -> Self {
        Self {
            node: node.clone(),
            nat: nat.clone(),
            paths: settings.nat_files.clone(),
            watched: Watched::read_at(clock::node_time()),
            in_force: settings.policy.nat.clone(),
        }
    }

    fn look(&mut self, now: NodeTime) -> Look {
        // Before they are read: what changes meanwhile is read next time.
        let stamps = self.paths.iter().map(|path| stamp(path)).collect();
        let mut settings = None;
        if self.watched.changed(stamps) {
            let result = Settings::new(&self.node, &self.nat).map_err(|error| Why::new(format!("{error:#}")));
            match &result {
                Ok(read) if read.policy.nat != self.in_force => tracing::info!("the NAT's settings have changed"),
                Ok(_) => {}
                // It is read at every look: once is enough to say so.
                Err(why) if self.watched.broken() == Some(why) => {}
                Err(why) => tracing::warn!(%why, "the NAT is judged by what its files said before"),
            }
            self.watched.was_read(now, result.as_ref().map(|_read| ()).map_err(Why::clone));
            if let Ok(read) = result {
                self.paths.clone_from(&read.nat_files);
                self.in_force.clone_from(&read.policy.nat);
                settings = Some(Box::new(read));
            }
        }
        Look { settings, coverage: self.watched.coverage(now), pause: LOOK }
    }
}

/// Links are followed: a ConfigMap that changes is a link that leads elsewhere.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Some(Stamp { modified, size: metadata.size(), inode: metadata.ino() })
}

/// Starts to look, if there are files. It ends after nobody listens any more.
///
/// # Errors
/// The thread could not be started.
pub(crate) fn start(node: &NodeArgs, nat: &NatArgs, settings: &Settings) -> std::io::Result<Option<Looks>> {
    // What came over standard input is gone: without it the others say something else.
    let stdin = nat.nat_from.iter().any(|path| path == Path::new("-"));
    if settings.nat_files.is_empty() || stdin {
        return Ok(None);
    }
    let mut files = Files::of(node, nat, settings);
    let (sender, queue) = sync_channel(1);
    thread::Builder::new().name("nat-files".to_owned()).spawn(move || {
        loop {
            let began = clock::thread_cpu();
            let look = files.look(clock::node_time());
            let took = clock::thread_cpu().saturating_sub(began);
            let pause = LOOK.max(took.saturating_mul(IDLE_PER_READING));
            if sender.send(Look { pause, ..look }).is_err() {
                return;
            }
            thread::sleep(pause);
        }
    })?;
    Ok(Some(Looks { queue, heard: Instant::now(), pause: LOOK }))
}

#[cfg(test)]
mod tests {
    use headroom_core::findings::Severity;
    use headroom_core::model::nat::Basis;
    use headroom_core::report::{CoverageState, Report};

    use super::*;

    /// A daemon without sources, and the files that it looks at.
    struct Daemon {
        engine: Engine,
        files: Files,
    }

    impl Daemon {
        fn new(node: &NodeArgs, nat: &NatArgs) -> Self {
            let settings = Settings::new(node, nat).unwrap();
            let engine = Engine::start(settings.ledger(), settings.policy.clone(), Vec::new()).unwrap();
            Self { engine, files: Files::of(node, nat, &settings) }
        }

        /// The report after another look.
        fn report(&mut self) -> Report {
            self.files.look(clock::node_time()).tell(&mut self.engine);
            self.engine.report()
        }
    }

    fn mapping(ports: &str) -> String {
        format!(r#"[{{"instanceName":"n1","interfaceNatMappings":[{{"natIpPortRanges":["35.0.0.1:{ports}"]}}]}}]"#)
    }

    fn state(report: &Report) -> (CoverageState, String) {
        let files = report.coverage.iter().find(|row| row.source == SourceId::NatFiles).unwrap();
        (files.state, files.why.clone().unwrap_or_default())
    }

    /// Exercises a mapping that is saved anew, spoilt, removed and mended. If this fails, a node is judged for ever by what the NAT
    /// gave it when the agent started, or by nothing as soon as somebody mistypes.
    #[test]
    fn a_changed_file_is_in_force_and_a_spoilt_one_leaves_the_last_good_one_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mapping.json");
        let save = |text: &str| std::fs::write(&path, text).unwrap();
        save(&mapping("1024-2047"));
        let node = NodeArgs { node_name: Some("n1".to_owned()), ..NodeArgs::default() };
        let mut daemon = Daemon::new(&node, &NatArgs { nat_from: vec![path.clone()], ..NatArgs::default() });
        let first = daemon.report();
        let allocation = &first.nat.allocation;
        assert_eq!((allocation.ports, allocation.basis), (Some(1024), Basis::Observed));
        assert!(
            allocation.age_secs.is_some_and(|age| age < 600) && allocation.why.ends_with(" s old"),
            "{allocation:?}"
        );
        assert_eq!(state(&first).0, CoverageState::Ok);

        save(&mapping("64-127"));
        let smaller = daemon.report();
        assert_eq!(smaller.nat.allocation.ports, Some(64));
        assert!(smaller.nat.allocation.why.contains("1024 ports until"), "{}", smaller.nat.allocation.why);

        save("[{");
        for spoilt in [daemon.report(), daemon.report()] {
            assert_eq!(spoilt.nat.allocation.ports, Some(64));
            let (state, why) = state(&spoilt);
            assert_eq!(state, CoverageState::Degraded);
            assert!(why.contains("mapping.json` is no JSON") && why.contains("stays in force"), "{why}");
            let finding = spoilt.findings.iter().find(|finding| finding.subject == "nat-files").unwrap();
            assert_eq!(finding.severity, Severity::Warning);
            assert!(spoilt.nat.allocation.notes.contains(&why), "{:?}", spoilt.nat.allocation);
        }
        std::fs::remove_file(&path).unwrap();
        let gone = daemon.report();
        assert_eq!(gone.nat.allocation.ports, Some(64));
        assert!(state(&gone).1.contains("No such file"), "{:?}", state(&gone));

        save(&mapping("1024-1535"));
        let mended = daemon.report();
        assert_eq!((mended.nat.allocation.ports, state(&mended).0), (Some(512), CoverageState::Ok));
    }

    /// Exercises the configuration file. If this fails, it takes a restart to set what the gateway has been set to.
    #[test]
    fn the_nat_of_a_changed_configuration_is_in_force_with_its_times_and_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let (config, nat) = (dir.path().join("headroom.toml"), dir.path().join("nat.json"));
        std::fs::write(&config, "[nat]\nprofile = \"gcp\"\nmin_ports = 64\nalias_ranges = false\n").unwrap();
        let node = NodeArgs { config: Some(config.clone()), ..NodeArgs::default() };
        let mut daemon = Daemon::new(&node, &NatArgs::default());
        assert_eq!(daemon.report().nat.allocation.ports, Some(64));
        std::fs::write(&nat, r#"{"natIpAllocateOption":"AUTO_ONLY","minPortsPerVm":2048}"#).unwrap();
        let text = format!("[nat]\nfrom = [{nat:?}]\nendpoint_independent = true\nbypass = [\"198.51.100.0/24\"]\n");
        std::fs::write(&config, text).unwrap();
        let report = daemon.report();
        assert_eq!((report.nat.allocation.ports, report.nat.endpoint_independent), (Some(2048), Some(true)));
        // The file that is named since then is looked at, too.
        std::fs::write(&nat, r#"{"natIpAllocateOption":"AUTO_ONLY","minPortsPerVm":16384}"#).unwrap();
        assert_eq!(daemon.report().nat.allocation.ports, Some(16_384));
        assert_eq!(
            daemon.files.watched.coverage(clock::node_time()).how.split(',').next(),
            Some("2 files about the NAT")
        );
    }

    /// Exercises a file that is named before it is there. If this fails, it is never read: nobody looks where the files in force are
    /// not.
    #[test]
    fn a_file_that_comes_after_it_was_named_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (config, nat) = (dir.path().join("headroom.toml"), dir.path().join("nat.json"));
        std::fs::write(&config, "[nat]\nprofile = \"gcp\"\nmin_ports = 64\nalias_ranges = false\n").unwrap();
        let node = NodeArgs { config: Some(config.clone()), ..NodeArgs::default() };
        let mut daemon = Daemon::new(&node, &NatArgs::default());
        std::fs::write(&config, format!("[nat]\nfrom = [{nat:?}]\n")).unwrap();
        for early in [daemon.report(), daemon.report()] {
            assert_eq!((early.nat.allocation.ports, state(&early).0), (Some(64), CoverageState::Degraded));
        }
        std::fs::write(&nat, r#"{"natIpAllocateOption":"AUTO_ONLY","minPortsPerVm":2048}"#).unwrap();
        let read = daemon.report();
        assert_eq!((read.nat.allocation.ports, state(&read).0), (Some(2048), CoverageState::Ok));
    }

    /// Exercises a thread that is stuck in a file system. If this fails, numbers that nobody has looked after are told as checked.
    #[test]
    fn looks_that_stay_away_are_told() {
        let mut daemon = Daemon::new(&NodeArgs::default(), &NatArgs::default());
        let (_sender, queue) = sync_channel(1);
        let heard = |ago: Duration| Instant::now().checked_sub(ago).unwrap();
        let mut looks = Looks { queue, heard: heard(LATE), pause: LOOK };
        looks.tell(&mut daemon.engine);
        assert!(daemon.engine.report().coverage.is_empty(), "not late yet");
        looks.heard = heard(LOOK + LATE + Duration::from_secs(1));
        looks.tell(&mut daemon.engine);
        let (state, why) = state(&daemon.engine.report());
        assert!(state == CoverageState::Degraded && why.contains("has looked for 91 s"), "{why}");
    }

    #[test]
    fn what_came_over_standard_input_or_from_nowhere_is_not_looked_at() {
        let settings = Settings::new(&NodeArgs::default(), &NatArgs::default()).unwrap();
        assert!(start(&NodeArgs::default(), &NatArgs::default(), &settings).unwrap().is_none());
        let stdin = NatArgs { nat_from: vec![PathBuf::from("-")], ..NatArgs::default() };
        let named = Settings { nat_files: vec![PathBuf::from("/headroom.toml")], ..settings };
        assert!(start(&NodeArgs::default(), &stdin, &named).unwrap().is_none());
    }
}
