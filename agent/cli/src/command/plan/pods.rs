//! `headroom plan pods`: how many nodes a range of pod addresses carries.

use headroom_core::sizing::pods::{DEFAULT_MAX_PODS, PodPlan, Question, plan};
use ipnet::Ipv4Net;
use serde::Serialize;

use crate::args::Format;
use crate::args::plan::PlanPodsArgs;
use crate::command::UsageError;
use crate::output::{self, table::Width};

/// The answer, and what it is about.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// Ranges of pods.
    pub pod_ranges: Vec<Ipv4Net>,
    /// Range of nodes.
    pub node_range: Option<Ipv4Net>,
    /// Maximum of pods per node.
    pub max_pods: u32,
    /// Nodes that are wanted.
    pub nodes: Option<u64>,
    /// Pods that run on a node.
    pub pods_per_node: Option<u32>,
    /// What follows.
    #[serde(flatten)]
    pub plan: PodPlan,
}

/// Runs the command.
///
/// # Errors
/// What GKE does not accept, ranges that overlap, a closed stdout.
pub(super) fn run(args: &PlanPodsArgs) -> anyhow::Result<u8> {
    let question = Question {
        pod_ranges: args.pod_range.clone(),
        node_range: args.node_range,
        max_pods: args.max_pods.unwrap_or(DEFAULT_MAX_PODS),
        nodes: args.nodes,
        pods_per_node: args.pods_per_node,
    };
    let plan = plan(&question).map_err(|refused| UsageError(refused.into()))?;
    let Question { pod_ranges, node_range, max_pods, nodes, pods_per_node } = question;
    let answer = Answer { pod_ranges, node_range, max_pods, nodes, pods_per_node, plan };
    match args.output {
        Format::Json => output::json(&answer)?,
        Format::Table => output::print(&output::table::plan::pods(&answer, Width::of_stdout()))?,
    }
    // Without a range nothing was asked that could fail to fit.
    Ok(super::exit_code(answer.plan.fits.unwrap_or(true)))
}
