//! Demand over the last hour: peaks, and the trend of the present minute. Reserved addresses likewise: `history/reserved.rs`.
//!
//! At most one sample a second is kept for an hour: 3,600 of 16 bytes a protocol.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::NodeTime;

mod reserved;

pub use reserved::ReservedHistory;

const HOUR: Duration = Duration::from_secs(3600);
/// Over how long a trend is looked for.
const TREND: Duration = Duration::from_secs(60);
/// Pairs of samples that rise, less those that fall: at least so many of so many.
const CONCORDANT: (usize, usize) = (3, 5);

/// Samples of one protocol's demand.
#[derive(Debug, Default)]
pub struct DemandHistory {
    samples: VecDeque<(NodeTime, u32)>,
}

/// Time to exhaustion, and what it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Exhaustion {
    /// From now on.
    pub within: Duration,
    /// So much more every second …
    per_sec: f64,
    /// … over so many seconds.
    covered_secs: f64,
}

impl Exhaustion {
    /// What it rests on, in words: `rising 1.50 ports/s over the last 42 s`.
    pub fn basis(&self, what: &str) -> String {
        format!("rising {:.2} {what}/s over the last {:.0} s", self.per_sec, self.covered_secs)
    }

    /// The same of what moves slowly: `rising 6.0 addresses/h over the last 240 min`.
    pub fn slow_basis(&self, what: &str) -> String {
        let (per_hour, minutes) = (self.per_sec * 3600.0, self.covered_secs / 60.0);
        format!("rising {per_hour:.1} {what}/h over the last {minutes:.0} min")
    }
}

impl DemandHistory {
    /// Notes the demand of a moment; within one second the larger value counts.
    pub fn record(&mut self, at: NodeTime, ports: u32) {
        match self.samples.back_mut() {
            Some((then, held)) if at.since(*then) < Duration::from_secs(1) => *held = ports.max(*held),
            _ => self.samples.push_back((at, ports)),
        }
        while self.samples.front().is_some_and(|(then, _)| at.since(*then) > HOUR) {
            self.samples.pop_front();
        }
    }

    /// The largest demand within `span` before `now`.
    pub fn peak(&self, now: NodeTime, span: Duration) -> Option<u32> {
        self.samples.iter().rev().take_while(|(at, _)| now.since(*at) <= span).map(|(_, ports)| *ports).max()
    }

    /// When `limit` will be reached at the trend of the last minute; `None` unless demand clearly rises.
    ///
    /// The trend is the median slope between any two samples (Theil and Sen), over at least 5 samples and 5 seconds: one
    /// burst does not make it. It counts only
    /// - if later samples are larger than earlier ones in three pairs out of five (`CONCORDANT`): noise has as many that
    ///   fall, and a single step, after which demand stands still, has half of them;
    /// - if it has not stopped: the last third of the span rose at least half as much as the trend says.
    pub fn exhaustion(&self, now: NodeTime, limit: u32) -> Option<Exhaustion> {
        exhaustion(&self.lately(now), f64::from(limit), Least { covered_secs: 5.0, rise: 1.0 })
    }

    /// Samples of the last minute: seconds before now (negative), and ports.
    fn lately(&self, now: NodeTime) -> Vec<(f64, f64)> {
        let samples = self.samples.iter().rev().take_while(|(at, _)| now.since(*at) <= TREND);
        let mut samples: Vec<_> =
            samples.map(|(at, ports)| (-now.since(*at).as_secs_f64(), f64::from(*ports))).collect();
        samples.reverse();
        samples
    }
}

/// What a trend must show at least.
struct Least {
    /// Over how long.
    covered_secs: f64,
    /// By how much.
    rise: f64,
}

/// When the limit will be reached, at the trend of samples in the order of their time.
fn exhaustion(samples: &[(f64, f64)], limit: f64, least: Least) -> Option<Exhaustion> {
    let (first, last) = (samples.first()?, samples.last()?);
    let covered = last.0 - first.0;
    if samples.len() < 5 || covered < least.covered_secs || last.1 >= limit {
        return None;
    }
    let slope = trend(samples)?;
    let expected = slope * covered / 3.0;
    let recent_from = samples.partition_point(|(at, _)| *at < last.0 - covered / 3.0);
    let recent = samples.get(recent_from).map_or(0.0, |(_, amount)| last.1 - amount);
    // Less than two are too few to say that the rise has stopped.
    if slope * covered < least.rise || (expected >= 2.0 && recent < expected / 2.0) {
        return None;
    }
    let secs = ((limit - last.1) / slope).clamp(0.0, 1e8);
    Some(Exhaustion { within: Duration::from_secs_f64(secs), per_sec: slope, covered_secs: covered })
}

