//! What earlier evaluations leave for later ones.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::flow::{Destination, Protocol};
use crate::history::DemandHistory;
use crate::ledger::Ledger;
use crate::model::demand::Account;
use crate::model::ipam::ReservedMemory;
use crate::model::nat::NodePorts;
use crate::observe::{Loss, SourceId};
use crate::time::NodeTime;

/// A loss is a warning for this long after it happened; its total stays in the report.
const LOSS_FRESH: Duration = Duration::from_secs(600);
/// An allocation that shrank is told of for this long.
const SHRUNK_FRESH: Duration = Duration::from_secs(600);

/// Demand over the last hour, how fast connections come, what was lost when.
#[derive(Debug, Default)]
pub struct Memory {
    tcp: DemandHistory,
    udp: DemandHistory,
    icmp: DemandHistory,
    rates: Rates,
    allocation: Option<u32>,
    shrunk: Option<Shrunk>,
    pub(super) reserved: ReservedMemory,
    losses: BTreeMap<Loss, u64>,
    lost_at: Option<NodeTime>,
}

/// The allocation became smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shrunk {
    /// From so many ports.
    pub(super) from: u32,
    /// When.
    pub(super) at: NodeTime,
}

impl Memory {
    /// Takes in a moment.
    pub(super) fn note(&mut self, ledger: &Ledger, accounts: &[Account], given: Option<&NodePorts>, now: NodeTime) {
        let given = given.map(|given| given.ports);
        if let (Some(before), Some(after)) = (self.allocation, given)
            && after < before
        {
            self.shrunk = Some(Shrunk { from: before, at: now });
        }
        // It has as many again, or more.
        self.shrunk = self.shrunk.filter(|shrunk| given.is_none_or(|ports| ports < shrunk.from));
        self.allocation = given.or(self.allocation);
        if ledger.works(SourceId::Tcp) {
            self.rates.note(accounts, now);
        }
        self.note_losses(ledger, now);
    }

    /// The NAT is another, or holds ports for longer or shorter: what was needed until then is no trend towards what is needed now.
    pub fn forget_demand(&mut self) {
        (self.tcp, self.udp, self.icmp) = Default::default();
    }

    fn note_losses(&mut self, ledger: &Ledger, now: NodeTime) {
        let losses = ledger.lost();
        // What a program missed is made up for by the next socket table.
        let lasting = losses.iter().filter(|(what, _)| **what != Loss::TcpMissed);
        let grown = lasting.into_iter().any(|(what, total)| total > self.losses.get(what).unwrap_or(&0));
        if grown {
            self.lost_at = Some(now);
        }
        self.losses = losses;
    }

    /// The demand of a protocol; `None` for one that is not followed.
    pub(super) fn demand(&mut self, protocol: Protocol) -> Option<&mut DemandHistory> {
        match protocol {
            Protocol::TCP => Some(&mut self.tcp),
            Protocol::UDP => Some(&mut self.udp),
            Protocol::ICMP => Some(&mut self.icmp),
            _ => None,
        }
    }

    /// Connections opened to a destination, per second of the last minute, as far as it was watched.
    pub(super) fn opened_per_sec(&self, destination: &Destination, now: NodeTime) -> Option<f64> {
        self.rates.per_sec(destination, now)
    }

    /// That the allocation has shrunk lately.
    pub(super) fn shrunk(&self, now: NodeTime) -> Option<Shrunk> {
        self.shrunk.filter(|shrunk| now.since(shrunk.at) < SHRUNK_FRESH)
    }

    pub(super) fn lost_lately(&self, now: NodeTime) -> bool {
        self.lost_at.is_some_and(|lost| now.since(lost) < LOSS_FRESH)
    }
}

/// How fast connections to the largest destinations come.
#[derive(Debug, Default)]
struct Rates(BTreeMap<Destination, Totals>);

/// Connections opened to one destination since start: now and then, oldest first, and as of now.
#[derive(Debug, Clone, Default)]
struct Totals {
    past: VecDeque<(NodeTime, u64)>,
    latest: u64,
}

/// Destinations whose rate is followed: as many as a report lists.
const FOLLOWED: usize = 100;
/// The past of one destination is kept in steps of so long; 16 of them at most.
const APART: Duration = Duration::from_secs(4);
/// The rate is that of so long.
const RATE: Duration = Duration::from_secs(60);

impl Rates {
    fn note(&mut self, accounts: &[Account], now: NodeTime) {
        let mut before = std::mem::take(&mut self.0);
        for account in accounts.iter().filter(|account| account.in_scope).take(FOLLOWED) {
            let mut totals = before.remove(&account.destination).unwrap_or_default();
            totals.note(now, account.tcp().opened_total);
            self.0.insert(account.destination, totals);
        }
    }

    fn per_sec(&self, destination: &Destination, now: NodeTime) -> Option<f64> {
        let totals = self.0.get(destination)?;
        let (begin, first) = totals.past.front()?;
        let span = now.since(*begin);
        // A shorter time tells more of chance than of a rate.
        (span >= APART).then(|| count(totals.latest.saturating_sub(*first)) / span.as_secs_f64())
    }
}

impl Totals {
    fn note(&mut self, now: NodeTime, total: u64) {
        // It was forgotten in the kernel and counted anew.
        if total < self.latest {
            self.past.clear();
        }
        self.latest = total;
        if self.past.back().is_none_or(|(at, _)| now.since(*at) >= APART) {
            self.past.push_back((now, total));
        }
        while self.past.get(1).is_some_and(|(at, _)| now.since(*at) >= RATE) {
            self.past.pop_front();
        }
    }
}

fn count(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
