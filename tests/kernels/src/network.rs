//! The scene: the lab's node behind its NAT gateway, made of network namespaces in this very kernel, and the counters that
//! watch it.
//!
//! A pod dials; an outside answers or does not. Every check has a port of its own, and the address is one that no other
//! lab uses, so that the counters of the machine can be compared exactly.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use headroom_core::flow::Endpoint;
use headroom_core::known::Known;
use headroom_core::observe::{Fact, Loss, Outcome, Snapshot, TcpCounter};
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::tcp::TcpSource;
use headroom_lab::{Lab, NatLab, NatOptions, Netns};

use crate::check::Cannot;
use crate::counters::Counters;
use crate::load;

/// What the pod dials through both NATs.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 201);
/// What it dials over IPv6: the node, directly.
pub(crate) const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 0x1);
/// The pod itself, over IPv6.
const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 0x65);
/// How long the counters may lag behind: the last state changes happen after our calls return.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this time what is not counted yet will hardly be.
const SETTLED: Duration = Duration::from_secs(4);

/// The namespaces and the running counters.
#[derive(Debug)]
pub(crate) struct Scene {
    nat: NatLab,
    tcp: RefCell<TcpSource>,
    /// What the kernel counts of the node's conntrack, from the beginning; or why it does not.
    conntrack: std::result::Result<Counters, String>,
    /// The source ports of the connections that were made, for who looks at their flows later.
    made: RefCell<BTreeMap<SocketAddr, BTreeSet<u16>>>,
    /// What is to be read besides the verdicts, such as what a check compared less than exactly.
    notes: RefCell<Vec<String>>,
    /// Runs of the programs that the kernel had skipped when the check began.
    skipped_before: Cell<u64>,
    /// How many connections the large checks make.
    pub(crate) connections: u64,
    /// The machine is thrown away: its settings may be changed.
    pub(crate) throwaway: bool,
    _lab: Lab,
}

impl Scene {
    /// Builds the namespaces, then starts counting.
    pub(crate) fn build(connections: u64, throwaway: bool) -> Result<Self> {
        let lab = Lab::new()?;
        let nat = NatLab::build(&lab, &NatOptions { pods: 1, ports: 1024..=65535, ..NatOptions::default() })?;
        nat.add_outside_address(OUTSIDE)?;
        // Translations must outlive a slow machine: the table is compared when all are made.
        for name in ["udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait", "tcp_timeout_close"] {
            nat.node.set_sysctl(&format!("net.netfilter.nf_conntrack_{name}"), "900")?;
        }
        // All checks' flows are some 60,000 by then in the gateway's table, where what has expired stays until it is looked at.
        lab.raise_machine_setting("net.netfilter.nf_conntrack_max", 10 * connections)?;
        // Without a rule that needs it, a namespace has no conntrack of IPv6.
        nat.node
            .exec("ip6tables", &["-w", "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT"])?;
        let conntrack = Counters::start(&nat.node)?;
        // The default: others on this machine may dial thousands of destinations meanwhile.
        let tcp = RefCell::new(TcpSource::start(&HostRoot::live(), 65_536));
        let scene = Self {
            nat,
            tcp,
            conntrack,
            made: RefCell::default(),
            notes: RefCell::default(),
            skipped_before: Cell::new(0),
            connections,
            throwaway,
            _lab: lab,
        };
        let v6 = |netns: &Netns, address: Ipv6Addr, link: &str| {
            netns.ip(&["address", "add", &format!("{address}/64"), "dev", link, "nodad"])
        };
        v6(scene.pod(), POD_V6, "eth0")?;
        v6(scene.node(), NODE_V6, "pod0")?;
        Ok(scene)
    }

    /// Where connections begin.
    pub(crate) fn pod(&self) -> &Netns {
        // The lab was asked for one pod.
        #[expect(clippy::indexing_slicing, reason = "built with one pod")]
        &self.nat.pods[0].netns
    }

