//! A table of `x_tables` as the kernel hands it out: entries one after the other, jumps as offsets.
//!
//! Layout: `struct ipt_entry`, `struct ip6t_entry`, `struct xt_entry_match` (`uapi/linux/netfilter*/`; stable). A chain of the
//! user's begins behind an entry with the target `ERROR` that holds its name; those at hooks begin where
//! `IPT_SO_GET_INFO` says.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use headroom_core::observe::{NodePort, RuleFamily, ServiceProxy};

use super::xt::{self, text, u16_at, u32_at};
use crate::rules::{Action, Chain, Condition, ENDING_RULES_LIMIT, Parts, Rule};

/// Where chains of translation begin: `NF_INET_LOCAL_IN` and `NF_INET_POST_ROUTING`.
const TRANSLATING_HOOKS: [(usize, &str); 2] = [(1, "INPUT"), (4, "POSTROUTING")];
/// `struct xt_entry_match` and `struct xt_entry_target`: size, name, revision.
const EXTENSION_HEADER: usize = 32;
/// `XT_RETURN`.
const RETURN: i32 = -5;

/// A table that is not laid out as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entry at byte {at} is not laid out as the kernel does")]
pub struct BadTable {
    /// Where.
    pub at: usize,
}

/// What of a table matters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// The chains that translate source addresses, those that lead there, and those in which packets end before, or in which
    /// what rules ask for is changed.
    pub chains: Vec<Chain>,
    /// NodePorts of kube-proxy.
    pub node_ports: Vec<NodePort>,
    /// kube-proxy has its chains there.
    pub kube_proxy: bool,
    /// Rules in all, without those that only hold a chain's name.
    pub rules: usize,
}

/// An entry, by its place.
#[derive(Clone, Copy)]
struct Entry<'a> {
    head: &'a [u8],
    matches: &'a [u8],
    target: &'a [u8],
}

/// One chain while the table is read.
struct Found<'a> {
    name: String,
    at_hook: bool,
    entries: Vec<Entry<'a>>,
}

/// How the heads of entries are laid out.
struct Layout {
    /// `target_offset`; `next_offset` follows.
    offsets: usize,
    /// Where matches begin.
    size: usize,
}

fn layout(family: RuleFamily) -> Layout {
    match family {
        RuleFamily::Ip6 => Layout { offsets: 140, size: 168 },
        RuleFamily::Ip | RuleFamily::Inet => Layout { offsets: 88, size: 112 },
    }
}

/// Reads a table. `hooks` are the offsets at which the chains of hooks begin, `valid` which of them there are.
///
/// # Errors
/// The first entry that does not fit.
pub fn table(family: RuleFamily, bytes: &[u8], valid: u32, hooks: [u32; 5]) -> Result<Table, BadTable> {
    let layout = layout(family);
    let starts: BTreeMap<usize, &str> = TRANSLATING_HOOKS
        .iter()
        .filter(|(hook, _)| valid >> hook & 1 == 1)
        .filter_map(|(hook, name)| Some((usize::try_from(*hooks.get(*hook)?).ok()?, *name)))
        .collect();
    let others = (0..5).filter(|hook| valid >> hook & 1 == 1);
    let other_starts: Vec<usize> = others
        .filter_map(|hook: usize| usize::try_from(*hooks.get(hook)?).ok())
        .filter(|at| !starts.contains_key(at))
        .collect();

    let mut chains: Vec<Found<'_>> = Vec::new();
    // Where a jump leads: the first rule of a chain.
    let mut begins: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut at, mut rules) = (0, 0);
    while at < bytes.len() {
        let (entry, next) = entry(bytes, at, &layout).ok_or(BadTable { at })?;
        let (name, _) = extension(entry.target).ok_or(BadTable { at })?;
        if let Some(name) = starts.get(&at) {
            chains.push(Found { name: (*name).to_owned(), at_hook: true, entries: Vec::new() });
        } else if other_starts.contains(&at) {
            chains.push(Found { name: String::new(), at_hook: false, entries: Vec::new() });
        }
        if name == "ERROR" {
            let name = text(entry.target.get(EXTENSION_HEADER..).unwrap_or_default());
            begins.insert(next, chains.len());
            chains.push(Found { name, at_hook: false, entries: Vec::new() });
        } else if let Some(chain) = chains.last_mut() {
            chain.entries.push(entry);
            rules += 1;
        }
        at = next;
    }
    Ok(decoded(family, &chains, &begins, rules))
}

