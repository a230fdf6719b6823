//! TCP connects and closes of all network namespaces, counted per destination and source address.
//!
//! A connection is told from an accepted one by its key: who dials enters it, so a close whose key is not there belongs to
//! somebody else. Every transition that does not matter returns before any memory is read.
//!
//! Calls are what costs here, above all where every return is guarded against speculation; lookups in arrays are none, the
//! verifier writes them out. So what the first event of a socket found out, whose counts are its, is kept in a cell of an
//! array by the socket's address, and the later ones need neither read the socket nor look up the key. The cells are only
//! a short cut: each is read and written at once, tells whose it is, and a socket without one takes the long way.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, Stack};
use aya_ebpf::programs::RawTracePointContext;
use headroom_ebpf_common::tcp::{
    CELL_ACCEPTED, CELL_BITS, CELL_SLOT, Counts, DEFAULT_MAX_DESTINATIONS, DIALLED_PORTS, Entry, HEADER_BYTES, HINTS,
    Key, LocalPorts, Losses, MAX_NAMESPACES, NOWHERE, Offsets, SOCKET_CELLS,
};

use crate::count::add_one;
use crate::memory::{Plain, Shared, Unreadable, constant, read, read_into};

#[map]
static TCP_SLOTS: HashMap<Key, u32> = HashMap::with_max_entries(DEFAULT_MAX_DESTINATIONS, 0);

#[map]
static TCP_ENTRIES: Array<Entry> = Array::with_max_entries(DEFAULT_MAX_DESTINATIONS, 0);

#[map]
static TCP_FREE: Stack<u32> = Stack::with_max_entries(DEFAULT_MAX_DESTINATIONS, 0);

#[map]
static TCP_SOCKETS: Array<Shared> = Array::with_max_entries(SOCKET_CELLS, 0);

#[map]
static TCP_HINTS: Array<Shared> = Array::with_max_entries(HINTS, 0);

#[map]
static TCP_DIALLED: Array<Shared> = Array::with_max_entries(DIALLED_PORTS, 0);

#[map]
static TCP_LOSSES: Array<Losses> = Array::with_max_entries(1, 0);

#[map]
static TCP_LOCAL_PORTS: HashMap<u32, LocalPorts> = HashMap::with_max_entries(MAX_NAMESPACES, 0);

/// Written by the agent before the programs are loaded.
#[unsafe(no_mangle)]
static TCP_OFFSETS: Offsets = Offsets {
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

// include/net/tcp_states.h; asserted unchangeable there because user space sees them.
const ESTABLISHED: i32 = 1;
const SYN_SENT: i32 = 2;
const SYN_RECV: i32 = 3;
const FIN_WAIT1: i32 = 4;
const FIN_WAIT2: i32 = 5;
const CLOSE: i32 = 7;
const CLOSE_WAIT: i32 = 8;
const LAST_ACK: i32 = 9;
const LISTEN: i32 = 10;
const CLOSING: i32 = 11;

/// States in which a FIN of ours is out: coming from here, CLOSE is an orderly end. TIME_WAIT is never reported, the
/// socket is replaced by a smaller one before.
const ORDERLY: u32 = 1 << FIN_WAIT1 | 1 << FIN_WAIT2 | 1 << CLOSING | 1 << LAST_ACK;
/// States of an open connection. SYN_RECV: only sockets of a simultaneous open and accepted ones come here, and the
/// latter are not in the map.
const OPEN: u32 = 1 << ESTABLISHED | 1 << CLOSE_WAIT | 1 << SYN_RECV;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;

/// The beginning of a socket, read at once.
type Header = [u64; HEADER_BYTES / 8];

/// The member of a header at `offset`.
#[inline(always)]
fn member<T: Plain>(header: &Header, offset: u32) -> T {
    // SAFETY: the agent gives only offsets that are inside and aligned for their type; the verifier, to which they are
    // constants, refuses the program otherwise.
    unsafe { *header.as_ptr().byte_add(offset as usize).cast::<T>() }
}

/// Why nothing was counted.
enum Skip {
    /// Not a TCP socket over IPv4 or IPv6.
    NotOurs,
    /// Kernel memory could not be read.
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
fn key(header: &Header, sock: *const c_void) -> Result<Key, Skip> {
    let port = u16::from_be(member(header, constant!(TCP_OFFSETS.header_dport)));
    let (destination, source) = match member::<u16>(header, constant!(TCP_OFFSETS.header_family)) {
        AF_INET => (
            mapped(member(header, constant!(TCP_OFFSETS.header_daddr))),
            mapped(member(header, constant!(TCP_OFFSETS.header_rcv_saddr))),
        ),
        AF_INET6 if constant!(TCP_OFFSETS.v6_daddr) != NOWHERE => {
            (read(sock, constant!(TCP_OFFSETS.v6_daddr))?, read(sock, constant!(TCP_OFFSETS.v6_rcv_saddr))?)
        }
        _ => return Err(Skip::NotOurs),
    };
    Ok(Key { destination: octets(destination), source: octets(source), port, reserved: 0 })
}

/// An IPv4 address as the words of an IPv4-mapped IPv6 one.
#[inline(always)]
fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// Words as they lie in memory, as bytes.
#[inline(always)]
fn octets(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: four words are sixteen bytes.
    unsafe { core::mem::transmute(words) }
}

/// `TP_PROTO(const struct sock *sk, const int oldstate, const int newstate)`, `include/trace/events/sock.h`, since 4.16.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn tcp_state(ctx: RawTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let from = 1u32 << (old & 31);
    let sock = ctx.arg::<*const c_void>(0);
    let result = match new {
        SYN_SENT if old == CLOSE => begun(sock),
        ESTABLISHED | SYN_RECV if old == SYN_SENT => answered(sock),
        SYN_RECV if old == LISTEN => {
            Cell::of(sock).set(CELL_ACCEPTED);
            return 0;
        }
        CLOSE if old == SYN_SENT => unanswered(sock),
        CLOSE if from & ORDERLY != 0 => ended(sock, |counts| &raw mut counts.closed),
        CLOSE if from & OPEN != 0 => ended(sock, |counts| &raw mut counts.reset),
        _ => return 0,
    };
    count_unreadable(result);
    0
}

/// `TP_PROTO(const struct sock *sk, const struct sk_buff *skb)`, `include/trace/events/tcp.h`, since 4.15; `int err` was
/// added behind them in 6.16. Kernels before that stay silent about a SYN that the own namespace's netfilter drops.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub(crate) fn tcp_retransmit(ctx: RawTracePointContext) -> i32 {
    count_unreadable(sent_again(ctx.arg::<*const c_void>(0)));
    0
}

