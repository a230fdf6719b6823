//! TCP connects and closes of all network namespaces, counted per destination and source address.
//!
//! A connection is told from an accepted one by its key: who dials enters it, so a close whose key is not there belongs to
//! somebody else. Every transition that does not matter returns before any memory is read.
//!
//! Calls are what costs here, above all where every return is guarded against speculation; lookups in arrays are none, the
//! verifier writes them out. So what the first event of a socket found out, whose counts are its, is kept in a cell of an
//! array by the socket's address, and the later ones need neither read the socket nor look up the key. The cells are only
//! a short cut: each is read and written at once, tells whose it is, and a socket without one takes the long way.
//!
//! A kernel may skip an event: since 6.1 it does not run a program on a CPU where a softirq interrupted the same program
//! (`bpf_prog_active` of each, `kernel/trace/bpf_trace.c`). What a process does itself (connect, close, shutdown) is never
//! inside of a softirq, so only answers and ends can be skipped. The cell says how far the socket had come, so whichever event
//! comes next makes up for it: an end for the answer, and for an end what begins at the same address, which the kernel gives to
//! one of the next sockets. (`tcp_destroy_sock` would tell at once, at a fifth of all the time spent here.)

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::RawTracePointContext;
use headroom_ebpf_common::tcp::{CELL_ACCEPTED, Counts, Losses, PHASE_CONNECTING, PHASE_OPEN, dialled_code};

use crate::count::add_one;
use crate::memory::{constant, read, read_into, within};

mod cell;
mod entries;
mod socket;

use cell::{Cell, in_phase, phase};
use entries::{Entered, count, enter, slot_of};
use socket::{Skip, TCP_OFFSETS, key, key_of, learn_proto, note_local_ports};

#[map]
static TCP_LOSSES: Array<Losses> = Array::with_max_entries(1, 0);

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
            new_at_address(sock).set(CELL_ACCEPTED);
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
/// added behind them in 6.17. Kernels before that stay silent about a SYN that the own namespace's netfilter drops.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub(crate) fn tcp_retransmit(ctx: RawTracePointContext) -> i32 {
    count_unreadable(sent_again(ctx.arg::<*const c_void>(0)));
    0
}

/// CLOSE -> SYN_SENT: connect() chose its addresses, not yet its port.
#[inline(always)]
fn begun(sock: *const c_void) -> Result<(), Skip> {
    let cell = new_at_address(sock);
    let key = key_of(sock)?;
    let (slot, new) = match enter(&key) {
        Entered::Known(slot) => (slot, false),
        Entered::New(slot) => (slot, true),
        Entered::Full => {
            lost(|losses| &raw mut losses.map_full);
            return Ok(());
        }
    };
    cell.set(dialled_code(slot, PHASE_CONNECTING));
    count(slot, |counts| &raw mut counts.attempted);
    if new {
        // Once per destination and source, not per connection: enough to meet every namespace that dials.
        learn_proto(sock)?;
        note_local_ports(sock)?;
    }
    Ok(())
}

/// The cell of a socket whose connection begins, cleared. Whatever it said is about one before whose end was skipped: of this
/// socket, or of another at its address.
#[inline(always)]
fn new_at_address(sock: *const c_void) -> Cell {
    let cell = Cell::of(sock);
    let before = cell.code();
    if before != 0 {
        cell.clear();
        count_unreadable(make_up_end(sock, before));
    }
    cell
}

/// SYN_SENT -> ESTABLISHED, or SYN_RECV in a simultaneous open.
#[inline(always)]
fn answered(sock: *const c_void) -> Result<(), Skip> {
    let cell = Cell::of(sock);
    let code = cell.code();
    if let Some(slot) = cell::slot(code) {
        cell.set(in_phase(code, PHASE_OPEN));
        count(slot, |counts| &raw mut counts.opened);
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
    cell.set(dialled_code(slot, PHASE_OPEN));
    count(slot, |counts| &raw mut counts.opened);
    Ok(())
}

/// SYN_SENT -> CLOSE: refused, timed out, unreachable, given up, or never sent.
#[inline(always)]
fn unanswered(sock: *const c_void) -> Result<(), Skip> {
    let Some((slot, _)) = last_of(sock)? else { return Ok(()) };
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
    } else {
        failed(slot, error);
    }
    Ok(())
}

