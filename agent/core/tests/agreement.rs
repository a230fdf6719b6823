//! All that one check tells people to set at a NAT agrees: whatever of it is done, nothing that another finding complains about gets
//! worse. Checked on the data of the remedies, for any settings, number of nodes and demand.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use headroom_core::model::nat::remedy::{self, Need, Remedy, Target};
use headroom_core::model::nat::{
    Basis, Capacity, Mode, NatSettings, NodePool, NodePorts, ObservedPorts, Profile, Sharing, Surge, granted,
};
use headroom_core::ports::PortRange;
use headroom_core::time::WallTime;
use proptest::prelude::*;

/// A quarter more, as remedies leave it.
fn with_air(ports: u32) -> u32 {
    ports.saturating_add(ports / 4)
}

/// A NAT and a node behind it.
#[derive(Debug, Clone)]
struct Case {
    nat: NatSettings,
    ports: NodePorts,
    need: Need,
}

/// What the rules complain about, and what they tell to do.
#[derive(Debug, Default)]
struct Told {
    node: Vec<Remedy>,
    gateway: Vec<Remedy>,
    growth: Vec<Remedy>,
}

/// Whose complaint a setting has to settle, whichever finding tells it.
#[derive(Debug, Clone, Copy)]
struct Settles {
    node: bool,
    gateway: bool,
}

impl Case {
    fn capacity(&self) -> Capacity {
        self.nat.profile.capacity().unwrap()
    }

    /// As the rules of `model::rules::{nat, gateway}` go.
    fn told(&self) -> Told {
        let Self { nat, ports, need } = self;
        let mut told = Told::default();
        if need.short {
            told.node.push(remedy::more_ports(nat, ports, *need));
            if nat.endpoint_independent == Some(true) {
                told.node.push(remedy::mapping_off(nat, ports, need.busiest));
            }
        }
        let nodes = nat.nodes.unwrap_or(1);
        let missing = nat.missing_ips.filter(|missing| *missing > 0);
        told.gateway.extend(match self.capacity().sharing {
            _ if ports.ports == 0 => Some(remedy::missing_ips(nat, ports, missing.unwrap_or(1), *need)),
            Sharing::Reserved if nat.nat_ips.is_some() && ports.capacity_nodes.is_some_and(|fit| nodes > fit) => {
                Some(remedy::bigger_gateway(nat, ports, *need))
            }
            Sharing::PerDestination if nodes > 1 && need.busiest.saturating_mul(nodes) > ports.ports => {
                Some(remedy::more_ports_for_all(nat, ports, *need))
            }
            _ if missing.is_some() => Some(remedy::missing_ips(nat, ports, missing.unwrap(), *need)),
            _ => nat.allocation_failed.map(|_| remedy::after_failed_allocation(nat, ports, *need)),
        });
        if self.has_grown() {
            told.growth.extend(remedy::larger_minimum(nat, ports, *need));
        }
        told
    }

    fn has_grown(&self) -> bool {
        let Self { nat, ports, need } = self;
        nat.profile == Profile::Gcp
            && nat.mode == Mode::Dynamic
            && (nat.dynamic_min()..ports.ports).contains(&need.busiest)
    }

    /// Ports that this node lacks of what it needs with some air.
    fn node_lacks(&self, nat: &NatSettings) -> u32 {
        let needs = if nat.endpoint_independent == Some(true) { self.need.ports } else { self.need.busiest };
        with_air(needs).saturating_sub(nat.node_ports().unwrap().ports)
    }

    /// Ports that all nodes take of those reserved, this one with what it has grown to; counted by their number, or by what the
    /// gateway says that it lacks while they have `reserved`.
    fn taken(&self, nat: &NatSettings) -> Option<u64> {
        let ports = nat.node_ports().unwrap();
        let own = match (nat.profile, nat.mode) {
            (Profile::Gcp, Mode::Dynamic) => granted(ports.reserved, ports.ports, with_air(self.need.busiest)),
            _ => ports.reserved,
        };
        let beside = u64::from(own - ports.reserved.min(own));
        let by_number = nat.nodes.map(|nodes| u64::from(nat.with_surge(nodes)) * u64::from(ports.reserved) + beside);
        let by_lack = self.nat.missing_ips.filter(|missing| *missing > 0 && self.ports.reserved > 0).map(|missing| {
            let pool = u64::from(self.nat.ips_counted() + missing) * self.of_an_ip();
            pool * u64::from(ports.reserved) / u64::from(self.ports.reserved) + beside
        });
        by_number.max(by_lack)
    }

