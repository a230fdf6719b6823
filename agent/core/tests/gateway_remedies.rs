//! What people are told to do at a gateway that is too small: it has to serve all nodes, and leave this one what it needs.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

#[path = "node/nat.rs"]
mod nat;
#[path = "node/pods.rs"]
mod node;

use headroom_core::findings::FindingId;
use headroom_core::model::nat::remedy::{Need, Remedy, larger_minimum};
use headroom_core::model::nat::{Described, Mode, NatSettings, Profile};
use headroom_core::time::WallTime;
use nat::{finding, of, report, static_ports};

/// What the gateway is told to change.
fn too_small(nat: NatSettings) -> String {
    too_small_of(nat, 0)
}

/// The same while a node holds so many ports.
fn too_small_of(nat: NatSettings, held: u64) -> String {
    finding(&report(nat, held), FindingId::NatGatewayTooSmall).unwrap().remedy.clone()
}

/// Exercises a gateway that lacks NAT IPs while nodes get more than its minimum because of their alias ranges. If this fails, people
/// lower a minimum that is not set, and what would have helped is not told.
#[test]
fn a_minimum_is_lowered_only_where_nodes_get_no_more_than_it_anyway() {
    let lacking = |described: Described| too_small(of(Profile::Gcp, Described { missing_ips: Some(1), ..described }));
    for min_ports in [None, Some(0), Some(64), Some(1024)] {
        let floor = lacking(Described { min_ports, ..static_ports() });
        assert!(
            floor.starts_with("use 2 NAT IPs, or switch to dynamic allocation with min_ports_per_vm = 64"),
            "{floor}"
        );
        assert!(floor.contains("max_ports_per_vm = 1024") && floor.contains("1008 nodes fit"), "{floor}");
        assert!(floor.contains("--enable-dynamic-port-allocation") && !floor.contains("lower"), "{floor}");
    }
    let above = lacking(Described { min_ports: Some(2048), ..static_ports() });
    assert!(
        above.contains("or lower min_ports_per_vm to 1024 (2048 ports for each node now)")
            && !above.contains("dynamic"),
        "{above}"
    );
    assert!(above.contains("--min-ports-per-vm=1024") && above.contains("needs more than 1024 ports"), "{above}");
    let no_floor = lacking(Described { alias_ranges: Some(false), ..static_ports() });
    assert!(no_floor.contains("lower min_ports_per_vm to 32 (64 ports"), "{no_floor}");
    let dynamic = |min_ports| Described { mode: Some(Mode::Dynamic), min_ports, ..static_ports() };
    assert!(lacking(dynamic(Some(64))).contains("lower min_ports_per_vm to 32 (64"), "{}", lacking(dynamic(Some(64))));
    assert!(lacking(dynamic(None)).starts_with("use 2 NAT IPs\n"), "{}", lacking(dynamic(None)));
    let auto = lacking(Described { auto_ips: Some(true), nat_ips: None, ..static_ports() });
    assert!(auto.starts_with("switch to dynamic allocation") && auto.contains("or raise the quota"), "{auto}");
    assert!(!auto.contains("0 nodes fit") && !auto.contains("ip-pool"), "{auto}");
    let most = lacking(Described { nat_ips: Some(300), ..static_ports() });
    assert!(most.starts_with("split the nodes over several gateways (2 at least)"), "{most}");
    let mut failed = of(Profile::Gcp, static_ports());
    failed.allocation_failed = Some(WallTime::from_secs(1_800_000_990));
    let failed = too_small(failed);
    assert!(failed.contains("minExtraNatIpsNeeded) and add them, or switch to dynamic allocation"), "{failed}");
}

