//! `nf_tables` over netlink: requests, and what is in the answers.
//!
//! Attributes are those of `uapi/linux/netfilter/nf_tables.h` (stable, numbers in network order). [`rule`] decodes a rule's
//! expressions, [`glance`] says which are worth it, [`set`] tells what is in a set. Only what a dump of tables, chains, rules, sets and elements holds is read; the
//! requests are all GETs.

use headroom_core::observe::RuleFamily;

use super::message::{Attributes, Malformed, Message};

mod comparison;
mod expression;
pub mod glance;
pub mod rule;
pub mod set;
mod value;

/// `NFNL_SUBSYS_NFTABLES << 8`.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_NEWTABLE`, `NFT_MSG_GETTABLE`.
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
/// `NFT_MSG_NEWCHAIN`, `NFT_MSG_GETCHAIN`.
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
/// `NFT_MSG_NEWRULE`, `NFT_MSG_GETRULE`.
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
/// `NFT_MSG_NEWSET`, `NFT_MSG_GETSET`.
const NEW_SET: u16 = SUBSYSTEM | 9;
const GET_SET: u16 = SUBSYSTEM | 10;
/// `NFT_MSG_NEWSETELEM`, `NFT_MSG_GETSETELEM`.
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS_DUMP: u16 = 0x1 | 0x300;
/// `NFT_TABLE_F_DORMANT`.
const TABLE_DORMANT: u32 = 1;
/// `NLM_F_DUMP_INTR`.
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;

/// Attribute types.
pub(crate) mod nfta {
    pub(crate) mod table {
        pub(crate) const NAME: u16 = 1;
        pub(crate) const FLAGS: u16 = 2;
    }
    pub(crate) mod chain {
        pub(crate) const TABLE: u16 = 1;
        pub(crate) const NAME: u16 = 3;
        pub(crate) const HOOK: u16 = 4;
        pub(crate) const TYPE: u16 = 7;
    }
    pub(crate) mod hook {
        pub(crate) const NUMBER: u16 = 1;
    }
    pub(crate) mod rule {
        pub(crate) const TABLE: u16 = 1;
        pub(crate) const CHAIN: u16 = 2;
        pub(crate) const EXPRESSIONS: u16 = 4;
        pub(crate) const USERDATA: u16 = 7;
    }
    pub(crate) mod set {
        pub(crate) const TABLE: u16 = 1;
        pub(crate) const NAME: u16 = 2;
        pub(crate) const FLAGS: u16 = 3;
        pub(crate) const KEY_TYPE: u16 = 4;
    }
    pub(crate) mod elements {
        pub(crate) const TABLE: u16 = 1;
        pub(crate) const SET: u16 = 2;
        pub(crate) const ELEMENTS: u16 = 3;
    }
    pub(crate) mod element {
        pub(crate) const KEY: u16 = 1;
        pub(crate) const DATA: u16 = 2;
        pub(crate) const FLAGS: u16 = 3;
        pub(crate) const KEY_END: u16 = 10;
    }
    pub(crate) mod data {
        pub(crate) const VALUE: u16 = 1;
        pub(crate) const VERDICT: u16 = 2;
    }
    pub(crate) mod verdict {
        pub(crate) const CODE: u16 = 1;
        pub(crate) const CHAIN: u16 = 2;
    }
}

