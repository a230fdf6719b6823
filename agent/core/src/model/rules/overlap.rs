//! Rules on source ports that reach into the NodePorts.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::observe::SourceId;
use crate::report::{EphemeralReport, OverlapReport, ProxyReport, Report};

/// Network namespaces that may pick an allocated NodePort as source port.
pub(super) fn ephemeral(_view: &View<'_>, report: &Report) -> Vec<Finding> {
    let colliding = report.overlap.ephemeral.iter().filter(|row| row.overlap_ports.is_some_and(|ports| ports > 0));
    colliding.map(|row| ephemeral_of(row, &report.overlap)).collect()
}

fn ephemeral_of(row: &EphemeralReport, overlap: &OverlapReport) -> Finding {
    let node_ports = overlap.node_port_range;
    let range = row.range.map_or_else(String::new, |range| range.to_string());
    let host = row.subject == "host";
    let ports = row.overlap_ports.unwrap_or_default();
    let mut evidence = vec![Evidence::seen(
        SourceId::Namespaces,
        format!("ip_local_port_range {range}, {ports} of {} NodePorts not reserved", node_ports.count()),
    )];
    evidence.extend(harm(overlap));
    let reserve = row.reserve.as_ref().map_or_else(|| node_ports.to_string(), Clone::clone);
    let beside = if row.reserved.is_empty() { "" } else { " (keeps what is reserved already)" };
    let remedy = if host {
        format!(
            "sysctl -w net.ipv4.ip_local_reserved_ports={reserve}{beside}, and the same in /etc/sysctl.d; or move \
             ip_local_port_range above {}",
            node_ports.last()
        )
    } else {
        format!(
            "set net.ipv4.ip_local_reserved_ports={reserve}{beside} in the pod's securityContext.sysctls (a safe sysctl since \
             Kubernetes 1.27), or move its ip_local_port_range above {}",
            node_ports.last()
        )
    };
    Finding {
        id: FindingId::EphemeralOverlapsNodeport,
        // A pod's source port only matters where it survives masquerading.
        severity: if host && !is_harmless(overlap) { Severity::Warning } else { Severity::Info },
        title: format!("source ports {range} of {} reach into the NodePorts {node_ports} ({ports} ports)", row.subject),
        subject: row.subject.clone(),
        evidence,
        remedy,
    }
}

/// Every proxy that was recognised lets replies pass; without one, that is not known.
pub(super) fn is_harmless(overlap: &OverlapReport) -> bool {
    !overlap.proxies.is_empty() && overlap.proxies.iter().all(|proxy| !proxy.harmful)
}

/// What the proxies of this node do to a reply that comes to a NodePort: the harmful one, or else all of them.
pub(super) fn harm(overlap: &OverlapReport) -> Vec<Evidence> {
    let harmful: Vec<&ProxyReport> = overlap.proxies.iter().filter(|proxy| proxy.harmful).collect();
    let told = if harmful.is_empty() { overlap.proxies.iter().collect() } else { harmful };
    let says = |row: &ProxyReport| {
        let word = if row.harmful { "a collision does harm" } else { "a collision does no harm" };
        Evidence::given(format!("{}: {word}: {}", row.proxy.title(), row.why))
    };
    if told.is_empty() {
        return vec![Evidence::given(
            "no proxy for Services was recognised on this node: harmful with Cilium, Dataplane V2 and ipvs, not with iptables \
             and nftables",
        )];
    }
    told.into_iter().map(says).collect()
}
