//! What is left of packets between two rules that translate in the same chain.
//!
//! It is told from the rules of the chain alone, not from a way to it, and so holds on all of them. A rule that asks for nothing
//! that the later one does not ask for, too, takes out of what both are for by chance alone; what any other takes depends on the
//! traffic.

use std::collections::{BTreeMap, BTreeSet};

use headroom_core::observe::Between;
use headroom_core::protocols::Protocols;

use super::{Action, Chain, Lasts, Rule};

/// The chains in which packets may end, or in chains that they lead to.
pub(super) fn ending(chains: &[Chain]) -> BTreeSet<&str> {
    let ends = |rule: &Rule| matches!(rule.action, Action::End | Action::Translate(_) | Action::Map);
    let mut callers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for chain in chains {
        for to in chain.rules.iter().filter_map(Rule::leads_to) {
            callers.entry(to).or_default().push(&chain.name);
        }
    }
    let own = chains.iter().filter(|chain| !chain.whole || chain.rules.iter().any(ends));
    let mut open: Vec<&str> = own.map(|chain| chain.name.as_str()).collect();
    let mut ending = BTreeSet::new();
    while let Some(name) = open.pop() {
        if ending.insert(name) {
            open.extend(callers.remove(name).unwrap_or_default());
        }
    }
    ending
}

/// What the rules in front of one leave of its packets, none of them in force as one that translates.
pub(super) fn between(rule: &Rule, others: &[Rule], whole: bool, ending: &BTreeSet<&str>) -> Between {
    let mut between = Between::default();
    if !whole {
        between.doubt(Protocols::ALL);
    }
    for other in others {
        let parts = &other.parts;
        match &other.action {
            Action::Jump(to) if !ending.contains(to.as_str()) => {}
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
