//! What to know about an allocation besides: what nobody has said and would matter, what was taken for granted.

use crate::ledger::Ledger;
use crate::model::demand::Account;
use crate::model::nat::{Mode, NatSettings, NodePorts, Profile};
use crate::model::policy::Policy;
use crate::model::rules;
use crate::observe::SourceId;
use crate::report::DemandReports;

/// That a node may be low on ports where nobody has said whether Cloud NAT maps sources whatever their destination: older gateways
/// do by default.
pub(super) fn mapping_unknown(
    (nat, given): (&NatSettings, Option<&NodePorts>),
    demands: &DemandReports,
    policy: &Policy,
) -> Option<String> {
    if nat.profile != Profile::Gcp || nat.endpoint_independent.is_some() || nat.mode == Mode::Dynamic {
        return None;
    }
    let ports = given?.ports;
    let is_low = |needs: u32| rules::percent(needs, ports) >= u64::from(policy.low_percent);
    let needs = [("tcp", &demands.tcp), ("udp", &demands.udp), ("icmp", &demands.icmp)].map(|(protocol, demand)| {
        let sources = demand.endpoint_independent.as_ref()?;
        let matters = sources.at_most > demand.ports? && is_low(sources.at_most);
        matters.then(|| format!("{protocol} needs {} to {} of {ports} ports", sources.at_least, sources.at_most))
    });
    let needs: Vec<String> = needs.into_iter().flatten().collect();
    (!needs.is_empty()).then(|| {
        format!(
            "whether endpoint-independent mapping is on is not said: if it is, {} (--nat-endpoint-independent, or the gateway's \
             settings with --nat-from)",
            needs.join(", ")
        )
    })
}

/// That flows are counted which the cloud's NAT translates only if it is the one that translates IPv6 to IPv4; or that they are
/// not, since it says that it does not.
pub(super) fn through_nat64(nat: &NatSettings, accounts: &[Account]) -> Option<String> {
    let off = nat.nat64 == Some(false);
    let counted = accounts.iter().filter(|account| account.in_scope || off);
    let through = counted.filter(|account| account.destination.through_nat64().is_some());
    let ports = through.map(Account::demand).fold(0, u32::saturating_add);
    if ports == 0 || !nat.profile.nat64() {
        return None;
    }
    let title = nat.profile.title();
    match (nat.nat64, nat.profile) {
        (Some(true), _) => None,
        (Some(false), _) => Some(format!(
            "flows through NAT64 (64:ff9b::/96), {ports} of them, are not counted: by its settings this gateway does not translate \
             them"
        )),
        (None, Profile::Gcp) => Some(format!(
            "flows through NAT64 (64:ff9b::/96), {ports} of them, are taken to pass {title}, which nobody has said: give its \
             settings with --nat-from (sourceSubnetworkIpRangesToNat64), or --nat-bypass 64:ff9b::/96 if something else translates \
             them"
        )),
        (None, _) => Some(format!(
            "flows through NAT64 (64:ff9b::/96), {ports} of them, are taken to pass {title}: --nat-bypass 64:ff9b::/96 if something \
             else translates them"
        )),
    }
}

/// That the files about the NAT could not be read again.
pub(super) fn stale(ledger: &Ledger) -> Option<String> {
    let files = ledger.coverage().get(&SourceId::NatFiles)?.present()?;
    files.degraded.as_ref().map(ToString::to_string)
}
