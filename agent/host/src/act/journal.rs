//! The journal: where reservations go, and what says why.
//!
//! It is `.headroom-journal/<run>/<network>/` in host-local's `dataDir`: on the same file system as the network's directory,
//! so that one `rename` moves a reservation, and outside of it, because host-local walks that directory with all that is
//! below it and takes every file with the right content for a reservation (`filepath.Walk` in `ReleaseByKey` and `GetByID`,
//! plugins v1.9.1). CNI takes no network name that begins with a dot, so nothing takes the journal for a network.
//!
//! Beside the reservations (`<address>.taken`, moved as they were) lies `journal.jsonl`: what was about to be moved and why
//! comes to the disk before the first is moved.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use headroom_core::plan::clean::Release;
use headroom_core::time::WallTime;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, fdatasync, fsync, unlinkat};
use serde::{Deserialize, Serialize};

use super::place::{Found, Place};
use super::retention::{KEPT_RUNS, make_room};
use crate::bounded::{self, Refusal};
use crate::clock;
use crate::source::host_local::address;

/// The directory below `dataDir`.
pub const FOLDER: &str = ".headroom-journal";
/// What was done, one line each.
pub const RECORDS: &str = "journal.jsonl";
/// The version of the records' format.
pub const SCHEMA: &str = "headroom.journal/1";
/// What is added to an address: so that nothing takes the file for a reservation.
const TAKEN: &str = ".taken";
/// A record has some 600 bytes; a run has [`headroom_core::plan::clean::Limits::MAX`] of them or what `--max` says.
const RECORDS_LIMIT: usize = 64 << 20;
/// Directory entries of a journal that are read.
pub(super) const ENTRIES_LIMIT: usize = 1 << 16;

/// What keeps a journal from being made or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A directory of it.
    #[error("the journal's directory `{path}` could not be made ({}){}", .errno.desc(), hint(*.errno))]
    Make {
        /// Which.
        path: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// A directory of it is not what it should be.
    #[error("the journal's directory `{path}` {refusal}")]
    Open {
        /// Which.
        path: String,
        /// What it is.
        refusal: Refusal,
    },
    /// Somebody else made it.
    #[error("the journal's directory `{path}` belongs to user {owner}, not to this one")]
    Owner {
        /// Which.
        path: String,
        /// Whose.
        owner: u32,
    },
    /// It holds as many runs as are kept.
    #[error(
        "the journal `{path}` holds {runs} runs that can still be undone, and no more than {KEPT_RUNS} are kept. They go by themselves 30 days after they began, or when later runs have taken their addresses again; to go on now, look with `headroom ipam restore --list` and move the oldest out of it"
    )]
    Full {
        /// Which.
        path: String,
        /// How many.
        runs: usize,
    },
    /// Its records.
    #[error("`{path}` could not be written ({error}){}", hint_io(.error))]
    Write {
        /// Which.
        path: String,
        /// What the kernel said.
        error: std::io::Error,
    },
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => "; is host-local's directory mounted read-only?",
        Errno::EACCES | Errno::EPERM => "; run as root, or as the owner of host-local's directory",
        Errno::ENOSPC | Errno::EDQUOT => "; free some space first, the reservations stay as they are",
        _other => "",
    }
}

fn hint_io(error: &std::io::Error) -> &'static str {
    hint(error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
}

/// One line of `journal.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The first line.
    Run {
        /// [`SCHEMA`].
        schema: String,
        /// The network's directory.
        store: String,
        /// When it began (RFC 3339).
        started: String,
        /// Who.
        by: String,
    },
    /// This is about to be moved.
    Taking {
        /// What, and why.
        #[serde(flatten)]
        release: Release,
        /// The file's inode.
        inode: u64,
    },
    /// It was moved.
    Taken {
        /// Which.
        address: IpAddr,
    },
    /// It was not moved.
    Left {
        /// Which.
        address: IpAddr,
        /// Why.
        why: String,
    },
    /// It was moved back.
    Restored {
        /// Which.
        address: IpAddr,
        /// When (RFC 3339).
        at: String,
    },
}

/// The lines that are records; how many are none (torn by a crash, or not ours).
pub fn parse(bytes: &[u8]) -> (Vec<Record>, usize) {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let (mut records, mut bad) = (Vec::new(), 0);
    for line in lines {
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            Err(_torn) => bad += 1,
        }
    }
    (records, bad)
}

/// The name of a run that begins now: sorts by time, and no other process gives it.
pub fn run_name(now: WallTime, process: u32) -> String {
    let time: String = now.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    format!("{time}-{process}")
}

/// Whether a run may be called so.
pub fn is_run_name(name: &str) -> bool {
    name.len() <= 48
        && name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_digit() || matches!(c, 'T' | 'Z' | '.' | '-'))
}

/// The file a reservation becomes.
pub(super) fn entry_name(address: IpAddr) -> String {
    format!("{address}{TAKEN}")
}

