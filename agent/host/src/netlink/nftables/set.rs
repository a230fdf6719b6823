//! Sets and maps of `nf_tables`: what their keys mean, and their elements in words.
//!
//! The kernel compares bytes. What they mean only `nft` knows, and leaves it beside the set: `NFTA_SET_KEY_TYPE` holds a number
//! of `enum datatypes` (nftables' `include/datatype.h`; numbers are only added), six bits for each field of a concatenation, the
//! last one lowest. Fields begin at multiples of four bytes. A set of a type that has no words here is told by its name.

use std::net::{Ipv4Addr, Ipv6Addr};

use headroom_core::flow::Protocol;
use headroom_core::protocols::Protocols;

use super::super::message::{Malformed, Message};
use super::{Element, NEW_SET, nfta, payload, text};

/// `NFT_SET_INTERVAL`.
const INTERVAL: u32 = 4;
/// `NFT_SET_ANONYMOUS` and `NFT_SET_CONSTANT`: with either, the kernel refuses elements once a rule is bound to the set
/// (`nf_tables_newsetelem`).
const FIXED: u32 = 3;
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: without them the kernel has a short key in a bitmap or a tree, into which `dynset` puts
/// nothing (`nft_dynset_init`).
const FILLED: u32 = 0x30;
/// Bits of a type in a concatenation (`TYPE_BITS`).
const TYPE_BITS: u32 = 6;

/// A set, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetHead {
    /// Its name.
    pub name: String,
    /// Its elements are intervals: the kernel compares them byte by byte, so that numbers stand in network order, those too that the
    /// machine has in its own.
    pub interval: bool,
    /// Nobody changes it while a rule looks into it.
    pub fixed: bool,
    /// Rules may fill it, or its elements have an end.
    pub filled: bool,
    /// What each field of a key is; empty where one of them has no words here.
    pub fields: Vec<Field>,
}

/// What a field of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `ipv4_addr`
    V4,
    /// `ipv6_addr`
    V6,
    /// `inet_service`
    Port,
    /// `inet_proto`
    Protocol,
    /// `nf_proto`
    Family,
    /// `ifname`
    Name,
    /// `iface_index`
    Index,
    /// `mark`, `ct_state`, `ct_status`
    Bits,
    /// `fib_addrtype`
    AddressType,
    /// `integer`, of four bytes: what `numgen` makes.
    Number,
}

/// A key of a set, as an element holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    first: Vec<u8>,
    last: Option<Vec<u8>>,
    is_end: bool,
}

impl Key {
    /// The key of an element.
    pub fn of(element: &Element<'_>) -> Self {
        Self { first: element.key.to_vec(), last: element.key_end.map(<[u8]>::to_vec), is_end: element.is_end }
    }
}

/// The set in a message; `None` for other messages.
///
/// # Errors
/// It is not laid out as it should be.
pub fn set(message: &Message<'_>) -> Result<Option<SetHead>, Malformed> {
    if message.kind != NEW_SET {
        return Ok(None);
    }
    let (_, attributes) = payload(message)?;
    let (mut name, mut flags, mut key_type) = (None, 0, 0);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            nfta::set::NAME => name = Some(text(attribute.payload)),
            nfta::set::FLAGS => flags = attribute.be32("NFTA_SET_FLAGS")?,
            nfta::set::KEY_TYPE => key_type = attribute.be32("NFTA_SET_KEY_TYPE")?,
            _ => {}
        }
    }
    let name = name.ok_or(Malformed::Missing("NFTA_SET_NAME"))?;
    let fields = fields(key_type).unwrap_or_default();
    let has = |flag| flags & flag != 0;
    Ok(Some(SetHead { name, interval: has(INTERVAL), fixed: has(FIXED), filled: has(FILLED), fields }))
}

/// The fields of a key of this type, the first one first.
fn fields(key_type: u32) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    let mut rest = key_type;
    while rest != 0 {
        fields.push(Field::of(rest & ((1 << TYPE_BITS) - 1))?);
        rest >>= TYPE_BITS;
    }
    fields.reverse();
    Some(fields)
}

