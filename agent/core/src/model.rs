//! From what is known to what it means. Pure: `evaluate(view, policy, now)`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::flow::{Destination, Protocol};
use crate::history::DemandHistory;
use crate::ids::PodName;
use crate::known::Known;
use crate::ledger::{Ledger, Spans};
use crate::model::demand::{Account, Share};
use crate::model::nat::{NatSettings, NodePorts};
use crate::model::policy::Policy;
use crate::observe::{Loss, Outcome, Program, Snapshot, SourceId};
use crate::report::{
    AllocationReport, CoverageReport, CoverageState, DemandReport, DemandReports, DestinationReport, IpamReport,
    NatReport, OmittedDestinations, PodShare, ProgramReport, Report, SCHEMA, WorstDestination,
};
use crate::time::{NodeTime, Now};

pub mod demand;
pub mod ipam;
pub mod leak;
pub mod nat;
pub mod overlap;
pub mod policy;
mod pressure;
mod rules;

/// Holders listed per destination at most.
const MAX_HOLDERS: usize = 20;

/// What earlier evaluations leave for later ones: demand over the last hour, and what was lost when.
#[derive(Debug, Default)]
pub struct Memory {
    tcp: DemandHistory,
    udp: DemandHistory,
    losses: BTreeMap<Loss, u64>,
    lost_at: Option<NodeTime>,
}

/// A loss is a warning for this long after it happened; its total stays in the report.
const LOSS_FRESH: std::time::Duration = std::time::Duration::from_secs(600);

impl Memory {
    fn note_losses(&mut self, ledger: &Ledger, now: Now) {
        let losses = ledger.lost();
        // What a program missed is made up for by the next socket table.
        let lasting = losses.iter().filter(|(what, _)| **what != Loss::TcpMissed);
        let grown = lasting.into_iter().any(|(what, total)| total > self.losses.get(what).unwrap_or(&0));
        if grown {
            self.lost_at = Some(now.node);
        }
        self.losses = losses;
    }
}

/// Everything a rule may look at.
struct View<'a> {
    ledger: &'a Ledger,
    policy: &'a Policy,
    nat: &'a NatSettings,
    node_ports: Option<&'a NodePorts>,
    accounts: &'a [Account],
    lost_lately: bool,
}

/// Makes the report of this moment.
pub fn evaluate(ledger: &Ledger, memory: &mut Memory, policy: &Policy, now: Now) -> Report {
    let nat = policy.nat_on(ledger.platform());
    let node_ports = nat.node_ports();
    let accounts = demand::accounts(ledger, nat.hold, &policy.scope(nat.profile), now.node);

    let limit = node_ports.as_ref().map(|ports| ports.ports);
    let tcp = demand_of(Protocol::TCP, &accounts, tcp_observed(ledger), &mut memory.tcp, limit, now);
    let udp = demand_of(Protocol::UDP, &accounts, udp_observed(ledger, now), &mut memory.udp, limit, now);
    memory.note_losses(ledger, now);

    let view = View {
        ledger,
        policy,
        nat: &nat,
        node_ports: node_ports.as_ref(),
        accounts: &accounts,
        lost_lately: memory.lost_at.is_some_and(|lost| now.node.since(lost) < LOSS_FRESH),
    };
    let holders = Holders::of(ledger);
    let counting = ledger.works(SourceId::Tcp);
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        node: ledger.platform().map_or_else(|| "unknown".to_owned(), |platform| platform.node.clone()),
        time: now.wall.to_string(),
        coverage: coverage(ledger),
        programs: ledger.programs().values().map(program).collect(),
        lost: ledger.lost().into_iter().map(|(what, total)| (what.name().to_owned(), total)).collect(),
        nat: NatReport {
            profile: nat.profile.name().to_owned(),
            allocation: allocation(&nat, node_ports.as_ref()),
            demand: DemandReports { tcp, udp },
            destinations: accounts
                .iter()
                .take(policy.max_destinations)
                .map(|account| destination(account, &holders, counting, no_port_seen(ledger)))
                .collect(),
            omitted: omitted(&accounts, policy.max_destinations),
        },
        overlap: overlap::report(ledger, policy),
        ipam: IpamReport { networks: ipam::networks(ledger, policy, now) },
        conntrack: pressure::report(ledger, &holders, now),
        findings: Vec::new(),
    };
    report.findings = rules::findings(&view, &report);
    for network in &mut report.ipam.networks {
        ipam::shorten(network, policy.max_reservations);
    }
    report
}

