//! For people: good to read at 80 columns, on a terminal or in a file.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use headroom_core::findings::catalog::Page;
use headroom_core::findings::{Finding, Severity, exit_code};
use headroom_core::model::leak::{Verdict, whole};
use headroom_core::report::{
    CoverageReport, CoverageState, DemandReport, DestinationReport, EntryReport, NetworkReport, PodShare, Report,
};
use serde::Serialize;

pub mod doctor;

/// Destinations printed at most; the JSON has more.
const MAX_DESTINATIONS: usize = 12;
/// Reservations that are in use are not printed one by one beyond this many.
const MAX_ENTRIES: usize = 200;

/// How wide to print, and whether in colour.
#[derive(Debug, Clone, Copy)]
pub struct Width {
    columns: usize,
    colour: bool,
}

impl Width {
    /// As stdout wants it: the terminal's width (60 to 140), 80 and no colour when piped.
    pub fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let columns = terminal_size::terminal_size().filter(|_| terminal).map_or(80, |(width, _)| usize::from(width.0));
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { columns: columns.clamp(60, 140), colour }
    }

    /// Fixed, without colour.
    pub fn plain(columns: usize) -> Self {
        Self { columns, colour: false }
    }

    fn paint(self, severity: Severity, text: &str) -> String {
        let code = match severity {
            Severity::Critical => "1;31",
            Severity::Warning => "1;33",
            Severity::Unknown => "1;35",
            Severity::Info => "36",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn strong(self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn wrap(self, out: &mut String, first: &str, rest: &str, text: &str) {
        let options = textwrap::Options::new(self.columns)
            .initial_indent(first)
            .subsequent_indent(rest)
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        for line in textwrap::wrap(&clean(text), options) {
            out.push_str(&line);
            out.push('\n');
        }
    }

    fn grid(self, headings: &[&str], right: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(self.columns).unwrap_or(80));
        table.set_header(headings.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|cell| clean(cell)));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 2 } else { 1 }, 1));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
        lines.concat()
    }
}

/// Foreign names must not steer the terminal: control characters are shown, not obeyed.
fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// A whole report.
pub fn report(report: &Report, watched: Option<Duration>, width: Width) -> String {
    let mut out = String::new();
    let watched = watched.map(|span| format!(" · watched for {} s", span.as_secs())).unwrap_or_default();
    let heading = format!("{} · {}{watched}", report.node, report.time);
    width.wrap(&mut out, "headroom · ", "  ", &heading);
    for finding in report.findings.iter().filter(|finding| finding.severity > Severity::Info) {
        self::finding(&mut out, finding, width);
    }
    nat(&mut out, report, width);
    ports(&mut out, report, width);
    ipam(&mut out, report, width);
    conntrack(&mut out, report, width);
    sources(&mut out, report, width);
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
    width.wrap(out, "  → ", "    ", &finding.remedy);
}

fn nat(out: &mut String, report: &Report, width: Width) {
    heading(out, "NAT ports", width);
    let allocation = &report.nat.allocation;
    let given = allocation.ports.map_or_else(
        || allocation.why.clone(),
        |ports| {
            let basis = serde_json::to_value(allocation.basis).ok();
            let basis = basis.as_ref().and_then(serde_json::Value::as_str).unwrap_or("given");
            format!("{}: {ports} per protocol and destination ({basis}: {})", report.nat.profile, allocation.why)
        },
    );
    width.wrap(out, "  given   ", "          ", &given);
    demand(out, "tcp", &report.nat.demand.tcp, width);
    demand(out, "udp", &report.nat.demand.udp, width);
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
}

fn demand(out: &mut String, protocol: &str, demand: &DemandReport, width: Width) {
    let Some(ports) = demand.ports else {
        width.wrap(out, &format!("  {protocol}     "), "          ", "unknown: no source tells of connections");
        return;
    };
    let mut text = format!("needs {ports}");
    if let Some(worst) = &demand.worst {
        let worst = headroom_core::flow::Endpoint::new(worst.address, worst.port);
        let _written = write!(text, " for {worst}");
    }
    if let Some(peak) = demand.peak_1h.filter(|peak| *peak > ports) {
        let _written = write!(text, ", peak {peak}");
    }
    if let (Some(secs), Some(basis)) = (demand.exhausted_in_secs, &demand.exhausted_basis) {
        let _written = write!(text, "; full in about {} ({basis})", whole(Duration::from_secs(secs)));
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
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if pod.host => "node".to_owned(),
        _ => pod.address.to_string(),
    }
}

