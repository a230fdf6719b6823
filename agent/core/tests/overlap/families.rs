//! NodePorts of one address family: rules and connections of the other have nothing to do with them.

use super::*;

fn of(family: RuleFamily) -> NodePort {
    NodePort { family, ..node_port(ServiceProxy::Cilium, 30_080) }
}

fn allocated_share(rule_of: RuleFamily, node_ports: Vec<NodePort>) -> Option<f64> {
    let mut rule = rule(1, Some(Protocol::TCP), None, RANDOM, 1.0);
    rule.place.family = rule_of;
    shares(&Node::with(vec![rule], node_ports).report(), Protocol::TCP).1
}

/// Exercises a node whose Services have NodePorts for IPv4 only, as most have. If this fails, IPv6 masquerading is warned about
/// where no IPv6 connection can collide.
#[test]
fn a_rule_gives_away_the_node_ports_of_its_family() {
    use RuleFamily::{Inet, Ip, Ip6};
    let one = 1.0 / 65_536.0;
    assert_near(allocated_share(Ip, vec![of(Ip)]), one);
    assert_near(allocated_share(Ip6, vec![of(Ip)]), 0.0);
    assert_near(allocated_share(Ip6, vec![of(Ip6)]), one);
    assert_near(allocated_share(Ip, vec![of(Inet)]), one);
    // Shown once for each family, as kube-proxy's two tables do.
    assert_near(allocated_share(Ip6, vec![of(Ip), of(Ip6)]), one);
    assert_near(allocated_share(Ip, vec![of(Ip), of(Ip6)]), one);
    // A connection of a rule for both is of one of them: the worse one counts, not both together.
    let other = NodePort { port: 30_081, ..of(Ip6) };
    let third = NodePort { port: 30_082, ..of(Ip6) };
    assert_near(allocated_share(Inet, vec![of(Ip), other, third]), 2.0 * one);
}

/// Exercises a rule in a table of both families that asks for one (`meta nfproto ipv4`). If this fails, it is judged by the other.
#[test]
fn a_rule_for_both_that_asks_for_one_family_is_of_that_one() {
    let mut rule = rule(1, Some(Protocol::TCP), None, RANDOM, 1.0);
    rule.place.family = RuleFamily::Inet;
    rule.conditions = vec!["IPv6".to_owned()];
    let share = |family| shares(&Node::with(vec![rule.clone()], vec![of(family)]).report(), Protocol::TCP).1;
    assert_near(share(RuleFamily::Ip), 0.0);
    assert_near(share(RuleFamily::Ip6), 1.0 / 65_536.0);
}

/// Exercises the severity. If this fails, a dual-stack node has a warning for connections that cannot be lost.
#[test]
fn masquerading_of_the_other_family_is_a_note() {
    let mut rule = rule(1, None, None, RANDOM, 1.0);
    rule.place.family = RuleFamily::Ip6;
    let mut node = Node::with(vec![rule], vec![of(RuleFamily::Ip)]);
    let found = node.masquerade();
    assert_eq!(found.severity, Severity::Info, "{}", found.title);
    assert!(found.title.contains("none of which is allocated that they get"), "{}", found.title);
    node.node_ports = vec![of(RuleFamily::Ip6)];
    assert_eq!(node.masquerade().severity, Severity::Warning);
    // What the user names is of both.
    node.node_ports = vec![of(RuleFamily::Ip)];
    node.policy.allocated_node_ports = vec![(Protocol::TCP, 30_080)];
    assert_eq!(node.masquerade().severity, Severity::Warning);
    assert_eq!(node.report().overlap.nodeports[0].family, RuleFamily::Inet);
}

/// Exercises captures of before families were told. If this fails, they cannot be read any more.
#[test]
fn a_node_port_without_a_family_is_of_both() {
    let old = r#"{"proxy":"cilium","protocol":"tcp","port":30080,"service":null}"#;
    let node_port: NodePort = serde_json::from_str(old).unwrap();
    assert_eq!(node_port.family, RuleFamily::Inet);
}

/// Exercises a reading that was cut short. If this fails, a NodePort loses the family that the part did not come to.
#[test]
fn a_part_of_a_reading_takes_no_family_away() {
    let node = Node::with(vec![], vec![of(RuleFamily::Ip), of(RuleFamily::Ip6)]);
    let mut ledger = node.ledger();
    let cut = Outcome::Partial(Why::new("cut"));
    let facts = [
        Fact::Begin(Snapshot::Services),
        Fact::NodePort(of(RuleFamily::Ip)),
        Fact::End { snapshot: Snapshot::Services, outcome: cut },
    ];
    for fact in facts {
        ledger.apply(Observation { at: NodeTime::from_secs(3), source: SourceId::Services, fact });
    }
    let allocated = AllocatedNodePorts::of(&ledger, &node.policy);
    assert!(allocated.get(RuleFamily::Ip6, Protocol::TCP, 30_080).is_some());
}
