//! Reading `nf_tables`: chains first, then the rules of tables that translate addresses, then once more those chains that
//! matter, in full. kube-proxy's NodePorts are in a chain (`iptables-nft`), decoded as it passes by, or in maps of a table of
//! its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::time::Instant;

use headroom_core::observe::{NodePort, RuleBackend, RuleFamily, ServiceProxy, SourceNatRule};

mod kube_proxy;
mod sets;

use self::sets::Sets;
use super::Reading;
use crate::netlink::nftables::rule::{glance, rule};
use crate::netlink::nftables::{self as nft, ChainHead, Element, Place, Request};
use crate::netlink::query::{Query, QueryError};
use crate::rules::source_nat::{Table, source_nat};
use crate::rules::{Chain, Rule};

/// Chains at most: kube-proxy with iptables makes some five for each Service and Endpoint.
pub const CHAINS_LIMIT: usize = 500_000;
/// Rules at most.
pub const RULES_LIMIT: usize = 1_000_000;
/// Chains that are read in full at most.
const FULL_CHAINS_LIMIT: usize = 2048;
/// Rules of them in full at most.
const FULL_RULES_LIMIT: usize = 16_384;
/// How often a table is read that changes meanwhile.
const ATTEMPTS: u32 = 3;
/// `NF_INET_LOCAL_IN` and `NF_INET_POST_ROUTING`.
const TRANSLATING_HOOKS: [u32; 2] = [1, 4];
/// Chains of `iptables` at hooks.
const IPTABLES_CHAINS: [&str; 4] = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];
/// Tables at most.
const TABLES_LIMIT: usize = 65_536;

/// A table that translates addresses.
#[derive(Debug, Default)]
struct Nat {
    /// Its chains at hooks, and those at which source addresses are translated.
    hooks: BTreeSet<String>,
    translating: BTreeSet<String>,
    /// kube-proxy has its chain of NodePorts there.
    node_ports: bool,
    /// It is switched off: the kernel keeps its rules and does not apply them.
    dormant: bool,
}

/// Counts what is listed, up to a bound.
struct Bound {
    what: &'static str,
    limit: usize,
    count: usize,
}

impl Bound {
    fn new(what: &'static str, limit: usize) -> Self {
        Self { what, limit, count: 0 }
    }

