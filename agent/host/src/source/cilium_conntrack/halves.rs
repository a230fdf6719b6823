//! Connections of pods to themselves: two entries each, put together from a map that gives them in whatever order.
//!
//! The map changes while it is read. An entry that was made in a part of the map that had been read already is missing, one that
//! has gone since is not. So what looks left behind is asked for again, by key, and only counts if it does then.

use std::cmp::Ordering;

use headroom_core::flow::Protocol;
use headroom_core::known::Known;
use headroom_core::observe::CiliumHairpin;

use super::layout::{self, Direction, Key, VALUE_BYTES, Value};

/// Entries of pods that talk to themselves, told apart at most, of all maps; 18 bytes each of IPv4, 42 of IPv6.
pub const MAX_HALVES: usize = 1 << 18;
/// Bytes of a key behind its addresses: two ports, protocol, flags.
const BEHIND_ADDRESSES: usize = 6;

/// One of the two entries of a pod's connection to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Half<const K: usize> {
    key: [u8; K],
    value: Value,
}

/// The entries of pods that talk to themselves, of one map.
#[derive(Debug)]
pub struct Halves<const K: usize> {
    halves: Vec<Half<K>>,
    room: usize,
    untold: u64,
}

/// What the connections of all maps are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// By pod and port, each once.
    pub hairpins: Vec<CiliumHairpin>,
    /// Entries that found no room.
    pub untold: u64,
    /// Entries that looked left behind and could not be looked at again.
    pub unjudged: u64,
    halves: usize,
}

impl<const K: usize> Halves<K> {
    /// None yet, and room for so many.
    pub fn with_room(room: usize) -> Self {
        Self { halves: Vec::new(), room, untold: 0 }
    }

    /// Takes in an entry of a map. Others than those of pods that talk to themselves over TCP are passed over.
    pub fn see(&mut self, key: &[u8; K], value: &[u8; VALUE_BYTES]) {
        let Some(Key { source, protocol: Protocol::TCP, .. }) = layout::key(key) else { return };
        let value = layout::value(value);
        if !layout::LOOPBACK.contains(&source.address) && !value.loopback {
            return;
        }
        if self.halves.len() >= self.room {
            self.untold = self.untold.saturating_add(1);
            return;
        }
        self.halves.push(Half { key: *key, value });
    }
}

impl Pairs {
    /// How many more entries are told apart.
    pub fn room(&self) -> usize {
        MAX_HALVES.saturating_sub(self.halves)
    }

    /// Puts the two entries of each connection together, and adds up by pod and port. `again` looks a key up as it is now.
    pub fn add<const K: usize>(
        &mut self,
        halves: Halves<K>,
        mut again: impl FnMut(&[u8; K]) -> Known<[u8; VALUE_BYTES]>,
    ) {
        let Halves { mut halves, untold, .. } = halves;
        self.halves = self.halves.saturating_add(halves.len());
        self.untold = self.untold.saturating_add(untold);
        // One that went and came again may be there twice.
        halves.sort_unstable_by(|a, b| order(&a.key, &b.key));
        halves.dedup_by(|a, b| a.key == b.key);
        let twin_of = |key: &[u8; K]| -> Option<Value> {
            let found = halves.binary_search_by(|half| order(&half.key, key)).ok()?;
            halves.get(found).map(|half| half.value)
        };
        let first = self.hairpins.len();
        for Half { key, value: out } in &halves {
            let Some(Key { destination, direction: Direction::Out, .. }) = layout::key(key) else { continue };
            let twin = layout::twin(key);
            let of_this = |sum: &CiliumHairpin| (sum.address, sum.port) == (destination.address, destination.port);
            if !self.hairpins.get(first..).is_some_and(|rows| rows.last().is_some_and(of_this)) {
                let (address, port) = (destination.address, destination.port);
                let none = CiliumHairpin { address, port, open: 0, closing: 0, half_closed: 0, alone: 0, broken: 0 };
                self.hairpins.push(none);
            }
            let Some(sum) = self.hairpins.last_mut() else { continue };
            let became = match became(*out, twin_of(&twin)) {
                left if left.is_left_behind() => became_by_now(key, &twin, &mut again),
                certain => Known::Present(certain),
            };
            match became {
                Known::Present(became) => {
                    let count = became.count(sum);
                    *count = count.saturating_add(1);
                }
                // It has ended.
                Known::Absent => {}
                Known::Unknown(_) => self.unjudged = self.unjudged.saturating_add(1),
            }
        }
    }
}

