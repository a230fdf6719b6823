//! What the programs on conntrack could not count.

use headroom_core::observe::{Fact, Loss};

/// What was not counted, since the agent started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lost {
    pub(super) missed: u64,
    pub(super) map_full: u64,
    pub(super) map_full_ends: u64,
    pub(super) read_failed: u64,
}

impl Lost {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            missed: self.missed.saturating_add(other.missed),
            map_full: self.map_full.saturating_add(other.map_full),
            map_full_ends: self.map_full_ends.saturating_add(other.map_full_ends),
            read_failed: self.read_failed.saturating_add(other.read_failed),
        }
    }

    /// Of all but what was missed, which not every kernel tells.
    pub(super) fn facts(self) -> [Fact; 3] {
        [
            Fact::Lost { what: Loss::ConntrackMapFull, total: self.map_full },
            Fact::Lost { what: Loss::ConntrackMapFullEnds, total: self.map_full_ends },
            Fact::Lost { what: Loss::ConntrackReadFailed, total: self.read_failed },
        ]
    }
}
