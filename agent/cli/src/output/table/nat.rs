//! NAT ports.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use headroom_core::flow::Protocol;
use headroom_core::model::leak::whole;
use headroom_core::model::nat::{Profile, Serves};
use headroom_core::report::{DemandReport, DestinationReport, PodShare, Report, SourcesReport};
use headroom_core::words::counted;

use super::{Width, heading};

/// Destinations printed at most; the JSON has more.
const MAX_DESTINATIONS: usize = 12;

pub(super) fn nat(out: &mut String, report: &Report, width: Width) {
    heading(out, "NAT ports", width);
    let allocation = &report.nat.allocation;
    let independent = report.nat.endpoint_independent == Some(true);
    let given = allocation.ports.map_or_else(
        // Of a NAT that is known, whose ports are not.
        || match report.nat.profile.as_str() {
            "none" => allocation.why.clone(),
            profile => format!("{profile}: not known: {}", allocation.why),
        },
        |ports| {
            let basis = serde_json::to_value(allocation.basis).ok();
            let basis = basis.as_ref().and_then(serde_json::Value::as_str).unwrap_or("given");
            let profile = Profile::ALL.into_iter().find(|profile| profile.name() == report.nat.profile);
            let each = match profile.map(|profile| profile.port_serves(Protocol::UDP)) {
                _ if independent => "protocol",
                Some(Serves::Address) => "protocol and destination, UDP per address",
                Some(Serves::Destination) | None => "protocol and destination",
            };
            format!("{}: {ports} per {each} ({basis}: {})", report.nat.profile, allocation.why)
        },
    );
    width.wrap(out, "  given   ", "          ", &given);
    allocation.notes.iter().for_each(|note| width.wrap(out, "          · ", "            ", note));
    demand(out, "tcp", &report.nat.demand.tcp, independent, width);
    demand(out, "udp", &report.nat.demand.udp, independent, width);
    if report.nat.demand.icmp.ports.is_some_and(|ports| ports > 0) {
        demand(out, "icmp", &report.nat.demand.icmp, independent, width);
    }
    let in_scope: Vec<&DestinationReport> =
        report.nat.destinations.iter().filter(|destination| destination.in_scope).collect();
    if !in_scope.is_empty() {
        let rows = in_scope.iter().take(MAX_DESTINATIONS).map(|destination| {
            vec![
                format!("{}/{}", endpoint(destination), destination.protocol),
                destination.held.to_string(),
                destination.wanting.to_string(),
                destination.active.to_string(),
                destination.failed_total.map_or_else(|| "?".to_owned(), |failed| failed.to_string()),
                holders(destination),
            ]
        });
        out.push('\n');
        out.push_str(&width.grid(
            &["DESTINATION", "HELD", "WANT", "OPEN", "FAILED", "WHO (HELD)"],
            &[1, 2, 3, 4],
            rows,
        ));
    }
    let unlisted = in_scope.len().saturating_sub(MAX_DESTINATIONS);
    let outside = report.nat.destinations.len() - in_scope.len();
    let mut rest = Vec::new();
    if unlisted > 0 {
        rest.push(format!("{unlisted} smaller ones"));
    }
    if outside > 0 {
        rest.push(format!("{outside} that do not pass the NAT"));
    }
    if report.nat.omitted.destinations > 0 {
        rest.push(format!("{} more holding {} ports", report.nat.omitted.destinations, report.nat.omitted.held));
    }
    if !rest.is_empty() {
        width.wrap(out, "  not shown: ", "    ", &format!("{} (-o json has up to 100)", rest.join(", ")));
    }
    forgotten(out, &in_scope, width);
    pods(out, report, width);
}

/// Connections that the NAT has dropped in silence: they hold nothing, and are not in the columns above.
fn forgotten(out: &mut String, in_scope: &[&DestinationReport], width: Width) {
    let count = |row: &&&DestinationReport| row.forgotten.unwrap_or_default();
    let mut silent: Vec<&&DestinationReport> = in_scope.iter().filter(|row| count(row) > 0).collect();
    if silent.is_empty() {
        return;
    }
    silent.sort_by_key(|row| std::cmp::Reverse(count(row)));
    let told = silent.iter().take(3).map(|row| format!("{} to {}/{}", count(row), endpoint(row), row.protocol));
    let mut text = told.collect::<Vec<_>>().join(", ");
    if silent.len() > 3 {
        let _written = write!(text, " and to {} more", silent.len() - 3);
    }
    width.wrap(out, "  silent  ", "          ", &format!("{text}: open here, but the NAT has dropped them"));
}

