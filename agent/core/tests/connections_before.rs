//! Connections from before the counting, to destinations that never stand still.

use std::net::IpAddr;
use std::time::Duration;

use headroom_core::flow::Endpoint;
use headroom_core::ids::NetnsInode;
use headroom_core::known::Why;
use headroom_core::ledger::{Ledger, LedgerLimits, Spans};
use headroom_core::observe::{
    Fact, Observation, Outcome, Snapshot, Socket, SocketState, SocketTimer, SourceId, TcpCounter,
};
use headroom_core::time::NodeTime;
use proptest::prelude::*;

const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 64, 0, 5));

fn destination() -> Endpoint {
    Endpoint::new(IpAddr::from([203, 0, 113, 7]), 443)
}

/// A node with connections to one destination: what is so, and what the agent was told.
struct Node {
    ledger: Ledger,
    millis: u64,
    /// Open, and under way, in truth.
    open: u64,
    wanting: u64,
    counter: TcpCounter,
}

/// What happens to connections at one time.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    dialled: u64,
    answered: u64,
    closed: u64,
}

impl Node {
    fn new(before: u64, wanting: u64) -> Self {
        let ledger = Ledger::new(LedgerLimits::default());
        let counter = TcpCounter { born: 1, ..TcpCounter::zero(destination(), SOURCE) };
        Self { ledger, millis: 1000, open: before, wanting, counter }
    }

    fn put(&mut self, fact: Fact) {
        self.millis += 1;
        let at = NodeTime::from_nanos(self.millis * 1_000_000);
        self.ledger.apply(Observation { at, source: SourceId::Tcp, fact });
    }

    fn happen(&mut self, load: Load) {
        self.wanting += load.dialled;
        let answered = load.answered.min(self.wanting);
        (self.wanting, self.open) = (self.wanting - answered, self.open + answered);
        let closed = load.closed.min(self.open);
        self.open -= closed;
        self.counter.attempted += load.dialled;
        self.counter.opened += answered;
        self.counter.closed += closed;
    }

    fn read_counters(&mut self, outcome: Outcome) {
        self.put(Fact::Begin(Snapshot::TcpCounters));
        self.put(Fact::TcpCounter(self.counter));
        // Duplicates are harmless.
        self.put(Fact::TcpCounter(self.counter));
        self.put(Fact::End { snapshot: Snapshot::TcpCounters, outcome });
    }

    /// A table is read while the load goes on: all of it is read before the load, or after it.
    fn read_sockets(&mut self, load: Load, before_load: (bool, bool), outcome: Outcome) {
        self.put(Fact::Begin(Snapshot::Sockets));
        let then = (self.open, self.wanting);
        self.happen(load);
        let open = if before_load.0 { then.0 } else { self.open };
        let wanting = if before_load.1 { then.1 } else { self.wanting };
        let states = (0..open).map(|_| SocketState::Open).chain((0..wanting).map(|_| SocketState::Connecting));
        for (port, state) in (1..).zip(states) {
            let source = Endpoint::new(SOURCE, port);
            let (netns, timer) = (NetnsInode(1), SocketTimer::None);
            let socket = Socket { netns, source, destination: destination(), state, timer, accepted: false };
            self.put(Fact::Socket(socket));
        }
        self.put(Fact::End { snapshot: Snapshot::Sockets, outcome });
    }

    /// Counters, a table, counters.
    fn round(&mut self, load: Load, before_load: (bool, bool), outcome: Outcome) {
        self.read_counters(Outcome::Complete);
        self.read_sockets(load, before_load, outcome);
        self.read_counters(Outcome::Complete);
    }

    /// Open and wanting as the ledger has them.
    fn counted(&self) -> (u64, u64) {
        let now = NodeTime::from_nanos(self.millis * 1_000_000);
        let all = self.ledger.tcp().iter(now, Spans::all(Duration::from_secs(1)));
        all.fold((0, 0), |(open, wanting), (_, _, tally)| (open + tally.open, wanting + tally.wanting))
    }

    /// How far the ledger is from the truth, and how far it says it may be.
    fn apart(&self) -> (u64, u64) {
        let (open, wanting) = self.counted();
        let doubt = self.ledger.tcp().uncertain().map_or(0, |uncertain| uncertain.by);
        (open.abs_diff(self.open) + wanting.abs_diff(self.wanting), doubt)
    }

    fn is_certain(&self) -> bool {
        let now = NodeTime::from_nanos(self.millis * 1_000_000);
        self.ledger.tcp().open_at(destination(), SOURCE, now, now).is_some()
    }
}

const STEADY: Load = Load { dialled: 3, answered: 3, closed: 3 };