/// The address a file of the journal was the reservation of.
pub fn entry_address(name: &[u8]) -> Option<IpAddr> {
    address(name.strip_suffix(TAKEN.as_bytes())?)
}

/// The journal of one network in one run, open.
#[derive(Debug)]
pub(super) struct Journal {
    /// Its path, for people.
    pub(super) path: PathBuf,
    pub(super) dir: Dir,
    records: std::fs::File,
}

impl Journal {
    /// Makes the journal of a network for a run; `store` is the network's path.
    pub(super) fn create(place: &Place, store: &Path, run: &str) -> Result<Self, JournalError> {
        let top_path = store.parent().unwrap_or(store).join(FOLDER);
        let top = make(&place.data_dir, FOLDER, &top_path)?;
        let run_path = top_path.join(run);
        make_room(&top, &top_path, run, clock::now().wall)?;
        let run_dir = make(&top, run, &run_path)?;
        let path = run_path.join(&place.name);
        // Another run's directory would mix two undos.
        if let Err(errno) = mkdirat(&run_dir, place.name.as_str(), Mode::S_IRWXU) {
            noted(unlinkat(&top, run, UnlinkatFlags::RemoveDir));
            return Err(JournalError::Make { path: path.display().to_string(), errno });
        }
        // A run that takes nothing leaves nothing, on a full disk too.
        Self::begin(place, store, path, [&run_dir, &top]).inspect_err(|_why| noted(remove(place, run)))
    }

    /// Opens a journal's new directory and writes the first record; all of it is on disk when this returns.
    fn begin(place: &Place, store: &Path, path: PathBuf, [run_dir, top]: [&Dir; 2]) -> Result<Self, JournalError> {
        let dir = open(run_dir, &place.name, &path)?;
        let journal = Self::open_records(dir, path)?;
        journal.write(&[Record::Run {
            schema: SCHEMA.to_owned(),
            store: store.display().to_string(),
            started: clock::now().wall.to_string(),
            by: concat!("headroom ", env!("CARGO_PKG_VERSION")).to_owned(),
        }])?;
        for made_in in [&journal.dir, run_dir, top, &place.data_dir] {
            fsync(made_in).map_err(|errno| JournalError::Write {
                path: journal.path.display().to_string(),
                error: errno.into(),
            })?;
        }
        Ok(journal)
    }

    /// Opens the records of a network's journal for more of them.
    pub(super) fn open_records(dir: Dir, path: PathBuf) -> Result<Self, JournalError> {
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let opened: Result<OwnedFd, Errno> =
            openat(&dir, RECORDS, flags | OFlag::O_NONBLOCK, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = path.join(RECORDS).display().to_string();
        let records = opened.map_err(|errno| JournalError::Write { path: file, error: errno.into() })?;
        Ok(Self { path, dir, records: records.into() })
    }

    /// Appends records; they are on disk when this returns.
    pub(super) fn write(&self, records: &[Record]) -> Result<(), JournalError> {
        let failed = |error| JournalError::Write { path: self.path.join(RECORDS).display().to_string(), error };
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record).map_err(|error| failed(error.into()))?;
            lines.push(b'\n');
        }
        (&self.records).write_all(&lines).map_err(failed)?;
        fdatasync(&self.records).map_err(|errno| failed(errno.into()))
    }

    /// Moves a reservation here, if it is still this very file.
    ///
    /// # Errors
    /// Why it stayed, or was put back, in words that continue "it stays: ".
    pub(super) fn take(&self, place: &Place, address: IpAddr, found: &Found) -> Result<(), String> {
        let (name, entry) = (address.to_string(), entry_name(address));
        move_new(&place.dir, &name, &self.dir, &entry).map_err(|errno| match errno {
            Errno::EXDEV => super::NoPlace::OtherFileSystem.to_string(),
            errno => format!("it could not be moved into the journal ({}){}", errno.desc(), hint(errno)),
        })?;
        if found.is(&self.dir, &entry) {
            return Ok(());
        }
        // Somebody without the lock put another file in its place between the last look and the move.
        match move_new(&self.dir, &entry, &place.dir, &name) {
            Ok(()) => Err("somebody replaced it without taking host-local's lock; it was put back".to_owned()),
            Err(errno) => Err(format!(
                "somebody replaced it without taking host-local's lock, and it could not be put back ({}); it is `{}`",
                errno.desc(),
                self.path.join(&entry).display()
            )),
        }
    }

    /// Removes a journal that nothing was moved into. What is not empty stays.
    pub(super) fn discard(self, place: &Place, run: &str) {
        let nothing_in_it = Dir::openat(&self.dir, ".", OFlag::O_DIRECTORY, Mode::empty())
            .map_err(drop)
            .and_then(|mut dir| entries(&mut dir).map_err(drop))
            .is_ok_and(|entries| entries.is_empty());
        if nothing_in_it {
            noted(remove(place, run));
        }
    }
}

