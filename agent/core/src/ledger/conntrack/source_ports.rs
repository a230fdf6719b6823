//! Distinct source addresses and ports of flows, as they leave the node: what a NAT with endpoint-independent mapping gives its
//! ports for. One NAT port serves such a source towards every destination.
//!
//! A set of ports is a bitmap of 8 KiB per protocol and address. A dump says which are taken; NEW events add to it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::Cohort;
use super::cohorts::CohortState;
use crate::flow::Protocol;
use crate::model::nat::HoldTimes;
use crate::model::policy::Scope;
use crate::observe::ConntrackEntry;
use crate::time::NodeTime;

/// Addresses of one protocol whose ports are told apart: a node has fewer pods than that.
const MAX_SETS: usize = 1024;

/// Which flows count: those that the NAT translates, for as long as it holds them.
#[derive(Debug, Clone)]
pub struct SourceFilter {
    /// The addresses that pass the NAT.
    pub scope: Scope,
    /// How long it holds what.
    pub hold: HoldTimes,
}

/// How many distinct sources hold something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistinctSources {
    /// So many.
    pub count: u32,
    /// There may be more: not all addresses found room.
    pub at_least: bool,
    /// As a dump showed it that was read then, with what began since.
    pub as_of: NodeTime,
}

/// The ports of one source address.
type PortSet = Box<[u64; 1024]>;

/// Sets of ports by protocol and source address.
#[derive(Debug, Default)]
struct Sets {
    sets: BTreeMap<(Protocol, IpAddr), PortSet>,
    full: bool,
}

impl Sets {
    fn insert(&mut self, protocol: Protocol, address: IpAddr, port: u16) {
        if self.sets.len() >= MAX_SETS && !self.sets.contains_key(&(protocol, address)) {
            self.full = true;
            return;
        }
        let set = self.sets.entry((protocol, address)).or_insert_with(|| Box::new([0; 1024]));
        if let Some(word) = set.get_mut(usize::from(port / 64)) {
            *word |= 1 << (port % 64);
        }
    }

    fn clear(&mut self) {
        self.full = false;
        // The next dump has much the same addresses.
        self.sets.values_mut().for_each(|set| set.fill(0));
    }
}

/// Source ports that are told apart.
#[derive(Debug)]
pub(super) struct SourcePorts {
    filter: SourceFilter,
    held: Sets,
    incoming: Sets,
    as_of: Option<NodeTime>,
}

impl SourcePorts {
    pub(super) fn new(filter: SourceFilter) -> Self {
        Self { filter, held: Sets::default(), incoming: Sets::default(), as_of: None }
    }

    fn is_in_scope(&self, entry: &ConntrackEntry) -> bool {
        self.filter.scope.contains(entry.destination.address)
    }

    /// An entry of a dump, and what its cohort is.
    pub(super) fn dumped(&mut self, entry: &ConntrackEntry, cohort: &Cohort, at: NodeTime) {
        if self.is_in_scope(entry) && self.holds(cohort, entry.key.protocol, at) {
            self.incoming.insert(entry.key.protocol, entry.translated.address, entry.translated.port);
        }
    }

    /// A NEW event.
    pub(super) fn begun(&mut self, entry: &ConntrackEntry) {
        if self.is_in_scope(entry) {
            self.held.insert(entry.key.protocol, entry.translated.address, entry.translated.port);
        }
    }

    /// Half a dump takes nothing away.
    pub(super) fn end_dump(&mut self, at: NodeTime, complete: bool) {
        if complete {
            std::mem::swap(&mut self.held, &mut self.incoming);
            self.held.sets.retain(|_, set| set.iter().any(|word| *word != 0));
            self.as_of = Some(at);
        }
        self.incoming.clear();
    }

    fn holds(&self, cohort: &Cohort, protocol: Protocol, at: NodeTime) -> bool {
        let hold = self.filter.hold;
        let silent = match protocol {
            Protocol::TCP => hold.tcp_established_idle,
            Protocol::ICMP | Protocol::ICMPV6 => hold.icmp_idle,
            _ => hold.udp_held(),
        };
        // Both kinds of demand take a flow for silent at the same moment.
        let cohort = cohort.as_kept(at);
        let since = |span: Duration| at.since(cohort.since()) < span;
        match cohort.state {
            CohortState::Busy => true,
            CohortState::Wanting | CohortState::Transitory => since(hold.tcp_transitory),
            CohortState::Open => since(silent),
            CohortState::Closed | CohortState::GoneClosed => since(hold.tcp_time_wait),
            CohortState::Reset | CohortState::GoneReset => since(hold.tcp_reset),
        }
    }

    /// `None` until a dump was read.
    pub(super) fn count(&self, protocol: Protocol) -> Option<DistinctSources> {
        let sets = self.held.sets.iter().filter(|((of, _), _)| *of == protocol);
        let count = sets.flat_map(|(_, set)| set.iter()).map(|word| word.count_ones()).fold(0, u32::saturating_add);
        Some(DistinctSources { count, at_least: self.held.full, as_of: self.as_of? })
    }
}
