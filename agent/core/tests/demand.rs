//! NAT demand: what counts as held, who does the accounting, and what is said about it.

use std::net::IpAddr;

use headroom_core::findings::{Finding, FindingId, Severity, exit_code};
use headroom_core::flow::{Destination, Endpoint};
use headroom_core::ids::{ContainerId, PodName};
use headroom_core::known::{Known, Why};
use headroom_core::model::nat::{Basis, Mode, NatSettings, Profile};
use headroom_core::observe::{
    ConntrackStats, ConntrackTcpState, ConntrackUse, Fact, NoPort, Outcome, Sandbox, Snapshot, SourceId, TcpCounter,
};

#[path = "node/pods.rs"]
mod node;

use node::{Node, POD, counter, entry, outside, sockets, udp};

#[test]
fn a_closed_connection_holds_its_port_for_the_nats_time_wait() {
    let mut node = Node::new();
    // In TIME_WAIT for 20 of 120 seconds when read at second 1000: closed at 980.
    node.dump(
        1000,
        [
            entry(1, outside(443), ConntrackTcpState::TimeWait, 100),
            entry(2, outside(443), ConntrackTcpState::Established, 431_999),
        ],
    );
    let now = node.destination(1000, 443);
    assert_eq!((now.held, now.active, now.wanting), (2, 1, 0));
    assert_eq!(node.destination(1099, 443).held, 2);
    assert_eq!(node.destination(1101, 443).held, 1);
}

#[test]
fn a_port_is_held_on_when_the_node_forgets_before_the_nat_does() {
    let mut node = Node::new();
    let held = entry(1, outside(443), ConntrackTcpState::TimeWait, 100);
    node.dump(1000, [held]);
    // Deleted on the node at once; the NAT knows nothing of that.
    node.put(1001, SourceId::Conntrack, Fact::FlowEnded(held));
    assert_eq!(node.destination(1002, 443).held, 1);
    assert!(node.report(1101).nat.destinations.is_empty() || node.destination(1101, 443).held == 0);
}

/// A refused connect never opened. A Linux NAT forgets it at once (`nf_conntrack_tcp_packet` deletes an entry whose only answer is
/// a reset). If this fails, a client that keeps knocking at a closed port is said to use up the NAT.
#[test]
fn a_refused_connect_holds_and_wants_nothing() {
    let mut node = Node::new();
    let refused = |count| TcpCounter { refused: count, timed_out: 0, ..counter(0, 0, 0, count) };
    node.count(1000, [refused(0)]);
    node.count(1010, [refused(3)]);
    let row = node.destination(1010, 443);
    assert_eq!((row.held, row.wanting, row.refused_total), (0, 0, Some(3)));
}

/// Exercises half-open connections: a NAT holds the port of a SYN for a while. If this fails, demand drops at the moment at
/// which applications lose patience, while the NAT is as full as before.
#[test]
fn a_connect_that_was_given_up_wants_its_port_for_the_nats_half_open_time() {
    let mut node = Node::new();
    let given_up = |count| TcpCounter { given_up: count, timed_out: 0, ..counter(0, 0, 0, count) };
    node.count(1000, [given_up(0)]);
    node.count(1010, [given_up(3)]);
    assert_eq!((node.destination(1012, 443).held, node.destination(1012, 443).wanting), (0, 3));
    assert_eq!(node.destination(1041, 443).wanting, 0, "30 s later");
}

#[test]
fn an_unanswered_connect_wants_a_port_and_holds_none() {
    let mut node = Node::new();
    node.dump(1000, [entry(1, outside(443), ConntrackTcpState::SynSent, 119)]);
    let now = node.destination(1000, 443);
    assert_eq!((now.held, now.wanting), (0, 1));
    assert_eq!(node.report(1000).nat.demand.tcp.ports, Some(1));
}

/// Exercises SYNs that stay unanswered: the kernel keeps the last one for two minutes, the NAT for half a minute. If this fails,
/// a destination that was down a minute ago is said to need ports.
#[test]
fn an_unanswered_connect_wants_a_port_until_the_nat_forgets_its_last_syn() {
    let mut node = Node::new();
    let left = [(1, 119), (2, 92), (3, 89), (4, 5)];
    node.dump(1000, left.map(|(port, left)| entry(port, outside(443), ConntrackTcpState::SynSent, left)));
    let now = node.destination(1000, 443);
    assert_eq!((now.held, now.wanting), (0, 2));
}

