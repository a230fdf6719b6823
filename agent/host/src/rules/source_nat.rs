//! The rules that translate source addresses, each with the packets that come to it.
//!
//! The walk follows all packets from each hook on, through the chains and back. A chain is given the packets that enter it
//! and gives back those that ended there: they do not come to the rules behind the jump either.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use headroom_core::observe::{RuleBackend, RuleFamily, RulePlace, SourceNat, SourceNatRule};

use super::packets::{Gone, Here, How, Packets};
use super::questions::Questions;
use super::{Action, Chain, Rule, between, told};

/// Chains within chains at most; the kernel's own limit is 16 for nftables.
const MAX_DEPTH: usize = 16;
/// Steps through rules at most: chains that call each other twice over would take for ever.
const MAX_STEPS: usize = 65_536;
/// So many looks at answers of what was taken out before are one step more.
const LOOKS_PER_STEP: usize = 512;

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

/// How packets came to a place, and what they are.
#[derive(Debug, Clone)]
struct Way {
    path: Vec<String>,
    comments: Vec<String>,
    /// What chance has kept from this way.
    chances: Vec<String>,
    here: Here,
}

struct Walk<'a> {
    table: &'a Table,
    chains: BTreeMap<&'a str, &'a Chain>,
    questions: Questions,
    found: BTreeMap<RulePlace, SourceNatRule>,
    /// Why no packet came to a rule on the first way to its chain.
    never: BTreeMap<RulePlace, String>,
    /// Chains that packets come to.
    entered: BTreeSet<&'a str>,
    /// Chains in which the walk is.
    inside: BTreeSet<&'a str>,
    steps: usize,
    /// How many times packets were taken out.
    taken: usize,
    /// Why a rule may be reached on a way that was not followed.
    unfollowed: Option<&'static str>,
}

/// What a walk found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The rules that translate source addresses, by their places.
    pub rules: Vec<SourceNatRule>,
    /// Why not all ways to them were followed, if that is for their number.
    pub cut: Option<String>,
}

/// The rules of a table that translate source addresses.
///
/// Chains that are not in `chains` lead to none of them, and nothing ends there. A rule that packets reach on several ways is
/// told with what all of these have in common.
pub fn source_nat(table: &Table, chains: &[Chain]) -> Found {
    let by_name = chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
    let mut walk = Walk {
        table,
        chains: by_name,
        questions: Questions::default(),
        found: BTreeMap::new(),
        never: BTreeMap::new(),
        entered: BTreeSet::new(),
        inside: BTreeSet::new(),
        steps: 0,
        taken: 0,
        unfollowed: None,
    };
    for chain in chains.iter().filter(|chain| chain.at_hook) {
        let _ended = walk.chain(chain, Way::begin());
    }
    walk.unreached(chains);
    walk.between(chains);
    let cut = (walk.steps > MAX_STEPS).then(|| {
        format!("following its rules takes more than {MAX_STEPS} steps; some are told as they are by themselves")
    });
    Found { rules: walk.found.into_values().collect(), cut }
}

