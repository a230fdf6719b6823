//! What each source can do here, and how old its numbers are.
//!
//! Reading the counters may take only a small part of the time, and an agent that gets no CPU reads late: whoever goes by the
//! numbers has to know from when they are. What events tell, or a dump now and then, has no such age.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::known::{Known, Why};
use crate::ledger::Ledger;
use crate::observe::{CoverageDetail, Outcome, Snapshot, SourceId};
use crate::report::{CoverageReport, CoverageState};
use crate::time::NodeTime;

/// Numbers older than this are not the present's. On a quiet node they are a quarter of a second old (`tcp`), or one
/// (`conntrack`).
const FRESH: Duration = Duration::from_secs(2);

/// What is read again and again.
const COUNTERS: [(SourceId, Snapshot); 2] =
    [(SourceId::Tcp, Snapshot::TcpCounters), (SourceId::Conntrack, Snapshot::ConntrackCounters)];

/// How long ago a source read its counters, or what it dumps instead; `None` if it has none, could not read them, or is told.
fn age(ledger: &Ledger, source: SourceId, now: NodeTime) -> Option<Duration> {
    if is_as_of_dump(ledger, source) {
        let whole = ledger.bracket_of(source, Snapshot::Conntrack)?;
        let read = !matches!(whole.outcome, Outcome::Failed(_));
        return read.then(|| now.since(whole.begin));
    }
    let (_, snapshot) = COUNTERS.iter().find(|(counting, _)| *counting == source)?;
    let bracket = ledger.bracket_of(source, *snapshot)?;
    let read = ledger.works(source) && !matches!(bracket.outcome, Outcome::Failed(_));
    read.then(|| now.since(bracket.begin))
}

fn is_as_of_dump(ledger: &Ledger, source: SourceId) -> bool {
    matches!(ledger.coverage().get(&source), Some(Known::Present(detail)) if detail.as_of_dump)
}

/// That the kernel's counters of conntrack are wrong again and again, if they are.
fn miscounted(ledger: &Ledger) -> Option<String> {
    let drift = ledger.conntrack().drift().filter(crate::ledger::Drift::persists)?;
    Some(format!(
        "the kernel's counters had to be corrected by {} of {} entries in the last comparison with the table, and by as large a \
         part in {} comparisons in a row: between two of them counts are wrong",
        drift.last, drift.of, drift.apart
    ))
}

/// What is not certain of a source's numbers since it began, if something; and whether it is much.
fn uncertain(ledger: &Ledger, source: SourceId) -> Option<(String, bool)> {
    match source {
        SourceId::Tcp => uncertain_connections(ledger),
        SourceId::Conntrack => uncertain_entries(ledger),
        _ => None,
    }
}

fn uncertain_connections(ledger: &Ledger) -> Option<(String, bool)> {
    let tcp = ledger.tcp();
    tcp.counting_since()?;
    if !tcp.is_compared() {
        return Some((
            "connections from before the start are missing until all sockets were read once".to_owned(),
            true,
        ));
    }
    let uncertain = tcp.uncertain()?;
    let (to, s) = (uncertain.destinations, if uncertain.destinations == 1 { "" } else { "s" });
    let said =
        format!("connections from before the start to {to} destination{s} are not certain yet (± {})", uncertain.by);
    Some((said, uncertain.is_much()))
}

fn uncertain_entries(ledger: &Ledger) -> Option<(String, bool)> {
    let drift = ledger.conntrack().drift().filter(|drift| drift.open > 0 || drift.settled > 0)?;
    let open = format!(
        "up to {} of {} entries are not certain, which came or went while the table was read",
        drift.open, drift.of
    );
    let settled = format!("{} entries that came or went while it was first read have been put right", drift.settled);
    let said = [(drift.settled > 0, settled), (drift.open > 0, open)];
    let said: Vec<_> = said.into_iter().filter_map(|(is_so, text)| is_so.then_some(text)).collect();
    Some((said.join("; "), drift.is_wide_open()))
}