/// What became of a connection (docs of [`CiliumHairpin`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Became {
    Open,
    Closing,
    HalfClosed,
    Alone,
    Broken,
}

impl Became {
    fn is_left_behind(self) -> bool {
        !matches!(self, Self::Open | Self::Closing)
    }

    fn count(self, sum: &mut CiliumHairpin) -> &mut u64 {
        match self {
            Self::Open => &mut sum.open,
            Self::Closing => &mut sum.closing,
            Self::HalfClosed => &mut sum.half_closed,
            Self::Alone => &mut sum.alone,
            Self::Broken => &mut sum.broken,
        }
    }
}

fn became(out: Value, twin: Option<Value>) -> Became {
    match twin {
        _ if out.rx_closing => Became::Closing,
        None => Became::Alone,
        Some(twin) if twin.blank => Became::Broken,
        Some(twin) if twin.rx_closing && twin.tx_closing => Became::HalfClosed,
        Some(_) => Became::Open,
    }
}

/// The same as both entries are now. The other half is asked for first: where both go between the two questions, neither is left
/// behind.
fn became_by_now<const K: usize>(
    key: &[u8; K],
    twin: &[u8; K],
    again: &mut impl FnMut(&[u8; K]) -> Known<[u8; VALUE_BYTES]>,
) -> Known<Became> {
    let twin = match again(twin) {
        Known::Present(value) => Some(layout::value(&value)),
        Known::Absent => None,
        Known::Unknown(why) => return Known::Unknown(why),
    };
    match again(key) {
        Known::Present(value) => Known::Present(became(layout::value(&value), twin)),
        Known::Absent => Known::Absent,
        Known::Unknown(why) => Known::Unknown(why),
    }
}

