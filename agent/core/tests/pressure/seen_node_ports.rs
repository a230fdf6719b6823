//! Live proof against NodePorts that this node showed: whose they are, and who loses answers to them.

use headroom_core::observe::{NodePort, RuleFamily};

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
