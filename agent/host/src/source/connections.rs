//! TCP connections: the kernel's counters, and the socket tables that say what existed before them.
//!
//! The two are one source because their order matters: counters, socket tables, counters again. Where the counters stood
//! still in between, the ledger knows exactly how many connections the counters had missed. Pairs that only the tables
//! know are made known to the kernel in between, so that their closes are counted from then on.
//!
//! Most rounds tell only of pairs that moved, and many pairs are read less often: 50,000 of them would otherwise take a tenth of
//! a CPU.
//!
//! Bound: a round takes as long as reading the map and, once a minute, the socket tables of every network namespace (10 s
//! at most).

use std::time::Duration;

use headroom_core::observe::{Fact, Outcome, SourceId};
use headroom_core::time::NodeTime;

use crate::clock;
use crate::root::HostRoot;
use crate::source::share::Share;
use crate::source::sockets::SocketsSource;
use crate::source::tcp::{Pairs, TcpSource};
use crate::source::{Sink, Source};

/// Tables are read again this often, to correct what was lost. Reading them takes some 10 ms of CPU per network namespace.
const TABLES_EVERY: Duration = Duration::from_secs(60);
/// And this often where they are all there is.
const TABLES_EVERY_WITHOUT_COUNTERS: Duration = Duration::from_secs(10);
/// So many rounds read them at the start: a pair that moved during the first may stand still during the next.
const FIRST_ROUNDS: u32 = 3;

/// Reading the tables may take this part of the time: one in four hundred, or one in fifty where they are all there is. A table
/// of 100,000 sockets in TIME_WAIT takes a second.
const IDLE_PER_TABLES: u32 = 400;
const IDLE_PER_TABLES_ALONE: u32 = 50;
/// The first rounds follow each other closely, since each tells only of pairs that stand still meanwhile.
const IDLE_PER_FIRST_TABLES: u32 = 5;

/// All pairs are told again this often: what is not among them is counted no longer.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// The part of the time that reading the counters may take on a node.
pub const READING: Share = Share::one_in(200);

/// How to look.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Pairs of destination and source counted in the kernel at the same time.
    pub max_destinations: u32,
    /// The part of the time that reading the counters may take ([`READING`]): what it costs decides how old they get.
    pub reading: Share,
}

/// Counters and socket tables.
#[derive(Debug)]
pub struct ConnectionsSource {
    tcp: TcpSource,
    sockets: SocketsSource,
    reading: Share,
    rounds: u32,
    /// No reading of the tables before.
    tables_next: NodeTime,
    /// When all pairs were told last.
    all_told: Option<NodeTime>,
    /// No reading of the counters before.
    next: NodeTime,
}

impl ConnectionsSource {
    /// Attaches the programs, if that is possible here.
    pub fn start(root: &HostRoot, options: Options) -> Self {
        Self {
            tcp: TcpSource::start(root, options.max_destinations),
            sockets: SocketsSource::new(root),
            reading: options.reading,
            rounds: 0,
            tables_next: NodeTime::default(),
            all_told: None,
            next: NodeTime::default(),
        }
    }
}

impl ConnectionsSource {
    /// Whether connects and closes are counted in the kernel.
    pub fn is_counting(&self) -> bool {
        self.tcp.programs().iter().any(|program| program.attached.is_ok())
    }
}

impl Source for ConnectionsSource {
    fn id(&self) -> SourceId {
        SourceId::Tcp
    }

    fn observe(&mut self, sink: Sink<'_>) {
        let now = clock::node_time();
        if now < self.next {
            return;
        }
        let began = clock::thread_cpu();
        let all = self.all_told.is_none_or(|told| now.since(told) >= ALL_EVERY);
        self.tcp.observe_after(None, all, sink);
        self.all_told = if all { Some(now) } else { self.all_told };
        self.next = now.after(self.reading.pause_after(clock::thread_cpu().saturating_sub(began)));
        let counting = self.is_counting();
        if now < self.tables_next {
            return;
        }
        self.rounds = self.rounds.saturating_add(1);
        let began = clock::thread_cpu();
        // Before the namespaces are looked at: one that comes meanwhile must not be taken for gone.
        let dialled_from = self.tcp.namespaces();
        let (mut pairs, mut complete) = (Pairs::new(), false);
        self.sockets.observe(&mut |observation| {
            match &observation.fact {
                Fact::Socket(socket) if !socket.accepted => {
                    pairs.insert((socket.destination, socket.source.address));
                }
                Fact::End { outcome, .. } => complete = *outcome == Outcome::Complete,
                _ => {}
            }
            sink(observation);
        });
        let took = clock::thread_cpu().saturating_sub(began);
        let pause = match counting {
            true if self.rounds < FIRST_ROUNDS => took.saturating_mul(IDLE_PER_FIRST_TABLES),
            true => TABLES_EVERY.max(took.saturating_mul(IDLE_PER_TABLES)),
            false => TABLES_EVERY_WITHOUT_COUNTERS.max(took.saturating_mul(IDLE_PER_TABLES_ALONE)),
        };
        self.tables_next = now.after(pause);
        if counting {
            if let Some(live) = self.sockets.namespaces() {
                self.tcp.forget_namespaces(dialled_from.difference(live));
            }
            self.tcp.seed(pairs.iter().copied());
            self.tcp.observe_after(complete.then_some((now, &pairs)), true, sink);
        }
    }
}
