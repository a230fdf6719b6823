//! Source ports and NodePorts: what rules make of connections, and what a proxy makes of that.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use headroom_core::findings::{Finding, FindingId, Severity};
use headroom_core::flow::Protocol;
use headroom_core::ids::NetnsInode;
use headroom_core::known::{Known, Why};
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::overlap::AllocatedNodePorts;
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{
    Between, CoverageDetail, Fact, Namespace, NodePort, Observation, Outcome, PortChoice, RuleBackend, RuleFamily,
    RulePlace, ServiceProxy, Snapshot, SourceId, SourceNat, SourceNatKind, SourceNatRule,
};
use headroom_core::ports::{PortRange, PortSettings, parse_reserved_ports};
use headroom_core::protocols::Protocols;
use headroom_core::report::{AllocatedBasis, NodePortBasis, Report, RuleOwner};
use headroom_core::time::{NodeTime, Now, WallTime};

#[path = "overlap/divided.rs"]
mod divided;
#[path = "overlap/families.rs"]
mod families;
#[path = "overlap/kept.rs"]
mod kept;
#[path = "overlap/many.rs"]
mod many;
#[path = "overlap/ranges.rs"]
mod ranges;
#[path = "overlap/remedies.rs"]
mod remedies;

const RANDOM: PortChoice = PortChoice::RandomFully;

fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

/// A MASQUERADE rule in `IP-MASQ`, the chain of ip-masq-agent.
fn rule(
    position: u32,
    protocol: Option<Protocol>,
    ports: Option<&str>,
    choice: PortChoice,
    chance: f64,
) -> SourceNatRule {
    let place = RulePlace {
        backend: RuleBackend::IptablesNft,
        family: RuleFamily::Ip,
        table: "nat".to_owned(),
        chain: "IP-MASQ".to_owned(),
        position,
    };
    let ports = ports.map_or(Known::Absent, |ports| Known::Present(range(ports)));
    SourceNatRule {
        path: vec!["POSTROUTING".to_owned()],
        protocols: protocol.map_or(Protocols::ALL, Protocols::only),
        conditions: vec!["! --dst-type LOCAL".to_owned()],
        exceptions: vec!["-d 10.0.0.0/8".to_owned()],
        probability: chance,
        ..SourceNatRule::new(place, SourceNat { ports, choice, ..SourceNat::MASQUERADE })
    }
}

fn node_port(proxy: ServiceProxy, port: u16) -> NodePort {
    NodePort {
        proxy,
        family: RuleFamily::Ip,
        protocol: Protocol::TCP,
        port,
        service: Some(format!("shop/web-{port}:http")),
    }
}

fn namespace(host: bool, ephemeral: &str, reserved: &str) -> Fact {
    Fact::Namespace(Namespace {
        inode: NetnsInode(if host { 1 } else { 2 }),
        host,
        pid: None,
        addresses: Known::Absent,
        ports: Known::Present(PortSettings {
            ephemeral: range(ephemeral),
            reserved: parse_reserved_ports(reserved).unwrap(),
        }),
        keepalive: Known::Absent,
    })
}

/// A node; every source works.
struct Node {
    rules: Vec<SourceNatRule>,
    node_ports: Vec<NodePort>,
    namespaces: Vec<Fact>,
    policy: Policy,
}

impl Node {
    fn with(rules: Vec<SourceNatRule>, node_ports: Vec<NodePort>) -> Self {
        let namespaces = vec![namespace(true, "32768-60999", ""), namespace(false, "32768-60999", "")];
        Self { rules, node_ports, namespaces, policy: Policy::default() }
    }

    fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::new(LedgerLimits::default());
        let mut apply = |source, fact| ledger.apply(Observation { at: NodeTime::from_secs(1), source, fact });
        let works =
            || Fact::Coverage(Known::Present(CoverageDetail { how: String::new(), degraded: None, as_of_dump: false }));
        let end = |snapshot| Fact::End { snapshot, outcome: Outcome::Complete };
        apply(SourceId::Rules, Fact::Begin(Snapshot::Rules));
        self.rules.iter().for_each(|rule| apply(SourceId::Rules, Fact::SourceNat(rule.clone())));
        apply(SourceId::Rules, end(Snapshot::Rules));
        apply(SourceId::Services, Fact::Begin(Snapshot::Services));
        for port in &self.node_ports {
            apply(SourceId::Services, Fact::ServiceProxy(port.proxy));
            apply(SourceId::Services, Fact::NodePort(port.clone()));
        }
        apply(SourceId::Services, end(Snapshot::Services));
        apply(SourceId::Namespaces, Fact::Begin(Snapshot::Namespaces));
        self.namespaces.iter().for_each(|fact| apply(SourceId::Namespaces, fact.clone()));
        apply(SourceId::Namespaces, end(Snapshot::Namespaces));
        for source in [SourceId::Rules, SourceId::Services, SourceId::Namespaces] {
            apply(source, works());
        }
        ledger
    }

    fn report(&self) -> Report {
        let now = Now { node: NodeTime::from_secs(2), wall: WallTime::from_secs(1_700_000_000) };
        evaluate(&self.ledger(), &mut Memory::default(), &self.policy, now)
    }

    fn findings(&self, id: FindingId) -> Vec<Finding> {
        self.report().findings.into_iter().filter(|finding| finding.id == id).collect()
    }

    fn masquerade(&self) -> Finding {
        self.findings(FindingId::MasqueradeOverlapsNodeport).remove(0)
    }
}

/// Of the connections of a protocol, the shares in the range and on allocated NodePorts.
fn shares(report: &Report, protocol: Protocol) -> (Option<f64>, Option<f64>) {
    let row = report.overlap.shares.iter().find(|row| row.protocol == protocol).unwrap();
    (row.share, row.share_allocated)
}

#[track_caller]
fn assert_near(found: Option<f64>, expected: f64) {
    assert!(found.is_some_and(|found| (found - expected).abs() < 1e-9), "{found:?}, not {expected}");
}

/// Exercises the chance of a random port. The kernel takes 16 random bits modulo 64,512: 1024-2047 come up twice, the
/// NodePorts once in 65,536 draws each.
#[test]
fn one_in_24_connections_lands_in_the_range_when_ports_are_random() {
    let ports = vec![node_port(ServiceProxy::Cilium, 30_080), node_port(ServiceProxy::Cilium, 31_000)];
    let node = Node::with(vec![rule(9, None, None, RANDOM, 1.0)], ports);
    let (of_range, of_allocated) = shares(&node.report(), Protocol::TCP);
    assert_near(of_range, 2768.0 / 65_536.0);
    assert_near(of_allocated, 2.0 / 65_536.0);
    // The NodePorts are TCP's.
    assert_near(shares(&node.report(), Protocol::UDP).1, 0.0);
    let finding = node.masquerade();
    assert_eq!(finding.severity, Severity::Warning);
    assert!(
        finding.title.starts_with("0.0031 % of the connections that ip-masq-agent translates"),
        "{}",
        finding.title
    );
    assert!(finding.title.contains("one in 32768"), "{}", finding.title);
    assert!(finding.remedy.contains("--to-ports=1024-29999,32768-65535"), "{}", finding.remedy);
    assert!(finding.evidence.iter().any(|evidence| evidence.said.contains("but for -d 10.0.0.0/8")), "{finding:?}");
}

/// Exercises what ip-masq-agent 2.12 writes for `--to-ports=1024-29999,32768-65535`: no share at all, so no finding.
#[test]
fn rules_that_divide_connections_among_ranges_beside_the_node_ports_give_none_away() {
    let chance = 28_976.0 / 61_744.0;
    let rules = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].into_iter().zip([5, 7, 9]).flat_map(|(protocol, at)| {
        [
            rule(at, Some(protocol), Some("1024-29999"), RANDOM, chance),
            rule(at + 1, Some(protocol), Some("32768-65535"), RANDOM, 1.0),
        ]
    });
    let mut rules: Vec<_> = rules.collect();
    rules.push(rule(11, None, None, RANDOM, 1.0));
    let node = Node::with(rules.clone(), vec![node_port(ServiceProxy::Cilium, 30_080)]);
    let report = node.report();
    // The last rule is for other protocols: nothing is left over for it.
    assert_eq!(shares(&report, Protocol::TCP), (Some(0.0), Some(0.0)));
    assert!(node.findings(FindingId::MasqueradeOverlapsNodeport).is_empty());
    // Without the second rule of TCP, what the first leaves over comes to the last one.
    rules.remove(1);
    let node = Node::with(rules, vec![]);
    assert_near(shares(&node.report(), Protocol::TCP).0, (1.0 - chance) * 2768.0 / 65_536.0);
}

