//! The page of `headroom doctor`.

use headroom_core::report::CoverageState;

use super::{Width, heading};
use crate::command::doctor::Diagnosis;

/// What works here, what does not, and why.
pub fn page(diagnosis: &Diagnosis, width: Width) -> String {
    let mut out = String::new();
    width.wrap(&mut out, "headroom doctor · ", "  ", &format!("{} · Linux {}", diagnosis.node, diagnosis.kernel));
    heading(&mut out, "Sources", width);
    for row in &diagnosis.coverage {
        let state = match row.state {
            CoverageState::Ok => "works",
            CoverageState::Degraded => "partly",
            CoverageState::Absent => "not here",
            CoverageState::Unknown => "FAILS",
        };
        let text = match (&row.how, &row.why) {
            (Some(how), Some(why)) => format!("{how}; {why}"),
            (Some(text), None) | (None, Some(text)) => text.clone(),
            (None, None) => "nothing of the kind on this node".to_owned(),
        };
        let first = format!("  {:15}{state:10}", row.source.name());
        width.wrap(&mut out, &first, &" ".repeat(27), &text);
    }
    heading(&mut out, "eBPF programs", width);
    for program in &diagnosis.programs {
        let state = if program.attached { "attached to" } else { "NOT attached to" };
        let why = program.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        width.wrap(&mut out, "  ", "    ", &format!("{} {state} {}{why}", program.name, program.hook));
    }
    heading(&mut out, "Capabilities", width);
    for capability in &diagnosis.capabilities {
        let state = match capability.held {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "unknown",
        };
        let first = format!("  {:22}{state:9}", capability.name);
        width.wrap(&mut out, &first, &" ".repeat(33), capability.what_for);
    }
    out
}
