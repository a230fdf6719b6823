//! Cilium's own conntrack map (GKE: Dataplane V2), as far as pods that talk to themselves go.
//!
//! Read from `/sys/fs/bpf/tc/globals/cilium_ct4_global`, opened for reading only, after its sizes were checked; a map of other
//! sizes is not read. One reading takes at most `READ_LIMIT` and `MAX_ENTRIES` entries, and one part in 200 of the time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_core::flow::Protocol;
use headroom_core::observe::{CiliumConntrack, CiliumHairpin, Fact, SourceId};
use headroom_core::time::NodeTime;

use crate::clock;
use crate::ebpf::maps::{Pinned, PinnedError};
use crate::root::HostRoot;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

pub mod layout;

use layout::{Direction, KEY_BYTES, Key, VALUE_BYTES, Value};

const ID: SourceId = SourceId::CiliumConntrack;
/// Where Cilium and GKE's anetd pin it.
pub const PATH: &str = "/sys/fs/bpf/tc/globals/cilium_ct4_global";
const HOW: &str = "Cilium's conntrack map on the bpffs";
/// Entries read at most: Cilium's own upper bound is 16 million, GKE's nodes have 131,072 to 524,288.
pub const MAX_ENTRIES: usize = 1 << 20;
/// Entries of pods that talk to themselves, told apart at most; 16 bytes each.
pub const MAX_HALVES: usize = 1 << 18;
/// What a reading may take.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// A reading may take this part of the time: one in two hundred.
const IDLE_PER_READING: u32 = 200;
/// Readings are so far apart at least.
const EVERY: Duration = Duration::from_secs(30);
/// Pods and ports told of.
const MAX_HAIRPINS: usize = 256;

/// Reads Cilium's conntrack.
#[derive(Debug)]
pub struct CiliumConntrackSource {
    root: HostRoot,
    next: Option<NodeTime>,
    said: Option<Fact>,
}

/// One of the two entries of a pod's connection to itself, as few bytes as tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Half {
    address: [u8; 4],
    port: u16,
    from: u16,
    direction: Direction,
    value: Value,
}

/// The entries of pods that talk to themselves, collected from a map in whatever order it gives them.
#[derive(Debug, Default)]
pub struct Halves {
    halves: Vec<Half>,
    untold: u64,
}

impl Halves {
    /// Takes in an entry of the map. Others than those of pods that talk to themselves are passed over.
    pub fn see(&mut self, key: &[u8; KEY_BYTES], value: &[u8; VALUE_BYTES]) {
        let Some(Key { source, destination, protocol: Protocol::TCP, direction }) = layout::key(key) else { return };
        let value = layout::value(value);
        let std::net::IpAddr::V4(address) = destination.address else { return };
        if source.address != layout::LOOPBACK && !value.loopback {
            return;
        }
        if self.halves.len() >= MAX_HALVES {
            self.untold = self.untold.saturating_add(1);
            return;
        }
        let address = address.octets();
        self.halves.push(Half { address, port: destination.port, from: source.port, direction, value });
    }

    /// Puts the two entries of each connection together, and adds up by pod and port.
    pub fn pairs(mut self) -> Vec<CiliumHairpin> {
        self.halves.sort_unstable();
        let mut hairpins: Vec<CiliumHairpin> = Vec::new();
        for own in self.halves.chunk_by(|a, b| (a.address, a.port) == (b.address, b.port)) {
            let Some(first) = own.first() else { continue };
            let (address, port) = (std::net::Ipv4Addr::from(first.address).into(), first.port);
            let mut sum = CiliumHairpin { address, port, open: 0, closing: 0, half_closed: 0, alone: 0, broken: 0 };
            for connection in own.chunk_by(|a, b| a.from == b.from) {
                let of = |direction| connection.iter().find(|half| half.direction == direction).map(|half| half.value);
                if let Some(count) = of(Direction::Out).map(|out| judge(&mut sum, out, of(Direction::In))) {
                    *count = count.saturating_add(1);
                }
            }
            hairpins.push(sum);
        }
        hairpins
    }
}

/// Which count a connection belongs to (docs of [`CiliumHairpin`]).
fn judge(sum: &mut CiliumHairpin, out: Value, twin: Option<Value>) -> &mut u64 {
    match twin {
        _ if out.rx_closing => &mut sum.closing,
        None => &mut sum.alone,
        Some(twin) if twin.blank => &mut sum.broken,
        Some(twin) if twin.rx_closing && twin.tx_closing => &mut sum.half_closed,
        Some(_) => &mut sum.open,
    }
}

impl CiliumConntrackSource {
    /// Reads below this root.
    pub fn new(root: &HostRoot) -> Self {
        Self { root: root.clone(), next: None, said: None }
    }

    fn path(&self) -> PathBuf {
        self.root.path(PATH)
    }

    fn read(&self) -> Result<(CiliumConntrack, Option<String>), PinnedError> {
        let mut map = Pinned::<KEY_BYTES, VALUE_BYTES>::open(&self.path())?;
        let max = u64::from(map.max_entries()?);
        let until = clock::node_time().after(READ_LIMIT);
        let (mut halves, mut entries) = (Halves::default(), 0_u64);
        let all = map.for_each(
            |key, value| {
                entries = entries.saturating_add(1);
                halves.see(key, value);
            },
            |seen| seen < MAX_ENTRIES && clock::node_time() < until,
        )?;
        let untold = halves.untold;
        let mut hairpins = halves.pairs();
        hairpins.sort_by_key(|hairpin| (std::cmp::Reverse((hairpin.left_behind(), hairpin.open)), *hairpin));
        let rest = hairpins.split_off(hairpins.len().min(MAX_HAIRPINS));
        let read = CiliumConntrack {
            entries,
            max,
            complete: all && untold == 0,
            hairpins_omitted: u64::try_from(rest.len()).unwrap_or(u64::MAX),
            left_behind_omitted: rest.iter().map(CiliumHairpin::left_behind).sum(),
            hairpins,
        };
        let missing = match (all, untold) {
            (false, _) => Some(format!("only {entries} entries were read: there are more, or they came too slowly")),
            (true, 0) => None,
            (true, untold) => Some(format!("{untold} entries of pods that talk to themselves were too many")),
        };
        Ok((read, missing))
    }

