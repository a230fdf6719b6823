//! What a change does to connections besides.

use super::lines::own_outbound_rule;
use super::{Target, mapping};
use crate::model::nat::{Mode, NatSettings, Profile};
use crate::ports::PortRange;

/// What to mind of a change, where nodes have so many ports until then (cloud.google.com/nat/docs/tune-nat-configuration and
/// set-up-manage-network-address-translation).
pub fn caution(nat: &NatSettings, target: Target, ports: u32) -> Vec<String> {
    let ports_change = target.min_ports.is_some() || target.max_ports.is_some();
    let of_ports = match (nat.profile, target.mode) {
        // What nodes do not have cannot be cut.
        (Profile::Gcp, _) if ports == 0 => None,
        (Profile::Gcp, Some(Mode::Dynamic)) => {
            Some("going back to static allocation later closes all connections".to_owned())
        }
        (Profile::Gcp, _) if ports_change => {
            Some("nodes may fall back to the minimum for a while, which cuts connections".to_owned())
        }
        (Profile::AzureLb, _) if target.min_ports.is_some_and(|fewer| fewer < ports) => {
            Some(format!("fewer than the {ports} ports that nodes have now: connections beyond them would be cut"))
        }
        _ => None,
    };
    // Dynamic allocation and the mapping exclude each other.
    let mapping_goes = target.mode == Some(Mode::Dynamic) && nat.endpoint_independent == Some(true);
    let lost = (nat.profile == Profile::Gcp && mapping_goes).then(|| mapping::LOST.to_owned());
    let among = target.port_range.is_some_and(|range| range.contains(PortRange::NODE_PORTS.first()));
    let nodeports = among.then(|| {
        format!(
            "the NodePorts {} are among them: a Service and a connection may take the same one",
            PortRange::NODE_PORTS
        )
    });
    of_ports.into_iter().chain(lost).chain(nodeports).chain(replaced(nat, target)).collect()
}

/// Lines that take the whole list of NAT IPs, where there are some.
fn replaced(nat: &NatSettings, target: Target) -> Option<String> {
    let some_now = nat.nat_ips.is_some_and(|ips| ips > 0) && !nat.auto_ips;
    let whole_list = match nat.profile {
        Profile::Gcp => true,
        Profile::AzureNatgw => nat.names.gateway.is_some() && nat.names.cluster.is_none(),
        Profile::AzureLb => own_outbound_rule(nat).is_some(),
        Profile::Aws | Profile::Linux | Profile::None => false,
    };
    (some_now && whole_list && target.nat_ips.is_some())
        .then(|| "the list of NAT IPs is replaced: name those it has now as well, or their connections end".to_owned())
}
