//! When the socket tables are read.

use std::time::Duration;

use headroom_core::time::NodeTime;

use crate::source::share::Share;

/// Tables are read again this often, to correct what was lost. Reading them takes some 10 ms of CPU per network namespace.
const EVERY: Duration = Duration::from_secs(60);
/// And this often where they are all there is.
const EVERY_WITHOUT_COUNTERS: Duration = Duration::from_secs(10);
/// So many rounds read them at the start: a pair that moved during the first may stand still during the next.
const FIRST_ROUNDS: u32 = 3;
/// And this often, in so many rounds more, while a pair moved during every one: each narrows down how many connections it had
/// before the start.
const EVERY_RESTLESS: Duration = Duration::from_secs(2);
const RESTLESS_ROUNDS: u32 = 60;

/// Reading the tables may take this part of the time: one in four hundred, or one in fifty where they are all there is. A table
/// of 100,000 sockets in TIME_WAIT takes 0.3 s.
const SHARE: Share = Share::one_in(400);
const SHARE_ALONE: Share = Share::one_in(50);
/// One in fifty also for the further rounds at the start.
const SHARE_RESTLESS: Share = Share::one_in(50);
/// The first rounds follow each other closely, since each tells only of pairs that stand still meanwhile.
const SHARE_FIRST: Share = Share::one_in(5);
/// Fewer sockets take as long as so many: what takes time then is to look at every process.
const SOCKETS_AT_LEAST: u64 = 1000;

/// What the next reading is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Nothing is counted: tables are all there is.
    Alone,
    /// To correct what was lost.
    Steady,
    /// To narrow down what is not certain yet.
    Restless,
}

/// Decides when the next reading is due. It is paid for in advance: tables that have grown since the last reading wait longer.
#[derive(Debug, Default)]
pub(super) struct Tables {
    rounds: u32,
    /// No reading before.
    next: NodeTime,
    read: NodeTime,
    took: Duration,
    /// How many there were.
    sockets: u64,
    /// The next is one of the further rounds at the start.
    restless: bool,
}

impl Tables {
    /// Whether to read them now, of so many sockets.
    pub(super) fn due(&mut self, now: NodeTime, counting: bool, sockets: impl FnOnce() -> u64) -> bool {
        if now < self.next {
            return false;
        }
        if self.rounds < FIRST_ROUNDS || !counting {
            return true;
        }
        let count = |sockets: u64| u32::try_from(sockets.max(SOCKETS_AT_LEAST)).unwrap_or(u32::MAX);
        let takes = self.took.saturating_mul(count(sockets())) / count(self.sockets);
        let (share, every) = if self.restless { (SHARE_RESTLESS, EVERY_RESTLESS) } else { (SHARE, EVERY) };
        let due = now >= self.read.after(share.pause_after(takes));
        if !due {
            // They may have shrunk by then.
            self.next = now.after(every);
        }
        due
    }

