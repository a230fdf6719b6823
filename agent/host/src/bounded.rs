//! Reading files that somebody else writes: never blocking, never following a link, never more than a limit.
//!
//! A file of a node may be replaced by anything: a FIFO that never answers, a link to a secret, a device, a terabyte of
//! holes. Each of these is a [`Refusal`] with a name here, not a hang and not an empty answer. What the bytes mean is left
//! to the callers.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use headroom_core::time::WallTime;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::{NixPath, unistd};

use crate::root::HostRoot;

/// Flags of every open: a link is not followed, a FIFO does not wait for its writer, a terminal is not taken over.
const OPEN: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC).union(OFlag::O_NOCTTY);

/// Why a file was not read. The text continues a sentence that has named the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such file.
    #[error("does not exist")]
    Missing,
    /// The permissions of this process do not suffice.
    #[error("may not be read (permission denied; run as root or with CAP_DAC_READ_SEARCH)")]
    Denied,
    /// A symbolic link.
    #[error("is a symbolic link, which is not followed")]
    Symlink,
    /// A named pipe.
    #[error("is a FIFO, not a regular file")]
    Fifo,
    /// A socket.
    #[error("is a socket, not a regular file")]
    Socket,
    /// A directory where a file was expected.
    #[error("is a directory, not a regular file")]
    Directory,
    /// A block or character device.
    #[error("is a device, not a regular file")]
    Device,
    /// A file where a directory was expected.
    #[error("is not a directory")]
    NotDirectory,
    /// More bytes than the limit.
    #[error("is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// Anything else the kernel says.
    #[error("could not be read ({}: {})", .call, .errno.desc())]
    Failed {
        /// The system call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
}

impl Refusal {
    /// What an error of `open` means.
    fn of_open(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT => Self::Missing,
            Errno::EACCES | Errno::EPERM => Self::Denied,
            Errno::ELOOP => Self::Symlink,
            Errno::ENOTDIR => Self::NotDirectory,
            // What opening a socket (or a device without a driver) says.
            Errno::ENXIO => Self::Socket,
            errno => Self::Failed { call: "open", errno },
        }
    }

    /// What the type of a directory entry says before the file is opened: a device is better not opened at all.
    pub fn of_type(kind: Option<Type>) -> Option<Self> {
        match kind? {
            Type::File => None,
            Type::Fifo => Some(Self::Fifo),
            Type::Socket => Some(Self::Socket),
            Type::Directory => Some(Self::Directory),
            Type::Symlink => Some(Self::Symlink),
            Type::CharacterDevice | Type::BlockDevice => Some(Self::Device),
        }
    }

    /// What the mode of an open file says.
    fn of_mode(stat: &FileStat) -> Option<Self> {
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => None,
            SFlag::S_IFIFO => Some(Self::Fifo),
            SFlag::S_IFSOCK => Some(Self::Socket),
            SFlag::S_IFDIR => Some(Self::Directory),
            SFlag::S_IFLNK => Some(Self::Symlink),
            _device => Some(Self::Device),
        }
    }
}

/// What a small file held, in the caller's buffer, and when it was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Small {
    /// How many bytes of the buffer were filled.
    pub len: usize,
    /// mtime.
    pub modified: WallTime,
}

/// Reads a small regular file below an open directory with three system calls and no allocation.
///
/// The limit is one byte less than the buffer, so that a file that grows meanwhile is noticed.
///
/// # Errors
/// Everything that is not a readable regular file within the limit.
pub fn read_small<P: ?Sized + NixPath>(dir: impl AsFd, name: &P, buffer: &mut [u8]) -> Result<Small, Refusal> {
    let limit = buffer.len().saturating_sub(1);
    let (file, stat) = open_regular(openat(dir, name, OPEN, Mode::empty()), limit)?;
    let len = if stat.st_size == 0 { 0 } else { retried(|| unistd::read(&file, buffer))? };
    if len > limit { Err(Refusal::TooLong { limit }) } else { Ok(Small { len, modified: modified(&stat) }) }
}

/// Reads a regular file below an open directory.
///
/// # Errors
/// Everything that is not a readable regular file within the limit.
pub fn read_at<P: ?Sized + NixPath>(dir: impl AsFd, name: &P, limit: usize) -> Result<Vec<u8>, Refusal> {
    let (file, _stat) = open_regular(openat(dir, name, OPEN, Mode::empty()), limit)?;
    read_to_end(file, limit)
}

