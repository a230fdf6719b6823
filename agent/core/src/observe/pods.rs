//! Facts of pods: reservations of their addresses, their sandboxes, their network namespaces.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, NetnsInode, PodName};
use crate::known::Known;
use crate::ports::PortSettings;
use crate::time::WallTime;

/// A network with a store of reservations on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Path of the network's directory on the node.
    pub store: String,
    /// Name of the network (`gke-pod-network`).
    pub name: String,
    /// From where addresses are drawn: one entry per range set, each a list of ranges; unknown without a readable configuration.
    pub range_sets: Known<Vec<Vec<AddressRange>>>,
    /// Its directory was read to the end; if not, what is missing proves nothing.
    pub complete: bool,
    /// Directory entries that are not reservations and were passed over (unexpected names), at most a few named.
    pub ignored: Vec<String>,
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
    pub store: String,
    /// The reserved address (the file's name).
    pub address: IpAddr,
    /// For whom. Absent: the file is empty, its writer has not finished. Unknown: it is not what host-local writes.
    pub holder: Known<Holder>,
    /// When it was last written (mtime).
    pub modified: Known<WallTime>,
}

/// The content of a reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The sandbox's id.
    pub container: ContainerId,
    /// The interface; older host-local versions did not write it.
    pub ifname: Option<String>,
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
