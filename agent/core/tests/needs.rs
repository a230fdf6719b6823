//! What follows from demand: rates, who needs most, ports that this node itself gives out, allocations that change.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use headroom_core::findings::{Finding, FindingId, Severity};
use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::ids::NetnsInode;
use headroom_core::known::Known;
use headroom_core::model::evaluate;
use headroom_core::model::nat::{Basis, NatSettings, Profile};
use headroom_core::observe::{
    ConntrackEntry, ConntrackTcpState, Fact, Namespace, Outcome, PortChoice, RuleBackend, RuleFamily, RulePlace,
    Snapshot, Socket, SocketState, SocketTimer, SourceId, SourceNat, SourceNatRule,
};
use headroom_core::ports::{PortSettings, parse_port_range, parse_reserved_ports};
use headroom_core::protocols::Protocols;
use headroom_core::report::Report;
use headroom_core::time::{NodeTime, Now, WallTime};

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

/// Exercises connections that stay. If this fails, their life is said to be 0 s, and many more a second to be possible than are.
#[test]
fn a_rate_that_nothing_shows_the_life_of_is_not_told() {
    let mut node = Node::new();
    node.dump(1000, (1..=60).map(|port| entry(port, outside(443), ConntrackTcpState::Established, 431_990)));
    let rate = node.report(1000).nat.demand.tcp.rate.unwrap();
    assert_eq!((rate.per_sec, rate.allowed_per_sec), (0.0, None), "{rate:?}");
    assert!(rate.basis.contains("not known"), "{rate:?}");
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
    // It has more than before: that it once shrank says nothing any more.
    node.policy.nat = Some(given(256));
    assert!(!node.report(1070).nat.allocation.why.contains("until"));
    node.policy.nat = Some(given(64));
    assert!(node.report(1080).nat.allocation.why.contains("256 ports until 0 s ago"));
    assert!(!node.report(1080 + 601).nat.allocation.why.contains("until"));
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
    // A closed connection keeps its port for a minute: 90 / 60.
    let rate = "has 90 usable ports, enough for 1.5 connections a second that this side closes first";
    assert!(found.evidence.iter().any(|evidence| evidence.said.ends_with(rate)), "{found:?}");
}