/// What every source said of itself; of numbers that are old or were wrong, that they are.
pub(super) fn coverage(ledger: &Ledger, now: NodeTime) -> BTreeMap<SourceId, Known<CoverageDetail>> {
    let aged = |(source, said): (&SourceId, &Known<CoverageDetail>)| {
        let Known::Present(detail) = said else { return (*source, said.clone()) };
        let old = age(ledger, *source, now).filter(|age| *age > FRESH);
        let read = if detail.as_of_dump { "the table was last read whole" } else { "its counters were last read" };
        let stale = old.map(|age| format!("{read} {} s ago, what happened since is missing", age.as_secs()));
        let conntrack = *source == SourceId::Conntrack;
        let wrong = if conntrack { miscounted(ledger) } else { None };
        let uncertain = uncertain(ledger, *source);
        let much = uncertain.clone().filter(|(_, much)| *much).map(|(said, _)| said);
        let missing: Vec<_> =
            detail.degraded.iter().map(ToString::to_string).chain(wrong).chain(much).chain(stale).collect();
        let degraded = (!missing.is_empty()).then(|| Why::new(missing.join("; ")));
        let little = uncertain.filter(|(_, much)| !much).map(|(said, _)| said);
        let how = [detail.how.clone()].into_iter().chain(little).collect::<Vec<_>>().join("; ");
        (*source, Known::Present(CoverageDetail { how, degraded, as_of_dump: detail.as_of_dump }))
    };
    ledger.coverage().iter().map(aged).collect()
}

