//! Which NATs there are, and what each of them can do: numbers as their makers publish them.

use serde::{Deserialize, Serialize};

use crate::flow::Protocol;

/// Source ports of one NAT IP: 1024-65535.
pub const PORTS_PER_NAT_IP: u32 = 64_512;

/// Which NAT stands in front of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Google Cloud NAT.
    Gcp,
    /// AWS NAT gateway.
    Aws,
    /// Azure NAT gateway.
    AzureNatgw,
    /// Outbound rules of an Azure load balancer: what AKS sets up by itself.
    AzureLb,
    /// Masquerading by a Linux machine: the node itself, or a box that nodes share.
    Linux,
    /// None that we know: demand is shown, not judged.
    None,
}

/// How a NAT shares its ports among nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Each node has its own, whether it uses them or not.
    Reserved,
    /// Whoever comes first; a port serves any number of destinations at once, each of them once.
    PerDestination,
}

/// What a port of the NAT serves once at a time: two flows to it take two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// A destination: address and port.
    Destination,
    /// An address: flows to two ports of it cannot share a port of the NAT.
    Address,
}

/// What a NAT can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Source ports of one NAT IP, TCP and UDP each.
    pub ports_per_ip: u32,
    /// Connections of one NAT IP to one destination (address, port and protocol) at the same time.
    pub per_destination: u32,
    /// NAT IPs of one gateway, where there is a limit.
    pub max_ips: Option<u32>,
    /// Among whom.
    pub sharing: Sharing,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Gcp, Self::Aws, Self::AzureNatgw, Self::AzureLb, Self::Linux, Self::None];

    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gcp => "gcp",
            Self::Aws => "aws",
            Self::AzureNatgw => "azure-natgw",
            Self::AzureLb => "azure-lb",
            Self::Linux => "linux",
            Self::None => "none",
        }
    }

    /// What people call it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Gcp => "Cloud NAT",
            Self::Aws => "an AWS NAT gateway",
            Self::AzureNatgw => "an Azure NAT gateway",
            Self::AzureLb => "an Azure load balancer",
            Self::Linux => "Linux masquerading",
            Self::None => "no NAT",
        }
    }

    /// Addresses of the provider's own services that nodes reach without the NAT, besides private and link-local ones (such
    /// as 169.254.169.254, the metadata server of all three). Without a known NAT, all of them.
    pub const fn bypass(self) -> &'static [&'static str] {
        match self {
            // Private Google Access: restricted.googleapis.com, private.googleapis.com, and what client libraries of Google
            // connect to directly (Bigtable, Spanner, Cloud Storage, Traffic Director). Other addresses of Google cannot be told
            // from those of its customers.
            Self::Gcp => &["199.36.153.4/30", "199.36.153.8/30", "34.126.0.0/18"],
            // The platform's resolver, agent endpoint and health probes, on the host of the virtual machine.
            Self::AzureNatgw | Self::AzureLb => &["168.63.129.16/32"],
            // Endpoints of AWS have private addresses, or those of a prefix list that somebody routes past the NAT.
            Self::Aws | Self::Linux => &[],
            Self::None => &["199.36.153.4/30", "199.36.153.8/30", "34.126.0.0/18", "168.63.129.16/32"],
        }
    }

    /// Whether it translates IPv6 addresses that stand for IPv4 ones (NAT64). AWS' gateways do wherever they are routed to; Cloud NAT
    /// does for machines without an IPv4 address, where that is switched on: others have no such flows.
    pub const fn nat64(self) -> bool {
        matches!(self, Self::Gcp | Self::Aws)
    }

    /// What a port of it serves once at a time. This is what makes the demand of flows: see [`crate::model::demand::Group`].
    pub const fn port_serves(self, protocol: Protocol) -> Serves {
        match (self, protocol) {
            // azure-docs `load-balancer-outbound-connections.md`: for UDP one port for each destination IP, whatever the port
            // there, by an algorithm that is called port-restricted cone NAT. A socket that talks to several ports of an address
            // may take one port for all of them; nothing tells, so that its flows count one by one.
            (Self::AzureLb, Protocol::UDP) => Serves::Address,
            _ => Serves::Destination,
        }
    }

    /// What it can do; `None` without a NAT.
    pub const fn capacity(self) -> Option<Capacity> {
        Some(match self {
            // cloud.google.com/nat/docs/ports-and-addresses, cloud.google.com/nat/quota (300 manual or automatic IPs).
            Self::Gcp => Capacity {
                ports_per_ip: PORTS_PER_NAT_IP,
                per_destination: PORTS_PER_NAT_IP,
                max_ips: Some(300),
                sharing: Sharing::Reserved,
            },
            // Amazon VPC user guide, "NAT gateway basics": 55,000 per IPv4 address, one primary and seven secondary ones.
            Self::Aws => Capacity {
                ports_per_ip: PORTS_PER_NAT_IP,
                per_destination: 55_000,
                max_ips: Some(8),
                sharing: Sharing::PerDestination,
            },
            // azure-docs `nat-gateway-resource.md`: 64,512 per IP, 50,000 at the same time to one destination, 16 IPs.
            Self::AzureNatgw => Capacity {
                ports_per_ip: PORTS_PER_NAT_IP,
                per_destination: 50_000,
                max_ips: Some(16),
                sharing: Sharing::PerDestination,
            },
            // azure-docs `load-balancer-outbound-connections.md`: 64,000 per frontend IP; AKS manages up to 100 of them.
            Self::AzureLb => Capacity {
                ports_per_ip: 64_000,
                per_destination: 64_000,
                max_ips: Some(100),
                sharing: Sharing::Reserved,
            },
            // net/netfilter/nf_nat_core.c: 1024-65535 for source ports from 1024 on.
            Self::Linux => Capacity {
                ports_per_ip: PORTS_PER_NAT_IP,
                per_destination: PORTS_PER_NAT_IP,
                max_ips: None,
                sharing: Sharing::PerDestination,
            },
            Self::None => return None,
        })
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
