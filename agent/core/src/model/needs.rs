//! The NAT part of the report: what this node was given, what it needs, to which destinations, because of whom.

use std::time::Duration;

use crate::flow::{Destination, Protocol};
use crate::ledger::{Ledger, Spans};
use crate::model::demand::{self, Account, Demand, Group, LocalUse, Masqueraded};
use crate::model::holders::Holders;
use crate::model::memory::{Memory, Shrunk};
use crate::model::nat::{BEYOND_AZURES_TABLE, HoldTimes, NatSettings, NodePorts, Profile};
use crate::model::policy::Policy;
use crate::observe::{Outcome, Snapshot, SourceId};
use crate::report::{
    AllocationReport, DemandReport, DemandReports, DestinationReport, LocalReport, MasqueradedReport, NatReport,
    OmittedDestinations, RateReport, SourcesReport, WorstDestination,
};
use crate::time::{NodeTime, Now};
use crate::words::counted;

mod notes;
mod whole;

pub(super) use whole::need;

/// What the demand of one protocol is judged by.
struct Judge<'a> {
    ledger: &'a Ledger,
    accounts: &'a [Account],
    profile: Profile,
    /// The NAT is known to map sources whatever their destination.
    endpoint_independent: bool,
    hold: HoldTimes,
    limit: Option<u32>,
    now: NodeTime,
}

pub(super) fn report(
    ledger: &Ledger,
    memory: &mut Memory,
    policy: &Policy,
    holders: &Holders<'_>,
    (nat, given): (&NatSettings, Option<&NodePorts>),
    demand: &Demand,
    present: Now,
) -> NatReport {
    let now = present.node;
    let judge = Judge {
        ledger,
        accounts: &demand.accounts,
        profile: nat.profile,
        endpoint_independent: nat.endpoint_independent == Some(true),
        hold: nat.hold,
        limit: given.map(|given| given.ports),
        now,
    };
    let flows = flows_observed(ledger, now);
    let demands = DemandReports {
        tcp: judge.demand(Protocol::TCP, tcp_observed(ledger), memory),
        udp: judge.demand(Protocol::UDP, flows, memory),
        // A NAT without a time for ICMP does not translate it.
        icmp: judge.demand(Protocol::ICMP, flows && !nat.hold.icmp_idle.is_zero(), memory),
    };
    let (pods, pods_omitted) = holders.totals(&demand.accounts);
    let seen = Seen {
        counting: ledger.works(SourceId::Tcp),
        silence: ledger.conntrack_doubt().is_none(),
        no_port: no_port_seen(ledger),
    };
    let listed = demand.accounts.iter().take(policy.max_destinations);
    let mut allocation = allocation(ledger, (nat, given), memory.shrunk(now), present);
    allocation.notes.extend(notes::mapping_unknown((nat, given), &demands, policy));
    allocation.notes.extend(notes::through_nat64(nat, &demand.accounts));
    NatReport {
        profile: nat.profile.name().to_owned(),
        endpoint_independent: nat.endpoint_independent,
        allocation,
        demand: demands,
        destinations: listed.map(|account| destination(account, holders, seen, memory, now)).collect(),
        omitted: omitted(&demand.accounts, policy.max_destinations),
        pods,
        pods_omitted,
        local: demand.local.iter().map(|used| local(used, holders)).collect(),
        masqueraded: demand.masqueraded.iter().map(masqueraded).collect(),
    }
}

/// Whether any source tells of TCP connections: without one, demand is unknown, not zero.
fn tcp_observed(ledger: &Ledger) -> bool {
    ledger.conntrack_doubt().is_none() || ledger.works(SourceId::Tcp) || ledger.works(SourceId::Sockets)
}

/// Whether flows without connections are seen: only conntrack knows them, and only where something has made it look. A table
/// that stays empty while connections are open is one that nobody fills.
fn flows_observed(ledger: &Ledger, now: NodeTime) -> bool {
    let unused = || {
        let mut connections = ledger.tcp().iter(now, Spans::all(Duration::ZERO));
        ledger.conntrack().live() == 0 && connections.any(|(_, _, tally)| tally.open > 0)
    };
    ledger.conntrack_doubt().is_none() && !unused()
}

