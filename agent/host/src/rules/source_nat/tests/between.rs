//! What is left of packets between two rules that translate.

use headroom_core::observe::Between;

use super::*;

const CHANCE: f64 = 0.5;

fn chance(said: &[&str]) -> Parts {
    Parts { probability: CHANCE, ..asking(said) }
}

fn walked(chains: &[Chain]) -> Vec<SourceNatRule> {
    let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
    source_nat(&table, chains).rules
}

/// Of TCP, the part that is left between two rules for `-o eth0`; none, if nobody can tell.
fn left(others: Vec<(Parts, Action)>) -> Option<f64> {
    let first = Parts { protocols: Protocols::only(Protocol::TCP), ..chance(&["-o eth0"]) };
    let rules = [(first, masquerade())].into_iter().chain(others).chain([(asking(&["-o eth0"]), masquerade())]);
    let chains = [
        chain("POSTROUTING", rules.collect()),
        chain("harmless", vec![(Parts::default(), Action::Return)]),
        chain("ends", vec![(only(Protocol::ICMP), Action::End)]),
        chain("leads", vec![(Parts::default(), jump("ends"))]),
    ];
    let between = walked(&chains).last().unwrap().between.clone();
    (!between.is_unsure_of(Protocol::TCP)).then(|| between.left_of(Protocol::TCP))
}

/// Exercises what is between two rules. If this fails, a share is told that depends on the traffic, or one is not told that does
/// not.
#[test]
fn between_two_rules_chance_alone_leaves_a_known_part() {
    assert_eq!(left(vec![]), Some(1.0));
    for action in [Action::Return, Action::End, Action::Goto("harmless".to_owned())] {
        assert_eq!(left(vec![(chance(&[]), action.clone())]), Some(0.5), "{action:?}");
        assert_eq!(left(vec![(chance(&["-o eth0"]), action.clone())]), Some(0.5), "{action:?}");
        assert_eq!(left(vec![(chance(&[]), action.clone()), (chance(&[]), action.clone())]), Some(0.25), "{action:?}");
        let udp = Parts { protocols: Protocols::only(Protocol::UDP), ..chance(&[]) };
        assert_eq!(left(vec![(udp, action.clone())]), Some(1.0), "{action:?}");
        // Chance mixed with something else.
        for mixed in [
            chance(&["-d 10.0.0.0/8"]),
            asking(&["-d 10.0.0.0/8"]),
            Parts { selective: true, ..chance(&[]) },
            Parts { conditions: vec![Condition::once("limit …")], ..Parts::default() },
        ] {
            assert_eq!(left(vec![(mixed.clone(), action.clone())]), None, "{mixed:?} {action:?}");
        }
    }
    for (action, expected) in [
        (Action::Continue, Some(1.0)),
        (jump("harmless"), Some(1.0)),
        (jump("unread"), Some(1.0)),
        (jump("ends"), None),
        (jump("leads"), None),
        (Action::Map, None),
    ] {
        assert_eq!(left(vec![(asking(&["-d 10.0.0.0/8"]), action.clone())]), expected, "{action:?}");
    }
    // An answer that may be another one for the next rule.
    let mark = || Parts { conditions: vec![Condition::for_now("mark 0x1", &[])], ..Parts::default() };
    let again = Parts { probability: CHANCE, ..mark() };
    let rules = vec![(mark(), masquerade()), (again, Action::Return), (mark(), masquerade())];
    let told = walked(&[chain("POSTROUTING", rules)]);
    assert!(told.last().unwrap().between.is_unsure_of(Protocol::TCP));
    // Rules that were not read may stand between them.
    let rules = vec![(chance(&[]), masquerade()), (Parts::default(), masquerade())];
    let told = walked(&[Chain { whole: false, ..chain("POSTROUTING", rules) }]);
    assert!(told.last().unwrap().between.is_unsure_of(Protocol::TCP));
    // A rule that no packet comes to takes nothing, and what is in front of it is in front of the next one.
    let dead = Parts { protocols: Protocols::only(Protocol::UDP), ..Parts::default() };
    let no_udp = (dead.clone(), Action::End);
    let all = vec![no_udp, (chance(&[]), masquerade()), (chance(&[]), Action::Return), (dead, masquerade())];
    let told = walked(&[chain("POSTROUTING", all.into_iter().chain([(Parts::default(), masquerade())]).collect())]);
    assert!(told[1].unreached.is_some());
    assert_eq!((told[1].between.left_of(Protocol::TCP), told[2].between.left_of(Protocol::TCP)), (1.0, 0.5));
}

