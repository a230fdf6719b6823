//! More ports for a node that has used up those it was given, and what that costs the others.

use super::bigger::dynamic;
use super::ips::{Ips, more_ips, together};
use super::{Remedy, Target, caution, changes, nat_ips};
use crate::model::nat::{DYNAMIC_MAX_DEFAULT, Mode, NatSettings, NodePorts, Profile, static_ports};
use crate::words::counted;

/// A quarter on top of the demand, so that there is some air.
pub(super) fn with_air(demand: u32) -> u32 {
    demand.saturating_add(demand / 4)
}

/// The largest power of two that Cloud NAT takes as a minimum: static allocation ends at 57,344.
const LARGEST_MINIMUM: u32 = 32_768;

const REUSE: &str = "reuse connections in the pods named above";
const SPREAD: &str = "spread them over more destination addresses or nodes";

/// What to set so that a node that needs so many ports to one destination gets them, with some air.
pub fn more_ports(nat: &NatSettings, ports: &NodePorts, demand: u32) -> Remedy {
    let wanted = with_air(demand).max(ports.ports.saturating_add(1));
    let reuse = Remedy::words(REUSE);
    if let Some(says) = not_in_force(nat, wanted).or_else(|| narrow_range(nat, wanted)) {
        return Remedy::either([reuse, Remedy::words(says)]);
    }
    let ways = match nat.profile {
        Profile::Gcp => Remedy::either(gcp(nat, ports, wanted)),
        Profile::AzureLb => azure_lb(nat, ports, wanted),
        Profile::Aws | Profile::AzureNatgw | Profile::Linux => set(nat, ips_for(nat, wanted).unwrap_or_default(), 0),
        Profile::None => Remedy::default(),
    };
    if ways.says.is_empty() {
        let spread = format!("{SPREAD}: {} gives no node more ports", nat.profile.title());
        return Remedy::either([reuse, Remedy::words(spread)]);
    }
    Remedy::either([reuse, ways])
}

/// What is to be set, where nodes have so many ports until then; nothing where nothing is to be.
fn set(nat: &NatSettings, target: Target, had: u32) -> Remedy {
    if target == Target::default() {
        return Remedy::default();
    }
    let says = format!("set {} on {}", in_words(nat, target), nat.profile.title());
    Remedy { says, mind: caution(nat, target, had), changes: changes(nat, target) }
}

/// A setting that would do, and a gateway that is seen to give less: the setting is not to be lowered to what is missing.
fn not_in_force(nat: &NatSettings, wanted: u32) -> Option<String> {
    let given = nat.observed.as_ref()?.ports;
    let asked = nat.min_ports.filter(|min| *min != 0 && nat.profile == Profile::Gcp && nat.mode == Mode::Static)?;
    let set = static_ports(Some(asked), false);
    (given < set && wanted <= set).then(|| {
        format!(
            "see whether min_ports_per_vm = {asked} is in force on {}: this node was given {given}",
            nat.profile.title()
        )
    })
}

/// Masquerading that was given a narrow range of ports: there are more on the addresses that it has.
fn narrow_range(nat: &NatSettings, wanted: u32) -> Option<String> {
    let range = nat.port_range.filter(|_| nat.profile == Profile::Linux)?;
    let most = nat.profile.capacity()?.per_destination.saturating_mul(nat.nat_ips.unwrap_or(1));
    (wanted <= most).then(|| format!("widen --to-ports of the masquerading, {range} now, or {SPREAD}"))
}

/// The next power of two, with the NAT IPs that it takes as far as that is known; dynamic allocation where static takes more of them,
/// or cannot give so many.
fn gcp(nat: &NatSettings, ports: &NodePorts, wanted: u32) -> Vec<Remedy> {
    let Some(wanted) = wanted.checked_next_power_of_two().filter(|ports| *ports <= DYNAMIC_MAX_DEFAULT) else {
        return Vec::new();
    };
    let lacks = nat.missing_ips.is_some_and(|missing| missing > 0) || nat.allocation_failed.is_some();
    if nat.mode == Mode::Dynamic {
        let target = Target { max_ports: Some(wanted), ..Target::default() };
        let min = nat.dynamic_min();
        // The others have the minimum at least.
        let taken = together(nat, min, min).map(|ports| ports.saturating_add(u64::from(wanted.saturating_sub(min))));
        return vec![for_all(nat, target, taken, (ports.ports, wanted), lacks)];
    }
    let own = (wanted <= LARGEST_MINIMUM).then(|| {
        let target = Target { min_ports: Some(wanted), ..Target::default() };
        for_all(nat, target, together(nat, ports.reserved, wanted), (ports.reserved, wanted), lacks)
    });
    let takes_more = together(nat, ports.reserved, wanted).is_some_and(|ports| more_ips(nat, ports).is_some());
    // Which of both is set is not known where nobody has said the mode; the mapping may be wanted.
    let free_to_choose = !nat.mode_assumed && nat.endpoint_independent != Some(true);
    let instead =
        (lacks || own.is_none() || (takes_more && free_to_choose)).then(|| dynamic(nat, ports.reserved, wanted));
    let ways = if lacks { [instead, own] } else { [own, instead] };
    ways.into_iter().flatten().collect()
}

