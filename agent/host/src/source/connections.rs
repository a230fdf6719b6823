//! TCP connections: the kernel's counters, and the socket tables that say what existed before them.
//!
//! The two are one source because their order matters: counters, socket tables, counters again. Where the counters stood
//! still in between, the ledger knows exactly how many connections the counters had missed, elsewhere within what moved; as long
//! as there are such pairs, the tables are read more often (`connections/tables.rs`). Pairs that only the tables
//! know are made known to the kernel in between, so that their closes are counted from then on.
//!
//! Most rounds tell only of pairs that moved, and many pairs are read less often: 50,000 of them would otherwise take a tenth of
//! a CPU.
//!
//! Bound: a round takes as long as reading the map and, once a minute at most, the socket tables of every network namespace
//! (10 s at most).

use std::time::Duration;

use headroom_core::observe::{Fact, Outcome, SourceId};
use headroom_core::time::NodeTime;

use crate::clock;
use crate::root::HostRoot;
use crate::source::share::Share;
use crate::source::sockets::{self, SocketsSource};
use crate::source::tcp::{Pairs, TcpSource};
use crate::source::{Sink, Source};

mod tables;

use tables::{Pace, Tables};

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
    root: HostRoot,
    tcp: TcpSource,
    sockets: SocketsSource,
    reading: Share,
    tables: Tables,
    /// When all pairs were told last.
    all_told: Option<NodeTime>,
    /// No reading of the counters before.
    next: NodeTime,
}

impl ConnectionsSource {
    /// Attaches the programs, if that is possible here.
    pub fn start(root: &HostRoot, options: Options) -> Self {
        Self {
            root: root.clone(),
            tcp: TcpSource::start(root, options.max_destinations),
            sockets: SocketsSource::new(root),
            reading: options.reading,
            tables: Tables::default(),
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
        if !self.tables.due(now, counting, || sockets::size::tcp_sockets(&self.root)) {
            return;
        }
        let began = clock::thread_cpu();
        // Before the namespaces are looked at: one that comes meanwhile must not be taken for gone.
        let dialled_from = self.tcp.namespaces();
        let (mut pairs, mut complete, mut found) = (Pairs::new(), false, 0);
        self.sockets.observe(&mut |observation| {
            found += u64::from(matches!(observation.fact, Fact::Socket(_)));
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
        if counting {
            if let Some(live) = self.sockets.namespaces() {
                self.tcp.forget_namespaces(dialled_from.difference(live));
            }
            self.tcp.seed(pairs.iter().copied());
            self.tcp.observe_after(complete.then_some((now, &pairs)), true, sink);
        }
        let pace = match (counting, self.tcp.is_restless()) {
            (false, _) => Pace::Alone,
            (true, false) => Pace::Steady,
            (true, true) => Pace::Restless,
        };
        self.tables.were_read(now, pace, took, found);
    }
}
