//! Which item goes into which shard, and where: a pure function of the plan.

use crate::rng::{Purpose, SampleRng};

/// The items in the order of their rows, cut into shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Item at each position.
    order: Vec<u32>,
    /// Position at which each shard starts, and the end.
    starts: Vec<usize>,
}

impl Layout {
    /// Lays `n_items` out in `n_shards` shards of about equal weight; no shard is empty, so there are never more
    /// shards than items.
    ///
    /// `seed` permutes the items; `None` keeps their order. `weight` is an item's size in any unit.
    pub fn new(
        n_items: u32,
        n_shards: u64,
        seed: Option<u64>,
        weight: impl Fn(u32) -> u64,
    ) -> Self {
        Self::of_order(order(n_items, seed), n_shards, weight)
    }

    /// The same of items whose order is known.
    pub fn of_order(order: Vec<u32>, n_shards: u64, weight: impl Fn(u32) -> u64) -> Self {
        let n_shards = usize::try_from(n_shards)
            .unwrap_or(usize::MAX)
            .clamp(1, order.len().max(1));
        let total: u128 = order.iter().map(|&item| u128::from(weight(item))).sum();
        let mut starts = vec![0];
        let (mut position, mut sum) = (0, 0_u128);
        for shard in 1..n_shards {
            let target = total * shard as u128 / n_shards as u128;
            let earliest = starts[shard - 1] + 1;
            let latest = order.len() - (n_shards - shard);
            while position < earliest || (position < latest && sum < target) {
                sum += u128::from(weight(order[position]));
                position += 1;
            }
            starts.push(position);
        }
        starts.push(order.len());
        Self { order, starts }
    }

    /// Number of shards.
    pub fn n_shards(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// The items of a shard in the order of their rows; none if there is no such shard.
    pub fn shard(&self, shard: u64) -> &[u32] {
        let bounds = usize::try_from(shard)
            .ok()
            .and_then(|shard| self.starts.get(shard..shard + 2));
        bounds.map_or(&[], |bounds| &self.order[bounds[0]..bounds[1]])
    }
}

/// Permuted with one stream for the whole list.
fn order(n_items: u32, seed: Option<u64>) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n_items).collect();
    if let Some(seed) = seed {
        shuffle(&mut order, &mut SampleRng::new(seed, 0, 0, Purpose::Layout));
    }
    order
}

/// From the end as Fisher and Yates do.
pub(crate) fn shuffle(order: &mut [u32], rng: &mut SampleRng) {
    for last in (1..order.len()).rev() {
        // `below(last + 1)` is at most `last`, so it fits.
        order.swap(last, rng.below(last as u64 + 1) as usize);
    }
}

/// So many shards of `shard_bytes` take `bytes`, rounded up.
pub(crate) fn n_shards(bytes: u64, shard_bytes: u64, n_items: u64) -> u64 {
    bytes.div_ceil(shard_bytes.max(1)).clamp(1, n_items.max(1))
}

/// Evenly spaced items, to measure how large the others will get.
pub(crate) fn evenly_spaced(n_items: u32, n_wanted: u32) -> Vec<u32> {
    let n_wanted = n_wanted.min(n_items);
    // The middle of each of `n_wanted` equal stretches.
    let middle = |i: u64| ((2 * i + 1) * u64::from(n_items) / (2 * u64::from(n_wanted))) as u32;
    (0..u64::from(n_wanted)).map(middle).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_item_is_in_one_shard_and_no_shard_is_empty(
            weights in proptest::collection::vec(0_u64..1000, 1..200),
            n_shards in 1_u64..40,
            seed in proptest::option::of(0_u64..9),
        ) {
            let n_items = weights.len() as u32;
            let layout = Layout::new(n_items, n_shards, seed, |item| weights[item as usize]);
            prop_assert_eq!(layout.n_shards(), n_shards.min(u64::from(n_items)));
            let mut all = Vec::new();
            for shard in 0..layout.n_shards() {
                prop_assert!(!layout.shard(shard).is_empty());
                all.extend_from_slice(layout.shard(shard));
            }
            prop_assert!(layout.shard(layout.n_shards()).is_empty());
            if seed.is_none() {
                prop_assert!(all.is_sorted());
            }
            all.sort_unstable();
            prop_assert_eq!(all, (0..n_items).collect::<Vec<_>>());
        }

        #[test]
        fn samples_are_distinct_and_sorted(n_items in 0_u32..5000, n_wanted in 0_u32..100) {
            let sample = evenly_spaced(n_items, n_wanted);
            prop_assert_eq!(sample.len() as u32, n_wanted.min(n_items));
            prop_assert!(sample.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(sample.iter().all(|&item| item < n_items));
        }
    }

    #[test]
    fn shards_weigh_about_the_same() {
        let layout = Layout::new(1000, 10, Some(0), |item| u64::from(item % 7) + 1);
        for shard in 0..10 {
            let weight: u64 = layout
                .shard(shard)
                .iter()
                .map(|item| u64::from(item % 7) + 1)
                .sum();
            assert!((390..=410).contains(&weight), "{weight}");
        }
    }

    #[test]
    fn the_permutation_never_changes() {
        assert_eq!(order(10, None), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(order(10, Some(0)), GOLDEN);
        assert_ne!(order(10, Some(1)), GOLDEN);
    }

    #[test]
    fn numbers_of_shards() {
        assert_eq!(n_shards(0, 256, 5), 1);
        assert_eq!(n_shards(256, 256, 5), 1);
        assert_eq!(n_shards(257, 256, 5), 2);
        assert_eq!(n_shards(1 << 40, 256, 5), 5);
    }

    /// Computed once with this code; existing sets were laid out by it.
    const GOLDEN: [u32; 10] = [9, 5, 3, 7, 4, 1, 0, 6, 2, 8];
}