    /// The first NAT.
    pub(crate) fn node(&self) -> &Netns {
        &self.nat.node
    }

    /// The second NAT.
    pub(crate) fn gateway(&self) -> &Netns {
        &self.nat.gateway
    }

    /// Where IPv4 connections end.
    pub(crate) fn outside(&self) -> &Netns {
        &self.nat.outside
    }

    /// The namespace that answers at an address.
    pub(crate) fn server_of(&self, address: IpAddr) -> &Netns {
        if address.is_ipv4() { self.outside() } else { self.node() }
    }

    /// The pod's address as its sockets have it.
    pub(crate) fn pod_address(&self, destination: IpAddr) -> IpAddr {
        if destination.is_ipv4() {
            #[expect(clippy::indexing_slicing, reason = "built with one pod")]
            self.nat.pods[0].address.into()
        } else {
            POD_V6.into()
        }
    }

    /// The source under test.
    pub(crate) fn tcp(&self) -> RefMut<'_, TcpSource> {
        self.tcp.borrow_mut()
    }

    /// The counters of the node's conntrack.
    pub(crate) fn conntrack(&self) -> Result<&Counters> {
        self.conntrack.as_ref().map_err(|why| Cannot(why.clone()).into())
    }

    /// Before each check.
    pub(crate) fn begin_check(&self) -> Result<()> {
        // None where the kernel does not count them, before 5.12: it skips none either.
        self.skipped_before.set(lost(&mut self.tcp(), Loss::TcpMissed).unwrap_or_default());
        Ok(())
    }

    /// Lets something be read besides the verdict.
    pub(crate) fn note(&self, note: String) {
        self.notes.borrow_mut().push(note);
    }

    /// What the check had to note; each is told once.
    pub(crate) fn take_notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// Keeps the source ports of connections to a destination.
    pub(crate) fn remember(&self, destination: SocketAddr, ports: BTreeSet<u16>) {
        self.made.borrow_mut().insert(destination, ports);
    }

    /// The source ports of all connections that were made to a destination.
    pub(crate) fn made_to(&self, destination: SocketAddr) -> BTreeSet<u16> {
        self.made.borrow().get(&destination).cloned().unwrap_or_default()
    }

    /// A counter of connections from the pod to a destination, at zero.
    pub(crate) fn nothing(&self, destination: SocketAddr) -> TcpCounter {
        let to = Endpoint::new(destination.ip(), destination.port());
        TcpCounter::zero(to, self.pod_address(destination.ip()))
    }

    /// Waits until headroom counted exactly that, and lost nothing.
    pub(crate) fn expect(&self, expected: &[TcpCounter]) -> Result<()> {
        self.expect_one_of(&[expected]).map(drop)
    }

    /// Waits until headroom counted exactly one of several possibilities, and lost nothing; gives which.
    ///
    /// An end that the kernel does not show to the program is counted when a socket begins at the same address, which is helped
    /// along here. If some are lacking even then, the kernel must have said that it skipped as many, and a note says so.
    pub(crate) fn expect_one_of(&self, possibilities: &[&[TcpCounter]]) -> Result<usize> {
        let by_destination = |counters: &[TcpCounter]| -> BTreeMap<Endpoint, TcpCounter> {
            counters.iter().map(|counter| (counter.destination, *counter)).collect()
        };
        let possibilities: Vec<_> = possibilities.iter().map(|counters| by_destination(counters)).collect();
        let began = Instant::now();
        loop {
            let mut seen = self.counters()?;
            seen.retain(|destination, _| possibilities.iter().any(|expected| expected.contains_key(destination)));
            if let Some(which) = possibilities.iter().position(|expected| *expected == seen) {
                self.nothing_lost()?;
                return Ok(which);
            }
            let lacking = possibilities.first().and_then(|expected| lacking(expected, &seen));
            let skipped = lost(&mut self.tcp(), Loss::TcpMissed).unwrap_or_default();
            let skipped = skipped.saturating_sub(self.skipped_before.get());
            if let Some(lacking) = lacking.filter(|_| began.elapsed() > SETTLED) {
                if lacking <= skipped && began.elapsed() > PATIENCE {
                    let note =
                        format!("{lacking} events are not counted; the kernel skipped {skipped} runs of the programs");
                    self.note(note);
                    return Ok(0);
                }
                load::reuse_sockets(self.pod())?;
            }
            if began.elapsed() > PATIENCE {
                let expected = possibilities.into_iter().flat_map(BTreeMap::into_values);
                let different: Vec<_> =
                    expected.filter(|counter| seen.get(&counter.destination) != Some(counter)).collect();
                let instead = different.first().and_then(|counter| seen.get(&counter.destination));
                bail!(
                    "{} counters differ, and the kernel skipped {skipped} runs of the programs: expected {:?}, counted {instead:?}",
                    different.len(),
                    different.first()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What is counted now, by destination.
    pub(crate) fn counters(&self) -> Result<BTreeMap<Endpoint, TcpCounter>> {
        let mut counters = BTreeMap::new();
        let facts = facts(&mut self.tcp());
        if !facts.contains(&Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete }) {
            bail!("the counters could not be read: {:?}", facts.last());
        }
        for fact in facts {
            if let Fact::TcpCounter(counter) = fact {
                // Nothing is counted anew in so short a time.
                counters.insert(counter.destination, TcpCounter { born: 0, ..counter });
            }
        }
        Ok(counters)
    }

    /// Whether every connect found room and every read succeeded.
    fn nothing_lost(&self) -> Result<()> {
        for what in [Loss::TcpMapFull, Loss::TcpReadFailed] {
            let total = lost(&mut self.tcp(), what)?;
            if total != 0 {
                bail!("{total} losses of {what:?}");
            }
        }
        Ok(())
    }
}

/// How many events were not counted; none if a counter is there that should not be, or is too high.
fn lacking(expected: &BTreeMap<Endpoint, TcpCounter>, seen: &BTreeMap<Endpoint, TcpCounter>) -> Option<u64> {
    if expected.len() != seen.len() {
        return None;
    }
    expected.iter().try_fold(0, |sum, (destination, expected)| {
        let seen = seen.get(destination).filter(|seen| seen.source == expected.source)?;
        let numbers = |counter: &TcpCounter| {
            let TcpCounter { attempted, opened, closed, reset, syn_retransmitted, no_local_port, .. } = *counter;
            let TcpCounter { refused, timed_out, unreachable, given_up, .. } = *counter;
            let failed = [refused, timed_out, unreachable, given_up, no_local_port];
            [&[attempted, opened, closed, reset, syn_retransmitted][..], &failed].concat()
        };
        numbers(expected)
            .iter()
            .zip(numbers(seen))
            .try_fold(sum, |sum, (expected, seen)| Some(sum + expected.checked_sub(seen)?))
    })
}

/// One round of a source.
pub(crate) fn facts(source: &mut TcpSource) -> Vec<Fact> {
    let mut facts = Vec::new();
    source.observe(&mut |observation| facts.push(observation.fact));
    facts
}

/// What a source says it lost.
pub(crate) fn lost(source: &mut TcpSource, what: Loss) -> Result<u64> {
    let total = facts(source).into_iter().find_map(|fact| match fact {
        Fact::Lost { what: said, total } if said == what => Some(total),
        _ => None,
    });
    total.with_context(|| format!("{what:?} is not told"))
}

/// The range of source ports of a namespace, as the programs saw it.
pub(crate) fn port_range(scene: &Scene, netns: &Netns) -> Result<Option<headroom_core::ports::PortRange>> {
    let inode = netns.inode()?;
    match scene.tcp().local_ports() {
        Known::Present(ranges) => Ok(ranges.into_iter().find(|(seen, _)| seen.0 == inode).map(|(_, range)| range)),
        other => bail!("port ranges are not known: {other:?}"),
    }
}
