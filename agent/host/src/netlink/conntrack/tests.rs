//! The decoder against its own encoder, against cut and mutated bytes, and against a message of a real kernel.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::netlink::message::Messages;

/// A NEW event as Linux 6.18 sent it, on a little-endian machine: see `a_recorded_event_decodes_to_what_conntrack_showed`.
#[cfg(target_endian = "little")]
const RECORDED: &str = include_str!("recorded_new_event.hex");

/// Writes one attribute, with the padding the kernel writes.
fn attribute(kind: u16, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u16::try_from(payload.len() + 4).unwrap().to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn nested(kind: u16, parts: &[(u16, Vec<u8>)], out: &mut Vec<u8>) {
    let mut inside = Vec::new();
    for (kind, payload) in parts {
        attribute(*kind, payload, &mut inside);
    }
    attribute(kind | 0x8000, &inside, out);
}

fn encode_tuple(kind: u16, protocol: Protocol, source: Endpoint, destination: Endpoint, out: &mut Vec<u8>) {
    let mut inside = Vec::new();
    let addresses = match (source.address, destination.address) {
        (IpAddr::V4(from), IpAddr::V4(to)) => vec![(1, from.octets().to_vec()), (2, to.octets().to_vec())],
        (from, to) => {
            let v6 = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            vec![(3, v6(from).octets().to_vec()), (4, v6(to).octets().to_vec())]
        }
    };
    nested(1, &addresses, &mut inside);
    let mut proto = vec![(1, vec![protocol.0])];
    match protocol {
        Protocol::ICMP | Protocol::ICMPV6 => {
            let id = if protocol == Protocol::ICMP { 4 } else { 7 };
            proto.extend([(id, source.port.to_be_bytes().to_vec()), (id + 1, vec![8]), (id + 2, vec![0])]);
        }
        Protocol::TCP | Protocol::UDP | Protocol::SCTP | Protocol(33 | 47) => {
            proto.extend([(2, source.port.to_be_bytes().to_vec()), (3, destination.port.to_be_bytes().to_vec())]);
        }
        _ => {}
    }
    nested(2, &proto, &mut inside);
    attribute(kind | 0x8000, &inside, out);
}

/// A whole message, as `ctnetlink_fill_info` lays it out.
fn encode(kind: u16, entry: &ConntrackEntry) -> Vec<u8> {
    let mut body = vec![2, 0, 0, 0];
    let key = entry.key;
    encode_tuple(1, key.protocol, key.source, key.dialled, &mut body);
    let mut from = entry.destination;
    if matches!(key.protocol, Protocol::ICMP | Protocol::ICMPV6) {
        from.port = entry.translated.port;
    }
    encode_tuple(2, key.protocol, from, entry.translated, &mut body);
    if key.zone != 0 {
        attribute(18, &key.zone.to_be_bytes(), &mut body);
    }
    attribute(12, &entry.id.to_be_bytes(), &mut body);
    let status = 8 | if entry.replied { 2 } else { 0 } | if entry.assured { 4u32 } else { 0 };
    attribute(3, &status.to_be_bytes(), &mut body);
    if let Some(secs) = entry.remaining_secs {
        attribute(7, &secs.to_be_bytes(), &mut body);
    }
    if let Some(state) = entry.tcp {
        let number = (0..10).find(|number| ConntrackTcpState::from_number(*number) == Some(state)).unwrap();
        let mut tcp = Vec::new();
        nested(1, &[(1, vec![number]), (2, vec![7])], &mut tcp);
        attribute(4 | 0x8000, &tcp, &mut body);
    }
    attribute(8, &7u32.to_be_bytes(), &mut body);
    let mut message = Vec::new();
    message.extend_from_slice(&u32::try_from(body.len() + 16).unwrap().to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&[0; 10]);
    message.extend_from_slice(&body);
    message
}

fn decode_all(bytes: &[u8]) -> Vec<Result<Content, Malformed>> {
    Messages::new(bytes).map(|message| message.and_then(|message| content(&message))).collect()
}

fn address() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (Ipv4Addr::from(a).into(), Ipv4Addr::from(b).into())),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (Ipv6Addr::from(a).into(), Ipv6Addr::from(b).into())),
    ]
}

prop_compose! {
    fn entries()(
        protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(132), Just(33), Just(47), any::<u8>()],
        (from, dialled) in address(),
        (peer, translated) in address(),
        ports in any::<[u16; 4]>(),
        zone in prop_oneof![Just(0u16), any::<u16>()],
        id in any::<u32>(),
        replied in any::<bool>(),
        assured in any::<bool>(),
        tcp in prop::option::of((0u8..10).prop_map(|number| ConntrackTcpState::from_number(number).unwrap())),
        remaining_secs in any::<Option<u32>>(),
    ) -> ConntrackEntry {
        let protocol = Protocol(protocol);
        let [a, b, c, d] = match protocol {
            Protocol::ICMP | Protocol::ICMPV6 => [ports[0], 0, 0, ports[3]],
            Protocol::TCP | Protocol::UDP | Protocol::SCTP | Protocol(33 | 47) => ports,
            _ => [0; 4],
        };
        ConntrackEntry {
            key: FlowKey { protocol, zone, source: Endpoint::new(from, a), dialled: Endpoint::new(dialled, b) },
            id,
            destination: Endpoint::new(peer, c),
            translated: Endpoint::new(translated, d),
            replied,
            assured,
            tcp,
            remaining_secs,
        }
    }
}