impl<'a> Walk<'a> {
    /// Goes through a chain; what ended there.
    fn chain(&mut self, chain: &'a Chain, mut way: Way) -> Vec<Rc<Gone>> {
        let mut ended: Vec<Rc<Gone>> = Vec::new();
        if way.path.len() >= MAX_DEPTH {
            self.unfollowed.get_or_insert("chains that are nested deeper than is followed may lead here");
            ended.push(self.unread(chain, &way));
            return ended;
        }
        if !self.inside.insert(&chain.name) {
            return ended;
        }
        self.entered.insert(&chain.name);
        way.path.push(chain.name.clone());
        if !chain.whole {
            ended.push(self.unread(chain, &way));
        }
        let entering = way.here.packets.clone();
        let mut behind = None;
        for rule in &chain.rules {
            self.steps += 1 + way.here.answers / LOOKS_PER_STEP;
            if self.steps > MAX_STEPS {
                self.unfollowed =
                    Some("following the rules took too many steps; a way that was not followed may lead here");
                break;
            }
            if rule.action == Action::Continue {
                continue;
            }
            if let Some(ahead) = behind {
                self.note_never(chain, rule, || said_behind(ahead));
                continue;
            }
            let packets = self.asked(&way.here, chain, rule);
            if packets.is_empty() {
                let nobody = self.asked(&Here { packets: entering.clone(), ..Here::default() }, chain, rule).is_empty();
                self.note_never(chain, rule, || said_taken(nobody));
                continue;
            }
            let (how, before) = match &rule.action {
                Action::Continue => continue,
                Action::Map => {
                    self.unfollowed.get_or_insert("a map may lead here");
                    // Some end where it leads, and others go back from there.
                    let back = self.asked(&way.here, chain, rule);
                    let back = back.taken(How::Returned, self.next_number());
                    (Some(How::Ended), vec![back])
                }
                Action::Translate(target) => {
                    self.find(place(self.table, chain, rule), &way, &packets, rule, target);
                    (Some(How::Translated), Vec::new())
                }
                Action::End => (Some(How::Ended), Vec::new()),
                Action::Return => (Some(How::Returned), Vec::new()),
                Action::Jump(to) | Action::Goto(to) => {
                    let next = self.chains.get(to.as_str()).copied();
                    let within = next.map(|next| self.chain(next, way.through(rule, packets.clone())));
                    let comes_back = matches!(rule.action, Action::Jump(_));
                    ((!comes_back).then_some(How::Returned), within.unwrap_or_default())
                }
            };
            ended.extend(before.iter().filter(|gone| gone.how != How::Returned).cloned());
            let own = how.map(|how| packets.taken(how, self.next_number()));
            // Behind a chain at a hook nothing is left to be asked.
            if let Some(how) = how.filter(|how| *how != How::Returned && way.path.len() > 1) {
                let gone = packets.taken_for_good(how, &way.here.gone, self.next_number());
                self.steps += gone.answers.len() / LOOKS_PER_STEP;
                ended.push(gone);
            }
            for gone in before.iter().chain(&own) {
                self.steps += gone.answers.len() / LOOKS_PER_STEP;
                way.here.lose(gone, || self.questions.untold());
            }
            if way.here.packets.is_empty() {
                behind = Some(rule);
            }
        }
        self.inside.remove(chain.name.as_str());
        ended
    }

    /// Those of the packets that have what a rule asks.
    fn asked(&mut self, here: &Here, chain: &Chain, rule: &Rule) -> Packets {
        let parts = &rule.parts;
        let mut packets = here.packets.clone();
        packets.protocols = packets.protocols.and(parts.protocols);
        for condition in &parts.conditions {
            packets.ask(self.questions.fulfilling(condition, &chain.name, rule.position));
        }
        if parts.selective || rule.action == Action::Map {
            packets.ask(self.questions.untold());
        }
        if parts.probability < 1.0 {
            packets.ask(self.questions.chance(parts.probability));
        }
        packets.settle(&here.gone);
        packets
    }

    /// What a chain takes out that was not read in full.
    fn unread(&mut self, chain: &Chain, way: &Way) -> Rc<Gone> {
        let mut packets = way.here.packets.clone();
        packets.ask(self.questions.unread(format!("what `{}` takes out (not read in full)", chain.name)));
        packets.taken_for_good(How::Ended, &way.here.gone, self.next_number())
    }

    fn next_number(&mut self) -> usize {
        self.taken += 1;
        self.taken
    }

    fn note_never(&mut self, chain: &Chain, rule: &Rule, why: impl FnOnce() -> String) {
        if matches!(rule.action, Action::Translate(_)) {
            self.never.entry(place(self.table, chain, rule)).or_insert_with(why);
        }
    }

    fn find(&mut self, place: RulePlace, way: &Way, packets: &Packets, rule: &Rule, target: &SourceNat) {
        let told = self.told(way, packets, rule, place.clone(), target);
        match self.found.get_mut(&place) {
            None => {
                self.found.insert(place, told);
            }
            Some(rule) => {
                rule.conditions.retain(|condition| told.conditions.contains(condition));
                rule.exceptions.retain(|exception| told.exceptions.contains(exception));
                rule.unclear.retain(|unclear| told.unclear.contains(unclear));
                rule.protocols = rule.protocols.or(told.protocols);
            }
        }
    }

    /// The rule, as packets come to it.
    fn told(&self, way: &Way, packets: &Packets, rule: &Rule, place: RulePlace, target: &SourceNat) -> SourceNatRule {
        let exceptions = told::exceptions(&self.questions, packets, &way.here);
        SourceNatRule {
            path: way.path.clone(),
            protocols: packets.protocols,
            conditions: told::conditions(&self.questions, packets, true),
            exceptions: way.chances.iter().cloned().chain(exceptions).collect(),
            probability: rule.parts.probability,
            selective: rule.parts.selective,
            comments: way.comments.iter().chain(&rule.parts.comment).cloned().collect(),
            unclear: told::conditions(&self.questions, packets, false),
            ..SourceNatRule::new(place, target.clone())
        }
    }

