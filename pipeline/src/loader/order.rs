//! In which order an epoch visits the samples: a pure function of (seed, epoch, position).
//!
//! A *sample id* names one visit of a sample: ids number the visits through, sample after sample. Each id has
//! randomness of its own. An epoch visits every id once, or, of a part with a broken number of visits such as 1.5, every
//! first visit and a share of the last ones that changes from epoch to epoch.

use std::ops::Range;
use std::sync::Arc;

use crate::config::OrderKind;
use crate::rng::{Purpose, SampleRng};

/// Samples stored side by side, as a row group holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Index of its first sample in the source.
    pub first_sample: u64,
    /// Samples in it.
    pub n_samples: u64,
    /// Their pictures.
    pub n_pictures: u64,
    /// Bytes that reading it takes.
    pub bytes: u64,
}

/// Samples that are visited equally often, as those of one source of a mixture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Their number; the parts' samples are numbered through.
    pub n_samples: u64,
    /// Visits of each of them in an epoch, on average.
    pub visits: f64,
}

/// The order of all epochs of a run.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    kind: OrderKind,
    parts: Arc<[PartPlan]>,
    n_positions: u64,
    n_ids: u64,
    groups: Arc<[Group]>,
    window_groups: usize,
}

/// A part and what comes before it.
#[derive(Debug, Clone, Copy)]
struct PartPlan {
    first_sample: u64,
    n_samples: u64,
    first_position: u64,
    first_id: u64,
    /// Visits that every sample gets.
    whole: u64,
    /// Samples that get one visit more.
    extra: u64,
}

impl PartPlan {
    fn n_positions(&self) -> Option<u64> {
        self.n_samples
            .checked_mul(self.whole)?
            .checked_add(self.extra)
    }

    fn ids_per_sample(&self) -> u64 {
        self.whole + u64::from(self.extra > 0)
    }

    /// How many of the part's first `n` samples get one visit more, where they are spread evenly over the groups.
    fn extra_before(&self, n: u64) -> u64 {
        (u128::from(self.extra) * u128::from(n) / u128::from(self.n_samples.max(1))) as u64
    }

    /// The id of visit `visit` of the sample at `within`, counted in the part.
    fn id(&self, within: u64, visit: u64) -> u64 {
        self.first_id + within * self.ids_per_sample() + visit
    }
}

/// Samples of a part that are permuted by themselves: all of them, or those of a group.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    part: PartPlan,
    /// First sample, counted in the part.
    first: u64,
    n_samples: u64,
    /// Samples among them that get one visit more.
    extra: u64,
    /// Number that keys the choice of those.
    key: u64,
}

impl Stretch {
    fn n_positions(&self) -> u64 {
        self.n_samples * self.part.whole + self.extra
    }
}

impl Order {
    /// For the samples of `parts`, which `groups` hold, each within one part.
    ///
    /// * `window_groups`: groups that are shuffled together; matters to [`OrderKind::Blocks`], and for what is read
    ///   together to [`OrderKind::Sequential`].
    ///
    /// `None` if there are more than 2^62 visits, or the groups do not hold the samples one after the other.
    pub fn new(
        seed: u64,
        kind: OrderKind,
        parts: &[Part],
        groups: Vec<Group>,
        window_groups: usize,
    ) -> Option<Self> {
        let (mut n_samples, mut n_positions, mut n_ids) = (0u64, 0u64, 0u64);
        let mut plans = Vec::with_capacity(parts.len());
        for part in parts {
            let plan = PartPlan {
                first_sample: n_samples,
                n_samples: part.n_samples,
                first_position: n_positions,
                first_id: n_ids,
                whole: part.visits as u64,
                extra: (part.visits.fract() * part.n_samples as f64).round() as u64,
            };
            n_samples = n_samples.checked_add(plan.n_samples)?;
            n_positions = n_positions.checked_add(plan.n_positions()?)?;
            n_ids = plan
                .n_samples
                .checked_mul(plan.ids_per_sample())?
                .checked_add(n_ids)
                .filter(|&n| n <= 1 << 62)?;
            plans.push(plan);
        }
        let covered = groups.iter().try_fold(0u64, |next, group| {
            let end = group.first_sample.checked_add(group.n_samples)?;
            let within_one = plans
                .iter()
                .all(|part| part.first_sample <= group.first_sample || part.first_sample >= end);
            (group.first_sample == next && end > next && within_one).then_some(end)
        });
        (covered == Some(n_samples)).then_some(Self {
            seed,
            kind,
            parts: plans.into(),
            n_positions,
            n_ids,
            groups: groups.into(),
            window_groups: window_groups.max(1),
        })
    }

