//! What was observed.

use headroom_core::report::{CoverageReport, CoverageState, Report};

use super::{Width, heading};

pub(super) fn sources(out: &mut String, report: &Report, width: Width) {
    heading(out, "What was observed", width);
    coverage(out, &report.coverage, width);
    for (what, total) in report.lost.iter().filter(|(_, total)| **total > 0) {
        width.wrap(out, "  lost: ", "    ", &format!("{what} {total}"));
    }
}

/// One line per source that does not work fully, one for all that do.
pub(super) fn coverage(out: &mut String, rows: &[CoverageReport], width: Width) {
    let names = |state| {
        let rows = rows.iter().filter(move |row| row.state == state);
        rows.map(|row| row.source.name()).collect::<Vec<_>>().join(", ")
    };
    let working = names(CoverageState::Ok);
    if !working.is_empty() {
        width.wrap(out, "  works: ", "    ", &working);
    }
    let absent = names(CoverageState::Absent);
    if !absent.is_empty() {
        width.wrap(out, "  not on this node: ", "    ", &absent);
    }
    for row in rows {
        let why = row.why.as_deref().unwrap_or("no reason given");
        match row.state {
            CoverageState::Degraded => {
                let how = row.how.as_deref().unwrap_or("");
                width.wrap(out, "  partly: ", "    ", &format!("{} ({how}): {why}", row.source));
            }
            CoverageState::Unknown => width.wrap(out, "  could not read: ", "    ", &format!("{}: {why}", row.source)),
            CoverageState::Ok | CoverageState::Absent => {}
        }
    }
}
