//! How much of the time reading may take.

use std::time::Duration;

/// One part in so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// One part in so many; all of it, where that is none.
    pub const fn one_in(parts: u32) -> Self {
        Self(parts)
    }

    /// One in how many.
    pub const fn parts(self) -> u32 {
        self.0
    }

    /// How long to wait after a reading that took so much of a CPU.
    pub fn pause_after(self, took: Duration) -> Duration {
        took.saturating_mul(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the arithmetic and its ends. If this fails, the agent takes more of a CPU than it promises, or never reads again.
    #[test]
    fn a_pause_is_so_many_times_the_reading() {
        let millis = Duration::from_millis;
        assert_eq!(Share::one_in(200).pause_after(millis(50)), Duration::from_secs(10));
        assert_eq!(Share::one_in(0).pause_after(millis(50)), Duration::ZERO);
        assert_eq!(Share::one_in(u32::MAX).pause_after(Duration::MAX), Duration::MAX);
    }
}
