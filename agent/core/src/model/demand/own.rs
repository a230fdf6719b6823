//! Ports that this node itself gives out: the local ports of sockets, and those of its own masquerading. Both end per
//! destination, like those of the NAT in front.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::given_out::limit;
use super::small;
use crate::flow::{Destination, Endpoint};
use crate::known::Known;
use crate::ledger::{Ledger, Pair, TcpTally};
use crate::ports::{PortRange, PortSettings};

/// Pairs with fewer ports than this are of no interest: no namespace lives with so few.
const WORTH: u64 = 16;
/// Pairs that are compared with what their namespace has.
const CANDIDATES: usize = 1024;
/// Pairs and destinations that are told of.
const TOLD: usize = 20;
/// Source ports that masquerading draws from for unprivileged ports, unless a rule says otherwise: 1024-65535
/// (`nf_nat_l4proto_unique_tuple` in net/netfilter/nf_nat_core.c).
const MASQUERADE_PORTS: u32 = 64_512;

/// Local ports that one source address uses towards one destination. connect() fails with EADDRNOTAVAIL when all are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalUse {
    /// What the sockets dialled.
    pub destination: Endpoint,
    /// Their own address.
    pub source: IpAddr,
    /// Connections open or being opened.
    pub open: u32,
    /// Sockets in TIME_WAIT as the last socket table showed them.
    pub time_wait: u32,
    /// Connections closed within a minute: so many are in TIME_WAIT at most, and none of those that the other side closed first.
    pub closed: u32,
    /// The range they draw from.
    pub range: PortRange,
    /// How many of its ports connect() can use.
    pub usable: u32,
    /// How many it could use, but for sockets that listen on them.
    pub listening: u32,
    /// Whether it is known which ports of the range are reserved; if not, fewer are usable.
    pub exact: bool,
}

impl LocalUse {
    /// In use for certain.
    pub fn proven(&self) -> u32 {
        self.open.saturating_add(self.time_wait)
    }

    /// Connections to the destination that can begin every second without end where this side closes first: each port then waits
    /// for a minute.
    pub fn sustained_per_sec(&self) -> f64 {
        f64::from(self.usable) / super::LATELY.as_secs_f64()
    }

    /// In use at most.
    pub fn possible(&self) -> u32 {
        self.open.saturating_add(self.time_wait.max(self.closed))
    }
}

/// Pairs that use many local ports.
#[derive(Debug, Default)]
pub(super) struct LocalUses(Vec<(u32, Endpoint, IpAddr, TcpTally)>);

impl LocalUses {
    pub(super) fn note(&mut self, destination: Endpoint, source: IpAddr, tally: &TcpTally) {
        let used = tally.open.saturating_add(tally.wanting).saturating_add(tally.closed_lately);
        if used >= WORTH {
            self.0.push((small(used), destination, source, *tally));
            if self.0.len() >= CANDIDATES * 2 {
                self.shorten();
            }
        }
    }

    fn shorten(&mut self) {
        self.0.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        self.0.truncate(CANDIDATES);
    }

    /// Those that use the largest part of what they have.
    pub(super) fn largest(mut self, ledger: &Ledger) -> Vec<LocalUse> {
        self.shorten();
        if self.0.is_empty() {
            return Vec::new();
        }
        let ranges = ranges(ledger);
        let uses = self.0.into_iter().filter_map(|(_, destination, source, tally)| {
            let &Local { range, usable, listening, exact } = ranges.get(&source)?;
            let open = small(tally.open.saturating_add(tally.wanting));
            let time_wait = ledger.tcp().table(destination, source).time_wait;
            let closed = small(tally.closed_lately);
            Some(LocalUse { destination, source, open, time_wait, closed, range, usable, listening, exact })
        });
        let mut uses: Vec<LocalUse> = uses.collect();
        let share = |used: &LocalUse| u64::from(used.possible()) * 1000 / u64::from(used.usable.max(1));
        uses.sort_by_key(|used| (std::cmp::Reverse(share(used)), used.destination, used.source));
        uses.truncate(TOLD);
        uses
    }
}

/// The local ports of a namespace.
#[derive(Debug, Clone, Copy)]
struct Local {
    range: PortRange,
    usable: u32,
    listening: u32,
    exact: bool,
}

