//! NodePorts that are not rules: Services of IPVS, and those in the maps of Cilium (GKE: Dataplane V2).
//!
//! IPVS from `/proc/net/ip_vs`; which of its Services are NodePorts from kube-proxy's ipsets over netlink, asked only where
//! IPVS has Services and ipset is there. Cilium's maps from the bpffs, opened for reading only after their sizes were checked:
//! they are Cilium's own affair, and a map of other sizes is not read. Nothing is written and no module loaded.

use std::time::{Duration, Instant};

use headroom_core::observe::{Fact, NodePort, Outcome, ServiceProxy, Snapshot, SourceId};
use headroom_core::ports::PortRange;
use headroom_core::time::NodeTime;

use crate::clock;
use crate::root::HostRoot;
use crate::source::{Sink, Source, ended, observation};

pub mod cilium;
pub mod ipvs;

const ID: SourceId = SourceId::Services;
/// How long one round may take.
pub const ROUND_LIMIT: Duration = Duration::from_secs(3);
/// Reading may take one part in two hundred of the time.
const IDLE_PER_ROUND: u32 = 200;
/// NodePorts at most.
pub const NODE_PORTS_LIMIT: usize = 65_536;

/// What was read, and what is missing from it.
#[derive(Debug, Default)]
pub struct Reading {
    /// NodePorts.
    pub node_ports: Vec<NodePort>,
    /// Proxies that have Services here.
    pub proxies: Vec<ServiceProxy>,
    /// The range of NodePorts that one of them was configured with.
    pub range: Option<PortRange>,
    /// What was read, in words.
    pub seen: Vec<String>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

/// Reads Services, at once and then every so often.
#[derive(Debug)]
pub struct ServicesSource {
    root: HostRoot,
    range: PortRange,
    every: Duration,
    next: Option<NodeTime>,
    said: Option<Fact>,
}

impl ServicesSource {
    /// Reads at most once in `every`, and less often where it takes long. Where kube-proxy's ipsets cannot be read, Services
    /// of IPVS with a port of `range` are taken for NodePorts.
    pub fn new(root: &HostRoot, range: PortRange, every: Duration) -> Self {
        Self { root: root.clone(), range, every, next: None, said: None }
    }
}

/// Reads all there is, once.
pub fn read(root: &HostRoot, range: PortRange) -> Reading {
    let deadline = Instant::now() + ROUND_LIMIT;
    let mut reading = Reading::default();
    ipvs::read(&mut reading, root, range, deadline);
    cilium::read(&mut reading, root, deadline);
    reading.node_ports.sort();
    reading.node_ports.dedup();
    reading.bound();
    reading
}

impl Reading {
    /// Drops what is more than anybody keeps, and says so.
    fn bound(&mut self) {
        if self.node_ports.len() > NODE_PORTS_LIMIT {
            self.missing.push(format!("there are more than {NODE_PORTS_LIMIT} NodePorts"));
            self.node_ports.truncate(NODE_PORTS_LIMIT);
        }
    }

    fn outcome(&self) -> (Outcome, Fact) {
        ended((!self.seen.is_empty()).then(|| self.seen.join(", ")), &self.missing)
    }
}

impl Source for ServicesSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(ID, fact));
        let begun = clock::node_time();
        if self.next.is_none_or(|next| begun >= next) {
            emit(Fact::Begin(Snapshot::Services));
            let reading = read(&self.root, self.range);
            let (outcome, coverage) = reading.outcome();
            reading.proxies.into_iter().for_each(|proxy| emit(Fact::ServiceProxy(proxy)));
            reading.range.into_iter().for_each(|range| emit(Fact::NodePortRange(range)));
            reading.node_ports.into_iter().for_each(|node_port| emit(Fact::NodePort(node_port)));
            emit(Fact::End { snapshot: Snapshot::Services, outcome });
            let now = clock::node_time();
            self.next = Some(now.after(self.every.max(now.since(begun).saturating_mul(IDLE_PER_ROUND))));
            self.said = Some(coverage);
        }
        // Said in every round: a lane that was taken for dead is heard of again.
        self.said.iter().cloned().for_each(emit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headroom_core::flow::Protocol;
    use headroom_core::observe::RuleFamily;

    /// Exercises the bound of what is kept. If this fails, a map of another's making fills the memory, or ports are lost
    /// silently.
    #[test]
    fn node_ports_are_kept_up_to_the_bound() {
        let node_port = NodePort {
            proxy: ServiceProxy::Cilium,
            family: RuleFamily::Ip,
            protocol: Protocol::TCP,
            port: 30_080,
            service: None,
        };
        let kept = |ports: usize| {
            let mut reading = Reading { node_ports: vec![node_port.clone(); ports], ..Reading::default() };
            reading.bound();
            (reading.node_ports.len(), reading.missing)
        };
        assert_eq!(kept(NODE_PORTS_LIMIT), (NODE_PORTS_LIMIT, Vec::new()));
        let (ports, missing) = kept(NODE_PORTS_LIMIT + 1);
        assert_eq!(
            (ports, missing.as_slice()),
            (NODE_PORTS_LIMIT, ["there are more than 65536 NodePorts".to_owned()].as_slice())
        );
    }
}
