//! How wrong the kernel's counters were, as dumps tell.

/// How far counting and table were apart when a dump compared them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drift {
    /// Entries by which counts had to be corrected in the last comparison, up and down added.
    pub last: u64,
    /// In all comparisons.
    pub total: u64,
    /// How many comparisons there were.
    pub comparisons: u64,
    /// Entries that there were in the last comparison.
    pub of: u64,
    /// Comparisons in a row, the last among them, in which they were far apart: by more than one in 50 and more than 10.
    pub apart: u32,
}

impl Drift {
    /// In so many comparisons in a row they are not far apart by chance.
    const PERSISTS: u32 = 3;

    /// Whether the counts are wrong again and again.
    pub fn persists(&self) -> bool {
        self.apart >= Self::PERSISTS
    }

    pub(super) fn note(&mut self, corrected: u64, of: u64) {
        let far = corrected > 10 && corrected.saturating_mul(50) > of;
        self.apart = if far { self.apart.saturating_add(1) } else { 0 };
        (self.last, self.of) = (corrected, of);
        self.total = self.total.saturating_add(corrected);
    }
}
