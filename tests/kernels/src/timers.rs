//! Lets the timers of conntrack entries run out, however long it took to make them.
//!
//! `conntrack -U -t` would do, but it also sends back the translation it was told of, which the kernel refuses to change
//! (`ctnetlink_change_conntrack`, `net/netfilter/nf_conntrack_netlink.c`).

use std::io::Read as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use headroom_lab::Netns;
use headroom_lab::conntrack::{Flow, Protocol, flows};
use socket2::{Domain, Socket, Type};

// include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const AF_INET: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1 | NLA_F_NESTED;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1 | NLA_F_NESTED;
const CTA_TUPLE_PROTO: u16 = 2 | NLA_F_NESTED;
/// Of an address: whose it is.
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
/// Of a protocol: which, from which port, to which.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// All entries of a namespace expire in a second.
pub(crate) fn run_out(netns: &Netns) -> Result<()> {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let flows = flows(netns, protocol)?;
        netns.run(|| {
            let family = Domain::from(AF_NETLINK);
            let mut socket = Socket::new(family, Type::RAW, Some(NETLINK_NETFILTER.into())).context("open netlink")?;
            flows
                .iter()
                .try_for_each(|flow| set(&mut socket, flow, 1).with_context(|| format!("set a timer: {flow:?}")))
        })?;
    }
    Ok(())
}

/// Sets the timer of one.
fn set(socket: &mut Socket, flow: &Flow, secs: u32) -> Result<()> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (flow.source.ip(), flow.destination.ip()) else {
        bail!("only IPv4 is made here");
    };
    let addresses = [attribute(SOURCE, &source.octets()), attribute(DESTINATION, &destination.octets())].concat();
    let number: u8 = match flow.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let ports = [
        attribute(NUMBER, &[number]),
        attribute(SOURCE_PORT, &flow.source.port().to_be_bytes()),
        attribute(DESTINATION_PORT, &flow.destination.port().to_be_bytes()),
    ];
    let tuple = [attribute(CTA_TUPLE_IP, &addresses), attribute(CTA_TUPLE_PROTO, &ports.concat())].concat();
    let rest = [attribute(CTA_TUPLE_ORIG, &tuple), attribute(CTA_TIMEOUT, &secs.to_be_bytes())].concat();
    let body = [&[AF_INET, 0, 0, 0][..], &rest].concat();
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;
    let header = [kind, NLM_F_REQUEST | NLM_F_ACK].map(u16::to_ne_bytes).concat();
    let length = u32::try_from(16 + body.len()).context("a short message")?;
    let message = [&length.to_ne_bytes()[..], &header, &[0; 8], &body].concat();
    socket.send(&message).context("send")?;
    let mut answer = [0; 1024];
    let length = socket.read(&mut answer).context("wait for the answer")?;
    let answer = answer.get(..length).unwrap_or_default();
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let errno = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    ensure!((kind, errno) == (Some(NLMSG_ERROR), Some(0)), "the kernel answered {kind:?}, {errno:?}");
    Ok(())
}

/// An attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