/// Whether any source tells of TCP connections: without one, demand is unknown, not zero.
fn tcp_observed(ledger: &Ledger) -> bool {
    ledger.conntrack_doubt().is_none() || ledger.works(SourceId::Tcp) || ledger.works(SourceId::Sockets)
}

/// Whether UDP flows are seen: only conntrack knows them, and only where something has made it look. A table that stays
/// empty while connections are open is one that nobody fills.
fn udp_observed(ledger: &Ledger, now: Now) -> bool {
    let unused = || {
        let mut connections = ledger.tcp().iter(now.node, Spans::all(std::time::Duration::ZERO));
        ledger.conntrack().live() == 0 && connections.any(|(_, _, tally)| tally.open > 0)
    };
    ledger.conntrack_doubt().is_none() && !unused()
}

fn demand_of(
    protocol: Protocol,
    accounts: &[Account],
    observed: bool,
    history: &mut DemandHistory,
    limit: Option<u32>,
    now: Now,
) -> DemandReport {
    if !observed {
        return DemandReport::default();
    }
    let in_scope = accounts.iter().filter(|account| account.in_scope && account.destination.protocol == protocol);
    let worst = in_scope.max_by_key(|account| account.demand()).filter(|account| account.demand() > 0);
    let ports = worst.map_or(0, Account::demand);
    history.record(now.node, ports);
    let peak = |secs| history.peak(now.node, std::time::Duration::from_secs(secs));
    let exhaustion = limit.and_then(|limit| history.exhaustion(now.node, limit));
    DemandReport {
        ports: Some(ports),
        peak_1m: peak(60),
        peak_10m: peak(600),
        peak_1h: peak(3600),
        worst: worst.map(|account| {
            let endpoint = account.destination.endpoint;
            WorstDestination { address: endpoint.address, port: endpoint.port }
        }),
        exhausted_in_secs: exhaustion.as_ref().map(|exhaustion| exhaustion.within.as_secs()),
        exhausted_basis: exhaustion.map(|exhaustion| exhaustion.basis("ports")),
    }
}

fn allocation(nat: &NatSettings, node_ports: Option<&NodePorts>) -> AllocationReport {
    let why = node_ports.map_or_else(
        || {
            "no NAT settings were given (--nat-profile …) and none follow from the platform; demand is not judged"
                .to_owned()
        },
        |ports| ports.why.clone(),
    );
    AllocationReport {
        ports: node_ports.map(|ports| ports.ports),
        basis: node_ports.map_or(nat.basis, |ports| ports.basis),
        why,
        capacity_nodes: node_ports.and_then(|ports| ports.capacity_nodes),
    }
}

/// Who is behind an address: a pod by name, the node, or just the address.
struct Holders<'a> {
    pods: BTreeMap<IpAddr, &'a PodName>,
    host: BTreeSet<IpAddr>,
}

impl<'a> Holders<'a> {
    fn of(ledger: &'a Ledger) -> Self {
        Self { pods: ledger.occupants().pods(), host: ledger.occupants().host_addresses() }
    }

    fn pod(&self, address: IpAddr) -> Option<&'a PodName> {
        self.pods.get(&address).copied()
    }

    /// It is the node's own, and no pod's.
    fn is_host(&self, address: IpAddr) -> bool {
        self.host.contains(&address)
    }

    fn share(&self, address: IpAddr, share: Share) -> PodShare {
        let pod = self.pods.get(&address);
        PodShare {
            namespace: pod.map(|pod| pod.namespace.clone()),
            name: pod.map(|pod| pod.name.clone()),
            address,
            host: pod.is_none() && self.host.contains(&address),
            held: share.held,
            wanting: share.wanting,
        }
    }
}

