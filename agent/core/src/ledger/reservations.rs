//! What the address stores say is reserved, and since when we have seen it so.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::observe::{Network, Outcome, Reservation};
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

/// Networks and their reservations, by store and address.
#[derive(Debug, Default)]
pub struct Reservations {
    networks: Vec<Network>,
    held: BTreeMap<(String, IpAddr), HeldReservation>,
    incoming_networks: Vec<Network>,
    incoming: BTreeMap<(String, IpAddr), HeldReservation>,
}

impl Reservations {
    pub(super) fn begin(&mut self) {
        self.incoming_networks.clear();
        self.incoming.clear();
    }

    pub(super) fn network(&mut self, network: Network) {
        if self.incoming_networks.iter().all(|held| held.store != network.store) {
            self.incoming_networks.push(network);
        }
    }

    pub(super) fn reservation(&mut self, reservation: Reservation, at: NodeTime) {
        let key = (reservation.store.clone(), reservation.address);
        let first_seen = match self.held.get(&key) {
            Some(held) if held.reservation == reservation => held.first_seen,
            _ => at,
        };
        self.incoming.entry(key).or_insert(HeldReservation { reservation, first_seen, shown: true });
    }

    pub(super) fn end(&mut self, outcome: &Outcome) {
        let (mut networks, held) = (std::mem::take(&mut self.incoming_networks), std::mem::take(&mut self.incoming));
        match outcome {
            Outcome::Complete => {
                networks.sort_by(|a, b| a.store.cmp(&b.store));
                self.networks = networks;
                self.held = held;
            }
            Outcome::Partial(_) => {
                // A network that was read to its end is replaced, of the others nothing is removed.
                let read: Vec<&str> =
                    networks.iter().filter(|network| network.complete).map(|network| network.store.as_str()).collect();
                self.held.retain(|(store, _), _| !read.contains(&store.as_str()));
                self.held.values_mut().for_each(|held| held.shown = false);
                self.held.extend(held);
                self.networks.retain(|old| networks.iter().all(|new| new.store != old.store));
                self.networks.append(&mut networks);
                self.networks.sort_by(|a, b| a.store.cmp(&b.store));
            }
            Outcome::Failed(_) => {}
        }
    }

    /// The networks, by store.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// The reservations of one store, by address.
    pub fn of<'a>(&'a self, store: &'a str) -> impl Iterator<Item = &'a HeldReservation> + 'a {
        self.held.iter().filter(move |((held_in, _), _)| held_in == store).map(|(_, held)| held)
    }

    /// How many reservations there are in all stores.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
