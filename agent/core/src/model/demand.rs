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
use crate::ledger::{Cohort, CohortState, Cohorts, Conntrack, Ledger, Spans, TcpTally};
use crate::model::nat::HoldTimes;
use crate::model::policy::Scope;
use crate::observe::SourceId;
use crate::time::NodeTime;

/// How far back "lately" reaches for failures.
pub const LATELY: Duration = Duration::from_secs(60);

/// What one source address holds of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Ports held.
    pub held: u32,
    /// Connects unanswered.
    pub wanting: u32,
    /// Of those held: ended before the TCP counters began, as socket tables tell.
    ended_before: u32,
    /// The TCP counters account for it.
    counted: bool,
}

/// Who holds what, ordered by source address. A list, because most destinations have one source and there may be very many
/// destinations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shares(Vec<(IpAddr, Share)>);

impl Shares {
    /// Those who hold or want something.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Share)> + '_ {
        self.0.iter().copied().filter(|(_, share)| share.held > 0 || share.wanting > 0)
    }

    fn get(&self, source: IpAddr) -> Option<Share> {
        let index = self.0.binary_search_by_key(&source, |(address, _)| *address).ok()?;
        self.0.get(index).map(|(_, share)| *share)
    }

    /// The share of a source, made if it is not there.
    fn of(&mut self, source: IpAddr) -> &mut Share {
        let index = match self.0.binary_search_by_key(&source, |(address, _)| *address) {
            Ok(index) => index,
            Err(index) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(index, (source, Share::default()));
                index
            }
        };
        &mut self.0.get_mut(index).expect("it is there, or was put there").1
    }
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
    /// Connects still unanswered: they want a port and may not have one.
    pub wanting: u32,
    /// Flows open now, without those that ended and are held.
    pub active: u32,
    /// By source address, before any translation.
    pub by_source: Shares,
    /// The TCP counters of the destination, summed over source addresses, as far as there are any.
    tcp: Option<Box<TcpTally>>,
    /// Packets of new connections dropped for want of a port on this node: lately, and in all.
    pub no_port: (u64, u64),
    /// Open by the last conntrack dump less open by the TCP counters, where both see the destination and the dump is fresh.
    pub drift: Option<i64>,
}

impl Account {
    /// The TCP counters of the destination, summed over source addresses; zeros if there are none.
    pub fn tcp(&self) -> TcpTally {
        self.tcp.as_deref().copied().unwrap_or_default()
    }

    /// held + wanting.
    pub fn demand(&self) -> u32 {
        self.held.saturating_add(self.wanting)
    }
}

/// A dump as old as this still tells what is open now, give or take what moved.
const FRESH: Duration = Duration::from_secs(3);

