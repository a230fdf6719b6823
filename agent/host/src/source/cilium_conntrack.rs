//! Cilium's own conntrack maps (GKE: Dataplane V2): how full they are, and what pods leave in them that talk to themselves.
//!
//! Read from `/sys/fs/bpf/tc/globals`, opened for reading only, after their sizes were checked; a map of other sizes is not read.
//! One reading of all takes at most `READ_LIMIT` and `MAX_ENTRIES` entries, and one part in 200 of the time. Entries of others than
//! TCP are counted and no more: they know no close that one side could miss, and end 60 s after the last packet. A map changes
//! while it is read: what looks left behind is looked up once more, both halves of it, before it is called so.

use std::path::Path;
use std::time::Duration;

use headroom_core::known::Known;
use headroom_core::observe::{CiliumConntrack, CiliumHairpin, CiliumMap, Fact, SourceId};
use headroom_core::time::NodeTime;

use crate::bounded::{self, Refusal};
use crate::clock;
use crate::ebpf::maps::{Pinned, PinnedError};
use crate::root::HostRoot;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

pub mod halves;
pub mod layout;

use halves::{Halves, Pairs};
use layout::{KEY_V4_BYTES, KEY_V6_BYTES, VALUE_BYTES};

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
/// What a reading may take.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// What is looked at again after a map was read: an entry that seemed to be alone, or to have outlived its other half, has been
/// there for so long at least, and the kernel makes both in one go.
const SETTLED: Duration = Duration::from_millis(10);
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

/// What a reading found.
#[derive(Default)]
struct Read {
    maps: Vec<CiliumMap>,
    pairs: Pairs,
    entries: usize,
    missing: Vec<String>,
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
            Err(Refusal::Missing) => {
                // Maps are no files that a tree can hold, and the node may have them.
                let captured = (!self.root.is_live()).then(|| format!("`{FOLDER}` is not in this tree"));
                read.missing.extend(captured);
                return read;
            }
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
        if read.pairs.untold > 0 {
            read.missing.push(format!("{} entries of pods that talk to themselves were too many", read.pairs.untold));
        }
        if read.pairs.unjudged > 0 {
            let unjudged = read.pairs.unjudged;
            read.missing.push(format!(
                "{unjudged} entries of pods that talk to themselves could not be looked at again in time"
            ));
        }
        read
    }

    fn read_and_tell(&mut self, sink: Sink<'_>) {
        let began = clock::thread_cpu();
        let Read { maps, pairs, missing, .. } = self.read();
        let said = match (maps.is_empty(), missing.is_empty()) {
            (true, true) => absent(),
            (true, false) => unreadable(missing.join("; ")),
            (false, true) => works(HOW),
            (false, false) => degraded(HOW, missing.join("; ")),
        };
        if !maps.is_empty() {
            sink(observation(ID, Fact::CiliumConntrack(conntrack(maps, pairs))));
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
        let (max, lru) = (u64::from(map.max_entries()?), map.is_lru()?);
        let (before, mut entries) = (self.entries, 0_u64);
        let mut halves = Halves::<K>::with_room(self.pairs.room());
        let complete = map.for_each(
            |key, value| {
                entries = entries.saturating_add(1);
                halves.see(key, value);
            },
            |seen| before + seen < MAX_ENTRIES && clock::node_time() < until,
        )?;
        let mut settled = false;
        self.pairs.add(halves, |key| {
            if !settled {
                std::thread::sleep(SETTLED);
                settled = true;
            }
            if clock::node_time() >= until {
                return Known::because("there was no time left");
            }
            match map.get(key) {
                Ok(Some(value)) => Known::Present(value),
                Ok(None) => Known::Absent,
                Err(error) => Known::because(error.to_string()),
            }
        });
        self.entries += usize::try_from(entries).unwrap_or(usize::MAX);
        if !complete {
            let why = "there are more, or they came too slowly";
            self.missing.push(format!("of `{name}` only {entries} entries were read: {why}"));
        }
        Ok(CiliumMap { name: name.to_owned(), entries, max, lru, complete })
    }
}

/// What was read, those with most left behind first.
fn conntrack(maps: Vec<CiliumMap>, pairs: Pairs) -> CiliumConntrack {
    let unjudged = pairs.untold.saturating_add(pairs.unjudged);
    let mut hairpins = pairs.hairpins;
    hairpins.sort_by_key(|hairpin| (std::cmp::Reverse((hairpin.left_behind(), hairpin.open)), *hairpin));
    let rest = hairpins.split_off(hairpins.len().min(MAX_HAIRPINS));
    CiliumConntrack {
        maps,
        hairpins_omitted: u64::try_from(rest.len()).unwrap_or(u64::MAX),
        left_behind_omitted: rest.iter().map(CiliumHairpin::left_behind).sum(),
        hairpins,
        unjudged,
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

    /// Exercises a captured tree. If this fails, it says that a node had no Cilium, whatever it had.
    #[test]
    fn a_node_without_maps_of_cilium_has_none_and_of_a_tree_without_a_bpffs_nobody_knows() {
        let place = tempfile::tempdir().unwrap();
        let said = || {
            let mut facts = Vec::new();
            CiliumConntrackSource::new(&HostRoot::at(place.path())).observe(&mut |said| facts.push(said.fact));
            facts
        };
        assert_eq!(said(), [unreadable(format!("`{FOLDER}` is not in this tree"))]);
        std::fs::create_dir_all(place.path().join("sys/fs/bpf/tc/globals")).unwrap();
        assert_eq!(said(), [absent()]);
    }
}
