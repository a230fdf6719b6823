//! Putting back what a run took, unless the address has been reserved anew.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use headroom_core::known::Known;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::unistd::fsync;
use serde::Serialize;

use super::journal::{self, ENTRIES_LIMIT, FOLDER, Journal, Record, entries, entry_name, is_run_name};
use super::place::{Found, NoPlace, Place, name_of};
use super::retention::KEPT_RUNS;
use super::{BATCH, LOCK_WAIT, Step, Steps, lock};
use crate::bounded::{self, Refusal, shown};
use crate::clock;
use crate::root::HostRoot;

/// One network in one run, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The run's directory: what `--journal` wants.
    pub journal: String,
    /// The network.
    pub network: String,
    /// When it began (RFC 3339), if its records can be read.
    pub started: Option<String>,
    /// How many reservations were taken then.
    pub taken: usize,
    /// Those that are still here.
    pub entries: Vec<IpAddr>,
    /// What cannot be read of it.
    pub why: Option<String>,
}

/// A reservation that is back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PutBack {
    /// Its network.
    pub network: String,
    /// The network's directory.
    pub store: String,
    /// The address.
    pub address: IpAddr,
    /// The container it is reserved for, if the file says so.
    pub container_id: Option<String>,
}

/// A reservation that stays in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stays {
    /// Its network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub why: String,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// What is back.
    pub restored: Vec<PutBack>,
    /// What is not.
    pub refused: Vec<Stays>,
    /// What is worth knowing besides: networks that could not be worked on, disks that did not sync.
    pub remarks: Vec<String>,
}

/// Why a run cannot be undone.
#[derive(Debug, thiserror::Error)]
pub enum NoJournal {
    /// It cannot be found.
    #[error("`{}` could not be opened ({error}); `headroom ipam restore --list` names the journals there are", .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is something else.
    #[error("`{}` is no run of headroom's journal (`…/{FOLDER}/<run>`)", .0.display())]
    NotARun(PathBuf),
    /// A directory cannot be read.
    #[error("`{}` {refusal}", .path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
}

/// The runs in the journals of these `dataDir`s, the newest first.
///
/// # Errors
/// A journal that is there and cannot be read.
pub fn list(data_dirs: &[PathBuf]) -> Result<Vec<Kept>, NoJournal> {
    let mut all = Vec::new();
    for data_dir in data_dirs {
        let top = data_dir.join(FOLDER);
        let refused = |path: &Path, refusal| NoJournal::Refused { path: path.to_owned(), refusal };
        let opened = bounded::open_dir(&HostRoot::live(), data_dir).and_then(|dir| bounded::open_subdir(&dir, FOLDER));
        let mut dir = match opened {
            Ok(dir) => dir,
            Err(Refusal::Missing) => continue,
            Err(refusal) => return Err(refused(&top, refusal)),
        };
        let (entries, _more) = bounded::entries(&mut dir, ENTRIES_LIMIT).map_err(|refusal| refused(&top, refusal))?;
        let runs = entries.iter().filter_map(|entry| entry.name.to_str().ok()).filter(|name| is_run_name(name));
        for run in runs.rev().take(KEPT_RUNS) {
            let path = top.join(run);
            let mut run_dir = match bounded::open_subdir(&dir, run) {
                Ok(run_dir) => run_dir,
                // A run that took nothing removes its directory.
                Err(Refusal::Missing) => continue,
                Err(refusal) => return Err(refused(&path, refusal)),
            };
            let (networks, _more) =
                bounded::entries(&mut run_dir, ENTRIES_LIMIT).map_err(|refusal| refused(&path, refusal))?;
            let networks = networks.iter().filter(|entry| entry.may_be_directory());
            all.extend(networks.map(|network| kept(&run_dir, network.name.to_bytes(), &path)));
        }
    }
    all.sort_by(|a, b| (run_of(&b.journal), &a.network).cmp(&(run_of(&a.journal), &b.network)));
    Ok(all)
}