/// The median slope between any two samples; `None` unless enough of them rise. At most 61 samples: 1,830 pairs.
fn trend(samples: &[(f64, f64)]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(samples.len() * samples.len() / 2);
    for (index, (at, ports)) in samples.iter().enumerate() {
        let later = samples.iter().skip(index + 1).filter(|(later, _)| later > at);
        slopes.extend(later.map(|(later, more)| (more - ports) / (later - at)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let rising = slopes.len() - slopes.partition_point(|slope| *slope <= 0.0);
    let falling = slopes.partition_point(|slope| *slope < 0.0);
    let (of, in_all) = CONCORDANT;
    let clear = rising.saturating_sub(falling).saturating_mul(in_all) >= slopes.len().saturating_mul(of);
    slopes.get(slopes.len() / 2).copied().filter(|slope| clear && *slope > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> NodeTime {
        NodeTime::from_secs(1000 + secs)
    }

    #[test]
    fn peaks_look_back_only_as_far_as_asked() {
        let mut history = DemandHistory::default();
        history.record(at(0), 50);
        history.record(at(300), 20);
        history.record(at(590), 10);
        assert_eq!(history.peak(at(600), Duration::from_secs(60)), Some(10));
        assert_eq!(history.peak(at(600), Duration::from_secs(600)), Some(50));
        history.record(at(3700), 1);
        assert_eq!(history.peak(at(3700), HOUR), Some(20));
    }

    #[test]
    fn a_steady_rise_tells_when_the_limit_is_reached() {
        let mut history = DemandHistory::default();
        for second in 0..30_u32 {
            history.record(at(u64::from(second)), second);
        }
        let exhaustion = history.exhaustion(at(29), 64).unwrap();
        assert_eq!(exhaustion.within.as_secs(), 35);
        assert_eq!(exhaustion.basis("ports"), "rising 1.00 ports/s over the last 29 s");
    }

    #[test]
    fn no_rise_no_prediction() {
        let mut flat = DemandHistory::default();
        let mut falling = DemandHistory::default();
        for second in 0..30_u32 {
            flat.record(at(u64::from(second)), 40);
            falling.record(at(u64::from(second)), 60 - second);
        }
        assert_eq!(flat.exhaustion(at(30), 64), None);
        assert_eq!(falling.exhaustion(at(30), 64), None);
        assert_eq!(DemandHistory::default().exhaustion(at(30), 64), None);
    }

    fn history(samples: impl IntoIterator<Item = u32>) -> DemandHistory {
        let mut history = DemandHistory::default();
        for (second, ports) in (0..).zip(samples) {
            history.record(at(second), ports);
        }
        history
    }

    /// Exercises what demand looks like on real nodes. If these fail, people are woken by "full in about 40 s" that never comes.
    #[test]
    fn a_step_noise_or_a_rise_that_has_stopped_is_no_trend() {
        let step = |when: u32| history((0..60).map(move |second| if second < when { 10 } else { 40 }));
        for when in [3, 15, 30, 45, 50, 55, 57] {
            assert_eq!(step(when).exhaustion(at(59), 64), None, "a step after {when} s");
        }
        // 20 to 39, as a generator of pseudo-random numbers would have it.
        for seed in 0..50_u32 {
            let noise = (0..60_u32).map(|second| {
                let mixed = (second + 61 * seed).wrapping_mul(2_654_435_761);
                20 + (mixed ^ mixed >> 15).wrapping_mul(2_246_822_519) % 1024 * 20 / 1024
            });
            assert_eq!(history(noise).exhaustion(at(59), 64), None, "noise {seed}");
        }
        let stopped = history((0..60).map(|second: u32| second.min(30)));
        assert_eq!(stopped.exhaustion(at(59), 64), None);
    }

    #[test]
    fn a_noisy_slow_or_bursty_rise_is_one() {
        let noisy = history((0..60_u32).map(|second| second / 2 + second * 7 % 5));
        let within = noisy.exhaustion(at(59), 64).unwrap().within.as_secs();
        assert!((55..=75).contains(&within), "{within} s: 64 - 32 ports at half a port a second");
        let slow = history((0..60_u32).map(|second| 40 + second / 15));
        assert!(slow.exhaustion(at(59), 64).is_some());
        // Ten more every ten seconds.
        let stairs = history((0..60_u32).map(|second| second / 10 * 10));
        let within = stairs.exhaustion(at(59), 100).unwrap().within.as_secs();
        assert!((40..=70).contains(&within), "{within} s: 100 - 50 ports at one a second");
        // One burst in a steady rise changes little.
        let burst = history((0..60_u32).map(|second| if second == 30 { 60 } else { second / 2 }));
        let within = burst.exhaustion(at(59), 64).unwrap().within.as_secs();
        assert!((60..=80).contains(&within), "{within} s");
    }

    /// Exercises a node that was suspended. If this fails, an hour's gap counts as an hour's rise.
    #[test]
    fn samples_from_before_a_gap_make_no_trend() {
        let mut history = history((0..60).map(|second| second / 6));
        history.record(at(4000), 60);
        assert_eq!(history.exhaustion(at(4000), 64), None);
        assert_eq!(history.peak(at(4000), HOUR), Some(60));
    }
}