/// Exercises a node that runs low behind a gateway that is too small. If this fails, one finding undoes what the other says.
#[test]
fn what_a_gateway_is_told_gives_this_node_what_it_needs() {
    let both = |described: Described, profile: Profile, held: u64| {
        let report = report(of(profile, described), held);
        let ports = [FindingId::NatPortsExhausted, FindingId::NatPortsLow];
        let node = report.findings.iter().find(|finding| ports.contains(&finding.id)).unwrap().remedy.clone();
        (node, finding(&report, FindingId::NatGatewayTooSmall).unwrap().remedy.clone())
    };
    for (described, held) in [
        (Described { missing_ips: Some(1), ..static_ports() }, 1030),
        (Described { nodes: Some(80), ..static_ports() }, 900),
    ] {
        let (node, gateway) = both(described, Profile::Gcp, held);
        assert_eq!(node, format!("reuse connections in the pods named above, or {gateway}"));
        assert!(
            gateway.contains("max_ports_per_vm = 2048") && gateway.contains("min_ports_per_vm = 2048"),
            "{gateway}"
        );
        assert!(!gateway.contains("1024"), "{gateway}");
    }
    let by_hand = Described { min_ports: Some(1024), nat_ips: Some(2), nodes: Some(130), ..Described::default() };
    let (node, gateway) = both(by_hand.clone(), Profile::AzureLb, 1030);
    assert!(
        node.ends_with(&gateway) && gateway.contains("= 1288 and 3 NAT IPs (there are 2) for 130 nodes"),
        "{gateway}"
    );
    // A node that has ports to spare leaves some, as far as it needs none of them.
    let spare = |held| too_small_of(of(Profile::AzureLb, by_hand.clone()), held);
    assert!(spare(700).contains("use 3 frontend IPs, or set allocated outbound ports = 984 on"), "{}", spare(700));
    assert!(spare(790).starts_with("use 3 frontend IPs\n"), "{}", spare(790));
    let lacking = Described { min_ports: Some(4096), missing_ips: Some(1), ..static_ports() };
    let lacking = |held| too_small_of(of(Profile::Gcp, lacking.clone()), held);
    assert!(lacking(1600).contains("or lower min_ports_per_vm to 2048"), "{}", lacking(1600));
    assert!(lacking(1700).contains("or switch to dynamic allocation"), "{}", lacking(1700));
}

/// What is told of ranges that are enlarged to so many.
fn raised(nat: NatSettings, to: u32) -> Option<Remedy> {
    let ports = nat.node_ports().unwrap();
    larger_minimum(&nat, &ports, Need { ports: to, busiest: to, short: false })
}

/// Exercises ranges that are enlarged under load. If this fails, a minimum is told that Cloud NAT refuses.
#[test]
fn a_larger_minimum_stays_below_the_maximum() {
    let nat = |min_ports, max_ports| {
        let ports = Described {
            mode: Some(Mode::Dynamic),
            min_ports: Some(min_ports),
            max_ports: Some(max_ports),
            ..static_ports()
        };
        of(Profile::Gcp, ports)
    };
    for (min, max, wanted, says) in [
        (64, 1024, 256, "raise min_ports_per_vm to 256, so"),
        (64, 1024, 1024, "raise min_ports_per_vm to 1024 and max_ports_per_vm to 2048, so"),
        (64, 65_536, 65_536, "raise min_ports_per_vm to 32768, so"),
        (64, 1024, 256, "(each NAT IP then serves 252 nodes (1008 now); add NAT IPs if there are more nodes)"),
    ] {
        let raise = raised(nat(min, max), wanted).unwrap().says;
        assert!(raise.contains(says), "{min} {max} {wanted}: {raise}");
    }
    assert_eq!(raised(nat(32_768, 65_536), 65_536), None);
    // Nodes that would not fit with it come with the NAT IPs that it takes; where these cannot be had, it is not told.
    let of = |nodes| NatSettings { nodes: Some(nodes), ..nat(64, 1024) };
    let more = raised(of(253), 256).unwrap();
    assert!(more.says.ends_with("(it takes 2 NAT IPs)"), "{}", more.says);
    assert!(more.changes.iter().any(|change| change.text.contains("--min-ports-per-vm=256")), "{more:?}");
    assert_eq!(raised(of(300 * 252 + 1), 256), None);
}

/// Exercises a gateway that adds NAT IPs by itself. If this fails, it is told to take a fixed list of them.
#[test]
fn a_gateway_that_adds_ips_is_not_told_how_many_to_take() {
    let auto = Described { auto_ips: Some(true), nodes: Some(2000), missing_ips: Some(2), ..Described::default() };
    let report = report(of(Profile::Gcp, auto), 1);
    let small = finding(&report, FindingId::NatGatewayTooSmall).unwrap();
    assert!(small.title.contains("lacks 2 NAT IPs"), "{}", small.title);
    assert!(!small.remedy.contains("ip-pool") && small.remedy.contains("quota"), "{}", small.remedy);
}