    fn of_an_ip(&self) -> u64 {
        self.nat.ports_of_an_ip(self.capacity().ports_per_ip).into()
    }

    /// Ports that the gateway lacks; in all that nodes take, where it adds NAT IPs as far as some quota goes and says that it lacks
    /// some.
    fn gateway_lacks(&self, nat: &NatSettings, told: Option<u32>) -> Option<u64> {
        let taken = self.taken(nat)?;
        let has = match nat.auto_ips {
            true if self.nat.lacks_ips() => 0,
            true => return None,
            false => u64::from(told.unwrap_or_else(|| self.nat.ips_counted())) * self.of_an_ip(),
        };
        Some(taken.saturating_sub(has))
    }

    /// Checks that one setting makes nothing worse, and settles what can be.
    fn check(&self, target: Target, settles: Settles) -> Result<(), TestCaseError> {
        let after = target.applied_to(&self.nat);
        prop_assert_eq!(after.check(), Ok(()), "{:?} {:?}", target, self);
        let (before, then) = (self.node_lacks(&self.nat), self.node_lacks(&after));
        prop_assert!(then <= before, "the node lacks {before}, then {then}: {target:?} {self:?}");
        prop_assert!(!settles.node || then == 0, "the node still lacks {then}: {target:?} {self:?}");
        if self.capacity().sharing == Sharing::PerDestination || self.ports.ports == 0 {
            return Ok(());
        }
        if let (Some(before), Some(then)) =
            (self.gateway_lacks(&self.nat, None), self.gateway_lacks(&after, target.nat_ips))
        {
            prop_assert!(then <= before, "the gateway lacks {before}, then {then}: {target:?} {self:?}");
            let settled = !settles.gateway || self.nat.auto_ips || then == 0;
            prop_assert!(settled, "the gateway still lacks {then}: {target:?} {self:?}");
        } else if self.nat.lacks_ips() {
            let reserved = after.node_ports().unwrap().reserved;
            prop_assert!(reserved <= self.ports.reserved, "{target:?} {self:?}");
        }
        let both_dynamic = self.nat.mode == Mode::Dynamic && after.mode == Mode::Dynamic;
        let grows_less = after.dynamic_min() >= self.nat.dynamic_min().min(self.need.busiest);
        prop_assert!(!both_dynamic || grows_less, "ranges are enlarged more often: {target:?} {self:?}");
        Ok(())
    }
}

fn power(from: u32, to: u32) -> impl Strategy<Value = u32> {
    (from..=to).prop_map(|power| 1 << power)
}

/// Ports as each NAT takes them: mode, minimum, maximum.
fn setting() -> impl Strategy<Value = (Profile, Mode, Option<u32>, Option<u32>)> {
    let crooked = prop_oneof![power(1, 15), 2_u32..=57_344];
    prop_oneof![
        4 => prop::option::of(crooked).prop_map(|min| (Profile::Gcp, Mode::Static, min, None)),
        4 => (prop::option::of(power(5, 15)), prop::option::of(power(6, 16)))
            .prop_map(|(min, max)| (Profile::Gcp, Mode::Dynamic, min, max)),
        3 => prop::option::of((1_u32..8000).prop_map(|eighths| eighths * 8))
            .prop_map(|ports| (Profile::AzureLb, Mode::Static, ports, None)),
        1 => Just((Profile::Aws, Mode::Static, None, None)),
        1 => Just((Profile::AzureNatgw, Mode::Static, None, None)),
        1 => Just((Profile::Linux, Mode::Static, None, None)),
    ]
}

fn demand() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1_u32..100, 1_u32..3000, 1_u32..70_000, 1_u32..500_000]
}

/// Around what nodes have, where everything changes.
fn near(ports: u32) -> impl Strategy<Value = u32> {
    prop_oneof![demand(), (0_u32..=140).prop_map(move |percent| ports / 100 * percent + ports % 100 * percent / 100)]
}

