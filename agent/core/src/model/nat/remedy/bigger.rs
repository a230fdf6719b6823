//! What to do where nodes get no ports because the gateway is too small for them: more NAT IPs, fewer ports for each node, or
//! several gateways where one cannot have so many.

use super::{Change, Remedy, Target, changes, more_ips, nat_ips};
use crate::model::nat::{ALIAS_FLOOR, DYNAMIC_MAX_DEFAULT, Mode, NatSettings, NodePorts, Profile, STATIC_DEFAULT};
use crate::words::counted;

/// What there is to do, each enough by itself.
pub fn bigger_gateway(nat: &NatSettings, ports: &NodePorts) -> Remedy {
    let ips = Ips::of(nat, ports.reserved);
    match (nat.profile, nat.mode) {
        (Profile::Gcp, Mode::Static) => either(vec![ips.remedy(nat, "NAT IPs"), dynamic(nat, ports)]),
        (Profile::Gcp, Mode::Dynamic) => {
            either(vec![ips.remedy(nat, "NAT IPs"), Remedy::words("lower min_ports_per_vm")])
        }
        (Profile::AzureLb, _) if nat.min_ports.is_some_and(|ports| ports != 0) => {
            let fewer = Remedy::words("allocate fewer ports to each node");
            either(vec![ips.remedy(nat, "frontend IPs"), fewer])
        }
        _ => Remedy::words("split the nodes over several gateways (one for each subnet)"),
    }
}

/// NAT IPs that the nodes take, with so many ports reserved for each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ips {
    /// There are enough.
    There,
    /// So many, which a gateway can have.
    More(u32),
    /// More than a gateway can have: so many gateways, at least.
    Gateways(u32),
}

impl Ips {
    fn of(nat: &NatSettings, reserved: u32) -> Self {
        let nodes = nat.nodes.unwrap_or(1).saturating_add(nat.surge.unwrap_or(0));
        let most = nat.profile.capacity().and_then(|capacity| capacity.max_ips).unwrap_or(u32::MAX);
        match more_ips(nat, u64::from(nodes) * u64::from(reserved)) {
            None => Self::There,
            Some(ips) if ips <= most => Self::More(ips),
            Some(ips) => Self::Gateways(ips.div_ceil(most)),
        }
    }

    fn remedy(self, nat: &NatSettings, what: &str) -> Remedy {
        match self {
            Self::There => Remedy::words(""),
            Self::More(ips) => {
                let target = Target { nat_ips: Some(ips), ..Target::default() };
                Remedy { says: format!("use {ips} {what}"), changes: changes(nat, target) }
            }
            Self::Gateways(gateways) => {
                Remedy::words(&format!("split the nodes over several gateways ({gateways} at least)"))
            }
        }
    }
}

/// Dynamic allocation from few ports on, with the NAT IPs that this takes; nothing where it takes no fewer, or too many.
fn dynamic(nat: &NatSettings, ports: &NodePorts) -> Remedy {
    let more = match Ips::of(nat, STATIC_DEFAULT) {
        Ips::There => None,
        Ips::More(ips) if ports.reserved > STATIC_DEFAULT => Some(ips),
        Ips::More(_) | Ips::Gateways(_) => return Remedy::words(""),
    };
    let max = ports.ports.checked_next_power_of_two().unwrap_or(DYNAMIC_MAX_DEFAULT);
    let max = max.clamp(ALIAS_FLOOR, DYNAMIC_MAX_DEFAULT);
    let target =
        Target { mode: Some(Mode::Dynamic), min_ports: Some(STATIC_DEFAULT), max_ports: Some(max), nat_ips: more };
    let then = NatSettings { nat_ips: more.or(nat.nat_ips), ..nat.clone() };
    let fit = then.fit(STATIC_DEFAULT).unwrap_or(0);
    let ips = more.map_or_else(String::new, |ips| format!(" and use {}", nat_ips(ips)));
    let says = format!(
        "switch to dynamic allocation with min_ports_per_vm = {STATIC_DEFAULT} and max_ports_per_vm = {max} \
         (endpoint-independent mapping off){ips}: {} {}",
        counted(fit, "node"),
        if fit == 1 { "fits" } else { "fit" }
    );
    Remedy { says, changes: changes(nat, target) }
}

/// One or the other; the lines of those after the first say that they are instead of it.
fn either(ways: Vec<Remedy>) -> Remedy {
    let ways: Vec<Remedy> = ways.into_iter().filter(|way| !way.says.is_empty()).collect();
    let says = ways.iter().map(|way| way.says.as_str()).collect::<Vec<_>>().join(", or ");
    let mut all: Vec<Change> = Vec::new();
    for way in ways {
        let instead = if all.is_empty() { "" } else { "# instead:\n" };
        all.extend(
            way.changes.into_iter().map(|change| Change { text: format!("{instead}{}", change.text), ..change }),
        );
    }
    Remedy { says, changes: all }
}

impl Remedy {
    fn words(says: &str) -> Self {
        Self { says: says.to_owned(), changes: Vec::new() }
    }
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
