//! What to do where nodes get no ports because the gateway is too small for them: more NAT IPs, fewer ports for each node, or
//! several gateways where one cannot have so many.

use super::ips::{Ips, together};
use super::{Remedy, Target, caution, changes, nat_ips};
use crate::model::nat::{
    ALIAS_FLOOR, DYNAMIC_MAX_DEFAULT, DYNAMIC_MIN_DEFAULT, Mode, NatSettings, NodePorts, Profile, STATIC_DEFAULT,
    static_ports,
};
use crate::words::counted;

/// What there is to do, each enough by itself.
pub fn bigger_gateway(nat: &NatSettings, ports: &NodePorts) -> Remedy {
    let ips = Ips::holding(nat, together(nat, ports.reserved, ports.reserved).unwrap_or(0));
    match (nat.profile, nat.mode) {
        (Profile::Gcp, Mode::Static) => {
            Remedy::either([ips.remedy(nat, "NAT IP"), dynamic(nat, ports.reserved, ports.ports)])
        }
        (Profile::Gcp, Mode::Dynamic) => Remedy::either([ips.remedy(nat, "NAT IP"), fewer_ports(nat)]),
        (Profile::AzureLb, _) if nat.min_ports.is_some_and(|ports| ports != 0) => {
            let fewer = Remedy::words("allocate fewer ports to each node");
            Remedy::either([ips.remedy(nat, "frontend IP"), fewer])
        }
        _ => Remedy::words("split the nodes over several gateways (one for each subnet)"),
    }
}

/// What to do where the gateway says itself how many NAT IPs it lacks.
pub fn missing_ips(nat: &NatSettings, missing: u32) -> Remedy {
    if nat.nat_ips == Some(0) {
        let target = Target { nat_ips: Some(missing.max(1)), ..Target::default() };
        return Remedy { changes: changes(nat, target), ..Remedy::words("give the gateway NAT IPs") };
    }
    if nat.auto_ips {
        let quota = "raise the quota of external IP addresses: the gateway adds NAT IPs by itself";
        return Remedy::either([fewer_ports(nat), Remedy::words(quota)]);
    }
    let more = match nat.nat_ips {
        Some(ips) => Ips::of(nat, ips.saturating_add(missing)).remedy(nat, "NAT IP"),
        None => Remedy::words(format!("add {}", nat_ips(missing))),
    };
    Remedy::either([more, fewer_ports(nat)])
}

/// What to do where it has failed to give some machine ports, and does not say how many NAT IPs it lacks.
pub fn after_failed_allocation(nat: &NatSettings) -> Remedy {
    let look =
        "see how many NAT IPs it lacks (`gcloud compute routers get-status ROUTER`: minExtraNatIpsNeeded) and add them";
    Remedy::either([Remedy::words(look), fewer_ports(nat)])
}

/// Fewer ports for each node on Cloud NAT. A minimum is lowered in vain where nodes get more than it anyway.
fn fewer_ports(nat: &NatSettings) -> Remedy {
    if nat.profile != Profile::Gcp {
        return Remedy::default();
    }
    let (reserved, least) = match nat.mode {
        Mode::Static => (static_ports(nat.min_ports, nat.alias_ranges), static_ports(Some(2), nat.alias_ranges)),
        Mode::Dynamic => (nat.dynamic_min(), DYNAMIC_MIN_DEFAULT),
    };
    match nat.mode {
        _ if reserved > least => Remedy::words(format!("lower min_ports_per_vm ({reserved} ports for each node now)")),
        Mode::Static => dynamic(nat, reserved, reserved),
        Mode::Dynamic => Remedy::default(),
    }
}

/// Dynamic allocation from few ports on, up to what a node needs at most, with the NAT IPs that this takes; nothing where it takes no
/// fewer, or too many. A node has so many `reserved` until then.
pub(super) fn dynamic(nat: &NatSettings, reserved: u32, most: u32) -> Remedy {
    let max = most.max(reserved).checked_next_power_of_two().unwrap_or(DYNAMIC_MAX_DEFAULT);
    let max = max.clamp(ALIAS_FLOOR, DYNAMIC_MAX_DEFAULT);
    let more = match Ips::holding(nat, together(nat, reserved, STATIC_DEFAULT).unwrap_or(0)) {
        Ips::There => None,
        Ips::More(ips) if reserved > STATIC_DEFAULT => Some(ips),
        Ips::More(_) | Ips::Gateways(_) => return Remedy::default(),
    };
    let target =
        Target { mode: Some(Mode::Dynamic), min_ports: Some(STATIC_DEFAULT), max_ports: Some(max), nat_ips: more };
    let then = NatSettings { nat_ips: more.or(nat.nat_ips), ..nat.clone() };
    let ips = more.map_or_else(String::new, |ips| format!(" and use {}", nat_ips(ips)));
    let fit = then.fit(STATIC_DEFAULT).filter(|_| !nat.auto_ips).map_or_else(
        || format!(": a node takes {STATIC_DEFAULT} ports until it needs more"),
        |fit| format!(": {} {}", counted(fit, "node"), if fit == 1 { "fits" } else { "fit" }),
    );
    let says = format!(
        "switch to dynamic allocation with min_ports_per_vm = {STATIC_DEFAULT} and max_ports_per_vm = {max} \
         (endpoint-independent mapping off){ips}{fit}"
    );
    Remedy { says, mind: caution(nat, target, reserved), changes: changes(nat, target) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::nat::Basis;

    fn remedy(nodes: u32, nat_ips: u32, min_ports: Option<u32>) -> Remedy {
        let nat = NatSettings {
            nodes: Some(nodes),
            nat_ips: Some(nat_ips),
            min_ports,
            ..NatSettings::of(Profile::Gcp, Basis::Configured)
        };
        bigger_gateway(&nat, &nat.node_ports().unwrap())
    }

    /// Exercises each way out at its bound. If this fails, somebody switches a gateway over in vain, or asks for more NAT IPs than
    /// one can have.
    #[test]
    fn what_is_told_serves_all_nodes() {
        let few = remedy(1008, 1, None);
        assert!(few.says.starts_with("use 16 NAT IPs, or switch to dynamic allocation"), "{}", few.says);
        assert!(few.says.ends_with("(endpoint-independent mapping off): 1008 nodes fit"), "{}", few.says);
        let texts: Vec<&str> = few.changes.iter().map(|change| change.text.as_str()).collect();
        assert!(texts[0].contains("count = 16") && texts[1].contains("ADDRESS-16"), "{texts:?}");
        assert!(texts[2].starts_with("# instead:\nenable_dynamic") && !texts[2].contains("nat_ips"), "{texts:?}");
        let more = remedy(1009, 1, None);
        assert!(more.says.ends_with("and use 2 NAT IPs: 2016 nodes fit"), "{}", more.says);
        assert!(more.changes[3].text.contains("--nat-external-ip-pool=ADDRESS-1,…,ADDRESS-2"), "{more:?}");
        let many = remedy(18_901, 1, None);
        assert!(
            many.says.starts_with("split the nodes over several gateways (2 at least), or switch"),
            "{}",
            many.says
        );
        let too_many = remedy(302_401, 1, None);
        assert_eq!(too_many.says, "split the nodes over several gateways (17 at least)");
        assert!(too_many.changes.is_empty());
        assert!(remedy(1, 1, Some(57_344)).says.ends_with("1008 nodes fit"));
        let crooked = remedy(20, 1, Some(3000));
        assert!(crooked.says.contains("max_ports_per_vm = 4096"), "{}", crooked.says);
    }
}
