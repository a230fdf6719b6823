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
    /// Live flows of which the source port alone was translated. Counters do not tell: there it is what the last dump showed.
    pub(super) port_alone: u32,
    pub(super) incoming_port_alone: u32,
    /// Flows with other source ports that are answered, as the last dump showed them; 65,535 stands for more.
    pub(super) answered: u16,
    pub(super) incoming_answered: u16,
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
    /// What comparisons have left open: how many entries there may be less, and how many more.
    open: (u32, u32),
}

/// What a comparison with a dump came to, in entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// By which counting was wrong.
    pub(super) wrong: u64,
    /// By which counts were put right within what earlier comparisons had left open.
    pub(super) settled: u64,
    /// By which they may still be wrong.
    pub(super) open: u64,
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

    /// Whether nothing is lost when it is forgotten: the key is gone in the kernel, and comparisons have left nothing open.
    pub(super) fn is_over(&self, reading: u32) -> bool {
        self.shown != reading && self.open == (0, 0)
    }
}

/// Flows of one reading are spread over so many moments at most.
const MOMENTS: u32 = 60;

/// Flows that began between two readings of the counters: when is not known, so evenly, as many moments as seconds. If all were
/// taken for as young as the last reading, an agent that reads late would believe a NAT to hold them longer than it does.
fn spread(count: u32, from: NodeTime, to: NodeTime) -> impl Iterator<Item = (NodeTime, u32)> {
    let between = to.since(from);
    let moments = u32::try_from(between.as_millis().div_ceil(1000)).unwrap_or(MOMENTS).clamp(1, MOMENTS);
    // Most pairs stand still.
    let moments = if count == 0 { 0 } else { moments };
    let part = move |number: u32| small(u64::from(count) * u64::from(number) / u64::from(moments));
    (0..moments).map(move |number| {
        let middle = between.saturating_mul(2 * number + 1) / (2 * moments);
        (from.after(middle), part(number + 1) - part(number))
    })
}

impl Row {
    /// Moves the cohorts by what the counters say happened since they were read last, at `from`.
    pub(super) fn count(
        &mut self,
        counter: &ConntrackCounter,
        reading: u32,
        (from, at): (NodeTime, NodeTime),
        timeouts: ConntrackTimeouts,
    ) {
        let protocol = counter.protocol;
        let now = Counts::of(counter);
        let counted = self.counted.get_or_insert_with(|| {
            let counts = Counts { born: now.born, ..Counts::default() };
            Box::new(Counted { counts, came: 0, went: 0, shown: 0, open: (0, 0) })
        });
        // A key that came back begins from zero.
        let last = if counted.counts.born == now.born { counted.counts } else { Counts::default() };
        let grown = |now: u64, last: u64| small(now.saturating_sub(last));
        let came = grown(now.inserted, last.inserted);
        for (moment, count) in spread(came, from, at) {
            self.cohorts.add(Cohort::begun(protocol, moment), count);
        }
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
    ///
    /// A dump walks the table for a while, and does not tell which of the entries that came or went meanwhile it has met: it
    /// makes the number true only within these. Counting is exact, but only begun at the first comparison: what existed before
    /// is known as well as that dump tells. Later ones narrow it down; a count that they move within it was not wrong.
    pub(super) fn correct(&mut self, protocol: Protocol, at: NodeTime, first: bool) -> Compared {
        let mut incoming = std::mem::take(&mut self.incoming);
        let (came, went) = self.counted.as_ref().map_or((0, 0), |it| (u64::from(it.came), u64::from(it.went)));
        let (less, more) = self.counted.as_ref().map_or((0, 0), |it| (u64::from(it.open.0), u64::from(it.open.1)));
        let (shown, counted) = (incoming.live(), self.cohorts.live());
        let (least, most) = (shown.saturating_sub(went), shown.saturating_add(came));
        // Whatever existed before counting began, it was no less than nothing.
        let known = if first { (counted, u64::MAX) } else { (counted.saturating_sub(less), counted + more) };
        let both = (least.max(known.0), most.min(known.1));
        let apart = both.0.saturating_sub(both.1);
        let (least, most) = if apart == 0 { both } else { (least, most) };
        // The middle is the likeliest.
        let truth =
            if first && !(least..=most).contains(&counted) { least.midpoint(most) } else { counted.clamp(least, most) };
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
        // Counting that was wrong leaves nothing open that could excuse it the next time.
        let open = if apart == 0 || first { (truth - least, most - truth) } else { (0, 0) };
        if let Some(counted) = &mut self.counted {
            counted.open = (small(open.0), small(open.1));
        }
        let moved = if first { 0 } else { truth.abs_diff(counted) };
        let wrong = if first { 0 } else { apart.min(moved) };
        Compared { wrong, settled: moved - wrong, open: open.0.max(open.1) }
    }

    /// Takes over what a part of a dump showed where counting knows of less.
    pub(super) fn raise(&mut self) {
        let mut incoming = std::mem::take(&mut self.incoming);
        let went = self.counted.as_ref().map_or(0, |counted| counted.went);
        incoming.shrink(went);
        let raised = small(incoming.live().saturating_sub(self.cohorts.live()));
        if raised > 0 {
            self.cohorts.replace_live(incoming);
            if let Some(counted) = &mut self.counted {
                counted.open = (0, counted.open.1.saturating_sub(raised));
            }
        }
        self.in_node_ports = self.in_node_ports.max(self.incoming_in_node_ports.saturating_sub(went));
        self.incoming_in_node_ports = 0;
        self.incoming_fresh = 0;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(moments: impl Iterator<Item = (NodeTime, u32)>) -> Vec<(u64, u32)> {
        moments.map(|(at, count)| (at.as_nanos() / 1_000_000, count)).collect()
    }

    /// Exercises a reading in time, a late one and one that has no time between. If this fails, flows are lost or made up, or
    /// all of them are taken for as young as the reading.
    #[test]
    fn flows_between_two_readings_began_evenly() {
        let at = NodeTime::from_secs;
        assert_eq!(millis(spread(5, at(10), at(11))), [(10_500, 5)]);
        assert_eq!(millis(spread(8, at(10), at(13))), [(10_500, 2), (11_500, 3), (12_500, 3)]);
        assert_eq!(millis(spread(5, at(10), at(10))), [(10_000, 5)]);
        assert_eq!(millis(spread(5, at(10), at(9))), [(10_000, 5)], "a clock cannot go back");
        assert_eq!(millis(spread(0, at(10), at(12))), []);
        // At the bound, and where everything is as large as it can be.
        let most: Vec<_> = spread(u32::MAX, at(0), at(u64::MAX)).collect();
        assert_eq!((most.len(), most.iter().map(|(_, count)| count).sum::<u32>()), (60, u32::MAX));
        assert_eq!(spread(9, at(0), at(60)).count(), spread(9, at(0), at(61)).count());
    }
}
