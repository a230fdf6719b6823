//! The rules: from accounts and reports to findings. One file per subject; the table below is all there is.

use crate::findings::Finding;
use crate::model::View;
use crate::report::{OwnerReport, PodDemand, PodShare, Report};

mod cilium_conntrack;
mod collision;
mod conntrack;
mod degraded;
mod gateway;
mod hairpin;
mod idle;
mod ipam;
mod known_issues;
mod local;
mod masquerade;
mod nat;
mod overlap;

type Rule = fn(&View<'_>, &Report) -> Vec<Finding>;

const RULES: [Rule; 15] = [
    nat::nat_ports,
    gateway::nat_gateway,
    nat::unanswered,
    idle::idle,
    local::ephemeral_ports,
    local::masquerade_ports,
    overlap::ephemeral,
    masquerade::masquerade,
    collision::collision,
    conntrack::conntrack,
    cilium_conntrack::cilium_conntrack,
    hairpin::hairpin,
    ipam::ipam,
    known_issues::known_issues,
    degraded::degraded,
];

/// All findings, worst first.
pub(super) fn findings(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let mut findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(view, report)).collect();
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.id.cmp(&b.id)).then(a.subject.cmp(&b.subject)));
    findings
}

pub(super) fn percent(part: u32, whole: u32) -> u64 {
    u64::from(part) * 100 / u64::from(whole.max(1))
}

fn pod_name(pod: &PodShare) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if pod.host => match pod.owners.first() {
            Some(owner) => format!("the node itself ({}: {} open)", owner_name(owner), owner.sockets),
            None => "the node itself".to_owned(),
        },
        _ => pod.address.to_string(),
    }
}

/// Who holds ports over all destinations.
fn holder_name(pod: &PodDemand) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if pod.host => "the node itself".to_owned(),
        _ => pod.address.to_string(),
    }
}

/// A pod in the host's network by its name; else a process and its unit.
fn owner_name(owner: &OwnerReport) -> String {
    match (&owner.namespace, &owner.name, &owner.unit) {
        (Some(namespace), Some(name), _) => format!("{namespace}/{name}"),
        (_, _, Some(unit)) => format!("{} of {unit}", owner.process),
        _ => owner.process.clone(),
    }
}
