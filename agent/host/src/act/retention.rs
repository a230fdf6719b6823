//! How much of the journal is kept: every run for [`KEPT_FOR`], and [`KEPT_RUNS`] of them at most.
//!
//! A run that begins removes what is older, so much at once as [`REMOVALS`] allows. Where there are as many as are kept, it
//! also removes the oldest of those that are of no more use to `restore`: nothing is left in them, or each of their addresses
//! was reserved anew since, leaked again, and taken by a later run. A node that leaks day after day gets there, and the
//! cleaner must not stop where it is needed most. Only what the cleaner makes is removed:
//! everything is opened relative to the journal, no link is followed, no other mount is entered, and what is something else
//! stays, with the directory it is in.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_core::time::WallTime;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{fstat, fstatat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};
use serde::Serialize;

use super::journal::{self, FOLDER, JournalError, RECORDS, entry_address, is_run_name, run_name};
use crate::bounded::{self, Refusal};
use crate::clock;
use crate::root::HostRoot;

/// A run is kept for at least so long, by the node's clock, unless it is of no more use and there is no more room.
pub const KEPT_FOR: Duration = Duration::from_secs(30 * 86_400);
/// Whatever room there is: a run that has just begun has taken nothing yet.
pub const KEPT_ALWAYS: Duration = Duration::from_secs(3600);
/// Runs that are kept at most; with more that are of use, nothing is given back.
pub const KEPT_RUNS: usize = 1024;
/// Files and directories that one run removes at most; the next run goes on.
pub const REMOVALS: usize = 4096;
/// Entries of the journal that are read: what else lies there is not ours.
const ENTRIES: usize = 2 * KEPT_RUNS;
/// A run that seems older than headroom itself was named by a clock that was not set: nobody knows how old it is.
const FIRST: &str = "2026";

/// Makes room in an open journal for the run that is about to begin, if it is not there yet.
///
/// # Errors
/// There are too many runs, or they cannot be counted.
pub(super) fn make_room(top: &Dir, path: &Path, run: &str, now: WallTime) -> Result<(), JournalError> {
    if fstatat(top, run, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
        return Ok(());
    }
    let shown = || path.display().to_string();
    let (mut runs, more) = runs(top).map_err(|refusal| JournalError::Open { path: shown(), refusal })?;
    let mut left = REMOVALS;
    let before = runs.len();
    runs.retain(|name| !(is_older(name, KEPT_FOR, now) && left > 0 && remove_run(top, name, &mut left)));
    if runs.len() < before {
        tracing::info!(journal = %shown(), runs = before - runs.len(), "runs older than 30 days were removed");
    }
    if !more && runs.len() >= KEPT_RUNS {
        let before = runs.len();
        for name in of_no_more_use(top, &runs, now) {
            if runs.len() < KEPT_RUNS || left == 0 {
                break;
            }
            if remove_run(top, &name, &mut left) {
                runs.retain(|run| *run != name);
            }
        }
        if runs.len() < before {
            let runs = before - runs.len();
            tracing::info!(journal = %shown(), runs, "there was no more room: runs whose addresses were taken again were removed");
        }
    }
    if more || runs.len() >= KEPT_RUNS { Err(JournalError::Full { path: shown(), runs: runs.len() }) } else { Ok(()) }
}

/// The runs that could give nothing back that a later run has not taken again, the oldest first. Those whose time is not known
/// are of use, and prove nothing of others.
fn of_no_more_use(top: &Dir, runs: &[String], now: WallTime) -> Vec<String> {
    let mut taken_later: BTreeSet<(Vec<u8>, IpAddr)> = BTreeSet::new();
    let mut useless = Vec::new();
    let newest = run_name(now, u32::MAX);
    for run in runs.iter().rev().filter(|run| run.as_str() >= FIRST && time_of(run) <= time_of(&newest)) {
        // What cannot be read is kept.
        let Ok(entries) = entries_of(top, run) else { continue };
        if is_older(run, KEPT_ALWAYS, now) && entries.iter().all(|entry| taken_later.contains(entry)) {
            useless.push(run.clone());
        }
        taken_later.extend(entries);
    }
    useless.reverse();
    useless
}

/// All that lies in a run: networks and addresses.
fn entries_of(top: &Dir, run: &str) -> Result<Vec<(Vec<u8>, IpAddr)>, Refusal> {
    let mut run_dir = below(top, run)?;
    let (networks, _more) = bounded::entries(&mut run_dir, ENTRIES)?;
    let mut all = Vec::new();
    for network in networks.iter().filter(|entry| entry.may_be_directory()) {
        let addresses = journal::entries(&mut below(&run_dir, network.name.as_c_str())?)?;
        all.extend(addresses.into_iter().map(|address| (network.name.to_bytes().to_vec(), address)));
    }
    Ok(all)
}

/// Whether a run began longer ago than this; not if its name comes from a clock that was not set.
fn is_older(run: &str, age: Duration, now: WallTime) -> bool {
    run >= FIRST && time_of(run) < time_of(&run_name(before(now, age), 0))
}

/// The names of the runs, the oldest first, and whether there is more than was read.
fn runs(top: &Dir) -> Result<(Vec<String>, bool), Refusal> {
    let (entries, more) = bounded::entries(&mut bounded::open_subdir(top, ".")?, ENTRIES)?;
    let names = entries.iter().filter_map(|entry| entry.name.to_str().ok()).filter(|name| is_run_name(name));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_unstable();
    Ok((names, more))
}

