//! Which NodePorts are allocated, by whom, and whether a collision with one does harm.

use std::collections::BTreeMap;

use crate::flow::Protocol;
use crate::ledger::Ledger;
use crate::model::policy::Policy;
use crate::observe::{NodePort, RuleFamily, ServiceProxy, SourceId};
use crate::ports::PortRange;
use crate::report::{AllocatedBasis, NodePortBasis, NodePortReport, ProxyReport};

/// NodePorts listed in a report at most.
const MAX_LISTED: usize = 1024;

/// An allocated NodePort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation<'a> {
    /// Whose packets it is for; the user names ports of both.
    pub family: RuleFamily,
    /// Its Service, where that is written down.
    pub service: Option<&'a str>,
    /// Who serves it; empty if it is known from the user only.
    pub proxies: Vec<ServiceProxy>,
    /// The user named it.
    pub given: bool,
}

/// The NodePorts that are allocated: those of rules and tables, and those the user named.
#[derive(Debug, Default)]
pub struct AllocatedNodePorts<'a> {
    ports: BTreeMap<(Protocol, u16), Allocation<'a>>,
    proxies: Vec<ServiceProxy>,
    /// The range that a proxy was configured with.
    range: Option<PortRange>,
    /// What tells that these are all; none if nothing does.
    basis: Option<AllocatedBasis>,
}

impl ServiceProxy {
    /// Whether a reply to a connection of this node whose source port is an allocated NodePort gets lost, and why.
    pub fn steals_replies(self) -> (bool, &'static str) {
        match self {
            Self::Cilium => (
                true,
                "its eBPF program looks Services up by address and port when a packet enters the node, before conntrack \
                 could translate it back: a reply to a source port that is an allocated NodePort is sent to that Service",
            ),
            Self::Ipvs => (
                true,
                "IPVS takes a packet to an address of the node for a new connection to the Service of that port, SYN-ACKs \
                 included, after conntrack has translated it back: a reply to a connection that the node itself opened from \
                 an allocated NodePort goes to that Service (kubernetes issue 139276 has one to which masquerading gave it); \
                 replies to what it forwards for pods are not for the node any more",
            ),
            Self::Iptables | Self::Nftables => (
                false,
                "its rules are asked for the first packet of a connection only: a reply belongs to a connection that \
                 conntrack knows, and is translated back without a look at NodePorts",
            ),
        }
    }
}

impl<'a> AllocatedNodePorts<'a> {
    /// All that is known of them.
    pub fn of(ledger: &'a Ledger, policy: &Policy) -> Self {
        let mut ports: BTreeMap<(Protocol, u16), Allocation<'a>> = BTreeMap::new();
        let observed = ledger.rules().node_ports().chain(ledger.services().node_ports());
        for NodePort { proxy, family, protocol, port, service } in observed {
            let new = || Allocation { family: *family, service: None, proxies: Vec::new(), given: false };
            let allocation = ports.entry((*protocol, *port)).or_insert_with(new);
            allocation.family = allocation.family.or(*family);
            allocation.service = allocation.service.or(service.as_deref());
            if !allocation.proxies.contains(proxy) {
                allocation.proxies.push(*proxy);
            }
        }
        for (protocol, port) in &policy.allocated_node_ports {
            let given = Allocation { family: RuleFamily::Inet, service: None, proxies: Vec::new(), given: true };
            ports
                .entry((*protocol, *port))
                .and_modify(|allocation| (allocation.family, allocation.given) = (RuleFamily::Inet, true))
                .or_insert(given);
        }
        let seen = ledger.rules().proxies().chain(ledger.services().proxies()).chain(policy.service_proxy);
        let mut proxies: Vec<ServiceProxy> = seen.collect();
        proxies.sort_unstable();
        proxies.dedup();
        // Of a proxy that is named and nowhere seen, no NodePort is.
        let seen = |named| ledger.rules().proxies().chain(ledger.services().proxies()).any(|proxy| proxy == named);
        let read = [SourceId::Rules, SourceId::Services].into_iter().all(|source| ledger.has_read(source));
        let all_seen = read && policy.service_proxy.is_none_or(seen);
        let given = !policy.allocated_node_ports.is_empty();
        let basis = match (given, all_seen) {
            (true, _) => Some(AllocatedBasis::Given),
            (false, true) => Some(AllocatedBasis::Seen),
            (false, false) => None,
        };
        Self { ports, proxies, range: ledger.services().node_port_range(), basis }
    }