/// Accounts of all destinations, largest demand first; in scope before out of scope.
pub fn accounts(ledger: &Ledger, hold: HoldTimes, scope: &Scope, now: NodeTime) -> Vec<Account> {
    let own = ledger.occupants().host_addresses();
    let in_scope = |destination: &Destination| {
        scope.contains(destination.endpoint.address) && !own.contains(&destination.endpoint.address)
    };
    let conntrack = ledger.conntrack_doubt().is_none().then(|| ledger.conntrack());
    let mut accounts = Accounts::new(in_scope);

    // Socket tables are only as fresh as they were read: where nothing is counted, conntrack knows better.
    let counting = ledger.works(SourceId::Tcp);
    let spans = Spans { closed: hold.tcp_time_wait, reset: hold.tcp_reset, lately: LATELY };
    let mut from_tables = Vec::new();
    for (endpoint, source, tally) in ledger.tcp().iter(now, spans) {
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
        account.count(&tally);
        account.add(source, Weight::of_tally(&tally));
        account.by_source.of(source).counted = true;
    }

    accounts.next_pass(conntrack.map_or(0, Conntrack::pairs));
    if let Some(conntrack) = conntrack {
        let since = ledger.tcp().counting_since().unwrap_or_default();
        let read = conntrack.dumped_at().unwrap_or(now);
        let clock = Clock { now, as_read: now.min(read.after(FRESH)), counting_since: since };
        let fresh = now.since(read) <= FRESH;
        for (pair, cohorts) in conntrack.iter() {
            let destination = pair.destination;
            let account = accounts.of(destination, SourceId::Conntrack);
            if account.by_source.get(pair.source).is_some_and(|share| share.counted) {
                let seen = Weight::of_cohorts(cohorts, destination.protocol, hold, clock);
                account.correct(pair.source, seen);
                if fresh {
                    account.drift = Some(account.drift.unwrap_or(0).saturating_add(i64::from(seen.open)));
                }
            } else {
                account.add(pair.source, Weight::of_cohorts(cohorts, destination.protocol, hold, clock));
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
        account.no_port = (account.no_port.0.saturating_add(lately), account.no_port.1.saturating_add(total));
    }

    let mut accounts = accounts.into_list();
    for account in &mut accounts {
        account.drift =
            account.drift.map(|open| open.saturating_sub(i64::try_from(account.tcp().open).unwrap_or(i64::MAX)));
    }
    accounts.sort_unstable_by(|a, b| {
        let rank = |account: &Account| {
            (account.in_scope, account.demand(), account.tcp.as_ref().map_or(0, |tcp| tcp.failed_total.sum()))
        };
        rank(b).cmp(&rank(a)).then(a.destination.cmp(&b.destination))
    });
    accounts
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
    fn new(in_scope: F) -> Self {
        Self { in_scope, done: Vec::new(), present: Vec::new() }
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

/// The moments that weighing depends on.
#[derive(Debug, Clone, Copy)]
struct Clock {
    now: NodeTime,
    /// Until when the table's timers tell: packets may have passed since.
    as_read: NodeTime,
    /// When the TCP counters began.
    counting_since: NodeTime,
}

/// What the flows of one pair count for.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    held: u32,
    wanting: u32,
    active: u32,
    /// Open in the node's table, whether or not the NAT has forgotten them.
    open: u32,
    /// Of those: silent for so long that the NAT has forgotten them.
    forgotten: u32,
    /// Of those held: ended before the TCP counters began.
    ended_before: u32,
    /// Of these: as the socket tables tell it.
    ended_before_in_tables: u32,
}

impl Weight {
    fn of_tally(tally: &TcpTally) -> Self {
        let held = tally.open.saturating_add(tally.closed_held).saturating_add(tally.reset_held);
        Self {
            held: small(held),
            wanting: small(tally.wanting),
            active: small(tally.open),
            ended_before_in_tables: small(tally.closed_before),
            ..Self::default()
        }
    }

    fn of_cohorts(cohorts: &Cohorts, protocol: Protocol, hold: HoldTimes, clock: Clock) -> Self {
        let idle = match protocol {
            Protocol::TCP => hold.tcp_established_idle,
            Protocol::ICMP | Protocol::ICMPV6 => hold.icmp_idle,
            _ => hold.udp_idle,
        };
        let after_close = if protocol == Protocol::TCP { hold.tcp_time_wait } else { idle };
        let mut weight = Self::default();
        for cohort in cohorts.iter() {
            match cohort.state {
                CohortState::Wanting => weight.wanting = weight.wanting.saturating_add(cohort.count),
                CohortState::Busy | CohortState::Open => {
                    weight.open = weight.open.saturating_add(cohort.count);
                    // The NAT has dropped what has been silent for too long, even if the node still believes in it.
                    if cohort.state == CohortState::Open && clock.as_read.since(cohort.since()) >= idle {
                        weight.forgotten = weight.forgotten.saturating_add(cohort.count);
                    } else {
                        weight.held = weight.held.saturating_add(cohort.count);
                        weight.active = weight.active.saturating_add(cohort.count);
                    }
                }
                CohortState::Closed | CohortState::GoneClosed => weight.ended(cohort, after_close, clock),
                CohortState::Reset | CohortState::GoneReset => weight.ended(cohort, hold.tcp_reset, clock),
            }
        }
        weight
    }

    fn ended(&mut self, cohort: &Cohort, held_for: Duration, clock: Clock) {
        if clock.now.since(cohort.since()) < held_for {
            self.held = self.held.saturating_add(cohort.count);
            if cohort.since() < clock.counting_since {
                self.ended_before = self.ended_before.saturating_add(cohort.count);
            }
        }
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
            by_source: Shares::default(),
            tcp: None,
            no_port: (0, 0),
            drift: None,
        }
    }

    fn add(&mut self, source: IpAddr, weight: Weight) {
        self.held = self.held.saturating_add(weight.held);
        self.wanting = self.wanting.saturating_add(weight.wanting);
        self.active = self.active.saturating_add(weight.active);
        if weight.held > 0 || weight.wanting > 0 || weight.ended_before_in_tables > 0 {
            let share = self.by_source.of(source);
            share.held = share.held.saturating_add(weight.held);
            share.wanting = share.wanting.saturating_add(weight.wanting);
            share.ended_before = share.ended_before.saturating_add(weight.ended_before_in_tables);
        }
    }

    /// What conntrack knows of flows that the TCP counters account for: those that ended before the counting began, of
    /// which socket tables remember only the last minute, and those that the NAT has forgotten.
    fn correct(&mut self, source: IpAddr, seen: Weight) {
        let known = self.by_source.get(source).unwrap_or_default();
        let ended_before = seen.ended_before.saturating_sub(known.ended_before);
        let forgotten = seen.forgotten.min(known.held);
        if ended_before == 0 && forgotten == 0 {
            return;
        }
        let share = self.by_source.of(source);
        share.held = share.held.saturating_add(ended_before).saturating_sub(forgotten);
        self.held = self.held.saturating_add(ended_before).saturating_sub(forgotten);
        self.active = self.active.saturating_sub(forgotten);
    }

    fn count(&mut self, tally: &TcpTally) {
        let sum = self.tcp.get_or_insert_default();
        sum.open = sum.open.saturating_add(tally.open);
        sum.wanting = sum.wanting.saturating_add(tally.wanting);
        sum.closed_held = sum.closed_held.saturating_add(tally.closed_held);
        sum.reset_held = sum.reset_held.saturating_add(tally.reset_held);
        sum.failed_lately = sum.failed_lately.saturating_add(tally.failed_lately);
        sum.no_local_port_lately = sum.no_local_port_lately.saturating_add(tally.no_local_port_lately);
        sum.syn_retransmitted_lately = sum.syn_retransmitted_lately.saturating_add(tally.syn_retransmitted_lately);
        sum.opened_total = sum.opened_total.saturating_add(tally.opened_total);
        sum.closed_total = sum.closed_total.saturating_add(tally.closed_total);
        sum.failed_total = sum.failed_total.saturating_add(tally.failed_total);
        sum.no_local_port_total = sum.no_local_port_total.saturating_add(tally.no_local_port_total);
        sum.syn_retransmitted_total = sum.syn_retransmitted_total.saturating_add(tally.syn_retransmitted_total);
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