/// By pod and port first, by the address that stands for the pod last.
fn order<const K: usize>(a: &[u8; K], b: &[u8; K]) -> Ordering {
    let address = K.saturating_sub(BEHIND_ADDRESSES) / 2;
    let ((a_source, a), (b_source, b)) = (a.split_at(address), b.split_at(address));
    a.cmp(b).then_with(|| a_source.cmp(b_source))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::source::cilium_conntrack::layout::{KEY_V4_BYTES, KEY_V6_BYTES};
    use proptest::prelude::*;

    type Entry<const K: usize> = ([u8; K], [u8; VALUE_BYTES]);

    /// An entry as `bpf/lib/common.h` lays it out: addresses the wrong way round, ports not.
    fn entry(from: ([u8; 4], u16), to: ([u8; 4], u16), direction: u8, flags: u16, rev_nat: u16) -> Entry<KEY_V4_BYTES> {
        let ports = [to.1.to_be_bytes(), from.1.to_be_bytes()].concat();
        let key = [&from.0[..], &to.0, &ports, &[6, direction]].concat();
        let mut value = [0; VALUE_BYTES];
        value[32..36].copy_from_slice(&21_600_u32.to_ne_bytes());
        value[36..38].copy_from_slice(&flags.to_ne_bytes());
        value[38..40].copy_from_slice(&rev_nat.to_ne_bytes());
        (key.try_into().unwrap(), value)
    }

    /// The same over IPv6.
    fn entry_v6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), direction: u8, flags: u16) -> Entry<KEY_V6_BYTES> {
        let ports = [to.1.to_be_bytes(), from.1.to_be_bytes()].concat();
        let key = [&from.0.octets()[..], &to.0.octets(), &ports, &[6, direction]].concat();
        let (_, value) = entry(([0; 4], 0), ([0; 4], 0), 0, flags, if flags == 0 { 0 } else { 5 });
        (key.try_into().unwrap(), value)
    }

    const SELF: [u8; 4] = [169, 254, 42, 1];
    const POD: [u8; 4] = [10, 244, 1, 160];

    fn seen<const K: usize>(entries: &[Entry<K>]) -> Halves<K> {
        let mut halves = Halves::with_room(MAX_HALVES);
        entries.iter().for_each(|(key, value)| halves.see(key, value));
        halves
    }

    /// What was seen of a map that holds `now` after it.
    fn pairs_of<const K: usize>(entries: &[Entry<K>], now: &[Entry<K>]) -> Pairs {
        let now: BTreeMap<_, _> = now.iter().copied().collect();
        let mut pairs = Pairs::default();
        pairs.add(seen(entries), |key| now.get(key).map_or(Known::Absent, |value| Known::Present(*value)));
        pairs
    }

    /// A connection of the pod to its port 80, from this one.
    fn connection(port: u16, out: u16, twin: Option<(u16, u16)>) -> Vec<Entry<KEY_V4_BYTES>> {
        let out = entry((SELF, port), (POD, 80), 0, out, 5);
        let twin = twin.map(|(flags, rev_nat)| entry((SELF, port), (POD, 80), 1, flags, rev_nat));
        [Some(out), twin].into_iter().flatten().collect()
    }

    /// The flags are those that `cilium bpf ct list global` showed in cilium's issue 23913 and pull request 27602: 0x1b RxClosing
    /// TxClosing LBLoopback SeenNonSyn, 0x1a the same without RxClosing, 0x18 open, 0 "bad".
    #[test]
    fn the_two_entries_of_a_connection_tell_together_what_became_of_it() {
        let entries = [
            connection(40_000, 0x18, Some((0x18, 5))),
            connection(40_001, 0x1b, Some((0x1b, 5))),
            connection(43_488, 0x1a, Some((0x1b, 5))),
            connection(40_003, 0x1a, None),
            connection(40_004, 0x1a, Some((0, 0))),
            // A Service's entry, another pod's connection, and the node's to the pod.
            vec![entry(([10, 96, 77, 183], 80), (POD, 43_488), 4, 0x12, 5)],
            vec![entry(([10, 244, 1, 9], 1234), (POD, 80), 1, 0x18, 0)],
        ]
        .concat();
        let address = IpAddr::from(POD);
        let expected = CiliumHairpin { address, port: 80, open: 1, closing: 1, half_closed: 1, alone: 1, broken: 1 };
        let pairs = pairs_of(&entries, &entries);
        assert_eq!((pairs.hairpins.as_slice(), pairs.unjudged), (&[expected][..], 0));
        assert_eq!(expected.left_behind(), 3);
    }

    /// Exercises a map that changes while it is read. If this fails, connections that begin or end meanwhile are called left behind.
    #[test]
    fn what_looks_left_behind_is_so_only_if_it_still_is_when_asked_for_again() {
        let before = [
            // Its other half was made in a part that had been read.
            connection(1, 0x18, None),
            // Closed while its halves were read; both gone since; only the other half gone, as it is when both time out.
            connection(2, 0x18, Some((0x1b, 5))),
            connection(3, 0x18, None),
            connection(4, 0x1a, Some((0x1b, 5))),
            // Truly left behind.
            connection(5, 0x1a, None),
        ]
        .concat();
        let now =
            [connection(1, 0x18, Some((0x18, 5))), connection(2, 0x1b, Some((0x1b, 5))), connection(5, 0x1a, None)];
        let pairs = pairs_of(&before, &now.concat());
        let [sum] = pairs.hairpins.as_slice() else { panic!("{pairs:?}") };
        assert_eq!((sum.open, sum.closing, sum.half_closed, sum.alone, sum.broken), (1, 1, 0, 1, 0));
        // The other half is asked for before the entry itself.
        let mut asked = Vec::new();
        Pairs::default().add(seen(&connection(5, 0x1a, None)), |key| {
            asked.push(key[KEY_V4_BYTES - 1]);
            Known::Absent
        });
        assert_eq!(asked, [1, 0]);
    }

    /// Exercises a reading that ran out of time. If this fails, what was not read makes healthy connections look left behind.
    #[test]
    fn what_could_not_be_looked_at_again_is_not_judged() {
        let entries = [connection(1, 0x1a, None), connection(2, 0x18, Some((0x18, 5)))].concat();
        let mut pairs = Pairs::default();
        pairs.add(seen(&entries), |_key| Known::because("there was no time left"));
        let [sum] = pairs.hairpins.as_slice() else { panic!("{pairs:?}") };
        assert_eq!((sum.open, sum.left_behind(), pairs.unjudged), (1, 0, 1));
    }

    /// A blank twin has no flag to be told by, only the address that stands for the pod itself. If this fails, pods of IPv6 clusters
    /// leak unseen.
    #[test]
    fn entries_of_ipv6_are_told_by_their_address_or_their_flag() {
        let [own, pod, other] = ["fe80::1", "fd00::160", "fd00::9"].map(|address| address.parse().unwrap());
        let entries = [
            entry_v6((own, 40_000), (pod, 80), 0, 0x1a),
            entry_v6((own, 40_000), (pod, 80), 1, 0x1b),
            entry_v6((own, 40_001), (pod, 80), 0, 0x18),
            entry_v6((own, 40_002), (pod, 80), 0, 0x1a),
            entry_v6((own, 40_002), (pod, 80), 1, 0),
            entry_v6((other, 40_003), (pod, 80), 0, 0x10),
            // Cilium was told another address.
            entry_v6((other, 40_004), (pod, 80), 0, 0x1b),
        ];
        let address = IpAddr::V6(pod);
        let expected = CiliumHairpin { address, port: 80, open: 0, closing: 1, half_closed: 1, alone: 1, broken: 1 };
        assert_eq!(pairs_of(&entries, &entries).hairpins, [expected]);
    }

    #[test]
    fn at_the_bound_entries_are_counted_and_not_kept() {
        let mut pairs = Pairs::default();
        let mut halves = Halves::with_room(pairs.room());
        for number in 0..=u32::try_from(MAX_HALVES).unwrap() {
            let pod = Ipv4Addr::from(0x0a00_0000 + number).octets();
            let (key, value) = entry((SELF, 1), (pod, 80), 0, 0x18, 5);
            halves.see(&key, &value);
        }
        assert_eq!((halves.halves.len(), halves.untold), (MAX_HALVES, 1));
        pairs.add(halves, |_key| Known::Absent);
        assert_eq!((pairs.room(), pairs.untold, pairs.unjudged), (0, 1, 0));
    }

    fn arbitrary<const K: usize>(entries: &[(Vec<u8>, [[u8; 28]; 2])]) -> Result<(), TestCaseError> {
        let entries: Vec<Entry<K>> = entries
            .iter()
            .map(|(key, value)| (key[..K].try_into().unwrap(), value.concat().try_into().unwrap()))
            .collect();
        let pairs = pairs_of(&entries, &entries);
        let sum: u64 = pairs.hairpins.iter().map(|pair| pair.open + pair.closing + pair.left_behind()).sum();
        prop_assert!(sum + pairs.unjudged <= u64::try_from(entries.len()).unwrap());
        Ok(())
    }

    proptest! {
        #[test]
        fn arbitrary_entries_never_panic(
            entries in prop::collection::vec((prop::collection::vec(any::<u8>(), 40), any::<[[u8; 28]; 2]>()), 0..50)
        ) {
            arbitrary::<KEY_V4_BYTES>(&entries)?;
            arbitrary::<KEY_V6_BYTES>(&entries)?;
        }
    }
}