/// Removes the journal of a network that nothing was moved into, and the run's directory if it was the only one.
fn remove(place: &Place, run: &str) -> nix::Result<()> {
    let directory = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let top = Dir::openat(&place.data_dir, FOLDER, directory, Mode::empty())?;
    let run_dir = Dir::openat(&top, run, directory, Mode::empty())?;
    let dir = Dir::openat(&run_dir, place.name.as_str(), directory, Mode::empty())?;
    match unlinkat(&dir, RECORDS, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    unlinkat(&run_dir, place.name.as_str(), UnlinkatFlags::RemoveDir)?;
    unlinkat(&top, run, UnlinkatFlags::RemoveDir)
}

/// Another network's journal is beside it, or the file system became read-only: an empty directory does no harm.
fn noted(removed: nix::Result<()>) {
    if let Err(errno) = removed {
        tracing::debug!(%errno, "an empty journal stays");
    }
}

/// The addresses whose reservations lie in a journal's directory, in order.
pub(super) fn entries(dir: &mut Dir) -> Result<Vec<IpAddr>, Refusal> {
    let (entries, _more) = bounded::entries(dir, ENTRIES_LIMIT)?;
    let mut addresses: Vec<IpAddr> = entries.iter().filter_map(|entry| entry_address(entry.name.to_bytes())).collect();
    addresses.sort_unstable();
    Ok(addresses)
}

/// The records of an open journal directory.
pub(super) fn read(dir: impl AsFd) -> Result<(Vec<Record>, usize), Refusal> {
    bounded::read_at(dir, RECORDS, RECORDS_LIMIT).map(|bytes| parse(&bytes))
}

/// Renames, but never over something.
pub(super) fn move_new(from: impl AsFd, old: &str, to: impl AsFd, new: &str) -> Result<(), Errno> {
    renameat2(from, old, to, new, RenameFlags::RENAME_NOREPLACE)
}

/// A directory that is ours and for us alone, made if it is not there.
fn make(dir: &Dir, name: &str, path: &Path) -> Result<Dir, JournalError> {
    match mkdirat(dir, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => open(dir, name, path),
        Err(errno) => Err(JournalError::Make { path: path.display().to_string(), errno }),
    }
}

fn open(dir: &Dir, name: &str, path: &Path) -> Result<Dir, JournalError> {
    let path = || path.display().to_string();
    let opened = bounded::open_subdir(dir, name).map_err(|refusal| JournalError::Open { path: path(), refusal })?;
    let owner = fstat(&opened).map_err(|errno| JournalError::Make { path: path(), errno })?.st_uid;
    if owner == Uid::effective().as_raw() { Ok(opened) } else { Err(JournalError::Owner { path: path(), owner }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> Release {
        Release {
            network: "gke-pod-network".to_owned(),
            store: "/var/lib/cni/networks/gke-pod-network".to_owned(),
            address: "fd00::5".parse().unwrap(),
            container_id: "dead".repeat(16),
            ifname: Some("eth0".to_owned()),
            modified: WallTime::from_secs(1_800_000_000),
            age_secs: 3600,
            evidence: vec!["nobody knows it".to_owned()],
        }
    }

    /// Exercises the format. If this fails, what was taken cannot be told after an update.
    #[test]
    fn records_are_read_back_and_a_torn_line_costs_only_itself() {
        let record = Record::Taking { release: release(), inode: 7 };
        let line = serde_json::to_string(&record).unwrap();
        assert!(line.starts_with("{\"taking\":{\"network\":\"gke-pod-network\""), "{line}");
        let taken = "{\"taken\":{\"address\":\"fd00::5\"}}";
        let (records, bad) = parse(format!("{line}\n{taken}\n{}", &line[..40]).as_bytes());
        assert_eq!(records, [record, Record::Taken { address: "fd00::5".parse().unwrap() }]);
        assert_eq!(bad, 1);
    }

    #[test]
    fn names_of_runs_sort_by_time_and_nothing_else_is_one() {
        let name = run_name(WallTime::from_millis(1_795_304_621_250), 42);
        assert_eq!(name, "20261121T234341.250Z-42");
        assert!(is_run_name(&name) && name < run_name(WallTime::from_millis(1_795_304_621_251), 1));
        for other in ["", "..", ".", "-1", "2026/x", "20261121T234341 ", &"1".repeat(49)] {
            assert!(!is_run_name(other), "{other}");
        }
        assert_eq!(entry_address(b"10.0.0.1.taken"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(entry_address(entry_name("fd00::5".parse().unwrap()).as_bytes()), "fd00::5".parse().ok());
        for other in [&b"10.0.0.1"[..], b".taken", b"lock.taken", b"../10.0.0.1.taken", RECORDS.as_bytes()] {
            assert_eq!(entry_address(other), None);
        }
    }
}
