//! conntrack entries of one network namespace, counted per destination, source and translated source address.

/// Map of [`Key`] to [`Counts`]: a preallocated hash.
pub const COUNTS_MAP: &str = "CT_COUNTS";
/// Map with one [`Losses`] at index 0.
pub const LOSSES_MAP: &str = "CT_LOSSES";
/// The load-time constant that holds [`Offsets`].
pub const OFFSETS_GLOBAL: &str = "CT_OFFSETS";

/// Keys counted at the same time, unless the agent asks for another number.
pub const DEFAULT_MAX_KEYS: u32 = 65_536;

/// From whom to where, and as whom. Aligned so that the programs can write the addresses in words.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The real peer, after DNAT (source of the reply tuple); IPv4 as IPv4-mapped IPv6.
    pub destination: [u8; 16],
    /// Who opened it, before any translation.
    pub source: [u8; 16],
    /// The source address that the peer sees (destination of the reply tuple).
    pub translated: [u8; 16],
    /// The peer's port, in host order; 0 for ICMP.
    pub port: u16,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Always zero: the kernel compares keys byte by byte.
    pub reserved: u8,
}

/// What was counted since [`Counts::born`]; every other field only grows, but for what is taken back where attempts are counted.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// When the key was entered (`CLOCK_MONOTONIC`, nanoseconds): tells a key that was retired and came back.
    pub born: u64,
    /// Entries that went into the table; where attempts are counted, less those that did not.
    pub inserted: u64,
    /// TCP entries that left it from TIME_WAIT.
    pub ended_time_wait: u64,
    /// TCP entries that left it after a reset.
    pub ended_reset: u64,
    /// TCP entries that left it without ever an answer.
    pub ended_unanswered: u64,
    /// All others that left it.
    pub ended_other: u64,
    /// Of those inserted: translated to a source port inside the NodePort range.
    pub node_port_inserted: u64,
    /// Of those that left: likewise.
    pub node_port_ended: u64,
    /// Packets of new connections that the kernel dropped since it found no port for them.
    pub no_port: u64,
}

/// What could not be counted since the programs were attached.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Entries that went into the table, and whose key found no room in the map.
    pub map_full: u64,
    /// Entries that left the table, and packets that found no port, likewise.
    pub map_full_ends: u64,
    /// Reads of kernel memory that failed.
    pub read_failed: u64,
    /// Entries that did not look like one: the layout is not what the agent takes it for.
    pub implausible: u64,
}

/// Bytes that the programs read at once from [`Offsets::tuples`].
pub const TUPLES_BYTES: usize = 96;

/// Where the running kernel keeps what the programs read: bytes from the start of `struct nf_conn`, unless said otherwise.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `tuplehash[IP_CT_DIR_ORIGINAL].tuple`; [`TUPLES_BYTES`] are read from here at once.
    pub tuples: u32,
    /// `tuplehash[IP_CT_DIR_REPLY].tuple`, from `tuples`; aligned to 4.
    pub reply: u32,
    /// `src.u3` of a tuple; aligned to 4.
    pub tuple_source: u32,
    /// `src.u.all`.
    pub tuple_source_port: u32,
    /// `src.l3num`.
    pub tuple_l3num: u32,
    /// `dst.u3`; aligned to 4.
    pub tuple_destination: u32,
    /// `dst.u.all`.
    pub tuple_destination_port: u32,
    /// `dst.protonum`.
    pub tuple_protonum: u32,
    /// `dst.dir`.
    pub tuple_dir: u32,
    /// `status`, a word of the kernel (its low 32 bits are read).
    pub status: u32,
    /// `ct_net.net`.
    pub net: u32,
    /// `ns.inum`, from the start of `struct net`.
    pub net_inum: u32,
    /// `proto.tcp.state`.
    pub tcp_state: u32,
    /// `_nfct`, from the start of `struct sk_buff`.
    pub skb_nfct: u32,
    /// Inode of the network namespace whose entries count.
    pub namespace: u32,
    /// First NodePort.
    pub node_port_first: u32,
    /// Last NodePort; below the first if there are none.
    pub node_port_last: u32,
    /// `SKB_DROP_REASON_NETFILTER_DROP`; another number in most kernels.
    pub drop_reason: u32,
    /// 1 where deletions are seen behind the test of `IPS_DYING` (a `.part.0` of the function), when it is set already.
    pub delete_is_dying: u32,
}

const _: () = {
    assert!(size_of::<Key>() == 52);
    assert!(size_of::<Counts>() == 9 * 8);
    assert!(size_of::<Losses>() == 4 * 8);
    assert!(size_of::<Offsets>() == 19 * 4);
};

#[cfg(feature = "user")]
mod user {
    use super::{Counts, Key, Losses, Offsets};

    // SAFETY: `repr(C)`, integers only, no padding (sizes asserted above), any bytes are a value.
    unsafe impl aya::Pod for Key {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for Counts {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for Losses {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for Offsets {}
}
