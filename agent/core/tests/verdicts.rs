//! Verdicts on reservations: leaked only when everything speaks for it, undetermined when something is missing.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use headroom_core::findings::{FindingId, Severity, exit_code};
use headroom_core::ids::{ContainerId, NetnsInode};
use headroom_core::known::{Known, Why};
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::leak::Verdict;
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{
    AddressRange, CoverageDetail, Fact, Holder, Ipam, Namespace, Network, Observation, Outcome, Reservation, Snapshot,
    SourceId,
};
use headroom_core::time::{NodeTime, Now, WallTime};

const STORE: &str = "/var/lib/cni/networks/gke-pod-network";
/// Wall time of the evaluation, in seconds.
const NOW: i64 = 1_800_000_000;

fn address() -> IpAddr {
    IpAddr::from([10, 48, 131, 4])
}

/// What one round of observation looks like; the default is an honest orphan.
#[derive(Clone)]
struct Round {
    holder: Known<Holder>,
    age_secs: i64,
    runtime: Outcome,
    runtime_ids: Vec<&'static str>,
    carried: Vec<IpAddr>,
    namespaces: Outcome,
    /// The store's reading was cut short before this reservation.
    cut: bool,
}

impl Default for Round {
    fn default() -> Self {
        Self {
            holder: Known::Present(Holder {
                container: ContainerId("dead".repeat(16)),
                ifname: Some("eth0".to_owned()),
            }),
            age_secs: 3600,
            runtime: Outcome::Complete,
            runtime_ids: vec!["alive"],
            carried: vec![],
            namespaces: Outcome::Complete,
            cut: false,
        }
    }
}

fn observe(ledger: &mut Ledger, second: u64, round: &Round) {
    let mut at = NodeTime::from_secs(second).as_nanos();
    let mut put = |source, fact| {
        at += 1;
        ledger.apply(Observation { at: NodeTime::from_nanos(at), source, fact });
    };
    let end = |snapshot, outcome: &Outcome| Fact::End { snapshot, outcome: outcome.clone() };
    let works =
        || Fact::Coverage(Known::Present(CoverageDetail { how: "test".to_owned(), degraded: None, as_of_dump: false }));
    put(SourceId::HostLocal, works());
    put(SourceId::HostLocal, Fact::Begin(Snapshot::Reservations));
    put(
        SourceId::HostLocal,
        Fact::Network(Network {
            store: STORE.to_owned(),
            ipam: Ipam::HostLocal,
            name: "gke-pod-network".to_owned(),
            range_sets: Known::Present(vec![vec![AddressRange {
                subnet: "10.48.131.0/24".parse().unwrap(),
                first: None,
                last: None,
                gateway: None,
            }]]),
            complete: !round.cut,
            ignored: vec![],
            last_reserved: BTreeMap::new(),
            pool: Known::Absent,
        }),
    );
    if !round.cut {
        put(
            SourceId::HostLocal,
            Fact::from(Reservation {
                store: STORE.into(),
                address: address(),
                holder: round.holder.clone(),
                modified: Known::Present(WallTime::from_secs(NOW - round.age_secs)),
                pod: None,
            }),
        );
    }
    let listing = if round.cut { Outcome::Partial(Why::new("cut short")) } else { Outcome::Complete };
    put(SourceId::HostLocal, end(Snapshot::Reservations, &listing));
    put(SourceId::Cri, Fact::Begin(Snapshot::Runtime));
    for id in &round.runtime_ids {
        put(SourceId::Cri, Fact::Container(ContainerId((*id).to_owned())));
    }
    put(SourceId::Cri, end(Snapshot::Runtime, &round.runtime));
    put(SourceId::Namespaces, Fact::Begin(Snapshot::Namespaces));
    put(
        SourceId::Namespaces,
        Fact::Namespace(Namespace {
            inode: NetnsInode(2),
            host: false,
            pid: Some(7),
            addresses: Known::Present(round.carried.clone()),
            ports: Known::Absent,
            keepalive: Known::Absent,
        }),
    );
    put(SourceId::Namespaces, end(Snapshot::Namespaces, &round.namespaces));
}

fn verdict(rounds: &[Round]) -> (Verdict, String) {
    let mut ledger = Ledger::new(LedgerLimits::default());
    for (index, round) in rounds.iter().enumerate() {
        observe(&mut ledger, 100 + 10 * u64::try_from(index).unwrap(), round);
    }
    let now = Now { node: NodeTime::from_secs(200), wall: WallTime::from_secs(NOW) };
    let networks = headroom_core::model::ipam::networks(&ledger, &Policy::default(), now);
    let entry = networks.first().unwrap().entries.first().unwrap().clone();
    (entry.verdict, entry.evidence.join("; "))
}

fn twice(round: Round) -> (Verdict, String) {
    verdict(&[round.clone(), round])
}

#[test]
fn an_ip_without_a_sandbox_is_leaked_only_when_seen_so_twice() {
    assert_eq!(verdict(&[Round::default()]).0, Verdict::Settling);
    assert_eq!(twice(Round::default()).0, Verdict::Leaked);
}

#[test]
fn an_ip_without_a_sandbox_is_leaked_only_after_the_grace_period() {
    assert_eq!(twice(Round { age_secs: 599, ..Round::default() }).0, Verdict::Settling);
    assert_eq!(twice(Round { age_secs: 601, ..Round::default() }).0, Verdict::Leaked);
}

#[test]
fn a_known_container_or_a_live_namespace_keeps_an_address() {
    let id = &*Box::leak("dead".repeat(16).into_boxed_str());
    assert_eq!(twice(Round { runtime_ids: vec![id], ..Round::default() }).0, Verdict::InUse);
    assert_eq!(twice(Round { carried: vec![address()], ..Round::default() }).0, Verdict::InUse);
}

