//! More ports for a node that has used up those it was given, and what that costs the others.

use super::bigger::dynamic;
use super::ips::{Ips, more_ips, together, with_own};
use super::need::with_air;
use super::{Need, Remedy, Target, caution, changes, nat_ips};
use crate::model::nat::{DYNAMIC_MAX_DEFAULT, Mode, NatSettings, NodePorts, Profile, granted, static_ports};
use crate::ports::PortRange;
use crate::words::counted;

/// The largest power of two that Cloud NAT takes as a minimum: static allocation ends at 57,344.
pub(super) const LARGEST_MINIMUM: u32 = 32_768;

const REUSE: &str = "reuse connections in the pods named above";
const REUSE_TO_ALL: &str = "reuse connections";
const SPREAD: &str = "spread them over more destination addresses or nodes";

/// What to set so that a node gets the ports that it needs, with some air.
pub fn more_ports(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    let wanted = need.wanted(ports);
    let reuse = Remedy::words(REUSE);
    if let Some(way) = not_in_force(nat, wanted).map(Remedy::words).or_else(|| narrow_range(nat, wanted)) {
        return Remedy::either([reuse, way]);
    }
    let ways = ways(nat, ports, need);
    if ways.says.is_empty() {
        let spread = format!("{SPREAD}: {} gives no node more ports", nat.profile.title());
        return Remedy::either([reuse, Remedy::words(spread)]);
    }
    Remedy::either([reuse, ways])
}

/// The same where no ports are reserved, for as many nodes as there are, all in need of as much.
pub fn more_ports_for_all(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    let wanted = with_air(need.of_all(nat)).max(ports.ports.saturating_add(1));
    let reuse = Remedy::words(REUSE_TO_ALL);
    if let Some(way) = narrow_range(nat, wanted) {
        return Remedy::either([reuse, way]);
    }
    let way = match ips_for(nat, wanted) {
        Some(_) => ways(nat, ports, need),
        None => match nat.max_ips() {
            Some(most) => {
                let gateways = ips_of(nat, wanted).div_ceil(most);
                Remedy::words(format!("split the nodes over several gateways ({gateways} at least)"))
            }
            None => Remedy::words(SPREAD),
        },
    };
    Remedy::either([reuse, way])
}

/// What is to be set so that this node gets what it needs, and all of them have some.
pub(super) fn ways(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    match nat.profile {
        Profile::Gcp => Remedy::either(gcp(nat, ports, need)),
        Profile::AzureLb => azure_lb(nat, ports, need.wanted(ports)),
        Profile::Aws | Profile::AzureNatgw | Profile::Linux => shared(nat, ports, need),
        Profile::None => Remedy::default(),
    }
}

impl Need {
    /// What all nodes need together, where each needs as much as this one to its busiest destination.
    pub(super) fn of_all(self, nat: &NatSettings) -> u32 {
        self.busiest.saturating_mul(nat.nodes.unwrap_or(1))
    }
}

/// What is to be set, where nodes have so many ports until then; nothing where nothing is to be.
pub(super) fn set(nat: &NatSettings, target: Target, had: u32) -> Remedy {
    if target == Target::default() {
        return Remedy::default();
    }
    let says = format!("set {} on {}", in_words(nat, target), nat.profile.title());
    Remedy { says, mind: caution(nat, target, had), changes: changes(nat, target), settings: vec![target] }
}

/// The ports that a setting would give which is not in force yet, where they would do: a gateway is seen to give less.
pub(super) fn in_force_would_do(nat: &NatSettings, wanted: u32) -> Option<u32> {
    let given = nat.observed.as_ref()?.ports;
    let asked = nat.min_ports.filter(|min| *min != 0 && nat.profile == Profile::Gcp && nat.mode == Mode::Static)?;
    let set = static_ports(Some(asked), false);
    (given < set && wanted <= set).then_some(set)
}

/// Such a setting is not to be lowered to what is missing.
fn not_in_force(nat: &NatSettings, wanted: u32) -> Option<String> {
    in_force_would_do(nat, wanted)?;
    Some(format!(
        "see whether min_ports_per_vm = {} is in force on {}: this node was given {}",
        nat.min_ports?,
        nat.profile.title(),
        nat.observed.as_ref()?.ports
    ))
}

