//! headroom's eBPF programs: one module per kernel subject, of the same name in every layer.
//!
//! They count in the kernel and never send an event per connection to user space. Only `agent/host/build.rs` builds them,
//! for the bpf target; on any other target this is an empty program, so that `cargo check --workspace` needs nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod address;
#[cfg(target_arch = "bpf")]
mod conntrack;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod memory;
#[cfg(target_arch = "bpf")]
mod tcp;

/// The kernel only lends its GPL-only helpers (`bpf_probe_read_kernel`) to programs with a compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier admits no program that could come here.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
