//! Rules that nobody wrote, followed packet by packet.

use proptest::prelude::*;

use super::*;

const CHAINS: [&str; 4] = ["POSTROUTING", "one", "two", "three"];
const QUESTIONS: [&str; 3] = ["-o eth0", "-s 10.0.0.0/8", "IPv4"];
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::ICMP];

/// What a rule does, and with which other chain.
fn action(chain: usize, to: usize, kind: usize) -> Action {
    // Chains call those behind them only.
    let next = CHAINS.get(chain + 1 + to).map(|name| (*name).to_owned());
    match (kind, next) {
        (0 | 1, Some(next)) => Action::Jump(next),
        (2, Some(next)) => Action::Goto(next),
        (0..=3, _) => Action::Return,
        (4, _) => Action::End,
        _ => masquerade(),
    }
}

/// Which protocols, which answer to each question (2: not asked), where to, what.
type Written = (usize, [usize; 3], usize, usize);

fn written(chain: usize, (protocols, answers, to, kind): Written) -> (Parts, Action) {
    let asked = QUESTIONS.iter().zip(answers).filter(|(_, answer)| *answer < 2);
    let said: Vec<String> =
        asked.map(|(said, answer)| if answer == 0 { (*said).to_owned() } else { format!("! {said}") }).collect();
    let mut parts = asking(&said.iter().map(String::as_str).collect::<Vec<_>>());
    parts.protocols = match protocols {
        0..3 => Protocols::only(PROTOCOLS[protocols]),
        3..6 => Protocols::ALL.without(Protocols::only(PROTOCOLS[protocols - 3])),
        _ => Protocols::ALL,
    };
    (parts, action(chain, to, kind))
}

/// A packet: its protocol, and a bit for the answer to each question.
type Packet = (Protocol, usize);

fn has(parts: &Parts, (protocol, bits): Packet) -> bool {
    let answer = |condition: &Condition| {
        let (said, yes) =
            condition.said.strip_prefix("! ").map_or((condition.said.as_str(), true), |said| (said, false));
        let index = QUESTIONS.iter().position(|question| *question == said).unwrap();
        (bits >> index & 1 == 1) == yes
    };
    parts.protocols.contains(protocol) && parts.conditions.iter().all(answer)
}

/// Sends a packet through a chain as the kernel does; whether it comes back.
fn send(chains: &[Chain], name: &str, packet: Packet, seen: &mut BTreeSet<(String, u32, Protocol, usize)>) -> bool {
    let chain = chains.iter().find(|chain| chain.name == name).unwrap();
    for rule in chain.rules.iter().filter(|rule| has(&rule.parts, packet)) {
        match &rule.action {
            Action::Jump(to) if send(chains, to, packet, seen) => {}
            Action::Jump(_) | Action::End => return false,
            Action::Goto(to) => return send(chains, to, packet, seen),
            Action::Return => return true,
            Action::Translate(_) => {
                seen.insert((name.to_owned(), rule.position, packet.0, packet.1));
                return false;
            }
            Action::Continue | Action::Map => {}
        }
    }
    true
}

