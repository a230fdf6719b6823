//! What the address stores say is reserved, and since when we have seen it so.
//!
//! Every source replaces what it said itself, and nothing of the others'.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::observe::{Network, Outcome, Reservation, SourceId};
use crate::time::NodeTime;

/// A reservation, and since when it has been observed unchanged.
#[derive(Debug, Clone)]
pub struct HeldReservation {
    /// As last read.
    pub reservation: Arc<Reservation>,
    /// When it was first read with this holder and this time of writing.
    pub first_seen: NodeTime,
    /// The latest reading showed it; if not, that reading was incomplete, and it may be gone.
    pub shown: bool,
}

impl HeldReservation {
    fn address(&self) -> IpAddr {
        self.reservation.address
    }
}

/// What one source said of one store.
#[derive(Debug)]
struct Store {
    source: SourceId,
    /// By address, each once. A list, since whole stores come and go at once: 65,536 reservations at every look.
    held: Vec<HeldReservation>,
}

/// What a source says while its bracket is open.
#[derive(Debug, Default)]
struct Incoming {
    networks: Vec<Network>,
    /// In the order of arrival.
    held: BTreeMap<Arc<str>, Vec<HeldReservation>>,
}

/// Networks and their reservations, by store and address.
#[derive(Debug, Default)]
pub struct Reservations {
    networks: Vec<Network>,
    stores: BTreeMap<Arc<str>, Store>,
    incoming: BTreeMap<SourceId, Incoming>,
}

impl Reservations {
    pub(super) fn begin(&mut self, source: SourceId) {
        self.incoming.insert(source, Incoming::default());
    }

    pub(super) fn network(&mut self, source: SourceId, network: Network) {
        let networks = &mut self.incoming.entry(source).or_default().networks;
        if networks.iter().all(|held| held.store != network.store) {
            networks.push(network);
        }
    }

    pub(super) fn reservation(&mut self, source: SourceId, reservation: Arc<Reservation>, at: NodeTime) {
        let store = Arc::clone(&reservation.store);
        let held = self.incoming.entry(source).or_default().held.entry(store).or_default();
        held.push(HeldReservation { reservation, first_seen: at, shown: true });
    }

    pub(super) fn end(&mut self, source: SourceId, outcome: &Outcome) {
        let Incoming { networks, held } = self.incoming.remove(&source).unwrap_or_default();
        // What is not shown is gone from all stores, or from those that were read to their end, or not at all.
        let is_read: Box<dyn Fn(&str) -> bool> = match outcome {
            Outcome::Complete => {
                self.networks.retain(|network| network.ipam.source() != source);
                Box::new(|_store| true)
            }
            Outcome::Partial(_) => {
                self.networks.retain(|old| networks.iter().all(|new| new.store != old.store));
                let read: BTreeSet<&str> =
                    networks.iter().filter(|network| network.complete).map(|network| network.store.as_str()).collect();
                Box::new(move |store| read.contains(store))
            }
            Outcome::Failed(_) => return,
        };
        self.stores.retain(|name, store| store.source != source || !is_read(name) || held.contains_key(name));
        for (name, store) in self.stores.iter_mut().filter(|(_, store)| store.source == source) {
            if !is_read(name) {
                store.held.iter_mut().for_each(|held| held.shown = false);
            }
        }
        for (name, new) in held {
            let read = is_read(&name);
            let store = self.stores.entry(name).or_insert_with(|| Store { source, held: Vec::new() });
            let keep = store.source != source || !read;
            store.held = merged(std::mem::take(&mut store.held), new, keep);
        }
        drop(is_read);
        self.networks.extend(networks);
        self.networks.sort_by(|a, b| a.store.cmp(&b.store));
    }

    /// The networks, by store.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// The reservations of one store, by address.
    pub fn of<'a>(&'a self, store: &str) -> impl Iterator<Item = &'a HeldReservation> + use<'a> {
        self.stores.get(store).into_iter().flat_map(|store| &store.held)
    }

    /// The reservation of an address in a store.
    pub fn get(&self, store: &str, address: IpAddr) -> Option<&HeldReservation> {
        let held = &self.stores.get(store)?.held;
        held.get(held.binary_search_by_key(&address, HeldReservation::address).ok()?)
    }

    /// How many reservations there are in all stores.
    pub fn len(&self) -> usize {
        self.stores.values().map(|store| store.held.len()).sum()
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.stores.values().all(|store| store.held.is_empty())
    }
}

/// What was read lately, by address, each once, with the first sight of what has not changed; with what was held before and
/// not read lately, if that is to be kept.
fn merged(before: Vec<HeldReservation>, mut new: Vec<HeldReservation>, keep: bool) -> Vec<HeldReservation> {
    // Sources tell them in order mostly, and then this costs next to nothing. Of the same address, the first stays.
    new.sort_by_key(HeldReservation::address);
    new.dedup_by_key(|held| held.address());
    let mut merged = Vec::with_capacity(new.len());
    let mut before = before.into_iter().peekable();
    for mut held in new {
        while let Some(missing) = before.next_if(|before| before.address() < held.address()) {
            merged.extend(keep.then_some(missing));
        }
        if let Some(before) = before.next_if(|before| before.address() == held.address())
            && (Arc::ptr_eq(&before.reservation, &held.reservation) || before.reservation == held.reservation)
        {
            held.first_seen = before.first_seen;
        }
        merged.push(held);
    }
    if keep {
        merged.extend(before);
    }
    merged
}