/// The next multiple of 8, which Azure asks for, with the frontend IPs that it takes as far as that is known.
fn azure_lb(nat: &NatSettings, ports: &NodePorts, wanted: u32) -> Remedy {
    let Some(wanted) = wanted.checked_next_multiple_of(8).filter(|ports| *ports <= 64_000) else {
        return Remedy::default();
    };
    let target = Target { min_ports: Some(wanted), ..Target::default() };
    for_all(nat, target, together(nat, ports.reserved, wanted), (ports.reserved, wanted), false)
}

/// That, and the NAT IPs that nodes take together; where that is not known, how many nodes an IP serves with so many ports each, and
/// with so many as it is. `lacks`: it has too few as it is.
fn for_all(nat: &NatSettings, target: Target, taken: Option<u64>, (had, each): (u32, u32), lacks: bool) -> Remedy {
    match taken.map(|ports| Ips::holding(nat, ports)) {
        Some(Ips::There) => set(nat, target, had),
        Some(Ips::More(ips)) => set(nat, Target { nat_ips: Some(ips), ..target }, had),
        Some(Ips::Gateways(gateways)) => {
            Remedy::words(format!("split the nodes over several gateways ({gateways} at least)"))
        }
        None => {
            let way = set(nat, target, had);
            let whose = if nat.mode == Mode::Dynamic { " at their maximum" } else { "" };
            let says = format!("{}: {}", way.says, served(nat, (had, each), whose, lacks));
            // What makes it worse is not to be pasted.
            let changes = if lacks && nat.mode == Mode::Static { Vec::new() } else { way.changes };
            Remedy { says, changes, ..way }
        }
    }
}

/// A larger minimum under dynamic allocation, so that less has to be enlarged under load; `None` where Cloud NAT takes none.
pub fn larger_minimum(nat: &NatSettings, ports: u32) -> Option<String> {
    let (min, max) = (nat.dynamic_min(), nat.dynamic_max());
    let ports = ports.min(LARGEST_MINIMUM);
    // It has to be below the maximum.
    let above =
        if ports >= max { format!(" and max_ports_per_vm to {}", ports.saturating_mul(2)) } else { String::new() };
    (ports > min).then(|| {
        format!(
            "raise min_ports_per_vm to {ports}{above}, so that the NAT need not enlarge the range in the middle of it ({})",
            served(nat, (min, ports), "", false)
        )
    })
}

/// What such ports for each node cost.
fn served(nat: &NatSettings, (had, each): (u32, u32), whose: &str, lacks: bool) -> String {
    let of_an_ip = nat.profile.capacity().map_or(0, |capacity| nat.ports_of_an_ip(capacity.ports_per_ip));
    let nodes = |each: u32| of_an_ip.checked_div(each).unwrap_or(0);
    // Azure's own table shares what there is.
    let by_table = nat.profile == Profile::AzureLb && nat.min_ports.is_none_or(|ports| ports == 0);
    let now = if by_table { String::new() } else { format!(" ({} now)", nodes(had)) };
    let then = match nodes(each) {
        0 => "a node may then take more than one NAT IP has".to_owned(),
        served => format!("each NAT IP then serves {}{whose}{now}", counted(served, "node")),
    };
    match () {
        () if nat.auto_ips => format!("{then}, and the gateway adds NAT IPs as far as the quota goes"),
        () if lacks => format!("{then}, and there are too few as it is: add some"),
        () => format!("{then}; add NAT IPs if there are more nodes"),
    }
}

/// So many IPs that one destination takes them all.
fn ips_for(nat: &NatSettings, wanted: u32) -> Option<Target> {
    let capacity = nat.profile.capacity()?;
    let ips = wanted.div_ceil(nat.ports_of_an_ip(capacity.per_destination).max(1));
    nat.max_ips().is_none_or(|most| ips <= most).then_some(Target { nat_ips: Some(ips), ..Target::default() })
}

fn in_words(nat: &NatSettings, target: Target) -> String {
    let mut parts = Vec::new();
    match target.mode {
        Some(Mode::Dynamic) => parts.push("dynamic allocation".to_owned()),
        Some(Mode::Static) => parts.push("static allocation".to_owned()),
        None => {}
    }
    let min = if nat.profile == Profile::AzureLb { "allocated outbound ports" } else { "min_ports_per_vm" };
    parts.extend(target.min_ports.map(|ports| format!("{min} = {ports}")));
    parts.extend(target.max_ports.map(|ports| format!("max_ports_per_vm = {ports}")));
    if let Some(ips) = target.nat_ips {
        let there = nat.nat_ips.map_or_else(|| " in all".to_owned(), |ips| format!(" (there are {ips})"));
        let at_least = nat.nat_ips.is_none() || nat.mode == Mode::Dynamic || nat.missing_ips.is_some();
        let least = if at_least { "at least " } else { "" };
        let nodes =
            nat.nodes.filter(|nodes| *nodes > 1).map_or_else(String::new, |nodes| format!(" for {nodes} nodes"));
        parts.push(format!("{least}{}{there}{nodes}", nat_ips(ips)));
    }
    parts.join(" and ")
}
