//! TCP connections as the sockets' side sees them: kernel counters, and socket tables for what existed before.
//!
//! Counters tell opens and closes since the programs were attached. A socket table read between two readings of the
//! counters tells how many connections there are in all; where the counters did not move meanwhile, the difference is
//! what existed before (the *baseline*), and where they did, it is known within what moved (`tcp/before.rs`). Every later socket
//! table corrects it again, so lost counts do not stay lost.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{Destination, Endpoint};
use crate::ids::NetnsInode;
use crate::ledger::HAIRPIN_SILENT_SECS;
use crate::ledger::pairs::{Pair, Pairs};
use crate::observe::{Outcome, Owner, Socket, SocketOwner, SocketState, SocketTimer, TcpCounter};
use crate::ports::PortRange;
use crate::time::NodeTime;

mod before;
mod row;
mod tally;

pub use before::Uncertain;
use before::{Before, Shown};
use row::{Noted, Row, Since};
pub use tally::{Failures, Spans, TcpTally};

type Key = (Endpoint, IpAddr);

/// Sockets do not know what they are translated to.
fn pair((destination, source): Key) -> Pair {
    Pair { destination: Destination::tcp(destination), source, translated: source }
}

fn key(pair: &Pair) -> Key {
    (pair.destination.endpoint, pair.source)
}

/// A socket table that was read after a reading of the counters.
#[derive(Debug)]
struct Waiting {
    /// The reading before it.
    before: u32,
    /// What it shows, where it was not read to its end: there is more in [`TcpConnections::sockets`] then, from tables before it.
    part: Option<BTreeMap<Key, Shown>>,
}

impl Waiting {
    /// What it shows of a pair; `None` where it does not tell.
    fn shown(&self, sockets: &BTreeMap<Key, SocketTally>, key: &Key) -> Option<Shown> {
        match &self.part {
            Some(part) => part.get(key).copied(),
            None => Some(sockets.get(key).map(SocketTally::shown).unwrap_or_default()),
        }
    }

    fn is_whole(&self) -> bool {
        self.part.is_none()
    }
}

/// `TCP_TIMEWAIT_LEN` of the kernel (`include/net/tcp.h`): not configurable.
const TIME_WAIT: Duration = Duration::from_secs(60);

/// What the last socket table showed of one pair.
#[derive(Debug, Clone, Default)]
struct SocketTally {
    open: u32,
    wanting: u32,
    time_wait: u32,
    keepalive: KeepaliveTally,
    /// When the sockets now in TIME_WAIT closed, as far as they are not counted.
    closed_at: Vec<NodeTime>,
}

/// How the open sockets of one pair see to it that they are not forgotten on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeepaliveTally {
    /// Sockets that send no probes.
    pub off: u32,
    /// Sockets that do.
    pub on: u32,
    /// The longest that one of these will wait for its next look, in seconds.
    pub next_secs: u32,
}

/// What the last socket table showed of one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableTally {
    /// Connections open.
    pub open: u32,
    /// In TIME_WAIT: they keep their local port.
    pub time_wait: u32,
    /// Keepalive of those open.
    pub keepalive: KeepaliveTally,
}

impl SocketTally {
    fn shown(&self) -> Shown {
        (self.open, self.wanting)
    }

    fn told(&self) -> TableTally {
        TableTally { open: self.open, time_wait: self.time_wait, keepalive: self.keepalive }
    }
}

impl KeepaliveTally {
    fn add(&mut self, timer: SocketTimer) {
        match timer {
            SocketTimer::None => self.off = self.off.saturating_add(1),
            SocketTimer::Keepalive { remaining_millis } => {
                self.on = self.on.saturating_add(1);
                self.next_secs = self.next_secs.max(remaining_millis / 1000);
            }
            // Data is under way: whether it has a keepalive timer does not show.
            SocketTimer::Other => {}
        }
    }
}

/// Counters and socket tables, joined.
#[derive(Debug)]
pub struct TcpConnections {
    remember: Duration,
    rows: Pairs<Row>,
    /// The number of the counters' reading that is under way, or was last; from 1 on.
    reading: u32,
    /// When counting began.
    counting_since: Option<NodeTime>,
    sockets: BTreeMap<Key, SocketTally>,
    incoming_sockets: BTreeMap<Key, SocketTally>,
    /// Whose the sockets of the node's own network are, for few destinations.
    owners: BTreeMap<Key, Vec<(Owner, u32)>>,
    incoming_owners: BTreeMap<Key, Vec<(Owner, u32)>>,
    /// Ports that somebody listens on.
    listening: BTreeMap<NetnsInode, Vec<PortRange>>,
    incoming_listening: BTreeMap<NetnsInode, Vec<PortRange>>,
    /// A socket table that waits for the next reading of the counters.
    waiting: Option<Waiting>,
    counters_end: Option<NodeTime>,
    /// When the reading of the last table began, if it was read to its end.
    whole_since: Option<NodeTime>,
    /// What is not certain of connections from before the counting.
    before: Before,
}

