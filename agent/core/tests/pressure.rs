//! The conntrack table: who fills it, when it will be full, and what is said about it.

use std::net::IpAddr;

use headroom_core::findings::{Finding, FindingId, Severity};
use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::ids::{ContainerId, NetnsInode, PodName};
use headroom_core::known::Known;
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{
    CiliumConntrack, CiliumHairpin, CiliumMap, ConntrackCpu, ConntrackEntry, ConntrackStats, ConntrackTcpState,
    ConntrackTimeouts, ConntrackUse, CoverageDetail, Fact, FlowKey, Observation, Outcome, Sandbox, ServiceProxy,
    Snapshot, Socket, SocketState, SocketTimer, SourceId, TcpCounter,
};
use headroom_core::report::Report;
use headroom_core::time::{NodeTime, Now, WallTime};

#[path = "pressure/cilium.rs"]
mod cilium;
#[path = "pressure/hairpins.rs"]
mod hairpins;
#[path = "pressure/node_ports.rs"]
mod node_ports;
#[path = "pressure/seen_node_ports.rs"]
mod seen_node_ports;

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 64, 0, 5));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 64, 0, 6));

struct Node(Ledger);

impl Node {
    /// A node with one pod, `shop/checkout`.
    fn new(limits: LedgerLimits) -> Self {
        let mut node = Self(Ledger::new(limits));
        node.put(0, SourceId::ConntrackUse, Fact::ConntrackTimeouts(ConntrackTimeouts::default()));
        node.put(0, SourceId::Cri, Fact::Begin(Snapshot::Runtime));
        let pod = PodName { namespace: "shop".to_owned(), name: "checkout".to_owned() };
        let sandbox = Sandbox {
            id: ContainerId("a".repeat(64)),
            pod,
            uid: "1".to_owned(),
            ready: true,
            host_network: false,
            addresses: Known::Present(vec![POD]),
        };
        node.put(0, SourceId::Cri, Fact::Sandbox(sandbox));
        node.put(0, SourceId::Cri, Fact::End { snapshot: Snapshot::Runtime, outcome: Outcome::Complete });
        node
    }

    fn put(&mut self, second: u64, source: SourceId, fact: Fact) {
        self.0.apply(Observation { at: NodeTime::from_secs(second), source, fact });
    }

    fn used(&mut self, second: u64, entries: u64, stats: ConntrackStats) {
        let used = ConntrackUse {
            entries: Known::Present(entries),
            max: Known::Present(1000),
            buckets: Known::Present(250),
            stats: Known::Present(stats),
            cpus: vec![ConntrackCpu { cpu: 3, stats }],
        };
        self.put(second, SourceId::ConntrackUse, Fact::ConntrackUse(used));
    }

    fn dump(&mut self, second: u64, entries: impl IntoIterator<Item = ConntrackEntry>, outcome: Outcome) {
        self.dump_of(Snapshot::Conntrack, second, entries, outcome);
    }

    fn dump_of(
        &mut self,
        snapshot: Snapshot,
        second: u64,
        entries: impl IntoIterator<Item = ConntrackEntry>,
        outcome: Outcome,
    ) {
        self.put(second, SourceId::Conntrack, Fact::Begin(snapshot));
        for entry in entries {
            self.put(second, SourceId::Conntrack, Fact::Flow(entry));
        }
        self.put(second, SourceId::Conntrack, Fact::End { snapshot, outcome });
    }

    fn report(&mut self, second: u64) -> Report {
        self.report_by(second, &Policy::default())
    }

    fn report_by(&mut self, second: u64, policy: &Policy) -> Report {
        let now = Now { node: NodeTime::from_secs(second), wall: WallTime::from_secs(1_800_000_000) };
        evaluate(&self.0, &mut Memory::default(), policy, now)
    }
}

