//! New connections that found no port on this node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::Destination;
use crate::observe::{NoPort, Outcome};
use crate::time::NodeTime;

type Key = (Destination, IpAddr);

/// What happened to one pair of destination and source.
#[derive(Debug, Clone, Default)]
struct Row {
    /// The counter as it was read last.
    read: u64,
    /// Since the ledger knows the pair.
    total: u64,
    /// When it grew, and by how much; oldest first, one entry a second at most.
    grown: Vec<(NodeTime, u64)>,
}

/// Packets dropped for want of a port, per pair.
#[derive(Debug)]
pub struct NoPorts {
    remember: Duration,
    rows: BTreeMap<Key, Row>,
    incoming: BTreeMap<Key, u64>,
}

impl NoPorts {
    pub(super) fn new(remember: Duration) -> Self {
        Self { remember, rows: BTreeMap::new(), incoming: BTreeMap::new() }
    }

    pub(super) fn remember_for(&mut self, remember: Duration) {
        self.remember = remember;
    }

    pub(super) fn begin(&mut self) {
        self.incoming.clear();
    }

    pub(super) fn counter(&mut self, no_port: NoPort) {
        let sum = self.incoming.entry((no_port.destination, no_port.source)).or_default();
        *sum = sum.saturating_add(no_port.dropped);
    }

    pub(super) fn end(&mut self, at: NodeTime, outcome: &Outcome) {
        let incoming = std::mem::take(&mut self.incoming);
        if matches!(outcome, Outcome::Failed(_)) {
            return;
        }
        let horizon = at.before(self.remember);
        for (key, dropped) in &incoming {
            let row = self.rows.entry(*key).or_default();
            // A counter below the last reading began anew.
            let grown = dropped.checked_sub(row.read).unwrap_or(*dropped);
            row.read = *dropped;
            row.total = row.total.saturating_add(grown);
            match row.grown.last_mut() {
                _ if grown == 0 => {}
                Some((when, count)) if at.since(*when) < Duration::from_secs(1) => *count = count.saturating_add(grown),
                _ => row.grown.push((at, grown)),
            }
        }
        let complete = *outcome == Outcome::Complete;
        self.rows.retain(|key, row| {
            row.grown.retain(|(when, _)| *when >= horizon);
            if complete && !incoming.contains_key(key) {
                row.read = 0;
            }
            row.read > 0 || !row.grown.is_empty()
        });
    }

    /// Every pair: dropped within `span` before `now`, and in all.
    pub fn iter(&self, now: NodeTime, span: Duration) -> impl Iterator<Item = (Destination, IpAddr, u64, u64)> + '_ {
        let since = now.before(span);
        self.rows.iter().map(move |((destination, source), row)| {
            let lately = row.grown.iter().filter(|(when, _)| *when > since).map(|(_, count)| count).sum();
            (*destination, *source, lately, row.total)
        })
    }
}
