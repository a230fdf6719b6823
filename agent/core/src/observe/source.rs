//! Where facts come from.

use serde::{Deserialize, Serialize};

/// The sources there are; one name in code, JSON and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceId {
    /// eBPF counters of TCP connects and closes, all network namespaces.
    Tcp,
    /// conntrack entries over netlink, the agent's own network namespace.
    Conntrack,
    /// Socket tables of every network namespace (`/proc/<pid>/net/tcp`, `tcp6`).
    Sockets,
    /// Size and statistics of the conntrack table.
    ConntrackUse,
    /// Cilium's own conntrack map, pinned on the bpffs (GKE: Dataplane V2).
    CiliumConntrack,
    /// Network namespaces: addresses and port settings.
    Namespaces,
    /// host-local's reservation directories and the CNI configuration.
    HostLocal,
    /// The AWS VPC CNI's checkpoint file and introspection server.
    AwsVpcCni,
    /// The state files of Azure CNI and Azure CNS.
    AzureCni,
    /// The state of Cilium's endpoints.
    Cilium,
    /// libcni's cache of results.
    CniCache,
    /// The container runtime over its CRI socket.
    Cri,
    /// Rules that translate source addresses or make NodePorts: iptables and nftables.
    Rules,
    /// Services in tables of their own: IPVS, Cilium's map.
    Services,
    /// What machine this is: name, kernel, cloud.
    Platform,
    /// Files that somebody has named to say what the NAT is: the configuration, what tools of a cloud printed.
    NatFiles,
}

impl SourceId {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 16] = [
        Self::Platform,
        Self::NatFiles,
        Self::Tcp,
        Self::Conntrack,
        Self::Sockets,
        Self::ConntrackUse,
        Self::CiliumConntrack,
        Self::Namespaces,
        Self::HostLocal,
        Self::AwsVpcCni,
        Self::AzureCni,
        Self::Cilium,
        Self::CniCache,
        Self::Cri,
        Self::Rules,
        Self::Services,
    ];

    /// The name in JSON, metrics and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Conntrack => "conntrack",
            Self::Sockets => "sockets",
            Self::ConntrackUse => "conntrack-use",
            Self::CiliumConntrack => "cilium-conntrack",
            Self::Namespaces => "namespaces",
            Self::HostLocal => "host-local",
            Self::AwsVpcCni => "aws-vpc-cni",
            Self::AzureCni => "azure-cni",
            Self::Cilium => "cilium",
            Self::CniCache => "cni-cache",
            Self::Cri => "cri",
            Self::Rules => "rules",
            Self::Services => "services",
            Self::Platform => "platform",
            Self::NatFiles => "nat-files",
        }
    }
}

impl std::fmt::Display for SourceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