/// Exercises a table with more rules than are read. If this fails, `check` finds nothing wrong with rules that it never saw.
#[test]
fn rules_that_were_not_read_leave_the_answer_open_where_a_collision_does_harm() {
    for (proxy, expected) in [(ServiceProxy::Cilium, Severity::Unknown), (ServiceProxy::Iptables, Severity::Info)] {
        let mut ledger = Node::with(vec![], vec![node_port(proxy, 30_080)]).ledger();
        let detail = CoverageDetail {
            how: String::new(),
            degraded: Some(Why::new("of 2100 chains 2048 were read")),
            as_of_dump: false,
        };
        let fact = Fact::Coverage(Known::Present(detail));
        ledger.apply(Observation { at: NodeTime::from_secs(1), source: SourceId::Rules, fact });
        let now = Now { node: NodeTime::from_secs(2), wall: WallTime::from_secs(1_700_000_000) };
        let report = evaluate(&ledger, &mut Memory::default(), &Policy::default(), now);
        let found = report.findings.iter().find(|finding| finding.id == FindingId::SourceDegraded).unwrap();
        assert_eq!((found.severity, found.title.as_str()), (expected, "rules: of 2100 chains 2048 were read"));
    }
}

/// Exercises rules that keep ports. If this fails, plain MASQUERADE is blamed, or a pod's wide range is not.
#[test]
fn a_kept_port_lands_where_the_pods_draw_theirs() {
    let keeping = rule(1, None, None, PortChoice::Keep, 1.0);
    let mut node = Node::with(vec![keeping.clone()], vec![node_port(ServiceProxy::Cilium, 30_080)]);
    assert_eq!(shares(&node.report(), Protocol::TCP), (Some(0.0), Some(0.0)));
    node.namespaces = vec![namespace(true, "32768-60999", ""), namespace(false, "1024-65535", "")];
    assert_near(shares(&node.report(), Protocol::TCP).0, 2768.0 / 64_512.0);
    assert!(node.masquerade().remedy.contains("ip_local_port_range apart from 30000-32767"));
    node.namespaces = vec![namespace(false, "1024-65535", "30000-31999")];
    // Of every second port, the half.
    assert_near(shares(&node.report(), Protocol::TCP).0, 384.0 / 31_256.0);
    assert_near(shares(&node.report(), Protocol::TCP).1, 0.0);
    // Ports outside of the rule's are drawn from them.
    node.rules = vec![rule(1, Some(Protocol::TCP), Some("30000-30999"), PortChoice::Keep, 1.0)];
    assert_near(shares(&node.report(), Protocol::TCP).0, 1.0);
    node.namespaces = vec![Fact::Namespace(Namespace {
        inode: NetnsInode(2),
        host: false,
        pid: None,
        addresses: Known::Absent,
        ports: Known::because("CAP_SYS_ADMIN is needed"),
        keepalive: Known::Absent,
    })];
    node.rules = vec![keeping];
    let report = node.report();
    assert_eq!(shares(&report, Protocol::TCP), (None, None));
    assert!(report.overlap.shares[0].why.contains("not known"), "{:?}", report.overlap.shares);
}