/// Ports that masquerading can be given: without NodePorts, and all of them.
pub(crate) fn wider_ranges(nat: &NatSettings) -> impl Iterator<Item = PortRange> + use<> {
    let now = nat.port_range.filter(|_| nat.profile == Profile::Linux);
    let ranges = [PortRange::new(32_768, u16::MAX), PortRange::new(1024, u16::MAX)].into_iter().flatten();
    ranges.filter(move |range| now.is_some_and(|now| now.count() < range.count()))
}

/// Masquerading that was given a narrow range of ports: there are more on the addresses that it has.
fn narrow_range(nat: &NatSettings, wanted: u32) -> Option<Remedy> {
    let now = nat.port_range?;
    let ips = nat.nat_ips.unwrap_or(1);
    let range = wider_ranges(nat).find(|range| wanted <= range.count().saturating_mul(ips))?;
    let target = Target { port_range: Some(range), ..Target::default() };
    let says = format!("widen --to-ports of the masquerading to {range} ({now} now)");
    let way = Remedy { says, mind: caution(nat, target, 0), changes: changes(nat, target), settings: vec![target] };
    Some(Remedy::either([way, Remedy::words(SPREAD)]))
}

/// The next power of two, with the NAT IPs that it takes as far as that is known; dynamic allocation where static takes more of them,
/// or cannot give so many.
fn gcp(nat: &NatSettings, ports: &NodePorts, need: Need) -> Vec<Remedy> {
    let Some(wanted) = need.wanted(ports).checked_next_power_of_two().filter(|ports| *ports <= DYNAMIC_MAX_DEFAULT)
    else {
        return Vec::new();
    };
    let lacks = nat.lacks_ips();
    if nat.mode == Mode::Dynamic {
        let target = Target { max_ports: Some(wanted), ..Target::default() };
        let min = nat.dynamic_min();
        // The others have the minimum at least.
        let own = granted(min, wanted, wanted);
        return vec![for_all(nat, target, with_own(nat, (min, min), own), (ports.ports, wanted))];
    }
    let each = static_ports(Some(wanted), nat.alias_ranges);
    let own = (wanted <= LARGEST_MINIMUM).then(|| {
        let target = Target { min_ports: Some(wanted), ..Target::default() };
        for_all(nat, target, together(nat, ports.reserved, each), (ports.reserved, each))
    });
    let takes_more = together(nat, ports.reserved, each).is_some_and(|ports| more_ips(nat, ports).is_some());
    // Which of both is set is not known where nobody has said the mode; the mapping may be wanted.
    let free_to_choose = !nat.mode_assumed && nat.endpoint_independent != Some(true);
    let instead =
        (lacks || own.is_none() || (takes_more && free_to_choose)).then(|| dynamic(nat, ports.reserved, wanted, need));
    let ways = if lacks { [instead, own] } else { [own, instead] };
    ways.into_iter().flatten().collect()
}

/// The next multiple of 8, which Azure asks for, with the frontend IPs that it takes as far as that is known.
fn azure_lb(nat: &NatSettings, ports: &NodePorts, wanted: u32) -> Remedy {
    let Some(wanted) = wanted.checked_next_multiple_of(8).filter(|ports| *ports <= 64_000) else {
        return Remedy::default();
    };
    let target = Target { min_ports: Some(wanted), ..Target::default() };
    for_all(nat, target, together(nat, ports.reserved, wanted), (ports.reserved, wanted))
}

/// NAT IPs that serve all nodes if they are alike; where a gateway cannot have so many, those that serve this one.
fn shared(nat: &NatSettings, ports: &NodePorts, need: Need) -> Remedy {
    let of_all = Some(need.of_all(nat)).filter(|all| *all > ports.ports).and_then(|all| ips_for(nat, with_air(all)));
    let target = of_all.max(ips_for(nat, need.wanted(ports)));
    let more = target.filter(|ips| *ips > nat.ips_counted());
    set(nat, Target { nat_ips: more, ..Target::default() }, 0)
}

/// That, and the NAT IPs that nodes take together; where that is not known, how many nodes an IP serves with so many ports each, and
/// with so many as it is.
fn for_all(nat: &NatSettings, target: Target, taken: Option<u64>, (had, each): (u32, u32)) -> Remedy {
    // A gateway that adds NAT IPs by itself, and cannot.
    let stuck = nat.lacks_ips() && nat.auto_ips;
    match taken.filter(|_| !stuck).map(|ports| Ips::holding(nat, ports)) {
        Some(Ips::There) => set(nat, target, had),
        Some(Ips::More(ips)) => set(nat, Target { nat_ips: Some(ips), ..target }, had),
        Some(Ips::Gateways(gateways)) => {
            Remedy::words(format!("split the nodes over several gateways ({gateways} at least)"))
        }
        None => {
            let way = set(nat, target, had);
            let whose = if nat.mode == Mode::Dynamic { " at their maximum" } else { "" };
            let says = format!("{}: {}", way.says, served(nat, (had, each), whose));
            // What makes it worse is not to be pasted.
            if nat.lacks_ips() {
                return Remedy { mind: way.mind, ..Remedy::words(says) };
            }
            Remedy { says, ..way }
        }
    }
}

