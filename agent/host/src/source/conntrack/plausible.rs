//! Whether what is counted in the kernel can be true: between two dumps the table grows by what came, less what went.
//!
//! The ledger corrects each pair with every dump. Where the sum is wrong again and again something is wrong with the counting
//! itself (a function that was inlined in part, say), and others should tell what comes and goes.

use headroom_ebpf_common::conntrack::Counts;

/// In so many comparisons in a row the counting is not wrong by chance.
const PERSISTS: u32 = 3;

/// Entries that were counted as they came, and as they went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    came: i64,
    went: i64,
    /// Of these, under keys that were retired.
    retired: (i64, i64),
}

/// Those of one key. What was taken back of attempts may leave less than none for a moment.
fn of(counts: &Counts) -> (i64, i64) {
    let Counts { inserted, ended_time_wait, ended_reset, ended_unanswered, ended_other, .. } = *counts;
    let went = ended_time_wait.wrapping_add(ended_reset).wrapping_add(ended_unanswered).wrapping_add(ended_other);
    (inserted.cast_signed(), went.cast_signed())
}

impl Moved {
    /// A reading begins with what was retired.
    pub(super) fn of_retired(self) -> Self {
        Self { came: self.retired.0, went: self.retired.1, retired: self.retired }
    }

    /// The reading shows a key.
    pub(super) fn count(&mut self, counts: &Counts) {
        let (came, went) = of(counts);
        self.came = self.came.saturating_add(came);
        self.went = self.went.saturating_add(went);
    }

    /// A key that the reading showed is gone, with these last words.
    pub(super) fn retire(&mut self, last: &Counts, shown: &Counts) {
        let ((came, went), (shown_came, shown_went)) = (of(last), of(shown));
        self.came = self.came.saturating_add(came).saturating_sub(shown_came);
        self.went = self.went.saturating_add(went).saturating_sub(shown_went);
        self.retired = (self.retired.0.saturating_add(came), self.retired.1.saturating_add(went));
    }
}

/// Compares sums with dumps.
#[derive(Debug, Default)]
pub(super) struct Plausible {
    /// Entries that were never counted as they came, as the last dump tells: at least, and at most.
    uncounted: Option<(i64, i64)>,
    apart: u32,
}

impl Plausible {
    /// A complete dump showed so many entries, between two readings. Tells what is wrong if it was wrong too often.
    pub(super) fn compare(&mut self, before: Moved, shown: u64, after: Moved) -> Result<(), String> {
        let shown = shown.min(i64::MAX.cast_unsigned()).cast_signed();
        let came = after.came.saturating_sub(before.came).max(0);
        let went = after.went.saturating_sub(before.went).max(0);
        let counted = before.came.saturating_sub(before.went);
        let rest = shown.saturating_sub(counted);
        // Whether the dump shows what moved meanwhile is not known.
        let (least, most) = (rest.saturating_sub(came), rest.saturating_add(went));
        let (last_least, last_most) = self.uncounted.replace((least, most)).unwrap_or((least, most));
        let apart = least.saturating_sub(last_most).max(last_least.saturating_sub(most));
        let far = apart > 10 && apart.saturating_mul(50) > shown;
        self.apart = if far { self.apart.saturating_add(1) } else { 0 };
        if self.apart < PERSISTS {
            return Ok(());
        }
        Err(format!(
            "what the kernel counted as coming and going was {apart} entries apart from the table ({shown} entries), and as far in \
             {} comparisons in a row: the counts are not believed",
            self.apart
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(inserted: u64, ended_other: u64) -> Moved {
        let mut moved = Moved::default();
        moved.count(&Counts { inserted, ended_other, ..Counts::default() });
        moved
    }

    /// Exercises counting that misses every second end, and counting that is right with 500 entries from before and with what moves
    /// while a dump is made. If this fails, wrong counts are believed for ever, or right ones are not.
    #[test]
    fn counts_that_are_wrong_three_times_in_a_row_are_not_believed() {
        let (mut right, mut wrong, mut little) = (Plausible::default(), Plausible::default(), Plausible::default());
        for round in 0..10_u64 {
            let (came, went) = (round * 1000, round * 900);
            let shown = 500 + came - went;
            assert_eq!(right.compare(moved(came, went), shown + 30, moved(came + 40, went + 10)), Ok(()));
            // The first comparison is where it gets what existed before.
            assert_eq!(
                wrong.compare(moved(came, went / 2), shown, moved(came, went / 2)).is_ok(),
                round < 3,
                "{round}"
            );
            // Ten of any number, or one in fifty of many, are not told from what is seen late.
            assert_eq!(little.compare(moved(came, went + round * 10), shown, moved(came, went + round * 10)), Ok(()));
        }
        // Wrong now and then.
        let mut twice = Plausible::default();
        for round in 0..20_u64 {
            let off = if round % 3 == 0 { 0 } else { 400 * (round % 3) };
            assert_eq!(twice.compare(moved(off, 0), 1000, moved(off, 0)).is_ok(), round < 3, "{round}");
        }
    }

    /// Exercises keys that are taken out of the map. If this fails, every retired key makes the counts look wrong.
    #[test]
    fn what_was_retired_stays_counted() {
        let counts = |inserted, no_port| Counts { inserted, no_port, ended_reset: 1, ..Counts::default() };
        let mut sums = Moved::default();
        sums.count(&counts(5, 0));
        sums.count(&counts(7, 0));
        assert_eq!((sums.came, sums.went), (12, 2));
        sums.retire(&counts(6, 0), &counts(5, 0));
        assert_eq!((sums.came, sums.went), (13, 2));
        let mut next = sums.of_retired();
        next.count(&counts(7, 0));
        assert_eq!((next.came, next.went), (13, 2));
        // Taken back twice.
        let mut attempts = Moved::default();
        attempts.count(&counts(0_u64.wrapping_sub(2), 0));
        attempts.count(&counts(7, 0));
        assert_eq!(attempts.came, 5);
    }
}
