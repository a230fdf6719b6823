//! Walking over netlink messages and attributes, within bounds.
//!
//! Headers are in the byte order of the machine, what conntrack puts into attributes is in network order
//! (`linux/netlink.h`, `linux/netfilter/nfnetlink.h`; both uapi, stable). Every step moves forward or ends the walk: a
//! length of zero cannot make it loop, and the first thing that does not add up ends it with [`Malformed`].

use std::net::{Ipv4Addr, Ipv6Addr};

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// `sizeof(struct nlattr)`.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_TYPE_MASK`: the type without the "nested" and "network order" flags.
const TYPE_MASK: u16 = 0x3fff;

/// Bytes that are not what the kernel writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A message whose length is less than its header or more than was received.
    #[error("message length `{length}` does not fit into `{left}` received bytes")]
    Message {
        /// `nlmsg_len`.
        length: usize,
        /// How many bytes there were.
        left: usize,
    },
    /// An attribute whose length is less than its header or more than its surroundings.
    #[error("attribute length `{length}` does not fit into `{left}` bytes")]
    Attribute {
        /// `nla_len`.
        length: usize,
        /// How many bytes there were.
        left: usize,
    },
    /// A payload that has not the length its type has.
    #[error("`{what}` has `{length}` bytes")]
    Payload {
        /// Of which attribute.
        what: &'static str,
        /// How many bytes it has.
        length: usize,
    },
    /// Something every message of this kind carries.
    #[error("`{0}` is missing")]
    Missing(&'static str),
}

/// One netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request it answers, 0 in events.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages of one datagram.
#[derive(Debug, Clone)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Walks over what one receive call returned.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0;
        if bytes.is_empty() {
            return None;
        }
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            self.0 = &[];
            return Some(Err(Malformed::Message { length: 0, left: bytes.len() }));
        };
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(payload) = length.checked_sub(HEADER).and_then(|size| rest.get(..size)) else {
            self.0 = &[];
            return Some(Err(Malformed::Message { length, left: bytes.len() }));
        };
        // The padding of the last message may be left out.
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        }))
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without flags.
    pub kind: u16,
    /// What it holds: a value, or attributes again.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes inside it.
    pub fn nested(self) -> Attributes<'a> {
        Attributes::new(self.payload)
    }

    /// A single byte.
    pub fn byte(self, what: &'static str) -> Result<u8, Malformed> {
        self.bytes(what).map(|[byte]| byte)
    }

    /// A 16-bit number in network order.
    pub fn be16(self, what: &'static str) -> Result<u16, Malformed> {
        self.bytes(what).map(u16::from_be_bytes)
    }

    /// A 32-bit number in network order.
    pub fn be32(self, what: &'static str) -> Result<u32, Malformed> {
        self.bytes(what).map(u32::from_be_bytes)
    }

    /// An IPv4 address.
    pub fn ipv4(self, what: &'static str) -> Result<Ipv4Addr, Malformed> {
        self.bytes::<4>(what).map(Ipv4Addr::from)
    }

    /// An IPv6 address.
    pub fn ipv6(self, what: &'static str) -> Result<Ipv6Addr, Malformed> {
        self.bytes::<16>(what).map(Ipv6Addr::from)
    }

    fn bytes<const N: usize>(self, what: &'static str) -> Result<[u8; N], Malformed> {
        self.payload.try_into().map_err(|_other_length| Malformed::Payload { what, length: self.payload.len() })
    }
}

/// The attributes of one message, or those inside one attribute.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Walks over a run of attributes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0;
        if bytes.is_empty() {
            return None;
        }
        let Some((&[l0, l1, k0, k1], rest)) = bytes.split_first_chunk::<ATTRIBUTE_HEADER>() else {
            self.0 = &[];
            return Some(Err(Malformed::Attribute { length: 0, left: bytes.len() }));
        };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(payload) = length.checked_sub(ATTRIBUTE_HEADER).and_then(|size| rest.get(..size)) else {
            self.0 = &[];
            return Some(Err(Malformed::Attribute { length, left: bytes.len() }));
        };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Attribute { kind: u16::from_ne_bytes([k0, k1]) & TYPE_MASK, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_of_zero_ends_the_walk_instead_of_repeating_it() {
        let nothing = [0u8; 64];
        assert_eq!(Messages::new(&nothing).count(), 1);
        assert_eq!(Attributes::new(&nothing).count(), 1);
        assert!(Messages::new(&nothing).all(|one| one.is_err()));
        assert!(Attributes::new(&nothing).all(|one| one.is_err()));
    }

    #[test]
    fn the_padding_after_the_last_attribute_may_be_missing() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&5u16.to_ne_bytes());
        bytes.extend_from_slice(&(7u16 | 0x8000).to_ne_bytes());
        bytes.push(42);
        let all: Vec<_> = Attributes::new(&bytes).collect();
        assert_eq!(all, [Ok(Attribute { kind: 7, payload: &[42] })]);
    }

    proptest! {
        /// Exercises the walks over arbitrary bytes. If this fails, a message from the kernel can stop the agent.
        #[test]
        fn any_bytes_are_walked_in_bounded_steps(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(Messages::new(&bytes).count() <= bytes.len() / HEADER + 1);
            prop_assert!(Attributes::new(&bytes).count() <= bytes.len() / ATTRIBUTE_HEADER + 1);
        }
    }
}
