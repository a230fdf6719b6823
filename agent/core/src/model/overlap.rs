//! Where source ports and NodePorts can collide: as configured, by the rules that translate, and as flows show it.

use crate::known::Known;
use crate::ledger::Ledger;
use crate::model::holders::Holders;
use crate::model::policy::Policy;
use crate::observe::SourceId;
use crate::report::OverlapReport;
use crate::time::Now;

mod ephemeral;
mod landing;
mod live;
mod masquerade;
mod node_ports;
mod owner;

pub(super) use masquerade::{WITH_NODE_PORTS, shorten};
pub use node_ports::{AllocatedNodePorts, Allocation};
pub(super) use owner::owner;

/// The overlap part of the report, with every rule: findings rest on all of them. [`shorten`] it before anybody sees it.
pub(super) fn report(ledger: &Ledger, policy: &Policy, holders: &Holders<'_>, now: Now) -> OverlapReport {
    let allocated = AllocatedNodePorts::of(ledger, policy);
    let (node_port_range, node_port_basis) = allocated.range(policy);
    let (masquerade, shares) = masquerade::report(ledger, &allocated, node_port_range);
    let (proxies, nodeports) = allocated.report();
    OverlapReport {
        node_port_range,
        node_port_basis,
        ephemeral: ephemeral::ephemeral(ledger, node_port_range),
        masquerade,
        masquerade_omitted: 0,
        shares,
        shares_omitted: 0,
        proxies,
        nodeports,
        nodeports_total: allocated.is_known().then(|| u64::try_from(allocated.count()).unwrap_or(u64::MAX)),
        nodeports_basis: allocated.basis(),
        nodeports_not_given: u64::try_from(allocated.not_given()).unwrap_or(u64::MAX),
        live: live::live(ledger, &allocated, holders, now),
        not_observed: not_observed(ledger),
    }
}

/// What of this was not looked at, and why.
fn not_observed(ledger: &Ledger) -> Vec<String> {
    let asked = [
        (SourceId::Rules, "which rules translate source addresses, and NodePorts made by rules"),
        (SourceId::Services, "NodePorts of IPVS and Cilium"),
    ];
    let missing = asked.into_iter().filter_map(|(source, what)| {
        let why = match ledger.coverage().get(&source) {
            Some(Known::Present(detail)) => detail.degraded.as_ref()?.to_string(),
            Some(Known::Unknown(why)) => why.to_string(),
            Some(Known::Absent) => return None,
            None => "not read yet".to_owned(),
        };
        Some(format!("{what}: {why}"))
    });
    missing.collect()
}
