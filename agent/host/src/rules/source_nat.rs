//! The rules that translate source addresses, each with what leads to it and what is taken out before it.

use std::collections::{BTreeMap, BTreeSet};

use headroom_core::flow::Protocol;
use headroom_core::observe::{RuleBackend, RuleFamily, RulePlace, SourceNat, SourceNatRule};

use super::{Action, Chain, Parts, Rule};

/// Chains within chains at most; the kernel's own limit is 16 for nftables.
const MAX_DEPTH: usize = 16;
/// Steps through rules at most: chains that call each other twice over would take for ever.
const MAX_STEPS: usize = 65_536;
/// Exceptions told of one rule at most.
const MAX_EXCEPTIONS: usize = 16;

/// A table, by its interface, its family and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The interface it was made through.
    pub backend: RuleBackend,
    /// Whose packets it sees.
    pub family: RuleFamily,
    /// Its name.
    pub name: String,
}

/// What holds for a packet on its way.
#[derive(Debug, Clone, Default)]
struct Way {
    path: Vec<String>,
    protocol: Option<Protocol>,
    conditions: Vec<String>,
    comments: Vec<String>,
    unclear: Vec<String>,
    probability: f64,
}

struct Walk<'a> {
    table: &'a Table,
    chains: BTreeMap<&'a str, &'a Chain>,
    /// Taken out for good, from the hook on.
    ended: Vec<String>,
    found: BTreeMap<RulePlace, SourceNatRule>,
    /// Chains that packets come to.
    entered: BTreeSet<&'a str>,
    steps: usize,
    /// Why a rule may be reached on a way that was not followed.
    unfollowed: Option<&'static str>,
}

/// The rules of a table that translate source addresses.
///
/// Chains that are not in `chains` lead to none of them. A rule that packets reach on several ways is told with what all of
/// these have in common.
pub fn source_nat(table: &Table, chains: &[Chain]) -> Vec<SourceNatRule> {
    let by_name = chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
    let mut walk = Walk {
        table,
        chains: by_name,
        ended: Vec::new(),
        found: BTreeMap::new(),
        entered: BTreeSet::new(),
        steps: 0,
        unfollowed: None,
    };
    for chain in chains.iter().filter(|chain| chain.at_hook) {
        walk.ended.clear();
        let way = Way { probability: 1.0, ..Way::default() };
        walk.chain(chain, &way, &mut BTreeSet::new());
    }
    walk.unreached(chains);
    walk.found.into_values().collect()
}

