//! Rules on NAT ports: demand against allocation, connects without an answer.

use std::cmp::Reverse;

use super::collision;
use super::gateway::left_out;
use super::local::SEARCH_FAILS_PERCENT;
use super::{holder_name, percent, pod_name};
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::Protocol;
use crate::ledger::TcpTally;
use crate::model::View;
use crate::model::demand::{self, Account, Group};
use crate::model::nat::remedy::{self, Remedy};
use crate::model::nat::{Basis, Mode, NodePorts, Profile, granted};
use crate::observe::SourceId;
use crate::report::{DemandReport, Report};
use crate::words::counted;

pub(super) fn nat_ports(view: &View<'_>, report: &Report) -> Vec<Finding> {
    // Where the NAT gave none at all, that alone is to be told: `gateway::no_ports_here`.
    let Some(ports) = view.node_ports.filter(|_| !left_out(view)) else { return Vec::new() };
    let low = u64::from(view.policy.low_percent);
    let mut worth: Vec<Group<'_>> = demand::groups(view.accounts, view.nat.profile)
        .filter(|group| percent(group.demand(), ports.ports) >= low)
        .collect();
    worth.sort_by_key(|group| Reverse(group.demand()));
    let mut findings: Vec<Finding> =
        worth.iter().take(10).map(|group| nat_ports_of(group, ports, view, report)).collect();
    if view.nat.endpoint_independent == Some(true) {
        let protocols = [Protocol::TCP, Protocol::UDP, Protocol::ICMP];
        findings.extend(protocols.into_iter().filter_map(|protocol| all_sources(protocol, ports, view, report)));
    }
    findings
}

/// Under endpoint-independent mapping each source needs a port of its own, whatever its destination.
fn all_sources(protocol: Protocol, ports: &NodePorts, view: &View<'_>, report: &Report) -> Option<Finding> {
    let sources = of_protocol(report, protocol).endpoint_independent.as_ref()?;
    let needs = sources.ports.unwrap_or(sources.at_least);
    let share = percent(needs, ports.ports);
    if share < u64::from(view.policy.low_percent) {
        return None;
    }
    let exhausted = needs >= ports.ports;
    let missed =
        view.accounts.iter().take_while(|account| account.in_scope).any(|account| {
            account.destination.protocol == protocol && (account.wanting > 0 || has_failed(&account.tcp()))
        });
    let mut evidence = vec![
        Evidence::seen(
            SourceId::Conntrack,
            format!("{} to {} distinct sources; {}", sources.at_least, sources.at_most, sources.basis),
        ),
        Evidence::given(
            "with endpoint-independent mapping a source address and port takes one NAT port for all destinations, and no \
             two sources share one",
        ),
        Evidence::given(format!("allocation: {} ports, {}", ports.ports, ports.why)),
    ];
    let granted = taken_through_nat64(view, in_scope(view), protocol)
        .filter(|through| needs < ports.ports.saturating_add(*through));
    evidence.extend(doubts(view, ports, missed));
    evidence.extend(granted.map(through_nat64));
    let pods = report.nat.pods.iter().filter(|pod| pod.held > 0).take(5);
    evidence.extend(pods.map(|pod| {
        let to = counted(pod.destinations, "destination");
        Evidence::seen(
            SourceId::Conntrack,
            format!("{} ({}): {} held to {to}", holder_name(pod), pod.address, pod.held),
        )
    }));
    let remedy = Remedy::either([
        remedy::mapping_off(view.nat, ports, view.need.busiest),
        remedy::more_ports(view.nat, ports, view.need),
    ]);
    Some(Finding {
        id: if exhausted { FindingId::NatPortsExhausted } else { FindingId::NatPortsLow },
        severity: severity(view, ports, exhausted, missed, granted.is_some()),
        title: format!(
            "{needs} {protocol} source ports hold {needs} of {} NAT ports ({share} %), over all destinations",
            ports.ports
        ),
        subject: format!("{protocol}, endpoint-independent mapping"),
        evidence,
        remedy: remedy.text(),
    })
}

/// What is told of the demand of a protocol.
fn of_protocol(report: &Report, protocol: Protocol) -> &DemandReport {
    match protocol {
        Protocol::UDP => &report.nat.demand.udp,
        Protocol::ICMP => &report.nat.demand.icmp,
        _ => &report.nat.demand.tcp,
    }
}

/// Whether connects have lately found no answer.
fn has_failed(tcp: &TcpTally) -> bool {
    tcp.failed_lately.unanswered() > 0 || tcp.syn_retransmitted_lately > 0
}