/// Decodes the chains that matter.
fn decoded(family: RuleFamily, found: &[Found<'_>], begins: &BTreeMap<usize, usize>, rules: usize) -> Table {
    let jump = |entry: &Entry<'_>| begins.get(&usize::try_from(verdict(entry)?).ok()?).copied();
    let translates = |entry: &Entry<'_>| extension(entry.target).is_some_and(|(name, _)| xt::translates(&name));
    // Packets end there, or what later rules ask of them is changed.
    let ends = |entry: &Entry<'_>| match verdict(entry) {
        Some(verdict) => verdict < 0 && verdict != RETURN,
        None => extension(entry.target).is_some_and(|(name, _)| xt::ends(&name) || xt::changes(&name)),
    };
    // Where chains lead, and the other way round.
    let mut called: Vec<Vec<usize>> = vec![Vec::new(); found.len()];
    let mut callers: Vec<Vec<usize>> = vec![Vec::new(); found.len()];
    let (mut translating, mut ending) = (Vec::new(), Vec::new());
    let note = |all: &mut Vec<usize>, one: usize| {
        if all.last() != Some(&one) {
            all.push(one);
        }
    };
    for (index, chain) in found.iter().enumerate() {
        for entry in &chain.entries {
            if let Some(to) = jump(entry) {
                called.get_mut(index).into_iter().for_each(|called| note(called, to));
                callers.get_mut(to).into_iter().for_each(|callers| note(callers, index));
            } else if translates(entry) {
                note(&mut translating, index);
            } else if ends(entry) {
                note(&mut ending, index);
            }
        }
    }
    let hooks = found.iter().enumerate().filter(|(_, chain)| chain.at_hook).map(|(index, _)| index);
    let (reached, translating) = (closure(hooks.collect(), &called), closure(translating, &callers));
    let ending = closure(ending, &callers);
    let name_of = |index: usize| found.get(index).map(|chain| chain.name.clone()).unwrap_or_default();
    let named = |entry: &Entry<'_>| jump(entry).map(name_of);
    let mut room = ENDING_RULES_LIMIT;
    let chains = found.iter().enumerate().filter_map(|(index, chain)| {
        let is_in = |set: &[bool]| set.get(index).copied().unwrap_or(false);
        // What ends there does not come to the rules that translate.
        let whole = is_in(&translating) || {
            (is_in(&reached) && is_in(&ending)).then_some(())?;
            let left = room.checked_sub(chain.entries.len());
            room = left.unwrap_or(room);
            left.is_some()
        };
        let entries = (1..).zip(&chain.entries).filter(|_| whole);
        Some(Chain {
            name: chain.name.clone(),
            at_hook: chain.at_hook,
            whole,
            rules: entries.map(|(position, entry)| rule(family, entry, position, named(entry))).collect(),
        })
    });
    let chains = chains.collect();
    let kube = found.iter().find(|chain| chain.name == "KUBE-NODEPORTS");
    let node_ports = kube.iter().flat_map(|chain| &chain.entries).filter_map(|entry| {
        let parts = rule(family, entry, 1, None).parts;
        Some(NodePort {
            proxy: ServiceProxy::Iptables,
            family,
            protocol: parts.protocols.single()?,
            port: parts.destination_port?,
            service: parts.comment,
        })
    });
    Table { chains, node_ports: node_ports.collect(), kube_proxy: kube.is_some(), rules }
}

/// Everything that can be reached from some chains.
fn closure(from: Vec<usize>, next: &[Vec<usize>]) -> Vec<bool> {
    let (mut waiting, mut reached) = (from, vec![false; next.len()]);
    while let Some(index) = waiting.pop() {
        if let (Some(mark @ false), Some(next)) = (reached.get_mut(index), next.get(index)) {
            *mark = true;
            waiting.extend(next);
        }
    }
    reached
}

/// The entry at an offset, and where the next one is.
fn entry<'a>(bytes: &'a [u8], at: usize, layout: &Layout) -> Option<(Entry<'a>, usize)> {
    let rest = bytes.get(at..)?;
    let head = rest.get(..layout.size)?;
    let target = usize::from(u16_at(head, layout.offsets)?);
    let next = usize::from(u16_at(head, layout.offsets + 2)?);
    // An entry that ends at its beginning would be read for ever.
    (target >= layout.size && next >= target + EXTENSION_HEADER).then_some(())?;
    let entry = Entry { head, matches: rest.get(layout.size..target)?, target: rest.get(target..next)? };
    Some((entry, at.checked_add(next)?))
}

/// Name and revision of a match or target.
fn extension(bytes: &[u8]) -> Option<(String, u8)> {
    Some((text(bytes.get(2..31)?), *bytes.get(31)?))
}

/// The verdict of a standard target.
fn verdict(entry: &Entry<'_>) -> Option<i32> {
    let standard = *entry.target.get(2)? == 0;
    standard.then(|| u32_at(entry.target, EXTENSION_HEADER).map(u32::cast_signed)).flatten()
}