    /// Visits in an epoch.
    pub fn n_positions(&self) -> u64 {
        self.n_positions
    }

    /// Sample ids there are.
    pub fn n_ids(&self) -> u64 {
        self.n_ids
    }

    /// Which sample of the source an id is a visit of.
    pub fn index(&self, id: u64) -> u64 {
        let at = self.parts.partition_point(|part| part.first_id <= id);
        let Some(part) = self.parts[..at]
            .iter()
            .rfind(|part| part.n_samples * part.ids_per_sample() > 0)
        else {
            return id;
        };
        part.first_sample + (id - part.first_id) / part.ids_per_sample()
    }

    /// The groups; their places in it number them.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Number of the group that holds a sample of the source.
    pub fn group_of(&self, index: u64) -> usize {
        self.groups
            .partition_point(|group| group.first_sample <= index)
            .saturating_sub(1)
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
            OrderKind::Full => Plan::Full(permutation(self.n_positions, 0)),
            OrderKind::Blocks | OrderKind::Sequential => {
                let shuffled = self.kind == OrderKind::Blocks;
                let groups = shuffled.then(|| permutation(self.groups.len() as u64, 0));
                let mut start = 0;
                let windows = (0..self.groups.len())
                    .step_by(self.window_groups)
                    .zip(1..)
                    .map(|(first_group, part)| {
                        let n_positions = self
                            .window(groups.as_ref(), first_group)
                            .map(|group| self.stretch(group).n_positions())
                            .sum::<u64>();
                        let window = Window {
                            start,
                            first_group,
                            within: shuffled.then(|| permutation(n_positions, part)),
                        };
                        start += n_positions;
                        window
                    })
                    .collect();
                Plan::Windows { groups, windows }
            }
        };
        EpochOrder {
            order: self.clone(),
            epoch,
            plan,
        }
    }

    /// Endless stream of sample ids that stand in for the bad sample at `position` of an epoch.
    pub fn substitutes(&self, epoch: u64, position: u64) -> impl Iterator<Item = u64> + use<> {
        let mut rng = SampleRng::new(self.seed, epoch, position, Purpose::Substitute);
        let n_ids = self.n_ids;
        std::iter::repeat_with(move || rng.below(n_ids))
    }

    /// Numbers of the groups of the window whose first one stands at `first_group` of the epoch's groups.
    fn window(
        &self,
        groups: Option<&Permutation>,
        first_group: usize,
    ) -> impl Iterator<Item = usize> {
        let end = (first_group + self.window_groups).min(self.groups.len());
        (first_group..end).map(move |at| match groups {
            Some(permutation) => permutation.apply(at as u64) as usize,
            None => at,
        })
    }

    /// The samples of a group.
    fn stretch(&self, group: usize) -> Stretch {
        let Group {
            first_sample,
            n_samples,
            ..
        } = self.groups[group];
        let at = self
            .parts
            .partition_point(|part| part.first_sample <= first_sample);
        let part = self.parts[at - 1];
        let first = first_sample - part.first_sample;
        Stretch {
            part,
            first,
            n_samples,
            extra: part.extra_before(first + n_samples) - part.extra_before(first),
            key: group as u64,
        }
    }
}

/// The order of one epoch.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    order: Order,
    epoch: u64,
    plan: Plan,
}

#[derive(Debug, Clone)]
enum Plan {
    Full(Permutation),
    Windows {
        /// As stored, if there is none.
        groups: Option<Permutation>,
        windows: Vec<Window>,
    },
}

/// Groups that are visited together.
#[derive(Debug, Clone)]
struct Window {
    /// Position of its first sample in the epoch.
    start: u64,
    /// Place of its first group among the epoch's groups.
    first_group: usize,
    /// As stored, if there is none.
    within: Option<Permutation>,
}

