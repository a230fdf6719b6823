//! The vocabulary between the sources and the ledger: facts as they arrived, stamped, never judged.
//!
//! Lists that a source reads as a whole come as a *snapshot*: [`Fact::Begin`], the items, [`Fact::End`]. A complete
//! snapshot replaces what the ledger held of that kind; an incomplete one replaces nothing. What happens meanwhile comes
//! after the end of the bracket as single facts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, NetnsInode};
use crate::known::{Known, Why};
use crate::ports::PortRange;
use crate::time::NodeTime;

mod cilium;
mod conntrack;
mod conntrack_use;
mod loss;
mod platform;
mod pods;
mod program;
mod rules;
mod source;
mod tcp;

pub use cilium::{CiliumConntrack, CiliumHairpin, CiliumMap};
pub use conntrack::{ConntrackCounter, ConntrackEntry, ConntrackTcpState, FlowKey, NoPort};
pub use conntrack_use::{ConntrackCpu, ConntrackStats, ConntrackTimeouts, ConntrackUse};
pub use loss::Loss;
pub use platform::{Cloud, Platform};
pub use pods::{
    AddressRange, Attachment, Holder, Ipam, Keepalive, Namespace, Network, PodRoute, Pool, PoolInterface, Reservation,
    Runtime, Sandbox, WarmTargets,
};
pub use program::{Program, ProgramRuns};
pub use rules::{
    Between, NodePort, PortChoice, RuleBackend, RuleFamily, RulePlace, ServiceProxy, SourceNat, SourceNatKind,
    SourceNatRule,
};
pub use source::SourceId;
pub use tcp::{Owner, Socket, SocketOwner, SocketState, SocketTimer, TcpCounter};

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

/// A kind of list that is read as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Snapshot {
    /// [`Fact::Flow`]: a dump of the conntrack table.
    Conntrack,
    /// [`Fact::Flow`]: a dump of the conntrack table's UDP entries alone.
    ConntrackUdp,
    /// [`Fact::ConntrackCounter`]: the eBPF counters of conntrack. Where a dump lies between two of them, they bracket it.
    ConntrackCounters,
    /// [`Fact::NoPort`].
    NoPorts,
    /// [`Fact::TcpCounter`]: the eBPF counters.
    TcpCounters,
    /// [`Fact::Socket`]: the socket tables of all namespaces that could be read.
    Sockets,
    /// [`Fact::Network`] and [`Fact::Reservation`] of one source: every IPAM has its own.
    Reservations,
    /// [`Fact::Attachment`]: libcni's cache.
    Attachments,
    /// [`Fact::Runtime`], [`Fact::Sandbox`] and [`Fact::Container`].
    Runtime,
    /// [`Fact::Namespace`] and [`Fact::PodRoute`].
    Namespaces,
    /// [`Fact::SourceNat`], and [`Fact::ServiceProxy`] and [`Fact::NodePort`] of proxies that work by rules.
    Rules,
    /// [`Fact::ServiceProxy`], [`Fact::NodePort`] and [`Fact::NodePortRange`] of proxies that keep tables of their own.
    Services,
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

impl From<Reservation> for Fact {
    fn from(reservation: Reservation) -> Self {
        Self::Reservation(Arc::new(reservation))
    }
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
    /// Whose sockets of the node's own network these are; inside the bracket of the sockets.
    SocketOwner(SocketOwner),
    /// Ports that somebody listens on in a namespace, sorted and each once; inside the bracket of the sockets.
    Listening {
        /// The namespace.
        inode: NetnsInode,
        /// The ports.
        ports: Vec<PortRange>,
    },
    /// A network whose pod addresses are kept in a store on this node.
    Network(Network),
    /// One reserved pod address; shared, since sources tell it again and again.
    Reservation(Arc<Reservation>),
    /// What libcni keeps of a successful ADD.
    Attachment(Attachment),
    /// A container runtime that answered.
    Runtime(Runtime),
    /// A pod sandbox the runtime knows.
    Sandbox(Sandbox),
    /// A container the runtime knows.
    Container(ContainerId),
    /// A live network namespace.
    Namespace(Namespace),
    /// A way from the node to one address in another namespace.
    PodRoute(PodRoute),
    /// `ip_local_port_range` of a namespace, as a socket of it showed it on dialling.
    DialledRange {
        /// The namespace.
        inode: NetnsInode,
        /// The range; what is reserved in it is not known this way.
        ephemeral: PortRange,
    },
    /// A rule that translates source addresses.
    SourceNat(SourceNatRule),
    /// Something makes Services reachable at this node.
    ServiceProxy(ServiceProxy),
    /// A NodePort is allocated.
    NodePort(NodePort),
    /// The range of NodePorts that a proxy of this node was configured with.
    NodePortRange(PortRange),
    /// Size and statistics of the conntrack table.
    ConntrackUse(ConntrackUse),
    /// Cilium's own conntrack map.
    CiliumConntrack(CiliumConntrack),
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

/// A source that works, in words ("tracepoint attached", "dump and events").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CoverageDetail {
    /// How it works here.
    pub how: String,
    /// What is missing all the same, if anything.
    pub degraded: Option<Why>,
    /// Nobody tells it what comes and goes: its numbers are as old as what it dumped last.
    #[serde(default)]
    pub as_of_dump: bool,
}
