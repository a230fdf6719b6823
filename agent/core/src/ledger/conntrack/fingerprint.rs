//! What tells live entries from each other, in eight bytes each.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use super::Scope;
use crate::flow::Protocol;
use crate::observe::ConntrackEntry;

/// What tells an entry from every other: its key and the kernel's id, which tells a reused tuple apart. 61 bits of a hash: among
/// 250,000 entries two share one once in 70 million tables. The other bits are what is known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fingerprint(u64);

/// It is UDP.
const UDP: u64 = 1;
/// The dump that has shown it was one with an odd number.
const ODD: u64 = 2;
/// It did not live when the dump under way showed it. Without meaning for earlier dumps.
const FRESH: u64 = 4;

impl Fingerprint {
    pub(super) fn of(entry: &ConntrackEntry) -> Self {
        let mut hasher = DefaultHasher::new();
        (entry.key, entry.id).hash(&mut hasher);
        let udp = if entry.key.protocol == Protocol::UDP { UDP } else { 0 };
        Self(hasher.finish() & !(UDP | ODD | FRESH) | udp)
    }

    fn entry(self) -> u64 {
        self.0 & !(ODD | FRESH)
    }
}

/// The same entry, whatever is known of it.
impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.entry() == other.entry()
    }
}

impl Eq for Fingerprint {}

impl Hash for Fingerprint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.entry());
    }
}

/// An entry of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// The dump has shown it before.
    Again,
    /// It was not known to live.
    Fresh,
    /// It was.
    Known,
}

/// Entries that are told apart: those that live, while events tell what happens, and those that the dump under way has shown. Most
/// are both, so they share a set; a new dump changes nothing but what number stands for it.
#[derive(Debug, Default)]
pub(super) struct Fingerprints {
    entries: HashSet<Fingerprint, BuildHasherDefault<Unchanged>>,
    live: usize,
    shown: usize,
    /// [`ODD`] or 0: the dump under way, of UDP …
    present_udp: u64,
    /// … and of the rest.
    present: u64,
}

impl Fingerprints {
    /// Entries that live.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Entries that the dump under way has shown.
    pub(super) fn shown(&self) -> usize {
        self.shown
    }

    fn present(&self, entry: Fingerprint) -> u64 {
        if entry.0 & UDP == 0 { self.present } else { self.present_udp }
    }

    fn is_shown(&self, entry: Fingerprint) -> bool {
        entry.0 & ODD == self.present(entry)
    }

    fn is_live(&self, entry: Fingerprint) -> bool {
        !self.is_shown(entry) || entry.0 & FRESH == 0
    }

    fn put(&mut self, entry: Fingerprint, shown: bool, fresh: bool) {
        let odd = if shown { self.present(entry) } else { self.present(entry) ^ ODD };
        let _before = self.entries.replace(Fingerprint(entry.entry() | odd | if fresh { FRESH } else { 0 }));
    }

    /// The dump shows an entry.
    pub(super) fn show(&mut self, entry: Fingerprint) -> Shown {
        let known = self.entries.get(&entry).copied();
        if known.is_some_and(|known| self.is_shown(known)) {
            return Shown::Again;
        }
        self.put(entry, true, known.is_none());
        self.shown += 1;
        if known.is_none() { Shown::Fresh } else { Shown::Known }
    }

    /// An entry begins. Says whether it did not live already.
    pub(super) fn begin(&mut self, entry: Fingerprint) -> bool {
        let known = self.entries.get(&entry).copied();
        if known.is_some_and(|known| self.is_live(known)) {
            return false;
        }
        self.put(entry, known.is_some(), false);
        self.live += 1;
        true
    }

    /// An entry ends. Says whether it lived.
    pub(super) fn end(&mut self, entry: Fingerprint) -> bool {
        let Some(known) = self.entries.get(&entry).copied().filter(|known| self.is_live(*known)) else { return false };
        if self.is_shown(known) {
            self.put(known, true, true);
        } else {
            self.entries.remove(&known);
        }
        self.live -= 1;
        true
    }