fn entry(source: IpAddr, port: u16, tcp: Option<ConntrackTcpState>, remaining: u32) -> ConntrackEntry {
    let to = Endpoint::new(IpAddr::from([203, 0, 113, 7]), 443);
    let answered = !matches!(tcp, Some(ConntrackTcpState::SynSent) | None);
    ConntrackEntry {
        key: FlowKey {
            protocol: if tcp.is_some() { Protocol::TCP } else { Protocol::UDP },
            zone: 0,
            source: Endpoint::new(source, port),
            dialled: to,
        },
        id: u32::from(port),
        destination: to,
        translated: Endpoint::new(IpAddr::from([10, 0, 0, 2]), port),
        replied: answered,
        assured: answered,
        tcp,
        remaining_secs: Some(remaining),
    }
}

fn finding(report: &Report, id: FindingId) -> Option<&Finding> {
    report.findings.iter().find(|finding| finding.id == id)
}

fn said(finding: &Finding) -> String {
    finding.evidence.iter().map(|evidence| evidence.said.clone()).collect::<Vec<_>>().join("\n")
}

/// 700 established of the pod, silent for two days; 100 half-open and 50 datagrams of another address; 50 closed.
fn crowd() -> Vec<ConntrackEntry> {
    use ConntrackTcpState as Tcp;
    let mut all: Vec<_> = (0..700).map(|port| entry(POD, 1024 + port, Some(Tcp::Established), 259_000)).collect();
    all.extend((0..100).map(|port| entry(OTHER, 1024 + port, Some(Tcp::SynSent), 119)));
    all.extend((0..50).map(|port| entry(OTHER, 1024 + port, None, 20)));
    all.extend((0..50).map(|port| entry(OTHER, 5000 + port, Some(Tcp::TimeWait), 30)));
    all
}

fn sockets(node: &mut Node, second: u64, open: u16) {
    let how = CoverageDetail { how: "test".to_owned(), degraded: None, as_of_dump: false };
    node.put(second, SourceId::Conntrack, Fact::Coverage(Known::Present(how.clone())));
    node.put(second, SourceId::Tcp, Fact::Coverage(Known::Present(how.clone())));
    node.put(second, SourceId::Sockets, Fact::Coverage(Known::Present(how)));
    counted(node, second, counter(open.into()));
    table(node, second, 0..open, Outcome::Complete);
    counted(node, second, counter(open.into()));
}

