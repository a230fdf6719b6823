//! Pods that talk to themselves through a Service, and entries of theirs that do not end.

use super::*;

/// An entry of the pod to itself: it dials a Service, which sends it back to the pod behind the node's address.
fn hairpin(port: u16, tcp: ConntrackTcpState, remaining: u32) -> ConntrackEntry {
    let service = Endpoint::new(IpAddr::from([10, 96, 0, 10]), 80);
    let mut entry = entry(POD, port, Some(tcp), remaining);
    entry.key.dialled = service;
    entry.destination = Endpoint::new(POD, 8080);
    entry
}

/// Exercises the join of entries and sockets. If this fails, a pod that keeps its connections is accused of leaking.
#[test]
fn entries_of_a_pod_to_itself_without_a_socket_are_left_behind_and_those_with_one_are_not() {
    let hour_silent = 432_000 - 3600;
    let entries = || {
        let mut all: Vec<_> =
            (0..40).map(|port| hairpin(2000 + port, ConntrackTcpState::Established, hour_silent)).collect();
        // Just opened, and about to end by itself.
        all.push(hairpin(3000, ConntrackTcpState::Established, 431_999));
        all.push(hairpin(3001, ConntrackTcpState::TimeWait, 10));
        all.push(entry(POD, 3002, Some(ConntrackTcpState::Established), hour_silent));
        all
    };
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 42, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    sockets(&mut node, 2, 10);
    node.dump(2, entries(), Outcome::Complete);
    let report = node.report(2);
    let [row] = report.conntrack.hairpins.as_slice() else { panic!("{:?}", report.conntrack.hairpins) };
    assert_eq!((row.entries, row.open, row.silent, row.longest_silence_secs), (42, 41, 40, 3600));
    assert_eq!((row.sockets, row.left_behind, row.name.as_deref()), (Some(10), Some(31), Some("checkout")));
    let found = finding(&report, FindingId::ConntrackHairpinLeak).unwrap();
    assert_eq!(found.title, "shop/checkout talks to itself through 10.96.0.10:80/tcp and left 31 entries behind");
    assert!(found.remedy.contains("conntrack -D -p tcp -s 10.64.0.5 -d 10.96.0.10 --dport 80"), "{}", found.remedy);

    // As many sockets as entries: nothing is wrong. And where sockets are not seen, nothing is known.
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 42, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    sockets(&mut node, 2, 41);
    node.dump(2, entries(), Outcome::Complete);
    assert_eq!(finding(&node.report(2), FindingId::ConntrackHairpinLeak), None);
    let unread = headroom_core::known::Why::new("test");
    node.put(3, SourceId::Sockets, Fact::Coverage(Known::Unknown(unread)));
    let report = node.report(3);
    assert_eq!((report.conntrack.hairpins[0].sockets, report.conntrack.hairpins[0].left_behind), (None, None));
    assert_eq!(finding(&report, FindingId::ConntrackHairpinLeak), None);
}

/// Exercises the moment of that join. If this fails, a pod that closes its connections is accused until the next dump of
/// everything, which may be half a minute away.
#[test]
fn sockets_closed_since_the_dump_are_not_missed_and_a_dump_of_udp_changes_nothing() {
    let silent = || (0..40).map(|port| hairpin(2000 + port, ConntrackTcpState::Established, 428_400));
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 40, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    sockets(&mut node, 2, 40);
    node.dump(2, silent(), Outcome::Complete);
    // All of them close.
    let mut closed = counter(40);
    closed.closed = 40;
    node.put(5, SourceId::Tcp, Fact::Begin(Snapshot::TcpCounters));
    node.put(5, SourceId::Tcp, Fact::TcpCounter(closed));
    node.put(5, SourceId::Tcp, Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
    node.dump_of(Snapshot::ConntrackUdp, 6, [], Outcome::Complete);
    let table = node.report(12).conntrack;
    assert_eq!((table.hairpins[0].sockets, table.hairpins[0].left_behind), (Some(40), Some(0)));
    assert_eq!((table.hairpins[0].entries, table.hairpins_age_secs), (40, Some(10)));
    // Entries that the next dump of everything still shows are left behind.
    node.dump(13, silent(), Outcome::Complete);
    let table = node.report(13).conntrack;
    assert_eq!((table.hairpins[0].sockets, table.hairpins[0].left_behind), (Some(0), Some(40)));
    assert_eq!(table.hairpins_age_secs, Some(0));
}

/// Exercises the bound of pairs told apart. If this fails, those beyond it go unsaid.
#[test]
fn entries_of_pairs_beyond_the_bound_are_counted_and_said() {
    let bound = 1024_u16;
    let to = |service: u16, port: u16| {
        let mut entry = hairpin(port, ConntrackTcpState::Established, 428_400);
        entry.key.dialled.port = service;
        entry
    };
    let first = (0..40).map(|port| to(80, 2000 + port));
    let others = (1..=bound).map(|more| to(1000 + more, 3000));
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 40, ConntrackStats::ZERO);
    sockets(&mut node, 1, 0);
    node.dump(2, first.chain(others), Outcome::Complete);
    let report = node.report(2);
    assert_eq!(report.conntrack.hairpin_entries_untold, 1);
    let found = finding(&report, FindingId::ConntrackHairpinLeak).unwrap();
    assert!(said(found).contains("1 more entries of pods that talk"), "{}", said(found));
}

