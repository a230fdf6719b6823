//! Datagrams of `nf_tables` and `ipset`: tables, chains, rules with their expressions, elements; and what a walk makes of the rules.
#![no_main]

use headroom_core::observe::{RuleBackend, RuleFamily};
use headroom_fuzz::sow;
use headroom_host::netlink::ipset;
use headroom_host::netlink::message::Messages;
use headroom_host::netlink::nftables::glance::glance;
use headroom_host::netlink::nftables::rule::{SetInWords, rule};
use headroom_host::netlink::nftables::set::{Key, SetHead, set};
use headroom_host::netlink::nftables::{chain, elements, is_interrupted, raw_rule, table};
use headroom_host::rules::Chain;
use headroom_host::rules::source_nat::{Table, source_nat};
use libfuzzer_sys::fuzz_target;

/// An attribute.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).expect("seeds are short");
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn message(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    let payload = [&[2, 0, 0, 0][..], &attributes.concat()].concat();
    let length = u32::try_from(16 + payload.len()).expect("seeds are short");
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[2, 0, 1, 0, 0, 0, 0, 0, 0, 0], &payload].concat()
}

fn expression(name: &str, fields: &[Vec<u8>]) -> Vec<u8> {
    attribute(1, &[attribute(1, format!("{name}\0").as_bytes()), attribute(2, &fields.concat())].concat())
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    attribute(kind, &attribute(1, bytes))
}

/// `meta l4proto tcp numgen random mod 4 < 1 masquerade to :1024-29999 fully-random`, and rules that jump and look up.
fn rules() -> Vec<u8> {
    let masquerade = [
        expression("meta", &[number(2, 16), number(1, 1)]),
        expression("cmp", &[number(1, 1), number(2, 0), value(3, &[6])]),
        expression("numgen", &[number(1, 1), number(2, 4), number(3, 1), number(4, 0)]),
        expression("byteorder", &[number(1, 1), number(2, 1)]),
        expression("cmp", &[number(1, 1), number(2, 2), value(3, &[0, 0, 0, 1])]),
        expression("immediate", &[number(1, 1), value(2, &[4, 0])]),
        expression("immediate", &[number(1, 2), value(2, &[0x75, 0x2f])]),
        expression("masq", &[number(1, 0x12), number(2, 1), number(3, 2)]),
    ];
    let jump = attribute(2, &[number(1, 0xffff_fffd), attribute(2, b"here\0")].concat());
    let lookup = [
        expression("payload", &[number(1, 1), number(2, 1), number(3, 16), number(4, 4)]),
        expression(
            "bitwise",
            &[number(1, 1), number(2, 1), number(3, 4), value(4, &[255, 255, 0, 0]), value(5, &[0; 4])],
        ),
        expression("lookup", &[attribute(1, b"set\0"), number(2, 1), number(5, 1)]),
        expression("immediate", &[number(1, 0), attribute(2, &jump)]),
    ];
    let mut statistic = vec![0; 24];
    statistic[4..8].copy_from_slice(&(1_u32 << 30).to_ne_bytes());
    let mut nat = vec![0; 24];
    nat[0] = 1;
    nat[4] = 0x12;
    let compat = [
        expression("match", &[attribute(1, b"statistic\0"), number(2, 0), attribute(3, &statistic)]),
        expression("match", &[attribute(1, b"comment\0"), number(2, 0), attribute(3, b"a\0")]),
        expression("target", &[attribute(1, b"MASQUERADE\0"), number(2, 0), attribute(3, &nat)]),
    ];
    [&masquerade[..], &lookup, &compat]
        .map(|expressions| {
            let chain = attribute(2, b"here\0");
            message(10 << 8 | 6, &[chain, attribute(4, &expressions.concat()), attribute(7, &[0, 2, b'x', 0])])
        })
        .concat()
}

