//! In which order an epoch visits the samples: a pure function of (seed, epoch, position).
//!
//! A *sample id* is `index in the split * repeated_sampling + repetition`; an epoch visits every id exactly once, so
//! each sample comes up `repeated_sampling` times, each time with randomness of its own.

use std::sync::Arc;

use crate::config::OrderKind;
use crate::rng::{Purpose, SampleRng};

/// Samples stored side by side, as a row group holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Index of its first sample in the split.
    pub first_sample: u64,
    /// Samples in it.
    pub n_samples: u64,
}

/// The order of all epochs of a run.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    kind: OrderKind,
    n_ids: u64,
    repeats: u64,
    groups: Arc<[Group]>,
    window_groups: usize,
}

impl Order {
    /// For `n_samples` visited `repeats` times an epoch; `groups` and `window_groups` matter to [`OrderKind::Blocks`]
    /// alone. `None` if `n_samples * repeats` exceeds 2^62 or the groups do not hold all samples.
    pub fn new(
        seed: u64,
        kind: OrderKind,
        n_samples: u64,
        repeats: u64,
        groups: Vec<Group>,
        window_groups: usize,
    ) -> Option<Self> {
        let n_ids = n_samples.checked_mul(repeats).filter(|&n| n <= 1 << 62)?;
        let groups: Arc<[Group]> = groups
            .into_iter()
            .filter(|group| group.n_samples > 0)
            .collect();
        let complete = groups
            .iter()
            .try_fold(0u64, |sum, group| sum.checked_add(group.n_samples))
            == Some(n_samples);
        if kind == OrderKind::Blocks && !complete {
            return None;
        }
        Some(Self {
            seed,
            kind,
            n_ids,
            repeats,
            groups,
            window_groups: window_groups.max(1),
        })
    }

    /// Sample ids an epoch visits.
    pub fn n_ids(&self) -> u64 {
        self.n_ids
    }

    /// Visits of each sample in an epoch.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// The order of one epoch.
    pub fn epoch(&self, epoch: u64) -> EpochOrder {
        let permutation = |n, part| {
            Permutation::new(
                n,
                &mut SampleRng::new(self.seed, epoch, part, Purpose::Order),
            )
        };
        let plan = match self.kind {
            OrderKind::Sequential => Plan::Sequential,
            OrderKind::Full => Plan::Full(permutation(self.n_ids, 0)),
            OrderKind::Blocks => {
                let groups = permutation(self.groups.len() as u64, 0);
                let mut start = 0;
                let windows = (0..self.groups.len())
                    .step_by(self.window_groups)
                    .zip(1..)
                    .map(|(first_group, part)| {
                        let n_ids = self
                            .window(&groups, first_group)
                            .map(|g| g.n_samples)
                            .sum::<u64>()
                            * self.repeats;
                        let window = Window {
                            start,
                            first_group,
                            ids: permutation(n_ids, part),
                        };
                        start += n_ids;
                        window
                    })
                    .collect();
                Plan::Blocks { groups, windows }
            }
        };
        EpochOrder {
            order: self.clone(),
            plan,
        }
    }

    /// The groups of the window whose first one stands at `first_group` of the permuted groups.
    fn window<'a>(
        &'a self,
        groups: &'a Permutation,
        first_group: usize,
    ) -> impl Iterator<Item = &'a Group> {
        let end = (first_group + self.window_groups).min(self.groups.len());
        (first_group..end).filter_map(|at| self.groups.get(groups.apply(at as u64) as usize))
    }
}

/// The order of one epoch.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    order: Order,
    plan: Plan,
}

#[derive(Debug, Clone)]
enum Plan {
    Sequential,
    Full(Permutation),
    Blocks {
        groups: Permutation,
        windows: Vec<Window>,
    },
}

/// Groups shuffled together.
#[derive(Debug, Clone)]
struct Window {
    /// Position of its first sample in the epoch.
    start: u64,
    /// Place of its first group among the permuted groups.
    first_group: usize,
    ids: Permutation,
}

impl EpochOrder {
    /// The sample id at `position`, which lies in `[0, n_ids)`.
    pub fn sample(&self, position: u64) -> u64 {
        match &self.plan {
            Plan::Sequential => position,
            Plan::Full(permutation) => permutation.apply(position),
            Plan::Blocks { groups, windows } => {
                let at = windows
                    .partition_point(|window| window.start <= position)
                    .saturating_sub(1);
                let Some(window) = windows.get(at) else {
                    return position;
                };
                let mut within = window.ids.apply(position - window.start);
                for group in self.order.window(groups, window.first_group) {
                    let n_ids = group.n_samples * self.order.repeats;
                    if within < n_ids {
                        return group.first_sample * self.order.repeats + within;
                    }
                    within -= n_ids;
                }
                position
            }
        }
    }
}

/// A keyed permutation of `[0, n)` in constant memory: a Feistel network over the next even power of two, walked along
/// its cycles until it lands inside (under four steps on average).
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

/// Four rounds are secure for ideal round functions; twice that also mixes the few bits of small sets well.
const ROUNDS: usize = 8;

