//! conntrack's flows: a keyed set, fed by dumps and events.
//!
//! Only what the kernel showed is kept, together with when; times of closing are derived from the kernel's own
//! time-outs. Ended flows are remembered for a while, since a NAT holds their ports longer than the node does.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::flow::{Destination, Endpoint, Protocol};
use crate::ledger::LedgerLimits;
use crate::observe::{ConntrackEntry, ConntrackTcpState, ConntrackTimeouts, FlowKey, Outcome};
use crate::time::NodeTime;

/// A flow as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Where it goes, after DNAT.
    pub destination: Destination,
    /// What the opener dialled; differs from the destination if the node translated it.
    pub dialled: Endpoint,
    /// Who opened it: address and port before any translation.
    pub source: Endpoint,
    /// What it looks like when it leaves the node.
    pub translated: Endpoint,
    /// What it is doing.
    pub state: FlowState,
}

/// What a flow is doing, as far as the kernel's table tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowState {
    /// A TCP connect that nobody has answered yet, known since this moment.
    Wanting(NodeTime),
    /// A TCP connect that began at this moment, since the table was read last: it may have been answered already.
    Beginning(NodeTime),
    /// Open, and silent at least since this moment, where the kernel tells.
    Open {
        /// When the last packet passed, as of the last reading.
        last_packet: Option<NodeTime>,
    },
    /// Ended in good order (FIN) at this moment.
    Closed(NodeTime),
    /// Ended by a reset at this moment.
    Reset(NodeTime),
}

#[derive(Debug, Clone, Copy)]
struct Held {
    entry: ConntrackEntry,
    read_at: NodeTime,
    /// When it was seen first.
    since: NodeTime,
    /// The dump that showed it last, or the one that was to come when an event did.
    generation: u32,
    /// A dump has shown it; until then only the event of its beginning did.
    dumped: bool,
    /// When the entry's timer was set last, if that can be told.
    timer: Option<TimerSet>,
}

/// The moment a timer was set, known to lie between two others. The kernel tells what is left in whole seconds, rounded
/// down; every further reading narrows it.
#[derive(Debug, Clone, Copy)]
struct TimerSet {
    earliest: NodeTime,
    latest: NodeTime,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    flow: Flow,
    at: NodeTime,
}

/// The set of flows.
#[derive(Debug)]
pub struct Flows {
    limits: LedgerLimits,
    live: BTreeMap<FlowKey, Held>,
    ended: VecDeque<Ended>,
    generation: u32,
    refused: u64,
}

impl Flows {
    pub(super) fn new(limits: LedgerLimits) -> Self {
        Self { limits, live: BTreeMap::new(), ended: VecDeque::new(), generation: 0, refused: 0 }
    }

    pub(super) fn begin_dump(&mut self) {
        // The same entries find no room in every dump: count them once.
        self.refused = 0;
        self.generation = self.generation.wrapping_add(1);
    }

    pub(super) fn seen(&mut self, entry: ConntrackEntry, at: NodeTime, dumped: bool, timeouts: ConntrackTimeouts) {
        let timer = TimerSet::read(&entry, at, timeouts);
        let fresh = Held { entry, read_at: at, since: at, generation: self.generation, dumped, timer };
        let room = self.live.len() < self.limits.max_flows;
        match self.live.entry(entry.key) {
            // A NEW event may arrive behind the dump that already showed the entry further on: it knows less.
            Entry::Occupied(held) if held.get().entry.id == entry.id && !dumped => {}
            Entry::Occupied(mut held) => {
                let before = held.insert(fresh);
                if before.entry.id == entry.id {
                    held.get_mut().since = before.since;
                    held.get_mut().narrow_timer(&before);
                } else {
                    self.remember(&before, None, at, timeouts);
                }
            }
            Entry::Vacant(vacant) if room => {
                vacant.insert(fresh);
            }
            Entry::Vacant(_) => self.refused = self.refused.saturating_add(1),
        }
    }

    pub(super) fn ended(&mut self, entry: ConntrackEntry, at: NodeTime, timeouts: ConntrackTimeouts) {
        // The id guards a successor with the same tuple against the end of its predecessor.
        let same = self.live.get(&entry.key).is_some_and(|held| held.entry.id == entry.id);
        if same && let Some(held) = self.live.remove(&entry.key) {
            self.remember(&held, Some(&entry), at, timeouts);
        }
    }

    pub(super) fn end_dump(&mut self, at: NodeTime, outcome: &Outcome, timeouts: ConntrackTimeouts) {
        if *outcome == Outcome::Complete {
            let generation = self.generation;
            let gone: Vec<Held> =
                self.live.extract_if(.., |_, held| held.generation != generation).map(|(_, held)| held).collect();
            for held in gone {
                self.remember(&held, None, at, timeouts);
            }
        }
        let horizon = at.before(self.limits.remember);
        while self.ended.front().is_some_and(|ended| ended.at < horizon) {
            self.ended.pop_front();
        }
    }

    /// Keeps an ended flow if it ever held a port and may still hold one beyond the node.
    fn remember(
        &mut self,
        held: &Held,
        last_words: Option<&ConntrackEntry>,
        at: NodeTime,
        timeouts: ConntrackTimeouts,
    ) {
        let state = match state_of(held) {
            known @ (FlowState::Closed(_) | FlowState::Reset(_)) => Some(known),
            FlowState::Wanting(_) | FlowState::Beginning(_) | FlowState::Open { .. } => {
                state_at_end(held, last_words, at, timeouts)
            }
        };
        let Some(state @ (FlowState::Closed(closed) | FlowState::Reset(closed))) = state else { return };
        if at.since(closed) < self.limits.remember && self.ended.len() < self.limits.max_flows {
            self.ended.push_back(Ended { flow: Flow { state, ..flow_of(held) }, at });
        }
    }

