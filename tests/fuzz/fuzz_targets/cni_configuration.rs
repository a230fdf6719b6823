//! CNI configuration: `/etc/cni/net.d/*.conflist`.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::cni;
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 3] = [
    br#"{"cniVersion":"0.3.1","name":"gke-pod-network","plugins":[{"type":"ptp","ipam":{"type":"host-local","subnet":"10.48.131.0/24","routes":[{"dst":"0.0.0.0/0"}]}},{"type":"portmap"}]}"#,
    br#"{"name":"n","type":"bridge","ipam":{"type":"host-local","dataDir":"/run/x","ranges":[[{"subnet":"10.0.0.0/29","rangeStart":"10.0.0.2","rangeEnd":"10.0.0.5","gateway":"10.0.0.1"}],[{"subnet":"fd00::/64"}]]}}"#,
    br#"{"name":"n","plugins":[{"ipam":{"type":"host-local","ranges":[]}},{"ipam":{"type":"host-local","subnet":"10.0.0.0/8"}}]}"#,
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    let _parsed = cni::parse("10-fuzz.conflist", bytes);
});
