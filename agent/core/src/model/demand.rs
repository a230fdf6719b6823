//! How many NAT ports this node needs, to which destination, because of whom.
//!
//! Per pair of destination and source one source does the accounting, never the sum of two. The TCP counters know every
//! connect and close of a socket on this node at its moment: they account for the pairs they see. conntrack accounts for
//! all else: UDP, ICMP, flows that are only forwarded, and Service addresses, which it alone knows behind their translation.
//! What conntrack tells of a pair that TCP accounts for still counts: what closed before the counting began, what the NAT
//! has forgotten since nothing passes.

use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{Destination, Protocol};
use crate::ledger::{Conntrack, Ledger, Spans, TcpTally};
use crate::model::nat::HoldTimes;
use crate::model::policy::Scope;
use crate::observe::SourceId;
use crate::time::NodeTime;

mod given_out;
mod group;
mod own;
mod share;
mod tcp_sum;
mod weight;

pub(super) use given_out::of_own_rules;
pub use group::{Group, groups, worst};
pub use own::{LocalUse, Masqueraded};
pub use share::{Share, Shares};
use tcp_sum::TcpSum;
use weight::{Clock, Weight};

/// How far back "lately" reaches: for failures, for rates, and for sockets in TIME_WAIT (`TCP_TIMEWAIT_LEN` of the kernel).
pub const LATELY: Duration = Duration::from_secs(60);

/// What flows need ports for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Accounts of all destinations, largest demand first; in scope before out of scope.
    pub accounts: Vec<Account>,
    /// Source addresses that use most local ports towards one destination, the largest first.
    pub local: Vec<LocalUse>,
    /// Destinations towards which this node's own masquerading has given out most ports, the largest first.
    pub masqueraded: Vec<Masqueraded>,
    /// What was dropped behind the translation of its source.
    pub behind: Behind,
}

/// The account of one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Which.
    pub destination: Destination,
    /// Whether the NAT translates traffic to it.
    pub in_scope: bool,
    /// Who does the accounting, for most of it.
    pub source: SourceId,
    /// Ports held: open flows, and ended ones the NAT still holds a port for.
    pub held: u32,
    /// Connects unanswered, or given up while a NAT may still hold the port of a half-open connection: they want a port and may
    /// not have one.
    pub wanting: u32,
    /// Flows open now, without those that ended and are held.
    pub active: u32,
    /// Flows open on this node that the NAT has dropped, since nothing passed for longer than it waits; not held.
    pub forgotten: u32,
    /// Of those: half-closed, which the NAT keeps for its transitory time alone.
    pub half_forgotten: u32,
    /// Flows open that have been silent for more than half of what the NAT waits.
    pub silent: u32,
    /// Flows that ended within [`LATELY`].
    pub ended_lately: u32,
    /// By source address, before any translation.
    pub by_source: Shares,
    /// The TCP counters of the destination, summed over source addresses.
    tcp: TcpSum,
    /// Packets of new connections dropped for want of a port on this node: lately, and in all.
    pub no_port: (u32, u32),
    /// Open by the last conntrack dump, where the TCP counters see the destination as well and the dump is fresh.
    open_in_table: Option<u32>,
}

impl Account {
    /// The TCP counters of the destination, summed over source addresses; zeros if there are none.
    pub fn tcp(&self) -> TcpTally {
        self.tcp.told()
    }

    /// Open by the last conntrack dump less open by the TCP counters, where both see the destination and the dump is fresh.
    pub fn drift(&self) -> Option<i64> {
        Some(i64::from(self.open_in_table?) - i64::from(self.tcp.open()))
    }

    /// held + wanting.
    pub fn demand(&self) -> u32 {
        self.held.saturating_add(self.wanting)
    }
}

/// Packets of new connections that netfilter dropped within [`LATELY`] behind the translation of their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// How many, as far as conntrack's statistics are as new.
    pub dropped: u64,
    /// How many of them found no port, at most; `None` where the statistics are not known.
    pub failed: Option<u64>,
}

impl Behind {
    fn of(ledger: &Ledger, now: NodeTime) -> Self {
        let (since, failed) = (now.before(LATELY), ledger.failed_inserts());
        // What was read to be dropped then failed before.
        let before = since.before(READ_WITHIN);
        let until = failed.known_until().unwrap_or(now.after(READ_WITHIN));
        Self { dropped: ledger.no_ports().between(since, until), failed: failed.since(before) }
    }
}

