//! What the conntrack table holds, per destination, source and translated source address.
//!
//! Flows are not kept one by one: a row has *cohorts*, flows in the same state since the same moment. That is all that NAT
//! demand asks for, and 250,000 entries cost what their destinations cost. A dump says what the cohorts are; between two
//! dumps they move by what happened, told by one of two sources:
//!
//! - events (NEW, DESTROY): exact, since a fingerprint of every live entry tells whether the dump had shown it already;
//! - counters in the kernel: exact from one reading to the next. What moved while the table was dumped makes the dump true
//!   only within bounds; a count outside of them is corrected to the nearest, and the correction is the *drift*.
//!
//! Ended flows stay as cohorts for a while, since a NAT holds their ports longer than the node does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{Destination, Endpoint, Protocol};
use crate::ledger::LedgerLimits;
use crate::ledger::pairs::{Pair, Pairs};
use crate::observe::{ConntrackCounter, ConntrackEntry, ConntrackTimeouts, Outcome};
use crate::time::NodeTime;

mod census;
mod cohorts;
mod drift;
mod dump;
mod fingerprint;
mod hairpins;
mod node_port_flows;
mod row;
mod source_ports;

pub use census::{Census, EntryState, Most, SILENCE_SECS};
pub use cohorts::{Cohort, CohortState, Cohorts};
pub use drift::Drift;
use dump::Comparison;
pub(super) use dump::Scope;
use fingerprint::{Fingerprint, Fingerprints};
pub use hairpins::{HAIRPIN_SILENT_SECS, Hairpin, HairpinKey, Hairpins};
pub use node_port_flows::{NodePortFlow, NodePortFlows};
use row::{Compared, End, Row};
use source_ports::SourcePorts;
pub use source_ports::{DistinctSources, SourceFilter};

/// The conntrack table, as far as it matters.
#[derive(Debug)]
pub struct Conntrack {
    limits: LedgerLimits,
    rows: Pairs<Row>,
    entries: Fingerprints,
    /// Dialled destinations that the node translated into another.
    dialled: BTreeSet<Destination>,
    incoming_dialled: BTreeSet<Destination>,
    /// The kernel's counters tell what happens, not events.
    counting: bool,
    /// A dump has ended and waits for the reading of the counters that brackets it.
    compare: Option<Comparison>,
    /// No dump was compared since counting began, or began anew: what existed before is not known.
    anew: bool,
    /// The number of the counters' reading that is under way, or was last; from 1 on.
    reading: u32,
    /// When the last reading ended: what a counter has grown by began since.
    counted_at: Option<NodeTime>,
    dumped_at: Option<NodeTime>,
    /// UDP may have been dumped alone since.
    udp_dumped_at: Option<NodeTime>,
    refused: u64,
    drift: Drift,
    /// A dump of UDP alone says nothing of it: it stays as the last dump of everything showed it.
    census: Option<Census>,
    /// What the dump under way tells of.
    incoming_scope: Scope,
    incoming_census: Census,
    node_port_flows: NodePortFlows,
    hairpins: Hairpins,
    /// The node's own addresses; none if they are not known.
    own: BTreeSet<IpAddr>,
    /// Distinct sources, where somebody asks for them.
    source_ports: Option<SourcePorts>,
}

impl Conntrack {
    pub(super) fn new(limits: LedgerLimits) -> Self {
        Self {
            limits,
            rows: Pairs::default(),
            entries: Fingerprints::default(),
            dialled: BTreeSet::new(),
            incoming_dialled: BTreeSet::new(),
            counting: false,
            compare: None,
            anew: true,
            reading: 0,
            counted_at: None,
            dumped_at: None,
            udp_dumped_at: None,
            refused: 0,
            drift: Drift::default(),
            census: None,
            incoming_scope: Scope::Everything,
            incoming_census: Census::default(),
            node_port_flows: NodePortFlows::default(),
            hairpins: Hairpins::default(),
            own: BTreeSet::new(),
            source_ports: None,
        }
    }

    pub(super) fn tell_sources_apart(&mut self, filter: Option<SourceFilter>) {
        self.source_ports = filter.map(SourcePorts::new);
    }

    pub(super) fn own_addresses(&mut self, own: BTreeSet<IpAddr>) {
        self.own = own;
    }

    pub(super) fn remember_for(&mut self, remember: Duration) {
        self.limits.remember = remember;
    }

    /// A NEW event.
    pub(super) fn begun(&mut self, entry: &ConntrackEntry, at: NodeTime) {
        if self.entries.live() >= self.limits.max_flows {
            self.refused = self.refused.saturating_add(1);
            return;
        }
        if !self.entries.begin(Fingerprint::of(entry)) {
            return;
        }
        if let Some(source_ports) = &mut self.source_ports {
            source_ports.begun(entry);
        }
        note_translation(&mut self.dialled, entry, self.limits.max_flows);
        let in_node_ports = self.in_node_ports(entry);
        let own_port = !in_node_ports && self.own_port(entry);
        if in_node_ports || own_port {
            self.node_port_flows.begun(entry, own_port, at);
        }
        let row = self.rows.of(&pair(entry));
        row.cohorts.add(Cohort::begun(entry.key.protocol, at), 1);
        row.in_node_ports = row.in_node_ports.saturating_add(u32::from(in_node_ports));
        row.port_alone = row.port_alone.saturating_add(u32::from(port_alone(entry)));
    }