/// Reads a regular file, also one of `/proc` and `/sys` that does not know its size.
///
/// # Errors
/// Everything that is not a readable regular file within the limit.
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Refusal> {
    let (file, _stat) = open_regular(open(path, OPEN, Mode::empty()), limit)?;
    read_to_end(file, limit)
}

/// Reads a regular file of the node; inside a captured tree links on the way stay in the tree.
///
/// # Errors
/// Everything that is not a readable regular file within the limit.
pub fn read_in(root: &HostRoot, absolute: &Path, limit: usize) -> Result<Vec<u8>, Refusal> {
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if !root.is_live() => read_at(open_dir(root, parent)?, name, limit),
        _live => read(absolute, limit),
    }
}

/// Reads a regular file of the node as text without the white space around it.
///
/// # Errors
/// As [`read_in`]. Bytes that are not UTF-8 become U+FFFD.
pub fn read_line_in(root: &HostRoot, absolute: &Path, limit: usize) -> Result<String, Refusal> {
    read_in(root, absolute, limit).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Opens a directory of the node. Links on the way are followed, but inside a captured tree they stay in the tree.
///
/// # Errors
/// Whatever keeps the directory from being opened.
pub fn open_dir(root: &HostRoot, absolute: &Path) -> Result<Dir, Refusal> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = if root.is_live() {
        open(absolute, flags, Mode::empty())
    } else {
        let top = open(&root.path("/"), flags, Mode::empty()).map_err(Refusal::of_open)?;
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match openat2(&top, absolute, how) {
            // gVisor and old seccomp profiles do not know openat2.
            Err(Errno::ENOSYS) => openat(AT_FDCWD, &root.path(absolute), flags, Mode::empty()),
            opened => opened,
        }
    };
    fd.and_then(Dir::from_fd).map_err(Refusal::of_open)
}

/// Opens a directory directly below an open one; a link in its place is refused.
///
/// # Errors
/// Whatever keeps the directory from being opened.
pub fn open_subdir<P: ?Sized + NixPath>(dir: impl AsFd, name: &P) -> Result<Dir, Refusal> {
    Dir::openat(dir, name, OPEN | OFlag::O_DIRECTORY, Mode::empty()).map_err(Refusal::of_open)
}

/// One entry of a directory, without `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name: any bytes but `/` and NUL.
    pub name: CString,
    /// What is known of it before it is opened: a refusal means that it is not a regular file.
    kind: Option<EntryKind>,
}

/// [`Type`] cannot be ordered, and no more than this is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum EntryKind {
    File,
    Directory,
    Symlink,
    Other,
}

impl Entry {
    /// Whether it may be a directory (some file systems do not say).
    pub fn may_be_directory(&self) -> bool {
        matches!(self.kind, None | Some(EntryKind::Directory))
    }

    /// Whether it may be a regular file (some file systems do not say).
    pub fn may_be_file(&self) -> bool {
        matches!(self.kind, None | Some(EntryKind::File))
    }

    /// Whether it is certainly a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.kind == Some(EntryKind::Symlink)
    }
}

/// The entries of a small directory in the order of their names, at most `limit`, and whether there are more.
///
/// # Errors
/// What `readdir` says.
pub fn entries(dir: &mut Dir, limit: usize) -> Result<(Vec<Entry>, bool), Refusal> {
    let mut found = Vec::new();
    let mut more = false;
    for entry in dir.iter() {
        let entry = entry.map_err(|errno| Refusal::Failed { call: "readdir", errno })?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        if found.len() == limit {
            more = true;
            break;
        }
        let kind = entry.file_type().map(|kind| match kind {
            Type::File => EntryKind::File,
            Type::Directory => EntryKind::Directory,
            Type::Symlink => EntryKind::Symlink,
            Type::Fifo | Type::Socket | Type::CharacterDevice | Type::BlockDevice => EntryKind::Other,
        });
        found.push(Entry { name: entry.file_name().to_owned(), kind });
    }
    found.sort_unstable();
    Ok((found, more))
}

/// Foreign bytes as people may see them: control characters and what is not UTF-8 escaped, at most 80 characters.
pub fn shown(bytes: &[u8]) -> String {
    shown_up_to(bytes, 80)
}

