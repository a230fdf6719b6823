//! Short sets of addresses or ports, in words.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use headroom_core::observe::RuleFamily;

use super::elements;
use crate::netlink::nftables::Place;

/// Sets whose elements are told at most, and elements of each.
const SETS_LIMIT: usize = 64;
const SET_ELEMENTS_SHOWN: usize = 16;

/// The sets of a table.
pub(super) struct Sets<'a> {
    family: RuleFamily,
    table: &'a str,
    deadline: Instant,
    known: BTreeMap<String, Option<String>>,
}

impl<'a> Sets<'a> {
    pub(super) fn new(family: RuleFamily, table: &'a str, deadline: Instant) -> Self {
        Self { family, table, deadline, known: BTreeMap::new() }
    }

    /// `{10.0.0.0/8, 172.16.0.0/12}` for a short set of addresses or ports; `None` for one that is told by its name.
    pub(super) fn shown(&mut self, set: &str) -> Option<String> {
        if let Some(known) = self.known.get(set) {
            return known.clone();
        }
        let shown = if self.known.len() < SETS_LIMIT { self.read(set) } else { None };
        self.known.insert(set.to_owned(), shown.clone());
        shown
    }

    fn read(&self, set: &str) -> Option<String> {
        let mut keys: Vec<(Vec<u8>, bool)> = Vec::new();
        let place = Place { family: self.family, table: self.table, within: Some(set) };
        let more = elements(&place, SET_ELEMENTS_SHOWN * 2 + 1, self.deadline, |element| {
            keys.push((element.key.to_vec(), element.is_end));
        })
        .ok()?;
        (!more).then(|| intervals(keys)).flatten()
    }
}

/// Keys of a set in words, if they are addresses or ports, and not too many. Intervals come as their beginning, and as what follows their end.
fn intervals(mut keys: Vec<(Vec<u8>, bool)>) -> Option<String> {
    // Where one interval follows another at once, the end of the first comes before the beginning of the second.
    keys.sort_by(|(key, is_end), (other, other_is_end)| key.cmp(other).then(other_is_end.cmp(is_end)));
    let shown = |key: &[u8]| match key.len() {
        2 => Some(u16::from_be_bytes(key.try_into().ok()?).to_string()),
        4 => Some(Ipv4Addr::from(*key.first_chunk::<4>()?).to_string()),
        16 => Some(Ipv6Addr::from(*key.first_chunk::<16>()?).to_string()),
        _ => None,
    };
    let has_intervals = keys.iter().any(|(_, is_end)| *is_end);
    let mut words = Vec::new();
    let mut keys = keys.into_iter().peekable();
    while let Some((key, is_end)) = keys.next() {
        // What is below the first interval.
        if is_end {
            continue;
        }
        let first = shown(&key)?;
        let next = keys.peek().filter(|_| has_intervals).map(|(key, _)| before(key));
        let _end = keys.next_if(|(_, is_end)| *is_end);
        words.push(match next {
            None if has_intervals => format!("{first}-"),
            None => first,
            Some(last) if last == key => first,
            Some(last) => {
                prefix(&key, &last).map_or(format!("{first}-{}", shown(&last)?), |bits| format!("{first}/{bits}"))
            }
        });
    }
    (words.len() <= SET_ELEMENTS_SHOWN).then(|| format!("{{{}}}", words.join(", ")))
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
    if first.len() < 4 {
        return None;
    }
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

    #[test]
    fn sets_are_told_as_prefixes_where_they_are_some() {
        let key = |address: [u8; 4], is_end| (address.to_vec(), is_end);
        let private = vec![
            key([0, 0, 0, 0], true),
            key([10, 0, 0, 0], false),
            key([11, 0, 0, 0], true),
            key([172, 16, 0, 0], false),
            key([172, 32, 0, 0], true),
            key([192, 0, 2, 5], false),
            key([192, 0, 2, 8], true),
        ];
        assert_eq!(intervals(private).as_deref(), Some("{10.0.0.0/8, 172.16.0.0/12, 192.0.2.5-192.0.2.7}"));
        assert_eq!(
            intervals(vec![key([1, 2, 3, 4], false), key([1, 2, 3, 9], false)]).as_deref(),
            Some("{1.2.3.4, 1.2.3.9}")
        );
        assert_eq!(intervals(vec![(vec![0; 7], false)]), None);
    }
}
