//! How wrong the kernel's counters were, as dumps tell, and what is not certain of them.
//!
//! What existed when counting began is only known by a dump, and that within what came and went while it was made. The dump walks
//! the table, and nothing tells which of these it has met: where it stands, and in which bucket an entry is, is the kernel's
//! secret (its hash is salted), `nf_ct_delete` is not told of a bucket, and entries bear no time of their birth
//! (`net.netfilter.nf_conntrack_timestamp` is off unless somebody wants it). Telling them apart one by one would take an event
//! per connection. So the first comparison leaves something open, later ones settle it, and that is no drift.

use super::row::Compared;

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
    /// Entries by which counts were put right within what an earlier comparison had left open, in all comparisons.
    pub settled: u64,
    /// Entries by which counts may be wrong, since they came or went while a dump was made, as of the last comparison.
    pub open: u64,
}

impl Drift {
    /// In so many comparisons in a row they are not far apart by chance.
    const PERSISTS: u32 = 3;

    /// Whether the counts are wrong again and again.
    pub fn persists(&self) -> bool {
        self.apart >= Self::PERSISTS
    }

    /// Whether what is open is more than a little: more than one entry in 50 and more than 10.
    pub fn is_wide_open(&self) -> bool {
        is_far(self.open, self.of)
    }

    /// A comparison. At the first there is nothing that could be wrong.
    pub(super) fn note(&mut self, compared: Compared, of: u64) {
        let Compared { wrong, settled, open } = compared;
        self.apart = if is_far(wrong, of) { self.apart.saturating_add(1) } else { 0 };
        (self.last, self.of, self.open) = (wrong, of, open);
        self.total = self.total.saturating_add(wrong);
        self.settled = self.settled.saturating_add(settled);
        self.comparisons = self.comparisons.saturating_add(1);
    }
}

fn is_far(entries: u64, of: u64) -> bool {
    entries > 10 && entries.saturating_mul(50) > of
}
