//! Flows that cannot share a port of the NAT: those to one destination, by whichever address nodes dial it, or to all ports of an
//! address where the NAT asks for no more than that.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Account;
use crate::flow::{Destination, Protocol};
use crate::model::nat::{Profile, Serves};

/// Protocols that a NAT translates.
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::ICMP];

/// Destinations in scope whose flows each take a port of their own.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// The destination with the largest demand.
    pub largest: &'a Account,
    /// What counts together with it, the larger first: other ports of the same address, or the same destination by its other
    /// address; mostly none.
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

    /// How many destinations as the NAT sees them.
    pub fn destinations(&self) -> u32 {
        let alike = |account: &&&Account| is_same(account.destination, self.largest.destination);
        let same = self.others.iter().filter(alike).count();
        u32::try_from(self.others.len() - same).unwrap_or(u32::MAX).saturating_add(1)
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
        } else if self.destinations() == 1 {
            as_ipv4(destination).to_string()
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

/// A destination as a NAT sees that translates IPv6 to IPv4.
fn as_ipv4(destination: Destination) -> Destination {
    destination.through_nat64().unwrap_or(destination)
}

fn is_same(one: Destination, other: Destination) -> bool {
    as_ipv4(one) == as_ipv4(other)
}

fn in_scope(accounts: &[Account]) -> impl Iterator<Item = &Account> {
    accounts.iter().take_while(|account| account.in_scope)
}

/// Each destination by itself. What is dialled by an IPv6 address that stands for an IPv4 one counts with what is dialled by that.
fn by_destination(accounts: &[Account], serves: impl Fn(Protocol) -> bool) -> impl Iterator<Item = Group<'_>> {
    let twice = by_two_addresses(accounts);
    let joined: Vec<Group<'_>> =
        twice.values().filter(|group| serves(group.largest.destination.protocol)).cloned().collect();
    let singles = in_scope(accounts).filter(move |account| {
        serves(account.destination.protocol) && !twice.contains_key(&as_ipv4(account.destination))
    });
    joined.into_iter().chain(singles.map(Group::from))
}

/// Destinations that are dialled by both of their addresses, by the IPv4 one; mostly none.
fn by_two_addresses(accounts: &[Account]) -> BTreeMap<Destination, Group<'_>> {
    let through: BTreeSet<Destination> =
        in_scope(accounts).filter_map(|account| account.destination.through_nat64()).collect();
    if through.is_empty() {
        return BTreeMap::new();
    }
    let mut groups: BTreeMap<Destination, Group<'_>> = BTreeMap::new();
    for account in in_scope(accounts) {
        let destination = as_ipv4(account.destination);
        if through.contains(&destination) {
            groups.entry(destination).and_modify(|group| group.others.push(account)).or_insert_with(|| account.into());
        }
    }
    groups.retain(|_, group| !group.others.is_empty());
    groups
}

/// What needs most ports of a protocol; `None` if nothing does. `accounts` are in the order of [`super::Demand`].
pub fn worst(accounts: &[Account], protocol: Protocol, profile: Profile) -> Option<Group<'_>> {
    let worst = match profile.port_serves(protocol) {
        Serves::Destination => by_destination(accounts, |of| of == protocol)
            .reduce(|largest, group| if group.demand() > largest.demand() { group } else { largest }),
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