/// What is known of a socket by its address. A predecessor at the same address is no danger: the first event of either
/// kind of connection writes the cell.
struct Cell {
    /// The address as a cell holds it.
    whose: u64,
    place: Option<*mut Shared>,
}

impl Cell {
    #[inline(always)]
    fn of(sock: *const c_void) -> Self {
        let address = sock as u64 >> 3;
        // Fibonacci hashing: the uppermost bits are the best.
        let index = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SOCKET_CELLS.ilog2());
        Self { whose: address << CELL_BITS, place: TCP_SOCKETS.get_ptr_mut(index as u32) }
    }

    /// The code of this socket; 0 if nothing is known.
    #[inline(always)]
    fn code(&self) -> u64 {
        let Some(place) = self.place else { return 0 };
        // SAFETY: the map gave a live, aligned value.
        let held = unsafe { (*place).get() };
        let code = held ^ self.whose;
        if code >> CELL_BITS == 0 { code } else { 0 }
    }

    #[inline(always)]
    fn write(&self, value: u64) {
        if let Some(place) = self.place {
            // SAFETY: the map gave a live, aligned value.
            unsafe { (*place).set(value) };
        }
    }

    #[inline(always)]
    fn set(&self, code: u64) {
        self.write(self.whose | code);
    }

    #[inline(always)]
    fn clear(&self) {
        self.write(0);
    }
}

/// CLOSE -> SYN_SENT: connect() chose its addresses, not yet its port.
#[inline(always)]
fn begun(sock: *const c_void) -> Result<(), Skip> {
    let cell = Cell::of(sock);
    // Whatever it says is about a predecessor.
    cell.clear();
    let key = key_of(sock)?;
    let (slot, new) = match enter(&key) {
        Entered::Known(slot) => (slot, false),
        Entered::New(slot) => (slot, true),
        Entered::Full => {
            lost(|losses| &raw mut losses.map_full);
            return Ok(());
        }
    };
    cell.set(u64::from(slot) + CELL_SLOT);
    count(slot, |counts| &raw mut counts.attempted);
    if new {
        // Once per destination and source, not per connection: enough to meet every namespace that dials.
        learn_proto(sock)?;
        note_local_ports(sock)?;
    }
    Ok(())
}

/// SYN_SENT -> ESTABLISHED, or SYN_RECV in a simultaneous open.
#[inline(always)]
fn answered(sock: *const c_void) -> Result<(), Skip> {
    let cell = Cell::of(sock);
    let code = cell.code();
    if code >= CELL_SLOT {
        count((code - CELL_SLOT) as u32, |counts| &raw mut counts.opened);
        return Ok(());
    }
    let key = key_of(sock)?;
    // Not in the map: begun before the programs were attached, or while the map was full, which was counted then. With
    // room it is entered now, so that its close is counted too.
    let slot = match enter(&key) {
        Entered::Known(slot) => slot,
        Entered::New(slot) => {
            count(slot, |counts| &raw mut counts.attempted);
            slot
        }
        Entered::Full => return Ok(()),
    };
    cell.set(u64::from(slot) + CELL_SLOT);
    count(slot, |counts| &raw mut counts.opened);
    Ok(())
}

