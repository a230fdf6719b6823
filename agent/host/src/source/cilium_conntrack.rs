//! Cilium's own conntrack maps (GKE: Dataplane V2): how full they are, and what pods leave in them that talk to themselves.
//!
//! Read from `/sys/fs/bpf/tc/globals`, opened for reading only, after their sizes were checked; a map of other sizes is not read.
//! One reading of all takes at most `READ_LIMIT` and `MAX_ENTRIES` entries, and one part in 200 of the time. Entries of others than
//! TCP are counted and no more: they know no close that one side could miss, and end 60 s after the last packet.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use headroom_core::flow::Protocol;
use headroom_core::observe::{CiliumConntrack, CiliumHairpin, CiliumMap, Fact, SourceId};
use headroom_core::time::NodeTime;

use crate::bounded::{self, Refusal};
use crate::clock;
use crate::ebpf::maps::{Pinned, PinnedError};
use crate::root::HostRoot;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

pub mod layout;

use layout::{Direction, KEY_V4_BYTES, KEY_V6_BYTES, Key, VALUE_BYTES, Value};

const ID: SourceId = SourceId::CiliumConntrack;
/// Where Cilium and GKE's anetd pin their maps.
pub const FOLDER: &str = "/sys/fs/bpf/tc/globals";
/// The maps of a node, those of TCP first, and whether their keys are of IPv6.
const MAPS: [(&str, bool); 4] = [
    ("cilium_ct4_global", false),
    ("cilium_ct6_global", true),
    ("cilium_ct_any4_global", false),
    ("cilium_ct_any6_global", true),
];
/// Beginnings of the names of further ones: of single endpoints (`cilium_ct4_00123`), of other clusters.
const OTHERS: [&str; 2] = ["cilium_ct", "cilium_per_cluster_ct"];
const HOW: &str = "Cilium's conntrack maps on the bpffs";
/// Entries read at most, of all maps: Cilium's own upper bound is 16 million, GKE's nodes have 131,072 to 524,288.
pub const MAX_ENTRIES: usize = 1 << 20;
/// Entries of pods that talk to themselves, told apart at most; 26 bytes each.
pub const MAX_HALVES: usize = 1 << 18;
/// What a reading may take.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// A reading may take this part of the time: one in two hundred.
const IDLE_PER_READING: u32 = 200;
/// Readings are so far apart at least.
const EVERY: Duration = Duration::from_secs(30);
/// Pods and ports told of.
const MAX_HAIRPINS: usize = 256;
/// Names looked through on the bpffs; Cilium pins some hundred, and a few for each pod.
const MAX_NAMES: usize = 16_384;

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
    /// IPv4 as IPv6 has it.
    address: [u8; 16],
    port: u16,
    from: u16,
    direction: Direction,
    value: Value,
}

/// The entries of pods that talk to themselves, collected from maps in whatever order they give them.
#[derive(Debug, Default)]
pub struct Halves {
    halves: Vec<Half>,
    untold: u64,
}

/// What a reading found.
#[derive(Default)]
struct Read {
    maps: Vec<CiliumMap>,
    halves: Halves,
    entries: usize,
    missing: Vec<String>,
}

impl Halves {
    /// Takes in an entry of a map. Others than those of pods that talk to themselves over TCP are passed over.
    pub fn see(&mut self, key: &[u8], value: &[u8; VALUE_BYTES]) {
        let Some(Key { source, destination, protocol: Protocol::TCP, direction }) = layout::key(key) else { return };
        let value = layout::value(value);
        if !layout::LOOPBACK.contains(&source.address) && !value.loopback {
            return;
        }
        if self.halves.len() >= MAX_HALVES {
            self.untold = self.untold.saturating_add(1);
            return;
        }
        let address = match destination.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let address = address.octets();
        self.halves.push(Half { address, port: destination.port, from: source.port, direction, value });
    }

