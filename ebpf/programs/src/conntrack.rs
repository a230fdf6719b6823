//! conntrack entries of the agent's own network namespace: what goes into the table, what leaves it, and what found no
//! port, counted per destination, source and translated source address.
//!
//! There is no tracepoint in conntrack, so two functions of it are probed. An entry's tuples never change between the two:
//! both translations are made before it goes in, and the kernel refuses later ones.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{kprobe, map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use headroom_ebpf_common::conntrack::{Counts, DEFAULT_MAX_KEYS, Key, Losses, Offsets, TUPLES_BYTES};

use crate::address::{mapped, octets};
use crate::count::{add_one, take_one};
use crate::memory::{Shared, Unreadable, constant, read, read_into, within};

#[map]
static CT_COUNTS: HashMap<Key, Counts> = HashMap::with_max_entries(DEFAULT_MAX_KEYS, 0);

/// Where attempts are counted: entries that are about to go in, by address.
#[map]
static CT_ATTEMPTS: Array<u64> = Array::with_max_entries(ATTEMPT_PLACES, 0);
const ATTEMPT_PLACES: u32 = 1024;

#[map]
static CT_LOSSES: Array<Losses> = Array::with_max_entries(1, 0);

/// Written by the agent before the programs are loaded.
#[unsafe(no_mangle)]
static CT_OFFSETS: Offsets = Offsets {
    tuples: 0,
    reply: 0,
    tuple_source: 0,
    tuple_source_port: 0,
    tuple_l3num: 0,
    tuple_destination: 0,
    tuple_destination_port: 0,
    tuple_protonum: 0,
    tuple_dir: 0,
    status: 0,
    net: 0,
    net_inum: 0,
    tcp_state: 0,
    skb_nfct: 0,
    namespace: 0,
    node_port_first: 1,
    node_port_last: 0,
    drop_reason: 0,
    delete_is_dying: 0,
};

// include/uapi/linux/netfilter/nf_conntrack_common.h: enum ip_conntrack_status, visible to user space and so unchangeable.
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_CONFIRMED: u32 = 1 << 3;
const IPS_SRC_NAT: u32 = 1 << 4;
/// The rules for source addresses were asked, whatever they said: chains with a higher priority follow, and then conntrack's last
/// hook.
const IPS_SRC_NAT_DONE: u32 = 1 << 7;
const IPS_DYING: u32 = 1 << 9;
const IPS_TEMPLATE: u32 = 1 << 11;
/// Since 5.7: stands for a packet that raced with the first of its flow, for a second, beside the flow's own entry. It went in
/// past `__nf_conntrack_hash_insert` (`nf_ct_resolve_clash_harder`, `net/netfilter/nf_conntrack_core.c`).
const IPS_NAT_CLASH: u32 = 1 << 12;
/// The low bits of `skb->_nfct` are `enum ip_conntrack_info` of the same file; from here on a packet is an answer.
const IP_CT_IS_REPLY: u64 = 3;
const NFCT_INFO_MASK: u64 = 7;

// include/uapi/linux/netfilter/nf_conntrack_tcp.h: enum tcp_conntrack.
const TCP_CONNTRACK_TIME_WAIT: u8 = 7;
const TCP_CONNTRACK_CLOSE: u8 = 8;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Inodes of namespaces are above: dynamic ones from 0xF0000000 (`fs/proc/generic.c`), those of the first namespaces from
/// 0xEFFFFFF8 (`include/uapi/linux/nsfs.h`).
const FIRST_INODE: u32 = 0xEFFF_0000;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMPV6: u8 = 58;

/// Both tuples of an entry, read at once.
type Tuples = [u64; TUPLES_BYTES / 8];

/// Why nothing was counted.
enum Skip {
    /// Another namespace's.
    NotOurs,
    /// Kernel memory could not be read.
    Unreadable,
    /// This does not look like an entry.
    Implausible,
}

impl From<Unreadable> for Skip {
    #[inline(always)]
    fn from(Unreadable: Unreadable) -> Self {
        Self::Unreadable
    }
}

/// An entry, as far as it matters.
struct Entry {
    key: Key,
    node_port: bool,
}

/// `static void __nf_conntrack_hash_insert(struct nf_conn *ct, unsigned int hash, unsigned int reply_hash)`,
/// `net/netfilter/nf_conntrack_core.c`: every entry that goes into the table passes here once.
///
/// Whether `IPS_CONFIRMED` is set here depends on the kernel's version: it is not asked.
#[kprobe(function = "__nf_conntrack_hash_insert")]
pub(crate) fn ct_insert(ctx: ProbeContext) -> u32 {
    if let Some(ct) = ctx.arg::<*const c_void>(0) {
        count(inserted(ct));
    }
    0
}

