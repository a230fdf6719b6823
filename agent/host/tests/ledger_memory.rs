//! What the ledger holds per pair of destination and source address, in the memory of this process. Alone in its binary:
//! nothing else may allocate.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::IpAddr;
use std::time::Duration;

use headroom_core::flow::Endpoint;
use headroom_core::ledger::{Ledger, LedgerLimits, Spans};
use headroom_core::observe::{Fact, Observation, Outcome, Snapshot, SourceId, TcpCounter};
use headroom_core::time::NodeTime;

const PAIRS: u32 = 50_000;
/// Seconds that are remembered.
const SECONDS: u64 = 150;

fn resident_bytes() -> u64 {
    procfs::process::Process::myself().unwrap().statm().unwrap().resident * procfs::page_size()
}

/// A reading in which every pair has closed as many connections as `closed` says.
fn read(ledger: &mut Ledger, second: u64, closed: impl Fn(u32) -> u64) {
    let mut put = |fact| ledger.apply(Observation { at: NodeTime::from_secs(second), source: SourceId::Tcp, fact });
    put(Fact::Begin(Snapshot::TcpCounters));
    for pair in 0..PAIRS {
        // In the order of a hash: far from that of the addresses.
        let [_, second, third, fourth] = (pair.wrapping_mul(40_503) % PAIRS).to_be_bytes();
        let closed = closed(pair);
        let destination = Endpoint::new(IpAddr::from([203, second, third, fourth]), 443);
        let zero = TcpCounter::zero(destination, IpAddr::from([10, 0, 0, 9]));
        put(Fact::TcpCounter(TcpCounter { attempted: closed, opened: closed, closed, ..zero }));
    }
    put(Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
}

/// Exercises the budget of the agent's memory (40 MiB with 50,000 destinations). If this fails, the ledger eats it.
#[test]
fn a_pair_that_moves_rarely_takes_200_bytes_and_keeps_its_answers() {
    let before = resident_bytes();
    let mut ledger = Ledger::new(LedgerLimits::default());
    read(&mut ledger, 1000, |_| 0);
    for second in (0..=SECONDS).step_by(5).skip(1) {
        // Each pair closes one connection every 50 seconds.
        read(&mut ledger, 1000 + second, |pair| (second + u64::from(pair) % 10 * 5) / 50);
    }
    let each = (resident_bytes() - before) / u64::from(PAIRS);
    println!("{each} bytes each");
    assert!(each <= 200, "{each} bytes each");
    let now = NodeTime::from_secs(1000 + SECONDS);
    for (span, expected) in [(120, 120 / 50), (50, 1)] {
        for (.., tally) in ledger.tcp().iter(now, Spans::all(Duration::from_secs(span))) {
            assert!((expected..=expected + 1).contains(&tally.closed_held), "{span} s: {tally:?}");
        }
        let all: u64 =
            ledger.tcp().iter(now, Spans::all(Duration::from_secs(span))).map(|(.., tally)| tally.closed_held).sum();
        assert_eq!(all, span * u64::from(PAIRS) / 50, "{span} s");
    }
    // Nothing happens for as long as is remembered, and the kernel has forgotten the pairs.
    for second in [1400, 1401] {
        let mut put = |fact| ledger.apply(Observation { at: NodeTime::from_secs(second), source: SourceId::Tcp, fact });
        put(Fact::Begin(Snapshot::TcpCounters));
        put(Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
    }
    assert_eq!(ledger.tcp().iter(now, Spans::all(Duration::from_secs(120))).count(), 0);
}