fn counted(node: &mut Node, second: u64, counter: TcpCounter) {
    node.put(second, SourceId::Tcp, Fact::Begin(Snapshot::TcpCounters));
    node.put(second, SourceId::Tcp, Fact::TcpCounter(counter));
    node.put(second, SourceId::Tcp, Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
}

/// A socket table with these connections of the pod to the Service.
fn table(node: &mut Node, second: u64, open: std::ops::Range<u16>, outcome: Outcome) {
    let to = counter(0).destination;
    node.put(second, SourceId::Sockets, Fact::Begin(Snapshot::Sockets));
    for number in open {
        let socket = Socket {
            netns: NetnsInode(2),
            source: Endpoint::new(POD, 2000 + number),
            destination: to,
            state: SocketState::Open,
            timer: SocketTimer::None,
            accepted: false,
        };
        node.put(second, SourceId::Sockets, Fact::Socket(socket));
    }
    node.put(second, SourceId::Sockets, Fact::End { snapshot: Snapshot::Sockets, outcome });
}

/// What the kernel counted of the pod's connections to that Service.
fn counter(opened: u64) -> TcpCounter {
    let zero = TcpCounter::zero(Endpoint::new(IpAddr::from([10, 96, 0, 10]), 80), POD);
    TcpCounter { attempted: opened, opened, ..zero }
}

/// Exercises the whole answer to "who fills conntrack". If this fails, somebody raises a limit instead of fixing a pod.
#[test]
fn a_nearly_full_table_names_who_fills_it_with_what_and_the_exact_settings() {
    let mut node = Node::new(LedgerLimits::default());
    node.put(1, SourceId::ConntrackUse, Fact::ConntrackTimeouts(ConntrackTimeouts::default()));
    node.used(1, 900, ConntrackStats::default());
    node.dump(1, crowd(), Outcome::Complete);
    let report = node.report(3);
    let census = report.conntrack.census.as_ref().unwrap();
    assert_eq!((census.entries, census.not_told_apart, census.age_secs, census.complete), (900, 0, 2, true));
    assert_eq!((census.sources[0].name.as_deref(), census.sources[0].entries), (Some("checkout"), 700));
    assert_eq!((census.sources[1].address, census.sources[1].entries), (OTHER, 200));
    assert_eq!((census.sources_total, census.destinations_total, census.undercount), (Some(2), Some(2), 0));
    let state = |name: &str| census.states.iter().find(|state| state.state == name).unwrap().entries;
    assert_eq!((state("tcp_established"), state("tcp_syn_sent"), state("udp_unanswered")), (700, 100, 50));
    // 100 SYNs of a second ago and 50 datagrams of ten; 50 closed 90 s ago; 700 silent for 173,000 s.
    let silent: Vec<_> = census.silent.iter().map(|span| (span.from_secs, span.entries)).collect();
    assert_eq!(silent, [(0, 150), (60, 50), (86_400, 700)]);
    assert_eq!((census.unassured, census.closing, census.ending_within_minute), (150, 50, 100));

    let found = finding(&report, FindingId::ConntrackLow).unwrap();
    assert_eq!(found.severity, Severity::Warning);
    assert_eq!(found.title, "conntrack holds 900 of 1000 entries (90 %), 77 % of them by shop/checkout");
    let said = said(found);
    for part in [
        "shop/checkout 700",
        "203.0.113.7:443/tcp 850",
        "700 tcp_established (time-out 5 d)",
        "700 had no",
        "not assured (150 now)",
    ] {
        assert!(said.contains(part), "`{part}` is not in:\n{said}");
    }
    for part in
        ["nf_conntrack_max=2000", "echo 500 > /sys/module", "conntrack.min: 2000", "tcp_timeout_established=7200"]
    {
        assert!(found.remedy.contains(part), "`{part}` is not in:\n{}", found.remedy);
    }
}

#[test]
fn a_table_that_will_be_full_within_half_an_hour_is_a_warning_and_one_that_stands_is_none() {
    let mut node = Node::new(LedgerLimits::default());
    for second in 0..30 {
        node.used(second, 400 + second * 2, ConntrackStats::default());
    }
    let report = node.report(29);
    let secs = report.conntrack.full_in_secs.unwrap();
    assert!((265..=277).contains(&secs), "{secs}: 542 entries at two a second");
    let found = finding(&report, FindingId::ConntrackLow).unwrap();
    assert!(found.title.contains("full in about 4 min"), "{}", found.title);
    assert!(said(found).contains("rising 2.00 entries/s"), "{}", said(found));

    let mut node = Node::new(LedgerLimits::default());
    (0..30).for_each(|second| node.used(second, 458, ConntrackStats::default()));
    assert_eq!(finding(&node.report(29), FindingId::ConntrackLow), None);
}

/// Exercises reasons. If this fails, only the first of several is told, or one that a number makes untrue.
#[test]
fn every_part_of_the_table_that_is_not_known_has_its_reason() {
    let why = |entries, max, stats| {
        let mut node = Node::new(LedgerLimits::default());
        let used = ConntrackUse { entries, max, buckets: Known::Absent, stats, cpus: Vec::new() };
        node.put(1, SourceId::ConntrackUse, Fact::ConntrackUse(used));
        let table = node.report(1).conntrack;
        (table.entries, table.max, table.why)
    };
    let (some, none) = (Known::Present(100), || Known::Absent);
    let told = |why: &str| Some(why.to_owned());
    assert_eq!(
        why(some.clone(), none(), Known::because("no statistics")),
        (Some(100), None, told("nf_conntrack_max is not there; no statistics"))
    );
    assert_eq!(why(some.clone(), some.clone(), Known::Absent), (Some(100), Some(100), None));
    assert_eq!(why(none(), none(), Known::Absent).2, told("this kernel has no conntrack table here"));
    assert_eq!(why(Known::because("denied"), some, Known::because("denied")).2, told("denied"));
}

#[test]
fn packets_dropped_for_want_of_room_are_critical_whatever_the_table_holds_now() {
    let mut node = Node::new(LedgerLimits::default());
    // What happened before headroom watched is no finding.
    let before = ConntrackStats { drop: 50, insert_failed: 10, ..ConntrackStats::ZERO };
    node.used(1, 10, before);
    assert_eq!(finding(&node.report(1), FindingId::ConntrackLow), None);
    node.used(2, 10, ConntrackStats { drop: 57, insert_failed: 12, early_drop: 3, ..before });
    let report = node.report(2);
    assert_eq!(report.conntrack.table_full, Some(45));
    let found = finding(&report, FindingId::ConntrackLow).unwrap();
    assert_eq!(found.severity, Severity::Critical);
    assert!(found.title.starts_with("conntrack was full: 5 packets of new connections dropped"), "{}", found.title);
    assert!(said(found).contains("3 evicted"), "{}", said(found));
    let failed = finding(&report, FindingId::ConntrackInsertFailed).unwrap();
    assert!(said(failed).contains("insert_failed 2, drop 7, chain_toolong 0"), "{}", said(failed));
    assert!(said(failed).contains("cpu 3 12"), "{}", said(failed));
}

#[test]
fn long_hash_chains_are_told_from_ports_that_ran_out() {
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 10, ConntrackStats::ZERO);
    node.used(2, 10, ConntrackStats { insert_failed: 9, chain_toolong: Some(8), ..ConntrackStats::ZERO });
    let report = node.report(2);
    let found = finding(&report, FindingId::ConntrackInsertFailed).unwrap();
    assert!(found.remedy.contains("echo 1000 > /sys/module/nf_conntrack/parameters/hashsize"), "{}", found.remedy);
}

