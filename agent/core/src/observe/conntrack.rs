//! Facts of conntrack: its entries, their counters, its size and time-outs.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::{Destination, Endpoint, Protocol};

/// What identifies a conntrack entry, together with [`ConntrackEntry::id`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FlowKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// conntrack zone (0 unless somebody uses zones).
    pub zone: u16,
    /// Original source: who opened it, before any translation. The port of an ICMP flow is its identifier.
    pub source: Endpoint,
    /// Original destination: what the opener dialled (a Service's address, say).
    pub dialled: Endpoint,
}

/// A conntrack entry as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackEntry {
    /// Who and where to.
    pub key: FlowKey,
    /// `CTA_ID`: tells a reused tuple from the entry that had it before; 0 where the kernel gave none.
    pub id: u32,
    /// The real peer after DNAT (source of the reply tuple).
    pub destination: Endpoint,
    /// What the peer sees (destination of the reply tuple): source address and port after this node's SNAT.
    pub translated: Endpoint,
    /// `IPS_SEEN_REPLY`: an answer has come.
    pub replied: bool,
    /// `IPS_ASSURED`: not evicted early; for UDP, a stream with the longer time-out.
    pub assured: bool,
    /// TCP state, where the kernel gave one.
    pub tcp: Option<ConntrackTcpState>,
    /// Seconds until the kernel forgets it, where it said so (not in NEW events of some kernels).
    pub remaining_secs: Option<u32>,
}

impl ConntrackEntry {
    /// Whether an answer has come to who opened it. In SYN_RECV conntrack has seen one, and the opener has not gone on: IPVS takes
    /// answers after conntrack has (seen on Linux 6.12).
    pub fn is_answered(&self) -> bool {
        self.replied && self.tcp != Some(ConntrackTcpState::SynRecv)
    }
}

/// `enum tcp_conntrack` of `linux/netfilter/nf_conntrack_tcp.h` (uapi, stable).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConntrackTcpState {
    /// 0
    None,
    /// 1: the first SYN went out.
    SynSent,
    /// 2
    SynRecv,
    /// 3
    Established,
    /// 4
    FinWait,
    /// 5
    CloseWait,
    /// 6
    LastAck,
    /// 7
    TimeWait,
    /// 8: reset.
    Close,
    /// 9: simultaneous open (`TCP_CONNTRACK_LISTEN` reused).
    SynSent2,
}

impl ConntrackTcpState {
    /// From the kernel's number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::SynSent,
            2 => Self::SynRecv,
            3 => Self::Established,
            4 => Self::FinWait,
            5 => Self::CloseWait,
            6 => Self::LastAck,
            7 => Self::TimeWait,
            8 => Self::Close,
            9 => Self::SynSent2,
            _ => return None,
        })
    }
}

/// Counters of conntrack entries since [`ConntrackCounter::born`]; every other one only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCounter {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The real peer, after DNAT.
    pub destination: Endpoint,
    /// Who opened them, before any translation.
    pub source: IpAddr,
    /// The source address that the peer sees.
    pub translated: IpAddr,
    /// When counting of this pair began, on some clock: another value tells that it began anew, from zero.
    pub born: u64,
    /// Entries that went into the table.
    pub inserted: u64,
    /// TCP entries that left it from TIME_WAIT.
    pub ended_time_wait: u64,
    /// TCP entries that left it after a reset.
    pub ended_reset: u64,
    /// TCP entries that left it without ever an answer.
    pub ended_unanswered: u64,
    /// All others that left it.
    pub ended_other: u64,
    /// Of those inserted: with a source port that was translated into the NodePort range.
    pub node_port_inserted: u64,
    /// Of those that left: likewise.
    pub node_port_ended: u64,
}

/// Packets of new connections that the kernel dropped since it found no port to translate their source to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoPort {
    /// Where they were to go, after DNAT.
    pub destination: Destination,
    /// Who sent them, before any translation.
    pub source: IpAddr,
    /// The address that their source was translated to.
    #[serde(default = "unspecified")]
    pub translated: IpAddr,
    /// When counting of them began, on some clock: another value, or a smaller number than before, tells that it began anew.
    #[serde(default)]
    pub born: u64,
    /// How many since; a TCP connect sends its SYN several times.
    pub dropped: u64,
}

fn unspecified() -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
}
