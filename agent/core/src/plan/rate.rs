//! How much may still be changed, where nobody watches: so many in an hour.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::NodeTime;

/// What the limit counts over.
const WINDOW: Duration = Duration::from_secs(3600);

/// So many changes in any hour.
#[derive(Debug, Clone)]
pub struct HourlyLimit {
    limit: usize,
    changed: VecDeque<(NodeTime, usize)>,
}

impl HourlyLimit {
    /// So many in any hour.
    pub fn new(limit: usize) -> Self {
        Self { limit, changed: VecDeque::new() }
    }

    /// How many may be changed now.
    pub fn left(&mut self, now: NodeTime) -> usize {
        while self.changed.front().is_some_and(|(at, _)| now.since(*at) >= WINDOW) {
            self.changed.pop_front();
        }
        self.limit.saturating_sub(self.changed.iter().map(|(_, count)| count).sum())
    }

    /// So many were changed.
    pub fn note(&mut self, now: NodeTime, count: usize) {
        if count > 0 {
            self.changed.push_back((now, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_an_hour_ago_no_longer_counts() {
        let at = NodeTime::from_secs;
        let mut rate = HourlyLimit::new(10);
        assert_eq!(rate.left(at(0)), 10);
        rate.note(at(0), 4);
        rate.note(at(600), 6);
        assert_eq!(rate.left(at(600)), 0);
        assert_eq!(rate.left(at(3599)), 0);
        assert_eq!(rate.left(at(3600)), 4);
        assert_eq!(rate.left(at(4200)), 10);
    }
}
