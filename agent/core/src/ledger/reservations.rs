//! What the address stores say is reserved, and since when we have seen it so.
//!
//! Every source replaces what it said itself, and nothing of the others'.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::observe::{Network, Outcome, Reservation, SourceId};
use crate::time::NodeTime;

/// A reservation, and since when it has been observed unchanged.
#[derive(Debug, Clone)]
pub struct HeldReservation {
    /// As last read.
    pub reservation: Reservation,
    /// When it was first read with this holder and this time of writing.
    pub first_seen: NodeTime,
    /// The latest reading showed it; if not, that reading was incomplete, and it may be gone.
    pub shown: bool,
}

/// What one source said of one store.
#[derive(Debug)]
struct Store {
    source: SourceId,
    held: BTreeMap<IpAddr, HeldReservation>,
}

/// What a source says while its bracket is open.
#[derive(Debug, Default)]
struct Incoming {
    networks: Vec<Network>,
    held: BTreeMap<String, BTreeMap<IpAddr, HeldReservation>>,
}

/// Networks and their reservations, by store and address.
#[derive(Debug, Default)]
pub struct Reservations {
    networks: Vec<Network>,
    stores: BTreeMap<String, Store>,
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

    pub(super) fn reservation(&mut self, source: SourceId, reservation: Reservation, at: NodeTime) {
        let before = self.stores.get(&reservation.store).and_then(|store| store.held.get(&reservation.address));
        let first_seen = match before {
            Some(held) if held.reservation == reservation => held.first_seen,
            _ => at,
        };
        let incoming = self.incoming.entry(source).or_default();
        if !incoming.held.contains_key(&reservation.store) {
            incoming.held.insert(reservation.store.clone(), BTreeMap::new());
        }
        if let Some(held) = incoming.held.get_mut(&reservation.store) {
            held.entry(reservation.address).or_insert(HeldReservation { reservation, first_seen, shown: true });
        }
    }

    pub(super) fn end(&mut self, source: SourceId, outcome: &Outcome) {
        let Incoming { networks, held } = self.incoming.remove(&source).unwrap_or_default();
        match outcome {
            Outcome::Complete => {
                self.networks.retain(|network| network.ipam.source() != source);
                self.stores.retain(|_, store| store.source != source);
            }
            Outcome::Partial(_) => {
                // A network that was read to its end is replaced, of the others nothing is removed.
                let read: BTreeSet<&str> =
                    networks.iter().filter(|network| network.complete).map(|network| network.store.as_str()).collect();
                self.stores.retain(|name, store| store.source != source || !read.contains(name.as_str()));
                let own = self.stores.values_mut().filter(|store| store.source == source);
                own.flat_map(|store| store.held.values_mut()).for_each(|held| held.shown = false);
                self.networks.retain(|old| networks.iter().all(|new| new.store != old.store));
            }
            Outcome::Failed(_) => return,
        }
        for (name, held) in held {
            self.stores.entry(name).or_insert_with(|| Store { source, held: BTreeMap::new() }).held.extend(held);
        }
        self.networks.extend(networks);
        self.networks.sort_by(|a, b| a.store.cmp(&b.store));
    }

    /// The networks, by store.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// The reservations of one store, by address.
    pub fn of<'a>(&'a self, store: &str) -> impl Iterator<Item = &'a HeldReservation> + use<'a> {
        self.stores.get(store).into_iter().flat_map(|store| store.held.values())
    }

    /// The reservation of an address in a store.
    pub fn get(&self, store: &str, address: IpAddr) -> Option<&HeldReservation> {
        self.stores.get(store)?.held.get(&address)
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
