//! Counters that other CPUs add to at the same time.

use core::arch::asm;

/// Adds one.
///
/// # Safety
/// `counter` points to an aligned counter in a map value.
#[inline(always)]
pub(crate) unsafe fn add_one(counter: *mut u64) {
    // SAFETY: by contract.
    unsafe { add(counter, 1) };
}

/// Takes one away.
///
/// # Safety
/// As for [`add_one`].
#[inline(always)]
pub(crate) unsafe fn take_one(counter: *mut u64) {
    // SAFETY: by contract.
    unsafe { add(counter, u64::MAX) };
}

/// Adds a number, with wrapping.
///
/// In assembly, because Rust gives `AtomicU64::fetch_add` only to targets that can compare and swap, which the bpf target
/// does not claim. This form, which does not fetch, is an instruction of every kernel.
///
/// # Safety
/// As for [`add_one`].
#[inline(always)]
unsafe fn add(counter: *mut u64, number: u64) {
    // SAFETY: by contract; the instruction touches nothing but the counter.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {number}", counter = in(reg) counter, number = in(reg) number, options(nostack))
    };
}
