//! Addresses as words, the way they lie in memory: comparing or moving bytes would be calls in this target.

/// An IPv4 address as the words of an IPv4-mapped IPv6 one.
#[inline(always)]
pub(crate) fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// Words as they lie in memory, as bytes.
#[inline(always)]
pub(crate) fn octets(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: four words are sixteen bytes.
    unsafe { core::mem::transmute(words) }
}
