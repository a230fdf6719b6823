//! The TCP counters of one destination, summed over source addresses.
//!
//! There may be very many destinations, and towards most of them connections only open and close: the counters of all else are
//! kept where there are any.

use super::small;
use crate::ledger::TcpTally;

/// The sum.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TcpSum {
    open: u32,
    closed_held: u32,
    closed_lately: u32,
    opened_total: u64,
    closed_total: u64,
    /// The other counters, if one of them is not zero.
    rare: Option<Box<TcpTally>>,
}

impl TcpSum {
    pub(super) fn add(&mut self, tally: &TcpTally) {
        self.open = self.open.saturating_add(small(tally.open));
        self.closed_held = self.closed_held.saturating_add(small(tally.closed_held));
        self.closed_lately = self.closed_lately.saturating_add(small(tally.closed_lately));
        self.opened_total = self.opened_total.saturating_add(tally.opened_total);
        self.closed_total = self.closed_total.saturating_add(tally.closed_total);
        if rest(tally) != TcpTally::default() {
            add_rest(self.rare.get_or_insert_default(), tally);
        }
    }

    /// All of it.
    pub(super) fn told(&self) -> TcpTally {
        TcpTally {
            open: self.open.into(),
            closed_held: self.closed_held.into(),
            closed_lately: self.closed_lately.into(),
            opened_total: self.opened_total,
            closed_total: self.closed_total,
            ..self.rare.as_deref().copied().unwrap_or_default()
        }
    }

    /// Connections open now.
    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// Connects that failed since start.
    pub(super) fn failed_total(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.failed_total.sum())
    }
}

/// What is summed up in the box. (`closed_before` is accounted for by source: [`super::Share`].)
fn rest(tally: &TcpTally) -> TcpTally {
    TcpTally { open: 0, closed_held: 0, closed_before: 0, closed_lately: 0, opened_total: 0, closed_total: 0, ..*tally }
}

fn add_rest(sum: &mut TcpTally, tally: &TcpTally) {
    sum.wanting = sum.wanting.saturating_add(tally.wanting);
    sum.reset_held = sum.reset_held.saturating_add(tally.reset_held);
    sum.given_up_held = sum.given_up_held.saturating_add(tally.given_up_held);
    sum.reset_lately = sum.reset_lately.saturating_add(tally.reset_lately);
    sum.failed_lately = sum.failed_lately.saturating_add(tally.failed_lately);
    sum.no_local_port_lately = sum.no_local_port_lately.saturating_add(tally.no_local_port_lately);
    sum.syn_retransmitted_lately = sum.syn_retransmitted_lately.saturating_add(tally.syn_retransmitted_lately);
    sum.failed_total = sum.failed_total.saturating_add(tally.failed_total);
    sum.no_local_port_total = sum.no_local_port_total.saturating_add(tally.no_local_port_total);
    sum.syn_retransmitted_total = sum.syn_retransmitted_total.saturating_add(tally.syn_retransmitted_total);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Failures;

    /// Exercises every counter. If this fails, one of them is lost in the sum.
    #[test]
    fn every_counter_is_summed_up_whether_the_others_are_zero_or_not() {
        let failed = Failures { refused: 11, timed_out: 12, unreachable: 13, given_up: 14 };
        let busy = TcpTally {
            open: 1,
            wanting: 2,
            closed_held: 3,
            closed_before: 0,
            reset_held: 4,
            given_up_held: 5,
            closed_lately: 6,
            reset_lately: 7,
            failed_lately: failed,
            no_local_port_lately: 8,
            syn_retransmitted_lately: 9,
            opened_total: 20,
            closed_total: 21,
            failed_total: failed,
            no_local_port_total: 22,
            syn_retransmitted_total: 23,
        };
        let calm = TcpTally {
            open: 1,
            closed_held: 2,
            closed_lately: 3,
            opened_total: 4,
            closed_total: 5,
            ..TcpTally::default()
        };
        let mut sum = TcpSum::default();
        sum.add(&calm);
        assert_eq!((sum.told(), sum.rare.is_none(), sum.failed_total()), (calm, true, 0));
        sum.add(&busy);
        let both = TcpTally { open: 2, closed_held: 5, closed_lately: 9, opened_total: 24, closed_total: 26, ..busy };
        assert_eq!((sum.told(), sum.failed_total()), (both, 50));
        sum.add(&calm);
        assert_eq!(
            sum.told(),
            TcpTally { open: 3, closed_held: 7, closed_lately: 12, opened_total: 28, closed_total: 31, ..busy }
        );
    }
}