    /// A DESTROY event.
    pub(super) fn ended(&mut self, entry: &ConntrackEntry, at: NodeTime, timeouts: ConntrackTimeouts) {
        // The id in the fingerprint guards a successor with the same tuple against the end of its predecessor.
        if !self.entries.end(Fingerprint::of(entry)) {
            return;
        }
        let in_node_ports = self.in_node_ports(entry);
        if in_node_ports || self.limits.node_ports.contains(entry.key.source.port) {
            self.node_port_flows.ended(entry);
        }
        let Some(row) = self.rows.get_mut(&pair(entry)) else { return };
        row.cohorts.end(End::of(entry), 1, entry.key.protocol, at, timeouts);
        row.in_node_ports = row.in_node_ports.saturating_sub(u32::from(in_node_ports));
        row.port_alone = row.port_alone.saturating_sub(u32::from(port_alone(entry)));
    }

    pub(super) fn begin_counters(&mut self) {
        self.reading = self.reading.saturating_add(1);
    }

    /// Counters only grow, so each is taken in at once, also one of a reading that will fail.
    pub(super) fn counter(&mut self, counter: &ConntrackCounter, at: NodeTime, timeouts: ConntrackTimeouts) {
        let from = self.counted_at.unwrap_or(at);
        self.rows.of(&counter.pair()).count(counter, self.reading, (from, at), timeouts);
    }

    pub(super) fn end_counters(&mut self, at: NodeTime, outcome: &Outcome) {
        self.entries.forget_live();
        if let Outcome::Failed(_) = outcome {
            // From here on events tell what happens, or nothing does: only the next dump makes the rows true again.
            self.counting = false;
            self.counted_at = None;
            self.anew = true;
            (self.drift.apart, self.drift.open) = (0, 0);
            self.drop_incoming();
            self.rows.values_mut().for_each(|row| row.counted = None);
            return;
        }
        self.counting = true;
        self.counted_at = Some(at);
        if *outcome == Outcome::Complete {
            // Retired in the kernel: should it come back, it begins from zero.
            for row in self.rows.values_mut() {
                row.counted.take_if(|counted| counted.is_over(self.reading));
            }
        }
        match self.compare.take() {
            Some(Comparison::Whole) => self.correct(at),
            Some(Comparison::AtLeast) => self.raise(),
            None => {}
        }
        self.forget(at);
    }

    /// Compares what was counted with what the dump showed, within what moved meanwhile.
    fn correct(&mut self, at: NodeTime) {
        let first = std::mem::take(&mut self.anew);
        let mut sum = Compared::default();
        for (pair, row) in self.rows.iter_mut() {
            let Compared { wrong, settled, open } = row.correct(pair.destination.protocol, at, first);
            sum.wrong = sum.wrong.saturating_add(wrong);
            sum.settled = sum.settled.saturating_add(settled);
            sum.open = sum.open.saturating_add(open);
        }
        self.entries.forget_shown();
        self.dialled = std::mem::take(&mut self.incoming_dialled);
        self.drift.note(sum, self.live());
    }

    /// Counts that are below what a part of a dump showed become as much: what existed before counting began is in it. No drift,
    /// and no comparison: the next whole one tells of both.
    fn raise(&mut self) {
        self.rows.values_mut().for_each(Row::raise);
        self.entries.forget_shown();
        self.dialled.append(&mut self.incoming_dialled);
        self.incoming_dialled.clear();
    }

    /// Drops what no NAT holds any more.
    fn forget(&mut self, at: NodeTime) {
        let horizon = at.before(self.limits.remember);
        self.rows.retain(|_, row| {
            row.cohorts.forget(horizon, at);
            row.counted.is_some() || !row.cohorts.is_empty() || !row.incoming.is_empty()
        });
    }

    /// Every pair with its cohorts, live and lately ended.
    pub fn iter(&self) -> impl Iterator<Item = (Pair, &Cohorts)> {
        self.rows.iter().map(|(pair, row)| (pair, &row.cohorts))
    }

    /// Live flows that this node translates, their source port alone included, and how many of them to a source port inside the
    /// NodePort range.
    pub fn translated(&self) -> (u64, u64) {
        self.rows.iter().fold((0, 0), |(translated, inside), (pair, row)| {
            let live = match has_ports(pair.destination.protocol) {
                true if pair.source != pair.translated => row.cohorts.live(),
                // Where flows are counted, some may have come since the dump that showed how many there are.
                _ => row.port_alone.max(row.in_node_ports).into(),
            };
            (translated.saturating_add(live), inside.saturating_add(u64::from(row.in_node_ports)))
        })
    }