    /// Every flow: those in the table, and those that ended lately.
    pub fn iter(&self) -> impl Iterator<Item = Flow> + '_ {
        self.live.values().map(flow_of).chain(self.ended.iter().map(|ended| ended.flow))
    }

    /// How many entries are in the table.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Entries that found no room in the last dump and since ([`LedgerLimits::max_flows`]).
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

impl Held {
    /// Joins what this reading and the one before say of the timer.
    fn narrow_timer(&mut self, before: &Held) {
        let (Some(now), Some(then)) = (self.timer, before.timer) else { return };
        let same_timer = self.entry.tcp == before.entry.tcp && self.entry.assured == before.entry.assured;
        self.timer = Some(if !same_timer {
            // The state has changed since, and the timer was set with it.
            TimerSet { earliest: now.earliest.max(before.read_at.min(now.latest)), latest: now.latest }
        } else if now.earliest <= then.latest && then.earliest <= now.latest {
            TimerSet { earliest: now.earliest.max(then.earliest), latest: now.latest.min(then.latest) }
        } else {
            now
        });
    }
}

impl TimerSet {
    /// The likeliest moment.
    fn middle(self) -> NodeTime {
        self.earliest.after(self.latest.since(self.earliest) / 2)
    }

    fn read(entry: &ConntrackEntry, at: NodeTime, timeouts: ConntrackTimeouts) -> Option<Self> {
        let remaining = entry.remaining_secs?;
        // With data under way or after retransmissions the kernel sets a shorter timer: what is left then tells nothing.
        let shorter = timeouts.tcp_unacknowledged.max(timeouts.tcp_max_retrans);
        if entry.tcp == Some(ConntrackTcpState::Established) && remaining <= shorter {
            return None;
        }
        let elapsed = timeout_of(entry, timeouts)?.saturating_sub(remaining);
        let ago = |secs: u32| at.before(Duration::from_secs(u64::from(secs)));
        Some(Self { earliest: ago(elapsed), latest: ago(elapsed.saturating_sub(1)) })
    }
}

/// The time-out an entry's timer is set to in its present state, for the states whose timer matters.
fn timeout_of(entry: &ConntrackEntry, timeouts: ConntrackTimeouts) -> Option<u32> {
    match (entry.tcp, entry.key.protocol) {
        (Some(ConntrackTcpState::Established), _) => Some(timeouts.tcp_established),
        (Some(ConntrackTcpState::TimeWait), _) => Some(timeouts.tcp_time_wait),
        (Some(ConntrackTcpState::Close), _) => Some(timeouts.tcp_close),
        (Some(_), _) => None,
        (None, Protocol::UDP) => Some(if entry.assured { timeouts.udp_stream } else { timeouts.udp }),
        (None, Protocol::ICMP | Protocol::ICMPV6) => Some(timeouts.icmp),
        (None, _) => None,
    }
}

fn flow_of(held: &Held) -> Flow {
    let entry = &held.entry;
    Flow {
        destination: Destination { protocol: entry.key.protocol, endpoint: entry.destination },
        dialled: entry.key.dialled,
        source: entry.key.source,
        translated: entry.translated,
        state: state_of(held),
    }
}

fn state_of(held: &Held) -> FlowState {
    use ConntrackTcpState as Tcp;
    let entry = &held.entry;
    let set = held.timer.map(TimerSet::middle);
    match entry.tcp {
        Some(Tcp::None | Tcp::SynSent | Tcp::SynSent2) if held.dumped => FlowState::Wanting(held.since),
        Some(Tcp::None | Tcp::SynSent | Tcp::SynSent2) => FlowState::Beginning(held.since),
        Some(Tcp::Established | Tcp::SynRecv | Tcp::FinWait | Tcp::CloseWait | Tcp::LastAck) => {
            FlowState::Open { last_packet: set }
        }
        Some(Tcp::TimeWait) => FlowState::Closed(set.unwrap_or(held.read_at)),
        Some(Tcp::Close) => FlowState::Reset(set.unwrap_or(held.read_at)),
        None if entry.key.protocol == Protocol::TCP && !entry.replied => FlowState::Wanting(held.since),
        None => FlowState::Open { last_packet: set },
    }
}

/// How a flow ended that was last seen open or wanting; `None` if it never held a port.
fn state_at_end(
    held: &Held,
    last_words: Option<&ConntrackEntry>,
    at: NodeTime,
    timeouts: ConntrackTimeouts,
) -> Option<FlowState> {
    let last = last_words.unwrap_or(&held.entry);
    let ago = |secs: u32| at.before(Duration::from_secs(u64::from(secs)));
    if last.key.protocol != Protocol::TCP {
        // A timer ran out: the last packet passed a whole time-out ago, and not before the last reading of the timer.
        let last_packet = held.timer.map_or_else(|| ago(timeout_of(last, timeouts).unwrap_or(0)), TimerSet::middle);
        return Some(FlowState::Closed(last_packet));
    }
    // A TCP connection was still open when it was last seen so.
    let ago = |secs: u32| ago(secs).max(held.read_at);
    match last.tcp.filter(|_| last_words.is_some()) {
        Some(ConntrackTcpState::TimeWait) => Some(FlowState::Closed(ago(timeouts.tcp_time_wait))),
        Some(ConntrackTcpState::Close) => Some(FlowState::Reset(ago(timeouts.tcp_close))),
        _ if !last.replied && !held.entry.replied => None,
        // The entry vanished while open (evicted, deleted by hand): count it as held from now on, rather too long.
        _ => Some(FlowState::Closed(at)),
    }
}
