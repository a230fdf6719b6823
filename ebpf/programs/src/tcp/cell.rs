//! What is known of a socket by its address alone.

use core::ffi::c_void;

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use headroom_ebpf_common::tcp::{CELL_BITS, CELL_PHASE_BITS, SOCKET_CELLS, dialled_slot};

use crate::memory::Shared;

#[map]
static TCP_SOCKETS: Array<Shared> = Array::with_max_entries(SOCKET_CELLS, 0);

/// A socket's cell. A predecessor at the same address is no danger: the first event of either kind of connection writes
/// the cell, and the last thing that happens to a socket clears it.
pub(super) struct Cell {
    /// The address as a cell holds it.
    whose: u64,
    place: Option<*mut Shared>,
}

impl Cell {
    #[inline(always)]
    pub(super) fn of(sock: *const c_void) -> Self {
        let address = sock as u64 >> 3;
        // Fibonacci hashing: the uppermost bits are the best.
        let index = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SOCKET_CELLS.ilog2());
        Self { whose: address << CELL_BITS, place: TCP_SOCKETS.get_ptr_mut(index as u32) }
    }

    /// The code of this socket; 0 if nothing is known.
    #[inline(always)]
    pub(super) fn code(&self) -> u64 {
        let Some(place) = self.place else { return 0 };
        // SAFETY: the map gave a live, aligned value.
        let held = unsafe { (*place).get() };
        let code = held ^ self.whose;
        if code >> CELL_BITS == 0 { code } else { 0 }
    }

    #[inline(always)]
    fn write(&self, value: u64) {
        if let Some(place) = self.place {
            // SAFETY: the map gave a live, aligned value.
            unsafe { (*place).set(value) };
        }
    }

    #[inline(always)]
    pub(super) fn set(&self, code: u64) {
        self.write(self.whose | code);
    }

    #[inline(always)]
    pub(super) fn clear(&self) {
        self.write(0);
    }
}

/// How far a socket that dialled has come.
#[inline(always)]
pub(super) fn phase(code: u64) -> u64 {
    code & ((1 << CELL_PHASE_BITS) - 1)
}

/// The same socket, further on.
#[inline(always)]
pub(super) fn in_phase(code: u64, phase: u64) -> u64 {
    code >> CELL_PHASE_BITS << CELL_PHASE_BITS | phase
}

/// The entry of a code, if it is one of a socket that dialled.
#[inline(always)]
pub(super) fn slot(code: u64) -> Option<u32> {
    dialled_slot(code)
}
