//! What a report says about port ranges that collide.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::Protocol;
use crate::observe::{PortChoice, RuleFamily, RulePlace, ServiceProxy, SourceNatKind};
use crate::ports::PortRange;
use crate::protocols::Protocols;

/// Port ranges that collide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverlapReport {
    /// The NodePort range this is about.
    pub node_port_range: PortRange,
    /// Where that range comes from.
    #[serde(default)]
    pub node_port_basis: NodePortBasis,
    /// Ephemeral ranges per network namespace.
    pub ephemeral: Vec<EphemeralReport>,
    /// Rules that translate source addresses, and the share of connections each puts onto NodePorts.
    pub masquerade: Vec<MasqueradeReport>,
    /// Rules that are not listed, of which less can be said than of those that are.
    #[serde(default)]
    pub masquerade_omitted: u64,
    /// The same, for rules that divide connections among themselves, taken together; largest share first, then those that are
    /// not known, then those that give nothing away.
    #[serde(default)]
    pub shares: Vec<ShareReport>,
    /// Shares that are not listed: none is larger than the one listed for the same maker and protocol.
    #[serde(default)]
    pub shares_omitted: u64,
    /// What makes Services reachable at this node.
    #[serde(default)]
    pub proxies: Vec<ProxyReport>,
    /// NodePorts that are allocated, by protocol and port; those first that are served here and not in the list that was given.
    pub nodeports: Vec<NodePortReport>,
    /// How many there are; absent if no source could tell.
    #[serde(default)]
    pub nodeports_total: Option<u64>,
    /// What tells that these are all; absent likewise.
    #[serde(default)]
    pub nodeports_basis: Option<AllocatedBasis>,
    /// How many are served here that the list that was given lacks; 0 without a list.
    #[serde(default)]
    pub nodeports_not_given: u64,
    /// Live collisions.
    pub live: LiveOverlap,
    /// What was not looked at, and why.
    pub not_observed: Vec<String>,
}

/// Where the NodePort range comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePortBasis {
    /// The user gave it.
    Configured,
    /// It is what Kubernetes uses unless told otherwise.
    #[default]
    Default,
    /// That default, widened to the NodePorts that were seen outside of it.
    Observed,
    /// A proxy on this node was configured with it (Cilium's `node_config.h`).
    Proxy,
}

/// What tells which NodePorts are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllocatedBasis {
    /// Rules and tables of this node, all of which were read.
    Seen,
    /// The list that the user gave (`--node-ports`), and what this node shows besides.
    Given,
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
    /// The value of `ip_local_reserved_ports` that ends the overlap and keeps what is reserved; absent if there is none.
    #[serde(default)]
    pub reserve: Option<String>,
    /// Why it is not known.
    pub why: Option<String>,
}

/// A rule that translates source addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MasqueradeReport {
    /// Where it stands.
    #[serde(flatten)]
    pub place: RulePlace,
    /// The chains through which a packet comes to it, its own last; empty: none leads there, it does nothing.
    pub path: Vec<String>,
    /// Who made it, as far as chains and comments tell.
    pub owner: RuleOwner,
    /// What it does, in the words of `iptables`.
    pub action: String,
    /// The addresses it translates to, as written; absent with MASQUERADE.
    #[serde(default)]
    pub addresses: Option<String>,
    /// From where the new address comes.
    pub kind: SourceNatKind,
    /// The only protocol it applies to, if it is only one.
    pub protocol: Option<Protocol>,
    /// The protocols it applies to: `"all"`, `{"only": [...]}` or `{"all_but": [...]}`.
    #[serde(default)]
    pub protocols: Protocols,
    /// What else a packet must be.
    pub conditions: Vec<String>,
    /// Packets that earlier rules take out, other than by translating them.
    pub exceptions: Vec<String>,
    /// The ports it is limited to.
    pub ports: Option<PortRange>,
    /// How it chooses the new source port.
    pub choice: PortChoice,
    /// The part of the packets it takes by chance; 1 if all.
    pub probability: f64,
    /// Of the connections it translates, the share whose new source port is in the NodePort range.
    pub share: Option<f64>,
    /// Of the connections it translates, the share whose new source port is an allocated NodePort.
    pub share_allocated: Option<f64>,
    /// What these shares rest on, or why they are not known.
    pub share_why: String,
    /// Comments at the rule and on the way to it.
    pub comments: Vec<String>,
    /// Parts that are not understood.
    pub unclear: Vec<String>,
    /// Why no packet comes to it, where that is certain: it is dead, rules in front of it take every packet, or its table is
    /// dormant. Its shares are 0.
    #[serde(default)]
    pub unreached: Option<String>,
}

/// Who made a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleOwner {
    /// ip-masq-agent (also GKE's and AKS's).
    IpMasqAgent,
    /// kube-proxy.
    KubeProxy,
    /// Cilium.
    Cilium,
    /// A CNI plugin: ptp, bridge, portmap.
    Cni,
    /// Amazon's VPC CNI.
    AwsVpcCni,
    /// Calico.
    Calico,
    /// Flannel.
    Flannel,
    /// Docker.
    Docker,
    /// libvirt.
    Libvirt,
    /// Somebody else.
    Other,
}

