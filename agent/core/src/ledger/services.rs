//! What is known of rules that translate source addresses, and of NodePorts.

use std::collections::{BTreeMap, BTreeSet};

use crate::flow::Protocol;
use crate::observe::{NodePort, Outcome, RulePlace, ServiceProxy, SourceNatRule};
use crate::ports::PortRange;

/// What one snapshot showed.
#[derive(Debug, Default, Clone)]
struct Shown {
    source_nat: BTreeMap<RulePlace, SourceNatRule>,
    proxies: BTreeSet<ServiceProxy>,
    node_ports: BTreeMap<(Protocol, u16, ServiceProxy), NodePort>,
    range: Option<PortRange>,
}

impl Shown {
    /// A port may be shown twice (once for each family), and only once with its name.
    fn add(&mut self, node_port: NodePort) {
        let key = (node_port.protocol, node_port.port, node_port.proxy);
        let held = self.node_ports.entry(key).or_insert_with(|| node_port.clone());
        held.family = held.family.or(node_port.family);
        let named = node_port.service.is_some();
        if named && held.service.as_ref().is_none_or(|service| Some(service) > node_port.service.as_ref()) {
            held.service = node_port.service;
        }
    }
}

/// Rules and Services as one kind of snapshot shows them.
#[derive(Debug, Default)]
pub struct Services {
    held: Shown,
    incoming: Shown,
}

impl Services {
    pub(super) fn begin(&mut self) {
        self.incoming = Shown::default();
    }

    pub(super) fn shown_rule(&mut self, rule: SourceNatRule) {
        self.incoming.source_nat.insert(rule.place.clone(), rule);
    }

    pub(super) fn shown_proxy(&mut self, proxy: ServiceProxy) {
        self.incoming.proxies.insert(proxy);
    }

    pub(super) fn shown_node_port(&mut self, node_port: NodePort) {
        self.incoming.add(node_port);
    }

    pub(super) fn shown_range(&mut self, range: PortRange) {
        self.incoming.range = Some(range);
    }

    pub(super) fn end(&mut self, outcome: &Outcome) {
        let shown = std::mem::take(&mut self.incoming);
        match outcome {
            Outcome::Complete => self.held = shown,
            // What it shows is true, what it does not show may still be there.
            Outcome::Partial(_) => {
                self.held.source_nat.extend(shown.source_nat);
                self.held.proxies.extend(shown.proxies);
                shown.node_ports.into_values().for_each(|node_port| self.held.add(node_port));
                self.held.range = shown.range.or(self.held.range);
            }
            Outcome::Failed(_) => {}
        }
    }

    /// The rules that translate source addresses, by place.
    pub fn source_nat(&self) -> impl Iterator<Item = &SourceNatRule> {
        self.held.source_nat.values()
    }

    /// What makes Services reachable here.
    pub fn proxies(&self) -> impl Iterator<Item = ServiceProxy> {
        self.held.proxies.iter().copied()
    }

    /// The range of NodePorts that a proxy was configured with.
    pub fn node_port_range(&self) -> Option<PortRange> {
        self.held.range
    }

    /// The allocated NodePorts, by protocol and port.
    pub fn node_ports(&self) -> impl Iterator<Item = &NodePort> {
        self.held.node_ports.values()
    }
}
