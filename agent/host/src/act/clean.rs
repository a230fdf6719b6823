//! Carrying out a plan: leaked reservations go into the journal.
//!
//! Per batch: what is about to be moved is read and written down; then, under host-local's lock, it is read again (the same
//! file with the same content and time), runtime and namespaces are asked again, every verdict is given anew, and what is
//! still leaked is renamed into the journal. The lock is held for one short look and the renames; what is slow (the disk)
//! comes before and after.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headroom_core::plan::clean::{Plan, Refused, Release, blind, still_leaked};
use nix::unistd::fsync;
use serde::Serialize;

use super::journal::{Journal, Record, entry_name};
use super::place::{Found, Place};
use super::{BATCH, Eyes, LOCK_WAIT, Step, Steps, lock};
use crate::bounded::Refusal;
use crate::clock;

/// How often a batch is tried where runtime or namespaces could not be read in the short time there is under the lock.
const ATTEMPTS: usize = 2;

/// A reservation that was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Its network.
    pub network: String,
    /// The network's directory.
    pub store: String,
    /// The address.
    pub address: IpAddr,
    /// The container it was reserved for.
    pub container_id: String,
    /// Where it is now.
    pub entry: String,
}

/// What came of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What was given back.
    pub applied: Vec<Taken>,
    /// What was planned and stayed.
    pub refused: Vec<Refused>,
    /// The run's directories, one for each `dataDir` in which something was moved.
    pub journals: Vec<PathBuf>,
    /// What is worth knowing besides.
    pub remarks: Vec<String>,
    /// The longest time for which host-local had to wait for us.
    pub longest_lock: Duration,
}

/// Carries out a plan under the name `run`; tells `steps` where it is.
pub fn clean(plan: &Plan, eyes: &mut Eyes, grace: Duration, run: &str, steps: Steps<'_>) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let mut stores: Vec<&str> = plan.releases.iter().map(|release| release.store.as_str()).collect();
    stores.sort_unstable();
    stores.dedup();
    for store in stores {
        let releases: Vec<&Release> = plan.releases.iter().filter(|release| release.store == store).collect();
        Run { store: Path::new(store), run, grace, eyes, steps, cleaned: &mut cleaned }.network(&releases);
    }
    cleaned
}

/// The work on one network.
struct Run<'a, 'b> {
    store: &'a Path,
    run: &'a str,
    grace: Duration,
    eyes: &'a mut Eyes,
    steps: &'a mut (dyn FnMut(Step) + 'b),
    cleaned: &'a mut Cleaned,
}

/// What keeps a whole batch where it is, as a sentence.
enum Kept {
    /// Runtime or namespaces could not be read: worth another look.
    Blind(String),
    /// The lock was not to be had, or the directory is another one.
    Place(String),
}

/// A step of the plan and the file that was found for it.
type Ready<'a> = (&'a Release, Found);

impl Run<'_, '_> {
    fn network(&mut self, releases: &[&Release]) {
        let place = match Place::open(self.store) {
            Ok(place) => place,
            Err(why) => return self.refuse_all(releases, &format!("`{}` {why}", self.store.display())),
        };
        let journal = match Journal::create(&place, self.store, self.run) {
            Ok(journal) => journal,
            Err(why) => return self.refuse_all(releases, &why.to_string()),
        };
        (self.steps)(Step::JournalMade);
        let before = self.cleaned.applied.len();
        let mut batches = releases.chunks(BATCH);
        for batch in batches.by_ref() {
            if let Err(why) = self.batch(&place, &journal, batch) {
                // What keeps one batch keeps the next: host-local need not wait for it again.
                batches.for_each(|rest| self.refuse_all(rest, &why));
                break;
            }
        }
        if self.cleaned.applied.len() == before {
            journal.discard(&place, self.run);
        } else if let Some(run_dir) = journal.path.parent()
            && !self.cleaned.journals.iter().any(|known| known == run_dir)
        {
            self.cleaned.journals.push(run_dir.to_owned());
        }
    }

