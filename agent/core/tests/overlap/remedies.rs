//! What is to be done about rules, in the words of the program that made them.

use super::*;

/// Exercises the fix of rules that are nobody's we know. If this fails, it is not ready to use.
#[test]
fn a_rule_is_mended_in_the_words_of_the_program_that_made_it() {
    let mended = |backend| {
        let mut own = rule(1, None, None, RANDOM, 1.0);
        own.place = RulePlace { backend, chain: "out".to_owned(), table: "mine".to_owned(), ..own.place };
        Node::with(vec![own], vec![node_port(ServiceProxy::Cilium, 30_080)]).masquerade().remedy
    };
    assert_eq!(
        mended(RuleBackend::Nftables),
        "limit the rule to other ports: in front of it, with its conditions, `meta l4proto tcp numgen random mod 10000 < 4693 \
         masquerade to :1024-29999 fully-random` and behind that `meta l4proto tcp masquerade to :32768-65535 fully-random`, and \
         the same for udp and sctp; the rule itself is left with what has no ports"
    );
    assert_eq!(
        mended(RuleBackend::IptablesLegacy),
        "limit the rule to other ports: in front of it, with its conditions, `-p tcp -m statistic --mode random --probability \
         0.4693 -j MASQUERADE --to-ports 1024-29999 --random-fully` and behind that `-p tcp -j MASQUERADE --to-ports 32768-65535 \
         --random-fully`, and the same for udp and sctp; the rule itself is left with what has no ports"
    );
}

/// Exercises SNAT to addresses of both families. If this fails, the fix is not one that the programs take; `rules_live` gives it to
/// them.
#[test]
fn a_rule_that_names_addresses_is_mended_with_them_in_the_words_of_its_family() {
    let mended = |backend, family, addresses: &str, ports: Option<&str>| {
        let mut own = rule(1, Some(Protocol::TCP), ports, RANDOM, 1.0);
        own.place = RulePlace { backend, family, chain: "out".to_owned(), table: "mine".to_owned(), ..own.place };
        (own.target.kind, own.target.addresses) = (SourceNatKind::Snat, Some(addresses.to_owned()));
        let mut node = Node::with(vec![own], vec![]);
        (node.policy.node_ports, node.policy.node_ports_given) = (range("1024-39999"), true);
        let report = node.report();
        let action = report.overlap.masquerade[0].action.clone();
        let remedy = node.masquerade().remedy;
        (action, remedy.split('`').nth(1).unwrap().to_owned())
    };
    let (legacy, native) = (RuleBackend::IptablesLegacy, RuleBackend::Nftables);
    for (backend, family, addresses, ports, action, expected) in [
        (
            legacy,
            RuleFamily::Ip6,
            "2001:db8::9",
            Some("1024-65535"),
            "SNAT --to-source [2001:db8::9]:1024-65535 --random-fully",
            "-p tcp -j SNAT --to-source [2001:db8::9]:40000-65535 --random-fully",
        ),
        (
            legacy,
            RuleFamily::Ip6,
            "2001:db8::9-2001:db8::c",
            None,
            "SNAT --to-source 2001:db8::9-2001:db8::c --random-fully",
            "-p tcp -j SNAT --to-source [2001:db8::9-2001:db8::c]:40000-65535 --random-fully",
        ),
        (
            legacy,
            RuleFamily::Ip,
            "192.0.2.1-192.0.2.4",
            None,
            "SNAT --to-source 192.0.2.1-192.0.2.4 --random-fully",
            "-p tcp -j SNAT --to-source 192.0.2.1-192.0.2.4:40000-65535 --random-fully",
        ),
        (
            native,
            RuleFamily::Ip6,
            "2001:db8::9-2001:db8::c",
            None,
            "SNAT --to-source 2001:db8::9-2001:db8::c --random-fully",
            "meta l4proto tcp snat to [2001:db8::9]-[2001:db8::c]:40000-65535 fully-random",
        ),
        (
            native,
            RuleFamily::Inet,
            "2001:db8::9",
            None,
            "SNAT --to-source 2001:db8::9 --random-fully",
            "meta l4proto tcp snat ip6 to [2001:db8::9]:40000-65535 fully-random",
        ),
        (
            native,
            RuleFamily::Inet,
            "192.0.2.9",
            None,
            "SNAT --to-source 192.0.2.9 --random-fully",
            "meta l4proto tcp snat ip to 192.0.2.9:40000-65535 fully-random",
        ),
    ] {
        assert_eq!(mended(backend, family, addresses, ports), (action.to_owned(), expected.to_owned()));
    }
}

