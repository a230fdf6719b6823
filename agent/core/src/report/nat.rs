//! What a report says about NAT ports.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::Protocol;
use crate::model::nat::Basis;
use crate::observe::SourceId;
use crate::ports::PortRange;

/// NAT ports of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatReport {
    /// Which NAT stands in front of the node.
    pub profile: String,
    /// Whether the NAT maps endpoint-independently, so that each source address and port needs one of its ports whatever the
    /// destination; absent if nobody has said.
    #[serde(default)]
    pub endpoint_independent: Option<bool>,
    /// What the node was given.
    pub allocation: AllocationReport,
    /// What it needs, per protocol.
    pub demand: DemandReports,
    /// Destinations, largest demand first.
    pub destinations: Vec<DestinationReport>,
    /// Destinations that are not listed.
    pub omitted: OmittedDestinations,
    /// Who holds ports over all destinations in scope, the largest first.
    #[serde(default)]
    pub pods: Vec<PodDemand>,
    /// Holders that are not listed.
    #[serde(default)]
    pub pods_omitted: OmittedPods,
    /// Who uses most of its local ports towards one destination, the largest part first.
    #[serde(default)]
    pub local: Vec<LocalReport>,
    /// Destinations towards which this node's own masquerading has given out most ports.
    #[serde(default)]
    pub masqueraded: Vec<MasqueradedReport>,
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
    /// How long ago the NAT gave so many, where that was observed and the time is known.
    #[serde(default)]
    pub age_secs: Option<u64>,
    /// Nodes that fit behind the gateway, where NAT IPs are known.
    pub capacity_nodes: Option<u32>,
    /// What to know about it besides.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Demand per protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemandReports {
    /// TCP.
    pub tcp: DemandReport,
    /// UDP.
    pub udp: DemandReport,
    /// ICMP; unknown where the NAT does not translate it.
    #[serde(default)]
    pub icmp: DemandReport,
}

/// Demand of one protocol: the largest over its destinations in scope, or over their addresses, see [`WorstDestination`].
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
    /// How fast connections to the worst destination come, and how fast they may; absent where that was not watched long
    /// enough.
    #[serde(default)]
    pub rate: Option<RateReport>,
    /// Under endpoint-independent mapping: distinct source addresses and ports, over all destinations.
    #[serde(default)]
    pub endpoint_independent: Option<SourcesReport>,
}

/// What a NAT with endpoint-independent mapping needs its ports for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcesReport {
    /// Distinct sources that hold something; absent if it could not be told.
    pub ports: Option<u32>,
    /// Not fewer than this: flows open to one destination have sources of their own.
    pub at_least: u32,
    /// Not more than this: all flows that are held or wanted, to whatever destination.
    pub at_most: u32,
    /// What it rests on, or why it could not be told.
    pub basis: String,
}

/// How fast connections to one destination come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateReport {
    /// New ones per second, over the last minute as far as it was watched.
    pub per_sec: f64,
    /// How many per second the allocation can sustain if they live as long as they do; absent if it is not known.
    pub allowed_per_sec: Option<f64>,
    /// The arithmetic.
    pub basis: String,
}

/// The destination that needs most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorstDestination {
    /// Address.
    pub address: IpAddr,
    /// Port; where several count together, the one that needs most.
    pub port: u16,
    /// How many ports of the address count together: 1, except where a port of the NAT serves only one flow to an address at a
    /// time, whatever the port there (UDP behind an Azure load balancer).
    #[serde(default = "one")]
    pub destinations: u32,
}

fn one() -> u32 {
    1
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
    /// Flows open on this node that the NAT has dropped, since nothing passed for longer than it waits: not held. Absent where
    /// it is not known how long flows are silent.
    #[serde(default)]
    pub forgotten: Option<u32>,
    /// New connections per second, over the last minute as far as it was watched; where connects are not counted, flows that
    /// ended.
    #[serde(default)]
    pub per_sec: Option<f64>,
    /// Connections opened, by the TCP counters; absent where they do not count. Since the start; of a destination and source
    /// without connections for 150 s (10 s where the kernel's map is nearly full), since it was dialled again.
    pub opened_total: Option<u64>,
    /// Connections ended since then, by the TCP counters; absent where they do not count.
    pub closed_total: Option<u64>,
    /// Connects failed since then, for whatever reason, by the TCP counters; absent where they do not count.
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
    /// Flows open on this node that the NAT has dropped.
    #[serde(default)]
    pub forgotten: u32,
    /// For the node itself: processes with connections to the destination, most first; told of the destinations with most only.
    #[serde(default)]
    pub owners: Vec<OwnerReport>,
}

/// A process on the node's own network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerReport {
    /// Its name.
    pub process: String,
    /// The systemd unit it runs in.
    pub unit: Option<String>,
    /// Kubernetes namespace, if it is a pod in the host's network.
    pub namespace: Option<String>,
    /// The pod's name.
    pub name: Option<String>,
    /// Its cgroup.
    pub cgroup: Option<String>,
    /// Connections open.
    pub sockets: u32,
}

/// What one holder holds over all destinations in scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDemand {
    /// Kubernetes namespace; absent if the address belongs to no known pod.
    pub namespace: Option<String>,
    /// Pod name; absent likewise.
    pub name: Option<String>,
    /// Source address.
    pub address: IpAddr,
    /// It is the node itself: a process or a pod in the host's network.
    pub host: bool,
    /// Ports held.
    pub held: u64,
    /// Connects unanswered.
    pub wanting: u64,
    /// Flows open on this node that the NAT has dropped.
    pub forgotten: u64,
    /// To how many destinations.
    pub destinations: u64,
}

/// What the list of holders leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OmittedPods {
    /// How many holders.
    pub pods: u64,
    /// Ports they hold.
    pub held: u64,
}

/// Local ports that one source address uses towards one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalReport {
    /// Whose: a pod, the node, or the address.
    pub subject: String,
    /// The source address.
    pub source: IpAddr,
    /// What its sockets dialled.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// In use for certain: open, being opened, in TIME_WAIT when the socket tables were read last.
    pub used: u32,
    /// In use at most: every connection that closed within a minute may be in TIME_WAIT.
    pub used_at_most: u32,
    /// `ip_local_port_range` of its network namespace.
    pub range: PortRange,
    /// How many ports of it connect() can use: without those that are reserved and those listened on. Ports that sockets are
    /// bound to by hand without listening are not subtracted, since `/proc/net/tcp` does not show them (inet_diag does since
    /// Linux 6.8, from inside each namespace).
    pub usable: u32,
    /// How many more it could use if nobody listened on them.
    #[serde(default)]
    pub listening: u32,
    /// Whether it is known which of them are reserved; if not, fewer are usable.
    pub exact: bool,
}

/// Source ports that this node's own masquerading has given out towards one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqueradedReport {
    /// Protocol.
    pub protocol: Protocol,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// The address that traffic leaves with.
    pub translated: IpAddr,
    /// Ports taken.
    pub held: u32,
    /// Ports there are.
    pub ports: u32,
}

/// What the list of destinations leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OmittedDestinations {
    /// How many destinations.
    pub destinations: u64,
    /// Ports they hold.
    pub held: u64,
    /// Connects unanswered.
    #[serde(default)]
    pub wanting: u64,
}