/// Exercises what connect() passes over. If this fails, a node whose range is full of servers fails before anybody is warned.
#[test]
fn ports_that_somebody_listens_on_are_not_there_to_connect_from() {
    let mut node = Node::new();
    namespaces(&mut node, 900, [pod("40000 40099", "40010-40019")]);
    node.count(900, [counter(0, 0, 0, 0)]);
    node.count(1000, [counter(40, 0, 0, 0)]);
    node.works(SourceId::Sockets);
    node.put(1001, SourceId::Sockets, Fact::Begin(Snapshot::Sockets));
    // Of these 30 ports 20 are in the range, and 5 of them reserved anyway.
    let ports = vec!["8080-8089".parse().unwrap(), "40015-40034".parse().unwrap()];
    node.put(1001, SourceId::Sockets, Fact::Listening { inode: NetnsInode(7), ports });
    (0..40).for_each(|port| node.put(1001, SourceId::Sockets, Fact::Socket(socket(port, SocketState::Open))));
    node.put(1001, SourceId::Sockets, Fact::End { snapshot: Snapshot::Sockets, outcome: Outcome::Complete });
    node.count(1002, [counter(40, 0, 0, 0)]);
    let row = node.report(1002).nat.local.into_iter().next().unwrap();
    assert_eq!((row.usable, row.listening, row.used), (75, 15, 40));
    sockets(&mut node, 1003, (0..40).map(|port| socket(port, SocketState::Open)));
    let row = node.report(1004).nat.local.into_iter().next().unwrap();
    assert_eq!((row.usable, row.listening), (90, 0), "nobody listens any more");
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

/// A MASQUERADE rule for TCP in that chain.
fn masquerade(chain: &str, ports: Option<&str>) -> SourceNatRule {
    let place = RulePlace {
        backend: RuleBackend::IptablesNft,
        family: RuleFamily::Ip,
        table: "nat".to_owned(),
        chain: chain.to_owned(),
        position: 1,
    };
    let ports = ports.map_or(Known::Absent, |ports| Known::Present(ports.parse().unwrap()));
    let target = SourceNat { ports, choice: PortChoice::RandomFully, ..SourceNat::MASQUERADE };
    SourceNatRule {
        path: vec!["POSTROUTING".to_owned()],
        protocols: Protocols::only(Protocol::TCP),
        ..SourceNatRule::new(place, target)
    }
}

fn rules(node: &mut Node, rules: impl IntoIterator<Item = SourceNatRule>) {
    node.works(SourceId::Rules);
    node.put(900, SourceId::Rules, Fact::Begin(Snapshot::Rules));
    rules.into_iter().for_each(|rule| node.put(900, SourceId::Rules, Fact::SourceNat(rule)));
    node.put(900, SourceId::Rules, Fact::End { snapshot: Snapshot::Rules, outcome: Outcome::Complete });
}

/// Exercises rules with `--to-ports`. If this fails, the kernel runs out of ports while a report says that there are 64,512.
#[test]
fn a_masquerade_has_no_more_ports_than_its_rules_give_it() {
    let given = |all: Vec<SourceNatRule>| {
        let mut node = Node::new();
        let open = |number: u16| entry(40_000 + number, outside(443), ConntrackTcpState::Established, 431_999);
        node.dump(1000, (0..1000).map(open));
        rules(&mut node, all);
        let report = node.report(1000);
        let told = report.findings.iter().find(|finding| finding.title.contains("own masquerading"));
        let told = told.map(|finding| (finding.severity, finding.remedy.contains("--to-ports")));
        (report.nat.masqueraded.first().unwrap().ports, told)
    };
    assert_eq!(given(Vec::new()), (64_512, None));
    assert_eq!(given(vec![masquerade("IP-MASQ", None)]), (64_512, None));
    let limited = || masquerade("IP-MASQ", Some("40000-41023"));
    assert_eq!(given(vec![limited()]), (1024, Some((Severity::Critical, true))), "97 %");
    // What is left over may take any port.
    assert_eq!(given(vec![limited(), masquerade("IP-MASQ-2", None)]), (64_512, None));
    // kube-proxy's rule is for Services.
    let service = masquerade("KUBE-POSTROUTING", None);
    assert_eq!(given(vec![limited(), service.clone()]).0, 1024);
    assert_eq!(given(vec![service]).0, 64_512);
    let other = masquerade("IP-MASQ-2", Some("41000-42047"));
    assert_eq!(given(vec![limited(), other]), (2048, None), "1,000 of what both give");
    let unread = SourceNatRule { path: Vec::new(), ..limited() };
    assert_eq!(given(vec![unread]).0, 64_512, "no packet comes to it");
    let of = |conditions: &[&str], ports| SourceNatRule {
        conditions: conditions.iter().map(|condition| (*condition).to_owned()).collect(),
        ..masquerade("IP-MASQ", Some(ports))
    };
    assert_eq!(given(vec![of(&["! -d 10.0.0.0/8", "-s 10.64.0.0/24"], "40000-41023")]).0, 1024, "all that pods send");
    assert_eq!(given(vec![of(&["--dport 9"], "40000-41023")]).0, 64_512, "other flows take other ports");
    assert_eq!(given(vec![of(&[], "30080-30080")]).0, 64_512, "1,000 cannot be of one port");
}

#[test]
fn a_node_that_is_its_own_nat_is_given_what_its_rules_say() {
    let mut node = Node::new();
    let allocation = |node: &mut Node| node.report(1000).nat.allocation;
    let linux = NatSettings::of(Profile::Linux, Basis::Configured);
    node.policy.nat = Some(linux.clone());
    rules(&mut node, [masquerade("IP-MASQ", Some("32768-65535"))]);
    let found = allocation(&mut node);
    assert_eq!((found.ports, found.basis), (Some(32_768), Basis::Observed));
    assert!(found.why.contains("--to-ports 32768-65535 in the chain IP-MASQ"), "{}", found.why);
    // A box in front that nodes share has rules of its own; and what somebody has said, holds.
    node.policy.nat = Some(NatSettings { nodes: Some(3), ..linux.clone() });
    assert_eq!(allocation(&mut node).ports, Some(64_512));
    node.policy.nat = Some(NatSettings { port_range: Some("1024-2047".parse().unwrap()), ..linux });
    assert_eq!(allocation(&mut node).ports, Some(1024));
}

/// Exercises a wall clock that somebody sets. If this fails, a node that gets its time late reports peaks and trends of nonsense.
#[test]
fn a_clock_that_jumps_changes_nothing_but_the_time_of_the_report() {
    let mut steady = Node::new();
    let mut jumping = Node::new();
    for second in 0..40_u64 {
        let walls =
            [1_800_000_000_i64, if second % 3 == 0 { 0 } else { 4_000_000_000 - i64::try_from(second).unwrap() }];
        let reports = [&mut steady, &mut jumping].into_iter().zip(walls).map(|(node, wall)| {
            node.count(1000 + second, [counter(second, 0, 0, 0)]);
            let now = Now { node: NodeTime::from_secs(1000 + second), wall: WallTime::from_secs(wall) };
            let report = evaluate(&node.ledger, &mut node.memory, &node.policy, now);
            (report.nat, report.findings)
        });
        let reports: Vec<_> = reports.collect();
        assert_eq!(reports[0], reports[1], "second {second}");
        let demand = &reports[0].0.demand.tcp;
        assert_eq!((demand.ports, demand.peak_1h), (Some(u32::try_from(second).unwrap()), demand.ports), "{demand:?}");
    }
}
