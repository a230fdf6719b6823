//! What is alive: the runtime's sandboxes and containers, and the kernel's network namespaces.
//!
//! Of each the last two rounds are kept, since nothing is called leaked before it was missing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::ids::{ContainerId, NetnsInode, PodName};
use crate::known::Known;
use crate::observe::{Namespace, Outcome, PodRoute, Runtime, Sandbox};
use crate::ports::PortRange;
use crate::time::NodeTime;

/// One answer of the container runtime.
#[derive(Debug, Clone)]
pub struct RuntimeRound {
    /// It was asked after this moment.
    pub begin: NodeTime,
    /// How the answer ended.
    pub outcome: Outcome,
    /// Ids of all sandboxes and containers it named.
    pub ids: BTreeSet<ContainerId>,
}

/// One walk over the network namespaces.
#[derive(Debug, Clone)]
pub struct NamespaceRound {
    /// It began after this moment.
    pub begin: NodeTime,
    /// How it ended.
    pub outcome: Outcome,
    /// The addresses that live namespaces carry.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that the node routes to an interface whose other end is in another namespace, and that interface.
    pub routed: BTreeMap<IpAddr, String>,
    /// Namespaces whose addresses could not be read.
    pub unreadable: usize,
}

impl NamespaceRound {
    /// Whether a namespace has the address, or the node routes it to one.
    pub fn carries(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.routed.contains_key(&address)
    }
}

/// What is alive.
#[derive(Debug, Default)]
pub struct Occupants {
    runtime: [Option<RuntimeRound>; 2],
    namespace_rounds: [Option<NamespaceRound>; 2],
    runtimes: Vec<Runtime>,
    sandboxes: Vec<Sandbox>,
    namespaces: Vec<Namespace>,
    dialled_ranges: BTreeMap<NetnsInode, PortRange>,
    incoming_runtimes: Vec<Runtime>,
    incoming_sandboxes: Vec<Sandbox>,
    incoming_ids: BTreeSet<ContainerId>,
    incoming_namespaces: Vec<Namespace>,
    incoming_routes: BTreeMap<IpAddr, String>,
}

impl Occupants {
    pub(super) fn begin_runtime(&mut self) {
        self.incoming_runtimes.clear();
        self.incoming_sandboxes.clear();
        self.incoming_ids.clear();
    }

    pub(super) fn answered(&mut self, runtime: Runtime) {
        if !self.incoming_runtimes.contains(&runtime) {
            self.incoming_runtimes.push(runtime);
        }
    }

    pub(super) fn sandbox(&mut self, sandbox: Sandbox) {
        if self.incoming_ids.insert(sandbox.id.clone()) {
            self.incoming_sandboxes.push(sandbox);
        }
    }

    pub(super) fn container(&mut self, id: ContainerId) {
        self.incoming_ids.insert(id);
    }

    pub(super) fn end_runtime(&mut self, begin: NodeTime, outcome: Outcome) {
        let mut sandboxes = std::mem::take(&mut self.incoming_sandboxes);
        let ids = std::mem::take(&mut self.incoming_ids);
        sandboxes.sort_by(|a, b| a.id.cmp(&b.id));
        let mut runtimes = std::mem::take(&mut self.incoming_runtimes);
        if !matches!(outcome, Outcome::Failed(_)) {
            runtimes.sort();
            self.runtimes = runtimes;
        }
        match &outcome {
            Outcome::Complete => self.sandboxes = sandboxes,
            // What it shows is true, what it does not show may still be there.
            Outcome::Partial(_) => {
                self.sandboxes.retain(|held| !ids.contains(&held.id));
                self.sandboxes.extend(sandboxes);
                self.sandboxes.sort_by(|a, b| a.id.cmp(&b.id));
            }
            Outcome::Failed(_) => {}
        }
        let [current, previous] = &mut self.runtime;
        *previous = current.replace(RuntimeRound { begin, outcome, ids });
    }

