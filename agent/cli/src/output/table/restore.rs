//! The answer of `headroom ipam restore`.

use std::net::IpAddr;

use headroom_host::act::{Kept, PutBack, Stays};
use serde::Serialize;

use super::width::clean;
use super::{Width, heading};

/// Rows printed of each list; the JSON has all.
const MAX_ROWS: usize = 100;

/// What `headroom ipam restore` answers.
#[derive(Debug, Default, Serialize)]
pub struct RestoreAnswer {
    /// The run that was undone.
    pub journal: Option<String>,
    /// What is back.
    pub restored: Vec<PutBack>,
    /// What stays in the journal.
    pub refused: Vec<Stays>,
    /// What went wrong besides.
    pub remarks: Vec<String>,
    /// With `--list`: the runs there are, the newest first.
    pub journals: Vec<Kept>,
}

/// For people.
pub fn restore(answer: &RestoreAnswer, list: bool, width: Width) -> String {
    let mut out = String::new();
    if list {
        journals(&mut out, &answer.journals, width);
        return out;
    }
    let Some(journal) = &answer.journal else {
        return "nothing was ever taken here: there is no journal\n".to_owned();
    };
    out.push_str(&format!("headroom · {}\n", clean(journal)));
    if !answer.restored.is_empty() {
        heading(&mut out, "Put back", width);
        let rows = answer.restored.iter().take(MAX_ROWS).map(|back| {
            let container = back.container_id.as_deref().unwrap_or("-");
            vec![back.address.to_string(), back.network.clone(), container.chars().take(12).collect()]
        });
        out.push_str(&width.grid(&["ADDRESS", "NETWORK", "CONTAINER"], &[], rows));
        more(&mut out, answer.restored.len(), width);
    }
    if !answer.refused.is_empty() {
        heading(&mut out, "Stays in the journal", width);
        for stays in answer.refused.iter().take(MAX_ROWS) {
            width.wrap(&mut out, "  ", "    ", &format!("{} ({}): {}", stays.address, stays.network, stays.why));
        }
        more(&mut out, answer.refused.len(), width);
    }
    for remark in &answer.remarks {
        width.wrap(&mut out, "but: ", "  ", remark);
    }
    out.push('\n');
    let conclusion = match (answer.restored.len(), answer.refused.len()) {
        (0, 0) => "nothing left to put back".to_owned(),
        (back, 0) => format!("{back} put back"),
        (back, stays) => format!("{back} put back, {stays} not"),
    };
    width.wrap(&mut out, "", "", &conclusion);
    out
}

fn journals(out: &mut String, journals: &[Kept], width: Width) {
    if journals.is_empty() {
        out.push_str("nothing was ever taken here: there is no journal\n");
        return;
    }
    for kept in journals.iter().take(MAX_ROWS) {
        out.push_str(&format!("{}\n", clean(&kept.journal)));
        let started = kept.started.as_deref().unwrap_or("?");
        let still = kept.entries.len();
        width.wrap(
            out,
            "  ",
            "    ",
            &format!("{} · {started} · {} taken, {still} still here", kept.network, kept.taken),
        );
        let shown: Vec<String> = kept.entries.iter().take(8).map(IpAddr::to_string).collect();
        if still > 0 {
            let rest = if still > shown.len() { ", …" } else { "" };
            width.wrap(out, "  ", "    ", &format!("{}{rest}", shown.join(", ")));
        }
        if let Some(why) = &kept.why {
            width.wrap(out, "  but: ", "    ", why);
        }
    }
    more(out, journals.len(), width);
}

fn more(out: &mut String, all: usize, width: Width) {
    if all > MAX_ROWS {
        width.wrap(out, "  ", "  ", &format!("and {} more (-o json has all)", all - MAX_ROWS));
    }
}
