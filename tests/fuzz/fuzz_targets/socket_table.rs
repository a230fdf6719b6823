//! Lines of `/proc/net/tcp` and `tcp6`, through the reader that bounds them.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::lines::{Lines, Step};
use headroom_host::source::sockets::table::parse_line;
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 2] = [
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0000000000000000 100 0 0 10 0\n   1: 0200000A:9C40 077100CB:01BB 01 00000000:00000000 02:000A7214 00000000     0        0 5678 2 0000000000000000 20 4 30 10 -1\n   2: 0200000A:9C41 077100CB:01BB 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0000000000000000\n",
    b"   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n   1: 0000000000000000FFFF00000200000A:0050 0000000000000000FFFF0000077100CB:9C40 02 00000001:00000000 01:00000013 00000000     0        0 0 1 0\n",
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    let mut lines = Lines::new(bytes, 1 << 20);
    loop {
        match lines.step() {
            Ok(Step::Line(line)) => {
                let _row = parse_line(line);
            }
            Ok(Step::TooLong) => {}
            Ok(Step::Limit | Step::End) | Err(_) => break,
        }
    }
});
