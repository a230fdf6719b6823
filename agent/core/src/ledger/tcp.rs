//! TCP connections as the sockets' side sees them: kernel counters, and socket tables for what existed before.
//!
//! Counters tell opens and closes since the programs were attached. A socket table read between two readings of the
//! counters tells how many connections there are in all; where the counters did not move meanwhile, the difference is
//! what existed before (the *baseline*). Every later socket table corrects it again, so lost counts do not stay lost.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::Endpoint;
use crate::observe::{Outcome, Socket, SocketState, TcpCounter};
use crate::time::NodeTime;

type Key = (Endpoint, IpAddr);

/// `TCP_TIMEWAIT_LEN` of the kernel (`include/net/tcp.h`): not configurable.
const TIME_WAIT: Duration = Duration::from_secs(60);

/// What the sockets' side knows of one (destination, source address) pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpTally {
    /// Connections open now.
    pub open: u64,
    /// Connects under way.
    pub wanting: u64,
    /// Ended by FIN within the asked span, as far as it is known.
    pub closed_lately: u64,
    /// Of these: ended before the counting began, as socket tables tell (which forget after a minute).
    pub closed_before: u64,
    /// Ended by RST within the asked span.
    pub reset_lately: u64,
    /// Connects that failed within the asked span (without those for want of a local port).
    pub failed_lately: u64,
    /// Connects that found no local port within the asked span.
    pub no_local_port_lately: u64,
    /// SYNs sent again within the asked span.
    pub syn_retransmitted_lately: u64,
    /// Opened since start.
    pub opened_total: u64,
    /// Closed or reset since start.
    pub closed_total: u64,
    /// Failed since start, for whatever reason.
    pub failed_total: u64,
    /// SYNs sent again since start.
    pub syn_retransmitted_total: u64,
}

/// One reading of a pair's counters that differs from the one before.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: NodeTime,
    counter: TcpCounter,
}

#[derive(Debug, Clone, Default)]
struct SocketTally {
    open: u64,
    wanting: u64,
    /// When the sockets now in TIME_WAIT closed.
    closed_at: Vec<NodeTime>,
}

#[derive(Debug, Default)]
struct Row {
    /// Oldest first; the last is the present.
    readings: VecDeque<Reading>,
    /// Connections that the counters do not know: opened before, less what was missed.
    baseline_open: i64,
    baseline_wanting: i64,
    /// Ends of connections before the counters began.
    closed_before: Vec<NodeTime>,
}

/// Counters and socket tables, joined.
#[derive(Debug)]
pub struct TcpConnections {
    remember: Duration,
    rows: BTreeMap<Key, Row>,
    incoming: BTreeMap<Key, TcpCounter>,
    /// When counting began.
    counting_since: Option<NodeTime>,
    sockets: BTreeMap<Key, SocketTally>,
    incoming_sockets: BTreeMap<Key, SocketTally>,
    /// A socket table that waits for the next reading of the counters: the readings before it, and whether it was complete.
    waiting: Option<(BTreeMap<Key, TcpCounter>, bool)>,
    counters_end: Option<NodeTime>,
}

impl TcpConnections {
    pub(super) fn new(remember: Duration) -> Self {
        Self {
            remember,
            rows: BTreeMap::new(),
            incoming: BTreeMap::new(),
            counting_since: None,
            sockets: BTreeMap::new(),
            incoming_sockets: BTreeMap::new(),
            waiting: None,
            counters_end: None,
        }
    }

    pub(super) fn begin_counters(&mut self) {
        self.incoming.clear();
    }

    pub(super) fn counter(&mut self, counter: TcpCounter) {
        self.incoming.insert((counter.destination, counter.source), counter);
    }

    pub(super) fn end_counters(&mut self, begin: NodeTime, at: NodeTime, outcome: &Outcome) {
        let incoming = std::mem::take(&mut self.incoming);
        if matches!(outcome, Outcome::Failed(_)) {
            return;
        }
        self.counting_since.get_or_insert(begin);
        let horizon = at.before(self.remember);
        for (key, counter) in &incoming {
            let row = self.rows.entry(*key).or_default();
            row.note(at, *counter);
            // The newest reading before the horizon stays: it is what the oldest differences are taken from.
            while row.readings.get(1).is_some_and(|second| second.at < horizon) {
                row.readings.pop_front();
            }
        }
        self.counters_end = Some(at);
        if let Some((before, complete)) = self.waiting.take() {
            self.reconcile(&before, &incoming, complete);
        }
    }

    pub(super) fn begin_sockets(&mut self) {
        self.incoming_sockets.clear();
    }

    pub(super) fn socket(&mut self, socket: Socket, at: NodeTime) {
        if socket.accepted {
            return;
        }
        let tally = self.incoming_sockets.entry((socket.destination, socket.source.address)).or_default();
        match socket.state {
            SocketState::Connecting => tally.wanting += 1,
            SocketState::Open => tally.open += 1,
            SocketState::TimeWait { remaining_millis } => {
                let gone_by = TIME_WAIT.saturating_sub(Duration::from_millis(u64::from(remaining_millis)));
                tally.closed_at.push(at.before(gone_by));
            }
        }
    }

    pub(super) fn end_sockets(&mut self, begin: NodeTime, _at: NodeTime, outcome: &Outcome) {
        self.waiting = None;
        let incoming = std::mem::take(&mut self.incoming_sockets);
        match outcome {
            Outcome::Complete => self.sockets = incoming,
            Outcome::Partial(_) => self.sockets.extend(incoming),
            Outcome::Failed(_) => return,
        }
        // Only counters read before the table can bracket it.
        if self.counters_end.is_some_and(|end| end <= begin) {
            let before = self.rows.iter().filter_map(|(key, row)| Some((*key, row.readings.back()?.counter))).collect();
            self.waiting = Some((before, *outcome == Outcome::Complete));
        }
    }

