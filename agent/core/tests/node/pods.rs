//! A node under test, for the tests of demand.
#![allow(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::IpAddr;

use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::known::Known;
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::nat::{Basis, NatSettings, Profile};
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{
    ConntrackEntry, ConntrackTcpState, CoverageDetail, Fact, FlowKey, Observation, Outcome, Snapshot, SourceId,
    TcpCounter,
};
use headroom_core::report::{DestinationReport, Report};
use headroom_core::time::{NodeTime, Now, WallTime};

pub(crate) const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 64, 0, 5));

pub(crate) fn outside(port: u16) -> Endpoint {
    Endpoint::new(IpAddr::from([203, 0, 113, 7]), port)
}

/// A node under test: facts are put in at a second, the report is taken at another.
pub(crate) struct Node {
    pub(crate) ledger: Ledger,
    pub(crate) memory: Memory,
    pub(crate) policy: Policy,
}

impl Node {
    pub(crate) fn new() -> Self {
        let nat = NatSettings {
            alias_ranges: false,
            min_ports: Some(64),
            ..NatSettings::of(Profile::Gcp, Basis::Configured)
        };
        let policy = Policy { nat: Some(nat), ..Policy::default() };
        Self { ledger: Ledger::new(LedgerLimits::default()), memory: Memory::default(), policy }
    }

    pub(crate) fn put(&mut self, second: u64, source: SourceId, fact: Fact) {
        self.ledger.apply(Observation { at: NodeTime::from_secs(second), source, fact });
    }

    pub(crate) fn works(&mut self, source: SourceId) {
        self.put(
            0,
            source,
            Fact::Coverage(Known::Present(CoverageDetail {
                how: "test".to_owned(),
                degraded: None,
                as_of_dump: false,
            })),
        );
    }

    pub(crate) fn dump(&mut self, second: u64, entries: impl IntoIterator<Item = ConntrackEntry>) {
        self.works(SourceId::Conntrack);
        self.put(second, SourceId::Conntrack, Fact::Begin(Snapshot::Conntrack));
        for entry in entries {
            self.put(second, SourceId::Conntrack, Fact::Flow(entry));
        }
        let end = Fact::End { snapshot: Snapshot::Conntrack, outcome: Outcome::Complete };
        self.put(second, SourceId::Conntrack, end);
    }

    pub(crate) fn count(&mut self, second: u64, counters: impl IntoIterator<Item = TcpCounter>) {
        self.works(SourceId::Tcp);
        self.put(second, SourceId::Tcp, Fact::Begin(Snapshot::TcpCounters));
        for counter in counters {
            self.put(second, SourceId::Tcp, Fact::TcpCounter(counter));
        }
        self.put(second, SourceId::Tcp, Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
    }

    pub(crate) fn report(&mut self, second: u64) -> Report {
        let wall = WallTime::from_secs(1_800_000_000 + i64::try_from(second).unwrap());
        evaluate(&self.ledger, &mut self.memory, &self.policy, Now { node: NodeTime::from_secs(second), wall })
    }

    pub(crate) fn destination(&mut self, second: u64, port: u16) -> DestinationReport {
        let report = self.report(second);
        report.nat.destinations.into_iter().find(|listed| listed.port == port).unwrap()
    }
}

pub(crate) fn entry(source_port: u16, destination: Endpoint, tcp: ConntrackTcpState, remaining: u32) -> ConntrackEntry {
    let source = Endpoint::new(POD, source_port);
    ConntrackEntry {
        key: FlowKey { protocol: Protocol::TCP, zone: 0, source, dialled: destination },
        id: u32::from(source_port),
        destination,
        translated: Endpoint::new(IpAddr::from([10, 0, 0, 2]), source_port),
        replied: tcp != ConntrackTcpState::SynSent,
        assured: tcp != ConntrackTcpState::SynSent,
        tcp: Some(tcp),
        remaining_secs: Some(remaining),
    }
}

pub(crate) fn udp(source_port: u16, remaining: u32, assured: bool) -> ConntrackEntry {
    let mut entry = entry(source_port, outside(53), ConntrackTcpState::None, remaining);
    entry.key.protocol = Protocol::UDP;
    ConntrackEntry { tcp: None, replied: true, assured, ..entry }
}

pub(crate) fn counter(opened: u64, closed: u64, reset: u64, failed: u64) -> TcpCounter {
    TcpCounter {
        attempted: opened + failed,
        opened,
        closed,
        reset,
        timed_out: failed,
        syn_retransmitted: failed * 2,
        ..TcpCounter::zero(outside(443), POD)
    }
}

/// Socket tables that were read at that second.
pub(crate) fn sockets(node: &mut Node, second: u64, sockets: impl IntoIterator<Item = headroom_core::observe::Socket>) {
    node.works(SourceId::Sockets);
    node.put(second, SourceId::Sockets, Fact::Begin(Snapshot::Sockets));
    for socket in sockets {
        node.put(second, SourceId::Sockets, Fact::Socket(socket));
    }
    node.put(second, SourceId::Sockets, Fact::End { snapshot: Snapshot::Sockets, outcome: Outcome::Complete });
}

/// The network namespaces at that second.
pub(crate) fn namespaces(
    node: &mut Node,
    second: u64,
    all: impl IntoIterator<Item = headroom_core::observe::Namespace>,
) {
    node.works(SourceId::Namespaces);
    node.put(second, SourceId::Namespaces, Fact::Begin(Snapshot::Namespaces));
    for namespace in all {
        node.put(second, SourceId::Namespaces, Fact::Namespace(namespace));
    }
    node.put(second, SourceId::Namespaces, Fact::End { snapshot: Snapshot::Namespaces, outcome: Outcome::Complete });
}
