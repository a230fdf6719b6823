//! New connections that found no port on this node.
//!
//! The kernel says of their packets that netfilter dropped them. It says the same of those that a rule drops in a hook between the
//! translation of sources and conntrack's last one: what of all are failed inserts, conntrack's own statistics bound
//! ([`super::FailedInserts`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::Destination;
use crate::ledger::pairs::Pair;
use crate::observe::{NoPort, Outcome};
use crate::time::NodeTime;

/// What comes within this time is noted as one.
const MERGED: Duration = Duration::from_secs(1);

/// What happened to one pair of destination and source, as one translated source.
#[derive(Debug, Clone, Default)]
struct Row {
    /// When the counting began that was read last.
    born: u64,
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
    rows: BTreeMap<Pair, Row>,
    /// When the counting began, and how many it are.
    incoming: BTreeMap<Pair, (u64, u64)>,
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
        let NoPort { destination, source, translated, born, dropped } = no_port;
        self.incoming.insert(Pair { destination, source, translated }, (born, dropped));
    }

    pub(super) fn end(&mut self, at: NodeTime, outcome: &Outcome) {
        let incoming = std::mem::take(&mut self.incoming);
        if matches!(outcome, Outcome::Failed(_)) {
            return;
        }
        let horizon = at.before(self.remember);
        for (pair, (born, dropped)) in &incoming {
            let row = self.rows.entry(*pair).or_default();
            // A counter below the last reading began anew.
            let read = if row.born == *born { row.read } else { 0 };
            let grown = dropped.checked_sub(read).unwrap_or(*dropped);
            (row.born, row.read) = (*born, *dropped);
            row.total = row.total.saturating_add(grown);
            match row.grown.last_mut() {
                _ if grown == 0 => {}
                Some((when, count)) if at.since(*when) < MERGED => *count = count.saturating_add(grown),
                _ => row.grown.push((at, grown)),
            }
        }
        let complete = *outcome == Outcome::Complete;
        self.rows.retain(|pair, row| {
            row.grown.retain(|(when, _)| *when >= horizon);
            if complete && !incoming.contains_key(pair) {
                row.read = 0;
            }
            row.read > 0 || !row.grown.is_empty()
        });
    }

    /// Packets of all pairs that were dropped between two moments.
    pub fn between(&self, from: NodeTime, to: NodeTime) -> u64 {
        // What was noted at a moment came within a second of it.
        let within = |when: &NodeTime| *when > from && when.after(MERGED) <= to;
        let grown = self.rows.values().flat_map(|row| &row.grown);
        grown.filter(|(when, _)| within(when)).fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Every pair, more than once if it has several translated sources: dropped within `span` before `now`, and in all.
    pub fn iter(&self, now: NodeTime, span: Duration) -> impl Iterator<Item = (Destination, IpAddr, u64, u64)> + '_ {
        let since = now.before(span);
        self.rows.iter().map(move |(pair, row)| {
            let lately = row.grown.iter().filter(|(when, _)| *when > since).map(|(_, count)| count).sum();
            (pair.destination, pair.source, lately, row.total)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::flow::Endpoint;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 64, 0, 5));

    fn dropped(translated: u8, born: u64, dropped: u64) -> NoPort {
        let endpoint = Endpoint::new(IpAddr::from([203, 0, 113, 7]), 443);
        let translated = IpAddr::from([10, 0, 0, translated]);
        NoPort { destination: Destination::tcp(endpoint), source: SOURCE, translated, born, dropped }
    }

    fn read(no_ports: &mut NoPorts, second: u64, counters: &[NoPort]) -> u64 {
        no_ports.begin();
        counters.iter().for_each(|counter| no_ports.counter(*counter));
        no_ports.end(NodeTime::from_secs(second), &Outcome::Complete);
        let all = no_ports.iter(NodeTime::from_secs(second), Duration::from_secs(60));
        all.map(|(.., total)| total).sum()
    }

    /// Exercises a source that is translated to several addresses, of which one is retired in the kernel and comes back. If this
    /// fails, packets are counted twice, or a retired counter hides new ones.
    #[test]
    fn each_translated_source_is_counted_by_itself_and_anew_when_it_comes_back() {
        let mut no_ports = NoPorts::new(Duration::from_secs(150));
        let (one, other) = (dropped(2, 1, 20), dropped(3, 2, 7));
        assert_eq!(read(&mut no_ports, 1000, &[one, other]), 27);
        assert_eq!(read(&mut no_ports, 1001, &[one, one, other]), 27, "told twice");
        assert_eq!(read(&mut no_ports, 1002, &[other]), 27, "one is retired");
        assert_eq!(read(&mut no_ports, 1003, &[dropped(2, 9, 5), other]), 32);
        assert_eq!(read(&mut no_ports, 1004, &[dropped(2, 10, 6), dropped(3, 11, 8)]), 46, "between two readings");
        assert_eq!(read(&mut no_ports, 1005, &[dropped(2, 10, 7), dropped(3, 11, 8)]), 47);
    }
}