    pub(super) fn begin_namespaces(&mut self) {
        self.incoming_namespaces.clear();
        self.incoming_routes.clear();
    }

    pub(super) fn namespace(&mut self, namespace: Namespace) {
        if self.incoming_namespaces.iter().all(|held| held.inode != namespace.inode) {
            self.incoming_namespaces.push(namespace);
        }
    }

    pub(super) fn route(&mut self, route: PodRoute) {
        self.incoming_routes.insert(route.address, route.interface);
    }

    pub(super) fn end_namespaces(&mut self, begin: NodeTime, outcome: Outcome) {
        let mut namespaces = std::mem::take(&mut self.incoming_namespaces);
        namespaces.sort_by_key(|namespace| namespace.inode);
        let addresses = namespaces.iter().filter_map(|ns| ns.addresses.present()).flatten().copied().collect();
        let routed = std::mem::take(&mut self.incoming_routes);
        let unreadable = namespaces.iter().filter(|ns| ns.addresses.unknown().is_some()).count();
        if !matches!(outcome, Outcome::Failed(_)) {
            self.namespaces = namespaces;
            // An inode may come back as another namespace: what is gone is forgotten.
            let alive: BTreeSet<NetnsInode> = self.namespaces.iter().map(|namespace| namespace.inode).collect();
            self.dialled_ranges.retain(|inode, _| alive.contains(inode));
        }
        let [current, previous] = &mut self.namespace_rounds;
        *previous = current.replace(NamespaceRound { begin, outcome, addresses, routed, unreadable });
    }

    pub(super) fn dialled_range(&mut self, inode: NetnsInode, ephemeral: PortRange) {
        self.dialled_ranges.insert(inode, ephemeral);
    }

    /// The port range of a namespace as its sockets showed it; what is reserved in it is not known this way.
    pub fn dialled_range_of(&self, inode: NetnsInode) -> Option<PortRange> {
        self.dialled_ranges.get(&inode).copied()
    }

    /// The runtime's latest answer and the one before.
    pub fn runtime(&self) -> (Option<&RuntimeRound>, Option<&RuntimeRound>) {
        let [current, previous] = &self.runtime;
        (current.as_ref(), previous.as_ref())
    }

    /// The latest walk over the namespaces and the one before.
    pub fn namespace_rounds(&self) -> (Option<&NamespaceRound>, Option<&NamespaceRound>) {
        let [current, previous] = &self.namespace_rounds;
        (current.as_ref(), previous.as_ref())
    }

    /// The runtimes that gave the last usable answer.
    pub fn runtimes(&self) -> &[Runtime] {
        &self.runtimes
    }

    /// The pod sandboxes of the runtime's last usable answer, by id.
    pub fn sandboxes(&self) -> &[Sandbox] {
        &self.sandboxes
    }

    /// The network namespaces of the last usable walk, by inode.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Pods by address. A ready sandbox wins over one that is not.
    pub fn pods(&self) -> BTreeMap<IpAddr, &PodName> {
        let mut ready: BTreeMap<IpAddr, (bool, &PodName)> = BTreeMap::new();
        for sandbox in self.sandboxes.iter().filter(|sandbox| !sandbox.host_network) {
            let Known::Present(addresses) = &sandbox.addresses else { continue };
            for address in addresses {
                let held = ready.entry(*address).or_insert((sandbox.ready, &sandbox.pod));
                if sandbox.ready && !held.0 {
                    *held = (true, &sandbox.pod);
                }
            }
        }
        ready.into_iter().map(|(address, (_, pod))| (address, pod)).collect()
    }

    /// The node's own addresses.
    pub fn host_addresses(&self) -> BTreeSet<IpAddr> {
        let hosts = self.namespaces.iter().filter(|namespace| namespace.host);
        hosts.filter_map(|namespace| namespace.addresses.present()).flatten().copied().collect()
    }
}
