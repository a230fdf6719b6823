//! Types of a module on top of a kernel's: two bytes say how long the kernel's are.
#![no_main]

use std::sync::Arc;

use headroom_fuzz::{ask, sow};
use headroom_host::btf::Btf;
use libfuzzer_sys::fuzz_target;

fn seed() -> Vec<u8> {
    let kernel = headroom_fuzz::Btf::kernel().bytes();
    let length = u16::try_from(kernel.len()).expect("seeds are short").to_ne_bytes();
    [&length[..], &kernel, &headroom_fuzz::Btf::module().bytes()].concat()
}

fuzz_target!(init: sow([&*seed()]), |bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let (kernel, module) = rest.split_at(usize::from(u16::from_ne_bytes(*length)).min(rest.len()));
    let Ok(kernel) = Btf::parse(kernel.to_vec()) else { return };
    if let Ok(btf) = Btf::parse_module(module.to_vec(), &Arc::new(kernel)) {
        ask(&btf);
    }
});
