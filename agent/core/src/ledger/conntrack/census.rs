//! Who and what fills the conntrack table, as the last dump showed it, summed up.
//!
//! States and ages are counted entry by entry while a dump comes in, sources and destinations from the rows when it has ended:
//! no entry is kept for this, and there is no second dump.

use std::net::IpAddr;

use crate::flow::{Destination, Protocol};
use crate::heaviest::Heaviest;
use crate::observe::{ConntrackEntry, ConntrackTcpState, ConntrackTimeouts};
use crate::time::NodeTime;

/// Sources and destinations kept of a census.
const KEPT: usize = 20;

/// What an entry is doing, in the kernel's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryState {
    /// TCP, in this state.
    Tcp(ConntrackTcpState),
    /// TCP without a state (offloaded to a flow table, say).
    TcpOffloaded,
    /// UDP that nobody has answered.
    UdpUnanswered,
    /// UDP with an answer.
    UdpAnswered,
    /// UDP that goes to and fro (assured): the longer time-out.
    UdpStream,
    /// ICMP of both families.
    Icmp,
    /// Any other protocol.
    Other,
}

impl EntryState {
    fn of(entry: &ConntrackEntry) -> Self {
        match (entry.key.protocol, entry.tcp) {
            (_, Some(state)) => Self::Tcp(state),
            (Protocol::TCP, None) => Self::TcpOffloaded,
            (Protocol::UDP, None) if entry.assured => Self::UdpStream,
            (Protocol::UDP, None) if entry.replied => Self::UdpAnswered,
            (Protocol::UDP, None) => Self::UdpUnanswered,
            (Protocol::ICMP | Protocol::ICMPV6, None) => Self::Icmp,
            _ => Self::Other,
        }
    }

    const ALL: [Self; 16] = [
        Self::Tcp(ConntrackTcpState::None),
        Self::Tcp(ConntrackTcpState::SynSent),
        Self::Tcp(ConntrackTcpState::SynRecv),
        Self::Tcp(ConntrackTcpState::Established),
        Self::Tcp(ConntrackTcpState::FinWait),
        Self::Tcp(ConntrackTcpState::CloseWait),
        Self::Tcp(ConntrackTcpState::LastAck),
        Self::Tcp(ConntrackTcpState::TimeWait),
        Self::Tcp(ConntrackTcpState::Close),
        Self::Tcp(ConntrackTcpState::SynSent2),
        Self::TcpOffloaded,
        Self::UdpUnanswered,
        Self::UdpAnswered,
        Self::UdpStream,
        Self::Icmp,
        Self::Other,
    ];

    /// In JSON, metrics and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp(ConntrackTcpState::None) => "tcp_none",
            Self::Tcp(ConntrackTcpState::SynSent) => "tcp_syn_sent",
            Self::Tcp(ConntrackTcpState::SynRecv) => "tcp_syn_recv",
            Self::Tcp(ConntrackTcpState::Established) => "tcp_established",
            Self::Tcp(ConntrackTcpState::FinWait) => "tcp_fin_wait",
            Self::Tcp(ConntrackTcpState::CloseWait) => "tcp_close_wait",
            Self::Tcp(ConntrackTcpState::LastAck) => "tcp_last_ack",
            Self::Tcp(ConntrackTcpState::TimeWait) => "tcp_time_wait",
            Self::Tcp(ConntrackTcpState::Close) => "tcp_close",
            Self::Tcp(ConntrackTcpState::SynSent2) => "tcp_syn_sent2",
            Self::TcpOffloaded => "tcp_offloaded",
            Self::UdpUnanswered => "udp_unanswered",
            Self::UdpAnswered => "udp_answered",
            Self::UdpStream => "udp_stream",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }

    /// The time-out that is in force for it, where there is one for the whole state.
    pub fn timeout(self, timeouts: &ConntrackTimeouts) -> Option<u32> {
        use ConntrackTcpState as Tcp;
        Some(match self {
            Self::Tcp(Tcp::SynSent | Tcp::SynSent2) => timeouts.tcp_syn_sent,
            Self::Tcp(Tcp::SynRecv) => timeouts.tcp_syn_recv,
            Self::Tcp(Tcp::Established) => timeouts.tcp_established,
            Self::Tcp(Tcp::FinWait) => timeouts.tcp_fin_wait,
            Self::Tcp(Tcp::CloseWait) => timeouts.tcp_close_wait,
            Self::Tcp(Tcp::LastAck) => timeouts.tcp_last_ack,
            Self::Tcp(Tcp::TimeWait) => timeouts.tcp_time_wait,
            Self::Tcp(Tcp::Close) => timeouts.tcp_close,
            Self::UdpUnanswered | Self::UdpAnswered => timeouts.udp,
            Self::UdpStream => timeouts.udp_stream,
            Self::Icmp => timeouts.icmp,
            Self::Tcp(Tcp::None) | Self::TcpOffloaded | Self::Other => return None,
        })
    }
}

