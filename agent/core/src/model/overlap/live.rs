//! Flows that have left the node with a NodePort as source port, and what became of them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::node_ports::AllocatedNodePorts;
use crate::flow::{Destination, Endpoint, Protocol};
use crate::ledger::{Ledger, NodePortFlow, Spans};
use crate::model::holders::Holders;
use crate::observe::{RuleFamily, SourceId};
use crate::report::{CollidingPortReport, LiveFlowsReport, LiveOverlap};
use crate::time::Now;

/// Pairs of destination and pod listed at most.
const MAX_LISTED: usize = 50;
/// Ports listed of each at most.
const MAX_PORTS: usize = 8;
/// An answer takes less than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// How far back repeated SYNs count.
const LATELY: Duration = Duration::from_secs(60);

/// What is known of one pair.
#[derive(Debug, Default)]
struct Pair {
    inside: u64,
    colliding: u64,
    unanswered: u64,
    ports: Vec<CollidingPortReport>,
}

/// The live part of the report.
pub(super) fn live(
    ledger: &Ledger,
    allocated: &AllocatedNodePorts<'_>,
    holders: &Holders<'_>,
    now: Now,
) -> LiveOverlap {
    if ledger.conntrack_doubt().is_some() {
        return LiveOverlap::default();
    }
    let conntrack = ledger.conntrack();
    let (translated, inside) = conntrack.translated();
    let mut pairs: BTreeMap<(Destination, IpAddr), Pair> = BTreeMap::new();
    for (pair, count) in conntrack.in_node_ports_by_pair() {
        let held = pairs.entry((pair.destination, pair.source)).or_default();
        held.inside = held.inside.saturating_add(count.into());
    }
    let mut answered: BTreeMap<Destination, u64> = BTreeMap::new();
    let mut own = 0_u64;
    for (source, destination, flow) in conntrack.node_port_flows().iter() {
        if flow.by_source && is_own(source, flow, allocated, holders) {
            own = own.saturating_add(1);
            let held = pairs.entry((destination, source.address)).or_default();
            held.inside = held.inside.saturating_add(1);
        }
        let Some(port) = collision(destination.protocol, source, flow, allocated, holders) else {
            if flow.answered == Some(true) {
                *answered.entry(destination).or_default() += 1;
            }
            continue;
        };
        let held = pairs.entry((destination, source.address)).or_default();
        held.colliding = held.colliding.saturating_add(1);
        held.unanswered = held.unanswered.saturating_add(u64::from(port.unanswered_secs.is_some()));
        held.ports.push(port);
    }
    let sum = |of: fn(&Pair) -> u64| pairs.values().map(of).fold(0, u64::saturating_add);
    let (colliding, unanswered) = (sum(|pair| pair.colliding), sum(|pair| pair.unanswered));
    let known = allocated.is_known();
    let own_known = holders.knows_host() && conntrack.dumped_at(Protocol::TCP).is_some();
    let repeated = if unanswered > 0 && ledger.works(SourceId::Tcp) { Some(repeated_syns(ledger, now)) } else { None };
    if unanswered > 0 {
        for (destination, more) in conntrack.answered_elsewhere() {
            let sum = answered.entry(destination).or_default();
            *sum = sum.saturating_add(more);
        }
    }
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by_key(|(key, pair)| (Reverse((pair.unanswered, pair.colliding, pair.inside)), *key));
    let omitted = pairs.split_off(pairs.len().min(MAX_LISTED)).len();
    LiveOverlap {
        translated: Some(translated),
        in_node_port_range: Some(inside),
        own_in_node_port_range: own_known.then_some(own),
        colliding: (known || colliding > 0).then_some(colliding),
        unanswered: (known || colliding > 0).then_some(unanswered),
        flows: pairs
            .into_iter()
            .map(|((destination, source), pair)| {
                let repeated =
                    repeated.as_ref().map(|all| all.get(&(destination.endpoint, source)).copied().unwrap_or(0));
                let others_answered = answered.get(&destination).copied().unwrap_or(0);
                LiveFlowsReport { others_answered, ..row(destination, source, pair, known, repeated, holders) }
            })
            .collect(),
        flows_omitted: u64::try_from(omitted).unwrap_or(u64::MAX),
        not_told_apart: conntrack.node_port_flows().untold(),
    }
}

/// Whether a flow that was not translated into the range is the node's own, and matters: one that got another port on its way is
/// seen with the first one by IPVS alone.
fn is_own(source: Endpoint, flow: &NodePortFlow, allocated: &AllocatedNodePorts<'_>, holders: &Holders<'_>) -> bool {
    holders.is_host(source.address) && (flow.translated.port == source.port || allocated.counts_by_source())
}

/// Whether a flow has an allocated NodePort of this node as source port with which answers may get lost, and what became of it.
fn collision(
    protocol: Protocol,
    source: Endpoint,
    flow: &NodePortFlow,
    allocated: &AllocatedNodePorts<'_>,
    holders: &Holders<'_>,
) -> Option<CollidingPortReport> {
    let own = holders.is_host(source.address);
    // What comes back for a pod passes IPVS by.
    let spared = allocated.spares_pods() && !own && (holders.knows_host() || holders.pod(source.address).is_some());
    if spared || flow.by_source && !own {
        return None;
    }
    // A NodePort is one of the node's addresses; another (of an egress gateway, say) has none.
    let at = |place: Endpoint| {
        let here = !holders.knows_host() || holders.is_host(place.address);
        let allocation = allocated.get(RuleFamily::of(place.address), protocol, place.port)?;
        here.then_some((place.port, allocation))
    };
    let before = || if own && allocated.counts_by_source() { at(source) } else { None };
    let (port, allocation) = at(flow.translated).or_else(before)?;
    // As of the dump that showed it last: what came since is not known.
    let (first, last) = flow.seen;
    let silent = Duration::from_secs(flow.silent_secs.unwrap_or(0).into()).max(last.since(first));
    let unanswered = flow.answered == Some(false) && silent >= PATIENCE;
    Some(CollidingPortReport {
        port,
        translated: !flow.by_source,
        service: allocation.service.map(str::to_owned),
        answered: flow.answered,
        unanswered_secs: unanswered.then_some(silent.as_secs()),
    })
}

/// SYNs repeated in the last minute, by destination and source.
fn repeated_syns(ledger: &Ledger, now: Now) -> BTreeMap<(Endpoint, IpAddr), u64> {
    let spans = Spans { lately: LATELY, ..Spans::all(Duration::ZERO) };
    let rows = ledger.tcp().iter(now.node, spans);
    rows.map(|(destination, source, tally)| ((destination, source), tally.syn_retransmitted_lately)).collect()
}

fn row(
    destination: Destination,
    source: IpAddr,
    mut pair: Pair,
    known: bool,
    repeated: Option<u64>,
    holders: &Holders<'_>,
) -> LiveFlowsReport {
    pair.ports.sort_by_key(|port| (Reverse(port.unanswered_secs), port.port));
    pair.ports.truncate(MAX_PORTS);
    let pod = holders.pod(source);
    LiveFlowsReport {
        protocol: destination.protocol,
        address: destination.endpoint.address,
        port: destination.endpoint.port,
        namespace: pod.map(|pod| pod.namespace.clone()),
        name: pod.map(|pod| pod.name.clone()),
        source,
        host: pod.is_none() && holders.is_host(source),
        in_node_port_range: pair.inside,
        colliding: (known || pair.colliding > 0).then_some(pair.colliding),
        unanswered: pair.unanswered,
        others_answered: 0,
        syn_unanswered_1m: repeated,
        ports: pair.ports,
    }
}