fn rule(family: RuleFamily, entry: &Entry<'_>, position: u32, jump: Option<String>) -> Rule {
    let mut parts = Parts::default();
    let goto =
        if family == RuleFamily::Ip6 { head_v6(entry.head, &mut parts) } else { head_v4(entry.head, &mut parts) };
    let goto = goto.unwrap_or_else(|| {
        parts.conditions.push(Condition::unclear("the rule's own conditions", entry.head));
        false
    });
    let mut rest = entry.matches;
    while !rest.is_empty() {
        let size = u16_at(rest, 0).map(usize::from).filter(|size| *size >= EXTENSION_HEADER);
        let (Some(one), Some((name, revision))) = (size.and_then(|size| rest.get(..size)), extension(rest)) else {
            parts.conditions.push(Condition::unclear("a match", rest));
            break;
        };
        xt::read_match(&name, revision, one.get(EXTENSION_HEADER..).unwrap_or_default(), family, &mut parts);
        rest = rest.get(one.len()..).unwrap_or_default();
    }
    let action = match (verdict(entry), jump) {
        (Some(_), Some(chain)) if goto => Action::Goto(chain),
        (Some(_), Some(chain)) => Action::Jump(chain),
        (Some(RETURN), None) => Action::Return,
        // ACCEPT, DROP, QUEUE, which are below zero too.
        (Some(..0), None) => Action::End,
        // To the next rule.
        (Some(0..), None) => Action::Continue,
        (None, _) => {
            let (name, revision) = extension(entry.target).unwrap_or_default();
            let data = entry.target.get(EXTENSION_HEADER..).unwrap_or_default();
            xt::read_target(&name, revision, data, family, &mut parts)
        }
    };
    Rule { position, parts, action }
}

/// `struct ipt_ip`; whether a jump does not come back.
fn head_v4(head: &[u8], parts: &mut Parts) -> Option<bool> {
    let (flags, inverted) = (*head.get(82)?, *head.get(83)?);
    // IPT_INV_TOS, which nothing asks, and what is no flag; `! -f` without -f, which no packet is.
    parts.selective |= inverted & 0x84 != 0 || inverted & 0x20 != 0 && flags & 1 == 0;
    let address = |at: usize| -> Option<[u8; 4]> { head.get(at..at + 4)?.try_into().ok() };
    interfaces(head.get(16..80)?, inverted, parts)?;
    for (name, at, bit) in [("-s", 0, 0x08), ("-d", 4, 0x10)] {
        let (address, mask) = (Ipv4Addr::from(address(at)?), address(at + 8)?);
        prefix(name, &address.to_string(), &mask, inverted & bit != 0, parts);
    }
    xt::protocol(u16_at(head, 80)?, inverted & 0x40 != 0, parts);
    if flags & 1 != 0 {
        parts.conditions.push(Condition::lasting(format!("{}-f", if inverted & 0x20 != 0 { "! " } else { "" })));
    }
    Some(flags & 2 != 0)
}

/// `struct ip6t_ip6`.
fn head_v6(head: &[u8], parts: &mut Parts) -> Option<bool> {
    let (flags, inverted) = (*head.get(131)?, *head.get(132)?);
    // IP6T_INV_TOS and IP6T_INV_FRAG, which nothing asks, and what is no flag.
    parts.selective |= inverted & 0xa4 != 0;
    let address = |at: usize| -> Option<[u8; 16]> { head.get(at..at + 16)?.try_into().ok() };
    interfaces(head.get(64..128)?, inverted, parts)?;
    for (name, at, bit) in [("-s", 0, 0x08), ("-d", 16, 0x10)] {
        let (address, mask) = (Ipv6Addr::from(address(at)?), address(at + 32)?);
        prefix(name, &address.to_string(), &mask, inverted & bit != 0, parts);
    }
    xt::protocol(u16_at(head, 128)?, inverted & 0x40 != 0, parts);
    Some(flags & 4 != 0)
}

fn prefix(name: &str, address: &str, mask: &[u8], inverted: bool, parts: &mut Parts) {
    if mask.iter().all(|byte| *byte == 0) {
        // `! -s 0.0.0.0/0`: no packet is that.
        parts.selective |= inverted;
        return;
    }
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let leading = mask.iter().take_while(|byte| **byte == 0xff).count() * 8;
    let rest = mask.get(leading / 8).map_or(0, |byte| byte.leading_ones());
    let plain = usize::try_from(ones).is_ok_and(|ones| usize::try_from(rest).is_ok_and(|rest| ones == leading + rest));
    let length = if plain { format!("/{ones}") } else { format!("/{mask:?}") };
    let not = if inverted { "! " } else { "" };
    parts.conditions.push(Condition::lasting(format!("{not}{name} {address}{length}")));
}

/// Two names and two masks of 16 bytes: a mask shorter than the name's zero byte is a `+`.
fn interfaces(bytes: &[u8], inverted: u8, parts: &mut Parts) -> Option<()> {
    for (name, at, bit) in [("-i", 0, 0x01), ("-o", 16, 0x02)] {
        let (interface, mask) = (bytes.get(at..at + 16)?, bytes.get(at + 32..at + 48)?);
        let length = mask.iter().take_while(|byte| **byte != 0).count();
        let compared = interface.get(..length).unwrap_or_default();
        if compared.is_empty() {
            // `! -o +`: no interface is that.
            parts.selective |= inverted & bit != 0;
            continue;
        }
        let wild = if compared.contains(&0) { "" } else { "+" };
        let not = if inverted & bit != 0 { "! " } else { "" };
        // Names may end in `+` themselves, and need not be UTF-8.
        parts.conditions.push(Condition::lasting_but(format!("{not}{name} {}{wild}", text(compared)), compared));
    }
    Some(())
}
