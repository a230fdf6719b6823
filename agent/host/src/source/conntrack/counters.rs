//! conntrack counted in the kernel: entries that come and go, and new connections that found no port.
//!
//! A key whose counters stand still is retired, whether or not it has entries: the ledger remembers those. What comes later
//! enters it anew, from zero and with another [`Counts::born`].

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Loss, Outcome, Snapshot};
use headroom_core::ports::PortRange;
use headroom_core::time::NodeTime;
use headroom_ebpf_common::conntrack::{Counts, Key, Losses};

use super::ID;
use super::lost::Lost;
use super::plausible::Moved;
use super::told::{Attempts, counter, hash, last_words, no_port};
use crate::clock;
use crate::ebpf::conntrack::{Conntrack, Subject};
use crate::ebpf::{CONNTRACK, CT_NO_PORT, HookKind, LoadError, ProgramStatus};
use crate::root::HostRoot;
use crate::source::{Sink, observation};

/// A key that stood still for so long is retired …
const RETIRE_AFTER: Duration = Duration::from_secs(60);
/// … and for so long when the map is half full.
const RETIRE_AFTER_HALF_FULL: Duration = Duration::from_secs(10);

/// What counting attempts gets wrong.
const RACED: &str = "entries are counted before they go in: where UDP packets race with the first of their flow, the count is \
                     wrong by a few until the next comparison with the table";

/// How long a key has to stand still, for a map with so many keys. From 7/8 on: since the reading before.
fn retire_after(keys: usize, max_keys: u32) -> Duration {
    let max = usize::try_from(max_keys).unwrap_or(usize::MAX);
    if keys > max / 8 * 7 {
        Duration::ZERO
    } else if keys > max / 2 {
        RETIRE_AFTER_HALF_FULL
    } else {
        RETIRE_AFTER
    }
}

/// After a reading that failed, counting is tried anew.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What the kernel counts, or why it does not.
#[derive(Debug)]
pub(super) struct Counters {
    max_keys: u32,
    state: Result<Conntrack, Why>,
    /// Why each program is not attached, where none is.
    unattached: Vec<ProgramStatus>,
    /// By the programs before these, and by these.
    lost: (Lost, Lost),
    moved: Moved,
    /// A reading failed: when to try anew.
    again: Option<NodeTime>,
    /// By a hash of the key: a hash of its counters, and since when they stand like that. Two keys of one hash are only
    /// retired later.
    still: BTreeMap<u64, (u64, NodeTime)>,
    attempts: Attempts,
}

