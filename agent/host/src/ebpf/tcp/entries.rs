//! The counted keys: read, entered, and retired when nothing can be counted for them any more.
//!
//! A key has an entry of an array for as long as it is in the hash. Only the agent takes one away: it removes the key from
//! the hash; when every program that had found it there has ended, it removes the hints and the sockets' cells that lead to
//! the entry; when every program that had found these has ended, it looks whether something was counted meanwhile. If so, the
//! key is put back; so no count is ever lost. Nothing of this needs a newer kernel than the programs do.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aya::Ebpf;
use headroom_core::time::NodeTime;
use headroom_ebpf_common::tcp::{
    CELL_BITS, Counts, DIALLED_MAP, DIALLED_PORTS, ENTRIES_MAP, Entry, FREE_MAP, HINTS_MAP, Key, SLOTS_MAP,
    SOCKETS_MAP, dialled_slot,
};

use crate::ebpf::maps::{Hash, Inserted, MapsError, Numbers, Table};
use crate::ebpf::{LoadError, take_map};

/// A key may go when its counters stood still for so long: as long as the ledger remembers.
pub const IDLE: Duration = Duration::from_secs(150);
/// And so long where room becomes scarce.
const IDLE_WHEN_SCARCE: Duration = Duration::from_secs(10);
/// Retiring takes place so often.
const EVERY: Duration = Duration::from_secs(10);
/// So many keys that are new are read in the same batch as the others.
const NEW: usize = 64;
/// Longer than any program runs: they are not preempted.
const GRACE: Duration = Duration::from_secs(1);

/// The keys and their counts.
#[derive(Debug)]
pub struct Entries {
    slots: Hash<Key, u32>,
    entries: Table<Entry>,
    free: Numbers,
    sockets: Table<u64>,
    hints: Table<u64>,
    dialled: Table<u64>,
    max: u32,
    /// By index, up to the highest that was ever in use.
    states: Vec<State>,
    in_use: u32,
    /// Removed from the hash, not yet free.
    leaving: Vec<(u32, Key, Counts)>,
    /// When they were removed, or what led to them was.
    left_at: NodeTime,
    /// What led to them was removed.
    cut_off: bool,
    retired_at: NodeTime,
    /// What was counted in an entry that had to go although its key came back under another one.
    carried: BTreeMap<Key, Told>,
    /// How many entries were taken.
    births: u32,
    /// A complete socket table was read.
    table_read: bool,
    /// Keys that moved whenever one was, from the first on.
    restless: u32,
}

/// What is told of a key.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// Tells its counts from those that it had before it was retired.
    born: u32,
    counts: Counts,
}

impl Told {
    fn add(&mut self, counts: &Counts) {
        self.counts = added(&self.counts, counts);
    }
}

/// What the agent knows of an entry.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The last change that was seen, in seconds since boot.
    moved_at: u32,
    /// The sum of its counts then, modulo 2³².
    sum: u32,
    /// A number of its own, from 1 on.
    born: u32,
    phase: Phase,
    /// It may have connections that were never counted as opened.
    seeded: bool,
    /// A complete socket table, begun after the last change, shows no socket of it.
    unconnected: bool,
    /// It moved whenever a complete socket table was read, from the first one on.
    restless: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// As far as the agent has seen.
    #[default]
    Free,
    Used,
}

/// A socket table that was read: every pair it shows, and whether it is complete.
pub struct Connected<'a> {
    /// The table was read after this moment.
    pub begun: NodeTime,
    /// Whether it shows a socket of this key.
    pub shows: &'a dyn Fn(&Key) -> bool,
}