/// Counters and statistics are read more often than this.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// A dump as old as this still tells what is open now, give or take what moved.
const FRESH: Duration = Duration::from_secs(3);

/// Weighs what is known of flows.
pub fn of(ledger: &Ledger, hold: HoldTimes, scope: &Scope, now: NodeTime) -> Demand {
    let own = ledger.occupants().host_addresses();
    let in_scope = |destination: &Destination| {
        scope.contains(destination.endpoint.address) && !own.contains(&destination.endpoint.address)
    };
    let conntrack = ledger.conntrack_doubt().is_none().then(|| ledger.conntrack());
    let mut accounts = Accounts::new(in_scope, ledger.tcp().pairs());

    // Socket tables are only as fresh as they were read: where nothing is counted, conntrack knows better.
    let counting = ledger.works(SourceId::Tcp);
    let spans =
        Spans { closed: hold.tcp_time_wait, reset: hold.tcp_reset, half_open: hold.tcp_transitory, lately: LATELY };
    let mut from_tables = Vec::new();
    let (mut local, mut masqueraded) = (own::LocalUses::default(), own::Masquerades::default());
    for (endpoint, source, tally) in ledger.tcp().iter(now, spans) {
        local.note(endpoint, source, &tally);
        let destination = Destination::tcp(endpoint);
        // The node translates it: conntrack has it under its real destination.
        if conntrack.is_some_and(|conntrack| conntrack.is_dialled_only(&destination)) {
            continue;
        }
        if !counting {
            from_tables.push((destination, source, tally));
            continue;
        }
        let account = accounts.of(destination, SourceId::Tcp);
        account.tcp.add(&tally);
        account.add(source, Weight::of_tally(&tally));
        account.by_source.of(source).counted = true;
    }

    accounts.next_pass(conntrack.map_or(0, Conntrack::pairs));
    if let Some(conntrack) = conntrack {
        let since = ledger.tcp().counting_since().unwrap_or_default();
        let clock = |protocol| {
            let read = conntrack.dumped_at(protocol).unwrap_or(now);
            Clock { now, as_read: now.min(read.after(FRESH)), counting_since: since }
        };
        let (clock, udp_clock) = (clock(Protocol::TCP), clock(Protocol::UDP));
        let fresh = clock.as_read == now;
        for (pair, cohorts) in conntrack.iter() {
            let destination = pair.destination;
            let clock = if destination.protocol == Protocol::UDP { udp_clock } else { clock };
            let seen = Weight::of_cohorts(cohorts, destination.protocol, hold, clock);
            masqueraded.note(&pair, seen.entries);
            let account = accounts.of(destination, SourceId::Conntrack);
            account.silent = account.silent.saturating_add(seen.silent);
            if account.by_source.get(pair.source).is_some_and(|share| share.counted) {
                account.correct(pair.source, seen);
                if fresh {
                    account.open_in_table = Some(account.open_in_table.unwrap_or(0).saturating_add(seen.open));
                }
            } else {
                account.add(pair.source, seen);
            }
        }
    }
    accounts.next_pass(from_tables.len());
    for (destination, source, tally) in from_tables {
        let account = accounts.of(destination, SourceId::Sockets);
        if account.source == SourceId::Sockets {
            account.add(source, Weight::of_tally(&tally));
        }
    }

    accounts.next_pass(0);
    for (destination, _source, lately, total) in ledger.no_ports().iter(now, LATELY) {
        let account = accounts.of(destination, SourceId::Conntrack);
        let (known, known_total) = account.no_port;
        account.no_port = (known.saturating_add(small(lately)), known_total.saturating_add(small(total)));
    }

    let mut accounts = accounts.into_list();
    accounts.sort_unstable_by(|a, b| {
        let rank = |account: &Account| (account.in_scope, account.demand(), account.tcp.failed_total());
        rank(b).cmp(&rank(a)).then(a.destination.cmp(&b.destination))
    });
    let behind = Behind::of(ledger, now);
    Demand { accounts, local: local.largest(ledger), masqueraded: masqueraded.largest(ledger), behind }
}