/// A connect ended with this error.
#[inline(always)]
fn failed(slot: u32, error: u32) {
    if error == constant!(TCP_OFFSETS.connection_refused) {
        count(slot, |counts| &raw mut counts.refused);
    } else if error == constant!(TCP_OFFSETS.timed_out) {
        count(slot, |counts| &raw mut counts.timed_out);
    } else {
        count(slot, |counts| &raw mut counts.unreachable);
    }
}

/// An open connection became CLOSE.
#[inline(always)]
fn ended(sock: *const c_void, how: impl Fn(&mut Counts) -> *mut u64) -> Result<(), Skip> {
    if let Some((slot, code)) = last_of(sock)? {
        make_up_answer(slot, code);
        count(slot, how);
    }
    Ok(())
}

/// Whose counts a socket's last event belongs to, and what its cell said; `None` if it is not ours.
#[inline(always)]
fn last_of(sock: *const c_void) -> Result<Option<(u32, u64)>, Skip> {
    let cell = Cell::of(sock);
    let code = cell.code();
    if code == 0 {
        // Without a cell nothing says how far it had come: as far as it should have.
        return Ok(slot_of(&key_of(sock)?)?.map(|slot| (slot, PHASE_OPEN)));
    }
    cell.clear();
    Ok(cell::slot(code).map(|slot| (slot, code)))
}

/// An open connection whose answer was skipped is counted as opened now.
#[inline(always)]
fn make_up_answer(slot: u32, code: u64) {
    if phase(code) == PHASE_CONNECTING {
        count(slot, |counts| &raw mut counts.opened);
        lost(|losses| &raw mut losses.made_up);
    }
}

/// The end of a connection was skipped: it is counted now, by the error that it left. An application that has fetched it since
/// makes a reset look like an orderly end, and of connects that fail in a softirq most are refused.
#[inline(always)]
fn make_up_end(sock: *const c_void, code: u64) -> Result<(), Skip> {
    let Some(slot) = cell::slot(code) else { return Ok(()) };
    lost(|losses| &raw mut losses.made_up);
    match (phase(code), read::<u32>(sock, constant!(TCP_OFFSETS.err))?) {
        (PHASE_CONNECTING, 0) => count(slot, |counts| &raw mut counts.refused),
        (PHASE_CONNECTING, error) => failed(slot, error),
        (_, 0) => count(slot, |counts| &raw mut counts.closed),
        _ => count(slot, |counts| &raw mut counts.reset),
    }
    Ok(())
}

/// A segment went out again; only SYNs are of interest.
#[inline(always)]
fn sent_again(sock: *const c_void) -> Result<(), Skip> {
    let mut header = MaybeUninit::uninit();
    let header = read_into(&mut header, sock, constant!(TCP_OFFSETS.header))?;
    if i32::from(within::<u8, _>(header, constant!(TCP_OFFSETS.header_state))) == SYN_SENT
        && let Some(slot) = slot_of(&key(header, sock)?)?
    {
        count(slot, |counts| &raw mut counts.syn_retransmitted);
    }
    Ok(())
}

/// Adds one to a counter of losses.
#[inline(always)]
fn lost(counter: impl Fn(&mut Losses) -> *mut u64) {
    if let Some(losses) = TCP_LOSSES.get_ptr_mut(0) {
        // SAFETY: the map gave a live, aligned value; only the address of a field is taken.
        unsafe { add_one(counter(&mut *losses)) };
    }
}

#[inline(always)]
fn count_unreadable(result: Result<(), Skip>) {
    if let Err(Skip::Unreadable) = result {
        lost(|losses| &raw mut losses.read_failed);
    }
}
