//! All we hold true now, and what we know we missed.
//!
//! [`Ledger::apply`] is the only mutation. Its laws (proved in `tests/laws.rs`):
//!
//! 1. a complete snapshot replaces what was held of its kind; the order of its items does not matter;
//! 2. an incomplete snapshot removes nothing: what it does not show proves nothing;
//! 3. applying the same fact twice changes nothing the second time;
//! 4. events that follow a snapshot are applied to it, so that nothing is missed between a dump and its events.
//!
//! The ledger never judges: what a flow or a reservation *means* is the model's to say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::DemandHistory;
use crate::known::{Known, Why};
use crate::observe::{
    CiliumConntrack, ConntrackStats, ConntrackTimeouts, ConntrackUse, CoverageDetail, Fact, Loss, Observation, Outcome,
    Platform, Program, Snapshot, SourceId,
};
use crate::ports::PortRange;
use crate::time::NodeTime;

mod attachments;
mod conntrack;
mod failed_inserts;
mod no_port;
mod occupants;
mod pairs;
mod reservations;
mod services;
mod tcp;

pub use attachments::Attachments;
use conntrack::Scope;
pub use conntrack::{
    Census, Cohort, CohortState, Cohorts, Conntrack, DistinctSources, Drift, EntryState, HAIRPIN_SILENT_SECS, Hairpin,
    HairpinKey, Hairpins, Most, NodePortFlow, NodePortFlows, SILENCE_SECS, SourceFilter,
};
pub use failed_inserts::FailedInserts;
pub use no_port::NoPorts;
pub use occupants::{NamespaceRound, Occupants, RuntimeRound};
pub use pairs::Pair;
pub use reservations::{HeldReservation, Reservations};
pub use services::Services;
pub use tcp::{Failures, KeepaliveTally, Spans, TableTally, TcpConnections, TcpTally, Uncertain};

/// What an entry of the conntrack table belongs to while it is read.
const DUMPS: [Snapshot; 2] = [Snapshot::Conntrack, Snapshot::ConntrackUdp];

/// Bounds of the ledger's memory, and what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Conntrack entries told apart at most; more are counted as [`Loss::LedgerFlowsFull`]. Some 20 bytes each, and some 190
    /// for each pair of destination and source.
    pub max_flows: usize,
    /// How long ended flows and past counter values are remembered: the longest hold time of the NAT, and a margin.
    pub remember: Duration,
    /// The NodePort range: translated source ports inside it are counted.
    pub node_ports: PortRange,
}

impl Default for LedgerLimits {
    fn default() -> Self {
        Self { max_flows: 1 << 19, remember: Duration::from_secs(150), node_ports: PortRange::NODE_PORTS }
    }
}

/// When and how the last snapshot of a kind was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bracket {
    /// It was read after this moment …
    pub begin: NodeTime,
    /// … and before this one.
    pub end: NodeTime,
    /// How it ended.
    pub outcome: Outcome,
}

/// All we hold true now. Readers get it by reference; only [`Ledger::apply`] changes it.
#[derive(Debug)]
pub struct Ledger {
    conntrack: Conntrack,
    no_ports: NoPorts,
    tcp: TcpConnections,
    occupants: Occupants,
    reservations: Reservations,
    rules: Services,
    services: Services,
    attachments: Attachments,
    conntrack_use: Option<ConntrackUse>,
    /// The first statistics there were.
    conntrack_began: Option<ConntrackStats>,
    conntrack_filling: DemandHistory,
    failed_inserts: FailedInserts,
    cilium: Option<CiliumConntrack>,
    /// Entries left behind when it was first read whole.
    cilium_began: Option<u64>,
    timeouts: Option<ConntrackTimeouts>,
    platform: Option<Platform>,
    coverage: BTreeMap<SourceId, Known<CoverageDetail>>,
    programs: BTreeMap<String, Program>,
    lost: BTreeMap<Loss, u64>,
    open: BTreeMap<(Snapshot, SourceId), NodeTime>,
    brackets: BTreeMap<(Snapshot, SourceId), Bracket>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(limits: LedgerLimits) -> Self {
        Self {
            conntrack: Conntrack::new(limits),
            no_ports: NoPorts::new(limits.remember),
            tcp: TcpConnections::new(limits.remember),
            occupants: Occupants::default(),
            reservations: Reservations::default(),
            rules: Services::default(),
            services: Services::default(),
            attachments: Attachments::default(),
            conntrack_use: None,
            conntrack_began: None,
            conntrack_filling: DemandHistory::default(),
            failed_inserts: FailedInserts::default(),
            cilium: None,
            cilium_began: None,
            timeouts: None,
            platform: None,
            coverage: BTreeMap::new(),
            programs: BTreeMap::new(),
            lost: BTreeMap::new(),
            open: BTreeMap::new(),
            brackets: BTreeMap::new(),
        }
    }

