//! host-local's own lock: `flock` on the file `lock` in the network's directory.
//!
//! host-local (all of 1.x) opens it with `O_CREAT|O_RDONLY` and mode 0750 (`alexflint/go-filemutex`) and holds `LOCK_EX`
//! while it reserves or releases. A dead process holds no lock: the kernel lets go of it with the last descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};

/// Its name in the network's directory.
const NAME: &str = "lock";
/// Threads of this process that wait for a lock, most of them after the wait was given up. They end when they get it.
const WAITING_LIMIT: usize = 8;

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// One thread that waits; it counts as long as this lives, whoever wants its lock.
struct Waiting;

impl Waiting {
    /// `None`: so many wait already that one more would not be bounded.
    fn begin() -> Option<Self> {
        let more = |waiting| (waiting < WAITING_LIMIT).then_some(waiting + 1);
        WAITING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_before| Self)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why the lock was not taken. The text continues a sentence that has named the network's directory.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLock {
    #[error("has no lock file, and none can be made ({}); is it mounted read-only, or does it belong to another user?", .0.desc())]
    Open(Errno),
    #[error("has a `lock` that is no regular file; host-local cannot work with it either")]
    NotAFile,
    #[error("could not be locked ({})", .0.desc())]
    Lock(Errno),
    #[error(
        "is locked by somebody who has not let go of it for {}.{:01} s; `grep {inode} /proc/locks` names the process. Nothing was changed",
        .waited.as_secs(), .waited.subsec_millis() / 100
    )]
    Held { waited: Duration, inode: u64 },
    #[error("has a lock that others hold for so long that {WAITING_LIMIT} attempts still wait for it")]
    Crowded,
    #[error("had its `lock` replaced by another file again and again")]
    Replaced,
}

/// Takes the lock of a network's directory; it is held until the answer is dropped.
///
/// # Errors
/// A lock that cannot be opened, or is not let go of within `wait`.
pub(super) fn take(dir: impl AsFd, wait: Duration) -> Result<Flock<OwnedFd>, NoLock> {
    const ATTEMPTS: usize = 3;
    for _attempt in 0..ATTEMPTS {
        let flags = OFlag::O_CREAT | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match openat(&dir, NAME, flags, Mode::from_bits_truncate(0o750)) {
            Ok(file) => file,
            Err(Errno::ELOOP | Errno::ENXIO | Errno::EISDIR) => return Err(NoLock::NotAFile),
            Err(errno) => return Err(NoLock::Open(errno)),
        };
        let opened = fstat(&file).map_err(NoLock::Lock)?;
        if SFlag::from_bits_truncate(opened.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
            return Err(NoLock::NotAFile);
        }
        let locked = wait_for(file, wait, opened.st_ino)?;
        // A lock on a file that somebody removed meanwhile keeps nobody out.
        match fstatat(&dir, NAME, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(now) if (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino) => return Ok(locked),
            _other => drop(locked),
        }
    }
    Err(NoLock::Replaced)
}

/// Waits in line with host-local (asking again and again would never get a turn in a busy store), but not for ever: the wait
/// is another thread's, which gives the lock back at once when nobody wants it any more.
fn wait_for(file: OwnedFd, wait: Duration, inode: u64) -> Result<Flock<OwnedFd>, NoLock> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => return Ok(locked),
        Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
        Err((_file, errno)) => return Err(NoLock::Lock(errno)),
    };
    let count = Waiting::begin().ok_or(NoLock::Crowded)?;
    let (sender, receiver) = sync_channel(1);
    let waiting = std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
        let _count = count;
        let mut file = file;
        let locked = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(locked) => break Ok(locked),
                Err((again, Errno::EINTR)) => file = again,
                Err((_file, errno)) => break Err(errno),
            }
        };
        // Nobody may want it any more: then it is given back here.
        drop(sender.send(locked));
    });
    if waiting.is_err() {
        return Err(NoLock::Lock(Errno::EAGAIN));
    }
    match receiver.recv_timeout(wait) {
        Ok(locked) => locked.map_err(NoLock::Lock),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(NoLock::Held { waited: wait, inode }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn open(dir: &tempfile::TempDir) -> std::fs::File {
        std::fs::File::open(dir.path()).unwrap()
    }

    /// Waits until nobody waits.
    fn all_are_done() {
        let deadline = Instant::now() + Duration::from_secs(10);
        while WAITING.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline, "{} still wait", WAITING.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Exercises waits that end at the moment the lock is let go of, again and again. If this fails, a wait that was given
    /// up is counted for ever, and after eight of them the cleaner never works again.
    #[test]
    fn who_gave_up_waiting_is_forgotten_when_the_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let (moment, patience) = (Duration::from_millis(2), Duration::from_secs(10));
        for round in 0..100 {
            let held = take(open(&dir), patience).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| drop(take(open(&dir), moment)));
                std::thread::sleep(moment + Duration::from_micros(round * 5));
                drop(held);
            });
            all_are_done();
        }
        let held = take(open(&dir), patience).unwrap();
        let waits: Vec<_> = (0..=WAITING_LIMIT).map(|_| take(open(&dir), moment).unwrap_err()).collect();
        let crowded: Vec<bool> = waits.iter().map(|why| matches!(why, NoLock::Crowded)).collect();
        assert_eq!(crowded, [[false; WAITING_LIMIT].as_slice(), &[true]].concat(), "{waits:?}");
        drop(held);
        all_are_done();
        drop(take(open(&dir), patience).unwrap());
    }
}