impl Permutation {
    /// The permutation that the next numbers of `rng` choose; `n` at most 2^62.
    pub fn new(n: u64, rng: &mut SampleRng) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self {
            n,
            half_bits: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|_| rng.next_u64()),
        }
    }

    /// Where `at` goes; `at` itself if it lies outside `[0, n)`.
    pub fn apply(&self, at: u64) -> u64 {
        if at >= self.n {
            return at;
        }
        let mut at = at;
        loop {
            at = self.feistel(at);
            if at < self.n {
                return at;
            }
        }
    }

    fn feistel(&self, at: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (at >> self.half_bits, at & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// Finaliser of SplitMix64: each bit of the input flips about half of the output's.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Endless stream of sample ids that stand in for the bad sample at `position` of an epoch.
pub fn substitutes(seed: u64, epoch: u64, position: u64, n_ids: u64) -> impl Iterator<Item = u64> {
    let mut rng = SampleRng::new(seed, epoch, position, Purpose::Substitute);
    std::iter::repeat_with(move || rng.below(n_ids))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn groups(sizes: &[u64]) -> Vec<Group> {
        let mut first_sample = 0;
        let group = |&n_samples: &u64| {
            let group = Group {
                first_sample,
                n_samples,
            };
            first_sample += n_samples;
            group
        };
        sizes.iter().map(group).collect()
    }

    fn order(kind: OrderKind, n: u64, repeats: u64) -> Order {
        Order::new(11, kind, n, repeats, Vec::new(), 1).unwrap()
    }

    fn ids(order: &Order, epoch: u64) -> Vec<u64> {
        let epoch = order.epoch(epoch);
        (0..order.n_ids()).map(|p| epoch.sample(p)).collect()
    }

    proptest! {
        #[test]
        fn every_size_is_permuted(n in 1u64..3000, seed: u64) {
            let permutation = Permutation::new(n, &mut SampleRng::new(seed, 0, 0, Purpose::Order));
            let mut seen = vec![false; n as usize];
            for at in 0..n {
                prop_assert!(!std::mem::replace(&mut seen[permutation.apply(at) as usize], true));
            }
        }

        #[test]
        fn huge_sizes_stay_in_range_and_do_not_collide(n in (1u64 << 32)..(1 << 62), seed: u64) {
            let permutation = Permutation::new(n, &mut SampleRng::new(seed, 0, 0, Purpose::Order));
            let images: std::collections::HashSet<_> = (0..500).map(|i| permutation.apply(n / 500 * i)).collect();
            prop_assert_eq!(images.len(), 500);
            prop_assert!(images.iter().all(|&image| image < n));
        }

        #[test]
        fn blocks_visit_everything_once(
            sizes in proptest::collection::vec(0u64..40, 1..30), repeats in 1u64..4, window in 1usize..6, epoch: u64,
        ) {
            let n: u64 = sizes.iter().sum();
            let order = Order::new(3, OrderKind::Blocks, n, repeats, groups(&sizes), window).unwrap();
            let mut ids = ids(&order, epoch);
            ids.sort_unstable();
            prop_assert!(ids.into_iter().eq(0..n * repeats));
        }
    }

    #[test]
    fn blocks_stay_within_their_window() {
        let order = Order::new(5, OrderKind::Blocks, 1000, 2, groups(&[50; 20]), 4).unwrap();
        let ids = ids(&order, 1);
        for window in ids.chunks(4 * 50 * 2) {
            let groups: std::collections::BTreeSet<_> = window.iter().map(|id| id / 100).collect();
            assert_eq!(groups.len(), 4);
            let first: std::collections::BTreeSet<_> =
                window[..60].iter().map(|id| id / 100).collect();
            assert_eq!(first.len(), 4, "a window is not shuffled");
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let full = order(OrderKind::Full, 1000, 1);
        assert_eq!(ids(&full, 0), ids(&full, 0));
        assert_ne!(ids(&full, 0), ids(&full, 1));
        let other = Order::new(12, OrderKind::Full, 1000, 1, Vec::new(), 1).unwrap();
        assert_ne!(ids(&full, 0), ids(&other, 0));
        assert!(
            ids(&order(OrderKind::Sequential, 50, 2), 7)
                .into_iter()
                .eq(0..100)
        );
    }

    #[test]
    fn shuffles_look_random() {
        // Of 10,000 places: fixed points (1 expected), neighbours that stay neighbours (2 expected), and the rank
        // correlation of place and sample (standard deviation 0.01).
        let n = 10_000u64;
        for epoch in 0..5 {
            let ids = ids(&order(OrderKind::Full, n, 1), epoch);
            let fixed = ids
                .iter()
                .enumerate()
                .filter(|&(at, &id)| at as u64 == id)
                .count();
            let neighbours = ids
                .windows(2)
                .filter(|pair| pair[0].abs_diff(pair[1]) == 1)
                .count();
            let mean = (n - 1) as f64 / 2.0;
            let covariance: f64 = ids
                .iter()
                .enumerate()
                .map(|(at, &id)| (at as f64 - mean) * (id as f64 - mean))
                .sum();
            let correlation = covariance / ((n as f64).powi(3) / 12.0);
            assert!(
                fixed < 8 && neighbours < 12 && correlation.abs() < 0.04,
                "{fixed} {neighbours} {correlation}"
            );
        }
    }

    #[test]
    fn small_sets_reach_all_their_orders_about_evenly() {
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..24_000 {
            *counts
                .entry(ids(&order(OrderKind::Full, 4, 1), epoch))
                .or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(
            counts.values().all(|n| (800..1200).contains(n)),
            "{counts:?}"
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Order::new(0, OrderKind::Full, 1 << 40, 1 << 40, Vec::new(), 1).is_none());
        assert!(Order::new(0, OrderKind::Blocks, 10, 1, groups(&[5, 4]), 1).is_none());
        assert!(Order::new(0, OrderKind::Blocks, 10, 1, groups(&[5, 5]), 1).is_some());
    }

    #[test]
    fn substitutes_are_fixed_by_their_place() {
        let first: Vec<_> = substitutes(1, 2, 3, 100).take(5).collect();
        assert!(first.iter().all(|&id| id < 100));
        assert_eq!(first, substitutes(1, 2, 3, 100).take(5).collect::<Vec<_>>());
        assert_ne!(first, substitutes(1, 2, 4, 100).take(5).collect::<Vec<_>>());
    }
}