/// Pods over all destinations: only where the rows above do not say it all.
fn pods(out: &mut String, report: &Report, width: Width) {
    let pods = &report.nat.pods;
    if pods.len() < 2 || pods.iter().all(|pod| pod.destinations < 2) {
        return;
    }
    let told = pods.iter().take(3).map(|pod| {
        format!(
            "{} ({} to {})",
            named(&pod.namespace, &pod.name, pod.host, pod.address),
            pod.held,
            counted(pod.destinations, "destination")
        )
    });
    let mut text = told.collect::<Vec<_>>().join(", ");
    let more =
        u64::try_from(pods.len().saturating_sub(3)).unwrap_or(u64::MAX).saturating_add(report.nat.pods_omitted.pods);
    if more > 0 {
        let _written = write!(text, " and {more} more");
    }
    width.wrap(out, "  by pod  ", "          ", &text);
}

/// `independent`: the NAT gives a port to each source, and not to each destination's connections.
fn demand(out: &mut String, protocol: &str, demand: &DemandReport, independent: bool, width: Width) {
    let Some(ports) = demand.ports else {
        width.wrap(out, &format!("  {protocol}     "), "          ", "unknown: no source tells of connections");
        return;
    };
    let sources = demand.endpoint_independent.as_ref().filter(|_| independent);
    let mut text = match sources {
        None => format!("needs {ports}"),
        Some(SourcesReport { ports: Some(ports), .. }) => {
            format!("needs {ports}, one for each source address and port")
        }
        Some(SourcesReport { at_least, at_most, .. }) => {
            format!("needs {at_least} to {at_most}, one for each source address and port")
        }
    };
    if let Some(worst) = &demand.worst {
        let to = match worst.destinations {
            0 | 1 => headroom_core::flow::Endpoint::new(worst.address, worst.port).to_string(),
            ports => format!("{} ({ports} ports there, which count together)", worst.address),
        };
        let _written = write!(text, "{} {to}", if sources.is_some() { "; most of them to" } else { " for" });
    }
    if let Some(peak) = demand.peak_1h.filter(|peak| *peak > ports) {
        let _written = write!(text, ", peak {peak}");
    }
    if let (Some(secs), Some(basis)) = (demand.exhausted_in_secs, &demand.exhausted_basis) {
        let _written = write!(text, "; full in about {} ({basis})", whole(Duration::from_secs(secs)));
    }
    if let Some(rate) = demand.rate.as_ref().filter(|rate| rate.per_sec > 0.0) {
        let allowed = rate.allowed_per_sec.map_or_else(String::new, |allowed| format!(" of {allowed} sustainable"));
        let _written = write!(text, "; {}{allowed} new connections/s", rate.per_sec);
    }
    width.wrap(out, &format!("  {protocol}     "), "          ", &text);
}

fn endpoint(destination: &DestinationReport) -> headroom_core::flow::Endpoint {
    headroom_core::flow::Endpoint::new(destination.address, destination.port)
}

fn holders(destination: &DestinationReport) -> String {
    let named = destination
        .pods
        .iter()
        .take(2)
        .map(|pod| format!("{} ({})", who(pod), pod.held))
        .collect::<Vec<_>>()
        .join(", ");
    let shown = u32::try_from(destination.pods.len().saturating_sub(2)).unwrap_or(u32::MAX);
    match shown.saturating_add(destination.pods_omitted) {
        0 => named,
        more => format!("{named} +{more}"),
    }
}

fn who(pod: &PodShare) -> String {
    if let Some(owner) = pod.owners.first().filter(|_| pod.host) {
        return match (&owner.namespace, &owner.name) {
            (Some(namespace), Some(name)) => format!("node: {namespace}/{name}"),
            _ => format!("node: {}", owner.process),
        };
    }
    named(&pod.namespace, &pod.name, pod.host, pod.address)
}

fn named(namespace: &Option<String>, name: &Option<String>, host: bool, address: IpAddr) -> String {
    match (namespace, name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if host => "node".to_owned(),
        _ => address.to_string(),
    }
}
