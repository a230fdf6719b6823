//! Live proof against NodePorts that this node showed: whose they are, and who loses answers to them.

use headroom_core::observe::{Namespace, NodePort, RuleFamily};

use super::*;

/// What tables of this node's proxy show.
fn shows(node: &mut Node, node_ports: &[NodePort]) {
    node.put(1, SourceId::Services, Fact::Begin(Snapshot::Services));
    for node_port in node_ports {
        node.put(1, SourceId::Services, Fact::ServiceProxy(node_port.proxy));
        node.put(1, SourceId::Services, Fact::NodePort(node_port.clone()));
    }
    node.put(1, SourceId::Services, Fact::End { snapshot: Snapshot::Services, outcome: Outcome::Complete });
    for source in [SourceId::Services, SourceId::Rules, SourceId::Conntrack] {
        let detail = CoverageDetail { how: "test".to_owned(), degraded: None, as_of_dump: false };
        node.put(1, source, Fact::Coverage(Known::Present(detail)));
    }
}

fn node_port(proxy: ServiceProxy, family: RuleFamily) -> NodePort {
    NodePort { proxy, family, protocol: Protocol::TCP, port: 30_080, service: None }
}

/// Exercises a connection over IPv6 where only IPv4 has NodePorts. If this fails, a firewall's silence is a CRITICAL about NodePorts.
#[test]
fn a_connection_collides_with_node_ports_of_its_family() {
    let pod = IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, 2]);
    let v6 = |port: u16, to: u16, tcp| {
        let mut entry = entry(pod, port, Some(tcp), 110);
        let there = Endpoint::new(IpAddr::from([0xfd02, 0, 0, 0, 0, 0, 0, 2]), 80);
        (entry.destination, entry.key.dialled) = (there, there);
        entry.translated = Endpoint::new(IpAddr::from([0xfd02, 0, 0, 0, 0, 0, 0, 1]), to);
        entry
    };
    let mut node = Node::new(LedgerLimits::default());
    let entries = [v6(40_000, 30_080, ConntrackTcpState::SynSent), v6(40_001, 50_000, ConntrackTcpState::Established)];
    node.dump(2, entries, Outcome::Complete);
    let mut found = |family| {
        shows(&mut node, &[node_port(ServiceProxy::Cilium, family)]);
        let report = node.report(2);
        let severity = finding(&report, FindingId::NodeportCollision).map(|found| found.severity);
        (report.overlap.live.in_node_port_range, report.overlap.live.colliding, severity)
    };
    assert_eq!(found(RuleFamily::Ip), (Some(1), Some(0), None));
    assert_eq!(found(RuleFamily::Ip6), (Some(1), Some(1), Some(Severity::Critical)));
    assert_eq!(found(RuleFamily::Inet), (Some(1), Some(1), Some(Severity::Critical)));
}

const NODE: [u8; 4] = [10, 0, 0, 2];

/// The node's own addresses become known.
fn has_addresses(node: &mut Node) {
    let namespace = Namespace {
        inode: NetnsInode(1),
        host: true,
        pid: None,
        addresses: Known::Present(vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(NODE)]),
        ports: Known::Absent,
        keepalive: Known::Absent,
    };
    node.put(1, SourceId::Namespaces, Fact::Begin(Snapshot::Namespaces));
    node.put(1, SourceId::Namespaces, Fact::Namespace(namespace));
    node.put(1, SourceId::Namespaces, Fact::End { snapshot: Snapshot::Namespaces, outcome: Outcome::Complete });
}

/// A connection that the node itself opened from a port, and what was made of that on its way.
fn own(from: u16, to: u16, tcp: ConntrackTcpState) -> ConntrackEntry {
    let mut entry = entry(NODE.into(), from, Some(tcp), 110);
    entry.translated.port = to;
    entry
}

fn live_of(node: &mut Node, proxy: ServiceProxy) -> (Report, Option<u64>, Option<u64>, Option<Severity>) {
    shows(node, &[node_port(proxy, RuleFamily::Ip)]);
    let report = node.report(2);
    let severity = finding(&report, FindingId::NodeportCollision).map(|found| found.severity);
    let live = &report.overlap.live;
    let (own, colliding) = (live.own_in_node_port_range, live.colliding);
    (report, own, colliding, severity)
}

