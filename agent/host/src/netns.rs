//! Network namespaces as files, and a look inside them.
//!
//! Entering a namespace happens only on a thread that ends with the look: the agent's own threads never leave theirs.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use headroom_core::ids::NetnsInode;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

/// What `stat` says about a namespace file: the device is the one nsfs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NsFile {
    /// The device of nsfs.
    pub device: u64,
    /// The namespace.
    pub inode: NetnsInode,
}

impl NsFile {
    fn of(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, inode: NetnsInode(stat.st_ino) }
    }
}

/// Asks which namespace a file stands for, following the link that `/proc/<pid>/ns/net` is.
///
/// # Errors
/// What `stat` says.
pub fn identify(dir: impl AsFd, path: &str) -> Result<NsFile, Errno> {
    fstatat(dir, path, AtFlags::empty()).map(|stat| NsFile::of(&stat))
}

/// What tells the namespaces of two processes apart where their namespace files may not be examined: the inode of a table
/// below `/proc/<pid>/net`. Each namespace registers its own tables, each with a number of its own
/// (<https://github.com/torvalds/linux/blob/v6.12/fs/proc/generic.c#L204>), and looking at them takes no ptrace permission.
///
/// # Errors
/// What `stat` says.
pub fn table_inode(proc: impl AsFd, pid: u32) -> Result<u64, Errno> {
    fstatat(proc, format!("{pid}/net/dev").as_str(), AtFlags::empty()).map(|stat| stat.st_ino)
}

/// A namespace to be entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// A file that stands for it.
    pub path: PathBuf,
    /// Which one it must be: the pid may have been given to another process meanwhile.
    pub inode: NetnsInode,
}

/// Why a namespace was not entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotEntered {
    /// `setns` was not permitted.
    #[error("entering another network namespace needs CAP_SYS_ADMIN")]
    Denied,
    /// The namespace, or the process that stood for it, is gone.
    #[error("the network namespace ended while it was read")]
    Gone,
    /// The file stands for a namespace of another kind.
    #[error("it is not a network namespace")]
    OtherKind,
    /// Anything else.
    #[error("it could not be entered ({})", .0.desc())]
    Failed(Errno),
}

/// Looks into each namespace, one after the other, on one thread of its own.
pub fn look_inside<T: Send>(doors: &[Door], look: impl Fn(usize) -> T + Send + Sync) -> Vec<Result<T, NotEntered>> {
    if doors.is_empty() {
        return Vec::new();
    }
    let visit = || doors.iter().enumerate().map(|(index, door)| enter(door).map(|()| look(index))).collect::<Vec<_>>();
    let visited = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, visit)
            .map(std::thread::ScopedJoinHandle::join)
    });
    let failed = match visited {
        Ok(Ok(visited)) => return visited,
        // Nothing in a look panics; were it to, the namespaces are unknown and the agent lives.
        Ok(Err(_panic)) => Errno::ECANCELED,
        Err(error) => error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw),
    };
    doors.iter().map(|_door| Err(NotEntered::Failed(failed))).collect()
}

/// Moves the calling thread.
fn enter(door: &Door) -> Result<(), NotEntered> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = open(Path::new(&door.path), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ESRCH => NotEntered::Gone,
        Errno::EACCES | Errno::EPERM => NotEntered::Denied,
        errno => NotEntered::Failed(errno),
    })?;
    if fstat(&file).map_err(NotEntered::Failed)?.st_ino != door.inode.0 {
        return Err(NotEntered::Gone);
    }
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EPERM => NotEntered::Denied,
        Errno::EINVAL => NotEntered::OtherKind,
        errno => NotEntered::Failed(errno),
    })
}