/// Exercises connections that one end has closed and the other has not. If this fails, ports that the NAT has long given to others
/// are counted for as long as the kernel remembers.
#[test]
fn a_half_closed_connection_holds_its_port_for_the_nats_transitory_time() {
    use ConntrackTcpState::{CloseWait, FinWait, LastAck};
    let mut node = Node::new();
    // Silent for 5 and 40 s, 20 and 100 s, 1 s.
    let flows = [(1, CloseWait, 55), (2, CloseWait, 20), (3, FinWait, 100), (4, FinWait, 20), (5, LastAck, 29)];
    let flows = flows.map(|(port, state, left)| entry(port, outside(443), state, left));
    node.dump(1000, flows);
    let now = node.destination(1000, 443);
    assert_eq!((now.held, now.active, now.forgotten, now.wanting), (3, 3, Some(2), 0));
    // Of one pair that the TCP counters account for, they know who has closed: the table takes nothing away.
    node.count(1000, [counter(5, 0, 0, 0)]);
    node.dump(1000, flows);
    assert_eq!(node.destination(1000, 443).held, 5);
}

#[test]
fn a_silent_udp_flow_is_forgotten_by_the_nat_before_the_node_forgets_it() {
    let mut node = Node::new();
    // A stream has 120 seconds on the node: with 100 left it was silent for 20, with 80 for 40.
    node.dump(1000, [udp(1, 100, true), udp(2, 80, true), udp(3, 25, false)]);
    assert_eq!(node.destination(1000, 53).held, 2);
    assert_eq!(node.report(1000).nat.demand.udp.ports, Some(2));
    assert_eq!(node.report(1000).nat.demand.tcp.ports, Some(0));
}

#[test]
fn demand_is_that_of_the_worst_destination_not_the_sum() {
    let mut node = Node::new();
    let flows = (1..=30)
        .map(|port| entry(port, outside(if port <= 20 { 443 } else { 80 }), ConntrackTcpState::Established, 431_999));
    node.dump(1000, flows);
    let report = node.report(1000);
    assert_eq!(report.nat.demand.tcp.ports, Some(20));
    assert_eq!(report.nat.demand.tcp.worst.unwrap().port, 443);
}

#[test]
fn two_sources_of_the_same_flows_are_never_added() {
    let mut node = Node::new();
    node.count(1000, [counter(9, 0, 0, 0)]);
    node.dump(1000, (1..=10).map(|port| entry(port, outside(443), ConntrackTcpState::Established, 431_999)));
    let now = node.destination(1001, 443);
    assert_eq!((now.held, now.source, now.drift), (9, SourceId::Tcp, Some(1)));
    assert_eq!(now.opened_total, Some(9));
    // What another source address holds there is not seen by the counters (it is only forwarded): conntrack's to tell.
    let mut forwarded = entry(99, outside(443), ConntrackTcpState::Established, 431_999);
    forwarded.key.source.address = IpAddr::from([10, 64, 7, 7]);
    node.dump(1002, [forwarded]);
    assert_eq!(node.destination(1002, 443).held, 10);
    // A dump that is no longer fresh tells nothing of drift.
    assert_eq!(node.destination(1010, 443).drift, None);
}

/// Exercises what ended before the agent started. If this fails, demand is too low for the first two minutes.
#[test]
fn what_closed_before_the_counting_began_is_still_held() {
    let mut node = Node::new();
    node.count(1000, [counter(1, 0, 0, 0)]);
    // Closed 100 and 20 seconds before, and one that the counters have seen themselves.
    let closed = [(1, 20), (2, 100), (3, 120)];
    node.dump(1000, closed.map(|(port, left)| entry(port, outside(443), ConntrackTcpState::TimeWait, left)));
    assert_eq!(node.destination(1000, 443).held, 3);
    assert_eq!(node.destination(1025, 443).held, 2);
}

/// Exercises connections that the NAT has forgotten. If this fails, demand counts ports that are free.
#[test]
fn a_counted_connection_that_was_silent_for_too_long_holds_nothing() {
    let mut node = Node::new();
    node.count(10_000, [counter(2, 0, 0, 0)]);
    let silent = |port, secs: u32| entry(port, outside(443), ConntrackTcpState::Established, 432_000 - secs);
    node.dump(10_000, [silent(1, 1300), silent(2, 100)]);
    let now = node.destination(10_000, 443);
    assert_eq!((now.held, now.active), (1, 1));
}