/// The directories of the newest run that took something: it may have worked in several `dataDir`s. One that was killed
/// before it took anything is not what anybody wants to undo.
pub fn newest(kept: &[Kept]) -> Vec<PathBuf> {
    let took = || kept.iter().filter(|kept| kept.taken > 0);
    let newest = took().map(|kept| run_of(&kept.journal)).max();
    let mut paths: Vec<PathBuf> =
        took().filter(|kept| Some(run_of(&kept.journal)) == newest).map(|kept| PathBuf::from(&kept.journal)).collect();
    paths.dedup();
    paths
}

/// The last component.
fn run_of(journal: &str) -> &str {
    journal.rsplit('/').next().unwrap_or_default()
}

fn kept(run_dir: &Dir, name: &[u8], path: &Path) -> Kept {
    let mut kept = Kept {
        journal: path.display().to_string(),
        network: shown(name),
        started: None,
        taken: 0,
        entries: Vec::new(),
        why: None,
    };
    let read = bounded::open_subdir(run_dir, name_of(name)).and_then(|mut dir| {
        kept.entries = entries(&mut dir)?;
        journal::read(&dir)
    });
    match read {
        Ok((records, bad)) => {
            // What was put back had been taken, even where the run was killed before it could say so.
            let taken = records.iter().filter_map(|record| match record {
                Record::Taken { address } | Record::Restored { address, .. } => Some(*address),
                _other => None,
            });
            kept.taken = taken.collect::<BTreeSet<IpAddr>>().len();
            kept.started = records.into_iter().find_map(|record| match record {
                Record::Run { started, .. } => Some(started),
                _other => None,
            });
            kept.why = (bad > 0).then(|| format!("{bad} of its records cannot be read"));
        }
        Err(refusal) => kept.why = Some(format!("its directory or its records {refusal}")),
    }
    // A run that was killed has moved more than it could write down.
    kept.taken = kept.taken.max(kept.entries.len());
    kept
}

/// Puts back what the run in this directory took; tells `steps` where it is. What is back already is not looked for.
///
/// # Errors
/// A directory that is no run of a journal.
pub fn restore(run: &Path, steps: Steps<'_>) -> Result<Restored, NoJournal> {
    let refused = |path: &Path, refusal| NoJournal::Refused { path: path.to_owned(), refusal };
    // Without links on the way: `..` has to be what it seems to be.
    let run = std::fs::canonicalize(run).map_err(|error| NoJournal::Path { path: run.to_owned(), error })?;
    let top = run.parent().filter(|top| top.file_name().is_some_and(|name| name == FOLDER));
    let named = run.file_name().and_then(|name| name.to_str()).is_some_and(is_run_name);
    let Some(data_dir) = top.and_then(Path::parent).filter(|_| named) else { return Err(NoJournal::NotARun(run)) };

    let mut run_dir = bounded::open_dir(&HostRoot::live(), &run).map_err(|refusal| refused(&run, refusal))?;
    let (networks, _more) = bounded::entries(&mut run_dir, ENTRIES_LIMIT).map_err(|refusal| refused(&run, refusal))?;
    let mut restored = Restored::default();
    for network in networks.iter().filter(|entry| entry.may_be_directory()) {
        let name = network.name.to_bytes();
        let (journal_path, store) = (run.join(name_of(name)), data_dir.join(name_of(name)));
        let mut dir = match bounded::open_subdir(&run_dir, name_of(name)) {
            Ok(dir) => dir,
            Err(refusal) => {
                restored.remarks.push(format!("`{}` {refusal}", journal_path.display()));
                continue;
            }
        };
        let addresses = match entries(&mut dir) {
            Ok(addresses) if addresses.is_empty() => continue,
            Ok(addresses) => addresses,
            Err(refusal) => {
                restored.remarks.push(format!("`{}` {refusal}", journal_path.display()));
                continue;
            }
        };
        let opened = bounded::open_dir(&HostRoot::live(), data_dir).map_err(NoPlace::Refused);
        match opened.and_then(|data_dir| Place::below(data_dir, name_of(name))) {
            Ok(place) => {
                let mut back = Back { place, store: &store, journal_path: &journal_path, restored: &mut restored };
                back.network(dir, &addresses, steps);
            }
            Err(why) => {
                let why = format!("`{}` {why}", store.display());
                let network = shown(name);
                restored.refused.extend(addresses.iter().map(|&address| Stays {
                    network: network.clone(),
                    address,
                    why: why.clone(),
                }));
            }
        }
    }
    Ok(restored)
}