    /// What the last dump of everything showed, summed up.
    pub fn census(&self) -> Option<&Census> {
        self.census.as_ref()
    }

    /// Live flows with a source port that was translated into the NodePort range, one by one; and those that the node itself opened
    /// from such a port. While the node's addresses are not known, it may have been anybody.
    pub fn node_port_flows(&self) -> &NodePortFlows {
        &self.node_port_flows
    }

    /// The pairs that have such flows, and how many; also where single flows are not known.
    pub fn in_node_ports_by_pair(&self) -> impl Iterator<Item = (Pair, u32)> {
        self.rows.iter().map(|(pair, row)| (pair, row.in_node_ports)).filter(|(_, count)| *count > 0)
    }

    /// Destinations with flows whose source port is outside of the NodePort range that were answered, as the last dump showed them,
    /// and how many such flows (of a pair with more than 65,535, so many).
    pub fn answered_elsewhere(&self) -> impl Iterator<Item = (Destination, u64)> {
        let answered = self.rows.iter().map(|(pair, row)| (pair.destination, u64::from(row.answered)));
        answered.filter(|(_, answered)| *answered > 0)
    }

    /// Entries of those who talk to themselves through a Service, as the last dump of everything showed them.
    pub fn hairpins(&self) -> &Hairpins {
        &self.hairpins
    }

    /// The sockets that there were as such a dump ended: those of later belong to other entries.
    pub(super) fn note_sockets(&mut self, now: NodeTime, open: impl Fn(Endpoint, IpAddr, NodeTime) -> Option<u64>) {
        self.hairpins.note_sockets(now, open);
    }

    /// How many distinct sources (address and port, as they leave the node) hold something beyond the NAT; `None` if nobody
    /// asked for it, or no dump was read yet.
    pub fn distinct_sources(&self, protocol: Protocol) -> Option<DistinctSources> {
        let sources = self.source_ports.as_ref()?.count(protocol)?;
        Some(DistinctSources { at_least: sources.at_least || self.refused > 0, ..sources })
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> usize {
        self.rows.len()
    }

    /// Whether a destination is one that the node translates into another.
    pub fn is_dialled_only(&self, destination: &Destination) -> bool {
        self.dialled.contains(destination)
    }

    /// When the entries of a protocol were last read, at least in part.
    pub fn dumped_at(&self, protocol: Protocol) -> Option<NodeTime> {
        if protocol == Protocol::UDP { self.udp_dumped_at } else { self.dumped_at }
    }

    /// Live entries.
    pub fn live(&self) -> u64 {
        self.rows.iter().map(|(_, row)| row.cohorts.live()).sum()
    }

    /// Entries that found no room in the last dump and since ([`LedgerLimits::max_flows`]).
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// How far the kernel's counters and the table were apart; `None` where nothing is counted in the kernel.
    pub fn drift(&self) -> Option<Drift> {
        self.counting.then_some(self.drift)
    }

    fn in_node_ports(&self, entry: &ConntrackEntry) -> bool {
        has_ports(entry.key.protocol)
            && entry.translated != entry.key.source
            && self.limits.node_ports.contains(entry.translated.port)
    }

    /// Whether the node itself opened it from a port of the NodePort range, towards somebody else.
    fn own_port(&self, entry: &ConntrackEntry) -> bool {
        let (source, destination) = (entry.key.source, entry.destination.address);
        has_ports(entry.key.protocol)
            && self.limits.node_ports.contains(source.port)
            && !source.address.is_loopback()
            && (self.own.is_empty() || self.own.contains(&source.address))
            && !self.own.contains(&destination)
    }
}

/// An ICMP flow has an identifier where others have a port.
fn has_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
}

/// A flow that kept its source address and got another source port.
fn port_alone(entry: &ConntrackEntry) -> bool {
    let (translated, source) = (entry.translated, entry.key.source);
    has_ports(entry.key.protocol) && translated.address == source.address && translated.port != source.port
}

fn pair(entry: &ConntrackEntry) -> Pair {
    Pair {
        destination: Destination { protocol: entry.key.protocol, endpoint: entry.destination },
        source: entry.key.source.address,
        translated: entry.translated.address,
    }
}

fn note_translation(dialled: &mut BTreeSet<Destination>, entry: &ConntrackEntry, room: usize) {
    if entry.key.dialled != entry.destination && dialled.len() < room {
        dialled.insert(Destination { protocol: entry.key.protocol, endpoint: entry.key.dialled });
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Tenths of a second since the node booted; 32 bits last for 13 years.
fn tenths(at: NodeTime) -> u32 {
    u32::try_from(at.after(Duration::from_millis(50)).as_nanos() / 100_000_000).unwrap_or(u32::MAX)
}
