//! What a report says about the conntrack table.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::Protocol;
use crate::observe::{CiliumHairpin, CiliumMap, ConntrackCpu, ConntrackTimeouts};

/// A comparison of conntrack's counters with its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    /// Entries by which counts had to be corrected last time, beyond what moved meanwhile.
    pub last: u64,
    /// In all comparisons.
    pub total: u64,
    /// How many comparisons there were.
    pub comparisons: u64,
    /// Entries by which counts were put right within what the first comparison had left open, in all later ones.
    #[serde(default)]
    pub settled: u64,
    /// Entries by which the counts may be wrong at most: from before the start, they came or went while the table was read.
    #[serde(default)]
    pub open: u64,
}

/// The conntrack table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConntrackReport {
    /// Entries now.
    pub entries: Option<u64>,
    /// Entries at most.
    pub max: Option<u64>,
    /// Hash buckets.
    #[serde(default)]
    pub buckets: Option<u64>,
    /// Insertions that failed since boot.
    pub insert_failed: Option<u64>,
    /// Packets dropped since boot.
    pub drop: Option<u64>,
    /// Entries evicted since boot.
    pub early_drop: Option<u64>,
    /// Packets dropped since boot because the table was full, at least (`drop` less `insert_failed`).
    #[serde(default)]
    pub table_full: Option<u64>,
    /// Packets since boot that fit no entry and could not begin one.
    #[serde(default)]
    pub invalid: Option<u64>,
    /// Lookups begun again since boot, since the table changed meanwhile.
    #[serde(default)]
    pub search_restart: Option<u64>,
    /// Races since boot that were settled without a loss.
    #[serde(default)]
    pub clash_resolve: Option<u64>,
    /// Entries refused since boot since their hash chain was too long.
    #[serde(default)]
    pub chain_toolong: Option<u64>,
    /// CPUs on which something was refused, dropped or evicted since boot; at most 64.
    #[serde(default)]
    pub cpus: Vec<ConntrackCpu>,
    /// The time-outs in force, in seconds; absent if they could not be read.
    #[serde(default)]
    pub timeouts: Option<ConntrackTimeouts>,
    /// Seconds until the table is full, at the present trend; absent without an upward trend.
    #[serde(default)]
    pub full_in_secs: Option<u64>,
    /// What that prediction rests on.
    #[serde(default)]
    pub full_basis: Option<String>,
    /// The share of new connections that would be dropped if the table were full as it is now, since the kernel finds nothing to
    /// evict (`early_drop`); absent unless the last dump was complete and the number of hash buckets is known.
    #[serde(default)]
    pub refused_when_full_ratio: Option<f64>,
    /// What the last dump showed, summed up; absent if there was none.
    #[serde(default)]
    pub census: Option<CensusReport>,
    /// Pods that talk to themselves through a Service, those with most entries left behind first; at most 50.
    #[serde(default)]
    pub hairpins: Vec<HairpinReport>,
    /// Further ones that are not listed.
    #[serde(default)]
    pub hairpins_omitted: u64,
    /// Entries of pairs beyond those that are told apart: what became of them is not known.
    #[serde(default)]
    pub hairpin_entries_untold: u64,
    /// Age of the dump of everything that showed them, in seconds; absent if there was none.
    #[serde(default)]
    pub hairpins_age_secs: Option<u64>,
    /// Cilium's own conntrack map; absent where there is none.
    #[serde(default)]
    pub cilium: Option<CiliumReport>,
    /// Packets of new connections dropped for want of a port since start, all destinations; absent where that is not seen.
    #[serde(default)]
    pub no_port_total: Option<u64>,
    /// How far entries as counted in the kernel and as dumped were apart; absent where they are not counted.
    #[serde(default)]
    pub drift: Option<DriftReport>,
    /// Why something is absent.
    pub why: Option<String>,
}

