//! Pod addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use headroom_core::model::leak::{Verdict, whole};
use headroom_core::report::{CoverageReport, EntryReport, NetworkReport, Report};
use serde::Serialize;

use super::sources::coverage;
use super::width::clean;
use super::{Width, heading};

/// Reservations that are in use are not printed one by one beyond this many.
const MAX_ENTRIES: usize = 200;

pub(super) fn ipam(out: &mut String, report: &Report, width: Width) {
    heading(out, "Pod IPs", width);
    if report.ipam.networks.is_empty() {
        width.wrap(out, "  ", "  ", &nothing_listed(&report.coverage, "no host-local store on this node"));
        return;
    }
    out.push_str(&networks(&report.ipam.networks, width));
    report.ipam.networks.iter().for_each(|network| capacity(out, network, width));
}

/// Where a network's addresses come from, and how much of that is left.
fn capacity(out: &mut String, network: &NetworkReport, width: Width) {
    for set in &network.range_sets {
        let next = match set.next {
            Some(next) => format!(", next {next}"),
            None if set.exhausted => ", none is left".to_owned(),
            None => String::new(),
        };
        // An incomplete reading shows at least, not at most.
        let least = if network.complete { "" } else { "at least " };
        let soon = match (set.exhausted_in_secs, &set.exhausted_basis) {
            (Some(secs), Some(basis)) => format!("; none left in about {} ({basis})", whole(Duration::from_secs(secs))),
            _ => String::new(),
        };
        let text = format!("{least}{} of {} in {} reserved{next}{soon}", set.used, set.usable, set.ranges.join(", "));
        width.wrap(out, "  ", "    ", &format!("{}: {text}", network.network));
    }
    if let Some(outside) = network.outside_ranges.filter(|outside| *outside > 0) {
        let text = format!("{outside} reservations are in none of its ranges: the configuration has changed");
        width.wrap(out, "  ", "    ", &format!("{}: {text}", network.network));
    }
    if let Some(pool) = &network.pool {
        let beyond = pool.beyond_target.filter(|beyond| *beyond > 0);
        let text = format!(
            "{} attached, {} held by pods, {} idle ({} cooling{}); {}",
            pool.total,
            pool.assigned,
            pool.idle,
            pool.cooling,
            beyond.map_or_else(String::new, |beyond| format!(", {beyond} more than asked for")),
            pool.targets
        );
        width.wrap(out, "  ", "    ", &format!("{}: {text}", network.network));
    }
    if let Some(why) = &network.pool_why {
        width.wrap(
            out,
            "  ",
            "    ",
            &format!("{}: how many addresses are attached is not known: {why}", network.network),
        );
    }
    if let Some(stranded) = network.stranded.as_ref().filter(|stranded| stranded.stranded * 4 >= stranded.addresses * 3)
    {
        let text = format!(
            "{} of the range's {} addresses are stranded: {} pods need no more than a /{}",
            stranded.stranded, stranded.addresses, stranded.pods, stranded.prefix_needed
        );
        width.wrap(out, "  ", "    ", &format!("{}: {text}", network.network));
    }
}

/// What to say where no network is listed: why the store could not be read, or that there is `none`.
fn nothing_listed(coverage: &[CoverageReport], none: &str) -> String {
    let host_local = coverage.iter().find(|row| row.source == headroom_core::observe::SourceId::HostLocal);
    host_local.and_then(|row| row.why.as_ref()).map_or_else(|| none.to_owned(), |why| format!("unknown: {why}"))
}

fn networks(networks: &[NetworkReport], width: Width) -> String {
    let rows = networks.iter().map(|network| {
        let counts = network.counts;
        let name =
            if network.complete { network.network.clone() } else { format!("{} (read in part)", network.network) };
        let mut row = vec![name, network.usable.map_or_else(|| "?".to_owned(), |usable| usable.to_string())];
        row.extend([counts.in_use, counts.settling, counts.leaked, counts.undetermined].map(|count| count.to_string()));
        row
    });
    width.grid(&["NETWORK", "USABLE", "IN USE", "SETTLING", "LEAKED", "UNDETERMINED"], &[1, 2, 3, 4, 5], rows)
}

/// Long sentences that stand beside many reservations: said once, below the table.
struct Remarks<'a>(Vec<&'a str>);

impl<'a> Remarks<'a> {
    /// A sentence is worth a number from this length on …
    const LONG: usize = 60;
    /// … if so many reservations share it.
    const MANY: usize = 3;

    fn of(network: &'a NetworkReport) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let sentences = network.entries.iter().flat_map(|entry| &entry.evidence);
        for sentence in sentences.filter(|sentence| sentence.len() >= Self::LONG) {
            *counts.entry(sentence).or_default() += 1;
        }
        Self(counts.into_iter().filter(|(_, count)| *count >= Self::MANY).map(|(sentence, _)| sentence).collect())
    }

    fn shortened(&self, evidence: &[String]) -> String {
        let said = evidence.iter().map(|sentence| match self.0.iter().position(|remark| remark == sentence) {
            Some(number) => format!("({})", number + 1),
            None => sentence.clone(),
        });
        said.collect::<Vec<_>>().join("; ")
    }
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
        let remarks = Remarks::of(network);
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
                format!("{pod}{}", remarks.shortened(&entry.evidence)),
            ]
        });
        out.push_str(&width.grid(&["ADDRESS", "VERDICT", "AGE", "CONTAINER", "EVIDENCE"], &[2], rows));
        for (number, remark) in remarks.0.iter().enumerate() {
            width.wrap(&mut out, &format!("  ({}) ", number + 1), "      ", remark);
        }
        if network.entries.len() > MAX_ENTRIES {
            width.wrap(
                &mut out,
                "  ",
                "  ",
                &format!("and {} more (-o json has all)", network.entries.len() - MAX_ENTRIES),
            );
        }
        capacity(&mut out, network, width);
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
