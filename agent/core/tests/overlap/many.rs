//! More rules than a report has room for, and rules of which less is known than of others.

use super::*;

/// A rule of a chain of its own, as CNI plugins make one for each pod.
fn of_pod(number: u32, choice: PortChoice) -> SourceNatRule {
    let mut of_pod = rule(1, None, None, choice, 1.0);
    of_pod.place.chain = format!("CNI-{number:04}");
    of_pod
}

/// A node whose pods' port ranges could not be read.
fn unread(rules: Vec<SourceNatRule>) -> Node {
    let mut node = Node::with(rules, vec![node_port(ServiceProxy::Cilium, 30_080)]);
    node.namespaces = vec![Fact::Namespace(Namespace {
        inode: NetnsInode(2),
        host: false,
        pid: None,
        addresses: Known::Absent,
        ports: Known::because("CAP_SYS_ADMIN is needed"),
        keepalive: Known::Absent,
    })];
    node
}

/// Exercises the bound of what is told. If this fails, the rules of pods push out the one that does harm, and nobody sees that
/// something is missing.
#[test]
fn what_is_known_is_told_before_what_is_not_and_the_rest_is_counted() {
    let pods = |many: u32| (0..many).map(|number| of_pod(number, PortChoice::Keep));
    let harmful = rule(9, None, None, RANDOM, 1.0);
    // Three protocols each.
    let full = unread(pods(169).chain([harmful.clone()]).collect()).report().overlap;
    assert_eq!((full.shares.len(), full.shares_omitted), (510, 0));
    let overlap = unread(pods(600).chain([harmful]).collect()).report().overlap;
    assert_eq!((overlap.shares.len(), overlap.shares_omitted), (512, 601 * 3 - 512));
    assert_eq!((overlap.masquerade.len(), overlap.masquerade_omitted), (512, 601 - 512));
    assert!(overlap.shares[..3].iter().all(|row| row.owner == RuleOwner::IpMasqAgent), "{:?}", overlap.shares[0]);
    assert!(overlap.shares[3..].iter().all(|row| row.share.is_none()));
    assert!(overlap.masquerade.iter().any(|row| row.owner == RuleOwner::IpMasqAgent));
    // In the order in which they stand.
    assert!(overlap.masquerade.is_sorted_by(|a, b| a.place < b.place));
}

/// Exercises makers whose shares are all small. If this fails, metrics lack them on a node with many pods.
#[test]
fn the_largest_share_of_every_maker_and_protocol_is_told() {
    let mut harmless = rule(1, Some(Protocol::UDP), Some("1024-29999"), RANDOM, 1.0);
    harmless.place.chain = "KUBE-POSTROUTING".to_owned();
    let pods = (0..600).map(|number| of_pod(number, RANDOM));
    let overlap = Node::with(pods.chain([harmless]).collect(), vec![]).report().overlap;
    assert_eq!((overlap.shares.len(), overlap.shares_omitted), (512, 600 * 3 + 1 - 512));
    let last = overlap.shares.last().unwrap();
    assert_eq!((last.owner, last.protocol, last.share), (RuleOwner::KubeProxy, Protocol::UDP, Some(0.0)));
}

/// Exercises findings on a node with more rules than are listed. If this fails, what is not listed is not found.
#[test]
fn findings_rest_on_rules_that_are_not_listed_too() {
    // Rules that give all away come first in the list, and this one is behind them.
    let others = (0..600).map(|number| {
        let mut other = of_pod(number, RANDOM);
        other.target.ports = Known::Present(range("30000-32767"));
        other
    });
    let harmful = rule(9, None, None, RANDOM, 1.0);
    let node = Node::with(others.chain([harmful]).collect(), vec![node_port(ServiceProxy::Cilium, 30_080)]);
    let overlap = node.report().overlap;
    assert!(overlap.masquerade.iter().any(|row| row.owner == RuleOwner::Cni) && overlap.shares_omitted > 0);
    let findings = node.findings(FindingId::MasqueradeOverlapsNodeport);
    let agent = findings.iter().find(|finding| finding.subject.starts_with("ip-masq-agent")).unwrap();
    assert!(agent.evidence.iter().any(|evidence| evidence.said.contains("IP-MASQ rule 9:")), "{agent:?}");
    let pods = findings.iter().find(|finding| finding.subject == "CNI plugin").unwrap();
    assert!(pods.evidence.iter().any(|evidence| evidence.said == "and 597 more rules like these"), "{pods:?}");
}

