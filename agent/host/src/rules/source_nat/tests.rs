//! The walk over rules that are written down here, and over many that nobody wrote.

use headroom_core::flow::Protocol;
use headroom_core::protocols::Protocols;

use super::*;
use crate::rules::packets::GONE_LIMIT;
use crate::rules::told::EXCEPTIONS_LIMIT;
use crate::rules::{Condition, Parts};

mod any;
mod between;

fn rule(position: usize, parts: Parts, action: Action) -> Rule {
    Rule { position: u32::try_from(position).unwrap(), parts, action }
}

fn masquerade() -> Action {
    Action::Translate(SourceNat::MASQUERADE)
}

fn told(chains: &[Chain]) -> SourceNatRule {
    let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
    let [rule] = source_nat(&table, chains).rules.try_into().unwrap();
    rule
}

/// A hook whose chain leads through others, `depth` in all, to a rule that translates.
fn nested(depth: usize) -> Vec<Chain> {
    let chain = |number: usize| {
        let last = number + 1 == depth;
        let action = if last { masquerade() } else { Action::Jump(format!("{}", number + 1)) };
        Chain {
            name: number.to_string(),
            at_hook: number == 0,
            whole: true,
            rules: vec![rule(1, Parts::default(), action)],
        }
    };
    (0..depth).map(chain).collect()
}

/// Exercises the bound of depth. If this fails, a rule in force is called dead.
#[test]
fn chains_are_followed_as_deep_as_the_bound_and_what_is_deeper_is_not_called_dead() {
    let deepest = told(&nested(MAX_DEPTH));
    assert_eq!((deepest.path.len(), deepest.unclear.len()), (MAX_DEPTH, 0));
    let deeper = told(&nested(MAX_DEPTH + 1));
    assert_eq!(deeper.path, ["…"]);
    assert!(deeper.unclear[0].contains("deeper than is followed"), "{deeper:?}");
}

/// Exercises the bound of steps. If this fails, chains that call each other hold the agent up, or a rule in force is
/// called dead.
#[test]
fn rules_are_followed_up_to_the_bound_and_what_is_behind_it_is_not_called_dead() {
    let long = |before: usize| {
        let mut rules: Vec<_> = (1..=before).map(|at| rule(at, Parts::default(), Action::Continue)).collect();
        rules.push(rule(before + 1, Parts::default(), masquerade()));
        told(&[Chain { name: "POSTROUTING".to_owned(), at_hook: true, whole: true, rules }])
    };
    assert_eq!(long(MAX_STEPS - 1).path, ["POSTROUTING"]);
    let behind = long(MAX_STEPS);
    assert_eq!(behind.path, ["…"]);
    assert!(behind.unclear[0].contains("took too many steps"), "{behind:?}");
}

/// Exercises a rule to which one way is known, and to which others lead that are not followed. If this fails, it is told to be
/// for those packets only that come on the first.
#[test]
fn a_rule_to_which_ways_lead_that_are_not_followed_is_told_as_it_is_by_itself() {
    let table = Table { backend: RuleBackend::Nftables, family: RuleFamily::Ip, name: "nat".to_owned() };
    let own = || Parts { probability: 0.5, ..asking(&["--dport 443"]) };
    let target = |name: &str| chain(name, vec![(asking(&["-d 10.0.0.0/8"]), Action::Return), (own(), masquerade())]);
    let found = |chains: &[Chain]| {
        let found = source_nat(&table, chains);
        (found.rules.into_iter().rfind(|rule| rule.place.position == 2).unwrap(), found.cut)
    };
    let first =
        || Parts { probability: 0.01, protocols: Protocols::only(Protocol::TCP), ..asking(&["-s 10.1.0.0/16"]) };
    let narrow = vec![(asking(&["-o lo"]), Action::End), (first(), jump("X"))];
    let (alone, _) = found(&[chain("POSTROUTING", narrow.clone()), target("X")]);
    assert_eq!((alone.conditions.len(), alone.exceptions.len(), alone.unclear.len()), (2, 3, 0), "{alone:?}");
    let assert_wide = |more: Vec<(Parts, Action)>, others: Vec<Chain>, why: &str| {
        let rules = narrow.iter().cloned().chain(more).collect();
        let chains: Vec<Chain> = [chain("POSTROUTING", rules), target("X")].into_iter().chain(others).collect();
        let (told, cut) = found(&chains);
        assert_eq!(told.path, alone.path);
        assert_eq!((told.conditions.as_slice(), told.probability), (&["--dport 443".to_owned()][..], 0.5), "{told:?}");
        assert!(told.protocols.is_all() && told.exceptions.is_empty(), "{told:?}");
        assert!(told.unclear.len() == 1 && told.unclear[0].contains(why), "{told:?}");
        assert_eq!(cut.is_some(), why.contains("steps"), "{cut:?}");
    };
    assert_wide(vec![(asking(&["-d 10.9.0.2"]), Action::Map)], Vec::new(), "a map");
    // As deep as it goes, and one more.
    let deep = |name: usize| chain(&name.to_string(), vec![(Parts::default(), jump(&(name + 1).to_string()))]);
    let mut others: Vec<Chain> = (0..MAX_DEPTH).map(deep).collect();
    others.push(chain(&MAX_DEPTH.to_string(), vec![(Parts::default(), jump("X"))]));
    assert_wide(vec![(Parts::default(), jump("0"))], others, "deeper");
    let mut many = vec![(Parts::default(), Action::Continue); MAX_STEPS];
    many.push((Parts::default(), jump("X")));
    assert_wide(many, Vec::new(), "steps");
}

