//! A reservation of host-local: the name of its file up to the first NUL, then its content.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::host_local::{address, holder};
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 4] = [
    b"10.48.131.4\03f2b9c0de1a4f5b6c7d8e9f00112233445566778899aabbccddeeff001122334\r\neth0",
    b"fd00::4\0sandbox_1.a-b\neth0\n",
    b"10.0.0.1\0",
    b"last_reserved_ip.0\010.48.131.4",
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (name, content) = bytes.split_at(end);
    if let Some(address) = address(name) {
        assert_eq!(address.to_string().as_bytes(), name, "an address has one spelling");
    }
    let _holder = holder::parse(content.get(1..).unwrap_or_default());
});