#[test]
fn a_service_address_is_counted_under_its_backend_only() {
    let mut node = Node::new();
    let mut flow = entry(1, outside(443), ConntrackTcpState::Established, 431_999);
    flow.key.dialled = Endpoint::new(IpAddr::from([198, 51, 100, 1]), 80);
    node.dump(1000, [flow]);
    node.count(1000, [TcpCounter { destination: flow.key.dialled, ..counter(1, 0, 0, 0) }]);
    let report = node.report(1000);
    assert_eq!(report.nat.destinations.len(), 1);
    assert_eq!(report.nat.destinations.first().unwrap().port, 443);
}

#[test]
fn without_conntrack_the_tcp_counters_do_the_accounting() {
    let mut node = Node::new();
    node.count(1000, [counter(10, 0, 0, 0)]);
    node.count(1010, [counter(12, 3, 2, 1)]);
    let now = node.destination(1010, 443);
    // 12 opened, 5 ended: 7 open; the 3 closed are held for 120 s, the 2 reset for 30 s.
    assert_eq!((now.active, now.held, now.source), (7, 12, SourceId::Tcp));
    assert_eq!((now.opened_total, now.closed_total, now.failed_total), (Some(12), Some(5), Some(1)));
    assert_eq!(node.destination(1041, 443).held, 10);
    assert_eq!(node.destination(1131, 443).held, 7);
}

#[test]
fn exhaustion_names_destination_pod_numbers_failures_and_remedy() {
    let mut node = Node::new();
    let pod = PodName { namespace: "shop".to_owned(), name: "checkout-7d9f".to_owned() };
    node.put(990, SourceId::Cri, Fact::Begin(Snapshot::Runtime));
    node.put(
        990,
        SourceId::Cri,
        Fact::Sandbox(Sandbox {
            id: ContainerId("a".repeat(64)),
            pod,
            uid: "u".to_owned(),
            ready: true,
            host_network: false,
            addresses: Known::Present(vec![POD]),
        }),
    );
    node.put(991, SourceId::Cri, Fact::End { snapshot: Snapshot::Runtime, outcome: Outcome::Complete });
    let flows = (1..=80).map(|port| {
        let state = if port <= 64 { ConntrackTcpState::Established } else { ConntrackTcpState::SynSent };
        entry(port, outside(443), state, 100)
    });
    node.dump(1000, flows);
    node.count(999, [TcpCounter { attempted: 80, ..counter(64, 0, 0, 0) }]);
    node.count(1000, [TcpCounter { attempted: 96, ..counter(64, 0, 0, 16) }]);
    let report = node.report(1000);
    let finding = report.findings.first().unwrap();
    assert_eq!((finding.id, finding.severity), (FindingId::NatPortsExhausted, Severity::Critical));
    for part in ["203.0.113.7:443/tcp", "64 of 64", "16 more wanted", "shop/checkout-7d9f"] {
        assert!(finding.title.contains(part), "{part} in {}", finding.title);
    }
    assert!(
        finding.evidence.iter().any(|evidence| evidence.said.contains("16 connects timed out, 32 SYNs were repeated"))
    );
    assert!(finding.remedy.contains("min_ports_per_vm = 128"), "{}", finding.remedy);
    assert_eq!(exit_code(&report.findings), 2);
}

#[test]
fn a_connect_that_was_given_up_no_longer_wants_a_port() {
    let mut node = Node::new();
    node.dump(1000, (1..=3).map(|port| entry(port, outside(443), ConntrackTcpState::SynSent, 100)));
    assert_eq!(node.destination(1000, 443).wanting, 3);
    // conntrack keeps an unanswered SYN for two minutes; the sockets know better.
    node.count(1000, [TcpCounter { attempted: 3, ..counter(0, 0, 0, 2) }]);
    assert_eq!(node.destination(1000, 443).wanting, 1);
}