    /// Tells the source ports of flows apart, for a NAT with endpoint-independent mapping: 8 KiB more for each address.
    #[must_use]
    pub fn telling_sources_apart(mut self, filter: SourceFilter) -> Self {
        self.conntrack.tell_sources_apart(Some(filter));
        self
    }

    /// The NAT has other settings from now on. What was forgotten already stays so.
    pub fn remember_for(&mut self, remember: Duration, filter: Option<SourceFilter>) {
        self.conntrack.remember_for(remember);
        self.conntrack.tell_sources_apart(filter);
        self.no_ports.remember_for(remember);
        self.tcp.remember_for(remember);
    }

    /// Takes in one fact.
    pub fn apply(&mut self, observation: Observation) {
        let Observation { at, source, fact } = observation;
        match fact {
            Fact::Begin(snapshot) => self.begin(snapshot, source, at),
            Fact::End { snapshot, outcome } => self.end(snapshot, source, at, outcome),
            Fact::Flow(entry) if DUMPS.iter().any(|dump| self.open.contains_key(&(*dump, source))) => {
                self.conntrack.dumped(&entry, at, self.timeouts());
            }
            Fact::Flow(entry) => self.conntrack.begun(&entry, at),
            Fact::FlowEnded(entry) => self.conntrack.ended(&entry, at, self.timeouts()),
            Fact::ConntrackCounter(counter) => self.conntrack.counter(&counter, at, self.timeouts()),
            Fact::NoPort(no_port) => self.no_ports.counter(no_port),
            Fact::TcpCounter(counter) => self.tcp.counter(counter, at),
            Fact::Socket(socket) => self.tcp.socket(socket, at),
            Fact::SocketOwner(owner) => self.tcp.socket_owner(owner),
            Fact::Listening { inode, ports } => self.tcp.listening(inode, ports),
            Fact::Network(network) => self.reservations.network(source, network),
            Fact::Reservation(reservation) => self.reservations.reservation(source, reservation, at),
            Fact::Attachment(attachment) => self.attachments.attachment(attachment),
            Fact::Runtime(runtime) => self.occupants.answered(runtime),
            Fact::Sandbox(sandbox) => self.occupants.sandbox(sandbox),
            Fact::Container(id) => self.occupants.container(id),
            Fact::Namespace(namespace) => self.occupants.namespace(namespace),
            Fact::PodRoute(route) => self.occupants.route(route),
            Fact::DialledRange { inode, ephemeral } => self.occupants.dialled_range(inode, ephemeral),
            Fact::SourceNat(rule) => self.services_of(source).shown_rule(rule),
            Fact::ServiceProxy(proxy) => self.services_of(source).shown_proxy(proxy),
            Fact::NodePort(node_port) => self.services_of(source).shown_node_port(node_port),
            Fact::NodePortRange(range) => self.services_of(source).shown_range(range),
            Fact::ConntrackUse(used) => self.conntrack_used(used, at),
            Fact::CiliumConntrack(read) => {
                self.cilium_began = self.cilium_began.or_else(|| read.is_whole().then(|| read.left_behind()));
                self.cilium = Some(read);
            }
            Fact::ConntrackTimeouts(timeouts) => self.timeouts = Some(timeouts),
            Fact::Platform(platform) => self.platform = Some(platform),
            Fact::Program(program) => {
                self.programs.insert(program.name.clone(), program);
            }
            Fact::Coverage(coverage) => {
                self.coverage.insert(source, coverage);
            }
            // Totals of a source since its start: the largest is the newest, whatever order they come in.
            Fact::Lost { what, total } => {
                let held = self.lost.entry(what).or_default();
                *held = total.max(*held);
            }
        }
    }