/// What every source can do here, in the order they are shown.
pub(super) fn report(
    ledger: &Ledger,
    coverage: &BTreeMap<SourceId, Known<CoverageDetail>>,
    now: NodeTime,
) -> Vec<CoverageReport> {
    let said = SourceId::ALL.iter().filter_map(|source| Some((*source, coverage.get(source)?)));
    said.map(|(source, coverage)| {
        let (state, how, why) = match coverage {
            Known::Present(detail) => {
                let state = if detail.degraded.is_some() { CoverageState::Degraded } else { CoverageState::Ok };
                (state, Some(detail.how.clone()), detail.degraded.as_ref().map(ToString::to_string))
            }
            Known::Absent => (CoverageState::Absent, None, None),
            Known::Unknown(why) => (CoverageState::Unknown, None, Some(why.to_string())),
        };
        let age_millis = age(ledger, source, now).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        CoverageReport { source, state, how, why, age_millis }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::LedgerLimits;
    use crate::observe::{Fact, Observation};

    struct Node(Ledger);

    impl Node {
        fn put(&mut self, millis: u64, source: SourceId, fact: Fact) {
            self.0.apply(Observation { at: at(millis), source, fact });
        }

        fn read(&mut self, millis: u64, source: SourceId, snapshot: Snapshot, outcome: Outcome) {
            self.put(millis, source, Fact::Begin(snapshot));
            self.put(millis + 100, source, Fact::End { snapshot, outcome });
        }

        fn says(&mut self, source: SourceId, degraded: Option<&str>) {
            let detail =
                CoverageDetail { how: "counters".to_owned(), degraded: degraded.map(Why::new), as_of_dump: false };
            self.put(0, source, Fact::Coverage(Known::Present(detail)));
        }

        /// State, why and age of a source.
        fn report(&self, source: SourceId, millis: u64) -> (CoverageState, Option<String>, Option<u64>) {
            let rows = report(&self.0, &coverage(&self.0, at(millis)), at(millis));
            let row = rows.into_iter().find(|row| row.source == source).unwrap();
            (row.state, row.why, row.age_millis)
        }
    }

    fn at(millis: u64) -> NodeTime {
        NodeTime::from_nanos(millis * 1_000_000)
    }

    /// Exercises both sides of two seconds, counted from when the reading began. If this fails, an estimate from old numbers
    /// looks like one of now.
    #[test]
    fn numbers_older_than_two_seconds_are_told_to_be() {
        for (source, snapshot) in COUNTERS {
            let mut node = Node(Ledger::new(LedgerLimits::default()));
            node.says(source, None);
            assert_eq!(node.report(source, 9000), (CoverageState::Ok, None, None), "nothing was read");
            node.read(8000, source, snapshot, Outcome::Complete);
            node.read(8200, SourceId::Tcp, Snapshot::Sockets, Outcome::Complete);
            node.read(10_000, source, snapshot, Outcome::Partial(Why::new("what moved")));
            assert_eq!(node.report(source, 12_000), (CoverageState::Ok, None, Some(2000)));
            assert_eq!(node.report(source, 12_001).0, CoverageState::Degraded, "a millisecond older");
            let (state, why, age) = node.report(source, 22_001);
            assert_eq!((state, age), (CoverageState::Degraded, Some(12_001)));
            assert_eq!(why.unwrap(), "its counters were last read 12 s ago, what happened since is missing");
            node.says(source, Some("no refusals"));
            assert!(node.report(source, 22_001).1.unwrap().starts_with("no refusals; its counters were last read"));
            node.read(22_500, source, snapshot, Outcome::Complete);
            assert_eq!(
                node.report(source, 23_000),
                (CoverageState::Degraded, Some("no refusals".to_owned()), Some(500))
            );
        }
    }

    /// Exercises a source that nobody tells what comes and goes. If this fails, its numbers look like those of now.
    #[test]
    fn numbers_of_dumps_alone_have_the_age_of_the_last_whole_one() {
        let (mut node, source) = (Node(Ledger::new(LedgerLimits::default())), SourceId::Conntrack);
        node.read(1000, source, Snapshot::Conntrack, Outcome::Complete);
        node.says(source, None);
        assert_eq!(node.report(source, 31_000), (CoverageState::Ok, None, None), "events tell what came since");
        let why = Some(Why::new("too many to hear of"));
        let detail = CoverageDetail { how: "dumps".to_owned(), degraded: why, as_of_dump: true };
        node.put(1100, source, Fact::Coverage(Known::Present(detail)));
        node.read(20_000, source, Snapshot::ConntrackUdp, Outcome::Complete);
        let (state, why, age) = node.report(source, 31_000);
        assert_eq!((state, age), (CoverageState::Degraded, Some(30_000)));
        let said = "too many to hear of; the table was last read whole 30 s ago, what happened since is missing";
        assert_eq!(why.unwrap(), said);
        assert_eq!(node.report(source, 2500).2, Some(1500));
        node.read(32_000, source, Snapshot::Conntrack, Outcome::Failed(Why::new("torn")));
        assert_eq!(node.report(source, 33_000).2, None);
    }

    /// Exercises both sides of what is much, with connections from before the start that moved while sockets were read. If this
    /// fails, numbers that lack them look like all there is, or a single one makes a whole source look broken.
    #[test]
    fn connections_from_before_the_start_that_are_not_certain_are_told() {
        let destination = crate::flow::Endpoint::new([203, 0, 113, 7].into(), 443);
        let counter = crate::observe::TcpCounter::zero(destination, [10, 64, 0, 5].into());
        // Each may be one too many under way, and one too few open.
        for (moved, state) in [(5, CoverageState::Ok), (6, CoverageState::Degraded)] {
            let mut node = Node(Ledger::new(LedgerLimits::default()));
            node.says(SourceId::Tcp, None);
            node.put(1000, SourceId::Tcp, Fact::Begin(Snapshot::TcpCounters));
            node.put(1000, SourceId::Tcp, Fact::TcpCounter(counter));
            node.put(1100, SourceId::Tcp, Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
            let (before, why, _) = node.report(SourceId::Tcp, 1200);
            assert_eq!(before, CoverageState::Degraded);
            assert_eq!(why.unwrap(), "connections from before the start are missing until all sockets were read once");
            node.read(1200, SourceId::Tcp, Snapshot::Sockets, Outcome::Complete);
            node.put(1400, SourceId::Tcp, Fact::Begin(Snapshot::TcpCounters));
            let moved_on = crate::observe::TcpCounter { attempted: moved, opened: moved, closed: moved, ..counter };
            node.put(1400, SourceId::Tcp, Fact::TcpCounter(moved_on));
            node.put(1500, SourceId::Tcp, Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
            let (now, all) = (at(1600), coverage(&node.0, at(1600)));
            let row = report(&node.0, &all, now).into_iter().find(|row| row.source == SourceId::Tcp).unwrap();
            assert_eq!(row.state, state, "{row:?}");
            let said =
                format!("connections from before the start to 1 destination are not certain yet (± {})", 2 * moved);
            let told = row.why.or(row.how).unwrap();
            assert!(told.contains(&said), "{told}");
        }
    }

    /// Exercises a source that lost its counters, and one that says it cannot read. If this fails, somebody else's numbers get
    /// their age.
    #[test]
    fn what_could_not_be_read_has_no_age() {
        let mut node = Node(Ledger::new(LedgerLimits::default()));
        let (tcp, conntrack) = (SourceId::Tcp, SourceId::Conntrack);
        for (source, snapshot) in COUNTERS {
            node.says(source, None);
            node.read(1000, source, snapshot, Outcome::Complete);
        }
        node.read(2000, conntrack, Snapshot::ConntrackCounters, Outcome::Failed(Why::new("unloaded")));
        assert_eq!(node.report(conntrack, 60_000), (CoverageState::Ok, None, None));
        node.put(2000, tcp, Fact::Coverage(Known::because("no batches")));
        assert_eq!(node.report(tcp, 60_000), (CoverageState::Unknown, Some("no batches".to_owned()), None));
    }
}
