//! Where the chains of a table lead, and which of them matter to the rules that translate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::time::Instant;

use headroom_core::observe::{NodePort, RuleFamily};

use super::super::NODE_PORTS_LIMIT;
use super::{Bound, FULL_CHAINS_LIMIT, RULES_LIMIT, kube_proxy};
use crate::netlink::nftables::glance::glance;
use crate::netlink::nftables::{self as nft, Place, Request};
use crate::netlink::query::{Query, QueryError};

/// Where a chain leads, as far as that matters.
#[derive(Debug, Default)]
pub(super) struct Links {
    translates: bool,
    map: bool,
    /// Packets end there.
    ends: bool,
    /// What rules ask for is changed there.
    changes: bool,
    chains: Vec<String>,
}

/// Looks all rules of a table over: where chains lead, how many rules there are, and whether they changed meanwhile. Of
/// kube-proxy's chain the NodePorts are kept where they are asked for.
pub(super) fn links(
    family: RuleFamily,
    table: &str,
    deadline: Instant,
    mut node_ports: Option<&mut Vec<NodePort>>,
) -> Result<(BTreeMap<String, Links>, usize, bool), QueryError> {
    let mut links: BTreeMap<String, Links> = BTreeMap::new();
    let mut current = (Vec::new(), Links::default());
    let (mut bound, mut interrupted) = (Bound::new("rules", RULES_LIMIT), false);
    let mut query = Query::open()?;
    let request = nft::request(&Request::Rules(Place { family, table, within: None }), query.next_sequence());
    let mut keep = |(chain, held): (Vec<u8>, Links)| {
        if held.translates || held.map || held.ends || held.changes || !held.chains.is_empty() {
            links.insert(nft::text(&chain), held);
        }
    };
    query.list("rules", &request, deadline, |message| {
        interrupted |= nft::is_interrupted(message);
        let Some(raw) = nft::raw_rule(message)? else { return Ok(ControlFlow::Continue(())) };
        // The rules of a chain come one after the other.
        if raw.chain != current.0 {
            keep(std::mem::replace(&mut current, (raw.chain.to_vec(), Links::default())));
        }
        let seen = glance(&raw)?;
        current.1.translates |= seen.translates;
        current.1.map |= seen.map;
        current.1.ends |= seen.ends;
        current.1.changes |= seen.changes;
        if let Some(chain) = seen.chain.map(nft::text).filter(|chain| current.1.chains.last() != Some(chain)) {
            current.1.chains.push(chain);
        }
        if let Some(found) = node_ports.as_mut().filter(|_| raw.chain == kube_proxy::CHAIN.as_bytes()) {
            // One more than is kept tells that there are more.
            if found.len() <= NODE_PORTS_LIMIT {
                found.extend(kube_proxy::of_rule(&raw, family)?);
            }
        }
        Ok(bound.one_more())
    })?;
    keep(current);
    Ok((links, bound.end()?, interrupted))
}

/// The chains that translate, those from a hook that lead by a map, and all that lead to these; and those that are called
/// from them and in which packets may end before they are translated, or what rules ask for is changed.
pub(super) fn matter<'a>(
    links: &'a BTreeMap<String, Links>,
    hooks: &'a BTreeSet<String>,
) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let mut callers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (chain, held) in links {
        for called in &held.chains {
            callers.entry(called).or_default().push(chain);
        }
    }
    let called = |chain: &'a str| {
        links.get(chain).into_iter().flat_map(|held| &held.chains).map(String::as_str).collect::<Vec<&str>>()
    };
    let leading_to = |is: &dyn Fn(&str, &Links) -> bool| {
        let all = links.iter().filter(|(chain, held)| is(chain, held)).map(|(chain, _)| chain.as_str());
        closure(all, |chain| callers.get(chain).cloned().unwrap_or_default())
    };
    let reached = closure(hooks.iter().map(String::as_str), called);
    let translating = leading_to(&|chain, held| held.translates || held.map && reached.contains(chain));
    let behind = closure(translating.iter().copied().filter(|chain| reached.contains(chain)), called);
    let ending = leading_to(&|chain, held| (held.ends || held.map || held.changes) && behind.contains(chain));
    let ending = ending.into_iter().filter(|chain| behind.contains(chain) && !translating.contains(chain)).collect();
    (translating, ending)
}

/// Everything that can be reached.
fn closure<'a>(from: impl Iterator<Item = &'a str>, next: impl Fn(&'a str) -> Vec<&'a str>) -> BTreeSet<&'a str> {
    let mut waiting: Vec<&str> = from.collect();
    let mut reached = BTreeSet::new();
    while let Some(one) = waiting.pop() {
        if reached.insert(one) {
            waiting.extend(next(one));
        }
    }
    reached
}

/// Of the chains that matter as many as are read in full, those nearest to the hooks first, and why there are no more of them: what
/// leads to a chain that is read is read as well.
pub(super) fn nearest<'a>(
    matter: &BTreeSet<&'a str>,
    links: &'a BTreeMap<String, Links>,
    hooks: &'a BTreeSet<String>,
) -> (Vec<&'a str>, Option<String>) {
    let all = matter.len();
    if all <= FULL_CHAINS_LIMIT {
        return (matter.iter().copied().collect(), None);
    }
    let mut waiting: VecDeque<&str> = hooks.iter().map(String::as_str).collect();
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut nearest = Vec::new();
    while let Some(chain) = waiting.pop_front().filter(|_| nearest.len() < FULL_CHAINS_LIMIT) {
        if matter.contains(chain) && reached.insert(chain) {
            nearest.push(chain);
            waiting.extend(links.get(chain).into_iter().flat_map(|held| &held.chains).map(String::as_str));
        }
    }
    let why = format!("of {all} chains that lead to a translating rule {} were read", nearest.len());
    (nearest, Some(why))
}
