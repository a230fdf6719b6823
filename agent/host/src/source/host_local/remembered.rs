//! Stores that have not changed since they were read.
//!
//! host-local writes a reservation once, when it makes the file: as long as its directory has the same time of change, no
//! reservation came, went or was renamed, and what was read is what a new reading would show. A reading is used again only
//! - if the directory had stood still for [`SETTLED`] when it began: the kernel's time stamps are some milliseconds coarse;
//! - if everything in it was understood: an empty file is about to be written;
//! - for [`AGE_LIMIT`]: somebody else might write into a file.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use headroom_core::known::Known;
use headroom_core::observe::{Fact, Network, Reservation};
use headroom_core::time::{NodeTime, WallTime};
use nix::dir::Dir;
use nix::sys::stat::fstat;

use super::store::{self, Bounds, Remarks, StoreName};
use crate::clock;

/// How long a directory must have stood still.
const SETTLED: Duration = Duration::from_secs(1);
/// How long a reading is used again.
const AGE_LIMIT: Duration = Duration::from_secs(300);
/// Reservations remembered per store; a larger one is read every time.
const RESERVATIONS_LIMIT: usize = 1 << 17;

/// What tells one state of a directory from another: device, inode, times of change of its entries and of itself.
type State = (u64, u64, [i64; 4]);

#[derive(Debug)]
struct Reading {
    state: State,
    at: NodeTime,
    network: Network,
    reservations: Vec<Arc<Reservation>>,
}

/// The last readings, by store.
#[derive(Debug, Default)]
pub(super) struct Remembered(BTreeMap<String, Reading>);

impl Remembered {
    /// Reads a network's directory, or tells again what was read.
    pub(super) fn read(&mut self, dir: Dir, named: StoreName, bounds: Bounds, emit: &mut dyn FnMut(Fact)) -> Remarks {
        let now = clock::now();
        let state = state(&dir, now.wall);
        let remembered = self
            .0
            .get(&named.store)
            .filter(|reading| Some(reading.state) == state && now.node.since(reading.at) < AGE_LIMIT);
        if let Some(reading) = remembered {
            reading.reservations.iter().cloned().map(Fact::Reservation).for_each(&mut *emit);
            // The configuration may have changed.
            emit(Fact::Network(Network { range_sets: named.range_sets, ..reading.network.clone() }));
            return Remarks::default();
        }
        self.0.remove(&named.store);
        let (mut reservations, mut network, mut understood) = (Vec::new(), None, state.is_some());
        let remarks = store::read(dir, named, bounds, &mut |fact| {
            match &fact {
                Fact::Reservation(reservation) if understood && reservations.len() < RESERVATIONS_LIMIT => {
                    understood =
                        reservation.holder.present().is_some() && matches!(reservation.modified, Known::Present(_));
                    reservations.push(Arc::clone(reservation));
                }
                Fact::Network(told) => network = Some(told.clone()),
                _another => understood = false,
            }
            emit(fact);
        });
        if let (Some(state), Some(network), true) = (state, network, understood)
            && network.complete
            && remarks.partial.is_none()
        {
            self.0.insert(network.store.clone(), Reading { state, at: now.node, network, reservations });
        }
        remarks
    }
}

/// The state of a directory, if it has stood still for long enough.
fn state(dir: &Dir, now: WallTime) -> Option<State> {
    let stat = fstat(dir.as_fd()).ok()?;
    let millis =
        |secs: i64, nanos: i64| WallTime::from_millis(secs.saturating_mul(1000).saturating_add(nanos / 1_000_000));
    let still = [millis(stat.st_mtime, stat.st_mtime_nsec), millis(stat.st_ctime, stat.st_ctime_nsec)]
        .iter()
        .all(|changed| now.since(*changed).is_some_and(|ago| ago >= SETTLED));
    still.then_some((stat.st_dev, stat.st_ino, [stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec]))
}