impl Field {
    fn of(datatype: u32) -> Option<Self> {
        Some(match datatype {
            2 => Self::Family,
            4 => Self::Number,
            7 => Self::V4,
            8 => Self::V6,
            12 => Self::Protocol,
            13 => Self::Port,
            19 | 26 | 28 => Self::Bits,
            20 => Self::Index,
            38 => Self::AddressType,
            41 => Self::Name,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::Protocol | Self::Family => 1,
            Self::Port => 2,
            Self::V4 | Self::Index | Self::Bits | Self::AddressType | Self::Number => 4,
            Self::V6 | Self::Name => 16,
        }
    }

    /// Registers of four bytes that it takes.
    fn registers(self) -> u32 {
        u32::try_from(self.bytes().div_ceil(4)).unwrap_or(u32::MAX)
    }

    /// A value in words.
    fn word(self, bytes: &[u8], big_endian: bool) -> Option<String> {
        let number = || {
            let bytes = *bytes.first_chunk()?;
            Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_ne_bytes(bytes) })
        };
        Some(match self {
            Self::V4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).to_string(),
            Self::V6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_string(),
            Self::Port => u16::from_be_bytes(*bytes.first_chunk()?).to_string(),
            Self::Protocol => Protocol(*bytes.first()?).to_string(),
            Self::Family => match bytes.first()? {
                2 => "IPv4".to_owned(),
                10 => "IPv6".to_owned(),
                other => other.to_string(),
            },
            Self::Name => plain_name(bytes)?,
            Self::Index | Self::Number => number()?.to_string(),
            Self::Bits => format!("{:#x}", number()?),
            Self::AddressType => super::value::address_type(number()?),
        })
    }

    /// What is between two values, both included.
    fn range(self, first: &[u8], last: &[u8], big_endian: bool) -> Option<String> {
        let one = |bytes| self.word(bytes, big_endian);
        if first == last {
            return one(first);
        }
        match (self, prefix(first, last)) {
            (Self::V4 | Self::V6, Some(bits)) => Some(format!("{}/{bits}", one(first)?)),
            // As `iptables` writes what `nft` has as `eth*`.
            (Self::Name, Some(bits)) if bits % 8 == 0 => {
                let bytes = usize::try_from(bits / 8).ok()?;
                Some(format!("{}+", plain_name(first.get(..bytes)?)?))
            }
            (Self::Name, _) => None,
            _ => Some(format!("{}-{}", one(first)?, one(last)?)),
        }
    }
}

impl SetHead {
    /// Registers of four bytes that each field takes, one after the other.
    pub fn registers(&self) -> Vec<u32> {
        self.fields.iter().map(|field| field.registers()).collect()
    }

    /// `{10.0.0.0/8, 172.16.0.0/12}`, `{10.0.0.1 . 80}`: its elements, where they can be told and are no more than `most`.
    pub fn in_words(&self, mut keys: Vec<Key>, most: usize) -> Option<String> {
        // A hash has them in no order. Where one interval follows another at once, the end of the first comes before the beginning of
        // the second.
        keys.sort_by(|a, b| a.first.cmp(&b.first).then(b.is_end.cmp(&a.is_end)));
        let words: Vec<Option<String>> = match self.fields.as_slice() {
            [] => return None,
            [field] if self.interval => {
                let intervals = intervals(&keys, *field)?;
                intervals.iter().map(|(first, last)| field.range(first, last, self.interval)).collect()
            }
            _ => keys.iter().map(|key| self.word(key)).collect(),
        };
        let words: Vec<String> = words.into_iter().collect::<Option<_>>()?;
        (words.len() <= most).then(|| format!("{{{}}}", words.join(", ")))
    }

    /// Its elements, if it is a set of protocols and nothing else, and only its owner changes it.
    pub fn protocols(&self, mut keys: Vec<Key>) -> Option<Protocols> {
        if self.filled || self.fields != [Field::Protocol] || keys.iter().any(|key| key.first.len() != 1) {
            return None;
        }
        keys.sort_by(|a, b| a.first.cmp(&b.first).then(b.is_end.cmp(&a.is_end)));
        let ranges = if self.interval {
            intervals(&keys, Field::Protocol)?
        } else {
            keys.iter().map(|key| (key.first.clone(), key.first.clone())).collect()
        };
        Some(Protocols::that(|protocol| {
            let number = vec![protocol.0];
            ranges.iter().any(|(first, last)| (first..=last).contains(&&number))
        }))
    }

