//! conntrack's flows: a keyed set, fed by dumps and events.
//!
//! Only what the kernel showed is kept, together with when; times of closing are derived from the kernel's own
//! time-outs. Ended flows are remembered for a while, since a NAT holds their ports longer than the node does.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
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
    /// A TCP connect that nobody has answered yet.
    Wanting,
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
    /// The dump that showed it last, or the one that was to come when an event did.
    generation: u32,
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
        self.generation = self.generation.wrapping_add(1);
    }

    pub(super) fn seen(&mut self, entry: ConntrackEntry, at: NodeTime, dumped: bool, timeouts: ConntrackTimeouts) {
        let fresh = Held { entry, read_at: at, generation: self.generation };
        let room = self.live.len() < self.limits.max_flows;
        match self.live.entry(entry.key) {
            // A NEW event may arrive behind the dump that already showed the entry further on: it knows less.
            Entry::Occupied(held) if held.get().entry.id == entry.id && !dumped => {}
            Entry::Occupied(mut held) => {
                let before = held.insert(fresh);
                if before.entry.id != entry.id {
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
        let mut flow = flow_of(held, timeouts);
        flow.state = match flow.state {
            FlowState::Closed(_) | FlowState::Reset(_) => flow.state,
            FlowState::Wanting | FlowState::Open { .. } => {
                let Some(state) = state_at_end(held, last_words, at, timeouts) else { return };
                state
            }
        };
        let (FlowState::Closed(closed) | FlowState::Reset(closed)) = flow.state else { return };
        if at.since(closed) < self.limits.remember && self.ended.len() < self.limits.max_flows {
            self.ended.push_back(Ended { flow, at });
        }
    }

    /// Every flow: those in the table, and those that ended lately.
    pub fn iter(&self, timeouts: ConntrackTimeouts) -> impl Iterator<Item = Flow> + '_ {
        let live = self.live.values().map(move |held| flow_of(held, timeouts));
        live.chain(self.ended.iter().map(|ended| ended.flow))
    }

    /// How many entries are in the table.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Entries that found no room ([`LedgerLimits::max_flows`]).
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The source addresses of all flows in the table.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.live.keys().map(|key| key.source.address)
    }
}

fn flow_of(held: &Held, timeouts: ConntrackTimeouts) -> Flow {
    let entry = &held.entry;
    Flow {
        destination: Destination { protocol: entry.key.protocol, endpoint: entry.destination },
        dialled: entry.key.dialled,
        source: entry.key.source,
        translated: entry.translated,
        state: state_of(held, timeouts),
    }
}

/// When the kernel set the timer that now has `remaining` seconds left.
fn timer_set(held: &Held, timeout_secs: u32) -> Option<NodeTime> {
    let remaining = held.entry.remaining_secs?;
    Some(held.read_at.before(Duration::from_secs(u64::from(timeout_secs.saturating_sub(remaining)))))
}

fn state_of(held: &Held, timeouts: ConntrackTimeouts) -> FlowState {
    use ConntrackTcpState as Tcp;
    let entry = &held.entry;
    match entry.tcp {
        Some(Tcp::None | Tcp::SynSent | Tcp::SynSent2) => FlowState::Wanting,
        Some(Tcp::Established) => FlowState::Open { last_packet: timer_set(held, timeouts.tcp_established) },
        Some(Tcp::SynRecv | Tcp::FinWait | Tcp::CloseWait | Tcp::LastAck) => FlowState::Open { last_packet: None },
        Some(Tcp::TimeWait) => FlowState::Closed(timer_set(held, timeouts.tcp_time_wait).unwrap_or(held.read_at)),
        Some(Tcp::Close) => FlowState::Reset(timer_set(held, timeouts.tcp_close).unwrap_or(held.read_at)),
        None if entry.key.protocol == Protocol::TCP && !entry.replied => FlowState::Wanting,
        None => FlowState::Open { last_packet: idle_timeout(entry, timeouts).and_then(|secs| timer_set(held, secs)) },
    }
}

/// The timer that every packet of a connectionless flow sets anew.
fn idle_timeout(entry: &ConntrackEntry, timeouts: ConntrackTimeouts) -> Option<u32> {
    match entry.key.protocol {
        Protocol::UDP if entry.assured => Some(timeouts.udp_stream),
        Protocol::UDP => Some(timeouts.udp),
        Protocol::ICMP | Protocol::ICMPV6 => Some(timeouts.icmp),
        _ => None,
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
    let replied = last.replied || held.entry.replied;
    // It cannot have ended before it was last seen open.
    let ago = |secs: u32| at.before(Duration::from_secs(u64::from(secs))).max(held.read_at);
    if last.key.protocol != Protocol::TCP {
        return Some(FlowState::Closed(ago(idle_timeout(last, timeouts).unwrap_or(0))));
    }
    match last.tcp.filter(|_| last_words.is_some()) {
        Some(ConntrackTcpState::TimeWait) => Some(FlowState::Closed(ago(timeouts.tcp_time_wait))),
        Some(ConntrackTcpState::Close) => Some(FlowState::Reset(ago(timeouts.tcp_close))),
        _ if !replied => None,
        // The entry vanished while open (evicted, deleted by hand): count it as held from now on, rather too long.
        _ => Some(FlowState::Closed(at)),
    }
}
