//! host-local's reservations: one directory per network, one file per address.
//!
//! Reads only, without host-local's lock: a file that comes or goes meanwhile is seen or not, an empty one is in flight.
//! Nobody is called leaked here. A directory that has not changed is not read again, for five minutes (`remembered.rs`). The whole round takes at most [`ROUND_LIMIT`]; 65,536 reservations take about
//! a quarter of a second. Stores are the directories below `cni_dir` and those that the CNI configuration names elsewhere; a link in the
//! place of a network's directory is refused, as is any file that is not a regular one.

pub mod holder;
mod reading;
mod remembered;
mod store;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_core::known::Why;
use headroom_core::observe::{Fact, Outcome, Snapshot, SourceId};

use crate::bounded::{self, Refusal, shown};
use crate::clock;
use crate::root::HostRoot;
use crate::source::cni::{self, CniConfig};
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

use remembered::Remembered;
pub use store::address;
use store::{Bounds, Remarks, StoreName};

/// How long one round may take.
pub const ROUND_LIMIT: Duration = Duration::from_secs(10);
/// How many directory entries of one network are read: twice what a /16 holds. A report of so many takes some 150 MiB for a
/// moment.
pub const ENTRIES_LIMIT: usize = 1 << 17;
/// How many networks are read.
const NETWORKS_LIMIT: usize = 1024;

/// The reservations of host-local.
#[derive(Debug)]
pub struct HostLocalSource {
    root: HostRoot,
    cni_dir: PathBuf,
    cni_conf_dir: PathBuf,
    named: Named,
    entries_limit: usize,
    remembered: Remembered,
}

/// Which directories somebody named: that such a one does not exist is no node without host-local, but a mistake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named {
    /// host-local's.
    pub cni_dir: bool,
    /// That of the CNI configuration.
    pub cni_conf_dir: bool,
}

/// What one round gathers besides the facts it emits.
#[derive(Default)]
struct Round {
    /// Why reservations may be missing.
    partial: Vec<String>,
    /// What is missing but proves nothing wrong.
    warnings: Vec<String>,
    /// What would tell of pods' addresses and is not there.
    unread: Vec<String>,
    /// A network was shown.
    any: bool,
    /// Directories that were read, by device and inode.
    seen: BTreeSet<(u64, u64)>,
    /// Reservations this process may not open.
    denied: usize,
}

impl HostLocalSource {
    /// Reads the stores below `cni_dir` (on the node; by default [`cni::DEFAULT_DATA_DIR`]), with the ranges that the
    /// configuration in `cni_conf_dir` (by default [`cni::DEFAULT_CONF_DIR`]) gives them. `cni_dir` stands for host-local's
    /// default directory: a configuration without a `dataDir` means it.
    pub fn new(root: HostRoot, cni_dir: PathBuf, cni_conf_dir: PathBuf) -> Self {
        // Collecting the components takes away doubled and trailing slashes, so that paths can be compared and shown.
        let cni_dir = cni_dir.components().collect();
        Self {
            root,
            cni_dir,
            cni_conf_dir,
            named: Named::default(),
            entries_limit: ENTRIES_LIMIT,
            remembered: Remembered::default(),
        }
    }

    /// What of its directories has to exist.
    #[must_use]
    pub fn with_named(mut self, named: Named) -> Self {
        self.named = named;
        self
    }

    /// Reads at most so many directory entries per network.
    #[must_use]
    pub fn with_entries_limit(mut self, limit: usize) -> Self {
        self.entries_limit = limit;
        self
    }

