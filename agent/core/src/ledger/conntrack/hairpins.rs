//! Entries of somebody who talks to itself through a Service: dialled was another address, the answer comes from the own one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::census::silent_secs;
use crate::flow::{Destination, Endpoint, Protocol};
use crate::observe::{ConntrackEntry, ConntrackTcpState, ConntrackTimeouts};
use crate::time::NodeTime;

/// Pairs of pod and Service kept at most; entries of more are counted as untold.
const MAX_HAIRPINS: usize = 1024;
/// A connection that was silent for so long is not one that is just being closed: its socket, if it has one, has been seen.
pub const HAIRPIN_SILENT_SECS: u32 = 10;
/// Sockets that are read this much after a dump still tell what was open then: later, too many may have closed unseen.
const SOCKETS_LATE: Duration = Duration::from_secs(5);

/// Who talks to itself, and what it dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HairpinKey {
    /// The address at both ends.
    pub address: IpAddr,
    /// The Service.
    pub dialled: Destination,
}

/// Its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hairpin {
    /// All of them.
    pub entries: u64,
    /// Open: established, or closed by one side alone. Those in other states end by themselves.
    pub open: u64,
    /// Open, and silent for [`HAIRPIN_SILENT_SECS`] at least.
    pub silent: u64,
    /// Of those open: closed by one side alone (`CLOSE_WAIT`), which has a time-out of its own.
    pub half_closed: u64,
    /// Of those silent: likewise.
    pub half_closed_silent: u64,
    /// The longest silence of one that is open.
    pub longest_secs: u32,
    /// Sockets that were open, or connecting, when the dump ended; unknown until all of them were read.
    pub sockets: Option<u64>,
}

/// All of them, as the last whole dump of everything showed them.
#[derive(Debug, Clone, Default)]
pub struct Hairpins {
    rows: BTreeMap<HairpinKey, Hairpin>,
    incoming: BTreeMap<HairpinKey, Hairpin>,
    untold: u64,
    incoming_untold: u64,
    at: Option<NodeTime>,
}

impl Hairpins {
    pub(super) fn begin_dump(&mut self) {
        self.incoming.clear();
        self.incoming_untold = 0;
    }

    pub(super) fn dumped(&mut self, entry: &ConntrackEntry, timeouts: &ConntrackTimeouts) {
        let own = entry.key.source.address;
        if own != entry.destination.address || own == entry.key.dialled.address {
            return;
        }
        let key = HairpinKey {
            address: own,
            dialled: Destination { protocol: entry.key.protocol, endpoint: entry.key.dialled },
        };
        if self.incoming.len() >= MAX_HAIRPINS && !self.incoming.contains_key(&key) {
            self.incoming_untold = self.incoming_untold.saturating_add(1);
            return;
        }
        let row = self.incoming.entry(key).or_default();
        row.entries = row.entries.saturating_add(1);
        if matches!(entry.tcp, Some(ConntrackTcpState::Established | ConntrackTcpState::CloseWait)) {
            // Whether those are silent whose timer does not tell it is not known; nobody is accused of them.
            let silent = silent_secs(entry, timeouts).unwrap_or(0);
            row.open = row.open.saturating_add(1);
            let is_silent = u64::from(silent >= HAIRPIN_SILENT_SECS);
            row.silent = row.silent.saturating_add(is_silent);
            if entry.tcp == Some(ConntrackTcpState::CloseWait) {
                row.half_closed = row.half_closed.saturating_add(1);
                row.half_closed_silent = row.half_closed_silent.saturating_add(is_silent);
            }
            row.longest_secs = row.longest_secs.max(silent);
        }
    }

    pub(super) fn end_dump(&mut self, at: NodeTime, complete: bool) {
        let incoming = std::mem::take(&mut self.incoming);
        if complete {
            self.rows = incoming;
            self.untold = self.incoming_untold;
            self.at = Some(at);
        }
    }

    /// Takes what `open` knows of the sockets that were open when the dump ended, where that is not known yet.
    pub(super) fn note_sockets(&mut self, now: NodeTime, open: impl Fn(Endpoint, IpAddr, NodeTime) -> Option<u64>) {
        let Some(dumped) = self.at.filter(|dumped| now.since(*dumped) <= SOCKETS_LATE) else { return };
        let tcp = self.rows.iter_mut().filter(|(key, _)| key.dialled.protocol == Protocol::TCP);
        for (key, row) in tcp.filter(|(_, row)| row.sockets.is_none()) {
            row.sockets = open(key.dialled.endpoint, key.address, dumped);
        }
    }

    /// When that dump ended.
    pub fn at(&self) -> Option<NodeTime> {
        self.at
    }

    /// Each pair with its entries.
    pub fn iter(&self) -> impl Iterator<Item = (&HairpinKey, &Hairpin)> {
        self.rows.iter()
    }

    /// Entries of pairs that found no room here.
    pub fn untold(&self) -> u64 {
        self.untold
    }
}
