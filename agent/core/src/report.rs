//! The report: versioned, serialisable, the same for every output. Fields may be added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::findings::Finding;
use crate::observe::SourceId;

mod conntrack;
mod ipam;
mod nat;
mod overlap;

pub use conntrack::{
    CensusDestination, CensusReport, CensusSilence, CensusSource, CensusState, CiliumHairpinReport, CiliumReport,
    ConntrackReport, DriftReport, HairpinReport,
};
pub use ipam::{
    CleanerMode, CleanerReport, EntryReport, IpamReport, NetworkReport, PoolReport, RangeSetReport, StrandedReport,
    VerdictCounts,
};
pub use nat::{
    AllocationReport, DemandReport, DemandReports, DestinationReport, LocalReport, MasqueradedReport, NatReport,
    OmittedDestinations, OmittedPods, OwnerReport, PodDemand, PodShare, RateReport, SourcesReport, WorstDestination,
};
pub use overlap::{
    AllocatedBasis, CollidingPortReport, EphemeralReport, LiveFlowsReport, LiveOverlap, MasqueradeReport,
    NodePortBasis, NodePortReport, OverlapReport, ProxyReport, RuleOwner, ShareReport,
};

/// The version of the report's format.
pub const SCHEMA: &str = "headroom.report/1";

/// What headroom says about a node at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The node's name.
    pub node: String,
    /// When, in UTC: `2026-11-21T23:43:41.250Z` (RFC 3339).
    pub time: String,
    /// What each source can do here.
    pub coverage: Vec<CoverageReport>,
    /// Every eBPF program.
    #[serde(default)]
    pub programs: Vec<ProgramReport>,
    /// What was lost since the sources started, by kind; empty if nothing.
    pub lost: BTreeMap<String, u64>,
    /// NAT ports.
    pub nat: NatReport,
    /// Port ranges that collide.
    pub overlap: OverlapReport,
    /// Pod addresses.
    pub ipam: IpamReport,
    /// The conntrack table.
    pub conntrack: ConntrackReport,
    /// What is wrong, worst first.
    pub findings: Vec<Finding>,
}

/// What one source can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoverageReport {
    /// Which.
    pub source: SourceId,
    /// Whether it works.
    pub state: CoverageState,
    /// How it works, if it does.
    pub how: Option<String>,
    /// Why it does not, or what is missing.
    pub why: Option<String>,
    /// Milliseconds since it began to read the counters that its numbers rest on; absent where it counts nothing.
    #[serde(default)]
    pub age_millis: Option<u64>,
}

/// One eBPF program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramReport {
    /// Its name, also in `bpftool prog`.
    pub name: String,
    /// Where it is attached.
    pub hook: String,
    /// Whether it is.
    pub attached: bool,
    /// Why not.
    pub why: Option<String>,
    /// What cannot be told without it.
    pub lost_without: String,
    /// Runs that the kernel counted: it does so only with `kernel.bpf_stats_enabled`, or while somebody asks it to, as
    /// `headroom doctor` does.
    pub runs: Option<u64>,
    /// Nanoseconds they took.
    pub time_ns: Option<u64>,
    /// Events it did not see because it was running already on that CPU; absent before Linux 5.12.
    pub missed: Option<u64>,
}

/// Whether a source works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoverageState {
    /// It works.
    Ok,
    /// It works, with something missing.
    Degraded,
    /// There is nothing of the kind on this node.
    Absent,
    /// It could not be read.
    Unknown,
}