    /// Reads all stores. `Ok(None)`: there are none on this node.
    fn read(&mut self, round: &mut Round, emit: &mut dyn FnMut(Fact)) -> Result<Option<()>, String> {
        let bounds = Bounds { entries: self.entries_limit, deadline: clock::node_time().after(ROUND_LIMIT) };
        let config = cni::read(&self.root, &self.cni_conf_dir);
        let below = self.read_below(&config, bounds, round, emit)?;
        let elsewhere = self.read_elsewhere(&config, bounds, round, emit);
        if !below {
            let here = |dir: &Option<PathBuf>| dir.as_ref().is_none_or(|dir| *dir == self.cni_dir);
            for network in config.networks.iter().filter(|network| here(&network.data_dir)) {
                round.no_data_dir(&self.cni_dir, &network.name);
            }
        }
        let unread = !config.elsewhere.is_empty();
        round.warnings.extend(config.warnings);
        if config.unread_range { &mut round.unread } else { &mut round.warnings }.extend(config.elsewhere);
        // Where nothing else was read either, nobody knows how many addresses are used.
        let open = std::mem::take(&mut round.unread);
        if round.any { &mut round.warnings } else { &mut round.partial }.extend(open);
        if self.named.cni_conf_dir && config.missing {
            // It might name more stores.
            let why = format!("the CNI configuration `{}` does not exist", self.cni_conf_dir.display());
            if !below {
                return Err(why);
            }
            round.partial.push(why);
        }
        Ok((below || elsewhere || unread).then_some(()))
    }

    /// The networks below `cni_dir`; whether it exists.
    fn read_below(
        &mut self,
        config: &CniConfig,
        bounds: Bounds,
        round: &mut Round,
        emit: &mut dyn FnMut(Fact),
    ) -> Result<bool, String> {
        let failed = |refusal: Refusal| format!("host-local's directory `{}` {refusal}", self.cni_dir.display());
        let mut top = match bounded::open_dir(&self.root, &self.cni_dir) {
            Ok(top) => top,
            Err(Refusal::Missing) if !self.named.cni_dir => return Ok(false),
            Err(refusal) => return Err(failed(refusal)),
        };
        let (entries, more) = bounded::entries(&mut top, NETWORKS_LIMIT).map_err(failed)?;
        if more {
            round.partial.push(format!("`{}` has more than {NETWORKS_LIMIT} entries", self.cni_dir.display()));
        }
        for entry in &entries {
            let name = entry.name.to_bytes();
            // CNI takes no such name for a network: the cleaner's journal is called so.
            if name.starts_with(b".") {
                continue;
            }
            let store = store::path(&self.cni_dir, name);
            if entry.is_symlink() {
                round.partial.push(format!("`{store}` {}", Refusal::Symlink));
            } else if entry.may_be_directory() {
                let network = shown(name);
                let range_sets = config.range_sets(&network, &self.cni_dir);
                let named = StoreName { store, network, range_sets };
                round.read_network(&top, &entry.name, named, bounds, &mut self.remembered, emit);
            }
        }
        let here = |dir: Option<&Path>| dir.is_none_or(|dir| dir == self.cni_dir);
        let listed = |name: &str| entries.iter().any(|entry| entry.name.to_bytes() == name.as_bytes());
        let configured = config.networks.iter().filter(|network| here(network.data_dir.as_deref()));
        for network in configured.filter(|network| !more && !listed(&network.name)) {
            let named = StoreName {
                store: store::path(&self.cni_dir, network.name.as_bytes()),
                network: network.name.clone(),
                range_sets: network.range_sets.clone(),
            };
            round.not_yet(named, emit);
        }
        Ok(true)
    }

    /// The networks whose `dataDir` is elsewhere; whether there is one.
    fn read_elsewhere(
        &mut self,
        config: &CniConfig,
        bounds: Bounds,
        round: &mut Round,
        emit: &mut dyn FnMut(Fact),
    ) -> bool {
        let mut any = false;
        for network in &config.networks {
            let Some(data_dir) = network.data_dir.as_deref().filter(|dir| *dir != self.cni_dir) else { continue };
            let Ok(name) = std::ffi::CString::new(network.name.as_str()) else { continue };
            match bounded::open_dir(&self.root, data_dir) {
                Ok(top) => {
                    any = true;
                    let named = StoreName {
                        store: store::path(data_dir, name.to_bytes()),
                        network: network.name.clone(),
                        range_sets: network.range_sets.clone(),
                    };
                    round.read_network(&top, &name, named, bounds, &mut self.remembered, emit);
                }
                Err(Refusal::Missing) => round.no_data_dir(data_dir, &network.name),
                Err(refusal) => round.partial.push(format!(
                    "host-local's directory `{}` (dataDir in `{}`) {refusal}",
                    data_dir.display(),
                    network.file
                )),
            }
        }
        any
    }
}

