//! The report: versioned, serialisable, the same for every output. Fields may be added, never renamed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::findings::Finding;
use crate::flow::Protocol;
use crate::ids::PodName;
use crate::model::leak::Verdict;
use crate::model::nat::Basis;
use crate::observe::SourceId;
use crate::ports::PortRange;

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
}

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

/// NAT ports of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatReport {
    /// Which NAT stands in front of the node.
    pub profile: String,
    /// What the node was given.
    pub allocation: AllocationReport,
    /// What it needs, per protocol.
    pub demand: DemandReports,
    /// Destinations, largest demand first.
    pub destinations: Vec<DestinationReport>,
    /// Destinations that are not listed.
    pub omitted: OmittedDestinations,
}

/// What the node was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AllocationReport {
    /// Ports per protocol and destination; absent if it is not known.
    pub ports: Option<u32>,
    /// What this rests on.
    pub basis: Basis,
    /// In words.
    pub why: String,
    /// Nodes that fit behind the gateway, where NAT IPs are known.
    pub capacity_nodes: Option<u32>,
}

/// Demand per protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemandReports {
    /// TCP.
    pub tcp: DemandReport,
    /// UDP.
    pub udp: DemandReport,
}

/// Demand of one protocol: the largest over its destinations in scope.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DemandReport {
    /// held + wanting of the worst destination now; absent if flows could not be observed.
    pub ports: Option<u32>,
    /// Peak within the last minute, as far as observed.
    pub peak_1m: Option<u32>,
    /// Peak within the last ten minutes, as far as observed.
    pub peak_10m: Option<u32>,
    /// Peak within the last hour, as far as observed.
    pub peak_1h: Option<u32>,
    /// The destination it is for.
    pub worst: Option<WorstDestination>,
    /// Seconds until the allocation is reached, at the present trend; absent without an upward trend.
    pub exhausted_in_secs: Option<u64>,
    /// What that prediction rests on.
    pub exhausted_basis: Option<String>,
}

/// Address and port of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorstDestination {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// One destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationReport {
    /// Protocol.
    pub protocol: Protocol,
    /// Address, after the node's DNAT.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Whether the NAT translates traffic to it.
    pub in_scope: bool,
    /// Ports held now.
    pub held: u32,
    /// Connects unanswered now.
    pub wanting: u32,
    /// Flows open now.
    pub active: u32,
    /// Connections opened since start, by the TCP counters; absent where they do not count.
    pub opened_total: Option<u64>,
    /// Connections ended since start, by the TCP counters; absent where they do not count.
    pub closed_total: Option<u64>,
    /// Connects failed since start, for whatever reason, by the TCP counters; absent where they do not count.
    pub failed_total: Option<u64>,
    /// Of these, refused; absent likewise.
    #[serde(default)]
    pub refused_total: Option<u64>,
    /// Of these, timed out.
    #[serde(default)]
    pub timed_out_total: Option<u64>,
    /// Of these, without a route or with another error of the network.
    #[serde(default)]
    pub unreachable_total: Option<u64>,
    /// Of these, ended by the application before there was an answer.
    #[serde(default)]
    pub given_up_total: Option<u64>,
    /// Of these, without a local port.
    #[serde(default)]
    pub no_local_port_total: Option<u64>,
    /// SYNs sent again since start, by the TCP counters; absent where they do not count.
    pub syn_unanswered_total: Option<u64>,
    /// Packets of new connections to it that this node itself dropped since it found no port to translate their source to;
    /// absent where that is not seen.
    #[serde(default)]
    pub no_port_total: Option<u64>,
    /// Who does the accounting of held ports.
    pub source: SourceId,
    /// Open flows by conntrack less those by the TCP counters, where both see them.
    pub drift: Option<i64>,
    /// Who holds the ports, largest first.
    pub pods: Vec<PodShare>,
    /// Further holders that are not listed.
    pub pods_omitted: u32,
}