impl Judge<'_> {
    fn demand(&self, protocol: Protocol, observed: bool, memory: &mut Memory) -> DemandReport {
        if !observed {
            return DemandReport::default();
        }
        let worst = demand::worst(self.accounts, protocol, self.profile);
        let sources = self.sources(protocol);
        let ports = match sources.ports.filter(|_| self.endpoint_independent) {
            Some(ports) => ports,
            // What could not be told is not less than what the worst destination shows.
            None => worst.as_ref().map_or(0, Group::demand),
        };
        let rate = worst.as_ref().and_then(|worst| self.rate(worst, memory));
        let Some(history) = memory.demand(protocol) else { return DemandReport::default() };
        history.record(self.now, ports);
        let peak = |secs| history.peak(self.now, Duration::from_secs(secs));
        let exhaustion = self.limit.and_then(|limit| history.exhaustion(self.now, limit));
        DemandReport {
            ports: Some(ports),
            peak_1m: peak(60),
            peak_10m: peak(600),
            peak_1h: peak(3600),
            worst: worst.map(|group| {
                let endpoint = group.largest.destination.endpoint;
                WorstDestination { address: endpoint.address, port: endpoint.port, destinations: group.destinations() }
            }),
            exhausted_in_secs: exhaustion.as_ref().map(|exhaustion| exhaustion.within.as_secs()),
            exhausted_basis: exhaustion.map(|exhaustion| exhaustion.basis("ports")),
            rate,
            endpoint_independent: Some(sources),
        }
    }

    /// Distinct sources: exactly where conntrack tells them apart, else within bounds.
    fn sources(&self, protocol: Protocol) -> SourcesReport {
        let flows = self.accounts.iter().filter(|account| account.in_scope && account.destination.protocol == protocol);
        let (at_least, at_most) = flows.fold((0, 0_u32), |(least, most), account| {
            (account.active.max(least), most.saturating_add(account.demand()))
        });
        let doubt = self.ledger.conntrack_doubt();
        let seen = self.ledger.conntrack().distinct_sources(protocol).filter(|_| doubt.is_none());
        let basis = match (&doubt, seen) {
            (Some(why), _) => format!("only conntrack knows the source ports of flows: {why}"),
            (None, None) => {
                "source ports are told apart only where the NAT is said to map them endpoint-independently, since \
                             that takes memory"
                    .to_owned()
            }
            (None, Some(seen)) if seen.at_least => "not all flows found room in memory".to_owned(),
            (None, Some(seen)) => {
                // The kernel's counters know no ports: only the next dump tells.
                let since = if self.ledger.conntrack().drift().is_some() { "" } else { " and what began since" };
                let ago = self.now.since(seen.as_of).as_secs();
                format!("source ports as they leave the node, from the conntrack table of {ago} s ago{since}")
            }
        };
        let ports = seen.filter(|seen| !seen.at_least).map(|seen| seen.count);
        let at_least = seen.map_or(at_least, |seen| seen.count.max(at_least));
        SourcesReport { ports, at_least: at_least.min(at_most), at_most, basis }
    }

    /// How fast connections to a destination come, and how fast they may: each holds a port for as long as it lives, and then
    /// for the NAT's hold time. How long they live follows from how many there are and how fast they come (Little).
    fn rate(&self, group: &Group<'_>, memory: &Memory) -> Option<RateReport> {
        let known = group.accounts().filter_map(|account| per_sec(account, memory, self.now));
        let per_sec = known.reduce(|sum, more| sum + more)?;
        let held_after = match group.largest.destination.protocol {
            Protocol::TCP => self.hold.tcp_time_wait,
            Protocol::UDP => self.hold.udp_held(),
            _ => self.hold.icmp_idle,
        };
        let Some(lifetime) = (per_sec > 0.0).then(|| f64::from(group.active()) / per_sec) else {
            let basis = "no connection has ended or begun lately: how long they live is not known".to_owned();
            return Some(RateReport { per_sec: 0.0, allowed_per_sec: None, basis });
        };
        let held_for = lifetime + held_after.as_secs_f64();
        let allowed = self.limit.filter(|_| held_for > 0.0).map(|ports| f64::from(ports) / held_for);
        let basis = format!(
            "{} / ({} of life + {} s held after)",
            self.limit.map_or_else(|| "ports".to_owned(), |ports| counted(ports, "port")),
            seconds(lifetime),
            held_after.as_secs()
        );
        Some(RateReport { per_sec: rounded(per_sec), allowed_per_sec: allowed.map(rounded), basis })
    }
}

/// New connections to a destination per second: as they were opened, or else as flows ended.
fn per_sec(account: &Account, memory: &Memory, now: NodeTime) -> Option<f64> {
    if account.source == SourceId::Tcp {
        return memory.opened_per_sec(&account.destination, now);
    }
    (account.source == SourceId::Conntrack)
        .then(|| f64::from(account.ended_lately) / super::demand::LATELY.as_secs_f64())
}

