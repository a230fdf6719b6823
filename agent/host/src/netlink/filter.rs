//! A filter that the kernel runs on conntrack's events before it queues them.

use socket2::SockFilter;

// include/uapi/linux/bpf_common.h.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

/// Offset of `nfgen_family`, behind the netlink header.
const FAMILY: u32 = 16;
/// In an event the original tuple comes first, in it the addresses and then the protocol; so the family tells where the
/// latter is. Offset of the attribute `CTA_TUPLE_PROTO`.
const PROTO_V4: u32 = 44;
/// Likewise.
const PROTO_V6: u32 = 68;
/// `CTA_TUPLE_PROTO | NLA_F_NESTED`.
const CTA_TUPLE_PROTO: u16 = 0x8002;
/// `CTA_PROTO_NUM`.
const CTA_PROTO_NUM: u16 = 1;

/// Leaves out events of TCP. What is laid out otherwise than kernels do passes; what is shorter than the place of its protocol is
/// left out (a load behind the end returns 0, `Documentation/networking/filter.rst`), and no event of an entry is.
pub(super) fn without_tcp() -> [SockFilter; 17] {
    // Classic BPF loads in network order; netlink attributes are in the machine's.
    let half = |value: u16| u32::from(value.to_be());
    let load = |code, at| SockFilter::new(code, 0, 0, at);
    let equal = |value, then, otherwise| SockFilter::new(JUMP_IF_EQUAL, then, otherwise, value);
    [
        load(LOAD_BYTE, FAMILY),
        equal(AF_INET, 1, 0),
        equal(AF_INET6, 6, 12),
        load(LOAD_HALF, PROTO_V4 + 2),
        equal(half(CTA_TUPLE_PROTO), 0, 10),
        load(LOAD_HALF, PROTO_V4 + 6),
        equal(half(CTA_PROTO_NUM), 0, 8),
        load(LOAD_BYTE, PROTO_V4 + 8),
        equal(IPPROTO_TCP, 7, 6),
        load(LOAD_HALF, PROTO_V6 + 2),
        equal(half(CTA_TUPLE_PROTO), 0, 4),
        load(LOAD_HALF, PROTO_V6 + 6),
        equal(half(CTA_PROTO_NUM), 0, 2),
        load(LOAD_BYTE, PROTO_V6 + 8),
        equal(IPPROTO_TCP, 1, 0),
        // Pass, all of it.
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        // Leave out.
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
