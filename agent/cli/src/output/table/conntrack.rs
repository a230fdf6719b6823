//! The conntrack table.

use headroom_core::report::Report;

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
            let drift = table.drift.filter(|drift| drift.comparisons > 0).map_or_else(String::new, |drift| {
                format!("; counted in the kernel, corrected by {} in {} comparisons", drift.total, drift.comparisons)
            });
            format!("{entries} of {max} entries ({share} %); since boot {}{drift}", counts.join(", "))
        }
        _ => format!("unknown: {}", table.why.as_deref().unwrap_or("not read")),
    };
    width.wrap(out, "  ", "  ", &text);
}
