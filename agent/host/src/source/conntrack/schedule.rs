//! When to dump the conntrack table.

use std::time::Duration;

use headroom_core::time::NodeTime;

use crate::source::share::Share;

/// The first dumps may take more, ever less: a fifth, a tenth and so on. What moved during the first is mended by the next.
const IDLE_PER_FIRST_DUMP: u32 = 5;
/// Where they are to come sooner at first: after so long, twice as long and so on.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);
/// A dump that repairs a loss comes at once, but after one that was just as slow at most every fifth part of the time
/// goes into dumps: a node that loses events all the time has no time for an agent that dumps all the time.
const IDLE_PER_REPAIR: u32 = 5;
/// After a dump that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Decides when the next dump is due.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    interval: Duration,
    /// The part of the time that a regular dump may take.
    share: Share,
    /// The regular one.
    next: Option<NodeTime>,
    /// No repair before.
    repair_from: NodeTime,
    /// Something was lost since the last dump began.
    repair: bool,
    /// How many dumps ended well.
    dumps: u32,
    /// The first ones come sooner than after the interval.
    sooner: bool,
}

impl Schedule {
    /// The first dump is due at once, the next ones after the interval, or later if they take long.
    pub(super) fn new(interval: Duration, share: Share) -> Self {
        let repair_from = NodeTime::default();
        Self { interval, share, next: None, repair_from, repair: false, dumps: 0, sooner: false }
    }

    /// Beside another one: dumps take half of the part of the time that they may take else.
    pub(super) fn seldom(interval: Duration, share: Share) -> Self {
        Self::new(interval, Share::one_in(share.parts().saturating_mul(2)))
    }

    /// The first ones come sooner: they show what kind of node this is.
    pub(super) fn sooner_at_first(interval: Duration, share: Share) -> Self {
        Self { sooner: true, ..Self::new(interval, share) }
    }

    /// Whether to dump now.
    pub(super) fn due(&self, now: NodeTime) -> bool {
        self.regular(now) || (self.repair && now >= self.repair_from)
    }

    /// Something has changed that a dump should show before the next regular one is due.
    pub(super) fn hurry(&mut self) {
        self.next = self.next.map(|next| next.min(self.repair_from));
    }

    /// Whether it is time for a regular one.
    pub(super) fn regular(&self, now: NodeTime) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// From now on the regular dumps come at least so far apart, and take a quarter of the part of the time: others come in between.
    pub(super) fn slow_down(&mut self, interval: Duration) {
        *self = Self { interval, share: Share::one_in(self.share.parts().saturating_mul(4)), ..self.clone() };
    }

    /// Something was lost: the table as it was put together from events is not true any more.
    pub(super) fn lost(&mut self) {
        self.repair = true;
    }

    /// A dump begins: it repairs what was lost before.
    pub(super) fn begins(&mut self) {
        self.repair = false;
    }

    /// A dump has ended, well or not, and took so much of a CPU.
    pub(super) fn ended(&mut self, took: Duration, now: NodeTime, well: bool) {
        let share = Share::one_in(self.share.parts().min(IDLE_PER_FIRST_DUMP << self.dumps.min(8)));
        let first = FIRST_INTERVAL.saturating_mul(1 << self.dumps.min(16));
        let interval = if self.sooner { self.interval.min(first) } else { self.interval };
        let pause = if well { interval.max(share.pause_after(took)) } else { AFTER_FAILURE };
        self.dumps = self.dumps.saturating_add(u32::from(well));
        self.next = Some(now.after(pause));
        self.repair_from = now.after(if well { took.saturating_mul(IDLE_PER_REPAIR) } else { AFTER_FAILURE });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);
    const SHARE: Share = Share::one_in(160);

    fn at(secs: u64) -> NodeTime {
        NodeTime::from_secs(secs)
    }

    #[test]
    fn the_first_dump_is_due_at_once_and_the_next_after_the_interval() {
        let mut schedule = Schedule::new(INTERVAL, SHARE);
        assert!(schedule.due(at(100)));
        schedule.begins();
        schedule.ended(Duration::ZERO, at(100), true);
        assert!(!schedule.due(at(159)));
        assert!(schedule.due(at(160)));
    }

    #[test]
    fn a_slow_dump_is_repeated_soon_at_first_and_then_a_hundred_and_sixty_times_its_duration_later() {
        let mut schedule = Schedule::new(INTERVAL, SHARE);
        for pause in [60, 100, 200, 400, 800, 1600, 1600, 1600] {
            schedule.ended(Duration::from_secs(10), at(110), true);
            assert!(!schedule.due(at(110 + pause - 1)));
            assert!(schedule.due(at(110 + pause)));
        }
    }

    #[test]
    fn dumps_beside_others_take_half_as_much_of_the_time() {
        let mut schedule = Schedule::seldom(Duration::from_secs(1), SHARE);
        for _ in 0..10 {
            schedule.ended(Duration::from_millis(100), at(100), true);
        }
        assert!(!schedule.due(at(131)));
        assert!(schedule.due(at(132)));
    }

    #[test]
    fn dumps_that_were_slowed_down_take_a_quarter_as_much_of_the_time() {
        let mut schedule = Schedule::new(Duration::from_secs(5), SHARE);
        schedule.slow_down(INTERVAL);
        for (millis, pause) in [(0, 60), (200, 128)] {
            for _ in 0..10 {
                schedule.ended(Duration::from_millis(millis), at(100), true);
            }
            assert!(!schedule.due(at(100 + pause - 1)));
            assert!(schedule.due(at(100 + pause)));
        }
    }

    #[test]
    fn the_first_dumps_come_sooner_where_they_are_to() {
        let mut schedule = Schedule::sooner_at_first(Duration::from_secs(5), SHARE);
        for (millis, hurried) in [(500, false), (1000, false), (2000, false), (4000, false), (5000, false), (1, true)] {
            schedule.ended(Duration::ZERO, at(100), true);
            if hurried {
                schedule.hurry();
            }
            assert!(hurried || !schedule.due(at(100)), "{millis}");
            assert!(schedule.due(at(100).after(Duration::from_millis(millis))), "{millis}");
        }
    }

    #[test]
    fn a_loss_is_repaired_at_once_but_not_without_end() {
        let mut schedule = Schedule::new(INTERVAL, SHARE);
        schedule.ended(Duration::from_secs(1), at(101), true);
        assert!(!schedule.due(at(120)));
        schedule.lost();
        assert!(schedule.due(at(120)));
        schedule.begins();
        schedule.ended(Duration::from_secs(1), at(121), true);
        schedule.lost();
        assert!(!schedule.due(at(125)));
        assert!(schedule.due(at(126)));
    }

    #[test]
    fn a_dump_that_failed_is_tried_again_soon_but_not_at_once() {
        let mut schedule = Schedule::new(INTERVAL, SHARE);
        schedule.ended(Duration::ZERO, at(100), false);
        schedule.lost();
        assert!(!schedule.due(at(109)));
        assert!(schedule.due(at(110)));
    }
}
