//! Facts of packet rules and Services: which rules translate source addresses, and which NodePorts are allocated.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::Protocol;
use crate::known::Known;
use crate::ports::PortRange;
use crate::protocols::Protocols;

/// Through which of the kernel's interfaces a rule was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleBackend {
    /// `x_tables` (`iptables-legacy`).
    IptablesLegacy,
    /// `nf_tables`, in a table laid out like those of `iptables-nft`.
    IptablesNft,
    /// `nf_tables`, any other table.
    Nftables,
}

impl RuleBackend {
    /// The name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::IptablesLegacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
            Self::Nftables => "nftables",
        }
    }
}

/// Whose packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleFamily {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
}

impl RuleFamily {
    /// The name that `nft` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        }
    }

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ip } else { Self::Ip6 }
    }

    /// Whether a packet can be of both.
    pub fn meets(self, other: Self) -> bool {
        self == other || self == Self::Inet || other == Self::Inet
    }

    /// The packets of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self == other { self } else { Self::Inet }
    }

    /// Each of IPv4 and IPv6 that it has.
    pub fn each(self) -> &'static [Self] {
        match self {
            Self::Ip => &[Self::Ip],
            Self::Ip6 => &[Self::Ip6],
            Self::Inet => &[Self::Ip, Self::Ip6],
        }
    }

    /// What older captures do not tell.
    pub(crate) fn both() -> Self {
        Self::Inet
    }
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RulePlace {
    /// The interface it was made through.
    pub backend: RuleBackend,
    /// Whose packets its table sees.
    pub family: RuleFamily,
    /// Its table: `nat` with iptables.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its place in the chain, the first being 1.
    pub position: u32,
}

/// A rule that translates source addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceNatRule {
    /// Where it stands.
    pub place: RulePlace,
    /// The chains through which a packet comes to it, from the one at the hook to its own; empty: none leads there, it does
    /// nothing.
    pub path: Vec<String>,
    /// The protocols it applies to: those that it and the jumps to it ask for, without those that earlier rules have taken.
    pub protocols: Protocols,
    /// What else a packet must be, in the words of `iptables`: conditions of the rule and of the jumps to it, and what is left
    /// of what earlier rules have taken (`-o eth0` behind a rule for `! -o eth0`).
    pub conditions: Vec<String>,
    /// Packets that earlier rules take out before they come here, other than by translating them.
    pub exceptions: Vec<String>,
    /// Of the packets that come here and fulfil the conditions, the part that the rule takes by chance; 1 if all. What chance
    /// keeps from the chain is an exception.
    pub probability: f64,
    /// It may let packets pass by for a reason that is told nowhere: what part it takes is not known.
    #[serde(default)]
    pub selective: bool,
    /// What is left of its packets since the rule of the same chain that translated before it.
    #[serde(default)]
    pub between: Between,
    /// What it does.
    pub target: SourceNat,
    /// Comments at the rule and at the jumps to it.
    pub comments: Vec<String>,
    /// Parts that are not understood; whether a packet comes here depends on them.
    pub unclear: Vec<String>,
    /// Why no packet comes here, where that is certain.
    #[serde(default)]
    pub unreached: Option<String>,
}

impl SourceNatRule {
    /// A rule that translates everything that comes to it; nothing leads there yet.
    pub fn new(place: RulePlace, target: SourceNat) -> Self {
        Self {
            place,
            path: Vec::new(),
            protocols: Protocols::ALL,
            conditions: Vec::new(),
            exceptions: Vec::new(),
            probability: 1.0,
            selective: false,
            between: Between::default(),
            target,
            comments: Vec::new(),
            unclear: Vec::new(),
            unreached: None,
        }
    }
}

/// What the rules between two that translate in the same chain take out of packets that are what both ask for. It is the same
/// on every way to the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Between {
    /// The part that chance leaves, by protocols.
    left: Vec<(Protocols, f64)>,
    /// Of these nobody can tell how many are left.
    unsure: Protocols,
}

/// Nothing is taken out.
impl Default for Between {
    fn default() -> Self {
        Self { left: Vec::new(), unsure: Protocols::NONE }
    }
}

impl Between {
    /// Sets of protocols that chance treats alike, at most; of the others it is not known what is left.
    pub const LIMIT: usize = 8;

    /// Chance leaves this part of the packets of these protocols.
    pub fn leave(&mut self, protocols: Protocols, part: f64) {
        if let Some((_, left)) = self.left.iter_mut().find(|(same, _)| *same == protocols) {
            *left *= part;
        } else if self.left.len() < Self::LIMIT {
            self.left.push((protocols, part));
        } else {
            self.doubt(protocols);
        }
    }

    /// Some of these are taken out, and nobody can tell how many.
    pub fn doubt(&mut self, protocols: Protocols) {
        self.unsure = self.unsure.or(protocols);
    }

    /// Whether nobody can tell how many are left of a protocol.
    pub fn is_unsure_of(&self, protocol: Protocol) -> bool {
        self.unsure.contains(protocol)
    }

    /// The part that chance leaves of a protocol.
    pub fn left_of(&self, protocol: Protocol) -> f64 {
        self.left.iter().filter(|(protocols, _)| protocols.contains(protocol)).map(|(_, left)| left).product()
    }
}

/// How a rule translates source addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceNat {
    /// From where the address comes.
    pub kind: SourceNatKind,
    /// The addresses, as written; none with MASQUERADE.
    pub addresses: Option<String>,
    /// The ports it is limited to. Absent: not limited.
    pub ports: Known<PortRange>,
    /// How it chooses among them.
    pub choice: PortChoice,
    /// `persistent`: the same client gets the same address.
    pub persistent: bool,
}

impl SourceNat {
    /// MASQUERADE without arguments.
    pub const MASQUERADE: Self = Self {
        kind: SourceNatKind::Masquerade,
        addresses: None,
        ports: Known::Absent,
        choice: PortChoice::Keep,
        persistent: false,
    };
}

/// From where the new source address comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceNatKind {
    /// From the interface.
    Masquerade,
    /// From the rule.
    Snat,
    /// Prefix for prefix.
    Netmap,
}

/// How the kernel chooses the new source port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortChoice {
    /// It keeps the port, unless it is taken or outside of the given ones.
    Keep,
    /// `--random`: a new port for every connection. (Up to Linux 4.x from a hash; the same for what is asked here.)
    Random,
    /// `--random-fully`: a new port for every connection.
    RandomFully,
}

/// What makes Services reachable at the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceProxy {
    /// kube-proxy with iptables (either backend).
    Iptables,
    /// kube-proxy with nftables.
    Nftables,
    /// kube-proxy with IPVS.
    Ipvs,
    /// Cilium's eBPF programs (GKE: Dataplane V2).
    Cilium,
}

impl ServiceProxy {
    /// The name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
            Self::Cilium => "cilium",
        }
    }

    /// How people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Iptables => "kube-proxy (iptables)",
            Self::Nftables => "kube-proxy (nftables)",
            Self::Ipvs => "kube-proxy (ipvs)",
            Self::Cilium => "Cilium (Dataplane V2)",
        }
    }
}

/// A NodePort that is allocated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodePort {
    /// Who serves it.
    pub proxy: ServiceProxy,
    /// Whose packets it is for: a Service has it for IPv4, for IPv6 or for both.
    #[serde(default = "RuleFamily::both")]
    pub family: RuleFamily,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// Namespace, name and port name of its Service, where the proxy writes them down.
    pub service: Option<String>,
}
