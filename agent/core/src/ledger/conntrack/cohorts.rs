//! Flows of one pair that are in the same state since the same moment.

use std::time::Duration;

use smallvec::SmallVec;

use super::{End, small, tenths};
use crate::flow::Protocol;
use crate::observe::{ConntrackEntry, ConntrackTcpState, ConntrackTimeouts};
use crate::time::NodeTime;

/// What flows are doing, as far as the kernel's table tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CohortState {
    /// TCP connects that nobody had answered when the table was read; the last SYN passed at that moment.
    Wanting,
    /// Open, and packets pass.
    Busy,
    /// Open; the last packet passed at that moment, as of the last dump.
    Open,
    /// Ended in good order (FIN) at that moment.
    Closed,
    /// Ended by a reset at that moment.
    Reset,
    /// Like `Closed`, or fallen silent at that moment, and forgotten by the node since.
    GoneClosed,
    /// Like `Reset`, and forgotten by the node since.
    GoneReset,
    /// TCP connections that are half open: answered and not confirmed yet, or closed by one end only. The last packet passed at
    /// that moment.
    Transitory,
}

impl CohortState {
    const ALL: [Self; 8] = [
        Self::Wanting,
        Self::Busy,
        Self::Open,
        Self::Closed,
        Self::Reset,
        Self::GoneClosed,
        Self::GoneReset,
        Self::Transitory,
    ];

    /// Whether the flows are in the node's table.
    pub fn is_live(self) -> bool {
        !matches!(self, Self::GoneClosed | Self::GoneReset)
    }
}

/// Some flows alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cohort {
    /// What they are doing.
    pub state: CohortState,
    /// Since this tenth of a second of the node's uptime.
    since: u32,
    /// How many.
    pub count: u32,
}

impl Cohort {
    /// Since when.
    pub fn since(&self) -> NodeTime {
        NodeTime::from_nanos(u64::from(self.since).saturating_mul(100_000_000))
    }

    /// As fine as it is kept at that age. Later rather than earlier: a flow is not taken for silent before it is.
    pub(super) fn as_kept(self, now: NodeTime) -> Self {
        let silent = matches!(self.state, CohortState::Open | CohortState::Transitory | CohortState::Wanting);
        if silent && self.since < tenths(now).saturating_sub(FINE_TENTHS) {
            Self { since: self.since.next_multiple_of(MINUTE_TENTHS), ..self }
        } else {
            self
        }
    }

    /// A flow that has just begun: most connects are answered within milliseconds, so it is taken for open until a dump says
    /// otherwise.
    pub(super) fn begun(protocol: Protocol, at: NodeTime) -> Self {
        match protocol {
            Protocol::TCP => Self { state: CohortState::Busy, since: 0, count: 0 },
            _ => Self { state: CohortState::Open, since: tenths(at), count: 0 },
        }
    }

    /// An entry of a dump.
    pub(super) fn of(entry: &ConntrackEntry, at: NodeTime, timeouts: ConntrackTimeouts) -> Self {
        use ConntrackTcpState as Tcp;
        // What is left is told in whole seconds, rounded down: the middle is the likeliest.
        let set = timer_set(entry, at, timeouts).map(|set| set.after(Duration::from_millis(500)).min(at));
        let (state, since) = match entry.tcp {
            Some(Tcp::None | Tcp::SynSent | Tcp::SynSent2) => (CohortState::Wanting, Some(set.unwrap_or(at))),
            Some(Tcp::SynRecv | Tcp::FinWait | Tcp::CloseWait | Tcp::LastAck) => {
                (CohortState::Transitory, Some(set.unwrap_or(at)))
            }
            Some(Tcp::Established) => set.map_or((CohortState::Busy, None), |set| (CohortState::Open, Some(set))),
            Some(Tcp::TimeWait) => (CohortState::Closed, Some(set.unwrap_or(at))),
            Some(Tcp::Close) => (CohortState::Reset, Some(set.unwrap_or(at))),
            None if entry.key.protocol == Protocol::TCP && !entry.replied => (CohortState::Wanting, Some(at)),
            None => set.map_or((CohortState::Busy, None), |set| (CohortState::Open, Some(set))),
        };
        Self { state, since: since.map_or(0, tenths), count: 0 }
    }
}

