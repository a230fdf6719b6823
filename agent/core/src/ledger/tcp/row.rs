//! What is kept of one pair of destination and source address.
//!
//! The counters as they are now, and what was added to them lately: one step of eight bytes per 0.3 s and counter that
//! moved. With its key in the ledger's map that is 180 bytes for a pair with a close every 50 s (measured by
//! `agent/host/tests/ledger_memory.rs`), some 100 more if connects to it failed or connections are older than the counters,
//! as many more if it was counted anew, and 4 kB of steps for a pair with closes all the time of the 150 s that are remembered.

use std::time::Duration;

use crate::ledger::tcp::{Failures, Spans, TcpTally};
use crate::observe::TcpCounter;
use crate::time::NodeTime;

/// Counters whose past matters, as numbers of a step.
const CLOSED: usize = 0;
const RESET: usize = 1;
const REFUSED: usize = 2;
const TIMED_OUT: usize = 3;
const UNREACHABLE: usize = 4;
const GIVEN_UP: usize = 5;
const NO_LOCAL_PORT: usize = 6;
const SYN_RETRANSMITTED: usize = 7;
const KINDS: usize = 8;

/// A tenth of a second since boot: 32 bits last for 13 years.
type Tenths = u32;

const TENTH: Duration = Duration::from_millis(100);
/// What happens within so many tenths becomes one step.
const STEP: Tenths = 3;

/// So many of a kind until then, since the step before.
#[derive(Debug, Clone, Copy)]
struct Step {
    at: Tenths,
    /// The kind in the three uppermost bits.
    what: u32,
}

const COUNT_BITS: u32 = 29;
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;

impl Step {
    fn kind(self) -> usize {
        (self.what >> COUNT_BITS) as usize
    }

    fn count(self) -> u32 {
        self.what & COUNT_MAX
    }
}

/// One pair. What was counted is meant since the pair was `born`; it stays when the kernel counts the pair no longer.
#[derive(Debug, Default)]
pub(super) struct Row {
    attempted: u64,
    opened: u64,
    closed: u64,
    /// What most pairs never have.
    rare: Option<Box<Rare>>,
    /// Oldest first; exactly as long as it must be, since there are many rows and few steps.
    steps: Box<[Step]>,
    /// The reading that showed it last, and the one that showed a movement last; 0 for none.
    pub(super) shown: u32,
    pub(super) moved: u32,
    /// [`TcpCounter::born`].
    born: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Rare {
    /// All but the one of [`CLOSED`].
    kinds: [u64; KINDS],
    /// Connections that the counters do not know: opened before, less what was missed.
    baseline_open: i32,
    baseline_wanting: i32,
    /// The ends before the counters began are among the steps: the next socket table shows the same again.
    before_known: bool,
    /// What was counted before the pair was counted anew.
    earlier: Option<Box<Earlier>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Earlier {
    opened: u64,
    kinds: [u64; KINDS],
}

/// What most pairs have.
static NOTHING_RARE: Rare =
    Rare { kinds: [0; KINDS], baseline_open: 0, baseline_wanting: 0, before_known: false, earlier: None };

/// What a reading showed of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nothing began or ended since it was shown last.
    Still,
    Moved,
    /// It is counted anew, from nothing open.
    Anew,
}

/// Where the counters of a pair stand, as far as they say what there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    /// The kernel counts it.
    pub(super) counted: bool,
    attempted: u64,
    opened: u64,
    ended: u64,
    failed: u64,
}

impl Level {
    /// Opened less ended; negative when connections from before the counting ended.
    pub(super) fn open(self) -> i64 {
        signed(self.opened).saturating_sub(signed(self.ended))
    }

    /// Attempted less answered and failed.
    pub(super) fn wanting(self) -> i64 {
        signed(self.attempted).saturating_sub(signed(self.opened).saturating_add(signed(self.failed)))
    }

    /// How many were opened since then, and how many ended.
    pub(super) fn open_since(self, then: Self) -> (u64, u64) {
        (self.opened.saturating_sub(then.opened), self.ended.saturating_sub(then.ended))
    }