impl EpochOrder {
    /// The sample id at `position`, which lies in `[0, n_positions)`.
    pub fn sample(&self, position: u64) -> u64 {
        match &self.plan {
            Plan::Full(permutation) => {
                let at = permutation.apply(position);
                let parts = &self.order.parts;
                let number = parts
                    .partition_point(|part| part.first_position <= at)
                    .saturating_sub(1);
                let part = parts[number];
                let all = Stretch {
                    part,
                    first: 0,
                    n_samples: part.n_samples,
                    extra: part.extra,
                    key: number as u64,
                };
                self.id(all, at - part.first_position)
            }
            Plan::Windows { groups, windows } => {
                let Some(window) = self.window_at(position).and_then(|at| windows.get(at)) else {
                    return position;
                };
                let mut within = position - window.start;
                if let Some(permutation) = &window.within {
                    within = permutation.apply(within);
                }
                for group in self.order.window(groups.as_ref(), window.first_group) {
                    let stretch = self.order.stretch(group);
                    if within < stretch.n_positions() {
                        return self.id(stretch, within);
                    }
                    within -= stretch.n_positions();
                }
                position
            }
        }
    }

    /// The window that `position` lies in; `None` under [`OrderKind::Full`], which has none.
    pub fn window_at(&self, position: u64) -> Option<usize> {
        match &self.plan {
            Plan::Full(_) => None,
            Plan::Windows { windows, .. } => windows
                .partition_point(|window| window.start <= position)
                .checked_sub(1),
        }
    }

    /// Positions and groups of a window; `None` behind the last one.
    pub fn window(&self, number: usize) -> Option<(Range<u64>, Vec<usize>)> {
        let Plan::Windows { groups, windows } = &self.plan else {
            return None;
        };
        let window = windows.get(number)?;
        let next = windows.get(number + 1).map(|next| next.start);
        let positions = window.start..next.unwrap_or(self.order.n_positions);
        let groups = self.order.window(groups.as_ref(), window.first_group);
        Some((positions, groups.collect()))
    }