/// Nobody has said how many ports there are, or whether there may be more: without a sign that one was missing, that may be wrong.
fn severity(view: &View<'_>, ports: &NodePorts, exhausted: bool, missed: bool, granted: bool) -> Severity {
    let certain = ports.basis != Basis::Assumed && !view.nat.mode_assumed && !granted;
    if exhausted && (missed || certain) { Severity::Critical } else { Severity::Warning }
}

fn in_scope<'a>(view: &'a View<'_>) -> impl Iterator<Item = &'a Account> {
    view.accounts.iter().take_while(|account| account.in_scope)
}

/// How much of what is needed goes through NAT64, where nobody has said that Cloud NAT translates it.
fn taken_through_nat64<'a>(
    view: &View<'_>,
    accounts: impl Iterator<Item = &'a Account>,
    protocol: Protocol,
) -> Option<u32> {
    if view.nat.profile != Profile::Gcp || view.nat.nat64.is_some() {
        return None;
    }
    let through = accounts
        .filter(|account| account.destination.protocol == protocol && account.destination.through_nat64().is_some());
    Some(through.map(Account::demand).fold(0, u32::saturating_add)).filter(|ports| *ports > 0)
}

fn through_nat64(ports: u32) -> Evidence {
    Evidence::given(format!(
        "{ports} of them go through NAT64 (64:ff9b::/96): whether Cloud NAT translates these is not said; give the gateway's \
         settings with --nat-from, or --nat-bypass 64:ff9b::/96 if something else does"
    ))
}

/// What is not certain of the allocation.
fn doubts(view: &View<'_>, ports: &NodePorts, missed: bool) -> Vec<Evidence> {
    let assumed = (ports.basis == Basis::Assumed).then(|| {
        let doubt = if missed { "" } else { "no connect has failed, so it may be wrong; " };
        Evidence::given(format!(
            "the allocation is assumed: {doubt}say what the NAT has with --nat-from, or \
             --nat-profile, --nat-min-ports and friends"
        ))
    });
    let may_grow = view.nat.mode_assumed.then(|| {
        Evidence::given(
            "whether the NAT gives more as they are used up is not said: say so with --nat-mode, or give the gateway's own \
             settings with --nat-from",
        )
    });
    assumed.into_iter().chain(may_grow).collect()
}

fn nat_ports_of(group: &Group<'_>, ports: &NodePorts, view: &View<'_>, report: &Report) -> Finding {
    let account = group.largest;
    let destination = account.destination;
    let (held, wanting) = (group.held(), group.wanting());
    let exhausted = group.demand() >= ports.ports;
    let tcp = account.tcp();
    let missed = wanting > 0 || has_failed(&tcp);
    let (pods, _omitted) = view.holders.shares_of(group);
    let because = pods.first().map(|pod| format!(", {} by {}", pod.held, pod_name(pod))).unwrap_or_default();
    let more = if wanting > 0 { format!(", {wanting} more wanted") } else { String::new() };
    let share = percent(held, ports.ports);
    let subject = group.subject();
    let title = format!("{subject} holds {held} of {} NAT ports ({share} %){because}{more}", ports.ports);

    let mut evidence = vec![
        Evidence::seen(account.source, format!("{held} held ({} open now), {wanting} wanting", group.active())),
        Evidence::given(format!("allocation: {} ports, {}", ports.ports, report.nat.allocation.why)),
    ];
    if !group.others.is_empty() && group.destinations() == 1 {
        evidence.push(Evidence::given(format!(
            "it is dialled by IPv4 and by an IPv6 address that the NAT translates to it (64:ff9b::/96): both count together, {} most \
             ({})",
            destination.endpoint.address,
            account.demand()
        )));
    } else if !group.others.is_empty() {
        evidence.push(Evidence::given(format!(
            "a port of {} serves one {} flow to an address at a time, whatever the port there: {} destinations count together, \
             {destination} needs most of it ({})",
            view.nat.profile.title(),
            destination.protocol,
            group.destinations(),
            account.demand()
        )));
    }
    if view.nat.profile == Profile::Linux && !exhausted && percent(group.demand(), ports.ports) >= SEARCH_FAILS_PERCENT
    {
        evidence.push(Evidence::given(format!(
            "the kernel tries at most 248 ports for a new connection: from some {SEARCH_FAILS_PERCENT} % on it finds none now \
             and then"
        )));
    }
    evidence.extend(doubts(view, ports, missed));
    let granted = taken_through_nat64(view, group.accounts(), destination.protocol)
        .filter(|through| group.demand() < ports.ports.saturating_add(*through));
    evidence.extend(granted.map(through_nat64));
    if account.tcp().failed_lately.sum() > 0 || account.tcp().syn_retransmitted_lately > 0 {
        evidence.push(Evidence::seen(SourceId::Tcp, failed_lately(&account.tcp())));
    }
    let demand = of_protocol(report, destination.protocol);
    let is_worst = demand
        .worst
        .as_ref()
        .is_some_and(|worst| (worst.address, worst.port) == (destination.endpoint.address, destination.endpoint.port));
    if let (Some(secs), Some(basis)) = (demand.exhausted_in_secs, &demand.exhausted_basis)
        && !exhausted
        && is_worst
    {
        evidence.push(Evidence::given(format!("full in about {secs} s: {basis}")));
    }
    if let Some(rate) = demand.rate.as_ref().filter(|_| is_worst)
        && let Some(allowed) = rate.allowed_per_sec
    {
        let said = format!("{} connections/s, {allowed} can be sustained: {}", rate.per_sec, rate.basis);
        evidence.push(Evidence::seen(account.source, said));
    }
    for pod in pods.iter().take(5) {
        evidence.push(Evidence::seen(
            account.source,
            format!("{} ({}): {} held, {} wanting", pod_name(pod), pod.address, pod.held, pod.wanting),
        ));
    }
    Finding {
        id: if exhausted { FindingId::NatPortsExhausted } else { FindingId::NatPortsLow },
        severity: severity(view, ports, exhausted, missed, granted.is_some()),
        title,
        subject,
        evidence,
        remedy: remedy::more_ports(view.nat, ports, view.need).text(),
    }
}