/// The work on one network.
struct Back<'a> {
    place: Place,
    store: &'a Path,
    journal_path: &'a Path,
    restored: &'a mut Restored,
}

impl Back<'_> {
    fn network(&mut self, dir: Dir, addresses: &[IpAddr], steps: Steps<'_>) {
        for batch in addresses.chunks(BATCH) {
            let guard = match lock::take(&self.place.dir, LOCK_WAIT) {
                Ok(guard) => guard,
                Err(why) => {
                    let why = format!("`{}` {why}", self.store.display());
                    batch.iter().for_each(|address| self.stays(*address, why.clone()));
                    continue;
                }
            };
            steps(Step::Locked);
            let before = self.restored.restored.len();
            for address in batch {
                match self.put_back(&dir, *address) {
                    Ok(back) => {
                        steps(Step::Moved);
                        self.restored.restored.push(back);
                    }
                    Err(why) => self.stays(*address, why),
                }
            }
            drop(guard);
            steps(Step::Unlocked);
            if let Err(errno) = [&self.place.dir, &dir].into_iter().try_for_each(fsync) {
                let remark = format!("`{}` was not synced to disk ({})", self.store.display(), errno.desc());
                self.restored.remarks.push(remark);
            }
            steps(Step::Synced);
            self.record(&dir, before);
            steps(Step::Recorded);
        }
    }

    /// One reservation, under the lock.
    fn put_back(&self, dir: &Dir, address: IpAddr) -> Result<PutBack, String> {
        if !self.place.is_still_there() {
            return Err(format!("`{}` was replaced by another directory meanwhile", self.store.display()));
        }
        let (name, entry) = (address.to_string(), entry_name(address));
        let found = Found::read(dir, &entry).map_err(|refusal| match refusal {
            Refusal::Missing => "somebody else has put it back".to_owned(),
            refusal => format!("its file in the journal {refusal}"),
        })?;
        journal::move_new(dir, &entry, &self.place.dir, &name).map_err(|errno| match errno {
            Errno::EEXIST => self.reserved_anew(address),
            errno => format!("it could not be moved back ({})", errno.desc()),
        })?;
        let container_id = found.holder().present().map(|holder| holder.container.0.clone());
        let store = self.store.display().to_string();
        Ok(PutBack { network: self.place.name.clone(), store, address, container_id })
    }

    fn reserved_anew(&self, address: IpAddr) -> String {
        match self.place.read(address).map(|found| found.holder()) {
            Ok(Known::Present(holder)) => {
                let id: String = holder.container.0.chars().take(12).collect();
                format!("the address has been reserved anew, for {id}")
            }
            _unreadable => "the address has been reserved anew".to_owned(),
        }
    }

    /// Writes down what is back, for people: what counts is where the files are.
    fn record(&mut self, dir: &Dir, from: usize) {
        let at = clock::now().wall.to_string();
        let back = self.restored.restored.get(from..).unwrap_or_default();
        let records: Vec<Record> =
            back.iter().map(|back| Record::Restored { address: back.address, at: at.clone() }).collect();
        if records.is_empty() {
            return;
        }
        let reopened = bounded::open_subdir(dir, ".").map_err(|refusal| refusal.to_string());
        let written = reopened.and_then(|dir| {
            let journal = Journal::open_records(dir, self.journal_path.to_owned()).map_err(|why| why.to_string())?;
            journal.write(&records).map_err(|why| why.to_string())
        });
        if let Err(why) = written {
            self.restored.remarks.push(format!("{why}; what was moved back is back all the same"));
        }
    }

    fn stays(&mut self, address: IpAddr, why: String) {
        self.restored.refused.push(Stays { network: self.place.name.clone(), address, why });
    }
}
