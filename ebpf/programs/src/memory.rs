//! Reading load-time constants and kernel memory.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated;

/// A field of a load-time constant. Volatile: the compiler only knows the placeholder, the verifier the real value.
macro_rules! constant {
    ($global:ident . $field:ident) => {
        // SAFETY: a field of a static, properly aligned.
        unsafe { core::ptr::read_volatile(&raw const $global.$field) }
    };
}
pub(crate) use constant;

/// Kernel memory that could not be read.
pub(crate) struct Unreadable;

/// Fills `target` from `offset` bytes behind `base`, and lends it.
///
/// The caller provides the room, uninitialised: clearing or moving it would be byte-wise calls in this target.
#[inline(always)]
pub(crate) fn read_into<T: Plain>(
    target: &mut MaybeUninit<T>,
    base: *const c_void,
    offset: u32,
) -> Result<&mut T, Unreadable> {
    let source = base.wrapping_byte_add(offset as usize);
    // SAFETY: the helper checks the source, and the target is as long as we say.
    match unsafe { generated::bpf_probe_read_kernel(target.as_mut_ptr().cast(), size_of::<T>() as u32, source) } {
        // SAFETY: the helper filled it, and any bytes are a `Plain` value.
        0 => Ok(unsafe { target.assume_init_mut() }),
        _ => Err(Unreadable),
    }
}

/// What is `offset` bytes behind `base`.
#[inline(always)]
pub(crate) fn read<T: Plain>(base: *const c_void, offset: u32) -> Result<T, Unreadable> {
    read_into(&mut MaybeUninit::uninit(), base, offset).copied()
}

/// What is `offset` bytes into a block that was read at once.
#[inline(always)]
pub(crate) fn within<T: Plain, const WORDS: usize>(block: &[u64; WORDS], offset: u32) -> T {
    // SAFETY: the agent gives only offsets that are inside and aligned for their type; the verifier, to which they are
    // constants, refuses the program otherwise.
    unsafe { *block.as_ptr().byte_add(offset as usize).cast::<T>() }
}

/// A word that all CPUs read and write, last writer wins. Aligned, so that each access is one instruction; volatile
/// rather than atomic, because LLVM has no atomic loads for the oldest instruction set.
#[repr(transparent)]
pub(crate) struct Shared(UnsafeCell<u64>);

// SAFETY: accesses are single instructions, and no reference to the inside is given out.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) const fn zero() -> Self {
        Self(UnsafeCell::new(0))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> u64 {
        // SAFETY: aligned and always initialised.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn set(&self, value: u64) {
        // SAFETY: as in `get`.
        unsafe { self.0.get().write_volatile(value) }
    }
}

/// Types of which any bytes are a value.
///
/// # Safety
/// Integers only, without padding.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for u8 {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: integers.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