/// Whether it is known which new connections found no port on this node.
fn no_port_seen(ledger: &Ledger) -> bool {
    ledger.bracket(Snapshot::NoPorts).is_some_and(|bracket| bracket.outcome == Outcome::Complete)
}

fn destination(account: &Account, holders: &Holders<'_>, counting: bool, no_port_seen: bool) -> DestinationReport {
    // The counters know of TCP only, and of nothing where they do not run: that is not zero.
    let counted = |total: u64| (counting && account.destination.protocol == Protocol::TCP).then_some(total);
    let Destination { protocol, endpoint } = account.destination;
    let tcp = account.tcp();
    let mut shares: Vec<(IpAddr, Share)> = account.by_source.iter().collect();
    shares.sort_by_key(|(address, share)| (std::cmp::Reverse((share.held, share.wanting)), *address));
    let pods_omitted = u32::try_from(shares.len().saturating_sub(MAX_HOLDERS)).unwrap_or(u32::MAX);
    DestinationReport {
        protocol,
        address: endpoint.address,
        port: endpoint.port,
        in_scope: account.in_scope,
        held: account.held,
        wanting: account.wanting,
        active: account.active,
        opened_total: counted(tcp.opened_total),
        closed_total: counted(tcp.closed_total),
        failed_total: counted(tcp.failed_total.sum().saturating_add(tcp.no_local_port_total)),
        refused_total: counted(tcp.failed_total.refused),
        timed_out_total: counted(tcp.failed_total.timed_out),
        unreachable_total: counted(tcp.failed_total.unreachable),
        given_up_total: counted(tcp.failed_total.given_up),
        no_local_port_total: counted(tcp.no_local_port_total),
        syn_unanswered_total: counted(tcp.syn_retransmitted_total),
        no_port_total: no_port_seen.then_some(account.no_port.1),
        source: account.source,
        drift: account.drift,
        pods: shares.into_iter().take(MAX_HOLDERS).map(|(address, share)| holders.share(address, share)).collect(),
        pods_omitted,
    }
}

fn program(program: &Program) -> ProgramReport {
    let runs = program.runs.present();
    ProgramReport {
        name: program.name.clone(),
        hook: program.hook.clone(),
        attached: runs.is_some(),
        why: match &program.runs {
            Known::Unknown(why) => Some(why.to_string()),
            Known::Present(_) | Known::Absent => None,
        },
        lost_without: program.lost_without.clone(),
        runs: runs.map(|runs| runs.count),
        time_ns: runs.map(|runs| runs.time_ns),
        missed: runs.and_then(|runs| runs.missed),
    }
}

fn omitted(accounts: &[Account], listed: usize) -> OmittedDestinations {
    accounts.iter().skip(listed).fold(OmittedDestinations::default(), |sum, account| OmittedDestinations {
        destinations: sum.destinations.saturating_add(1),
        held: sum.held.saturating_add(u64::from(account.held)),
    })
}

fn coverage(ledger: &Ledger) -> Vec<CoverageReport> {
    let states = SourceId::ALL.iter().filter_map(|source| Some((*source, ledger.coverage().get(source)?)));
    states
        .map(|(source, coverage)| {
            let (state, how, why) = match coverage {
                Known::Present(detail) => {
                    let state = if detail.degraded.is_some() { CoverageState::Degraded } else { CoverageState::Ok };
                    (state, Some(detail.how.clone()), detail.degraded.as_ref().map(ToString::to_string))
                }
                Known::Absent => (CoverageState::Absent, None, None),
                Known::Unknown(why) => (CoverageState::Unknown, None, Some(why.to_string())),
            };
            CoverageReport { source, state, how, why }
        })
        .collect()
}