/// What to dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Every table of every family.
    Tables,
    /// Every chain of every family.
    Chains,
    /// The rules of a table.
    Rules(Place<'a>),
    /// The sets and maps of a table.
    Sets(Place<'a>),
    /// The elements of a set or map.
    Elements(Place<'a>),
}

/// Of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The table's family.
    pub family: RuleFamily,
    /// The table.
    pub table: &'a str,
    /// The chain, or the set; with rules none means every chain.
    pub within: Option<&'a str>,
}

/// A family's number (`NFPROTO_*`); 0 is all of them.
fn number(family: RuleFamily) -> u8 {
    match family {
        RuleFamily::Inet => 1,
        RuleFamily::Ip => 2,
        RuleFamily::Ip6 => 10,
    }
}

/// The family of a number, if packets with translated addresses pass there.
fn family(number: u8) -> Option<RuleFamily> {
    match number {
        1 => Some(RuleFamily::Inet),
        2 => Some(RuleFamily::Ip),
        10 => Some(RuleFamily::Ip6),
        _ => None,
    }
}

/// The bytes of a request.
pub fn request(what: &Request<'_>, sequence: u32) -> Vec<u8> {
    let (kind, family, strings) = match what {
        Request::Tables => (GET_TABLE, 0, Vec::new()),
        Request::Chains => (GET_CHAIN, 0, Vec::new()),
        Request::Rules(place) => (GET_RULE, number(place.family), strings(place, nfta::rule::TABLE, nfta::rule::CHAIN)),
        Request::Sets(place) => (GET_SET, number(place.family), strings(place, nfta::set::TABLE, nfta::set::NAME)),
        Request::Elements(place) => {
            (GET_ELEMENTS, number(place.family), strings(place, nfta::elements::TABLE, nfta::elements::SET))
        }
    };
    let length = u32::try_from(20 + strings.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(20 + strings.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&FLAGS_DUMP.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // Port id; family, version 0, resource 0.
    bytes.extend_from_slice(&[0, 0, 0, 0, family, 0, 0, 0]);
    bytes.extend_from_slice(&strings);
    bytes
}

fn strings(place: &Place<'_>, table: u16, within: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, text) in [(table, Some(place.table)), (within, place.within)] {
        let Some(text) = text else { continue };
        let length = u16::try_from(4 + text.len() + 1).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Whether the rules changed while they were listed.
pub fn is_interrupted(message: &Message<'_>) -> bool {
    message.flags & FLAG_DUMP_INTERRUPTED != 0
}

/// A table, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHead {
    /// Its family.
    pub family: RuleFamily,
    /// Its name.
    pub name: String,
    /// `flags dormant`: the kernel keeps it, and takes its chains off their hooks.
    pub dormant: bool,
}

/// The table in a message; `None` for other messages and families.
pub fn table(message: &Message<'_>) -> Result<Option<TableHead>, Malformed> {
    if message.kind != NEW_TABLE {
        return Ok(None);
    }
    let (Some(family), attributes) = payload(message)? else { return Ok(None) };
    let (mut name, mut flags) = (None, 0);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            nfta::table::NAME => name = Some(text(attribute.payload)),
            nfta::table::FLAGS => flags = attribute.be32("NFTA_TABLE_FLAGS")?,
            _ => {}
        }
    }
    let name = name.ok_or(Malformed::Missing("NFTA_TABLE_NAME"))?;
    Ok(Some(TableHead { family, name, dormant: flags & TABLE_DORMANT != 0 }))
}

/// A chain, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainHead {
    /// The family of its table.
    pub family: RuleFamily,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `type nat`, and the number of its hook.
    pub nat_hook: Option<u32>,
}

/// The chain in a message; `None` for other messages and families.
pub fn chain(message: &Message<'_>) -> Result<Option<ChainHead>, Malformed> {
    if message.kind != NEW_CHAIN {
        return Ok(None);
    }
    let (Some(family), attributes) = payload(message)? else { return Ok(None) };
    let (mut table, mut name, mut hook, mut nat) = (None, None, None, false);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            nfta::chain::TABLE => table = Some(text(attribute.payload)),
            nfta::chain::NAME => name = Some(text(attribute.payload)),
            nfta::chain::TYPE => nat = attribute.payload.strip_suffix(b"\0") == Some(b"nat"),
            nfta::chain::HOOK => {
                for part in attribute.nested() {
                    let part = part?;
                    if part.kind == nfta::hook::NUMBER {
                        hook = Some(part.be32("NFTA_HOOK_HOOKNUM")?);
                    }
                }
            }
            _ => {}
        }
    }
    let table = table.ok_or(Malformed::Missing("NFTA_CHAIN_TABLE"))?;
    let name = name.ok_or(Malformed::Missing("NFTA_CHAIN_NAME"))?;
    Ok(Some(ChainHead { family, table, name, nat_hook: hook.filter(|_| nat) }))
}