    /// Puts the two entries of each connection together, and adds up by pod and port.
    pub fn pairs(mut self) -> Vec<CiliumHairpin> {
        self.halves.sort_unstable();
        let mut hairpins: Vec<CiliumHairpin> = Vec::new();
        for own in self.halves.chunk_by(|a, b| (a.address, a.port) == (b.address, b.port)) {
            let Some(first) = own.first() else { continue };
            let (address, port) = (Ipv6Addr::from(first.address).to_canonical(), first.port);
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

    /// Reads all there are.
    fn read(&self) -> Read {
        let until = clock::node_time().after(READ_LIMIT);
        let mut read = Read::default();
        match others(&self.root) {
            Ok(others) => read.missing.extend(others),
            Err(Refusal::Missing) => return read,
            Err(refusal) => {
                read.missing.push(format!("`{FOLDER}` {refusal}"));
                return read;
            }
        }
        for (name, v6) in MAPS {
            let path = self.root.path(FOLDER).join(name);
            let map = if v6 {
                read.map::<KEY_V6_BYTES>(name, &path, until)
            } else {
                read.map::<KEY_V4_BYTES>(name, &path, until)
            };
            match map {
                Ok(map) => read.maps.push(map),
                Err(PinnedError::Missing) => {}
                Err(error) => read.missing.push(format!("`{}`: {error}", path.display())),
            }
        }
        if read.halves.untold > 0 {
            read.missing.push(format!("{} entries of pods that talk to themselves were too many", read.halves.untold));
        }
        read
    }

    fn read_and_tell(&mut self, sink: Sink<'_>) {
        let began = clock::thread_cpu();
        let Read { maps, halves, mut missing, .. } = self.read();
        let whole = halves.untold == 0 && maps.iter().all(|map| map.complete);
        if !whole {
            missing.push("entries whose other half was not seen are not judged".to_owned());
        }
        let said = match (maps.is_empty(), missing.is_empty()) {
            (true, true) => absent(),
            (true, false) => unreadable(missing.join("; ")),
            (false, true) => works(HOW),
            (false, false) => degraded(HOW, missing.join("; ")),
        };
        if !maps.is_empty() {
            sink(observation(ID, Fact::CiliumConntrack(conntrack(maps, halves, whole))));
        }
        let took = clock::thread_cpu().saturating_sub(began);
        self.next = Some(clock::node_time().after(EVERY.max(took.saturating_mul(IDLE_PER_READING))));
        self.said = Some(said);
    }
}

impl Read {
    /// Reads a map, as far as there is room and time.
    fn map<const K: usize>(&mut self, name: &str, path: &Path, until: NodeTime) -> Result<CiliumMap, PinnedError> {
        let mut map = Pinned::<K, VALUE_BYTES>::open(path)?;
        let max = u64::from(map.max_entries()?);
        let (before, mut entries) = (self.entries, 0_u64);
        let halves = &mut self.halves;
        let complete = map.for_each(
            |key, value| {
                entries = entries.saturating_add(1);
                halves.see(key, value);
            },
            |seen| before + seen < MAX_ENTRIES && clock::node_time() < until,
        )?;
        self.entries += usize::try_from(entries).unwrap_or(usize::MAX);
        if !complete {
            let why = "there are more, or they came too slowly";
            self.missing.push(format!("of `{name}` only {entries} entries were read: {why}"));
        }
        Ok(CiliumMap { name: name.to_owned(), entries, max, complete })
    }
}

/// What was read; not whole, the other half of an entry that seems to be alone may be in what was not.
fn conntrack(maps: Vec<CiliumMap>, halves: Halves, whole: bool) -> CiliumConntrack {
    let mut hairpins = halves.pairs();
    if !whole {
        hairpins.iter_mut().for_each(|hairpin| hairpin.alone = 0);
    }
    hairpins.sort_by_key(|hairpin| (std::cmp::Reverse((hairpin.left_behind(), hairpin.open)), *hairpin));
    let rest = hairpins.split_off(hairpins.len().min(MAX_HAIRPINS));
    CiliumConntrack {
        maps,
        hairpins_omitted: u64::try_from(rest.len()).unwrap_or(u64::MAX),
        left_behind_omitted: rest.iter().map(CiliumHairpin::left_behind).sum(),
        hairpins,
    }
}

/// Conntrack maps that are not read, in words.
fn others(root: &HostRoot) -> Result<Option<String>, Refusal> {
    let (found, more) = bounded::entries(&mut bounded::open_dir(root, Path::new(FOLDER))?, MAX_NAMES)?;
    if more {
        return Ok(Some(format!("there are more than {MAX_NAMES} maps in `{FOLDER}`, some may be of conntrack")));
    }
    let names = found.iter().map(|entry| bounded::shown(entry.name.to_bytes()));
    let unread =
        |name: &String| OTHERS.iter().any(|other| name.starts_with(other)) && MAPS.iter().all(|(map, _)| name != map);
    let others: Vec<String> = names.filter(unread).collect();
    Ok(match others.as_slice() {
        [] => None,
        [one] => Some(format!("`{one}` is not read")),
        [one, rest @ ..] => Some(format!("`{one}` and {} more maps of conntrack are not read", rest.len())),
    })
}

impl Source for CiliumConntrackSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
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

    /// The same over IPv6.
    fn entry_v6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), direction: u8, flags: u16) -> ([u8; 38], [u8; 56]) {
        let ports = [to.1.to_be_bytes(), from.1.to_be_bytes()].concat();
        let key = [&from.0.octets()[..], &to.0.octets(), &ports, &[6, direction]].concat();
        let (_, value) = entry(([0; 4], 0), ([0; 4], 0), 0, flags, if flags == 0 { 0 } else { 5 });
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

    /// Exercises a reading that came to one of its bounds. If this fails, what was not read makes healthy connections look left
    /// behind.
    #[test]
    fn no_entry_is_alone_where_not_all_were_seen() {
        for (whole, alone) in [(true, 1), (false, 0)] {
            let mut halves = Halves::default();
            for (port, out, twin) in [(40_000, 0x1a, None), (40_001, 0x1a, Some(0x1b))] {
                let entries = [
                    Some(entry((SELF, port), (POD, 80), 0, out, 5)),
                    twin.map(|flags| entry((SELF, port), (POD, 80), 1, flags, 5)),
                ];
                entries.into_iter().flatten().for_each(|(key, value)| halves.see(&key, &value));
            }
            let read = conntrack(Vec::new(), halves, whole);
            let [only] = read.hairpins.as_slice() else { panic!("{read:?}") };
            assert_eq!((only.alone, only.half_closed, read.left_behind()), (alone, 1, alone + 1));
        }
    }

    /// A blank twin has no flag to be told by, only the address that stands for the pod itself. If this fails, pods of IPv6 clusters
    /// leak unseen.
    #[test]
    fn entries_of_ipv6_are_told_by_their_address_or_their_flag() {
        let [own, pod, other] = ["fe80::1", "fd00::160", "fd00::9"].map(|address| address.parse().unwrap());
        let mut halves = Halves::default();
        for (key, value) in [
            entry_v6((own, 40_000), (pod, 80), 0, 0x1a),
            entry_v6((own, 40_000), (pod, 80), 1, 0x1b),
            entry_v6((own, 40_001), (pod, 80), 0, 0x18),
            entry_v6((own, 40_002), (pod, 80), 0, 0x1a),
            entry_v6((own, 40_002), (pod, 80), 1, 0),
            entry_v6((other, 40_003), (pod, 80), 0, 0x10),
            // Cilium was told another address.
            entry_v6((other, 40_004), (pod, 80), 0, 0x1b),
        ] {
            halves.see(&key, &value);
        }
        let address = IpAddr::V6(pod);
        let expected = CiliumHairpin { address, port: 80, open: 0, closing: 1, half_closed: 1, alone: 1, broken: 1 };
        assert_eq!(halves.pairs(), [expected]);
    }

    /// If this fails, a map that nobody looks at goes unmentioned.
    #[test]
    fn maps_that_are_not_read_are_named() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("sys/fs/bpf/tc/globals");
        let root = HostRoot::at(place.path());
        assert_eq!(others(&root).unwrap_err(), Refusal::Missing);
        std::fs::create_dir_all(&folder).unwrap();
        let with = |name: &str| {
            std::fs::write(folder.join(name), "").unwrap();
            others(&root).unwrap()
        };
        for name in ["cilium_ct4_global", "cilium_ct_any6_global", "cilium_lb4_services_v2"] {
            assert_eq!(with(name), None, "{name}");
        }
        assert_eq!(with("cilium_ct4_00123").as_deref(), Some("`cilium_ct4_00123` is not read"));
        assert_eq!(
            with("cilium_per_cluster_ct_tcp4").as_deref(),
            Some("`cilium_ct4_00123` and 1 more maps of conntrack are not read")
        );
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
        fn arbitrary_entries_never_panic(
            entries in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<[[u8; 28]; 2]>()), 0..50)
        ) {
            let mut halves = Halves::default();
            for (key, value) in &entries {
                halves.see(key, &value.concat().try_into().unwrap());
            }
            let sum: u64 = halves.pairs().iter().map(|pair| pair.open + pair.closing + pair.left_behind()).sum();
            prop_assert!(sum <= u64::try_from(entries.len()).unwrap());
        }
    }
}
