//! Maps of the programs, read in batches. With `iptables::kernel` and `memory` the only modules of headroom-host with unsafe code.
//!
//! aya reads a hash map with two system calls per key; `BPF_MAP_LOOKUP_BATCH` (Linux 5.6) takes one for a thousand and a
//! sixth of the time. There is no wrapper for it in aya, hence the call here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, Stack};

/// A map could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// aya could not.
    #[error("could not use the eBPF map `{map}`")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The kernel could not read a batch, or take a key out.
    #[error("could not read the eBPF map `{map}`")]
    Batch {
        /// Which.
        map: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Entries read at once. A bucket that holds more makes the kernel ask for more room.
const BATCH: usize = 1024;
/// More than a bucket of a hash with good spread ever holds.
const MAX_BATCH: usize = 1 << 16;

/// Update only if the key is not there.
const BPF_NOEXIST: u64 = 1;

/// A hash map of plain bytes.
pub struct Hash<K, V> {
    name: &'static str,
    /// Always a hash whose keys and values have the sizes of `K` and `V`.
    map: Map,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> std::fmt::Debug for Hash<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hash").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K: Pod + Default, V: Pod + Default> Hash<K, V> {
    /// Takes a map for one from `K` to `V`.
    ///
    /// # Errors
    /// It is not a hash, or its keys or values have another size: that is what makes the reads below sound.
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self, MapsError> {
        let _sizes =
            HashMap::<&MapData, K, V>::try_from(&map).map_err(|source| MapsError::Map { map: name, source })?;
        Ok(Self { name, map, keys: Vec::new(), values: Vec::new() })
    }

    /// Enters a key that is not there yet; one that is keeps its value.
    ///
    /// # Errors
    /// The kernel refused for another reason.
    pub fn insert_new(&mut self, key: K, value: V) -> Result<Inserted, MapsError> {
        let inserted = HashMap::<&mut MapData, K, V>::try_from(&mut self.map)
            .and_then(|mut map| map.insert(key, value, BPF_NOEXIST));
        match inserted {
            Ok(()) => Ok(Inserted::New),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(Inserted::Known)
            }
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                Ok(Inserted::Full)
            }
            Err(source) => Err(MapsError::Map { map: self.name, source }),
        }
    }

    /// The value of a key, if it is there.
    ///
    /// # Errors
    /// The kernel could not read it.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapsError> {
        match HashMap::<&MapData, K, V>::try_from(&self.map).and_then(|map| map.get(key, 0)) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapsError::Map { map: self.name, source }),
        }
    }

    /// Takes a key out, if it is there.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&mut self, key: &K) -> Result<(), MapsError> {
        match HashMap::<&mut MapData, K, V>::try_from(&mut self.map).and_then(|mut map| map.remove(key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(source) => Err(MapsError::Map { map: self.name, source }),
        }
    }

    /// Takes a key out and gives its last value, if it was there. What a program adds at that very moment, on another CPU, may
    /// be lost; kernels before 5.14 take it out in two steps, which makes that moment some microseconds long.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn take(&mut self, key: &K) -> Result<Option<V>, MapsError> {
        let Map::HashMap(data) = &self.map else { return Ok(None) };
        let mut value = V::default();
        match take(data.fd().as_fd(), key, &mut value) {
            Ok(()) => return Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            // ENOTSUPP, which has no name outside the kernel.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524)) => {}
            Err(source) => return Err(MapsError::Batch { map: self.name, source }),
        }
        let mut map = HashMap::<&mut MapData, K, V>::try_from(&mut self.map)
            .map_err(|source| MapsError::Map { map: self.name, source })?;
        let taken = map.get(key, 0).and_then(|value| map.remove(key).map(|()| value));
        match taken {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapsError::Map { map: self.name, source }),
        }
    }

    /// Shows every entry. What changes meanwhile may be seen or not; what does not change is seen exactly once.
    ///
    /// # Errors
    /// The kernel could not read on; what was shown before is true.
    pub fn for_each(&mut self, mut see: impl FnMut(&K, &V)) -> Result<(), MapsError> {
        let Map::HashMap(data) = &self.map else { return Ok(()) };
        let mut size = BATCH.max(self.keys.len());
        let mut position = None;
        loop {
            self.keys.resize(size, K::default());
            self.values.resize(size, V::default());
            match lookup_batch(data.fd().as_fd(), position, &mut self.keys, &mut self.values) {
                Ok(read) => {
                    for (key, value) in self.keys.iter().zip(&self.values).take(read.count) {
                        see(key, value);
                    }
                    match read.next {
                        Some(next) => position = Some(next),
                        None => return Ok(()),
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < MAX_BATCH => size *= 2,
                Err(error) => return Err(MapsError::Batch { map: self.name, source: error }),
            }
        }
    }
}

/// What became of a key that was to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is there now.
    New,
    /// It was there before.
    Known,
    /// There is no room.
    Full,
}

/// An array map of plain bytes.
pub struct Table<V> {
    name: &'static str,
    /// Always an array whose values have the size of `V`.
    map: Map,
    values: Vec<V>,
}

impl<V> std::fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<V: Pod + Default> Table<V> {
    /// Takes a map for an array of `V`.
    ///
    /// # Errors
    /// It is not an array, or its values have another size: that is what makes the reads below sound.
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self, MapsError> {
        let _size = Array::<&MapData, V>::try_from(&map).map_err(|source| MapsError::Map { map: name, source })?;
        Ok(Self { name, map, values: Vec::new() })
    }

