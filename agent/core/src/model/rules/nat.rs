//! Rules on NAT ports: demand against allocation, the gateway's size, connects without an answer.

use std::cmp::Reverse;

use super::collision;
use super::local::SEARCH_FAILS_PERCENT;
use super::{percent, pod_name};
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::Protocol;
use crate::ledger::TcpTally;
use crate::model::View;
use crate::model::demand::{self, Account, Group};
use crate::model::nat::{BEYOND_AZURES_TABLE, Basis, Mode, NodePorts, Profile, Sharing, granted, remedy};
use crate::observe::SourceId;
use crate::report::{DemandReport, Report};

pub(super) fn nat_ports(view: &View<'_>, report: &Report) -> Vec<Finding> {
    // Where the NAT gave none at all, that alone is to be told: `no_ports_here`.
    let Some(ports) = view.node_ports.filter(|_| !left_out(view)) else { return Vec::new() };
    let low = u64::from(view.policy.low_percent);
    let mut worth: Vec<Group<'_>> = demand::groups(view.accounts, view.nat.profile)
        .filter(|group| percent(group.demand(), ports.ports) >= low)
        .collect();
    worth.sort_by_key(|group| Reverse(group.demand()));
    let mut findings: Vec<Finding> =
        worth.iter().take(10).map(|group| nat_ports_of(group, ports, view, report)).collect();
    if view.nat.endpoint_independent == Some(true) {
        let demands =
            [("tcp", &report.nat.demand.tcp), ("udp", &report.nat.demand.udp), ("icmp", &report.nat.demand.icmp)];
        findings
            .extend(demands.into_iter().filter_map(|(protocol, demand)| all_sources(protocol, demand, ports, view)));
    }
    findings
}

/// Under endpoint-independent mapping each source needs a port of its own, whatever its destination.
fn all_sources(protocol: &str, demand: &DemandReport, ports: &NodePorts, view: &View<'_>) -> Option<Finding> {
    let sources = demand.endpoint_independent.as_ref()?;
    let needs = sources.ports.unwrap_or(sources.at_least);
    let share = percent(needs, ports.ports);
    let exhausted = needs >= ports.ports;
    (share >= u64::from(view.policy.low_percent)).then(|| Finding {
        id: if exhausted { FindingId::NatPortsExhausted } else { FindingId::NatPortsLow },
        severity: if exhausted { Severity::Critical } else { Severity::Warning },
        title: format!("{needs} {protocol} source ports hold {needs} of {} NAT ports ({share} %), over all destinations", ports.ports),
        subject: format!("{protocol}, endpoint-independent mapping"),
        evidence: vec![
            Evidence::seen(
                SourceId::Conntrack,
                format!("{} to {} distinct sources; {}", sources.at_least, sources.at_most, sources.basis),
            ),
            Evidence::given(
                "with endpoint-independent mapping a source address and port takes one NAT port for all destinations, and no \
                 two sources share one",
            ),
            Evidence::given(format!("allocation: {} ports, {}", ports.ports, ports.why)),
        ],
        remedy: remedy::more_ports(view.nat, ports, needs).text(),
    })
}

fn nat_ports_of(group: &Group<'_>, ports: &NodePorts, view: &View<'_>, report: &Report) -> Finding {
    let account = group.largest;
    let destination = account.destination;
    let (held, wanting) = (group.held(), group.wanting());
    let exhausted = group.demand() >= ports.ports;
    // Nobody has said how many ports there are: without a sign that one was missing, the assumption may be wrong.
    let assumed = ports.basis == Basis::Assumed;
    let may_grow = view.nat.mode_assumed;
    let tcp = account.tcp();
    let missed = wanting > 0 || tcp.failed_lately.unanswered() > 0 || tcp.syn_retransmitted_lately > 0;
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
    if !group.others.is_empty() {
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
    if assumed {
        let doubt = if missed { "" } else { "no connect has failed, so it may be wrong; " };
        evidence.push(Evidence::given(format!(
            "the allocation is assumed: {doubt}say what the NAT has with --nat-from, or \
             --nat-profile, --nat-min-ports and friends"
        )));
    }
    if may_grow {
        evidence.push(Evidence::given(
            "whether the NAT gives more as they are used up is not said: say so with --nat-mode, or give the gateway's own \
             settings with --nat-from",
        ));
    }
    if account.tcp().failed_lately.sum() > 0 || account.tcp().syn_retransmitted_lately > 0 {
        evidence.push(Evidence::seen(SourceId::Tcp, failed_lately(&account.tcp())));
    }
    let demand = match destination.protocol {
        Protocol::UDP => &report.nat.demand.udp,
        Protocol::ICMP => &report.nat.demand.icmp,
        _ => &report.nat.demand.tcp,
    };
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
        severity: if exhausted && (missed || !(assumed || may_grow)) { Severity::Critical } else { Severity::Warning },
        title,
        subject,
        evidence,
        remedy: remedy::more_ports(view.nat, ports, group.demand()).text(),
    }
}

/// `16 connects timed out, 3 were refused, 48 SYNs were repeated in the last minute`.
fn failed_lately(tcp: &TcpTally) -> String {
    format!("{}, {} SYNs were repeated in the last minute", tcp.failed_lately, tcp.syn_retransmitted_lately)
}

