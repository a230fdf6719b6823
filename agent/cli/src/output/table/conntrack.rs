//! The conntrack table.

use std::time::Duration;

use headroom_core::model::leak::whole;
use headroom_core::report::{CensusReport, ConntrackReport, Report};

use super::{Width, heading};

pub(super) fn conntrack(out: &mut String, report: &Report, width: Width) {
    heading(out, "conntrack", width);
    let table = &report.conntrack;
    let text = match (table.entries, table.max) {
        (Some(entries), Some(max)) => {
            let share = entries.saturating_mul(100) / max.max(1);
            let count = |name: &str, value: Option<u64>| {
                value.map_or_else(|| format!("{name} unknown"), |value| format!("{name} {value}"))
            };
            let counts = [
                count("insert_failed", table.insert_failed),
                count("drop", table.drop),
                count("early_drop", table.early_drop),
            ];
            let counts = match &table.why {
                Some(why) => format!("{} ({why})", counts.join(", ")),
                None => counts.join(", "),
            };
            let drift = table.drift.filter(|drift| drift.comparisons > 0).map_or_else(String::new, |drift| {
                let open = match drift.open {
                    0 => String::new(),
                    open => format!(", up to {open} not certain yet"),
                };
                format!(
                    "; counted in the kernel, corrected by {} in {} comparisons{open}",
                    drift.total, drift.comparisons
                )
            });
            format!("{entries} of {max} entries ({share} %); since boot {counts}{drift}")
        }
        (Some(entries), None) => format!("{entries} entries, of how many is unknown: {}", why(table)),
        (None, Some(max)) => format!("room for {max} entries; how many there are is unknown: {}", why(table)),
        (None, None) => format!("unknown: {}", why(table)),
    };
    width.wrap(out, "  ", "  ", &text);
    if let Some((secs, basis)) = table.full_in_secs.zip(table.full_basis.as_ref()) {
        let text = format!("in about {} ({basis})", whole(Duration::from_secs(secs)));
        width.wrap(out, "  full: ", "    ", &text);
    }
    if let Some(census) = table.census.as_ref().filter(|census| census.entries > 0) {
        who(out, census, width);
    }
    hairpins(out, table, width);
    lost(out, table, width);
}

fn why(table: &ConntrackReport) -> &str {
    table.why.as_deref().unwrap_or("not read")
}

/// Entries of pods that talk to themselves, where some were left behind.
fn hairpins(out: &mut String, table: &ConntrackReport, width: Width) {
    for row in table.hairpins.iter().filter(|row| row.left_behind > Some(0)).take(4) {
        let name = match (&row.namespace, &row.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => row.address.to_string(),
        };
        let service = headroom_core::flow::Endpoint::new(row.service_address, row.service_port);
        let text = format!(
            "{name} through {service}/{}: {} entries, {} sockets, {} left behind",
            row.protocol,
            row.entries,
            row.sockets.unwrap_or_default(),
            row.left_behind.unwrap_or_default()
        );
        width.wrap(out, "  to itself: ", "    ", &text);
    }
    if let Some(cilium) = &table.cilium {
        let maps = cilium.maps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let text = format!(
            "{maps}; {}{} left behind by pods that talk to themselves, {} of them break connections",
            if cilium.complete { "" } else { "at least " },
            cilium.left_behind,
            cilium.broken
        );
        width.wrap(out, "  Cilium's own: ", "    ", &text);
    }
}

/// Who has most entries, and what they are doing.
fn who(out: &mut String, census: &CensusReport, width: Width) {
    let sources = census.sources.iter().take(4).map(|source| {
        let name = match (&source.namespace, &source.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ if source.host => "node".to_owned(),
            _ => source.address.to_string(),
        };
        format!("{name} {}", source.entries)
    });
    let mut sources: Vec<String> = sources.collect();
    let listed: u64 = census.sources.iter().take(4).map(|source| source.entries).sum();
    if census.entries > listed {
        sources.push(format!("others {}", census.entries - listed));
    }
    width.wrap(out, "  opened by: ", "    ", &sources.join(", "));
    let mut states: Vec<_> = census.states.iter().collect();
    states.sort_by_key(|state| std::cmp::Reverse(state.entries));
    let states: Vec<String> = states.iter().take(5).map(|state| format!("{} {}", state.state, state.entries)).collect();
    width.wrap(out, "  states: ", "    ", &states.join(", "));
}

/// What else went wrong since boot.
fn lost(out: &mut String, table: &ConntrackReport, width: Width) {
    let counts = [
        ("packets of new connections dropped because the table was full", table.table_full),
        ("entries refused because their hash chain was too long", table.chain_toolong),
    ];
    for (what, count) in counts {
        if let Some(count) = count.filter(|count| *count > 0) {
            width.wrap(out, "  since boot: ", "    ", &format!("{count} {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises a table of which a part could be read. If this fails, a number that is known is hidden behind one that is not.
    #[test]
    fn what_is_known_of_the_table_is_told_beside_what_is_not() {
        let text =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/reports/nat-exhausted.json"));
        let mut report: Report = serde_json::from_str(text).unwrap();
        let mut told = |entries, max, why: &str| {
            report.conntrack =
                ConntrackReport { entries, max, why: Some(why.to_owned()), ..ConntrackReport::default() };
            let mut out = String::new();
            conntrack(&mut out, &report, Width::plain(200));
            out.lines().last().unwrap_or_default().trim().to_owned()
        };
        assert_eq!(
            told(Some(100), Some(1000), "no statistics"),
            "100 of 1000 entries (10 %); since boot insert_failed unknown, drop unknown, early_drop unknown (no statistics)"
        );
        assert_eq!(told(Some(100), None, "no maximum"), "100 entries, of how many is unknown: no maximum");
        assert_eq!(told(None, Some(9), "no count"), "room for 9 entries; how many there are is unknown: no count");
        assert_eq!(told(None, None, "nothing"), "unknown: nothing");
    }
}
