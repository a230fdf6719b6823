//! The NodePort range, the ports that programs draw from, and what keeps the two apart.

use super::*;

/// Exercises a cluster with another range. If this fails, its NodePorts are outside of all that is looked at.
#[test]
fn the_range_widens_to_what_is_seen_outside_of_it_unless_it_was_given() {
    let mut node = Node::with(vec![], vec![node_port(ServiceProxy::Iptables, 20_000)]);
    let overlap = node.report().overlap;
    assert_eq!((overlap.node_port_range, overlap.node_port_basis), (range("20000-32767"), NodePortBasis::Observed));
    // Ports that the user names may be any, and IPVS takes for NodePorts what is in the range.
    node.node_ports = vec![node_port(ServiceProxy::Ipvs, 20_000)];
    node.policy.allocated_node_ports = vec![(Protocol::TCP, 443)];
    assert_eq!(node.report().overlap.node_port_range, PortRange::NODE_PORTS);
    let assumed = |node: &Node| {
        let ephemeral = node.findings(FindingId::EphemeralOverlapsNodeport).remove(0);
        ephemeral.evidence.iter().any(|evidence| evidence.said.contains("is assumed: Kubernetes' default"))
    };
    node.namespaces = vec![namespace(true, "1024-65535", "")];
    assert!(assumed(&node));
    node.policy.node_ports_given = true;
    assert!(!assumed(&node));
    assert_eq!(node.report().overlap.node_port_basis, NodePortBasis::Configured);
    assert_eq!(node.report().overlap.node_port_range, PortRange::NODE_PORTS);
}

/// Exercises what a proxy says itself. If this fails, a default stands in for what is known.
#[test]
fn the_range_that_a_proxy_was_configured_with_is_not_assumed_and_yields_to_the_users() {
    let mut node = Node::with(vec![], vec![node_port(ServiceProxy::Cilium, 20_500)]);
    let judged = |node: &Node| {
        let mut ledger = node.ledger();
        for fact in [
            Fact::Begin(Snapshot::Services),
            Fact::NodePortRange(range("20000-22767")),
            Fact::End { snapshot: Snapshot::Services, outcome: Outcome::Partial(Why::new("cut")) },
        ] {
            ledger.apply(Observation { at: NodeTime::from_secs(1), source: SourceId::Services, fact });
        }
        let allocated = AllocatedNodePorts::of(&ledger, &node.policy);
        allocated.range(&node.policy)
    };
    assert_eq!(judged(&node), (range("20000-22767"), NodePortBasis::Proxy));
    (node.policy.node_ports, node.policy.node_ports_given) = (range("25000-26000"), true);
    assert_eq!(judged(&node), (range("25000-26000"), NodePortBasis::Configured));
}

/// Exercises the fix. If this fails, following the advice gives reserved ports away.
#[test]
fn the_fix_keeps_what_is_reserved_and_harmless_proxies_make_it_a_note() {
    let mut node = Node::with(vec![], vec![]);
    node.namespaces = vec![namespace(true, "1024-65535", "8080,9148")];
    let finding = node.findings(FindingId::EphemeralOverlapsNodeport).remove(0);
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.remedy.contains("net.ipv4.ip_local_reserved_ports=8080,9148,30000-32767 "), "{}", finding.remedy);
    node.node_ports = vec![node_port(ServiceProxy::Nftables, 30_080)];
    let finding = node.findings(FindingId::EphemeralOverlapsNodeport).remove(0);
    assert_eq!(finding.severity, Severity::Info);
}

/// Exercises ranges that leave nothing beside them. If this fails, the fix takes every port from the node.
#[test]
fn a_fix_that_leaves_no_port_to_draw_from_is_not_offered() {
    let fix = |node_ports: &str, ephemeral: &str| {
        let mut node = Node::with(vec![], vec![]);
        (node.policy.node_ports, node.policy.node_ports_given) = (range(node_ports), true);
        node.namespaces = vec![namespace(true, ephemeral, "")];
        node.findings(FindingId::EphemeralOverlapsNodeport).remove(0).remedy
    };
    assert_eq!(fix("30000-65535", "32768-60999"), "move ip_local_port_range below 30000");
    assert!(fix("1-65535", "32768-60999").starts_with("give the cluster a smaller NodePort range"));
    assert!(
        fix("30000-32767", "30000-40000")
            .contains("reserved_ports=30000-32767, and the same in /etc/sysctl.d; or move")
    );
    let mut node = Node::with(vec![rule(1, None, None, RANDOM, 1.0)], vec![]);
    (node.policy.node_ports, node.policy.node_ports_given) = (range("1-65535"), true);
    assert!(node.masquerade().remedy.starts_with("no port lies beside the NodePorts 1-65535"));
}
