//! The laws of demand, as properties.
#![expect(clippy::indexing_slicing, reason = "helpers of tests may panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::ledger::SourceFilter;
use headroom_core::model::evaluate;
use headroom_core::model::nat::{Basis, HoldTimes, NatSettings, Profile};
use headroom_core::observe::{ConntrackEntry, ConntrackTcpState, TcpCounter};
use headroom_core::report::NatReport;
use headroom_core::time::{NodeTime, Now, WallTime};
use proptest::prelude::*;

#[path = "node/pods.rs"]
mod node;

use node::{Node, counter, entry};

const STATES: [ConntrackTcpState; 6] = [
    ConntrackTcpState::SynSent,
    ConntrackTcpState::SynRecv,
    ConntrackTcpState::Established,
    ConntrackTcpState::FinWait,
    ConntrackTcpState::TimeWait,
    ConntrackTcpState::Close,
];

fn outside(host: u8) -> Endpoint {
    Endpoint::new(IpAddr::from([203, 0, 113, host]), 443)
}

/// An entry of few hosts and ports, so that both collide often; host 0 is not in scope.
fn flow(port: u16, host: u8, state: usize, silent: u32) -> ConntrackEntry {
    let to = if host == 0 { Endpoint::new(IpAddr::from([10, 9, 9, 9]), 443) } else { outside(host) };
    let tcp = STATES[state % STATES.len()];
    let timeout = match tcp {
        ConntrackTcpState::Established => 432_000,
        ConntrackTcpState::Close => 10,
        _ => 120,
    };
    entry(port, to, tcp, u32::saturating_sub(timeout, silent))
}

/// A table: one entry for each source port and host.
fn table() -> impl Strategy<Value = Vec<ConntrackEntry>> {
    proptest::collection::btree_map((1_u16..12, 0_u8..4), (0_usize..6, 0_u32..2000), 0..40).prop_map(|flows| {
        flows.into_iter().map(|((port, host), (state, silent))| flow(port, host, state, silent)).collect()
    })
}

fn node(table: &[ConntrackEntry], hold: HoldTimes) -> Node {
    let mut node = Node::new();
    if let Some(nat) = &mut node.policy.nat {
        nat.hold = hold;
    }
    let scope = node.policy.scope(&NatSettings::of(Profile::Gcp, Basis::Assumed));
    let ledger = std::mem::replace(&mut node.ledger, headroom_core::ledger::Ledger::new(Default::default()));
    node.ledger = ledger.telling_sources_apart(SourceFilter { scope, hold });
    node.dump(10_000, table.iter().copied());
    node
}

fn nat(table: &[ConntrackEntry], hold: HoldTimes) -> NatReport {
    node(table, hold).report(10_000).nat
}

fn held(nat: &NatReport) -> BTreeMap<(Protocol, IpAddr, u16), u32> {
    nat.destinations.iter().map(|row| ((row.protocol, row.address, row.port), row.held)).collect()
}

fn hold_times() -> impl Strategy<Value = HoldTimes> {
    (0_u64..300, 0_u64..120, 0_u64..120, 1_u64..2500).prop_map(|(time_wait, reset, transitory, idle)| HoldTimes {
        tcp_time_wait: Duration::from_secs(time_wait),
        tcp_reset: Duration::from_secs(reset),
        tcp_transitory: Duration::from_secs(transitory),
        tcp_established_idle: Duration::from_secs(idle),
        ..HoldTimes::default()
    })
}

