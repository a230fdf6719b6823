//! What to do where nodes get no ports because the gateway is too small for them: more NAT IPs, fewer ports for each node, or
//! several gateways where one cannot have so many. What this node needs is left to it.

use super::ips::{Ips, more_ips, together, with_own};
use super::more::{self, in_force_would_do, set};
use super::need::with_air;
use super::{Need, Remedy, Target, caution, changes, nat_ips};
use crate::model::nat::{
    ALIAS_FLOOR, DYNAMIC_MAX_DEFAULT, DYNAMIC_MIN_DEFAULT, Mode, NatSettings, NodePorts, Profile, STATIC_DEFAULT,
    granted, static_ports,
};
use crate::words::counted;

/// What there is to do, each enough by itself. A node that is short itself is told to get more: then that, for all nodes.
pub fn bigger_gateway(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    let pending = in_force_would_do(nat, need.wanted(ports)).filter(|_| need.short);
    if let Some(set) = pending {
        return Ips::holding(nat, together(nat, set, set).unwrap_or(0)).remedy(nat, "NAT IP");
    }
    let ways = if need.short { more::ways(nat, ports, need) } else { Remedy::default() };
    if !ways.says.is_empty() {
        return ways;
    }
    let ips = |own: u32| {
        let all = with_own(nat, (ports.reserved, ports.reserved), own);
        Ips::holding(nat, all.unwrap_or(0))
    };
    match (nat.profile, nat.mode) {
        (Profile::Gcp, Mode::Static) => {
            Remedy::either([ips(0).remedy(nat, "NAT IP"), dynamic(nat, ports.reserved, ports.ports, need)])
        }
        (Profile::Gcp, Mode::Dynamic) => {
            let own = granted(nat.dynamic_min(), nat.dynamic_max(), need.wanted(ports));
            Remedy::either([ips(own).remedy(nat, "NAT IP"), fewer_ports(nat, ports, need)])
        }
        (Profile::AzureLb, _) if nat.min_ports.is_some_and(|ports| ports != 0) => {
            Remedy::either([ips(0).remedy(nat, "frontend IP"), fewer_by_hand(nat, ports, need)])
        }
        _ => Remedy::words("split the nodes over several gateways (one for each subnet)"),
    }
}

/// What to do where the gateway says itself how many NAT IPs it lacks.
pub fn missing_ips(nat: &NatSettings, ports: &NodePorts, missing: u32, need: Need) -> Remedy {
    if nat.nat_ips == Some(0) {
        return first_ips(nat, missing, need);
    }
    let ways = if need.short { more::ways(nat, ports, need) } else { Remedy::default() };
    if nat.auto_ips {
        let ways = if ways.says.is_empty() { fewer_ports(nat, ports, need) } else { ways };
        let quota = "raise the quota of external IP addresses: the gateway adds NAT IPs by itself";
        return Remedy::either([ways, Remedy::words(quota)]);
    }
    // It counts them for all that nodes are to have; this node's own may come on top.
    if !ways.says.is_empty() {
        return ways;
    }
    let more = match nat.nat_ips {
        Some(ips) => {
            let min = nat.dynamic_min();
            let own = match (nat.profile, nat.mode) {
                (Profile::Gcp, Mode::Dynamic) => granted(min, nat.dynamic_max(), need.wanted(ports)),
                _ => 0,
            };
            let by_number = with_own(nat, (min, min), own).filter(|_| own > 0).and_then(|all| more_ips(nat, all));
            Ips::of(nat, ips.saturating_add(missing).max(by_number.unwrap_or(0))).remedy(nat, "NAT IP")
        }
        None => Remedy::words(format!("add {}", nat_ips(missing))),
    };
    Remedy::either([more, fewer_ports(nat, ports, need)])
}