#[test]
fn without_a_complete_answer_of_the_runtime_nothing_is_leaked() {
    for runtime in [Outcome::Failed(Why::new("it is stopped")), Outcome::Partial(Why::new("cut short"))] {
        let (got, evidence) = verdict(&[Round::default(), Round::default(), Round { runtime, ..Round::default() }]);
        assert_eq!(got, Verdict::Undetermined);
        assert!(evidence.contains("the runtime's answer is missing"), "{evidence}");
    }
    // A namespace that is alive speaks for itself, whatever the runtime says.
    let alive =
        Round { runtime: Outcome::Failed(Why::new("it is stopped")), carried: vec![address()], ..Round::default() };
    assert_eq!(twice(alive).0, Verdict::InUse);
}

#[test]
fn an_answer_that_was_wrong_a_moment_ago_needs_a_second_look() {
    let failed = Round { runtime: Outcome::Failed(Why::new("it is starting")), ..Round::default() };
    assert_eq!(verdict(&[failed, Round::default()]).0, Verdict::Settling);
}

#[test]
fn an_empty_answer_is_not_believed_while_pods_are_alive() {
    let round = Round { runtime_ids: vec![], carried: vec![IpAddr::from([10, 48, 131, 9])], ..Round::default() };
    let (got, evidence) = twice(round);
    assert_eq!(got, Verdict::Undetermined);
    assert!(evidence.contains("names no sandbox at all"), "{evidence}");
    assert_eq!(twice(Round { runtime_ids: vec![], ..Round::default() }).0, Verdict::Leaked);
}

#[test]
fn what_an_incomplete_reading_no_longer_shows_is_not_leaked() {
    let cut = Round { cut: true, ..Round::default() };
    let (got, evidence) = verdict(&[Round::default(), cut.clone(), cut]);
    assert_eq!(got, Verdict::Undetermined, "{evidence}");
}

/// Exercises a store that could not be read. If this fails, what was not seen is told as free, and a full range as stranded.
#[test]
fn what_an_incomplete_reading_does_not_show_is_not_free() {
    let of = |round: &Round| {
        let mut ledger = Ledger::new(LedgerLimits::default());
        observe(&mut ledger, 100, round);
        let now = Now { node: NodeTime::from_secs(110), wall: WallTime::from_secs(NOW) };
        let report = evaluate(&ledger, &mut Memory::default(), &Policy::default(), now);
        let network = report.ipam.networks.first().unwrap();
        let next = network.range_sets.first().unwrap().next;
        let stranded = report.findings.iter().any(|finding| finding.id == FindingId::IpamRangeStranded);
        (next, network.stranded.is_some(), stranded)
    };
    assert_eq!(of(&Round::default()), (Some(IpAddr::from([10, 48, 131, 2])), true, true));
    assert_eq!(of(&Round { cut: true, ..Round::default() }), (None, false, false));
}

/// Exercises a node whose addresses are kept where nobody looks. If this fails, `check` calls it clean.
#[test]
fn a_node_without_a_store_that_is_read_is_not_clean() {
    let mut ledger = Ledger::new(LedgerLimits::default());
    let why = || Why::new("the dataDir is not mounted");
    let detail = CoverageDetail { how: "test".to_owned(), degraded: Some(why()), as_of_dump: false };
    let facts = [
        Fact::Begin(Snapshot::Reservations),
        Fact::End { snapshot: Snapshot::Reservations, outcome: Outcome::Partial(why()) },
        Fact::Coverage(Known::Present(detail)),
    ];
    for (at, fact) in (100..).zip(facts) {
        ledger.apply(Observation { at: NodeTime::from_secs(at), source: SourceId::HostLocal, fact });
    }
    let now = Now { node: NodeTime::from_secs(110), wall: WallTime::from_secs(NOW) };
    let findings = evaluate(&ledger, &mut Memory::default(), &Policy::default(), now).findings;
    let open = findings.iter().find(|finding| finding.subject == "host-local").unwrap();
    assert_eq!(open.severity, Severity::Unknown);
    assert_eq!(open.evidence.first().unwrap().said, "which pod addresses are reserved stays unknown");
}

#[test]
fn unreadable_namespaces_leave_it_open() {
    let round =
        Round { namespaces: Outcome::Partial(Why::new("3 processes could not be examined")), ..Round::default() };
    assert_eq!(twice(round).0, Verdict::Undetermined);
}

#[test]
fn what_cannot_be_understood_is_never_leaked() {
    assert_eq!(twice(Round { holder: Known::because("it is a FIFO"), ..Round::default() }).0, Verdict::Undetermined);
    assert_eq!(twice(Round { holder: Known::Absent, age_secs: 5, ..Round::default() }).0, Verdict::Settling);
    assert_eq!(twice(Round { holder: Known::Absent, ..Round::default() }).0, Verdict::Undetermined);
    assert_eq!(twice(Round { age_secs: -60, ..Round::default() }).0, Verdict::Undetermined);
}

#[test]
fn a_leak_becomes_a_finding_with_evidence_and_decides_the_exit_code() {
    let mut ledger = Ledger::new(LedgerLimits::default());
    observe(&mut ledger, 100, &Round::default());
    observe(&mut ledger, 110, &Round::default());
    let now = Now { node: NodeTime::from_secs(120), wall: WallTime::from_secs(NOW) };
    let report = evaluate(&ledger, &mut Memory::default(), &Policy::default(), now);
    let leaked = report.findings.iter().find(|finding| finding.id == FindingId::IpamLeaked).unwrap();
    assert_eq!(leaked.severity, Severity::Warning);
    assert!(leaked.evidence.iter().any(|evidence| evidence.said.contains("10.48.131.4")));
    assert_eq!(exit_code(&report.findings), 1);
}
