//! Reserved pod addresses over the last hours, and when there will be none left.
//!
//! One sample every half minute for six hours: 720 of 16 bytes for each range set.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Exhaustion, Least, exhaustion};
use crate::time::NodeTime;

/// From one sample to the next.
const STEP: Duration = Duration::from_secs(30);
/// How far back a trend is looked for: a burst of pods first, then the slow drip of a leak.
const SPANS: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(6 * 3600)];
/// Samples that a trend is looked for in; of a longer span every so manieth.
const SAMPLES: usize = 60;
/// Pods come and go in minutes, one by one: less than this is no trend.
const LEAST: Least = Least { covered_secs: 120.0, rise: 2.0 };

/// Samples of one range set.
#[derive(Debug, Default)]
pub struct ReservedHistory {
    samples: VecDeque<(NodeTime, u32)>,
}

impl ReservedHistory {
    /// Notes how many addresses are reserved at a moment.
    pub fn record(&mut self, at: NodeTime, reserved: u32) {
        if self.samples.back().is_none_or(|(then, _)| at.since(*then) >= STEP) {
            self.samples.push_back((at, reserved));
        }
        while self.samples.front().is_some_and(|(then, _)| at.since(*then) > SPANS[1]) {
            self.samples.pop_front();
        }
    }

    /// When `limit` addresses will be reserved, at the trend so far; `None` unless their number clearly rises.
    ///
    /// The trend is the one of [`DemandHistory::exhaustion`](super::DemandHistory::exhaustion), over the last ten minutes or,
    /// without a clear one there, over the last six hours; it must cover two minutes and rise by two addresses.
    pub fn exhaustion(&self, now: NodeTime, reserved: u32, limit: u64) -> Option<Exhaustion> {
        let limit = f64::from(u32::try_from(limit).ok()?);
        SPANS.iter().find_map(|span| exhaustion(&self.within(now, *span, reserved), limit, LEAST))
    }

    /// Samples of a span, thinned out, and the present: seconds before now (negative), and addresses.
    fn within(&self, now: NodeTime, span: Duration, reserved: u32) -> Vec<(f64, f64)> {
        let begin = self.samples.partition_point(|(at, _)| now.since(*at) > span);
        let every = (self.samples.len() - begin).div_ceil(SAMPLES).max(1);
        let samples = self.samples.iter().skip(begin).step_by(every).filter(|(at, _)| *at < now);
        let mut samples: Vec<_> =
            samples.map(|(at, reserved)| (-now.since(*at).as_secs_f64(), f64::from(*reserved))).collect();
        samples.push((0.0, f64::from(reserved)));
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> NodeTime {
        NodeTime::from_secs(100_000 + secs)
    }

    /// Looks every ten seconds, as the daemon does, for so long.
    fn watched(secs: u64, reserved: impl Fn(u64) -> u32) -> Option<Exhaustion> {
        let mut history = ReservedHistory::default();
        (0..=secs).step_by(10).for_each(|second| history.record(at(second), reserved(second)));
        assert!(history.samples.len() <= 722, "{}", history.samples.len());
        history.exhaustion(at(secs), reserved(secs), 61)
    }

    #[test]
    fn a_drip_of_one_address_in_ten_minutes_is_seen_after_hours() {
        let exhaustion = watched(4 * 3600, |second| 10 + u32::try_from(second / 600).unwrap()).unwrap();
        // 34 reserved, 27 left, 6 an hour.
        assert!((15_500..16_900).contains(&exhaustion.within.as_secs()), "{exhaustion:?}");
        let basis = exhaustion.slow_basis("addresses");
        assert!(basis.contains("6.0 addresses/h over the last 240 min"), "{basis}");
    }

    #[test]
    fn a_burst_is_seen_within_minutes() {
        let exhaustion = watched(300, |second| u32::try_from(second / 15).unwrap()).unwrap();
        assert!((550..680).contains(&exhaustion.within.as_secs()), "{exhaustion:?}");
    }

    #[test]
    fn coming_and_going_is_no_trend() {
        assert_eq!(watched(6 * 3600, |_| 40), None);
        assert_eq!(watched(6 * 3600, |second| 40 + u32::try_from(second / 30 * 7919 % 11).unwrap()), None);
        assert_eq!(watched(6 * 3600, |second| 60 - u32::try_from(second / 600).unwrap()), None);
        for hour in 1..6 {
            let step = |second| if second < hour * 3600 { 10 } else { 40 };
            assert_eq!(watched(6 * 3600, step), None, "a step after {hour} h");
        }
        assert_eq!(watched(60, |second| u32::try_from(second / 10).unwrap()), None, "too short to tell");
        assert_eq!(watched(600, |second| 60 + u32::try_from(second / 600).unwrap()), None, "full already");
    }

    #[test]
    fn what_is_older_than_six_hours_is_forgotten() {
        assert_eq!(watched(24 * 3600, |second| if second < 12 * 3600 { 10 } else { 40 }), None);
    }
}
