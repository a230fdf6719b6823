//! rtnetlink: links, routes to single addresses, and the addresses of other network namespaces without entering them.
//!
//! A namespace that a veth of ours leads into has a number here (`IFLA_LINK_NETNSID`), which the kernel gives it when links
//! are listed. By that number its addresses can be dumped from here with CAP_NET_ADMIN (`IFA_TARGET_NETNSID`, Linux 4.20,
//! <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/devinet.c#L1811>); entering it would take CAP_SYS_ADMIN. Only
//! requests to list and to get are ever sent. The decoders are pure and take their bytes for hostile.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use headroom_core::time::NodeTime;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::message::{Attributes, Malformed, Message, Messages};
use super::socket::DATAGRAM_BYTES;
use crate::clock;

/// Links, routes or addresses taken from one list.
const ITEMS_LIMIT: usize = 1 << 17;
/// How long the kernel may be silent: it answers within the call, so this is an emergency.
const SILENCE_SECS: i64 = 2;

/// `linux/rtnetlink.h`, `linux/netlink.h`: uapi, stable.
mod uapi {
    pub(super) const RTM_NEWLINK: u16 = 16;
    pub(super) const RTM_GETLINK: u16 = 18;
    pub(super) const RTM_NEWADDR: u16 = 20;
    pub(super) const RTM_GETADDR: u16 = 22;
    pub(super) const RTM_NEWROUTE: u16 = 24;
    pub(super) const RTM_GETROUTE: u16 = 26;
    pub(super) const RTM_NEWNSID: u16 = 88;
    pub(super) const RTM_GETNSID: u16 = 90;
    pub(super) const NLMSG_ERROR: u16 = 2;
    pub(super) const NLMSG_DONE: u16 = 3;
    pub(super) const NLM_F_REQUEST: u16 = 1;
    pub(super) const NLM_F_DUMP: u16 = 0x300;
    pub(super) const IFLA_IFNAME: u16 = 3;
    pub(super) const IFLA_LINK_NETNSID: u16 = 37;
    pub(super) const IFA_ADDRESS: u16 = 1;
    pub(super) const IFA_LOCAL: u16 = 2;
    pub(super) const IFA_TARGET_NETNSID: u16 = 10;
    pub(super) const RTA_DST: u16 = 1;
    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTA_GATEWAY: u16 = 5;
    pub(super) const RTN_UNICAST: u8 = 1;
    pub(super) const RTM_F_CLONED: u32 = 0x200;
    pub(super) const NETNSA_NSID: u16 = 1;
    pub(super) const NETNSA_FD: u16 = 3;
    pub(super) const AF_INET: u8 = 2;
    pub(super) const AF_INET6: u8 = 10;
}
use uapi::*;

/// A network interface whose other end is in another namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peered {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// A route to a single address through an interface, without a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnLink {
    /// The address.
    pub address: IpAddr,
    /// The interface.
    pub index: u32,
}

/// Why something was not told.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    /// The kernel said no, or the socket failed.
    #[error("rtnetlink failed ({})", .0.desc())]
    Failed(Errno),
    /// The answer is not what the kernel writes.
    #[error("rtnetlink answered what it does not write ({0})")]
    Malformed(#[from] Malformed),
    /// The kernel was silent or too slow.
    #[error("rtnetlink did not answer in time")]
    Late,
    /// No interface leads from here into the namespace.
    #[error("no interface of the node leads into it")]
    NoNumber,
    /// The kernel is older than the question.
    #[error("this kernel does not tell the addresses of other network namespaces")]
    OtherNamespace,
}

impl NotTold {
    fn of(error: &io::Error) -> Self {
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::EAGAIN => Self::Late,
            errno => Self::Failed(errno),
        }
    }
}

/// A conversation with the kernel about the calling thread's namespace.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: Socket,
    sequence: u32,
    deadline: NodeTime,
}