/// A holder of ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodShare {
    /// Kubernetes namespace; absent if the address belongs to no known pod.
    pub namespace: Option<String>,
    /// Pod name; absent likewise.
    pub name: Option<String>,
    /// Source address.
    pub address: IpAddr,
    /// It is the node itself: a process or a pod in the host's network.
    pub host: bool,
    /// Ports held.
    pub held: u32,
    /// Connects unanswered.
    pub wanting: u32,
}

/// What the list of destinations leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OmittedDestinations {
    /// How many destinations.
    pub destinations: u64,
    /// Ports they hold.
    pub held: u64,
}

/// Port ranges that collide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverlapReport {
    /// The NodePort range this is about.
    pub node_port_range: PortRange,
    /// Ephemeral ranges per network namespace.
    pub ephemeral: Vec<EphemeralReport>,
    /// Masquerade rules and the share of connections they put into the range.
    pub masquerade: Vec<serde_json::Value>,
    /// NodePorts that are allocated.
    pub nodeports: Vec<serde_json::Value>,
    /// Live collisions.
    pub live: LiveOverlap,
    /// What was not looked at, and why.
    pub not_observed: Vec<String>,
}

/// Source ports of one or more network namespaces with the same settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EphemeralReport {
    /// Whose: `host`, a pod's name, or a namespace's inode.
    pub subject: String,
    /// How many namespaces have these settings (pods with equal settings are one row).
    pub namespaces: u32,
    /// `ip_local_port_range`; absent if it could not be read.
    pub range: Option<PortRange>,
    /// `ip_local_reserved_ports`.
    pub reserved: Vec<PortRange>,
    /// Ports of the NodePort range that the kernel may hand out there.
    pub overlap: Vec<PortRange>,
    /// How many ports that is.
    pub overlap_ports: Option<u32>,
    /// Why it is not known.
    pub why: Option<String>,
}

/// Flows whose source port on leaving the node is inside the NodePort range, as conntrack shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveOverlap {
    /// Translated flows (source address or port changed by this node) now; absent if conntrack could not be read.
    pub translated: Option<u64>,
    /// Of these, with a source port inside the range.
    pub in_node_port_range: Option<u64>,
}

/// Pod addresses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IpamReport {
    /// Networks with a store on this node.
    pub networks: Vec<NetworkReport>,
}

/// One network's store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// Its directory.
    pub store: String,
    /// Its name.
    pub network: String,
    /// Addresses it can hand out; absent if that is not known.
    pub usable: Option<u64>,
    /// Why it is not known.
    pub usable_why: Option<String>,
    /// Its directory was read to the end; if not, there may be more reservations than are counted.
    #[serde(default = "yes")]
    pub complete: bool,
    /// Reservations by verdict.
    pub counts: VerdictCounts,
    /// Reservations (in `check` only those that are not in use).
    pub entries: Vec<EntryReport>,
    /// Reservations that are not listed.
    pub entries_omitted: u64,
    /// Names in the directory that are no reservations.
    pub ignored: Vec<String>,
}

fn yes() -> bool {
    true
}

/// Reservations by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCounts {
    /// Somebody uses it.
    pub in_use: u64,
    /// Too early to say.
    pub settling: u64,
    /// Nobody uses it.
    pub leaked: u64,
    /// Cannot be told.
    pub undetermined: u64,
}

impl VerdictCounts {
    /// Counts one more.
    pub fn add(&mut self, verdict: &Verdict) {
        let count = match verdict {
            Verdict::InUse => &mut self.in_use,
            Verdict::Settling => &mut self.settling,
            Verdict::Leaked => &mut self.leaked,
            Verdict::Undetermined => &mut self.undetermined,
        };
        *count = count.saturating_add(1);
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.in_use.saturating_add(self.settling).saturating_add(self.leaked).saturating_add(self.undetermined)
    }
}

/// One reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryReport {
    /// The address.
    pub address: IpAddr,
    /// For which container; absent if the file does not say.
    pub container_id: Option<String>,
    /// For which interface.
    pub ifname: Option<String>,
    /// Since when, in seconds; absent if that could not be read.
    pub age_secs: Option<u64>,
    /// The pod that has the address now, if one has.
    pub pod: Option<PodName>,
    /// What it is.
    pub verdict: Verdict,
    /// Why.
    pub evidence: Vec<String>,
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
