//! `/proc/net/nf_conntrack`: what conntrack looks like where netlink cannot be had.
//!
//! The lines are those of `ct_seq_show` in `net/netfilter/nf_conntrack_standalone.c`. They have no id, and the kernel holds
//! no events back for whoever reads them: a flow that begins and ends between two readings is never seen.

use std::net::IpAddr;

use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::observe::{ConntrackEntry, ConntrackTcpState, FlowKey};

/// One direction, as far as it has been read.
#[derive(Debug, Clone, Copy, Default)]
struct Direction {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    source_port: u16,
    destination_port: u16,
}

/// One line; `None` if it is not an entry of IPv4 or IPv6.
pub fn parse_line(line: &[u8]) -> Option<ConntrackEntry> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    // `ipv4 2 tcp 6`: names and numbers of both layers; the names are only for reading.
    words.next().filter(|family| matches!(*family, "ipv4" | "ipv6"))?;
    words.next()?;
    words.next()?;
    let protocol = Protocol(words.next()?.parse().ok()?);
    let (mut original, mut reply) = (Direction::default(), Direction::default());
    let mut second = false;
    let (mut zone, mut remaining_secs, mut tcp) = (0, None, None);
    let (mut unreplied, mut assured) = (false, false);
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            match word {
                "[UNREPLIED]" => unreplied = true,
                // An offloaded entry shows only that, but nothing is offloaded before it is assured.
                "[ASSURED]" | "[OFFLOAD]" | "[HW_OFFLOAD]" => assured = true,
                number if remaining_secs.is_none() && original.source.is_none() && !number.starts_with('[') => {
                    match number.parse() {
                        Ok(secs) => remaining_secs = Some(secs),
                        Err(_not_a_number) if protocol == Protocol::TCP => tcp = tcp_state(number),
                        Err(_other_protocol) => {}
                    }
                }
                state if protocol == Protocol::TCP && tcp.is_none() => tcp = tcp_state(state),
                _ => {}
            }
            continue;
        };
        if name == "src" {
            second = original.source.is_some();
        }
        let direction = if second { &mut reply } else { &mut original };
        match name {
            "src" => direction.source = Some(value.parse().ok()?),
            "dst" => direction.destination = Some(value.parse().ok()?),
            "sport" => direction.source_port = value.parse().ok()?,
            "dport" => direction.destination_port = value.parse().ok()?,
            // An echo's identifier stands on the source side in both directions.
            "id" => direction.source_port = value.parse().ok()?,
            "srckey" => direction.source_port = hex(value)?,
            "dstkey" => direction.destination_port = hex(value)?,
            "zone" | "zone-orig" => zone = value.parse().ok()?,
            _ => {}
        }
    }
    let echo = matches!(protocol, Protocol::ICMP | Protocol::ICMPV6);
    let (peer_port, translated_port) =
        if echo { (0, reply.source_port) } else { (reply.source_port, reply.destination_port) };
    Some(ConntrackEntry {
        key: FlowKey {
            protocol,
            zone,
            source: Endpoint::new(original.source?, original.source_port),
            dialled: Endpoint::new(original.destination?, original.destination_port),
        },
        id: 0,
        destination: Endpoint::new(reply.source?, peer_port),
        translated: Endpoint::new(reply.destination?, translated_port),
        replied: !unreplied,
        assured,
        tcp,
        remaining_secs,
    })
}

fn hex(value: &str) -> Option<u16> {
    u16::from_str_radix(value.strip_prefix("0x")?, 16).ok()
}

