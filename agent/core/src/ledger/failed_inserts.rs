//! How many entries conntrack could not insert lately, as its statistics tell: no more new connections than that found no port.

use std::collections::VecDeque;
use std::time::Duration;

use crate::observe::ConntrackStats;
use crate::time::NodeTime;

/// So far back it is known.
const REMEMBER: Duration = Duration::from_secs(120);

/// Failed inserts, without those of chains that were too long.
#[derive(Debug, Default)]
pub struct FailedInserts {
    /// When the statistics were read last; `None` if they could not be, the last time.
    read: Option<NodeTime>,
    /// As they were read last.
    last: Option<u64>,
    /// In all since the first reading, whenever it was another number; oldest first, one a second at most.
    grown: VecDeque<(NodeTime, u64)>,
}

impl FailedInserts {
    pub(super) fn note(&mut self, stats: Option<&ConntrackStats>, at: NodeTime) {
        self.read = stats.map(|_| at);
        let Some(stats) = stats else { return };
        let now = stats.insert_failed.saturating_sub(stats.chain_toolong.unwrap_or_default());
        // A sum that fell is one without a CPU that went.
        let grown = now.saturating_sub(self.last.replace(now).unwrap_or(now));
        let total = self.grown.back().map_or(0, |(_, total)| *total);
        if self.grown.is_empty() || grown > 0 {
            self.grown.push_back((at, total.saturating_add(grown)));
        }
        // One stays from before: it tells what there was.
        while self.grown.get(1).is_some_and(|(when, _)| at.since(*when) > REMEMBER) {
            self.grown.pop_front();
        }
    }

    /// Until when it is known: `None` where the statistics could not be read.
    pub fn known_until(&self) -> Option<NodeTime> {
        self.read
    }

    /// How many failed between then and the last reading, some before it perhaps; `None` where it is not known.
    pub fn since(&self, then: NodeTime) -> Option<u64> {
        self.read?;
        let before = self.grown.iter().rev().find(|(when, _)| *when <= then).or(self.grown.front());
        Some(self.grown.back()?.1.saturating_sub(before?.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> NodeTime {
        NodeTime::from_secs(secs)
    }

    fn stats(insert_failed: u64, chain_toolong: Option<u64>) -> ConntrackStats {
        ConntrackStats { insert_failed, chain_toolong, ..ConntrackStats::default() }
    }

    /// Exercises growth, chains that were too long, a CPU that went, and statistics that cannot be read. If this fails, a rule's
    /// drops are taken for a want of ports, or the other way round.
    #[test]
    fn what_failed_within_a_window_is_known_while_statistics_are_read() {
        let mut failed = FailedInserts::default();
        assert_eq!((failed.known_until(), failed.since(at(0))), (None, None));
        failed.note(Some(&stats(1000, Some(400))), at(10));
        assert_eq!(
            (failed.known_until(), failed.since(at(0))),
            (Some(at(10)), Some(0)),
            "what was before is not known"
        );
        failed.note(Some(&stats(1010, Some(400))), at(11));
        failed.note(Some(&stats(1020, Some(405))), at(12));
        assert_eq!([9, 10, 11, 12].map(|then| failed.since(at(then)).unwrap()), [15, 15, 5, 0]);
        failed.note(Some(&stats(20, None)), at(13));
        failed.note(Some(&stats(21, None)), at(14));
        assert_eq!((failed.since(at(10)), failed.since(at(13))), (Some(16), Some(1)));
        failed.note(None, at(15));
        assert_eq!((failed.known_until(), failed.since(at(10))), (None, None));
        failed.note(Some(&stats(21, None)), at(16));
        assert_eq!(failed.since(at(13)), Some(1));
    }

    /// Exercises a counter that always grows. If this fails, memory grows with the age of the agent.
    #[test]
    fn no_more_is_remembered_than_is_asked_for() {
        let mut failed = FailedInserts::default();
        for second in 0..1000_u64 {
            failed.note(Some(&stats(second, None)), at(second));
        }
        assert_eq!(failed.grown.len(), 122);
        assert_eq!((failed.since(at(999 - 60)), failed.since(at(0))), (Some(60), Some(121)));
    }
}