/// Accounts while they are put together, in passes that each go through the destinations in order. There may be very many
/// of them, and lists that stay in order take half of what a tree does.
struct Accounts<F> {
    in_scope: F,
    /// What each pass found that none before it had, in order.
    done: Vec<Vec<Account>>,
    /// Likewise, of the pass under way.
    present: Vec<Account>,
}

impl<F: Fn(&Destination) -> bool> Accounts<F> {
    /// With a first pass of so many pairs at most.
    fn new(in_scope: F, pairs: usize) -> Self {
        Self { in_scope, done: Vec::new(), present: Vec::with_capacity(pairs) }
    }

    /// A pass begins, of so many pairs at most.
    fn next_pass(&mut self, pairs: usize) {
        self.done.push(std::mem::replace(&mut self.present, Vec::with_capacity(pairs)));
    }

    /// The account of a destination, made if there is none. Within a pass destinations come in order, so that a new one is
    /// put at the end.
    fn of(&mut self, destination: Destination, source: SourceId) -> &mut Account {
        let place = |list: &Vec<Account>| list.binary_search_by_key(&destination, |account| account.destination);
        let found = self.done.iter_mut().find_map(|list| {
            let index = place(list).ok()?;
            list.get_mut(index)
        });
        if let Some(account) = found {
            return account;
        }
        let index = place(&self.present).unwrap_or_else(|index| {
            self.present.insert(index, Account::new(destination, (self.in_scope)(&destination), source));
            index
        });
        self.present.get_mut(index).expect("it was there, or was put there")
    }

    fn into_list(self) -> Vec<Account> {
        let mut passes: Vec<Vec<Account>> = self.done.into_iter().chain([self.present]).collect();
        // Into the longest, which need not be copied then.
        passes.sort_unstable_by_key(Vec::len);
        let mut list = passes.pop().unwrap_or_default();
        passes.into_iter().for_each(|pass| list.extend(pass));
        list
    }
}

impl Account {
    fn new(destination: Destination, in_scope: bool, source: SourceId) -> Self {
        Self {
            destination,
            in_scope,
            source,
            held: 0,
            wanting: 0,
            active: 0,
            forgotten: 0,
            half_forgotten: 0,
            silent: 0,
            ended_lately: 0,
            by_source: Shares::default(),
            tcp: TcpSum::default(),
            no_port: (0, 0),
            open_in_table: None,
        }
    }

    fn add(&mut self, source: IpAddr, weight: Weight) {
        let forgotten = weight.forgotten.saturating_add(weight.half_forgotten);
        self.held = self.held.saturating_add(weight.held);
        self.wanting = self.wanting.saturating_add(weight.wanting);
        self.active = self.active.saturating_add(weight.active);
        self.forgotten = self.forgotten.saturating_add(forgotten);
        self.half_forgotten = self.half_forgotten.saturating_add(weight.half_forgotten);
        self.ended_lately = self.ended_lately.saturating_add(weight.ended_lately);
        if weight.held > 0 || weight.wanting > 0 || forgotten > 0 || weight.ended_before_in_tables > 0 {
            let share = self.by_source.of(source);
            share.held = share.held.saturating_add(weight.held);
            share.wanting = share.wanting.saturating_add(weight.wanting);
            share.forgotten = share.forgotten.saturating_add(forgotten);
            share.ended_before = share.ended_before.saturating_add(weight.ended_before_in_tables);
        }
    }

    /// What conntrack knows of flows that the TCP counters account for: those that ended before the counting began, of
    /// which socket tables remember only the last minute, and those that the NAT has forgotten.
    fn correct(&mut self, source: IpAddr, seen: Weight) {
        let known = self.by_source.get(source).unwrap_or_default();
        let ended_before = seen.ended_before.saturating_sub(known.ended_before);
        // Those of earlier rows of the pair, which may have several translations, are subtracted already.
        let forgotten = seen.forgotten.min(known.held);
        if ended_before == 0 && forgotten == 0 {
            return;
        }
        let share = self.by_source.of(source);
        share.held = share.held.saturating_add(ended_before).saturating_sub(forgotten);
        share.forgotten = share.forgotten.saturating_add(forgotten);
        self.forgotten = self.forgotten.saturating_add(forgotten);
        self.held = self.held.saturating_add(ended_before).saturating_sub(forgotten);
        self.active = self.active.saturating_sub(forgotten);
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