/// Nodes without ports where ports are reserved; where they are shared, a demand that all nodes together could not have.
pub(super) fn nat_gateway(view: &View<'_>, _report: &Report) -> Vec<Finding> {
    if view.nat.beyond_azures_table() {
        return vec![beyond_the_table(view)];
    }
    let Some(ports) = view.node_ports else { return Vec::new() };
    let sharing = view.nat.profile.capacity().map(|capacity| capacity.sharing);
    let by_number = view.nat.nodes.and_then(|nodes| match sharing? {
        Sharing::PerDestination => all_alike(view, ports, nodes),
        Sharing::Reserved => no_ports_left(view, ports, nodes),
    });
    no_ports_here(view)
        .or(by_number)
        .or_else(|| gateway_says(view, ports))
        .or_else(|| allocation_failed(view))
        .into_iter()
        .collect()
}

/// What nodes have is not known, so that their demand is not judged; that alone is to be told.
fn beyond_the_table(view: &View<'_>) -> Finding {
    let nodes = view.nat.nodes.unwrap_or_default().saturating_add(view.nat.surge.unwrap_or(0));
    Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Warning,
        title: format!(
            "Azure's automatic allocation ends at 1000 nodes, there may be {nodes}: what a node gets is not known"
        ),
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(BEYOND_AZURES_TABLE)],
        remedy: "allocate ports by hand: `headroom plan nat --profile azure-lb --min-ports N` says how many nodes fit"
            .to_owned(),
    }
}

/// The NAT has left this very node out, or has no NAT IP to serve any.
fn left_out(view: &View<'_>) -> bool {
    view.nat.observed.as_ref().map_or(view.nat.nat_ips == Some(0), |observed| observed.ports == 0)
}

fn no_ports_here(view: &View<'_>) -> Option<Finding> {
    let ports = view.node_ports.filter(|_| left_out(view))?;
    let (title, why) = match &view.nat.observed {
        Some(observed) => ("this node was given no NAT ports at all: whatever passes the NAT fails", &observed.why),
        None => ("the NAT gateway has no NAT IP: whatever passes it fails", &ports.why),
    };
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Critical,
        title: title.to_owned(),
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(format!("allocation: 0 ports, {why}"))],
        remedy: remedy::missing_ips(view.nat, view.nat.missing_ips.unwrap_or(1)).text(),
    })
}

/// Cloud NAT counts the NAT IPs it lacks.
fn gateway_says(view: &View<'_>, ports: &NodePorts) -> Option<Finding> {
    let missing = view.nat.missing_ips.filter(|ips| *ips > 0)?;
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Critical,
        title: format!(
            "the NAT gateway itself says that it lacks {}: some nodes have no ports",
            remedy::nat_ips(missing)
        ),
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(format!("allocation: {} ports, {}", ports.ports, ports.why))],
        remedy: remedy::missing_ips(view.nat, missing).text(),
    })
}

/// Cloud Monitoring tells that some machine got no ports, not how many NAT IPs are missing.
fn allocation_failed(view: &View<'_>) -> Option<Finding> {
    let says = view.nat.told_allocation_failed(view.now)?;
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: if view.nat.failed_lately(view.now) { Severity::Critical } else { Severity::Warning },
        title: says,
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given("of how many machines, and how many NAT IPs are missing, this metric does not tell")],
        remedy: "see how many NAT IPs it lacks (`gcloud compute routers get-status ROUTER`: minExtraNatIpsNeeded), and add them or \
                 lower min_ports_per_vm"
            .to_owned(),
    })
}

fn no_ports_left(view: &View<'_>, ports: &NodePorts, nodes: u32) -> Option<Finding> {
    let (ips, capacity) = (view.nat.nat_ips?, ports.capacity_nodes?);
    let short = nodes.checked_sub(capacity).filter(|short| *short > 0)?;
    let pool = view.nat.pool()?;
    let assumed = ports.basis == Basis::Assumed || view.nat.mode_assumed;
    let doubt = assumed.then(|| {
        Evidence::given(
            "what is reserved per node is assumed: say what the NAT has with --nat-from, or --nat-mode, --nat-min-ports and \
             friends",
        )
    });
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: if assumed { Severity::Warning } else { Severity::Critical },
        title: format!("{capacity} nodes fit behind the NAT gateway, there are {nodes}: {short} get no ports"),
        subject: "gateway".to_owned(),
        evidence: std::iter::once(Evidence::given(format!(
            "{} x {} ports, {} reserved per node ({})",
            remedy::nat_ips(ips),
            pool / u64::from(ips.max(1)),
            ports.reserved,
            ports.why
        )))
        .chain(doubt)
        .collect(),
        remedy: remedy::bigger_gateway(view.nat, ports).text(),
    })
}

fn all_alike(view: &View<'_>, ports: &NodePorts, nodes: u32) -> Option<Finding> {
    let in_scope = view.accounts.iter().filter(|account| account.in_scope);
    let worst = in_scope.max_by_key(|account| account.demand())?;
    let together = worst.demand().saturating_mul(nodes);
    (nodes > 1 && together > ports.ports).then(|| Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Warning,
        title: format!(
            "if all {nodes} nodes needed as much as this one, {} would take {together} ports: the gateway has {}",
            worst.destination, ports.ports
        ),
        subject: worst.destination.to_string(),
        evidence: vec![
            Evidence::seen(worst.source, format!("{} held, {} wanting here", worst.held, worst.wanting)),
            Evidence::given(format!("allocation: {} ports, {}", ports.ports, ports.why)),
        ],
        remedy: remedy::more_ports(view.nat, ports, together).text(),
    })
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
                remedy: match grown {
                    Some(grown) => format!(
                        "if it goes on, check the destination; if it comes with every rise of demand, raise min_ports_per_vm to \
                         {}, so that the NAT need not enlarge the range in the middle of it",
                        grown.to
                    ),
                    None => "check the destination; then compare held ports with what the gateway allocated to this node"
                        .to_owned(),
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