    /// Sets the baseline of every pair whose counters stood still while the socket table was read.
    fn reconcile(&mut self, before: &BTreeMap<Key, TcpCounter>, after: &BTreeMap<Key, TcpCounter>, complete: bool) {
        let counting_since = self.counting_since.unwrap_or_default();
        for (key, tally) in &self.sockets {
            let row = self.rows.entry(*key).or_default();
            if row.closed_before.is_empty() {
                row.closed_before = tally.closed_at.iter().copied().filter(|closed| *closed < counting_since).collect();
            }
        }
        let moves = |reading: Option<&TcpCounter>| reading.map_or([0; 6], TcpCounter::movements);
        for (key, row) in &mut self.rows {
            let counter = after.get(key);
            if moves(before.get(key)) != moves(counter) {
                continue;
            }
            let (tally_open, tally_wanting) = self.sockets.get(key).map_or((0, 0), |tally| (tally.open, tally.wanting));
            let open = signed(tally_open).saturating_sub(counter.map_or(0, TcpCounter::net_open));
            let wanting = signed(tally_wanting).saturating_sub(counter.map_or(0, TcpCounter::net_wanting));
            // What an incomplete table does not show proves nothing.
            row.baseline_open = if complete { open } else { open.max(row.baseline_open) };
            row.baseline_wanting = if complete { wanting } else { wanting.max(row.baseline_wanting) };
        }
        let sockets = &self.sockets;
        self.rows.retain(|key, row| !row.readings.is_empty() || sockets.contains_key(key));
    }

    /// When the counting began; `None` where nothing is counted.
    pub fn counting_since(&self) -> Option<NodeTime> {
        self.counting_since
    }

    /// Every pair, with what happened within `span` before `now`.
    pub fn iter(&self, now: NodeTime, span: Duration) -> impl Iterator<Item = (Endpoint, IpAddr, TcpTally)> + '_ {
        let since = now.before(span);
        let counted = self.rows.iter().map(move |(key, row)| (key.0, key.1, row.tally(since)));
        // Without counters the socket tables are all there is.
        let tables = self.sockets.iter().filter(|_| self.counting_since.is_none()).map(move |(key, tally)| {
            let closed_lately = tally.closed_at.iter().filter(|closed| **closed >= since).count();
            let tally = TcpTally {
                open: tally.open,
                wanting: tally.wanting,
                closed_lately: u64::try_from(closed_lately).unwrap_or(u64::MAX),
                closed_before: 0,
                ..TcpTally::default()
            };
            (key.0, key.1, tally)
        });
        counted.chain(tables)
    }
}

impl Row {
    /// Keeps at most one reading a second: what happened within it counts as of its end.
    fn note(&mut self, at: NodeTime, counter: TcpCounter) {
        let second_to_last =
            self.readings.len().checked_sub(2).and_then(|index| self.readings.get(index)).map(|reading| reading.at);
        match self.readings.back_mut() {
            Some(last) if last.counter == counter => {}
            Some(last) if second_to_last.is_some_and(|before| at.since(before) < Duration::from_secs(1)) => {
                *last = Reading { at, counter };
            }
            _ => self.readings.push_back(Reading { at, counter }),
        }
    }

    fn tally(&self, since: NodeTime) -> TcpTally {
        let closed_before = self.closed_before.iter().filter(|closed| **closed >= since).count();
        let closed_before = u64::try_from(closed_before).unwrap_or(u64::MAX);
        let Some(Reading { counter: last, .. }) = self.readings.back() else {
            return TcpTally {
                open: self.baseline_open.max(0).unsigned_abs(),
                wanting: self.baseline_wanting.max(0).unsigned_abs(),
                closed_lately: closed_before,
                closed_before,
                ..TcpTally::default()
            };
        };
        let then = self.readings.iter().rev().find(|reading| reading.at <= since).map(|reading| reading.counter);
        let lately = |of: fn(&TcpCounter) -> u64| of(last).saturating_sub(then.as_ref().map_or(0, of));
        TcpTally {
            open: last.net_open().saturating_add(self.baseline_open).max(0).unsigned_abs(),
            wanting: last.net_wanting().saturating_add(self.baseline_wanting).max(0).unsigned_abs(),
            closed_lately: lately(|counter| counter.closed).saturating_add(closed_before),
            closed_before,
            reset_lately: lately(|counter| counter.reset),
            failed_lately: lately(|counter| counter.failed),
            no_local_port_lately: lately(|counter| counter.no_local_port),
            syn_retransmitted_lately: lately(|counter| counter.syn_retransmitted),
            opened_total: last.opened,
            closed_total: last.closed.saturating_add(last.reset),
            failed_total: last.failed.saturating_add(last.no_local_port),
            syn_retransmitted_total: last.syn_retransmitted,
        }
    }
}

impl TcpCounter {
    fn movements(&self) -> [u64; 6] {
        [self.attempted, self.opened, self.closed, self.reset, self.failed, self.no_local_port]
    }

    /// Opened less ended; negative when connections from before the counting ended.
    fn net_open(&self) -> i64 {
        signed(self.opened).saturating_sub(signed(self.closed)).saturating_sub(signed(self.reset))
    }

    /// Attempted less answered and failed.
    fn net_wanting(&self) -> i64 {
        let done = signed(self.opened).saturating_add(signed(self.failed)).saturating_add(signed(self.no_local_port));
        signed(self.attempted).saturating_sub(done)
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