impl RuleOwner {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::IpMasqAgent => "ip-masq-agent",
            Self::KubeProxy => "kube-proxy",
            Self::Cilium => "Cilium",
            Self::Cni => "CNI plugin",
            Self::AwsVpcCni => "AWS VPC CNI",
            Self::Calico => "Calico",
            Self::Flannel => "Flannel",
            Self::Docker => "Docker",
            Self::Libvirt => "libvirt",
            Self::Other => "somebody",
        }
    }
}

/// Rules of one chain that translate the same connections, taken together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShareReport {
    /// Where the first of them stands.
    #[serde(flatten)]
    pub place: RulePlace,
    /// Who made them.
    pub owner: RuleOwner,
    /// For which protocol this is.
    pub protocol: Protocol,
    /// How many rules.
    pub rules: u32,
    /// Of the connections they translate, the share whose new source port is in the NodePort range; absent if not known.
    pub share: Option<f64>,
    /// Likewise, the share whose new source port is an allocated NodePort.
    pub share_allocated: Option<f64>,
    /// What this rests on, or why it is not known.
    pub why: String,
}

/// Something that makes Services reachable at this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Which.
    pub proxy: ServiceProxy,
    /// Whether an answer to a source port that is an allocated NodePort gets lost.
    pub harmful: bool,
    /// Why, or why not.
    pub why: String,
}

/// An allocated NodePort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortReport {
    /// Whose packets it is for: `ip`, `ip6`, or `inet` for both, also where only the user named it.
    #[serde(default = "RuleFamily::both")]
    pub family: RuleFamily,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// Its Service, where that is written down.
    pub service: Option<String>,
    /// Who serves it; empty if it is known from the user only.
    pub proxies: Vec<ServiceProxy>,
    /// It is in the list that the user gave.
    #[serde(default)]
    pub given: bool,
}

/// Flows whose source port on leaving the node is inside the NodePort range, as conntrack shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveOverlap {
    /// Translated flows (source address or port changed by this node) now; absent if conntrack could not be read.
    pub translated: Option<u64>,
    /// Of these, with a source port inside the range.
    pub in_node_port_range: Option<u64>,
    /// Flows that the node itself opened from a port inside the range, towards others, and did not translate into it; absent if
    /// conntrack was not dumped, or the node's addresses are not known.
    #[serde(default)]
    pub own_in_node_port_range: Option<u64>,
    /// Of both, with a source port that is an allocated NodePort; absent if those are not known. With IPVS and no Cilium: of the
    /// node's own, since answers to pods have been translated back before IPVS sees them.
    #[serde(default)]
    pub colliding: Option<u64>,
    /// Of the colliding: without an answer for a second or more.
    #[serde(default)]
    pub unanswered: Option<u64>,
    /// By destination and pod, most unanswered first, then most colliding; at most 50.
    #[serde(default)]
    pub flows: Vec<LiveFlowsReport>,
    /// Further pairs that are not listed.
    #[serde(default)]
    pub flows_omitted: u64,
    /// Flows in the range that found no room to be looked at one by one: whether they collide is not known.
    #[serde(default)]
    pub not_told_apart: u64,
}

/// Flows of one pod, or of the node itself, to one destination that leave the node with a source port inside the NodePort range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFlowsReport {
    /// Protocol.
    pub protocol: Protocol,
    /// The destination's address, after DNAT.
    pub address: IpAddr,
    /// The destination's port.
    pub port: u16,
    /// Kubernetes namespace of who opened them; absent if the address belongs to no known pod.
    pub namespace: Option<String>,
    /// Pod name; absent likewise.
    pub name: Option<String>,
    /// Who opened them, before translation.
    pub source: IpAddr,
    /// It is the node itself.
    pub host: bool,
    /// Flows with a source port inside the range, translated or the node's own.
    pub in_node_port_range: u64,
    /// Of these, with an allocated NodePort; absent if those are not known.
    pub colliding: Option<u64>,
    /// Of the colliding: without an answer for a second or more.
    pub unanswered: u64,
    /// Flows of anybody to this destination whose source port is no allocated NodePort and that were answered, as of the last dump.
    #[serde(default)]
    pub others_answered: u64,
    /// SYNs that this pod repeated to this destination in the last minute; absent where TCP is not counted.
    pub syn_unanswered_1m: Option<u64>,
    /// The colliding ones singly, those without an answer first; at most 8.
    pub ports: Vec<CollidingPortReport>,
}

/// What older reports tell of.
fn translated() -> bool {
    true
}

/// A flow whose source port on leaving the node is an allocated NodePort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollidingPortReport {
    /// The port.
    pub port: u16,
    /// The node translated it to this port; if not, the node itself opened it from there.
    #[serde(default = "translated")]
    pub translated: bool,
    /// The NodePort's Service, where that is written down.
    pub service: Option<String>,
    /// An answer has come; unknown for a flow that began after the last dump.
    pub answered: Option<bool>,
    /// How long there has been none, at least; absent for one that is answered.
    pub unanswered_secs: Option<u64>,
}