/// `16 connects timed out, 3 were refused, 48 SYNs were repeated in the last minute`.
fn failed_lately(tcp: &TcpTally) -> String {
    format!("{}, {} SYNs were repeated in the last minute", tcp.failed_lately, tcp.syn_retransmitted_lately)
}

pub(super) fn unanswered(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    for account in view.accounts {
        let tcp = account.tcp();
        let destination = account.destination;
        let full = view.node_ports.is_some_and(|ports| account.demand() >= ports.ports);
        let grown = Grown::of(account, view);
        // A refused connect was answered.
        let lost = tcp.syn_retransmitted_lately.max(tcp.failed_lately.unanswered());
        let explained = collision::explains(view, report, destination, account.wanting);
        let repeated = tcp.syn_retransmitted_lately > 0 && lost >= view.policy.failures_per_minute;
        if account.in_scope && !full && repeated && !explained {
            findings.push(Finding {
                id: FindingId::NatSynUnanswered,
                severity: Severity::Warning,
                title: format!(
                    "{destination} does not answer: {} SYNs repeated, {} connects failed in the last minute",
                    tcp.syn_retransmitted_lately,
                    tcp.failed_lately.unanswered()
                ),
                subject: destination.to_string(),
                evidence: [
                    Evidence::seen(SourceId::Tcp, failed_lately(&tcp)),
                    Evidence::seen(account.source, format!("{} held, {} wanting", account.held, account.wanting)),
                ]
                .into_iter()
                .chain(grown.map(|grown| Evidence::given(grown.said(view))))
                .collect(),
                remedy: match grown.and_then(|_| remedy::larger_minimum(view.nat, view.node_ports?, view.need)) {
                    Some(raise) => {
                        let look = "if it goes on, check the destination; if it comes with every rise of demand";
                        Remedy { says: format!("{look}, {}", raise.says), ..raise }.text()
                    }
                    None => {
                        "check the destination; then compare held ports with what the gateway allocated to this node"
                            .to_owned()
                    }
                },
            });
        }
    }
    findings.truncate(20);
    findings
}

/// A range that a NAT with dynamic allocation must have enlarged for what is held now.
#[derive(Debug, Clone, Copy)]
struct Grown {
    to: u32,
    demand: u32,
}

impl Grown {
    fn of(account: &Account, view: &View<'_>) -> Option<Self> {
        let (nat, demand) = (view.nat, account.demand());
        if nat.profile != Profile::Gcp || nat.mode != Mode::Dynamic {
            return None;
        }
        let to = granted(nat.dynamic_min(), nat.dynamic_max(), demand);
        (to > nat.dynamic_min()).then_some(Self { to, demand })
    }

    fn said(self, view: &View<'_>) -> String {
        format!(
            "the NAT began with {} ports and had to enlarge the range to {} for {}: it does so only when they are used up, and \
             drops SYNs meanwhile",
            view.nat.dynamic_min(),
            self.to,
            self.demand
        )
    }
}
