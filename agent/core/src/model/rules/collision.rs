//! Rules on connections whose source port on leaving the node is an allocated NodePort.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::masquerade::beside;
use super::overlap::{CILIUM_MAY_BE, allocated_basis, is_harmless};
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::{Destination, Endpoint};
use crate::model::View;
use crate::model::leak::whole;
use crate::observe::SourceId;
use crate::ports::PortRange;
use crate::report::{CollidingPortReport, LiveFlowsReport, LiveOverlap, OverlapReport, ProxyReport, Report};

/// Findings at most, one for each pod.
const MAX_FINDINGS: usize = 10;

pub(super) fn collision(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let overlap = &report.overlap;
    // Of two the one that also hits pods: Cilium comes last.
    let harmful = overlap.proxies.iter().rfind(|proxy| proxy.harmful);
    if is_harmless(view, overlap) {
        return Vec::new();
    }
    let mut by_pod: BTreeMap<IpAddr, Vec<&LiveFlowsReport>> = BTreeMap::new();
    for row in overlap.live.flows.iter().filter(|row| row.unanswered > 0) {
        by_pod.entry(row.source).or_default().push(row);
    }
    let mut findings: Vec<Finding> = by_pod.values().map(|rows| lost(rows, overlap, harmful)).collect();
    findings.sort_by_key(|finding| Reverse(finding.severity));
    findings.truncate(MAX_FINDINGS);
    if findings.is_empty()
        && let Some(proxy) = harmful
    {
        findings.extend(at_risk(report, proxy));
    }
    findings
}

/// Whether connects to a destination that wait for an answer wait because of their source port.
pub(super) fn explains(view: &View<'_>, report: &Report, destination: Destination, wanting: u32) -> bool {
    let flows = report.overlap.live.flows.iter();
    let unanswered =
        flows.filter(|row| to(row) == destination && row.others_answered > 0).map(|row| row.unanswered).sum::<u64>();
    !is_harmless(view, &report.overlap) && unanswered > 0 && unanswered >= u64::from(wanting)
}

fn to(row: &LiveFlowsReport) -> Destination {
    Destination { protocol: row.protocol, endpoint: Endpoint::new(row.address, row.port) }
}

/// Connections of one pod that get no answer. Only where the destination answers others can their ports be why.
fn lost(rows: &[&LiveFlowsReport], overlap: &OverlapReport, harmful: Option<&ProxyReport>) -> Finding {
    let answering: Vec<&LiveFlowsReport> = rows.iter().copied().filter(|row| row.others_answered > 0).collect();
    let proven = !answering.is_empty();
    let rows = if proven { answering.as_slice() } else { rows };
    let who = rows.first().map_or_else(String::new, |row| name(row));
    let unanswered: u64 = rows.iter().map(|row| row.unanswered).sum();
    let single = |row: &&LiveFlowsReport| -> Vec<(Destination, CollidingPortReport)> {
        row.ports.iter().filter(|port| port.unanswered_secs.is_some()).map(|port| (to(row), port.clone())).collect()
    };
    let mut ports: Vec<_> = rows.iter().flat_map(single).collect();
    ports.sort_by_key(|(_, port)| (Reverse(port.unanswered_secs), port.port));
    let numbers = ports.iter().take(4).map(|(_, port)| port.port.to_string()).collect::<Vec<_>>().join(", ");
    let more = if unanswered > 4 { ", …" } else { "" };
    let connections = if unanswered == 1 { "1 connection".to_owned() } else { format!("{unanswered} connections") };
    let mut evidence: Vec<Evidence> = ports
        .iter()
        .take(3)
        .map(|(destination, port)| Evidence::seen(SourceId::Conntrack, port_in_words(port, *destination)))
        .collect();
    for row in rows.iter().take(3) {
        let destination = to(row);
        let others = match row.others_answered {
            0 => "; with other source ports nobody has an answer either".to_owned(),
            others => format!("; with other source ports it answers, {others} have an answer"),
        };
        let repeated = row.syn_unanswered_1m.filter(|repeated| *repeated > 0);
        let repeated =
            repeated.map_or_else(String::new, |repeated| format!(", {repeated} SYNs repeated in the last minute"));
        evidence.push(Evidence::seen(
            SourceId::Conntrack,
            format!("{destination}: {} without an answer{repeated}{others}", row.unanswered),
        ));
    }
    evidence.extend(allocated_basis(overlap));
    evidence.extend(not_told_apart(&overlap.live));
    evidence.push(why(overlap, harmful));
    Finding {
        id: FindingId::NodeportCollision,
        severity: match (proven, harmful) {
            (true, Some(_)) => Severity::Critical,
            (true, None) => Severity::Warning,
            (false, _) => Severity::Info,
        },
        title: if proven {
            format!("{who} gets no answer on {connections} whose source port is an allocated NodePort: {numbers}{more}")
        } else {
            format!(
                "{who} waits for {} nobody, on {connections} whose source port happens to be an allocated NodePort: {numbers}{more}",
                silent(rows)
            )
        },
        subject: who,
        evidence,
        remedy: if proven {
            remedy(overlap, rows.iter().copied())
        } else {
            format!(
                "look at the destination first: it answers nobody now (one-way UDP never does); if it should: {}",
                remedy(overlap, rows.iter().copied())
            )
        },
    }
}

