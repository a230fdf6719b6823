//! What is left of packets between two rules that translate in the same chain.
//!
//! It is told from the rules of the chain alone, not from a way to it, and so holds on all of them. A rule that asks for nothing
//! that the later one does not ask for, too, takes out of what both are for by chance alone; what any other takes depends on the
//! traffic.

use std::collections::{BTreeMap, BTreeSet};

use headroom_core::observe::Between;
use headroom_core::protocols::Protocols;

use super::{Action, Chain, Lasts, Rule};

/// Chains by what may happen to packets in them, or in chains that they lead to.
pub(super) struct Chains<'a> {
    /// They end there.
    ending: BTreeSet<&'a str>,
    /// What rules ask for is changed: a mark, a set.
    changing: BTreeSet<&'a str>,
}

impl<'a> Chains<'a> {
    pub(super) fn of(chains: &'a [Chain]) -> Self {
        let ends = |rule: &Rule| matches!(rule.action, Action::End | Action::Translate(_) | Action::Map);
        Self {
            ending: with(chains, ends),
            changing: with(chains, |rule| !rule.parts.changes.is_empty() || rule.action == Action::Map),
        }
    }
}

/// The chains with such a rule, or that lead to one; of a chain that was not read nobody knows.
fn with(chains: &[Chain], such: impl Fn(&Rule) -> bool) -> BTreeSet<&str> {
    let mut callers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for chain in chains {
        for to in chain.rules.iter().filter_map(Rule::leads_to) {
            callers.entry(to).or_default().push(&chain.name);
        }
    }
    let own = chains.iter().filter(|chain| !chain.whole || chain.rules.iter().any(&such));
    let mut open: Vec<&str> = own.map(|chain| chain.name.as_str()).collect();
    let mut found = BTreeSet::new();
    while let Some(name) = open.pop() {
        if found.insert(name) {
            open.extend(callers.remove(name).unwrap_or_default());
        }
    }
    found
}

/// What the rules in front of one leave of its packets: the one that translated before, and those between, none of them in force
/// as one that translates.
pub(super) fn between(
    rule: &Rule,
    before: Option<&Rule>,
    others: &[Rule],
    whole: bool,
    chains: &Chains<'_>,
) -> Between {
    let mut between = Between::default();
    if !whole {
        between.doubt(Protocols::ALL);
    }
    if rule.parts.conditions.iter().any(|condition| condition.lasts == Lasts::ForNow) {
        for other in before.into_iter().chain(others) {
            let leads = other.leads_to().is_some_and(|to| chains.changing.contains(to));
            between.doubt(if leads { other.parts.protocols } else { other.parts.changes });
        }
    }
    for other in others {
        let parts = &other.parts;
        match &other.action {
            Action::Jump(to) if !chains.ending.contains(to.as_str()) => {}
            Action::Continue | Action::Translate(_) => {}
            Action::Return | Action::End | Action::Goto(_) if takes_by_chance(other, rule) => {
                between.leave(parts.protocols, 1.0 - parts.probability);
            }
            Action::Return | Action::End | Action::Goto(_) | Action::Jump(_) | Action::Map => {
                between.doubt(parts.protocols);
            }
        }
    }
    between
}

/// Whether it depends on chance alone which of the packets that a rule asks for are taken by the other, which comes first.
fn takes_by_chance(first: &Rule, rule: &Rule) -> bool {
    let asked = &rule.parts.conditions;
    let mut conditions = first.parts.conditions.iter();
    !first.parts.selective && conditions.all(|condition| condition.lasts == Lasts::Always && asked.contains(condition))
}
