//! The entries of Cilium's conntrack maps: from bytes to what they say.
//!
//! `struct ipv4_ct_tuple`, `struct ipv6_ct_tuple` and `struct ct_entry` of Cilium's `bpf/lib/common.h`, the same for TCP and for
//! all else. The keys have been the same in every version (that of IPv6 is packed since 1.6); of
//! the value the first 32 bytes changed their meaning (1.16 and later), what follows did not. It is Cilium's own affair all
//! the same: sizes are checked before anything is read, and other sizes are not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use headroom_core::flow::{Endpoint, Protocol};

/// `sizeof(struct ipv4_ct_tuple)`, packed.
pub const KEY_V4_BYTES: usize = 14;
/// `sizeof(struct ipv6_ct_tuple)`, packed.
pub const KEY_V6_BYTES: usize = 38;
/// `sizeof(struct ct_entry)`.
pub const VALUE_BYTES: usize = 56;

/// `TUPLE_F_IN`.
const KEY_IN: u8 = 1;
/// `TUPLE_F_RELATED` and `TUPLE_F_SERVICE`: not an entry of a connection.
const KEY_OTHER: u8 = 2 | 4;

/// Where the remaining lifetime stands in the value, and the flags behind it.
const AT_FLAGS: usize = 36;
const AT_REV_NAT: usize = 38;
// The flags, as bits from the lowest on (`ct_entry.rx_closing` and its neighbours).
const RX_CLOSING: u16 = 1;
const TX_CLOSING: u16 = 1 << 1;
const LB_LOOPBACK: u16 = 1 << 3;

/// The addresses that stand for a pod that talks to itself, unless Cilium is told otherwise: `ipv4-service-loopback-address`, and
/// `ipv6-service-loopback-address` of the versions that let pods do so over IPv6.
pub const LOOPBACK: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 42, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];

/// Which of the two entries of a connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The one of whoever opened it (`CT_EGRESS`).
    Out,
    /// The one of whoever was dialled (`CT_INGRESS`).
    In,
}

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Who opened it.
    pub source: Endpoint,
    /// Whom it dialled, after Cilium's own translation.
    pub destination: Endpoint,
    /// Its protocol.
    pub protocol: Protocol,
    /// Which of the two.
    pub direction: Direction,
}

/// A value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    /// The answering side has closed (`rx_closing`).
    pub rx_closing: bool,
    /// The opening side has closed (`tx_closing`).
    pub tx_closing: bool,
    /// It belongs to a pod that talks to itself (`lb_loopback`).
    pub loopback: bool,
    /// No flag is set and there is no way back to the Service (`rev_nat_index` 0): it was made without knowing of the Service.
    pub blank: bool,
}

/// A key of either family; none for entries of Services and of ICMP errors, and for other sizes.
///
/// The addresses are the wrong way round, the ports are not (Cilium's comment: "Address fields are reversed, i.e., these field
/// names are correct for reply direction traffic").
pub fn key(bytes: &[u8]) -> Option<Key> {
    let (addresses, rest) = bytes.split_at_checked(bytes.len().checked_sub(6)?)?;
    let [to_high, to_low, from_high, from_low, protocol, flags] = *rest.first_chunk()?;
    let (source, destination): (IpAddr, IpAddr) = match bytes.len() {
        KEY_V4_BYTES => {
            let (source, destination) = addresses.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination.first_chunk::<4>()?).into())
        }
        KEY_V6_BYTES => {
            let (source, destination) = addresses.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination.first_chunk::<16>()?).into())
        }
        _ => return None,
    };
    (flags & KEY_OTHER == 0).then(|| Key {
        source: Endpoint::new(source, u16::from_be_bytes([from_high, from_low])),
        destination: Endpoint::new(destination, u16::from_be_bytes([to_high, to_low])),
        protocol: Protocol(protocol),
        direction: if flags & KEY_IN == 0 { Direction::Out } else { Direction::In },
    })
}

/// The key of the other entry of the same connection.
pub fn twin<const K: usize>(key: &[u8; K]) -> [u8; K] {
    let mut twin = *key;
    if let Some(flags) = twin.last_mut() {
        *flags ^= KEY_IN;
    }
    twin
}

/// A value.
pub fn value(bytes: &[u8; VALUE_BYTES]) -> Value {
    let half = |at: usize| {
        let half = bytes.get(at..).and_then(<[u8]>::first_chunk);
        half.map_or(0, |half| u16::from_ne_bytes(*half))
    };
    let flags = half(AT_FLAGS);
    Value {
        rx_closing: flags & RX_CLOSING != 0,
        tx_closing: flags & TX_CLOSING != 0,
        loopback: flags & LB_LOOPBACK != 0,
        blank: flags == 0 && half(AT_REV_NAT) == 0,
    }
}