/// `int __nf_conntrack_confirm(struct sk_buff *skb)`: where the function above was inlined. Called for an entry that is about
/// to go in; that it did not is seen at `kfree_skb` and taken back. Not seen is a UDP packet that raced with the first of its
/// flow and joined its entry: it is counted until the next comparison with the table.
#[kprobe(function = "__nf_conntrack_confirm")]
pub(crate) fn ct_confirm(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg::<*const c_void>(0) {
        count(confirmed(skb));
    }
    0
}

/// `bool nf_ct_delete(struct nf_conn *ct, u32 portid, int report)`: every confirmed entry that leaves the table passes here. Two CPUs
/// that delete one at the same moment, such as the kernel what has expired and somebody the whole table, are both counted, until
/// the next comparison with the table.
#[kprobe(function = "nf_ct_delete")]
pub(crate) fn ct_delete(ctx: ProbeContext) -> u32 {
    if let Some(ct) = ctx.arg::<*const c_void>(0) {
        count(deleted(ct));
    }
    0
}

/// `TP_PROTO(struct sk_buff *skb, void *location, enum skb_drop_reason reason)`, `include/trace/events/skb.h`; with the reason
/// since 5.17, which knows of netfilter since 5.18, with `struct sock *rx_sk` behind it since 6.11.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn ct_no_port(ctx: RawTracePointContext) -> i32 {
    let reason: u32 = ctx.arg(2);
    if reason == constant!(CT_OFFSETS.drop_reason) {
        count(dropped(ctx.arg::<*const c_void>(0)));
    }
    0
}

#[inline(always)]
fn inserted(ct: *const c_void) -> Result<(), Skip> {
    let entry = entry_of(ct)?;
    if !enter(&entry.key, |counts| &raw mut counts.inserted) {
        lost(|losses| &raw mut losses.map_full);
    } else if entry.node_port {
        add(&entry.key, |counts| &raw mut counts.node_port_inserted);
    }
    Ok(())
}

#[inline(always)]
fn confirmed(skb: *const c_void) -> Result<(), Skip> {
    let nfct = read::<u64>(skb, constant!(CT_OFFSETS.skb_nfct))?;
    let ct = (nfct & !NFCT_INFO_MASK) as *const c_void;
    if ct.is_null() || nfct & NFCT_INFO_MASK >= IP_CT_IS_REPLY {
        return Ok(());
    }
    if read::<u32>(ct, constant!(CT_OFFSETS.status))? & (IPS_CONFIRMED | IPS_TEMPLATE) != 0 {
        return Ok(());
    }
    if ATTEMPTS.get() == 0 {
        ATTEMPTS.set(1);
    }
    let counted = inserted(ct);
    if counted.is_ok()
        && let Some(attempt) = attempt(ct)
    {
        // SAFETY: the map gave a live, aligned value.
        unsafe { attempt.write_volatile(ct as u64) };
    }
    counted
}

#[inline(always)]
fn deleted(ct: *const c_void) -> Result<(), Skip> {
    let status = read::<u32>(ct, constant!(CT_OFFSETS.status))?;
    let dying = status & IPS_DYING != 0 && constant!(CT_OFFSETS.delete_is_dying) == 0;
    // Who is not seen to go in is not seen to leave.
    let raced = status & IPS_NAT_CLASH != 0 && ATTEMPTS.get() == 0;
    if status & IPS_CONFIRMED == 0 || dying || raced {
        return Ok(());
    }
    let entry = entry_of(ct)?;
    if ATTEMPTS.get() != 0 {
        // Another entry may get its memory.
        end_attempt(ct);
    }
    let state = match entry.key.protocol {
        IPPROTO_TCP => read::<u8>(ct, constant!(CT_OFFSETS.tcp_state))?,
        _ => 0,
    };
    let entered = match state {
        TCP_CONNTRACK_TIME_WAIT => enter(&entry.key, |counts| &raw mut counts.ended_time_wait),
        TCP_CONNTRACK_CLOSE => enter(&entry.key, |counts| &raw mut counts.ended_reset),
        _ if entry.key.protocol == IPPROTO_TCP && status & IPS_SEEN_REPLY == 0 => {
            enter(&entry.key, |counts| &raw mut counts.ended_unanswered)
        }
        _ => enter(&entry.key, |counts| &raw mut counts.ended_other),
    };
    if !entered {
        lost(|losses| &raw mut losses.map_full_ends);
    } else if entry.node_port {
        add(&entry.key, |counts| &raw mut counts.node_port_ended);
    }
    Ok(())
}

