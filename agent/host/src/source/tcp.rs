//! TCP connects and closes of every network namespace, counted in the kernel per destination and source address.
//!
//! Reads the counters of `ebpf/programs/src/tcp.rs`; a round takes a system call per thousand entries and blocks for
//! nothing. It does not know connections that existed before it started, unless it is told ([`TcpSource::seed`]).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use headroom_core::flow::Endpoint;
use headroom_core::ids::NetnsInode;
use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Loss, Outcome, Snapshot, SourceId, TcpCounter};
use headroom_core::ports::PortRange;
use headroom_core::time::NodeTime;
use headroom_ebpf_common::tcp::{Counts, Key, Losses};

use super::{Sink, Source, degraded, observation, unreadable, works};
use crate::clock;
use crate::ebpf::tcp::Tcp;
use crate::ebpf::tcp::entries::Connected;
use crate::ebpf::{ProgramStatus, TCP_STATE};
use crate::root::HostRoot;

/// Source [`SourceId::Tcp`].
#[derive(Debug)]
pub struct TcpSource {
    state: Result<Tcp, Why>,
    /// The most seeds that found no room in one seeding: the next seeding brings the same ones again.
    unseeded: u64,
    seedings: u32,
}

/// So many times, connections that existed before the start may be found for pairs that are counted already.
const EARLY: u32 = 3;

impl TcpSource {
    /// Starts counting. Where that is not possible, the source remembers why and says so in every round.
    ///
    /// `max_destinations` is how many pairs of destination and source address are counted at the same time; each takes about
    /// 240 bytes of kernel memory, taken at once.
    pub fn start(root: &HostRoot, max_destinations: u32) -> Self {
        let state = if root.is_live() {
            Tcp::load(root, max_destinations).map_err(|error| error.why())
        } else {
            Err(Why::new("only the running machine can be watched, not a captured tree"))
        };
        match &state {
            Ok(_) => tracing::info!("counting TCP connects and closes in the kernel"),
            Err(why) => tracing::warn!(%why, "TCP connects and closes cannot be counted in the kernel"),
        }
        Self { state, unseeded: 0, seedings: 0 }
    }

    /// Enters connections that existed before the start, so that their closes are counted. Their counters begin at zero:
    /// such a key can have more closes than opens.
    pub fn seed(&mut self, keys: impl Iterator<Item = (Endpoint, IpAddr)>) {
        let Ok(tcp) = &mut self.state else { return };
        let mut unseeded = 0;
        let early = self.seedings < EARLY;
        self.seedings = self.seedings.saturating_add(1);
        for (destination, source) in keys {
            match tcp.entries.seed(key(destination, source), early) {
                Ok(true) => {}
                Ok(false) => unseeded += 1,
                Err(error) => {
                    tracing::warn!(%error, "could not enter connections that existed before");
                    break;
                }
            }
        }
        self.unseeded = self.unseeded.max(unseeded);
    }

    /// Whether there may be pairs of which it is not certain how many connections they had before the start, since they moved
    /// whenever all sockets were read.
    pub fn is_restless(&self) -> bool {
        self.state.as_ref().is_ok_and(|tcp| tcp.entries.restless() > 0)
    }

    /// What became of each program.
    pub fn programs(&self) -> Vec<ProgramStatus> {
        match &self.state {
            Ok(tcp) => tcp.programs.clone(),
            Err(why) => ProgramStatus::none(&crate::ebpf::TCP, why),
        }
    }

    /// The network namespaces whose port range is kept.
    pub fn namespaces(&mut self) -> BTreeSet<NetnsInode> {
        let ranges = self.local_ports();
        ranges.present().into_iter().flatten().map(|(inode, _)| *inode).collect()
    }

