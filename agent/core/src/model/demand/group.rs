//! Flows that cannot share a port of the NAT: those to one destination, or to all ports of an address where the NAT asks for
//! no more than that.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Account;
use crate::flow::Protocol;
use crate::model::nat::{Profile, Serves};

/// Protocols that a NAT translates.
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::ICMP];

/// Destinations in scope whose flows each take a port of their own.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// The destination with the largest demand.
    pub largest: &'a Account,
    /// Other ports of the same address that want ports of the NAT, the larger first; none where a port serves each destination.
    pub others: Vec<&'a Account>,
}

impl<'a> From<&'a Account> for Group<'a> {
    fn from(largest: &'a Account) -> Self {
        Self { largest, others: Vec::new() }
    }
}

impl<'a> Group<'a> {
    /// Its destinations.
    pub fn accounts(&self) -> impl Iterator<Item = &'a Account> + '_ {
        std::iter::once(self.largest).chain(self.others.iter().copied())
    }

    /// How many destinations.
    pub fn destinations(&self) -> u32 {
        u32::try_from(self.others.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    fn sum(&self, of: impl Fn(&Account) -> u32) -> u32 {
        self.accounts().map(of).fold(0, u32::saturating_add)
    }

    /// Ports held.
    pub fn held(&self) -> u32 {
        self.sum(|account| account.held)
    }

    /// Connects unanswered.
    pub fn wanting(&self) -> u32 {
        self.sum(|account| account.wanting)
    }

    /// Flows open now.
    pub fn active(&self) -> u32 {
        self.sum(|account| account.active)
    }

    /// held + wanting.
    pub fn demand(&self) -> u32 {
        self.sum(Account::demand)
    }

    /// `203.0.113.7:53/udp`, or `203.0.113.7/udp` where several destinations count together.
    pub fn subject(&self) -> String {
        let destination = self.largest.destination;
        if self.others.is_empty() {
            destination.to_string()
        } else {
            format!("{}/{}", destination.endpoint.address, destination.protocol)
        }
    }
}

/// The addresses of a protocol, largest demand first. `accounts` are in the order of [`super::Demand`].
fn by_address(accounts: &[Account], protocol: Protocol) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<IpAddr, Group<'_>> = BTreeMap::new();
    let wanted = |account: &&Account| account.destination.protocol == protocol && account.demand() > 0;
    for account in accounts.iter().take_while(|account| account.in_scope).filter(wanted) {
        groups
            .entry(account.destination.endpoint.address)
            .and_modify(|group| group.others.push(account))
            .or_insert_with(|| account.into());
    }
    let mut groups: Vec<Group<'_>> = groups.into_values().collect();
    groups.sort_by_key(|group| Reverse(group.demand()));
    groups
}

fn by_destination(accounts: &[Account], serves: impl Fn(Protocol) -> bool) -> impl Iterator<Item = Group<'_>> {
    let in_scope = accounts.iter().take_while(|account| account.in_scope);
    in_scope.filter(move |account| serves(account.destination.protocol)).map(Group::from)
}

/// What needs most ports of a protocol; `None` if nothing does. `accounts` are in the order of [`super::Demand`].
pub fn worst(accounts: &[Account], protocol: Protocol, profile: Profile) -> Option<Group<'_>> {
    let worst = match profile.port_serves(protocol) {
        Serves::Destination => by_destination(accounts, |of| of == protocol).next(),
        Serves::Address => by_address(accounts, protocol).into_iter().next(),
    };
    worst.filter(|group| group.demand() > 0)
}

/// All that needs ports: of each protocol the largest first. `accounts` are in the order of [`super::Demand`].
pub fn groups(accounts: &[Account], profile: Profile) -> impl Iterator<Item = Group<'_>> {
    let together = move |protocol: &Protocol| profile.port_serves(*protocol) == Serves::Address;
    by_destination(accounts, move |protocol| !together(&protocol))
        .chain(PROTOCOLS.into_iter().filter(together).flat_map(|protocol| by_address(accounts, protocol)))
}