impl Counters {
    /// Attaches the programs to the conntrack of the agent's own network namespace.
    pub(super) fn start(root: &HostRoot, node_ports: PortRange, max_keys: u32) -> Self {
        let mut unattached = Vec::new();
        let state = if root.is_live() {
            own_namespace(root).and_then(|namespace| {
                Conntrack::load(root, Subject { namespace, node_ports, max_keys }).map_err(|error| {
                    let why = error.why();
                    if let LoadError::NothingAttached { programs, .. } = error {
                        unattached = programs;
                    }
                    why
                })
            })
        } else {
            Err(Why::new("only the running machine can be watched, not a captured tree"))
        };
        match state
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|programs| programs.entries_unknown.clone().map_or(Ok(()), Err))
        {
            Ok(()) => tracing::info!("counting conntrack entries in the kernel"),
            Err(why) => tracing::info!(%why, "conntrack entries cannot be counted in the kernel"),
        }
        Self { max_keys, state, unattached, ..Self::none() }
    }

    /// Loads the programs anew. What was lost before stays lost.
    pub(super) fn start_anew(&self, root: &HostRoot, node_ports: PortRange, max_keys: u32) -> Self {
        let (before, now) = self.lost;
        Self { lost: (before.and(now), Lost::default()), ..Self::start(root, node_ports, max_keys) }
    }

    /// Whether counting ended with a reading that failed some while ago.
    pub(super) fn is_due_again(&mut self, now: NodeTime) -> bool {
        self.again.take_if(|again| now >= *again).is_some()
    }

    /// Not yet.
    pub(super) fn try_again_later(&mut self, now: NodeTime) {
        self.again = Some(now.after(AGAIN_AFTER));
    }

    /// Whether any program runs.
    pub(super) fn runs(&self) -> bool {
        self.state.is_ok()
    }

    /// Entries that were counted as they came, and as they went, since the programs run.
    pub(super) fn moved(&self) -> Moved {
        self.moved
    }

    /// Nothing of it is believed from now on.
    pub(super) fn disbelieve(&mut self, why: Why) {
        tracing::warn!(%why, "conntrack is no longer counted in the kernel");
        (self.state, self.unattached) = (Err(why), Vec::new());
    }

    /// None wanted.
    pub(super) fn none() -> Self {
        let state = Err(Why::new("not wanted"));
        Self {
            max_keys: 0,
            state,
            unattached: Vec::new(),
            still: BTreeMap::new(),
            lost: Default::default(),
            moved: Moved::default(),
            again: None,
            attempts: Attempts::default(),
        }
    }

    /// Whether entries are counted as they come and go; why not, otherwise.
    pub(super) fn count_entries(&self) -> Result<(), Why> {
        let programs = self.state.as_ref().map_err(Clone::clone)?;
        programs.entries_unknown.clone().map_or(Ok(()), Err)
    }

    /// What the way in which entries are counted, or the kernel, leaves unsaid, if something.
    pub(super) fn shortcoming(&self) -> Option<&'static str> {
        let programs = self.state.as_ref().ok().filter(|programs| programs.entries_unknown.is_none())?;
        programs.counts_attempts.then_some(RACED)
    }

    /// Why it is not known which connections found no port, if it is not.
    pub(super) fn no_port_unknown(&self) -> Option<&Why> {
        match &self.state {
            Ok(programs) => programs.no_port_unknown.as_ref(),
            Err(why) => {
                let own = self.unattached.iter().find(|program| program.row == CT_NO_PORT);
                own.and_then(|program| program.attached.as_ref().err()).or(Some(why))
            }
        }
    }

    /// What became of each program.
    pub(super) fn programs(&self) -> Vec<ProgramStatus> {
        match &self.state {
            Ok(programs) => programs.programs.clone(),
            Err(why) if self.unattached.is_empty() => ProgramStatus::none(&CONNTRACK, why),
            Err(_) => self.unattached.clone(),
        }
    }

    /// Reads all counters.
    ///
    /// # Errors
    /// They cannot be read, or are not what we take them for; from now on nothing is counted.
    pub(super) fn read(&mut self, sink: Sink<'_>) -> Result<(), Why> {
        if self.state.is_err() && self.max_keys > 0 {
            for program in self.programs() {
                sink(observation(ID, program.fact(|_| Known::Absent)));
            }
        }
        let Ok(programs) = &mut self.state else { return Ok(()) };
        let entries = programs.entries_unknown.is_none();
        let mut attempts = programs.counts_attempts.then_some(&mut self.attempts);
        let now = clock::node_time();
        let mut put = |fact| sink(observation(ID, fact));
        if entries {
            put(Fact::Begin(Snapshot::ConntrackCounters));
        }
        let mut no_ports = Vec::new();
        let mut retire = Vec::new();
        let still = &mut self.still;
        let mut moved = self.moved.of_retired();
        let mut seen = BTreeMap::new();
        // As many as there were a moment ago, or more.
        let (before, mut keys) = (still.len(), 0);
        let max_keys = self.max_keys;
        let read = programs.counts.for_each(|key, counts| {
            if entries {
                put(Fact::ConntrackCounter(counter(key, counts, attempts.as_deref_mut())));
            }
            moved.count(counts);
            if counts.no_port > 0 {
                no_ports.push(no_port(key, counts));
            }
            let (key_hash, counts_hash) = (hash(key), hash(counts));
            let since = match still.get(&key_hash) {
                Some((as_before, since)) if *as_before == counts_hash => *since,
                _ => now,
            };
            seen.insert(key_hash, (counts_hash, since));
            keys += 1;
            if since < now && now.since(since) >= retire_after(before.max(keys), max_keys) {
                retire.push((*key, *counts));
            }
        });
        self.still = seen;
        self.moved = moved;
        let read = read.map_err(Why::from);
        let losses = programs.losses.get().map_err(Why::from);
        let outcome = read.clone().map_or_else(Outcome::Failed, |()| Outcome::Complete);
        if entries {
            put(Fact::End { snapshot: Snapshot::ConntrackCounters, outcome: outcome.clone() });
        }
        put(Fact::Begin(Snapshot::NoPorts));
        no_ports.into_iter().for_each(|dropped| put(Fact::NoPort(dropped)));
        put(Fact::End { snapshot: Snapshot::NoPorts, outcome });
        let mut missed = Some(0);
        for program in &programs.programs {
            let runs = if program.attached.is_ok() { programs.runs(program.row) } else { Known::Absent };
            if let Some(runs) = runs.present() {
                // A kernel that does not tell of tracepoints (before 5.12) skips none.
                let of_it = runs.missed.or((program.row.kind == HookKind::RawTracepoint).then_some(0));
                missed = missed.zip(of_it).map(|(sum, missed)| sum + missed);
            }
            put(program.fact(|_| runs));
        }
        let read = read.and(losses);
        let (before, lost) = &mut self.lost;
        if let Ok(Losses { map_full, map_full_ends, read_failed, .. }) = read {
            *lost = Lost { map_full, map_full_ends, read_failed, ..*lost };
        }
        if let Some(missed) = missed {
            lost.missed = missed;
            put(Fact::Lost { what: Loss::ConntrackMissed, total: before.and(*lost).missed });
        }
        before.and(*lost).facts().into_iter().for_each(&mut put);
        let believed = match read {
            // The next one may succeed.
            Err(why) => {
                self.try_again_later(now);
                Err(why)
            }
            Ok(Losses { implausible: 0, .. }) => Ok(()),
            Ok(Losses { implausible, .. }) => Err(Why::new(format!(
                "{implausible} conntrack entries were not laid out as this kernel's BTF says; nothing of them is believed"
            ))),
        };
        if let Err(why) = believed {
            self.disbelieve(why.clone());
            return Err(why);
        }
        self.retire(&retire, entries, sink);
        Ok(())
    }

    /// Takes keys out of the map that stood still. What was counted in between is told.
    fn retire(&mut self, keys: &[(Key, Counts)], entries: bool, sink: Sink<'_>) {
        let Ok(programs) = &mut self.state else { return };
        let attempts = programs.counts_attempts;
        let mut moved = Vec::new();
        for (key, counts) in keys {
            match programs.counts.take(key) {
                Ok(Some(last)) => {
                    self.moved.retire(&last, counts);
                    if last != *counts {
                        moved.push((*key, last));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "could not retire a key");
                    break;
                }
            }
            self.still.remove(&hash(key));
        }
        let mut told = attempts.then_some(&mut self.attempts);
        for (snapshot, facts) in last_words(&moved, entries, told.as_deref_mut()) {
            if !facts.is_empty() {
                let outcome = Outcome::Partial(Why::new("only what moved while it was retired"));
                sink(observation(ID, Fact::Begin(snapshot)));
                facts.into_iter().for_each(|fact| sink(observation(ID, fact)));
                sink(observation(ID, Fact::End { snapshot, outcome }));
            }
        }
        if let Some(told) = told {
            keys.iter().for_each(|(key, _)| told.forget(key));
        }
    }
}

