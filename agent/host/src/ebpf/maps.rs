//! Maps of the programs, read in batches, and maps that others have pinned.
//!
//! aya reads a hash map with two system calls per key; `BPF_MAP_LOOKUP_BATCH` (Linux 5.6) takes one for a thousand and a
//! sixth of the time.

use std::io;
use std::os::fd::AsFd as _;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, Stack};

mod calls;
mod pinned;

use calls::{lookup_batch, take};

pub use pinned::{Pinned, PinnedError};

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
    /// be lost, or land in the next key that gets the element (the map hands out a freed one at once); kernels before 5.14 take it
    /// out in two steps, which makes that moment some microseconds long.
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
