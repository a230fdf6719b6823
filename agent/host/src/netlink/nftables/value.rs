//! What is in a register while a rule runs, in words.

use std::net::{Ipv4Addr, Ipv6Addr};

/// `NFT_PAYLOAD_NETWORK_HEADER`, and the same of packets that are known to be IPv6.
pub(super) const NETWORK: u32 = 1;
pub(super) const NETWORK_V6: u32 = 0x100 | NETWORK;

/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
pub(super) const TRANSPORT: u32 = 2;

/// Something that an expression has put into a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Bytes of the rule itself.
    Bytes(Vec<u8>),
    /// `meta <key>`
    Meta(u32),
    /// `ct <key>`
    Conntrack(u32),
    /// Bytes of the packet: base (`enum nft_payload_bases`, or [`NETWORK_V6`]), offset, length.
    Payload(u32, u32, u32),
    /// `fib … type`: source or destination.
    AddressType(&'static str),
    /// `numgen random mod N` or `numgen inc mod N`, with its offset.
    Number { modulus: u32, offset: u32 },
    /// A number that the machine has in its own order, in network order: order matters to what it is compared with.
    Swapped(Box<Value>),
    /// Something else, by its name.
    Other(String),
}

/// What bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    Port,
    Protocol,
    Name,
    Mark,
    Type,
    Raw,
}

/// `enum nft_meta_keys`.
mod meta {
    pub(super) const MARK: u32 = 3;
    pub(super) const IIF: u32 = 4;
    pub(super) const OIF: u32 = 5;
    pub(super) const IIFNAME: u32 = 6;
    pub(super) const OIFNAME: u32 = 7;
    pub(super) const NFPROTO: u32 = 15;
    pub(super) const L4PROTO: u32 = 16;
    /// As `nft` calls others.
    pub(super) const OTHERS: [(u32, &str); 23] = [
        (0, "length"),
        (1, "protocol"),
        (2, "priority"),
        (8, "iiftype"),
        (9, "oiftype"),
        (10, "skuid"),
        (11, "skgid"),
        (12, "nftrace"),
        (13, "rtclassid"),
        (14, "secmark"),
        (17, "ibrname"),
        (18, "obrname"),
        (19, "pkttype"),
        (20, "cpu"),
        (21, "iifgroup"),
        (22, "oifgroup"),
        (23, "cgroup"),
        (24, "random"),
        (25, "secpath"),
        (26, "iifkind"),
        (27, "oifkind"),
        (33, "sdif"),
        (34, "sdifname"),
    ];
}

/// `enum nft_ct_keys`, as `nft` calls them.
const CONNTRACK: [&str; 24] = [
    "state",
    "direction",
    "status",
    "mark",
    "secmark",
    "expiration",
    "helper",
    "l3proto",
    "saddr",
    "daddr",
    "protocol",
    "proto-src",
    "proto-dst",
    "label",
    "packets",
    "bytes",
    "avgpkt",
    "zone",
    "event",
    "ip saddr",
    "ip daddr",
    "ip6 saddr",
    "ip6 daddr",
    "id",
];

