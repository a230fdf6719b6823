//! Dumps of the table: what one shows is kept beside what is held until it has ended.

use crate::flow::Protocol;
use crate::observe::{ConntrackEntry, ConntrackTimeouts, Outcome};
use crate::time::NodeTime;

use super::census::Census;
use super::cohorts::{Cohort, Cohorts};
use super::fingerprint::{Fingerprint, Shown};
use super::{Conntrack, Pair, note_translation, pair, port_alone};

/// What a dump that has ended tells of the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Both ways.
    Whole,
    /// Of the dump a part is missing: counts are not below what it shows.
    AtLeast,
}

/// What a dump tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) enum Scope {
    Everything,
    Udp,
}

impl Scope {
    pub(super) fn includes(self, protocol: Protocol) -> bool {
        self == Self::Everything || protocol == Protocol::UDP
    }
}

impl Conntrack {
    pub(in crate::ledger) fn begin_dump(&mut self, scope: Scope) {
        self.drop_incoming();
        self.incoming_scope = scope;
        self.node_port_flows.begin_dump();
        if scope == Scope::Everything {
            self.incoming_census = Census::default();
            self.hairpins.begin_dump();
            // The same entries find no room in every dump: count them once.
            self.refused = 0;
        }
        for row in self.rows.values_mut() {
            if let Some(counted) = &mut row.counted {
                counted.begin_dump();
            }
        }
    }

    /// An entry of a dump.
    pub(in crate::ledger) fn dumped(&mut self, entry: &ConntrackEntry, at: NodeTime, timeouts: ConntrackTimeouts) {
        if self.entries.shown() >= self.limits.max_flows {
            self.refused = self.refused.saturating_add(1);
            self.sum_up(entry, &timeouts, false);
            return;
        }
        let shown = self.entries.show(Fingerprint::of(entry));
        if shown == Shown::Again {
            return;
        }
        note_translation(&mut self.incoming_dialled, entry, self.limits.max_flows);
        let in_node_ports = self.in_node_ports(entry);
        let own_port = !in_node_ports && self.own_port(entry);
        let cohort = Cohort::of(entry, at, timeouts);
        if let Some(source_ports) = &mut self.source_ports
            && self.incoming_scope == Scope::Everything
        {
            source_ports.dumped(entry, &cohort, at);
        }
        self.sum_up(entry, &timeouts, true);
        if in_node_ports || own_port {
            self.node_port_flows.dumped(entry, own_port, at, &timeouts);
        }
        let row = self.rows.of(&pair(entry));
        row.incoming.make_room_like(&row.cohorts);
        row.incoming.add(cohort, 1);
        row.incoming_in_node_ports = row.incoming_in_node_ports.saturating_add(u32::from(in_node_ports));
        row.incoming_port_alone = row.incoming_port_alone.saturating_add(u32::from(port_alone(entry)));
        row.incoming_fresh = row.incoming_fresh.saturating_add(u32::from(shown == Shown::Fresh));
        row.incoming_answered =
            row.incoming_answered.saturating_add(u16::from(entry.is_answered() && !in_node_ports && !own_port));
    }

    /// What only a dump of everything can sum up. `held`: the entry found room.
    fn sum_up(&mut self, entry: &ConntrackEntry, timeouts: &ConntrackTimeouts, held: bool) {
        if self.incoming_scope != Scope::Everything {
            return;
        }
        self.incoming_census.count(entry, timeouts);
        if held {
            self.hairpins.dumped(entry, timeouts);
        }
    }

