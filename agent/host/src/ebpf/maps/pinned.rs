//! Maps that other programs have pinned.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::{MapData, MapError};

use super::calls::{lookup, lookup_batch, open_pinned};
use super::{BATCH, MAX_BATCH};

// include/uapi/linux/bpf.h.
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;

/// A hash map that another program has pinned on a bpffs, opened for reading only. Its bytes are that program's own affair: the
/// sizes are checked, and what they mean is for the caller to judge.
pub struct Pinned<const K: usize, const V: usize> {
    map: MapData,
    keys: Vec<[u8; K]>,
    values: Vec<[u8; V]>,
}

impl<const K: usize, const V: usize> std::fmt::Debug for Pinned<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

/// A pinned map could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// There is nothing at that path.
    #[error("it is not there")]
    Missing,
    /// It cannot be opened.
    #[error("cannot open it{hint}: {source}", hint = pinned_hint(source))]
    Open {
        /// Why.
        source: io::Error,
    },
    /// The kernel does not describe it.
    #[error("cannot examine it")]
    Examine(#[source] MapError),
    /// It is no hash, or its keys or values are of another size: another version than is known here.
    #[error(
        "it is laid out in a way that is not known here: type {map_type}, keys of {key_bytes} bytes, values of {value_bytes} bytes"
    )]
    Layout {
        /// `enum bpf_map_type`.
        map_type: u32,
        /// What a key takes.
        key_bytes: u32,
        /// What a value takes.
        value_bytes: u32,
    },
    /// The kernel could not read a batch.
    #[error("cannot read it: {0}")]
    Read(io::Error),
}

fn pinned_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (CAP_BPF is needed, CAP_SYS_ADMIN before Linux 5.8)",
        _ => "",
    }
}

impl<const K: usize, const V: usize> Pinned<K, V> {
    /// Opens what is pinned at `path`.
    ///
    /// # Errors
    /// It is not there, may not be read, or is not a hash of these sizes.
    pub fn open(path: &Path) -> Result<Self, PinnedError> {
        // The kernel would follow a link to wherever it leads.
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(PinnedError::Open { source: io::Error::from_raw_os_error(libc::EINVAL) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PinnedError::Missing),
            Err(source) => return Err(PinnedError::Open { source }),
        }
        let map = MapData::from_fd(open_pinned(path).map_err(|source| PinnedError::Open { source })?)
            .map_err(PinnedError::Examine)?;
        let info = map.info().map_err(PinnedError::Examine)?;
        let (map_type, key_bytes, value_bytes) = (info.map_type(), info.key_size(), info.value_size());
        let map_type = map_type.map_or(u32::MAX, |map_type| map_type as u32);
        let sizes = (u32::try_from(K), u32::try_from(V)) == (Ok(key_bytes), Ok(value_bytes));
        if !matches!(map_type, BPF_MAP_TYPE_HASH | BPF_MAP_TYPE_LRU_HASH) || !sizes {
            return Err(PinnedError::Layout { map_type, key_bytes, value_bytes });
        }
        Ok(Self { map, keys: Vec::new(), values: Vec::new() })
    }

    /// Whether the kernel makes room in a full one by evicting what was not used for longest.
    ///
    /// # Errors
    /// The kernel does not describe it any more.
    pub fn is_lru(&self) -> Result<bool, PinnedError> {
        let info = self.map.info().map_err(PinnedError::Examine)?;
        Ok(info.map_type().is_ok_and(|map_type| map_type as u32 == BPF_MAP_TYPE_LRU_HASH))
    }

    /// How many entries it can hold.
    ///
    /// # Errors
    /// The kernel does not describe it any more.
    pub fn max_entries(&self) -> Result<u32, PinnedError> {
        self.map.info().map(|info| info.max_entries()).map_err(PinnedError::Examine)
    }

    /// The value of a key as it is now, if it is there.
    ///
    /// # Errors
    /// The kernel could not read it.
    pub fn get(&self, key: &[u8; K]) -> Result<Option<[u8; V]>, PinnedError> {
        let mut value = [0; V];
        let found = lookup(self.map.fd().as_fd(), key, &mut value).map_err(PinnedError::Read)?;
        Ok(found.then_some(value))
    }

    /// Shows entries, batch after batch for as long as `more` says so; it is told how many there were. True if all were shown.
    /// What changes meanwhile may be seen or not.
    ///
    /// # Errors
    /// The kernel could not read on; what was shown before is true.
    pub fn for_each(
        &mut self,
        mut see: impl FnMut(&[u8; K], &[u8; V]),
        mut more: impl FnMut(usize) -> bool,
    ) -> Result<bool, PinnedError> {
        let (mut size, mut position, mut seen) = (BATCH * 4, None, 0);
        loop {
            self.keys.resize(size, [0; K]);
            self.values.resize(size, [0; V]);
            match lookup_batch(self.map.fd().as_fd(), position, &mut self.keys, &mut self.values) {
                Ok(read) => {
                    self.keys.iter().zip(&self.values).take(read.count).for_each(|(key, value)| see(key, value));
                    seen += read.count;
                    match read.next {
                        Some(next) if more(seen) => position = Some(next),
                        next => return Ok(next.is_none()),
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < MAX_BATCH => size *= 2,
                Err(error) => return Err(PinnedError::Read(error)),
            }
        }
    }
}
