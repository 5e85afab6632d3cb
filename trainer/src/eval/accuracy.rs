//! How often the right class is among the likeliest, and how sure that number is.

use serde::{Deserialize, Serialize};

/// A share of samples in percent, with the bounds of its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The share itself.
    pub percent: f64,
    /// Lower end of the 95 % interval, after Wilson.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Top-1 and top-5 accuracy over a split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Samples scored.
    pub n: u64,
    /// The right class is the likeliest.
    pub top1: Share,
    /// The right class is among the five likeliest.
    pub top5: Share,
}

/// Counts hits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    n: u64,
    top1: u64,
    top5: u64,
}

impl Hits {
    /// A sample whose right class came so many places behind the likeliest; `None`: nowhere.
    pub fn add(&mut self, rank: Option<usize>) {
        self.n += 1;
        self.top1 += u64::from(rank == Some(0));
        self.top5 += u64::from(rank.is_some_and(|rank| rank < 5));
    }

    /// The accuracy so far.
    pub fn accuracy(&self) -> Accuracy {
        Accuracy {
            n: self.n,
            top1: wilson(self.top1, self.n),
            top5: wilson(self.top5, self.n),
        }
    }
}

/// How many classes are likelier than `label`. Of equal ones the first counts as likelier, and whatever is not a number
/// counts as likelier than everything, so that a broken model scores nothing.
pub fn rank_of(label: usize, scores: &[f32]) -> Option<usize> {
    let own = *scores.get(label)?;
    let before = |(class, &score): (usize, &f32)| match score.partial_cmp(&own) {
        Some(std::cmp::Ordering::Less) => false,
        Some(std::cmp::Ordering::Equal) => class < label,
        Some(std::cmp::Ordering::Greater) | None => class != label,
    };
    let rank = scores.iter().enumerate().filter(|&it| before(it)).count();
    (!own.is_nan()).then_some(rank)
}

/// The 0.975 quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// `hits` of `n` in percent, with Wilson's score interval at 95 %: unlike the usual `p ± 1.96 s` it is right for small
/// samples and near 0 and 100 %.
///
/// Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
pub fn wilson(hits: u64, n: u64) -> Share {
    if n == 0 {
        return Share {
            percent: 0.0,
            low: 0.0,
            high: 100.0,
        };
    }
    let (p, n) = (hits as f64 / n as f64, n as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Share {
        percent: 100.0 * p,
        low: 100.0 * (centre - half).max(0.0),
        high: 100.0 * (centre + half).min(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intervals_are_the_published_ones() {
        // Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
        for (hits, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let share = wilson(hits, n);
            assert!((share.low - 100.0 * low).abs() < 0.006, "{share:?}");
            assert!((share.high - 100.0 * high).abs() < 0.006, "{share:?}");
        }
        assert_eq!(wilson(0, 0).high, 100.0);
    }

    proptest! {
        #[test]
        fn intervals_hold_their_share(hits in 0u64..1000, missed in 0u64..1000) {
            prop_assume!(hits + missed > 0);
            let share = wilson(hits, hits + missed);
            prop_assert!(0.0 <= share.low && share.low <= share.percent + 1e-9);
            prop_assert!(share.percent <= share.high + 1e-9 && share.high <= 100.0);
        }
    }

    #[test]
    fn ranks_count_what_is_likelier() {
        let scores = [0.1, 0.9, 0.5, 0.5];
        assert_eq!(
            [1, 2, 3, 0].map(|label| rank_of(label, &scores)),
            [0, 1, 2, 3].map(Some)
        );
        assert_eq!(rank_of(4, &scores), None);
        let broken = [f32::NAN, 1.0];
        assert_eq!(rank_of(0, &broken), None);
        assert_eq!(rank_of(1, &broken), Some(1));
        let mut hits = Hits::default();
        for rank in [Some(0), Some(4), Some(5), None] {
            hits.add(rank);
        }
        let accuracy = hits.accuracy();
        assert_eq!(
            (accuracy.n, accuracy.top1.percent, accuracy.top5.percent),
            (4, 25.0, 50.0)
        );
    }
}
