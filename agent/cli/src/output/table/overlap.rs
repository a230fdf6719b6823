//! Source ports and NodePorts.

use headroom_core::report::Report;

use super::{Width, heading};

pub(super) fn ports(out: &mut String, report: &Report, width: Width) {
    heading(out, "Source ports and NodePorts", width);
    let overlap = &report.overlap;
    if overlap.ephemeral.is_empty() {
        width.wrap(out, "  ", "  ", "no network namespace could be read");
    }
    for row in overlap.ephemeral.iter().take(8) {
        let what = match (row.range, row.overlap_ports) {
            (Some(range), Some(0)) => format!("{range}, apart from the NodePorts {}", overlap.node_port_range),
            (Some(range), Some(ports)) => format!("{range}, {ports} of them NodePorts ({})", overlap.node_port_range),
            (Some(range), None) => {
                let why = row.why.as_deref().unwrap_or("not read");
                format!("{range}, which are reserved is unknown: {why}")
            }
            _ => format!("unknown: {}", row.why.as_deref().unwrap_or("not read")),
        };
        let subject = if row.namespaces > 1 {
            format!("{} namespaces ({})", row.namespaces, row.subject)
        } else {
            row.subject.clone()
        };
        width.wrap(out, "  ", "    ", &format!("{subject}: {what}"));
    }
    if overlap.ephemeral.len() > 8 {
        width.wrap(out, "  ", "    ", &format!("and {} more settings", overlap.ephemeral.len() - 8));
    }
    if let (Some(translated), Some(inside)) = (overlap.live.translated, overlap.live.in_node_port_range) {
        let text = format!("{inside} of {translated} translated flows leave the node with a NodePort as source port");
        width.wrap(out, "  live: ", "    ", &text);
    }
    for missing in &overlap.not_observed {
        width.wrap(out, "  not observed: ", "    ", missing);
    }
}
