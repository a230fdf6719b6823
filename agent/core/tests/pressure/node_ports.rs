//! Live proof: flows whose translated source port is in the NodePort range.

use super::*;

/// NodePorts that somebody was given by the user, behind this proxy.
fn allocated(proxy: Option<ServiceProxy>) -> Policy {
    let ports = (30_000..30_100).map(|port| (Protocol::TCP, port)).collect();
    Policy { allocated_node_ports: ports, service_proxy: proxy, ..Policy::default() }
}

/// A connection of the pod that left the node with this source port.
fn translated(port: u16, to: u16, tcp: ConntrackTcpState, remaining: u32) -> ConntrackEntry {
    let mut entry = entry(POD, port, Some(tcp), remaining);
    entry.translated.port = to;
    entry
}

/// Exercises the live proof. If this fails, a connection that times out now and then stays a riddle.
#[test]
fn a_connection_without_an_answer_on_an_allocated_node_port_is_named_with_port_and_pod() {
    use ConntrackTcpState as Tcp;
    let entries = || {
        [
            // Allocated, its last SYN 5 s ago; allocated and answered; in the range and not allocated; outside of it.
            translated(40_000, 30_007, Tcp::SynSent, 115),
            translated(40_001, 30_009, Tcp::Established, 431_000),
            translated(40_002, 31_000, Tcp::SynSent, 100),
            translated(40_003, 50_000, Tcp::Established, 431_000),
        ]
    };
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 4, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    node.dump(2, entries(), Outcome::Complete);
    let report = node.report_by(2, &allocated(Some(ServiceProxy::Cilium)));
    let live = &report.overlap.live;
    assert_eq!((live.translated, live.in_node_port_range), (Some(4), Some(3)));
    assert_eq!((live.colliding, live.unanswered), (Some(2), Some(1)));
    let [row] = live.flows.as_slice() else { panic!("{live:?}") };
    assert_eq!(
        (row.name.as_deref(), row.in_node_port_range, row.colliding, row.unanswered),
        (Some("checkout"), 3, Some(2), 1)
    );
    assert_eq!(
        (row.ports[0].port, row.ports[0].answered, row.ports[0].unanswered_secs),
        (30_007, Some(false), Some(5))
    );
    assert_eq!((row.ports[1].port, row.ports[1].answered, row.ports[1].unanswered_secs), (30_009, Some(true), None));
    let found = finding(&report, FindingId::NodeportCollision).unwrap();
    assert_eq!(found.severity, Severity::Critical);
    assert_eq!(
        found.title,
        "shop/checkout gets no answer on 1 connection whose source port is an allocated NodePort: 30007"
    );
    assert!(said(found).contains("unanswered for 5 s"), "{}", said(found));

    // Not known who serves them: worth a warning. kube-proxy's rules let answers pass: no finding.
    let report = node.report_by(2, &allocated(None));
    assert_eq!(finding(&report, FindingId::NodeportCollision).map(|found| found.severity), Some(Severity::Warning));
    let report = node.report_by(2, &allocated(Some(ServiceProxy::Iptables)));
    assert_eq!(finding(&report, FindingId::NodeportCollision), None);
    // Nothing is known of NodePorts: that is not zero.
    let report = node.report(2);
    assert_eq!((report.overlap.live.colliding, report.overlap.live.unanswered), (None, None));
}

/// Exercises the node's own connections, of which masquerading changes the port alone. If this fails, each that lands in the range
/// is told as if none had landed elsewhere.
#[test]
fn flows_of_the_node_itself_count_wherever_their_port_landed() {
    let own = |port: u16, to: u16| {
        let mut entry = translated(port, to, ConntrackTcpState::Established, 431_000);
        entry.key.source.address = entry.translated.address;
        entry
    };
    let count = |node: &mut Node, second| {
        let live = node.report_by(second, &allocated(None)).overlap.live;
        (live.translated, live.in_node_port_range)
    };
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 4, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    // In the range, outside of it, and as it was: not translated.
    let entries = || [own(40_000, 31_000), own(40_001, 50_000), own(40_002, 50_001), own(40_003, 40_003)];
    node.dump(2, entries(), Outcome::Complete);
    assert_eq!(count(&mut node, 2), (Some(3), Some(1)));
    node.put(3, SourceId::Conntrack, Fact::Flow(own(40_004, 50_002)));
    node.put(3, SourceId::Conntrack, Fact::FlowEnded(own(40_001, 50_000)));
    node.put(3, SourceId::Conntrack, Fact::FlowEnded(own(40_000, 31_000)));
    assert_eq!(count(&mut node, 3), (Some(2), Some(0)));
    // A dump in part shows no less than what is known.
    node.dump(4, entries().into_iter().take(1), Outcome::Partial(headroom_core::known::Why::new("torn")));
    assert_eq!(count(&mut node, 4).0, Some(2));
    node.dump(5, [], Outcome::Complete);
    assert_eq!(count(&mut node, 5), (Some(0), Some(0)));
}