/// Exercises connections from before the counting began, as plain `check` and the agent's first report meet them. If this fails,
/// live connections are called a leak, with a command that breaks them.
#[test]
fn connections_are_left_behind_only_when_all_sockets_are_known() {
    let silent = || (0..40).map(|port| hairpin(2000 + port, ConntrackTcpState::Established, 428_400));
    let told = |node: &mut Node, second| {
        let row = &node.report(second).conntrack.hairpins[0];
        (row.sockets, row.left_behind)
    };
    let partial = || Outcome::Partial(headroom_core::known::Why::new("CAP_SYS_PTRACE is needed"));
    let node = |second| {
        let mut node = Node::new(LedgerLimits::default());
        node.used(second, 40, ConntrackStats::ZERO);
        let how = CoverageDetail { how: "test".to_owned(), degraded: None, as_of_dump: false };
        for source in [SourceId::Conntrack, SourceId::Tcp, SourceId::Sockets] {
            node.put(second, source, Fact::Coverage(Known::Present(how.clone())));
        }
        node
    };
    // Counted, and the dump ends before a table was compared with the counters: not known, until one is.
    let mut first = node(1);
    counted(&mut first, 1, counter(0));
    first.dump(2, silent(), Outcome::Complete);
    assert_eq!(told(&mut first, 2), (None, None));
    table(&mut first, 3, 0..40, Outcome::Complete);
    assert_eq!(told(&mut first, 3), (None, None));
    counted(&mut first, 4, counter(0));
    assert_eq!(told(&mut first, 4), (Some(40), Some(0)));

    // A table that lacks namespaces sets no baseline.
    let mut half = node(1);
    counted(&mut half, 1, counter(0));
    table(&mut half, 1, 0..0, partial());
    counted(&mut half, 2, counter(0));
    half.dump(3, silent(), Outcome::Complete);
    assert_eq!(told(&mut half, 3), (None, None));

    // Without counters, tables are all there is: whole ones, no older than the entries' silence.
    for (outcome, dumped, expected) in
        [(Outcome::Complete, 11, Some(40)), (Outcome::Complete, 12, None), (partial(), 2, None)]
    {
        let mut uncounted = node(1);
        table(&mut uncounted, 1, 0..40, outcome.clone());
        uncounted.dump(dumped, silent(), Outcome::Complete);
        assert_eq!(told(&mut uncounted, dumped).0, expected, "{outcome:?} {dumped}");
    }
    let mut late = node(1);
    late.dump(1, silent(), Outcome::Complete);
    table(&mut late, 6, 0..0, Outcome::Complete);
    assert_eq!(told(&mut late, 6), (Some(0), Some(40)));
    let mut later = node(1);
    later.dump(1, silent(), Outcome::Complete);
    table(&mut later, 7, 0..0, Outcome::Complete);
    assert_eq!(told(&mut later, 7), (None, None));
}

/// Exercises connections that one side has closed. If this fails, those that end within the minute are a leak, or one that kube-proxy
/// keeps for an hour is said to stay for five days.
#[test]
fn entries_that_one_side_has_closed_end_by_their_own_time_out() {
    let timeouts = |close_wait| ConntrackTimeouts { tcp_close_wait: close_wait, ..ConntrackTimeouts::default() };
    let told = |known: Option<ConntrackTimeouts>, established: u16, half_closed: u16, remaining: u32| {
        let mut node = Node(Ledger::new(LedgerLimits::default()));
        node.used(1, 40, ConntrackStats::ZERO);
        if let Some(timeouts) = known {
            node.put(1, SourceId::ConntrackUse, Fact::ConntrackTimeouts(timeouts));
        }
        sockets(&mut node, 1, 0);
        let open = (0..established).map(|port| hairpin(2000 + port, ConntrackTcpState::Established, 428_400));
        let half = (0..half_closed).map(|port| hairpin(3000 + port, ConntrackTcpState::CloseWait, remaining));
        node.dump(2, open.chain(half), Outcome::Complete);
        let report = node.report(2);
        let row = &report.conntrack.hairpins[0];
        let remedy = finding(&report, FindingId::ConntrackHairpinLeak).map(|found| {
            let (_, rest) = found.remedy.split_once("left behind go ").unwrap();
            rest.split_once(", or at once").unwrap().0.to_owned()
        });
        (row.half_closed, row.silent, row.left_behind, remedy)
    };
    let after = |text: &str| Some(text.to_owned());
    // The kernel's own 60 s: gone by themselves, whatever else there is.
    assert_eq!(told(Some(timeouts(60)), 0, 30, 40), (30, 30, Some(0), None));
    assert_eq!(told(Some(timeouts(60)), 20, 30, 40), (30, 50, Some(20), after("after 5 d")));
    // kube-proxy's hour.
    assert_eq!(told(Some(timeouts(3600)), 0, 30, 1800), (30, 30, Some(30), after("after 60 min")));
    let both = after("after 5 d, those that one side has closed after 60 min");
    assert_eq!(told(Some(timeouts(3600)), 20, 30, 1800), (30, 50, Some(50), both));
    // Data that is not acknowledged shortens the timer to five minutes: how long they are silent is not known.
    assert_eq!(told(Some(timeouts(3600)), 0, 30, 290), (30, 0, Some(0), None));
    // Nobody could read the time-outs.
    assert_eq!(told(None, 20, 30, 40), (30, 50, None, None));
}

