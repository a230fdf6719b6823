//! Entries as the kernel counts them, compared with dumps that show all of them, or not.

use std::net::IpAddr;

use headroom_core::findings::FindingId;
use headroom_core::flow::Protocol;
use headroom_core::known::Why;
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::observe::{ConntrackCounter, Fact, Outcome, Snapshot, SourceId};
use headroom_core::report::CoverageState;

#[path = "node/pods.rs"]
mod node;

use node::{Node, POD, outside, udp};

/// So many came, and so many went.
fn read(node: &mut Node, second: u64, inserted: u64, ended_other: u64) {
    node.works(SourceId::Conntrack);
    let counter = ConntrackCounter {
        protocol: Protocol::UDP,
        destination: outside(53),
        source: POD,
        translated: IpAddr::from([10, 0, 0, 2]),
        born: 1,
        inserted,
        ended_time_wait: 0,
        ended_reset: 0,
        ended_unanswered: 0,
        ended_other,
        node_port_inserted: 0,
        node_port_ended: 0,
    };
    node.put(second, SourceId::Conntrack, Fact::Begin(Snapshot::ConntrackCounters));
    node.put(second, SourceId::Conntrack, Fact::ConntrackCounter(counter));
    let end = Fact::End { snapshot: Snapshot::ConntrackCounters, outcome: Outcome::Complete };
    node.put(second, SourceId::Conntrack, end);
}

fn dump(node: &mut Node, second: u64, count: u16, outcome: Outcome) {
    node.put(second, SourceId::Conntrack, Fact::Begin(Snapshot::Conntrack));
    for port in 0..count {
        node.put(second, SourceId::Conntrack, Fact::Flow(udp(port, 30, false)));
    }
    node.put(second, SourceId::Conntrack, Fact::End { snapshot: Snapshot::Conntrack, outcome });
}

fn partial() -> Outcome {
    Outcome::Partial(Why::new("1 conntrack entries could not be understood"))
}

/// Exercises a table larger than what the ledger tells apart. If this fails, exact counts are corrected down to a bound of the agent's
/// own, and a node with many flows seems to have fewer.
#[test]
fn a_dump_that_was_cut_here_corrects_no_count_downwards() {
    for (count, live, comparisons) in [(16, 16, 1), (17, 40, 0), (40, 40, 0)] {
        let mut node = Node::new();
        node.ledger = Ledger::new(LedgerLimits { max_flows: 16, ..LedgerLimits::default() });
        read(&mut node, 1000, 0, 0);
        read(&mut node, 1001, 40, 0);
        dump(&mut node, 1002, count, Outcome::Complete);
        read(&mut node, 1003, 40, 0);
        assert_eq!(node.ledger.conntrack().live(), live, "{count}");
        assert_eq!(node.ledger.conntrack().drift().unwrap().comparisons, comparisons, "{count}");
    }
    // Those that the dump showed are known all the same.
    let mut node = Node::new();
    node.ledger = Ledger::new(LedgerLimits { max_flows: 16, ..LedgerLimits::default() });
    read(&mut node, 1000, 0, 0);
    dump(&mut node, 1002, 20, Outcome::Complete);
    read(&mut node, 1003, 0, 0);
    assert_eq!(node.ledger.conntrack().live(), 16);
    let report = node.report(1004);
    let finding = report.findings.iter().find(|finding| finding.subject == "losses").unwrap();
    let said: Vec<_> = finding.evidence.iter().map(|evidence| evidence.said.as_str()).collect();
    assert!(matches!(said[..], [only] if only.contains("nothing corrects the counts downwards")), "{said:?}");
}

/// Exercises a node whose every dump has an entry that nobody understands. If this fails, flows from before the start are never
/// known, or counts are corrected by what half a dump does not show.
#[test]
fn a_part_of_a_dump_tells_what_there_is_at_least() {
    let mut node = Node::new();
    read(&mut node, 1000, 0, 0);
    dump(&mut node, 1001, 10, partial());
    read(&mut node, 1002, 0, 0);
    assert_eq!(node.ledger.conntrack().live(), 10);
    // Two more; one less is shown.
    read(&mut node, 1003, 2, 0);
    dump(&mut node, 1004, 9, partial());
    read(&mut node, 1005, 2, 0);
    assert_eq!(node.ledger.conntrack().live(), 12);
    // One went while it was made: it may be among those shown.
    dump(&mut node, 1006, 13, partial());
    read(&mut node, 1007, 2, 1);
    assert_eq!(node.ledger.conntrack().live(), 12);
    assert_eq!(node.ledger.conntrack().drift().unwrap().comparisons, 0);
    // The first whole one is where counting gets what existed before.
    dump(&mut node, 1010, 14, Outcome::Complete);
    read(&mut node, 1011, 2, 1);
    let drift = node.ledger.conntrack().drift().unwrap();
    assert_eq!((node.ledger.conntrack().live(), drift.comparisons, drift.total), (14, 1, 0));
}

