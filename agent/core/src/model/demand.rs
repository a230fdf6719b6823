//! How many NAT ports this node needs, to which destination, because of whom.
//!
//! Per destination one source does the accounting, never the sum of two: conntrack where it works and sees the
//! destination, the TCP counters otherwise. Failures always come from the TCP counters, which alone know them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::{Destination, Protocol};
use crate::ledger::{FlowState, Ledger, TcpTally};
use crate::model::nat::HoldTimes;
use crate::model::policy::Scope;
use crate::observe::{Snapshot, SourceId};
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
}

/// Connects of one source address that conntrack takes for unanswered, from before the sockets were asked.
#[derive(Debug, Clone, Copy, Default)]
struct Unanswered {
    all: u32,
    /// Those that no dump has shown yet.
    begun: u32,
}

/// The account of one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Which.
    pub destination: Destination,
    /// Whether the NAT translates traffic to it.
    pub in_scope: bool,
    /// Who does the accounting.
    pub source: SourceId,
    /// Ports held: open flows, and ended ones the NAT still holds a port for.
    pub held: u32,
    /// Connects still unanswered: they want a port and may not have one.
    pub wanting: u32,
    /// Flows open now, without those that ended and are held.
    pub active: u32,
    /// By source address, before any translation.
    pub by_source: BTreeMap<IpAddr, Share>,
    /// The TCP counters of the destination, summed over source addresses, as far as there are any.
    pub tcp: TcpTally,
    /// Open by conntrack less open by the TCP counters, where both see the destination.
    pub drift: Option<i64>,
}

impl Account {
    /// held + wanting.
    pub fn demand(&self) -> u32 {
        self.held.saturating_add(self.wanting)
    }
}

/// Accounts of all destinations, largest demand first; in scope before out of scope.
pub fn accounts(ledger: &Ledger, hold: HoldTimes, scope: &Scope, now: NodeTime) -> Vec<Account> {
    let own = ledger.occupants().host_addresses();
    let in_scope = |destination: &Destination| {
        scope.contains(destination.endpoint.address) && !own.contains(&destination.endpoint.address)
    };
    let mut accounts: BTreeMap<Destination, Account> = BTreeMap::new();
    let mut dialled_only: BTreeSet<Destination> = BTreeSet::new();
    let mut unanswered: BTreeMap<(Destination, IpAddr), Unanswered> = BTreeMap::new();
    // Only the kernel's counters know what sockets wait for; socket tables are too old for that.
    let asked =
        ledger.bracket(Snapshot::TcpCounters).filter(|_| ledger.works(SourceId::Tcp)).map(|bracket| bracket.begin);

    if ledger.conntrack_doubt().is_none() {
        for flow in ledger.flows().iter() {
            let protocol = flow.destination.protocol;
            if flow.dialled != flow.destination.endpoint {
                dialled_only.insert(Destination { protocol, endpoint: flow.dialled });
            }
            // Traffic that came in from outside goes to an address of this node or its pods: never a NAT's matter.
            let account = accounts
                .entry(flow.destination)
                .or_insert_with(|| Account::new(flow.destination, in_scope(&flow.destination), SourceId::Conntrack));
            let (held, wanting, active) = match flow.state {
                // Begun since the sockets were asked last: most connects are answered within milliseconds.
                FlowState::Beginning(since) if asked.is_some_and(|asked| since > asked) => (1, 0, 1),
                state => weigh(protocol, state, hold, now),
            };
            account.add(flow.source.address, held, wanting, active);
            if let FlowState::Wanting(since) | FlowState::Beginning(since) = flow.state
                && asked.is_some_and(|asked| since <= asked)
            {
                let unanswered = unanswered.entry((flow.destination, flow.source.address)).or_default();
                unanswered.all = unanswered.all.saturating_add(1);
                let begun = matches!(flow.state, FlowState::Beginning(_));
                unanswered.begun = unanswered.begun.saturating_add(u32::from(begun));
            }
        }
    }

    let counting = if ledger.works(SourceId::Tcp) { SourceId::Tcp } else { SourceId::Sockets };
    let reset = by_source(ledger, now, hold.tcp_reset);
    let lately = by_source(ledger, now, LATELY);
    for (endpoint, source, tally) in ledger.tcp().iter(now, hold.tcp_time_wait) {
        let destination = Destination::tcp(endpoint);
        let (reset, lately) = (reset.get(&(endpoint, source)), lately.get(&(endpoint, source)));
        let (reset, lately) = (reset.copied().unwrap_or_default(), lately.copied().unwrap_or_default());
        let account = match accounts.get_mut(&destination) {
            Some(account) => account,
            // The node translates it: conntrack has it under its real destination.
            None if dialled_only.contains(&destination) => continue,
            None => accounts.entry(destination).or_insert(Account::new(destination, in_scope(&destination), counting)),
        };
        account.count(tally, lately);
        if account.source == SourceId::Conntrack {
            let unanswered = unanswered.get(&(destination, source)).copied().unwrap_or_default();
            account.ask_the_sockets(source, unanswered, small(tally.wanting));
        } else {
            let held = tally.open.saturating_add(tally.closed_lately).saturating_add(reset.reset_lately);
            account.add(source, small(held), small(tally.wanting), small(tally.open));
        }
    }

    let mut accounts: Vec<Account> = accounts.into_values().collect();
    for account in &mut accounts {
        let counted = account.source == SourceId::Conntrack && account.tcp != TcpTally::default();
        account.drift = counted
            .then(|| i64::from(account.active).saturating_sub(i64::try_from(account.tcp.open).unwrap_or(i64::MAX)));
    }
    accounts.sort_by(|a, b| {
        let rank = |account: &Account| (account.in_scope, account.demand(), account.tcp.failed_total.sum());
        rank(b).cmp(&rank(a)).then(a.destination.cmp(&b.destination))
    });
    accounts
}