impl std::fmt::Debug for Connected<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Entries {
    /// Takes the maps, and makes all entries free. Before the programs are attached.
    pub(super) fn new(ebpf: &mut Ebpf, max: u32) -> Result<Self, LoadError> {
        let mut free = Numbers::new(FREE_MAP, take_map(ebpf, FREE_MAP)?)?;
        // The lowest on top, so that those in use are the first ones.
        for index in (0..max).rev() {
            free.push(index)?;
        }
        Ok(Self {
            slots: Hash::new(SLOTS_MAP, take_map(ebpf, SLOTS_MAP)?)?,
            entries: Table::new(ENTRIES_MAP, take_map(ebpf, ENTRIES_MAP)?)?,
            free,
            sockets: Table::new(SOCKETS_MAP, take_map(ebpf, SOCKETS_MAP)?)?,
            hints: Table::new(HINTS_MAP, take_map(ebpf, HINTS_MAP)?)?,
            dialled: Table::new(DIALLED_MAP, take_map(ebpf, DIALLED_MAP)?)?,
            max,
            states: Vec::new(),
            in_use: 0,
            leaving: Vec::new(),
            left_at: NodeTime::default(),
            cut_off: false,
            retired_at: NodeTime::default(),
            carried: BTreeMap::new(),
            births: 0,
            table_read: false,
            restless: 0,
        })
    }

    /// How many keys are counted.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// How many keys moved whenever a complete socket table was read, from the first one on: how many connections they had before
    /// is known within what moved only.
    pub fn restless(&self) -> u32 {
        self.restless
    }

    /// Enters a key that may have connections already; one that is there keeps its counts. False if there is no room.
    ///
    /// `early`: also one that is there may have connections from before.
    ///
    /// # Errors
    /// The kernel refused for another reason.
    pub fn seed(&mut self, key: Key, early: bool) -> Result<bool, MapsError> {
        if let Some(index) = self.slots.get(&key)? {
            self.state(index).seeded |= early;
            return Ok(true);
        }
        let Some(index) = self.free.pop()? else { return Ok(false) };
        self.entries.set(index, Entry { key, used: 1, counts: Counts::default() })?;
        // Before the key is there: its closes must find the flag.
        self.dialled.set(u32::from(key.port) % DIALLED_PORTS, 1)?;
        match self.slots.insert_new(key, index)? {
            Inserted::New => {
                self.state(index).seeded = true;
                Ok(true)
            }
            // A program was faster.
            Inserted::Known => {
                self.release(index)?;
                if let Some(index) = self.slots.get(&key)? {
                    self.state(index).seeded = true;
                }
                Ok(true)
            }
            Inserted::Full => {
                self.release(index)?;
                Ok(false)
            }
        }
    }

    /// Shows every key, which counting of it that is, and what was counted, or only those that moved since the last reading; and
    /// retires keys that nothing can be counted for any more.
    ///
    /// # Errors
    /// The kernel could not read on; what was shown before is true.
    pub fn read(
        &mut self,
        now: NodeTime,
        connected: Option<&Connected<'_>>,
        all: bool,
        mut see: impl FnMut(&Key, u32, &Counts),
    ) -> Result<(), MapsError> {
        if !self.leaving.is_empty() && now.since(self.left_at) >= GRACE {
            if self.cut_off {
                self.settle()?;
            } else {
                self.cut_off()?;
                (self.cut_off, self.left_at) = (true, now);
            }
        }
        let retiring = now.since(self.retired_at) >= EVERY && self.leaving.is_empty();
        let scarce = u64::from(self.in_use) * 8 > u64::from(self.max) * 7;
        let pace = Pace { now: seconds(now), idle: if scarce { IDLE_WHEN_SCARCE } else { IDLE } };
        let Self { entries, states, slots, carried, leaving, births, table_read, .. } = self;
        // While a key leaves, it may come back under another entry.
        let leaves = |(index, key, _): &(u32, Key, Counts)| {
            let told = Told { born: state(states, *index).born, counts: Counts::default() };
            (*key, carried.get(key).copied().unwrap_or(told))
        };
        let mut twice: BTreeMap<Key, Told> = leaving.iter().map(leaves).collect();
        let (mut in_use, mut restless, mut candidates) = (0, 0, Vec::new());
        let end = Cell::new(u32::try_from(states.len()).unwrap_or(u32::MAX));
        // And some more, which may be new.
        let likely = states.len() + NEW;
        entries.for_each(
            likely,
            |index, entry| {
                if entry.used == 0 {
                    return Ok(());
                }
                let state = state(states, index);
                if state.phase == Phase::Free {
                    // Written a moment ago, perhaps not yet whole: the hash tells.
                    if slots.get(&entry.key)? != Some(index) {
                        return Ok(());
                    }
                    *births = births.wrapping_add(1);
                    (state.moved_at, state.sum, state.born) = (pace.now, sum(&entry.counts), *births);
                }
                end.set(end.get().max(index.saturating_add(1)));
                in_use += 1;
                let moved = state.note(entry, pace, connected);
                if connected.is_some() {
                    state.restless = moved && (state.restless || !*table_read);
                }
                restless += u32::from(state.restless);
                match twice.get_mut(&entry.key) {
                    Some(told) => told.add(&entry.counts),
                    None if !all && !moved => {}
                    None => match carried.get(&entry.key) {
                        Some(before) => see(&entry.key, before.born, &added(&entry.counts, &before.counts)),
                        None => see(&entry.key, state.born, &entry.counts),
                    },
                }
                if retiring && state.may_go(entry, pace) {
                    candidates.push((state.moved_at, index, entry.key, entry.counts));
                }
                Ok(())
            },
            // Entries are handed out from the first on: behind a batch that none was ever in there are none.
            |next| next <= end.get(),
        )?;
        for (key, told) in &twice {
            see(key, told.born, &told.counts);
        }
        (self.in_use, self.restless) = (in_use, restless);
        self.table_read |= connected.is_some();
        if retiring {
            self.retired_at = now;
            self.retire(now, candidates, scarce)?;
        }
        Ok(())
    }