/// When an entry's timer was set last, at the earliest; the second after is the latest.
fn timer_set(entry: &ConntrackEntry, at: NodeTime, timeouts: ConntrackTimeouts) -> Option<NodeTime> {
    let remaining = entry.remaining_secs?;
    // With data under way or after retransmissions the kernel sets a shorter timer: what is left then tells nothing.
    let shorter = timeouts.tcp_unacknowledged.max(timeouts.tcp_max_retrans);
    if entry.tcp == Some(ConntrackTcpState::Established) && remaining <= shorter {
        return None;
    }
    // Half-open connections likewise, where theirs are set to more than that: they were silent for the rest of the shorter one at
    // least.
    let transitory = |timeout: u32| {
        let least = timeouts.tcp_unacknowledged.min(timeouts.tcp_max_retrans);
        if remaining <= shorter { timeout.min(least) } else { timeout }
    };
    let timeout = match (entry.tcp, entry.key.protocol) {
        (Some(ConntrackTcpState::Established), _) => timeouts.tcp_established,
        (Some(ConntrackTcpState::TimeWait), _) => timeouts.tcp_time_wait,
        (Some(ConntrackTcpState::Close), _) => timeouts.tcp_close,
        (Some(ConntrackTcpState::None | ConntrackTcpState::SynSent | ConntrackTcpState::SynSent2), _) => {
            transitory(timeouts.tcp_syn_sent)
        }
        (Some(ConntrackTcpState::SynRecv), _) => transitory(timeouts.tcp_syn_recv),
        (Some(ConntrackTcpState::FinWait), _) => transitory(timeouts.tcp_fin_wait),
        (Some(ConntrackTcpState::CloseWait), _) => transitory(timeouts.tcp_close_wait),
        (Some(ConntrackTcpState::LastAck), _) => transitory(timeouts.tcp_last_ack),
        (None, Protocol::UDP) if entry.assured => timeouts.udp_stream,
        (None, Protocol::UDP) => timeouts.udp,
        (None, Protocol::ICMP | Protocol::ICMPV6) => timeouts.icmp,
        (None, _) => return None,
    };
    Some(at.before(Duration::from_secs(u64::from(timeout.saturating_sub(remaining)))))
}

/// Beyond this age the last packet of a silent flow is kept by the minute: nothing asks for more, and a row stays short.
const FINE_TENTHS: u32 = 6000;
const MINUTE_TENTHS: u32 = 600;

/// A cohort as it is kept, in eight bytes: its state in the three uppermost bits, then since when, then how many. Packed ones
/// are in the order of state and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed(u64);

const COUNT_BITS: u32 = 29;
/// No table has so many entries.
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;

impl Packed {
    fn new(cohort: Cohort) -> Self {
        let state = (cohort.state as u64) << (u32::BITS + COUNT_BITS);
        Self(state | u64::from(cohort.since) << COUNT_BITS | u64::from(cohort.count.min(COUNT_MAX)))
    }

    /// What it is ordered by.
    fn key(self) -> u64 {
        self.0 >> COUNT_BITS
    }

    fn cohort(self) -> Cohort {
        let state = CohortState::ALL.into_iter().nth((self.0 >> (u32::BITS + COUNT_BITS)) as usize);
        #[expect(clippy::cast_possible_truncation, reason = "the bits that are cut off are the other fields")]
        let (since, count) = ((self.0 >> COUNT_BITS) as u32, self.0 as u32 & COUNT_MAX);
        Cohort { state: state.expect("made of a state"), since, count }
    }
}

/// The flows of one pair: at most one cohort per state and tenth of a second, ordered by both. There are very many of these
/// lists, and most have one or two cohorts: those need no memory of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cohorts(SmallVec<[Packed; 2]>);

impl Cohorts {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Cohort> {
        self.0.iter().map(|packed| packed.cohort())
    }

    /// Flows in the node's table.
    pub fn live(&self) -> u64 {
        self.iter().filter(|cohort| cohort.state.is_live()).map(|cohort| u64::from(cohort.count)).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Most stay as long as they were.
    pub(super) fn make_room_like(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.reserve_exact(other.0.len());
        }
    }

    /// Adds so many flows like this one.
    pub(super) fn add(&mut self, like: Cohort, count: u32) {
        if count == 0 {
            return;
        }
        let added = Packed::new(Cohort { count, ..like });
        match self.0.binary_search_by_key(&added.key(), |packed| packed.key()) {
            Ok(index) => {
                if let Some(packed) = self.0.get_mut(index) {
                    *packed = Packed::new(Cohort { count: packed.cohort().count.saturating_add(count), ..like });
                }
            }
            Err(index) => self.0.insert(index, added),
        }
    }

    /// Takes so many flows of one state, the oldest first. Gives what was taken.
    fn take(&mut self, state: CohortState, mut count: u32) -> Cohorts {
        let mut taken = Cohorts::default();
        for packed in &mut self.0 {
            let cohort = packed.cohort();
            let some = if cohort.state == state { cohort.count.min(count) } else { 0 };
            if some > 0 {
                taken.add(cohort, some);
                *packed = Packed::new(Cohort { count: cohort.count - some, ..cohort });
                count -= some;
            }
        }
        if !taken.is_empty() {
            self.0.retain(|packed| packed.cohort().count > 0);
        }
        taken
    }