/// Exercises the bound of exceptions. If this fails, a list of a thousand networks is told whole, or cut silently.
#[test]
fn exceptions_are_told_up_to_the_bound_and_the_rest_is_counted() {
    let with = |exceptions: usize| {
        let parts = |number| Parts {
            conditions: vec![Condition::lasting(format!("-d 10.{number}.0.0/16"))],
            ..Parts::default()
        };
        let mut rules: Vec<_> = (1..=exceptions).map(|at| rule(at, parts(at), Action::End)).collect();
        rules.push(rule(exceptions + 1, Parts::default(), masquerade()));
        told(&[Chain { name: "POSTROUTING".to_owned(), at_hook: true, whole: true, rules }]).exceptions
    };
    assert_eq!(with(EXCEPTIONS_LIMIT).len(), EXCEPTIONS_LIMIT);
    let more = with(EXCEPTIONS_LIMIT + 2);
    assert_eq!((more.len(), more.last().map(String::as_str)), (EXCEPTIONS_LIMIT + 1, Some("2 more")));
}

/// Exercises rules behind one that takes every packet. If this fails, a rule that does nothing has a share, or, worse, one
/// that is in force has none.
#[test]
fn only_what_is_certainly_behind_a_rule_that_takes_everything_is_never_reached() {
    let table = Table { backend: RuleBackend::Nftables, family: RuleFamily::Ip, name: "mine".to_owned() };
    let unreached = |ahead: Parts, action: Action| {
        let rules = vec![rule(1, ahead, action), rule(2, Parts::default(), masquerade())];
        let other = Chain { name: "other".to_owned(), at_hook: false, whole: true, rules: Vec::new() };
        let told =
            source_nat(&table, &[Chain { name: "out".to_owned(), at_hook: true, whole: true, rules }, other]).rules;
        let last = told.last().unwrap();
        assert_eq!(last.unreached.is_some(), last.path.is_empty(), "{last:?}");
        last.unreached.clone()
    };
    let never = Some("never reached: behind rule 1, which takes every packet".to_owned());
    for action in [masquerade(), Action::Return, Action::End, Action::Goto("other".to_owned())] {
        let commented = Parts { comment: Some("all".to_owned()), ..Parts::default() };
        assert_eq!(unreached(commented, action.clone()), never, "{action:?}");
        for some in [
            Parts { protocols: Protocols::only(Protocol::TCP), ..Parts::default() },
            asking(&["--dport 80"]),
            Parts { conditions: vec![Condition::lasting("-o eth0")], ..Parts::default() },
            Parts { probability: 0.999, ..Parts::default() },
            Parts { conditions: vec![Condition::unclear("match `bpf`", &[])], ..Parts::default() },
            Parts { selective: true, ..Parts::default() },
        ] {
            assert_eq!(unreached(some.clone(), action.clone()), None, "{some:?} {action:?}");
        }
    }
    for action in [Action::Continue, Action::Jump("other".to_owned()), Action::Map] {
        assert_eq!(unreached(Parts::default(), action.clone()), None, "{action:?}");
    }
}

fn asking(said: &[&str]) -> Parts {
    Parts { conditions: said.iter().map(|said| Condition::lasting(*said)).collect(), ..Parts::default() }
}

