//! The programs of the subject `tcp`: where this kernel keeps what they read, and their maps.

use headroom_core::known::{Known, Why};
use headroom_core::observe::ProgramRuns;
use headroom_ebpf_common::tcp::{
    ENTRIES_MAP, FREE_MAP, HEADER_BYTES, LOCAL_PORTS_MAP, LOSSES_MAP, LocalPorts, Losses, MAX_DESTINATIONS, NOWHERE,
    OFFSETS_GLOBAL, Offsets, SLOTS_MAP,
};

use super::maps::{Hash, MapsError, Single};
use super::object::embedded;
use super::programs::{self, TCP_STATE};
use super::{LoadError, ProgramStatus, attach, create, runs, take_map};
use crate::btf::{Btf, BtfError, Member};
use crate::root::HostRoot;

pub mod entries;

use entries::Entries;

/// The running programs and their maps. Dropping it detaches them.
#[derive(Debug)]
pub struct Tcp {
    /// Counters per destination and source.
    pub entries: Entries,
    /// What could not be counted.
    pub losses: Single<Losses>,
    /// Port ranges of the network namespaces that dialled, by inode.
    pub local_ports: Hash<u32, LocalPorts>,
    /// What became of each program.
    pub programs: Vec<ProgramStatus>,
    /// Why [`Tcp::local_ports`] stays empty, if it does.
    pub local_ports_unknown: Option<Why>,
    /// Owns the programs' links.
    ebpf: aya::Ebpf,
}

impl Tcp {
    /// Loads and attaches the programs, with room for that many pairs of destination and source.
    ///
    /// # Errors
    /// Why they cannot run here. That only SYN retransmissions cannot be seen is not an error; it is in the table.
    pub fn load(root: &HostRoot, max_destinations: u32) -> Result<Self, LoadError> {
        let object = embedded()?;
        let btf = Btf::of_kernel(root)?;
        let (offsets, local_ports_unknown) = offsets(&btf)?;
        let max = max_destinations.clamp(1, MAX_DESTINATIONS);
        let mut ebpf = create(object, |loader| {
            loader.override_global(OFFSETS_GLOBAL, &offsets, true);
            for map in [SLOTS_MAP, ENTRIES_MAP, FREE_MAP] {
                loader.map_max_entries(map, max);
            }
            // The other subject's map, which nothing here uses.
            loader.map_max_entries(headroom_ebpf_common::conntrack::COUNTS_MAP, 1);
        })?;
        let entries = Entries::new(&mut ebpf, max)?;
        let losses = Single::new(LOSSES_MAP, take_map(&mut ebpf, LOSSES_MAP)?)?;
        let local_ports = Hash::new(LOCAL_PORTS_MAP, take_map(&mut ebpf, LOCAL_PORTS_MAP)?)?;
        let mut programs = Vec::new();
        for row in programs::TCP {
            let attached = same_arguments(&btf, row.hook, row.arguments).and_then(|()| attach(&mut ebpf, row));
            match attached {
                Err(error) if row == TCP_STATE => return Err(error),
                attached => programs.push(ProgramStatus { row, attached: attached.map_err(|error| error.why()) }),
            }
        }
        Ok(Self { entries, losses, local_ports, programs, local_ports_unknown, ebpf })
    }
}

impl Tcp {
    /// How a program ran since it was attached.
    pub fn runs(&self, name: &str) -> Known<ProgramRuns> {
        runs::of(&self.ebpf, name)
    }
}