impl Local {
    fn new(settings: PortSettings, listening: &[PortRange], exact: bool) -> Self {
        let (range, all) = (settings.ephemeral, settings.usable());
        // connect() passes over a port that a socket is bound to by hand (`fastreuse >= 0` in `__inet_hash_connect`), whatever
        // address that has. Only those that listen can be told from the rest: `/proc/net/tcp` shows no socket that is only bound (inet_diag
        // does since Linux 6.8, from inside the namespace), and not how an open one got its port.
        let taken = PortRange::joined([settings.reserved.as_slice(), listening].concat());
        let usable = PortSettings { reserved: taken, ..settings }.usable();
        Self { range, usable, listening: all.saturating_sub(usable), exact }
    }
}

/// What each address that lives on this node draws from.
fn ranges(ledger: &Ledger) -> BTreeMap<IpAddr, Local> {
    let mut ranges = BTreeMap::new();
    for namespace in ledger.occupants().namespaces() {
        let dialled = || ledger.occupants().dialled_range_of(namespace.inode);
        let settings = match &namespace.ports {
            Known::Present(settings) => Some((settings.clone(), true)),
            Known::Absent | Known::Unknown(_) => {
                dialled().map(|ephemeral| (PortSettings { ephemeral, reserved: Vec::new() }, false))
            }
        };
        if let Some((settings, exact)) = settings {
            let local = Local::new(settings, ledger.tcp().listened_on(namespace.inode), exact);
            let addresses = namespace.addresses.present().into_iter().flatten();
            ranges.extend(addresses.map(|address| (*address, local)));
        }
    }
    ranges
}

/// Source ports that this node's own masquerading has given out towards one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masqueraded {
    /// Where to.
    pub destination: Destination,
    /// The address that traffic leaves with.
    pub translated: IpAddr,
    /// Ports taken: entries of the node's conntrack table, in whatever state.
    pub taken: u32,
    /// Ports there are to give out.
    pub ports: u32,
}

impl Masqueraded {
    /// A rule gives out fewer ports than there are.
    pub fn limited(&self) -> bool {
        self.ports < MASQUERADE_PORTS
    }
}

/// Destinations that many translated flows go to. Pairs come in the order of their destinations.
#[derive(Debug, Default)]
pub(super) struct Masquerades {
    present: Option<Destination>,
    /// Per translated address, in order: ports, and whether something was translated at all. A list that is used again for
    /// every destination, of which there may be very many.
    taken: Vec<(IpAddr, u32, bool)>,
    largest: Vec<Masqueraded>,
}

impl Masquerades {
    pub(super) fn note(&mut self, pair: &Pair, entries: u32) {
        if self.present != Some(pair.destination) {
            self.next();
            self.present = Some(pair.destination);
        }
        let any = pair.source != pair.translated;
        match self.taken.binary_search_by_key(&pair.translated, |(translated, ..)| *translated) {
            Ok(index) => {
                if let Some((_, ports, was_any)) = self.taken.get_mut(index) {
                    *ports = ports.saturating_add(entries);
                    *was_any |= any;
                }
            }
            Err(index) => self.taken.insert(index, (pair.translated, entries, any)),
        }
    }

    fn next(&mut self) {
        let Some(destination) = self.present else { return };
        for (translated, ports, any) in self.taken.drain(..) {
            if any && u64::from(ports) >= WORTH {
                self.largest.push(Masqueraded { destination, translated, taken: ports, ports: MASQUERADE_PORTS });
            }
        }
        if self.largest.len() >= CANDIDATES * 2 {
            self.shorten(CANDIDATES);
        }
    }

    fn shorten(&mut self, to: usize) {
        self.largest.sort_unstable_by_key(|row| (std::cmp::Reverse(row.taken), row.destination, row.translated));
        self.largest.truncate(to);
    }

    pub(super) fn largest(mut self, ledger: &Ledger) -> Vec<Masqueraded> {
        self.next();
        self.shorten(TOLD);
        for row in &mut self.largest {
            // Far more than a rule gives out (counts may lag a little): others translate, too.
            let limit = limit(ledger, row.destination.protocol, Some(row.translated));
            if let Some(limit) = limit.filter(|limit| row.taken <= limit.ports.saturating_add(limit.ports / 4)) {
                row.ports = limit.ports;
            }
        }
        self.largest
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_default_range_lasts_for_470_connections_a_second() {
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let settings = PortSettings { ephemeral: PortRange::new(32_768, 60_999).unwrap(), reserved: Vec::new() };
        let Local { range, usable, listening, exact } = Local::new(settings, &[], true);
        assert_eq!(usable, 28_232);
        let nothing = LocalUse {
            destination: Endpoint::new(source, 443),
            source,
            open: 0,
            time_wait: 0,
            closed: 0,
            range,
            usable,
            listening,
            exact,
        };
        assert_eq!(format!("{:.1}", nothing.sustained_per_sec()), "470.5");
    }
}
