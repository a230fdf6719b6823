//! The page of `headroom doctor`.

use std::time::Duration;

use headroom_core::report::CoverageState;

use super::{Width, heading};
use crate::command::doctor::{CleanerDiagnosis, Diagnosis};

/// Every program with how it ran; below it, why one does not, and what that costs.
fn programs(out: &mut String, diagnosis: &Diagnosis, width: Width) {
    let counted = diagnosis.runs_not_counted.is_none();
    let rows = diagnosis.programs.iter().map(|program| {
        let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let runs = program.runs.filter(|runs| counted || *runs > 0);
        let mean = runs.zip(program.time_ns).and_then(|(runs, time)| time.checked_div(runs));
        vec![
            program.name.clone(),
            program.hook.clone(),
            if program.attached { "attached" } else { "NOT" }.to_owned(),
            number(runs),
            mean.map_or_else(|| "-".to_owned(), |mean| format!("{mean} ns")),
            number(program.missed),
        ]
    });
    out.push_str(&width.grid(&["PROGRAM", "HOOK", "STATE", "RUNS", "MEAN", "MISSED"], &[3, 4, 5], rows));
    for program in &diagnosis.programs {
        if let Some(why) = &program.why {
            width.wrap(out, "  ", "    ", &format!("{}: {why}; without it: no {}", program.name, program.lost_without));
        }
    }
    if let Some(why) = &diagnosis.runs_not_counted {
        width.wrap(out, "  ", "    ", why);
    }
}

/// Whether the agent gives leaked addresses back, and whether that could work here.
fn cleaner(out: &mut String, cleaner: &CleanerDiagnosis, width: Width) {
    let mode = match cleaner.interval_secs {
        Some(secs) => format!("on: every {}", humantime::format_duration(Duration::from_secs(secs))),
        None => "off, as far as is known here: no `[clean]` in this configuration, no --clean-interval, no \
                 HEADROOM_CLEAN_INTERVAL. What a running agent has says its /report.json (ipam.cleaner)"
            .to_owned(),
    };
    width.wrap(out, "  ", "    ", &mode);
    for directory in &cleaner.directories {
        let path = directory.data_dir.display();
        let (state, text) = match &directory.why {
            // Off, a store that is mounted read-only is as it should be.
            Some(why) => {
                (if cleaner.interval_secs.is_some() { "CANNOT" } else { "could not" }, format!("`{path}` {why}"))
            }
            None => ("possible", format!("`{path}` can be cleaned; its journal holds {} runs", directory.runs)),
        };
        width.wrap(out, &format!("  {state:10}"), &" ".repeat(12), &text);
    }
    if cleaner.directories.is_empty() {
        let why = cleaner.why.as_deref().unwrap_or("host-local keeps nothing on this node: there is nothing to clean");
        width.wrap(out, "  ", "    ", why);
    }
}

/// What works here, what does not, and why.
pub fn page(diagnosis: &Diagnosis, width: Width) -> String {
    let mut out = String::new();
    width.wrap(&mut out, "headroom doctor · ", "  ", &format!("{} · Linux {}", diagnosis.node, diagnosis.kernel));
    if diagnosis.host_network == Some(false) {
        let text = "conntrack, its settings and this process's own sockets are those of another network namespace than the \
                    host's (`hostNetwork: true` puts a pod into it): what follows of them is not the node's";
        width.wrap(&mut out, "NOT THE HOST'S NETWORK · ", "  ", text);
    } else if let Some(why) = &diagnosis.host_network_unknown {
        let text =
            format!("whether conntrack is the host's, or that of another network namespace, is not known: {why}");
        width.wrap(&mut out, "", "  ", &text);
    }
    heading(&mut out, "Sources", width);
    let longest = diagnosis.coverage.iter().map(|row| row.source.name().len()).max().unwrap_or_default();
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
        let first = format!("  {:longest$} {state:10}", row.source.name());
        width.wrap(&mut out, &first, &" ".repeat(first.len()), &text);
    }
    heading(&mut out, "eBPF programs", width);
    programs(&mut out, diagnosis, width);
    heading(&mut out, "Cleaner of leaked pod IPs", width);
    cleaner(&mut out, &diagnosis.cleaner, width);
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