/// SYN_SENT -> CLOSE: refused, timed out, unreachable, given up, or never sent.
#[inline(always)]
fn unanswered(sock: *const c_void) -> Result<(), Skip> {
    let Some(slot) = last_of(sock)? else { return Ok(()) };
    // The source port is drawn after SYN_SENT was entered and is still there when the socket has been unhashed: zero
    // means that inet_hash_connect() found none.
    if read::<u16>(sock, constant!(TCP_OFFSETS.sport))? == 0 {
        count(slot, |counts| &raw mut counts.no_local_port);
        return Ok(());
    }
    // Written before the state. Up to 6.9 the application was woken in between, too: if it fetched the error that fast,
    // the connect is taken for given up.
    let error = read::<u32>(sock, constant!(TCP_OFFSETS.err))?;
    if error == 0 {
        count(slot, |counts| &raw mut counts.given_up);
    } else if error == constant!(TCP_OFFSETS.connection_refused) {
        count(slot, |counts| &raw mut counts.refused);
    } else if error == constant!(TCP_OFFSETS.timed_out) {
        count(slot, |counts| &raw mut counts.timed_out);
    } else {
        count(slot, |counts| &raw mut counts.unreachable);
    }
    Ok(())
}

/// An open connection became CLOSE.
#[inline(always)]
fn ended(sock: *const c_void, how: impl Fn(&mut Counts) -> *mut u64) -> Result<(), Skip> {
    if let Some(slot) = last_of(sock)? {
        count(slot, how);
    }
    Ok(())
}

/// Whose counts a socket's last event belongs to; `None` if it is not ours.
#[inline(always)]
fn last_of(sock: *const c_void) -> Result<Option<u32>, Skip> {
    let cell = Cell::of(sock);
    match cell.code() {
        0 => slot_of(&key_of(sock)?),
        code => {
            cell.clear();
            Ok((code != CELL_ACCEPTED).then(|| (code - CELL_SLOT) as u32))
        }
    }
}

/// A segment went out again; only SYNs are of interest.
#[inline(always)]
fn sent_again(sock: *const c_void) -> Result<(), Skip> {
    let mut header = MaybeUninit::uninit();
    let header = read_into(&mut header, sock, constant!(TCP_OFFSETS.header))?;
    if i32::from(member::<u8>(header, constant!(TCP_OFFSETS.header_state))) == SYN_SENT
        && let Some(slot) = slot_of(&key(header, sock)?)?
    {
        count(slot, |counts| &raw mut counts.syn_retransmitted);
    }
    Ok(())
}

/// `struct proto` of sockets that were seen to be TCP: one each for IPv4 and IPv6, as [`begun`] meets them.
static TCP_PROTOS: [Shared; 2] = [Shared::zero(), Shared::zero()];

