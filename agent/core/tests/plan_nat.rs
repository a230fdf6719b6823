//! Laws of `sizing::nat`, for any settings.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::time::Duration;

use headroom_core::model::nat::{Described, Mode, NatSettings, NodePool, Profile, Surge, granted};
use headroom_core::ports::PortRange;
use headroom_core::sizing::nat::{Demand, NatPlan, NodesDemand, Question, plan};
use proptest::prelude::*;

fn answer(nat: &NatSettings, demand: &Demand) -> NatPlan {
    plan(&Question { nat: nat.clone(), demand: demand.clone(), lifetime: Duration::ZERO, left_out: 0 }).unwrap()
}

fn profile() -> impl Strategy<Value = Profile> {
    prop::sample::select(vec![Profile::Gcp, Profile::Aws, Profile::AzureNatgw, Profile::AzureLb, Profile::Linux])
}

/// Small and large, round and crooked; the extremes among them.
fn ports() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![
        Just(None),
        Just(Some(0)),
        (0_u32..18).prop_map(|power| Some(1 << power)),
        (0_u32..8200).prop_map(|eighths| Some(eighths * 8)),
        Just(Some(57_344)),
        any::<u32>().prop_map(Some),
        Just(Some(u32::MAX)),
    ]
}

fn count(most: u32) -> impl Strategy<Value = Option<u32>> {
    prop_oneof![4 => (1..=most).prop_map(Some), 1 => any::<u32>().prop_map(Some), 1 => Just(None)]
}

fn pool() -> impl Strategy<Value = NodePool> {
    let surge = prop_oneof![(0_u32..9).prop_map(Surge::Nodes), (0_u32..101).prop_map(Surge::Percent)];
    (0_u32..200, surge).prop_map(|(nodes, surge)| NodePool { nodes, now: nodes, surge })
}

prop_compose! {
    fn described()(
        mode in prop::option::of(prop_oneof![Just(Mode::Static), Just(Mode::Dynamic)]),
        min_ports in ports(),
        max_ports in ports(),
        nat_ips in count(16),
        nodes in count(2000),
        surge in prop::option::of(0_u32..5),
        pools in prop::collection::vec(pool(), 0..4),
        alias_ranges in any::<Option<bool>>(),
        auto_ips in any::<Option<bool>>(),
        no_ips in prop::bool::weighted(0.1),
        endpoint_independent in prop::option::weighted(0.3, any::<bool>()),
        port_range in prop::option::weighted(0.3, (1_u16.., 0_u16..5000)),
    ) -> Described {
        let port_range = port_range.and_then(|(first, more)| PortRange::new(first, first.saturating_add(more)));
        Described {
            mode, min_ports, max_ports, nat_ips, nodes, surge, pools, alias_ranges, auto_ips, no_ips, endpoint_independent, port_range,
            ..Described::default()
        }
    }
}

fn demand() -> impl Strategy<Value = Demand> {
    let each = prop_oneof![Just(0_u32), 0..70_000_u32, any::<u32>()];
    let has = prop_oneof![3 => Just(0_u32), 1 => 0..5000_u32, 1 => any::<u32>()];
    let others = prop::collection::vec((any::<u32>(), any::<u32>(), has), 0..3);
    (each, others).prop_map(|(each, others)| Demand {
        each,
        others: others.into_iter().map(|(nodes, ports, has)| NodesDemand { nodes: nodes % 50, ports, has }).collect(),
    })
}

