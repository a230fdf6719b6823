//! Matches and targets of `x_tables`, from the layouts in `include/uapi/linux/netfilter/xt_*.h` (stable, numbers in the
//! machine's byte order unless said otherwise).
//!
//! What is not decoded is named as not understood, never passed over: a rule may apply to fewer packets than it seems.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use headroom_core::flow::Protocol;
use headroom_core::known::Known;
use headroom_core::observe::{PortChoice, RuleFamily, SourceNat, SourceNatKind};
use headroom_core::ports::PortRange;
use headroom_core::protocols::Protocols;

use super::ipset::NUMBERED;
use crate::rules::{Action, Condition, Lasts, Parts};

/// Comments have at most 256 bytes (`XT_MAX_COMMENT_LEN`).
const COMMENT_BYTES: usize = 256;

/// `NF_NAT_RANGE_*` (`uapi/linux/netfilter/nf_nat.h`).
pub mod nat_flags {
    /// Addresses are given.
    pub const MAP_IPS: u32 = 1;
    /// Ports are given.
    pub const PROTO_SPECIFIED: u32 = 2;
    /// `--random`
    pub const PROTO_RANDOM: u32 = 4;
    /// `--persistent`
    pub const PERSISTENT: u32 = 8;
    /// `--random-fully`
    pub const PROTO_RANDOM_FULLY: u32 = 16;
}

/// How ports are chosen, from `NF_NAT_RANGE_*`.
pub fn choice(flags: u32) -> PortChoice {
    if flags & nat_flags::PROTO_RANDOM_FULLY != 0 {
        PortChoice::RandomFully
    } else if flags & nat_flags::PROTO_RANDOM != 0 {
        PortChoice::Random
    } else {
        PortChoice::Keep
    }
}

/// Matches that do not give two rules that ask the same the same answer.
const COUNTING: [&str; 7] = ["limit", "hashlimit", "quota", "connlimit", "recent", "nfacct", "rateest"];

/// Adds what a match asks, in a table of this family.
pub fn read_match(name: &str, revision: u8, data: &[u8], family: RuleFamily, parts: &mut Parts) {
    if understood(name, revision, data, family, parts).is_none() {
        let unclear = Condition::unclear(format!("match `{name}`"), data);
        let lasts = if COUNTING.contains(&name) { Lasts::Once } else { unclear.lasts };
        parts.conditions.push(Condition { lasts, ..unclear });
    }
}

/// `None` if the match is not one that is decoded, or not laid out as it should be.
fn understood(name: &str, revision: u8, data: &[u8], family: RuleFamily, parts: &mut Parts) -> Option<()> {
    let lasting = |words: Vec<String>| words.into_iter().map(Condition::lasting).collect();
    // Of what "…" stands for the bytes tell whether another rule asks the same.
    let in_part = |said: &str| vec![Condition::for_now(said, data)];
    let conditions: Vec<Condition> = match (name, revision) {
        ("comment", _) => {
            parts.comment = Some(text(data.get(..COMMENT_BYTES.min(data.len()))?));
            return Some(());
        }
        ("statistic", 0) => {
            parts.probability *= statistic(data)?;
            return Some(());
        }
        ("tcp", 0) => ports_and(data, *data.get(11)?, Some(data.get(8..11)?), parts)?,
        ("udp" | "udplite", 0) => ports_and(data, *data.get(8)?, None, parts)?,
        ("mark", 1) | ("connmark", 1) => {
            let (mark, mask) = (u32_at(data, 0)?, u32_at(data, 4)?);
            let not = if *data.get(8)? != 0 { "! " } else { "" };
            let mask = if mask == u32::MAX { String::new() } else { format!("/{mask:#x}") };
            let name = if name == "mark" { "mark" } else { "ct mark" };
            vec![Condition::for_now(format!("{not}{name} {mark:#x}{mask}"), &[])]
        }
        ("addrtype", 0 | 1) => lasting(addrtype(revision, data)?),
        ("multiport", 1) => lasting(vec![multiport(data)?]),
        ("pkttype", 0) => in_part(&format!("-m pkttype {}--pkt-type {}", not(u32_at(data, 4)? != 0), u32_at(data, 0)?)),
        ("set", 1..=4) => {
            let flags = *data.get(3)?;
            // A bit for each field of its elements, of which there are six at most (`IPSET_DIM_MAX`).
            let side = |field| if flags >> field & 1 == 1 { "src" } else { "dst" };
            let sides = (1..=(*data.get(2)?).clamp(1, 6)).map(side).collect::<Vec<_>>().join(",");
            in_part(&format!("-m set {}{NUMBERED}{} {sides}", not(flags & 1 != 0), u16_at(data, 0)?))
        }
        ("physdev", 0) => in_part("-m physdev …"),
        ("conntrack", 1..=3) => in_part("-m conntrack …"),
        ("state", 0) => in_part("-m state …"),
        ("owner", 1) => in_part("-m owner …"),
        ("policy", 0) => in_part(&policy(data)?),
        ("realm", 0) => in_part(&format!("-m realm {}--realm {:#x}", not(*data.get(8)? != 0), u32_at(data, 0)?)),
        ("limit", 0) => vec![Condition::once("-m limit …")],
        ("iprange", 1) => lasting(iprange(data, family)?),
        _ => return None,
    };
    parts.conditions.extend(conditions);
    Some(())
}

