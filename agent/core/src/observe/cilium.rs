//! Facts of Cilium's own conntrack map.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Cilium's conntrack maps, as one reading showed them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumConntrack {
    /// The maps there are: TCP and all else, over IPv4 and IPv6.
    pub maps: Vec<CiliumMap>,
    /// TCP connections of pods to themselves, those with most left behind first; at most 256.
    pub hairpins: Vec<CiliumHairpin>,
    /// Further ones that are not listed.
    pub hairpins_omitted: u64,
    /// Entries left behind of those that are not listed.
    pub left_behind_omitted: u64,
    /// Entries of pods that talk to themselves of which it could not be told whether they were left behind.
    #[serde(default)]
    pub unjudged: u64,
}

/// One of Cilium's conntrack maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumMap {
    /// Under which name it is pinned.
    pub name: String,
    /// Entries that were read.
    pub entries: u64,
    /// Entries at most.
    pub max: u64,
    /// A full one evicts what was not used for longest, as Cilium makes them; if not, it refuses what is new.
    #[serde(default = "as_cilium_makes_them")]
    pub lru: bool,
    /// All were read; if not, there may be more of everything.
    pub complete: bool,
}

/// What older captures do not tell.
fn as_cilium_makes_them() -> bool {
    true
}

impl fmt::Display for CiliumMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, entries, max, complete, .. } = self;
        let at_least = if *complete { "" } else { "at least " };
        write!(f, "{name} {at_least}{entries} of {max} entries")
    }
}

impl CiliumMap {
    /// Whether it is of TCP (`cilium_ct4_global`); the others are of all else (`cilium_ct_any4_global`).
    pub fn is_of_tcp(&self) -> bool {
        !self.name.contains("_any")
    }
}

impl CiliumConntrack {
    /// Whether it shows all there is; if not, there may be more of everything.
    pub fn is_whole(&self) -> bool {
        self.unjudged == 0 && self.maps.iter().all(|map| map.complete)
    }

    /// Entries left behind, of all pods.
    pub fn left_behind(&self) -> u64 {
        self.hairpins.iter().map(CiliumHairpin::left_behind).fold(self.left_behind_omitted, u64::saturating_add)
    }

    /// Connections that get no answer because of one.
    pub fn broken(&self) -> u64 {
        self.hairpins.iter().map(|hairpin| hairpin.broken).fold(0, u64::saturating_add)
    }
}

/// Connections of one pod to one port of its own through a Service. Each has two entries, one of the dialling side (OUT) and one
/// of the dialled (IN); an OUT entry that has not seen its peer close lives for six hours after the last packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CiliumHairpin {
    /// The pod.
    pub address: IpAddr,
    /// Its port behind the Service.
    pub port: u16,
    /// Both entries are there and open.
    pub open: u64,
    /// The OUT entry has seen both sides close, and ends soon.
    pub closing: u64,
    /// The OUT entry has not, but the IN entry has: it will be gone within seconds.
    pub half_closed: u64,
    /// The OUT entry is alone.
    pub alone: u64,
    /// The IN entry has no flags and no way back to the Service: it was made over an OUT entry left behind, and this connection
    /// gets no answer.
    pub broken: u64,
}

impl CiliumHairpin {
    /// OUT entries that nothing will end but their lifetime.
    pub fn left_behind(&self) -> u64 {
        self.half_closed.saturating_add(self.alone).saturating_add(self.broken)
    }
}