#[test]
fn a_connect_since_the_last_dump_is_taken_as_answered_until_a_dump_says_otherwise() {
    let mut node = Node::new();
    node.dump(1000, []);
    let begun = entry(1, outside(443), ConntrackTcpState::SynSent, 120);
    node.put(1001, SourceId::Conntrack, Fact::Flow(begun));
    assert_eq!((node.destination(1001, 443).held, node.destination(1001, 443).wanting), (1, 0));
    node.dump(1002, [begun]);
    assert_eq!((node.destination(1002, 443).held, node.destination(1002, 443).wanting), (0, 1));
    // The node forgets it: it never held a port.
    node.put(1003, SourceId::Conntrack, Fact::FlowEnded(begun));
    assert!(node.report(1003).nat.destinations.iter().all(|listed| listed.held + listed.wanting == 0));
}

/// So many packets of new connections were dropped behind the translation of their source; so many inserts failed, if that is known.
fn dropped(node: &mut Node, second: u64, dropped: u64, failed: Option<u64>) {
    let destination = Destination::tcp(outside(443));
    node.put(second, SourceId::Conntrack, Fact::Begin(Snapshot::NoPorts));
    let fact = NoPort { destination, source: POD, translated: POD, born: 1, dropped };
    node.put(second, SourceId::Conntrack, Fact::NoPort(fact));
    let end = Fact::End { snapshot: Snapshot::NoPorts, outcome: Outcome::Complete };
    node.put(second, SourceId::Conntrack, end);
    // Five more were chains that are too long.
    let stats = |failed| ConntrackStats { insert_failed: failed + 5, chain_toolong: Some(5), ..ConntrackStats::ZERO };
    let used = ConntrackUse {
        entries: Known::Present(10),
        max: Known::Present(1000),
        buckets: Known::Present(500),
        stats: failed.map(stats).map_or_else(|| Known::because("denied"), Known::Present),
        cpus: Vec::new(),
    };
    node.put(second, SourceId::ConntrackUse, Fact::ConntrackUse(used));
}

fn failed_inserts(node: &mut Node, second: u64) -> Option<Finding> {
    let of_destination = |finding: &Finding| finding.subject != "conntrack";
    let mut all = node.report(second).findings.into_iter();
    all.find(|finding| finding.id == FindingId::ConntrackInsertFailed && of_destination(finding))
}

/// Exercises a node that is its own NAT and runs out. If this fails, connections that the kernel drops stay a riddle.
#[test]
fn a_destination_that_this_node_finds_no_port_for_is_named() {
    let mut node = Node::new();
    node.dump(1000, []);
    for (second, packets) in [(1000, 0), (1010, 20), (1020, 24), (1022, 24)] {
        dropped(&mut node, second, packets, Some(packets));
    }
    let finding = failed_inserts(&mut node, 1023).unwrap();
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.title.contains("finds no port for new connections to 203.0.113.7:443/tcp"), "{}", finding.title);
    assert!(finding.evidence[0].said.contains("24 packets") && finding.evidence.len() == 1, "{:?}", finding.evidence);
    assert_eq!(node.destination(1023, 443).no_port_total, Some(24));
    assert_eq!(node.report(1023).conntrack.no_port_total, Some(24));
    // Over after a minute.
    assert_eq!(failed_inserts(&mut node, 1090), None);
}

/// Exercises rules that drop packets behind the translation, by themselves and beside ports that ran out, and statistics that are
/// older, or not known. If this fails, a firewall's drops are a critical want of ports, or the other way round.
#[test]
fn drops_of_a_rule_behind_the_translation_are_no_want_of_ports() {
    let run = |packets: u64, failed: Option<u64>| {
        let mut node = Node::new();
        node.dump(1000, []);
        for (second, part) in [(1000, 0), (1010, packets), (1012, packets)] {
            dropped(&mut node, second, part, failed.map(|failed| if part > 0 { failed } else { 0 }));
        }
        let finding = failed_inserts(&mut node, 1013).unwrap();
        (finding.severity, finding.title, finding.evidence.last().unwrap().said.clone())
    };
    let (severity, title, bound) = run(50, Some(0));
    assert_eq!(severity, Severity::Info);
    assert_eq!(title, "a rule behind the translation of sources drops new connections to 203.0.113.7:443/tcp");
    assert!(bound.contains("failed to insert 0 entries") && bound.contains("of 50 packets 50 at least"), "{bound}");
    let (severity, title, bound) = run(50, Some(24));
    assert_eq!((severity, title.contains("no port, or a rule")), (Severity::Warning, true), "{title}");
    assert!(bound.contains("26 at least"), "{bound}");
    let (severity, _, bound) = run(50, Some(25));
    assert_eq!((severity, bound.contains("25 at least")), (Severity::Critical, true), "{bound}");
    let (severity, title, bound) = run(50, None);
    assert_eq!((severity, title.contains("no port, or a rule")), (Severity::Warning, true), "{title}");
    assert!(bound.contains("statistics could not be read"), "{bound}");

    // What was dropped since the statistics were read is not judged yet.
    let mut node = Node::new();
    node.dump(1000, []);
    dropped(&mut node, 1000, 0, Some(0));
    dropped(&mut node, 1010, 7, Some(0));
    assert_eq!(failed_inserts(&mut node, 1010), None);
}

