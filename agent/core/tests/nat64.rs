//! NATs that translate IPv6 addresses which stand for IPv4 ones (NAT64): 64:ff9b::/96.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use headroom_core::findings::{FindingId, Severity};
use headroom_core::flow::Endpoint;
use headroom_core::model::nat::{Basis, NatSettings, Profile};
use headroom_core::observe::{ConntrackEntry, ConntrackTcpState};
use headroom_core::report::Report;

#[path = "node/pods.rs"]
mod node;

use node::{Node, entry};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
/// The same, as DNS64 has it.
const THROUGH: IpAddr = IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xcb00, 0x7107));

/// Open connections from source ports of their own to port 443.
fn flows(first: u16, count: u16, to: IpAddr) -> impl Iterator<Item = ConntrackEntry> {
    (first..first + count).map(move |port| entry(port, Endpoint::new(to, 443), ConntrackTcpState::Established, 431_999))
}

fn report(nat: NatSettings, flows: impl IntoIterator<Item = ConntrackEntry>) -> Report {
    let mut node = Node::new();
    node.policy.nat = Some(nat);
    node.dump(1000, flows);
    node.report(1000)
}

/// Exercises addresses that DNS64 makes. If this fails, a node of an IPv6 cluster that is out of ports needs none.
#[test]
fn what_is_translated_from_ipv6_takes_ports_of_the_nat() {
    for (profile, needs) in
        [(Profile::Aws, 40), (Profile::Gcp, 40), (Profile::AzureLb, 0), (Profile::AzureNatgw, 0), (Profile::Linux, 0)]
    {
        let report = report(NatSettings::of(profile, Basis::Configured), flows(1000, 40, THROUGH));
        assert_eq!(report.nat.demand.tcp.ports, Some(needs), "{profile}");
        assert_eq!(report.nat.destinations[0].in_scope, needs > 0, "{profile}");
        let note = |note: &String| note.contains("NAT64 (64:ff9b::/96), 40 of them");
        assert_eq!(report.nat.allocation.notes.iter().any(note), needs > 0, "{:?}", report.nat.allocation.notes);
    }
}

/// Exercises a destination that is dialled both ways: the NAT has one for both. If this fails, a node is out of ports at a demand that
/// looks like half of it.
#[test]
fn a_destination_counts_once_by_whichever_address_it_is_dialled() {
    let nat = NatSettings { nodes: Some(2), nat_ips: Some(1), ..NatSettings::of(Profile::Aws, Basis::Configured) };
    let other = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 8));
    let both = flows(1000, 20_000, V4).chain(flows(30_000, 10_000, THROUGH)).chain(flows(50_000, 9, other));
    let report = report(nat, both);
    let tcp = &report.nat.demand.tcp;
    let worst = tcp.worst.as_ref().unwrap();
    assert_eq!((tcp.ports, worst.address, worst.destinations), (Some(30_000), V4, 1));
    assert_eq!(report.nat.destinations.len(), 3, "rows stay as they were dialled");
    let small = report.findings.iter().find(|finding| finding.id == FindingId::NatGatewayTooSmall).unwrap();
    assert!(small.title.contains("203.0.113.7:443/tcp would take 60000 ports"), "{}", small.title);
    let gcp = NatSettings::of(Profile::Gcp, Basis::Configured);
    let report = self::report(gcp, flows(1000, 600, V4).chain(flows(3000, 500, THROUGH)));
    let full = report.findings.iter().find(|finding| finding.id == FindingId::NatPortsExhausted).unwrap();
    assert!(full.title.starts_with("203.0.113.7:443/tcp holds 1100 of 1024 NAT ports"), "{}", full.title);
    assert!(full.evidence.iter().any(|evidence| evidence.said.contains("both count together")), "{full:?}");
    let alone = self::report(NatSettings::of(Profile::Gcp, Basis::Configured), flows(3000, 1100, THROUGH));
    let alone = alone.findings.iter().find(|finding| finding.id == FindingId::NatPortsExhausted).unwrap();
    assert!(alone.title.starts_with("[64:ff9b::cb00:7107]:443/tcp holds 1100"), "as it was dialled: {}", alone.title);
}

/// Exercises a gateway whose settings say whether it translates IPv6, and one of which nobody has said. If this fails, ports that no
/// gateway gives out wake somebody up, or those that it does are not counted.
#[test]
fn whether_cloud_nat_translates_ipv6_is_what_its_settings_say() {
    let of = |nat64, v4: u16| {
        let nat = NatSettings { nat64, min_ports: Some(1024), ..NatSettings::of(Profile::Gcp, Basis::Configured) };
        let report = self::report(nat, flows(1000, v4, V4).chain(flows(5000, 1100, THROUGH)));
        let full = report.findings.iter().find(|finding| finding.id == FindingId::NatPortsExhausted).cloned();
        (report.nat.demand.tcp.ports, full, report.nat.allocation.notes.join("\n"))
    };
    let (ports, full, notes) = of(Some(false), 40);
    assert!(ports == Some(40) && full.is_none() && notes.contains("1100 of them, are not counted"), "{full:?} {notes}");
    let (ports, full, notes) = of(Some(true), 40);
    assert_eq!((ports, full.map(|full| full.severity), notes.as_str()), (Some(1140), Some(Severity::Critical), ""));
    // With those of IPv4 alone it would do.
    let (_, full, notes) = of(None, 40);
    let full = full.unwrap();
    assert_eq!(full.severity, Severity::Warning);
    assert!(full.evidence.iter().any(|evidence| evidence.said.contains("1100 of them go through NAT64")), "{full:?}");
    assert!(notes.contains("sourceSubnetworkIpRangesToNat64"), "{notes}");
    assert_eq!(of(None, 1100).1.unwrap().severity, Severity::Critical, "without any of them");
}