/// Exercises the bound of findings. If this fails, somebody's chains push out the worst one, or are left out silently.
#[test]
fn of_many_makers_the_worst_are_found_and_the_others_are_counted() {
    let chains = (0..12).map(|number| {
        let mut own = rule(1, None, None, RANDOM, 1.0);
        own.place.chain = format!("own-{number:02}");
        // Each has a larger share than the one before.
        own.target.ports = Known::Present(PortRange::new(1024, 30_000 + number * 200).unwrap());
        own
    });
    let findings = Node::with(chains.collect(), vec![]).findings(FindingId::MasqueradeOverlapsNodeport);
    let subjects: Vec<_> = findings.iter().map(|finding| finding.subject.as_str()).collect();
    assert_eq!(subjects.len(), 10);
    let named = |finding: &Finding| finding.title.contains(&format!("that {} translates", finding.subject));
    assert!(findings.iter().all(named), "chains of one maker are told apart: {findings:?}");
    assert!(subjects.contains(&"somebody (own-11)") && !subjects.contains(&"somebody (own-00)"), "{subjects:?}");
    let more: Vec<_> =
        findings.iter().flat_map(|finding| &finding.evidence).map(|evidence| evidence.said.as_str()).collect();
    let more = more.iter().filter(|said| said.starts_with("rules of 2 more chains"));
    assert_eq!(more.count(), 1);
}

/// Exercises protocols that do not come to a rule. If this fails, it is warned of connections that it never translates.
#[test]
fn a_rule_has_a_share_of_the_protocols_that_come_to_it() {
    let of = |protocols| {
        let mut own = rule(1, None, None, RANDOM, 1.0);
        (own.protocols, own.place.chain) = (protocols, "out".to_owned());
        let node = Node::with(vec![own], vec![node_port(ServiceProxy::Cilium, 30_080)]);
        let overlap = node.report().overlap;
        let shares: Vec<Protocol> = overlap.shares.iter().map(|row| row.protocol).collect();
        (shares, overlap.masquerade[0].share, node.findings(FindingId::MasqueradeOverlapsNodeport))
    };
    let tcp = Protocols::only(Protocol::TCP);
    let (shares, _, findings) = of(Protocols::ALL.without(tcp));
    assert_eq!(shares, [Protocol::UDP, Protocol::SCTP]);
    // The NodePort is TCP's.
    assert_eq!(findings[0].severity, Severity::Info);
    assert!(findings[0].evidence[0].said.contains("out rule 1: ! -p tcp "), "{:?}", findings[0]);
    assert!(findings[0].remedy.contains("in front of it, with its conditions, `-p udp"), "{}", findings[0].remedy);
    assert!(findings[0].remedy.contains("and the same for sctp; the rule itself is left"), "{}", findings[0].remedy);
    let both = tcp.or(Protocols::only(Protocol::UDP));
    let (shares, _, findings) = of(both);
    assert_eq!(shares, [Protocol::TCP, Protocol::UDP]);
    assert!(findings[0].remedy.contains("instead of it, with its conditions, `-p tcp"), "{}", findings[0].remedy);
    let (shares, share, findings) = of(Protocols::only(Protocol::ICMP));
    assert_eq!((shares.len(), share, findings.len()), (0, Some(0.0), 0));
}

/// Exercises a fix in front of a rule with a condition that nobody decodes. If this fails, the warning stays.
#[test]
fn rules_that_ask_the_same_divide_connections_though_nobody_knows_what_they_ask() {
    let asking = |mut rule: SourceNatRule, unclear: &str| {
        rule.unclear = vec![unclear.to_owned()];
        rule
    };
    let fixed = |other: &str| {
        let limited = asking(rule(1, Some(Protocol::TCP), Some("32768-65535"), RANDOM, 1.0), "match `bpf`");
        let own = asking(rule(2, None, None, RANDOM, 1.0), other);
        let node = Node::with(vec![limited, own], vec![node_port(ServiceProxy::Cilium, 30_080)]);
        let shares: Vec<_> = node.report().overlap.shares;
        shares.iter().filter(|row| row.protocol == Protocol::TCP).map(|row| row.share).collect::<Vec<_>>()
    };
    assert_eq!(fixed("match `bpf`"), [Some(0.0)]);
    assert_eq!(fixed("match `bpf` (no. 2)"), [Some(2768.0 / 65_536.0), Some(0.0)]);
}
