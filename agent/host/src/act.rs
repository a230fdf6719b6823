//! The only part of headroom that changes files of the node: leaked reservations of host-local are moved into a journal,
//! and moved back.
//!
//! A change goes through five things, always in this order: a *plan* made of verdicts
//! ([`headroom_core::plan::clean`]), the *intent* on disk, host-local's own *lock*, a second *look* under that lock, and one
//! `rename` into the *journal*, which keeps it for 30 days. Whoever is killed between two of them leaves a
//! reservation either where it was or in the journal, and a next run finds it there.

mod clean;
mod eyes;
pub mod journal;
mod lock;
mod place;
mod restore;
mod retention;

pub use clean::{Cleaned, Taken, clean};
pub use eyes::Eyes;
pub use place::NoPlace;
pub use restore::{Kept, NoJournal, PutBack, Restored, Stays, list, newest, restore};
pub use retention::{KEPT_ALWAYS, KEPT_FOR, KEPT_RUNS, Prospect, REMOVALS, prospect};

use std::time::Duration;

/// How long host-local's lock is waited for: a CNI ADD holds it for milliseconds.
pub const LOCK_WAIT: Duration = Duration::from_secs(3);
/// Reservations that are moved under one lock: host-local waits for no more than a look and so many renames.
pub const BATCH: usize = 256;
/// How long the runtime may take to answer while the lock is held, and as long again for the network namespaces. An answer
/// that takes longer is no answer: the lock is given back first.
pub const LOOK_LIMIT: Duration = Duration::from_millis(400);

/// Where an executor is. A caller is told each, and may end the process there: the tests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The journal's directories are there.
    JournalMade,
    /// What is about to be moved, and why, is on disk.
    Intended,
    /// host-local waits for us.
    Locked,
    /// The reservations are those of the plan.
    Reread,
    /// The runtime and the namespaces were asked again.
    Looked,
    /// One reservation was moved.
    Moved,
    /// host-local may go on.
    Unlocked,
    /// The moves are on disk.
    Synced,
    /// What was done is on disk.
    Recorded,
}

/// Who is told of every step.
pub type Steps<'a> = &'a mut dyn FnMut(Step);
