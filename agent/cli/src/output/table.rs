//! For people: good to read at 80 columns, on a terminal or in a file. One file per part of the report.

use std::collections::BTreeMap;
use std::time::Duration;

use headroom_core::findings::{Finding, FindingId, Severity, exit_code};
use headroom_core::report::Report;

mod clean;
mod conntrack;
pub mod doctor;
mod explain;
mod ipam;
mod nat;
mod overlap;
pub mod plan;
mod restore;
mod sources;
mod width;

pub use clean::{CleanAnswer, clean};
pub use explain::{catalogue, page};
pub use ipam::{Scan, scan};
pub use restore::{RestoreAnswer, restore};
pub use width::Width;

/// A whole report.
pub fn report(report: &Report, watched: Option<Duration>, width: Width) -> String {
    let mut out = String::new();
    let watched = watched.map(|span| format!(" · watched for {} s", span.as_secs())).unwrap_or_default();
    let heading = format!("{} · {}{watched}", report.node, report.time);
    width.wrap(&mut out, "headroom · ", "  ", &heading);
    for finding in report.findings.iter().filter(|finding| finding.severity > Severity::Info) {
        self::finding(&mut out, finding, width);
    }
    nat::nat(&mut out, report, width);
    overlap::ports(&mut out, report, width);
    ipam::ipam(&mut out, report, width);
    conntrack::conntrack(&mut out, report, width);
    sources::sources(&mut out, report, width);
    notes(&mut out, report, width);
    verdict(&mut out, report, width);
    out
}

fn heading(out: &mut String, title: &str, width: Width) {
    out.push('\n');
    out.push_str(&width.strong(title));
    out.push('\n');
}

fn finding(out: &mut String, finding: &Finding, width: Width) {
    let label = finding.severity.name().to_uppercase();
    out.push('\n');
    out.push_str(&format!("{} {}\n", width.paint(finding.severity, &label), finding.id));
    width.wrap(out, "  ", "  ", &finding.title);
    for evidence in finding.evidence.iter().take(6) {
        let source = evidence.source.map_or_else(String::new, |source| format!("{source}: "));
        width.wrap(out, "  · ", "    ", &format!("{source}{}", evidence.said));
    }
    // The first line says what to do, the others are to be pasted.
    let mut lines = finding.remedy.lines();
    width.wrap(out, "  → ", "    ", lines.next().unwrap_or_default());
    lines.for_each(|line| width.wrap(out, "    ", "        ", line));
}

/// Findings that do no harm as far as is known, and what goes wrong now, but not because of what was found; what is said of sources
/// stands above.
fn notes(out: &mut String, report: &Report, width: Width) {
    let mut counts: BTreeMap<FindingId, usize> = BTreeMap::new();
    let mut lines: Vec<String> = Vec::new();
    let notes = report.findings.iter().filter(|finding| finding.severity == Severity::Info);
    for note in notes.filter(|note| note.id != FindingId::SourceDegraded) {
        // Somebody waits for an answer: that is more than a setting that could be better.
        if note.id == FindingId::NodeportCollision {
            lines.push(format!("{}: {}", note.id, note.title));
        } else {
            *counts.entry(note.id).or_default() += 1;
        }
    }
    let named = counts.iter().map(|(id, count)| if *count > 1 { format!("{id} ({count})") } else { id.to_string() });
    let named = named.collect::<Vec<_>>().join(", ");
    if !named.is_empty() {
        lines.push(format!("{named}: not known to do harm here"));
    }
    let [first, others @ ..] = lines.as_slice() else { return };
    out.push('\n');
    width.wrap(out, "notes: ", "    ", first);
    others.iter().for_each(|line| width.wrap(out, "  ", "    ", line));
    width.wrap(out, "  ", "    ", "-o json has what to do");
}

fn verdict(out: &mut String, report: &Report, width: Width) {
    let (severity, text) = match exit_code(&report.findings) {
        0 => (Severity::Info, "clean: nothing is wrong that could be seen"),
        1 => (Severity::Warning, "warnings"),
        2 => (Severity::Critical, "critical"),
        _ => (Severity::Unknown, "could not tell: see what could not be read"),
    };
    out.push('\n');
    out.push_str(&width.paint(severity, text));
    let explain = report.findings.iter().find(|finding| finding.severity > Severity::Info);
    if let Some(finding) = explain {
        out.push_str(&format!(" (headroom explain {})", finding.id));
    }
    out.push('\n');
}

/// Whether a plan fits, as the last line.
fn verdict_of_plan(out: &mut String, fits: bool, width: Width) {
    let (severity, text) = if fits { (Severity::Info, "it fits") } else { (Severity::Critical, "it does not fit") };
    out.push('\n');
    out.push_str(&width.paint(severity, text));
    out.push('\n');
}