/// A packet that netfilter dropped: it lost its port if its source was translated, and its entry is not in the table. Where attempts
/// are not seen, a rule in a hook behind the translation looks the same; the agent compares with conntrack's own statistics.
#[inline(always)]
fn dropped(skb: *const c_void) -> Result<(), Skip> {
    let nfct = read::<u64>(skb, constant!(CT_OFFSETS.skb_nfct))?;
    let ct = (nfct & !NFCT_INFO_MASK) as *const c_void;
    if ct.is_null() {
        return Ok(());
    }
    let status = read::<u32>(ct, constant!(CT_OFFSETS.status))?;
    if status & (IPS_CONFIRMED | IPS_TEMPLATE) != 0 {
        return Ok(());
    }
    // Until the first is seen, nothing tells that they are.
    let attempts = ATTEMPTS.get() != 0;
    // What a rule drops before the entry is about to go in was not counted, and no port was sought for it in vain.
    let attempted = attempts && status & IPS_SRC_NAT_DONE != 0 && end_attempt(ct);
    let translated = status & IPS_SRC_NAT != 0 && (attempted || !attempts);
    if !translated && !attempted {
        return Ok(());
    }
    let entry = entry_of(ct)?;
    if attempted {
        take_back(&entry);
    }
    if translated && !enter(&entry.key, |counts| &raw mut counts.no_port) {
        lost(|losses| &raw mut losses.map_full_ends);
    }
    Ok(())
}

/// Where it is noted which entry is about to go in. Two that go in at the same moment hardly ever share a place; if they do, what is
/// counted of the first that is dropped is wrong until the next comparison with the table.
#[inline(always)]
fn attempt(ct: *const c_void) -> Option<*mut u64> {
    // Entries are further apart than 256 bytes.
    CT_ATTEMPTS.get_ptr_mut((ct as u64 >> 8) as u32 % ATTEMPT_PLACES)
}

/// Whether the entry was about to go in; no longer.
#[inline(always)]
fn end_attempt(ct: *const c_void) -> bool {
    let Some(attempt) = attempt(ct) else { return false };
    // SAFETY: the map gave a live, aligned value.
    unsafe {
        let is_it = attempt.read_volatile() == ct as u64;
        if is_it {
            attempt.write_volatile(0);
        }
        is_it
    }
}

/// An entry that was counted a moment ago is not in the table.
#[inline(always)]
fn take_back(entry: &Entry) {
    let Some(counts) = CT_COUNTS.get_ptr_mut(entry.key) else { return };
    // SAFETY: the map gave a live, aligned value; only the addresses of fields are taken.
    unsafe {
        take_one(&raw mut (*counts).inserted);
        if entry.node_port {
            take_one(&raw mut (*counts).node_port_inserted);
        }
    }
}

/// Reads an entry of the agent's namespace.
#[inline(always)]
fn entry_of(ct: *const c_void) -> Result<Entry, Skip> {
    if !is_ours(ct)? {
        return Err(Skip::NotOurs);
    }
    let mut tuples = MaybeUninit::uninit();
    let tuples: &mut Tuples = read_into(&mut tuples, ct, constant!(CT_OFFSETS.tuples))?;
    let reply = constant!(CT_OFFSETS.reply);
    let protocol: u8 = within(tuples, constant!(CT_OFFSETS.tuple_protonum));
    // Nobody guarantees a layout: what is read has to make sense, or the agent stops believing it.
    let family: u16 = within(tuples, constant!(CT_OFFSETS.tuple_l3num));
    let dir: u8 = within(tuples, constant!(CT_OFFSETS.tuple_dir));
    let reply_dir: u8 = within(tuples, reply.wrapping_add(constant!(CT_OFFSETS.tuple_dir)));
    let reply_protocol: u8 = within(tuples, reply.wrapping_add(constant!(CT_OFFSETS.tuple_protonum)));
    if dir != 0 || reply_dir != 1 || protocol != reply_protocol {
        return Err(Skip::Implausible);
    }
    let is_v4 = match family {
        AF_INET => true,
        AF_INET6 => false,
        _ => return Err(Skip::Implausible),
    };
    let at_source = constant!(CT_OFFSETS.tuple_source);
    let at_destination = constant!(CT_OFFSETS.tuple_destination);
    let peer_port: u16 = within(tuples, reply.wrapping_add(constant!(CT_OFFSETS.tuple_source_port)));
    let own_port: u16 = within(tuples, reply.wrapping_add(constant!(CT_OFFSETS.tuple_destination_port)));
    let original_port: u16 = within(tuples, constant!(CT_OFFSETS.tuple_source_port));
    let source = address(tuples, at_source, is_v4);
    let translated = address(tuples, reply.wrapping_add(at_destination), is_v4);
    let key = Key {
        destination: octets(address(tuples, reply.wrapping_add(at_source), is_v4)),
        source: octets(source),
        translated: octets(translated),
        port: match protocol {
            IPPROTO_ICMP | IPPROTO_ICMPV6 => 0,
            _ => u16::from_be(peer_port),
        },
        protocol,
        reserved: 0,
    };
    let port = u32::from(u16::from_be(own_port));
    let in_range = port >= constant!(CT_OFFSETS.node_port_first) && port <= constant!(CT_OFFSETS.node_port_last);
    // Words, not slices: comparing those would be a call.
    let [a, b, c, d] = source;
    let [e, f, g, h] = translated;
    let is_translated = original_port != own_port || (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) != 0;
    Ok(Entry { key, node_port: in_range && is_translated })
}

