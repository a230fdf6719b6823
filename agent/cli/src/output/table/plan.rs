//! Plans.

use headroom_core::model::nat::Mode;
use headroom_core::sizing::nat::NatPlan;

use super::{Width, heading, verdict_of_plan};

mod eni;
mod pods;

pub use eni::eni;
pub use pods::pods;

/// The answer of `headroom plan nat`.
pub fn nat(plan: &NatPlan, width: Width) -> String {
    let mut out = String::new();
    let nodes = plan.nodes.map_or_else(String::new, |nodes| format!(" · {}", count(nodes, "node")));
    let assumed = if plan.nat_ips_assumed { " assumed" } else { "" };
    let ips = plan.nat_ips.map_or_else(|| "as many NAT IPs as needed".to_owned(), |ips| count(ips, "NAT IP") + assumed);
    width.wrap(&mut out, "headroom plan nat · ", "  ", &format!("{} · {ips}{nodes}", plan.profile));

    heading(&mut out, "What is there", width);
    let mut row = |name: &str, text: String| width.wrap(&mut out, &format!("  {name:<19} "), &" ".repeat(22), &text);
    let basis = serde_json::to_value(plan.basis).ok();
    let basis = basis.as_ref().and_then(serde_json::Value::as_str).unwrap_or("given");
    let ports = match (plan.mode, plan.ports_per_node, plan.max_ports_per_node) {
        (Some(Mode::Dynamic), Some(ports), Some(most)) => format!("{ports}, up to {most} ({basis}: {})", plan.why),
        (_, Some(ports), _) => format!("{ports} ({basis}: {})", plan.why),
        (_, None, _) => format!("not known: {}", plan.why),
    };
    row("ports per node", ports);
    let behind = match plan.nat_ips.filter(|_| plan.nat_ips_assumed) {
        Some(1) => " behind the 1 NAT IP that is assumed".to_owned(),
        Some(ips) => format!(" behind the {ips} NAT IPs that are assumed"),
        None => String::new(),
    };
    row(
        "nodes that fit",
        plan.capacity_nodes.map_or_else(|| "any number".to_owned(), |nodes| format!("{nodes}{behind}")),
    );
    if let Some(nodes) = plan.nodes_without_ports.filter(|nodes| *nodes > 0) {
        row("nodes without ports", nodes.to_string());
    }
    if let Some(ips) = plan.required_nat_ips {
        row("NAT IPs required", ips.to_string());
    }
    if let Some(rate) = plan.connections_per_sec {
        row("rate", format!("{rate} connections a second to one destination, kept up"));
    }
    for note in &plan.notes {
        width.wrap(&mut out, "  · ", "    ", note);
    }
    if !plan.options.is_empty() {
        heading(&mut out, "What to set", width);
    }
    for option in &plan.options {
        let fit = |nodes| format!(": {} fit{}", count(nodes, "node"), if nodes == 1 { "s" } else { "" });
        let fit = option.capacity_nodes.map_or_else(String::new, fit);
        width.wrap(&mut out, "  → ", "    ", &format!("{}{fit}", option.says));
        if let Some(caution) = &option.caution {
            width.wrap(&mut out, "    mind: ", "          ", caution);
        }
        for change in &option.changes {
            let mut lines = change.text.lines();
            let first = format!("    {:<10} ", format!("{}:", change.tool));
            width.wrap(&mut out, &first, &" ".repeat(17), lines.next().unwrap_or_default());
            lines.for_each(|line| width.wrap(&mut out, &" ".repeat(15), &" ".repeat(17), line));
        }
    }
    // Without nodes or a demand nothing was asked that might not fit.
    if plan.fits && plan.nodes_without_ports.is_none() && plan.required_nat_ips.is_none() {
        out.push('\n');
        width.wrap(&mut out, "", "", "no nodes were given (--nodes): whether they fit is not told");
    } else {
        verdict_of_plan(&mut out, plan.fits, width);
    }
    out
}

fn count(number: u32, of: &str) -> String {
    if number == 1 { format!("1 {of}") } else { format!("{number} {of}s") }
}
