//! Ways to make a plan fit that does not: each is planned itself before it is offered.

use super::{Demand, PlanOption, Question, Sums, with_an_ip};
use crate::model::nat::remedy::{self, Target};
use crate::model::nat::{
    ALIAS_FLOOR, DYNAMIC_MAX_DEFAULT, DYNAMIC_MIN_DEFAULT, Mode, NatSettings, Profile, STATIC_DEFAULT,
};
use crate::words::counted;

pub(super) fn options(question: &Question, sums: &Sums) -> Vec<PlanOption> {
    let nat = &question.nat;
    // Without NAT IPs nodes have no ports, but their settings may give them enough.
    let one_ip = (sums.ips == 0).then(|| with_an_ip(question));
    let served = one_ip.as_ref().and_then(Sums::of);
    let (asked, served) = (one_ip.as_ref().unwrap_or(question), served.as_ref().unwrap_or(sums));
    let targets = match (nat.profile, nat.mode) {
        (Profile::Gcp, Mode::Static) => vec![more_static(nat, served), dynamic(&question.demand, sums.ports.ports)],
        (Profile::Gcp, Mode::Dynamic) => vec![more_dynamic(served), smaller_minimum(asked)],
        (Profile::AzureLb, _) => vec![by_hand(served), fewer_by_hand(nat, served)],
        (Profile::Linux, _) => vec![Some(Target::default()), wider_range(question)],
        (Profile::Aws | Profile::AzureNatgw, _) => vec![Some(Target::default())],
        (Profile::None, _) => Vec::new(),
    };
    let mut offered: Vec<PlanOption> = Vec::new();
    let mut more_ips_alone = None;
    for target in targets.into_iter().flatten() {
        let Some(option) = offer(question, sums, target) else { continue };
        if target == Target::default() {
            more_ips_alone = Some(option.nat_ips);
        // To change something else besides, and to take as many, helps nobody.
        } else if more_ips_alone.is_some_and(|ips| option.nat_ips >= ips) {
            continue;
        }
        if !offered.iter().any(|other| other.changes == option.changes) {
            offered.push(option);
        }
    }
    offered
}

/// The question with other settings.
fn with(question: &Question, target: Target) -> Question {
    let nat = &question.nat;
    let mut after = target.applied_to(nat);
    // More NAT IPs leave everything as it is.
    if target == Target::default() {
        return Question { nat: after, ..question.clone() };
    }
    // What was observed was so with the settings of before.
    after.observed = None;
    after.missing_ips = None;
    Question { demand: question.demand.clone().after(nat, &after), nat: after, left_out: 0, ..*question }
}

/// The option, if it fits with as many IPs as it takes, and a gateway can have so many.
fn offer(question: &Question, sums: &Sums, target: Target) -> Option<PlanOption> {
    let nat = &question.nat;
    let mut changed = with(question, target);
    let needed = Sums::of(&changed)?.required_nat_ips.unwrap_or(1).max(sums.ips.min(nat.ips_counted()));
    changed.nat.nat_ips = (!nat.auto_ips).then_some(needed);
    changed.nat.missing_ips = None;
    changed.nat.check().ok()?;
    let then = Sums::of(&changed)?;
    if !then.room() || then.capacity_nodes == Some(0) {
        return None;
    }
    let target = Target { nat_ips: (needed > sums.ips && !nat.auto_ips).then_some(needed), ..target };
    let mut says = vec![setting(nat, target)];
    says.extend(target.nat_ips.map(remedy::nat_ips));
    says.retain(|part| !part.is_empty());
    // Nothing to change helps nobody.
    if says.is_empty() {
        return None;
    }
    // One was assumed and said to be.
    let counted = NatSettings { nat_ips: nat.nat_ips.or((!nat.auto_ips).then_some(nat.ips_counted())), ..nat.clone() };
    let mut mind = remedy::caution(&counted, target, sums.ports.ports);
    mind.extend(of_sources(nat, target, question.demand.largest()));
    Some(PlanOption {
        says: says.join(" and "),
        capacity_nodes: then.capacity_nodes,
        nat_ips: needed,
        caution: (!mind.is_empty()).then(|| mind.join("; ")),
        changes: remedy::changes(&counted, target),
    })
}

/// What was counted where a mapping that takes a port for each source goes.
fn of_sources(nat: &NatSettings, target: Target, sources: u32) -> Option<String> {
    let goes = nat.endpoint_independent == Some(true) && target.endpoint_independent == Some(false);
    (goes && sources > 0).then(|| {
        format!(
            "counted as if all {sources} sources of a node went to one destination, which is the most that it can need then: ask \
             again with --endpoint-independent false and the --demand of the busiest"
        )
    })
}

