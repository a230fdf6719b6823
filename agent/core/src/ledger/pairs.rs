//! A map by pair of destination and source. There may be very many pairs, and most of them are IPv4: each family has a tree of
//! its own, so that their keys take 16 bytes, not 56.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::flow::{Destination, Endpoint, Protocol};

/// From whom to where, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// Where the flows go, after DNAT.
    pub destination: Destination,
    /// Who opened them, before any translation.
    pub source: IpAddr,
    /// What the destination takes for their source.
    pub translated: IpAddr,
}

/// Addresses of one family, or of two in the wider one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key<A> {
    protocol: Protocol,
    address: A,
    port: u16,
    source: A,
    translated: A,
}

impl<A> Key<A> {
    fn new(pair: &Pair, [address, source, translated]: [A; 3]) -> Self {
        let Destination { protocol, endpoint } = pair.destination;
        Self { protocol, address, port: endpoint.port, source, translated }
    }
}

fn narrow(pair: &Pair) -> Option<Key<Ipv4Addr>> {
    let addresses = [pair.destination.endpoint.address, pair.source, pair.translated];
    match addresses.map(|address| address.to_canonical()) {
        [IpAddr::V4(address), IpAddr::V4(source), IpAddr::V4(translated)] => {
            Some(Key::new(pair, [address, source, translated]))
        }
        _ => None,
    }
}

fn wide(pair: &Pair) -> Key<Ipv6Addr> {
    let wide = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    Key::new(pair, [pair.destination.endpoint.address, pair.source, pair.translated].map(wide))
}

impl<A: Copy + Into<IpAddr>> From<&Key<A>> for Pair {
    fn from(key: &Key<A>) -> Self {
        let endpoint = Endpoint::new(key.address.into(), key.port);
        Self {
            destination: Destination { protocol: key.protocol, endpoint },
            source: key.source.into().to_canonical(),
            translated: key.translated.into().to_canonical(),
        }
    }
}

/// The map. An IPv6 address that stands for one of IPv4 comes out as that.
#[derive(Debug)]
pub(super) struct Pairs<V> {
    v4: BTreeMap<Key<Ipv4Addr>, V>,
    v6: BTreeMap<Key<Ipv6Addr>, V>,
}

impl<V> Default for Pairs<V> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}

impl<V> Pairs<V> {
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub(super) fn get(&self, pair: &Pair) -> Option<&V> {
        match narrow(pair) {
            Some(key) => self.v4.get(&key),
            None => self.v6.get(&wide(pair)),
        }
    }

    pub(super) fn get_mut(&mut self, pair: &Pair) -> Option<&mut V> {
        match narrow(pair) {
            Some(key) => self.v4.get_mut(&key),
            None => self.v6.get_mut(&wide(pair)),
        }
    }

    /// What is there, made if nothing is.
    pub(super) fn of(&mut self, pair: &Pair) -> &mut V
    where
        V: Default,
    {
        match narrow(pair) {
            Some(key) => self.v4.entry(key).or_default(),
            None => self.v6.entry(wide(pair)).or_default(),
        }
    }

    pub(super) fn insert(&mut self, pair: &Pair, value: V) {
        match narrow(pair) {
            Some(key) => self.v4.insert(key, value),
            None => self.v6.insert(wide(pair), value),
        };
    }

    pub(super) fn remove(&mut self, pair: &Pair) {
        match narrow(pair) {
            Some(key) => self.v4.remove(&key),
            None => self.v6.remove(&wide(pair)),
        };
    }

    /// All of them: within a family in the order of destinations.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Pair, &V)> {
        let v4 = self.v4.iter().map(|(key, value)| (Pair::from(key), value));
        v4.chain(self.v6.iter().map(|(key, value)| (Pair::from(key), value)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Pair, &mut V)> {
        let v4 = self.v4.iter_mut().map(|(key, value)| (Pair::from(key), value));
        v4.chain(self.v6.iter_mut().map(|(key, value)| (Pair::from(key), value)))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.v4.values_mut().chain(self.v6.values_mut())
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(Pair, &mut V) -> bool) {
        self.v4.retain(|key, value| keep(Pair::from(key), value));
        self.v6.retain(|key, value| keep(Pair::from(key), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(destination: &str, source: &str, translated: &str) -> Pair {
        let endpoint = Endpoint::new(destination.parse().unwrap(), 443);
        let destination = Destination { protocol: Protocol::TCP, endpoint };
        Pair { destination, source: source.parse().unwrap(), translated: translated.parse().unwrap() }
    }

    /// Exercises both families and what is of two. If this fails, a pair is counted twice, or never found again.
    #[test]
    fn every_pair_comes_out_as_it_went_in_whatever_its_family() {
        let pairs = [
            pair("203.0.113.7", "10.64.0.2", "10.0.0.2"),
            pair("203.0.113.8", "10.64.0.2", "10.0.0.2"),
            pair("203.0.113.7", "::", "10.0.0.2"),
            pair("2001:db8::7", "fd00::2", "2001:db8::2"),
        ];
        let mut map = Pairs::default();
        for (number, pair) in (1_u32..).zip(&pairs) {
            *map.of(pair) += number;
            *map.of(pair) += number;
            assert_eq!((map.get(pair).copied(), map.get_mut(pair).copied()), (Some(2 * number), Some(2 * number)));
        }
        assert_eq!(map.len(), pairs.len());
        assert!(pairs.iter().all(|pair| map.iter().any(|(known, _)| known == *pair)));
        let mapped = pair("203.0.113.7", "10.64.0.2", "::ffff:10.0.0.2");
        assert_eq!(map.get(&mapped), Some(&2));
        assert!(map.iter_mut().all(|(known, number)| pairs.contains(&known) && *number > 0));
        map.insert(&mapped, 5);
        assert_eq!((map.get(&pairs[0]), map.len()), (Some(&5), pairs.len()));
        map.retain(|pair, _| pair == pairs[3] || pair == pairs[0]);
        assert_eq!((map.len(), map.values_mut().count()), (2, 2));
        map.remove(&mapped);
        map.remove(&pairs[3]);
        assert_eq!(map.len(), 0);
    }

    #[test]
    fn a_key_of_ipv4_takes_16_bytes() {
        assert_eq!(size_of::<Key<Ipv4Addr>>(), 16);
    }
}
