//! The rules: from accounts and reports to findings. One function per subject; the table below is all there is.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::known::Known;
use crate::ledger::TcpTally;
use crate::model::View;
use crate::model::demand::Account;
use crate::model::leak::Verdict;
use crate::model::nat::{Mode, NatSettings, NodePorts, PORTS_PER_NAT_IP};
use crate::observe::{Outcome, Snapshot, SourceId};
use crate::report::{NetworkReport, PodShare, Report};

/// Reserved share of a pod network from which it is called low, in percent.
const IPAM_LOW_PERCENT: u64 = 90;

type Rule = fn(&View<'_>, &Report) -> Vec<Finding>;

const RULES: [Rule; 7] = [nat_ports, nat_gateway, unanswered, ephemeral, conntrack, ipam, degraded];

/// All findings, worst first.
pub(super) fn findings(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let mut findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(view, report)).collect();
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.id.cmp(&b.id)).then(a.subject.cmp(&b.subject)));
    findings
}

fn nat_ports(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let Some(ports) = view.node_ports else { return Vec::new() };
    let in_scope = view.accounts.iter().filter(|account| account.in_scope);
    let worth = in_scope.filter(|account| percent(account.demand(), ports.ports) >= u64::from(view.policy.low_percent));
    worth.take(10).map(|account| nat_ports_of(account, ports, view, report)).collect()
}

fn nat_ports_of(account: &Account, ports: &NodePorts, view: &View<'_>, report: &Report) -> Finding {
    let destination = account.destination;
    let exhausted = account.demand() >= ports.ports;
    let who = report.nat.destinations.iter().find(|listed| {
        listed.protocol == destination.protocol
            && listed.address == destination.endpoint.address
            && listed.port == destination.endpoint.port
    });
    let worst_holder = who.and_then(|listed| listed.pods.first());
    let because = worst_holder.map(|pod| format!(", {} by {}", pod.held, pod_name(pod))).unwrap_or_default();
    let wanting = if account.wanting > 0 { format!(", {} more wanted", account.wanting) } else { String::new() };
    let share = percent(account.held, ports.ports);
    let title =
        format!("{destination} holds {} of {} NAT ports ({share} %){because}{wanting}", account.held, ports.ports);

    let mut evidence = vec![
        Evidence::seen(
            account.source,
            format!("{} held ({} open now), {} wanting", account.held, account.active, account.wanting),
        ),
        Evidence::given(format!("allocation: {} ports, {}", ports.ports, ports.why)),
    ];
    if account.tcp().failed_lately.sum() > 0 || account.tcp().syn_retransmitted_lately > 0 {
        evidence.push(Evidence::seen(SourceId::Tcp, failed_lately(&account.tcp())));
    }
    for pod in who.map(|listed| listed.pods.as_slice()).unwrap_or_default().iter().take(5) {
        evidence.push(Evidence::seen(
            account.source,
            format!("{} ({}): {} held, {} wanting", pod_name(pod), pod.address, pod.held, pod.wanting),
        ));
    }
    let demand = if destination.protocol == crate::flow::Protocol::UDP {
        &report.nat.demand.udp
    } else {
        &report.nat.demand.tcp
    };
    if let (Some(secs), Some(basis)) = (demand.exhausted_in_secs, &demand.exhausted_basis)
        && !exhausted
        && demand.worst.as_ref().is_some_and(|worst| {
            worst.address == destination.endpoint.address && worst.port == destination.endpoint.port
        })
    {
        evidence.push(Evidence::given(format!("full in about {secs} s: {basis}")));
    }
    Finding {
        id: if exhausted { FindingId::NatPortsExhausted } else { FindingId::NatPortsLow },
        severity: if exhausted { Severity::Critical } else { Severity::Warning },
        title,
        subject: destination.to_string(),
        evidence,
        remedy: more_ports(view.nat, ports, account.demand()),
    }
}

/// `16 connects timed out, 3 were refused, 48 SYNs were repeated in the last minute`.
fn failed_lately(tcp: &TcpTally) -> String {
    format!("{}, {} SYNs were repeated in the last minute", tcp.failed_lately, tcp.syn_retransmitted_lately)
}