    /// Its elements, if it is a set of numbers and nothing else, from and to; only its owner changes it.
    pub fn numbers(&self, mut keys: Vec<Key>) -> Option<Vec<(u32, u32)>> {
        if self.filled || self.fields != [Field::Number] || keys.iter().any(|key| key.first.len() != 4) {
            return None;
        }
        keys.sort_by(|a, b| a.first.cmp(&b.first).then(b.is_end.cmp(&a.is_end)));
        let ranges = if self.interval {
            intervals(&keys, Field::Number)?
        } else {
            keys.iter().map(|key| (key.first.clone(), key.first.clone())).collect()
        };
        let number = |bytes: &[u8]| {
            let bytes = *bytes.first_chunk()?;
            Some(if self.interval { u32::from_be_bytes(bytes) } else { u32::from_ne_bytes(bytes) })
        };
        ranges.iter().map(|(first, last)| Some((number(first)?, number(last)?))).collect()
    }

    /// An element that is not an interval of one field.
    fn word(&self, key: &Key) -> Option<String> {
        // `NFT_SET_ELEM_CATCHALL`: whatever is not told otherwise.
        if key.first.is_empty() {
            return Some("*".to_owned());
        }
        let mut at = 0;
        let mut words = Vec::new();
        for field in &self.fields {
            let part = |bytes: &[u8]| bytes.get(at..at + field.bytes()).map(<[u8]>::to_vec);
            let first = part(&key.first)?;
            let last = key.last.as_ref().map_or_else(|| Some(first.clone()), |last| part(last))?;
            words.push(field.range(&first, &last, self.interval)?);
            at += field.bytes().next_multiple_of(4);
        }
        Some(words.join(" . "))
    }
}

/// A name, unless it is one that may be taken for several or for a pattern.
fn plain_name(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (name, rest) = bytes.split_at(end);
    let plain = name.iter().all(|byte| byte.is_ascii_graphic() && !b"+,{}".contains(byte));
    (plain && rest.iter().all(|byte| *byte == 0)).then(|| text(name))
}

/// In order, intervals come as their beginning, and as what follows their end; the last one may have no end.
fn intervals(keys: &[Key], field: Field) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    if keys.iter().any(|key| key.first.len() != field.bytes()) {
        return None;
    }
    let mut intervals = Vec::new();
    let mut keys = keys.iter().peekable();
    while let Some(key) = keys.next() {
        // What is below the first interval.
        if key.is_end {
            continue;
        }
        let last = keys.peek().map_or_else(|| vec![u8::MAX; field.bytes()], |next| before(&next.first));
        let _end = keys.next_if(|next| next.is_end);
        intervals.push((key.first.clone(), last));
    }
    Some(intervals)
}

/// The number before, of as many bytes.
fn before(key: &[u8]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrowed) = byte.overflowing_sub(1);
        *byte = less;
        if !borrowed {
            break;
        }
    }
    bytes
}

