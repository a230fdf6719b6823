//! The counted keys: each has an entry of an array for as long as it is in the hash.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Stack};
use headroom_ebpf_common::tcp::{Counts, DEFAULT_MAX_DESTINATIONS, DIALLED_PORTS, Entry, HINTS, Key};

use super::socket::Skip;
use crate::count::add_one;
use crate::memory::Shared;

#[map]
static TCP_SLOTS: HashMap<Key, u32> = HashMap::with_max_entries(DEFAULT_MAX_DESTINATIONS, 0);

#[map]
static TCP_ENTRIES: Array<Entry> = Array::with_max_entries(DEFAULT_MAX_DESTINATIONS, 0);

#[map]
static TCP_FREE: Stack<u32> = Stack::with_max_entries(DEFAULT_MAX_DESTINATIONS, 0);

#[map]
static TCP_HINTS: Array<Shared> = Array::with_max_entries(HINTS, 0);

#[map]
static TCP_DIALLED: Array<Shared> = Array::with_max_entries(DIALLED_PORTS, 0);

/// Whether anybody dialled this port, or one that shares its place.
#[inline(always)]
fn dialled(port: u16) -> Option<*mut Shared> {
    TCP_DIALLED.get_ptr_mut(u32::from(port) % DIALLED_PORTS)
}

/// The entry of a key; `None` if it has none.
#[inline(always)]
pub(super) fn slot_of(key: &Key) -> Result<Option<u32>, Skip> {
    // Accepted connections come from ports that hardly anybody dials: that spares them the lookup of a key.
    // SAFETY: the map gave a live, aligned value.
    if dialled(key.port).is_none_or(|flag| unsafe { (*flag).get() } == 0) {
        return Ok(None);
    }
    Ok(slot(key))
}

#[inline(always)]
fn slot(key: &Key) -> Option<u32> {
    // SAFETY: a slot is read in one piece, and written only before its key is there.
    unsafe { TCP_SLOTS.get(key).copied() }
}

/// The words of a key.
#[inline(always)]
fn words(key: &Key) -> &[u32; size_of::<Key>() / 4] {
    // SAFETY: a key is nine aligned words.
    unsafe { &*(&raw const *key).cast() }
}

/// Where the hint for a key is. Its quality decides on speed alone.
#[inline(always)]
fn hint(key: &Key) -> Option<*mut Shared> {
    let mut hash = 0_u64;
    let [first, rest @ ..] = words(key);
    for pair in [*first as u64, pairs(rest, 0), pairs(rest, 2), pairs(rest, 4), pairs(rest, 6)] {
        hash = (hash ^ pair).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    TCP_HINTS.get_ptr_mut(hash as u32 % HINTS)
}

/// Two words as one.
#[inline(always)]
fn pairs(words: &[u32; 8], at: usize) -> u64 {
    u64::from(words[at]) << 32 | u64::from(words[at + 1])
}

/// The entry of a key, if the hint is right.
#[inline(always)]
fn hinted(key: &Key, hint: Option<*mut Shared>) -> Option<u32> {
    // SAFETY: the map gave a live, aligned value.
    let slot = (unsafe { (*hint?).get() } as u32).checked_sub(1)?;
    let entry = TCP_ENTRIES.get_ptr(slot)?;
    // SAFETY: the map gave a live, aligned value. Another CPU may be writing the key of an entry that is new, or the agent
    // clearing one that has been gone for long: both are after the hint, which is removed in between.
    let held = unsafe { words(&(*entry).key) };
    let same = words(key).iter().zip(held).all(|(word, held)| word == held);
    same.then_some(slot)
}

/// What became of a key.
pub(super) enum Entered {
    Known(u32),
    New(u32),
    Full,
}

/// Finds the entry of a key, or gives it one.
#[inline(always)]
pub(super) fn enter(key: &Key) -> Entered {
    let hint = hint(key);
    if let Some(slot) = hinted(key, hint) {
        return Entered::Known(slot);
    }
    if let Some(slot) = slot(key) {
        if let Some(hint) = hint {
            // SAFETY: the map gave a live, aligned value.
            unsafe { (*hint).set(u64::from(slot) + 1) };
        }
        return Entered::Known(slot);
    }
    let Ok(Some(free)) = TCP_FREE.pop() else { return Entered::Full };
    let Some(entry) = TCP_ENTRIES.get_ptr_mut(free) else { return Entered::Full };
    // SAFETY: the map gave a live, aligned value, and whoever took its index from the stack is alone with it.
    unsafe {
        (*entry).key = *key;
        (&raw mut (*entry).used).write_volatile(1);
    }
    // Before the key is there: its closes must find the flag.
    if let Some(flag) = dialled(key.port) {
        // SAFETY: as above.
        unsafe { (*flag).set(1) };
    }
    if TCP_SLOTS.insert(key, &free, u64::from(BPF_NOEXIST)).is_ok() {
        return Entered::New(free);
    }
    // Another CPU was faster.
    // SAFETY: as above.
    unsafe { (&raw mut (*entry).used).write_volatile(0) };
    let _full = TCP_FREE.push(free, 0);
    slot(key).map_or(Entered::Full, Entered::Known)
}

/// Adds one to a counter of an entry.
#[inline(always)]
pub(super) fn count(slot: u32, counter: impl Fn(&mut Counts) -> *mut u64) {
    if let Some(entry) = TCP_ENTRIES.get_ptr_mut(slot) {
        // SAFETY: the map gave a live, aligned value; only the address of a field is taken.
        unsafe { add_one(counter(&mut (*entry).counts)) };
    }
}