/// Inode of the network namespace that this thread is in.
fn own_namespace(root: &HostRoot) -> Result<u32, Why> {
    let path = root.path("/proc/thread-self/ns/net");
    let metadata =
        std::fs::metadata(&path).map_err(|error| Why::new(format!("cannot examine `{}`: {error}", path.display())))?;
    // The kernel numbers namespaces with 32 bits.
    u32::try_from(metadata.ino()).map_err(|_too_large| Why::new("the network namespace has an impossible inode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises programs that are loaded anew, whose totals begin at zero. If this fails, what they lose is hidden by what the ones
    /// before them lost.
    #[test]
    fn what_was_lost_before_the_programs_were_loaded_anew_stays_lost() {
        let mut counters = Counters::none();
        let lost =
            |number| Lost { missed: number, map_full: 2 * number, map_full_ends: 3 * number, read_failed: 4 * number };
        counters.lost.1 = lost(10);
        for round in 1..=3 {
            counters = counters.start_anew(&HostRoot::at("/nowhere"), PortRange::NODE_PORTS, 16);
            counters.lost.1 = lost(1);
            let (before, now) = counters.lost;
            let totals =
                before.and(now).facts().map(|fact| if let Fact::Lost { total, .. } = fact { total } else { 0 });
            assert_eq!(totals, [2, 3, 4].map(|each| each * (10 + round)));
            assert_eq!(before.and(now).missed, 10 + round);
        }
    }

    /// Exercises programs of which each has a reason of its own not to run. If this fails, a program is said to lack what it does not
    /// need.
    #[test]
    fn each_program_that_is_not_attached_says_why_it_is_not() {
        let reasons = ["no kprobes", "no kprobes", "no CAP_PERFMON"].map(Why::new);
        let status = |(row, why): (_, &Why)| ProgramStatus { row, attached: Err(why.clone()) };
        let unattached: Vec<_> = CONNTRACK.into_iter().zip(&reasons).map(status).collect();
        let mut counters = Counters {
            max_keys: 16,
            state: Err(reasons[0].clone()),
            unattached: unattached.clone(),
            ..Counters::none()
        };
        assert_eq!(counters.no_port_unknown(), Some(&reasons[2]));
        assert_eq!(counters.count_entries(), Err(reasons[0].clone()));
        let mut told = Vec::new();
        counters.read(&mut |observation| told.push(observation.fact)).unwrap();
        assert_eq!(told, unattached.iter().map(|program| program.fact(|_| Known::Absent)).collect::<Vec<_>>());
        // Whoever is not believed any more has one reason.
        counters.disbelieve(Why::new("implausible"));
        assert!(counters.programs().iter().all(|program| program.attached == Err(Why::new("implausible"))));
    }

    /// Exercises a reading that failed. If this fails, one error of the kernel ends the counting until a module changes, or it is
    /// tried all the time.
    #[test]
    fn counting_is_tried_anew_after_a_reading_that_failed_and_only_then() {
        let mut counters = Counters::none();
        let at = NodeTime::from_secs;
        assert!(!counters.is_due_again(at(1000)));
        counters.try_again_later(at(1000));
        assert!(!counters.is_due_again(at(1029)));
        assert!(counters.is_due_again(at(1030)));
        assert!(!counters.is_due_again(at(1031)));
    }
}