/// A larger minimum under dynamic allocation, so that less has to be enlarged under load; `None` where Cloud NAT takes none, or has
/// too little for it.
pub fn larger_minimum(nat: &NatSettings, ports: &NodePorts, need: Need) -> Option<Remedy> {
    let (min, max) = (nat.dynamic_min(), nat.dynamic_max());
    let to = granted(min, max, need.busiest).min(LARGEST_MINIMUM);
    // It has to be below the maximum, which has to be what this node needs.
    let needed =
        need.wanted(ports).checked_next_power_of_two().filter(|most| need.short && *most <= DYNAMIC_MAX_DEFAULT);
    let most = needed.unwrap_or(0).max(max).max(to.saturating_mul(2)).min(DYNAMIC_MAX_DEFAULT);
    let max_ports = (most > max).then_some(most);
    let own = granted(to, most, with_air(need.ports));
    let (nat_ips, cost) = match with_own(nat, (min, to), own).map(|all| Ips::holding(nat, all)) {
        _ if to <= min => return None,
        _ if nat.lacks_ips() && (nat.auto_ips || with_own(nat, (min, to), own).is_none()) => return None,
        Some(Ips::Gateways(_)) => return None,
        Some(Ips::There) if nat.auto_ips => (None, served(nat, (min, to), "")),
        Some(Ips::There) => (None, "there are NAT IPs for it".to_owned()),
        Some(Ips::More(ips)) => (Some(ips), format!("it takes {}", super::nat_ips(ips))),
        None => (None, served(nat, (min, to), "")),
    };
    let target = Target { min_ports: Some(to), max_ports, nat_ips, ..Target::default() };
    let above = max_ports.map_or_else(String::new, |ports| format!(" and max_ports_per_vm to {ports}"));
    let says = format!(
        "raise min_ports_per_vm to {to}{above}, so that the NAT need not enlarge the range in the middle of it ({cost})"
    );
    Some(Remedy { says, mind: caution(nat, target, min), changes: changes(nat, target), settings: vec![target] })
}

/// What such ports for each node cost.
fn served(nat: &NatSettings, (had, each): (u32, u32), whose: &str) -> String {
    let of_an_ip = nat.profile.capacity().map_or(0, |capacity| nat.ports_of_an_ip(capacity.ports_per_ip));
    let nodes = |each: u32| of_an_ip.checked_div(each).unwrap_or(0);
    // Azure's own table shares what there is.
    let by_table = nat.profile == Profile::AzureLb && nat.min_ports.is_none_or(|ports| ports == 0);
    let now = if by_table { String::new() } else { format!(" ({} now)", nodes(had)) };
    let then = match nodes(each) {
        0 => "a node may then take more than one NAT IP has".to_owned(),
        served => format!("each NAT IP then serves {}{whose}{now}", counted(served, "node")),
    };
    match nat.lacks_ips() {
        true if nat.auto_ips => {
            format!("{then}, and the gateway lacks some as it is: raise the quota of addresses first")
        }
        false if nat.auto_ips => format!("{then}, and the gateway adds NAT IPs as far as the quota goes"),
        true => format!("{then}, and there are too few as it is: add some first"),
        false => format!("{then}; add NAT IPs if there are more nodes"),
    }
}

/// So many IPs that one destination takes them all, where a gateway can have so many.
fn ips_for(nat: &NatSettings, wanted: u32) -> Option<u32> {
    nat.profile.capacity()?;
    Some(ips_of(nat, wanted)).filter(|ips| nat.max_ips().is_none_or(|most| *ips <= most))
}

fn ips_of(nat: &NatSettings, wanted: u32) -> u32 {
    let of_an_ip = nat.profile.capacity().map_or(1, |capacity| nat.ports_of_an_ip(capacity.per_destination));
    wanted.div_ceil(of_an_ip.max(1))
}

pub(super) fn in_words(nat: &NatSettings, target: Target) -> String {
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