fn cilium(alone: u64, broken: u64) -> Fact {
    let of_pod = CiliumHairpin { address: POD, port: 8080, open: 3, closing: 1, half_closed: 0, alone, broken };
    Fact::CiliumConntrack(CiliumConntrack {
        maps: vec![CiliumMap {
            name: "cilium_ct4_global".to_owned(),
            entries: 5000,
            max: 131_072,
            lru: true,
            complete: true,
        }],
        hairpins: vec![of_pod],
        hairpins_omitted: 0,
        left_behind_omitted: 0,
        unjudged: 0,
    })
}

#[test]
fn ciliums_entries_are_a_leak_when_many_when_they_grow_or_when_connections_break() {
    for (first, then, severity) in [
        (cilium(99, 0), cilium(99, 0), None),
        (cilium(100, 0), cilium(100, 0), Some(Severity::Warning)),
        (cilium(10, 0), cilium(30, 0), Some(Severity::Warning)),
        (cilium(10, 0), cilium(10, 1), Some(Severity::Critical)),
    ] {
        let mut node = Node::new(LedgerLimits::default());
        node.used(1, 1, ConntrackStats::ZERO);
        node.put(1, SourceId::CiliumConntrack, first);
        node.put(2, SourceId::CiliumConntrack, then);
        let report = node.report(2);
        let found = finding(&report, FindingId::ConntrackHairpinLeak);
        assert_eq!(found.map(|found| found.severity), severity, "{found:?}");
        if let Some(found) = found {
            assert!(found.title.starts_with("shop/checkout left "), "{}", found.title);
            let broken = found.title.ends_with("through a Service; 1 connection gets no answer now");
            assert_eq!(broken, severity == Some(Severity::Critical), "{}", found.title);
            assert!(found.remedy.contains("1.28.3-gke.1090000 and 1.27.11-gke.1097000"), "{}", found.remedy);
        }
    }
}

/// Exercises growth against a beginning that was not read whole. If this fails, entries that were there before headroom came are
/// told as new ones, and a leak that mends itself as one that grows.
#[test]
fn entries_grow_from_what_the_first_whole_reading_showed() {
    let of = |alone: u64, complete: bool, unjudged: u64| {
        let Fact::CiliumConntrack(mut read) = cilium(alone, 0) else { panic!() };
        read.maps[0].complete = complete;
        read.unjudged = unjudged;
        Fact::CiliumConntrack(read)
    };
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 1, ConntrackStats::ZERO);
    let mut told = |second, fact| {
        node.put(second, SourceId::CiliumConntrack, fact);
        let report = node.report(second);
        let map = report.conntrack.cilium.clone().unwrap();
        let severity = finding(&report, FindingId::ConntrackHairpinLeak).map(|found| found.severity);
        (map.left_behind_at_start, map.left_behind, map.complete, severity)
    };
    assert_eq!(told(1, of(0, false, 0)), (None, 0, false, None));
    assert_eq!(told(2, of(30, true, 7)), (None, 30, false, None));
    assert_eq!(told(3, of(40, true, 0)), (Some(40), 40, true, None));
    // What a reading in part shows is the least there is.
    assert_eq!(told(4, of(60, false, 0)), (Some(40), 60, false, Some(Severity::Warning)));
}

/// Exercises a node without IPv4. If this fails, its map is told as an empty one without room.
#[test]
fn entries_of_the_map_that_there_is_are_told_and_none_where_there_is_no_map_of_tcp() {
    let told = |names: &[&str]| {
        let Fact::CiliumConntrack(mut read) = cilium(0, 0) else { panic!() };
        let map = read.maps.remove(0);
        read.maps = names.iter().map(|name| CiliumMap { name: (*name).to_owned(), ..map.clone() }).collect();
        let mut node = Node::new(LedgerLimits::default());
        node.used(1, 1, ConntrackStats::ZERO);
        node.put(1, SourceId::CiliumConntrack, Fact::CiliumConntrack(read));
        let cilium = node.report(1).conntrack.cilium.unwrap();
        (cilium.entries, cilium.max)
    };
    assert_eq!(told(&["cilium_ct6_global", "cilium_ct_any6_global"]), (Some(5000), Some(131_072)));
    assert_eq!(told(&["cilium_ct_any4_global"]), (None, None));
}
