//! From which ports each network namespace draws, and which of them are NodePorts.

use std::collections::BTreeMap;

use crate::known::Known;
use crate::ledger::Ledger;
use crate::observe::Namespace;
use crate::ports::{PortRange, PortSettings};
use crate::report::EphemeralReport;

/// What a namespace is known to draw from: its settings, and in their absence the range its sockets showed.
type Settings<'a> = (&'a Known<PortSettings>, Option<PortRange>);

/// One row for the node and one per distinct setting of the other namespaces: pods mostly share theirs.
pub(super) fn ephemeral(ledger: &Ledger, node_ports: PortRange) -> Vec<EphemeralReport> {
    let pods = ledger.occupants().pods();
    let subject = |namespace: &Namespace| {
        let addresses = namespace.addresses.present().into_iter().flatten();
        let pod = addresses.filter_map(|address| pods.get(address)).next();
        pod.map_or_else(|| namespace.inode.to_string(), ToString::to_string)
    };
    let mut rows = Vec::new();
    let mut grouped: BTreeMap<Settings<'_>, (Vec<String>, u32)> = BTreeMap::new();
    for namespace in ledger.occupants().namespaces() {
        if namespace.host {
            rows.push(row("host".to_owned(), 1, &namespace.ports, None, node_ports));
        } else {
            let unknown = namespace.ports.present().is_none();
            let dialled = unknown.then(|| ledger.occupants().dialled_range_of(namespace.inode)).flatten();
            let group = grouped.entry((&namespace.ports, dialled)).or_default();
            group.0.push(subject(namespace));
            group.1 = group.1.saturating_add(1);
        }
    }
    rows.extend(grouped.into_iter().map(|((settings, dialled), (mut subjects, count))| {
        // Names that people know come first.
        subjects.sort_by(|a, b| a.starts_with("net:").cmp(&b.starts_with("net:")).then(a.cmp(b)));
        let named = subjects.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let subject = if subjects.len() > 3 { format!("{named} and {} more", subjects.len() - 3) } else { named };
        row(subject, count, settings, dialled, node_ports)
    }));
    rows
}

fn row(
    subject: String,
    namespaces: u32,
    settings: &Known<PortSettings>,
    dialled: Option<PortRange>,
    node_ports: PortRange,
) -> EphemeralReport {
    match settings {
        Known::Present(settings) => {
            let overlap = settings.open_in(node_ports);
            EphemeralReport {
                subject,
                namespaces,
                range: Some(settings.ephemeral),
                reserved: settings.reserved.clone(),
                overlap_ports: Some(overlap.iter().map(|range| range.count()).sum()),
                reserve: (!overlap.is_empty()).then(|| settings.reserved_with(node_ports)),
                overlap,
                why: None,
            }
        }
        Known::Absent | Known::Unknown(_) => {
            let why = settings.unknown().map_or_else(|| "not there".to_owned(), ToString::to_string);
            // A range that is apart from the NodePorts stays so whatever is reserved; one that is not may be mended by that.
            let apart = dialled.is_some_and(|range| range.intersect(node_ports).is_none());
            EphemeralReport {
                subject,
                namespaces,
                range: dialled,
                reserved: Vec::new(),
                overlap: Vec::new(),
                overlap_ports: apart.then_some(0),
                reserve: None,
                why: (!apart).then_some(why),
            }
        }
    }
}
