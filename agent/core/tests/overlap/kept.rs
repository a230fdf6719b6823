//! Rules that keep ports: those that connect() hands out first, and those of the node itself.

use super::*;

fn keeping(conditions: &[&str], protocol: Option<Protocol>) -> SourceNatRule {
    let conditions = conditions.iter().map(|said| (*said).to_owned()).collect();
    SourceNatRule { conditions, ..rule(1, protocol, None, PortChoice::Keep, 1.0) }
}

/// A node whose pods and whose own connections have these ports.
fn node(rule: SourceNatRule, own: &str, pods: &[&str], node_ports: &[(Protocol, u16)]) -> Node {
    let port =
        |(protocol, port): &(Protocol, u16)| NodePort { protocol: *protocol, ..node_port(ServiceProxy::Cilium, *port) };
    let mut node = Node::with(vec![rule], node_ports.iter().map(port).collect());
    node.namespaces = vec![namespace(true, own, "")];
    node.namespaces.extend((2..).zip(pods).map(|(inode, ephemeral)| match namespace(false, ephemeral, "") {
        Fact::Namespace(namespace) => Fact::Namespace(Namespace { inode: NetnsInode(inode), ..namespace }),
        other => other,
    }));
    node
}

fn why(report: &Report, protocol: Protocol) -> String {
    report.overlap.shares.iter().find(|row| row.protocol == protocol).unwrap().why.clone()
}

/// Exercises the order in which connect() hands ports out. If this fails, NodePorts of the other parity are told to be hit, and
/// those of the same half as often as they are.
#[test]
fn of_tcp_every_second_port_is_kept_and_of_udp_each() {
    let of = |protocol, ephemeral: &str, first: u16| {
        let ports: Vec<_> = (first..).step_by(2).take(200).map(|port| (protocol, port)).collect();
        shares(&node(keeping(&[], None), "32768-60999", &[ephemeral], &ports).report(), protocol)
    };
    for (protocol, ephemeral, first, allocated) in [
        (Protocol::TCP, "29000-31999", 30_000, 200.0 / 1500.0),
        (Protocol::TCP, "29000-31999", 30_001, 0.0),
        (Protocol::TCP, "29001-32000", 30_000, 0.0),
        (Protocol::TCP, "29001-32000", 30_001, 200.0 / 1500.0),
        (Protocol::UDP, "29000-31999", 30_000, 200.0 / 3000.0),
        (Protocol::UDP, "29000-31999", 30_001, 200.0 / 3000.0),
        (Protocol::SCTP, "29000-31999", 30_001, 200.0 / 3000.0),
    ] {
        let (of_range, of_allocated) = of(protocol, ephemeral, first);
        assert_near(of_allocated, allocated);
        let expected = if ephemeral == "29000-31999" { 2000.0 / 3000.0 } else { 2001.0 / 3000.0 };
        assert!(of_range.is_some_and(|share| (share - expected).abs() < 0.001), "{of_range:?}, not {expected}");
    }
    // Of pods that differ, the worst.
    let both = node(keeping(&[], None), "32768-60999", &["29000-31999", "29001-32000"], &[(Protocol::TCP, 30_001)]);
    let report = both.report();
    assert_near(shares(&report, Protocol::TCP).1, 1.0 / 1500.0);
    assert!(why(&report, Protocol::TCP).contains("connect() every second port before others"), "{report:?}");
}

/// Exercises what is said of ports that connect() hands out last. If this fails, they are told to be hit by nobody.
#[test]
fn that_the_other_ports_come_later_is_said() {
    let ports = [(Protocol::TCP, 30_081)];
    let node = node(keeping(&[], Some(Protocol::TCP)), "32768-60999", &["29000-31999"], &ports);
    let finding = node.masquerade();
    assert_eq!(finding.severity, Severity::Info);
    assert_eq!(
        finding.title,
        "66.67 % of the connections that ip-masq-agent translates get a source port of the NodePorts 30000-32767, none of \
         which is allocated that they get"
    );
    let said = |part: &str| finding.evidence.iter().any(|evidence| evidence.said.contains(part));
    assert!(said("pods draw from 29000-31999, connect() even ports before others"), "{finding:?}");
}

/// Exercises connections of the node itself, which go through a rule for everything. If this fails, such a rule is told to give no
/// NodePort away though the node's own range is that of the NodePorts.
#[test]
fn where_the_node_itself_draws_from_the_node_ports_a_rule_that_may_take_its_connections_says_so() {
    let told = |conditions: &[&str], own: &str, pods: &[&str]| {
        let report = node(keeping(conditions, None), own, pods, &[]).report();
        assert_eq!(report.overlap.shares.len(), 3, "one row for each protocol");
        (shares(&report, Protocol::UDP).0, why(&report, Protocol::UDP))
    };
    let own = "; this share is that of pods, of the node's own connections that come here it is 100.00 % (they draw from 30000-32767)";
    let pods = &["32768-60999"][..];
    for conditions in [&[][..], &["-o eth0"], &["! -s 10.0.0.0/8"], &["! --dst-type LOCAL"]] {
        let (share, why) = told(conditions, "30000-32767", pods);
        assert_eq!(share, Some(0.0));
        assert!(why.ends_with(own), "{conditions:?}: {why}");
    }
    for conditions in [&["-s 10.0.0.0/8"][..], &["-o eth0", "-s in {10.0.0.0/8}"], &["! --src-type LOCAL"]] {
        let (share, why) = told(conditions, "30000-32767", pods);
        assert!(share == Some(0.0) && !why.contains("node's own"), "{conditions:?}: {why}");
    }
    // Nothing to say.
    assert!(!told(&[], "32768-60999", pods).1.contains("node's own"));
    assert!(!told(&[], "32768-60999", &["29000-31999"]).1.contains("node's own"));
    // Without a pod, the share is the node's own.
    let (share, why) = told(&[], "30000-32767", &[]);
    assert!(share == Some(1.0) && !why.contains("node's own"), "{share:?} {why}");
}