    /// How many were begun since then, and how many were answered or failed.
    pub(super) fn wanting_since(self, then: Self) -> (u64, u64) {
        let over = |level: Self| level.opened.saturating_add(level.failed);
        (self.attempted.saturating_sub(then.attempted), over(self).saturating_sub(over(then)))
    }
}

impl Row {
    /// Takes in a reading.
    pub(super) fn note(&mut self, counter: &TcpCounter, at: NodeTime, reading: u32) -> Noted {
        let now = kinds(counter);
        let is_smaller = || {
            counter.attempted < self.attempted
                || counter.opened < self.opened
                || now.iter().zip(self.kinds()).any(|(now, before)| *now < before)
        };
        // Forgotten in the kernel, with nothing open, and counted anew.
        let anew = self.shown > 0 && (counter.born != self.born || is_smaller());
        if anew || self.shown == 0 {
            self.carry_over();
        }
        if anew {
            self.set_baseline(0, 0);
        }
        (self.shown, self.born) = (reading, counter.born);
        let before = self.kinds();
        // SYNs sent again begin and end nothing.
        let moved = anew
            || (counter.attempted, counter.opened) != (self.attempted, self.opened)
            || now.iter().zip(before).take(SYN_RETRANSMITTED).any(|(now, before)| *now != before);
        if moved {
            self.moved = reading;
        }
        for (kind, (now, before)) in now.iter().zip(before).enumerate() {
            self.step(kind, now.saturating_sub(before), tenths(at));
        }
        (self.attempted, self.opened, self.closed) = (counter.attempted, counter.opened, counter.closed);
        self.set_kinds(now);
        match (anew, moved) {
            (true, _) => Noted::Anew,
            (false, true) => Noted::Moved,
            (false, false) => Noted::Still,
        }
    }

    /// Where the counters stand; at nothing where the kernel counts it no longer.
    pub(super) fn level(&self) -> Level {
        if self.shown == 0 {
            return Level { counted: false, attempted: 0, opened: 0, ended: 0, failed: 0 };
        }
        let kinds = self.kinds();
        Level {
            counted: true,
            attempted: self.attempted,
            opened: self.opened,
            ended: self.closed.saturating_add(kinds[RESET]),
            failed: failures(&kinds).sum().saturating_add(kinds[NO_LOCAL_PORT]),
        }
    }

    /// Connections that the counters do not know: open, and under way.
    pub(super) fn baseline(&self) -> (i32, i32) {
        let rare = self.rare();
        (rare.baseline_open, rare.baseline_wanting)
    }

    /// Connections open now.
    pub(super) fn open(&self) -> u64 {
        self.level().open().saturating_add(i64::from(self.rare().baseline_open)).max(0).unsigned_abs()
    }

    fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING_RARE)
    }

    fn set_rare(&mut self, change: impl FnOnce(&mut Rare)) {
        let mut rare = self.rare.take().unwrap_or_default();
        change(&mut rare);
        self.rare = (*rare != NOTHING_RARE).then_some(rare);
    }

    /// All but the one of [`CLOSED`].
    fn set_kinds(&mut self, mut kinds: [u64; KINDS]) {
        kinds[CLOSED] = 0;
        if self.rare().kinds != kinds {
            self.set_rare(|rare| rare.kinds = kinds);
        }
    }

    pub(super) fn set_baseline(&mut self, open: i32, wanting: i32) {
        let rare = self.rare();
        if (rare.baseline_open, rare.baseline_wanting) != (open, wanting) {
            self.set_rare(|rare| (rare.baseline_open, rare.baseline_wanting) = (open, wanting));
        }
    }

    /// What was counted so far becomes what was counted earlier.
    fn carry_over(&mut self) {
        let counted = Earlier { opened: self.opened, kinds: self.kinds() };
        (self.attempted, self.opened, self.closed) = (0, 0, 0);
        if counted == Earlier::default() {
            return;
        }
        self.set_kinds([0; KINDS]);
        self.set_rare(|rare| {
            let earlier = rare.earlier.get_or_insert_default();
            earlier.opened = earlier.opened.saturating_add(counted.opened);
            for (earlier, counted) in earlier.kinds.iter_mut().zip(counted.kinds) {
                *earlier = earlier.saturating_add(counted);
            }
        });
    }

    /// Connections that ended before the counters began.
    pub(super) fn closed_before(&mut self, ends: impl Iterator<Item = NodeTime>) {
        let mut ends: Vec<Tenths> = ends.map(tenths).collect();
        if self.rare().before_known || ends.is_empty() {
            return;
        }
        self.set_rare(|rare| rare.before_known = true);
        ends.sort_unstable();
        let later = std::mem::take(&mut self.steps);
        for end in ends {
            self.step(CLOSED, 1, end);
        }
        self.change_steps(|steps| steps.extend(later));
    }

    fn change_steps(&mut self, change: impl FnOnce(&mut Vec<Step>)) {
        let mut steps = std::mem::take(&mut self.steps).into_vec();
        change(&mut steps);
        self.steps = steps.into_boxed_slice();
    }

    fn step(&mut self, kind: usize, mut more: u64, at: Tenths) {
        let same = |step: &&mut Step| step.kind() == kind && step.at / STEP == at / STEP;
        if more > 0
            && let Some(step) = self.steps.iter_mut().rev().take(KINDS).find(same)
        {
            let taken = u32::try_from(more).unwrap_or(u32::MAX).min(COUNT_MAX - step.count());
            step.what += taken;
            step.at = step.at.max(at);
            more -= u64::from(taken);
        }
        while more > 0 {
            let taken = u32::try_from(more).unwrap_or(u32::MAX).min(COUNT_MAX);
            let kind = u32::try_from(kind).unwrap_or_default();
            self.change_steps(|steps| {
                steps.reserve_exact(1);
                steps.push(Step { at, what: kind << COUNT_BITS | taken });
            });
            more -= u64::from(taken);
        }
    }

    /// Forgets steps from before the horizon; seldom enough to be cheap.
    pub(super) fn forget(&mut self, horizon: NodeTime) {
        let horizon = tenths(horizon);
        let stale = self.steps.iter().take_while(|step| step.at < horizon).count();
        if stale * 2 > self.steps.len() {
            self.change_steps(|steps| drop(steps.drain(..stale)));
        }
    }

    /// The kernel counts it no longer: nothing is open.
    pub(super) fn retire(&mut self) {
        self.shown = 0;
        self.set_baseline(0, 0);
    }

    /// Whether something ended or failed since then.
    pub(super) fn remembers(&self, horizon: NodeTime) -> bool {
        self.steps.iter().any(|step| step.at >= tenths(horizon))
    }

    /// Sets the baseline to what makes up a socket table that was read while the counters stood still.
    pub(super) fn reconcile(&mut self, open: u32, wanting: u32, complete: bool) {
        let level = self.level();
        let open = small(i64::from(open).saturating_sub(level.open()));
        let wanting = small(i64::from(wanting).saturating_sub(level.wanting()));
        let rare = self.rare();
        // What an incomplete table does not show proves nothing.
        if complete {
            self.set_baseline(open, wanting);
        } else {
            self.set_baseline(open.max(rare.baseline_open), wanting.max(rare.baseline_wanting));
        }
    }

    pub(super) fn tally(&self, since: Since) -> TcpTally {
        let mut lately = [0_u64; KINDS];
        let mut closed_before = 0_u64;
        let (mut closed_lately, mut reset_lately, mut given_up_held) = (0_u64, 0_u64, 0_u64);
        let earliest = since.closed.min(since.reset).min(since.half_open).min(since.lately);
        for step in self.steps.iter().rev() {
            // Steps of one moment may be out of order.
            if step.at.saturating_add(STEP) <= earliest {
                break;
            }
            let (kind, count) = (step.kind(), u64::from(step.count()));
            let from = match kind {
                CLOSED => since.closed,
                RESET => since.reset,
                _ => since.lately,
            };
            if step.at > from
                && let Some(sum) = lately.get_mut(kind)
            {
                *sum = sum.saturating_add(count);
            }
            match kind {
                CLOSED if step.at > since.lately => closed_lately = closed_lately.saturating_add(count),
                RESET if step.at > since.lately => reset_lately = reset_lately.saturating_add(count),
                GIVEN_UP if step.at > since.half_open => given_up_held = given_up_held.saturating_add(count),
                _ => {}
            }
            if kind == CLOSED && step.at > since.closed && step.at < since.counting {
                closed_before = closed_before.saturating_add(count);
            }
        }
        let rare = self.rare();
        let (opened, all) = self.totals();
        TcpTally {
            open: self.open(),
            wanting: self.level().wanting().saturating_add(i64::from(rare.baseline_wanting)).max(0).unsigned_abs(),
            closed_held: lately[CLOSED],
            closed_before,
            reset_held: lately[RESET],
            given_up_held,
            closed_lately,
            reset_lately,
            failed_lately: failures(&lately),
            no_local_port_lately: lately[NO_LOCAL_PORT],
            syn_retransmitted_lately: lately[SYN_RETRANSMITTED],
            opened_total: opened,
            closed_total: all[CLOSED].saturating_add(all[RESET]),
            failed_total: failures(&all),
            no_local_port_total: all[NO_LOCAL_PORT],
            syn_retransmitted_total: all[SYN_RETRANSMITTED],
        }
    }

    fn kinds(&self) -> [u64; KINDS] {
        let mut kinds = self.rare().kinds;
        kinds[CLOSED] = self.closed;
        kinds
    }

    /// Opened, and the rest, since the ledger knows the pair.
    fn totals(&self) -> (u64, [u64; KINDS]) {
        let earlier = self.rare().earlier.as_deref().copied().unwrap_or_default();
        let mut kinds = self.kinds();
        for (kind, earlier) in kinds.iter_mut().zip(earlier.kinds) {
            *kind = kind.saturating_add(earlier);
        }
        (self.opened.saturating_add(earlier.opened), kinds)
    }
}