    /// One more; the list ends with the first that is too many.
    fn one_more(&mut self) -> ControlFlow<()> {
        self.count += 1;
        if self.count > self.limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// How many there are, unless that is not known.
    fn end(self) -> Result<usize, QueryError> {
        let Self { what, limit, count } = self;
        if count > limit { Err(QueryError::TooMany { what, limit }) } else { Ok(count) }
    }
}

/// Where a chain leads, as far as that matters.
#[derive(Debug, Default)]
struct Links {
    translates: bool,
    map: bool,
    chains: Vec<String>,
}

/// Reads what there is.
pub(super) fn read(reading: &mut Reading, deadline: Instant) {
    match tables(deadline) {
        Ok(tables) => {
            for ((family, name), nat) in tables {
                let result = table(reading, family, &name, &nat, deadline);
                if let Err(error) = result {
                    reading.missing.push(format!("nftables table `{} {name}`: {error}", family.name()));
                }
            }
        }
        Err(error) => {
            reading.failed += 1;
            reading.missing.push(format!("nftables: {error}"));
        }
    }
}

/// The tables with a chain of the type nat, and what of their chains matters.
fn tables(deadline: Instant) -> Result<BTreeMap<(RuleFamily, String), Nat>, QueryError> {
    let mut tables: BTreeMap<(RuleFamily, String), Nat> = BTreeMap::new();
    // Chains come table by table; without a hook of their own they are worth nothing but for their name.
    let mut with_node_ports: BTreeSet<(RuleFamily, String)> = BTreeSet::new();
    let mut query = Query::open()?;
    let dormant = dormant(&mut query, deadline)?;
    let request = nft::request(&Request::Chains, query.next_sequence());
    let mut bound = Bound::new("chains", CHAINS_LIMIT);
    query.list("chains", &request, deadline, |message| {
        let Some(ChainHead { family, table, name, nat_hook }) = nft::chain(message)? else {
            return Ok(ControlFlow::Continue(()));
        };
        if let Some(hook) = nat_hook {
            let nat = tables.entry((family, table)).or_default();
            if TRANSLATING_HOOKS.contains(&hook) {
                nat.translating.insert(name.clone());
            }
            nat.hooks.insert(name);
        } else if name == kube_proxy::CHAIN {
            with_node_ports.insert((family, table));
        }
        Ok(bound.one_more())
    })?;
    bound.end()?;
    for (place, nat) in &mut tables {
        nat.node_ports = with_node_ports.contains(place);
        nat.dormant = dormant.contains(place);
    }
    Ok(tables)
}

/// The tables that are switched off.
fn dormant(query: &mut Query, deadline: Instant) -> Result<BTreeSet<(RuleFamily, String)>, QueryError> {
    let mut dormant = BTreeSet::new();
    let request = nft::request(&Request::Tables, query.next_sequence());
    let mut bound = Bound::new("tables", TABLES_LIMIT);
    query.list("tables", &request, deadline, |message| {
        let Some(table) = nft::table(message)? else { return Ok(ControlFlow::Continue(())) };
        if table.dormant {
            dormant.insert((table.family, table.name));
        }
        Ok(bound.one_more())
    })?;
    bound.end()?;
    Ok(dormant)
}

/// Reads a table, again if it changes meanwhile.
fn table(
    reading: &mut Reading,
    family: RuleFamily,
    name: &str,
    nat: &Nat,
    deadline: Instant,
) -> Result<(), QueryError> {
    let like_iptables = name == "nat" && family != RuleFamily::Inet;
    let like_iptables = like_iptables && nat.hooks.iter().all(|chain| IPTABLES_CHAINS.contains(&chain.as_str()));
    let backend = if like_iptables { RuleBackend::IptablesNft } else { RuleBackend::Nftables };
    let seen = match (like_iptables, family) {
        (true, RuleFamily::Ip6) => "ip6tables-nft",
        (true, _) => "iptables-nft",
        (false, _) => "nftables",
    };
    if !reading.seen.contains(&seen) {
        reading.seen.push(seen);
    }
    let place = Table { backend, family, name: name.to_owned() };
    reading.dormant += usize::from(nat.dormant);
    let with_node_ports = nat.node_ports && like_iptables && !nat.dormant;
    if with_node_ports {
        reading.proxy(ServiceProxy::Iptables);
    }
    for attempt in 1..=ATTEMPTS {
        let mut node_ports = Vec::new();
        let (links, rules, interrupted) = links(family, name, deadline, with_node_ports.then_some(&mut node_ports))?;
        let (wanted, more) = nearest(matter(&links, &nat.translating), &links, &nat.translating);
        let Full { chains, changed, cut } = full(family, name, nat, &wanted, deadline)?;
        let unsteady = interrupted || changed;
        if unsteady && attempt < ATTEMPTS {
            continue;
        }
        // NodePorts of a table that keeps changing were seen all the same.
        reading.node_ports.append(&mut node_ports);
        if unsteady {
            reading.missing.push(format!("nftables table `{} {name}` changed each time it was read", family.name()));
        } else {
            reading.rules += rules;
            let left_out = more.into_iter().chain(cut);
            reading.missing.extend(left_out.map(|why| format!("nftables table `{} {name}`: {why}", family.name())));
            reading.source_nat.extend(source_nat(&place, &chains).into_iter().map(|rule| in_force(rule, nat)));
        }
        break;
    }
    if name == kube_proxy::TABLE && !like_iptables && !nat.dormant {
        reading.proxy(ServiceProxy::Nftables);
        kube_proxy::maps(reading, family, deadline);
    }
    Ok(())
}

/// A rule as it is where its table is switched off: no packet comes to it.
fn in_force(rule: SourceNatRule, nat: &Nat) -> SourceNatRule {
    if !nat.dormant {
        return rule;
    }
    let why = Some("never reached: its table is dormant (`flags dormant`)".to_owned());
    SourceNatRule { path: Vec::new(), unreached: why, ..rule }
}

/// Looks all rules of a table over: where chains lead, how many rules there are, and whether they changed meanwhile. Of
/// kube-proxy's chain the NodePorts are kept where they are asked for.
fn links(
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
        if held.translates || held.map || !held.chains.is_empty() {
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
        if let Some(chain) = seen.chain.map(nft::text).filter(|chain| current.1.chains.last() != Some(chain)) {
            current.1.chains.push(chain);
        }
        if let Some(found) = node_ports.as_mut().filter(|_| raw.chain == kube_proxy::CHAIN.as_bytes()) {
            // One more than is kept tells that there are more.
            if found.len() <= super::NODE_PORTS_LIMIT {
                found.extend(kube_proxy::of_rule(&raw, family)?);
            }
        }
        Ok(bound.one_more())
    })?;
    keep(current);
    Ok((links, bound.end()?, interrupted))
}

