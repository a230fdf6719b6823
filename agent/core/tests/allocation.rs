//! What a node was given, from whichever source, and what its findings make of it.

use std::time::Duration;

#[path = "node/nat.rs"]
mod nat;
#[path = "node/pods.rs"]
mod node;

use headroom_core::findings::{FindingId, Severity};
use headroom_core::known::Known;
use headroom_core::model::nat::{Basis, Described, Mode, NatSettings, ObservedPorts, Profile};
use headroom_core::observe::{Cloud, ConntrackTcpState, Fact, Platform, SourceId};
use headroom_core::time::WallTime;
use nat::{finding, of, report};
use node::{Node, counter, entry, outside};

/// Exercises the order observed, configured, assumed. If this fails, a node is judged by a page of documentation although
/// the cloud has said what it gave.
#[test]
fn what_the_cloud_gave_wins_over_what_the_settings_mean() {
    let assumed = of(Profile::Gcp, Described { nat_ips: Some(1), ..Described::default() });
    let allocation = report(assumed, 100).nat.allocation;
    assert_eq!((allocation.ports, allocation.basis), (Some(1024), Basis::Assumed), "nobody has set the ports");
    let static_ports = Described { nat_ips: Some(1), mode: Some(Mode::Static), ..Described::default() };
    let configured = of(Profile::Gcp, static_ports);
    let allocation = report(configured.clone(), 100).nat.allocation;
    assert_eq!((allocation.ports, allocation.basis), (Some(1024), Basis::Configured));
    let observed = ObservedPorts { ports: 64, why: "as the mapping has it".to_owned(), at: None };
    let observed = NatSettings { observed: Some(observed), ..configured };
    // An allocation below the demand: the node is out of ports, and says on whose word.
    let report = report(observed.clone(), 100);
    assert_eq!((report.nat.allocation.ports, report.nat.allocation.basis), (Some(64), Basis::Observed));
    let exhausted = finding(&report, FindingId::NatPortsExhausted).unwrap();
    assert!(exhausted.title.contains("100 of 64"), "{}", exhausted.title);
    assert!(exhausted.evidence.iter().any(|evidence| evidence.said.contains("as the mapping has it")));
    // Dynamic ports grow from what was observed.
    let dynamic = NatSettings { mode: Mode::Dynamic, max_ports: Some(1024), ..observed };
    let allocation = self::report(dynamic, 100).nat.allocation;
    assert_eq!((allocation.ports, allocation.basis), (Some(1024), Basis::Configured));
    assert!(allocation.why.contains("64 ports") && allocation.why.contains("may grow to 1024"), "{}", allocation.why);
}

/// Exercises a mapping of machines and nothing else. If this fails, what it does not say (the mode, the number of NAT IPs, that nodes
/// have alias ranges) is held for known, and alarms.
#[test]
fn a_mapping_alone_says_neither_the_mode_nor_how_many_ips_there_are() {
    let mapping = |ports| Described {
        least_ips: Some(2),
        observed: Some(ObservedPorts { ports, why: "as the mapping has it".to_owned(), at: None }),
        ..Described::default()
    };
    let alone = report(of(Profile::Gcp, Described { nodes: Some(9999), ..mapping(64) }), 100);
    assert_eq!((alone.nat.allocation.ports, alone.nat.allocation.capacity_nodes), (Some(64), None));
    let notes = alone.nat.allocation.notes.join("\n");
    assert!(notes.contains("2 NAT IPs serve") && notes.contains("taken as static"), "{notes}");
    let full = finding(&alone, FindingId::NatPortsExhausted).unwrap();
    assert_eq!(full.severity, Severity::Warning);
    assert!(full.evidence.iter().any(|evidence| evidence.said.contains("--nat-mode")), "{full:?}");
    assert!(full.remedy.contains("min_ports_per_vm = 128"), "no floor of 1024: {}", full.remedy);
    assert!(finding(&alone, FindingId::NatGatewayTooSmall).is_none(), "{:?}", alone.findings);
    let told = report(of(Profile::Gcp, Described { mode: Some(Mode::Static), ..mapping(64) }), 100);
    assert_eq!(finding(&told, FindingId::NatPortsExhausted).unwrap().severity, Severity::Critical);
    for (ports, alias_ranges) in [(64, false), (1023, false), (1024, true), (0, true)] {
        assert_eq!(of(Profile::Gcp, mapping(ports)).alias_ranges, alias_ranges, "{ports}");
    }
    let said = Described { alias_ranges: Some(true), ..mapping(64) };
    assert!(of(Profile::Gcp, said).alias_ranges, "what is stated holds");
}