    /// The dump was complete: of what it tells of, nothing lives but what it has shown.
    pub(super) fn replace(&mut self, scope: Scope) {
        let told = |entry: Fingerprint| scope == Scope::Everything || entry.0 & UDP != 0;
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| !told(*entry) || self.is_shown(*entry));
        // A burst of entries is over.
        if entries.capacity() / 4 > entries.len() {
            entries.shrink_to(entries.len() * 2);
        }
        self.live = entries.len();
        self.shown = 0;
        self.entries = entries;
        self.present_udp ^= ODD;
        if scope == Scope::Everything {
            self.present ^= ODD;
        }
    }

    /// Half a dump: what it has shown lives, too.
    pub(super) fn merge(&mut self) {
        for entry in std::mem::take(&mut self.entries) {
            self.put(entry, false, false);
        }
        self.live = self.entries.len();
        self.shown = 0;
    }

    /// What the dump has shown proves nothing.
    pub(super) fn forget_shown(&mut self) {
        if self.shown == 0 {
            return;
        }
        self.shown = 0;
        if self.live == 0 {
            // The next dump has much the same.
            self.entries.clear();
            return;
        }
        for entry in std::mem::take(&mut self.entries) {
            if self.is_live(entry) {
                self.put(entry, false, false);
            }
        }
    }

    /// Nothing is known to live.
    pub(super) fn forget_live(&mut self) {
        if self.live == 0 {
            return;
        }
        self.live = 0;
        for entry in std::mem::take(&mut self.entries) {
            if self.is_shown(entry) {
                self.put(entry, true, true);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const A: Fingerprint = Fingerprint(8);
    const B: Fingerprint = Fingerprint(16);
    const C: Fingerprint = Fingerprint(24 | UDP);

    /// Exercises dumps one after the other, with events between. If this fails, flows are counted twice or never end.
    #[test]
    fn an_entry_lives_while_dumps_show_it_and_until_an_event_ends_it() {
        let mut entries = Fingerprints::default();
        for _dump in 0..3 {
            let known = [A, B, C].map(|entry| entries.show(entry));
            assert_eq!([A, B, C].map(|entry| entries.show(entry)), [Shown::Again; 3]);
            assert_eq!(entries.shown(), 3);
            entries.replace(Scope::Everything);
            assert_eq!((entries.live(), entries.shown()), (3, 0));
            assert!(known == [Shown::Known, Shown::Fresh, Shown::Known] || known == [Shown::Fresh; 3], "{known:?}");
            assert_eq!([entries.begin(A), entries.end(B), entries.end(B)], [false, true, false]);
        }
        // Of UDP alone: it proves nothing of the rest.
        entries.replace(Scope::Udp);
        assert_eq!([entries.end(C), entries.end(A)], [false, true]);
        assert_eq!(entries.live(), 0);
    }

    #[test]
    fn a_dump_that_failed_leaves_what_was_known_and_half_a_dump_adds_to_it() {
        let mut entries = Fingerprints::default();
        assert!(entries.begin(A));
        assert_eq!([entries.show(A), entries.show(B)], [Shown::Known, Shown::Fresh]);
        assert_eq!([entries.begin(A), entries.end(B)], [false, false], "shown by a dump is not known to live");
        entries.forget_shown();
        assert_eq!([entries.end(B), entries.end(A), entries.end(A)], [false, true, false]);
        assert!(entries.begin(A));
        assert_eq!([entries.show(A), entries.show(B), entries.show(C)], [Shown::Known, Shown::Fresh, Shown::Fresh]);
        assert!(entries.end(A) && entries.begin(C));
        entries.forget_live();
        assert_eq!((entries.live(), entries.shown()), (0, 3));
        entries.merge();
        assert_eq!([entries.end(A), entries.end(B), entries.end(C)], [true; 3]);
        assert_eq!(entries.live(), 0);
    }
}
