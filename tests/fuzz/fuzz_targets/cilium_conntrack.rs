//! Entries of Cilium's conntrack map, one after the other: 14 bytes of a key, 56 of a value.
#![no_main]

use headroom_core::observe::CiliumHairpin;
use headroom_fuzz::sow;
use headroom_host::source::cilium_conntrack::Halves;
use headroom_host::source::cilium_conntrack::layout::{KEY_BYTES, VALUE_BYTES};
use libfuzzer_sys::fuzz_target;

/// Both entries of a pod's connection to itself.
fn seed() -> Vec<u8> {
    let half = |direction: u8, flags: u8| {
        let mut entry = vec![169, 254, 42, 1, 10, 244, 1, 160, 0, 80, 169, 224, 6, direction];
        entry.resize(KEY_BYTES + VALUE_BYTES, 0);
        entry[KEY_BYTES + 36] = flags;
        entry[KEY_BYTES + 38] = 5;
        entry
    };
    [half(0, 0x1a), half(1, 0x1b)].concat()
}

/// A seed that is refused would teach the fuzzer little.
fn begin() {
    let seed = seed();
    assert_eq!(pairs(&seed).len(), 1);
    sow([&*seed]);
}

fn pairs(bytes: &[u8]) -> Vec<CiliumHairpin> {
    let mut halves = Halves::default();
    for entry in bytes.chunks_exact(KEY_BYTES + VALUE_BYTES) {
        if let Some((key, value)) = entry.split_first_chunk::<KEY_BYTES>()
            && let Some(value) = value.first_chunk::<VALUE_BYTES>()
        {
            halves.see(key, value);
        }
    }
    halves.pairs()
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    assert!(pairs(bytes).len() <= bytes.len() / (KEY_BYTES + VALUE_BYTES));
});