/// An exception, read back: protocols, and answers to questions.
fn in_parts(said: &str) -> Parts {
    let (mut parts, mut not, mut rest) = (Parts::default(), false, said);
    while !rest.is_empty() {
        if let Some(more) = rest.strip_prefix("! ") {
            (not, rest) = (true, more);
        } else if let Some(more) = rest.strip_prefix("-p ") {
            let (names, more) = more.split_once(' ').unwrap_or((more, ""));
            let is = |protocol: Protocol| names.split(',').any(|name| name == protocol.to_string());
            parts.protocols = Protocols::that(|protocol| is(protocol) != not);
            (not, rest) = (false, more);
        } else {
            let said = ["IPv6"].into_iter().chain(QUESTIONS).find(|question| rest.starts_with(question)).unwrap();
            let turned = not != (said == "IPv6");
            let upright = if said == "IPv6" { "IPv4" } else { said };
            parts.conditions.push(Condition::lasting(format!("{}{upright}", if turned { "! " } else { "" })));
            (not, rest) = (false, rest[said.len()..].trim_start());
        }
    }
    parts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8192, ..ProptestConfig::default() })]

    /// Exercises the walk against packets that are sent one by one. If this fails, a rule that translates is told to be dead,
    /// or not to be for a protocol that it translates, or its conditions are not what its packets are, or its exceptions are.
    #[test]
    fn packets_come_only_where_the_walk_says_that_they_may(
        rules in prop::collection::vec(
            prop::collection::vec((0..9_usize, [0..5_usize, 0..5, 0..5], 0..3_usize, 0..7_usize), 0..5), 4),
    ) {
        let chains: Vec<Chain> = CHAINS.iter().zip(rules).enumerate()
            .map(|(index, (name, rules))| chain(name, rules.into_iter().map(|one| written(index, one)).collect()))
            .collect();
        let mut seen = BTreeSet::new();
        for protocol in PROTOCOLS {
            for bits in 0..8 {
                send(&chains, "POSTROUTING", (protocol, bits), &mut seen);
            }
        }
        let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
        for told in source_nat(&table, &chains).rules {
            let here = seen.iter().filter(|(chain, position, ..)| (chain, *position) == (&told.place.chain, told.place.position));
            for (_, _, protocol, bits) in here {
                prop_assert_eq!(&told.unreached, &None, "{:?} {}: {:?} {:#?}", protocol, bits, &told, &chains);
                prop_assert!(told.protocols.contains(*protocol), "{:?} {}: {:?} {:#?}", protocol, bits, &told, &chains);
                let told_of = Parts {
                    conditions: told.conditions.iter().map(|said| match said.as_str() {
                        "IPv6" => Condition::lasting("! IPv4"),
                        said => Condition::lasting(said),
                    }).collect(),
                    ..Parts::default()
                };
                prop_assert!(has(&told_of, (*protocol, *bits)), "{:?} {}: {:?} {:#?}", protocol, bits, &told, &chains);
                let is_one = |said: &String| has(&in_parts(said), (*protocol, *bits));
                // Those that something was taken out of before, or that are not told, may be any.
                let mut in_full = told.exceptions.iter().filter(|said| !said.contains('(') && !said.ends_with(" more"));
                prop_assert_eq!(in_full.find(|said| is_one(said)), None, "{:?} {}: {:?} {:#?}", protocol, bits, &told, &chains);
            }
        }
    }
}

/// Of rules of one protocol each and of one question each the walk misses nothing: what no packet reaches is told to be dead.
/// If this fails, a rule is blamed that does nothing.
#[test]
fn of_simple_rules_every_dead_one_is_found() {
    let parts = [only(Protocol::TCP), asking(&["-o eth0"]), asking(&["! -o eth0"]), Parts::default()];
    let actions = |chain: usize| (0..6).map(move |kind| action(chain, 0, kind));
    let mut dead = 0;
    for (first, second) in parts.iter().flat_map(|first| parts.iter().map(move |second| (first, second))) {
        for (outer, inner) in actions(0).flat_map(|outer| actions(1).map(move |inner| (outer.clone(), inner))) {
            let last = (only(Protocol::TCP), masquerade());
            let chains = [
                chain("POSTROUTING", vec![(first.clone(), outer), (Parts::default(), jump("one")), last.clone()]),
                chain("one", vec![(second.clone(), inner), last]),
                chain("two", vec![(first.clone(), Action::End)]),
                chain("three", Vec::new()),
            ];
            let mut seen = BTreeSet::new();
            for packet in [Protocol::TCP, Protocol::ICMP].into_iter().flat_map(|one| [(one, 0), (one, 1)]) {
                send(&chains, "POSTROUTING", packet, &mut seen);
            }
            let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
            for told in source_nat(&table, &chains).rules {
                let place = (&told.place.chain, told.place.position);
                let reached = seen.iter().any(|(chain, position, ..)| (chain, *position) == place);
                assert_eq!(told.unreached.is_none(), reached, "{told:?} {chains:#?}");
                dead += usize::from(!reached);
            }
        }
    }
    assert!(dead > 500, "{dead}");
}
