//! What follows from demand: rates, who needs most, ports that this node itself gives out, allocations that change.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use headroom_core::findings::{Finding, FindingId, Severity};
use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::ids::NetnsInode;
use headroom_core::known::Known;
use headroom_core::model::nat::NatSettings;
use headroom_core::observe::{ConntrackEntry, ConntrackTcpState, Namespace, Socket, SocketState, SocketTimer};
use headroom_core::ports::{PortSettings, parse_port_range, parse_reserved_ports};
use headroom_core::report::Report;

#[path = "node/pods.rs"]
mod node;

use node::{Node, POD, counter, entry, namespaces, outside, sockets};

fn finding(report: &Report, id: FindingId) -> Option<&Finding> {
    report.findings.iter().find(|finding| finding.id == id)
}

/// Exercises the arithmetic of facts 1.3: 64 ports, two minutes after the end. If this fails, people are told to open more
/// connections per second than the NAT has ports for.
#[test]
fn the_rate_that_can_be_sustained_follows_from_life_and_hold_time() {
    let mut node = Node::new();
    // One connection every two seconds, each of which lives for four: two are open at any time.
    for second in (0..=60).step_by(2) {
        let opened = second / 2;
        node.count(1000 + second, [counter(opened, opened.saturating_sub(2), 0, 0)]);
        node.report(1000 + second);
    }
    let rate = node.report(1060).nat.demand.tcp.rate.unwrap();
    assert!((rate.per_sec - 0.5).abs() < 0.02, "{rate:?}");
    let allowed = rate.allowed_per_sec.unwrap();
    assert!((allowed - 64.0 / 124.0).abs() < 0.01, "{rate:?}");
    assert!(rate.basis.contains("64 ports / (4.0 s of life + 120 s held after)"), "{rate:?}");
}

#[test]
fn a_rate_is_unknown_until_it_was_watched() {
    let mut node = Node::new();
    node.count(1000, [counter(0, 0, 0, 0)]);
    node.report(1000);
    node.count(1001, [counter(5, 0, 0, 0)]);
    assert_eq!(node.report(1001).nat.demand.tcp.rate, None);
}

#[test]
fn an_allocation_that_shrinks_below_demand_is_told_as_such() {
    let mut node = Node::new();
    let given = |ports| NatSettings { min_ports: Some(ports), ..Node::new().policy.nat.unwrap() };
    node.policy.nat = Some(given(128));
    let open: Vec<_> =
        (0..100).map(|port| entry(port, outside(443), ConntrackTcpState::Established, 431_999)).collect();
    node.dump(1000, open.clone());
    assert!(finding(&node.report(1000), FindingId::NatPortsExhausted).is_none());
    node.policy.nat = Some(given(64));
    node.dump(1030, open);
    let report = node.report(1060);
    let found = finding(&report, FindingId::NatPortsExhausted).unwrap();
    assert!(found.title.contains("100 of 64 NAT ports"), "{}", found.title);
    let said: String = found.evidence.iter().map(|evidence| evidence.said.as_str()).collect();
    assert!(said.contains("128 ports until 0 s ago"), "{said}");
    assert_eq!(report.nat.demand.tcp.exhausted_in_secs, None, "it is exhausted, not about to be");
    assert!(!node.report(1060 + 601).nat.allocation.why.contains("until"));
}

#[test]
fn icmp_has_a_demand_of_its_own() {
    let mut node = Node::new();
    let echo = |id: u16| {
        let flow = entry(id, Endpoint::new(outside(0).address, 0), ConntrackTcpState::None, 29);
        let mut flow = ConntrackEntry { tcp: None, replied: true, ..flow };
        flow.key.protocol = Protocol::ICMP;
        flow
    };
    node.dump(1000, [echo(1), echo(2), echo(3)]);
    let demand = node.report(1000).nat.demand;
    assert_eq!((demand.icmp.ports, demand.tcp.ports, demand.udp.ports), (Some(3), Some(0), Some(0)));
    node.dump(1040, []);
    assert_eq!(node.report(1041).nat.demand.icmp.ports, Some(0), "30 s after the last packet");
}

