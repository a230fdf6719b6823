//! How many nodes a range of pod addresses carries on GKE, and how much of it they waste.
//!
//! A node gets a range of its own with at least twice as many addresses as it may have pods, whether it has them or not
//! (<https://cloud.google.com/kubernetes-engine/docs/how-to/flexible-pod-cidr>). What the nodes take from the subnet's
//! primary range limits them too.

use ipnet::Ipv4Net;
use serde::Serialize;

/// What GKE accepts; older documents end at 110.
const MAX_PODS_PER_NODE: std::ops::RangeInclusive<u32> = 8..=256;
/// What GKE takes unless told otherwise.
pub const DEFAULT_MAX_PODS: u32 = 110;
/// More ranges than a cluster has.
const MAX_RANGES: usize = 1000;
/// More than any cluster has; GKE itself ends at 15,000.
const MAX_NODES: u64 = 10_000_000;
/// Addresses of a primary range that no node gets: network, gateway, the last but one, broadcast.
const NOT_FOR_NODES: u64 = 4;
/// Nodes of a cluster, unless it is regional and private and Google has raised the quota.
const NODES_WITHOUT_QUOTA: u64 = 5000;
/// Nodes of a cluster at most; VMs of a VPC network, too.
const NODES_AT_MOST: u64 = 15_000;
/// Up to this many pods in a cluster Kubernetes is tested.
const PODS_TESTED: u64 = 150_000;

/// What to calculate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Secondary ranges that pods' addresses come from.
    pub pod_ranges: Vec<Ipv4Net>,
    /// The subnet's primary range, which the nodes' own addresses come from.
    pub node_range: Option<Ipv4Net>,
    /// Maximum of pods per node.
    pub max_pods: u32,
    /// Nodes that are wanted.
    pub nodes: Option<u64>,
    /// Pods that really run on a node.
    pub pods_per_node: Option<u32>,
}

