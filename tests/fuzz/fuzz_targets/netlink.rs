//! Datagrams of conntrack netlink: messages, attributes, entries; and one message's payload by itself.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::netlink::conntrack::{content, entry, is_interrupted};
use headroom_host::netlink::message::Messages;
use libfuzzer_sys::fuzz_target;

/// A NEW event of a translated TCP flow, as a kernel sent it.
const RECORDED: &str = include_str!("../../../agent/host/src/netlink/conntrack/recorded_new_event.hex");

fn recorded() -> Vec<u8> {
    let digits: Vec<u8> = RECORDED.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("two digits");
    digits.chunks(2).map(byte).collect()
}

/// The end of a dump, an overrun, an error.
fn ends() -> Vec<u8> {
    let message = |kind: u16, flags: u16, payload: &[u8]| {
        let length = u32::try_from(16 + payload.len()).expect("seeds are short");
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0], payload]
            .concat()
    };
    [message(4, 0, &[]), message(2, 0x10, &(-1_i32).to_ne_bytes()), message(3, 2, &[0; 4])].concat()
}

fuzz_target!(init: sow([&*recorded(), &recorded()[16..], &ends(), &[recorded(), ends()].concat()]), |bytes: &[u8]| {
    for message in Messages::new(bytes).map_while(Result::ok) {
        let _content = (content(&message), is_interrupted(&message));
    }
    let _entry = entry(bytes);
});