prop_compose! {
    fn nat()(
        (profile, mode, min_ports, max_ports) in setting(),
        nat_ips in prop_oneof![4 => (1_u32..4).prop_map(Some), 2 => (0_u32..300).prop_map(Some), 1 => Just(None)],
        nodes in prop_oneof![2 => (1_u32..200).prop_map(Some), 1 => (1_u32..40_000).prop_map(Some), 1 => Just(None)],
        surge in prop::option::of(0_u32..5),
        percent in prop::option::of(0_u32..100),
        alias_ranges in any::<bool>(),
        independent in prop::option::of(any::<bool>()),
        auto in prop::bool::weighted(0.2),
        missing in prop::option::weighted(0.3, 1_u32..5),
        failed in prop::bool::weighted(0.2),
        range in prop::option::weighted(0.3, (1024_u16..60_000, 0_u16..5000)),
        observed in prop::option::weighted(0.3, prop_oneof![Just(0), power(4, 15), 1_u32..5000]),
    ) -> NatSettings {
        let gcp = profile == Profile::Gcp;
        let auto = auto && gcp;
        let pools = percent.map(|percent| NodePool { nodes: 10, now: 10, surge: Surge::Percent(percent) });
        // A range does not grow beyond its maximum.
        let most = if mode == Mode::Dynamic { max_ports.unwrap_or(65_536) } else { u32::MAX };
        let observed = observed.filter(|_| gcp && nat_ips != Some(0)).map(|ports: u32| ports.min(most));
        NatSettings {
            mode,
            min_ports,
            max_ports,
            nat_ips: nat_ips.filter(|_| !auto),
            nodes,
            surge,
            pools: pools.into_iter().collect(),
            alias_ranges,
            endpoint_independent: independent.filter(|_| gcp && mode == Mode::Static),
            port_range: range.filter(|_| profile == Profile::Linux).and_then(|(first, more)| PortRange::new(first, first + more)),
            auto_ips: auto,
            missing_ips: missing.filter(|_| gcp),
            allocation_failed: (failed && gcp).then(|| WallTime::from_secs(1_800_000_000)),
            observed: observed.map(|ports| ObservedPorts { ports, why: "as it was seen".to_owned(), at: None }),
            ..NatSettings::of(profile, Basis::Configured)
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let accepted =
        |nat: &NatSettings| NatSettings { nat_ips: nat.nat_ips.filter(|ips| *ips > 0), ..nat.clone() }.check().is_ok();
    let nat = nat().prop_filter_map("settings that the NAT refuses", move |nat| {
        let ports = nat.node_ports().filter(|_| accepted(&nat))?;
        Some((nat, ports))
    });
    nat.prop_flat_map(|(nat, ports)| {
        let has = ports.ports;
        (Just(nat), Just(ports), near(has), near(has), 50_u64..95).prop_map(|(nat, ports, busiest, sources, low)| {
            let all = if nat.endpoint_independent == Some(true) { busiest.max(sources) } else { busiest };
            let short = ports.ports > 0 && u64::from(all) * 100 / u64::from(ports.ports) >= low;
            Case { nat, ports, need: Need { ports: all, busiest, short } }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8192, failure_persistence: None, max_global_rejects: 65_536, ..ProptestConfig::default() })]

    /// If this fails, one finding tells people to undo what another has told them.
    #[test]
    fn what_one_finding_says_makes_nothing_worse_that_another_complains_about(case in case()) {
        let told = case.told();
        // Turning a mapping off is nothing that a gateway gains from.
        let mapping_alone = Target { endpoint_independent: Some(false), ..Target::default() };
        // Where nothing else that can be set gives the node what it needs, nothing else has to.
        let node = told.node.iter().flat_map(|remedy| &remedy.settings).any(|target| *target != mapping_alone);
        let all = told.node.iter().chain(&told.gateway).chain(&told.growth).flat_map(|remedy| &remedy.settings);
        for target in all {
            let alone = *target == mapping_alone;
            case.check(*target, Settles { node: node || alone, gateway: !told.gateway.is_empty() && !alone })?;
        }
    }
}