/// Destinations that answer nobody, up to the last word but one.
fn silent(rows: &[&LiveFlowsReport]) -> String {
    let destinations: BTreeSet<Destination> = rows.iter().map(|row| to(row)).collect();
    let first = destinations.first().map_or_else(String::new, ToString::to_string);
    match destinations.len() {
        0 | 1 => format!("{first}, which answers"),
        2 => format!("{first} and another one, which answer"),
        many => format!("{first} and {} others, which answer", many - 1),
    }
}

/// Counts are the least there are where flows found no room.
fn not_told_apart(live: &LiveOverlap) -> Option<Evidence> {
    let more = Some(live.not_told_apart).filter(|more| *more > 0)?;
    Some(Evidence::seen(SourceId::Conntrack, format!("{more} more flows in the range were not looked at one by one")))
}

fn port_in_words(port: &CollidingPortReport, destination: Destination) -> String {
    let service = port.service.as_ref().map_or_else(String::new, |service| format!(" of {service}"));
    let since = port
        .unanswered_secs
        .map_or_else(String::new, |secs| format!(", unanswered for {}", whole(Duration::from_secs(secs))));
    format!("source port {} to {destination} is an allocated NodePort{service}{since}", port.port)
}

/// Collisions without harm yet.
fn at_risk(report: &Report, proxy: &ProxyReport) -> Option<Finding> {
    let live = &report.overlap.live;
    let count = live.colliding.filter(|count| *count > 0)?;
    let colliding = || live.flows.iter().filter(|row| row.colliding > Some(0));
    let evidence = colliding().take(4).map(|row| {
        let ports: Vec<String> = row.ports.iter().map(|port| port.port.to_string()).collect();
        Evidence::seen(SourceId::Conntrack, format!("{} to {} with {}", name(row), to(row), ports.join(", ")))
    });
    Some(Finding {
        id: FindingId::NodeportCollision,
        severity: Severity::Warning,
        title: format!(
            "{count} connections have an allocated NodePort as source port; none of them waits for an answer now"
        ),
        subject: "source ports".to_owned(),
        evidence: evidence
            .chain(allocated_basis(&report.overlap))
            .chain(not_told_apart(live))
            .chain([why(&report.overlap, Some(proxy))])
            .collect(),
        remedy: remedy(&report.overlap, colliding()),
    })
}

fn why(overlap: &OverlapReport, harmful: Option<&ProxyReport>) -> Evidence {
    match harmful {
        Some(proxy) => Evidence::seen(SourceId::Services, format!("{}: {}", proxy.proxy.title(), proxy.why)),
        None if !overlap.proxies.is_empty() => Evidence::given(CILIUM_MAY_BE),
        None => Evidence::given("what makes Services reachable here was not recognised (--service-proxy names it)"),
    }
}

/// What keeps source ports away from the NodePorts, for those whom it hit.
fn remedy<'a>(overlap: &OverlapReport, rows: impl Iterator<Item = &'a LiveFlowsReport>) -> String {
    let (mut translated, mut own) = (false, false);
    for port in rows.flat_map(|row| &row.ports) {
        translated |= port.translated;
        own |= !port.translated;
    }
    let mut ways = Vec::new();
    if translated || !own {
        ways.push(masquerade_apart(overlap.node_port_range));
    }
    if own {
        ways.push(own_apart(overlap));
    }
    ways.join("; ")
}

/// What keeps connections of the node itself away from them.
fn own_apart(overlap: &OverlapReport) -> String {
    let host = overlap.ephemeral.iter().find(|row| row.subject == "host");
    match host.and_then(|row| row.reserve.as_ref()) {
        Some(reserve) => format!(
            "keep the node's own source ports away from NodePorts: `sysctl -w net.ipv4.ip_local_reserved_ports={reserve}`, and the \
             same in /etc/sysctl.d"
        ),
        None => format!(
            "the node does not draw its source ports from {}: let the program that binds such a port take another",
            overlap.node_port_range
        ),
    }
}

/// What keeps masquerading away from them.
fn masquerade_apart(node_ports: PortRange) -> String {
    const KEEP: &str = "keep masquerading away from NodePorts: ip-masq-agent --random-fully=false (2.11 and later)";
    let beside = beside(node_ports);
    let list = beside.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    match beside.into_iter().max_by_key(|range| range.count()) {
        Some(largest) => format!(
            "{KEEP} or --to-ports {list} (2.12 and later); for other MASQUERADE rules drop --random-fully, or add --to-ports {largest}"
        ),
        None => format!("{KEEP}; for other MASQUERADE rules drop --random-fully; no port lies beside {node_ports}"),
    }
}

fn name(row: &LiveFlowsReport) -> String {
    match (&row.namespace, &row.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if row.host => "the node itself".to_owned(),
        _ => row.source.to_string(),
    }
}
