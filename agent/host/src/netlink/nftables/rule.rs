//! A rule of `nf_tables`: its expressions run over registers that hold words instead of packets.
//!
//! Rules of `iptables-nft` mix native expressions with `match` and `target`, which hold the layouts of `x_tables`
//! (`nft_compat`); `nft -j` hides what is in those.

use std::collections::BTreeMap;

use headroom_core::flow::Protocol;
use headroom_core::known::Known;
use headroom_core::observe::{RuleFamily, SourceNat, SourceNatKind};
use headroom_core::ports::PortRange;
use headroom_core::protocols::Protocols;

use super::super::message::{Attributes, Malformed};
use super::comparison::{compares, part, part_within};
use super::expression::{
    CONTINUE, Expression, Fields, GOTO, JUMP, Lookup, RETURN, expressions, extension, immediate_verdict, lookup,
};
use super::value::{NETWORK, NETWORK_V6, Value};
use super::{RawRule, text};
use crate::iptables::xt::{self, nat_flags};
use crate::rules::{Action, Condition, Parts, Rule};

/// `NFT_REG32_00`; before it are four registers of 16 bytes.
const FIRST_SMALL_REGISTER: u32 = 8;

/// TCP, UDP, DCCP, SCTP and UDP-Lite: conntrack takes no packet of them without ports, and none that it does not take is
/// translated.
const WITH_PORTS: [Protocol; 5] = [Protocol::TCP, Protocol::UDP, Protocol(33), Protocol::SCTP, Protocol(136)];
/// What may stand in front of an IPv6 packet's protocol: options, routing, a fragment, ESP, AH, nothing at all, destination
/// options, mobility, HIP, shim6.
const V6_EXTENSIONS: [u8; 10] = [0, 43, 44, 50, 51, 59, 60, 135, 139, 140];

/// A set that a rule looks into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetInWords {
    /// Its elements, if it is short and they have words: `{80, 443}`.
    pub words: Option<String>,
    /// Its elements, if they are protocols and no rule adds one.
    pub protocols: Option<Protocols>,
    /// Its elements, if they are numbers such as `numgen` makes and no rule adds one: from and to.
    pub numbers: Option<Vec<(u32, u32)>>,
    /// It holds nothing, and no rule adds anything.
    pub empty: bool,
    /// It holds what it holds, as long as there are rules that look into it.
    pub fixed: bool,
    /// How many registers of four bytes each field of its keys takes; empty where that is not known.
    pub registers: Vec<u32>,
}

/// A rule in words. `set` tells what is in a set, where that is known.
///
/// # Errors
/// Its expressions are not laid out as they should be.
pub fn rule(
    raw: &RawRule<'_>,
    family: RuleFamily,
    position: u32,
    set: &mut dyn FnMut(&str) -> SetInWords,
) -> Result<Rule, Malformed> {
    let v6 = family == RuleFamily::Ip6;
    let mut run = Run {
        family,
        v6,
        registers: BTreeMap::new(),
        parts: Parts::default(),
        action: Action::Continue,
        of_transport: false,
        unread: Vec::new(),
        set,
    };
    for expression in expressions(raw.expressions.clone()) {
        let Expression { name, data } = expression?;
        run.step(name, data)?;
    }
    let Run { mut parts, action, of_transport, .. } = run;
    parts.selective |= of_transport && !parts.protocols.is_within(WITH_PORTS.into_iter().collect());
    parts.comment = parts.comment.or_else(|| comment(raw.userdata));
    Ok(Rule { position, parts, action })
}

/// `NFTNL_UDATA_RULE_COMMENT`: type, length, text.
fn comment(mut userdata: &[u8]) -> Option<String> {
    while let Some(([kind, length], rest)) = userdata.split_first_chunk::<2>() {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value));
        }
        userdata = rest.get(usize::from(*length)..)?;
    }
    None
}

/// A name as it is compared: with one zero byte at its end if it is whole, however many there are.
fn name(bytes: &[u8]) -> &[u8] {
    let whole = bytes.iter().position(|byte| *byte == 0).and_then(|end| bytes.split_at_checked(end + 1));
    whole.filter(|(_, rest)| rest.iter().all(|byte| *byte == 0)).map_or(bytes, |(name, _)| name)
}

