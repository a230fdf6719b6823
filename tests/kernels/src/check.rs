//! A check, and what may come of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::network::Scene;

/// One check of a subject.
#[derive(Debug)]
pub(crate) struct Check {
    /// The fact it checks; a row of the table.
    pub(crate) name: &'static str,
    /// Gives what was compared, in a few words; [`Cannot`] where the kernel does not let it.
    pub(crate) run: fn(&Scene) -> Result<String>,
}

impl Check {
    /// Runs it; a panic is a failure of this check only.
    pub(crate) fn run(&self, scene: &Scene) -> (Result<String>, Duration) {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            scene.begin_check()?;
            (self.run)(scene)
        }));
        (outcome.unwrap_or_else(|_panic| Err(anyhow!("panicked"))), start.elapsed())
    }
}

/// What headroom cannot do on this kernel, as it says itself or as the counters show. Whether that is right is the business
/// of the table of inabilities.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Cannot(pub(crate) String);
