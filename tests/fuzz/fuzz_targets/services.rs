//! Lines of `/proc/net/ip_vs`, entries of Cilium's maps of Services, and its settings.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::services::cilium::{KEY_V4, KEY_V6, VALUE, configured_range, node_port};
use headroom_host::source::services::ipvs::service;
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 5] = [
    b"TCP  C0000201:7580 rr ",
    b"UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:7558 rr ",
    b"#define NODEPORT_PORT_MAX 24767\n#define NODEPORT_PORT_MIN 22000\n",
    &[0, 0, 0, 0, 0x75, 0x80, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7, 0, 2, 0, 0, 0],
    &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x75, 0x80, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7, 0, 2, 0, 0, 0],
];

/// A seed that is refused would teach the fuzzer little.
fn begin() {
    let [tcp, udp, settings, v4, v6] = SEEDS;
    assert!(configured_range(settings).is_some());
    assert!([tcp, udp].into_iter().all(|line| service(line).is_some()));
    for (entry, size) in [(v4, KEY_V4), (v6, KEY_V6)] {
        let (key, value) = entry.split_at(size);
        assert!(node_port(key, value.try_into().expect("a value is behind the key")).is_some());
    }
    sow(SEEDS);
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let _service = service(bytes);
    let _range = configured_range(bytes);
    for size in [KEY_V4, KEY_V6] {
        let Some((key, rest)) = bytes.split_at_checked(size) else { continue };
        if let Some(value) = rest.first_chunk::<VALUE>() {
            let ports = node_port(key, value).into_iter().flatten().flatten();
            ports.for_each(|(_, port)| assert_ne!(port, 0));
        }
    }
});
