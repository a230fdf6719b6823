//! Reading `nf_tables`: chains first, then the rules of tables that translate addresses, then once more those chains that
//! matter, in full. kube-proxy's NodePorts are in a chain (`iptables-nft`), decoded as it passes by, or in maps of a table of
//! its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Instant;

use headroom_core::observe::{RuleBackend, RuleFamily, ServiceProxy, SourceNatRule};

mod kube_proxy;
mod links;
mod sets;

use self::links::{links, matter, nearest};
use self::sets::Sets;
use super::Reading;
use crate::netlink::nftables::rule::rule;
use crate::netlink::nftables::{self as nft, ChainHead, Element, Place, Request};
use crate::netlink::query::{Query, QueryError};
use crate::rules::source_nat::{Table, source_nat};
use crate::rules::{Chain, ENDING_RULES_LIMIT, Rule};

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
        let (translating, ending) = matter(&links, &nat.translating);
        let (wanted, more) = nearest(&translating, &links, &nat.translating);
        let wanted = Wanted { leading: &wanted, ending: &ending, all: &translating };
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
            let found = source_nat(&place, &chains);
            let left_out = more.into_iter().chain(cut).chain(found.cut);
            reading.missing.extend(left_out.map(|why| format!("nftables table `{} {name}`: {why}", family.name())));
            reading.source_nat.extend(found.rules.into_iter().map(|rule| in_force(rule, nat)));
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

/// Chains to be read in full.
struct Wanted<'a> {
    /// Those that lead to a translating rule, as many as are read.
    leading: &'a [&'a str],
    /// Those in which packets may end before.
    ending: &'a BTreeSet<&'a str>,
    /// All that lead to a translating rule.
    all: &'a BTreeSet<&'a str>,
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
fn full(
    family: RuleFamily,
    table: &str,
    nat: &Nat,
    wanted: &Wanted<'_>,
    deadline: Instant,
) -> Result<Full, QueryError> {
    let mut sets = Sets::new(family, table, deadline);
    let mut full = Full { chains: Vec::new(), changed: false, cut: None };
    let mut read = |name: &str, bound: &mut Bound, full: &mut Full| {
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
        let whole = listed.is_ok() && bound.count <= bound.limit;
        full.chains.push(Chain { name: name.to_owned(), at_hook: nat.translating.contains(name), whole, rules });
        listed.map(|()| whole)
    };
    let mut bound = Bound::new("rules in chains that lead to a translating one", FULL_RULES_LIMIT);
    for name in wanted.leading {
        full.cut = match read(name, &mut bound, &mut full) {
            Ok(true) => continue,
            Ok(false) => Some(format!("of the {} the first {} were read", bound.what, bound.limit)),
            Err(error @ QueryError::Late(_)) => {
                Some(format!("{error}; {} of {} chains were read", full.chains.len(), wanted.leading.len()))
            }
            Err(error) => return Err(error),
        };
        break;
    }
    let mut bound = Bound::new("rules in chains in which packets end", ENDING_RULES_LIMIT);
    for name in wanted.ending.iter().take(FULL_CHAINS_LIMIT) {
        match read(name, &mut bound, &mut full) {
            Ok(true) => {}
            Ok(false) | Err(QueryError::Late(_)) => break,
            Err(error) => return Err(error),
        }
    }
    full.name_unread(wanted);
    Ok(full)
}

impl Full {
    /// Chains that are called and were not read: nobody knows what ends there.
    fn name_unread(&mut self, wanted: &Wanted<'_>) {
        let read: BTreeSet<&str> = self.chains.iter().map(|chain| chain.name.as_str()).collect();
        let called = self.chains.iter().flat_map(|chain| &chain.rules).filter_map(Rule::leads_to);
        let matters = |name: &&str| !read.contains(name) && (wanted.ending.contains(name) || wanted.all.contains(name));
        let unread: BTreeSet<String> = called.filter(matters).map(str::to_owned).collect();
        let unread = unread.into_iter().map(|name| Chain { name, at_hook: false, whole: false, rules: Vec::new() });
        self.chains.extend(unread.collect::<Vec<_>>());
    }
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