/// Exercises destinations that answer nobody. If this fails, one that is down, or one-way UDP, is a CRITICAL about NodePorts.
#[test]
fn a_destination_that_answers_nobody_is_no_evidence_of_a_collision() {
    let udp = |port: u16, to: u16, replied: bool| {
        let mut entry = entry(POD, port, None, 25);
        (entry.translated.port, entry.replied) = (to, replied);
        entry
    };
    let found = |protocol, entries: Vec<ConntrackEntry>| {
        let ports = (30_000..30_100).map(|port| (protocol, port)).collect();
        let policy = Policy { allocated_node_ports: ports, ..allocated(Some(ServiceProxy::Cilium)) };
        let mut node = Node::new(LedgerLimits::default());
        node.used(1, 20, ConntrackStats::ZERO);
        sockets(&mut node, 1, 0);
        node.dump(2, entries, Outcome::Complete);
        finding(&node.report_by(2, &policy), FindingId::NodeportCollision).cloned().unwrap()
    };
    let nobody = "with other source ports nobody has an answer either";
    let dead = (1..20).map(|port| translated(40_000 + port, 50_000 + port, ConntrackTcpState::SynSent, 115));
    let dead =
        found(Protocol::TCP, dead.chain([translated(40_000, 30_007, ConntrackTcpState::SynSent, 115)]).collect());
    assert_eq!(dead.severity, Severity::Info);
    assert_eq!(
        dead.title,
        "shop/checkout waits for 203.0.113.7:443/tcp, which answers nobody, on 1 connection whose source port happens to be \
         an allocated NodePort: 30007"
    );
    assert!(said(&dead).contains(nobody), "{}", said(&dead));
    assert!(dead.remedy.starts_with("look at the destination first"), "{}", dead.remedy);
    let one_way = |replied: u16| {
        let others = (1..20).map(|port| udp(40_000 + port, 50_000 + port, port <= replied));
        others.chain([udp(40_000, 30_007, false)]).collect()
    };
    let silent = found(Protocol::UDP, one_way(0));
    assert_eq!((silent.severity, said(&silent).contains(nobody)), (Severity::Info, true), "{}", said(&silent));
    let answering = found(Protocol::UDP, one_way(3));
    assert_eq!(answering.severity, Severity::Critical);
    assert!(said(&answering).contains("with other source ports it answers, 3 have an answer"), "{}", said(&answering));
}

/// Exercises a cluster with another range. If this fails, its fix leads into the NodePorts.
#[test]
fn the_fix_of_a_collision_leaves_the_given_range_out() {
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 1, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    node.dump(2, [translated(40_000, 32_000, ConntrackTcpState::Established, 431_000)], Outcome::Complete);
    let mut fix = |range: &str| {
        let policy = Policy {
            node_ports: range.parse().unwrap(),
            node_ports_given: true,
            allocated_node_ports: vec![(Protocol::TCP, 32_000)],
            service_proxy: Some(ServiceProxy::Cilium),
            ..Policy::default()
        };
        finding(&node.report_by(2, &policy), FindingId::NodeportCollision).unwrap().remedy.clone()
    };
    assert!(fix("31000-33500").contains("--to-ports 1024-30999,33501-65535 (2.12"), "{}", fix("31000-33500"));
    assert!(fix("31000-33500").ends_with("add --to-ports 33501-65535"), "{}", fix("31000-33500"));
    assert!(fix("1-65535").ends_with("no port lies beside 1-65535"), "{}", fix("1-65535"));
}

