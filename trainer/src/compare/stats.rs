//! What a few seeds say: their mean, their spread, and whether two methods differ by more than chance.

use serde::{Deserialize, Serialize};

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// The same for more: that of 30, which is a little wide.
const T_95_MANY: f64 = 2.042;

/// Values of one quantity, one a seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (n - 1 in the denominator); absent for a single one.
    pub std: Option<f64>,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// `None` for no values.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let bound = |pick: fn(f64, f64) -> f64| values.iter().copied().fold(mean, pick);
        Some(Spread {
            n,
            mean,
            std: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            min: bound(f64::min),
            max: bound(f64::max),
        })
    }

    /// Squared standard error of the mean.
    fn error_squared(&self) -> Option<f64> {
        self.std.map(|std| std * std / self.n as f64)
    }
}

/// How far two means are apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// First mean minus second.
    pub mean: f64,
    /// Half the width of the 95 % interval around it; absent where one side has a single value.
    pub half_width: Option<f64>,
}

impl Difference {
    /// Whether the interval leaves out 0; never where there is none.
    pub fn is_clear(&self) -> bool {
        self.half_width.is_some_and(|half| self.mean.abs() > half)
    }
}

/// Welch's interval for the difference of two means with spreads of their own. Degrees of freedom are rounded down, which
/// makes it a little wider.
pub fn difference(a: &Spread, b: &Spread) -> Difference {
    let half_width = a.error_squared().zip(b.error_squared()).map(|(ea, eb)| {
        let share = |error: f64, n: usize| error * error / (n - 1) as f64;
        let below = share(ea, a.n) + share(eb, b.n);
        let freedom = if below > 0.0 {
            (ea + eb).powi(2) / below
        } else {
            f64::INFINITY
        };
        let t = T_95
            .get((freedom.floor().max(1.0) as usize).saturating_sub(1))
            .copied()
            .unwrap_or(T_95_MANY);
        t * (ea + eb).sqrt()
    });
    Difference {
        mean: a.mean - b.mean,
        half_width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_three_seeds() {
        let spread = Spread::of(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!(
            (spread.n, spread.mean, spread.min, spread.max),
            (3, 3.0, 1.0, 6.0)
        );
        assert!((spread.std.unwrap() - 7f64.sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of(&[4.0]).unwrap().std, None);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn welch_as_a_table_has_it() {
        // Two samples of three: means 2 and 5, variance 1 each; 4 degrees of freedom, standard error sqrt(2 / 3).
        let a = Spread::of(&[1.0, 2.0, 3.0]).unwrap();
        let b = Spread::of(&[4.0, 5.0, 6.0]).unwrap();
        let between = difference(&a, &b);
        assert_eq!(between.mean, -3.0);
        let expected = 2.776 * (2.0f64 / 3.0).sqrt();
        assert!((between.half_width.unwrap() - expected).abs() < 1e-9);
        assert!(between.is_clear());
        let near = difference(&a, &Spread::of(&[2.0, 3.0, 4.0]).unwrap());
        assert!(!near.is_clear());
    }

    #[test]
    fn one_seed_is_never_clear() {
        let one = |value| Spread::of(&[value]).unwrap();
        let between = difference(&one(1.0), &one(100.0));
        assert_eq!(between.half_width, None);
        assert!(!between.is_clear());
    }

    #[test]
    fn equal_values_leave_no_room_for_chance() {
        let same = |value| Spread::of(&[value, value]).unwrap();
        assert_eq!(difference(&same(2.0), &same(1.0)).half_width, Some(0.0));
        assert!(difference(&same(2.0), &same(1.0)).is_clear());
    }
}
