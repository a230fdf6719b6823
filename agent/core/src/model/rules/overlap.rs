//! Rules on source ports that reach into the NodePorts.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::observe::SourceId;
use crate::report::Report;

pub(super) fn ephemeral(_view: &View<'_>, report: &Report) -> Vec<Finding> {
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