#[test]
fn a_gateway_with_too_few_ips_is_found_with_the_number_that_fits() {
    let mut node = Node::new();
    node.policy.nat =
        Some(NatSettings { nat_ips: Some(1), nodes: Some(80), ..NatSettings::of(Profile::Gcp, Basis::Configured) });
    let report = node.report(1000);
    let finding = report.findings.iter().find(|finding| finding.id == FindingId::NatGatewayTooSmall).unwrap();
    assert!(finding.title.contains("63 nodes fit") && finding.title.contains("17 get no ports"), "{}", finding.title);
    assert!(finding.remedy.contains("2 NAT IPs") && finding.remedy.contains("1008 nodes fit"), "{}", finding.remedy);
    let dynamic = NatSettings {
        mode: Mode::Dynamic,
        min_ports: Some(64),
        max_ports: Some(1024),
        ..node.policy.nat.clone().unwrap()
    };
    node.policy.nat = Some(dynamic);
    assert!(node.report(1001).findings.iter().all(|finding| finding.id != FindingId::NatGatewayTooSmall));
}

/// Exercises the shorter timers of busy connections. If this fails, a connection with data under way looks silent for days
/// and is left out.
#[test]
fn a_connection_with_data_under_way_is_held() {
    let mut node = Node::new();
    node.dump(1_000_000, (1..=3).map(|port| entry(port, outside(443), ConntrackTcpState::Established, 299)));
    assert_eq!(node.destination(1_000_000, 443).held, 3);
    // Silent for 20 minutes and more: the NAT has forgotten it.
    let idle = entry(9, outside(80), ConntrackTcpState::Established, 432_000 - 1300);
    node.dump(1_000_000, [idle]);
    assert_eq!(node.destination(1_000_000, 80).held, 0);
}

#[test]
fn what_only_the_counters_know_is_absent_without_them() {
    let mut node = Node::new();
    node.dump(1000, [entry(1, outside(443), ConntrackTcpState::Established, 431_999)]);
    let row = node.destination(1000, 443);
    assert_eq!((row.held, row.failed_total, row.syn_unanswered_total), (1, None, None));
}

#[test]
fn udp_is_unknown_where_nothing_fills_the_conntrack_table() {
    let mut node = Node::new();
    node.dump(1000, []);
    assert_eq!(node.report(1000).nat.demand.udp.ports, Some(0));
    node.count(1000, [counter(3, 0, 0, 0)]);
    let demand = node.report(1000).nat.demand;
    assert_eq!((demand.tcp.ports, demand.udp.ports), (Some(3), None));
}

#[test]
fn demand_that_nobody_observed_is_unknown_not_zero() {
    let mut node = Node::new();
    for source in [SourceId::Tcp, SourceId::Conntrack, SourceId::Sockets] {
        node.put(1, source, Fact::Coverage(Known::Unknown(Why::new("not permitted"))));
    }
    let report = node.report(1000);
    assert_eq!(report.nat.demand.tcp.ports, None);
    assert_eq!(exit_code(&report.findings), 3);
}

/// Exercises the end of a pair. If this fails, ports that the NAT still holds are forgotten with it, or pairs pile up.
#[test]
fn a_pair_that_the_kernel_counts_no_longer_holds_its_ports_until_the_nat_frees_them() {
    let mut node = Node::new();
    node.count(990, [counter(0, 0, 0, 0)]);
    node.count(1000, [counter(3, 3, 0, 2)]);
    node.count(1010, []);
    let row = node.destination(1010, 443);
    assert_eq!((row.held, row.active, row.wanting, row.opened_total), (3, 0, 0, Some(3)));
    assert_eq!(node.destination(1119, 443).held, 3);
    assert_eq!(node.destination(1121, 443).held, 0);
    node.count(1151, []);
    assert!(node.report(1151).nat.destinations.is_empty());
}

