//! TCP connects and closes, counted per destination and source address.

/// Map of [`Key`] to the index of its [`Entry`] (`u32`): a preallocated hash.
pub const SLOTS_MAP: &str = "TCP_SLOTS";
/// Array of [`Entry`].
pub const ENTRIES_MAP: &str = "TCP_ENTRIES";
/// Stack of the indices (`u32`) of entries that are free: the agent fills it, the programs take from it.
pub const FREE_MAP: &str = "TCP_FREE";
/// Array of cells (`u64`, [`SOCKET_CELLS`] of them): what is known of a socket by its address alone.
pub const SOCKETS_MAP: &str = "TCP_SOCKETS";
/// Array of [`HINTS`] numbers (`u64`): where the entry of a key probably is, plus one, by a hash of the key.
pub const HINTS_MAP: &str = "TCP_HINTS";
/// Array of [`DIALLED_PORTS`] flags (`u64`): not zero where a key's port, modulo that number, belongs. Never cleared.
pub const DIALLED_MAP: &str = "TCP_DIALLED";
/// Map with one [`Losses`] at index 0.
pub const LOSSES_MAP: &str = "TCP_LOSSES";
/// Map of a network namespace's inode (`u32`) to its [`LocalPorts`].
pub const LOCAL_PORTS_MAP: &str = "TCP_LOCAL_PORTS";
/// The load-time constant that holds [`Offsets`].
pub const OFFSETS_GLOBAL: &str = "TCP_OFFSETS";

/// Destinations counted at the same time, unless the agent asks for another number.
pub const DEFAULT_MAX_DESTINATIONS: u32 = 65_536;
/// At most so many: an index and a phase fit a cell's [`CELL_BITS`].
pub const MAX_DESTINATIONS: u32 = 1 << 20;
/// Cells of [`SOCKETS_MAP`], a power of two. Sockets that are open at the same time and share one cost a hash lookup more.
pub const SOCKET_CELLS: u32 = 1 << 16;
/// Hints in [`HINTS_MAP`], a power of two. Keys that share one cost a hash lookup more.
pub const HINTS: u32 = 1 << 16;
/// Flags of [`DIALLED_MAP`], a power of two.
pub const DIALLED_PORTS: u32 = 1 << 14;

/// A cell holds the address of a socket without its three lowest bits, which are zero, shifted left by this much, and below
/// it a code. Of the address 45 bits are kept: sockets that share them would be 32 TiB of memory apart.
pub const CELL_BITS: u32 = 22;
/// Code of a socket that was accepted.
pub const CELL_ACCEPTED: u64 = 1;
/// Codes of sockets that dialled have one of the phases in so many of the lowest bits.
pub const CELL_PHASE_BITS: u32 = 1;
/// Not answered yet.
pub const PHASE_CONNECTING: u64 = 0;
/// Answered.
pub const PHASE_OPEN: u64 = 1;

/// The code of a socket that dialled, with the index of its entry.
#[inline(always)]
pub const fn dialled_code(slot: u32, phase: u64) -> u64 {
    (slot as u64 + 1) << CELL_PHASE_BITS | phase
}

/// The index of the entry of a socket that dialled; `None` for other codes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an index and one more, of a code of 22 bits")]
pub const fn dialled_slot(code: u64) -> Option<u32> {
    match (code >> CELL_PHASE_BITS) as u32 {
        0 => None,
        place => Some(place - 1),
    }
}

/// Network namespaces whose port range is kept.
pub const MAX_NAMESPACES: u32 = 1024;

/// From whom to where. Aligned so that the programs can write the addresses in words.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What the socket dialled; IPv4 as IPv4-mapped IPv6 (`::ffff:a.b.c.d`).
    pub destination: [u8; 16],
    /// The socket's own address, written likewise.
    pub source: [u8; 16],
    /// Destination port, in host order.
    pub port: u16,
    /// Always zero: the kernel compares keys byte by byte.
    pub reserved: u16,
}

/// A key and its counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// Whose counts they are. Only true if [`SLOTS_MAP`] says that this is the key's entry.
    pub key: Key,
    /// Not zero if it was taken from the stack.
    pub used: u32,
    /// What was counted.
    pub counts: Counts,
}