    /// The NodePort, if it is allocated for packets of that family.
    pub fn get(&self, family: RuleFamily, protocol: Protocol, port: u16) -> Option<&Allocation<'a>> {
        self.ports.get(&(protocol, port)).filter(|allocation| allocation.family.meets(family))
    }

    /// All of a protocol and family, each as a range of one.
    pub fn of_protocol(&self, family: RuleFamily, protocol: Protocol) -> impl Iterator<Item = PortRange> + '_ {
        let ports = self.ports.range((protocol, 0)..=(protocol, u16::MAX));
        let ports = ports.filter(move |(_, allocation)| allocation.family.meets(family));
        ports.filter_map(|((_, port), _)| PortRange::new(*port, *port))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ports.len()
    }

    /// Whether every source that could show one was read, or the user named all of them: only then does none mean none.
    pub fn is_known(&self) -> bool {
        self.basis.is_some()
    }

    /// What tells that these are all; `None` if nothing does.
    pub fn basis(&self) -> Option<AllocatedBasis> {
        self.basis
    }

    /// How many are served here that the user's list lacks; none without a list.
    pub fn not_given(&self) -> usize {
        self.ports.values().filter(|allocation| self.lacks(allocation)).count()
    }

    /// Whether the user's list should name it, and does not.
    fn lacks(&self, allocation: &Allocation<'_>) -> bool {
        self.basis == Some(AllocatedBasis::Given) && !allocation.given
    }

    /// What makes Services reachable here; empty if nothing was recognised.
    pub fn proxies(&self) -> &[ServiceProxy] {
        &self.proxies
    }

    /// The proxy with which a collision does harm, if there is one.
    pub fn harmful(&self) -> Option<ServiceProxy> {
        self.proxies.iter().copied().find(|proxy| proxy.steals_replies().0)
    }

    /// Whether answers get lost to connections of the node itself alone: with IPVS, and no Cilium beside it.
    pub fn spares_pods(&self) -> bool {
        let harmful = |proxy: &&ServiceProxy| proxy.steals_replies().0;
        let mut harmful = self.proxies.iter().filter(harmful).peekable();
        harmful.peek().is_some() && harmful.all(|proxy| *proxy == ServiceProxy::Ipvs)
    }

    /// Whether a packet counts by the port that the node's own connection was opened from: IPVS sees it when conntrack has translated
    /// it back already.
    pub fn counts_by_source(&self) -> bool {
        self.proxies.contains(&ServiceProxy::Ipvs)
    }

    /// The NodePort range: as configured, as a proxy was, or the default, widened to what was seen outside of it.
    pub fn range(&self, policy: &Policy) -> (PortRange, NodePortBasis) {
        if policy.node_ports_given {
            return (policy.node_ports, NodePortBasis::Configured);
        }
        if let Some(range) = self.range {
            return (range, NodePortBasis::Proxy);
        }
        let range = policy.node_ports;
        // What the user names may be any port, and IPVS tells NodePorts from others by the range alone.
        let shown = |of: &Allocation<'_>| of.proxies.iter().any(|proxy| *proxy != ServiceProxy::Ipvs);
        let seen = self.ports.iter().filter(|(_, of)| shown(of)).map(|((_, port), _)| *port);
        let (first, last) =
            seen.fold((range.first(), range.last()), |(first, last), port| (first.min(port), last.max(port)));
        match PortRange::new(first, last).filter(|seen| *seen != range) {
            Some(seen) => (seen, NodePortBasis::Observed),
            None => (range, NodePortBasis::Default),
        }
    }

    pub(super) fn report(&self) -> (Vec<ProxyReport>, Vec<NodePortReport>) {
        let proxies = self.proxies.iter().map(|proxy| {
            let (harmful, why) = proxy.steals_replies();
            ProxyReport { proxy: *proxy, harmful, why: why.to_owned() }
        });
        // Those that a given list lacks are told first: there are few of them, or the list is worth nothing.
        let (lacking, others): (Vec<_>, Vec<_>) = self.ports.iter().partition(|(_, allocation)| self.lacks(allocation));
        let ports =
            lacking.into_iter().chain(others).take(MAX_LISTED).map(|((protocol, port), allocation)| NodePortReport {
                family: allocation.family,
                protocol: *protocol,
                port: *port,
                service: allocation.service.map(str::to_owned),
                proxies: allocation.proxies.clone(),
                given: allocation.given,
            });
        (proxies.collect(), ports.collect())
    }
}
