//! Lines of `/proc/net/nf_conntrack`, through the reader that bounds them.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::conntrack::table::parse_line;
use headroom_host::source::lines::{Lines, Step};
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 4] = [
    b"ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.2 dst=203.0.113.7 sport=40000 dport=443 src=203.0.113.7 dst=192.0.2.1 sport=443 dport=1024 [ASSURED] mark=0 zone=0 use=2\n",
    b"ipv4     2 udp      17 28 src=10.0.0.2 dst=198.51.100.9 sport=5000 dport=53 [UNREPLIED] src=198.51.100.9 dst=192.0.2.1 sport=53 dport=1030 mark=0 zone=7 use=2\n",
    b"ipv6     10 icmpv6   58 29 src=fd00:0000:0000:0000:0000:0000:0000:0001 dst=fd00:0000:0000:0000:0000:0000:0000:0002 type=128 code=0 id=7 src=fd00:0000:0000:0000:0000:0000:0000:0002 dst=fd00:0000:0000:0000:0000:0000:0000:0001 type=129 code=0 id=7 mark=0 zone=0 use=2\n",
    b"ipv4     2 tcp      6 src=10.0.0.2 dst=203.0.113.7 sport=1 dport=2 packets=1 bytes=60 src=203.0.113.7 dst=10.0.0.2 sport=2 dport=1 packets=0 bytes=0 [OFFLOAD] mark=0 use=3\n",
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    let mut lines = Lines::new(bytes, 1 << 20);
    while let Ok(Step::Line(line)) = lines.step() {
        let _entry = parse_line(line);
    }
});