/// From when on what happened counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    closed: Tenths,
    reset: Tenths,
    half_open: Tenths,
    lately: Tenths,
    counting: Tenths,
}

impl Since {
    pub(super) fn new(now: NodeTime, spans: Spans, counting: NodeTime) -> Self {
        let ago = |span| tenths(now.before(span));
        Self {
            closed: ago(spans.closed),
            reset: ago(spans.reset),
            half_open: ago(spans.half_open),
            lately: ago(spans.lately),
            counting: tenths(counting),
        }
    }
}

fn kinds(counter: &TcpCounter) -> [u64; KINDS] {
    let mut kinds = [0; KINDS];
    kinds[CLOSED] = counter.closed;
    kinds[RESET] = counter.reset;
    kinds[REFUSED] = counter.refused;
    kinds[TIMED_OUT] = counter.timed_out;
    kinds[UNREACHABLE] = counter.unreachable;
    kinds[GIVEN_UP] = counter.given_up;
    kinds[NO_LOCAL_PORT] = counter.no_local_port;
    kinds[SYN_RETRANSMITTED] = counter.syn_retransmitted;
    kinds
}

fn failures(kinds: &[u64; KINDS]) -> Failures {
    Failures {
        refused: kinds[REFUSED],
        timed_out: kinds[TIMED_OUT],
        unreachable: kinds[UNREACHABLE],
        given_up: kinds[GIVEN_UP],
    }
}

fn tenths(at: NodeTime) -> Tenths {
    u32::try_from(u128::from(at.as_nanos()) / TENTH.as_nanos()).unwrap_or(Tenths::MAX)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn small(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(if count < 0 { i32::MIN } else { i32::MAX })
}