/// The first NAT IPs of a gateway that has none: as many as it lacks, as nodes take, and as this node needs.
fn first_ips(nat: &NatSettings, missing: u32, need: Need) -> Remedy {
    let wanted = with_air(need.ports);
    let one = NatSettings { nat_ips: Some(1), missing_ips: None, observed: None, ..nat.clone() };
    let mut target = Target::default();
    let Some(given) = one.node_ports() else { return Remedy::words("give the gateway NAT IPs") };
    let all = match (nat.profile, nat.mode) {
        (Profile::Gcp, Mode::Static) => {
            let raised = wanted.checked_next_power_of_two().filter(|ports| *ports <= more::LARGEST_MINIMUM);
            target.min_ports = raised.filter(|ports| *ports > given.ports);
            together(&one, given.reserved, target.min_ports.unwrap_or(given.reserved))
        }
        (Profile::Gcp, Mode::Dynamic) => {
            let raised = wanted.checked_next_power_of_two().filter(|ports| *ports <= DYNAMIC_MAX_DEFAULT);
            target.max_ports = raised.filter(|ports| *ports > given.ports);
            let own = granted(nat.dynamic_min(), target.max_ports.unwrap_or(given.ports), wanted);
            with_own(&one, (given.reserved, given.reserved), own)
        }
        (Profile::AzureLb, _) if nat.min_ports.is_some_and(|ports| ports != 0) => {
            let raised = wanted.checked_next_multiple_of(8).filter(|ports| *ports <= 64_000);
            target.min_ports = raised.filter(|ports| *ports > given.ports);
            together(&one, given.reserved, target.min_ports.unwrap_or(given.reserved))
        }
        // So many for each IP.
        _ => None,
    };
    let for_all = all.and_then(|all| more_ips(&one, all)).unwrap_or(1);
    let for_this = if all.is_some() { 1 } else { wanted.div_ceil(given.ports.max(1)) };
    let ips = missing.max(1).max(for_all).max(for_this);
    if nat.max_ips().is_some_and(|most| ips > most) {
        return Ips::of(nat, ips).remedy(nat, "NAT IP");
    }
    target.nat_ips = Some(ips);
    let ports = target.min_ports.or(target.max_ports);
    let says = if ips == 1 && ports.is_none() {
        "give the gateway NAT IPs".to_owned()
    } else {
        format!("give the gateway NAT IPs: set {}", more::in_words(nat, target))
    };
    Remedy { changes: changes(nat, target), settings: vec![target], ..Remedy::words(says) }
}

/// What to do where it has failed to give some machine ports, and does not say how many NAT IPs it lacks.
pub fn after_failed_allocation(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    let look =
        "see how many NAT IPs it lacks (`gcloud compute routers get-status ROUTER`: minExtraNatIpsNeeded) and add them";
    let ways = if need.short { more::ways(nat, ports, need) } else { fewer_ports(nat, ports, need) };
    Remedy::either([Remedy::words(look), ways])
}

/// Fewer ports for each node on Cloud NAT, as many as this node needs at least. A minimum is lowered in vain where nodes get more
/// than it anyway.
fn fewer_ports(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    if nat.profile != Profile::Gcp || need.short {
        return Remedy::default();
    }
    let wanted = need.wanted(ports);
    let (reserved, least) = match nat.mode {
        Mode::Static => {
            (static_ports(nat.min_ports, nat.alias_ranges), static_ports(Some(wanted.max(2)), nat.alias_ranges))
        }
        // What it has grown to is not to be taken away.
        Mode::Dynamic => (nat.dynamic_min(), granted(DYNAMIC_MIN_DEFAULT, DYNAMIC_MAX_DEFAULT, wanted)),
    };
    let halves = std::iter::successors(Some(reserved.next_power_of_two() / 2), |each| Some(each / 2))
        .take_while(|each| *each >= least);
    let mut lower = halves.filter(|each| *each < reserved).peekable();
    // As the gateway says it, where it does.
    let had = if ports.reserved > 0 { ports.reserved } else { reserved };
    let instead = || match nat.mode {
        Mode::Static => dynamic(nat, had, ports.ports.max(had), need),
        Mode::Dynamic => Remedy::default(),
    };
    if lower.peek().is_none() {
        return instead();
    }
    let known = nat.pool().filter(|_| !nat.auto_ips && together(nat, had, had).is_some());
    let Some(pool) = known else {
        let here = if need.ports > 0 { format!(", this node needs {}", need.ports) } else { String::new() };
        return Remedy::words(format!("lower min_ports_per_vm ({reserved} ports for each node now{here})"));
    };
    let own = |each: u32| if nat.mode == Mode::Dynamic { granted(each, nat.dynamic_max(), wanted) } else { each };
    let fits = |each: &u32| with_own(nat, (had, *each), own(*each)).is_some_and(|all| all <= pool);
    let Some(each) = lower.find(fits) else { return instead() };
    let way = set(nat, Target { min_ports: Some(each), ..Target::default() }, ports.ports);
    let says = format!("lower min_ports_per_vm to {each} ({reserved} ports for each node now)");
    let mind = (nat.mode == Mode::Static)
        .then(|| format!("a node that needs more than {each} ports to one destination would lack some"));
    Remedy { says, mind: way.mind.iter().cloned().chain(mind).collect(), ..way }
}