#[test]
fn a_connection_that_has_just_begun_is_not_unanswered_and_one_that_stays_so_is() {
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 1, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    let policy = allocated(Some(ServiceProxy::Cilium));
    let young = [translated(40_000, 30_007, ConntrackTcpState::SynSent, 120)];
    node.dump(2, young, Outcome::Complete);
    let report = node.report_by(2, &policy);
    assert_eq!((report.overlap.live.colliding, report.overlap.live.unanswered), (Some(1), Some(0)));
    let found = finding(&report, FindingId::NodeportCollision).unwrap();
    assert_eq!(found.severity, Severity::Warning, "{found:?}");
    // Its SYN was repeated a moment ago, but it has been seen for three seconds.
    node.dump(5, young, Outcome::Complete);
    let report = node.report_by(5, &policy);
    assert_eq!(report.overlap.live.unanswered, Some(1));
    assert_eq!(report.overlap.live.flows[0].ports[0].unanswered_secs, Some(3));
    // It is gone with the next dump.
    node.dump(6, [], Outcome::Complete);
    assert_eq!(node.report_by(6, &policy).overlap.live.colliding, Some(0));
}

/// Exercises dumps that leave TCP out. If this fails, a TCP connection on a NodePort vanishes with the next of them, or a
/// datagram's flow whose end was lost stays until the next dump of everything.
#[test]
fn a_dump_of_udp_replaces_flows_of_udp_on_node_ports_and_no_others() {
    let udp = |port: u16| {
        let mut entry = entry(POD, port, None, 25);
        entry.translated.port = port - 10_000;
        entry
    };
    let tcp = || translated(40_000, 30_007, ConntrackTcpState::SynSent, 115);
    let ports = |node: &Node| {
        let flows = node.0.conntrack().node_port_flows();
        let mut ports: Vec<u16> = flows.iter().map(|(_, _, flow)| flow.translated.port).collect();
        ports.sort_unstable();
        let by_pair: u32 = node.0.conntrack().in_node_ports_by_pair().map(|(_, count)| count).sum();
        assert_eq!(usize::try_from(by_pair).unwrap(), ports.len());
        ports
    };
    let why = || headroom_core::known::Why::new("test");
    let mut node = Node::new(LedgerLimits::default());
    node.dump(1, [tcp(), udp(40_010), udp(40_011)], Outcome::Complete);
    assert_eq!(ports(&node), [30_007, 30_010, 30_011]);
    node.dump_of(Snapshot::ConntrackUdp, 2, [udp(40_012)], Outcome::Failed(why()));
    assert_eq!(ports(&node), [30_007, 30_010, 30_011]);
    node.dump_of(Snapshot::ConntrackUdp, 3, [udp(40_011), udp(40_012)], Outcome::Complete);
    assert_eq!(ports(&node), [30_007, 30_011, 30_012]);
    // One that was there is the same flow.
    let since = |port: u16| {
        let mut flows = node.0.conntrack().node_port_flows().iter();
        flows.find(|(_, _, flow)| flow.translated.port == port).map(|(_, _, flow)| flow.seen)
    };
    let at = NodeTime::from_secs;
    assert_eq!((since(30_011), since(30_007)), (Some((at(1), at(3))), Some((at(1), at(1)))));
    node.dump(4, [udp(40_012)], Outcome::Complete);
    assert_eq!(ports(&node), [30_012]);
}

/// Exercises the bound of flows told one by one, with dumps of UDP.
#[test]
fn node_port_flows_beyond_the_bound_are_counted_once_by_dumps_of_udp() {
    let udp = |number: u16| {
        let mut entry = entry(POD, number, None, 25);
        entry.translated.port = 30_000 + number % 2768;
        entry
    };
    let mut node = Node::new(LedgerLimits::default());
    let bound = 8192;
    node.dump(1, [translated(40_000, 30_007, ConntrackTcpState::SynSent, 115)], Outcome::Complete);
    for second in [2, 3] {
        node.dump_of(Snapshot::ConntrackUdp, second, (0..bound + 3).map(udp), Outcome::Complete);
        let flows = node.0.conntrack().node_port_flows();
        assert_eq!((flows.iter().count(), flows.untold()), (usize::from(bound), 4));
        let how = CoverageDetail { how: "test".to_owned(), degraded: None, as_of_dump: false };
        node.put(second, SourceId::Conntrack, Fact::Coverage(Known::Present(how)));
        let policy = Policy {
            allocated_node_ports: vec![(Protocol::UDP, 30_001)],
            service_proxy: Some(ServiceProxy::Cilium),
            ..Policy::default()
        };
        let report = node.report_by(second, &policy);
        assert_eq!(report.overlap.live.not_told_apart, 4);
        let found = finding(&report, FindingId::NodeportCollision).unwrap();
        assert!(said(found).contains("4 more flows in the range were not looked at"), "{}", said(found));
    }
}
