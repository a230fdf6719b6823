//! The sources that verdicts on reservations need, and the ledger they fill.

use std::path::PathBuf;
use std::time::Duration;

use headroom_core::ledger::{Ledger, LedgerLimits};

use crate::act::LOOK_LIMIT;
use crate::root::HostRoot;
use crate::source::Source;
use crate::source::cri::CriSource;
use crate::source::host_local::HostLocalSource;
use crate::source::namespaces::NamespacesSource;

/// From one look to the next; the third is under the lock.
const BETWEEN_LOOKS: Duration = Duration::from_millis(150);

/// Who looks, and all that was seen.
pub struct Eyes {
    ledger: Ledger,
    reservations: Box<dyn Source>,
    alive: Vec<Box<dyn Source>>,
    quickly: Vec<Box<dyn Source>>,
}

impl std::fmt::Debug for Eyes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eyes").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl Eyes {
    /// On a node: its stores, its runtime, its network namespaces.
    pub fn on(root: &HostRoot, stores: HostLocalSource, cri_socket: Option<PathBuf>) -> Self {
        let cri = || CriSource::new(cri_socket.clone(), root.clone());
        Self::of(
            Box::new(stores),
            vec![Box::new(cri()), Box::new(NamespacesSource::new(root.clone()))],
            vec![
                Box::new(cri().lists_only().with_round_limit(LOOK_LIMIT)),
                Box::new(NamespacesSource::new(root.clone()).with_round_limit(LOOK_LIMIT)),
            ],
        )
    }

    /// With sources of one's own: the stores; the runtime and the namespaces at leisure; the same while the lock is held.
    pub fn of(reservations: Box<dyn Source>, alive: Vec<Box<dyn Source>>, quickly: Vec<Box<dyn Source>>) -> Self {
        Self { ledger: Ledger::new(LedgerLimits::default()), reservations, alive, quickly }
    }

    /// Adds a source whose facts only the report wants.
    #[must_use]
    pub fn with(mut self, source: Box<dyn Source>) -> Self {
        self.alive.push(source);
        self
    }

    /// Looks twice, as a verdict needs it: reservations first, then who is alive.
    pub fn look_twice(&mut self) {
        self.look();
        if !self.ledger.reservations().is_empty() {
            std::thread::sleep(BETWEEN_LOOKS);
            self.look();
        }
    }

    /// Looks once at everything.
    pub fn look(&mut self) {
        let ledger = &mut self.ledger;
        self.reservations.observe(&mut |fact| ledger.apply(fact));
        self.look_who_is_alive();
    }

    /// Asks the runtime and reads the namespaces, however long they may take.
    pub(super) fn look_who_is_alive(&mut self) {
        let ledger = &mut self.ledger;
        self.alive.iter_mut().for_each(|source| source.observe(&mut |fact| ledger.apply(fact)));
    }

    /// The same, as short as it has to be while others wait for the lock.
    pub(super) fn look_quickly(&mut self) {
        let ledger = &mut self.ledger;
        self.quickly.iter_mut().for_each(|source| source.observe(&mut |fact| ledger.apply(fact)));
    }

    /// All that was seen.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}