    /// The rule with what it asks itself, whatever packets come.
    fn by_itself(&mut self, chain: &Chain, rule: &Rule, place: RulePlace, target: &SourceNat) -> SourceNatRule {
        let packets = self.asked(&Here::default(), chain, rule);
        self.told(&Way::begin(), &packets, rule, place, target)
    }

    /// The same where packets may come on a way that was not followed.
    fn anyhow(&mut self, chain: &Chain, rule: &Rule, place: RulePlace, target: &SourceNat, why: &str) -> SourceNatRule {
        let mut told = self.by_itself(chain, rule, place, target);
        told.unclear.push(why.to_owned());
        told
    }

    /// What is left between the rules in force, now that it is known which are.
    fn between(&mut self, chains: &[Chain]) {
        let by_what_happens = between::Chains::of(chains);
        for chain in chains {
            let (mut since, mut before) = (0, None);
            for (index, rule) in chain.rules.iter().enumerate() {
                let found = self.found.get_mut(&place(self.table, chain, rule));
                let Some(found) = found.filter(|found| found.unreached.is_none()) else { continue };
                let others = chain.rules.get(since..index).unwrap_or_default();
                found.between = between::between(rule, before, others, chain.whole, &by_what_happens);
                (since, before) = (index + 1, Some(rule));
            }
        }
    }

    /// Rules to which nothing leads: they do nothing, unless a way leads to them that was not followed.
    fn unreached(&mut self, chains: &[Chain]) {
        let called: BTreeSet<&str> = chains.iter().flat_map(|chain| &chain.rules).filter_map(Rule::leads_to).collect();
        for chain in chains {
            let mut ahead: Option<&Rule> = None;
            for rule in &chain.rules {
                let behind = ahead;
                ahead = ahead.or_else(|| rule.takes_all().then_some(rule));
                let Action::Translate(target) = &rule.action else { continue };
                let place = place(self.table, chain, rule);
                // Nothing else leads to a chain at a hook.
                let unfollowed = self.unfollowed.filter(|_| !chain.at_hook || !self.never.contains_key(&place));
                if let Some(found) = self.found.remove(&place) {
                    let unfollowed = unfollowed.filter(|_| !chain.at_hook);
                    let found = match unfollowed {
                        Some(why) => SourceNatRule {
                            path: found.path,
                            comments: found.comments,
                            ..self.anyhow(chain, rule, place.clone(), target, why)
                        },
                        None => found,
                    };
                    self.found.insert(place, found);
                    continue;
                }
                let why = match (behind, unfollowed, self.never.remove(&place)) {
                    (Some(ahead), ..) => Ok(said_behind(ahead)),
                    (None, Some(why), _) => Err(why),
                    (None, None, Some(never)) => Ok(never),
                    (None, None, None) if called.contains(chain.name.as_str()) => {
                        Ok("never reached: no packet comes to its chain".to_owned())
                    }
                    (None, None, None) => Ok("never reached: nothing leads to its chain".to_owned()),
                };
                let told = match why {
                    Ok(never) => {
                        SourceNatRule { unreached: Some(never), ..self.by_itself(chain, rule, place.clone(), target) }
                    }
                    Err(why) => SourceNatRule {
                        path: vec!["…".to_owned()],
                        ..self.anyhow(chain, rule, place.clone(), target, why)
                    },
                };
                self.found.insert(place, told);
            }
        }
    }
}

impl Way {
    /// At a hook, all packets.
    fn begin() -> Self {
        Self { path: Vec::new(), comments: Vec::new(), chances: Vec::new(), here: Here::default() }
    }

    /// Those that a rule sends to another chain.
    fn through(&self, rule: &Rule, packets: Packets) -> Self {
        let mut way = self.clone();
        way.comments.extend(rule.parts.comment.clone());
        let (kept, chain) = (1.0 - rule.parts.probability, self.path.last().map_or("", String::as_str));
        if kept > 0.0 {
            way.chances.push(format!("{kept:.4} of all by chance at `{chain}` rule {}", rule.position));
        }
        way.here.packets = packets;
        way
    }
}

fn said_behind(ahead: &Rule) -> String {
    let what = match ahead.leads_to() {
        _ if ahead.takes_all() => "which takes every packet".to_owned(),
        Some(chain) => format!("which leads the last packets that were left to `{chain}`, where all end"),
        None => "which takes the last packets that were left".to_owned(),
    };
    format!("never reached: behind rule {}, {what}", ahead.position)
}

fn said_taken(nobody: bool) -> String {
    let why = if nobody {
        "no packet that comes to its chain is what it asks"
    } else {
        "rules in front of it take every packet that it asks for"
    };
    format!("never reached: {why}")
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

#[cfg(test)]
mod tests;