    /// Overwrites the value at an index.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set(&mut self, index: u32, value: V) -> Result<(), MapsError> {
        Array::<&mut MapData, V>::try_from(&mut self.map)
            .and_then(|mut map| map.set(index, value, 0))
            .map_err(|source| MapsError::Map { map: self.name, source })
    }

    /// The value at an index.
    ///
    /// # Errors
    /// The kernel could not read it.
    pub fn get(&self, index: u32) -> Result<V, MapsError> {
        Array::<&MapData, V>::try_from(&self.map)
            .and_then(|map| map.get(&index, 0))
            .map_err(|source| MapsError::Map { map: self.name, source })
    }

    /// Shows the values from the first on, with their indices, batch after batch for as long as `more` says so. The first batch
    /// has `likely` values at most.
    ///
    /// # Errors
    /// The kernel could not read on; what was shown before is true.
    pub fn for_each(
        &mut self,
        likely: usize,
        mut see: impl FnMut(u32, &V) -> Result<(), MapsError>,
        mut more: impl FnMut(u32) -> bool,
    ) -> Result<(), MapsError> {
        let Map::Array(data) = &self.map else { return Ok(()) };
        self.values.resize(BATCH, V::default());
        let mut room = likely.clamp(1, BATCH);
        // An array's keys are its indices.
        let mut indices = [0_u32; BATCH];
        let mut position = None;
        loop {
            let values = self.values.get_mut(..room).unwrap_or_default();
            let read = lookup_batch(data.fd().as_fd(), position, &mut indices, values)
                .map_err(|source| MapsError::Batch { map: self.name, source })?;
            room = BATCH;
            let mut next = 0;
            for (index, value) in indices.iter().zip(&self.values).take(read.count) {
                see(*index, value)?;
                next = index.saturating_add(1);
            }
            match read.next {
                Some(after) if more(next) => position = Some(after),
                _ => return Ok(()),
            }
        }
    }
}

/// A stack map of numbers.
pub struct Numbers {
    name: &'static str,
    map: Stack<MapData, u32>,
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Numbers").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Numbers {
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self, MapsError> {
        let map = Stack::try_from(map).map_err(|source| MapsError::Map { map: name, source })?;
        Ok(Self { name, map })
    }

    /// Puts one on top.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn push(&mut self, number: u32) -> Result<(), MapsError> {
        self.map.push(number, 0).map_err(|source| MapsError::Map { map: self.name, source })
    }

    /// Takes the one on top, if there is one.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn pop(&mut self) -> Result<Option<u32>, MapsError> {
        match self.map.pop(0) {
            Ok(number) => Ok(Some(number)),
            Err(MapError::ElementNotFound) => Ok(None),
            Err(source) => Err(MapsError::Map { map: self.name, source }),
        }
    }
}

/// An array map with one value.
pub struct Single<V: Pod> {
    name: &'static str,
    map: Array<MapData, V>,
}

impl<V: Pod> std::fmt::Debug for Single<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Single").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<V: Pod> Single<V> {
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self, MapsError> {
        let map = Array::try_from(map).map_err(|source| MapsError::Map { map: name, source })?;
        Ok(Self { name, map })
    }

    /// The value.
    ///
    /// # Errors
    /// The kernel could not read it.
    pub fn get(&self) -> Result<V, MapsError> {
        self.map.get(&0, 0).map_err(|source| MapsError::Map { map: self.name, source })
    }
}

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

    /// How many entries it can hold.
    ///
    /// # Errors
    /// The kernel does not describe it any more.
    pub fn max_entries(&self) -> Result<u32, PinnedError> {
        self.map.info().map(|info| info.max_entries()).map_err(PinnedError::Examine)
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

// include/uapi/linux/bpf.h.
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_F_RDONLY: u32 = 1 << 3;

/// The `BPF_OBJ_*` part of `union bpf_attr`.
#[repr(C)]
struct ObjectAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// aya opens pinned maps for writing, too; that takes a permission we do not want.
fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        ObjectAttributes { pathname: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: BPF_F_RDONLY };
    // SAFETY: the kernel reads a path that ends with a zero and lives until the call returns, and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut attributes, size_of::<ObjectAttributes>()) };
    match i32::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The single-element part of `union bpf_attr`.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;

/// Takes one key out of a hash.
fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &mut V) -> io::Result<()> {
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        value: std::ptr::from_mut(value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads one key and writes one value, of the map's sizes, which aya compared with `K` and `V` when the
    // map was taken; any bytes are a `Pod`. Both live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_AND_DELETE_ELEM,
            &raw mut attributes,
            size_of::<ElementAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What one call brought.
struct Read {
    count: usize,
    /// Where to go on; `None` at the end.
    next: Option<u64>,
}

/// The `batch` part of `union bpf_attr` (`include/uapi/linux/bpf.h`, unchanged since 5.6).
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Reads as many entries as there is room for, from a position on.
fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<u64>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Read> {
    let room = keys.len().min(values.len());
    let mut next = 0_u64;
    let mut attributes = BatchAttributes {
        in_batch: position.as_ref().map_or(0, |position| std::ptr::from_ref(position).expose_provenance() as u64),
        out_batch: (&raw mut next).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel writes at most `count` keys and values of the map's sizes, which aya compared with `K` and `V` when
    // the map was taken; any bytes are a `Pod`. A position is four bytes in a hash; `next` and `position` have eight. All
    // live until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<BatchAttributes>())
    };
    let count = usize::try_from(attributes.count).unwrap_or(room).min(room);
    if result == 0 {
        return Ok(Read { count, next: Some(next) });
    }
    match io::Error::last_os_error() {
        // The end; what was read is there.
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(Read { count, next: None }),
        error => Err(error),
    }
}
