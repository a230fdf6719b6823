//! Rules on connections whose source port on leaving the node is an allocated NodePort.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::overlap::is_harmless;
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::{Destination, Endpoint};
use crate::model::View;
use crate::model::leak::whole;
use crate::observe::SourceId;
use crate::report::{CollidingPortReport, LiveFlowsReport, ProxyReport, Report};

/// Findings at most, one for each pod.
const MAX_FINDINGS: usize = 10;

pub(super) fn collision(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let overlap = &report.overlap;
    let harmful = overlap.proxies.iter().find(|proxy| proxy.harmful);
    if is_harmless(overlap) {
        return Vec::new();
    }
    let mut by_pod: BTreeMap<IpAddr, Vec<&LiveFlowsReport>> = BTreeMap::new();
    for row in overlap.live.flows.iter().filter(|row| row.unanswered > 0) {
        by_pod.entry(row.source).or_default().push(row);
    }
    let mut findings: Vec<Finding> = by_pod.values().map(|rows| lost(view, rows, harmful)).collect();
    findings.truncate(MAX_FINDINGS);
    if findings.is_empty()
        && let Some(proxy) = harmful
    {
        findings.extend(at_risk(report, proxy));
    }
    findings
}

/// Whether connects to a destination that wait for an answer wait because of their source port.
pub(super) fn explains(report: &Report, destination: Destination, wanting: u32) -> bool {
    let flows = report.overlap.live.flows.iter();
    let unanswered = flows.filter(|row| to(row) == destination).map(|row| row.unanswered).sum::<u64>();
    !is_harmless(&report.overlap) && unanswered > 0 && unanswered >= u64::from(wanting)
}

fn to(row: &LiveFlowsReport) -> Destination {
    Destination { protocol: row.protocol, endpoint: Endpoint::new(row.address, row.port) }
}

/// Connections of one pod that get no answer.
fn lost(view: &View<'_>, rows: &[&LiveFlowsReport], harmful: Option<&ProxyReport>) -> Finding {
    let who = rows.first().map_or_else(String::new, |row| name(row));
    let unanswered: u64 = rows.iter().map(|row| row.unanswered).sum();
    let single = |row: &&LiveFlowsReport| -> Vec<(Destination, CollidingPortReport)> {
        row.ports.iter().filter(|port| port.unanswered_secs.is_some()).map(|port| (to(row), port.clone())).collect()
    };
    let mut ports: Vec<_> = rows.iter().flat_map(single).collect();
    ports.sort_by_key(|(_, port)| (Reverse(port.unanswered_secs), port.port));
    let numbers: Vec<String> = ports.iter().take(4).map(|(_, port)| port.port.to_string()).collect();
    let more = if unanswered > 4 { ", …" } else { "" };
    let connections = if unanswered == 1 { "1 connection".to_owned() } else { format!("{unanswered} connections") };
    let mut evidence: Vec<Evidence> = ports
        .iter()
        .take(3)
        .map(|(destination, port)| Evidence::seen(SourceId::Conntrack, port_in_words(port, *destination)))
        .collect();
    for row in rows.iter().take(3) {
        let destination = to(row);
        let account = view.accounts.iter().find(|account| account.destination == destination);
        let others = account.map_or_else(String::new, |account| {
            format!("; with other source ports it answers, {} are open", account.active)
        });
        let repeated = row.syn_unanswered_1m.filter(|repeated| *repeated > 0);
        let repeated =
            repeated.map_or_else(String::new, |repeated| format!(", {repeated} SYNs repeated in the last minute"));
        evidence.push(Evidence::seen(
            SourceId::Conntrack,
            format!("{destination}: {} without an answer{repeated}{others}", row.unanswered),
        ));
    }
    evidence.push(why(harmful));
    Finding {
        id: FindingId::NodeportCollision,
        severity: if harmful.is_some() { Severity::Critical } else { Severity::Warning },
        title: format!(
            "{who} gets no answer on {connections} whose source port is an allocated NodePort: {}{more}",
            numbers.join(", ")
        ),
        subject: who,
        evidence,
        remedy: remedy(view),
    }
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
    let colliding = live.flows.iter().filter(|row| row.colliding > Some(0));
    let evidence = colliding.take(4).map(|row| {
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
        evidence: evidence.chain([why(Some(proxy))]).collect(),
        remedy: REMEDY.to_owned(),
    })
}

fn why(harmful: Option<&ProxyReport>) -> Evidence {
    match harmful {
        Some(proxy) => Evidence::seen(SourceId::Services, format!("{}: {}", proxy.proxy.title(), proxy.why)),
        None => Evidence::given("what makes Services reachable here was not recognised (--service-proxy names it)"),
    }
}

const REMEDY: &str = "keep masquerading away from NodePorts: ip-masq-agent --random-fully=false (2.11 and later) or --to-ports \
    1024-29999,32768-65535 (2.12 and later); for other MASQUERADE rules drop --random-fully, or add --to-ports 32768-65535";

fn remedy(view: &View<'_>) -> String {
    let range = view.policy.node_ports;
    if range == crate::ports::PortRange::NODE_PORTS {
        return REMEDY.to_owned();
    }
    format!("keep masquerading away from the NodePorts {range}: no --random-fully, or --to-ports that leaves them out")
}

fn name(row: &LiveFlowsReport) -> String {
    match (&row.namespace, &row.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if row.host => "the node itself".to_owned(),
        _ => row.source.to_string(),
    }
}
