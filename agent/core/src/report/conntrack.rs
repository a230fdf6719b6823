//! What a report says about the conntrack table.

use serde::{Deserialize, Serialize};

/// A comparison of conntrack's counters with its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    /// Entries by which counts had to be corrected last time, beyond what moved meanwhile.
    pub last: u64,
    /// In all comparisons.
    pub total: u64,
    /// How many comparisons there were.
    pub comparisons: u64,
}

/// The conntrack table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackReport {
    /// Entries now.
    pub entries: Option<u64>,
    /// Entries at most.
    pub max: Option<u64>,
    /// Insertions that failed since boot.
    pub insert_failed: Option<u64>,
    /// Packets dropped since boot.
    pub drop: Option<u64>,
    /// Entries evicted since boot.
    pub early_drop: Option<u64>,
    /// Packets of new connections dropped for want of a port since start, all destinations; absent where that is not seen.
    #[serde(default)]
    pub no_port_total: Option<u64>,
    /// How far entries as counted in the kernel and as dumped were apart; absent where they are not counted.
    #[serde(default)]
    pub drift: Option<DriftReport>,
    /// Why something is absent.
    pub why: Option<String>,
}