/// What to set so that the demand fits with some air: the next power of two above 1.25 times the demand.
fn more_ports(nat: &NatSettings, ports: &NodePorts, demand: u32) -> String {
    let wanted = demand.saturating_add(demand / 4).max(ports.ports.saturating_add(1)).next_power_of_two();
    // The largest power of two that Cloud NAT takes: no setting helps beyond it.
    let largest = match nat.mode {
        Mode::Static => 32_768,
        Mode::Dynamic => 65_536,
    };
    if wanted > largest {
        return "reuse connections in the pods named above, or spread them over more destination addresses or nodes: Cloud \
                NAT gives no node more ports"
            .to_owned();
    }
    let setting = match nat.mode {
        Mode::Static => format!("min_ports_per_vm = {wanted}"),
        Mode::Dynamic => format!("max_ports_per_vm = {wanted}"),
    };
    let room = match (nat.mode, nat.nat_ips, nat.nodes) {
        (Mode::Static, Some(ips), Some(nodes)) => {
            let needed = (u64::from(wanted) * u64::from(nodes)).div_ceil(u64::from(PORTS_PER_NAT_IP));
            if needed > u64::from(ips) {
                format!(" and {needed} NAT IPs (there are {ips}) for {nodes} nodes")
            } else {
                String::new()
            }
        }
        _ => String::new(),
    };
    format!("reuse connections in the pods named above, or set {setting}{room} on the Cloud NAT gateway")
}

fn nat_gateway(view: &View<'_>, _report: &Report) -> Vec<Finding> {
    let Some(ports) = view.node_ports else { return Vec::new() };
    let (Some(nodes), Some(ips), Some(capacity)) = (view.nat.nodes, view.nat.nat_ips, ports.capacity_nodes) else {
        return Vec::new();
    };
    if nodes <= capacity {
        return Vec::new();
    }
    let needed = (u64::from(nodes) * u64::from(ports.reserved)).div_ceil(u64::from(PORTS_PER_NAT_IP));
    let remedy = match view.nat.mode {
        Mode::Static => {
            let fit = u64::from(ips) * u64::from(PORTS_PER_NAT_IP) / 64;
            format!(
                "use {needed} NAT IPs, or switch to dynamic allocation with min_ports_per_vm = 64 and max_ports_per_vm = 1024 \
                 (endpoint-independent mapping off): {fit} nodes fit"
            )
        }
        Mode::Dynamic => format!("use {needed} NAT IPs or lower min_ports_per_vm"),
    };
    vec![Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Critical,
        title: format!(
            "{capacity} nodes fit behind the NAT gateway, there are {nodes}: {} get no ports",
            nodes - capacity
        ),
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(format!(
            "{ips} NAT IPs x {PORTS_PER_NAT_IP} ports, {} reserved per node ({})",
            ports.reserved, ports.why
        ))],
        remedy,
    }]
}

fn unanswered(view: &View<'_>, _report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    for account in view.accounts {
        let tcp = account.tcp();
        let destination = account.destination;
        if tcp.no_local_port_lately > 0 {
            findings.push(Finding {
                id: FindingId::EphemeralPortsLow,
                severity: Severity::Warning,
                title: format!(
                    "{} connects to {destination} found no local port in the last minute",
                    tcp.no_local_port_lately
                ),
                subject: destination.to_string(),
                evidence: vec![Evidence::seen(SourceId::Tcp, "connect failed before a source port was chosen")],
                remedy: "reuse connections, or widen net.ipv4.ip_local_port_range where the client runs".to_owned(),
            });
        }
        let full = view.node_ports.is_some_and(|ports| account.demand() >= ports.ports);
        // A refused connect was answered.
        let lost = tcp.syn_retransmitted_lately.max(tcp.failed_lately.unanswered());
        if account.in_scope && !full && tcp.syn_retransmitted_lately > 0 && lost >= view.policy.failures_per_minute {
            findings.push(Finding {
                id: FindingId::NatSynUnanswered,
                severity: Severity::Warning,
                title: format!(
                    "{destination} does not answer: {} SYNs repeated, {} connects failed in the last minute",
                    tcp.syn_retransmitted_lately,
                    tcp.failed_lately.unanswered()
                ),
                subject: destination.to_string(),
                evidence: vec![
                    Evidence::seen(SourceId::Tcp, failed_lately(&tcp)),
                    Evidence::seen(account.source, format!("{} held, {} wanting", account.held, account.wanting)),
                ],
                remedy: "check the destination; then compare held ports with what the gateway allocated to this node"
                    .to_owned(),
            });
        }
    }
    findings.truncate(20);
    findings
}

