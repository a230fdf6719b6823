//! The vocabulary between the sources and the ledger: facts as they arrived, stamped, never judged.
//!
//! Lists that a source reads as a whole come as a *snapshot*: [`Fact::Begin`], the items, [`Fact::End`]. A complete
//! snapshot replaces what the ledger held of that kind; an incomplete one replaces nothing. What happens meanwhile comes
//! after the end of the bracket as single facts.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::flow::{Destination, Endpoint, Protocol};
use crate::ids::{ContainerId, NetnsInode, PodName};
use crate::known::{Known, Why};
use crate::ports::{PortRange, PortSettings};
use crate::time::{NodeTime, WallTime};

/// A fact, when it was read and by whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// When it was read.
    pub at: NodeTime,
    /// Who read it.
    pub source: SourceId,
    /// What was read.
    pub fact: Fact,
}

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
    /// Network namespaces: addresses and port settings.
    Namespaces,
    /// host-local's reservation directories and the CNI configuration.
    HostLocal,
    /// The container runtime over its CRI socket.
    Cri,
    /// What machine this is: name, kernel, cloud.
    Platform,
}

impl SourceId {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 8] = [
        Self::Platform,
        Self::Tcp,
        Self::Conntrack,
        Self::Sockets,
        Self::ConntrackUse,
        Self::Namespaces,
        Self::HostLocal,
        Self::Cri,
    ];

    /// The name in JSON, metrics and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Conntrack => "conntrack",
            Self::Sockets => "sockets",
            Self::ConntrackUse => "conntrack-use",
            Self::Namespaces => "namespaces",
            Self::HostLocal => "host-local",
            Self::Cri => "cri",
            Self::Platform => "platform",
        }
    }
}

impl std::fmt::Display for SourceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A kind of list that is read as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Snapshot {
    /// [`Fact::Flow`]: a dump of the conntrack table.
    Conntrack,
    /// [`Fact::ConntrackCounter`]: the eBPF counters of conntrack. Where a dump lies between two of them, they bracket it.
    ConntrackCounters,
    /// [`Fact::NoPort`].
    NoPorts,
    /// [`Fact::TcpCounter`]: the eBPF counters.
    TcpCounters,
    /// [`Fact::Socket`]: the socket tables of all namespaces that could be read.
    Sockets,
    /// [`Fact::Network`] and [`Fact::Reservation`].
    Reservations,
    /// [`Fact::Sandbox`] and [`Fact::Container`].
    Runtime,
    /// [`Fact::Namespace`].
    Namespaces,
}

/// How the reading of a snapshot ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All there is was read.
    Complete,
    /// The items are true, but others may be missing, because … What is missing from it proves nothing.
    Partial(Why),
    /// Nothing could be read, because …; the items, if any, are not to be used.
    Failed(Why),
}

/// One thing that was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A snapshot begins; it was read after this moment.
    Begin(Snapshot),
    /// A snapshot ends; it was read before this moment.
    End {
        /// Which.
        snapshot: Snapshot,
        /// How.
        outcome: Outcome,
    },
    /// A conntrack entry: inside a bracket as dumped, outside one as a NEW event.
    Flow(ConntrackEntry),
    /// A conntrack entry is gone (DESTROY event).
    FlowEnded(ConntrackEntry),
    /// Entries that went into the conntrack table and left it, from one source address to one destination.
    ConntrackCounter(ConntrackCounter),
    /// New connections from one source address to one destination that found no port on this node.
    NoPort(NoPort),
    /// Connects and closes from one source address to one destination.
    TcpCounter(TcpCounter),
    /// One TCP socket that is not listening.
    Socket(Socket),
    /// A network whose pod addresses are kept in a store on this node.
    Network(Network),
    /// One reserved pod address.
    Reservation(Reservation),
    /// A pod sandbox the runtime knows.
    Sandbox(Sandbox),
    /// A container the runtime knows.
    Container(ContainerId),
    /// A live network namespace.
    Namespace(Namespace),
    /// `ip_local_port_range` of a namespace, as a socket of it showed it on dialling.
    DialledRange {
        /// The namespace.
        inode: NetnsInode,
        /// The range; what is reserved in it is not known this way.
        ephemeral: PortRange,
    },
    /// Size and statistics of the conntrack table.
    ConntrackUse(ConntrackUse),
    /// The conntrack time-outs in force.
    ConntrackTimeouts(ConntrackTimeouts),
    /// What machine this is.
    Platform(Platform),
    /// An eBPF program of a source.
    Program(Program),
    /// What a source can do here.
    Coverage(Known<CoverageDetail>),
    /// Something was lost, in total since the source started; the source repairs it where it can.
    Lost {
        /// What.
        what: Loss,
        /// How many, since start.
        total: u64,
    },
}

/// An eBPF program, and what the kernel says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name, in the object and in `bpftool prog`.
    pub name: String,
    /// The tracepoint or function.
    pub hook: String,
    /// What cannot be told without it.
    pub lost_without: String,
    /// How it ran since it was attached; unknown if it is not attached, because …
    pub runs: Known<ProgramRuns>,
}