fn ports(out: &mut String, report: &Report, width: Width) {
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

fn ipam(out: &mut String, report: &Report, width: Width) {
    heading(out, "Pod IPs", width);
    if report.ipam.networks.is_empty() {
        width.wrap(out, "  ", "  ", &nothing_listed(&report.coverage, "no host-local store on this node"));
        return;
    }
    out.push_str(&networks(&report.ipam.networks, width));
}

/// What to say where no network is listed: why the store could not be read, or that there is `none`.
fn nothing_listed(coverage: &[CoverageReport], none: &str) -> String {
    let host_local = coverage.iter().find(|row| row.source == headroom_core::observe::SourceId::HostLocal);
    host_local.and_then(|row| row.why.as_ref()).map_or_else(|| none.to_owned(), |why| format!("unknown: {why}"))
}

fn networks(networks: &[NetworkReport], width: Width) -> String {
    let rows = networks.iter().map(|network| {
        let counts = network.counts;
        // An incomplete reading shows at least, not at most.
        let name =
            if network.complete { network.network.clone() } else { format!("{} (read in part)", network.network) };
        let mut row = vec![name, network.usable.map_or_else(|| "?".to_owned(), |usable| usable.to_string())];
        row.extend([counts.in_use, counts.settling, counts.leaked, counts.undetermined].map(|count| count.to_string()));
        row
    });
    width.grid(&["NETWORK", "USABLE", "IN USE", "SETTLING", "LEAKED", "UNDETERMINED"], &[1, 2, 3, 4, 5], rows)
}

fn conntrack(out: &mut String, report: &Report, width: Width) {
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

fn sources(out: &mut String, report: &Report, width: Width) {
    heading(out, "What was observed", width);
    coverage(out, &report.coverage, width);
    for (what, total) in report.lost.iter().filter(|(_, total)| **total > 0) {
        width.wrap(out, "  lost: ", "    ", &format!("{what} {total}"));
    }
}

/// One line per source that does not work fully, one for all that do.
fn coverage(out: &mut String, rows: &[CoverageReport], width: Width) {
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

/// What `headroom ipam scan` answers.
#[derive(Debug, Serialize)]
pub struct Scan<'a> {
    /// The node.
    pub node: &'a str,
    /// When.
    pub time: &'a str,
    /// What each source could do.
    pub coverage: &'a [CoverageReport],
    /// The networks, complete.
    pub networks: &'a [NetworkReport],
}

/// The answer of `headroom ipam scan`.
pub fn scan(scan: &Scan<'_>, width: Width) -> String {
    let mut out = String::new();
    width.wrap(&mut out, "headroom · ", "  ", &format!("{} · {}", scan.node, scan.time));
    heading(&mut out, "Pod IPs", width);
    if scan.networks.is_empty() {
        width.wrap(&mut out, "  ", "  ", &nothing_listed(scan.coverage, "no reservations were found"));
    } else {
        out.push_str(&networks(scan.networks, width));
    }
    for network in scan.networks {
        heading(&mut out, &format!("{} ({})", clean(&network.network), clean(&network.store)), width);
        let (used, others): (Vec<&EntryReport>, Vec<&EntryReport>) =
            network.entries.iter().partition(|entry| entry.verdict == Verdict::InUse);
        let rows = others.iter().chain(&used).take(MAX_ENTRIES).map(|entry| {
            let container =
                entry.container_id.as_deref().map_or_else(|| "-".to_owned(), |id| id.chars().take(12).collect());
            let age = entry.age_secs.map_or_else(|| "?".to_owned(), |secs| whole(Duration::from_secs(secs)));
            let pod = entry.pod.as_ref().map(|pod| format!("{pod}: ")).unwrap_or_default();
            vec![
                entry.address.to_string(),
                entry.verdict.name().to_owned(),
                age,
                container,
                format!("{pod}{}", entry.evidence.join("; ")),
            ]
        });
        out.push_str(&width.grid(&["ADDRESS", "VERDICT", "AGE", "CONTAINER", "EVIDENCE"], &[2], rows));
        if network.entries.len() > MAX_ENTRIES {
            width.wrap(
                &mut out,
                "  ",
                "  ",
                &format!("and {} more (-o json has all)", network.entries.len() - MAX_ENTRIES),
            );
        }
        if let Some(why) = &network.usable_why {
            width.wrap(&mut out, "  usable addresses are not known: ", "    ", why);
        }
        if !network.ignored.is_empty() {
            width.wrap(&mut out, "  names that are no reservations: ", "    ", &network.ignored.join(", "));
        }
    }
    heading(&mut out, "What was observed", width);
    coverage(&mut out, scan.coverage, width);
    out
}

/// The list of findings.
pub fn catalogue(pages: &[Page]) -> String {
    pages.iter().map(|page| format!("{:28} {}\n", page.name, page.title)).collect()
}

/// One page of the catalogue.
pub fn page(page: &Page, width: Width) -> String {
    let mut out = format!("{}\n{}\n", width.strong(page.name), page.title);
    for (title, text) in [("What it means", page.means), ("Why it matters", page.matters), ("What to do", page.remedy)]
    {
        heading(&mut out, title, width);
        width.wrap(&mut out, "  ", "  ", text);
    }
    out
}