fn ephemeral(_view: &View<'_>, report: &Report) -> Vec<Finding> {
    let node_ports = report.overlap.node_port_range;
    let colliding = report.overlap.ephemeral.iter().filter(|row| row.overlap_ports.is_some_and(|ports| ports > 0));
    colliding
        .map(|row| {
            let range = row.range.map_or_else(String::new, |range| range.to_string());
            let host = row.subject == "host";
            let ports = row.overlap_ports.unwrap_or_default();
            Finding {
                id: FindingId::EphemeralOverlapsNodeport,
                // A pod's source port only matters where it survives masquerading.
                severity: if host { Severity::Warning } else { Severity::Info },
                title: format!("source ports {range} of {} reach into the NodePorts {node_ports} ({ports} ports)", row.subject),
                subject: row.subject.clone(),
                evidence: vec![Evidence::seen(SourceId::Namespaces, format!("ip_local_port_range {range}, {ports} of {} NodePorts not reserved", node_ports.count()))],
                remedy: format!("sysctl -w net.ipv4.ip_local_reserved_ports={node_ports} (keep what is reserved already), or move ip_local_port_range above {}", node_ports.last()),
            }
        })
        .collect()
}

fn conntrack(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(entries), Some(max)) = (report.conntrack.entries, report.conntrack.max)
        && max > 0
        && entries.saturating_mul(100) / max >= u64::from(view.policy.low_percent)
    {
        let share = entries.saturating_mul(100) / max;
        findings.push(Finding {
            id: FindingId::ConntrackLow,
            severity: if share >= 95 { Severity::Critical } else { Severity::Warning },
            title: format!("conntrack holds {entries} of {max} entries ({share} %)"),
            subject: "conntrack".to_owned(),
            evidence: vec![Evidence::seen(
                SourceId::ConntrackUse,
                format!("nf_conntrack_count {entries}, nf_conntrack_max {max}"),
            )],
            remedy: format!(
                "raise net.netfilter.nf_conntrack_max above {}, or find who fills it",
                max.saturating_mul(2)
            ),
        });
    }
    let no_port: Vec<_> = view.accounts.iter().filter(|account| account.no_port.0 > 0).collect();
    if let Some(worst) = no_port.iter().max_by_key(|account| account.no_port.0) {
        findings.push(Finding {
            id: FindingId::ConntrackInsertFailed,
            severity: Severity::Critical,
            title: format!("this node itself finds no port for new connections to {}", worst.destination),
            subject: worst.destination.to_string(),
            evidence: no_port
                .iter()
                .take(5)
                .map(|account| {
                    let said = format!(
                        "{}: {} packets of new connections dropped in the last minute, since no source port was free",
                        account.destination, account.no_port.0
                    );
                    Evidence::seen(SourceId::Conntrack, said)
                })
                .collect(),
            remedy: "let connections to it be reused, spread them over more addresses of the destination, or widen \
                     `--to-ports` of the masquerade rule"
                .to_owned(),
        });
        return findings;
    }
    let now = view.ledger.conntrack_use().and_then(|used| used.stats.present());
    if let (Some(then), Some(now)) = (view.conntrack_at_start, now) {
        let failed = now.insert_failed.saturating_sub(then.insert_failed);
        if failed > 0 {
            findings.push(Finding {
                id: FindingId::ConntrackInsertFailed,
                severity: Severity::Warning,
                title: format!("conntrack failed to insert {failed} entries since headroom watches"),
                subject: "conntrack".to_owned(),
                evidence: vec![Evidence::seen(
                    SourceId::ConntrackUse,
                    format!("insert_failed {} (was {}), drop {}", now.insert_failed, then.insert_failed, now.drop),
                )],
                remedy: "look for a destination that takes most of this node's own masquerade ports".to_owned(),
            });
        }
    }
    findings
}

