//! What is read from a socket: whose connection it is, and in which namespace.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use headroom_ebpf_common::tcp::{HEADER_BYTES, Key, LocalPorts, MAX_NAMESPACES, NOWHERE, Offsets};

use crate::address::{mapped, octets};
use crate::memory::{Shared, Unreadable, constant, read, read_into, within};

#[map]
static TCP_LOCAL_PORTS: HashMap<u32, LocalPorts> = HashMap::with_max_entries(MAX_NAMESPACES, 0);

/// Written by the agent before the programs are loaded.
#[unsafe(no_mangle)]
pub(super) static TCP_OFFSETS: Offsets = Offsets {
    header: 0,
    header_daddr: 0,
    header_rcv_saddr: 0,
    header_dport: 0,
    header_family: 0,
    header_state: 0,
    header_prot: 0,
    v6_daddr: NOWHERE,
    v6_rcv_saddr: NOWHERE,
    protocol: 0,
    protocol_bytes: 0,
    err: 0,
    connection_refused: 0,
    timed_out: 0,
    sport: 0,
    net: NOWHERE,
    net_inum: 0,
    net_range: 0,
    net_range_bytes: 0,
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;

/// The beginning of a socket, read at once.
pub(super) type Header = [u64; HEADER_BYTES / 8];

/// Why nothing was counted.
pub(super) enum Skip {
    /// Not a TCP socket over IPv4 or IPv6.
    NotOurs,
    /// Kernel memory could not be read, or what was read cannot be: the layout is not what the agent takes it for.
    Unreadable,
}

impl From<Unreadable> for Skip {
    #[inline(always)]
    fn from(Unreadable: Unreadable) -> Self {
        Self::Unreadable
    }
}

/// The key of a socket's connection.
#[inline(always)]
pub(super) fn key(header: &Header, sock: *const c_void) -> Result<Key, Skip> {
    let port = u16::from_be(within(header, constant!(TCP_OFFSETS.header_dport)));
    let (destination, source) = match within::<u16, _>(header, constant!(TCP_OFFSETS.header_family)) {
        AF_INET => (
            mapped(within(header, constant!(TCP_OFFSETS.header_daddr))),
            mapped(within(header, constant!(TCP_OFFSETS.header_rcv_saddr))),
        ),
        AF_INET6 if constant!(TCP_OFFSETS.v6_daddr) != NOWHERE => {
            (read(sock, constant!(TCP_OFFSETS.v6_daddr))?, read(sock, constant!(TCP_OFFSETS.v6_rcv_saddr))?)
        }
        AF_INET6 => return Err(Skip::NotOurs),
        // TCP has no other.
        _ => return Err(Skip::Unreadable),
    };
    Ok(Key { destination: octets(destination), source: octets(source), port, reserved: 0 })
}

/// `struct proto` of sockets that were seen to be TCP: one each for IPv4 and IPv6, as [`begun`] meets them.
static TCP_PROTOS: [Shared; 2] = [Shared::zero(), Shared::zero()];

/// The key of a TCP socket. Other protocols share the hook: MPTCP (its subflows are TCP sockets of their own), SCTP, DCCP.
#[inline(always)]
pub(super) fn key_of(sock: *const c_void) -> Result<Key, Skip> {
    let mut header = MaybeUninit::uninit();
    let header = read_into(&mut header, sock, constant!(TCP_OFFSETS.header))?;
    // `sk_protocol` is far from the header. A `struct proto` belongs to one protocol, so a known one spares that read, a
    // tenth of all the time spent here.
    let proto: u64 = within(header, constant!(TCP_OFFSETS.header_prot));
    let [first, second] = &TCP_PROTOS;
    if proto != first.get() && proto != second.get() && !is_tcp(sock)? {
        return Err(Skip::NotOurs);
    }
    key(header, sock)
}

/// Whether `sk_protocol` is TCP.
#[inline(always)]
fn is_tcp(sock: *const c_void) -> Result<bool, Unreadable> {
    let offset = constant!(TCP_OFFSETS.protocol);
    let protocol = match constant!(TCP_OFFSETS.protocol_bytes) {
        1 => u16::from(read::<u8>(sock, offset)?),
        _ => read::<u16>(sock, offset)?,
    };
    Ok(protocol == IPPROTO_TCP)
}

/// Remembers the `struct proto` of a TCP socket that only begins: later it may get one of kTLS or of a sockmap.
#[inline(always)]
pub(super) fn learn_proto(sock: *const c_void) -> Result<(), Unreadable> {
    let proto = read::<u64>(sock, constant!(TCP_OFFSETS.header).wrapping_add(constant!(TCP_OFFSETS.header_prot)))?;
    let [first, second] = &TCP_PROTOS;
    if first.get() == 0 {
        first.set(proto);
    } else if second.get() == 0 && first.get() != proto {
        second.set(proto);
    }
    Ok(())
}

/// Keeps the port range of the socket's network namespace: the only way to it without entering the namespace.
#[inline(always)]
pub(super) fn note_local_ports(sock: *const c_void) -> Result<(), Unreadable> {
    if constant!(TCP_OFFSETS.net) == NOWHERE {
        return Ok(());
    }
    let net = read::<u64>(sock, constant!(TCP_OFFSETS.net))? as *const c_void;
    let inode = read::<u32>(net, constant!(TCP_OFFSETS.net_inum))?;
    let range = constant!(TCP_OFFSETS.net_range);
    let (first, last) = match constant!(TCP_OFFSETS.net_range_bytes) {
        4 => {
            let packed = read::<u32>(net, range)?;
            (packed as u16, (packed >> 16) as u16)
        }
        _ => (read::<u32>(net, range)? as u16, read::<u32>(net, range.wrapping_add(4))? as u16),
    };
    // A full map loses only the range of one more namespace, which is then unknown to the agent too. Overwriting keeps a
    // changed setting current.
    let _full = TCP_LOCAL_PORTS.insert(&inode, &LocalPorts { first, last }, u64::from(BPF_ANY));
    Ok(())
}