impl Rtnetlink {
    /// Opens a socket; nothing is asked after `deadline`.
    ///
    /// # Errors
    /// No netlink.
    pub fn open(deadline: NodeTime) -> Result<Self, NotTold> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(|error| NotTold::of(&error))?;
        socket.bind_auto().map_err(|error| NotTold::of(&error))?;
        // Without strict checking the kernel passes over what it is asked about other namespaces.
        socket.set_netlink_get_strict_chk(true).map_err(|error| NotTold::of(&error))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(SILENCE_SECS, 0)).map_err(NotTold::Failed)?;
        Ok(Self { socket, sequence: 0, deadline })
    }

    /// The interfaces whose other end is in another namespace, by number. Listing them gives these namespaces their numbers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn peered(&mut self) -> Result<BTreeMap<u32, Peered>, NotTold> {
        let mut found = BTreeMap::new();
        self.ask(RTM_GETLINK, NLM_F_DUMP, &[0; 16], |message| {
            if message.kind == RTM_NEWLINK
                && let Some(link) = peered(message.payload)?
            {
                found.insert(link.index, link);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// All routes of this namespace to single addresses without a gateway.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn on_link(&mut self) -> Result<Vec<OnLink>, NotTold> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut header = [0; 12];
            header[0] = family;
            self.ask(RTM_GETROUTE, NLM_F_DUMP, &header, |message| {
                if message.kind == RTM_NEWROUTE {
                    found.extend(on_link(message.payload)?);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// The addresses of another namespace, without loopback and link-local ones.
    ///
    /// # Errors
    /// No interface leads into it, or what the kernel says.
    pub fn addresses_in(&mut self, namespace: impl AsFd) -> Result<Vec<IpAddr>, NotTold> {
        let number = self.number_of(namespace)?;
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut request = [0; 16];
            request[0] = family;
            request[8..].copy_from_slice(&attribute(IFA_TARGET_NETNSID, number));
            self.ask(RTM_GETADDR, NLM_F_DUMP, &request, |message| {
                if message.kind == RTM_NEWADDR {
                    found.extend(address(message.payload, number)?);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// The number that a namespace has here.
    fn number_of(&mut self, namespace: impl AsFd) -> Result<i32, NotTold> {
        let mut request = [0; 12];
        request[4..].copy_from_slice(&attribute(NETNSA_FD, namespace.as_fd().as_raw_fd()));
        let mut number = None;
        self.ask(RTM_GETNSID, 0, &request, |message| {
            if message.kind == RTM_NEWNSID {
                number = nsid(message.payload)?;
            }
            Ok(())
        })?;
        number.filter(|number| *number >= 0).ok_or(NotTold::NoNumber)
    }

    /// Sends one request and hands over every message of the answer.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(&Message<'_>) -> Result<(), NotTold>,
    ) -> Result<(), NotTold> {
        self.sequence += 1;
        let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
        let mut request = Vec::with_capacity(16 + body.len());
        request.extend_from_slice(&length.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&[0; 4]);
        request.extend_from_slice(body);
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0).map_err(|error| NotTold::of(&error))?;
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let mut items = 0;
        loop {
            if clock::node_time() > self.deadline {
                return Err(NotTold::Late);
            }
            let length = match self.socket.recv_from(&mut buffer.as_mut_slice(), 0) {
                Ok((length, from)) if from.port_number() == 0 => length,
                Ok(_another_process) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(NotTold::of(&error)),
            };
            for message in Messages::new(buffer.get(..length).unwrap_or_default()) {
                let message = message?;
                // What an earlier question left behind.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return ended(message.payload),
                    _item => each(&message)?,
                }
                items += 1;
                if items > ITEMS_LIMIT {
                    return Err(NotTold::Late);
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// `NLMSG_ERROR`: zero is an acknowledgement.
fn ended(payload: &[u8]) -> Result<(), NotTold> {
    match payload.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(NotTold::Failed(Errno::from_raw(error.saturating_neg()))),
        None => Err(NotTold::Malformed(Malformed::Missing("error"))),
    }
}

/// An attribute of four bytes.
fn attribute(kind: u16, value: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&8_u16.to_ne_bytes());
    bytes[2..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    bytes
}

/// Header and attributes of a message.
fn split<const HEADER: usize>(payload: &[u8]) -> Result<(&[u8; HEADER], Attributes<'_>), Malformed> {
    let (header, rest) = payload.split_first_chunk::<HEADER>().ok_or(Malformed::Missing("header"))?;
    Ok((header, Attributes::new(rest)))
}

fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn ip(family: u8, payload: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => <[u8; 4]>::try_from(payload).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(payload).ok().map(IpAddr::from),
        _other => None,
    }
}

/// A link (`struct ifinfomsg`), if its other end is in another namespace.
///
/// # Errors
/// Bytes that the kernel does not write.
pub fn peered(payload: &[u8]) -> Result<Option<Peered>, Malformed> {
    let (header, attributes) = split::<16>(payload)?;
    let [_, _, _, _, i0, i1, i2, i3, ..] = *header;
    let (mut name, mut elsewhere) = (None, false);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_IFNAME => {
                name = Some(crate::bounded::shown(attribute.payload.strip_suffix(&[0]).unwrap_or(attribute.payload)))
            }
            IFLA_LINK_NETNSID => elsewhere = true,
            _other => {}
        }
    }
    let index = u32::from_ne_bytes([i0, i1, i2, i3]);
    Ok(name.filter(|_| elsewhere).map(|name| Peered { index, name }))
}

/// A route (`struct rtmsg`), if it leads to a single address without a gateway.
///
/// # Errors
/// Bytes that the kernel does not write.
pub fn on_link(payload: &[u8]) -> Result<Option<OnLink>, Malformed> {
    let (header, attributes) = split::<12>(payload)?;
    let [family, length, _, _, _, _, _, kind, f0, f1, f2, f3] = *header;
    let (mut destination, mut index, mut gateway) = (None, None, false);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            RTA_DST => destination = ip(family, attribute.payload),
            RTA_OIF => index = number(attribute.payload),
            RTA_GATEWAY => gateway = true,
            _other => {}
        }
    }
    let cloned = u32::from_ne_bytes([f0, f1, f2, f3]) & RTM_F_CLONED != 0;
    let single = matches!((family, length), (AF_INET, 32) | (AF_INET6, 128));
    if kind != RTN_UNICAST || gateway || cloned || !single {
        return Ok(None);
    }
    Ok(destination.zip(index).map(|(address, index)| OnLink { address, index }))
}

/// An address (`struct ifaddrmsg`) of the namespace with this number; `None` for loopback and link-local ones.
///
/// # Errors
/// One of another namespace, which is what a kernel answers that does not know the question.
pub fn address(payload: &[u8], of: i32) -> Result<Option<IpAddr>, NotTold> {
    let (header, attributes) = split::<8>(payload)?;
    let family = header[0];
    let (mut any, mut local, mut from) = (None, None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IFA_ADDRESS => any = ip(family, attribute.payload),
            IFA_LOCAL => local = ip(family, attribute.payload),
            IFA_TARGET_NETNSID => from = number(attribute.payload),
            _other => {}
        }
    }
    if from != u32::try_from(of).ok() {
        return Err(NotTold::OtherNamespace);
    }
    Ok(local.or(any).filter(|address| match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }))
}

/// The number in an answer to `RTM_GETNSID`; negative if the namespace has none.
fn nsid(payload: &[u8]) -> Result<Option<i32>, Malformed> {
    let (_header, attributes) = split::<4>(payload)?;
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == NETNSA_NSID {
            return Ok(attribute.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        for (kind, payload) in attributes {
            let length = u16::try_from(4 + payload.len()).unwrap();
            bytes.extend(length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes()).chain(payload.iter().copied()));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn only_a_link_into_another_namespace_is_peered() {
        let header = [0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let veth = with(&header, &[(IFLA_IFNAME, b"veth12ab\0"), (IFLA_LINK_NETNSID, &3_i32.to_ne_bytes())]);
        assert_eq!(peered(&veth), Ok(Some(Peered { index: 7, name: "veth12ab".to_owned() })));
        assert_eq!(peered(&with(&header, &[(IFLA_IFNAME, b"eth0\0")])), Ok(None));
        assert!(peered(&header[..8]).is_err());
    }

    #[test]
    fn only_a_route_to_one_address_without_gateway_is_on_link() {
        let route = |length: u8, kind: u8, flags: u32, more: &[(u16, &[u8])]| {
            let mut header = vec![AF_INET, length, 0, 0, 254, 3, 253, kind];
            header.extend(flags.to_ne_bytes());
            let own: [(u16, &[u8]); 2] = [(RTA_DST, &[10, 48, 131, 4]), (RTA_OIF, &7_u32.to_ne_bytes())];
            on_link(&with(&header, &[&own, more].concat())).unwrap()
        };
        let found = OnLink { address: IpAddr::from([10, 48, 131, 4]), index: 7 };
        assert_eq!(route(32, RTN_UNICAST, 0, &[]), Some(found));
        assert_eq!(route(26, RTN_UNICAST, 0, &[]), None);
        assert_eq!(route(32, 2, 0, &[]), None, "an address of the node itself");
        assert_eq!(route(32, RTN_UNICAST, RTM_F_CLONED, &[]), None);
        assert_eq!(route(32, RTN_UNICAST, 0, &[(RTA_GATEWAY, &[10, 0, 0, 1])]), None);
    }

    /// If this fails, a kernel that does not know the question makes every namespace look like the node's own.
    #[test]
    fn an_address_of_another_namespace_is_not_taken() {
        let header = [AF_INET, 26, 0, 0, 2, 0, 0, 0];
        let local: (u16, &[u8]) = (IFA_LOCAL, &[10, 48, 131, 4]);
        let said =
            with(&header, &[(IFA_ADDRESS, &[10, 48, 131, 1]), local, (IFA_TARGET_NETNSID, &3_i32.to_ne_bytes())]);
        assert_eq!(address(&said, 3).unwrap(), Some(IpAddr::from([10, 48, 131, 4])));
        assert!(matches!(address(&said, 4), Err(NotTold::OtherNamespace)));
        assert!(matches!(address(&with(&header, &[local]), 0), Err(NotTold::OtherNamespace)));
    }

    proptest! {
        /// Exercises the decoders with anything. If this fails, a message can stop the agent.
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            drop((peered(&bytes), on_link(&bytes), address(&bytes, 1), nsid(&bytes), ended(&bytes)));
        }
    }
}