    /// Removes keys from the hash, those that moved last last.
    fn retire(&mut self, now: NodeTime, mut keys: Vec<(u32, u32, Key, Counts)>, scarce: bool) -> Result<(), MapsError> {
        if scarce {
            // Down to three quarters; what has been idle for long enough goes in any case.
            keys.sort_unstable_by_key(|(moved_at, index, ..)| (*moved_at, *index));
            let wanted = self.in_use.saturating_sub(self.max / 4 * 3) as usize;
            let long = seconds(now).saturating_sub(u32::try_from(IDLE.as_secs()).unwrap_or(u32::MAX));
            let old = keys.partition_point(|(moved_at, ..)| *moved_at <= long);
            keys.truncate(wanted.max(old));
        }
        for (_, index, key, counts) in keys {
            self.slots.remove(&key)?;
            self.leaving.push((index, key, counts));
            (self.cut_off, self.left_at) = (false, now);
        }
        Ok(())
    }

    /// Removes what leads to the entries of removed keys. A hint or cell may have changed since it was read: then something
    /// else takes the long way once.
    fn cut_off(&mut self) -> Result<(), MapsError> {
        let leaving: BTreeSet<u32> = self.leaving.iter().map(|(index, ..)| *index).collect();
        let (mut hints, mut cells) = (Vec::new(), Vec::new());
        let leads = |slot: Option<u32>| slot.is_some_and(|slot| leaving.contains(&slot));
        self.hints.for_each(
            usize::MAX,
            |index, hint| {
                let slot = hint.checked_sub(1).and_then(|slot| u32::try_from(slot).ok());
                hints.extend(leads(slot).then_some(index));
                Ok(())
            },
            |_| true,
        )?;
        self.sockets.for_each(
            usize::MAX,
            |index, cell| {
                let code = cell & ((1 << CELL_BITS) - 1);
                cells.extend(leads(dialled_slot(code)).then_some(index));
                Ok(())
            },
            |_| true,
        )?;
        hints.into_iter().try_for_each(|index| self.hints.set(index, 0))?;
        cells.into_iter().try_for_each(|index| self.sockets.set(index, 0))
    }