/// For how long no packet has passed; `None` where the timer does not tell.
pub(super) fn silent_secs(entry: &ConntrackEntry, timeouts: &ConntrackTimeouts) -> Option<u32> {
    let remaining = entry.remaining_secs?;
    let state = EntryState::of(entry);
    let timeout = state.timeout(timeouts)?;
    // With data under way or after retransmissions the kernel sets a shorter timer in any state of TCP (`nf_conntrack_tcp_packet`):
    // what is left then tells nothing.
    let shorter =
        [timeouts.tcp_unacknowledged, timeouts.tcp_max_retrans].into_iter().filter(|secs| *secs < timeout).max();
    if matches!(state, EntryState::Tcp(_)) && shorter.is_some_and(|secs| remaining <= secs) {
        return None;
    }
    timeout.checked_sub(remaining)
}

/// Upper ends of the spans of silence, in seconds; the last span has none.
pub const SILENCE_SECS: [u32; 4] = [60, 600, 3600, 86_400];

/// Who has most entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Most<K> {
    /// The largest, at least with so many entries each.
    pub listed: Vec<(K, u64)>,
    /// How many there are; unknown where they were too many to be told apart.
    pub distinct: Option<usize>,
    /// How many entries more a listed one may have.
    pub undercount: u64,
}

impl<K> Default for Most<K> {
    fn default() -> Self {
        Self { listed: Vec::new(), distinct: Some(0), undercount: 0 }
    }
}

impl<K: Ord + Copy> Most<K> {
    fn of(heaviest: &Heaviest<K>) -> Self {
        Self { listed: heaviest.top(KEPT), distinct: heaviest.distinct(), undercount: heaviest.undercount() }
    }
}

/// The table, summed up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// When the dump ended.
    pub at: NodeTime,
    /// The dump was complete; if not, there may be more of everything.
    pub complete: bool,
    /// Entries it showed.
    pub entries: u64,
    /// Of these, entries too many to tell by source and destination ([`crate::ledger::LedgerLimits::max_flows`]).
    pub not_told_apart: u64,
    states: [u64; EntryState::ALL.len()],
    /// By how long no packet has passed: below each of [`SILENCE_SECS`], and beyond.
    pub silent: [u64; SILENCE_SECS.len() + 1],
    /// Entries whose timer does not tell it.
    pub silent_unknown: u64,
    /// Entries that are not assured: what the kernel evicts first.
    pub unassured: u64,
    /// Assured TCP entries that are closing: evicted as well, once a packet was dropped.
    pub closing: u64,
    /// Entries whose timer runs out within a minute, unless a packet comes.
    pub ending: u64,
    /// Who opened them.
    pub sources: Most<IpAddr>,
    /// Where they go, after DNAT.
    pub destinations: Most<Destination>,
}

impl Census {
    /// Takes in one entry of a dump.
    pub(super) fn count(&mut self, entry: &ConntrackEntry, timeouts: &ConntrackTimeouts) {
        use ConntrackTcpState as Tcp;
        self.entries = self.entries.saturating_add(1);
        let state = EntryState::of(entry);
        for (known, count) in EntryState::ALL.iter().zip(&mut self.states) {
            *count = count.saturating_add(u64::from(*known == state));
        }
        let span = match silent_secs(entry, timeouts) {
            Some(secs) => {
                let span = SILENCE_SECS.iter().take_while(|end| secs >= **end).count();
                self.silent.get_mut(span)
            }
            None => Some(&mut self.silent_unknown),
        };
        if let Some(count) = span {
            *count = count.saturating_add(1);
        }
        let closing =
            matches!(entry.tcp, Some(Tcp::FinWait | Tcp::LastAck | Tcp::TimeWait | Tcp::Close | Tcp::CloseWait));
        self.unassured = self.unassured.saturating_add(u64::from(!entry.assured));
        self.closing = self.closing.saturating_add(u64::from(entry.assured && closing));
        self.ending = self.ending.saturating_add(u64::from(entry.remaining_secs.is_some_and(|secs| secs < 60)));
    }

    /// The dump has ended; these are its rows.
    pub(super) fn end(&mut self, at: NodeTime, complete: bool, rows: impl Iterator<Item = (IpAddr, Destination, u64)>) {
        let (mut sources, mut destinations) = (Heaviest::default(), Heaviest::default());
        for (source, destination, entries) in rows {
            sources.add(source, entries);
            destinations.add(destination, entries);
        }
        self.at = at;
        self.complete = complete;
        self.not_told_apart = self.entries.saturating_sub(sources.total());
        self.sources = Most::of(&sources);
        self.destinations = Most::of(&destinations);
    }

    /// Entries by state, those that there are.
    pub fn states(&self) -> impl Iterator<Item = (EntryState, u64)> {
        EntryState::ALL.into_iter().zip(self.states).filter(|(_, count)| *count > 0)
    }
}