/// What was counted since the key was entered; every field only grows.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connects begun.
    pub attempted: u64,
    /// Connects that were answered.
    pub opened: u64,
    /// Established connections that ended by FIN, from either side.
    pub closed: u64,
    /// Established connections that ended by RST or abort.
    pub reset: u64,
    /// Connects that were refused (ECONNREFUSED).
    pub refused: u64,
    /// Connects that timed out (ETIMEDOUT).
    pub timed_out: u64,
    /// Connects that ended with another error: no route, prohibited, …
    pub unreachable: u64,
    /// Connects that ended without an error: the application closed the socket.
    pub given_up: u64,
    /// Connects that found no local port.
    pub no_local_port: u64,
    /// SYNs sent again.
    pub syn_retransmitted: u64,
}

/// What could not be counted since the programs were attached.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Connects whose key found no room in the map.
    pub map_full: u64,
    /// Reads of kernel memory that failed, or gave what cannot be.
    pub read_failed: u64,
    /// Events that the kernel skipped and a later one made up for: not lost.
    pub made_up: u64,
}

/// `ip_local_port_range` of a network namespace, as its sockets see it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalPorts {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Bytes that the programs read at once from [`Offsets::header`].
pub const HEADER_BYTES: usize = 48;

/// Where the running kernel keeps what the programs read: bytes from the start of `struct sock`, unless said otherwise.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets {
    /// At or below the lowest of the six `header_…` members: [`HEADER_BYTES`] are read from here at once.
    pub header: u32,
    /// `skc_daddr`, from `header`; aligned to 4.
    pub header_daddr: u32,
    /// `skc_rcv_saddr`, from `header`; aligned to 4.
    pub header_rcv_saddr: u32,
    /// `skc_dport`, from `header`; aligned to 2.
    pub header_dport: u32,
    /// `skc_family`, from `header`; aligned to 2.
    pub header_family: u32,
    /// `skc_state`, from `header`.
    pub header_state: u32,
    /// `skc_prot`, from `header`; aligned to 8.
    pub header_prot: u32,
    /// `skc_v6_daddr`; [`NOWHERE`] without IPv6.
    pub v6_daddr: u32,
    /// `skc_v6_rcv_saddr`; [`NOWHERE`] without IPv6.
    pub v6_rcv_saddr: u32,
    /// `sk_protocol`.
    pub protocol: u32,
    /// Width of `sk_protocol` in bytes: 2 since 5.6, 1 before.
    pub protocol_bytes: u32,
    /// `sk_err`, four bytes wide.
    pub err: u32,
    /// ECONNREFUSED of this architecture.
    pub connection_refused: u32,
    /// ETIMEDOUT of this architecture.
    pub timed_out: u32,
    /// `inet_sport`, from the start of `struct inet_sock`, whose first member is the `struct sock`.
    pub sport: u32,
    /// `skc_net.net`; [`NOWHERE`] where port ranges cannot be read.
    pub net: u32,
    /// `ns.inum`, from the start of `struct net`.
    pub net_inum: u32,
    /// `ipv4.ip_local_ports.range`, from the start of `struct net`.
    pub net_range: u32,
    /// Width of that range in bytes: 8 for `int[2]`, 4 for the packed `u32` (`last << 16 | first`) since 6.8.
    pub net_range_bytes: u32,
}

/// The offset of a member that this kernel does not have.
pub const NOWHERE: u32 = u32::MAX;

const _: () = {
    assert!(size_of::<Key>() == 36);
    assert!(size_of::<Counts>() == 10 * 8);
    assert!(size_of::<Entry>() == 36 + 4 + 10 * 8);
    assert!(dialled_code(MAX_DESTINATIONS - 1, PHASE_OPEN) < 1 << CELL_BITS);
    assert!(size_of::<Losses>() == 3 * 8);
    assert!(size_of::<LocalPorts>() == 4);
    assert!(size_of::<Offsets>() == 19 * 4);
};

#[cfg(feature = "user")]
mod user {
    use super::{Counts, Entry, Key, LocalPorts, Losses, Offsets};

    // SAFETY: `repr(C)`, integers only, no padding (sizes asserted above), any bytes are a value.
    unsafe impl aya::Pod for Key {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for Counts {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for Entry {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for Losses {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for LocalPorts {}
    // SAFETY: as for `Key`.
    unsafe impl aya::Pod for Offsets {}
}