/// How a program ran (`bpf_prog_info`, as `/proc/self/fdinfo` shows it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProgramRuns {
    /// Runs while the kernel counted them: with `kernel.bpf_stats_enabled` or `BPF_ENABLE_STATS`, else it stands still.
    pub count: u64,
    /// Nanoseconds they took, without the way to the program.
    pub time_ns: u64,
    /// Events it did not see because it was running already on that CPU; absent before Linux 5.12.
    pub missed: Option<u64>,
}

/// A source that works, in words ("tracepoint attached", "dump and events").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CoverageDetail {
    /// How it works here.
    pub how: String,
    /// What is missing all the same, if anything.
    pub degraded: Option<Why>,
}

/// Things that can be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Connects whose destination found no room in the eBPF map.
    TcpMapFull,
    /// Kernel memory reads that failed inside an eBPF program.
    TcpReadFailed,
    /// TCP events that came while the program was counting another one on the same CPU (since Linux 6.2): the kernel skips
    /// them. The next socket table makes up for them.
    TcpMissed,
    /// conntrack event overruns (ENOBUFS or dropped messages).
    ConntrackOverrun,
    /// Netlink messages that could not be understood.
    ConntrackMalformed,
    /// Conntrack entries whose destination found no room in the eBPF map.
    ConntrackMapFull,
    /// Kernel memory reads that failed inside an eBPF program on conntrack.
    ConntrackReadFailed,
    /// Runs of the eBPF programs on conntrack that the kernel left out; a comparison with the table mends the counts.
    ConntrackMissed,
    /// Flows that found no room in the ledger.
    LedgerFlowsFull,
}

impl Loss {
    /// The name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpMapFull => "tcp_map_full",
            Self::TcpReadFailed => "tcp_read_failed",
            Self::TcpMissed => "tcp_missed",
            Self::ConntrackOverrun => "conntrack_overrun",
            Self::ConntrackMalformed => "conntrack_malformed",
            Self::ConntrackMapFull => "conntrack_map_full",
            Self::ConntrackReadFailed => "conntrack_read_failed",
            Self::ConntrackMissed => "conntrack_missed",
            Self::LedgerFlowsFull => "ledger_flows_full",
        }
    }
}

/// What identifies a conntrack entry, together with [`ConntrackEntry::id`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FlowKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// conntrack zone (0 unless somebody uses zones).
    pub zone: u16,
    /// Original source: who opened it, before any translation. The port of an ICMP flow is its identifier.
    pub source: Endpoint,
    /// Original destination: what the opener dialled (a Service's address, say).
    pub dialled: Endpoint,
}

/// A conntrack entry as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackEntry {
    /// Who and where to.
    pub key: FlowKey,
    /// `CTA_ID`: tells a reused tuple from the entry that had it before; 0 where the kernel gave none.
    pub id: u32,
    /// The real peer after DNAT (source of the reply tuple).
    pub destination: Endpoint,
    /// What the peer sees (destination of the reply tuple): source address and port after this node's SNAT.
    pub translated: Endpoint,
    /// `IPS_SEEN_REPLY`: an answer has come.
    pub replied: bool,
    /// `IPS_ASSURED`: not evicted early; for UDP, a stream with the longer time-out.
    pub assured: bool,
    /// TCP state, where the kernel gave one.
    pub tcp: Option<ConntrackTcpState>,
    /// Seconds until the kernel forgets it, where it said so (not in NEW events of some kernels).
    pub remaining_secs: Option<u32>,
}

/// `enum tcp_conntrack` of `linux/netfilter/nf_conntrack_tcp.h` (uapi, stable).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConntrackTcpState {
    /// 0
    None,
    /// 1: the first SYN went out.
    SynSent,
    /// 2
    SynRecv,
    /// 3
    Established,
    /// 4
    FinWait,
    /// 5
    CloseWait,
    /// 6
    LastAck,
    /// 7
    TimeWait,
    /// 8: reset.
    Close,
    /// 9: simultaneous open (`TCP_CONNTRACK_LISTEN` reused).
    SynSent2,
}

impl ConntrackTcpState {
    /// From the kernel's number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::SynSent,
            2 => Self::SynRecv,
            3 => Self::Established,
            4 => Self::FinWait,
            5 => Self::CloseWait,
            6 => Self::LastAck,
            7 => Self::TimeWait,
            8 => Self::Close,
            9 => Self::SynSent2,
            _ => return None,
        })
    }
}

/// Counters of conntrack entries since [`ConntrackCounter::born`]; every other one only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCounter {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The real peer, after DNAT.
    pub destination: Endpoint,
    /// Who opened them, before any translation.
    pub source: IpAddr,
    /// The source address that the peer sees.
    pub translated: IpAddr,
    /// When counting of this pair began, on some clock: another value tells that it began anew, from zero.
    pub born: u64,
    /// Entries that went into the table.
    pub inserted: u64,
    /// TCP entries that left it from TIME_WAIT.
    pub ended_time_wait: u64,
    /// TCP entries that left it after a reset.
    pub ended_reset: u64,
    /// TCP entries that left it without ever an answer.
    pub ended_unanswered: u64,
    /// All others that left it.
    pub ended_other: u64,
    /// Of those inserted: with a source port that was translated into the NodePort range.
    pub node_port_inserted: u64,
    /// Of those that left: likewise.
    pub node_port_ended: u64,
}