fn ipam(_view: &View<'_>, report: &Report) -> Vec<Finding> {
    report.ipam.networks.iter().flat_map(ipam_of).collect()
}

fn ipam_of(network: &NetworkReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    let counts = network.counts;
    let reserved = counts.total();
    let of = network.usable.map_or_else(String::new, |usable| format!(" of {usable}"));
    let full = network.usable.is_some_and(|usable| reserved >= usable);
    if counts.leaked > 0 {
        let leaked = network.entries.iter().filter(|entry| entry.verdict == Verdict::Leaked);
        let mut evidence = vec![Evidence::seen(
            SourceId::HostLocal,
            format!("{reserved}{of} addresses reserved in {}", network.store),
        )];
        evidence.extend(
            leaked.take(3).map(|entry| {
                Evidence::seen(SourceId::Cri, format!("{}: {}", entry.address, entry.evidence.join("; ")))
            }),
        );
        findings.push(Finding {
            id: FindingId::IpamLeaked,
            severity: if full { Severity::Critical } else { Severity::Warning },
            title: format!(
                "{} pod addresses of {} are leaked ({reserved}{of} reserved)",
                counts.leaked, network.network
            ),
            subject: network.network.clone(),
            evidence,
            remedy: "look at them with `headroom ipam scan`, then give them back; upgrade the runtime that leaked them"
                .to_owned(),
        });
    }
    if counts.undetermined > 0 {
        findings.push(undetermined(network));
    }
    if let Some(usable) =
        network.usable.filter(|usable| reserved.saturating_mul(100) >= usable.saturating_mul(IPAM_LOW_PERCENT))
    {
        findings.push(Finding {
            id: FindingId::IpamLow,
            severity: if full { Severity::Critical } else { Severity::Warning },
            title: format!(
                "{} has {} of {usable} pod addresses left",
                network.network,
                usable.saturating_sub(reserved)
            ),
            subject: network.network.clone(),
            evidence: vec![Evidence::seen(
                SourceId::HostLocal,
                format!(
                    "{} in use, {} settling, {} leaked, {} undetermined",
                    counts.in_use, counts.settling, counts.leaked, counts.undetermined
                ),
            )],
            remedy: "free leaked addresses; otherwise lower the node's maximum of pods or give nodes a larger range"
                .to_owned(),
        });
    }
    findings
}

/// Reservations without a verdict are an answer that is missing, whatever the reason.
fn undetermined(network: &NetworkReport) -> Finding {
    let open = network.entries.iter().filter(|entry| entry.verdict == Verdict::Undetermined);
    let mut whys: Vec<&str> = open.flat_map(|entry| entry.evidence.iter().map(String::as_str)).collect();
    whys.sort_unstable();
    whys.dedup();
    Finding {
        id: FindingId::SourceDegraded,
        severity: Severity::Unknown,
        title: format!("{} reservations of {} could not be judged", network.counts.undetermined, network.network),
        subject: network.network.clone(),
        evidence: whys.into_iter().take(3).map(|why| Evidence::seen(SourceId::HostLocal, why)).collect(),
        remedy: "`headroom ipam scan` lists them; a runtime's socket elsewhere is named with --cri-socket".to_owned(),
    }
}

