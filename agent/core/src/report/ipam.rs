//! What a report says about pod addresses.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::PodName;
use crate::model::leak::Verdict;
use crate::observe::Ipam;

/// Pod addresses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IpamReport {
    /// Networks with a store on this node.
    pub networks: Vec<NetworkReport>,
    /// The agent's cleaner; absent where no agent runs.
    #[serde(default)]
    pub cleaner: Option<CleanerReport>,
}

/// What the agent's cleaner does and did since the agent started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanerReport {
    /// Whether it runs.
    pub mode: CleanerMode,
    /// How often; absent if it is off.
    pub interval_secs: Option<u64>,
    /// When it looked last (RFC 3339); absent before the first time.
    pub last_run: Option<String>,
    /// The same in seconds since the Unix epoch.
    pub last_run_unix_secs: Option<i64>,
    /// Reservations given back.
    pub released_total: u64,
    /// Reservations that nobody seems to use and that the last run left, by verdict.
    pub refused_last: VerdictCounts,
    /// Runs that had trouble: no complete answer, something planned that could not be done, a disk.
    pub errors_total: u64,
    /// What trouble the last run had; absent if none.
    pub error_last: Option<String>,
    /// Why the last run left leaked reservations, the first reason; absent if it left none.
    #[serde(default)]
    pub refused_why: Option<String>,
    /// The run that took something last: what `headroom ipam restore --journal` wants.
    pub journal: Option<String>,
}

/// Whether the agent's cleaner runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CleanerMode {
    /// Nothing is given back.
    #[default]
    Off,
    /// Again and again.
    Interval,
}

/// One network's store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// Its directory or file.
    pub store: String,
    /// Who writes it.
    #[serde(default)]
    pub ipam: Ipam,
    /// Its name.
    pub network: String,
    /// Pods that can have an address of it at the same time; absent if that is not known. Where a pod takes one address of
    /// each range set, that is the smallest set; with addresses attached ahead of need, those that are attached.
    pub usable: Option<u64>,
    /// Why it is not known.
    pub usable_why: Option<String>,
    /// host-local's range sets; empty if they are not known.
    #[serde(default)]
    pub range_sets: Vec<RangeSetReport>,
    /// Reservations that are in none of the ranges, as after a change of the configuration; absent if these are not known.
    #[serde(default)]
    pub outside_ranges: Option<u64>,
    /// The addresses attached to the node for its pods, where the IPAM attaches them ahead of need.
    #[serde(default)]
    pub pool: Option<PoolReport>,
    /// Why that is not known, where there should be one.
    #[serde(default)]
    pub pool_why: Option<String>,
    /// Addresses of the node's own range that its pods do not need; absent where a network has no such range.
    #[serde(default)]
    pub stranded: Option<StrandedReport>,
    /// Its directory was read to the end; if not, there may be more reservations than are counted.
    #[serde(default = "yes")]
    pub complete: bool,
    /// Reservations by verdict.
    pub counts: VerdictCounts,
    /// Reservations (in `check` only those that are not in use).
    pub entries: Vec<EntryReport>,
    /// Reservations that are not listed.
    pub entries_omitted: u64,
    /// Names in the directory that are no reservations.
    pub ignored: Vec<String>,
}

fn yes() -> bool {
    true
}

/// One range set of host-local.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeSetReport {
    /// Its ranges, `first-last`.
    pub ranges: Vec<String>,
    /// Addresses it can hand out, all together.
    pub usable: u64,
    /// Of these, reserved; at least so many if the network was read in part.
    pub used: u64,
    /// The address that comes next; absent if there is none, or if the network was read in part.
    pub next: Option<IpAddr>,
    /// All are reserved: the next pod fails with "no IP addresses available in range set".
    pub exhausted: bool,
    /// Seconds until then, at the present trend; absent without a clear upward one, and outside of the daemon.
    pub exhausted_in_secs: Option<u64>,
    /// What that prediction rests on.
    pub exhausted_basis: Option<String>,
}

impl RangeSetReport {
    /// Its ranges in a line: the first two.
    pub fn name(&self) -> String {
        let (shown, more) = self.ranges.split_at(self.ranges.len().min(2));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        shown.join(", ") + &more
    }
}

/// Addresses attached to the node ahead of need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Attached for pods; each interface takes one address more for itself.
    pub total: u64,
    /// Held by pods.
    pub assigned: u64,
    /// Given back so lately that they are not handed out yet.
    pub cooling: u64,
    /// Held by no pod, cooling ones among them.
    pub idle: u64,
    /// Of the idle ones, more than the IPAM's own settings ask for at this number of pods; absent if these are not known.
    pub beyond_target: Option<u64>,
    /// What the settings are, or why they are not known.
    pub targets: String,
    /// Network interfaces that carry them.
    pub interfaces: u64,
    /// Of these, without a pod.
    pub interfaces_empty: u64,
}

/// What a node's own range wastes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrandedReport {
    /// Addresses of the range, usable or not.
    pub addresses: u64,
    /// Pods that have one, or may have.
    pub pods: u64,
    /// Addresses that a range for these pods would leave to other nodes.
    pub stranded: u64,
    /// The prefix length of such a range.
    pub prefix_needed: u8,
}

/// Reservations by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCounts {
    /// Somebody uses it.
    pub in_use: u64,
    /// Too early to say.
    pub settling: u64,
    /// Nobody uses it.
    pub leaked: u64,
    /// Cannot be told.
    pub undetermined: u64,
}

impl VerdictCounts {
    /// Counts one more.
    pub fn add(&mut self, verdict: &Verdict) {
        let count = match verdict {
            Verdict::InUse => &mut self.in_use,
            Verdict::Settling => &mut self.settling,
            Verdict::Leaked => &mut self.leaked,
            Verdict::Undetermined => &mut self.undetermined,
        };
        *count = count.saturating_add(1);
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.in_use.saturating_add(self.settling).saturating_add(self.leaked).saturating_add(self.undetermined)
    }
}

/// One reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryReport {
    /// The address.
    pub address: IpAddr,
    /// For which container; absent if the file does not say.
    pub container_id: Option<String>,
    /// For which interface.
    pub ifname: Option<String>,
    /// Since when, in seconds; absent if that could not be read.
    pub age_secs: Option<u64>,
    /// The pod that has the address now, if one has.
    pub pod: Option<PodName>,
    /// The pod it was reserved for, by the store or by libcni's cache, where no pod has it now.
    #[serde(default)]
    pub reserved_for: Option<PodName>,
    /// What it is.
    pub verdict: Verdict,
    /// Why.
    pub evidence: Vec<String>,
}
