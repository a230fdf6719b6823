//! The answer of `headroom plan eni`.

use crate::command::plan::eni::Answer;
use crate::output::table::{Width, heading, verdict_of_plan};

/// For people.
pub fn eni(answer: &Answer, width: Width) -> String {
    let mut out = String::new();
    let Answer { max_enis, ips_per_eni, pods, plan, cluster, .. } = answer;
    let instance = answer.instance_type.unwrap_or("an instance");
    let title = format!("{instance} ({max_enis} interfaces of {ips_per_eni} addresses) · {pods} pods");
    width.wrap(&mut out, "headroom plan eni · ", "  ", &title);

    heading(&mut out, "What ipamd attaches to a node", width);
    let mut row = |name: &str, text: String| width.wrap(&mut out, &format!("  {name:<17} "), &" ".repeat(20), &text);
    let each: Vec<String> = plan.per_eni.iter().map(ToString::to_string).collect();
    row("interfaces", format!("{} with {} addresses for pods", plan.enis, each.join(", ")));
    if !plan.prefixes_per_eni.is_empty() {
        let each: Vec<String> = plan.prefixes_per_eni.iter().map(ToString::to_string).collect();
        row("prefixes", format!("{} ({})", plan.prefixes_per_eni.iter().sum::<u32>(), each.join(", ")));
    }
    row("addresses", format!("{} for pods, {} of them unused", plan.addresses, plan.unused));
    row("of the subnet", format!("{}, with one for each interface", plan.subnet_addresses));
    if plan.pods_failing > 0 {
        row("pods failing", format!("{} get no address", plan.pods_failing));
    }
    if cluster.nodes > 1 {
        let text = format!(
            "{} nodes take {} addresses of the subnets, {} of them unused",
            cluster.nodes, cluster.subnet_addresses, cluster.unused
        );
        row("together", text);
    }
    for note in &plan.notes {
        width.wrap(&mut out, "  · ", "    ", note);
    }
    verdict_of_plan(&mut out, plan.pods_failing == 0, width);
    out
}