/// Exercises four hundred connections from before the start, beside some that come and go whenever a table is read. If this
/// fails, the report lacks them for as long as the pair moves, or does not say what it does not know.
#[test]
fn a_pair_that_never_stands_still_has_its_old_connections_within_what_moved() {
    let mut node = Node::new(400, 0);
    assert!(!node.ledger.tcp().is_compared());
    for round in 0..5 {
        node.happen(STEADY);
        node.round(STEADY, (round % 2 == 0, true), Outcome::Complete);
        let uncertain = node.ledger.tcp().uncertain().unwrap();
        assert_eq!(uncertain.destinations, 1);
        assert!((400_u64 - 3..=400 + 3).contains(&node.counted().0), "{:?}", node.counted());
        assert!(node.apart().0 <= uncertain.by && uncertain.by <= 6, "{:?} {uncertain:?}", node.apart());
        assert!(node.ledger.tcp().is_compared() && !node.is_certain());
    }
    // Nothing but one that opens: the table is one of a quiet moment but for it, and of what closed nothing was seen.
    node.round(Load::default(), (true, true), Outcome::Complete);
    assert_eq!((node.apart(), node.counted()), ((0, 0), (400, 0)));
    assert!(node.is_certain());
    // From then on counting alone keeps it so, and tables under load correct nothing.
    for before_load in [true, false] {
        node.round(STEADY, (before_load, before_load), Outcome::Complete);
        assert_eq!(node.apart(), (0, 0));
    }
}

/// Exercises counts that were lost, of a pair that never stands still. If this fails, what was lost once stays lost.
#[test]
fn what_was_lost_is_corrected_by_a_table_under_load() {
    let mut node = Node::new(0, 0);
    node.round(Load::default(), (true, true), Outcome::Complete);
    node.happen(Load { dialled: 50, answered: 50, closed: 0 });
    node.round(STEADY, (true, true), Outcome::Complete);
    assert_eq!(node.apart(), (0, 0));
    // Forty ends that the kernel did not tell of.
    node.open -= 40;
    node.round(STEADY, (true, true), Outcome::Complete);
    assert!(node.apart().0 <= 3, "{:?}", node.counted());
}

/// Exercises a reading that fails behind a table. If this fails, what came between two readings is taken for what came while the
/// table was read.
#[test]
fn a_table_is_compared_with_the_first_reading_behind_it_or_not_at_all() {
    let mut node = Node::new(100, 0);
    node.read_counters(Outcome::Complete);
    node.read_sockets(STEADY, (true, true), Outcome::Complete);
    node.read_counters(Outcome::Failed(Why::new("torn")));
    node.happen(Load { dialled: 500, answered: 500, closed: 550 });
    node.read_counters(Outcome::Complete);
    assert!(!node.ledger.tcp().is_compared() && !node.is_certain());
    node.round(Load::default(), (true, true), Outcome::Complete);
    assert_eq!(node.apart(), (0, 0));
}

/// Exercises connections that ended after the first table showed them, and before the kernel was told to count them. If this fails,
/// a number that is too large looks certain.
#[test]
fn what_ended_before_it_could_be_counted_is_not_certain() {
    let mut node = Node::new(10, 0);
    node.put(Fact::Begin(Snapshot::TcpCounters));
    node.put(Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete });
    node.read_sockets(Load::default(), (true, true), Outcome::Complete);
    node.open -= 4;
    node.happen(Load { dialled: 2, answered: 2, closed: 0 });
    node.read_counters(Outcome::Complete);
    let (apart, doubt) = node.apart();
    assert!(apart > 0 && apart <= doubt, "{apart} of {doubt}");
    node.round(Load::default(), (true, true), Outcome::Complete);
    assert_eq!(node.apart(), (0, 0));
}

fn load() -> impl Strategy<Value = Load> {
    (0_u64..6, 0_u64..6, 0_u64..6).prop_map(|(dialled, answered, closed)| Load { dialled, answered, closed })
}

proptest! {
    /// Exercises any load before and while tables are read. If this fails, the ledger is further from the truth than it says, or
    /// a quiet moment does not make it exact.
    #[test]
    fn what_is_not_certain_is_told(
        before in 0_u64..30, wanting in 0_u64..5,
        rounds in proptest::collection::vec((load(), load(), any::<(bool, bool)>(), any::<bool>()), 1..8),
    ) {
        let mut node = Node::new(before, wanting);
        for (between, during, before_load, whole) in rounds {
            node.happen(between);
            let outcome = if whole { Outcome::Complete } else { Outcome::Partial(Why::new("a part")) };
            node.round(during, before_load, outcome);
            let (apart, doubt) = node.apart();
            prop_assert!(!node.ledger.tcp().is_compared() || apart <= doubt, "{} of {}", apart, doubt);
            prop_assert_eq!(node.is_certain(), node.ledger.tcp().is_compared() && doubt == 0);
        }
        node.round(Load::default(), (true, true), Outcome::Complete);
        prop_assert_eq!(node.apart(), (0, 0));
    }
}