    /// Forgets the port ranges of namespaces that are gone: the kernel gives their inodes to new ones. Of one that lives on
    /// without a process, the range is seen again when it dials somewhere new.
    pub fn forget_namespaces<'a>(&mut self, gone: impl Iterator<Item = &'a NetnsInode>) {
        let Ok(tcp) = &mut self.state else { return };
        for inode in gone.filter_map(|inode| u32::try_from(inode.0).ok()) {
            if let Err(error) = tcp.local_ports.remove(&inode) {
                tracing::warn!(%error, "could not forget a network namespace that is gone");
                return;
            }
        }
    }

    /// `ip_local_port_range` of the network namespaces that dialled since the start, by inode: as of the last time that
    /// a socket of theirs dialled somewhere new.
    pub fn local_ports(&mut self) -> Known<Vec<(NetnsInode, PortRange)>> {
        let tcp = match &mut self.state {
            Ok(Tcp { local_ports_unknown: Some(why), .. }) | Err(why) => return Known::Unknown(why.clone()),
            Ok(tcp) => tcp,
        };
        let mut ranges = Vec::new();
        let read = tcp.local_ports.for_each(|&inode, ports| {
            ranges.extend(PortRange::new(ports.first, ports.last).map(|range| (NetnsInode(u64::from(inode)), range)));
        });
        match read {
            Ok(()) => Known::Present(ranges),
            Err(error) => Known::Unknown(error.into()),
        }
    }
}

impl TcpSource {
    /// Reads the counters. `table` is a complete socket table that was read just before: from when on, and which pairs it
    /// shows; what it does not show can be forgotten after a while. Tells of all pairs, or only of those that moved.
    ///
    /// Coverage comes after the counters: it tells whether they could be read.
    pub fn observe_after(&mut self, table: Option<(NodeTime, &Pairs)>, all: bool, sink: Sink<'_>) {
        let mut put = |fact| sink(observation(SourceId::Tcp, fact));
        let tcp = match &mut self.state {
            Ok(tcp) => tcp,
            Err(why) => {
                for program in ProgramStatus::none(&crate::ebpf::TCP, why) {
                    put(program.fact(|_| Known::Absent));
                }
                return put(unreadable(why.as_str()));
            }
        };
        let now = clock::node_time();
        put(Fact::Begin(Snapshot::TcpCounters));
        let shows = |key: &Key| table.is_some_and(|(_, pairs)| pairs.contains(&pair(key)));
        let connected = table.map(|(begun, _)| Connected { begun, shows: &shows });
        let read: Result<(), Why> = tcp
            .entries
            .read(now, connected.as_ref(), all, |key, born, counts| put(Fact::TcpCounter(counter(key, born, counts))))
            .map_err(Why::from);
        let outcome = match &read {
            Err(why) => Outcome::Failed(why.clone()),
            Ok(()) if all => Outcome::Complete,
            Ok(()) => Outcome::Partial(Why::new("only what moved since the last reading")),
        };
        put(Fact::End { snapshot: Snapshot::TcpCounters, outcome });
        let losses: Result<Losses, Why> = tcp.losses.get().map_err(Why::from);
        if let Ok(losses) = &losses {
            put(Fact::Lost { what: Loss::TcpMapFull, total: losses.map_full.saturating_add(self.unseeded) });
            put(Fact::Lost { what: Loss::TcpReadFailed, total: losses.read_failed });
        }
        let made_up = losses.as_ref().map_or(0, |losses| losses.made_up);
        for program in &tcp.programs {
            let runs = if program.attached.is_ok() { tcp.runs(program.row.name) } else { Known::Absent };
            if program.row == TCP_STATE
                && let Some(missed) = runs.present().and_then(|runs| runs.missed)
            {
                put(Fact::Lost { what: Loss::TcpMissed, total: missed.saturating_sub(made_up) });
            }
            put(program.fact(|_| runs));
        }
        put(coverage(&tcp.programs, read, losses.err()));
        // What is not known here is only a stand-in for what `namespaces` may know.
        if let Known::Present(ranges) = self.local_ports() {
            for (inode, ephemeral) in ranges {
                sink(observation(SourceId::Tcp, Fact::DialledRange { inode, ephemeral }));
            }
        }
    }
}

impl Source for TcpSource {
    fn id(&self) -> SourceId {
        SourceId::Tcp
    }

