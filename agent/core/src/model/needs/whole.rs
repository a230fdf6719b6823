//! What this node needs all in all, which is left to it whatever else is changed at the NAT.

use crate::flow::Protocol;
use crate::model::demand::{self, Account, Group};
use crate::model::nat::remedy::Need;
use crate::model::nat::{NatSettings, NodePorts};
use crate::model::policy::Policy;
use crate::model::rules;
use crate::report::DemandReports;

/// Over all protocols: what a NAT is set to holds for each of them.
pub(in crate::model) fn need(
    (nat, given): (&NatSettings, Option<&NodePorts>),
    accounts: &[Account],
    demands: &DemandReports,
    policy: &Policy,
) -> Need {
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::ICMP].into_iter();
    let of_each = protocols.filter_map(|protocol| demand::worst(accounts, protocol, nat.profile));
    let busiest = of_each.map(|group| Group::demand(&group)).max().unwrap_or(0);
    let sources = [&demands.tcp, &demands.udp, &demands.icmp].into_iter().filter_map(|demand| {
        let sources = demand.endpoint_independent.as_ref()?;
        Some(sources.ports.unwrap_or(sources.at_least))
    });
    let independent = nat.endpoint_independent == Some(true);
    let ports = sources.filter(|_| independent).max().unwrap_or(0).max(busiest);
    let low = u64::from(policy.low_percent);
    // Who was given nothing is told that alone.
    let short = given.is_some_and(|given| given.ports > 0 && rules::percent(ports, given.ports) >= low);
    Need { ports, busiest, short }
}