/// Exercises a NAT that is set anew. If this fails, a demand of before is a trend towards an allocation of now.
#[test]
fn a_demand_that_was_judged_otherwise_is_forgotten() {
    let mut node = Node::new();
    node.policy.nat = Some(of(Profile::Gcp, Described::default()));
    node.count(999, [counter(500, 0, 0, 0)]);
    assert_eq!(node.report(1000).nat.demand.tcp.peak_10m, Some(500));
    node.count(1001, [counter(5, 0, 0, 0)]);
    assert_eq!(node.report(1002).nat.demand.tcp.peak_10m, Some(500));
    node.memory.forget_demand();
    assert_eq!(node.report(1003).nat.demand.tcp.peak_10m, Some(5));
}

/// Exercises a gateway none of whose addresses serves. If this fails, an empty list is offered as the way to have one.
#[test]
fn the_first_address_is_no_secondary_one() {
    let remedy = |nat_ips: u32| {
        let none = of(Profile::Aws, Described { no_ips: true, missing_ips: Some(nat_ips), ..Described::default() });
        finding(&report(none, 0), FindingId::NatGatewayTooSmall).unwrap().remedy.clone()
    };
    assert!(remedy(1).contains("EIPALLOC-1") && !remedy(1).contains("secondary"), "{}", remedy(1));
    assert!(remedy(2).contains("secondary_allocation_ids = slice(aws_eip.nat[*].id, 1, 2)"), "{}", remedy(2));
}

/// Exercises what is said of alias ranges. If this fails, an assumption is told as a fact about somebody's nodes.
#[test]
fn alias_ranges_that_nobody_has_stated_are_taken_to_be_there() {
    let why = |alias_ranges| {
        let described = Described { mode: Some(Mode::Static), alias_ranges, ..Described::default() };
        report(of(Profile::Gcp, described), 1).nat.allocation.why
    };
    assert!(why(None).contains("as nodes are taken to have alias IP ranges"), "{}", why(None));
    assert!(why(Some(true)).contains("because nodes have alias IP ranges"), "{}", why(Some(true)));
}

#[test]
fn a_recognised_cloud_has_the_nat_that_it_usually_has() {
    for (cloud, profile, ports) in [
        (Some(Cloud::Gcp), "gcp", Some(1024)),
        (Some(Cloud::Aws), "aws", Some(55_000)),
        (Some(Cloud::Azure), "azure-lb", Some(1024)),
        (None, "none", None),
    ] {
        let mut node = Node::new();
        node.policy.nat = None;
        let cloud = cloud.map_or(Known::Absent, Known::Present);
        let platform = Platform { node: "n".to_owned(), kernel: "6.1".to_owned(), cloud };
        node.put(1, SourceId::Platform, Fact::Platform(platform));
        let nat = node.report(2).nat;
        assert_eq!((nat.profile.as_str(), nat.allocation.ports), (profile, ports));
        assert_eq!(nat.allocation.basis, Basis::Assumed);
        assert!(!nat.allocation.why.is_empty(), "an assumption has a reason");
    }
}

/// Exercises doubt. If this fails, somebody is woken at night for a number that nobody has measured or set.
#[test]
fn what_rests_on_an_assumption_is_critical_only_once_a_connect_has_failed() {
    let assumed = NatSettings::of(Profile::AzureLb, Basis::Assumed);
    let calm = report(assumed.clone(), 1100);
    let exhausted = finding(&calm, FindingId::NatPortsExhausted).unwrap();
    assert_eq!(exhausted.severity, Severity::Warning);
    assert!(exhausted.evidence.iter().any(|evidence| evidence.said.contains("may be wrong")), "{exhausted:?}");
    let mut node = Node::new();
    node.policy.nat = Some(assumed);
    node.count(998, [counter(1100, 0, 0, 0)]);
    node.count(999, [counter(1100, 0, 0, 3)]);
    let failing = node.report(1000);
    assert_eq!(finding(&failing, FindingId::NatPortsExhausted).unwrap().severity, Severity::Critical);
}