fn only(protocol: Protocol) -> Parts {
    Parts { protocols: Protocols::only(protocol), ..Parts::default() }
}

/// Exercises what a map leads elsewhere, and what comes back from there. If this fails, packets are told never to come to a rule
/// that translates them.
#[test]
fn of_what_a_map_leads_elsewhere_only_some_are_told_to_be_gone() {
    let behind = |first: Vec<(Parts, Action)>| {
        let rules = first.into_iter().chain([(Parts::default(), masquerade())]).collect();
        told(&[chain("POSTROUTING", rules)]).exceptions
    };
    assert_eq!(behind(vec![(asking(&["-o in {eth0, eth1}"]), Action::Map)]), ["some of -o in {eth0, eth1}"]);
    assert_eq!(behind(vec![(only(Protocol::TCP), Action::Map)]), ["some of -p tcp"]);
    assert_eq!(behind(vec![(Parts::default(), Action::Map)]), ["some packets"]);
    let selective = Parts { selective: true, ..asking(&["-o eth0"]) };
    assert_eq!(behind(vec![(selective, Action::End)]), ["some of -o eth0"]);
    assert_eq!(behind(vec![(asking(&["-o eth0"]), Action::End)]), ["-o eth0"]);
}

/// A chain with these rules; the one at the hook is called `POSTROUTING`.
fn chain(name: &str, rules: Vec<(Parts, Action)>) -> Chain {
    let rules = rules.into_iter().zip(1..).map(|((parts, action), position)| rule(position, parts, action)).collect();
    Chain { name: name.to_owned(), at_hook: name == "POSTROUTING", whole: true, rules }
}

fn jump(to: &str) -> Action {
    Action::Jump(to.to_owned())
}

/// The last rule that translates, as `-p … conditions but exceptions`, or why nothing comes to it.
fn last(chains: &[Chain]) -> String {
    let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
    let rules = source_nat(&table, chains).rules;
    let rule = rules.iter().rfind(|rule| rule.place.chain == "POSTROUTING").unwrap();
    if let Some(why) = &rule.unreached {
        assert!(rule.path.is_empty());
        return why.clone();
    }
    let asked = rule.protocols.asked().into_iter().chain(rule.conditions.iter().cloned());
    let except = rule.exceptions.iter().map(|except| format!("but {except}"));
    asked.chain(except).collect::<Vec<_>>().join(" ")
}

/// Exercises protocols that rules in front take out, however they do it. If this fails, a rule is blamed for connections
/// that it never sees.
#[test]
fn a_rule_is_for_the_protocols_that_are_left_over_for_it() {
    let not_tcp = Protocols::ALL.without(Protocols::only(Protocol::TCP));
    let behind = |before: Vec<(Parts, Action)>| {
        let rules = before.into_iter().chain([(Parts::default(), masquerade())]).collect();
        let helper = chain("helper", vec![(only(Protocol::UDP), Action::Return), (only(Protocol::TCP), Action::End)]);
        last(&[chain("POSTROUTING", rules), helper])
    };
    for action in [Action::End, Action::Return, masquerade(), Action::Goto("helper".to_owned())] {
        assert_eq!(behind(vec![(only(Protocol::TCP), action.clone())]), "! -p tcp", "{action:?}");
        // Of some TCP only the rest is left.
        let some = Parts { protocols: Protocols::only(Protocol::TCP), ..asking(&["-o eth0"]) };
        let told = behind(vec![(some, action.clone())]);
        let expected = if action == masquerade() { "" } else { "but -p tcp -o eth0" };
        assert_eq!(told, expected, "{action:?}");
    }
    // What the helper ends does not come back, and what it returns does.
    assert_eq!(behind(vec![(Parts::default(), jump("helper"))]), "! -p tcp");
    assert_eq!(behind(vec![(asking(&["-o eth0"]), jump("helper"))]), "but -p tcp -o eth0");
    let others = Parts { protocols: not_tcp, ..Parts::default() };
    assert_eq!(behind(vec![(others.clone(), Action::End)]), "-p tcp");
    // One by one.
    let one_by_one = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(|protocol| (only(protocol), Action::End));
    assert_eq!(behind(one_by_one.to_vec()), "! -p tcp,udp,sctp");
    let all = behind(vec![(others, masquerade()), (only(Protocol::TCP), Action::End)]);
    assert_eq!(all, "never reached: behind rule 2, which takes the last packets that were left");
    // By chance, and by what is not understood, nobody knows whom.
    for doubtful in [
        Parts { probability: 0.5, ..only(Protocol::TCP) },
        Parts { selective: true, ..only(Protocol::TCP) },
        Parts { conditions: vec![Condition::unclear("match `bpf`", &[1])], ..only(Protocol::TCP) },
        Parts { conditions: vec![Condition::for_now("mark 0x1", &[])], ..only(Protocol::TCP) },
    ] {
        let told = behind(vec![(doubtful.clone(), Action::End)]);
        let expected = if doubtful.selective { "but some of -p tcp" } else { "but -p tcp " };
        assert!(told.starts_with(expected), "{doubtful:?}: {told}");
    }
}