    /// So many flows left the node's table.
    pub(super) fn end(&mut self, end: End, count: u32, protocol: Protocol, at: NodeTime, timeouts: ConntrackTimeouts) {
        use CohortState as State;
        if count == 0 {
            return;
        }
        let ago = |secs: u32| tenths(at.before(Duration::from_secs(u64::from(secs))));
        // From where they are taken, in this order: a flow may have moved on since the last dump.
        let (from, gone, earliest) = match end {
            End::TimeWait => {
                let from = [State::Closed, State::Transitory, State::Busy, State::Open];
                (from, Some(State::GoneClosed), ago(timeouts.tcp_time_wait))
            }
            End::Reset => {
                let from = [State::Reset, State::Busy, State::Open, State::Transitory];
                (from, Some(State::GoneReset), ago(timeouts.tcp_close))
            }
            End::Unanswered => ([State::Wanting, State::Busy, State::Open, State::Transitory], None, 0),
            // A TCP connection that vanished while open: nobody told the NAT, so count it as held from now on, rather too long.
            End::Other { .. } if protocol == Protocol::TCP => {
                ([State::Busy, State::Open, State::Transitory, State::Wanting], Some(State::GoneClosed), tenths(at))
            }
            // A timer ran out: the last packet passed a whole time-out ago.
            End::Other { assured } => {
                let timeout = match protocol {
                    Protocol::UDP if assured => timeouts.udp_stream,
                    Protocol::UDP => timeouts.udp,
                    _ => timeouts.icmp,
                };
                ([State::Open, State::Busy, State::Transitory, State::Wanting], Some(State::GoneClosed), ago(timeout))
            }
        };
        let mut left = count;
        for state in from {
            for cohort in self.take(state, left).iter() {
                left -= cohort.count;
                if let Some(gone) = gone {
                    // Closed earlier than its own end tells, or silent later than the longest time-out: the cohort knows better.
                    let exact = matches!((end, state), (End::TimeWait, State::Closed) | (End::Reset, State::Reset));
                    let since = if exact { cohort.since } else { cohort.since.max(earliest) };
                    self.add(Cohort { state: gone, since, count: 0 }, cohort.count);
                }
            }
        }
    }

    /// Takes so many flows away again that were never there.
    pub(super) fn shrink(&mut self, mut count: u32) {
        use CohortState as State;
        for state in [State::Closed, State::Reset, State::Transitory, State::Open, State::Busy, State::Wanting] {
            count -= self.take(state, count).iter().map(|cohort| cohort.count).sum::<u32>();
        }
    }

    /// The same flows in their present states; what is gone stays.
    pub(super) fn replace_live(&mut self, live: Self) {
        let before = std::mem::replace(self, live);
        for cohort in before.iter().filter(|cohort| !cohort.state.is_live()) {
            self.add(cohort, cohort.count);
        }
        if self.0.capacity() > self.0.len().saturating_mul(2) {
            self.0.shrink_to_fit();
        }
    }

    /// A later dump takes over. What it does not show any more left the table unseen (it existed before anybody listened).
    pub(super) fn succeeded_by(&mut self, next: Self, protocol: Protocol, at: NodeTime, timeouts: ConntrackTimeouts) {
        use CohortState as State;
        let mut vanished = small(self.live()).saturating_sub(small(next.live()));
        // Closed flows of the same second are the same flows; timers are told in seconds.
        for (state, end) in [(State::Closed, End::TimeWait), (State::Reset, End::Reset)] {
            let closed: Vec<Cohort> = self.iter().filter(|cohort| cohort.state == state).collect();
            for cohort in closed {
                let near = next.iter().filter(|other| other.state == state && other.since.abs_diff(cohort.since) <= 10);
                let shown = near.map(|other| other.count).fold(0, u32::saturating_add);
                let missing = cohort.count.saturating_sub(shown).min(vanished);
                vanished -= missing;
                self.end(end, missing, protocol, at, timeouts);
            }
        }
        self.end(End::Other { assured: true }, vanished, protocol, at, timeouts);
        self.replace_live(next);
    }

    /// Drops what ended before the horizon, and keeps what fell silent long ago less finely.
    pub(super) fn forget(&mut self, horizon: NodeTime, now: NodeTime) {
        let horizon = tenths(horizon);
        self.0.retain(|packed| {
            let cohort = packed.cohort();
            cohort.state.is_live() || cohort.since >= horizon
        });
        if self.iter().any(|cohort| cohort.as_kept(now) != cohort) {
            for cohort in std::mem::take(self).iter() {
                self.add(cohort.as_kept(now), cohort.count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the packing. If this fails, flows change their state or their number by being kept.
    #[test]
    fn a_cohort_comes_out_as_it_went_in() {
        for state in CohortState::ALL {
            for (since, count) in [(0, 0), (u32::MAX, 1), (1, COUNT_MAX), (123_456_789, 250_000)] {
                let cohort = Cohort { state, since, count };
                assert_eq!(Packed::new(cohort).cohort(), cohort);
            }
        }
        let more = Cohort { state: CohortState::Open, since: 1, count: u32::MAX };
        assert_eq!(Packed::new(more).cohort().count, COUNT_MAX);
        assert!(Packed::new(more).key() < Packed::new(Cohort { since: 2, count: 0, ..more }).key());
        assert_eq!(size_of::<Cohorts>(), 24);
    }
}