/// Settings that the NAT takes, whatever they are.
fn settings() -> impl Strategy<Value = NatSettings> {
    let refused = "settings that the NAT refuses";
    (profile(), described()).prop_filter_map(refused, |(profile, mut described)| {
        if described.mode != Some(Mode::Dynamic) {
            described.max_ports = None;
        }
        described.settings(profile).ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_global_rejects: 65_536, ..ProptestConfig::default() })]

    /// Whatever is described is either refused or planned; an answer agrees with itself.
    #[test]
    fn every_plan_agrees_with_itself(profile in profile(), described in described(), demand in demand()) {
        let Ok(nat) = described.settings(profile) else { return Ok(()) };
        let plan = answer(&nat, &demand);
        if let (Some(nodes), Some(capacity)) = (plan.nodes, plan.capacity_nodes) {
            prop_assert_eq!(plan.nodes_without_ports, Some(nodes.saturating_sub(capacity)));
        }
        if plan.fits {
            prop_assert!(plan.nodes_without_ports.unwrap_or(0) == 0 && plan.options.is_empty());
            let most = plan.max_ports_per_node.unwrap_or(0);
            prop_assert!(demand.each <= most && demand.others.iter().all(|some| some.ports <= most.max(some.has)));
        }
        prop_assert!(plan.connections_per_sec.is_none_or(f64::is_finite));
        prop_assert!(plan.options.iter().all(|option| nat.nodes.is_none_or(|n| option.capacity_nodes.is_none_or(|c| c >= n))));
    }

    /// Nodes that fit never take more ports than there are.
    #[test]
    fn capacity_never_exceeds_the_pool(nat in settings(), each in 0_u32..5000) {
        let plan = answer(&nat, &Demand::of_each(each));
        let (Some(pool), Some(capacity)) = (nat.pool(), plan.capacity_nodes) else { return Ok(()) };
        let taken = match nat.profile {
            Profile::Gcp | Profile::AzureLb => plan.ports_per_node.unwrap_or(0),
            _ => each,
        };
        let automatic = nat.profile == Profile::AzureLb && nat.min_ports.unwrap_or(0) == 0;
        prop_assert!(automatic || u64::from(capacity) * u64::from(taken) <= pool, "{plan:?}");
    }

    /// So many nodes that are alike fit, upgrades included, and one more does not.
    #[test]
    fn one_node_more_than_fit_does_not(nat in settings(), each in 0_u32..5000) {
        let demand = Demand::of_each(each);
        let Some(capacity) = answer(&nat, &demand).capacity_nodes.filter(|nodes| (1..u32::MAX).contains(nodes)) else {
            return Ok(())
        };
        let room = |nodes| {
            let plan = answer(&NatSettings { nodes: Some(nodes), ..nat.clone() }, &demand);
            let ips = plan.nat_ips.or(nat.max_ips());
            plan.nodes_without_ports == Some(0) && plan.required_nat_ips.is_none_or(|most| ips.is_none_or(|ips| most <= ips))
        };
        prop_assert!(room(capacity) && !room(capacity + 1), "{capacity} {nat:?}");
    }

    /// Of nodes that differ never fewer fit on more NAT IPs, and all do on those that are required. (Of nodes that have ports already
    /// it may be fewer: they come first, however many they need, and one more of them takes the place of many.)
    #[test]
    fn more_ips_serve_more_of_nodes_that_differ(nat in settings(), demand in demand(), nodes in 150_u32..2000, ips in 1_u32..8) {
        let others = demand.others.into_iter().map(|some| NodesDemand { has: 0, ..some });
        let demand = Demand { others: others.collect(), ..demand };
        let with = |ips| {
            let nat = NatSettings { nat_ips: Some(ips), auto_ips: false, nodes: Some(nodes), ..nat.clone() };
            answer(&nat, &demand)
        };
        let without = |ips| with(ips).nodes_without_ports.unwrap();
        prop_assert!(without(ips + 1) <= without(ips));
        let required = with(ips).required_nat_ips;
        let automatic = nat.profile == Profile::AzureLb && nat.min_ports.unwrap_or(0) == 0;
        prop_assert!(automatic || required.is_none_or(|ips| ips > 10_000 || without(ips) == 0));
    }

    /// What nodes have changes nothing in what they need, and none of it is forgotten.
    #[test]
    fn nodes_that_have_ports_need_what_they_needed(demand in demand(), mut has in prop::collection::vec(0_u32..5000, 0..99)) {
        let demand = Demand { others: demand.others.into_iter().map(|some| NodesDemand { has: 0, ..some }).collect(), ..demand };
        let with = demand.clone().of_nodes_that_have(has.clone());
        let sorted = |mut ports: Vec<u32>| { ports.sort_unstable(); ports };
        let needs = |of: &Demand| of.others.iter().flat_map(|some| vec![some.ports; some.nodes as usize]).collect::<Vec<_>>();
        let more = vec![demand.each; needs(&with).len() - needs(&demand).len()];
        prop_assert_eq!(sorted(needs(&with)), sorted([needs(&demand), more].concat()));
        has.retain(|ports| *ports > 0);
        let kept = with.others.iter().filter(|some| some.has > 0);
        prop_assert!(kept.clone().all(|some| some.nodes == 1));
        prop_assert_eq!(sorted(kept.map(|some| some.has).collect()), sorted(has));
    }

    /// Settings that another NAT has change nothing.
    #[test]
    fn what_is_left_out_changes_nothing(described in described(), demand in demand()) {
        for profile in [Profile::Aws, Profile::AzureNatgw] {
            let Ok(nat) = described.clone().settings(profile) else { return Ok(()) };
            let of_others = Described {
                mode: None, min_ports: None, max_ports: None, endpoint_independent: None, port_range: None,
                ..described.clone()
            };
            let plain = answer(&of_others.settings(profile).unwrap(), &demand);
            prop_assert_eq!(NatPlan { notes: plain.notes.clone(), ..answer(&nat, &demand) }, plain);
        }
    }

    /// More NAT IPs never serve fewer nodes, more ports for each never more nodes.
    #[test]
    fn more_ips_serve_more_and_more_ports_fewer(nat in settings(), each in 0_u32..5000, ips in 1_u32..8) {
        let demand = Demand::of_each(each);
        let with = |ips| answer(&NatSettings { nat_ips: Some(ips), auto_ips: false, ..nat.clone() }, &demand).capacity_nodes;
        prop_assert!(with(ips + 1) >= with(ips));
        let larger = answer(&nat, &Demand::of_each(each.saturating_mul(2))).capacity_nodes;
        prop_assert!(larger <= answer(&nat, &demand).capacity_nodes || answer(&nat, &demand).capacity_nodes.is_none());
        if nat.profile == Profile::Gcp && nat.mode == Mode::Static {
            let min = |min| NatSettings { min_ports: Some(min), ..nat.clone() };
            let few = nat.min_ports.unwrap_or(64).clamp(2, 28_672);
            prop_assert!(answer(&min(few * 2), &demand).capacity_nodes <= answer(&min(few), &demand).capacity_nodes);
        }
    }

    /// With as many IPs as are required everything fits, with one fewer it does not.
    #[test]
    fn required_ips_are_enough_and_no_more(nat in settings(), each in 1_u32..40_000) {
        let demand = Demand::of_each(each);
        let plan = answer(&nat, &demand);
        let (Some(required), Some(_)) = (plan.required_nat_ips, plan.nodes) else { return Ok(()) };
        let shared = !matches!(nat.profile, Profile::Gcp | Profile::AzureLb);
        prop_assume!(shared || plan.max_ports_per_node.is_some_and(|most| each <= most));
        prop_assume!(required <= 10_000);
        let with = |ips| answer(&NatSettings { nat_ips: Some(ips), auto_ips: false, ..nat.clone() }, &demand).fits;
        prop_assert!(with(required), "{plan:?}");
        prop_assert!(required == 1 || !with(required - 1), "{plan:?}");
    }

    /// Ports are given by doubling: enough, not more than twice what is needed, within both bounds.
    #[test]
    fn grants_are_bounded(min_power in 5_u32..16, more in 1_u32..12, demand in any::<u32>()) {
        let (min, max) = (1 << min_power, 1_u32 << (min_power + more).min(16));
        prop_assume!(max > min);
        let ports = granted(min, max, demand);
        prop_assert!((min..=max).contains(&ports) && ports.is_power_of_two());
        prop_assert!(ports >= demand.min(max));
        prop_assert!(ports == min || ports < demand.saturating_mul(2));
        prop_assert!(granted(min, max, demand.saturating_add(1)) >= ports, "monotonic");
    }
}

#[test]
fn without_a_nat_there_is_nothing_to_plan() {
    let question =
        Question { nat: NatSettings::none(), demand: Demand::default(), lifetime: Duration::ZERO, left_out: 0 };
    assert!(plan(&question).is_err());
}