/// The chains that translate, those from a hook that lead by a map, and all that lead to these.
fn matter<'a>(links: &'a BTreeMap<String, Links>, hooks: &'a BTreeSet<String>) -> BTreeSet<&'a str> {
    let mut callers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (chain, held) in links {
        for called in &held.chains {
            callers.entry(called).or_default().push(chain);
        }
    }
    let reached = closure(hooks.iter().map(String::as_str), |chain| {
        links.get(chain).into_iter().flat_map(|held| &held.chains).map(String::as_str).collect()
    });
    let ends = links.iter().filter(|(chain, held)| held.translates || held.map && reached.contains(chain.as_str()));
    closure(ends.map(|(chain, _)| chain.as_str()), |chain| callers.get(chain).cloned().unwrap_or_default())
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
fn nearest<'a>(
    matter: BTreeSet<&'a str>,
    links: &'a BTreeMap<String, Links>,
    hooks: &'a BTreeSet<String>,
) -> (Vec<&'a str>, Option<String>) {
    let all = matter.len();
    if all <= FULL_CHAINS_LIMIT {
        return (matter.into_iter().collect(), None);
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

/// Chains in full.
struct Full {
    chains: Vec<Chain>,
    /// They changed meanwhile.
    changed: bool,
    /// Why some of them are missing.
    cut: Option<String>,
}

/// Reads some chains in full, in this order, for as long as there is room and time.
fn full(family: RuleFamily, table: &str, nat: &Nat, wanted: &[&str], deadline: Instant) -> Result<Full, QueryError> {
    let mut sets = Sets::new(family, table, deadline);
    let mut bound = Bound::new("rules in chains that lead to a translating one", FULL_RULES_LIMIT);
    let mut full = Full { chains: Vec::new(), changed: false, cut: None };
    for name in wanted {
        let mut rules: Vec<Rule> = Vec::new();
        let mut query = Query::open()?;
        let place = Place { family, table, within: Some(name) };
        let request = nft::request(&Request::Rules(place), query.next_sequence());
        let listed = query.list("rules", &request, deadline, |message| {
            full.changed |= nft::is_interrupted(message);
            let Some(raw) = nft::raw_rule(message)? else { return Ok(ControlFlow::Continue(())) };
            let more = bound.one_more();
            if more.is_continue() {
                let position = u32::try_from(rules.len() + 1).unwrap_or(u32::MAX);
                rules.push(rule(&raw, family, position, &mut |set| sets.shown(set))?);
            }
            Ok(more)
        });
        // The first rules of a chain do what they do, whatever comes behind them.
        full.chains.push(Chain { name: (*name).to_owned(), at_hook: nat.translating.contains(*name), rules });
        full.cut = match listed {
            Ok(()) if bound.count > bound.limit => {
                Some(format!("of the {} the first {} were read", bound.what, bound.limit))
            }
            Ok(()) => continue,
            Err(error @ QueryError::Late(_)) => {
                Some(format!("{error}; {} of {} chains were read", full.chains.len(), wanted.len()))
            }
            Err(error) => return Err(error),
        };
        break;
    }
    Ok(full)
}

/// Shows the elements of a set or map, at most so many; whether there are more.
fn elements(
    place: &Place<'_>,
    limit: usize,
    deadline: Instant,
    mut each: impl FnMut(Element<'_>),
) -> Result<bool, QueryError> {
    let mut query = Query::open()?;
    let request = nft::request(&Request::Elements(*place), query.next_sequence());
    let mut bound = Bound::new("elements", limit);
    query.list("elements", &request, deadline, |message| {
        nft::elements(message, |element| {
            if bound.one_more().is_continue() {
                each(element);
            }
        })?;
        Ok(if bound.count > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(bound.end().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the bounds of chains and rules. If this fails, half a list is taken for the whole one.
    #[test]
    fn a_list_ends_with_the_first_that_is_too_many_and_is_then_no_list() {
        let counted = |how_many: usize| {
            let mut bound = Bound::new("rules", 3);
            let read = (0..how_many).take_while(|_| bound.one_more().is_continue()).count();
            (read, bound.end().map_err(|error| error.to_string()))
        };
        assert_eq!(counted(0), (0, Ok(0)));
        assert_eq!(counted(3), (3, Ok(3)));
        assert_eq!(counted(4), (3, Err("there are more rules than 3".to_owned())));
        assert_eq!(counted(9), (3, Err("there are more rules than 3".to_owned())));
    }
}