/// Exercises a rule that changes what later ones ask for. If this fails, connections that come to one rule only are told to be
/// divided among two.
#[test]
fn a_mark_that_is_set_between_two_rules_makes_the_second_one_another_question() {
    let mark = || Parts { conditions: vec![Condition::for_now("mark 0x1", &[])], ..Parts::default() };
    let sets = |protocols| Parts { changes: protocols, ..Parts::default() };
    let unsure = |first: Protocols, between: (Parts, Action), last: Parts| {
        let first = Parts { probability: CHANCE, changes: first, ..mark() };
        let rules = vec![(first, masquerade()), between, (last, masquerade())];
        let chains = [
            chain("POSTROUTING", rules),
            chain("sets", vec![(sets(Protocols::ALL), Action::Continue)]),
            chain("leads", vec![(Parts::default(), jump("sets"))]),
            chain("harmless", vec![(Parts::default(), Action::Return)]),
        ];
        let between = walked(&chains).last().unwrap().between.clone();
        (between.is_unsure_of(Protocol::TCP), between.is_unsure_of(Protocol::UDP))
    };
    let (none, goes_on) = (Protocols::NONE, Action::Continue);
    assert_eq!(unsure(none, (Parts::default(), goes_on.clone()), mark()), (false, false));
    assert_eq!(unsure(none, (Parts::default(), jump("harmless")), mark()), (false, false));
    assert_eq!(unsure(none, (sets(Protocols::ALL), goes_on.clone()), mark()), (true, true));
    assert_eq!(unsure(none, (sets(Protocols::only(Protocol::UDP)), goes_on.clone()), mark()), (false, true));
    assert_eq!(unsure(none, (Parts::default(), jump("sets")), mark()), (true, true));
    assert_eq!(unsure(none, (only(Protocol::TCP), jump("leads")), mark()), (true, false));
    assert_eq!(unsure(none, (Parts::default(), jump("unread")), mark()), (false, false));
    // The first one itself may change what it lets pass.
    assert_eq!(unsure(Protocols::ALL, (Parts::default(), goes_on.clone()), mark()), (true, true));
    // What lasts nobody changes.
    let lasting = Parts { probability: CHANCE, ..asking(&["-o eth0"]) };
    assert_eq!(unsure(none, (sets(Protocols::ALL), goes_on), lasting), (false, false));
}

/// Exercises a chain that is entered by chance, once and twice. If this fails, its rules are told with a part that is that of
/// the way, and the share of what they divide is wrong.
#[test]
fn a_rule_takes_its_own_part_of_what_comes_to_its_chain() {
    let entered = |times: usize| {
        let outer = (0..times).map(|_| (chance(&[]), jump("X"))).collect();
        let inner = vec![(chance(&[]), masquerade()), (Parts::default(), masquerade())];
        let told = walked(&[chain("POSTROUTING", outer), chain("X", inner)]);
        assert_eq!(told.iter().map(|rule| rule.probability).collect::<Vec<_>>(), [0.5, 1.0], "{told:?}");
        assert!(told.iter().all(|rule| rule.between == Between::default()), "{told:?}");
        told[0].exceptions.clone()
    };
    assert_eq!(entered(1), ["0.5000 of all by chance at `POSTROUTING` rule 1"]);
    // Of what the second one lets pass, all come there that the first one kept.
    assert!(entered(2).is_empty());
}