/// Exercises a number of nodes over defaults that nobody has confirmed. If this fails, an assumption alarms like a fact, or a fact
/// like an assumption.
#[test]
fn nodes_without_ports_are_a_warning_while_what_is_reserved_is_assumed() {
    let described = Described { nat_ips: Some(1), nodes: Some(80), ..Described::default() };
    for (mode, severity, doubted) in [(None, Severity::Warning, true), (Some(Mode::Static), Severity::Critical, false)]
    {
        let report = report(of(Profile::Gcp, Described { mode, ..described.clone() }), 0);
        let small = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
        assert!(small.severity == severity && small.title.contains("17 get no ports"), "{small:?}");
        assert_eq!(small.evidence.iter().any(|evidence| evidence.said.contains("is assumed")), doubted, "{small:?}");
    }
}

/// Exercises a shared gateway. If this fails, a cluster runs dry together while each node looks fine.
#[test]
fn a_demand_that_all_nodes_could_not_have_is_told() {
    let aws = |nodes| of(Profile::Aws, Described { nat_ips: Some(1), nodes: Some(nodes), ..Described::default() });
    let report = report(aws(80), 1000);
    let small = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
    assert_eq!(small.severity, Severity::Warning);
    assert!(small.title.contains("80000 ports: the gateway has 55000"), "{}", small.title);
    assert!(small.remedy.contains("2 NAT IPs (there are 1) for 80 nodes"), "{}", small.remedy);
    assert!(small.subject == format!("{}/tcp", outside(443)));
    assert!(finding(&self::report(aws(55), 1000), FindingId::NatGatewayTooSmall).is_none());
    assert!(finding(&self::report(aws(1), 44_000), FindingId::NatPortsLow).is_some());
}

/// Exercises more nodes than Azure documents. If this fails, what nobody knows is zero, and every destination is an alarm.
#[test]
fn beyond_azures_table_no_demand_is_judged() {
    let lb = Described { nat_ips: Some(1), nodes: Some(1500), ..Described::default() };
    let report = report(of(Profile::AzureLb, lb), 5000);
    let allocation = &report.nat.allocation;
    assert_eq!((allocation.ports, allocation.capacity_nodes), (None, None));
    assert!(allocation.why.contains("ends at 1000 nodes"), "{allocation:?}");
    for id in [FindingId::NatPortsExhausted, FindingId::NatPortsLow] {
        assert!(finding(&report, id).is_none(), "{:?}", report.findings);
    }
    let beyond = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
    assert!(beyond.severity == Severity::Warning && beyond.remedy.contains("by hand"), "{beyond:?}");
}

#[test]
fn a_gateway_that_says_it_lacks_ips_is_believed() {
    let nat = of(Profile::Gcp, Described { nat_ips: Some(2), missing_ips: Some(3), ..Described::default() });
    let report = report(nat, 1);
    let small = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
    assert!(small.severity == Severity::Critical && small.title.contains("lacks 3 NAT IPs"), "{}", small.title);
    assert!(small.remedy.contains("use 5 NAT IPs"), "{}", small.remedy);
}

/// Exercises a metric that says only that something failed. If this fails, it is told as a number of missing NAT IPs, and what it
/// said last year alarms today.
#[test]
fn an_allocation_that_failed_is_told_with_its_age_and_without_a_number() {
    for (ago, severity, age) in [(60, Severity::Critical, "60 s old"), (3601, Severity::Warning, "60 min old: ")] {
        let mut node = Node::new();
        let mut nat = of(Profile::Gcp, Described { nat_ips: Some(1), ..Described::default() });
        nat.allocation_failed = Some(WallTime::from_secs(1_800_001_000 - ago));
        node.policy.nat = Some(nat);
        let report = node.report(1000);
        let failed = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
        assert_eq!(failed.severity, severity, "{failed:?}");
        assert!(failed.title.contains("some VM (nat_allocation_failed), ") && failed.title.contains(age), "{failed:?}");
        assert!(!failed.title.contains("lacks"), "{failed:?}");
    }
}

/// Exercises the node that came too late. If this fails, a node whose images cannot be pulled looks healthy until it dials.
#[test]
fn a_node_that_was_left_out_is_told_so_even_while_it_is_idle() {
    let observed = Some(ObservedPorts { ports: 0, why: "as the mapping has it".to_owned(), at: None });
    let nat = of(Profile::Gcp, Described { nat_ips: Some(1), observed, ..Described::default() });
    let report = report(nat, 0);
    let small = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
    assert!(small.severity == Severity::Critical && small.title.contains("no NAT ports at all"), "{}", small.title);
    assert!(small.remedy.contains("use 2 NAT IPs"), "{}", small.remedy);
}