    fn conntrack_used(&mut self, used: ConntrackUse, at: NodeTime) {
        if let Some(entries) = used.entries.present() {
            // The kernel's own limit has 31 bits.
            self.conntrack_filling.record(at, u32::try_from(*entries).unwrap_or(u32::MAX));
        }
        self.failed_inserts.note(used.stats.present(), at);
        self.conntrack_began = self.conntrack_began.or(used.stats.present().copied());
        self.conntrack_use = Some(used);
    }

    fn begin(&mut self, snapshot: Snapshot, source: SourceId, at: NodeTime) {
        self.open.insert((snapshot, source), at);
        match snapshot {
            Snapshot::Conntrack => self.conntrack.begin_dump(Scope::Everything),
            Snapshot::ConntrackUdp => self.conntrack.begin_dump(Scope::Udp),
            Snapshot::ConntrackCounters => self.conntrack.begin_counters(),
            Snapshot::NoPorts => self.no_ports.begin(),
            Snapshot::TcpCounters => self.tcp.begin_counters(),
            Snapshot::Sockets => self.tcp.begin_sockets(),
            Snapshot::Reservations => self.reservations.begin(source),
            Snapshot::Attachments => self.attachments.begin(),
            Snapshot::Runtime => self.occupants.begin_runtime(),
            Snapshot::Namespaces => self.occupants.begin_namespaces(),
            Snapshot::Rules => self.rules.begin(),
            Snapshot::Services => self.services.begin(),
        }
    }

    fn end(&mut self, snapshot: Snapshot, source: SourceId, at: NodeTime, outcome: Outcome) {
        // An end without a beginning (a torn capture) closes nothing.
        let Some(begin) = self.open.remove(&(snapshot, source)) else { return };
        match snapshot {
            Snapshot::Conntrack => {
                self.conntrack.end_dump(Scope::Everything, at, &outcome, self.timeouts());
                self.note_sockets(at);
            }
            Snapshot::ConntrackUdp => self.conntrack.end_dump(Scope::Udp, at, &outcome, self.timeouts()),
            Snapshot::ConntrackCounters => self.conntrack.end_counters(at, &outcome),
            Snapshot::NoPorts => self.no_ports.end(at, &outcome),
            Snapshot::TcpCounters => {
                self.tcp.end_counters(begin, at, &outcome);
                self.note_sockets(at);
            }
            Snapshot::Sockets => {
                self.tcp.end_sockets(begin, at, &outcome);
                self.note_sockets(at);
            }
            Snapshot::Reservations => self.reservations.end(source, &outcome),
            Snapshot::Attachments => self.attachments.end(&outcome),
            Snapshot::Runtime => self.occupants.end_runtime(begin, outcome.clone()),
            Snapshot::Namespaces => {
                self.occupants.end_namespaces(begin, outcome.clone());
                self.conntrack.own_addresses(self.occupants.host_addresses());
            }
            Snapshot::Rules => self.rules.end(&outcome),
            Snapshot::Services => self.services.end(&outcome),
        }
        self.brackets.insert((snapshot, source), Bracket { begin, end: at, outcome });
    }

    /// Joins entries with sockets, as soon as both are known.
    fn note_sockets(&mut self, at: NodeTime) {
        let tcp = &self.tcp;
        self.conntrack.note_sockets(at, |dialled, source, dumped| tcp.open_at(dialled, source, dumped, at));
    }

    /// The same facts come in two kinds of snapshots: which it is, the source tells.
    fn services_of(&mut self, source: SourceId) -> &mut Services {
        if source == SourceId::Services { &mut self.services } else { &mut self.rules }
    }

    fn timeouts(&self) -> ConntrackTimeouts {
        self.timeouts.unwrap_or_default()
    }

    /// The conntrack table, per destination and source.
    pub fn conntrack(&self) -> &Conntrack {
        &self.conntrack
    }

    /// New connections that found no port on this node, or were dropped by a rule behind the translation of their source.
    pub fn no_ports(&self) -> &NoPorts {
        &self.no_ports
    }