/// As [`shown`], with another limit.
pub fn shown_up_to(bytes: &[u8], limit: usize) -> String {
    let mut text = String::new();
    for chunk in bytes.get(..limit.saturating_mul(4)).unwrap_or(bytes).utf8_chunks() {
        text.extend(chunk.valid().chars().flat_map(char::escape_debug));
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    match text.char_indices().nth(limit) {
        Some((end, _)) => {
            text.truncate(end);
            text.push('…');
            text
        }
        None => text,
    }
}

/// mtime of a file.
fn modified(stat: &FileStat) -> WallTime {
    WallTime::from_millis(stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec / 1_000_000))
}

/// What was opened, if it is a regular file within the limit.
fn open_regular(opened: nix::Result<OwnedFd>, limit: usize) -> Result<(OwnedFd, FileStat), Refusal> {
    let file = opened.map_err(Refusal::of_open)?;
    let stat = fstat(&file).map_err(|errno| Refusal::Failed { call: "fstat", errno })?;
    if let Some(refusal) = Refusal::of_mode(&stat) {
        return Err(refusal);
    }
    if usize::try_from(stat.st_size).is_ok_and(|size| size <= limit) {
        Ok((file, stat))
    } else {
        Err(Refusal::TooLong { limit })
    }
}

/// All bytes of an open file, unless there are more than the limit.
fn read_to_end(file: OwnedFd, limit: usize) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::from(file).take(most).read_to_end(&mut bytes).map_err(|error| Refusal::Failed {
        call: "read",
        errno: error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw),
    })?;
    if bytes.len() > limit { Err(Refusal::TooLong { limit }) } else { Ok(bytes) }
}

/// A read that a signal does not break.
fn retried(mut read: impl FnMut() -> nix::Result<usize>) -> Result<usize, Refusal> {
    loop {
        match read() {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map_err(|errno| Refusal::Failed { call: "read", errno }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_not_a_regular_file_is_refused_by_name_and_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text\n").unwrap();
        symlink(at("file"), at("link")).unwrap();
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        let asked = |name: &str| read(&at(name), 100);
        assert_eq!(read_line_in(&HostRoot::at(dir.path()), Path::new("/file"), 100).unwrap(), "text");
        assert_eq!(asked("link"), Err(Refusal::Symlink));
        assert_eq!(asked("fifo"), Err(Refusal::Fifo));
        assert_eq!(asked("dir"), Err(Refusal::Directory));
        assert_eq!(asked("socket"), Err(Refusal::Socket));
        assert_eq!(asked("nothing"), Err(Refusal::Missing));
        assert_eq!(read(Path::new("/dev/zero"), 100), Err(Refusal::Device));
    }

    #[test]
    fn a_sparse_gibibyte_and_an_endless_proc_file_are_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        assert_eq!(read(&path, 4096), Err(Refusal::TooLong { limit: 4096 }));
        let opened = open_dir(&HostRoot::live(), dir.path()).unwrap();
        assert_eq!(read_small(&opened, "huge", &mut [0; 4097]), Err(Refusal::TooLong { limit: 4096 }));
        assert_eq!(read(Path::new("/proc/kallsyms"), 64), Err(Refusal::TooLong { limit: 64 }));
    }

    #[test]
    fn a_link_in_a_captured_tree_does_not_lead_out_of_it() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("run/store")).unwrap();
        std::fs::write(tree.path().join("run/store/captured"), "").unwrap();
        std::fs::create_dir(tree.path().join("var")).unwrap();
        symlink("/run", tree.path().join("var/run")).unwrap();
        symlink("../../../../../../../../proc", tree.path().join("escape")).unwrap();
        let root = HostRoot::at(tree.path());
        let mut store = open_dir(&root, Path::new("/var/run/store")).unwrap();
        assert_eq!(entries(&mut store, 10).unwrap().0[0].name.to_bytes(), b"captured");
        assert!(open_dir(&root, Path::new("/escape")).is_err());
        assert_eq!(read_in(&root, Path::new("/escape/version"), 100), Err(Refusal::Missing));
        assert_eq!(read_in(&root, Path::new("/var/run/store/captured"), 100), Ok(vec![]));
    }

    #[test]
    fn foreign_names_are_escaped_and_cut() {
        assert_eq!(shown(b"plain-1.2"), "plain-1.2");
        assert_eq!(shown(b"a\x1b[2J\xff\n"), "a\\u{1b}[2J\\xff\\n");
        assert_eq!(shown(&[b'x'; 500]).chars().count(), 81);
        assert_eq!(shown("é".repeat(500).as_bytes()).chars().count(), 81);
    }
}
