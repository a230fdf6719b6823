//! What a report says about pod addresses.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::PodName;
use crate::model::leak::Verdict;

/// Pod addresses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IpamReport {
    /// Networks with a store on this node.
    pub networks: Vec<NetworkReport>,
}

/// One network's store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// Its directory.
    pub store: String,
    /// Its name.
    pub network: String,
    /// Addresses it can hand out; absent if that is not known.
    pub usable: Option<u64>,
    /// Why it is not known.
    pub usable_why: Option<String>,
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
    /// What it is.
    pub verdict: Verdict,
    /// Why.
    pub evidence: Vec<String>,
}
