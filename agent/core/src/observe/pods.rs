//! Facts of pods: reservations of their addresses, their sandboxes, their network namespaces.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, NetnsInode, PodName};
use crate::known::Known;
use crate::observe::SourceId;
use crate::ports::PortSettings;
use crate::time::WallTime;

/// Who hands out a network's addresses, and hence in which shape its store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipam {
    /// host-local: a directory with one file per address.
    #[default]
    HostLocal,
    /// ipamd of the AWS VPC CNI: its checkpoint file and its introspection server.
    AwsVpcCni,
    /// Azure CNI or Azure CNS: their state files.
    AzureCni,
    /// Cilium: the state of its endpoints.
    Cilium,
}

impl Ipam {
    /// The name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostLocal => "host-local",
            Self::AwsVpcCni => "aws-vpc-cni",
            Self::AzureCni => "azure-cni",
            Self::Cilium => "cilium",
        }
    }

    /// The source that reads its stores.
    pub fn source(self) -> SourceId {
        match self {
            Self::HostLocal => SourceId::HostLocal,
            Self::AwsVpcCni => SourceId::AwsVpcCni,
            Self::AzureCni => SourceId::AzureCni,
            Self::Cilium => SourceId::Cilium,
        }
    }
}

/// A network with a store of reservations on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Path of the network's directory or file on the node.
    pub store: String,
    /// Who writes it.
    #[serde(default)]
    pub ipam: Ipam,
    /// Name of the network (`gke-pod-network`).
    pub name: String,
    /// From where addresses are drawn: one entry per range set, each a list of ranges; unknown without a readable configuration.
    pub range_sets: Known<Vec<Vec<AddressRange>>>,
    /// Its directory was read to the end; if not, what is missing proves nothing.
    pub complete: bool,
    /// Directory entries that are not reservations and were passed over (unexpected names), at most a few named.
    pub ignored: Vec<String>,
    /// Where the search for the next free address begins, by range set (host-local's `last_reserved_ip.N`).
    #[serde(default)]
    pub last_reserved: BTreeMap<u32, IpAddr>,
    /// The addresses attached to the node for pods, where the IPAM attaches them ahead of need. Absent: it does not.
    #[serde(default = "no_pool")]
    pub pool: Known<Pool>,
}

fn no_pool() -> Known<Pool> {
    Known::Absent
}

/// Addresses that an IPAM holds for pods of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// All of them; those of the network interfaces themselves do not count.
    pub total: u64,
    /// Held by pods.
    pub assigned: u64,
    /// Given back by a pod so lately that they are not handed out yet; they count as free in [`Pool::total`] less
    /// [`Pool::assigned`].
    pub cooling: u64,
    /// Per network interface, in the order of their device numbers.
    pub interfaces: Vec<PoolInterface>,
    /// Addresses come in prefixes of 16.
    pub prefixes: bool,
    /// How many the IPAM keeps ahead of need.
    pub targets: Known<WarmTargets>,
}

/// One network interface of a [`Pool`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInterface {
    /// Its id in the cloud.
    pub id: String,
    /// It is the node's first one, which cannot be given back.
    pub primary: bool,
    /// Addresses attached to it for pods.
    pub total: u64,
    /// Of these, held by pods.
    pub assigned: u64,
    /// Of those that are not, given back lately.
    pub cooling: u64,
}

/// The environment of ipamd; absent: not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WarmTargets {
    /// `WARM_ENI_TARGET`.
    pub warm_eni: Option<u32>,
    /// `WARM_IP_TARGET`.
    pub warm_ip: Option<u32>,
    /// `MINIMUM_IP_TARGET`.
    pub minimum_ip: Option<u32>,
    /// `WARM_PREFIX_TARGET`.
    pub warm_prefix: Option<u32>,
    /// `ENABLE_PREFIX_DELEGATION`.
    pub prefix_delegation: bool,
}

/// One range of a host-local range set, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRange {
    /// The subnet.
    pub subnet: IpNet,
    /// First address to use; by default the one after the network address.
    pub first: Option<IpAddr>,
    /// Last address to use; by default the one before the broadcast address.
    pub last: Option<IpAddr>,
    /// The gateway, never handed out; by default the first address of the subnet.
    pub gateway: Option<IpAddr>,
}

/// One file of a reservation directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Path of the network's directory; same as [`Network::store`].
    pub store: Arc<str>,
    /// The reserved address (the file's name).
    pub address: IpAddr,
    /// For whom. Absent: the file is empty, its writer has not finished. Unknown: it is not what host-local writes.
    pub holder: Known<Holder>,
    /// When it was last written (mtime).
    pub modified: Known<WallTime>,
    /// The pod it was reserved for, where the store says so.
    #[serde(default)]
    pub pod: Option<PodName>,
}

/// The content of a reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The sandbox's id.
    pub container: ContainerId,
    /// The interface; older host-local versions did not write it.
    pub ifname: Option<String>,
}

/// A result that libcni keeps of an ADD that succeeded as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// For which container.
    pub container: ContainerId,
    /// For which interface.
    pub ifname: String,
    /// In which network.
    pub network: String,
    /// For which pod, if the runtime said so.
    pub pod: Option<PodName>,
    /// The addresses it got.
    pub addresses: Vec<IpAddr>,
}

/// A container runtime that answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Runtime {
    /// What it calls itself (`containerd`, `cri-o`).
    pub name: String,
    /// Its version, as it says.
    pub version: String,
    /// Where it listens.
    pub socket: String,
}

/// A route of the node's own namespace to one address, through an interface whose other end is in another namespace: the
/// way to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// The address.
    pub address: IpAddr,
    /// The node's end.
    pub interface: String,
}

/// A pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id: what CNI and host-local call the container.
    pub id: ContainerId,
    /// The pod.
    pub pod: PodName,
    /// The pod's uid.
    pub uid: String,
    /// `SANDBOX_READY`.
    pub ready: bool,
    /// The pod uses the node's network namespace.
    pub host_network: bool,
    /// The pod's addresses. Absent: it has none (host network, or torn down).
    pub addresses: Known<Vec<IpAddr>>,
}

/// A live network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its inode.
    pub inode: NetnsInode,
    /// The node's own (that of pid 1).
    pub host: bool,
    /// A process in it, if there is one.
    pub pid: Option<u32>,
    /// Its addresses, without loopback.
    pub addresses: Known<Vec<IpAddr>>,
    /// From where it draws source ports.
    pub ports: Known<PortSettings>,
    /// When its sockets probe silent connections.
    #[serde(default = "not_read")]
    pub keepalive: Known<Keepalive>,
}

fn not_read() -> Known<Keepalive> {
    Known::because("not read")
}

/// When sockets of a network namespace with SO_KEEPALIVE probe a silent connection, unless they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Keepalive {
    /// `net.ipv4.tcp_keepalive_time`: seconds of silence before the first probe.
    pub time_secs: u32,
}