/// The length of the prefix that covers exactly `first` to `last`.
fn prefix(first: &[u8], last: &[u8]) -> Option<u32> {
    let mut bits = 0;
    let mut differs = false;
    for (first, last) in first.iter().zip(last) {
        let differing = first ^ last;
        if differs && (*first != 0 || *last != u8::MAX) {
            return None;
        }
        if !differs {
            bits += differing.leading_zeros();
            let rest = u8::MAX.checked_shr(differing.leading_zeros()).unwrap_or(0);
            if differing != rest || first & rest != 0 {
                return None;
            }
            differs = differing != 0;
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(key_type: u32, interval: bool) -> SetHead {
        let fields = fields(key_type).unwrap_or_default();
        SetHead { name: "some".to_owned(), interval, fixed: false, filled: false, fields }
    }

    fn key(bytes: &[u8]) -> Key {
        Key { first: bytes.to_vec(), last: None, is_end: false }
    }

    fn end(bytes: &[u8]) -> Key {
        Key { is_end: true, ..key(bytes) }
    }

    const V4: u32 = 7;
    const PORT: u32 = 13;
    const MARK: u32 = 19;
    const IFNAME: u32 = 41;

    #[test]
    fn intervals_are_told_as_prefixes_where_they_are_some() {
        let private = vec![
            end(&[0, 0, 0, 0]),
            key(&[10, 0, 0, 0]),
            end(&[11, 0, 0, 0]),
            key(&[172, 16, 0, 0]),
            end(&[172, 32, 0, 0]),
            key(&[192, 0, 2, 5]),
            end(&[192, 0, 2, 8]),
            key(&[240, 0, 0, 0]),
        ];
        assert_eq!(
            head(V4, true).in_words(private.clone(), 16).as_deref(),
            Some("{10.0.0.0/8, 172.16.0.0/12, 192.0.2.5-192.0.2.7, 240.0.0.0/4}")
        );
        assert_eq!(head(V4, true).in_words(private, 3), None);
        assert_eq!(head(V4, true).in_words(vec![key(&[0; 4])], 16).as_deref(), Some("{0.0.0.0/0}"));
        let ports = vec![key(&[0, 80]), end(&[0, 81]), key(&[0, 81]), end(&[0, 91])];
        assert_eq!(head(PORT, true).in_words(ports, 16).as_deref(), Some("{80, 81-90}"));
    }

    /// Exercises keys of one length and of several types. If this fails, marks are told as addresses, and names of interfaces as
    /// addresses of IPv6.
    #[test]
    fn keys_are_told_by_their_type_and_not_by_their_length() {
        let marks = vec![key(&0x4000_u32.to_ne_bytes())];
        assert_eq!(head(MARK, false).in_words(marks, 16).as_deref(), Some("{0x4000}"));
        let mut eth0 = *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(head(IFNAME, false).in_words(vec![key(&eth0)], 16).as_deref(), Some("{eth0}"));
        let addresses = vec![key(&[1, 2, 3, 4]), key(&[1, 2, 3, 9])];
        assert_eq!(head(V4, false).in_words(addresses, 16).as_deref(), Some("{1.2.3.4, 1.2.3.9}"));
        // One whose name ends as a pattern does, and one that is no text.
        for odd in
            [*b"eth+\0\0\0\0\0\0\0\0\0\0\0\0", *b"et,h\0\0\0\0\0\0\0\0\0\0\0\0", *b"eth\xff\0\0\0\0\0\0\0\0\0\0\0\0"]
        {
            assert_eq!(head(IFNAME, false).in_words(vec![key(&odd)], 16), None);
        }
        // `eth*`, of which the kernel has the first and what follows the last.
        eth0[3] = 0;
        let mut after = eth0;
        after[2] += 1;
        assert_eq!(head(IFNAME, true).in_words(vec![key(&eth0), end(&after)], 16).as_deref(), Some("{eth+}"));
        let marks = vec![key(&1_u32.to_be_bytes()), end(&6_u32.to_be_bytes())];
        assert_eq!(head(MARK, true).in_words(marks, 16).as_deref(), Some("{0x1-0x5}"));
        // Of a type that has no words, and of one nobody told.
        assert_eq!(head(9, false).in_words(vec![key(&[0; 6])], 16), None);
        assert_eq!(head(0, false).in_words(vec![key(&[0; 4])], 16), None);
    }

    #[test]
    fn concatenations_are_told_field_by_field() {
        let both = head(V4 << 6 | PORT, false);
        assert_eq!(both.registers(), [1, 1]);
        let web = key(&[10, 0, 0, 1, 0, 80, 0, 0]);
        assert_eq!(both.in_words(vec![web.clone()], 16).as_deref(), Some("{10.0.0.1 . 80}"));
        let ranges = Key { last: Some(vec![10, 255, 255, 255, 0, 90, 0, 0]), ..key(&[10, 0, 0, 0, 0, 80, 0, 0]) };
        let ranges = head(V4 << 6 | PORT, true).in_words(vec![ranges], 16);
        assert_eq!(ranges.as_deref(), Some("{10.0.0.0/8 . 80-90}"));
        let all = vec![web, key(&[])];
        assert_eq!(both.in_words(all, 16).as_deref(), Some("{*, 10.0.0.1 . 80}"));
        // Cut short.
        assert_eq!(both.in_words(vec![key(&[10, 0, 0, 1, 0])], 16), None);
        assert_eq!(head(IFNAME << 6 | V4, false).registers(), [4, 1]);
    }
}