/// Exercises a chain whose rules do different things: SNAT of each family, one that keeps clients on their address, NETMAP, and
/// addresses of a map. If this fails, what stands in for one rule takes the place of another.
#[test]
fn each_rule_of_a_chain_gets_a_fix_of_its_own() {
    let snat = |position, family, kind, addresses: &str, persistent| {
        let mut own = rule(position, Some(Protocol::TCP), None, RANDOM, 1.0);
        own.place = RulePlace { family, chain: "POSTROUTING".to_owned(), ..own.place };
        (own.target.kind, own.target.addresses, own.target.persistent) = (kind, Some(addresses.to_owned()), persistent);
        own
    };
    let (one, prefix) = (SourceNatKind::Snat, SourceNatKind::Netmap);
    let remedy = |rules| {
        let mut node = Node::with(rules, vec![]);
        (node.policy.node_ports, node.policy.node_ports_given) = (range("1024-39999"), true);
        node.masquerade().remedy
    };
    let both = remedy(vec![
        snat(1, RuleFamily::Ip, one, "192.0.2.1-192.0.2.4", true),
        snat(1, RuleFamily::Ip6, one, "2001:db8::9", false),
        snat(2, RuleFamily::Ip6, prefix, "2001:db8:1::/64", false),
    ]);
    for part in [
        "for iptables-nft ip nat POSTROUTING rule 1: instead of it, with its conditions, `-p tcp -j SNAT --to-source \
         192.0.2.1-192.0.2.4:40000-65535 --random-fully --persistent`",
        "for iptables-nft ip6 nat POSTROUTING rule 1: instead of it, with its conditions, `-p tcp -j SNAT --to-source \
         [2001:db8::9]:40000-65535 --random-fully`",
    ] {
        assert!(both.contains(part), "{both}");
    }
    assert!(!both.contains("MASQUERADE"), "{both}");
    let addresses = remedy(vec![
        snat(1, RuleFamily::Ip, one, "192.0.2.1", false),
        snat(2, RuleFamily::Ip, one, "192.0.2.2", false),
    ]);
    assert!(addresses.contains("192.0.2.1:40000-65535") && addresses.contains("192.0.2.2:40000-65535"), "{addresses}");
    let families = remedy(
        [RuleFamily::Ip, RuleFamily::Ip6]
            .map(|family| SourceNatRule {
                target: rule(1, None, None, RANDOM, 1.0).target,
                ..snat(1, family, one, "", false)
            })
            .to_vec(),
    );
    assert!(
        families.contains("for iptables-nft ip nat") && families.contains("for iptables-nft ip6 nat"),
        "{families}"
    );
    let mapped = remedy(vec![snat(1, RuleFamily::Ip, one, "?", false)]);
    assert!(mapped.starts_with("ports cannot be told to iptables-nft ip nat POSTROUTING rule 1"), "{mapped}");
    assert!(!mapped.contains('`'), "{mapped}");
}

/// Exercises what a finding says of rules that differ. If this fails, the worst of them is told as what all do, SNAT is mended by
/// MASQUERADE, or a condition that was not understood goes unsaid.
#[test]
fn a_finding_says_of_its_rules_what_they_are() {
    let mut own = rule(1, None, None, RANDOM, 1.0);
    own.place =
        RulePlace { backend: RuleBackend::Nftables, chain: "out".to_owned(), table: "mine".to_owned(), ..own.place };
    (own.target.kind, own.target.addresses) = (SourceNatKind::Snat, Some("192.0.2.7".to_owned()));
    own.unclear = vec!["match `bpf`".to_owned()];
    let mut narrow = own.clone();
    (narrow.place.position, narrow.target.ports) = (2, Known::Present(range("30000-32767")));
    narrow.conditions = vec!["-d 203.0.113.0/24".to_owned()];
    let alone = Node::with(vec![own.clone()], vec![node_port(ServiceProxy::Cilium, 30_080)]).masquerade();
    assert!(!alone.title.contains("up to"), "{}", alone.title);
    assert!(alone.remedy.contains("snat to 192.0.2.7:1024-29999 fully-random"), "{}", alone.remedy);
    let said = &alone.evidence[0].said;
    assert!(said.contains(" mine out rule 1:") && said.ends_with("not reckoned with: match `bpf`"), "{said}");
    own.place.backend = RuleBackend::IptablesNft;
    own.target.ports = Known::Present(range("1024-65535"));
    let limited = Node::with(vec![own.clone()], vec![node_port(ServiceProxy::Cilium, 30_080)]).masquerade();
    assert!(limited.remedy.contains("-j SNAT --to-source 192.0.2.7:32768-65535 --random-fully"), "{}", limited.remedy);
    narrow.place.backend = RuleBackend::IptablesNft;
    let both = Node::with(vec![narrow, own], vec![node_port(ServiceProxy::Cilium, 30_080)]).masquerade();
    assert!(both.title.starts_with("up to "), "{}", both.title);
}