fn not(invert: bool) -> &'static str {
    if invert { "! " } else { "" }
}

/// `struct xt_statistic_info`: the part of packets that fulfil it.
fn statistic(data: &[u8]) -> Option<f64> {
    const INVERT: u16 = 1;
    let (mode, flags, number) = (u16_at(data, 0)?, u16_at(data, 2)?, u32_at(data, 4)?);
    let part = match mode {
        // XT_STATISTIC_MODE_RANDOM: of 2^31.
        0 => f64::from(number) / f64::from(1_u32 << 31),
        // XT_STATISTIC_MODE_NTH: every (n + 1)th.
        1 => 1.0 / (f64::from(number) + 1.0),
        _ => return None,
    };
    let part = part.min(1.0);
    Some(if flags & INVERT != 0 { 1.0 - part } else { part })
}

/// `struct xt_tcp` and `struct xt_udp`: both begin with two source and two destination ports.
fn ports_and(data: &[u8], inverted: u8, flags: Option<&[u8]>, parts: &mut Parts) -> Option<Vec<Condition>> {
    let mut conditions = Vec::new();
    for (name, at, bit) in [("--sport", 0, 1), ("--dport", 4, 2)] {
        let range = PortRange::new(u16_at(data, at)?, u16_at(data, at + 2)?)?;
        if (range.first(), range.last()) != (0, u16::MAX) || inverted & bit != 0 {
            conditions.push(Condition::lasting(format!("{}{name} {range}", not(inverted & bit != 0))));
            if name == "--dport" && range.count() == 1 && inverted & bit == 0 {
                parts.destination_port = Some(range.first());
            }
        }
    }
    // option, flg_mask, flg_cmp, and whether they are turned round
    if flags.is_some_and(|flags| flags.iter().any(|byte| *byte != 0)) || inverted & !3 != 0 {
        conditions.push(Condition::for_now("--tcp-flags …", data.get(8..)?));
    }
    Some(conditions)
}

fn addrtype(revision: u8, data: &[u8]) -> Option<Vec<String>> {
    const NAMES: [&str; 12] = [
        "UNSPEC",
        "UNICAST",
        "LOCAL",
        "BROADCAST",
        "ANYCAST",
        "MULTICAST",
        "BLACKHOLE",
        "UNREACHABLE",
        "PROHIBIT",
        "THROW",
        "NAT",
        "XRESOLVE",
    ];
    let (source, destination, flags) = (u16_at(data, 0)?, u16_at(data, 2)?, u32_at(data, 4)?);
    // Types that have no name would be left out of the words.
    ((source | destination) >> NAMES.len() == 0).then_some(())?;
    let (not_source, not_destination) =
        if revision == 0 { (flags != 0, u32_at(data, 8)? != 0) } else { (flags & 1 != 0, flags & 2 != 0) };
    let types = |mask: u16| {
        let set = NAMES.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
        set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
    };
    // It is no condition of its own: an address may be LOCAL, and not be LOCAL to the interface (`addrtype_mt_v1`).
    let limit = match (revision, flags & 12) {
        (0, _) | (_, 0) => "",
        (_, 8) => " --limit-iface-out",
        // With both flags the kernel takes the first.
        _ => " --limit-iface-in",
    };
    let mut words = Vec::new();
    if source != 0 {
        words.push(format!("{}--src-type {}{limit}", not(not_source), types(source)));
    }
    if destination != 0 {
        words.push(format!("{}--dst-type {}{limit}", not(not_destination), types(destination)));
    }
    Some(words)
}

/// `struct xt_multiport_v1`.
fn multiport(data: &[u8]) -> Option<String> {
    let (flags, count, inverted) = (*data.first()?, usize::from(*data.get(1)?), *data.get(47)? != 0);
    let mut ports = Vec::new();
    let mut at = 0;
    while at < count.min(15) {
        let port = u16_at(data, 2 + 2 * at)?;
        if *data.get(32 + at)? != 0 {
            ports.push(format!("{port}:{}", u16_at(data, 4 + 2 * at)?));
            at += 1;
        } else {
            ports.push(port.to_string());
        }
        at += 1;
    }
    let name = match flags {
        0 => "--sports",
        1 => "--dports",
        _ => "--ports",
    };
    Some(format!("{}{name} {}", not(inverted), ports.join(",")))
}

