//! What can be lost on the way.

use serde::{Deserialize, Serialize};

/// Things that can be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Connects whose destination found no room in the eBPF map.
    TcpMapFull,
    /// Kernel memory reads that failed inside an eBPF program, or gave what cannot be.
    TcpReadFailed,
    /// TCP events that the kernel skipped (since 6.1 it does, on a CPU where a softirq interrupted the same program), less those
    /// that later events made up for. Two thirds of them do not matter: the far end's, or steps on the way to an end.
    TcpMissed,
    /// conntrack event overruns (ENOBUFS or dropped messages).
    ConntrackOverrun,
    /// Netlink messages that could not be understood.
    ConntrackMalformed,
    /// Conntrack entries that went into the table and whose destination found no room in the eBPF map.
    ConntrackMapFull,
    /// Conntrack entries that left the table, and packets that found no port, whose destination found no room in the eBPF map.
    ConntrackMapFullEnds,
    /// Kernel memory reads that failed inside an eBPF program on conntrack.
    ConntrackReadFailed,
    /// Runs of the eBPF programs on conntrack that the kernel left out; a comparison with the table mends the counts. Not told by
    /// kernels before 6.7.
    ConntrackMissed,
    /// Flows that found no room in the ledger.
    LedgerFlowsFull,
}

impl Loss {
    /// The name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpMapFull => "tcp_map_full",
            Self::TcpReadFailed => "tcp_read_failed",
            Self::TcpMissed => "tcp_missed",
            Self::ConntrackOverrun => "conntrack_overrun",
            Self::ConntrackMalformed => "conntrack_malformed",
            Self::ConntrackMapFull => "conntrack_map_full",
            Self::ConntrackMapFullEnds => "conntrack_map_full_ends",
            Self::ConntrackReadFailed => "conntrack_read_failed",
            Self::ConntrackMissed => "conntrack_missed",
            Self::LedgerFlowsFull => "ledger_flows_full",
        }
    }
}
