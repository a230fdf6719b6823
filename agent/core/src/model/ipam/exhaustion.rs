//! What earlier looks at the range sets leave for later ones: when a set will be used up.

use std::collections::BTreeMap;

use crate::history::ReservedHistory;
use crate::report::NetworkReport;
use crate::time::NodeTime;

/// Range sets that are remembered at most.
const MAX_SETS: usize = 64;

/// How many addresses were reserved over the last hours, by store and range set.
#[derive(Debug, Default)]
pub struct ReservedMemory(BTreeMap<(String, usize), ReservedHistory>);

impl ReservedMemory {
    /// Notes what is reserved now, and says when it will be all. Networks that are gone are forgotten.
    pub fn note(&mut self, networks: &mut [NetworkReport], now: NodeTime) {
        let mut kept = BTreeMap::new();
        for network in networks {
            for (index, set) in network.range_sets.iter_mut().enumerate() {
                let key = (network.store.clone(), index);
                let mut history = self.0.remove(&key).unwrap_or_default();
                // A reading that was cut short shows too few.
                if let Ok(used) = u32::try_from(set.used)
                    && network.complete
                {
                    let exhaustion = history.exhaustion(now, used, set.usable);
                    history.record(now, used);
                    set.exhausted_in_secs = exhaustion.as_ref().map(|exhaustion| exhaustion.within.as_secs());
                    set.exhausted_basis = exhaustion.as_ref().map(|exhaustion| exhaustion.slow_basis("addresses"));
                }
                if kept.len() < MAX_SETS {
                    kept.insert(key, history);
                }
            }
        }
        self.0 = kept;
    }
}