/// Packets of new connections that the kernel dropped since it found no port to translate their source to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoPort {
    /// Where they were to go, after DNAT.
    pub destination: Destination,
    /// Who sent them, before any translation.
    pub source: IpAddr,
    /// How many since counting began; a TCP connect sends its SYN several times. A smaller number than before: it began anew.
    pub dropped: u64,
}

/// Counters since the eBPF programs were attached, or since the pair was seen again after a long silence; they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpCounter {
    /// What the socket dialled (before the node's DNAT).
    pub destination: Endpoint,
    /// The socket's own address.
    pub source: IpAddr,
    /// Connects begun.
    pub attempted: u64,
    /// Connects that were answered.
    pub opened: u64,
    /// Established connections that ended by FIN, from either side.
    pub closed: u64,
    /// Established connections that ended by RST or abort.
    pub reset: u64,
    /// Connects that were refused (ECONNREFUSED): something answered.
    pub refused: u64,
    /// Connects that nothing answered in time (ETIMEDOUT).
    pub timed_out: u64,
    /// Connects that ended with another error: no route, prohibited.
    pub unreachable: u64,
    /// Connects that the application ended before there was an answer.
    pub given_up: u64,
    /// Connects that found no local port.
    pub no_local_port: u64,
    /// SYNs sent again because no answer came.
    pub syn_retransmitted: u64,
}

/// One socket of a socket table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// In which network namespace.
    pub netns: NetnsInode,
    /// Own end.
    pub source: Endpoint,
    /// Other end.
    pub destination: Endpoint,
    /// Its state.
    pub state: SocketState,
    /// Somebody listens on the own port in that namespace: the connection came in, it was not opened here.
    pub accepted: bool,
}

/// TCP socket states, as far as they matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketState {
    /// SYN_SENT.
    Connecting,
    /// ESTABLISHED and the closing states that still own the connection.
    Open,
    /// TIME_WAIT, with what the kernel says is left of it.
    TimeWait {
        /// Milliseconds left.
        remaining_millis: u32,
    },
}

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
}

/// How full the conntrack table of the agent's network namespace is. Counters are since boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackUse {
    /// Entries now (`nf_conntrack_count`).
    pub entries: Known<u64>,
    /// Entries at most (`nf_conntrack_max`).
    pub max: Known<u64>,
    /// Statistics summed over CPUs.
    pub stats: Known<ConntrackStats>,
}

/// `/proc/net/stat/nf_conntrack`, summed over CPUs (each is a 32-bit counter in the kernel and wraps).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConntrackStats {
    /// Entries that could not be inserted (no free tuple, chain too long).
    pub insert_failed: u64,
    /// Packets dropped (table full, or insert failed).
    pub drop: u64,
    /// Entries evicted to make room.
    pub early_drop: u64,
}

/// conntrack time-outs in force (`/proc/sys/net/netfilter/nf_conntrack_*_timeout*`), in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackTimeouts {
    /// `nf_conntrack_tcp_timeout_established`.
    pub tcp_established: u32,
    /// `nf_conntrack_tcp_timeout_unacknowledged`: an established connection with data under way.
    pub tcp_unacknowledged: u32,
    /// `nf_conntrack_tcp_timeout_max_retrans`: an established connection that retransmits.
    pub tcp_max_retrans: u32,
    /// `nf_conntrack_tcp_timeout_time_wait`.
    pub tcp_time_wait: u32,
    /// `nf_conntrack_tcp_timeout_close`.
    pub tcp_close: u32,
    /// `nf_conntrack_udp_timeout`.
    pub udp: u32,
    /// `nf_conntrack_udp_timeout_stream`.
    pub udp_stream: u32,
    /// `nf_conntrack_icmp_timeout`.
    pub icmp: u32,
}

impl Default for ConntrackTimeouts {
    /// The kernel's defaults since 4.18.
    fn default() -> Self {
        Self {
            tcp_established: 432_000,
            tcp_unacknowledged: 300,
            tcp_max_retrans: 300,
            tcp_time_wait: 120,
            tcp_close: 10,
            udp: 30,
            udp_stream: 120,
            icmp: 30,
        }
    }
}

/// What machine this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The node's name.
    pub node: String,
    /// Kernel release.
    pub kernel: String,
    /// The cloud it runs in, recognised from DMI.
    pub cloud: Known<Cloud>,
}

/// Clouds that are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cloud {
    /// Google Compute Engine.
    Gcp,
    /// Amazon EC2.
    Aws,
    /// Microsoft Azure.
    Azure,
}