    pub(in crate::ledger) fn end_dump(
        &mut self,
        scope: Scope,
        at: NodeTime,
        outcome: &Outcome,
        timeouts: ConntrackTimeouts,
    ) {
        if scope == Scope::Everything {
            self.take_census(at, outcome);
            if let Some(source_ports) = &mut self.source_ports {
                source_ports.end_dump(at, *outcome == Outcome::Complete);
            }
        }
        if !matches!(outcome, Outcome::Failed(_)) {
            self.node_port_flows.end_dump(scope, *outcome == Outcome::Complete);
            let rows = self.rows.iter_mut().filter(|(pair, _)| scope.includes(pair.destination.protocol));
            for (_, row) in rows {
                row.answered = std::mem::take(&mut row.incoming_answered);
                let port_alone = std::mem::take(&mut row.incoming_port_alone);
                row.port_alone = match outcome {
                    Outcome::Complete => port_alone,
                    _ => row.port_alone.max(port_alone),
                };
            }
        }
        match outcome {
            // Only a dump of everything is compared with the counters, and what was refused is missing in it.
            Outcome::Complete if self.counting && scope == Scope::Everything && self.refused == 0 => {
                self.compare = Some(Comparison::Whole);
            }
            Outcome::Complete | Outcome::Partial(_) if self.counting && scope == Scope::Everything => {
                self.compare = Some(Comparison::AtLeast);
            }
            Outcome::Complete | Outcome::Partial(_) if self.counting => self.drop_incoming(),
            Outcome::Complete => self.replace(scope, at, timeouts),
            Outcome::Partial(_) => self.merge(at),
            Outcome::Failed(_) => self.drop_incoming(),
        }
        if !matches!(outcome, Outcome::Failed(_)) {
            self.udp_dumped_at = Some(at);
            if scope == Scope::Everything {
                self.dumped_at = Some(at);
            }
        }
        self.forget(at);
    }

    /// Sums up what the dump has shown.
    fn take_census(&mut self, at: NodeTime, outcome: &Outcome) {
        let mut census = std::mem::take(&mut self.incoming_census);
        if !matches!(outcome, Outcome::Failed(_)) {
            let rows = self.rows.iter().filter(|(_, row)| !row.incoming.is_empty());
            let rows = rows.map(|(pair, row)| (pair.source, pair.destination, row.incoming.live()));
            let complete = *outcome == Outcome::Complete;
            census.end(at, complete, rows);
            self.census = Some(census);
            self.hairpins.end_dump(at, complete);
        }
    }

    /// Events tell exactly what the dump did not: it stands as it is.
    fn replace(&mut self, scope: Scope, at: NodeTime, timeouts: ConntrackTimeouts) {
        let of_it = |pair: &Pair| scope.includes(pair.destination.protocol);
        for (pair, row) in self.rows.iter_mut().filter(|(pair, _)| of_it(pair)) {
            let incoming = std::mem::take(&mut row.incoming);
            row.cohorts.succeeded_by(incoming, pair.destination.protocol, at, timeouts);
            row.in_node_ports = std::mem::take(&mut row.incoming_in_node_ports);
            row.incoming_fresh = 0;
        }
        self.entries.replace(scope);
        if scope == Scope::Everything {
            self.dialled = std::mem::take(&mut self.incoming_dialled);
        } else {
            self.dialled.retain(|destination| !scope.includes(destination.protocol));
            self.dialled.append(&mut self.incoming_dialled);
        }
    }

    /// Half a dump adds what was not known, and proves nothing of the rest.
    fn merge(&mut self, at: NodeTime) {
        for (pair, row) in self.rows.iter_mut() {
            row.cohorts.add(Cohort::begun(pair.destination.protocol, at), row.incoming_fresh);
            row.in_node_ports = row.in_node_ports.max(row.incoming_in_node_ports);
        }
        self.entries.merge();
        self.dialled.append(&mut self.incoming_dialled);
        self.drop_incoming();
    }

    pub(super) fn drop_incoming(&mut self) {
        self.entries.forget_shown();
        self.incoming_dialled.clear();
        self.compare = None;
        for row in self.rows.values_mut() {
            row.incoming = Cohorts::default();
            row.incoming_in_node_ports = 0;
            row.incoming_port_alone = 0;
            row.incoming_answered = 0;
            row.incoming_fresh = 0;
        }
    }
}
