//! What tells live entries from each other, in eight bytes each.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash as _, Hasher};

use crate::flow::Protocol;
use crate::observe::ConntrackEntry;

/// Entries that are told apart.
pub(super) type Fingerprints = HashSet<u64, BuildHasherDefault<Unchanged>>;

/// What tells an entry from every other: its key and the kernel's id, which tells a reused tuple apart. 64 bits: among
/// 250,000 entries two share one once in half a billion tables.
pub(super) fn fingerprint(entry: &ConntrackEntry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.key, entry.id).hash(&mut hasher);
    // The lowest bit tells UDP from the rest.
    hasher.finish() & !1 | u64::from(entry.key.protocol == Protocol::UDP)
}

/// A hasher for what is a hash already.
#[derive(Debug, Default)]
pub(super) struct Unchanged(u64);

impl Hasher for Unchanged {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
