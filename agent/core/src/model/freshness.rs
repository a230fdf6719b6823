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

/// How long ago a source read its counters; `None` if it has none, or could not read them.
fn age(ledger: &Ledger, source: SourceId, now: NodeTime) -> Option<Duration> {
    let (_, snapshot) = COUNTERS.iter().find(|(counting, _)| *counting == source)?;
    let bracket = ledger.bracket_of(source, *snapshot)?;
    let read = ledger.works(source) && !matches!(bracket.outcome, Outcome::Failed(_));
    read.then(|| now.since(bracket.begin))
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

/// What is not certain of the kernel's counters of conntrack since they began, if something; and whether it is much.
fn uncertain(ledger: &Ledger) -> Option<(String, bool)> {
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
        let stale = old
            .map(|age| format!("its counters were last read {} s ago, what happened since is missing", age.as_secs()));
        let conntrack = *source == SourceId::Conntrack;
        let wrong = if conntrack { miscounted(ledger) } else { None };
        let uncertain = if conntrack { uncertain(ledger) } else { None };
        let much = uncertain.clone().filter(|(_, much)| *much).map(|(said, _)| said);
        let missing: Vec<_> =
            detail.degraded.iter().map(ToString::to_string).chain(wrong).chain(much).chain(stale).collect();
        let degraded = (!missing.is_empty()).then(|| Why::new(missing.join("; ")));
        let little = uncertain.filter(|(_, much)| !much).map(|(said, _)| said);
        let how = [detail.how.clone()].into_iter().chain(little).collect::<Vec<_>>().join("; ");
        (*source, Known::Present(CoverageDetail { how, degraded }))
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
            let detail = CoverageDetail { how: "counters".to_owned(), degraded: degraded.map(Why::new) };
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