    /// Moves a batch. An error is what will keep all others, too; this batch's own refusals are noted already.
    fn batch(&mut self, place: &Place, journal: &Journal, releases: &[&Release]) -> Result<(), String> {
        let mut ready: Vec<Ready<'_>> = Vec::new();
        for release in releases {
            match place.read(release.address) {
                Ok(found) if found.is_planned(release) => ready.push((release, found)),
                Ok(_other) => self.refuse(release, "it was reserved anew since the plan was made".to_owned()),
                Err(refusal) => self.refuse(release, unreadable(refusal)),
            }
        }
        if ready.is_empty() {
            return Ok(());
        }
        let intent = |(release, found): &Ready<'_>| Record::Taking { release: (*release).clone(), inode: found.inode };
        if let Err(why) = journal.write(&ready.iter().map(intent).collect::<Vec<_>>()) {
            return Err(self.refuse_ready(&ready, why.to_string()));
        }
        (self.steps)(Step::Intended);

        let mut attempt = 1;
        let records = loop {
            match self.locked(place, journal, &ready) {
                Ok(records) => break records,
                Err(Kept::Blind(_)) if attempt < ATTEMPTS => {
                    attempt += 1;
                    // Two looks in a row have to be complete: the first of them at leisure, without the lock.
                    self.eyes.look_who_is_alive();
                }
                Err(Kept::Blind(why) | Kept::Place(why)) => return Err(self.refuse_ready(&ready, why)),
            }
        };
        let synced = [&place.dir, &journal.dir].into_iter().try_for_each(fsync);
        if let Err(errno) = synced {
            self.remark(format!("`{}` was not synced to disk ({})", self.store.display(), errno.desc()));
        }
        (self.steps)(Step::Synced);
        if let Err(why) = journal.write(&records) {
            self.remark(format!("{why}; what was moved is in the journal all the same"));
        }
        (self.steps)(Step::Recorded);
        Ok(())
    }

    /// What happens under the lock. An error means that nothing was moved and nothing noted.
    fn locked(&mut self, place: &Place, journal: &Journal, ready: &[Ready<'_>]) -> Result<Vec<Record>, Kept> {
        let store = self.store.display();
        let guard = lock::take(&place.dir, LOCK_WAIT).map_err(|why| Kept::Place(format!("`{store}` {why}")))?;
        let held = Instant::now();
        (self.steps)(Step::Locked);
        if !place.is_still_there() {
            return Err(Kept::Place(format!("`{store}` was replaced by another directory meanwhile")));
        }
        let same: Vec<Result<(), String>> = ready
            .iter()
            .map(|(release, found)| match place.read(release.address) {
                Ok(again) if again == *found => Ok(()),
                Ok(_other) => Err("it was reserved anew since the plan was made".to_owned()),
                Err(refusal) => Err(unreadable(refusal)),
            })
            .collect();
        (self.steps)(Step::Reread);
        self.eyes.look_quickly();
        (self.steps)(Step::Looked);
        if let Some(why) = blind(self.eyes.ledger()) {
            return Err(Kept::Blind(format!("asked again under the lock, there was no complete answer: {why}")));
        }
        let now = clock::now();
        let mut records = Vec::new();
        for ((release, found), same) in ready.iter().zip(same) {
            let moved = same
                .and_then(|()| still_leaked(self.eyes.ledger(), release, self.grace, now))
                .and_then(|()| journal.take(place, release.address, found));
            match moved {
                Ok(()) => {
                    (self.steps)(Step::Moved);
                    records.push(Record::Taken { address: release.address });
                    self.cleaned.applied.push(Taken {
                        network: release.network.clone(),
                        store: release.store.clone(),
                        address: release.address,
                        container_id: release.container_id.clone(),
                        entry: journal.path.join(entry_name(release.address)).display().to_string(),
                    });
                }
                Err(why) => {
                    records.push(Record::Left { address: release.address, why: why.clone() });
                    self.refuse(release, why);
                }
            }
        }
        drop(guard);
        self.cleaned.longest_lock = self.cleaned.longest_lock.max(held.elapsed());
        (self.steps)(Step::Unlocked);
        Ok(records)
    }

    fn refuse(&mut self, release: &Release, why: String) {
        self.cleaned.refused.push(Refused::of(release, why));
    }

    fn refuse_ready(&mut self, ready: &[Ready<'_>], why: String) -> String {
        ready.iter().for_each(|(release, _)| self.refuse(release, why.clone()));
        why
    }

    fn refuse_all(&mut self, releases: &[&Release], why: &str) {
        releases.iter().for_each(|release| self.refuse(release, why.to_owned()));
    }

    fn remark(&mut self, text: String) {
        self.cleaned.remarks.push(text);
    }
}

/// Why a reservation cannot be read again, as a sentence.
fn unreadable(refusal: Refusal) -> String {
    match refusal {
        Refusal::Missing => "it is gone: somebody else has given it back".to_owned(),
        refusal => format!("its file {refusal}"),
    }
}