/// An address of a tuple, as words of an IPv6 address.
#[inline(always)]
fn address(tuples: &Tuples, at: u32, is_v4: bool) -> [u32; 4] {
    if is_v4 {
        mapped(within(tuples, at))
    } else {
        [
            within(tuples, at),
            within(tuples, at.wrapping_add(4)),
            within(tuples, at.wrapping_add(8)),
            within(tuples, at.wrapping_add(12)),
        ]
    }
}

/// Not zero once an attempt was counted: then the races and failures that follow were counted, too.
static ATTEMPTS: Shared = Shared::zero();

/// `struct net` of the agent's namespace, once an entry of it was met. It cannot go before the agent does.
static CT_NET: Shared = Shared::zero();

/// Whether an entry is of the agent's network namespace: pods may have conntrack of their own.
#[inline(always)]
fn is_ours(ct: *const c_void) -> Result<bool, Skip> {
    let net = read::<u64>(ct, constant!(CT_OFFSETS.net))?;
    let known = CT_NET.get();
    if known != 0 {
        return Ok(net == known);
    }
    let inode = read::<u32>(net as *const c_void, constant!(CT_OFFSETS.net_inum))?;
    // If this is no inode, nothing would ever be ours.
    if inode < FIRST_INODE {
        return Err(Skip::Implausible);
    }
    let ours = inode == constant!(CT_OFFSETS.namespace);
    if ours {
        CT_NET.set(net);
    }
    Ok(ours)
}

/// Adds one to a counter of a key, entering the key if it is not there; false if there is no room for it.
#[inline(always)]
fn enter(key: &Key, counter: impl Fn(&mut Counts) -> *mut u64) -> bool {
    if add(key, &counter) {
        return true;
    }
    // SAFETY: the helper has no preconditions.
    let born = unsafe { bpf_ktime_get_ns() };
    let fresh = Counts { born, ..Counts::default() };
    // Another CPU may have been faster; then its key is there to be counted under.
    let _exists = CT_COUNTS.insert(key, &fresh, u64::from(BPF_NOEXIST));
    add(key, &counter)
}

/// Adds one to a counter of a key; false if the key is not there.
#[inline(always)]
fn add(key: &Key, counter: impl Fn(&mut Counts) -> *mut u64) -> bool {
    let Some(counts) = CT_COUNTS.get_ptr_mut(key) else { return false };
    // SAFETY: the map gave a live, aligned value; only the address of a field is taken.
    unsafe { add_one(counter(&mut *counts)) };
    true
}

/// Adds one to a counter of losses.
#[inline(always)]
fn lost(counter: impl Fn(&mut Losses) -> *mut u64) {
    if let Some(losses) = CT_LOSSES.get_ptr_mut(0) {
        // SAFETY: as in `add`.
        unsafe { add_one(counter(&mut *losses)) };
    }
}

#[inline(always)]
fn count(result: Result<(), Skip>) {
    match result {
        Ok(()) | Err(Skip::NotOurs) => {}
        Err(Skip::Unreadable) => lost(|losses| &raw mut losses.read_failed),
        Err(Skip::Implausible) => lost(|losses| &raw mut losses.implausible),
    }
}
