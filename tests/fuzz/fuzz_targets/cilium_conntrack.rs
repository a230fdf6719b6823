//! Entries of Cilium's conntrack maps, one after the other: 14 bytes of a key for IPv4, 38 for IPv6; 56 of a value.
#![no_main]

use std::collections::BTreeMap;

use headroom_core::known::Known;
use headroom_core::observe::CiliumHairpin;
use headroom_fuzz::sow;
use headroom_host::source::cilium_conntrack::halves::{Halves, MAX_HALVES, Pairs};
use headroom_host::source::cilium_conntrack::layout::{KEY_V4_BYTES, KEY_V6_BYTES, VALUE_BYTES};
use libfuzzer_sys::fuzz_target;

/// Both entries of a pod's connection to itself, from that address.
fn seed(own: &[u8], pod: &[u8]) -> Vec<u8> {
    let half = |direction: u8, flags: u8| {
        let key = [own, pod, &[0, 80, 169, 224, 6, direction]].concat();
        let mut value = [0; VALUE_BYTES];
        (value[36], value[38]) = (flags, 5);
        [&key[..], &value].concat()
    };
    [half(0, 0x1a), half(1, 0x1b)].concat()
}

/// A seed that is refused would teach the fuzzer little.
fn begin() {
    let (v4, v6) = (seed(&[169, 254, 42, 1], &[10, 244, 1, 160]), seed(&[0xfe; 16], &[0xfd; 16]));
    assert_eq!((pairs::<KEY_V4_BYTES>(&v4).len(), pairs::<KEY_V6_BYTES>(&v6).len()), (1, 1));
    sow([&*v4, &v6]);
}

fn pairs<const K: usize>(bytes: &[u8]) -> Vec<CiliumHairpin> {
    let mut halves = Halves::with_room(MAX_HALVES);
    // What a key has last is what it has when it is asked for again.
    let mut now = BTreeMap::new();
    for entry in bytes.chunks_exact(K + VALUE_BYTES) {
        if let Some((key, value)) = entry.split_first_chunk::<K>()
            && let Some(value) = value.first_chunk::<VALUE_BYTES>()
        {
            halves.see(key, value);
            now.insert(*key, *value);
        }
    }
    let mut pairs = Pairs::default();
    pairs.add(halves, |key| now.get(key).map_or(Known::Absent, |value| Known::Present(*value)));
    pairs.hairpins
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    assert!(pairs::<KEY_V4_BYTES>(bytes).len() <= bytes.len() / (KEY_V4_BYTES + VALUE_BYTES));
    assert!(pairs::<KEY_V6_BYTES>(bytes).len() <= bytes.len() / (KEY_V6_BYTES + VALUE_BYTES));
});