/// Who and what fills the table, as a dump showed it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusReport {
    /// How long ago the dump ended.
    pub age_secs: u64,
    /// It showed everything; if not, there may be more of all.
    pub complete: bool,
    /// Entries it showed.
    pub entries: u64,
    /// Entries too many to be told apart by who and where to.
    pub not_told_apart: u64,
    /// Who opened most of them, largest first; at most 20.
    pub sources: Vec<CensusSource>,
    /// How many sources there are; absent where they were too many to count (more than 4,096).
    pub sources_total: Option<u64>,
    /// Where most of them go, after DNAT, largest first; at most 20.
    pub destinations: Vec<CensusDestination>,
    /// How many destinations there are; absent likewise.
    pub destinations_total: Option<u64>,
    /// By how much a listed count may be too small; 0 unless there were too many to count.
    pub undercount: u64,
    /// By what they are doing.
    pub states: Vec<CensusState>,
    /// By how long no packet has passed, as their timers tell.
    pub silent: Vec<CensusSilence>,
    /// Entries whose timer does not tell that.
    pub silent_unknown: u64,
    /// Entries the kernel evicts first when the table is full: those that are not assured.
    pub unassured: u64,
    /// Assured entries that are closing, which it evicts as well once it has dropped a packet, until the table is at 95 %.
    pub closing: u64,
    /// Entries whose time-out ends within a minute, unless a packet comes.
    pub ending_within_minute: u64,
}

/// Entries of one source address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusSource {
    /// Kubernetes namespace; absent if the address belongs to no known pod.
    pub namespace: Option<String>,
    /// Pod name; absent likewise.
    pub name: Option<String>,
    /// The address.
    pub address: IpAddr,
    /// It is the node itself: a process or a pod in the host's network.
    pub host: bool,
    /// Its entries.
    pub entries: u64,
}

/// Entries towards one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusDestination {
    /// Protocol.
    pub protocol: Protocol,
    /// Address, after DNAT.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Entries.
    pub entries: u64,
}

/// Entries in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusState {
    /// `tcp_established`, `udp_unanswered`, …
    pub state: String,
    /// Entries.
    pub entries: u64,
    /// The time-out in force for it, where there is one.
    pub timeout_secs: Option<u32>,
}

/// Entries that no packet has passed for about so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusSilence {
    /// At least so long.
    pub from_secs: u32,
    /// Less than so long; absent for the last.
    pub to_secs: Option<u32>,
    /// Entries.
    pub entries: u64,
}

/// Entries of a pod that talks to itself through one Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HairpinReport {
    /// Kubernetes namespace; absent if the address belongs to no known pod.
    pub namespace: Option<String>,
    /// Pod name; absent likewise.
    pub name: Option<String>,
    /// The address at both ends.
    pub address: IpAddr,
    /// It is the node itself.
    pub host: bool,
    /// Protocol.
    pub protocol: Protocol,
    /// The Service's address, as dialled.
    pub service_address: IpAddr,
    /// The Service's port.
    pub service_port: u16,
    /// All its entries.
    pub entries: u64,
    /// Open ones.
    pub open: u64,
    /// Of these, silent for 10 s or more.
    pub silent: u64,
    /// The longest silence, in seconds.
    pub longest_silence_secs: u32,
    /// Sockets that the pod had open to the Service when the dump ended; absent where sockets are not seen.
    pub sockets: Option<u64>,
    /// Open and silent entries that belong to no socket and do not end within two minutes; absent where sockets are not seen, or the
    /// time-outs in force are not known.
    pub left_behind: Option<u64>,
    /// Open ones that one side has closed (`CLOSE_WAIT`).
    #[serde(default)]
    pub half_closed: u64,
}

/// Cilium's own conntrack maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumReport {
    /// Entries of the map of TCP: over IPv4 (`cilium_ct4_global`), or over IPv6 where there is no other; absent without either.
    pub entries: Option<u64>,
    /// Entries it takes at most.
    pub max: Option<u64>,
    /// All maps were read whole, and every entry of a pod that talks to itself was judged.
    pub complete: bool,
    /// Each map there is: TCP and all else, over IPv4 and IPv6.
    #[serde(default)]
    pub maps: Vec<CiliumMap>,
    /// Entries of pods that talk to themselves that were left behind.
    pub left_behind: u64,
    /// How many there were when headroom began to watch; absent until all was read once.
    pub left_behind_at_start: Option<u64>,
    /// Connections that get no answer because of one, now.
    pub broken: u64,
    /// By pod and port, most left behind first; at most 50.
    pub hairpins: Vec<CiliumHairpinReport>,
    /// Further ones that are not listed.
    pub hairpins_omitted: u64,
}

/// Cilium's entries of a pod that talks to itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumHairpinReport {
    /// Kubernetes namespace; absent if the address belongs to no known pod.
    pub namespace: Option<String>,
    /// Pod name; absent likewise.
    pub name: Option<String>,
    /// The counts.
    #[serde(flatten)]
    pub counts: CiliumHairpin,
}
