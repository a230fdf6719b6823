//! Statistics over conntrack netlink: counters of a CPU, the size of the table.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::netlink::conntrack_stats::{Content, content};
use headroom_host::netlink::message::Messages;
use libfuzzer_sys::fuzz_target;

/// A message of CPU 3, and one of the whole table.
fn seed() -> Vec<u8> {
    let message = |kind: u16, attributes: &[(u16, u32)]| {
        let body: Vec<u8> = attributes
            .iter()
            .flat_map(|(kind, value)| [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_be_bytes()].concat())
            .collect();
        let length = u32::try_from(20 + body.len()).expect("seeds are short");
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 3], &body].concat()
    };
    let cpu = message(0x104, &[(2, 1), (4, 2), (9, 3), (10, 4), (11, 5), (12, 6), (13, 7), (14, 8), (15, 9)]);
    [cpu, message(0x105, &[(1, 17), (2, 262_144)])].concat()
}

/// A seed that is refused would teach the fuzzer little.
fn begin() {
    let seed = seed();
    let read: Vec<_> = Messages::new(&seed).map(|message| content(&message.expect("it is whole"))).collect();
    assert!(matches!(read[..], [Ok(Content::Cpu(_)), Ok(Content::Size(_))]), "{read:?}");
    sow([&*seed]);
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    for message in Messages::new(bytes).map_while(Result::ok) {
        let _content = content(&message);
    }
});
