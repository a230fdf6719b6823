//! `/proc/net/stat/nf_conntrack`.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::conntrack_use::parse_stats;
use libfuzzer_sys::fuzz_target;

const SEED: &[u8] = b"entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n\
00000011  00000000 00000000 00000000 00000003 00000000 00000000 00000000 00000000 00000002 0000000b 00000000 00000000  00000000 00000000 00000000 00000000\n\
00000011  00000000 00000000 00000000 00000003 00000000 00000000 00000000 00000000 ffffffff 00000000 00000000 00000000  00000000 00000000 00000000 00000000\n";

fuzz_target!(init: sow([SEED]), |text: &str| {
    let _parsed = parse_stats(text);
});