/// What limits the number of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// The ranges of the pods.
    PodRange,
    /// The range of the nodes.
    NodeRange,
    /// Both alike.
    Both,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PodPlan {
    /// Prefix length of a node's range.
    pub node_prefix: u8,
    /// Addresses of it.
    pub addresses_per_node: u64,
    /// Nodes that fit; absent if no range was given.
    pub max_nodes: Option<u64>,
    /// Nodes that the ranges of the pods carry.
    pub max_nodes_by_pods: Option<u64>,
    /// Nodes that the range of the nodes carries.
    pub max_nodes_by_nodes: Option<u64>,
    /// Pods on so many nodes at most.
    pub max_pods_total: Option<u64>,
    /// Which of the two ends first.
    pub binding: Option<Binding>,
    /// The share of a node's addresses that its pods use; absent if their number was not given.
    pub used_ratio: Option<f64>,
    /// Whether the nodes that are wanted fit; without a number, whether any does. Absent if no range was given.
    pub fits: Option<bool>,
    /// What to change; absent if there is nothing.
    pub suggestion: Option<String>,
    /// What to know about it.
    pub notes: Vec<String>,
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodsError {
    /// Not what GKE accepts.
    #[error("GKE takes 8 to 256 as the maximum of pods per node, not {0}")]
    MaxPods(u32),
    /// More pods than may be.
    #[error("{pods} pods per node are more than the maximum of {max_pods}; give a larger --max-pods")]
    PodsPerNode {
        /// That run.
        pods: u32,
        /// That may.
        max_pods: u32,
    },
    /// Ranges share addresses.
    #[error("the ranges {0} and {1} overlap; the ranges of a subnet cannot")]
    Overlap(Ipv4Net, Ipv4Net),
    /// Too many ranges.
    #[error("{0} ranges are more than {MAX_RANGES}")]
    Ranges(usize),
    /// No or too many nodes.
    #[error("{0} nodes: 1 to {MAX_NODES} can be calculated with")]
    Nodes(u64),
}

/// Calculates how many nodes fit.
///
/// # Errors
/// Numbers that GKE does not accept, and ranges that overlap.
pub fn plan(question: &Question) -> Result<PodPlan, PodsError> {
    check(question)?;
    let Question { pod_ranges, node_range, max_pods, nodes, pods_per_node } = question;
    let node_prefix = node_prefix(*max_pods);
    let addresses_per_node = addresses(node_prefix);
    let by_pods = (!pod_ranges.is_empty())
        .then(|| pod_ranges.iter().map(|range| nodes_of_pod_range(range.prefix_len(), node_prefix)).sum::<u64>());
    let by_nodes = node_range.map(|range| nodes_of_node_range(range.prefix_len()));
    let max_nodes = by_pods.into_iter().chain(by_nodes).min();
    let binding = match (by_pods, by_nodes) {
        (Some(pods), Some(nodes)) if pods == nodes => Some(Binding::Both),
        (Some(pods), Some(nodes)) if pods > nodes => Some(Binding::NodeRange),
        (Some(_), _) => Some(Binding::PodRange),
        (None, Some(_)) => Some(Binding::NodeRange),
        (None, None) => None,
    };
    let fits = max_nodes.map(|max| max >= nodes.unwrap_or(1));
    let mut plan = PodPlan {
        node_prefix,
        addresses_per_node,
        max_nodes,
        max_nodes_by_pods: by_pods,
        max_nodes_by_nodes: by_nodes,
        max_pods_total: max_nodes.map(|nodes| nodes.saturating_mul(u64::from(*max_pods))),
        binding,
        used_ratio: pods_per_node.map(|pods| f64::from(pods) / f64::from(1_u32 << (32 - node_prefix))),
        fits,
        suggestion: None,
        notes: Vec::new(),
    };
    plan.suggestion = suggestion(question, &plan);
    plan.notes = notes(question, &plan);
    Ok(plan)
}

fn check(question: &Question) -> Result<(), PodsError> {
    let Question { pod_ranges, node_range, max_pods, nodes, pods_per_node } = question;
    if !MAX_PODS_PER_NODE.contains(max_pods) {
        return Err(PodsError::MaxPods(*max_pods));
    }
    if let Some(pods) = pods_per_node.filter(|pods| pods > max_pods) {
        return Err(PodsError::PodsPerNode { pods, max_pods: *max_pods });
    }
    if let Some(nodes) = nodes.filter(|nodes| !(1..=MAX_NODES).contains(nodes)) {
        return Err(PodsError::Nodes(nodes));
    }
    if pod_ranges.len() > MAX_RANGES {
        return Err(PodsError::Ranges(pod_ranges.len()));
    }
    let mut ranges: Vec<Ipv4Net> = pod_ranges.iter().chain(node_range).map(Ipv4Net::trunc).collect();
    ranges.sort_unstable();
    let overlap = ranges.windows(2).find_map(|pair| match pair {
        [one, other] if one.contains(other) || other.contains(one) => Some((*one, *other)),
        _ => None,
    });
    overlap.map_or(Ok(()), |(one, other)| Err(PodsError::Overlap(one, other)))
}

/// Prefix length of the range that a node with this maximum of pods gets: at least twice as many addresses.
pub fn node_prefix(max_pods: u32) -> u8 {
    let pods = max_pods.clamp(8, 1 << 30);
    let twice = pods.next_power_of_two().trailing_zeros() + 1;
    u8::try_from(32 - twice).unwrap_or(0)
}

/// Addresses of a range with this prefix length.
pub fn addresses(prefix: u8) -> u64 {
    1_u64 << 32_u32.saturating_sub(u32::from(prefix))
}

/// Nodes that a range of pods carries.
fn nodes_of_pod_range(range: u8, node: u8) -> u64 {
    node.checked_sub(range).map_or(0, |bits| 1_u64 << bits)
}

/// Nodes that a subnet's primary range carries.
fn nodes_of_node_range(range: u8) -> u64 {
    addresses(range).saturating_sub(NOT_FOR_NODES)
}

/// Prefix length of the smallest range with so many addresses.
fn prefix_with(addresses: u64) -> Option<u8> {
    let bits = addresses.max(1).checked_next_power_of_two()?.trailing_zeros();
    u8::try_from(32_u32.checked_sub(bits)?).ok()
}

/// What to change so that the nodes fit, or so that fewer addresses lie idle.
fn suggestion(question: &Question, plan: &PodPlan) -> Option<String> {
    let mut said = Vec::new();
    // Of the pods that really run, with as many again to spare.
    let enough = question.pods_per_node.map(|pods| pods.saturating_mul(2).next_power_of_two().clamp(8, 256));
    let lower = enough.filter(|pods| node_prefix(*pods) > plan.node_prefix);
    if let Some(wanted) = question.nodes.filter(|_| plan.fits != Some(true)) {
        if plan.max_nodes_by_pods.map_or(plan.fits.is_none(), |most| most < wanted) {
            let needed = wanted.saturating_mul(plan.addresses_per_node);
            let range = prefix_with(needed).map_or_else(
                || "more than there are IPv4 addresses".to_owned(),
                |prefix| format!("a /{prefix} ({} addresses)", addresses(prefix)),
            );
            said.push(format!("{wanted} nodes at /{} need {needed} pod addresses: {range}", plan.node_prefix));
            let smaller = smaller_maximum(question, wanted);
            said.extend(smaller.map(|(pods, prefix)| {
                format!("or a maximum of {pods} pods per node (/{prefix}), with which they fit the ranges given")
            }));
        }
        if plan.max_nodes_by_nodes.is_some_and(|most| most < wanted) {
            let range = prefix_with(wanted.saturating_add(NOT_FOR_NODES))
                .map_or_else(String::new, |prefix| format!(": a /{prefix}"));
            said.push(format!("{wanted} nodes need {} addresses in the node range{range}", wanted + NOT_FOR_NODES));
        }
    } else if let Some(pods) = lower {
        let prefix = node_prefix(pods);
        said.push(format!(
            "a maximum of {pods} pods per node gives each node a /{prefix} ({} addresses instead of {})",
            addresses(prefix),
            plan.addresses_per_node
        ));
    }
    if !said.is_empty() && (lower.is_some() || plan.fits == Some(false)) {
        said.push("the maximum of a node pool cannot be changed: it takes a new one".to_owned());
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// The largest maximum of pods below the present one with which so many nodes fit the ranges.
fn smaller_maximum(question: &Question, wanted: u64) -> Option<(u32, u8)> {
    let least = question.pods_per_node.unwrap_or(8).max(8);
    [128, 64, 32, 16, 8].into_iter().filter(|pods| *pods < question.max_pods && *pods >= least).find_map(|pods| {
        let prefix = node_prefix(pods);
        let fit: u64 = question.pod_ranges.iter().map(|range| nodes_of_pod_range(range.prefix_len(), prefix)).sum();
        (fit >= wanted).then_some((pods, prefix))
    })
}

fn notes(question: &Question, plan: &PodPlan) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(pods) = question.pods_per_node
        && u64::from(pods).saturating_mul(4) <= plan.addresses_per_node
    {
        notes.push(format!(
            "{} of a node's {} addresses have no pod, and no other node can use them",
            plan.addresses_per_node - u64::from(pods),
            plan.addresses_per_node
        ));
        notes.push(
            "a smaller range per node lets more nodes start: if pods do not fill their nodes, the bill grows with them; look at the machine size too"
                .to_owned(),
        );
    }
    if question.max_pods > DEFAULT_MAX_PODS {
        notes.push(format!("more than {DEFAULT_MAX_PODS} pods per node need a recent GKE version"));
    }
    if question.nodes.is_some_and(|nodes| nodes > NODES_AT_MOST) {
        notes.push(format!("a GKE cluster has {NODES_AT_MOST} nodes at most, and a VPC network as many VMs"));
    } else if question.nodes.is_some_and(|nodes| nodes > NODES_WITHOUT_QUOTA) {
        notes.push(format!(
            "more than {NODES_WITHOUT_QUOTA} nodes need a regional, private cluster and a quota from Google"
        ));
    }
    // What is not given may be as many as fit.
    let pods_per_node = u64::from(question.pods_per_node.unwrap_or(question.max_pods));
    let pods = question.nodes.or(plan.max_nodes).map(|nodes| nodes.saturating_mul(pods_per_node));
    if let Some(pods) = pods.filter(|pods| *pods > PODS_TESTED) {
        notes.push(format!("at most {pods} pods run then: Kubernetes is tested with {PODS_TESTED} in a cluster"));
    }
    let untruncated = question.pod_ranges.iter().chain(&question.node_range).filter(|range| range.trunc() != **range);
    notes.extend(untruncated.map(|range| format!("{range} is taken as {}", range.trunc())));
    notes
}

#[cfg(test)]
mod tests;
