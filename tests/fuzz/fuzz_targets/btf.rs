//! Types of a kernel: `/sys/kernel/btf/vmlinux`.
#![no_main]

use headroom_fuzz::{ask, sow};
use headroom_host::btf::Btf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: sow([&*headroom_fuzz::Btf::kernel().bytes()]), |bytes: &[u8]| {
    if let Ok(btf) = Btf::parse(bytes.to_vec()) {
        ask(&btf);
    }
});
