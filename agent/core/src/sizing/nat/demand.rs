//! What nodes need, and what those have already that a gateway tells of.

use std::cmp::Reverse;
use std::collections::VecDeque;

use crate::model::nat::{ALIAS_FLOOR, Mode, NatSettings, static_ports};

/// What nodes need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// Each node, unless it is one of those below.
    pub each: u32,
    /// Nodes that need something else, or have something already.
    pub others: Vec<NodesDemand>,
}

/// So many nodes need so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodesDemand {
    /// How many nodes.
    pub nodes: u32,
    /// How many ports, each.
    pub ports: u32,
    /// Ports of a gateway that reserves them that each of these nodes has now, as the gateway says itself; zero where none are
    /// known.
    pub has: u32,
}

impl Demand {
    /// The same for each node.
    pub fn of_each(ports: u32) -> Self {
        Self { each: ports, others: Vec::new() }
    }

    /// The largest of a single node.
    pub fn largest(&self) -> u32 {
        self.others.iter().map(|some| some.ports).fold(self.each, u32::max)
    }

    /// Nodes that are told of by themselves.
    pub fn other_nodes(&self) -> u32 {
        self.others.iter().map(|some| some.nodes).fold(0, u32::saturating_add)
    }

    /// A node of the rest: it needs what each does, and has nothing yet.
    pub(super) fn of_the_rest(&self) -> NodesDemand {
        NodesDemand { nodes: 1, ports: self.each, has: 0 }
    }

    /// Of all that are told of by themselves, a number of ports.
    pub(super) fn sum_of_others(&self, ports: impl Fn(&NodesDemand) -> u32) -> u64 {
        let all = self.others.iter().map(|some| u64::from(some.nodes).saturating_mul(u64::from(ports(some))));
        all.fold(0, u64::saturating_add)
    }

    /// How many of those that are told of by themselves, and of so many of the `rest`, fit into the ports: those that have some
    /// keep them, then those that take least come first.
    pub(super) fn that_fit(&self, rest: u32, ports: u64, taken: impl Fn(&NodesDemand) -> u32) -> u32 {
        let rest = NodesDemand { nodes: rest, ..self.of_the_rest() };
        let mut all: Vec<(bool, u32, u32)> =
            self.others.iter().chain([&rest]).map(|some| (some.has == 0, taken(some), some.nodes)).collect();
        all.sort_unstable();
        let (fit, _left) = all.into_iter().fold((0_u32, ports), |(fit, left), (_new, each, nodes)| {
            let most = left.checked_div(u64::from(each)).map_or(nodes, |most| u32::try_from(most).unwrap_or(u32::MAX));
            let nodes = nodes.min(most);
            (fit.saturating_add(nodes), left.saturating_sub(u64::from(nodes).saturating_mul(u64::from(each))))
        });
        fit
    }

    /// The same of nodes of which so many have so many ports now, each. Who they are is not known: those that need most are
    /// taken to be those that have most.
    #[must_use]
    pub fn of_nodes_that_have(self, mut has: Vec<u32>) -> Self {
        has.retain(|ports| *ports > 0);
        has.sort_unstable_by_key(|ports| Reverse(*ports));
        let mut has = VecDeque::from(has);
        let mut groups = self.others;
        groups.sort_unstable_by_key(|group| Reverse(group.ports));
        let mut others = Vec::with_capacity(groups.len() + has.len());
        for group in groups {
            let mut nodes = group.nodes;
            while nodes > 0
                && let Some(ports) = if group.ports < self.each { has.pop_back() } else { has.pop_front() }
            {
                others.push(NodesDemand { nodes: 1, has: ports, ..group });
                nodes -= 1;
            }
            others.push(NodesDemand { nodes, ..group });
        }
        others.retain(|some| some.nodes > 0);
        others.extend(has.into_iter().map(|has| NodesDemand { nodes: 1, ports: self.each, has }));
        Self { each: self.each, others }
    }

    /// The same after the gateway's settings have changed: what nodes have then of what they have now.
    #[must_use]
    pub fn after(mut self, before: &NatSettings, after: &NatSettings) -> Self {
        for some in self.others.iter_mut().filter(|some| some.has > 0) {
            some.has = match (before.mode, after.mode) {
                // The floor holds for machines with alias ranges only, and those below it have none.
                (Mode::Static, Mode::Static) => {
                    static_ports(after.min_ports, after.alias_ranges && some.has >= ALIAS_FLOOR)
                }
                // It has grown, so that it was needed.
                (Mode::Dynamic, Mode::Dynamic) if some.has > before.dynamic_min() => some.has.min(after.dynamic_max()),
                _ => 0,
            };
        }
        self
    }
}
