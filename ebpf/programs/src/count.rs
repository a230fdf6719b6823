//! Adding to counters that other CPUs add to at the same time.

use core::arch::asm;

/// Adds one.
///
/// In assembly, because Rust gives `AtomicU64::fetch_add` only to targets that can compare and swap, which the bpf target
/// does not claim. This form, which does not fetch, is an instruction of every kernel.
///
/// # Safety
/// `counter` points to an aligned counter in a map value.
#[inline(always)]
pub(crate) unsafe fn add_one(counter: *mut u64) {
    // SAFETY: by contract; the instruction touches nothing but the counter.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1u64, options(nostack))
    };
}