    /// The id at `at` among a stretch's visits.
    fn id(&self, stretch: Stretch, at: u64) -> u64 {
        let whole = stretch.n_samples * stretch.part.whole;
        let (within, visit) = match at.checked_sub(whole) {
            None => (at / stretch.part.whole, at % stretch.part.whole),
            // Which samples come once more is chosen anew in each epoch.
            Some(at) => {
                let mut rng =
                    SampleRng::new(self.order.seed, self.epoch, stretch.key, Purpose::Extra);
                let chosen = Permutation::new(stretch.n_samples, &mut rng).apply(at);
                (chosen, stretch.part.whole)
            }
        };
        stretch.part.id(stretch.first + within, visit)
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
                n_pictures: n_samples,
                bytes: n_samples,
            };
            first_sample += n_samples;
            group
        };
        sizes.iter().map(group).collect()
    }

    fn part(n_samples: u64, visits: f64) -> Part {
        Part { n_samples, visits }
    }

    fn order(kind: OrderKind, n: u64, repeats: u64) -> Order {
        Order::new(11, kind, &[part(n, repeats as f64)], groups(&[n]), 1).unwrap()
    }

    fn ids(order: &Order, epoch: u64) -> Vec<u64> {
        let epoch = order.epoch(epoch);
        (0..order.n_positions()).map(|p| epoch.sample(p)).collect()
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
            sizes in proptest::collection::vec(1u64..40, 1..30), repeats in 1u64..4, window in 1usize..6, epoch: u64,
        ) {
            let n: u64 = sizes.iter().sum();
            let order = Order::new(3, OrderKind::Blocks, &[part(n, repeats as f64)], groups(&sizes), window).unwrap();
            let mut ids = ids(&order, epoch);
            ids.sort_unstable();
            prop_assert!(ids.into_iter().eq(0..n * repeats));
        }
    }

    proptest! {
        #[test]
        fn parts_are_visited_as_often_as_their_weight_says(
            sizes in proptest::collection::vec(proptest::collection::vec(1u64..30, 1..6), 1..4),
            visits in proptest::collection::vec(0.0f64..3.0, 4),
            kind in proptest::sample::select(vec![OrderKind::Full, OrderKind::Blocks, OrderKind::Sequential]),
            window in 1usize..4,
        ) {
            let parts: Vec<Part> = sizes.iter().zip(&visits).map(|(s, &v)| part(s.iter().sum(), v)).collect();
            let order = Order::new(7, kind, &parts, groups(&sizes.concat()), window).unwrap();
            let mut first_sample = 0;
            for epoch in 0..2 {
                let mut ids = ids(&order, epoch);
                let at: Vec<u64> = ids.iter().map(|&id| order.index(id)).collect();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len() as u64, order.n_positions());
                prop_assert!(ids.iter().all(|&id| id < order.n_ids()));
                first_sample = 0;
                for part in &parts {
                    let samples = first_sample..first_sample + part.n_samples;
                    let n = at.iter().filter(|index| samples.contains(index)).count() as f64;
                    prop_assert!((n - part.n_samples as f64 * part.visits).abs() <= 0.5);
                    for sample in samples.clone() {
                        let n = at.iter().filter(|&&index| index == sample).count() as f64;
                        prop_assert!((n - part.visits).abs() < 1.0, "{n} visits of {sample}");
                    }
                    first_sample = samples.end;
                }
            }
            prop_assert_eq!(first_sample, sizes.concat().iter().sum::<u64>());
        }

        #[test]
        fn windows_hold_the_groups_of_their_positions(
            sizes in proptest::collection::vec(1u64..20, 1..20), visits in 0.3f64..2.5, window in 1usize..6,
            kind in proptest::sample::select(vec![OrderKind::Blocks, OrderKind::Sequential]),
        ) {
            let parts = [part(sizes.iter().sum(), visits)];
            let order = Order::new(7, kind, &parts, groups(&sizes), window).unwrap();
            let epoch = order.epoch(3);
            let mut next = 0;
            for number in 0.. {
                let Some((positions, groups)) = epoch.window(number) else { break };
                prop_assert_eq!(positions.start, next);
                prop_assert!(groups.len() <= window);
                for position in positions.clone() {
                    prop_assert_eq!(epoch.window_at(position), Some(number));
                    prop_assert!(groups.contains(&order.group_of(order.index(epoch.sample(position)))));
                }
                next = positions.end;
            }
            prop_assert_eq!(next, order.n_positions());
        }
    }

    #[test]
    fn who_comes_once_more_changes_from_epoch_to_epoch() {
        for kind in [OrderKind::Full, OrderKind::Blocks] {
            let order = Order::new(7, kind, &[part(100, 0.5)], groups(&[25; 4]), 2).unwrap();
            let chosen = |epoch| {
                let mut ids = ids(&order, epoch);
                ids.sort_unstable();
                ids
            };
            assert_eq!((chosen(0).len(), chosen(0)), (50, chosen(0)));
            assert_ne!(chosen(0), chosen(1));
        }
    }

    #[test]
    fn blocks_stay_within_their_window() {
        let order = Order::new(
            5,
            OrderKind::Blocks,
            &[part(1000, 2.0)],
            groups(&[50; 20]),
            4,
        )
        .unwrap();
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
        let other =
            Order::new(12, OrderKind::Full, &[part(1000, 1.0)], groups(&[1000]), 1).unwrap();
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
        let made = |parts: &[Part], sizes: &[u64]| {
            Order::new(0, OrderKind::Blocks, parts, groups(sizes), 1).is_some()
        };
        assert!(!made(&[part(1 << 40, (1u64 << 40) as f64)], &[1 << 40]));
        assert!(!made(&[part(10, 1.0)], &[5, 4]));
        assert!(!made(&[part(10, 1.0)], &[5, 0, 5]), "an empty group");
        assert!(made(&[part(10, 1.0)], &[5, 5]));
        assert!(made(&[part(5, 1.0), part(5, 2.0)], &[5, 5]));
        assert!(
            !made(&[part(4, 1.0), part(6, 2.0)], &[5, 5]),
            "a group of two parts"
        );
    }

    #[test]
    fn substitutes_are_fixed_by_their_place() {
        let order = order(OrderKind::Full, 50, 2);
        let first = |epoch, position| {
            order
                .substitutes(epoch, position)
                .take(5)
                .collect::<Vec<_>>()
        };
        assert_eq!(first(2, 3), first(2, 3));
        assert_ne!(first(2, 3), first(2, 4));
        assert!(first(0, 0).iter().all(|&id| id < 100));
    }
}
