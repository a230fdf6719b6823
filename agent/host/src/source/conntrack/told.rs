//! The kernel's counters of conntrack as facts.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::net::{IpAddr, Ipv6Addr};

use headroom_core::flow::{Destination, Endpoint, Protocol};
use headroom_core::observe::{ConntrackCounter, Fact, NoPort, Snapshot};
use headroom_ebpf_common::conntrack::{Counts, Key};

/// What is to be told of keys that moved while they were retired.
pub(super) fn last_words(
    moved: &[(Key, Counts)],
    entries: bool,
    mut told: Option<&mut Attempts>,
) -> [(Snapshot, Vec<Fact>); 2] {
    let mut entry = |(key, counts): &_| Fact::ConntrackCounter(counter(key, counts, told.as_deref_mut()));
    let counters = moved.iter().filter(|_| entries).map(&mut entry).collect();
    let dropped = moved.iter().filter(|(_, counts)| counts.no_port > 0);
    let no_ports = dropped.map(|(key, counts)| Fact::NoPort(no_port(key, counts))).collect();
    [(Snapshot::ConntrackCounters, counters), (Snapshot::NoPorts, no_ports)]
}

/// Where attempts are counted: the highest numbers that were told of each key. One that failed is taken back, and a reading in
/// between had it already; if a number fell, the next to go in would be taken for two.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<u64, Counts>);

impl Attempts {
    /// The numbers to tell: none lower than before.
    pub(super) fn raise(&mut self, key: &Key, counts: &Counts) -> Counts {
        let before = self.0.get(&hash(key)).filter(|before| before.born == counts.born).copied().unwrap_or_default();
        // A key that came back between an attempt and its end is below zero.
        let raised = |now: u64, before: u64| if now.cast_signed() < 0 { before } else { now.max(before) };
        let told = Counts {
            inserted: raised(counts.inserted, before.inserted),
            node_port_inserted: raised(counts.node_port_inserted, before.node_port_inserted),
            ..*counts
        };
        self.0.insert(hash(key), told);
        told
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(&hash(key));
    }
}

fn address(octets: [u8; 16]) -> IpAddr {
    IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
}

/// A map entry as a fact.
pub(super) fn counter(key: &Key, counts: &Counts, attempts: Option<&mut Attempts>) -> ConntrackCounter {
    let counts = attempts.map_or(*counts, |attempts| attempts.raise(key, counts));
    ConntrackCounter {
        protocol: Protocol(key.protocol),
        destination: Endpoint::new(address(key.destination), key.port),
        source: address(key.source),
        translated: address(key.translated),
        born: counts.born,
        inserted: counts.inserted,
        ended_time_wait: counts.ended_time_wait,
        ended_reset: counts.ended_reset,
        ended_unanswered: counts.ended_unanswered,
        ended_other: counts.ended_other,
        node_port_inserted: counts.node_port_inserted,
        node_port_ended: counts.node_port_ended,
    }
}

pub(super) fn no_port(key: &Key, counts: &Counts) -> NoPort {
    NoPort {
        destination: Destination {
            protocol: Protocol(key.protocol),
            endpoint: Endpoint::new(address(key.destination), key.port),
        },
        source: address(key.source),
        translated: address(key.translated),
        born: counts.born,
        dropped: counts.no_port,
    }
}

/// What stands for a key, or for its counters.
pub(super) fn hash(what: impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises a reading between an attempt and its end. If this fails, each such reading leaves a flow that never was.
    #[test]
    fn what_is_taken_back_is_not_counted_again() {
        let key = Key::default();
        let mut attempts = Attempts::default();
        let mut told = |born, inserted: u64, node_port_inserted| {
            let told = attempts.raise(&key, &Counts { born, inserted, node_port_inserted, ..Counts::default() });
            (told.inserted, told.node_port_inserted)
        };
        assert_eq!(told(1, 5, 1), (5, 1));
        // Two of the five failed, one of them in the range; then two went in, then one more.
        assert_eq!(told(1, 3, 0), (5, 1));
        assert_eq!(told(1, 5, 1), (5, 1));
        assert_eq!(told(1, 6, 2), (6, 2));
        // Retired between the attempt and its end, the key came back below zero.
        assert_eq!(told(2, 0_u64.wrapping_sub(1), 0), (0, 0));
        assert_eq!(told(2, 1, 0), (1, 0));
    }

    /// Exercises what is counted between a reading and the retirement of its key. If this fails, packets that found no port then are
    /// in no number.
    #[test]
    fn the_last_words_of_a_key_are_those_of_entries_and_of_what_found_no_port() {
        let key = Key { port: 53, protocol: 17, ..Key::default() };
        let counts = |no_port| Counts { born: 7, inserted: 3, no_port, ..Counts::default() };
        let moved = [(key, counts(0)), (key, counts(5))];
        let [(_, entries), (snapshot, no_ports)] = last_words(&moved, true, None);
        assert_eq!((entries.len(), snapshot), (2, Snapshot::NoPorts));
        assert!(matches!(no_ports[..], [Fact::NoPort(NoPort { born: 7, dropped: 5, .. })]), "{no_ports:?}");
        let [(_, entries), (_, no_ports)] = last_words(&moved, false, None);
        assert_eq!((entries.len(), no_ports.len()), (0, 1), "where entries are not counted");
    }
}