/// Exercises chains in which everything ends. If this fails, a rule behind a jump is told to be in force though no packet
/// comes back, or, worse, one to which some come back is told to be dead.
#[test]
fn what_ends_in_a_chain_does_not_come_back_from_it() {
    let exempt = |rules: Vec<(Parts, Action)>| {
        let out = || asking(&["-o eth0"]);
        last(&[chain("POSTROUTING", vec![(out(), jump("NOMASQ")), (out(), masquerade())]), chain("NOMASQ", rules)])
    };
    let (ten, lan) = (|| asking(&["-d 10.0.0.0/8"]), || asking(&["-d 192.168.0.0/16"]));
    let taken = "never reached: rules in front of it take every packet that it asks for";
    assert_eq!(exempt(vec![(ten(), Action::End), (Parts::default(), Action::End)]), taken);
    assert_eq!(exempt(vec![(ten(), masquerade()), (Parts::default(), masquerade())]), taken);
    assert_eq!(exempt(vec![(ten(), Action::End)]), "-o eth0 but -d 10.0.0.0/8");
    // One network comes back, by itself, then because others do not.
    let returned = vec![(ten(), Action::End), (lan(), Action::Return), (Parts::default(), Action::End)];
    assert_eq!(exempt(returned), "-o eth0 -d 192.168.0.0/16 but -d 10.0.0.0/8");
    assert_eq!(exempt(vec![(asking(&["! -d 10.0.0.0/8"]), Action::End)]), "-o eth0 -d 10.0.0.0/8");
    // Two questions: what comes back is not of one kind.
    let web = || Parts { protocols: Protocols::only(Protocol::TCP), ..asking(&["--dport 80", "-d 10.0.0.0/8"]) };
    let some = exempt(vec![(web(), Action::Return), (Parts::default(), Action::End)]);
    assert_eq!(some, "-o eth0 but everything (without -p tcp --dport 80 -d 10.0.0.0/8)");
    // A rule that takes a part by chance, and one that a chain is called by.
    let chance = |probability| Parts { probability, ..Parts::default() };
    assert_eq!(exempt(vec![(chance(0.5), Action::End)]), "-o eth0 but 0.5000 of all by chance");
    let by_chance = [
        chain("POSTROUTING", vec![(chance(0.5), jump("NOMASQ")), (Parts::default(), masquerade())]),
        chain("NOMASQ", vec![(Parts::default(), Action::End)]),
    ];
    assert_eq!(last(&by_chance), "but 0.5000 of all by chance");
    // A mark may be another one when it is asked for again; in the chain called for it, it was what it was.
    let mark = || Parts { conditions: vec![Condition::for_now("mark 0x1", &[])], ..Parts::default() };
    let marked = |inner: Vec<(Parts, Action)>| {
        last(&[chain("POSTROUTING", vec![(mark(), jump("inner")), (mark(), masquerade())]), chain("inner", inner)])
    };
    assert_eq!(marked(vec![(Parts::default(), Action::End)]), "mark 0x1 but mark 0x1");
}

/// Exercises a chain that was not read, or in part. If this fails, what is behind it is told to see what may have ended there.
#[test]
fn a_chain_that_was_read_in_part_is_not_known_to_end_and_not_known_to_let_pass() {
    let unread = Chain { whole: false, ..chain("NOMASQ", vec![(Parts::default(), Action::End)]) };
    let rules = vec![(Parts::default(), jump("NOMASQ")), (Parts::default(), masquerade())];
    let empty = Chain { rules: Vec::new(), ..unread };
    assert_eq!(last(&[chain("POSTROUTING", rules), empty]), "but what `NOMASQ` takes out (not read in full)");
}

