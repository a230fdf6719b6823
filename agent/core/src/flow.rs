//! Words for connections: protocol, endpoint, destination, flow.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A transport protocol, by its IANA number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4. The "port" of such a flow is its echo identifier on the source side, 0 on the destination side.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self::SCTP => f.write_str("sctp"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

impl From<Protocol> for String {
    fn from(protocol: Protocol) -> Self {
        protocol.to_string()
    }
}

/// A protocol name or number that is neither known nor between 0 and 255.
#[derive(Debug, thiserror::Error)]
#[error("unknown protocol `{0}`")]
pub struct UnknownProtocol(String);

impl TryFrom<String> for Protocol {
    type Error = UnknownProtocol;

    fn try_from(name: String) -> Result<Self, UnknownProtocol> {
        match name.as_str() {
            "icmp" => Ok(Self::ICMP),
            "tcp" => Ok(Self::TCP),
            "udp" => Ok(Self::UDP),
            "icmpv6" => Ok(Self::ICMPV6),
            "sctp" => Ok(Self::SCTP),
            number => number.parse().map(Self).map_err(|_not_a_number| UnknownProtocol(name)),
        }
    }
}

/// An address and a port. IPv4-mapped IPv6 addresses are always written as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port, in host order.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint; an IPv4-mapped address becomes IPv4.
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self { address: address.to_canonical(), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Where connections go: protocol, address and port after DNAT, as they leave the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address and port.
    #[serde(flatten)]
    pub endpoint: Endpoint,
}

/// The IPv4 address that an IPv6 one stands for where a NAT translates between them (NAT64): of the well-known prefix 64:ff9b::/96
/// (RFC 6052), which DNS64 of Google and Amazon uses.
pub fn nat64_of(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() else { return None };
    Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
}

impl Destination {
    /// What a NAT that translates IPv6 to IPv4 makes of it, where it does.
    pub fn through_nat64(self) -> Option<Self> {
        let IpAddr::V6(address) = self.endpoint.address else { return None };
        let endpoint = Endpoint::new(nat64_of(address)?.into(), self.endpoint.port);
        Some(Self { endpoint, ..self })
    }

    /// A TCP destination.
    pub fn tcp(endpoint: Endpoint) -> Self {
        Self { protocol: Protocol::TCP, endpoint }
    }
}

/// `203.0.113.7:443/tcp`
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.endpoint, self.protocol)
    }
}
