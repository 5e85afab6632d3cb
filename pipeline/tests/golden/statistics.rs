//! Two-sample tests at p > 0.001.

/// `sqrt(-ln(p / 2) / 2)` for p = 0.001: the Kolmogorov-Smirnov distance's scale.
const KS_SCALE: f64 = 1.949_475;

/// Standard normal quantile of 1 - 0.001.
const Z_ONE_SIDED: f64 = 3.090_232;

/// Standard normal quantile of 1 - 0.0005.
const Z_TWO_SIDED: f64 = 3.290_527;

/// The largest Kolmogorov-Smirnov distance of two samples of one distribution at p = 0.001. Ties, as whole pixels have
/// them, make it stricter on the null hypothesis's side only: fewer false alarms.
pub fn ks_limit(n: usize, m: usize) -> f64 {
    KS_SCALE * ((n + m) as f64 / (n as f64 * m as f64)).sqrt()
}

/// Largest distance between the empirical distributions of two samples.
pub fn ks_distance(mut a: Vec<f64>, mut b: Vec<f64>) -> f64 {
    a.sort_by(f64::total_cmp);
    b.sort_by(f64::total_cmp);
    let (mut i, mut j, mut largest) = (0, 0, 0.0f64);
    while i < a.len() && j < b.len() {
        let at = a[i].min(b[j]);
        while i < a.len() && a[i] <= at {
            i += 1;
        }
        while j < b.len() && b[j] <= at {
            j += 1;
        }
        largest = largest.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    largest
}

/// By how much the quantiles of a sample of `m` lie outside the band of this sample's distribution, at most.
pub fn quantile_distance(mut sample: Vec<f64>, m: usize, levels: &[f64], quantiles: &[f64]) -> f64 {
    assert_eq!(levels.len(), quantiles.len(), "as many quantiles as levels");
    sample.sort_by(f64::total_cmp);
    let n = sample.len() as f64;
    // Rounding of values that were computed in another order or printed.
    let slack = |value: f64| 1e-9 * value.abs().max(1.0);
    let inner = levels
        .iter()
        .zip(quantiles)
        .filter(|&(&level, _)| level > 0.0 && level < 1.0);
    inner
        .map(|(&level, &value)| {
            let below = sample.partition_point(|&x| x < value - slack(value)) as f64 / n;
            let up_to = sample.partition_point(|&x| x <= value + slack(value)) as f64 / n;
            // Interpolation between two of the other sample's values moves its level by up to 1/m.
            (below - level).max(level - up_to) - 1.0 / m as f64
        })
        .fold(0.0, f64::max)
}

/// Whether two counts out of `n` and `m` may come from one probability.
pub fn same_share(count: f64, n: f64, other: f64, m: f64) -> bool {
    let pooled = (count + other) / (n + m);
    let deviation = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    (count / n - other / m).abs() <= Z_TWO_SIDED * deviation + 1e-12
}

/// Whether two means may come from one distribution, whose standard deviations were estimated.
pub fn same_mean(mean: f64, std: f64, n: f64, other: f64, other_std: f64, m: f64) -> bool {
    let deviation = (std * std / n + other_std * other_std / m).sqrt();
    (mean - other).abs() <= Z_TWO_SIDED * deviation + 1e-12
}

/// Whether two histograms over the same bins may come from one distribution (two-sample chi-square).
pub fn same_histogram(a: &[f64], b: &[f64]) -> bool {
    let (n, m) = (a.iter().sum::<f64>(), b.iter().sum::<f64>());
    let bins = a.iter().zip(b).filter(|(a, b)| *a + *b > 0.0);
    let (mut statistic, mut used) = (0.0, 0.0f64);
    for (a, b) in bins {
        statistic += ((m / n).sqrt() * a - (n / m).sqrt() * b).powi(2) / (a + b);
        used += 1.0;
    }
    let freedom = used - 1.0;
    if freedom < 1.0 {
        return statistic < 1e-9;
    }
    // Wilson and Hilferty's approximation of the quantile.
    let spread = 2.0 / (9.0 * freedom);
    statistic <= freedom * (1.0 - spread + Z_ONE_SIDED * spread.sqrt()).powi(3)
}

pub fn mean_and_std(sample: &[f64]) -> (f64, f64) {
    let n = sample.len() as f64;
    let mean = sample.iter().sum::<f64>() / n;
    (
        mean,
        (sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt(),
    )
}

#[test]
fn the_tests_tell_distributions_apart() {
    let even: Vec<f64> = (0..20_000).map(|i| f64::from(i) / 20_000.0).collect();
    let bent: Vec<f64> = even.iter().map(|x| x.powf(1.1)).collect();
    let limit = ks_limit(20_000, 20_000);
    assert!((limit - 0.0195).abs() < 1e-4);
    assert!(ks_distance(even.clone(), even.clone()) < 1e-9);
    assert!(ks_distance(even.clone(), bent.clone()) > limit);
    let levels = [0.1, 0.25, 0.5, 0.75, 0.9];
    assert!(quantile_distance(even.clone(), 20_000, &levels, &levels) <= limit);
    assert!(quantile_distance(bent, 20_000, &levels, &levels) > limit);
    assert!(same_histogram(
        &[500.0, 500.0, 480.0],
        &[1010.0, 990.0, 1000.0]
    ));
    assert!(!same_histogram(
        &[500.0, 600.0, 400.0],
        &[1000.0, 1000.0, 1000.0]
    ));
    assert!(same_share(520.0, 1000.0, 500.0, 1000.0) && !same_share(600.0, 1000.0, 500.0, 1000.0));
    let (mean, std) = mean_and_std(&even);
    assert!(
        same_mean(mean, std, 2e4, 0.501, 0.2887, 2e4)
            && !same_mean(mean, std, 2e4, 0.52, 0.2887, 2e4)
    );
}