proptest! {
    /// If this fails, a node is told to need more ports than it has flows.
    #[test]
    fn demand_never_exceeds_flows(table in table(), hold in hold_times()) {
        let nat = nat(&table, hold);
        let in_scope = table.iter().filter(|entry| entry.destination.address != IpAddr::from([10, 9, 9, 9])).count();
        let flows = u32::try_from(in_scope).unwrap();
        prop_assert!(nat.demand.tcp.ports.unwrap() <= flows);
        let all: u32 = nat.destinations.iter().filter(|row| row.in_scope).map(|row| row.held + row.wanting).sum();
        prop_assert!(all <= flows, "{} of {}", all, flows);
        for row in &nat.destinations {
            let to_it = table.iter().filter(|entry| entry.destination.address == row.address).count();
            let counted = row.held + row.wanting + row.forgotten.unwrap();
            prop_assert!(counted <= u32::try_from(to_it).unwrap(), "{:?}", row);
            let by_pod: u32 = row.pods.iter().map(|pod| pod.held).sum();
            prop_assert_eq!(by_pod, row.held);
        }
    }

    /// The same where connections are counted, not listed: what is held was opened, what is wanted was tried.
    #[test]
    fn counted_demand_never_exceeds_what_was_attempted(
        opened in 0_u64..50, closed in 0_u64..50, reset in 0_u64..50, failed in 0_u64..20, later in 0_u64..200,
    ) {
        let closed = closed.min(opened);
        let reset = reset.min(opened - closed);
        let mut node = Node::new();
        node.count(1000, [counter(0, 0, 0, 0)]);
        let last = TcpCounter { given_up: failed, timed_out: 0, ..counter(opened, closed, reset, failed) };
        node.count(1001, [last]);
        let demand = node.report(1001 + later).nat.demand.tcp.ports.unwrap();
        prop_assert!(u64::from(demand) <= opened + failed);
        prop_assert!(u64::from(demand) >= opened - closed - reset, "open ones are held as long as they are open");
    }

    /// If this fails, a NAT that keeps ports for longer is thought to need fewer of them.
    #[test]
    fn demand_grows_with_the_hold_times(table in table(), shorter in hold_times(), longer in hold_times()) {
        let longer = HoldTimes {
            tcp_time_wait: shorter.tcp_time_wait.max(longer.tcp_time_wait),
            tcp_reset: shorter.tcp_reset.max(longer.tcp_reset),
            tcp_transitory: shorter.tcp_transitory.max(longer.tcp_transitory),
            tcp_established_idle: shorter.tcp_established_idle.max(longer.tcp_established_idle),
            ..shorter
        };
        let (short, long) = (nat(&table, shorter), nat(&table, longer));
        prop_assert!(short.demand.tcp.ports <= long.demand.tcp.ports);
        let held_long = held(&long);
        for (destination, ports) in held(&short) {
            prop_assert!(ports <= held_long[&destination], "{:?}", destination);
        }
        prop_assert!(short.demand.tcp.endpoint_independent.unwrap().ports <= long.demand.tcp.endpoint_independent.unwrap().ports);
    }

    /// What is true of endpoint-independent mapping: it needs no more ports than there are flows, and no fewer than flows that
    /// are open to one destination at the same time. It is not true that it needs more than the other mapping, see below.
    #[test]
    fn distinct_sources_lie_between_open_flows_of_a_destination_and_all_flows(table in table(), hold in hold_times()) {
        let nat = nat(&table, hold);
        let sources = nat.demand.tcp.endpoint_independent.clone().unwrap();
        let ports = sources.ports.unwrap();
        let open = nat.destinations.iter().filter(|row| row.in_scope).map(|row| row.active).max().unwrap_or_default();
        prop_assert!(open <= ports && ports <= sources.at_most, "{} {:?}", open, sources);
        prop_assert!(sources.at_least <= ports && ports <= sources.at_most, "{:?}", sources);
        let distinct: BTreeSet<u16> = table.iter().map(|entry| entry.translated.port).collect();
        prop_assert!(ports <= u32::try_from(distinct.len()).unwrap());
    }

    /// If this fails, a clock that is set right makes ports appear or vanish.
    #[test]
    fn a_wall_clock_that_jumps_changes_nothing(table in table(), jumps in proptest::collection::vec(any::<i64>(), 1..5)) {
        let (mut still, mut jumping) = (node(&table, HoldTimes::default()), node(&table, HoldTimes::default()));
        for (second, wall) in (10_000_u64..).zip(jumps) {
            let at = NodeTime::from_secs(second);
            let steady = WallTime::from_secs(1_800_000_000);
            let before = evaluate(&still.ledger, &mut still.memory, &still.policy, Now { node: at, wall: steady });
            let wall = WallTime::from_millis(wall / 1_000_000);
            let after = evaluate(&jumping.ledger, &mut jumping.memory, &jumping.policy, Now { node: at, wall });
            prop_assert_eq!(before.nat, after.nat);
        }
    }
}

/// Neither mapping needs more than the other in general.
#[test]
fn endpoint_independent_mapping_may_need_more_or_less() {
    let tcp = |nat: &NatReport| {
        let worst = nat.demand.tcp.ports.unwrap();
        (worst, nat.demand.tcp.endpoint_independent.clone().unwrap())
    };
    // Three destinations with a source each: one port serves them all, but not if it is bound to its source.
    let spread = nat(&[flow(1, 1, 2, 10), flow(2, 2, 2, 10), flow(3, 3, 2, 10)], HoldTimes::default());
    assert_eq!((tcp(&spread).0, tcp(&spread).1.ports), (1, Some(3)));

    // One source port, used again as soon as the kernel let it: the NAT holds a port for each of the two connections, while a
    // mapping of the source is one.
    let mut again = node(&[], HoldTimes::default());
    again.count(9_000, [counter(0, 0, 0, 0)]);
    again.count(9_990, [TcpCounter { destination: outside(1), ..counter(2, 1, 0, 0) }]);
    again.dump(10_000, [flow(1, 1, 2, 5)]);
    let again = again.report(10_000).nat;
    assert_eq!((tcp(&again).0, tcp(&again).1.ports), (2, Some(1)));
}

/// Where source ports are not told apart, the report says what is certain, and why there is no number.
#[test]
fn distinct_sources_are_bounded_where_they_are_not_known() {
    let mut node = Node::new();
    node.dump(10_000, [flow(1, 1, 2, 10), flow(2, 1, 2, 10), flow(1, 2, 2, 10)]);
    let sources = node.report(10_000).nat.demand.tcp.endpoint_independent.unwrap();
    assert_eq!((sources.ports, sources.at_least, sources.at_most), (None, 2, 3));
    assert!(sources.basis.contains("only where the NAT is said to map"), "{}", sources.basis);

    let mut counted = Node::new();
    counted.count(1000, [counter(0, 0, 0, 0)]);
    counted.count(1001, [counter(5, 0, 0, 0)]);
    let sources = counted.report(1002).nat.demand.tcp.endpoint_independent.unwrap();
    assert_eq!((sources.ports, sources.at_least, sources.at_most), (None, 5, 5));
    assert!(sources.basis.contains("only conntrack knows"), "{}", sources.basis);
}

/// A NAT that maps sources is judged by them.
#[test]
fn with_endpoint_independent_mapping_sources_are_compared_with_the_allocation() {
    let mut node = node(&[], HoldTimes::default());
    node.policy.nat.as_mut().unwrap().endpoint_independent = Some(true);
    // 60 sources to 60 destinations: each destination has one.
    node.dump(10_000, (1..=60_u8).map(|number| flow(u16::from(number), number, 2, 10)));
    let report = node.report(10_000);
    assert_eq!(report.nat.demand.tcp.ports, Some(60));
    let found = report.findings.iter().find(|found| found.title.contains("over all destinations")).unwrap();
    assert!(found.title.contains("60 tcp source ports hold 60 of 64 NAT ports (93 %)"), "{}", found.title);
}