#[test]
fn pods_are_summed_over_destinations_and_what_is_left_out_is_counted() {
    let mut node = Node::new();
    let flow = |pod: u8, host: u8, port: u16| {
        let to = Endpoint::new(std::net::IpAddr::from([203, 0, 113, host]), 443);
        let mut flow = entry(port, to, ConntrackTcpState::Established, 431_999);
        flow.key.source.address = std::net::IpAddr::from([10, 64, 1, pod]);
        flow
    };
    // Pod 1 has two connections to each of three destinations, 60 others have one to one.
    let large = (1..=3).flat_map(|host| [flow(1, host, 1), flow(1, host, 2)]);
    node.dump(1000, large.chain((2..62).map(|pod| flow(pod, 1, 1))));
    let nat = node.report(1000).nat;
    let first = nat.pods.first().unwrap();
    assert_eq!((first.address, first.held, first.destinations), ([10, 64, 1, 1].into(), 6, 3));
    assert_eq!(nat.pods.len(), 50);
    assert_eq!((nat.pods_omitted.pods, nat.pods_omitted.held), (11, 11));
}

fn pod(range: &str, reserved: &str) -> Namespace {
    let ports =
        PortSettings { ephemeral: parse_port_range(range).unwrap(), reserved: parse_reserved_ports(reserved).unwrap() };
    Namespace {
        inode: NetnsInode(7),
        host: false,
        pid: Some(1),
        addresses: Known::Present(vec![POD]),
        ports: Known::Present(ports),
        keepalive: Known::Absent,
    }
}

fn socket(source_port: u16, state: SocketState) -> Socket {
    let (source, timer) = (Endpoint::new(POD, source_port), SocketTimer::Other);
    Socket { netns: NetnsInode(7), source, destination: outside(443), state, timer, accepted: false }
}

/// Exercises the use of local ports. If this fails, nobody is warned before connect() fails for want of one.
#[test]
fn local_ports_are_compared_with_what_connect_can_use() {
    let mut node = Node::new();
    // 101 ports, of which 100 are walked and 10 are reserved: 90.
    namespaces(&mut node, 900, [pod("40000 40100", "40010-40019")]);
    node.count(900, [counter(0, 0, 0, 0)]);
    // 75 are open, 15 wait: 90 for certain, whoever closed first.
    node.count(1000, [counter(100, 25, 0, 0)]);
    let waiting = SocketState::TimeWait { remaining_millis: 30_000 };
    let table = (0..75).map(|port| socket(port, SocketState::Open)).chain((75..90).map(|port| socket(port, waiting)));
    sockets(&mut node, 1001, table);
    node.count(1002, [counter(100, 25, 0, 0)]);
    let report = node.report(1002);
    let row = report.nat.local.first().unwrap();
    assert_eq!((row.used, row.used_at_most, row.usable, row.exact), (90, 100, 90, true));
    let found = finding(&report, FindingId::EphemeralPortsLow).unwrap();
    assert_eq!(found.severity, Severity::Warning);
    assert!(found.title.contains("uses 90 of 90 local ports towards 203.0.113.7:443/tcp (100 %)"), "{}", found.title);
    assert!(found.remedy.contains("ip_local_port_range=\"10240 65535\""), "{}", found.remedy);
}

#[test]
fn closed_connections_that_may_wait_are_worth_knowing_but_no_warning() {
    let mut node = Node::new();
    namespaces(&mut node, 900, [pod("40000 40099", "")]);
    node.count(900, [counter(0, 0, 0, 0)]);
    node.count(1000, [counter(85, 85, 0, 0)]);
    sockets(&mut node, 1001, []);
    node.count(1002, [counter(85, 85, 0, 0)]);
    let report = node.report(1002);
    let found = finding(&report, FindingId::EphemeralPortsLow).unwrap();
    assert_eq!(found.severity, Severity::Info);
    assert!(found.title.contains("may use 85 of 100"), "{}", found.title);
}

/// Exercises the warning about the kernel's own search for ports. If this fails, connections fail silently on the node itself
/// while the NAT in front has room.
#[test]
fn a_masquerade_that_gets_full_is_told_before_the_kernel_gives_up() {
    let report = |flows: u32| {
        let mut node = Node::new();
        let flow = |number: u32| {
            let port = u16::try_from(1024 + number).unwrap();
            entry(port, outside(443), ConntrackTcpState::Established, 431_999)
        };
        node.dump(1000, (0..flows).map(flow));
        node.report(1000)
    };
    let own = |report: &Report| {
        let mut own = report.findings.iter().filter(|finding| finding.title.contains("own masquerading"));
        own.next().map(|finding| (finding.severity, finding.title.clone()))
    };
    assert_eq!(own(&report(51_000)), None);
    let (severity, title) = own(&report(52_000)).unwrap();
    assert_eq!(severity, Severity::Warning);
    assert!(title.contains("52000 of 64512 ports towards 203.0.113.7:443/tcp (80 %)"), "{title}");
    assert_eq!(own(&report(60_000)).unwrap().0, Severity::Critical);
}