/// Exercises packets that go back from a chain, of what otherwise ends there before a rule that ends the rest. If this fails, a rule that
/// translates them is told not to be for them.
#[test]
fn what_went_back_before_is_not_counted_among_what_ends_behind_it() {
    let inner = |last: Parts| {
        vec![
            (asking(&["-s 10.0.0.0/8", "-d 10.0.0.0/8"]), Action::Return),
            (asking(&["-s 10.0.0.0/8"]), Action::End),
            (last, Action::End),
        ]
    };
    let behind = |last: Parts, condition: &str| {
        let rules = vec![(Parts::default(), jump("inner")), (asking(&[condition]), masquerade())];
        self::last(&[chain("POSTROUTING", rules), chain("inner", inner(last))])
    };
    // Of TCP, too, all from and to 10.0.0.0/8 come back.
    let left = "but -s 10.0.0.0/8 ! -d 10.0.0.0/8 but -p tcp (without -s 10.0.0.0/8 -d 10.0.0.0/8)";
    assert_eq!(behind(only(Protocol::TCP), "-o eth0"), format!("-o eth0 {left}"));
    let all = behind(Parts::default(), "-o eth0");
    assert!(!all.starts_with("never"), "{all}");
    let others = behind(Parts::default(), "! -s 10.0.0.0/8");
    assert!(others.starts_with("never reached"), "{others}");
}

/// Exercises a map in a chain that is called. If this fails, those that it sends back are told to have been translated there.
#[test]
fn what_a_map_sends_back_comes_to_the_rules_behind_the_jump() {
    let rules = vec![(Parts::default(), jump("inner")), (Parts::default(), masquerade())];
    let map = Parts { conditions: vec![Condition::for_now("-s in @some", &[])], ..Parts::default() };
    let inner = chain("inner", vec![(map, Action::Map), (Parts::default(), masquerade())]);
    assert_eq!(last(&[chain("POSTROUTING", rules), inner]), "but some of -s in @some");
}

/// Exercises a rule behind one and its opposite. If this fails, it is told to be dead though something else keeps packets from
/// both.
#[test]
fn a_rule_and_its_opposite_take_everything_only_if_nothing_else_restricts_them() {
    let behind = |first: Parts, second: Parts| {
        let rules = vec![(first, Action::End), (second, Action::End), (Parts::default(), masquerade())];
        last(&[chain("POSTROUTING", rules)])
    };
    let (yes, no) = (|| asking(&["-o eth0"]), || asking(&["! -o eth0"]));
    let all = "never reached: behind rule 2, which takes the last packets that were left";
    assert_eq!(behind(yes(), no()), all);
    assert_eq!(behind(no(), yes()), all);
    assert_eq!(behind(asking(&["IPv4"]), asking(&["IPv6"])), all);
    assert_eq!(behind(no(), Parts::default()), "never reached: behind rule 2, which takes every packet");
    // What is left of one of them is told in the positive.
    assert_eq!(behind(no(), no()), "-o eth0");
    for restricted in [
        Parts { selective: true, ..no() },
        Parts { probability: 0.9, ..no() },
        Parts { protocols: Protocols::only(Protocol::TCP), ..no() },
        asking(&["! -o eth0", "-s 10.0.0.0/8"]),
    ] {
        assert!(behind(yes(), restricted.clone()).contains("but -o eth0"), "{restricted:?}");
        // Nor is it told that only what is of eth0 comes, where more does.
        assert_ne!(
            behind(restricted.clone(), restricted.clone()).split(" but").next(),
            Some("-o eth0"),
            "{restricted:?}"
        );
    }
    // Of some protocols both halves are gone, whatever else went before.
    let ported = |said: &str| Parts { protocols: Protocols::only(Protocol::TCP), ..asking(&[said]) };
    let dual = |second: Parts| {
        let rules = vec![
            (asking(&["IPv4", "-s 10.0.0.0/8"]), Action::Return),
            (ported("IPv4"), masquerade()),
            (asking(&["IPv6", "-s fd00::/8"]), Action::Return),
            (second, masquerade()),
            (Parts::default(), masquerade()),
        ];
        last(&[chain("POSTROUTING", rules)])
    };
    let private = "but IPv4 -s 10.0.0.0/8 but IPv6 -s fd00::/8";
    assert_eq!(dual(ported("IPv6")), format!("! -p tcp {private}"));
    assert_eq!(dual(Parts { probability: 0.5, ..ported("IPv6") }), private);
    assert_eq!(dual(Parts { selective: true, ..ported("IPv6") }), private);
    assert_eq!(dual(Parts { protocols: Protocols::only(Protocol::UDP), ..ported("IPv6") }), private);
    assert_eq!(dual(Parts { protocols: Protocols::only(Protocol::TCP), ..asking(&["IPv6", "-o eth0"]) }), private);
    // An answer that may be another one for the next rule.
    let for_now = || Parts { conditions: vec![Condition::for_now("! mark 0x1", &[])], ..Parts::default() };
    assert_eq!(behind(for_now(), for_now()), "mark 0x1");
    let mark = Parts { conditions: vec![Condition::for_now("mark 0x1", &[])], ..Parts::default() };
    assert_eq!(behind(for_now(), mark), "mark 0x1 but mark 0x1");
}