/// Exercises a gateway that has lost its last NAT IP. If this fails, all nodes are cut off while none of them says so.
#[test]
fn a_gateway_without_a_nat_ip_is_told_even_while_the_node_is_idle() {
    let none = Described { mode: Some(Mode::Static), no_ips: true, ..Described::default() };
    let report = report(of(Profile::Gcp, none.clone()), 0);
    assert_eq!((report.nat.allocation.ports, report.nat.allocation.capacity_nodes), (Some(0), Some(0)));
    let small = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
    assert_eq!(
        (small.severity, small.title.as_str()),
        (Severity::Critical, "the NAT gateway has no NAT IP: whatever passes it fails")
    );
    assert!(
        small.remedy.contains("--nat-external-ip-pool=ADDRESS-1\n") || small.remedy.ends_with("ADDRESS-1"),
        "{}",
        small.remedy
    );
    assert!(finding(&report, FindingId::NatPortsExhausted).is_none(), "told once");
    let automatic = Described { auto_ips: Some(true), ..none.clone() };
    assert_eq!(
        self::report(of(Profile::Gcp, automatic), 0).nat.allocation.ports,
        Some(1024),
        "it takes one as it needs it"
    );
    let one = Described { nat_ips: Some(1), ..none };
    assert_eq!(self::report(of(Profile::Gcp, one), 0).nat.allocation.ports, Some(1024), "somebody knows better");
}

/// Exercises the age of an observation, which the report is asked for again and again. If this fails, it is as fresh as ever after
/// a week.
#[test]
fn an_observation_grows_old() {
    let saved = WallTime::from_secs(1_800_000_000);
    let observed = Some(ObservedPorts { ports: 64, why: "as the mapping has it".to_owned(), at: Some(saved) });
    let mut node = Node::new();
    node.policy.nat = Some(of(Profile::Gcp, Described { observed, ..Described::default() }));
    for (second, why) in [
        (30, "64 ports, as the mapping has it, 30 s old"),
        (3600, "64 ports, as the mapping has it, 60 min old"),
        (7200, "64 ports, as the mapping has it, 2 h old: the NAT may have given something else since"),
    ] {
        let allocation = node.report(second).nat.allocation;
        assert_eq!((allocation.why.as_str(), allocation.age_secs), (why, Some(second)));
        assert_eq!(allocation.basis, Basis::Observed);
    }
    assert_eq!(report(of(Profile::Gcp, Described::default()), 0).nat.allocation.age_secs, None);
}

/// Exercises a hold time that somebody has set to more while the agent runs. If this fails, ports are free here that the NAT holds.
#[test]
fn what_a_longer_hold_time_asks_for_is_remembered_from_then_on() {
    let held = |remember: Option<u64>| {
        let mut node = Node::new();
        node.policy.nat.as_mut().unwrap().hold.tcp_time_wait = Duration::from_secs(600);
        if let Some(secs) = remember {
            node.ledger.remember_for(Duration::from_secs(secs), None);
        }
        node.count(990, [counter(0, 0, 0, 0)]);
        node.count(1000, [counter(3, 3, 0, 0)]);
        node.dump(1000, [entry(9, outside(80), ConntrackTcpState::TimeWait, 119)]);
        node.put(1001, SourceId::Conntrack, Fact::FlowEnded(entry(9, outside(80), ConntrackTcpState::TimeWait, 119)));
        (1010..1400).step_by(10).for_each(|second| node.count(second, [counter(3, 3, 0, 0)]));
        node.dump(1400, []);
        let report = node.report(1400);
        report.nat.destinations.iter().map(|row| row.held).sum::<u32>()
    };
    assert_eq!((held(None), held(Some(630))), (0, 4));
}

#[test]
fn notes_on_the_settings_are_in_the_report() {
    let nat = of(Profile::Gcp, Described { notes: vec!["read me".to_owned()], ..Described::default() });
    assert_eq!(report(nat, 0).nat.allocation.notes, ["read me"]);
}

/// Exercises a node that was left out. If this fails, one fault is told twice, once with a demand that means nothing.
#[test]
fn a_node_without_ports_is_told_once() {
    let observed = Some(ObservedPorts { ports: 0, why: "as the mapping has it".to_owned(), at: None });
    let report = report(NatSettings { observed, ..of(Profile::Gcp, Described::default()) }, 100);
    assert!(finding(&report, FindingId::NatGatewayTooSmall).unwrap().title.contains("no NAT ports at all"));
    assert!(finding(&report, FindingId::NatPortsExhausted).is_none());
}
