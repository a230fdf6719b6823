//! The laws of the ledger, as properties.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::ids::{ContainerId, NetnsInode};
use headroom_core::known::{Known, Why};
use headroom_core::ledger::{Ledger, LedgerLimits, Spans};
use headroom_core::observe::{
    ConntrackCounter, ConntrackEntry, ConntrackTcpState, Fact, FlowKey, Holder, Observation, Outcome, Reservation,
    Snapshot, Socket, SocketState, SocketTimer, SourceId, TcpCounter,
};
use headroom_core::time::{NodeTime, WallTime};
use proptest::prelude::*;

fn at(millis: u64, fact: Fact) -> Observation {
    Observation { at: NodeTime::from_nanos(millis * 1_000_000), source: SourceId::Conntrack, fact }
}

fn endpoint(host: u8, port: u16) -> Endpoint {
    Endpoint::new(IpAddr::from([203, 0, 113, host]), port)
}

/// An open TCP flow; few hosts and ports, so that keys collide often.
fn flow(source_port: u16, host: u8, id: u32) -> ConntrackEntry {
    let source = Endpoint::new(IpAddr::from([10, 0, 0, 1]), source_port);
    let destination = endpoint(host, 443);
    ConntrackEntry {
        key: FlowKey { protocol: Protocol::TCP, zone: 0, source, dialled: destination },
        id,
        destination,
        translated: source,
        replied: true,
        assured: true,
        tcp: Some(ConntrackTcpState::Established),
        remaining_secs: Some(431_999),
    }
}

/// Counters of the pair that [`flow`] makes with host 1.
fn counter(inserted: u64, ended: u64) -> ConntrackCounter {
    let source = IpAddr::from([10, 0, 0, 1]);
    ConntrackCounter {
        protocol: Protocol::TCP,
        destination: endpoint(1, 443),
        source,
        translated: source,
        born: 1,
        inserted,
        ended_time_wait: ended,
        ended_reset: 0,
        ended_unanswered: 0,
        ended_other: 0,
        node_port_inserted: 0,
        node_port_ended: 0,
    }
}

/// The same over UDP, to a port of its own.
fn datagrams(flow: &ConntrackEntry) -> ConntrackEntry {
    let destination = Endpoint::new(flow.destination.address, 53);
    let key = FlowKey { protocol: Protocol::UDP, dialled: destination, ..flow.key };
    ConntrackEntry { key, destination, tcp: None, ..*flow }
}

fn dump(ledger: &mut Ledger, from: u64, flows: &[ConntrackEntry], outcome: Outcome) {
    dump_of(Snapshot::Conntrack, ledger, from, flows, outcome);
}

fn dump_of(snapshot: Snapshot, ledger: &mut Ledger, from: u64, flows: &[ConntrackEntry], outcome: Outcome) {
    ledger.apply(at(from, Fact::Begin(snapshot)));
    for entry in flows {
        ledger.apply(at(from + 1, Fact::Flow(*entry)));
    }
    ledger.apply(at(from + 2, Fact::End { snapshot, outcome }));
}

/// How many flows are in the table, per destination.
type Live = BTreeMap<Endpoint, u64>;

fn live(ledger: &Ledger) -> Live {
    let rows = ledger.conntrack().iter().map(|(pair, cohorts)| (pair.destination.endpoint, cohorts.live()));
    rows.filter(|(_, live)| *live > 0).collect()
}

fn some_flows() -> impl Strategy<Value = Vec<ConntrackEntry>> {
    proptest::collection::btree_map((1u16..12, 1u8..4), 1u32..4, 0..20)
        .prop_map(|flows| flows.into_iter().map(|((port, host), id)| flow(port, host, id)).collect())
}

fn truth<'a>(flows: impl IntoIterator<Item = &'a ConntrackEntry>) -> Live {
    let mut live = Live::new();
    for entry in flows {
        *live.entry(entry.destination).or_default() += 1;
    }
    live
}