/// Exercises what proxies make of a collision. If this fails, a harmless node is alarmed, or a broken one is not.
#[test]
fn a_collision_does_harm_with_cilium_and_ipvs_and_none_with_iptables() {
    let severity = |proxy| {
        let finding = Node::with(vec![rule(1, None, None, RANDOM, 1.0)], vec![node_port(proxy, 30_080)]).masquerade();
        assert!(finding.evidence.iter().any(|evidence| evidence.said.contains(proxy.title())), "{finding:?}");
        finding.severity
    };
    assert_eq!(severity(ServiceProxy::Cilium), Severity::Warning);
    assert_eq!(severity(ServiceProxy::Ipvs), Severity::Warning);
    assert_eq!(severity(ServiceProxy::Iptables), Severity::Info);
    assert_eq!(severity(ServiceProxy::Nftables), Severity::Info);
    // A rule for pods: IPVS takes answers of the node itself alone. One for all addresses that the node has is not for pods.
    let of_pods = |proxy, sources: &str| {
        let mut rule = rule(1, None, None, RANDOM, 1.0);
        rule.conditions.push(sources.to_owned());
        let mut node = Node::with(vec![rule], vec![node_port(proxy, 30_080)]);
        let Fact::Namespace(host) = namespace(true, "32768-60999", "") else { panic!() };
        let own = ["127.0.0.1", "10.64.0.1", "192.0.2.10", "fd00::1"].map(|address| address.parse().unwrap());
        node.namespaces = vec![Fact::Namespace(Namespace { addresses: Known::Present(own.to_vec()), ..host })];
        node.masquerade().severity
    };
    assert_eq!(of_pods(ServiceProxy::Ipvs, "-s 10.64.0.0/24"), Severity::Info);
    assert_eq!(of_pods(ServiceProxy::Ipvs, "-s 10.64.0.7"), Severity::Info);
    assert_eq!(of_pods(ServiceProxy::Ipvs, "! -s 10.64.0.0/24"), Severity::Warning);
    assert_eq!(of_pods(ServiceProxy::Ipvs, "-s 0.0.0.0/0"), Severity::Warning);
    assert_eq!(of_pods(ServiceProxy::Cilium, "-s 10.64.0.0/24"), Severity::Warning);
    // Where nobody serves NodePorts, none can be hit.
    assert_eq!(Node::with(vec![rule(1, None, None, RANDOM, 1.0)], vec![]).masquerade().severity, Severity::Info);
}

/// Exercises what the user says. If this fails, a node whose Services cannot be read is judged as if it had none.
#[test]
fn node_ports_and_proxy_can_be_given() {
    let mut node = Node::with(vec![rule(1, None, None, RANDOM, 1.0)], vec![]);
    node.policy.allocated_node_ports = vec![(Protocol::TCP, 30_080)];
    node.policy.service_proxy = Some(ServiceProxy::Cilium);
    assert_eq!(node.masquerade().severity, Severity::Warning);
    assert_near(shares(&node.report(), Protocol::TCP).1, 1.0 / 65_536.0);
    assert_eq!(node.report().overlap.nodeports_total, Some(1));
}

/// Exercises a list beside what this node shows. If this fails, a finding rests on somebody's list and does not say so, or a NodePort
/// that the list lacks goes unmentioned.
#[test]
fn what_rests_on_a_given_list_says_so_and_a_list_that_lacks_a_node_port_is_contradicted() {
    let basis = "which NodePorts are allocated is taken from the list that was given (--node-ports)";
    let lacks = "the list that was given (--node-ports) lacks 2 served here: 30080/tcp of shop/web-30080:http by Cilium \
                 (Dataplane V2), 31000/tcp of shop/web-31000:http by Cilium (Dataplane V2)";
    let ports = [30_080, 31_000].map(|port| node_port(ServiceProxy::Cilium, port));
    let mut node = Node::with(vec![rule(1, None, None, RANDOM, 1.0)], ports.to_vec());
    let said = |node: &Node| node.masquerade().evidence.into_iter().map(|evidence| evidence.said).collect::<Vec<_>>();
    let overlap = node.report().overlap;
    assert_eq!((overlap.nodeports_basis, overlap.nodeports_not_given), (Some(AllocatedBasis::Seen), 0));
    assert!(!said(&node).iter().any(|said| said.contains("--node-ports)")), "{:?}", said(&node));
    // Of the list and of this node.
    node.policy.allocated_node_ports = vec![(Protocol::TCP, 30_053)];
    let overlap = node.report().overlap;
    assert_eq!((overlap.nodeports_basis, overlap.nodeports_not_given), (Some(AllocatedBasis::Given), 2));
    let told: Vec<_> = overlap.nodeports.iter().map(|row| (row.port, row.given)).collect();
    assert_eq!(told, [(30_080, false), (31_000, false), (30_053, true)]);
    assert_near(shares(&node.report(), Protocol::TCP).1, 3.0 / 65_536.0);
    assert!(said(&node).iter().any(|said| said == basis), "{:?}", said(&node));
    assert!(said(&node).iter().any(|said| said == lacks), "{:?}", said(&node));
    // A list of all there is contradicts nothing.
    node.policy.allocated_node_ports = vec![(Protocol::TCP, 30_080), (Protocol::TCP, 31_000)];
    assert_eq!(node.report().overlap.nodeports_not_given, 0);
    assert!(said(&node).iter().any(|said| said == basis) && !said(&node).iter().any(|said| said.contains("lacks")));
}