/// Exercises a pair that was retired and is dialled again. If this fails, old connections are counted as new ones, or new
/// ones against old counts.
#[test]
fn a_pair_that_is_counted_anew_adds_to_what_is_remembered() {
    let mut node = Node::new();
    node.count(990, [counter(0, 0, 0, 0)]);
    node.count(1000, [counter(30, 30, 0, 2)]);
    // Retired and dialled again between two readings: it is there, with less than before.
    node.count(1010, [counter(5, 4, 0, 0)]);
    let row = node.destination(1010, 443);
    assert_eq!((row.held, row.active, row.opened_total, row.closed_total), (35, 1, Some(35), Some(34)));
    assert_eq!(row.failed_total, Some(2));
    assert_eq!(node.destination(1121, 443).held, 5);
}

/// Exercises a pair that comes back between two readings with as much as it had, or more. If this fails, its first connections of
/// the new counting are lost: it holds ports that nobody sees.
#[test]
fn a_pair_that_comes_back_with_as_much_as_before_is_told_by_its_birth() {
    for (again, closed) in [(1, 1), (9, 7)] {
        let mut node = Node::new();
        node.count(990, [TcpCounter { born: 4, ..counter(0, 0, 0, 0) }]);
        node.count(1000, [TcpCounter { born: 4, ..counter(1, 1, 0, 1) }]);
        let anew = TcpCounter { born: 5, ..counter(again, closed, 0, 1) };
        // A fact that is told twice is the same fact.
        for second in [1010, 1011] {
            node.count(second, [anew]);
            let row = node.destination(second, 443);
            assert_eq!(row.active, u32::try_from(again - closed).unwrap());
            assert_eq!(row.held, u32::try_from(1 + again).unwrap());
            assert_eq!((row.opened_total, row.closed_total), (Some(1 + again), Some(1 + closed)));
            assert_eq!(row.failed_total, Some(2));
        }
    }
}

/// Exercises a pair with closes that were missed, which comes back. If this fails, what a socket table corrected once is corrected for
/// ever.
#[test]
fn what_a_socket_table_corrected_ends_with_the_counting_that_it_corrected() {
    let mut node = Node::new();
    node.count(990, [TcpCounter { born: 4, ..counter(0, 0, 0, 0) }]);
    node.count(1000, [TcpCounter { born: 4, ..counter(10, 8, 0, 0) }]);
    sockets(&mut node, 1001, []);
    node.count(1002, [TcpCounter { born: 4, ..counter(10, 8, 0, 0) }]);
    assert_eq!(node.destination(1002, 443).active, 0);
    node.count(1010, [TcpCounter { born: 5, ..counter(12, 8, 0, 0) }]);
    assert_eq!(node.destination(1010, 443).active, 4);
}

/// Exercises causes. If this fails, a destination that refuses looks like one that is silent.
#[test]
fn failed_connects_are_told_apart_by_their_cause() {
    let mut node = Node::new();
    let failed =
        TcpCounter { attempted: 25, refused: 3, given_up: 2, unreachable: 1, no_local_port: 3, ..counter(0, 0, 0, 16) };
    node.count(1000, [counter(0, 0, 0, 0)]);
    node.count(1001, [failed]);
    let row = node.destination(1001, 443);
    assert_eq!(row.failed_total, Some(25));
    let causes = [row.refused_total, row.timed_out_total, row.unreachable_total, row.given_up_total];
    assert_eq!(causes, [Some(3), Some(16), Some(1), Some(2)]);
    assert_eq!(row.no_local_port_total, Some(3));
    let report = node.report(1001);
    let finding = report.findings.iter().find(|finding| finding.id == FindingId::NatSynUnanswered).unwrap();
    let said = "16 connects timed out, 3 were refused, 2 were given up, 1 found no way, 32 SYNs were repeated in the last minute";
    assert!(finding.evidence.iter().any(|evidence| evidence.said == said), "{finding:?}");
    assert!(finding.title.contains("19 connects failed"), "{}", finding.title);
}
