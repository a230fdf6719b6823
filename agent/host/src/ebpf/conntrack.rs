//! The programs of the subject `conntrack`: where this kernel keeps what they read, which functions it lets us probe, and
//! their maps.

use std::sync::Arc;

use headroom_core::known::{Known, Why};
use headroom_core::observe::ProgramRuns;
use headroom_core::ports::PortRange;
use headroom_ebpf_common::conntrack::{
    COUNTS_MAP, Counts, Key, LOSSES_MAP, Losses, OFFSETS_GLOBAL, Offsets, TUPLES_BYTES,
};
use headroom_ebpf_common::tcp;

use super::functions::{Functions, Target};
use super::maps::{Hash, Single};
use super::object::embedded;
use super::programs::{CT_CONFIRM, CT_DELETE, CT_INSERT, CT_NO_PORT, HookKind, ProgramRow};
use super::{LoadError, ProgramStatus, attach, attach_to, create, runs, take_map};
use crate::btf::{Btf, BtfError, Member};
use crate::root::HostRoot;

/// The running programs and their maps. Dropping it detaches them.
#[derive(Debug)]
pub struct Conntrack {
    /// Counters per destination, source and translated source.
    pub counts: Hash<Key, Counts>,
    /// What could not be counted.
    pub losses: Single<Losses>,
    /// What became of each program.
    pub programs: Vec<ProgramStatus>,
    /// Why entries are not counted as they come and go, if they are not.
    pub entries_unknown: Option<Why>,
    /// Why it is not known what found no port, if it is not.
    pub no_port_unknown: Option<Why>,
    /// Entries are counted before it is known whether they go into the table. Those that the kernel drops are taken back: a number
    /// that is read in between falls again. A UDP packet that joins the entry of one it raced with stays.
    pub counts_attempts: bool,
    /// Whether the kernel counts the runs of probes on functions that it skips.
    pub tells_missed: bool,
    /// Owns the programs' links.
    ebpf: aya::Ebpf,
}

/// How entries are seen to go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserts {
    /// The best way that there is.
    Best,
    /// As attempts, wherever their function is: for checks of what kernels are left with that have no better way.
    Attempts,
}

/// What to count.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// Inode of the network namespace.
    pub namespace: u32,
    /// The NodePort range.
    pub node_ports: PortRange,
    /// Room for so many keys.
    pub max_keys: u32,
}

impl Conntrack {
    /// Loads the programs and attaches what this kernel lets us attach.
    ///
    /// # Errors
    /// Why none of them can run here.
    pub fn load(root: &HostRoot, subject: Subject) -> Result<Self, LoadError> {
        Self::load_with(root, subject, Inserts::Best)
    }