/// `struct xt_policy_info`: direction and whether there is a policy; what it says is left out.
fn policy(data: &[u8]) -> Option<String> {
    // Four elements of 76 bytes, then flags and their number.
    let flags = u16_at(data, 304)?;
    let direction = if flags & 2 != 0 { "out" } else { "in" };
    Some(format!("-m policy --dir {direction} --pol {}", if flags & 4 != 0 { "none" } else { "ipsec" }))
}

/// `struct xt_iprange_mtinfo`.
fn iprange(data: &[u8], family: RuleFamily) -> Option<Vec<String>> {
    let flags = *data.get(64)?;
    let address = |at: usize| address(data, at, family);
    let mut words = Vec::new();
    if flags & 1 != 0 {
        words.push(format!("{}--src-range {}-{}", not(flags & 16 != 0), address(0)?, address(16)?));
    }
    if flags & 2 != 0 {
        words.push(format!("{}--dst-range {}-{}", not(flags & 32 != 0), address(32)?, address(48)?));
    }
    Some(words)
}

/// Whether no packet goes on behind a target. What a program that listens at a queue accepts goes on behind the hook, and so does
/// everything with `--queue-bypass` where nobody listens (`nf_reinject` and `nf_queue` in net/netfilter/nf_queue.c; tried on
/// 6.18).
pub fn ends(name: &str) -> bool {
    matches!(name, "REJECT" | "NFQUEUE")
}

/// Whether a target may change what rules ask for.
pub fn changes(name: &str) -> bool {
    const HARMLESS: [&str; 9] = ["", "AUDIT", "IDLETIMER", "LED", "LOG", "NFLOG", "TEE", "TRACE", "ULOG"];
    !translates(name) && !ends(name) && !HARMLESS.contains(&name)
}

/// Whether a target translates source addresses.
pub fn translates(name: &str) -> bool {
    matches!(name, "MASQUERADE" | "SNAT" | "NETMAP")
}

/// What a target other than the standard one does.
pub fn read_target(name: &str, revision: u8, data: &[u8], family: RuleFamily, parts: &mut Parts) -> Action {
    let kind = match name {
        "MASQUERADE" => SourceNatKind::Masquerade,
        "SNAT" => SourceNatKind::Snat,
        "NETMAP" => SourceNatKind::Netmap,
        name if ends(name) => return Action::End,
        name => {
            if changes(name) {
                parts.changes = parts.changes.or(parts.protocols);
            }
            return Action::Continue;
        }
    };
    let v4_only = family == RuleFamily::Ip && revision == 0;
    let decoded = if v4_only { multi_range(data) } else { range(data, family) };
    Action::Translate(decoded.map_or_else(
        || {
            parts.conditions.push(Condition::unclear(format!("target `{name}` revision {revision}"), &[]));
            let ports = Known::because(format!("revision {revision} of target `{name}` is not understood"));
            SourceNat { kind, addresses: None, ports, choice: PortChoice::Keep, persistent: false }
        },
        |range| range.into_source_nat(kind),
    ))
}

/// What all layouts of a range hold.
struct NatRange {
    flags: u32,
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
}

impl NatRange {
    fn into_source_nat(self, kind: SourceNatKind) -> SourceNat {
        let (first, last) = self.addresses;
        let addresses = (self.flags & nat_flags::MAP_IPS != 0)
            .then(|| if first == last { first.to_string() } else { format!("{first}-{last}") });
        // The kernel takes them either way round.
        let (low, high) = (self.ports.0.min(self.ports.1), self.ports.0.max(self.ports.1));
        let ports = match PortRange::new(low, high) {
            Some(range) if self.flags & nat_flags::PROTO_SPECIFIED != 0 => Known::Present(range),
            _ => Known::Absent,
        };
        let persistent = self.flags & nat_flags::PERSISTENT != 0;
        SourceNat { kind, addresses, ports, choice: choice(self.flags), persistent }
    }
}

/// `struct nf_nat_ipv4_multi_range_compat`, with one range.
fn multi_range(data: &[u8]) -> Option<NatRange> {
    (u32_at(data, 0)? == 1).then_some(())?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 4] = data.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes).into())
    };
    Some(NatRange {
        flags: u32_at(data, 4)?,
        addresses: (address(8)?, address(12)?),
        ports: (be16_at(data, 16)?, be16_at(data, 18)?),
    })
}

