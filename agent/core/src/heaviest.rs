//! Who has most, in bounded memory.
//!
//! Exact while there are at most [`ROOM`] keys. Beyond that the smallest are folded (Misra and Gries; merged as by Agarwal and
//! others, "Mergeable Summaries"): what is listed then has at least its count, and at most [`Heaviest::undercount`] more.

use std::collections::BTreeMap;

/// Keys kept at most; when there are as many, the smaller half goes.
pub const ROOM: usize = 4096;

/// Counts by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heaviest<K> {
    counts: BTreeMap<K, u64>,
    total: u64,
    undercount: u64,
}

impl<K> Default for Heaviest<K> {
    fn default() -> Self {
        Self { counts: BTreeMap::new(), total: 0, undercount: 0 }
    }
}

impl<K: Ord + Copy> Heaviest<K> {
    /// Adds to a key's count.
    pub fn add(&mut self, key: K, count: u64) {
        if count == 0 {
            return;
        }
        self.total = self.total.saturating_add(count);
        let held = self.counts.entry(key).or_default();
        *held = held.saturating_add(count);
        if self.counts.len() > ROOM {
            self.fold();
        }
    }

    /// Takes the middle count off every key; the smaller half is gone then.
    fn fold(&mut self) {
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        let (_, middle, _) = counts.select_nth_unstable(ROOM / 2);
        let middle = *middle;
        self.undercount = self.undercount.saturating_add(middle);
        self.counts.retain(|_, count| {
            *count = count.saturating_sub(middle);
            *count > 0
        });
    }

    /// The largest, largest first; equal ones in the order of their keys.
    pub fn top(&self, how_many: usize) -> Vec<(K, u64)> {
        let mut all: Vec<(K, u64)> = self.counts.iter().map(|(key, count)| (*key, *count)).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(how_many);
        all
    }

    /// The sum over all keys, folded ones too: exact.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many keys there were; unknown once some were folded.
    pub fn distinct(&self) -> Option<usize> {
        (self.undercount == 0).then_some(self.counts.len())
    }

    /// By how much a listed count may be too small; 0 while all is exact.
    pub fn undercount(&self) -> u64 {
        self.undercount
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn at_the_bound_all_is_exact_and_one_key_more_folds_the_small_ones() {
        let mut heaviest = Heaviest::default();
        for key in 0..ROOM {
            heaviest.add(key, if key == 7 { 1000 } else { 1 });
        }
        assert_eq!((heaviest.distinct(), heaviest.undercount()), (Some(ROOM), 0));
        assert_eq!(heaviest.top(2), [(7, 1000), (0, 1)]);
        heaviest.add(ROOM, 1);
        assert_eq!((heaviest.distinct(), heaviest.undercount()), (None, 1));
        assert_eq!(heaviest.top(2), [(7, 999)]);
        assert_eq!(heaviest.total(), 1000 + u64::try_from(ROOM).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Exercises the promise of the sketch. If this fails, somebody is accused of more than they have.
        #[test]
        fn a_count_is_never_too_large_and_never_smaller_than_promised(
            adds in prop::collection::vec((0_u32..20_000, 1_u64..50), 0..12_000),
        ) {
            let (mut heaviest, mut truth) = (Heaviest::default(), BTreeMap::<u32, u64>::new());
            for (key, count) in adds {
                heaviest.add(key, count);
                *truth.entry(key).or_default() += count;
            }
            prop_assert_eq!(heaviest.total(), truth.values().sum::<u64>());
            let listed: BTreeMap<u32, u64> = heaviest.top(usize::MAX).into_iter().collect();
            prop_assert!(listed.len() <= ROOM);
            for (key, count) in truth {
                let said = listed.get(&key).copied().unwrap_or(0);
                prop_assert!(said <= count && count <= said + heaviest.undercount());
            }
        }
    }
}