    /// TCP connections as the sockets' side sees them.
    pub fn tcp(&self) -> &TcpConnections {
        &self.tcp
    }

    /// What is alive: sandboxes, containers, network namespaces.
    pub fn occupants(&self) -> &Occupants {
        &self.occupants
    }

    /// What is reserved.
    pub fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// What the packet rules show: translation of source addresses, NodePorts of proxies that work by rules.
    pub fn rules(&self) -> &Services {
        &self.rules
    }

    /// What tables of their own show: NodePorts of IPVS and of Cilium.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// What libcni remembers.
    pub fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// Size of the conntrack table, once read.
    pub fn conntrack_use(&self) -> Option<&ConntrackUse> {
        self.conntrack_use.as_ref()
    }

    /// What conntrack refused, dropped and evicted since it was first read; unknown if it could not be read.
    pub fn conntrack_lately(&self) -> Option<ConntrackStats> {
        let now = self.conntrack_use.as_ref()?.stats.present()?;
        Some(now.since(self.conntrack_began.as_ref()?))
    }

    /// Entries that conntrack could not insert lately.
    pub fn failed_inserts(&self) -> &FailedInserts {
        &self.failed_inserts
    }

    /// How many entries the conntrack table had over the last hour.
    pub fn conntrack_filling(&self) -> &DemandHistory {
        &self.conntrack_filling
    }

    /// Cilium's own conntrack map, once read, and how many entries were left behind in it when it was first read whole.
    pub fn cilium_conntrack(&self) -> Option<(&CiliumConntrack, Option<u64>)> {
        self.cilium.as_ref().map(|read| (read, self.cilium_began))
    }

    /// The conntrack time-outs in force, once read.
    pub fn conntrack_timeouts(&self) -> Option<&ConntrackTimeouts> {
        self.timeouts.as_ref()
    }

    /// What machine this is, once read.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// What each source said last about itself.
    pub fn coverage(&self) -> &BTreeMap<SourceId, Known<CoverageDetail>> {
        &self.coverage
    }

    /// The eBPF programs, by name.
    pub fn programs(&self) -> &BTreeMap<String, Program> {
        &self.programs
    }

    /// Whether a source works, if it has said so.
    pub fn works(&self, source: SourceId) -> bool {
        matches!(self.coverage.get(&source), Some(Known::Present(_)))
    }

    /// Whether a source has shown all there is, be it nothing.
    pub fn has_read(&self, source: SourceId) -> bool {
        match self.coverage.get(&source) {
            Some(Known::Present(detail)) => detail.degraded.is_none(),
            Some(Known::Absent) => true,
            Some(Known::Unknown(_)) | None => false,
        }
    }

    /// The last finished snapshot of a kind that only one source reads.
    pub fn bracket(&self, snapshot: Snapshot) -> Option<&Bracket> {
        self.brackets.iter().find(|((kind, _), _)| *kind == snapshot).map(|(_, bracket)| bracket)
    }

    /// The last finished snapshot of a kind that a source read.
    pub fn bracket_of(&self, source: SourceId, snapshot: Snapshot) -> Option<&Bracket> {
        self.brackets.get(&(snapshot, source))
    }

    /// What was lost, in total since the sources started.
    pub fn lost(&self) -> BTreeMap<Loss, u64> {
        let mut lost = self.lost.clone();
        if self.conntrack.refused() > 0 {
            lost.insert(Loss::LedgerFlowsFull, self.conntrack.refused());
        }
        lost
    }

    /// Why conntrack cannot be relied on for flows; `None` if a dump was read to its end and the source works.
    pub fn conntrack_doubt(&self) -> Option<Why> {
        match (self.coverage.get(&SourceId::Conntrack), self.bracket(Snapshot::Conntrack).map(|last| &last.outcome)) {
            (Some(Known::Present(_)), Some(Outcome::Complete | Outcome::Partial(_))) => None,
            (Some(Known::Unknown(why)), _) | (_, Some(Outcome::Failed(why))) => Some(why.clone()),
            (Some(Known::Absent), _) => Some(Why::new("conntrack is not there")),
            (None | Some(Known::Present(_)), _) => Some(Why::new("the conntrack table was not read yet")),
        }
    }
}