/// Exercises words that leave something out. If this fails, rules that ask different things are taken for halves of one.
#[test]
fn conditions_of_the_same_words_are_told_apart_by_what_these_leave_out() {
    let of = |conditions: [Condition; 3]| {
        let rules =
            conditions.into_iter().map(|one| (Parts { conditions: vec![one], ..Parts::default() }, masquerade()));
        let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
        let found = source_nat(&table, &[chain("POSTROUTING", rules.collect())]);
        let told = |rule: SourceNatRule| match rule.unreached {
            Some(_) => "never".to_owned(),
            None => [rule.conditions, rule.unclear].concat().join(" "),
        };
        found.rules.into_iter().map(told).collect::<Vec<_>>()
    };
    let bpf = |program: u8| Condition::unclear("match `bpf`", &[program]);
    assert_eq!(of([bpf(1), bpf(2), bpf(1)]), ["match `bpf`", "match `bpf` (no. 2)", "match `bpf`"]);
    let owner = |user: u8| Condition::for_now("-m owner …", &[user]);
    assert_eq!(of([owner(1), owner(1), owner(2)]), ["-m owner …", "-m owner …", "-m owner … (no. 2)"]);
    // Those too of which the answer lasts: `eth+` may be a name, or the beginning of some.
    let (name, names) = (Condition::lasting_but("-o eth+", b"eth+\0"), || Condition::lasting_but("! -o eth+", b"eth"));
    assert_eq!(of([name, names(), names()]), ["-o eth+", "! -o eth+ (no. 2)", "never"]);
    // What one limit lets pass says nothing of the next one.
    let limit = || Condition::once("limit …");
    assert_eq!(of([limit(), limit(), limit()]), ["limit …", "limit … (no. 2)", "limit … (no. 3)"]);
}

/// Exercises the bound of what is remembered of packets that were taken out. If this fails, many rules take the agent's time,
/// or what is not remembered is taken for nothing.
#[test]
fn what_was_taken_out_is_remembered_up_to_the_bound_and_nothing_false_is_said_beyond_it() {
    let pod = |number: usize| asking(&[&format!("-s 10.0.{}.{}", number / 256, number % 256), "-d 10.0.0.0/8"]);
    let behind = |many: usize, how: Action| {
        let mut rules: Vec<_> = (0..many).map(|number| (pod(number), how.clone())).collect();
        rules.push((pod(many - 1), masquerade()));
        let outer = vec![(Parts::default(), jump("inner")), (Parts::default(), masquerade())];
        let mut inner = rules.clone();
        inner.push((Parts::default(), Action::End));
        let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
        let told = source_nat(&table, &[chain("POSTROUTING", outer), chain("inner", inner)]).rules;
        let [outer, inner] = told.try_into().unwrap();
        (outer, inner)
    };
    let taken = Some("never reached: rules in front of it take every packet that it asks for");
    // Each has two answers.
    let most = GONE_LIMIT / 2;
    let (outer, inner) = behind(most, Action::End);
    assert_eq!(inner.unreached.as_deref(), taken);
    assert!(outer.unreached.is_some());
    let (outer, inner) = behind(most + 1, Action::End);
    assert_eq!(inner.unreached, None);
    assert_eq!(inner.exceptions.last().map(String::as_str), Some(&*format!("{} more", most + 1 - EXCEPTIONS_LIMIT)));
    assert!(outer.unreached.is_some(), "what ended did end, whatever is remembered of it");
    // Of those that went back, the one that is forgotten comes to the rule behind the jump.
    let (outer, _) = behind(most + 1, Action::Return);
    assert_eq!(outer.unreached, None);
}