/// Exercises the bound. If this fails, a large table is told as a small one.
#[test]
fn entries_beyond_the_ledgers_bound_are_counted_as_not_told_apart() {
    let mut node = Node::new(LedgerLimits { max_flows: 850, ..LedgerLimits::default() });
    node.dump(1, crowd(), Outcome::Complete);
    node.used(1, 900, ConntrackStats::ZERO);
    let census = node.report(1).conntrack.census.unwrap();
    assert_eq!((census.entries, census.not_told_apart), (900, 50));
    assert_eq!(census.states.iter().map(|state| state.entries).sum::<u64>(), 900);
}

#[test]
fn half_a_dump_says_so_and_a_failed_one_changes_nothing() {
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 900, ConntrackStats::ZERO);
    node.dump(1, crowd(), Outcome::Complete);
    let why = || headroom_core::known::Why::new("test");
    node.dump(2, crowd().into_iter().take(10), Outcome::Failed(why()));
    assert_eq!(node.report(2).conntrack.census.unwrap().entries, 900);
    node.dump(3, crowd().into_iter().take(10), Outcome::Partial(why()));
    let census = node.report(3).conntrack.census.unwrap();
    assert_eq!((census.entries, census.complete), (10, false));
    let found = finding(&node.report(3), FindingId::ConntrackLow).cloned().unwrap();
    assert!(found.title.ends_with(", 100 % of the 10 that were read by shop/checkout"), "{}", found.title);
}

/// Exercises dumps that leave TCP out. If this fails, who fills the table is told from its UDP alone.
#[test]
fn a_dump_of_udp_leaves_the_sum_of_the_whole_table_as_it_was_with_its_age() {
    for outcome in [Outcome::Complete, Outcome::Partial(headroom_core::known::Why::new("test"))] {
        let mut node = Node::new(LedgerLimits::default());
        node.used(1, 900, ConntrackStats::ZERO);
        node.dump(1, crowd(), Outcome::Complete);
        let before = node.report(1).conntrack.census.unwrap();
        node.dump_of(Snapshot::ConntrackUdp, 9, [entry(OTHER, 9000, None, 20)], outcome);
        let after = node.report(11).conntrack.census.unwrap();
        assert_eq!((before.age_secs, after.age_secs), (0, 10));
        assert_eq!(headroom_core::report::CensusReport { age_secs: 0, ..after }, before);
    }
}