    fn read_and_tell(&mut self, sink: Sink<'_>) {
        let began = clock::thread_cpu();
        let path = self.path();
        let said = match self.read() {
            Ok((read, missing)) => {
                sink(observation(ID, Fact::CiliumConntrack(read)));
                missing.map_or_else(|| works(HOW), |missing| degraded(HOW, missing))
            }
            Err(PinnedError::Missing) => absent(),
            Err(error) => unreadable(format!("`{}`: {error}", path.display())),
        };
        let took = clock::thread_cpu().saturating_sub(began);
        self.next = Some(clock::node_time().after(EVERY.max(took.saturating_mul(IDLE_PER_READING))));
        self.said = Some(said);
    }
}

impl Source for CiliumConntrackSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
        if !self.root.is_live() && !Path::new(&self.path()).exists() {
            sink(observation(ID, absent()));
            return;
        }
        if self.next.is_none_or(|next| clock::node_time() >= next) {
            self.read_and_tell(sink);
        }
        if let Some(said) = &self.said {
            sink(observation(ID, said.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry as `bpf/lib/common.h` lays it out: addresses the wrong way round, ports not.
    fn entry(
        from: ([u8; 4], u16),
        to: ([u8; 4], u16),
        direction: u8,
        flags: u16,
        rev_nat: u16,
    ) -> ([u8; 14], [u8; 56]) {
        let ports = [to.1.to_be_bytes(), from.1.to_be_bytes()].concat();
        let key = [&from.0[..], &to.0, &ports, &[6, direction]].concat();
        let mut value = [0; VALUE_BYTES];
        value[32..36].copy_from_slice(&21_600_u32.to_ne_bytes());
        value[36..38].copy_from_slice(&flags.to_ne_bytes());
        value[38..40].copy_from_slice(&rev_nat.to_ne_bytes());
        (key.try_into().unwrap(), value)
    }

    const SELF: [u8; 4] = [169, 254, 42, 1];
    const POD: [u8; 4] = [10, 244, 1, 160];

    fn pairs(entries: &[([u8; 14], [u8; 56])]) -> Vec<CiliumHairpin> {
        let mut halves = Halves::default();
        entries.iter().for_each(|(key, value)| halves.see(key, value));
        halves.pairs()
    }

    /// The flags are those that `cilium bpf ct list global` showed in cilium's issue 23913 and pull request 27602: 0x1b RxClosing
    /// TxClosing LBLoopback SeenNonSyn, 0x1a the same without RxClosing, 0x18 open, 0 "bad".
    #[test]
    fn the_two_entries_of_a_connection_tell_together_what_became_of_it() {
        let both = |port: u16, out: u16, twin: Option<(u16, u16)>| {
            let out = entry((SELF, port), (POD, 80), 0, out, 5);
            let twin = twin.map(|(flags, rev_nat)| entry((SELF, port), (POD, 80), 1, flags, rev_nat));
            [Some(out), twin].into_iter().flatten().collect::<Vec<_>>()
        };
        let entries = [
            both(40_000, 0x18, Some((0x18, 5))),
            both(40_001, 0x1b, Some((0x1b, 5))),
            both(43_488, 0x1a, Some((0x1b, 5))),
            both(40_003, 0x1a, None),
            both(40_004, 0x1a, Some((0, 0))),
            // A Service's entry, another pod's connection, and the node's to the pod.
            vec![entry(([10, 96, 77, 183], 80), (POD, 43_488), 4, 0x12, 5)],
            vec![entry(([10, 244, 1, 9], 1234), (POD, 80), 1, 0x18, 0)],
        ];
        let address = std::net::Ipv4Addr::from(POD).into();
        let expected = CiliumHairpin { address, port: 80, open: 1, closing: 1, half_closed: 1, alone: 1, broken: 1 };
        assert_eq!(pairs(&entries.concat()), [expected]);
        assert_eq!(expected.left_behind(), 3);
    }

    #[test]
    fn at_the_bound_entries_are_counted_and_not_kept() {
        let mut halves = Halves::default();
        let (key, value) = entry((SELF, 1), (POD, 80), 0, 0x18, 5);
        for _ in 0..=MAX_HALVES {
            halves.see(&key, &value);
        }
        assert_eq!((halves.halves.len(), halves.untold), (MAX_HALVES, 1));
    }

    #[test]
    fn a_node_without_cilium_has_none_and_that_is_certain() {
        let place = tempfile::tempdir().unwrap();
        let mut facts = Vec::new();
        CiliumConntrackSource::new(&HostRoot::at(place.path())).observe(&mut |said| facts.push(said.fact));
        assert_eq!(facts, [absent()]);
    }

    proptest! {
        #[test]
        fn arbitrary_entries_never_panic(entries in prop::collection::vec((any::<[u8; 14]>(), any::<[[u8; 28]; 2]>()), 0..50)) {
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| (key, <[u8; 56]>::try_from(value.concat()).unwrap()))
                .collect();
            let sum: u64 = pairs(&entries).iter().map(|pair| pair.open + pair.closing + pair.left_behind()).sum();
            prop_assert!(sum <= u64::try_from(entries.len()).unwrap());
        }
    }
}
