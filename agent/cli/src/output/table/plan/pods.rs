//! The answer of `headroom plan pods`.

use headroom_core::sizing::pods::Binding;
use headroom_core::words::counted;

use crate::command::plan::pods::Answer;
use crate::output::table::{Width, heading, verdict_of_plan};

/// For people.
pub fn pods(answer: &Answer, width: Width) -> String {
    let mut out = String::new();
    let plan = &answer.plan;
    let nodes = answer.nodes.map_or_else(String::new, |nodes| format!(" · {}", counted(nodes, "node")));
    let title = format!("at most {} per node{nodes}", counted(answer.max_pods, "pod"));
    width.wrap(&mut out, "headroom plan pods · ", "  ", &title);

    heading(&mut out, "What a node takes", width);
    let mut row = |name: &str, text: String| width.wrap(&mut out, &format!("  {name:<15} "), &" ".repeat(18), &text);
    row("range", format!("/{} ({} addresses)", plan.node_prefix, plan.addresses_per_node));
    if let (Some(ratio), Some(pods)) = (plan.used_ratio, answer.pods_per_node) {
        row("used", format!("{:.2} % of it by {}", ratio * 100.0, counted(pods, "pod")));
    }
    if let Some(most) = plan.max_nodes {
        heading(&mut out, "How many nodes fit", width);
        let mut row =
            |name: &str, text: String| width.wrap(&mut out, &format!("  {name:<15} "), &" ".repeat(18), &text);
        let ranges: Vec<String> = answer.pod_ranges.iter().map(ToString::to_string).collect();
        if let Some(nodes) = plan.max_nodes_by_pods {
            row("pod ranges", format!("{} in {}", counted(nodes, "node"), ranges.join(", ")));
        }
        if let (Some(nodes), Some(range)) = (plan.max_nodes_by_nodes, answer.node_range) {
            row("node range", format!("{} in {range}", counted(nodes, "node")));
        }
        let by = match plan.binding {
            Some(Binding::PodRange) => ": the pod ranges end first",
            Some(Binding::NodeRange) => ": the node range ends first",
            Some(Binding::Both) | None => "",
        };
        let both = plan.max_nodes_by_pods.is_some() && plan.max_nodes_by_nodes.is_some();
        row("nodes", format!("{most}{}", if both { by } else { "" }));
        if let Some(pods) = plan.max_pods_total {
            row("pods", format!("{pods} at most"));
        }
    }
    for note in &plan.notes {
        width.wrap(&mut out, "  · ", "    ", note);
    }
    if let Some(suggestion) = &plan.suggestion {
        width.wrap(&mut out, "  → ", "    ", suggestion);
    }
    match plan.fits {
        Some(fits) => verdict_of_plan(&mut out, fits, width),
        None => {
            out.push('\n');
            width.wrap(&mut out, "", "", "no range was given (--pod-range, --node-range): whether it fits is not told");
        }
    }
    out
}