impl TcpConnections {
    pub(super) fn new(remember: Duration) -> Self {
        Self {
            remember,
            rows: Pairs::default(),
            reading: 0,
            counting_since: None,
            sockets: BTreeMap::new(),
            incoming_sockets: BTreeMap::new(),
            owners: BTreeMap::new(),
            incoming_owners: BTreeMap::new(),
            listening: BTreeMap::new(),
            incoming_listening: BTreeMap::new(),
            waiting: None,
            counters_end: None,
            whole_since: None,
            before: Before::default(),
        }
    }

    pub(super) fn remember_for(&mut self, remember: Duration) {
        self.remember = remember;
    }

    pub(super) fn begin_counters(&mut self) {
        self.reading = self.reading.saturating_add(1);
    }

    /// Counters only grow, so each is taken in at once, also one of a reading that will fail.
    pub(super) fn counter(&mut self, counter: TcpCounter, at: NodeTime) {
        let key = (counter.destination, counter.source);
        let pair = pair(key);
        let row = self.rows.of(&pair);
        let before = row.level();
        let noted = row.note(&counter, at, self.reading);
        row.forget(at.before(self.remember));
        match (noted, &self.waiting) {
            (Noted::Anew, _) => self.before.settle(&pair),
            (Noted::Moved, Some(table)) => {
                if let Some(shown) = table.shown(&self.sockets, &key) {
                    self.before.moved(&pair, row, before, shown, table.is_whole());
                }
            }
            (Noted::Moved, None) | (Noted::Still, _) => {}
        }
    }

    pub(super) fn end_counters(&mut self, begin: NodeTime, at: NodeTime, outcome: &Outcome) {
        if matches!(outcome, Outcome::Failed(_)) {
            // Pairs that it showed were compared, and may not be with what the next one shows; the next table tells of the others.
            self.waiting = None;
            return;
        }
        self.counting_since.get_or_insert(begin);
        self.counters_end = Some(at);
        let (reading, horizon, sockets) = (self.reading, at.before(self.remember), &self.sockets);
        if *outcome == Outcome::Complete {
            self.rows.retain(|pair, row| {
                let counted = row.shown == reading;
                if !counted && row.shown > 0 {
                    row.retire();
                    self.before.settle(&pair);
                }
                counted || row.remembers(horizon) || sockets.contains_key(&key(&pair))
            });
        }
        if let Some(table) = self.waiting.take() {
            self.reconcile(&table);
        }
    }

    pub(super) fn begin_sockets(&mut self) {
        self.incoming_sockets.clear();
        self.incoming_owners.clear();
        self.incoming_listening.clear();
    }

    pub(super) fn listening(&mut self, inode: NetnsInode, ports: Vec<PortRange>) {
        self.incoming_listening.insert(inode, ports);
    }

    pub(super) fn socket_owner(&mut self, owner: SocketOwner) {
        let owners = self.incoming_owners.entry((owner.destination, owner.source)).or_default();
        if owners.iter().all(|(known, _)| *known != owner.owner) {
            owners.push((owner.owner, owner.sockets));
        }
    }

    pub(super) fn socket(&mut self, socket: Socket, at: NodeTime) {
        if socket.accepted {
            return;
        }
        let tally = self.incoming_sockets.entry((socket.destination, socket.source.address)).or_default();
        match socket.state {
            SocketState::Connecting => tally.wanting = tally.wanting.saturating_add(1),
            SocketState::Open => {
                tally.open = tally.open.saturating_add(1);
                tally.keepalive.add(socket.timer);
            }
            SocketState::TimeWait { remaining_millis } => {
                tally.time_wait = tally.time_wait.saturating_add(1);
                let gone_by = TIME_WAIT.saturating_sub(Duration::from_millis(u64::from(remaining_millis)));
                let closed = at.before(gone_by);
                // Later ones were counted.
                if self.counting_since.is_none_or(|since| closed < since) {
                    tally.closed_at.push(closed);
                }
            }
        }
    }

    pub(super) fn end_sockets(&mut self, begin: NodeTime, _at: NodeTime, outcome: &Outcome) {
        self.waiting = None;
        let incoming = std::mem::take(&mut self.incoming_sockets);
        if !matches!(outcome, Outcome::Failed(_)) {
            self.owners = std::mem::take(&mut self.incoming_owners);
        }
        let listening = std::mem::take(&mut self.incoming_listening);
        let part = match outcome {
            Outcome::Complete => {
                (self.sockets, self.listening) = (incoming, listening);
                self.whole_since = Some(begin);
                None
            }
            Outcome::Partial(_) => {
                self.whole_since = None;
                let part = incoming.iter().map(|(key, tally)| (*key, tally.shown())).collect();
                self.sockets.extend(incoming);
                self.listening.extend(listening);
                Some(part)
            }
            Outcome::Failed(_) => return,
        };
        // Only counters read before the table can bracket it.
        if self.counters_end.is_some_and(|end| end <= begin) {
            self.waiting = Some(Waiting { before: self.reading, part });
        }
    }