/// Exercises the question other parts of the model ask. If this fails, live collisions are not recognised.
#[test]
fn a_port_is_allocated_for_its_family_and_protocol_and_has_a_name_and_a_proxy() {
    let node = Node::with(vec![], vec![node_port(ServiceProxy::Ipvs, 30_080)]);
    let ledger = node.ledger();
    let allocated = AllocatedNodePorts::of(&ledger, &node.policy);
    let found = allocated.get(RuleFamily::Ip, Protocol::TCP, 30_080).unwrap();
    assert_eq!((found.service, found.proxies.as_slice()), (Some("shop/web-30080:http"), &[ServiceProxy::Ipvs][..]));
    assert_eq!(allocated.get(RuleFamily::Ip, Protocol::UDP, 30_080), None);
    assert_eq!(allocated.get(RuleFamily::Ip6, Protocol::TCP, 30_080), None);
    assert_eq!((allocated.count(), allocated.is_known(), allocated.harmful()), (1, true, Some(ServiceProxy::Ipvs)));
}

/// Exercises a proxy that the user names and nobody sees. If this fails, NodePorts that could not be seen count as none.
#[test]
fn of_a_proxy_that_is_nowhere_seen_no_node_port_is_known() {
    let total = |named, given: &[(Protocol, u16)]| {
        let mut node = Node::with(vec![], vec![node_port(ServiceProxy::Ipvs, 30_080)]);
        (node.policy.service_proxy, node.policy.allocated_node_ports) = (named, given.to_vec());
        node.report().overlap.nodeports_total
    };
    assert_eq!(total(None, &[]), Some(1));
    assert_eq!(total(Some(ServiceProxy::Ipvs), &[]), Some(1));
    assert_eq!(total(Some(ServiceProxy::Cilium), &[]), None);
    assert_eq!(total(Some(ServiceProxy::Cilium), &[(Protocol::TCP, 30_081)]), Some(2), "the user says which");
}

/// Exercises a proxy that may not have been seen. If this fails, a node with Cilium whose maps cannot be read is called safe.
#[test]
fn harmless_is_only_said_when_all_proxies_could_be_seen() {
    let mut node = Node::with(vec![], vec![node_port(ServiceProxy::Iptables, 30_080)]);
    node.namespaces = vec![namespace(true, "1024-65535", "")];
    let judged = |policy: &Policy| {
        let mut ledger = node.ledger();
        let fact = Fact::Coverage(Known::because("`/sys/fs/bpf` is not mounted"));
        ledger.apply(Observation { at: NodeTime::from_secs(1), source: SourceId::Services, fact });
        let now = Now { node: NodeTime::from_secs(2), wall: WallTime::from_secs(1_700_000_000) };
        let report = evaluate(&ledger, &mut Memory::default(), policy, now);
        report.findings.into_iter().find(|finding| finding.id == FindingId::EphemeralOverlapsNodeport).unwrap()
    };
    let unread = judged(&Policy::default());
    assert_eq!(unread.severity, Severity::Warning);
    assert!(unread.evidence.iter().any(|evidence| evidence.said.contains("Cilium may be there")), "{unread:?}");
    let named = judged(&Policy { service_proxy: Some(ServiceProxy::Iptables), ..Policy::default() });
    assert_eq!(named.severity, Severity::Info);
}

