//! A network's directory, held open: everything is done relative to it, no link is followed on the way.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use headroom_core::known::Known;
use headroom_core::observe::Holder;
use headroom_core::plan::clean::{Release, is_network_name};
use headroom_core::time::WallTime;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use crate::bounded::{self, Refusal};
use crate::root::HostRoot;
use crate::source::host_local::holder;

/// host-local writes less than 200 bytes.
const CONTENT_LIMIT: usize = 4096;

/// Why a network's directory cannot be worked in. The text continues a sentence that has named it.
#[derive(Debug, thiserror::Error)]
pub enum NoPlace {
    /// It, or the directory it is in, cannot be opened.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Its path is none that host-local makes.
    #[error("is no path of a network of host-local")]
    NotANetwork,
    /// It cannot be examined.
    #[error("cannot be examined ({})", .0.desc())]
    Examine(Errno),
    /// A mount of its own: nothing can be renamed out of it.
    #[error(
        "is on another file system than the directory it is in: a reservation cannot be moved out of it in one step, and a journal inside it would be taken for reservations by host-local"
    )]
    OtherFileSystem,
}

/// A network's directory and the directory it is in, open.
#[derive(Debug)]
pub(super) struct Place {
    /// host-local's `dataDir`.
    pub(super) data_dir: Dir,
    /// The network's name: that of its directory.
    pub(super) name: String,
    /// The directory itself.
    pub(super) dir: Dir,
    identity: (u64, u64),
}

/// A reservation's file as it is at one moment: two that are equal are the same reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// What is in it.
    pub(super) content: Vec<u8>,
    /// Which file it is.
    pub(super) inode: u64,
    device: u64,
    /// When it was written, to the nanosecond.
    modified: (i64, i64),
}

impl Place {
    /// Opens the directory of a network by its path on this machine.
    ///
    /// # Errors
    /// Whatever makes it unfit.
    pub(super) fn open(store: &Path) -> Result<Self, NoPlace> {
        let (Some(parent), Some(name)) = (store.parent(), store.file_name()) else { return Err(NoPlace::NotANetwork) };
        Self::below(bounded::open_dir(&HostRoot::live(), parent)?, name)
    }

    /// Opens the directory of a network below an open `dataDir`.
    ///
    /// # Errors
    /// Whatever makes it unfit.
    pub(super) fn below(data_dir: Dir, name: &OsStr) -> Result<Self, NoPlace> {
        let name = name.to_str().filter(|name| is_network_name(name)).ok_or(NoPlace::NotANetwork)?.to_owned();
        let dir = bounded::open_subdir(&data_dir, name.as_str())?;
        let (outer, inner) = (examine(&data_dir)?, examine(&dir)?);
        if outer.st_dev != inner.st_dev {
            return Err(NoPlace::OtherFileSystem);
        }
        Ok(Self { data_dir, name, dir, identity: (inner.st_dev, inner.st_ino) })
    }

    /// Whether the path still leads to the directory that is open.
    pub(super) fn is_still_there(&self) -> bool {
        fstatat(&self.data_dir, self.name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity)
    }

    /// The reservation of an address.
    ///
    /// # Errors
    /// Whatever is not the readable regular file that host-local writes.
    pub(super) fn read(&self, address: IpAddr) -> Result<Found, Refusal> {
        Found::read(&self.dir, &address.to_string())
    }
}

impl Found {
    /// Reads a file of a directory.
    ///
    /// # Errors
    /// Whatever is not a readable regular file of the size host-local writes.
    pub(super) fn read(dir: impl AsFd, name: &str) -> Result<Self, Refusal> {
        let before = Self::stat(&dir, name)?;
        let content = bounded::read_at(&dir, name, CONTENT_LIMIT)?;
        let found = |stat: &FileStat, content| Self {
            content,
            inode: stat.st_ino,
            device: stat.st_dev,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        };
        // What was read is what was looked at before and after.
        let (before, after) = (found(&before, Vec::new()), found(&Self::stat(&dir, name)?, Vec::new()));
        if before == after {
            Ok(Self { content, ..after })
        } else {
            Err(Refusal::Failed { call: "fstatat", errno: Errno::EAGAIN })
        }
    }

    /// A regular file's identity.
    fn stat(dir: impl AsFd, name: &str) -> Result<FileStat, Refusal> {
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|errno| match errno {
            Errno::ENOENT => Refusal::Missing,
            Errno::EACCES | Errno::EPERM => Refusal::Denied,
            errno => Refusal::Failed { call: "fstatat", errno },
        })?;
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Ok(stat),
            SFlag::S_IFLNK => Err(Refusal::Symlink),
            SFlag::S_IFDIR => Err(Refusal::Directory),
            SFlag::S_IFIFO => Err(Refusal::Fifo),
            SFlag::S_IFSOCK => Err(Refusal::Socket),
            _device => Err(Refusal::Device),
        }
    }

    /// Whether an entry of a directory is this very file.
    pub(super) fn is(&self, dir: impl AsFd, name: &str) -> bool {
        Self::stat(dir, name).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (self.device, self.inode))
    }

    /// For whom it is reserved.
    pub(super) fn holder(&self) -> Known<Holder> {
        holder::parse(&self.content)
    }

    /// Whether this is what the plan was made for.
    pub(super) fn is_planned(&self, release: &Release) -> bool {
        let (secs, nanos) = self.modified;
        let modified = WallTime::from_millis(secs.saturating_mul(1000).saturating_add(nanos / 1_000_000));
        let same_holder = self
            .holder()
            .present()
            .is_some_and(|holder| holder.container.0 == release.container_id && holder.ifname == release.ifname);
        same_holder && modified == release.modified
    }
}

fn examine(dir: &Dir) -> Result<FileStat, NoPlace> {
    fstat(dir.as_fd()).map_err(NoPlace::Examine)
}

/// The name of a network's directory as the file system takes it.
pub(super) fn name_of(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}
