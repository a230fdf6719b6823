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

/// The kernel's counters of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) last: ConntrackCounter,
    /// As they stood when the dump under way began.
    pub(super) at_dump: ConntrackCounter,
}

impl Row {
    /// Moves the cohorts by what the counters say happened since they were read last.
    pub(super) fn count(&mut self, counter: ConntrackCounter, at: NodeTime, timeouts: ConntrackTimeouts) {
        let protocol = counter.protocol;
        let known = self.counted.as_ref().map(|counted| counted.last).filter(|last| last.born == counter.born);
        let last = known.unwrap_or(ConntrackCounter::zero(&counter));
        let grown = |of: fn(&ConntrackCounter) -> u64| small(of(&counter).saturating_sub(of(&last)));
        self.cohorts.add(Cohort::begun(protocol, at), grown(|counter| counter.inserted));
        for end in End::ALL {
            let count = small(end.counted(&counter).saturating_sub(end.counted(&last)));
            self.cohorts.end(end, count, protocol, at, timeouts);
        }
        let into = grown(|counter| counter.node_port_inserted);
        let out = grown(|counter| counter.node_port_ended);
        self.in_node_ports = self.in_node_ports.saturating_add(into).saturating_sub(out);
        match &mut self.counted {
            Some(counted) => {
                // A key that came back begins from zero: so does what is compared with it.
                if known.is_none() {
                    counted.at_dump = ConntrackCounter::zero(&counter);
                }
                counted.last = counter;
            }
            None => {
                self.counted = Some(Box::new(Counted { last: counter, at_dump: ConntrackCounter::zero(&counter) }));
            }
        }
    }

    /// Takes over the states that the dump showed, and its number where counting is proved wrong by it. Says by how much.
    pub(super) fn correct(&mut self, protocol: Protocol, at: NodeTime, first: bool) -> u64 {
        let mut incoming = std::mem::take(&mut self.incoming);
        let (came, went) = self.counted.as_ref().map_or((0, 0), |counted| {
            let grown = |of: fn(&ConntrackCounter) -> u64| of(&counted.last).saturating_sub(of(&counted.at_dump));
            (grown(|counter| counter.inserted), grown(ConntrackCounter::ended))
        });
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

    pub(super) fn ended(&self) -> u64 {
        End::ALL.iter().map(|end| end.counted(self)).fold(0, u64::saturating_add)
    }

    /// The same key as it begins.
    pub(super) fn zero(of: &Self) -> Self {
        Self {
            inserted: 0,
            ended_time_wait: 0,
            ended_reset: 0,
            ended_unanswered: 0,
            ended_other: 0,
            node_port_inserted: 0,
            node_port_ended: 0,
            ..*of
        }
    }
}