/// A dormant table, a chain at a hook, elements of a map, a listed ipset.
fn others() -> Vec<u8> {
    let table = message(10 << 8, &[attribute(1, b"nat\0"), number(2, 1)]);
    let hook = attribute(4, &[number(1, 4), number(2, 100)].concat());
    let head = message(10 << 8 | 3, &[attribute(1, b"nat\0"), attribute(3, b"out\0"), hook, attribute(7, b"nat\0")]);
    let verdict =
        attribute(2, &attribute(2, &[number(1, 0xffff_fffc), attribute(2, b"external-A-b/c/tcp/d\0")].concat()));
    // inet_proto . inet_service, a map; ipv4_addr, intervals.
    let map = message(10 << 8 | 9, &[attribute(2, b"service-nodeports\0"), number(3, 8), number(4, 12 << 6 | 13)]);
    let addresses = message(10 << 8 | 9, &[attribute(2, b"set\0"), number(3, 4), number(4, 7)]);
    let element = attribute(1, &[value(1, &[6, 0, 0, 0, 0x75, 0x80, 0, 0]), verdict, number(3, 1)].concat());
    let elements = message(10 << 8 | 12, &[attribute(2, b"service-nodeports\0"), attribute(3, &element)]);
    let port = attribute(7, &attribute(4, &[0x75, 0x80]));
    let set = message(6 << 8 | 7, &[attribute(2, b"KUBE-NODE-PORT-TCP\0"), attribute(8, &port)]);
    [table, head, map, elements, addresses, set].concat()
}

/// A seed that is refused would teach the fuzzer little.
fn begin() {
    let (rules, others) = (rules(), others());
    assert_eq!(feed(&rules), Seen { rules: 3, ..Seen::default() });
    assert_eq!(
        feed(&others),
        Seen { dormant: 1, chains: 1, sets: 2, in_words: 1, elements: 1, ports: 1, ..Seen::default() }
    );
    sow([&*rules, &others, &[&*rules, &others].concat()]);
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    feed(bytes);
});

/// What was understood of an input.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    dormant: usize,
    chains: usize,
    rules: usize,
    sets: usize,
    in_words: usize,
    elements: usize,
    ports: usize,
}

fn feed(bytes: &[u8]) -> Seen {
    let (mut found, mut seen) = (Vec::new(), Seen::default());
    // Elements are of the set that was seen last.
    let (mut head, mut keys) = (None, Vec::new());
    for message in Messages::new(bytes).map_while(Result::ok) {
        let _interrupted = is_interrupted(&message);
        seen.dormant += usize::from(table(&message).is_ok_and(|table| table.is_some_and(|table| table.dormant)));
        seen.chains += usize::from(chain(&message).is_ok_and(|chain| chain.is_some()));
        if let Ok(Some(another)) = set(&message) {
            seen.sets += 1;
            (head, keys) = (Some(another), Vec::new());
        }
        let _elements = elements(&message, |element| {
            seen.elements += 1;
            keys.push(Key::of(&element));
        });
        if !keys.is_empty() {
            seen.in_words += usize::from(head.as_ref().is_some_and(|set| set.in_words(keys.clone(), 16).is_some()));
        }
        let _ports = ipset::ports(&message, |_port| seen.ports += 1);
        if let Ok(Some(raw)) = raw_rule(&message) {
            let _glance = glance(&raw);
            let position = u32::try_from(found.len() + 1).expect("few rules fit");
            found.extend(rule(&raw, RuleFamily::Ip, position, &mut |set| SetInWords {
                words: Some(set.to_owned()),
                protocols: head.as_ref().and_then(|set| set.protocols(keys.clone())),
                numbers: head.as_ref().and_then(|set| set.numbers(keys.clone())),
                empty: head.is_some() && keys.is_empty(),
                fixed: head.as_ref().is_some_and(|set| set.fixed),
                registers: head.as_ref().map(SetHead::registers).unwrap_or_default(),
            }));
        }
    }
    seen.rules = found.len();
    let place = Table { backend: RuleBackend::Nftables, family: RuleFamily::Ip, name: "nat".to_owned() };
    let chains = [Chain { name: "here".to_owned(), at_hook: true, whole: true, rules: found }];
    for rule in source_nat(&place, &chains).rules {
        assert!(rule.probability >= 0.0 && rule.probability <= 1.0, "{rule:?}");
        assert!(rule.unreached.is_none() || rule.path.is_empty(), "{rule:?}");
    }
    seen
}