proptest! {
    /// Exercises the decoder on everything the encoder can write. If this fails, flows are counted at wrong places.
    #[test]
    fn what_is_encoded_is_decoded(entry in entries()) {
        prop_assert_eq!(decode_all(&encode(MESSAGE_NEW, &entry)), [Ok(Content::Entry(entry))]);
        prop_assert_eq!(decode_all(&encode(MESSAGE_DELETE, &entry)), [Ok(Content::Ended(entry))]);
    }

    #[test]
    fn many_messages_in_one_datagram_are_all_decoded(entries in prop::collection::vec(entries(), 0..5)) {
        let datagram: Vec<u8> = entries.iter().flat_map(|entry| encode(MESSAGE_NEW, entry)).collect();
        let expected: Vec<_> = entries.into_iter().map(|entry| Ok(Content::Entry(entry))).collect();
        prop_assert_eq!(decode_all(&datagram), expected);
    }

    /// Exercises bounds. If this fails, a message can stop the agent.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
        let decoded = entry(&bytes);
        prop_assert!(decoded.is_err() || bytes.len() > 60);
    }

    /// As above, near to the truth: real layouts with a few bytes changed, or cut.
    #[test]
    fn damaged_messages_never_panic(
        entry in entries(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode(MESSAGE_NEW, &entry);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        decode_all(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        decode_all(&bytes);
    }

    #[test]
    fn a_message_cut_anywhere_is_malformed(entry in entries(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(MESSAGE_NEW, &entry);
        let cut = 1 + cut.index(bytes.len() - 1);
        let decoded = decode_all(&bytes[..cut]);
        prop_assert_eq!(decoded.len(), 1);
        prop_assert!(decoded[0].is_err());
    }
}

#[cfg(target_endian = "little")]
#[test]
fn a_recorded_event_decodes_to_what_conntrack_showed() {
    let digits: Vec<u8> = RECORDED.bytes().filter(u8::is_ascii_hexdigit).collect();
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    let decoded = decode_all(&bytes);
    let [Ok(Content::Entry(entry))] = decoded.as_slice() else { panic!("not one entry: {decoded:?}") };
    let endpoint = |text: &str| {
        let socket: std::net::SocketAddr = text.parse().unwrap();
        Endpoint::new(socket.ip(), socket.port())
    };
    // `conntrack -E` beside it: tcp 6 120 SYN_SENT src=10.48.0.2 dst=203.0.113.7 sport=40001 dport=443 [UNREPLIED]
    // src=203.0.113.7 dst=192.0.2.1 sport=443 dport=40001
    assert_eq!(entry.key.protocol, Protocol::TCP);
    assert_eq!(entry.key.zone, 0);
    assert_eq!(entry.key.source, endpoint("10.48.0.2:40001"));
    assert_eq!(entry.key.dialled, endpoint("203.0.113.7:443"));
    assert_eq!(entry.destination, endpoint("203.0.113.7:443"));
    assert_eq!(entry.translated, endpoint("192.0.2.1:40001"));
    assert_eq!((entry.replied, entry.assured), (false, false));
    assert_eq!((entry.tcp, entry.remaining_secs), (Some(ConntrackTcpState::SynSent), Some(120)));
    assert_ne!(entry.id, 0);
}

#[test]
fn a_dump_request_asks_for_everything_and_changes_nothing() {
    let request = dump_request(7, None);
    let message = Messages::new(&request).next().unwrap().unwrap();
    assert_eq!((message.kind, message.flags, message.sequence), (0x101, 0x301, 7));
    assert_eq!(message.payload, [0; 4]);
    let request = dump_request(8, Some(Only::both(Protocol::UDP)[1]));
    let message = Messages::new(&request).next().unwrap().unwrap();
    assert_eq!((message.kind, message.flags, message.sequence), (0x101, 0x301, 8));
    assert_eq!(message.payload.first(), Some(&10));
    let kinds: Vec<_> =
        Attributes::new(message.payload.get(4..).unwrap()).map(|attribute| attribute.unwrap().kind).collect();
    assert_eq!(kinds, [1, 25]);
}

#[test]
fn the_zone_of_the_original_direction_counts_when_there_is_no_other() {
    let mut body = vec![2, 0, 0, 0];
    for kind in [1u16, 2] {
        let mut inside = Vec::new();
        nested(1, &[(1, vec![10, 0, 0, 1]), (2, vec![10, 0, 0, 2])], &mut inside);
        nested(2, &[(1, vec![17])], &mut inside);
        attribute(3, &(kind * 100).to_be_bytes(), &mut inside);
        attribute(kind, &inside, &mut body);
    }
    assert_eq!(entry(&body).unwrap().key.zone, 100);
}