type BySource = BTreeMap<(crate::flow::Endpoint, IpAddr), TcpTally>;

fn by_source(ledger: &Ledger, now: NodeTime, span: Duration) -> BySource {
    ledger.tcp().iter(now, span).map(|(endpoint, source, tally)| ((endpoint, source), tally)).collect()
}

/// What a flow counts for: (held, wanting, active).
fn weigh(protocol: Protocol, state: FlowState, hold: HoldTimes, now: NodeTime) -> (u32, u32, u32) {
    let idle = match protocol {
        Protocol::TCP => hold.tcp_established_idle,
        Protocol::ICMP | Protocol::ICMPV6 => hold.icmp_idle,
        _ => hold.udp_idle,
    };
    match state {
        FlowState::Wanting(_) | FlowState::Beginning(_) => (0, 1, 0),
        // The NAT has dropped what has been silent for too long, even if the node still believes in it.
        FlowState::Open { last_packet: Some(last) } if now.since(last) >= idle => (0, 0, 0),
        FlowState::Open { .. } => (1, 0, 1),
        FlowState::Closed(at) => {
            let span = if protocol == Protocol::TCP { hold.tcp_time_wait } else { idle };
            (u32::from(now.since(at) < span), 0, 0)
        }
        FlowState::Reset(at) => (u32::from(now.since(at) < hold.tcp_reset), 0, 0),
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
            by_source: BTreeMap::new(),
            tcp: TcpTally::default(),
            drift: None,
        }
    }

    fn add(&mut self, source: IpAddr, held: u32, wanting: u32, active: u32) {
        self.held = self.held.saturating_add(held);
        self.wanting = self.wanting.saturating_add(wanting);
        self.active = self.active.saturating_add(active);
        if held > 0 || wanting > 0 {
            let share = self.by_source.entry(source).or_default();
            share.held = share.held.saturating_add(held);
            share.wanting = share.wanting.saturating_add(wanting);
        }
    }

    /// What conntrack cannot tell, the sockets' side can: of the connects that conntrack takes for unanswered, those whose
    /// sockets no longer wait either were answered since the table was read last (only those that began since can have
    /// been), or were given up (conntrack keeps an unanswered SYN for two minutes).
    fn ask_the_sockets(&mut self, source: IpAddr, unanswered: Unanswered, still_wanting: u32) {
        let Some(share) = self.by_source.get_mut(&source) else { return };
        let settled = unanswered.all.saturating_sub(still_wanting).min(share.wanting);
        let answered = settled.min(unanswered.begun);
        share.wanting -= settled;
        share.held = share.held.saturating_add(answered);
        self.wanting = self.wanting.saturating_sub(settled);
        self.held = self.held.saturating_add(answered);
        self.active = self.active.saturating_add(answered);
    }

    fn count(&mut self, tally: TcpTally, lately: TcpTally) {
        let sum = &mut self.tcp;
        sum.open = sum.open.saturating_add(tally.open);
        sum.wanting = sum.wanting.saturating_add(tally.wanting);
        sum.closed_lately = sum.closed_lately.saturating_add(lately.closed_lately);
        sum.reset_lately = sum.reset_lately.saturating_add(lately.reset_lately);
        sum.failed_lately = sum.failed_lately.saturating_add(lately.failed_lately);
        sum.no_local_port_lately = sum.no_local_port_lately.saturating_add(lately.no_local_port_lately);
        sum.syn_retransmitted_lately = sum.syn_retransmitted_lately.saturating_add(lately.syn_retransmitted_lately);
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