    fn observe(&mut self, sink: Sink<'_>) {
        self.observe_after(None, true, sink);
    }
}

/// Pairs of destination and source address.
pub type Pairs = BTreeSet<(Endpoint, IpAddr)>;

const HOW: &str = "eBPF counters on raw tracepoint inet_sock_set_state";

/// Works if the counters could be read, less what the programs that are not attached would tell.
fn coverage(programs: &[ProgramStatus], read: Result<(), Why>, losses_unknown: Option<Why>) -> Fact {
    if let Err(why) = read {
        return unreadable(why.as_str());
    }
    let missing: Vec<String> = programs
        .iter()
        .filter_map(|program| program.attached.as_ref().err().map(|why| format!("{}: {why}", program.row.lost_without)))
        .chain(losses_unknown.map(|why| format!("its losses are not known: {why}")))
        .collect();
    if missing.is_empty() { works(HOW) } else { degraded(HOW, missing.join("; ")) }
}

/// The key of a destination and a source address, as the programs write it.
fn key(destination: Endpoint, source: IpAddr) -> Key {
    Key { destination: octets(destination.address), source: octets(source), port: destination.port, reserved: 0 }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A key's destination and source address.
fn pair(key: &Key) -> (Endpoint, IpAddr) {
    (Endpoint::new(Ipv6Addr::from(key.destination).into(), key.port), IpAddr::from(key.source).to_canonical())
}

/// A key and its counts as a fact.
fn counter(key: &Key, born: u32, counts: &Counts) -> TcpCounter {
    let (destination, source) = pair(key);
    let Counts {
        attempted,
        opened,
        closed,
        reset,
        refused,
        timed_out,
        unreachable,
        given_up,
        no_local_port,
        syn_retransmitted,
    } = *counts;
    TcpCounter {
        destination,
        source,
        born,
        attempted,
        opened,
        closed,
        reset,
        refused,
        timed_out,
        unreachable,
        given_up,
        no_local_port,
        syn_retransmitted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Exercises the wire form of addresses. If this fails, seeded connections are counted under another key.
        #[test]
        fn a_seeded_key_reads_back_as_its_endpoints(v4 in any::<(u32, u32)>(), v6 in any::<(u128, u128)>(), port: u16) {
            for (destination, source) in [
                (IpAddr::V4(v4.0.into()), IpAddr::V4(v4.1.into())),
                (IpAddr::V6(v6.0.into()).to_canonical(), IpAddr::V6(v6.1.into()).to_canonical()),
            ] {
                let destination = Endpoint::new(destination, port);
                let read = counter(&key(destination, source), 0, &Counts::default());
                prop_assert_eq!((read.destination, read.source), (destination, source));
            }
        }
    }

    #[test]
    fn counters_that_could_not_be_read_are_no_coverage_whatever_is_attached() {
        let attached: Vec<_> = crate::ebpf::TCP.iter().map(|&row| ProgramStatus { row, attached: Ok(()) }).collect();
        let unread = coverage(&attached, Err(Why::new("no batches")), None);
        assert_eq!(unread, Fact::Coverage(Known::because("no batches")));
        assert_eq!(coverage(&attached, Ok(()), None), works(HOW));
        let Fact::Coverage(Known::Present(detail)) = coverage(&attached, Ok(()), Some(Why::new("gone"))) else {
            panic!("the counters are there")
        };
        assert!(detail.degraded.is_some_and(|why| why.as_str().contains("losses are not known: gone")));
    }

    #[test]
    fn a_captured_tree_has_no_running_kernel() {
        let mut source = TcpSource::start(&HostRoot::at("/nowhere"), 16);
        let mut facts = Vec::new();
        source.observe(&mut |observation| facts.push(observation.fact));
        assert!(matches!(&facts[..], [Fact::Program(_), Fact::Program(_), Fact::Coverage(Known::Unknown(_))]));
        assert!(source.programs().iter().all(|program| program.attached.is_err()));
    }
}