/// A program must not read arguments that this kernel does not pass.
fn same_arguments(btf: &Btf, hook: &'static str, at_least: usize) -> Result<(), LoadError> {
    match btf.tracepoint_arguments(hook) {
        Ok(arguments) if arguments < at_least => Err(LoadError::UnknownLayout { what: hook }),
        // Kernels before 5.5 do not describe their tracepoints; attaching tells whether there is one.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Where this kernel keeps what the programs read, and why it does not show port ranges, if so.
fn offsets(btf: &Btf) -> Result<(Offsets, Option<Why>), LoadError> {
    let common = |member: &'static str, width: u32| -> Result<u32, LoadError> {
        at(btf.member(&["sock", "__sk_common", member])?, member, &[width]).map(|(offset, _)| offset)
    };
    let (daddr, rcv_saddr) = (common("skc_daddr", 4)?, common("skc_rcv_saddr", 4)?);
    let (dport, family, state) = (common("skc_dport", 2)?, common("skc_family", 2)?, common("skc_state", 1)?);
    let prot = common("skc_prot", 8)?;
    let all = [(daddr, 4), (rcv_saddr, 4), (dport, 2), (family, 2), (state, 1), (prot, 8)];
    // The programs read words from an aligned copy that begins here.
    let header = all.iter().map(|&(offset, _)| offset).min().unwrap_or(0) & !7;
    let inside = |&(offset, width): &(u32, u32)| {
        offset % width == 0 && usize::try_from(offset - header + width).is_ok_and(|end| end <= HEADER_BYTES)
    };
    if !all.iter().all(inside) {
        return Err(LoadError::UnknownLayout { what: "struct sock_common" });
    }
    let (v6_daddr, v6_rcv_saddr) = match (common("skc_v6_daddr", 16), common("skc_v6_rcv_saddr", 16)) {
        (Ok(daddr), Ok(rcv_saddr)) => (daddr, rcv_saddr),
        // Compiled without IPv6: there are no such sockets.
        (Err(LoadError::Btf(BtfError::NoMember { .. })), _) | (_, Err(LoadError::Btf(BtfError::NoMember { .. }))) => {
            (NOWHERE, NOWHERE)
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let (protocol, protocol_bytes) = at(btf.member(&["sock", "sk_protocol"])?, "sk_protocol", &[1, 2])?;
    let (err, _) = at(btf.member(&["sock", "sk_err"])?, "sk_err", &[4])?;
    let (sport, _) = at(btf.member(&["inet_sock", "inet_sport"])?, "inet_sport", &[2])?;
    let (ports, unknown) = match local_ports(btf) {
        Ok(ports) => (ports, None),
        Err(error) => (LocalPortsAt::default(), Some(error.why())),
    };
    let offsets = Offsets {
        header,
        header_daddr: daddr - header,
        header_rcv_saddr: rcv_saddr - header,
        header_dport: dport - header,
        header_family: family - header,
        header_state: state - header,
        header_prot: prot - header,
        v6_daddr,
        v6_rcv_saddr,
        protocol,
        protocol_bytes,
        err,
        connection_refused: libc::ECONNREFUSED.unsigned_abs(),
        timed_out: libc::ETIMEDOUT.unsigned_abs(),
        sport,
        net: ports.net,
        net_inum: ports.inum,
        net_range: ports.range,
        net_range_bytes: ports.range_bytes,
    };
    Ok((offsets, unknown))
}

/// Where a network namespace keeps its port range.
struct LocalPortsAt {
    net: u32,
    inum: u32,
    range: u32,
    range_bytes: u32,
}

impl Default for LocalPortsAt {
    fn default() -> Self {
        Self { net: NOWHERE, inum: 0, range: 0, range_bytes: 0 }
    }
}

fn local_ports(btf: &Btf) -> Result<LocalPortsAt, LoadError> {
    let (net, _) = at(btf.member(&["sock", "__sk_common", "skc_net", "net"])?, "skc_net", &[8])?;
    let (inum, _) = at(btf.member(&["net", "ns", "inum"])?, "net.ns.inum", &[4])?;
    let range = btf.member(&["net", "ipv4", "ip_local_ports", "range"])?;
    let (range, range_bytes) = at(range, "net.ipv4.ip_local_ports.range", &[4, 8])?;
    Ok(LocalPortsAt { net, inum, range, range_bytes })
}

/// Offset and width of a member that begins at a whole byte and has one of the widths that the programs can read.
fn at(member: Member, what: &'static str, widths: &[u32]) -> Result<(u32, u32), LoadError> {
    match (member.offset_bytes(), member.width_bytes()) {
        (Some(offset), Some(width)) if widths.contains(&width) => Ok((offset, width)),
        _ => Err(LoadError::UnknownLayout { what }),
    }
}

impl From<MapsError> for Why {
    fn from(error: MapsError) -> Self {
        LoadError::Maps(error).why()
    }
}
