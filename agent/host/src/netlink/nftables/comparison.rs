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

/// Of the numbers that `numgen` makes, the part that is in a set of ranges (which do not overlap each other).
pub(super) fn part_within(modulus: u32, offset: u32, ranges: &[(u32, u32)]) -> Option<f64> {
    // What is above `u32::MAX` it does not make, and the kernel refuses 0.
    let last = offset.checked_add(modulus.checked_sub(1)?)?;
    let inside = ranges.iter().map(|(from, to)| {
        let (from, to) = ((*from).max(offset), (*to).min(last));
        if from <= to { f64::from(to - from) + 1.0 } else { 0.0 }
    });
    // More than all there are only ranges that overlap hold, which the kernel has none of.
    Some((inside.sum::<f64>() / f64::from(modulus)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises a map with a key for each number. If this fails, a rule that takes every packet is told to let some pass.
    #[test]
    fn of_the_numbers_that_are_made_a_set_holds_a_part() {
        assert_eq!(part_within(2, 0, &[(0, 0), (1, 1)]), Some(1.0));
        assert_eq!(part_within(4, 0, &[(0, 0), (7, 9)]), Some(0.25));
        assert_eq!(part_within(4, 10, &[(0, 11)]), Some(0.5));
        assert_eq!(part_within(4, 0, &[]), Some(0.0));
        assert_eq!(part_within(u32::MAX, 0, &[(0, u32::MAX)]), Some(1.0));
        assert_eq!(part_within(u32::MAX, 2, &[]), None);
        assert_eq!(part_within(2, 0, &[(0, 9), (0, 9)]), Some(1.0));
        assert_eq!(part_within(0, 0, &[(0, 0)]), None);
    }
}