proptest! {
    /// Exercises law 1. If this fails, flows that ended unseen are counted for ever, or live ones are forgotten.
    #[test]
    fn a_complete_dump_replaces_what_was_held(before in some_flows(), after in some_flows()) {
        let mut ledger = Ledger::new(LedgerLimits::default());
        dump(&mut ledger, 1000, &before, Outcome::Complete);
        dump(&mut ledger, 2000, &after, Outcome::Complete);
        prop_assert_eq!(live(&ledger), truth(&after));
    }

    /// Exercises dumps that leave TCP out. If this fails, they take TCP flows for ended, or bring them back.
    #[test]
    fn a_dump_of_udp_replaces_udp_alone(before in some_flows(), udp_before in some_flows(), udp_after in some_flows(), whole in any::<bool>()) {
        let (udp_before, udp_after): (Vec<_>, Vec<_>) =
            (udp_before.iter().map(datagrams).collect(), udp_after.iter().map(datagrams).collect());
        let mut ledger = Ledger::new(LedgerLimits::default());
        dump(&mut ledger, 0, &[&before[..], &udp_before].concat(), Outcome::Complete);
        let outcome = if whole { Outcome::Complete } else { Outcome::Failed(Why::new("cut")) };
        dump_of(Snapshot::ConntrackUdp, &mut ledger, 10, &udp_after, outcome);
        let udp = if whole { &udp_after } else { &udp_before };
        prop_assert_eq!(live(&ledger), truth(before.iter().chain(udp)));
        // Each is known for what it is: told again nothing changes, and each ends once.
        for entry in before.iter().chain(udp) {
            ledger.apply(at(20, Fact::Flow(*entry)));
        }
        prop_assert_eq!(live(&ledger), truth(before.iter().chain(udp)));
        for entry in before.iter().chain(udp) {
            ledger.apply(at(21, Fact::FlowEnded(*entry)));
        }
        prop_assert_eq!(ledger.conntrack().live(), 0);
    }

    /// Exercises law 1. If this fails, the report depends on the order in which the kernel lists its table.
    #[test]
    fn the_order_inside_a_snapshot_does_not_matter(flows in some_flows().prop_flat_map(|flows| (Just(flows.clone()), Just(flows).prop_shuffle()))) {
        let (one, other) = flows;
        let (mut left, mut right) = (Ledger::new(LedgerLimits::default()), Ledger::new(LedgerLimits::default()));
        dump(&mut left, 1000, &one, Outcome::Complete);
        dump(&mut right, 1000, &other, Outcome::Complete);
        prop_assert!(left.conntrack().iter().eq(right.conntrack().iter()));
    }

    /// Exercises law 2. If this fails, a torn dump makes demand drop to what happened to be read.
    #[test]
    fn an_incomplete_dump_removes_nothing(before in some_flows(), part in some_flows(), failed in any::<bool>()) {
        let mut ledger = Ledger::new(LedgerLimits::default());
        dump(&mut ledger, 1000, &before, Outcome::Complete);
        let why = Why::new("interrupted");
        dump(&mut ledger, 2000, &part, if failed { Outcome::Failed(why) } else { Outcome::Partial(why) });
        let now = live(&ledger);
        // The part may show flows that were there before and others: failed, it counts for nothing, and otherwise as a union.
        let union: BTreeMap<_, _> = before.iter().chain(if failed { &[][..] } else { &part }).map(|entry| ((entry.key, entry.id), *entry)).collect();
        prop_assert_eq!(now, truth(union.values()));
    }

    /// Exercises law 3. If this fails, a repeated message is a second connection.
    #[test]
    fn duplicates_are_harmless(flows in some_flows(), ended in some_flows()) {
        let (mut once, mut twice) = (Ledger::new(LedgerLimits::default()), Ledger::new(LedgerLimits::default()));
        for (ledger, times) in [(&mut once, 1), (&mut twice, 2)] {
            let doubled: Vec<_> = flows.iter().flat_map(|entry| std::iter::repeat_n(*entry, times)).collect();
            dump(ledger, 1000, &doubled, Outcome::Complete);
            for entry in &ended {
                for _ in 0..times {
                    ledger.apply(at(2000, Fact::FlowEnded(*entry)));
                }
            }
        }
        prop_assert!(once.conntrack().iter().eq(twice.conntrack().iter()));
    }

    /// Exercises law 4: any moment of the dump, any history of events. If this fails, flows that open or end while the
    /// table is being read are lost or counted twice.
    #[test]
    fn a_dump_and_the_events_behind_it_give_the_truth(
        history in proptest::collection::vec((any::<bool>(), 1u16..8, 1u8..3), 0..60), cut in 0usize..60, seen in 0usize..60
    ) {
        // The truth: events in order. The dump shows the table as it was at `cut`; all events since the subscription at
        // `seen` <= `cut` arrive behind it, also those the dump has already taken into account.
        let mut table: std::collections::BTreeMap<(u16, u8), u32> = std::collections::BTreeMap::new();
        let (cut, mut id) = (cut.min(history.len()), 0);
        let seen = seen.min(cut);
        let mut at_cut = Vec::new();
        let mut events = Vec::new();
        for (index, (open, port, host)) in history.iter().enumerate() {
            if index == cut {
                at_cut = table.iter().map(|((port, host), id)| flow(*port, *host, *id)).collect();
            }
            let fact = if *open && !table.contains_key(&(*port, *host)) {
                id += 1;
                table.insert((*port, *host), id);
                let fresh = ConntrackEntry { tcp: Some(ConntrackTcpState::SynSent), replied: false, ..flow(*port, *host, id) };
                Some(Fact::Flow(fresh))
            } else {
                table.remove(&(*port, *host)).map(|id| Fact::FlowEnded(flow(*port, *host, id)))
            };
            if index >= seen {
                events.extend(fact);
            }
        }
        if cut == history.len() {
            at_cut = table.iter().map(|((port, host), id)| flow(*port, *host, *id)).collect();
        }
        let mut ledger = Ledger::new(LedgerLimits::default());
        dump(&mut ledger, 1000, &at_cut, Outcome::Complete);
        for event in events {
            ledger.apply(at(2000, event));
        }
        let table: Vec<_> = table.iter().map(|((port, host), id)| flow(*port, *host, *id)).collect();
        prop_assert_eq!(live(&ledger), truth(&table));
    }

    /// Exercises counters and a dump between two readings of them, at any moment of the dump. If this fails, what the kernel
    /// counts and what its table shows drift apart.
    #[test]
    fn a_dump_between_two_readings_gives_what_existed_before_within_what_moved(
        before in 0u64..50, early in 0u64..20, during in proptest::collection::vec(any::<bool>(), 0..20), cut in 0usize..20, later in 0u64..20
    ) {
        let mut ledger = Ledger::new(LedgerLimits::default());
        let read = |ledger: &mut Ledger, from: u64, inserted: u64, ended: u64| {
            ledger.apply(at(from, Fact::Begin(Snapshot::ConntrackCounters)));
            ledger.apply(at(from, Fact::ConntrackCounter(counter(inserted, ended))));
            ledger.apply(at(from, Fact::End { snapshot: Snapshot::ConntrackCounters, outcome: Outcome::Complete }));
        };
        // The truth: `before` existed when the counting began, `early` came before the dump; `cut` of what happened during
        // the dump happened before it reached the flows.
        let moved = |slice: &[bool]| slice.iter().fold((0_u64, 0_u64), |(came, went), insert| if *insert { (came + 1, went) } else { (came, went + 1) });
        let (came, went) = moved(&during);
        let (seen_came, seen_went) = moved(during.get(..cut).unwrap_or(&during));
        prop_assume!(before + early >= went);
        read(&mut ledger, 1000, early, 0);
        let shown = before + early + seen_came - seen_went;
        let flows: Vec<_> = (0..shown).map(|port| flow(u16::try_from(port).unwrap(), 1, 1)).collect();
        dump(&mut ledger, 2000, &flows, Outcome::Complete);
        read(&mut ledger, 3000, early + came, went);
        let counted = ledger.conntrack().live();
        let exact = before + early + came - went;
        let open = ledger.conntrack().drift().unwrap().open;
        prop_assert!(open <= came + went, "{open} of {came} and {went}");
        prop_assert!(counted.abs_diff(exact) <= open, "{counted}, not {exact} by {open}");
        if during.is_empty() {
            prop_assert_eq!(counted, exact);
        }
        // A dump in a quiet moment makes it exact, whatever was wrong before; from then on counting alone keeps it so.
        let flows: Vec<_> = (0..exact).map(|port| flow(u16::try_from(port).unwrap(), 1, 1)).collect();
        dump(&mut ledger, 4000, &flows, Outcome::Complete);
        read(&mut ledger, 5000, early + came, went);
        prop_assert_eq!(ledger.conntrack().live(), exact);
        // It was not counted wrong.
        let drift = ledger.conntrack().drift().unwrap();
        prop_assert_eq!((drift.total, drift.settled, drift.open), (0, counted.abs_diff(exact), 0));
        read(&mut ledger, 6000, early + came + later, went + exact);
        prop_assert_eq!(ledger.conntrack().live(), later);
    }

    /// Exercises keys that are retired in the kernel. If this fails, a destination that comes back is counted from the
    /// counters it had before.
    #[test]
    fn a_counter_that_was_retired_begins_from_zero(first in 1u64..100, absent: bool, second in 1u64..100) {
        let mut ledger = Ledger::new(LedgerLimits::default());
        let mut read = |from: u64, counters: &[ConntrackCounter]| {
            ledger.apply(at(from, Fact::Begin(Snapshot::ConntrackCounters)));
            for counter in counters {
                ledger.apply(at(from, Fact::ConntrackCounter(*counter)));
            }
            ledger.apply(at(from, Fact::End { snapshot: Snapshot::ConntrackCounters, outcome: Outcome::Complete }));
        };
        read(1000, &[counter(first, first)]);
        if absent {
            read(2000, &[]);
        }
        read(3000, &[ConntrackCounter { born: 2, ..counter(second, 0) }]);
        prop_assert_eq!(ledger.conntrack().live(), second);
    }

    /// Exercises the bound of the flow table. If this fails, a flood of flows eats the node's memory unnoticed.
    #[test]
    fn flows_beyond_the_bound_are_refused_and_counted(count in 0u16..40) {
        let mut ledger = Ledger::new(LedgerLimits { max_flows: 16, ..LedgerLimits::default() });
        let flows: Vec<_> = (0..count).map(|port| flow(port, 1, 1)).collect();
        dump(&mut ledger, 1000, &flows, Outcome::Complete);
        prop_assert_eq!(ledger.conntrack().live(), u64::from(count.min(16)));
        prop_assert_eq!(ledger.conntrack().refused(), u64::from(count.saturating_sub(16)));
    }

    /// Exercises the join of counters and socket tables with connections that existed before. If this fails, the agent
    /// needs to have seen every connection open to count it.
    #[test]
    fn counters_and_a_socket_table_between_them_count_every_connection_once(before in 0u32..50, opened in 0u32..50, closed in 0u32..60) {
        let closed = closed.min(before + opened);
        let source = IpAddr::from([10, 0, 0, 9]);
        let destination = endpoint(7, 443);
        let zero = TcpCounter::zero(destination, source);
        let counter =
            |opened: u32, closed: u32| TcpCounter { attempted: opened.into(), opened: opened.into(), closed: closed.into(), ..zero };
        let mut ledger = Ledger::new(LedgerLimits::default());
        let counters = |ledger: &mut Ledger, from: u64, counter: TcpCounter| {
            ledger.apply(at(from, Fact::Begin(Snapshot::TcpCounters)));
            ledger.apply(at(from, Fact::TcpCounter(counter)));
            ledger.apply(at(from + 1, Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete }));
        };
        counters(&mut ledger, 1000, counter(opened, closed));
        ledger.apply(at(2000, Fact::Begin(Snapshot::Sockets)));
        for port in 0..before + opened - closed {
            ledger.apply(at(2000, Fact::Socket(Socket {
                netns: NetnsInode(1), source: Endpoint::new(source, u16::try_from(port).unwrap()), destination,
                state: SocketState::Open, timer: SocketTimer::None, accepted: false,
            })));
        }
        ledger.apply(at(2001, Fact::End { snapshot: Snapshot::Sockets, outcome: Outcome::Complete }));
        counters(&mut ledger, 3000, counter(opened, closed));
        let open = |ledger: &Ledger| ledger.tcp().iter(NodeTime::from_secs(4), Spans::all(Duration::from_secs(1))).map(|(_, _, tally)| tally.open).sum::<u64>();
        prop_assert_eq!(open(&ledger), u64::from(before + opened - closed));
        // One more opens, all of them close: the baseline goes with them.
        counters(&mut ledger, 4000, counter(opened + 1, before + opened + 1));
        prop_assert_eq!(open(&ledger), 0);
    }

    /// Exercises brackets of reservations. If this fails, "first seen" is forgotten and nothing ever counts as leaked, or a
    /// rewritten reservation inherits the age of its predecessor.
    #[test]
    fn a_reservation_keeps_its_first_sight_until_it_changes(same in any::<bool>()) {
        let reservation = |id: &str| Fact::from(Reservation {
            store: "/s".into(), address: IpAddr::from([10, 0, 0, 5]),
            holder: Known::Present(Holder { container: ContainerId(id.to_owned()), ifname: None }),
            modified: Known::Present(WallTime::from_secs(0)),
            pod: None,
        });
        let mut ledger = Ledger::new(LedgerLimits::default());
        for (from, id) in [(1000, "a"), (2000, if same { "a" } else { "b" })] {
            ledger.apply(at(from, Fact::Begin(Snapshot::Reservations)));
            ledger.apply(at(from, reservation(id)));
            ledger.apply(at(from, Fact::End { snapshot: Snapshot::Reservations, outcome: Outcome::Complete }));
        }
        let first_seen = ledger.reservations().of("/s").next().unwrap().first_seen;
        prop_assert_eq!(first_seen.as_nanos() / 1_000_000, if same { 1000 } else { 2000 });
    }
}