    /// Sets the baseline of every pair whose counters stood still while the socket table was read: the others were narrowed down
    /// as they were read.
    fn reconcile(&mut self, table: &Waiting) {
        let counting_since = self.counting_since.unwrap_or_default();
        for (key, tally) in &mut self.sockets {
            let row = self.rows.of(&pair(*key));
            row.closed_before(tally.closed_at.drain(..).filter(|closed| *closed < counting_since));
        }
        for (pair, row) in self.rows.iter_mut() {
            if row.moved <= table.before
                && let Some((open, wanting)) = table.shown(&self.sockets, &key(&pair))
            {
                row.reconcile(open, wanting, table.is_whole());
                if table.is_whole() {
                    self.before.settle(&pair);
                }
            }
        }
        if table.is_whole() {
            self.before.were_compared();
        }
    }

    /// What is not certain of connections from before the start, if anything is.
    pub fn uncertain(&self) -> Option<Uncertain> {
        self.before.uncertain(&self.rows)
    }

    /// Whether the counters were compared with a whole socket table: before, connections from before the start are not known.
    pub fn is_compared(&self) -> bool {
        self.before.is_known()
    }

    /// What the last socket table showed of connections to one destination, by their source address.
    pub fn tables_to(&self, destination: Endpoint) -> impl Iterator<Item = (IpAddr, TableTally)> + '_ {
        let lowest = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let of_destination =
            self.sockets.range((destination, lowest)..).take_while(move |(key, _)| key.0 == destination);
        of_destination.map(|((_, source), tally)| (*source, tally.told()))
    }

    /// What the last socket table showed of a pair; zeros if it did not show it.
    pub fn table(&self, destination: Endpoint, source: IpAddr) -> TableTally {
        self.sockets.get(&(destination, source)).map(SocketTally::told).unwrap_or_default()
    }

    /// Ports that somebody listens on in a namespace, as the last socket table showed them: connect() does not choose them.
    pub fn listened_on(&self, inode: NetnsInode) -> &[PortRange] {
        self.listening.get(&inode).map(Vec::as_slice).unwrap_or_default()
    }

    /// Connections of a pair that were open or being opened then, a moment ago at most; those begun since may be among them. `None`
    /// where not all sockets are known: no whole table was read, or none was compared with the counters.
    pub fn open_at(&self, destination: Endpoint, source: IpAddr, then: NodeTime, now: NodeTime) -> Option<u64> {
        let key = (destination, source);
        let Some(counting_since) = self.counting_since else {
            // An older table lacks connections that are silent long enough to be asked for.
            let fresh = |read: &NodeTime| read.after(Duration::from_secs(HAIRPIN_SILENT_SECS.into())) >= then;
            self.whole_since.filter(fresh)?;
            let Some(tally) = self.sockets.get(&key) else { return Some(0) };
            let closed = tally.closed_at.iter().filter(|closed| **closed >= then).count();
            let closed = u64::try_from(closed).unwrap_or(u64::MAX);
            return Some(closed.saturating_add(u64::from(tally.open) + u64::from(tally.wanting)));
        };
        if !self.before.is_certain(&pair(key)) {
            return None;
        }
        let since = Since::new(now, Spans::all(now.since(then)), counting_since);
        let tally = self.rows.get(&pair(key)).map(|row| row.tally(since)).unwrap_or_default();
        let ended = tally.closed_held.saturating_add(tally.reset_held);
        Some(tally.open.saturating_add(tally.wanting).saturating_add(ended))
    }

    /// Processes of the node's own network with connections from that address to that destination, and how many they have, as of
    /// the last socket table; empty where nobody looked.
    pub fn owners(&self, destination: Endpoint, source: IpAddr) -> &[(Owner, u32)] {
        self.owners.get(&(destination, source)).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many pairs are counted.
    pub fn pairs(&self) -> usize {
        self.rows.len()
    }

    /// When the counting began; `None` where nothing is counted.
    pub fn counting_since(&self) -> Option<NodeTime> {
        self.counting_since
    }

    /// Every pair, with what happened lately.
    pub fn iter(&self, now: NodeTime, spans: Spans) -> impl Iterator<Item = (Endpoint, IpAddr, TcpTally)> + '_ {
        let since = Since::new(now, spans, self.counting_since.unwrap_or_default());
        let counted =
            self.rows.iter().map(move |(pair, row)| (pair.destination.endpoint, pair.source, row.tally(since)));
        // Without counters the socket tables are all there is.
        let closed_since = now.before(spans.closed);
        let tables = self.sockets.iter().filter(|_| self.counting_since.is_none()).map(move |(key, tally)| {
            let closed = tally.closed_at.iter().filter(|closed| **closed >= closed_since).count();
            let tally = TcpTally {
                open: u64::from(tally.open),
                wanting: u64::from(tally.wanting),
                closed_held: u64::try_from(closed).unwrap_or(u64::MAX),
                ..TcpTally::default()
            };
            (key.0, key.1, tally)
        });
        counted.chain(tables)
    }
}