/// The key of a TCP socket. Other protocols share the hook: MPTCP (its subflows are TCP sockets of their own), SCTP, DCCP.
#[inline(always)]
fn key_of(sock: *const c_void) -> Result<Key, Skip> {
    let mut header = MaybeUninit::uninit();
    let header = read_into(&mut header, sock, constant!(TCP_OFFSETS.header))?;
    // `sk_protocol` is far from the header. A `struct proto` belongs to one protocol, so a known one spares that read, a
    // tenth of all the time spent here.
    let proto: u64 = member(header, constant!(TCP_OFFSETS.header_prot));
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
fn learn_proto(sock: *const c_void) -> Result<(), Unreadable> {
    let proto = read::<u64>(sock, constant!(TCP_OFFSETS.header).wrapping_add(constant!(TCP_OFFSETS.header_prot)))?;
    let [first, second] = &TCP_PROTOS;
    if first.get() == 0 {
        first.set(proto);
    } else if second.get() == 0 && first.get() != proto {
        second.set(proto);
    }
    Ok(())
}

/// Whether anybody dialled this port, or one that shares its place.
#[inline(always)]
fn dialled(port: u16) -> Option<*mut Shared> {
    TCP_DIALLED.get_ptr_mut(u32::from(port) % DIALLED_PORTS)
}

/// The entry of a key; `None` if it has none.
#[inline(always)]
fn slot_of(key: &Key) -> Result<Option<u32>, Skip> {
    // Accepted connections come from ports that hardly anybody dials: that spares them the lookup of a key.
    // SAFETY: the map gave a live, aligned value.
    if dialled(key.port).is_none_or(|flag| unsafe { (*flag).get() } == 0) {
        return Ok(None);
    }
    Ok(slot(key))
}

#[inline(always)]
fn slot(key: &Key) -> Option<u32> {
    // SAFETY: a slot is read in one piece, and written only before its key is there.
    unsafe { TCP_SLOTS.get(key).copied() }
}

/// The words of a key.
#[inline(always)]
fn words(key: &Key) -> &[u32; size_of::<Key>() / 4] {
    // SAFETY: a key is nine aligned words.
    unsafe { &*(&raw const *key).cast() }
}

/// Where the hint for a key is. Its quality decides on speed alone.
#[inline(always)]
fn hint(key: &Key) -> Option<*mut Shared> {
    let mut hash = 0_u64;
    let [first, rest @ ..] = words(key);
    for pair in [*first as u64, pairs(rest, 0), pairs(rest, 2), pairs(rest, 4), pairs(rest, 6)] {
        hash = (hash ^ pair).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    TCP_HINTS.get_ptr_mut(hash as u32 % HINTS)
}

/// Two words as one.
#[inline(always)]
fn pairs(words: &[u32; 8], at: usize) -> u64 {
    u64::from(words[at]) << 32 | u64::from(words[at + 1])
}

/// The entry of a key, if the hint is right.
#[inline(always)]
fn hinted(key: &Key, hint: Option<*mut Shared>) -> Option<u32> {
    // SAFETY: the map gave a live, aligned value.
    let slot = (unsafe { (*hint?).get() } as u32).checked_sub(1)?;
    let entry = TCP_ENTRIES.get_ptr(slot)?;
    // SAFETY: the map gave a live, aligned value. Another CPU may be writing the key of an entry that is new, or the agent
    // clearing one that has been gone for long: both are after the hint, which is removed in between.
    let held = unsafe { words(&(*entry).key) };
    let same = words(key).iter().zip(held).all(|(word, held)| word == held);
    same.then_some(slot)
}

/// What became of a key.
enum Entered {
    Known(u32),
    New(u32),
    Full,
}

/// Finds the entry of a key, or gives it one.
#[inline(always)]
fn enter(key: &Key) -> Entered {
    let hint = hint(key);
    if let Some(slot) = hinted(key, hint) {
        return Entered::Known(slot);
    }
    if let Some(slot) = slot(key) {
        if let Some(hint) = hint {
            // SAFETY: the map gave a live, aligned value.
            unsafe { (*hint).set(u64::from(slot) + 1) };
        }
        return Entered::Known(slot);
    }
    let Ok(Some(free)) = TCP_FREE.pop() else { return Entered::Full };
    let Some(entry) = TCP_ENTRIES.get_ptr_mut(free) else { return Entered::Full };
    // SAFETY: the map gave a live, aligned value, and whoever took its index from the stack is alone with it.
    unsafe {
        (*entry).key = *key;
        (&raw mut (*entry).used).write_volatile(1);
    }
    // Before the key is there: its closes must find the flag.
    if let Some(flag) = dialled(key.port) {
        // SAFETY: as above.
        unsafe { (*flag).set(1) };
    }
    if TCP_SLOTS.insert(key, &free, u64::from(BPF_NOEXIST)).is_ok() {
        return Entered::New(free);
    }
    // Another CPU was faster.
    // SAFETY: as above.
    unsafe { (&raw mut (*entry).used).write_volatile(0) };
    let _full = TCP_FREE.push(free, 0);
    slot(key).map_or(Entered::Full, Entered::Known)
}

/// Adds one to a counter of an entry.
#[inline(always)]
fn count(slot: u32, counter: impl Fn(&mut Counts) -> *mut u64) {
    if let Some(entry) = TCP_ENTRIES.get_ptr_mut(slot) {
        // SAFETY: the map gave a live, aligned value; only the address of a field is taken.
        unsafe { add_one(counter(&mut (*entry).counts)) };
    }
}

/// Adds one to a counter of losses.
#[inline(always)]
fn lost(counter: impl Fn(&mut Losses) -> *mut u64) {
    if let Some(losses) = TCP_LOSSES.get_ptr_mut(0) {
        // SAFETY: as in `count`.
        unsafe { add_one(counter(&mut *losses)) };
    }
}

#[inline(always)]
fn count_unreadable(result: Result<(), Skip>) {
    if let Err(Skip::Unreadable) = result {
        lost(|losses| &raw mut losses.read_failed);
    }
}

/// Keeps the port range of the socket's network namespace: the only way to it without entering the namespace.
#[inline(always)]
fn note_local_ports(sock: *const c_void) -> Result<(), Unreadable> {
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