impl<'a> Walk<'a> {
    fn chain(&mut self, chain: &'a Chain, way: &Way, inside: &mut BTreeSet<&'a str>) {
        if way.path.len() >= MAX_DEPTH {
            self.unfollowed.get_or_insert("chains that are nested deeper than is followed may lead here");
            return;
        }
        if !inside.insert(&chain.name) {
            return;
        }
        self.entered.insert(&chain.name);
        let mut way = way.clone();
        // Taken out for the rest of this chain only.
        let mut returned: Vec<String> = Vec::new();
        for rule in &chain.rules {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                self.unfollowed = Some("there are more ways through the rules than are followed; one may lead here");
                break;
            }
            match &rule.action {
                Action::Continue => {}
                Action::Map => self.unfollowed = self.unfollowed.or(Some("a map may lead here")),
                Action::Translate(target) => {
                    let Some(way) = way.through(&rule.parts, Some(&chain.name)) else { continue };
                    let exceptions = exceptions(self.ended.iter().chain(&returned));
                    self.find(place(self.table, chain, rule), &way, exceptions, target.clone());
                }
                Action::Jump(to) | Action::Goto(to) => {
                    let next = self.chains.get(to.as_str()).copied();
                    if let (Some(next), Some(way)) = (next, way.through(&rule.parts, Some(&chain.name))) {
                        let before = self.ended.len();
                        self.ended.extend(returned.iter().cloned());
                        let own = self.ended.len();
                        self.chain(next, &way, inside);
                        // What a chain called only for some ends for good is ended for those only.
                        let ended = self.ended.split_off(own);
                        self.ended.truncate(before);
                        self.ended.extend(ended.into_iter().map(|what| within(&rule.parts, &what)));
                    }
                    if matches!(rule.action, Action::Goto(_)) {
                        returned.push(rule.parts.sentence());
                    }
                }
                Action::Return if rule.parts.probability >= 1.0 => match rule.parts.opposite() {
                    Some(condition) => way.conditions.push(condition.to_owned()),
                    None => returned.push(rule.parts.sentence()),
                },
                Action::End if rule.parts.probability >= 1.0 => self.ended.push(rule.parts.sentence()),
                Action::Return | Action::End => {}
            }
            // What follows in this chain, no packet comes to on any way.
            if rule.takes_all() {
                break;
            }
        }
        inside.remove(chain.name.as_str());
    }

    fn find(&mut self, place: RulePlace, way: &Way, exceptions: Vec<String>, target: SourceNat) {
        match self.found.get_mut(&place) {
            None => {
                let rule = SourceNatRule { exceptions, ..way.clone().to(place.clone(), target) };
                self.found.insert(place, rule);
            }
            Some(rule) => {
                rule.conditions.retain(|condition| way.conditions.contains(condition));
                rule.exceptions.retain(|exception| exceptions.contains(exception));
                rule.probability = rule.probability.max(way.probability);
                rule.protocol = rule.protocol.filter(|_| rule.protocol == way.protocol);
            }
        }
    }

    /// Rules to which nothing leads: they do nothing, unless a map leads to them.
    fn unreached(&mut self, chains: &[Chain]) {
        for chain in chains {
            let mut ahead: Option<u32> = None;
            for rule in &chain.rules {
                let behind = ahead;
                ahead = ahead.or_else(|| rule.takes_all().then_some(rule.position));
                let Action::Translate(target) = &rule.action else { continue };
                let place = place(self.table, chain, rule);
                if self.found.contains_key(&place) {
                    continue;
                }
                let way = Way { probability: 1.0, ..Way::default() };
                let Some(mut way) = way.through(&rule.parts, None) else { continue };
                let why = match (behind, self.unfollowed) {
                    (Some(ahead), _) => Some(format!("never reached: behind rule {ahead}, which takes every packet")),
                    (None, Some(why)) => {
                        way.path.push("…".to_owned());
                        way.unclear.push(why.to_owned());
                        None
                    }
                    (None, None) if self.entered.contains(chain.name.as_str()) => {
                        Some("never reached: no packet that comes to its chain is what it asks".to_owned())
                    }
                    (None, None) => Some("never reached: nothing leads to its chain".to_owned()),
                };
                let rule = SourceNatRule { unreached: why, ..way.to(place.clone(), target.clone()) };
                self.found.insert(place, rule);
            }
        }
    }
}

impl Way {
    /// The rule at the end of this way.
    fn to(self, place: RulePlace, target: SourceNat) -> SourceNatRule {
        let Self { path, protocol, conditions, comments, unclear, probability } = self;
        let rule = SourceNatRule::new(place, target);
        SourceNatRule { path, protocol, conditions, comments, unclear, probability, ..rule }
    }

    /// The way through a rule, by a jump of `chain` if there is one; `None` where no packet can go.
    fn through(&self, parts: &Parts, chain: Option<&str>) -> Option<Self> {
        let mut way = self.clone();
        way.path.extend(chain.map(str::to_owned));
        match (way.protocol, parts.protocol) {
            (Some(here), Some(asked)) if here != asked => return None,
            (here, asked) => way.protocol = here.or(asked),
        }
        for condition in &parts.conditions {
            if !way.conditions.contains(condition) {
                way.conditions.push(condition.clone());
            }
        }
        way.comments.extend(parts.comment.clone());
        way.unclear.extend(parts.unclear.iter().cloned());
        way.probability *= parts.probability;
        Some(way)
    }
}

fn place(table: &Table, chain: &Chain, rule: &Rule) -> RulePlace {
    RulePlace {
        backend: table.backend,
        family: table.family,
        table: table.name.clone(),
        chain: chain.name.clone(),
        position: rule.position,
    }
}

fn within(jump: &Parts, what: &str) -> String {
    let jump = jump.sentence();
    match (jump.as_str(), what) {
        ("everything", what) => what.to_owned(),
        (_, "everything") => jump,
        (_, what) => format!("{jump} {what}"),
    }
}