    /// As [`Conntrack::load`], with a say in how entries are seen to go in.
    ///
    /// # Errors
    /// See [`Conntrack::load`].
    pub fn load_with(root: &HostRoot, subject: Subject, inserts: Inserts) -> Result<Self, LoadError> {
        let object = embedded()?;
        let kernel = Arc::new(Btf::of_kernel(root)?);
        let functions = Functions::read(root);
        let delete = functions.target_or_part(CT_DELETE.hook);
        let split = delete.as_ref().is_ok_and(|target| target.part);
        let (offsets, entries_layout, no_port_layout) = offsets(root, &kernel, subject, split)?;
        let mut ebpf = create(object, |loader| {
            loader.override_global(OFFSETS_GLOBAL, &offsets, true).map_max_entries(COUNTS_MAP, subject.max_keys.max(1));
            // The other subject's maps, which nothing here uses.
            for map in [
                tcp::SLOTS_MAP,
                tcp::ENTRIES_MAP,
                tcp::FREE_MAP,
                tcp::SOCKETS_MAP,
                tcp::HINTS_MAP,
                tcp::DIALLED_MAP,
                tcp::LOCAL_PORTS_MAP,
            ] {
                loader.map_max_entries(map, 1);
            }
        })?;
        let counts = Hash::new(COUNTS_MAP, take_map(&mut ebpf, COUNTS_MAP)?)?;
        let losses = Single::new(LOSSES_MAP, take_map(&mut ebpf, LOSSES_MAP)?)?;

        let mut programs = Vec::new();
        let mut note = |row: ProgramRow, attached: Result<(), Why>| {
            programs.push(ProgramStatus { row, attached: attached.clone() });
            attached
        };
        let no_port = no_port_layout.and_then(|()| attach(&mut ebpf, CT_NO_PORT).map_err(|error| error.why()));
        let no_port = note(CT_NO_PORT, no_port);
        let mut counts_attempts = false;
        let probe = |ebpf: &mut aya::Ebpf, row: ProgramRow, target: Result<Target, LoadError>| {
            let attached = |()| target.and_then(|target| attach_to(ebpf, row, &target.names));
            entries_layout.clone().and_then(|()| attached(()).map_err(|error| error.why()))
        };
        let deleted = probe(&mut ebpf, CT_DELETE, delete);
        let deleted = note(CT_DELETE, deleted);
        let mut inserted = match inserts {
            Inserts::Best => {
                let inserted = probe(&mut ebpf, CT_INSERT, functions.target(CT_INSERT.hook));
                note(CT_INSERT, inserted)
            }
            Inserts::Attempts => Err(Why::new("attempts are wanted")),
        };
        // Attempts are only as good as the count of those that failed.
        let attempt = no_port.is_ok() || inserts == Inserts::Attempts;
        if inserted.is_err() && deleted.is_ok() && attempt {
            let confirmed = probe(&mut ebpf, CT_CONFIRM, functions.target(CT_CONFIRM.hook));
            if note(CT_CONFIRM, confirmed).is_ok() {
                (inserted, counts_attempts) = (Ok(()), true);
            }
        }
        if let (Err(why), Err(_)) = (&deleted, &no_port) {
            return Err(LoadError::NothingAttached { why: why.clone(), programs });
        }
        Ok(Self {
            counts,
            losses,
            programs,
            entries_unknown: deleted.and(inserted).err(),
            no_port_unknown: no_port.err(),
            counts_attempts,
            tells_missed: kernel.member(&TELLS_MISSED).is_ok(),
            ebpf,
        })
    }
}

impl Conntrack {
    /// How a program ran since it was attached.
    pub fn runs(&self, row: ProgramRow) -> Known<ProgramRuns> {
        let told = row.kind != HookKind::Function || self.tells_missed;
        match runs::of(&self.ebpf, row.name) {
            Known::Present(runs) => Known::Present(ProgramRuns { missed: runs.missed.filter(|_| told), ..runs }),
            unknown => unknown,
        }
    }
}

/// Since 6.7 the kernel counts a run of a kprobe's program that it skips because another one runs on that CPU (`trace_call_bpf`,
/// `kernel/trace/bpf_trace.c`); before, its count stays zero. The same change brought this member, where links show it.
const TELLS_MISSED: [&str; 4] = ["bpf_link_info", "perf_event", "kprobe", "missed"];

/// `SKB_DROP_REASON_NETFILTER_DROP`, since 5.18: the kernel gives reasons since 5.17, and this one has another number in most versions.
fn drop_reason(kernel: &Btf) -> Result<u32, LoadError> {
    let value = kernel.enum_value("skb_drop_reason", "SKB_DROP_REASON_NETFILTER_DROP")?;
    if kernel.tracepoint_arguments(CT_NO_PORT.hook)? < CT_NO_PORT.arguments {
        return Err(LoadError::UnknownLayout { what: "tracepoint kfree_skb" });
    }
    u32::try_from(value).map_err(|_negative| LoadError::UnknownLayout { what: "enum skb_drop_reason" })
}

