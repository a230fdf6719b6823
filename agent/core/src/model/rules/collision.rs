//! Rules on connections whose source port on leaving the node is an allocated NodePort.

use std::time::Duration;

use super::overlap::is_harmless;
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::{Destination, Endpoint};
use crate::model::View;
use crate::model::leak::whole;
use crate::observe::SourceId;
use crate::report::{CollidingPortReport, LiveFlowsReport, ProxyReport, Report};

/// Findings at most, one for each pod and destination.
const MAX_FINDINGS: usize = 10;

pub(super) fn collision(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let overlap = &report.overlap;
    let harmful = overlap.proxies.iter().find(|proxy| proxy.harmful);
    if is_harmless(overlap) {
        return Vec::new();
    }
    let flows = &overlap.live.flows;
    let unanswered = flows.iter().filter(|row| row.unanswered > 0).take(MAX_FINDINGS);
    let mut findings: Vec<Finding> = unanswered.map(|row| lost(view, row, harmful)).collect();
    if findings.is_empty()
        && let Some(proxy) = harmful
    {
        findings.extend(at_risk(report, proxy));
    }
    findings
}

/// Connections of one pod to one destination that get no answer.
fn lost(view: &View<'_>, row: &LiveFlowsReport, harmful: Option<&ProxyReport>) -> Finding {
    let destination = Destination { protocol: row.protocol, endpoint: Endpoint::new(row.address, row.port) };
    let who = name(row);
    let ports: Vec<String> = row
        .ports
        .iter()
        .filter(|port| port.unanswered_secs.is_some())
        .take(4)
        .map(|port| port.port.to_string())
        .collect();
    let more = if row.unanswered > 4 { ", …" } else { "" };
    let connections = if row.unanswered == 1 { "1 connection" } else { &format!("{} connections", row.unanswered) };
    let mut evidence: Vec<Evidence> = row
        .ports
        .iter()
        .filter(|port| port.unanswered_secs.is_some())
        .take(4)
        .map(|port| Evidence::seen(SourceId::Conntrack, port_in_words(row, port, destination)))
        .collect();
    if let Some(account) = view.accounts.iter().find(|account| account.destination == destination) {
        evidence.push(Evidence::seen(
            account.source,
            format!("{} connections to {destination} are open: with other source ports it answers", account.active),
        ));
    }
    if let Some(repeated) = row.syn_unanswered_1m.filter(|repeated| *repeated > 0) {
        evidence
            .push(Evidence::seen(SourceId::Tcp, format!("{who} repeated {repeated} SYNs to it in the last minute")));
    }
    evidence.push(why(harmful));
    Finding {
        id: FindingId::NodeportCollision,
        severity: if harmful.is_some() { Severity::Critical } else { Severity::Warning },
        title: format!(
            "{who} gets no answer from {destination} on {connections} whose source port is an allocated NodePort: {}{more}",
            ports.join(", ")
        ),
        subject: format!("{who} to {destination}"),
        evidence,
        remedy: remedy(view),
    }
}

fn port_in_words(row: &LiveFlowsReport, port: &CollidingPortReport, destination: Destination) -> String {
    let service = port.service.as_ref().map_or_else(String::new, |service| format!(" of {service}"));
    let since = port
        .unanswered_secs
        .map_or_else(String::new, |secs| format!(", unanswered for {}", whole(Duration::from_secs(secs))));
    format!("source port {} is the NodePort{service}: {} to {destination}{since}", port.port, row.source)
}

/// Collisions without harm yet.
fn at_risk(report: &Report, proxy: &ProxyReport) -> Option<Finding> {
    let live = &report.overlap.live;
    let count = live.colliding.filter(|count| *count > 0)?;
    let colliding = live.flows.iter().filter(|row| row.colliding > Some(0));
    let evidence = colliding.take(4).map(|row| {
        let ports: Vec<String> = row.ports.iter().map(|port| port.port.to_string()).collect();
        let to = Destination { protocol: row.protocol, endpoint: Endpoint::new(row.address, row.port) };
        Evidence::seen(SourceId::Conntrack, format!("{} to {to} with {}", name(row), ports.join(", ")))
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