/// Which of the sixteen small registers a number begins at.
fn slot(register: u32) -> u32 {
    if register >= FIRST_SMALL_REGISTER { register - FIRST_SMALL_REGISTER } else { register.saturating_sub(1) * 4 }
}

/// A rule while it runs.
struct Run<'a> {
    family: RuleFamily,
    /// Only IPv6 packets come so far.
    v6: bool,
    /// What is in a register, and the mask it was put through.
    registers: BTreeMap<u32, (Value, Option<Vec<u8>>)>,
    parts: Parts,
    action: Action,
    /// It looks into transport headers.
    of_transport: bool,
    /// Expressions that are not read, as they came.
    unread: Vec<u8>,
    set: &'a mut dyn FnMut(&str) -> SetInWords,
}

impl Run<'_> {
    fn step(&mut self, name: &[u8], data: Attributes<'_>) -> Result<(), Malformed> {
        match name {
            b"match" => {
                let (name, revision, info) = extension(data)?;
                xt::read_match(&text(name), revision, info, self.family, &mut self.parts);
            }
            b"target" => {
                let (name, revision, info) = extension(data)?;
                self.action = xt::read_target(&text(name), revision, info, self.family, &mut self.parts);
            }
            b"immediate" => self.immediate(data)?,
            b"masq" => {
                let fields = Fields::of(data)?;
                let flags = fields.number(1).unwrap_or(0);
                self.translate(SourceNatKind::Masquerade, None, flags, (fields.number(2), fields.number(3)));
            }
            b"nat" => {
                let fields = Fields::of(data)?;
                self.address_family(fields.number(2));
                if fields.number(1) == Some(0) {
                    let flags = fields.number(7).unwrap_or(0);
                    let addresses = self.addresses(fields.number(3), fields.number(4));
                    // NF_NAT_RANGE_NETMAP
                    let kind = if flags & 0x40 != 0 { SourceNatKind::Netmap } else { SourceNatKind::Snat };
                    self.translate(kind, addresses, flags, (fields.number(5), fields.number(6)));
                } else {
                    self.action = Action::End;
                }
            }
            b"redir" | b"reject" | b"tproxy" | b"queue" => self.action = Action::End,
            b"payload" | b"meta" | b"ct" | b"fib" | b"numgen" | b"bitwise" | b"byteorder" => {
                self.load(name, &Fields::of(data)?)?
            }
            b"cmp" | b"range" => self.compare(name, &Fields::of(data)?)?,
            b"lookup" => self.look_up(lookup(data)?),
            b"limit" | b"quota" | b"connlimit" => {
                self.parts.conditions.push(Condition::once(format!("{} …", text(name))));
            }
            b"dynset" => {
                let set = Fields::of(data)?.0.get(&1).map_or_else(String::new, |name| text(name));
                self.parts.conditions.push(Condition::once(format!("room in @{set}")));
                self.parts.changes = self.parts.changes.or(self.parts.protocols);
            }
            // NFT_OBJECT_COUNTER, and what is attached to connections; others are limits, or from a map.
            b"objref" if matches!(Fields::of(data.clone())?.number(1), Some(1 | 3 | 7..=9)) => {}
            b"objref" => self.parts.conditions.push(Condition::once("limit …")),
            // They let every packet pass.
            b"counter" | b"log" | b"notrack" | b"last" | b"dup" => {}
            _ => {
                // hash, rt, socket, exthdr, osf, xfrm, tunnel, inner, synproxy: what is in their register is not told, nor which
                // packets they let pass by (`exthdr` those without the option, `synproxy` those that are not TCP).
                let fields = Fields::of(data)?;
                self.parts.selective = true;
                self.leave_unread(name, &fields);
                for register in [1, 2].iter().filter_map(|kind| fields.number(*kind)) {
                    self.registers.insert(slot(register), (Value::Other(text(name)), None));
                }
            }
        }
        Ok(())
    }

    /// `snat ip to` in a table of both families is for packets of that one only (`NFTA_NAT_FAMILY`).
    fn address_family(&mut self, family: Option<u32>) {
        let said = match family.filter(|_| self.family == RuleFamily::Inet) {
            Some(2) => "IPv4",
            Some(10) => "IPv6",
            _ => return,
        };
        self.parts.conditions.push(Condition::lasting(said));
    }

    fn leave_unread(&mut self, name: &[u8], fields: &Fields<'_>) {
        self.unread.extend(name);
        for (kind, bytes) in &fields.0 {
            self.unread.extend(kind.to_ne_bytes().iter().chain(*bytes));
        }
    }

    /// Something is asked that is not understood; the bytes of all of the rule that was not read tell it from what others ask.
    fn unclear(&mut self, said: String, asked: &[&[u8]]) {
        let rest = [self.unread.as_slice(), &asked.join(&[0xff][..])].concat();
        self.parts.conditions.push(Condition::unclear(said, &rest));
    }

    fn immediate(&mut self, data: Attributes<'_>) -> Result<(), Malformed> {
        if let Some((code, chain)) = immediate_verdict(data.clone())? {
            self.action = match (code, chain) {
                (JUMP, Some(chain)) => Action::Jump(text(chain)),
                (GOTO, Some(chain)) => Action::Goto(text(chain)),
                (RETURN, _) => Action::Return,
                (CONTINUE, _) => Action::Continue,
                _ => Action::End,
            };
            return Ok(());
        }
        let fields = Fields::of(data)?;
        if let (Some(register), Some(bytes)) = (fields.number(1), fields.bytes(2)?) {
            self.registers.insert(slot(register), (Value::Bytes(bytes.to_vec()), None));
        }
        Ok(())
    }

    /// What puts something into a register.
    fn load(&mut self, name: &[u8], fields: &Fields<'_>) -> Result<(), Malformed> {
        let number = |kind| fields.number(kind).unwrap_or(u32::MAX);
        let (register, value) = match name {
            b"payload" => {
                let base = if number(2) == NETWORK && self.v6 { NETWORK_V6 } else { number(2) };
                (fields.number(1), Value::Payload(base, number(3), number(4)))
            }
            b"meta" => (fields.number(1), Value::Meta(number(2))),
            b"ct" => (fields.number(1), Value::Conntrack(number(2))),
            b"fib" => {
                // NFT_FIB_RESULT_ADDRTYPE; NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR.
                let value = match (number(2), number(3)) {
                    (3, 1) => Value::AddressType("src"),
                    (3, 2) => Value::AddressType("dst"),
                    _ => {
                        self.leave_unread(name, fields);
                        Value::Other("fib".to_owned())
                    }
                };
                (fields.number(1), value)
            }
            b"numgen" => {
                (fields.number(1), Value::Number { modulus: number(2), offset: fields.number(4).unwrap_or(0) })
            }
            b"bitwise" => return self.bitwise(fields),
            // byteorder
            _ => {
                let moved = fields.number(1).and_then(|source| self.registers.get(&slot(source)).cloned());
                if let (Some(register), Some((value, mask))) = (fields.number(2), moved) {
                    let mask = mask.map(|mask| mask.into_iter().rev().collect());
                    self.registers.insert(slot(register), (value.swapped(), mask));
                }
                return Ok(());
            }
        };
        // `meta mark set` and its like have a source instead of a destination, and let every packet pass; `ip dscp set` those
        // into which it can be written.
        if let Some(register) = register {
            self.of_transport |= value.is_of_transport();
            self.registers.insert(slot(register), (value, None));
        } else {
            self.parts.selective |= name == b"payload";
            self.parts.changes = self.parts.changes.or(self.parts.protocols);
        }
        Ok(())
    }

    fn bitwise(&mut self, fields: &Fields<'_>) -> Result<(), Malformed> {
        let (Some(source), Some(destination)) = (fields.number(1), fields.number(2)) else { return Ok(()) };
        let value = self.registers.get(&slot(source)).map(|(value, _)| value.clone());
        let plain = fields.bytes(5)?.is_none_or(|xor| xor.iter().all(|byte| *byte == 0));
        let (value, mask) = match (value, fields.bytes(4)?) {
            (Some(value), Some(mask)) if plain => (value, Some(mask.to_vec())),
            _ => {
                self.leave_unread(b"bitwise", fields);
                (Value::Other("bitwise".to_owned()), None)
            }
        };
        self.registers.insert(slot(destination), (value, mask));
        Ok(())
    }

    fn compare(&mut self, name: &[u8], fields: &Fields<'_>) -> Result<(), Malformed> {
        let held = fields.number(1).and_then(|source| self.registers.get(&slot(source)).cloned());
        let Some((value, mask)) = held else {
            self.leave_unread(name, fields);
            self.unclear(format!("`{}` of something unknown", text(name)), &[]);
            return Ok(());
        };
        let operator = fields.number(2).unwrap_or(0);
        let (first, last) = match name {
            b"cmp" => (fields.bytes(3)?.unwrap_or_default(), None),
            _ => (fields.bytes(3)?.unwrap_or_default(), fields.bytes(4)?),
        };
        self.condition(&value, mask.as_deref(), operator, first, last);
        Ok(())
    }

    fn condition(&mut self, value: &Value, mask: Option<&[u8]>, operator: u32, first: &[u8], last: Option<&[u8]>) {
        let not = if operator == 1 { "! " } else { "" };
        let equal = operator == 0 && last.is_none();
        if let (Value::Number { modulus, offset }, None) = (value, last) {
            match part(*modulus, *offset, operator, first) {
                Some(part) => self.parts.probability *= part,
                None => self.unclear("a comparison of `numgen`".to_owned(), &[&operator.to_ne_bytes(), first]),
            }
            return;
        }
        if let (true, None, [first]) = (value.is_protocol(), mask, first) {
            let last = last.and_then(|last| last.first().copied());
            let asked = Protocols::that(|protocol| compares(protocol.0, operator, *first, last));
            if self.restrict(value, asked, operator == 1) {
                return;
            }
        }
        // Which family a rule of an `inet` table is for.
        if value.is_family() {
            let v6 = first.first() == Some(&10);
            self.v6 = v6 == equal;
            let family = if v6 { "IPv6" } else { "IPv4" };
            self.parts.conditions.push(Condition::lasting(format!("{not}{family}")));
            return;
        }
        let asked = [&operator.to_ne_bytes(), first, last.unwrap_or_default(), mask.unwrap_or_default()];
        if !value.is_understood() {
            return self.unclear(format!("a comparison of `{}`", value.name()), &asked);
        }
        if equal && mask.is_none() && value.is_destination_port() {
            self.parts.destination_port = first.try_into().ok().map(u16::from_be_bytes);
        }
        let shown = value.shown(first, mask);
        let condition = match (last, operator) {
            (Some(last), _) => format!("{not}{} {shown}-{}", value.name(), value.shown(last, mask)),
            // iptables has no word for "any of these bits", which nft tests by comparing with zero.
            (None, 1) if mask.is_some() && first.iter().all(|byte| *byte == 0) => {
                format!("{} any of {}", value.name(), value.shown(mask.unwrap_or_default(), None))
            }
            (None, 0 | 1) => format!("{not}{} {shown}", value.name()),
            (None, operator) => {
                let sign = ["=", "!=", "<", "<=", ">", ">="].get(usize::try_from(operator).unwrap_or(usize::MAX));
                format!("{} {} {shown}", value.name(), sign.unwrap_or(&"?"))
            }
        };
        let condition = match value.is_lasting(mask) {
            true if value.is_name() => {
                Condition::lasting_but(condition, &[name(first), last.unwrap_or_default()].concat())
            }
            true => Condition::lasting(condition),
            false => Condition::for_now(condition, &asked.concat()),
        };
        self.parts.conditions.push(condition);
    }

    /// Limits the rule to protocols, if that is all there is to say: the next header of IPv6 may be an option, and the protocol
    /// behind it.
    fn restrict(&mut self, value: &Value, asked: Protocols, inverted: bool) -> bool {
        let next_header = value.is_next_header();
        if next_header && (inverted || V6_EXTENSIONS.iter().any(|number| asked.contains(Protocol(*number)))) {
            return false;
        }
        self.parts.protocols = self.parts.protocols.and(asked);
        self.parts.selective |= next_header;
        true
    }

    fn look_up(&mut self, lookup: Lookup) {
        let set = (self.set)(&lookup.set);
        // The fields of a concatenation stand one behind the other.
        let mut registers = vec![slot(lookup.source)];
        for taken in set.registers.split_last().map_or(&[][..], |(_last, ahead)| ahead) {
            registers.push(registers.last().map_or(*taken, |last| last.saturating_add(*taken)));
        }
        let values: Vec<_> = registers.iter().map(|register| self.registers.get(register).cloned()).collect();
        let protocols = set.protocols.filter(|_| !lookup.leads);
        if let ([Some((value, None))], Some(these)) = (values.as_slice(), protocols)
            && value.is_protocol()
        {
            let asked = if lookup.inverted { Protocols::ALL.without(these) } else { these };
            if self.restrict(value, asked, lookup.inverted) {
                return self.look_into_map(&lookup);
            }
        }
        if let ([Some((Value::Number { modulus, offset }, None))], Some(numbers)) = (values.as_slice(), &set.numbers)
            && let Some(part) = part_within(*modulus, *offset, numbers)
        {
            self.parts.probability *= if lookup.inverted { 1.0 - part } else { part };
            if lookup.leads {
                self.action = Action::Map;
            }
            return self.look_into_map(&lookup);
        }
        if set.empty && !lookup.inverted {
            // As long as nobody puts anything into it, no packet passes.
            self.parts.protocols = Protocols::NONE;
        }
        let name =
            |value: &Option<(Value, _)>| value.as_ref().map_or_else(|| "?".to_owned(), |(value, _)| value.name());
        let names = values.iter().map(name).collect::<Vec<_>>().join(" . ");
        let holds = set.words.is_some() && set.fixed;
        let within = set.words.unwrap_or_else(|| format!("@{}", lookup.set));
        let not = if lookup.inverted { "! " } else { "" };
        // Of a map, too: a packet whose key is not in it goes on to the next rule.
        let condition = format!("{not}{names} in {within}");
        let all = |is: fn(&(Value, Option<Vec<u8>>)) -> bool| values.iter().all(|value| value.as_ref().is_some_and(is));
        if lookup.leads {
            self.action = Action::Map;
            self.parts.conditions.push(Condition::for_now(condition, &[]));
        } else if !all(|(value, mask)| mask.is_none() && value.is_understood()) {
            // Of a part of the bits there are no words, either.
            self.unclear(condition, &[]);
        } else if holds && all(|(value, mask)| value.is_lasting(mask.as_deref())) {
            self.parts.conditions.push(Condition::lasting(condition));
        } else {
            self.parts.conditions.push(Condition::for_now(condition, lookup.set.as_bytes()));
        }
        self.look_into_map(&lookup);
    }

    /// What a map holds for a packet's key is not told.
    fn look_into_map(&mut self, lookup: &Lookup) {
        if let Some(destination) = lookup.destination {
            self.registers.insert(slot(destination), (Value::Other(format!("map @{}", lookup.set)), None));
        }
    }

    /// The bytes of a constant in a register.
    fn constant(&self, register: u32) -> Option<&[u8]> {
        match self.registers.get(&slot(register)) {
            Some((Value::Bytes(bytes), _)) => Some(bytes),
            _ => None,
        }
    }

    fn addresses(&self, first: Option<u32>, last: Option<u32>) -> Option<String> {
        let address = |register: u32| {
            let bytes = self.constant(register)?;
            let v4 = bytes
                .first_chunk::<4>()
                .filter(|_| bytes.len() == 4)
                .map(|bytes| std::net::Ipv4Addr::from(*bytes).to_string());
            v4.or_else(|| Some(std::net::Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_string()))
        };
        let first = first.map(|register| address(register).unwrap_or_else(|| "?".to_owned()))?;
        match last.and_then(address) {
            Some(last) if last != first => Some(format!("{first}-{last}")),
            _ => Some(first),
        }
    }

    fn translate(
        &mut self,
        kind: SourceNatKind,
        addresses: Option<String>,
        flags: u32,
        ports: (Option<u32>, Option<u32>),
    ) {
        let port = |register: u32| self.constant(register)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        let ports = match ports {
            (None, _) => Known::Absent,
            (Some(first), last) => match (port(first), port(last.unwrap_or(first))) {
                (Some(a), Some(b)) => PortRange::new(a.min(b), a.max(b)).map_or(Known::Absent, Known::Present),
                _ => Known::because("its ports are not in the rule but in a map"),
            },
        };
        let persistent = flags & nat_flags::PERSISTENT != 0;
        self.action = Action::Translate(SourceNat { kind, addresses, ports, choice: xt::choice(flags), persistent });
    }
}