/// Two decimals: nothing here is known better.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn seconds(secs: f64) -> String {
    if secs < 10.0 { format!("{secs:.1} s") } else { format!("{secs:.0} s") }
}

fn allocation(
    ledger: &Ledger,
    (nat, given): (&NatSettings, Option<&NodePorts>),
    shrunk: Option<Shrunk>,
    now: Now,
) -> AllocationReport {
    let why = given.map_or_else(
        || {
            if nat.beyond_azures_table() {
                return BEYOND_AZURES_TABLE.to_owned();
            }
            "no NAT settings were given (--nat-profile …) and none follow from the platform; demand is not judged"
                .to_owned()
        },
        |given| given.why.clone(),
    );
    // Connections above a smaller allocation are cut, or live until they end: either way they are shown as held.
    let shrunk =
        shrunk.map(|shrunk| format!("; {} ports until {} s ago", shrunk.from, now.node.since(shrunk.at).as_secs()));
    AllocationReport {
        ports: given.map(|given| given.ports),
        basis: given.map_or(nat.basis, |given| given.basis),
        why: why + &shrunk.unwrap_or_default(),
        age_secs: nat.observed.as_ref().and_then(|observed| observed.age(now.wall)).map(|age| age.as_secs()),
        capacity_nodes: given.and_then(|given| given.capacity_nodes),
        // The files say something else by now, or nothing that could be understood.
        notes: nat.notes.iter().cloned().chain(notes::stale(ledger)).collect(),
    }
}

/// Whether it is known which new connections found no port on this node.
pub(super) fn no_port_seen(ledger: &Ledger) -> bool {
    ledger.bracket(Snapshot::NoPorts).is_some_and(|bracket| bracket.outcome == Outcome::Complete)
}

/// What is observed at all: what is not, is absent from a report, and not zero.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// TCP connects and closes.
    counting: bool,
    /// How long flows were silent.
    silence: bool,
    no_port: bool,
}

fn destination(
    account: &Account,
    holders: &Holders<'_>,
    seen: Seen,
    memory: &Memory,
    now: NodeTime,
) -> DestinationReport {
    let counted = |total: u64| (seen.counting && account.destination.protocol == Protocol::TCP).then_some(total);
    let Destination { protocol, endpoint } = account.destination;
    let tcp = account.tcp();
    let (pods, pods_omitted) = holders.shares(account);
    DestinationReport {
        protocol,
        address: endpoint.address,
        port: endpoint.port,
        in_scope: account.in_scope,
        held: account.held,
        wanting: account.wanting,
        active: account.active,
        forgotten: seen.silence.then_some(account.forgotten),
        per_sec: per_sec(account, memory, now).filter(|_| account.in_scope).map(rounded),
        opened_total: counted(tcp.opened_total),
        closed_total: counted(tcp.closed_total),
        failed_total: counted(tcp.failed_total.sum().saturating_add(tcp.no_local_port_total)),
        refused_total: counted(tcp.failed_total.refused),
        timed_out_total: counted(tcp.failed_total.timed_out),
        unreachable_total: counted(tcp.failed_total.unreachable),
        given_up_total: counted(tcp.failed_total.given_up),
        no_local_port_total: counted(tcp.no_local_port_total),
        syn_unanswered_total: counted(tcp.syn_retransmitted_total),
        no_port_total: seen.no_port.then_some(u64::from(account.no_port.1)),
        source: account.source,
        drift: account.drift(),
        pods,
        pods_omitted,
    }
}

fn omitted(accounts: &[Account], listed: usize) -> OmittedDestinations {
    accounts.iter().skip(listed).fold(OmittedDestinations::default(), |sum, account| OmittedDestinations {
        destinations: sum.destinations.saturating_add(1),
        held: sum.held.saturating_add(u64::from(account.held)),
        wanting: sum.wanting.saturating_add(u64::from(account.wanting)),
    })
}

fn local(used: &LocalUse, holders: &Holders<'_>) -> LocalReport {
    LocalReport {
        subject: holders.name(used.source),
        source: used.source,
        address: used.destination.address,
        port: used.destination.port,
        used: used.proven(),
        used_at_most: used.possible(),
        range: used.range,
        usable: used.usable,
        listening: used.listening,
        exact: used.exact,
    }
}

fn masqueraded(taken: &Masqueraded) -> MasqueradedReport {
    let Destination { protocol, endpoint } = taken.destination;
    MasqueradedReport {
        protocol,
        address: endpoint.address,
        port: endpoint.port,
        translated: taken.translated,
        held: taken.taken,
        ports: taken.ports,
    }
}
