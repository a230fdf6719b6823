//! A row of the table: the flows of one pair, and what the kernel's counters and a dump say of them.

use super::{Cohort, Cohorts, Pair, small};
use crate::flow::{Destination, Protocol};
use crate::observe::{ConntrackCounter, ConntrackEntry, ConntrackTcpState, ConntrackTimeouts};
use crate::time::NodeTime;

/// One row of the table.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) cohorts: Cohorts,
    /// What a dump that is under way has shown so far.
    pub(super) incoming: Cohorts,
    /// Live flows whose source port was translated into the NodePort range.
    pub(super) in_node_ports: u32,
    pub(super) incoming_in_node_ports: u32,
    /// Flows of that dump that were not known before.
    pub(super) incoming_fresh: u32,
    pub(super) counted: Option<Box<Counted>>,
}

/// The kernel's counters of a row, as they were read last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    counts: Counts,
    /// What moved since the dump under way began.
    came: u32,
    went: u32,
    /// The reading that showed it last.
    pub(super) shown: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    born: u64,
    inserted: u64,
    ended: [u64; End::ALL.len()],
    node_port_inserted: u64,
    node_port_ended: u64,
}

impl Counts {
    fn of(counter: &ConntrackCounter) -> Self {
        Self {
            born: counter.born,
            inserted: counter.inserted,
            ended: End::ALL.map(|end| end.counted(counter)),
            node_port_inserted: counter.node_port_inserted,
            node_port_ended: counter.node_port_ended,
        }
    }
}

impl Counted {
    pub(super) fn begin_dump(&mut self) {
        (self.came, self.went) = (0, 0);
    }
}

impl Row {
    /// Moves the cohorts by what the counters say happened since they were read last.
    pub(super) fn count(
        &mut self,
        counter: &ConntrackCounter,
        reading: u32,
        at: NodeTime,
        timeouts: ConntrackTimeouts,
    ) {
        let protocol = counter.protocol;
        let now = Counts::of(counter);
        let counted = self.counted.get_or_insert_with(|| {
            Box::new(Counted { counts: Counts { born: now.born, ..Counts::default() }, came: 0, went: 0, shown: 0 })
        });
        // A key that came back begins from zero.
        let last = if counted.counts.born == now.born { counted.counts } else { Counts::default() };
        let grown = |now: u64, last: u64| small(now.saturating_sub(last));
        let came = grown(now.inserted, last.inserted);
        self.cohorts.add(Cohort::begun(protocol, at), came);
        counted.came = counted.came.saturating_add(came);
        for ((end, now), last) in End::ALL.into_iter().zip(now.ended).zip(last.ended) {
            let went = grown(now, last);
            self.cohorts.end(end, went, protocol, at, timeouts);
            counted.went = counted.went.saturating_add(went);
        }
        let into = grown(now.node_port_inserted, last.node_port_inserted);
        let out = grown(now.node_port_ended, last.node_port_ended);
        self.in_node_ports = self.in_node_ports.saturating_add(into).saturating_sub(out);
        counted.counts = now;
        counted.shown = reading;
    }

    /// Takes over the states that the dump showed, and its number where counting is proved wrong by it. Says by how much.
    pub(super) fn correct(&mut self, protocol: Protocol, at: NodeTime, first: bool) -> u64 {
        let mut incoming = std::mem::take(&mut self.incoming);
        let moved = self.counted.as_ref().map_or((0, 0), |counted| (counted.came, counted.went));
        let (came, went) = (u64::from(moved.0), u64::from(moved.1));
        let (shown, counted) = (incoming.live(), self.cohorts.live());
        let bounds = shown.saturating_sub(went)..=shown.saturating_add(came);
        // Counting that has only begun knows nothing of what existed before: the middle is the likeliest.
        let likely = if first && !bounds.contains(&counted) { bounds.start().midpoint(*bounds.end()) } else { counted };
        let truth = likely.clamp(*bounds.start(), *bounds.end());
        if truth > shown {
            incoming.add(Cohort::begun(protocol, at), small(truth - shown));
        } else {
            incoming.shrink(small(shown - truth));
        }
        self.cohorts.replace_live(incoming);
        let inside = u64::from(self.incoming_in_node_ports);
        let inside = u64::from(self.in_node_ports).clamp(inside.saturating_sub(went), inside.saturating_add(came));
        self.in_node_ports = small(inside);
        self.incoming_in_node_ports = 0;
        self.incoming_fresh = 0;
        truth.abs_diff(counted)
    }
}

/// How an entry left the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// TCP, from TIME_WAIT.
    TimeWait,
    /// TCP, after a reset.
    Reset,
    /// TCP, without ever an answer: it never held a port beyond the node.
    Unanswered,
    /// Its timer ran out, or it was removed while open.
    Other {
        /// It was assured (a UDP stream has a longer timer), or may have been.
        assured: bool,
    },
}

impl End {
    const ALL: [Self; 4] = [Self::TimeWait, Self::Reset, Self::Unanswered, Self::Other { assured: true }];

    /// As the last words of an entry tell.
    pub(super) fn of(entry: &ConntrackEntry) -> Self {
        match (entry.key.protocol, entry.tcp) {
            (_, Some(ConntrackTcpState::TimeWait)) => Self::TimeWait,
            (_, Some(ConntrackTcpState::Close)) => Self::Reset,
            (Protocol::TCP, _) if !entry.replied => Self::Unanswered,
            _ => Self::Other { assured: entry.assured },
        }
    }

    fn counted(self, counter: &ConntrackCounter) -> u64 {
        match self {
            Self::TimeWait => counter.ended_time_wait,
            Self::Reset => counter.ended_reset,
            Self::Unanswered => counter.ended_unanswered,
            Self::Other { .. } => counter.ended_other,
        }
    }
}

impl ConntrackCounter {
    pub(super) fn pair(&self) -> Pair {
        Pair {
            destination: Destination { protocol: self.protocol, endpoint: self.destination },
            source: self.source,
            translated: self.translated,
        }
    }
}
