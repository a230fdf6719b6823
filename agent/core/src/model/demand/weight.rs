//! What the flows of one pair of destination and source count for.

use std::time::Duration;

use super::{LATELY, small};
use crate::flow::Protocol;
use crate::ledger::{Cohort, CohortState, Cohorts, TcpTally};
use crate::model::nat::HoldTimes;
use crate::time::NodeTime;

/// The moments that weighing depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: NodeTime,
    /// Until when the table's timers tell: packets may have passed since.
    pub(super) as_read: NodeTime,
    /// When the TCP counters began.
    pub(super) counting_since: NodeTime,
}

/// What the flows of one pair count for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weight {
    pub(super) held: u32,
    pub(super) wanting: u32,
    pub(super) active: u32,
    /// Open in the node's table, whether or not the NAT has forgotten them.
    pub(super) open: u32,
    /// Of those: silent for so long that the NAT has forgotten them.
    pub(super) forgotten: u32,
    /// Likewise, but half closed. Those are not taken from what the TCP counters count as open: the table
    /// does not say which of them they have seen end already.
    pub(super) half_forgotten: u32,
    /// Of those open: silent for more than half of that time, but not all of it.
    pub(super) silent: u32,
    /// Ended within [`LATELY`].
    pub(super) ended_lately: u32,
    /// Of those held: ended before the TCP counters began.
    pub(super) ended_before: u32,
    /// Of these: as the socket tables tell it.
    pub(super) ended_before_in_tables: u32,
    /// Entries in the node's table, whatever their state: each has a source port of its own.
    pub(super) entries: u32,
}

impl Weight {
    pub(super) fn of_tally(tally: &TcpTally) -> Self {
        let held = tally.open.saturating_add(tally.closed_held).saturating_add(tally.reset_held);
        Self {
            held: small(held),
            wanting: small(tally.wanting.saturating_add(tally.given_up_held)),
            active: small(tally.open),
            ended_lately: small(tally.closed_lately.saturating_add(tally.reset_lately)),
            ended_before_in_tables: small(tally.closed_before),
            ..Self::default()
        }
    }

    pub(super) fn of_cohorts(cohorts: &Cohorts, protocol: Protocol, hold: HoldTimes, clock: Clock) -> Self {
        // After how much silence the NAT drops a flow, and until when its port stays taken.
        let (idle, held) = match protocol {
            Protocol::TCP => (hold.tcp_established_idle, hold.tcp_established_idle),
            Protocol::ICMP | Protocol::ICMPV6 => (hold.icmp_idle, hold.icmp_idle),
            _ => (hold.udp_idle, hold.udp_held()),
        };
        let after_close = if protocol == Protocol::TCP { hold.tcp_time_wait } else { held };
        let mut weight = Self::default();
        for cohort in cohorts.iter() {
            if cohort.state.is_live() {
                weight.entries = weight.entries.saturating_add(cohort.count);
            }
            match cohort.state {
                // Until it forgets the last SYN.
                CohortState::Wanting => {
                    if clock.as_read.since(cohort.since()) < hold.tcp_transitory {
                        weight.wanting = weight.wanting.saturating_add(cohort.count);
                    }
                }
                CohortState::Transitory => {
                    weight.open = weight.open.saturating_add(cohort.count);
                    if clock.as_read.since(cohort.since()) < hold.tcp_transitory {
                        weight.held = weight.held.saturating_add(cohort.count);
                        weight.active = weight.active.saturating_add(cohort.count);
                    } else {
                        weight.half_forgotten = weight.half_forgotten.saturating_add(cohort.count);
                    }
                }
                CohortState::Busy | CohortState::Open => {
                    weight.open = weight.open.saturating_add(cohort.count);
                    let silent_for = match cohort.state {
                        CohortState::Open => clock.as_read.since(cohort.since()),
                        _ => Duration::ZERO,
                    };
                    if silent_for < held {
                        weight.held = weight.held.saturating_add(cohort.count);
                    }
                    // The NAT has dropped what has been silent for too long, even if the node still believes in it. What it
                    // does not translate at all, it does not drop.
                    if silent_for < idle {
                        weight.active = weight.active.saturating_add(cohort.count);
                        if silent_for > idle / 2 {
                            weight.silent = weight.silent.saturating_add(cohort.count);
                        }
                    } else if !idle.is_zero() {
                        weight.forgotten = weight.forgotten.saturating_add(cohort.count);
                    }
                }
                CohortState::Closed | CohortState::GoneClosed => weight.ended(&cohort, after_close, clock),
                CohortState::Reset | CohortState::GoneReset => weight.ended(&cohort, hold.tcp_reset, clock),
            }
        }
        weight
    }

    fn ended(&mut self, cohort: &Cohort, held_for: Duration, clock: Clock) {
        if clock.now.since(cohort.since()) < LATELY {
            self.ended_lately = self.ended_lately.saturating_add(cohort.count);
        }
        if clock.now.since(cohort.since()) < held_for {
            self.held = self.held.saturating_add(cohort.count);
            if cohort.since() < clock.counting_since {
                self.ended_before = self.ended_before.saturating_add(cohort.count);
            }
        }
    }
}