impl Value {
    /// How `iptables` or `nft` calls it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Bytes(_) => "a constant".to_owned(),
            Self::Meta(key) => match *key {
                meta::MARK => "mark".to_owned(),
                meta::IIF => "iif".to_owned(),
                meta::OIF => "oif".to_owned(),
                meta::IIFNAME => "-i".to_owned(),
                meta::OIFNAME => "-o".to_owned(),
                meta::NFPROTO => "nfproto".to_owned(),
                meta::L4PROTO => "-p".to_owned(),
                key => meta::OTHERS
                    .iter()
                    .find(|(other, _)| *other == key)
                    .map_or_else(|| format!("meta {key}"), |(_, name)| (*name).to_owned()),
            },
            Self::Conntrack(key) => {
                let name = usize::try_from(*key).ok().and_then(|key| CONNTRACK.get(key));
                name.map_or_else(|| format!("ct {key}"), |name| format!("ct {name}"))
            }
            Self::Payload(..) if self.is_source_address() => "-s".to_owned(),
            Self::Payload(..) if self.is_destination_address() => "-d".to_owned(),
            Self::Payload(NETWORK, 9, 1) => "-p".to_owned(),
            Self::Payload(NETWORK_V6, 6, 1) => "nexthdr".to_owned(),
            Self::Payload(TRANSPORT, 0, 2) => "--sport".to_owned(),
            Self::Payload(TRANSPORT, 2, 2) => "--dport".to_owned(),
            Self::Payload(base, offset, length) => format!("payload {base},{offset},{length}"),
            Self::AddressType(side) => format!("--{side}-type"),
            Self::Number { modulus, .. } => format!("numgen mod {modulus}"),
            Self::Swapped(value) => value.name(),
            Self::Other(name) => name.clone(),
        }
    }

    /// Whether it is one of the things that [`Value::name`] and [`Value::shown`] have words for.
    pub(super) fn is_understood(&self) -> bool {
        match self {
            Self::Meta(key) => matches!(
                *key,
                meta::MARK | meta::IIF | meta::OIF | meta::IIFNAME | meta::OIFNAME | meta::NFPROTO | meta::L4PROTO
            ),
            Self::Conntrack(key) => matches!(key, 0 | 2 | 3),
            Self::Payload(..) => self.kind() != Kind::Raw,
            Self::AddressType(_) | Self::Number { .. } => true,
            Self::Swapped(value) => value.is_understood(),
            Self::Bytes(_) | Self::Other(_) => false,
        }
    }

    pub(super) fn is_protocol(&self) -> bool {
        self.kind() == Kind::Protocol
    }

    /// Whether it is a name, of which words do not tell a `+` from a `*`, nor bytes that are not UTF-8 from others.
    pub(super) fn is_name(&self) -> bool {
        self.kind() == Kind::Name
    }

    /// Whether it is of the transport header: packets of protocols without one, or too short for it, are let pass by.
    pub(super) fn is_of_transport(&self) -> bool {
        matches!(self, Self::Payload(TRANSPORT, ..))
    }

    /// Whether it is the header behind the first one of IPv6: the protocol, unless there are options.
    pub(super) fn is_next_header(&self) -> bool {
        matches!(self, Self::Payload(NETWORK_V6, 6, 1))
    }

    /// Whether no rule changes it, and the words for a comparison through that mask tell all that is compared.
    pub(super) fn is_lasting(&self, mask: Option<&[u8]>) -> bool {
        // Where a mask tells the length of a prefix: ones, and then zeros.
        let prefix = |mask: &[u8]| {
            let mut rest = mask.iter().skip_while(|byte| **byte == u8::MAX);
            let border = rest.next().copied().unwrap_or(0);
            border.leading_ones() == border.count_ones() && rest.all(|byte| *byte == 0)
        };
        match self.kind() {
            Kind::Address => mask.is_none_or(prefix),
            Kind::Port | Kind::Name | Kind::Type => mask.is_none(),
            Kind::Raw => matches!(self, Self::Meta(meta::IIF | meta::OIF)) && mask.is_none(),
            Kind::Protocol | Kind::Mark => false,
        }
    }

    pub(super) fn is_family(&self) -> bool {
        *self == Self::Meta(meta::NFPROTO)
    }

    pub(super) fn is_destination_port(&self) -> bool {
        *self == Self::Payload(TRANSPORT, 2, 2)
    }

    /// The same number, the other way round.
    pub(super) fn swapped(self) -> Self {
        match self {
            Self::Swapped(value) => *value,
            Self::Meta(meta::MARK | meta::IIF | meta::OIF) | Self::Conntrack(_) | Self::AddressType(_)
                if cfg!(target_endian = "little") =>
            {
                Self::Swapped(Box::new(self))
            }
            // Of `numgen`, both orders are looked for.
            _ => self,
        }
    }

    fn is_source_address(&self) -> bool {
        // A prefix that ends at a byte is compared without the rest (`nft_payload` of fewer bytes).
        matches!(self, Self::Payload(NETWORK, 12, 1..=4) | Self::Payload(NETWORK_V6, 8, 1..=16))
    }

    fn is_destination_address(&self) -> bool {
        matches!(self, Self::Payload(NETWORK, 16, 1..=4) | Self::Payload(NETWORK_V6, 24, 1..=16))
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Meta(meta::IIFNAME | meta::OIFNAME) => Kind::Name,
            Self::Meta(meta::L4PROTO) | Self::Payload(NETWORK, 9, 1) | Self::Payload(NETWORK_V6, 6, 1) => {
                Kind::Protocol
            }
            Self::Meta(meta::MARK) | Self::Conntrack(_) => Kind::Mark,
            Self::Payload(TRANSPORT, 0 | 2, 2) => Kind::Port,
            Self::Payload(..) if self.is_source_address() || self.is_destination_address() => Kind::Address,
            Self::AddressType(_) => Kind::Type,
            Self::Swapped(value) => value.kind(),
            _ => Kind::Raw,
        }
    }

    /// A constant this is compared with, in its words; with a mask where there is one.
    pub(super) fn shown(&self, bytes: &[u8], mask: Option<&[u8]>) -> String {
        if let Self::Swapped(value) = self {
            let swapped = |bytes: &[u8]| bytes.iter().rev().copied().collect::<Vec<u8>>();
            return value.shown(&swapped(bytes), mask.map(swapped).as_deref());
        }
        let native = || bytes.try_into().ok().map(u32::from_ne_bytes);
        match self.kind() {
            Kind::Name => {
                let name = super::text(bytes);
                // `eth+` is compared without the zero byte at the end of a name.
                if bytes.contains(&0) { name } else { format!("{name}+") }
            }
            Kind::Protocol => {
                bytes.first().map_or_else(String::new, |number| headroom_core::flow::Protocol(*number).to_string())
            }
            Kind::Port => bytes.try_into().map_or_else(|_| raw(bytes), |port| u16::from_be_bytes(port).to_string()),
            Kind::Mark => {
                let mask: Option<u32> = mask.and_then(|mask| mask.try_into().ok()).map(u32::from_ne_bytes);
                match (native(), mask) {
                    (Some(mark), Some(mask)) => format!("{mark:#x}/{mask:#x}"),
                    (Some(mark), None) => format!("{mark:#x}"),
                    (None, _) => raw(bytes),
                }
            }
            Kind::Type => native().map_or_else(|| raw(bytes), address_type),
            Kind::Address => self.address(bytes, mask),
            Kind::Raw => raw(bytes),
        }
    }

    /// An address with the length of its prefix.
    fn address(&self, bytes: &[u8], mask: Option<&[u8]>) -> String {
        let v4 = matches!(self, Self::Payload(NETWORK, ..));
        let compared = mask.map_or_else(
            || u32::try_from(bytes.len() * 8).unwrap_or(0),
            |mask| mask.iter().map(|byte| byte.count_ones()).sum(),
        );
        if v4 {
            let mut whole = [0; 4];
            whole.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
            format!("{}/{compared}", Ipv4Addr::from(whole))
        } else {
            let mut whole = [0; 16];
            whole.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
            format!("{}/{compared}", Ipv6Addr::from(whole))
        }
    }
}

/// `RTN_*` (`uapi/linux/rtnetlink.h`), as `iptables` calls them.
pub(super) fn address_type(kind: u32) -> String {
    match kind {
        1 => "UNICAST".to_owned(),
        2 => "LOCAL".to_owned(),
        3 => "BROADCAST".to_owned(),
        5 => "MULTICAST".to_owned(),
        kind => kind.to_string(),
    }
}

fn raw(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}