fn setting(nat: &NatSettings, target: Target) -> String {
    match (nat.profile, target) {
        (Profile::AzureLb, Target { min_ports: Some(ports), .. }) => {
            format!("{} allocated by hand", counted(ports, "port"))
        }
        (_, Target { mode: Some(Mode::Dynamic), min_ports: Some(min), max_ports: Some(max), .. }) => {
            format!("dynamic allocation with {min} to {max} ports (endpoint-independent mapping off)")
        }
        (_, Target { port_range: Some(range), .. }) => format!("--to-ports {range}"),
        (_, Target { min_ports: Some(min), .. }) => format!("at least {min} ports for each node"),
        (_, Target { max_ports: Some(max), .. }) => format!("at most {max} ports for each node"),
        _ => String::new(),
    }
}

/// The first wider range of ports with which the addresses do that there are; else the widest.
fn wider_range(question: &Question) -> Option<Target> {
    let targets =
        remedy::wider_ranges(&question.nat).map(|range| Target { port_range: Some(range), ..Target::default() });
    let targets: Vec<Target> = targets.collect();
    let fits = |target: &&Target| Sums::of(&with(question, **target)).is_some_and(|then| then.room());
    targets.iter().find(fits).or(targets.last()).copied()
}

/// As static as it is, with as many ports as the largest demand that is not met.
fn more_static(nat: &NatSettings, sums: &Sums) -> Option<Target> {
    let Some(short) = sums.short else { return Some(Target::default()) };
    let ports = short.needs.checked_next_power_of_two().filter(|ports| *ports <= 32_768)?;
    Some(Target { min_ports: Some(ports), mode: None, ..Target::default() }).filter(|_| nat.mode == Mode::Static)
}

/// From 64 ports on, up to what the largest demand takes; not below what nodes had until then, whose connections it would cut.
fn dynamic(demand: &Demand, had: u32) -> Option<Target> {
    let max = demand.largest().max(had).max(ALIAS_FLOOR).checked_next_power_of_two();
    Some(Target {
        mode: Some(Mode::Dynamic),
        min_ports: Some(STATIC_DEFAULT),
        max_ports: Some(max.filter(|max| *max <= DYNAMIC_MAX_DEFAULT)?),
        endpoint_independent: Some(false),
        ..Target::default()
    })
}

/// As dynamic as it is, with a maximum that the largest demand takes.
fn more_dynamic(sums: &Sums) -> Option<Target> {
    if sums.largest <= sums.ports.ports {
        return Some(Target::default());
    }
    let max = sums.largest.checked_next_power_of_two().filter(|max| *max <= DYNAMIC_MAX_DEFAULT)?;
    Some(Target { max_ports: Some(max), ..Target::default() })
}

/// The largest minimum that leaves enough to others on the NAT IPs there are; where none does, the smallest there is.
fn smaller_minimum(question: &Question) -> Option<Target> {
    let smaller = |min: &u32| Some(min / 2).filter(|min| *min >= DYNAMIC_MIN_DEFAULT);
    let targets = std::iter::successors(smaller(&question.nat.dynamic_min()), smaller)
        .map(|min| Target { min_ports: Some(min), ..Target::default() });
    let fits = |target: &Target| Sums::of(&with(question, *target)).is_some_and(|then| then.fits());
    targets.clone().find(fits).or(targets.last())
}

/// Allocated by hand, as much as the largest demand takes.
fn by_hand(sums: &Sums) -> Option<Target> {
    let ports = sums.largest.max(1024).checked_next_multiple_of(8).filter(|ports| *ports <= 64_000)?;
    if sums.largest <= sums.ports.ports && sums.ports.ports > 0 {
        return Some(Target::default());
    }
    Some(Target { min_ports: Some(ports), ..Target::default() })
}

/// Allocated by hand, as much as the frontend IPs there are have for each.
fn fewer_by_hand(nat: &NatSettings, sums: &Sums) -> Option<Target> {
    let nodes = u64::from(nat.nodes?.saturating_add(sums.surge));
    let each = u32::try_from(sums.pool.checked_div(nodes)?).ok()? / 8 * 8;
    (each > 0 && each >= sums.largest && each <= 64_000)
        .then_some(Target { min_ports: Some(each), ..Target::default() })
}