/// Exercises a maker of which some rules give nothing away, or nobody knows. If this fails, what one of them does is told as what all
/// do.
#[test]
fn rules_that_give_nothing_away_count_for_what_is_said_of_all() {
    let title = |others: Vec<SourceNatRule>| {
        let mut giving = rule(1, Some(Protocol::TCP), Some("30000-32767"), RANDOM, 1.0);
        giving.conditions = vec!["-s 10.1.0.0/24".to_owned()];
        let rules = [giving].into_iter().chain(others).collect();
        Node::with(rules, vec![node_port(ServiceProxy::Cilium, 30_080)]).masquerade().title
    };
    let beside = |protocol| rule(2, Some(protocol), Some("32768-65535"), RANDOM, 1.0);
    assert!(
        title(vec![]).starts_with("0.0366 % of the connections that ip-masq-agent translates"),
        "{}",
        title(vec![])
    );
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let title = title(vec![beside(protocol)]);
        assert!(title.starts_with("up to 0.0366 % of the connections that ip-masq-agent translates"), "{title}");
    }
    let mut unknown = beside(Protocol::TCP);
    unknown.target.ports = Known::because("its ports are not in the rule but in a map");
    assert!(title(vec![unknown]).starts_with("up to "));
    // One of no protocol that has NodePorts.
    let other = SourceNatRule { protocols: Protocols::only(Protocol::ICMP), ..beside(Protocol::TCP) };
    assert!(!title(vec![other]).starts_with("up to "));
    // In another chain of the same maker.
    let elsewhere = |owner: &str| {
        let mut elsewhere = beside(Protocol::TCP);
        elsewhere.place.chain = owner.to_owned();
        title(vec![elsewhere])
    };
    assert!(
        elsewhere("IP-MASQ-AGENT").contains("that ip-masq-agent (IP-MASQ) translates"),
        "{}",
        elsewhere("IP-MASQ-AGENT")
    );
    assert!(
        elsewhere("KUBE-POSTROUTING").contains("that ip-masq-agent translates"),
        "{}",
        elsewhere("KUBE-POSTROUTING")
    );
}

/// Exercises rules of one chain for different protocols. If this fails, somebody is told to write rules for protocols that a rule never
/// takes, or not for which one.
#[test]
fn a_fix_names_the_rules_that_it_is_for_and_only_their_protocols() {
    let mut rules: Vec<SourceNatRule> = [Some(Protocol::TCP), Some(Protocol::UDP), None, Some(Protocol::TCP)]
        .into_iter()
        .zip(1..)
        .map(|(protocol, position)| {
            let mut own = rule(position, protocol, None, RANDOM, 1.0);
            own.place.chain = "POSTROUTING".to_owned();
            own.conditions = vec![format!("-s 10.{position}.0.0/16")];
            own
        })
        .collect();
    let remedy = |rules: &[SourceNatRule]| {
        let mut node = Node::with(rules.to_vec(), vec![]);
        (node.policy.node_ports, node.policy.node_ports_given) = (range("1024-39999"), true);
        node.masquerade().remedy
    };
    let line = |protocol: &str| format!("`-p {protocol} -j MASQUERADE --to-ports 40000-65535 --random-fully`");
    let (tcp, udp) = (line("tcp"), line("udp"));
    assert_eq!(
        remedy(&rules),
        format!(
            "limit the rule to other ports: for iptables-nft ip nat POSTROUTING rules 1 and 4: instead of each, with its \
             conditions, {tcp}; for iptables-nft ip nat POSTROUTING rule 2: instead of it, with its conditions, {udp}; for \
             iptables-nft ip nat POSTROUTING rule 3: in front of it, with its conditions, {tcp}, and the same for udp and sctp; \
             the rule itself is left with what has no ports"
        )
    );
    let of_tcp = |count: u32| {
        let positions = (1..=count).map(|position| {
            let mut own = rules[0].clone();
            (own.place.position, own.conditions) = (position, vec![format!("-s 10.{position}.0.0/16")]);
            own
        });
        let remedy = remedy(&positions.collect::<Vec<_>>());
        remedy.split_once("POSTROUTING ").unwrap().1.split_once(':').unwrap().0.to_owned()
    };
    assert_eq!(of_tcp(8), "rules 1, 2, 3, 4, 5, 6, 7 and 8");
    assert_eq!(of_tcp(9), "rule 1 and 7 more down to rule 9");
    // Of more protocols than are told one by one.
    rules[3].protocols = Protocols::only(Protocol::SCTP);
    assert!(remedy(&rules).ends_with("; and so for 1 more rule"), "{}", remedy(&rules));
}