/// Exercises counters that are wrong again and again. If this fails, a kernel that counts half of what goes is believed, and nothing
/// says that its numbers are.
#[test]
fn counts_that_are_corrected_by_much_three_times_in_a_row_are_not_what_works() {
    // The last is at the bound: one in fifty, and ten.
    for (wrong, degraded) in [(100, true), (21, true), (20, false), (0, false)] {
        let mut node = Node::new();
        read(&mut node, 1000, 0, 0);
        for (round, second) in (0_u64..4).zip((1010..).step_by(10)) {
            let inserted = wrong * round;
            read(&mut node, second, inserted, 0);
            dump(&mut node, second + 1, 1000, Outcome::Complete);
            read(&mut node, second + 2, inserted, 0);
            let report = node.report(second + 3);
            let row = report.coverage.iter().find(|row| row.source == SourceId::Conntrack).unwrap();
            let state = if degraded && round == 3 { CoverageState::Degraded } else { CoverageState::Ok };
            assert_eq!(row.state, state, "{wrong} {round} {:?}", row.why);
            let found = report.findings.iter().any(|finding| {
                finding.id == FindingId::SourceDegraded
                    && finding.title.contains(&format!("by {wrong} of 1000 entries"))
            });
            assert_eq!(found, state == CoverageState::Degraded, "{:?}", report.findings);
        }
    }
}

/// The entries that a dump shows, of so many there were before counting began.
const BEFORE: u16 = 100;

fn coverage(node: &mut Node, second: u64) -> (CoverageState, String) {
    let report = node.report(second);
    let row =
        report.coverage.into_iter().find(|row| row.source == SourceId::Conntrack).expect("conntrack says how it works");
    (row.state, [row.how, row.why].into_iter().flatten().collect::<Vec<_>>().join(" | "))
}

/// Exercises an agent that starts while flows begin: 40 of them during its first dump, of which the dump meets some, and 10 during
/// the second. If this fails, a start under load is told as counting that is wrong, or nothing says that its first number is not
/// exact.
#[test]
fn what_a_start_under_load_leaves_open_is_told_and_settled_and_no_drift() {
    for met in [0, 7, 20, 33, 40] {
        let mut node = Node::new();
        read(&mut node, 1000, 0, 0);
        dump(&mut node, 1001, BEFORE + met, Outcome::Complete);
        read(&mut node, 1002, 40, 0);
        let drift = node.ledger.conntrack().drift().unwrap();
        assert_eq!((node.ledger.conntrack().live(), drift.open), (u64::from(BEFORE + met) + 20, 20));
        let (state, said) = coverage(&mut node, 1002);
        assert_eq!(state, CoverageState::Degraded, "{said}");
        assert!(said.contains(&format!("up to 20 of {} entries are not certain", BEFORE + met + 20)), "{said}");
        // The second: five of those that begin meanwhile are met.
        dump(&mut node, 1003, BEFORE + 45, Outcome::Complete);
        read(&mut node, 1004, 50, 0);
        let drift = node.ledger.conntrack().drift().unwrap();
        let live = node.ledger.conntrack().live();
        assert!(live.abs_diff(150) <= drift.open && drift.open <= 10, "{live} {drift:?}");
        // The third, in a quiet moment.
        dump(&mut node, 1005, BEFORE + 50, Outcome::Complete);
        read(&mut node, 1006, 50, 0);
        let drift = node.ledger.conntrack().drift().unwrap();
        assert_eq!((node.ledger.conntrack().live(), drift.total, drift.open), (150, 0, 0), "{met}");
        let (state, said) = coverage(&mut node, 1006);
        assert_eq!(state, CoverageState::Ok, "{said}");
        let settled =
            format!("{} entries that came or went while it was first read have been put right", drift.settled);
        assert_eq!(said.contains(&settled), drift.settled > 0, "{said}");
        // From here on nothing excuses a wrong count.
        dump(&mut node, 1007, BEFORE + 49, Outcome::Complete);
        read(&mut node, 1008, 50, 0);
        assert_eq!(node.ledger.conntrack().drift().unwrap().total, 1);
    }
}

/// Exercises a destination that nobody dialled before counting began, and one whose key is retired while something is open. If this
/// fails, exact numbers are moved by a guess, or what is open is forgotten and told as drift.
#[test]
fn what_is_open_is_not_more_than_what_there_may_have_been_before() {
    let mut node = Node::new();
    read(&mut node, 1000, 30, 0);
    dump(&mut node, 1001, 33, Outcome::Complete);
    read(&mut node, 1002, 40, 0);
    let drift = node.ledger.conntrack().drift().unwrap();
    assert_eq!((node.ledger.conntrack().live(), drift.open), (40, 3), "43 if the dump met none of ten");
    // Retired: a reading without the key, then one in which it has come back.
    node.put(1003, SourceId::Conntrack, Fact::Begin(Snapshot::ConntrackCounters));
    let end = Fact::End { snapshot: Snapshot::ConntrackCounters, outcome: Outcome::Complete };
    node.put(1003, SourceId::Conntrack, end);
    dump(&mut node, 1004, 42, Outcome::Complete);
    node.put(1005, SourceId::Conntrack, Fact::Begin(Snapshot::ConntrackCounters));
    let end = Fact::End { snapshot: Snapshot::ConntrackCounters, outcome: Outcome::Complete };
    node.put(1005, SourceId::Conntrack, end);
    let drift = node.ledger.conntrack().drift().unwrap();
    assert_eq!((node.ledger.conntrack().live(), drift.total, drift.settled, drift.open), (42, 0, 2, 0));
}
