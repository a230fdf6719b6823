//! ctnetlink: from the kernel's bytes to [`ConntrackEntry`].
//!
//! What the attributes mean is in `linux/netfilter/nfnetlink_conntrack.h` (uapi, stable). A message that lacks one of its
//! two tuples, or holds a value of the wrong size, is [`Malformed`] as a whole: half an entry would be a false one.
//! Attributes that are not needed (marks, counters, helpers, …) are skipped unread.

use std::net::IpAddr;

use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::observe::{ConntrackEntry, ConntrackTcpState, FlowKey};

use super::message::{Attributes, Malformed, Message};

/// `NFNLGRP_CONNTRACK_NEW`.
pub const GROUP_NEW: u32 = 1;
/// `NFNLGRP_CONNTRACK_DESTROY`.
pub const GROUP_DESTROY: u32 = 3;

/// `NFNL_SUBSYS_CTNETLINK << 8`.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_NEW`: in events and in answers to a dump.
const MESSAGE_NEW: u16 = SUBSYSTEM;
/// `IPCTNL_MSG_CT_GET`.
const MESSAGE_GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_DELETE`.
const MESSAGE_DELETE: u16 = SUBSYSTEM | 2;
/// `NLMSG_ERROR`.
const MESSAGE_ERROR: u16 = 2;
/// `NLMSG_DONE`.
const MESSAGE_DONE: u16 = 3;
/// `NLMSG_OVERRUN`.
const MESSAGE_OVERRUN: u16 = 4;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS_DUMP: u16 = 0x1 | 0x300;
/// `NLM_F_DUMP_INTR`: the table changed in a way that makes the dump inconsistent.
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;

/// `NLM_F_DUMP_FILTERED`: entries were left out, as asked.
const FLAG_DUMP_FILTERED: u16 = 0x20;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `IPS_SEEN_REPLY`.
const STATUS_SEEN_REPLY: u32 = 2;
/// `IPS_ASSURED`.
const STATUS_ASSURED: u32 = 4;

/// `CTA_*` attributes of a message.
mod cta {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOINFO: u16 = 4;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
    /// Inside `FILTER`.
    pub(super) mod filter {
        pub(crate) const ORIG_FLAGS: u16 = 1;
        /// `CTA_FILTER_F_CTA_PROTO_NUM` of `net/netfilter/nf_internals.h`; user space passes it, so it cannot change.
        pub(crate) const BY_PROTOCOL: u32 = 1 << 3;
    }
    /// Inside `TUPLE_*`.
    pub(super) mod tuple {
        pub(crate) const IP: u16 = 1;
        pub(crate) const PROTO: u16 = 2;
        pub(crate) const ZONE: u16 = 3;
    }
    /// Inside `tuple::IP`.
    pub(super) mod ip {
        pub(crate) const V4_SRC: u16 = 1;
        pub(crate) const V4_DST: u16 = 2;
        pub(crate) const V6_SRC: u16 = 3;
        pub(crate) const V6_DST: u16 = 4;
    }
    /// Inside `tuple::PROTO`.
    pub(super) mod proto {
        pub(crate) const NUM: u16 = 1;
        pub(crate) const SRC_PORT: u16 = 2;
        pub(crate) const DST_PORT: u16 = 3;
        pub(crate) const ICMP_ID: u16 = 4;
        pub(crate) const ICMPV6_ID: u16 = 7;
    }
    /// Inside `PROTOINFO`.
    pub(super) mod protoinfo {
        pub(crate) const TCP: u16 = 1;
        /// Inside `TCP`.
        pub(crate) const TCP_STATE: u16 = 1;
    }
}

/// What one message of a conntrack socket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An entry: one of a dump, or a new one.
    Entry(ConntrackEntry),
    /// An entry that is gone.
    Ended(ConntrackEntry),
    /// The dump is over; the kernel's error number, 0 if there was none.
    Done {
        /// Positive errno.
        errno: i32,
    },
    /// A request was refused (or acknowledged, if 0).
    Error {
        /// Positive errno.
        errno: i32,
    },
    /// The kernel says it lost messages.
    Overrun,
    /// Something else, of no interest.
    Other,
}

/// What a dump is to show; the kernel leaves out the rest since 5.8. Before, it shows everything, and [`is_filtered`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Only {
    /// `AF_INET` or `AF_INET6`: without a family the kernel refuses to look at protocols.
    pub family: u8,
    /// The protocol.
    pub protocol: Protocol,
}

impl Only {
    /// Of a protocol, for each family.
    pub fn both(protocol: Protocol) -> [Self; 2] {
        [AF_INET, AF_INET6].map(|family| Self { family, protocol })
    }
}

/// The request for the table: `IPCTNL_MSG_CT_GET` as a dump, of everything or of less.
pub fn dump_request(sequence: u32, only: Option<Only>) -> Vec<u8> {
    // Port id, version (NFNETLINK_V0) and resource id are zero; so is the family (AF_UNSPEC) for everything.
    let family = only.map_or(0, |only| only.family);
    let mut payload = vec![0, 0, 0, 0, family, 0, 0, 0];
    if let Some(Only { protocol, .. }) = only {
        let number = attribute(cta::proto::NUM, &[protocol.0]);
        let proto = attribute(cta::tuple::PROTO | NESTED, &number);
        payload.extend(attribute(cta::TUPLE_ORIG | NESTED, &proto));
        let flags = attribute(cta::filter::ORIG_FLAGS, &cta::filter::BY_PROTOCOL.to_ne_bytes());
        payload.extend(attribute(cta::FILTER | NESTED, &flags));
    }
    let length = u32::try_from(12 + payload.len()).unwrap_or(u32::MAX);
    let parts =
        [&length.to_ne_bytes()[..], &MESSAGE_GET.to_ne_bytes(), &FLAGS_DUMP.to_ne_bytes(), &sequence.to_ne_bytes()];
    [&parts.concat(), &payload[..]].concat()
}

/// An attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Whether the kernel left out of the dump what was not asked for.
pub fn is_filtered(message: &Message<'_>) -> bool {
    message.flags & FLAG_DUMP_FILTERED != 0
}

/// Whether the kernel marked the dump this message belongs to as inconsistent.
pub fn is_interrupted(message: &Message<'_>) -> bool {
    message.flags & FLAG_DUMP_INTERRUPTED != 0
}

/// What a message says.
pub fn content(message: &Message<'_>) -> Result<Content, Malformed> {
    match message.kind {
        MESSAGE_NEW => entry(message.payload).map(Content::Entry),
        MESSAGE_DELETE => entry(message.payload).map(Content::Ended),
        // Old kernels end a dump without a number.
        MESSAGE_DONE if message.payload.is_empty() => Ok(Content::Done { errno: 0 }),
        MESSAGE_DONE => Ok(Content::Done { errno: errno(message.payload)? }),
        MESSAGE_ERROR => Ok(Content::Error { errno: errno(message.payload)? }),
        MESSAGE_OVERRUN => Ok(Content::Overrun),
        _ => Ok(Content::Other),
    }
}

/// The first four bytes of `NLMSG_ERROR` and `NLMSG_DONE`: a negative errno, native order.
fn errno(payload: &[u8]) -> Result<i32, Malformed> {
    let missing = Malformed::Payload { what: "errno", length: payload.len() };
    payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes).saturating_neg()).ok_or(missing)
}

/// One direction of an entry.
#[derive(Debug, Clone, Copy)]
struct Tuple {
    protocol: Protocol,
    source: Endpoint,
    destination: Endpoint,
    zone: Option<u16>,
}

/// An entry, from a message's payload (`struct nfgenmsg` and attributes).
pub fn entry(payload: &[u8]) -> Result<ConntrackEntry, Malformed> {
    let attributes = payload.get(4..).ok_or(Malformed::Payload { what: "nfgenmsg", length: payload.len() })?;
    let (mut original, mut reply) = (None, None);
    let (mut status, mut id, mut zone, mut tcp, mut remaining_secs) = (0, 0, None, None, None);
    for attribute in Attributes::new(attributes) {
        let attribute = attribute?;
        match attribute.kind {
            cta::TUPLE_ORIG => original = Some(tuple(attribute.nested())?),
            cta::TUPLE_REPLY => reply = Some(tuple(attribute.nested())?),
            cta::STATUS => status = attribute.be32("CTA_STATUS")?,
            cta::PROTOINFO => tcp = tcp_state(attribute.nested())?,
            cta::TIMEOUT => remaining_secs = Some(attribute.be32("CTA_TIMEOUT")?),
            cta::ID => id = attribute.be32("CTA_ID")?,
            cta::ZONE => zone = Some(attribute.be16("CTA_ZONE")?),
            _ => {}
        }
    }
    let original = original.ok_or(Malformed::Missing("CTA_TUPLE_ORIG"))?;
    let reply = reply.ok_or(Malformed::Missing("CTA_TUPLE_REPLY"))?;
    Ok(ConntrackEntry {
        key: FlowKey {
            protocol: original.protocol,
            // A zone of one direction only is written into that direction's tuple; the original one identifies the entry.
            zone: zone.or(original.zone).unwrap_or(0),
            source: original.source,
            dialled: original.destination,
        },
        id,
        destination: reply.source_of_answers(),
        translated: reply.target_of_answers(),
        replied: status & STATUS_SEEN_REPLY != 0,
        assured: status & STATUS_ASSURED != 0,
        tcp,
        remaining_secs,
    })
}

impl Tuple {
    fn is_echo(&self) -> bool {
        matches!(self.protocol, Protocol::ICMP | Protocol::ICMPV6)
    }

    /// The peer, seen from the reply tuple.
    fn source_of_answers(&self) -> Endpoint {
        if self.is_echo() { Endpoint { port: 0, ..self.source } } else { self.source }
    }

    /// What the peer sees. The kernel keeps an echo's identifier on the source side in both directions; translated, it is
    /// what stands for the port of whoever asked.
    fn target_of_answers(&self) -> Endpoint {
        if self.is_echo() { Endpoint { port: self.source.port, ..self.destination } } else { self.destination }
    }
}

fn tuple(attributes: Attributes<'_>) -> Result<Tuple, Malformed> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port, mut zone) = (None, 0, 0, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            cta::tuple::IP => {
                for address in attribute.nested() {
                    let address = address?;
                    match address.kind {
                        cta::ip::V4_SRC => source = Some(IpAddr::V4(address.ipv4("CTA_IP_V4_SRC")?)),
                        cta::ip::V4_DST => destination = Some(IpAddr::V4(address.ipv4("CTA_IP_V4_DST")?)),
                        cta::ip::V6_SRC => source = Some(IpAddr::V6(address.ipv6("CTA_IP_V6_SRC")?)),
                        cta::ip::V6_DST => destination = Some(IpAddr::V6(address.ipv6("CTA_IP_V6_DST")?)),
                        _ => {}
                    }
                }
            }
            cta::tuple::PROTO => {
                for part in attribute.nested() {
                    let part = part?;
                    match part.kind {
                        cta::proto::NUM => protocol = Some(part.byte("CTA_PROTO_NUM")?),
                        cta::proto::SRC_PORT => source_port = part.be16("CTA_PROTO_SRC_PORT")?,
                        cta::proto::DST_PORT => destination_port = part.be16("CTA_PROTO_DST_PORT")?,
                        cta::proto::ICMP_ID | cta::proto::ICMPV6_ID => source_port = part.be16("CTA_PROTO_ICMP_ID")?,
                        _ => {}
                    }
                }
            }
            cta::tuple::ZONE => zone = Some(attribute.be16("CTA_TUPLE_ZONE")?),
            _ => {}
        }
    }
    let protocol = Protocol(protocol.ok_or(Malformed::Missing("CTA_PROTO_NUM"))?);
    let source = source.ok_or(Malformed::Missing("source address"))?;
    let destination = destination.ok_or(Malformed::Missing("destination address"))?;
    Ok(Tuple {
        protocol,
        source: Endpoint::new(source, source_port),
        destination: Endpoint::new(destination, destination_port),
        zone,
    })
}

/// The TCP state; none for other protocols, or if its number is not known.
fn tcp_state(attributes: Attributes<'_>) -> Result<Option<ConntrackTcpState>, Malformed> {
    let mut state = None;
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == cta::protoinfo::TCP {
            for part in attribute.nested() {
                let part = part?;
                if part.kind == cta::protoinfo::TCP_STATE {
                    state = ConntrackTcpState::from_number(part.byte("CTA_PROTOINFO_TCP_STATE")?);
                }
            }
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests;