fn before(now: WallTime, age: Duration) -> WallTime {
    let span = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    WallTime::from_millis(now.as_millis().saturating_sub(span))
}

/// The part of a run's name that says when; its order is that of time.
fn time_of(name: &str) -> &str {
    name.split('-').next().unwrap_or_default()
}

/// Removes a run; false if some of it is left.
fn remove_run(top: &Dir, run: &str, left: &mut usize) -> bool {
    let removed = try_remove(top, run, left);
    if let Err(refusal) = &removed {
        tracing::debug!(run, %refusal, "a run of the journal was not removed");
    }
    removed.is_ok()
}

/// Reservations first, records last: what is left of a run is still one.
fn try_remove(top: &Dir, run: &str, left: &mut usize) -> Result<(), Refusal> {
    let mut run_dir = below(top, run)?;
    let (networks, _more) = bounded::entries(&mut run_dir, ENTRIES)?;
    for network in networks.iter().filter(|entry| entry.may_be_directory()) {
        let mut dir = below(&run_dir, network.name.as_c_str())?;
        // The records are one more.
        let (entries, _more) = bounded::entries(&mut dir, left.saturating_add(1))?;
        let taken = entries.iter().filter(|entry| entry_address(entry.name.to_bytes()).is_some());
        for entry in taken.filter(|entry| entry.may_be_file()) {
            unlink(&dir, entry.name.as_c_str(), UnlinkatFlags::NoRemoveDir, left)?;
        }
        // Something that is not ours keeps the directory, and with it the records of what was here.
        let (rest, _more) = bounded::entries(&mut bounded::open_subdir(&dir, ".")?, 2)?;
        if rest.iter().all(|entry| entry.name.to_bytes() == RECORDS.as_bytes()) {
            unlink(&dir, RECORDS, UnlinkatFlags::NoRemoveDir, left)?;
            unlink(&run_dir, network.name.as_c_str(), UnlinkatFlags::RemoveDir, left)?;
        }
    }
    unlink(top, run, UnlinkatFlags::RemoveDir, left)
}

/// Opens a directory below another one that is not a mount of its own.
fn below<P: ?Sized + nix::NixPath>(dir: &Dir, name: &P) -> Result<Dir, Refusal> {
    let inner = bounded::open_subdir(dir, name)?;
    let failed = |errno| Refusal::Failed { call: "fstat", errno };
    let (outer_dev, inner_dev) = (fstat(dir).map_err(failed)?.st_dev, fstat(&inner).map_err(failed)?.st_dev);
    if outer_dev == inner_dev { Ok(inner) } else { Err(failed(Errno::EXDEV)) }
}

/// Removes one name, if there may still be removed something. Another process may have been faster.
fn unlink<P: ?Sized + nix::NixPath>(
    dir: &Dir,
    name: &P,
    flags: UnlinkatFlags,
    left: &mut usize,
) -> Result<(), Refusal> {
    let failed = |errno| Refusal::Failed { call: "unlinkat", errno };
    *left = left.checked_sub(1).ok_or(failed(Errno::EAGAIN))?;
    match unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

/// Whether a run could begin in a `dataDir`, as far as looking tells: nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prospect {
    /// The `dataDir`.
    pub data_dir: PathBuf,
    /// Runs in its journal.
    pub runs: usize,
    /// Why none could begin; `None` if one could. Continues a sentence that has named the directory.
    pub why: Option<String>,
}

/// Looks whether a run could begin in this `dataDir`; `None` if there is no such directory.
pub fn prospect(data_dir: &Path) -> Option<Prospect> {
    let mut prospect = Prospect { data_dir: data_dir.to_owned(), runs: 0, why: None };
    prospect.why = match bounded::open_dir(&HostRoot::live(), data_dir) {
        Err(Refusal::Missing) => return None,
        Err(refusal) => Some(refusal.to_string()),
        Ok(dir) => match faccessat(&dir, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS) {
            Err(Errno::EROFS) => Some("is mounted read-only".to_owned()),
            Err(Errno::EACCES | Errno::EPERM) => Some("may not be written by this user; run as root".to_owned()),
            Err(errno) => Some(format!("cannot be examined ({})", errno.desc())),
            Ok(()) => journal_full(&dir, data_dir, &mut prospect.runs),
        },
    };
    Some(prospect)
}

/// Why the journal takes no further run.
fn journal_full(dir: &Dir, data_dir: &Path, count: &mut usize) -> Option<String> {
    let path = || data_dir.join(FOLDER).display().to_string();
    let opened = bounded::open_subdir(dir, FOLDER).and_then(|top| runs(&top).map(|runs| (top, runs)));
    match opened {
        Err(Refusal::Missing) => None,
        Err(refusal) => Some(format!("has a journal that cannot be used: `{}` {refusal}", path())),
        Ok((top, (mut runs, more))) => {
            let (all, now) = (runs.len(), clock::now().wall);
            *count = all;
            runs.retain(|name| !is_older(name, KEPT_FOR, now));
            let full =
                more || (runs.len() >= KEPT_RUNS && runs.len() - of_no_more_use(&top, &runs, now).len() >= KEPT_RUNS);
            full.then(|| JournalError::Full { path: path(), runs: all }.to_string())
        }
    }
}