    /// They were read, which took so much of a CPU.
    pub(super) fn were_read(&mut self, now: NodeTime, pace: Pace, took: Duration, sockets: u64) {
        self.rounds = self.rounds.saturating_add(1);
        (self.read, self.took, self.sockets) = (now, took, sockets);
        self.restless = pace == Pace::Restless && self.rounds < FIRST_ROUNDS + RESTLESS_ROUNDS;
        self.next = now.after(match pace {
            Pace::Alone => EVERY_WITHOUT_COUNTERS.max(SHARE_ALONE.pause_after(took)),
            _ if self.rounds < FIRST_ROUNDS => SHARE_FIRST.pause_after(took),
            _ if self.restless => EVERY_RESTLESS.max(SHARE_RESTLESS.pause_after(took)),
            _ => EVERY.max(SHARE.pause_after(took)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS_10: Duration = Duration::from_millis(10);

    fn at(secs: u64) -> NodeTime {
        NodeTime::from_secs(secs)
    }

    /// As after the start on a node with few sockets.
    fn started() -> Tables {
        let mut tables = Tables::default();
        for _ in 0..FIRST_ROUNDS {
            assert!(tables.due(at(100), true, || 50));
            tables.were_read(at(99), Pace::Steady, MILLIS_10, 50);
        }
        tables
    }

    /// Exercises the beginning. If this fails, connections from before the start stay unknown for long.
    #[test]
    fn the_first_readings_follow_each_other_closely_whatever_they_take() {
        let mut tables = Tables::default();
        for begin in [100, 110, 120] {
            assert!(tables.due(at(begin), true, || 1_000_000));
            tables.were_read(at(begin), Pace::Steady, Duration::from_secs(2), 1_000_000);
            assert!(!tables.due(at(begin + 9), true, || 1_000_000));
        }
        assert!(!tables.due(at(120 + 799), true, || 1_000_000));
        assert!(tables.due(at(120 + 800), true, || 1_000_000));
    }

    /// Exercises tables that grew three-hundredfold, and shrank again. If this fails, the reading after a burst takes more of the
    /// time than was promised.
    #[test]
    fn tables_that_grew_are_read_when_they_are_paid_for() {
        let mut tables = started();
        assert!(!tables.due(at(158), true, || 50));
        // 300 times 10 ms, 400 times: 1,200 s.
        for now in [159, 219, 279, 1239] {
            assert!(!tables.due(at(now), true, || 300_000), "{now}");
            assert!(!tables.due(at(now + 59), true, || 50), "{now}");
        }
        assert!(tables.due(at(1299), true, || 300_000));
        let mut tables = started();
        assert!(!tables.due(at(159), true, || 300_000));
        assert!(tables.due(at(219), true, || 50), "they have shrunk");
    }

    /// Exercises a pair that never stands still, tables that grow meanwhile, and the end of it. If this fails, connections from
    /// before the start are not known for as long as somebody dials, or reading sockets takes more of the time than was promised.
    #[test]
    fn while_a_pair_never_stands_still_they_are_read_sooner_for_a_while() {
        let mut tables = Tables::default();
        let mut now = 100;
        for _ in 0..FIRST_ROUNDS {
            assert!(tables.due(at(now), true, || 50));
            tables.were_read(at(now), Pace::Restless, MILLIS_10, 50);
            now += 1;
        }
        for round in 1..RESTLESS_ROUNDS {
            // The last one was a second ago.
            assert!(!tables.due(at(now), true, || 50));
            now += 1;
            assert!(tables.due(at(now), true, || 50), "{round}");
            tables.were_read(at(now), Pace::Restless, MILLIS_10, 50);
            now += 1;
        }
        assert!(tables.due(at(now + 1), true, || 50));
        tables.were_read(at(now + 1), Pace::Restless, MILLIS_10, 50);
        assert!(!tables.due(at(now + 60), true, || 50), "that was the last of them");
        assert!(tables.due(at(now + 61), true, || 50));

        let mut tables = started();
        tables.were_read(at(99), Pace::Restless, MILLIS_10, 50);
        // 300 times 10 ms, 50 times: 150 s.
        assert!(!tables.due(at(101), true, || 300_000));
        assert!(!tables.due(at(248), true, || 300_000));
        assert!(tables.due(at(250), true, || 300_000));
        let mut tables = started();
        tables.were_read(at(99), Pace::Restless, Duration::from_secs(1), 300_000);
        assert!(!tables.due(at(148), true, || 300_000));
        assert!(tables.due(at(149), true, || 300_000));
        // It stood still: back to the usual pace.
        tables.were_read(at(149), Pace::Steady, MILLIS_10, 50);
        assert!(!tables.due(at(208), true, || 50) && tables.due(at(209), true, || 50));
    }

    /// Exercises a node without counters. If this fails, tables that are all there is are not read.
    #[test]
    fn where_they_are_all_there_is_they_are_read_more_often() {
        let mut tables = started();
        tables.were_read(at(99), Pace::Alone, MILLIS_10, 50);
        assert!(!tables.due(at(108), false, || 300_000));
        assert!(tables.due(at(109), false, || 300_000));
        tables.were_read(at(109), Pace::Alone, Duration::from_secs(1), 300_000);
        assert!(!tables.due(at(158), false, || 300_000));
        assert!(tables.due(at(159), false, || 300_000));
    }
}