impl Round {
    /// Reads one network, once.
    fn read_network(
        &mut self,
        top: impl AsFd,
        name: &std::ffi::CStr,
        named: StoreName,
        bounds: Bounds,
        remembered: &mut Remembered,
        emit: &mut dyn FnMut(Fact),
    ) {
        match bounded::open_subdir(top, name) {
            Ok(dir) => {
                if store::identity(&dir).is_some_and(|identity| !self.seen.insert(identity)) {
                    return;
                }
                let Remarks { partial, denied } = remembered.read(dir, named, bounds, emit);
                self.partial.extend(partial.map(|why| why.to_string()));
                self.denied += denied;
                self.any = true;
            }
            Err(Refusal::Missing) => self.not_yet(named, emit),
            Err(refusal) => {
                self.partial.push(format!("`{}` {refusal}", named.store));
                // Something else in the place of a directory is no network.
                if matches!(refusal, Refusal::Denied | Refusal::Failed { .. }) {
                    emit(store::without_reservations(named, false));
                    self.any = true;
                }
            }
        }
    }

    /// A network without a directory: host-local makes it for the first address. Without ranges there is nothing to tell of it.
    fn not_yet(&mut self, named: StoreName, emit: &mut dyn FnMut(Fact)) {
        if named.range_sets.present().is_some() {
            emit(store::without_reservations(named, true));
            self.any = true;
        }
    }

    /// A configured network's `dataDir` does not exist; said once, however many files configure it.
    fn no_data_dir(&mut self, data_dir: &Path, network: &str) {
        let warning = format!(
            "dataDir `{}` of network `{}` does not exist here: nothing is reserved yet, or it is not mounted",
            data_dir.display(),
            shown(network.as_bytes())
        );
        if !self.unread.contains(&warning) {
            self.unread.push(warning);
        }
    }

    /// What is missing, in words.
    fn missing(&self) -> Option<String> {
        let denied = (self.denied > 0)
            .then(|| format!("{} reservations may not be read; run as root or with CAP_DAC_READ_SEARCH", self.denied));
        joined(self.partial.iter().chain(&self.warnings).cloned().chain(denied))
    }
}

impl Source for HostLocalSource {
    fn id(&self) -> SourceId {
        SourceId::HostLocal
    }

    /// Coverage comes last: what is missing is known only after the reading.
    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(SourceId::HostLocal, fact));
        emit(Fact::Begin(Snapshot::Reservations));
        let mut round = Round::default();
        let read = self.read(&mut round, &mut emit);
        let outcome = match (&read, joined(round.partial.iter().cloned())) {
            (Err(why), _) => Outcome::Failed(Why::new(why.as_str())),
            (Ok(_), Some(why)) => Outcome::Partial(Why::new(why)),
            (Ok(_), None) => Outcome::Complete,
        };
        emit(Fact::End { snapshot: Snapshot::Reservations, outcome });
        let how = format!("reservation files below `{}`", self.cni_dir.display());
        emit(match (read, round.missing()) {
            (Err(why), _) => unreadable(why),
            (Ok(_), Some(missing)) => degraded(how, missing),
            (Ok(Some(())), None) => works(how),
            (Ok(None), None) => absent(),
        });
    }
}

/// Up to four sentences as one.
fn joined(sentences: impl Iterator<Item = String>) -> Option<String> {
    const SHOWN: usize = 4;
    let mut all: Vec<String> = sentences.collect();
    if all.len() > SHOWN {
        let more = all.len() - SHOWN;
        all.truncate(SHOWN);
        all.push(format!("and {more} more"));
    }
    (!all.is_empty()).then(|| all.join("; "))
}