/// `struct nf_nat_range` and `struct nf_nat_range2`, which has one port more.
fn range(data: &[u8], family: RuleFamily) -> Option<NatRange> {
    Some(NatRange {
        flags: u32_at(data, 0)?,
        addresses: (address(data, 4, family)?, address(data, 20, family)?),
        ports: (be16_at(data, 36)?, be16_at(data, 38)?),
    })
}

/// `union nf_inet_addr`: IPv4 has the first four of its bytes. The bytes do not tell which it is (`2001:db8::`), the table does, and
/// one of both families does not.
fn address(data: &[u8], at: usize, family: RuleFamily) -> Option<IpAddr> {
    let bytes: [u8; 16] = data.get(at..at.checked_add(16)?)?.try_into().ok()?;
    let [a, b, c, d, ..] = bytes;
    match family {
        RuleFamily::Ip => Some(Ipv4Addr::new(a, b, c, d).into()),
        RuleFamily::Ip6 => Some(Ipv6Addr::from(bytes).into()),
        RuleFamily::Inet => None,
    }
}

/// A protocol number in a rule; 0 is all.
pub fn protocol(number: u16, inverted: bool, parts: &mut Parts) {
    let Ok(number @ 1..) = u8::try_from(number) else { return };
    let asked = Protocols::only(Protocol(number));
    parts.protocols = if inverted { parts.protocols.without(asked) } else { parts.protocols.and(asked) };
}

/// Text up to the first zero byte.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

pub(crate) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn be16_at(data: &[u8], at: usize) -> Option<u16> {
    u16_at(data, at).map(u16::from_be)
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the type that an address has on one interface. If this fails, Calico's rule for its tunnel asks for addresses
    /// that are LOCAL and are not, and is called dead.
    #[test]
    fn the_type_of_an_address_on_an_interface_is_another_question() {
        const LOCAL: u16 = 1 << 2;
        let told = |revision: u8, source: u16, destination: u16, flags: u32| {
            let data = [&source.to_ne_bytes()[..], &destination.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]].concat();
            let mut parts = Parts::default();
            read_match("addrtype", revision, &data, RuleFamily::Ip, &mut parts);
            parts.conditions.iter().map(|condition| condition.said.clone()).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(told(1, LOCAL, 0, 0), "--src-type LOCAL");
        assert_eq!(told(1, LOCAL, 0, 1 | 8), "! --src-type LOCAL --limit-iface-out");
        assert_eq!(told(1, LOCAL, 0, 4 | 8), "--src-type LOCAL --limit-iface-in");
        let both = "--src-type LOCAL --limit-iface-in, ! --dst-type LOCAL --limit-iface-in";
        assert_eq!(told(1, LOCAL, LOCAL, 2 | 4), both);
        // In the first layout there is but the source's inversion.
        assert_eq!(told(0, LOCAL, 0, 8), "! --src-type LOCAL");
        assert_eq!(told(1, 1 << 12, 0, 0), "match `addrtype`");
    }

    /// Exercises IPv6 addresses that have bits in the first four bytes only. If this fails, they are told as IPv4, and the fix
    /// for such a rule is one that no program takes.
    #[test]
    fn addresses_are_of_the_family_of_their_table() {
        let mut first = [0; 16];
        first[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        let mut last = first;
        last[15] = 9;
        let told = |family| {
            let snat = [&nat_flags::MAP_IPS.to_ne_bytes()[..], &first, &last, &[0; 8]].concat();
            let mut parts = Parts::default();
            let Action::Translate(target) = read_target("SNAT", 2, &snat, family, &mut parts) else { panic!() };
            read_match("iprange", 1, &[&first[..], &last, &[0; 32], &[1, 0]].concat(), family, &mut parts);
            let of = |understood| {
                let conditions = parts.conditions.iter().filter(move |condition| condition.understood == understood);
                conditions.map(|condition| condition.said.clone()).collect::<Vec<_>>()
            };
            (target.addresses, of(true), of(false))
        };
        assert_eq!(
            told(RuleFamily::Ip6),
            (
                Some("2001:db8::-2001:db8::9".to_owned()),
                vec!["--src-range 2001:db8::-2001:db8::9".to_owned()],
                Vec::new()
            )
        );
        // As the kernel has an IPv4 address in a union of both, the rest is not looked at.
        let (addresses, conditions, _) = told(RuleFamily::Ip);
        assert_eq!(
            (addresses.as_deref(), conditions[0].as_str()),
            (Some("32.1.13.184"), "--src-range 32.1.13.184-32.1.13.184")
        );
        let (addresses, conditions, unclear) = told(RuleFamily::Inet);
        assert_eq!((addresses, conditions.len(), unclear.len()), (None, 0, 2), "{unclear:?}");
    }
}