/// Exercises rules to which no packet comes. If this fails, a rule that does nothing is blamed, or vanishes without a word.
#[test]
fn a_rule_that_no_packet_comes_to_gives_nothing_away_and_is_told_with_the_reason() {
    let why = "never reached: behind rule 1, which takes every packet";
    let keeping = rule(1, None, None, PortChoice::Keep, 1.0);
    let behind = SourceNatRule {
        path: Vec::new(),
        unreached: Some(why.to_owned()),
        ..rule(2, None, Some("30000-30999"), RANDOM, 1.0)
    };
    let node = Node::with(vec![keeping, behind.clone()], vec![node_port(ServiceProxy::Cilium, 30_080)]);
    let report = node.report();
    let row = &report.overlap.masquerade[1];
    assert_eq!((row.share, row.share_allocated), (Some(0.0), Some(0.0)));
    assert_eq!((row.unreached.as_deref(), row.share_why.as_str()), (Some(why), why));
    assert_eq!(shares(&report, Protocol::TCP), (Some(0.0), Some(0.0)));
    assert!(node.findings(FindingId::MasqueradeOverlapsNodeport).is_empty());
    // The same rule in force.
    let alone = SourceNatRule { path: vec!["POSTROUTING".to_owned()], unreached: None, ..behind };
    assert_near(shares(&Node::with(vec![alone], vec![]).report(), Protocol::TCP).0, 1.0);
}

/// Exercises SCTP, which has NodePorts, too. If this fails, its share is not told.
#[test]
fn the_share_is_told_for_each_protocol_that_has_node_ports() {
    let node_port = NodePort { protocol: Protocol::SCTP, ..node_port(ServiceProxy::Cilium, 30_080) };
    let rules = vec![rule(1, Some(Protocol::SCTP), Some("30000-30999"), RANDOM, 1.0), rule(2, None, None, RANDOM, 1.0)];
    let report = Node::with(rules, vec![node_port]).report();
    let told: Vec<_> = report.overlap.shares.iter().map(|row| row.protocol).collect();
    assert_eq!(told, [Protocol::SCTP, Protocol::TCP, Protocol::UDP]);
    assert_near(shares(&report, Protocol::SCTP).0, 1.0);
    assert_near(shares(&report, Protocol::SCTP).1, 66.0 / 65_536.0);
    assert_near(shares(&report, Protocol::UDP).0, 2768.0 / 65_536.0);
}

/// Exercises rules that are not understood. If this fails, they are dropped without a word, or guessed at.
#[test]
fn what_is_not_understood_is_listed_with_an_unknown_share() {
    let mut odd = rule(1, None, None, RANDOM, 1.0);
    odd.target.ports = Known::Unknown(Why::new("its ports come from a map"));
    odd.unclear = vec!["match `bpf`".to_owned()];
    odd.place.chain = "KUBE-POSTROUTING".to_owned();
    let mut dead = rule(2, None, None, RANDOM, 1.0);
    (dead.path, dead.place.chain) = (Vec::new(), "OLD".to_owned());
    let report = Node::with(vec![odd, dead], vec![]).report();
    let [odd, dead] = report.overlap.masquerade.as_slice() else { panic!("{:?}", report.overlap.masquerade) };
    assert_eq!(
        (odd.owner, odd.share, odd.share_why.as_str()),
        (RuleOwner::KubeProxy, None, "its ports come from a map")
    );
    assert_eq!(odd.unclear, ["match `bpf`"]);
    // Nothing leads to the other one: it counts for nobody.
    assert!(dead.path.is_empty());
    assert_eq!((dead.share, dead.unreached.as_deref()), (Some(0.0), Some("never reached: nothing leads to it")));
    assert_eq!(report.overlap.shares.len(), 3, "one for each protocol");
}

/// Exercises law 2 of the ledger. If this fails, one torn reading makes all NodePorts vanish.
#[test]
fn an_incomplete_reading_removes_no_rule_and_no_node_port() {
    let node = Node::with(vec![rule(1, None, None, RANDOM, 1.0)], vec![node_port(ServiceProxy::Cilium, 30_080)]);
    let mut ledger = node.ledger();
    for (source, snapshot) in [(SourceId::Rules, Snapshot::Rules), (SourceId::Services, Snapshot::Services)] {
        for outcome in [Outcome::Partial(Why::new("cut")), Outcome::Failed(Why::new("denied"))] {
            for fact in [Fact::Begin(snapshot), Fact::End { snapshot, outcome }] {
                ledger.apply(Observation { at: NodeTime::from_secs(3), source, fact });
            }
        }
    }
    assert_eq!(ledger.rules().source_nat().count(), 1);
    assert_eq!(ledger.services().node_ports().count(), 1);
}
