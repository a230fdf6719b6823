//! Demand over the last hour: peaks, and the trend of the present minute.
//!
//! At most one sample a second is kept for an hour: 3,600 of 16 bytes a protocol.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::NodeTime;

const HOUR: Duration = Duration::from_secs(3600);

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
    /// The trend is the slope of a least-squares line over at least 5 samples and 5 seconds, and must rise by at least
    /// one port over its span.
    pub fn exhaustion(&self, now: NodeTime, limit: u32) -> Option<Exhaustion> {
        let span = Duration::from_secs(60);
        let lately: Vec<(f64, f64)> = self
            .samples
            .iter()
            .filter(|(at, _)| now.since(*at) <= span)
            .map(|(at, ports)| (-now.since(*at).as_secs_f64(), f64::from(*ports)))
            .collect();
        let (first, last) = (lately.first()?, lately.last()?);
        let covered = last.0 - first.0;
        if lately.len() < 5 || covered < 5.0 || last.1 >= f64::from(limit) {
            return None;
        }
        let count = lately.iter().fold(0.0, |count, _| count + 1.0);
        let mean_t = lately.iter().map(|(t, _)| t).sum::<f64>() / count;
        let mean_p = lately.iter().map(|(_, p)| p).sum::<f64>() / count;
        let variance = lately.iter().map(|(t, _)| (t - mean_t).powi(2)).sum::<f64>();
        let slope = lately.iter().map(|(t, p)| (t - mean_t) * (p - mean_p)).sum::<f64>() / variance;
        if !slope.is_finite() || slope * covered < 1.0 {
            return None;
        }
        let secs = ((f64::from(limit) - last.1) / slope).clamp(0.0, 1e7);
        Some(Exhaustion { within: Duration::from_secs_f64(secs), per_sec: slope, covered_secs: covered })
    }
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
}
