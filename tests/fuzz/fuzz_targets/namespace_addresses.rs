//! `fib_trie` and `if_inet6` of a network namespace.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::namespaces::{of_fib_trie, of_if_inet6};
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 2] = [
    b"Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 10.48.131.0/24 2 0 2\n        |-- 10.48.131.4\n           /32 host LOCAL\n        |-- 10.48.131.255\n           /32 link BROADCAST\n",
    b"00000000000000000000000000000001 01 80 10 80       lo\nfd000000000000000000000000000004 02 40 00 80     eth0\nfe80000000000000a8bbccfffeddeeff 02 40 20 80     eth0\n",
];

fuzz_target!(init: sow(SEEDS), |text: &str| {
    let _addresses = (of_fib_trie(text), of_if_inet6(text));
});