/// What could not be observed, and what that leaves open.
fn degraded(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let works = |source| view.ledger.works(source);
    let has_flows = report.nat.demand.tcp.ports.is_some();
    let mut findings: Vec<Finding> = Vec::new();
    for (source, coverage) in view.ledger.coverage() {
        let (why, works_partly) = match coverage {
            Known::Unknown(why) => (why.to_string(), false),
            Known::Present(detail) => match &detail.degraded {
                Some(missing) => (missing.to_string(), true),
                None => continue,
            },
            Known::Absent => continue,
        };
        let (open, severity) = match source {
            // What is missing may be just what was asked for.
            SourceId::HostLocal | SourceId::Cri if works_partly && cut_short(view, *source) => (
                "what it shows is true, but not all there is: verdicts stay undetermined".to_owned(),
                Severity::Unknown,
            ),
            SourceId::Namespaces
                if works_partly && cut_short(view, *source) && !view.ledger.reservations().is_empty() =>
            {
                ("not every namespace was seen: verdicts stay undetermined".to_owned(), Severity::Unknown)
            }
            _ if works_partly => ("what it shows is true, but not all there is".to_owned(), Severity::Info),
            SourceId::Tcp if works(SourceId::Conntrack) => {
                ("conntrack stands in: held ports are known, failed connects are not".to_owned(), Severity::Info)
            }
            SourceId::Tcp if works(SourceId::Sockets) => {
                ("socket tables stand in: short connections between two readings are missed".to_owned(), Severity::Info)
            }
            SourceId::Conntrack if works(SourceId::Tcp) => {
                ("TCP counters stand in: UDP and forwarded flows are not seen".to_owned(), Severity::Unknown)
            }
            SourceId::Conntrack if works(SourceId::Sockets) => {
                ("socket tables stand in: UDP and forwarded flows are not seen".to_owned(), Severity::Unknown)
            }
            SourceId::Tcp | SourceId::Conntrack | SourceId::Sockets if !has_flows => {
                ("no source tells of connections: the demand for NAT ports is unknown".to_owned(), Severity::Unknown)
            }
            SourceId::Tcp | SourceId::Conntrack | SourceId::Sockets => {
                ("other sources stand in".to_owned(), Severity::Info)
            }
            SourceId::ConntrackUse => ("how full the conntrack table is stays unknown".to_owned(), Severity::Unknown),
            SourceId::Namespaces => (
                "port ranges and addresses of network namespaces stay unknown, verdicts undetermined".to_owned(),
                Severity::Unknown,
            ),
            SourceId::HostLocal => ("which pod addresses are reserved stays unknown".to_owned(), Severity::Unknown),
            SourceId::Cri if view.ledger.reservations().is_empty() => {
                ("pods have no names here".to_owned(), Severity::Info)
            }
            SourceId::Cri => {
                ("pods have no names here and verdicts on reservations stay undetermined".to_owned(), Severity::Unknown)
            }
            SourceId::Platform => ("the cloud is not recognised".to_owned(), Severity::Info),
        };
        findings.push(Finding {
            id: FindingId::SourceDegraded,
            severity,
            title: format!("{source}: {why}"),
            subject: source.to_string(),
            evidence: vec![Evidence::seen(*source, open)],
            remedy: "`headroom doctor` says what each source needs".to_owned(),
        });
    }
    if !report.lost.is_empty() {
        let lost: Vec<String> = report
            .lost
            .iter()
            .filter(|(_, total)| **total > 0)
            .map(|(what, total)| format!("{what} {total}"))
            .collect();
        if !lost.is_empty() {
            findings.push(Finding {
                id: FindingId::SourceDegraded,
                severity: if view.lost_lately { Severity::Warning } else { Severity::Info },
                title: format!("some events were lost since start: {}", lost.join(", ")),
                subject: "losses".to_owned(),
                evidence: vec![Evidence::given("conntrack losses are repaired by the next dump, events that a program missed by the next socket table; destinations that found no room in a map are not counted")],
                remedy: "if a map was full, raise its size in the configuration".to_owned(),
            });
        }
    }
    findings
}

/// Whether the source's last reading was not complete.
fn cut_short(view: &View<'_>, source: SourceId) -> bool {
    let snapshot = match source {
        SourceId::HostLocal => Snapshot::Reservations,
        SourceId::Cri => Snapshot::Runtime,
        SourceId::Namespaces => Snapshot::Namespaces,
        SourceId::Tcp => Snapshot::TcpCounters,
        SourceId::Conntrack => Snapshot::Conntrack,
        SourceId::Sockets => Snapshot::Sockets,
        SourceId::ConntrackUse | SourceId::Platform => return false,
    };
    view.ledger.bracket(snapshot).is_some_and(|bracket| bracket.outcome != Outcome::Complete)
}

fn percent(part: u32, whole: u32) -> u64 {
    u64::from(part) * 100 / u64::from(whole.max(1))
}

fn pod_name(pod: &PodShare) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if pod.host => "the node itself".to_owned(),
        _ => pod.address.to_string(),
    }
}
