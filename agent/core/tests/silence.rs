//! Connections that fall silent: what the NAT forgets, and whether keepalive prevents it.

use headroom_core::findings::{Finding, FindingId, Severity};
use headroom_core::flow::Endpoint;
use headroom_core::ids::NetnsInode;
use headroom_core::known::Known;
use headroom_core::observe::{ConntrackTcpState, Keepalive, Namespace, Socket, SocketState, SocketTimer};
use headroom_core::report::Report;

#[path = "node/pods.rs"]
mod node;

use node::{Node, POD, counter, entry, namespaces, outside, sockets, udp};

fn finding(report: &Report) -> Option<&Finding> {
    report.findings.iter().find(|finding| finding.id == FindingId::NatIdleTimeoutExceedsKeepalive)
}

fn evidence(finding: &Finding) -> String {
    finding.evidence.iter().map(|evidence| evidence.said.as_str()).collect::<Vec<_>>().join("\n")
}

fn open(source_port: u16, timer: SocketTimer) -> Socket {
    let source = Endpoint::new(POD, source_port);
    Socket { netns: NetnsInode(7), source, destination: outside(443), state: SocketState::Open, timer, accepted: false }
}

/// The pod's network namespace, with that tcp_keepalive_time.
fn pod(time_secs: u32) -> Namespace {
    Namespace {
        inode: NetnsInode(7),
        host: false,
        pid: Some(1),
        addresses: Known::Present(vec![POD]),
        ports: Known::Absent,
        keepalive: Known::Present(Keepalive { time_secs }),
    }
}

/// Established, and silent for so many seconds (the node's own time-out is five days).
fn silent(source_port: u16, secs: u32) -> headroom_core::observe::ConntrackEntry {
    entry(source_port, outside(443), ConntrackTcpState::Established, 432_000 - secs)
}

/// Exercises sockets that a program forgot to close. If this fails, keepalive and a longer idle time are advised, which help nothing.
#[test]
fn what_is_closed_on_one_side_is_not_what_keepalive_would_have_kept() {
    let mut node = Node::new();
    // The node's own time-out is a minute.
    let left = |port| entry(port, outside(443), ConntrackTcpState::CloseWait, 10);
    node.dump(2000, [left(1), left(2)]);
    let report = node.report(2000);
    assert_eq!(report.nat.destinations.first().unwrap().forgotten, Some(2));
    assert_eq!(finding(&report), None);

    node.dump(2001, [left(1), left(2), silent(3, 1300)]);
    let report = node.report(2001);
    let found = finding(&report).unwrap();
    assert!(found.title.contains("dropped 1 of 1 connections to 203.0.113.7:443/tcp"), "{}", found.title);
    assert!(evidence(found).contains("2 connections closed on one side alone"), "{}", evidence(found));
}

/// Exercises the accounting of silence. If this fails, a pool of dead connections looks like used ports, or nobody hears why
/// their next use fails.
#[test]
fn what_the_nat_has_dropped_is_told_with_pod_keepalive_and_the_exact_change() {
    let mut node = Node::new();
    node.dump(2000, [silent(1, 1300), silent(2, 1250), silent(3, 10)]);
    sockets(&mut node, 2000, [1, 2, 3].map(|port| open(port, SocketTimer::None)));
    namespaces(&mut node, 2000, [pod(7200)]);
    let report = node.report(2000);
    let row = report.nat.destinations.first().unwrap();
    assert_eq!((row.held, row.active, row.forgotten, row.pods[0].forgotten), (1, 1, Some(2), 2));
    assert_eq!(report.nat.demand.tcp.ports, Some(1), "the NAT has given those ports back");
    assert_eq!((report.nat.pods[0].held, report.nat.pods[0].forgotten), (1, 2));
    let finding = finding(&report).unwrap();
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.title.contains("2 of 3 connections to 203.0.113.7:443/tcp"), "{}", finding.title);
    let said = evidence(finding);
    for part in ["3 of its sockets send no keepalive probes", "tcp_keepalive_time of 10.64.0.5 is 7200 s", "2 dropped"]
    {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    assert!(finding.remedy.contains("net.ipv4.tcp_keepalive_time=600"), "{}", finding.remedy);
    assert!(finding.remedy.contains("\ngcloud: gcloud compute routers nats update NAT"), "{}", finding.remedy);
}

/// Exercises a node that is low on ports at the same time. If this fails, one finding is settled at the cost of the other.
#[test]
fn a_nat_is_not_to_wait_longer_where_ports_run_low() {
    let remedy = |busy: u16| {
        let mut node = Node::new();
        node.dump(2000, (1..=busy).map(|port| silent(port, 10)).chain([silent(2000, 1300)]));
        finding(&node.report(2000)).unwrap().remedy.clone()
    };
    assert!(remedy(40).contains("tcp_established_idle_timeout_sec = 2400"), "{}", remedy(40));
    assert!(remedy(60).contains("and these run low") && !remedy(60).contains("terraform"), "{}", remedy(60));
}

/// The same where the TCP counters do the accounting: they know that the connections are open, conntrack that they are silent.
#[test]
fn the_counters_and_the_table_agree_on_what_is_forgotten() {
    let mut node = Node::new();
    node.count(100, [counter(0, 0, 0, 0)]);
    node.count(200, [counter(3, 0, 0, 0)]);
    node.dump(2000, [silent(1, 1300), silent(2, 1250), silent(3, 10)]);
    let row = node.destination(2000, 443);
    assert_eq!((row.held, row.active, row.forgotten), (1, 1, Some(2)));
}

#[test]
fn keepalive_that_comes_in_time_is_no_finding_and_one_that_does_not_is_worth_knowing() {
    let report = |secs: u32, timer: SocketTimer, time_secs: u32| {
        let mut node = Node::new();
        node.dump(2000, [silent(1, secs)]);
        sockets(&mut node, 2000, [open(1, timer)]);
        namespaces(&mut node, 2000, [pod(time_secs)]);
        node.report(2000)
    };
    let probes = |secs: u32| SocketTimer::Keepalive { remaining_millis: secs * 1000 };
    // Busy enough, whatever keepalive does.
    assert!(finding(&report(500, SocketTimer::None, 7200)).is_none());
    // Silent for 700 of 1200 seconds; the next probe comes in 60.
    assert!(finding(&report(700, probes(60), 300)).is_none());
    // It comes in 6500.
    let late = report(700, probes(6500), 7200);
    let late = finding(&late).unwrap();
    assert_eq!(late.severity, Severity::Info);
    assert!(evidence(late).contains("the next in up to 6500 s"), "{}", evidence(late));
}

#[test]
fn silent_udp_holds_no_port_and_is_no_finding() {
    let mut node = Node::new();
    // A stream: the node keeps it for 120 s, the NAT for 30 s; silent for 60.
    node.dump(2000, [udp(1, 60, true)]);
    let report = node.report(2000);
    let row = report.nat.destinations.first().unwrap();
    assert_eq!((row.held, row.forgotten), (0, Some(1)));
    assert!(finding(&report).is_none());
}

#[test]
fn without_conntrack_silence_is_not_zero_but_unknown() {
    let mut node = Node::new();
    node.count(100, [counter(0, 0, 0, 0)]);
    node.count(200, [counter(3, 0, 0, 0)]);
    assert_eq!(node.destination(2000, 443).forgotten, None);
}