    /// Frees the entries of removed keys, or puts back those that were used meanwhile.
    fn settle(&mut self) -> Result<(), MapsError> {
        while let Some(&(index, key, before)) = self.leaving.last() {
            let counts = self.entries.get(index)?.counts;
            let mut back = self.slots.get(&key)?;
            if back.is_none() && counts != before && self.slots.insert_new(key, index)? != Inserted::New {
                back = self.slots.get(&key)?;
            }
            if let Some(other) = back {
                let born = self.state(index).born;
                self.carried.entry(key).or_insert(Told { born, ..Told::default() }).add(&counts);
                // The other entry's counts alone do not tell any more what is open.
                self.state(other).seeded = true;
                self.release(index)?;
            } else if counts == before {
                self.carried.remove(&key);
                self.release(index)?;
            }
            self.leaving.pop();
        }
        Ok(())
    }

    /// Makes an entry free that no key has.
    fn release(&mut self, index: u32) -> Result<(), MapsError> {
        *self.state(index) = State::default();
        self.entries.set(index, Entry::default())?;
        self.free.push(index)
    }

    fn state(&mut self, index: u32) -> &mut State {
        state(&mut self.states, index)
    }
}

fn state(states: &mut Vec<State>, index: u32) -> &mut State {
    let place = index as usize;
    if place >= states.len() {
        states.resize(place.saturating_add(1), State::default());
    }
    states.get_mut(place).expect("there are as many states as this one needs")
}

/// When it is, and how long a key must have been idle to go.
#[derive(Clone, Copy)]
struct Pace {
    now: u32,
    idle: Duration,
}

impl State {
    /// Takes in a reading. Whether it is the first, or another one than the last.
    fn note(&mut self, entry: &Entry, pace: Pace, connected: Option<&Connected<'_>>) -> bool {
        let sum = sum(&entry.counts);
        let moved = self.sum != sum || self.phase == Phase::Free;
        self.phase = Phase::Used;
        if self.sum != sum {
            (self.sum, self.moved_at, self.unconnected) = (sum, pace.now, false);
        }
        if let Some(table) = connected
            && self.moved_at < seconds(table.begun)
        {
            self.unconnected = !(table.shows)(&entry.key);
        }
        moved
    }

    /// Whether nothing can be counted for the key any more, and nothing was for a while.
    fn may_go(&self, entry: &Entry, pace: Pace) -> bool {
        let settled = !self.seeded && stands_at_zero(&entry.counts);
        (settled || self.unconnected) && u64::from(pace.now.saturating_sub(self.moved_at)) >= pace.idle.as_secs()
    }
}

/// Seconds since boot.
fn seconds(at: NodeTime) -> u32 {
    u32::try_from(at.as_nanos() / 1_000_000_000).unwrap_or(u32::MAX)
}

/// Changes whenever a count does.
#[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 is what is wanted")]
fn sum(counts: &Counts) -> u32 {
    each(counts).into_iter().fold(0_u64, u64::wrapping_add) as u32
}

/// Every connection that was counted as begun or open was counted as ended.
fn stands_at_zero(counts: &Counts) -> bool {
    let Counts { attempted, opened, closed, reset, .. } = *counts;
    let failed = [counts.refused, counts.timed_out, counts.unreachable, counts.given_up, counts.no_local_port];
    let failed = failed.into_iter().fold(0, u64::wrapping_add);
    attempted == opened.wrapping_add(failed) && opened == closed.wrapping_add(reset)
}

fn each(counts: &Counts) -> [u64; 10] {
    let Counts {
        attempted,
        opened,
        closed,
        reset,
        refused,
        timed_out,
        unreachable,
        given_up,
        no_local_port,
        syn_retransmitted,
    } = *counts;
    [attempted, opened, closed, reset, refused, timed_out, unreachable, given_up, no_local_port, syn_retransmitted]
}

fn added(one: &Counts, other: &Counts) -> Counts {
    Counts {
        attempted: one.attempted + other.attempted,
        opened: one.opened + other.opened,
        closed: one.closed + other.closed,
        reset: one.reset + other.reset,
        refused: one.refused + other.refused,
        timed_out: one.timed_out + other.timed_out,
        unreachable: one.unreachable + other.unreachable,
        given_up: one.given_up + other.given_up,
        no_local_port: one.no_local_port + other.no_local_port,
        syn_retransmitted: one.syn_retransmitted + other.syn_retransmitted,
    }
}