/// Fewer ports allocated by hand, as many as this node needs at least.
fn fewer_by_hand(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    let each = nat.nodes.and_then(|nodes| {
        let each = nat.pool()?.checked_div(nat.with_surge(nodes).into())? / 8 * 8;
        u32::try_from(each).ok().filter(|each| *each > 0 && *each >= need.wanted(ports))
    });
    each.map_or_else(Remedy::default, |each| {
        set(nat, Target { min_ports: Some(each), ..Target::default() }, ports.ports)
    })
}

/// Dynamic allocation from few ports on, up to what a node needs at most, with the NAT IPs that this takes; nothing where it takes no
/// fewer, or too many. A node has so many `reserved` until then; this one is to have what it needs.
pub(super) fn dynamic(nat: &NatSettings, reserved: u32, most: u32, need: Need) -> Remedy {
    let max = most.max(reserved).checked_next_power_of_two().unwrap_or(DYNAMIC_MAX_DEFAULT);
    let max = max.clamp(ALIAS_FLOOR, DYNAMIC_MAX_DEFAULT);
    // The mapping goes with it.
    let own = granted(STATIC_DEFAULT, max, with_air(need.busiest));
    let all = with_own(nat, (reserved, STATIC_DEFAULT), own);
    let takes_fewer = match (all, together(nat, reserved, reserved)) {
        (Some(then), Some(now)) => then <= now,
        _ => reserved > STATIC_DEFAULT,
    };
    let counted_on = all.is_some() && !nat.auto_ips;
    let more = match Ips::holding(nat, all.unwrap_or(0)) {
        Ips::There if counted_on || !nat.lacks_ips() || takes_fewer => None,
        Ips::More(ips) if reserved > STATIC_DEFAULT => Some(ips),
        Ips::There | Ips::More(_) | Ips::Gateways(_) => return Remedy::default(),
    };
    let target = Target {
        mode: Some(Mode::Dynamic),
        min_ports: Some(STATIC_DEFAULT),
        max_ports: Some(max),
        nat_ips: more,
        endpoint_independent: Some(false),
        port_range: None,
    };
    let ips = more.map_or_else(String::new, |ips| format!(" and use {}", nat_ips(ips)));
    // Beside this node, which takes more than the others.
    let then = NatSettings { nat_ips: more.or(nat.nat_ips), ..nat.clone() };
    let beside = u64::from(own - STATIC_DEFAULT);
    let fit = then
        .pool()
        .filter(|_| !nat.auto_ips)
        .map(|pool| then.without_surge(pool.saturating_sub(beside) / u64::from(STATIC_DEFAULT)));
    let with = if beside > 0 { format!(" with {own} ports for this one") } else { String::new() };
    let fit = fit.map_or_else(
        || format!(": a node takes {STATIC_DEFAULT} ports until it needs more"),
        |fit| format!(": {} {}{with}", counted(fit, "node"), if fit == 1 { "fits" } else { "fit" }),
    );
    let says = format!(
        "switch to dynamic allocation with min_ports_per_vm = {STATIC_DEFAULT} and max_ports_per_vm = {max} \
         (endpoint-independent mapping off){ips}{fit}"
    );
    Remedy { says, mind: caution(nat, target, reserved), changes: changes(nat, target), settings: vec![target] }
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
        bigger_gateway(&nat, &nat.node_ports().unwrap(), Need::default())
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
