//! Sets of protocols: whom a rule is for, and whom the rules in front of it have left over.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::flow::Protocol;

/// Some of the 256 protocols there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "Written", from = "Written")]
pub struct Protocols([u64; 4]);

/// As reports have it: `"all"`, `{"only": ["tcp"]}`, `{"all_but": ["tcp"]}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Written {
    All,
    Only(Vec<Protocol>),
    AllBut(Vec<Protocol>),
}

impl Protocols {
    /// All of them.
    pub const ALL: Self = Self([u64::MAX; 4]);
    /// None of them.
    pub const NONE: Self = Self([0; 4]);

    /// Those of which this holds.
    pub fn that(holds: impl Fn(Protocol) -> bool) -> Self {
        (0..=u8::MAX).map(Protocol).filter(|protocol| holds(*protocol)).collect()
    }

    /// This one alone.
    pub fn only(protocol: Protocol) -> Self {
        [protocol].into_iter().collect()
    }

    /// Whether it is one of these.
    pub fn contains(self, protocol: Protocol) -> bool {
        let (word, bit) = (usize::from(protocol.0 >> 6), protocol.0 & 63);
        self.0.get(word).is_some_and(|word| word >> bit & 1 == 1)
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.by_word(other, |a, b| a & b)
    }

    /// Those that are in one of them.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.by_word(other, |a, b| a | b)
    }

    /// Those that are not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        self.by_word(other, |a, b| a & !b)
    }

    fn by_word(mut self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine = of(*mine, theirs));
        self
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// Whether it is every one.
    pub fn is_all(self) -> bool {
        self == Self::ALL
    }

    /// Whether all of these are in the other.
    pub fn is_within(self, other: Self) -> bool {
        self.without(other).is_empty()
    }

    /// The only one, if there is only one.
    pub fn single(self) -> Option<Protocol> {
        let mut all = self.iter();
        all.next().filter(|_| all.next().is_none())
    }

    /// One after the other, by number.
    pub fn iter(self) -> impl Iterator<Item = Protocol> {
        (0..=u8::MAX).map(Protocol).filter(move |protocol| self.contains(*protocol))
    }

    /// What `iptables` would ask a packet for: `-p tcp`, `! -p tcp,udp`; nothing if it is all of them.
    pub fn asked(self) -> Option<String> {
        match Written::from(self) {
            Written::All => None,
            Written::Only(these) => Some(format!("-p {}", listed(&these))),
            Written::AllBut(these) => Some(format!("! -p {}", listed(&these))),
        }
    }
}

/// What nobody restricts is for all.
impl Default for Protocols {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<Protocol> for Protocols {
    fn from_iter<T: IntoIterator<Item = Protocol>>(protocols: T) -> Self {
        let mut set = Self::NONE;
        for protocol in protocols {
            if let Some(word) = set.0.get_mut(usize::from(protocol.0 >> 6)) {
                *word |= 1 << (protocol.0 & 63);
            }
        }
        set
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Written::from(*self) {
            Written::All => f.write_str("all"),
            Written::Only(these) => f.write_str(&listed(&these)),
            Written::AllBut(these) => write!(f, "all but {}", listed(&these)),
        }
    }
}

fn listed(protocols: &[Protocol]) -> String {
    protocols.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// By the shorter list.
impl From<Protocols> for Written {
    fn from(protocols: Protocols) -> Self {
        let (these, others) = (protocols.iter(), Protocols::ALL.without(protocols).iter());
        let (these, others): (Vec<_>, Vec<_>) = (these.collect(), others.collect());
        match others.as_slice() {
            [] => Self::All,
            _ if these.len() <= others.len() => Self::Only(these),
            _ => Self::AllBut(others),
        }
    }
}

impl From<Written> for Protocols {
    fn from(written: Written) -> Self {
        match written {
            Written::All => Self::ALL,
            Written::Only(these) => these.into_iter().collect(),
            Written::AllBut(these) => Self::ALL.without(these.into_iter().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(protocols: &[Protocol]) -> Protocols {
        protocols.iter().copied().collect()
    }

    /// Exercises the arithmetic at the borders of words. If this fails, a rule is told to be for protocols that it is not for.
    #[test]
    fn sets_are_joined_cut_and_taken_from_each_other() {
        let (tcp, ports) = (Protocols::only(Protocol::TCP), of(&[Protocol::TCP, Protocol::UDP, Protocol::SCTP]));
        let rest = Protocols::ALL.without(tcp);
        assert!(!rest.contains(Protocol::TCP) && rest.contains(Protocol::UDP) && rest.contains(Protocol(255)));
        assert_eq!(ports.without(tcp), of(&[Protocol::UDP, Protocol::SCTP]));
        assert_eq!((ports.and(rest), tcp.or(rest)), (ports.without(tcp), Protocols::ALL));
        assert!(tcp.is_within(ports) && !ports.is_within(tcp) && Protocols::NONE.is_within(tcp));
        assert!(tcp.without(ports).is_empty() && !tcp.is_empty());
        assert_eq!((tcp.single(), ports.single(), Protocols::NONE.single()), (Some(Protocol::TCP), None, None));
        let borders = of(&[0, 63, 64, 127, 128, 191, 192, 255].map(Protocol));
        assert_eq!(borders.iter().map(|protocol| protocol.0).collect::<Vec<_>>(), [0, 63, 64, 127, 128, 191, 192, 255]);
        assert_eq!(Protocols::that(|protocol| protocol.0 >= 128).iter().count(), 128);
        assert!(Protocols::that(|_| true).is_all());
    }

    /// Exercises the words and the JSON. If this fails, a report says something else than what it was made from.
    #[test]
    fn a_set_is_told_by_the_shorter_list_and_read_back() {
        let tcp = Protocols::only(Protocol::TCP);
        for (set, asked, json) in [
            (Protocols::ALL, None, "\"all\""),
            (tcp, Some("-p tcp"), "{\"only\":[\"tcp\"]}"),
            (Protocols::ALL.without(tcp), Some("! -p tcp"), "{\"all_but\":[\"tcp\"]}"),
            (of(&[Protocol::UDP, Protocol::TCP]), Some("-p tcp,udp"), "{\"only\":[\"tcp\",\"udp\"]}"),
            (Protocols::NONE, Some("-p "), "{\"only\":[]}"),
        ] {
            assert_eq!(set.asked().as_deref(), asked);
            assert_eq!(serde_json::to_string(&set).unwrap(), json);
            assert_eq!(serde_json::from_str::<Protocols>(json).unwrap(), set);
        }
        assert_eq!(Protocols::ALL.without(tcp).to_string(), "all but tcp");
    }
}
