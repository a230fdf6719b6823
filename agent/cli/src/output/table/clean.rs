//! The answer of `headroom ipam clean`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use headroom_core::model::leak::{Verdict, whole};
use headroom_core::plan::clean::{Plan, Refused, Release};
use headroom_core::report::{CoverageReport, Report};
use headroom_host::act::{Cleaned, Taken};
use serde::Serialize;

use super::sources::coverage;
use super::width::clean as clean_text;
use super::{Width, heading};

/// Rows printed of each list; the JSON has all.
const MAX_ROWS: usize = 100;
/// Addresses printed for one reason of refusal.
const MAX_ADDRESSES: usize = 8;

/// What `headroom ipam clean` answers.
#[derive(Debug, Serialize)]
pub struct CleanAnswer {
    /// The node.
    pub node: String,
    /// When.
    pub time: String,
    /// Whether the plan was carried out.
    pub apply: bool,
    /// What is leaked and within the limits.
    pub plan: Vec<Release>,
    /// What was given back.
    pub applied: Vec<Taken>,
    /// What stays although nobody seems to use it.
    pub refused: Vec<Refused>,
    /// The run's directory: what `ipam restore --journal` wants. Absent if nothing was taken.
    pub journal: Option<String>,
    /// All of them, where the networks are in several directories.
    pub journals: Vec<String>,
    /// What went wrong besides.
    pub remarks: Vec<String>,
    /// What each source could do.
    pub coverage: Vec<CoverageReport>,
}

impl CleanAnswer {
    /// Plan and result together.
    pub fn new(report: &Report, apply: bool, plan: Plan, cleaned: Cleaned) -> Self {
        let journals: Vec<String> = cleaned.journals.iter().map(|path| path.display().to_string()).collect();
        let mut refused = plan.refused;
        refused.extend(cleaned.refused);
        Self {
            node: report.node.clone(),
            time: report.time.clone(),
            apply,
            plan: plan.releases,
            applied: cleaned.applied,
            refused,
            journal: journals.first().cloned(),
            journals,
            remarks: cleaned.remarks,
            coverage: report.coverage.clone(),
        }
    }
}

/// For people.
pub fn clean(answer: &CleanAnswer, width: Width) -> String {
    let mut out = String::new();
    width.wrap(&mut out, "headroom · ", "  ", &format!("{} · {}", answer.node, answer.time));
    if answer.apply {
        applied(&mut out, answer, width);
    } else {
        planned(&mut out, answer, width);
    }
    refused(&mut out, &answer.refused, width);
    let silent = answer.plan.is_empty() && answer.refused.is_empty();
    if silent || answer.coverage.iter().any(|row| row.why.is_some()) {
        heading(&mut out, "What was observed", width);
        coverage(&mut out, &answer.coverage, width);
    }
    out.push('\n');
    conclusion(&mut out, answer, width);
    out
}

fn planned(out: &mut String, answer: &CleanAnswer, width: Width) {
    heading(out, "Would be given back", width);
    releases(out, &answer.plan.iter().collect::<Vec<_>>(), width);
}

/// The rows are the plan's: what was moved is a part of it.
fn applied(out: &mut String, answer: &CleanAnswer, width: Width) {
    heading(out, "Given back", width);
    let moved: BTreeSet<_> = answer.applied.iter().map(|taken| (taken.store.as_str(), taken.address)).collect();
    let is_moved = |release: &&Release| moved.contains(&(release.store.as_str(), release.address));
    releases(out, &answer.plan.iter().filter(is_moved).collect::<Vec<_>>(), width);
    for remark in &answer.remarks {
        width.wrap(out, "  but: ", "    ", remark);
    }
}

fn releases(out: &mut String, releases: &[&Release], width: Width) {
    if releases.is_empty() {
        width.wrap(out, "  ", "  ", "nothing");
        return;
    }
    let rows = releases.iter().take(MAX_ROWS).map(|release| {
        vec![
            release.address.to_string(),
            release.network.clone(),
            whole(Duration::from_secs(release.age_secs)),
            release.container_id.chars().take(12).collect(),
        ]
    });
    out.push_str(&width.grid(&["ADDRESS", "NETWORK", "RESERVED", "FOR CONTAINER"], &[2], rows));
    more(out, releases.len(), width);
    let each = "Of each: the runtime does not know the container, no live network namespace carries the address, the grace period is over; seen so twice.";
    width.wrap(out, "  ", "  ", each);
}

/// One paragraph per reason: most of a network's addresses stay for the same one.
fn refused(out: &mut String, refused: &[Refused], width: Width) {
    if refused.is_empty() {
        return;
    }
    heading(out, "Refused", width);
    let mut reasons: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for refused in refused {
        reasons.entry((&refused.network, &refused.why)).or_default().push(refused.address.to_string());
    }
    for ((network, why), addresses) in reasons.iter().take(MAX_ROWS) {
        let shown = addresses.iter().take(MAX_ADDRESSES).cloned().collect::<Vec<_>>().join(", ");
        let rest = addresses.len().saturating_sub(MAX_ADDRESSES);
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        width.wrap(out, "  ", "    ", &format!("{shown}{rest} ({network}): {why}"));
    }
    more(out, reasons.len(), width);
}

fn more(out: &mut String, all: usize, width: Width) {
    if all > MAX_ROWS {
        width.wrap(out, "  ", "  ", &format!("and {} more (-o json has all)", all - MAX_ROWS));
    }
}

fn conclusion(out: &mut String, answer: &CleanAnswer, width: Width) {
    let count = |count: usize| format!("{count} reservation{}", if count == 1 { "" } else { "s" });
    let (applied, planned) = (count(answer.applied.len()), count(answer.plan.len()));
    if answer.apply && !answer.applied.is_empty() {
        width.wrap(out, "", "", &format!("{applied} given back; undo with:"));
        // Not wrapped: it is to be copied.
        for journal in &answer.journals {
            out.push_str(&format!("  headroom ipam restore --journal {}\n", clean_text(journal)));
        }
    } else if answer.plan.is_empty() && answer.refused.iter().any(|refused| refused.verdict == Verdict::Undetermined) {
        width.wrap(out, "", "", "what is leaked could not be told: see the reasons above; nothing was changed");
    } else if answer.apply {
        width.wrap(out, "", "", "nothing was given back, nothing was changed");
    } else if answer.plan.is_empty() {
        width.wrap(out, "", "", "nothing to give back; nothing was changed");
    } else {
        width.wrap(out, "", "", &format!("{planned} would be given back; nothing was changed. Do it with --apply"));
    }
}
