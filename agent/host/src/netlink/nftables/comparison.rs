//! What lets a comparison pass: of protocols, and of the numbers that `numgen` makes.

/// Whether a number fulfils a comparison (`enum nft_cmp_ops`) or is in a range, or out of it (`enum nft_range_ops`).
pub(super) fn compares(number: u8, operator: u32, first: u8, last: Option<u8>) -> bool {
    if let Some(last) = last {
        return (first..=last).contains(&number) == (operator == 0);
    }
    match operator {
        0 => number == first,
        1 => number != first,
        2 => number < first,
        3 => number <= first,
        4 => number > first,
        5 => number >= first,
        // Of what is not known all may be let pass.
        _ => true,
    }
}

/// Of the numbers that `numgen` makes, the part that a comparison lets pass. `nft` compares in network order where order
/// matters, and in the machine's where only equality does.
pub(super) fn part(modulus: u32, offset: u32, operator: u32, bytes: &[u8]) -> Option<f64> {
    let bytes: [u8; 4] = bytes.try_into().ok()?;
    let range = u64::from(offset)..u64::from(offset) + u64::from(modulus);
    if range.is_empty() || modulus == u32::MAX {
        return None;
    }
    let fits = |value: u32| range.contains(&u64::from(value));
    let (native, network) = (u32::from_ne_bytes(bytes), u32::from_be_bytes(bytes));
    let all = f64::from(modulus);
    if operator < 2 {
        let one = if fits(native) || fits(network) { 1.0 / all } else { 0.0 };
        return Some(if operator == 0 { one } else { 1.0 - one });
    }
    // With an end: how many of them are below it.
    let below =
        |value: u64| f64::from(u32::try_from(value.saturating_sub(range.start)).unwrap_or(u32::MAX).min(modulus));
    let end = u64::from(network);
    Some(match operator {
        2 => below(end) / all,
        3 => below(end + 1) / all,
        4 => 1.0 - below(end + 1) / all,
        5 => 1.0 - below(end) / all,
        _ => return None,
    })
}