/// Exercises connections that nobody translates. If this fails, a node whose own source ports reach into the NodePorts loses
/// connections, and the report says that none collides.
#[test]
fn a_connection_of_the_node_itself_collides_without_being_translated() {
    use ConntrackTcpState as Tcp;
    let entries = || {
        [
            own(30_080, 30_080, Tcp::SynSent),
            own(30_082, 30_082, Tcp::Established),
            own(40_000, 40_000, Tcp::Established),
            // Somebody else's, from outside.
            entry([198, 51, 100, 1].into(), 30_080, Some(Tcp::Established), 110),
        ]
    };
    let mut node = Node::new(LedgerLimits::default());
    has_addresses(&mut node);
    node.dump(
        2,
        entries().map(|mut entry| {
            entry.translated = Endpoint::new(entry.key.source.address, entry.translated.port);
            entry
        }),
        Outcome::Complete,
    );
    let (report, own_inside, colliding, severity) = live_of(&mut node, ServiceProxy::Cilium);
    assert_eq!((own_inside, colliding, severity), (Some(2), Some(1), Some(Severity::Critical)));
    let live = &report.overlap.live;
    // They are not translated, and do not count as such.
    assert_eq!((live.translated, live.in_node_port_range), (Some(0), Some(0)));
    let [row] = live.flows.as_slice() else { panic!("{live:?}") };
    assert_eq!((row.host, row.in_node_port_range, row.others_answered), (true, 2, 3));
    assert_eq!((row.ports[0].port, row.ports[0].translated), (30_080, false));
    let found = finding(&report, FindingId::NodeportCollision).unwrap();
    assert!(found.title.starts_with("the node itself gets no answer on 1 connection"), "{}", found.title);
    assert!(found.remedy.contains("let the program that binds such a port take another"), "{}", found.remedy);
    assert!(!found.remedy.contains("ip-masq-agent"), "{}", found.remedy);
    // kube-proxy's rules let answers pass.
    assert_eq!(live_of(&mut node, ServiceProxy::Iptables).3, None);
}

/// Exercises IPVS. If this fails, harmless connections of pods are warned about, and those that break are not seen.
#[test]
fn ipvs_spares_pods_and_takes_the_node_by_the_port_it_opened_from() {
    use ConntrackTcpState as Tcp;
    let mut of_pod = entry(POD, 40_000, Some(Tcp::SynSent), 110);
    of_pod.translated.port = 30_080;
    let answered = own(40_001, 40_001, Tcp::Established);
    let mut node = Node::new(LedgerLimits::default());
    has_addresses(&mut node);
    node.dump(2, [of_pod, answered], Outcome::Complete);
    let (report, own_inside, colliding, severity) = live_of(&mut node, ServiceProxy::Ipvs);
    assert_eq!((own_inside, colliding, severity), (Some(0), Some(0), None), "{:?}", report.overlap.live);
    assert_eq!(live_of(&mut node, ServiceProxy::Cilium).2, Some(1));

    // The node's own, with another port on the wire: IPVS sees it after it was translated back, Cilium before.
    node.dump(2, [own(30_080, 45_000, Tcp::SynSent), answered], Outcome::Complete);
    let (_, own_inside, colliding, severity) = live_of(&mut node, ServiceProxy::Ipvs);
    assert_eq!((own_inside, colliding, severity), (Some(1), Some(1), Some(Severity::Critical)));
    let (_, own_inside, colliding, severity) = live_of(&mut node, ServiceProxy::Cilium);
    assert_eq!((own_inside, colliding, severity), (Some(0), Some(0), None));
    // Conntrack has seen the answer that IPVS took, and the one who waits for it has not.
    let taken = ConntrackEntry { replied: true, remaining_secs: Some(55), ..own(30_080, 30_080, Tcp::SynRecv) };
    node.dump(2, [taken, answered], Outcome::Complete);
    assert_eq!(live_of(&mut node, ServiceProxy::Ipvs).3, Some(Severity::Critical));
    // And one that was given the NodePort on its way (kubernetes issue 139276).
    node.dump(2, [own(40_000, 30_080, Tcp::SynSent), answered], Outcome::Complete);
    assert_eq!(live_of(&mut node, ServiceProxy::Ipvs).3, Some(Severity::Critical));
}

/// Exercises a node whose addresses are not known, or only after the dump. If this fails, "could not tell" becomes "none".
#[test]
fn whose_connections_they_are_is_known_once_the_nodes_addresses_are() {
    let untranslated = || [own(30_080, 30_080, ConntrackTcpState::Established)];
    let mut node = Node::new(LedgerLimits::default());
    let of_cilium = |node: &mut Node| {
        let (_, own_inside, colliding, severity) = live_of(node, ServiceProxy::Cilium);
        (own_inside, colliding, severity)
    };
    node.dump(2, untranslated(), Outcome::Complete);
    assert_eq!(of_cilium(&mut node), (None, Some(0), None));
    has_addresses(&mut node);
    assert_eq!(of_cilium(&mut node), (Some(1), Some(1), Some(Severity::Warning)));
    // As they come and go between two dumps; loopback and the node's own addresses are not beyond it.
    let mut within = own(30_080, 30_080, ConntrackTcpState::Established);
    (within.id, within.destination) = (7, Endpoint::new(NODE.into(), 80));
    node.put(3, SourceId::Conntrack, Fact::FlowEnded(untranslated()[0]));
    node.put(3, SourceId::Conntrack, Fact::Flow(within));
    assert_eq!(of_cilium(&mut node), (Some(0), Some(0), None));
    node.put(3, SourceId::Conntrack, Fact::Flow(ConntrackEntry { id: 8, ..untranslated()[0] }));
    assert_eq!(of_cilium(&mut node), (Some(1), Some(1), Some(Severity::Warning)));
}
