//! Who is behind the addresses that hold ports: pods by name, the node, or just addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::flow::{Destination, Endpoint, Protocol};
use crate::ids::PodName;
use crate::ledger::Ledger;
use crate::model::demand::{Account, Group, Share};
use crate::report::{OmittedPods, OwnerReport, PodDemand, PodShare};

/// Holders listed per destination at most.
const MAX_SHARES: usize = 20;
/// Pods listed over all destinations at most.
const MAX_PODS: usize = 50;

/// Who is behind an address.
pub(super) struct Holders<'a> {
    ledger: &'a Ledger,
    pods: BTreeMap<IpAddr, &'a PodName>,
    host: BTreeSet<IpAddr>,
}

/// What one address holds over all destinations.
#[derive(Debug, Clone, Copy, Default)]
struct Total {
    held: u64,
    wanting: u64,
    forgotten: u64,
    destinations: u64,
}

impl<'a> Holders<'a> {
    pub(super) fn of(ledger: &'a Ledger) -> Self {
        Self { ledger, pods: ledger.occupants().pods(), host: ledger.occupants().host_addresses() }
    }

    /// The pod with that address.
    pub(super) fn pod(&self, address: IpAddr) -> Option<&'a PodName> {
        self.pods.get(&address).copied()
    }

    /// Its namespace and name.
    fn names(&self, address: IpAddr) -> (Option<String>, Option<String>) {
        let pod = self.pod(address);
        (pod.map(|pod| pod.namespace.clone()), pod.map(|pod| pod.name.clone()))
    }

    /// In words: a pod's name, the node, or the address.
    pub(super) fn name(&self, address: IpAddr) -> String {
        match self.pods.get(&address) {
            Some(pod) => pod.to_string(),
            None if self.host.contains(&address) => "the node itself".to_owned(),
            None => address.to_string(),
        }
    }

    /// It is the node's own, and no pod's.
    pub(super) fn is_host(&self, address: IpAddr) -> bool {
        !self.pods.contains_key(&address) && self.host.contains(&address)
    }

    /// The node's own addresses are known.
    pub(super) fn knows_host(&self) -> bool {
        !self.host.is_empty()
    }

    fn share(&self, destination: Destination, address: IpAddr, share: Share) -> PodShare {
        let (namespace, name) = self.names(address);
        PodShare {
            namespace,
            name,
            address,
            host: self.is_host(address),
            held: share.held,
            wanting: share.wanting,
            forgotten: share.forgotten,
            owners: if destination.protocol == Protocol::TCP {
                self.owners(destination.endpoint, address)
            } else {
                Vec::new()
            },
        }
    }

    /// Processes of the node's own network, by pod where they belong to one.
    fn owners(&self, destination: Endpoint, address: IpAddr) -> Vec<OwnerReport> {
        let owners = self.ledger.tcp().owners(destination, address).iter().map(|(owner, sockets)| {
            let uid = owner.pod_uid();
            let mut sandboxes = self.ledger.occupants().sandboxes().iter();
            let pod = uid.and_then(|uid| sandboxes.find(|sandbox| sandbox.uid == uid)).map(|sandbox| &sandbox.pod);
            OwnerReport {
                process: owner.process.clone(),
                unit: owner.unit().map(str::to_owned),
                namespace: pod.map(|pod| pod.namespace.clone()),
                name: pod.map(|pod| pod.name.clone()),
                cgroup: owner.cgroup.clone(),
                sockets: *sockets,
            }
        });
        let mut owners: Vec<OwnerReport> = owners.collect();
        owners.sort_by_key(|owner| std::cmp::Reverse(owner.sockets));
        owners
    }

    /// Who holds ports of one destination, the largest first; and how many are left out.
    pub(super) fn shares(&self, account: &Account) -> (Vec<PodShare>, u32) {
        self.largest(account.destination, account.by_source.iter().collect())
    }

    /// Who holds ports of destinations that count together, likewise.
    pub(super) fn shares_of(&self, group: &Group<'_>) -> (Vec<PodShare>, u32) {
        let mut sums: BTreeMap<IpAddr, Share> = BTreeMap::new();
        for (address, share) in group.accounts().flat_map(|account| account.by_source.iter()) {
            let sum = sums.entry(address).or_default();
            sum.held = sum.held.saturating_add(share.held);
            sum.wanting = sum.wanting.saturating_add(share.wanting);
            sum.forgotten = sum.forgotten.saturating_add(share.forgotten);
        }
        self.largest(group.largest.destination, sums.into_iter().collect())
    }

    fn largest(&self, destination: Destination, mut shares: Vec<(IpAddr, Share)>) -> (Vec<PodShare>, u32) {
        shares.sort_by_key(|(address, share)| {
            (std::cmp::Reverse((share.held, share.wanting, share.forgotten)), *address)
        });
        let omitted = u32::try_from(shares.len().saturating_sub(MAX_SHARES)).unwrap_or(u32::MAX);
        (
            shares
                .into_iter()
                .take(MAX_SHARES)
                .map(|(address, share)| self.share(destination, address, share))
                .collect(),
            omitted,
        )
    }

    /// Who holds ports over all destinations in scope, the largest first; and what is left out.
    pub(super) fn totals(&self, accounts: &[Account]) -> (Vec<PodDemand>, OmittedPods) {
        let mut totals: BTreeMap<IpAddr, Total> = BTreeMap::new();
        for account in accounts.iter().take_while(|account| account.in_scope) {
            for (address, share) in account.by_source.iter() {
                let total = totals.entry(address).or_default();
                total.held = total.held.saturating_add(u64::from(share.held));
                total.wanting = total.wanting.saturating_add(u64::from(share.wanting));
                total.forgotten = total.forgotten.saturating_add(u64::from(share.forgotten));
                total.destinations = total.destinations.saturating_add(1);
            }
        }
        let mut totals: Vec<(IpAddr, Total)> = totals.into_iter().collect();
        totals.sort_by_key(|(address, total)| {
            (std::cmp::Reverse((total.held, total.wanting, total.forgotten)), *address)
        });
        let omitted = totals.iter().skip(MAX_PODS).fold(OmittedPods::default(), |sum, (_, total)| OmittedPods {
            pods: sum.pods.saturating_add(1),
            held: sum.held.saturating_add(total.held),
        });
        let pods = totals.into_iter().take(MAX_PODS).map(|(address, total)| {
            let (namespace, name) = self.names(address);
            let Total { held, wanting, forgotten, destinations } = total;
            PodDemand { namespace, name, address, host: self.is_host(address), held, wanting, forgotten, destinations }
        });
        (pods.collect(), omitted)
    }
}
