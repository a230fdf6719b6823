//! Flows whose source port was translated into the NodePort range, or was inside it from the beginning where the node itself opened
//! them, one by one: which port each has, and whether it is answered.
//!
//! They are few (one in 23 where the kernel chooses freely), and only their ports tell whether one is an allocated NodePort.

use std::collections::BTreeMap;

use super::Scope;
use super::census::silent_secs;
use crate::flow::{Destination, Endpoint, Protocol};
use crate::observe::{ConntrackEntry, ConntrackTimeouts, FlowKey};
use crate::time::NodeTime;

/// Flows kept at most, some 150 bytes each: twice as many as a range of 2,768 has ports. More are counted.
const MAX_NODE_PORT_FLOWS: usize = 8192;

/// One such flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePortFlow {
    /// `CTA_ID`.
    id: u32,
    /// Where it goes, after DNAT.
    pub destination: Endpoint,
    /// It was not translated into the range: the port that it was opened from is inside.
    pub by_source: bool,
    /// What the destination takes for its source.
    pub translated: Endpoint,
    /// An answer has come, as of the last dump; unknown for one that began since.
    pub answered: Option<bool>,
    /// No packet of it for so long, as its timer told at the last dump.
    pub silent_secs: Option<u32>,
    /// When it was first seen, and when last.
    pub seen: (NodeTime, NodeTime),
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct NodePortFlows {
    flows: BTreeMap<FlowKey, NodePortFlow>,
    incoming: BTreeMap<FlowKey, NodePortFlow>,
    untold: Untold,
    incoming_untold: Untold,
}

/// Flows that found no room: a dump of UDP alone counts those of UDP anew.
#[derive(Debug, Clone, Copy, Default)]
struct Untold {
    udp: u64,
    rest: u64,
}

impl Untold {
    fn add(&mut self, protocol: Protocol, more: u64) {
        let count = if protocol == Protocol::UDP { &mut self.udp } else { &mut self.rest };
        *count = count.saturating_add(more);
    }
}

impl NodePortFlows {
    pub(super) fn begin_dump(&mut self) {
        self.incoming.clear();
        self.incoming_untold = Untold::default();
    }

    /// One that a dump shows.
    pub(super) fn dumped(
        &mut self,
        entry: &ConntrackEntry,
        by_source: bool,
        at: NodeTime,
        timeouts: &ConntrackTimeouts,
    ) {
        if self.incoming.len() >= MAX_NODE_PORT_FLOWS {
            self.incoming_untold.add(entry.key.protocol, 1);
            return;
        }
        let known = self.flows.get(&entry.key).filter(|known| known.id == entry.id);
        let flow = NodePortFlow {
            answered: Some(entry.is_answered()),
            silent_secs: silent_secs(entry, timeouts),
            seen: (known.map_or(at, |known| known.seen.0), at),
            ..begun(entry, by_source, at)
        };
        self.incoming.insert(entry.key, flow);
    }

    /// One that begins.
    pub(super) fn begun(&mut self, entry: &ConntrackEntry, by_source: bool, at: NodeTime) {
        if self.flows.len() < MAX_NODE_PORT_FLOWS {
            self.flows.insert(entry.key, begun(entry, by_source, at));
        } else {
            self.untold.add(entry.key.protocol, 1);
        }
    }

    /// One that is gone. An older one with the same key does not take its successor with it.
    pub(super) fn ended(&mut self, entry: &ConntrackEntry) {
        if self.flows.get(&entry.key).is_some_and(|flow| flow.id == entry.id) {
            self.flows.remove(&entry.key);
        }
    }

    /// A dump that was read to its end replaces what was known of what it tells of, half of one adds to it.
    pub(super) fn end_dump(&mut self, scope: Scope, complete: bool) {
        let incoming = std::mem::take(&mut self.incoming);
        if complete && scope == Scope::Everything {
            self.flows = incoming;
            self.untold = self.incoming_untold;
            return;
        }
        if complete {
            self.flows.retain(|key, _| !scope.includes(key.protocol));
            self.untold.udp = self.incoming_untold.udp;
        }
        for (key, flow) in incoming {
            if self.flows.len() < MAX_NODE_PORT_FLOWS || self.flows.contains_key(&key) {
                self.flows.insert(key, flow);
            } else if complete {
                self.untold.add(key.protocol, 1);
            }
        }
    }

    /// Each of them: from whom, where to, and the rest.
    pub fn iter(&self) -> impl Iterator<Item = (Endpoint, Destination, &NodePortFlow)> {
        self.flows.iter().map(|(key, flow)| {
            let destination = Destination { protocol: key.protocol, endpoint: flow.destination };
            (key.source, destination, flow)
        })
    }

    /// How many more there are that found no room here.
    pub fn untold(&self) -> u64 {
        self.untold.udp.saturating_add(self.untold.rest)
    }
}

fn begun(entry: &ConntrackEntry, by_source: bool, at: NodeTime) -> NodePortFlow {
    NodePortFlow {
        id: entry.id,
        destination: entry.destination,
        by_source,
        translated: entry.translated,
        answered: None,
        silent_secs: None,
        seen: (at, at),
    }
}