/// A rule as it came: its chain, its expressions and what `nft` or `iptables` wrote beside it.
#[derive(Debug, Clone)]
pub struct RawRule<'a> {
    /// Its chain.
    pub chain: &'a [u8],
    /// Its expressions.
    pub expressions: Attributes<'a>,
    /// Notes of user space.
    pub userdata: &'a [u8],
}

/// The rule in a message; `None` for other messages.
pub fn raw_rule<'a>(message: &Message<'a>) -> Result<Option<RawRule<'a>>, Malformed> {
    if message.kind != NEW_RULE {
        return Ok(None);
    }
    let (_, attributes) = payload(message)?;
    let (mut chain, mut expressions, mut userdata) = (None, Attributes::new(&[]), &[][..]);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            nfta::rule::CHAIN => chain = Some(attribute.payload),
            nfta::rule::EXPRESSIONS => expressions = attribute.nested(),
            nfta::rule::USERDATA => userdata = attribute.payload,
            _ => {}
        }
    }
    let chain = chain.ok_or(Malformed::Missing("NFTA_RULE_CHAIN"))?;
    Ok(Some(RawRule { chain: chain.strip_suffix(b"\0").unwrap_or(chain), expressions, userdata }))
}

/// An element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// With intervals of several fields, the key at its end.
    pub key_end: Option<&'a [u8]>,
    /// It stands for the end of an interval (`NFT_SET_ELEM_INTERVAL_END`).
    pub is_end: bool,
    /// The chain that a packet with this key goes to.
    pub chain: Option<String>,
}

/// Shows the elements in a message.
pub fn elements<'a>(message: &Message<'a>, mut each: impl FnMut(Element<'a>)) -> Result<(), Malformed> {
    if message.kind != NEW_ELEMENTS {
        return Ok(());
    }
    let (_, attributes) = payload(message)?;
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == nfta::elements::ELEMENTS {
            for one in attribute.nested() {
                each(element(one?.nested())?);
            }
        }
    }
    Ok(())
}

fn element(attributes: Attributes<'_>) -> Result<Element<'_>, Malformed> {
    let mut element = Element::default();
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            nfta::element::KEY => element.key = value(attribute.nested())?,
            nfta::element::KEY_END => element.key_end = Some(value(attribute.nested())?),
            nfta::element::FLAGS => element.is_end = attribute.be32("NFTA_SET_ELEM_FLAGS")? & 1 != 0,
            nfta::element::DATA => {
                for part in attribute.nested() {
                    let part = part?;
                    if part.kind == nfta::data::VERDICT {
                        element.chain = verdict(part.nested())?.1.map(text);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(element)
}

/// The bytes of a value (`NFTA_DATA_VALUE`).
fn value(attributes: Attributes<'_>) -> Result<&[u8], Malformed> {
    for part in attributes {
        let part = part?;
        if part.kind == nfta::data::VALUE {
            return Ok(part.payload);
        }
    }
    Ok(&[])
}

/// Code and chain of a verdict.
pub(crate) fn verdict(attributes: Attributes<'_>) -> Result<(i32, Option<&[u8]>), Malformed> {
    let (mut code, mut chain) = (0, None);
    for part in attributes {
        let part = part?;
        match part.kind {
            nfta::verdict::CODE => code = part.be32("NFTA_VERDICT_CODE")?.cast_signed(),
            nfta::verdict::CHAIN => chain = Some(part.payload),
            _ => {}
        }
    }
    Ok((code, chain))
}

/// `struct nfgenmsg` and attributes.
fn payload<'a>(message: &Message<'a>) -> Result<(Option<RuleFamily>, Attributes<'a>), Malformed> {
    match message.payload.split_first_chunk::<4>() {
        Some(([number, ..], rest)) => Ok((family(*number), Attributes::new(rest))),
        None => Err(Malformed::Payload { what: "nfgenmsg", length: message.payload.len() }),
    }
}

/// A name, up to its zero byte.
pub(crate) fn text(bytes: &[u8]) -> String {
    crate::iptables::xt::text(bytes)
}