/// `tcp_conntrack_names` of `net/netfilter/nf_conntrack_proto_tcp.c`.
fn tcp_state(word: &str) -> Option<ConntrackTcpState> {
    Some(match word {
        "NONE" => ConntrackTcpState::None,
        "SYN_SENT" => ConntrackTcpState::SynSent,
        "SYN_RECV" => ConntrackTcpState::SynRecv,
        "ESTABLISHED" => ConntrackTcpState::Established,
        "FIN_WAIT" => ConntrackTcpState::FinWait,
        "CLOSE_WAIT" => ConntrackTcpState::CloseWait,
        "LAST_ACK" => ConntrackTcpState::LastAck,
        "TIME_WAIT" => ConntrackTcpState::TimeWait,
        "CLOSE" => ConntrackTcpState::Close,
        "SYN_SENT2" => ConntrackTcpState::SynSent2,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn endpoint(text: &str) -> Endpoint {
        let socket: std::net::SocketAddr = text.parse().unwrap();
        Endpoint::new(socket.ip(), socket.port())
    }

    /// The lines are from a Linux 6.18 and from the documentation.
    #[test]
    fn lines_as_kernels_write_them_are_understood() {
        let entry = parse_line(b"ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=1.2.3.4 sport=40000 dport=443 src=1.2.3.4 dst=192.0.2.1 sport=443 dport=1025 [ASSURED] mark=0 zone=5 use=2").unwrap();
        assert_eq!(entry.key.source, endpoint("10.0.0.5:40000"));
        assert_eq!(entry.key.dialled, endpoint("1.2.3.4:443"));
        assert_eq!(entry.key.zone, 5);
        assert_eq!(entry.destination, endpoint("1.2.3.4:443"));
        assert_eq!(entry.translated, endpoint("192.0.2.1:1025"));
        assert_eq!((entry.replied, entry.assured, entry.id), (true, true, 0));
        assert_eq!((entry.tcp, entry.remaining_secs), (Some(ConntrackTcpState::Established), Some(431_999)));

        let entry = parse_line(b"ipv6     10 udp      17 29 src=fe80:0000:0000:0000:0000:0000:0000:0001 dst=fe80:0000:0000:0000:0000:0000:0000:0002 sport=3 dport=4 packets=1 bytes=30 [UNREPLIED] src=fe80:0000:0000:0000:0000:0000:0000:0002 dst=fe80:0000:0000:0000:0000:0000:0000:0001 sport=4 dport=3 packets=0 bytes=0 mark=0 zone=0 use=2").unwrap();
        assert_eq!(entry.key.source, endpoint("[fe80::1]:3"));
        assert_eq!((entry.replied, entry.assured, entry.tcp, entry.remaining_secs), (false, false, None, Some(29)));

        let entry = parse_line(b"ipv4     2 icmp     1 99 src=1.2.3.4 dst=5.6.7.8 type=8 code=0 id=77 [UNREPLIED] src=5.6.7.8 dst=9.9.9.9 type=0 code=0 id=78 mark=0 use=2").unwrap();
        assert_eq!((entry.key.source, entry.key.dialled), (endpoint("1.2.3.4:77"), endpoint("5.6.7.8:0")));
        assert_eq!((entry.destination, entry.translated), (endpoint("5.6.7.8:0"), endpoint("9.9.9.9:78")));

        let entry = parse_line(b"ipv4     2 gre      47 99 timeout=0, stream_timeout=0 src=1.2.3.4 dst=5.6.7.8 srckey=0x3 dstkey=0x4 [UNREPLIED] src=5.6.7.8 dst=1.2.3.4 srckey=0x4 dstkey=0x3 mark=0 zone=0 use=2").unwrap();
        assert_eq!((entry.key.source, entry.key.dialled), (endpoint("1.2.3.4:3"), endpoint("5.6.7.8:4")));

        let entry = parse_line(b"ipv4     2 tcp      6 src=10.0.0.5 dst=1.2.3.4 sport=40000 dport=443 src=1.2.3.4 dst=192.0.2.1 sport=443 dport=1025 [OFFLOAD] mark=0 use=2").unwrap();
        assert_eq!((entry.tcp, entry.remaining_secs, entry.assured), (None, None, true));

        let entry = parse_line(
            b"ipv4 2 unknown 89 599 src=10.0.0.5 dst=224.0.0.5 [UNREPLIED] src=224.0.0.5 dst=10.0.0.5 mark=0 use=1",
        )
        .unwrap();
        assert_eq!((entry.key.protocol, entry.key.source.port), (Protocol(89), 0));
    }

    #[test]
    fn half_an_entry_is_none() {
        for line in [
            &b""[..],
            b"ipv4",
            b"ipv4 2 tcp 6 10 NONE src=1.2.3.4 dst=1.2.3.4 sport=1 dport=2",
            b"ipv4 2 tcp 6 10 NONE src=1.2.3.4 dst=1.2.3.4 sport=1 dport=99999 src=1.2.3.4 dst=1.2.3.4 sport=1 dport=2",
            b"unknown 7 tcp 6 10 NONE src=1.2.3.4 dst=1.2.3.4 sport=1 dport=2 src=1.2.3.4 dst=1.2.3.4 sport=1 dport=2",
        ] {
            assert_eq!(parse_line(line), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line in prop::collection::vec(any::<u8>(), 0..300)) {
            parse_line(&line);
        }

        #[test]
        fn lines_near_the_truth_never_panic(
            words in prop::collection::vec(
                prop::sample::select(vec!["ipv4", "ipv6", "2", "tcp", "6", "icmp", "src=1.2.3.4", "dst=::1", "sport=1", "id=7", "[ASSURED]", "zone=1", "=", "x="]),
                0..20,
            ),
        ) {
            parse_line(words.join(" ").as_bytes());
        }

        #[test]
        fn what_is_written_is_read(
            v6: bool,
            addresses in any::<[[u8; 16]; 4]>(),
            ports in any::<[u16; 4]>(),
            zone: u16,
            remaining_secs: u32,
            unreplied: bool,
            state in prop::sample::select(vec!["NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"]),
        ) {
            let address = |bytes: [u8; 16]| match v6 {
                true => IpAddr::V6(Ipv6Addr::from(bytes)),
                false => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
            };
            let [a, b, c, d] = addresses.map(address);
            let [e, f, g, h] = ports;
            let line = format!(
                "ipv{} tcp      6 {remaining_secs} {state} src={a} dst={b} sport={e} dport={f} {}src={c} dst={d} sport={g} dport={h} mark=0 zone={zone} use=2",
                if v6 { "6     10" } else { "4     2" },
                if unreplied { "[UNREPLIED] " } else { "" },
            );
            let entry = parse_line(line.as_bytes());
            prop_assert_eq!(entry, Some(ConntrackEntry {
                key: FlowKey { protocol: Protocol::TCP, zone, source: Endpoint::new(a, e), dialled: Endpoint::new(b, f) },
                id: 0,
                destination: Endpoint::new(c, g),
                translated: Endpoint::new(d, h),
                replied: !unreplied,
                assured: false,
                tcp: tcp_state(state),
                remaining_secs: Some(remaining_secs),
            }));
        }
    }
}