fn exceptions<'a>(all: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    let mut more = 0_usize;
    for one in all {
        if seen.contains(one) {
            continue;
        }
        if seen.len() < MAX_EXCEPTIONS { seen.push(one.clone()) } else { more += 1 }
    }
    if more > 0 {
        seen.push(format!("{more} more"));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(position: usize, parts: Parts, action: Action) -> Rule {
        Rule { position: u32::try_from(position).unwrap(), parts, action }
    }

    fn masquerade() -> Action {
        Action::Translate(SourceNat::MASQUERADE)
    }

    fn told(chains: &[Chain]) -> SourceNatRule {
        let table = Table { backend: RuleBackend::IptablesLegacy, family: RuleFamily::Ip, name: "nat".to_owned() };
        let [rule] = source_nat(&table, chains).try_into().unwrap();
        rule
    }

    /// A hook whose chain leads through others, `depth` in all, to a rule that translates.
    fn nested(depth: usize) -> Vec<Chain> {
        let chain = |number: usize| {
            let last = number + 1 == depth;
            let action = if last { masquerade() } else { Action::Jump(format!("{}", number + 1)) };
            Chain { name: number.to_string(), at_hook: number == 0, rules: vec![rule(1, Parts::default(), action)] }
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
            told(&[Chain { name: "POSTROUTING".to_owned(), at_hook: true, rules }])
        };
        assert_eq!(long(MAX_STEPS - 1).path, ["POSTROUTING"]);
        let behind = long(MAX_STEPS);
        assert_eq!(behind.path, ["…"]);
        assert!(behind.unclear[0].contains("more ways through the rules"), "{behind:?}");
    }

    /// Exercises the bound of exceptions. If this fails, a list of a thousand networks is told whole, or cut silently.
    #[test]
    fn exceptions_are_told_up_to_the_bound_and_the_rest_is_counted() {
        let with = |exceptions: usize| {
            let parts = |number| Parts { conditions: vec![format!("-d 10.{number}.0.0/16")], ..Parts::default() };
            let mut rules: Vec<_> = (1..=exceptions).map(|at| rule(at, parts(at), Action::End)).collect();
            rules.push(rule(exceptions + 1, Parts::default(), masquerade()));
            told(&[Chain { name: "POSTROUTING".to_owned(), at_hook: true, rules }]).exceptions
        };
        assert_eq!(with(MAX_EXCEPTIONS).len(), MAX_EXCEPTIONS);
        let more = with(MAX_EXCEPTIONS + 2);
        assert_eq!((more.len(), more.last().map(String::as_str)), (MAX_EXCEPTIONS + 1, Some("2 more")));
    }

    /// Exercises rules behind one that takes every packet. If this fails, a rule that does nothing has a share, or, worse, one
    /// that is in force has none.
    #[test]
    fn only_what_is_certainly_behind_a_rule_that_takes_everything_is_never_reached() {
        let table = Table { backend: RuleBackend::Nftables, family: RuleFamily::Ip, name: "mine".to_owned() };
        let unreached = |ahead: Parts, action: Action| {
            let rules = vec![rule(1, ahead, action), rule(2, Parts::default(), masquerade())];
            let other = Chain { name: "other".to_owned(), at_hook: false, rules: Vec::new() };
            let told = source_nat(&table, &[Chain { name: "out".to_owned(), at_hook: true, rules }, other]);
            let last = told.last().unwrap();
            assert_eq!(last.unreached.is_some(), last.path.is_empty(), "{last:?}");
            last.unreached.clone()
        };
        let never = Some("never reached: behind rule 1, which takes every packet".to_owned());
        for action in [masquerade(), Action::Return, Action::End, Action::Goto("other".to_owned())] {
            let commented = Parts { comment: Some("all".to_owned()), ..Parts::default() };
            assert_eq!(unreached(commented, action.clone()), never, "{action:?}");
            for some in [
                Parts { protocol: Some(Protocol::TCP), ..Parts::default() },
                Parts { destination_port: Some(80), ..Parts::default() },
                Parts { conditions: vec!["-o eth0".to_owned()], ..Parts::default() },
                Parts { probability: 0.999, ..Parts::default() },
                Parts { unclear: vec!["match `bpf`".to_owned()], ..Parts::default() },
                Parts { selective: true, ..Parts::default() },
            ] {
                assert_eq!(unreached(some.clone(), action.clone()), None, "{some:?} {action:?}");
            }
        }
        for action in [Action::Continue, Action::Jump("other".to_owned()), Action::Map] {
            assert_eq!(unreached(Parts::default(), action.clone()), None, "{action:?}");
        }
    }
}