/// Where this kernel keeps what the programs read; and why the one or the other cannot be read, if so.
#[expect(clippy::type_complexity, reason = "two answers beside the offsets, told apart where they are used")]
fn offsets(
    root: &HostRoot,
    kernel: &Arc<Btf>,
    subject: Subject,
    split: bool,
) -> Result<(Offsets, Result<(), Why>, Result<(), Why>), LoadError> {
    // Where nf_conntrack is a module, its types may be with it.
    let module = match kernel.size_of("nf_conn") {
        Ok(_) => None,
        Err(_) => Some(Btf::of_module(root, kernel, "nf_conntrack")?),
    };
    let types = module.as_ref().unwrap_or(kernel);
    let of = |path: &[&str], what: &'static str, width: u32| at(types.member(path)?, what, width);
    let hash = of(&["nf_conn", "tuplehash"], "nf_conn.tuplehash", 0)?;
    let tuple = of(&["nf_conntrack_tuple_hash", "tuple"], "nf_conntrack_tuple_hash.tuple", 0)?;
    let stride = types.size_of("nf_conntrack_tuple_hash")?;
    let word = u32::try_from(size_of::<usize>()).unwrap_or(8);
    // `status` is a word of flags; the low half is where the byte order puts it.
    let low = if cfg!(target_endian = "big") { word - 4 } else { 0 };
    let member = |path: &[&str], width: u32| of(path, "struct nf_conntrack_tuple", width);
    let reason = drop_reason(kernel);
    let offsets = Offsets {
        tuples: hash.saturating_add(tuple),
        reply: stride,
        tuple_source: member(&["nf_conntrack_tuple", "src", "u3"], 16)?,
        tuple_source_port: member(&["nf_conntrack_tuple", "src", "u"], 2)?,
        tuple_l3num: member(&["nf_conntrack_tuple", "src", "l3num"], 2)?,
        tuple_destination: member(&["nf_conntrack_tuple", "dst", "u3"], 16)?,
        tuple_destination_port: member(&["nf_conntrack_tuple", "dst", "u"], 2)?,
        tuple_protonum: member(&["nf_conntrack_tuple", "dst", "protonum"], 1)?,
        tuple_dir: member(&["nf_conntrack_tuple", "dst", "dir"], 1)?,
        status: of(&["nf_conn", "status"], "nf_conn.status", word)?.saturating_add(low),
        net: of(&["nf_conn", "ct_net", "net"], "nf_conn.ct_net", word)?,
        net_inum: of(&["net", "ns", "inum"], "net.ns.inum", 4)?,
        tcp_state: of(&["nf_conn", "proto", "tcp", "state"], "nf_conn.proto.tcp.state", 1)?,
        skb_nfct: of(&["sk_buff", "_nfct"], "sk_buff._nfct", word)?,
        namespace: subject.namespace,
        node_port_first: subject.node_ports.first().into(),
        node_port_last: subject.node_ports.last().into(),
        drop_reason: *reason.as_ref().unwrap_or(&u32::MAX),
        delete_is_dying: split.into(),
    };
    let tuple_bytes = types.size_of("nf_conntrack_tuple")?;
    let inside = stride % 4 == 0
        && usize::try_from(stride.saturating_add(tuple_bytes)).is_ok_and(|end| end <= TUPLES_BYTES)
        && [offsets.tuple_source, offsets.tuple_destination].iter().all(|at| at % 4 == 0)
        && [offsets.tuple_source_port, offsets.tuple_destination_port, offsets.tuple_l3num]
            .iter()
            .all(|at| at % 2 == 0);
    let entries =
        if inside { Ok(()) } else { Err(LoadError::UnknownLayout { what: "struct nf_conntrack_tuple_hash" }.why()) };
    let no_port = entries.clone().and(reason.map(drop).map_err(|error| match error {
        LoadError::Btf(BtfError::NoType { .. } | BtfError::NoMember { .. }) => {
            Why::new("this kernel does not say why it drops a packet (it does since Linux 5.18)")
        }
        error => error.why(),
    }));
    Ok((offsets, entries, no_port))
}

/// Offset of a member that begins at a whole byte and has this width (0: any).
fn at(member: Member, what: &'static str, width: u32) -> Result<u32, LoadError> {
    match (member.offset_bytes(), member.width_bytes()) {
        (Some(offset), Some(found)) if width == 0 || found == width => Ok(offset),
        _ => Err(LoadError::UnknownLayout { what }),
    }
}
