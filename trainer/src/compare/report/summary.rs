//! The answer in words, with its numbers and its doubts.

use super::super::stats::{Difference, Spread};
use super::{Contrast, MethodReport, Report};
use crate::chart::short;

/// Sentences in order of weight: who is ahead, whether that is more than chance, what training added, what it cost.
pub(super) fn sentences(report: &Report) -> Vec<String> {
    let Some(metric) = report.headline() else {
        return vec!["No run has been evaluated yet.".to_string()];
    };
    let mut ranked: Vec<_> = report
        .methods
        .iter()
        .filter_map(|method| Some((method, method.headline()?)))
        .collect();
    ranked.sort_by(|a, b| b.1.mean.total_cmp(&a.1.mean));
    let (trained, untrained): (Vec<_>, Vec<_>) =
        ranked.iter().partition(|(method, _)| !method.untrained);
    let mut sentences = Vec::new();
    let Some((best, best_spread)) = trained.first() else {
        return vec!["No method has been trained to its end yet.".to_string()];
    };
    sentences.push(format!(
        "After {} each, {} has the highest {}: {}.",
        report.budget,
        best.name,
        metric.label,
        with_spread(best_spread)
    ));
    for (other, spread) in trained.iter().skip(1) {
        sentences.push(format!(
            "{} comes to {}, {}",
            other.name,
            with_spread(spread),
            verdict(&difference_of(report, best, other))
        ));
    }
    for (random, spread) in &untrained {
        let above: Vec<_> = trained
            .iter()
            .filter(|(_, of)| {
                super::super::stats::difference(of, spread).is_clear() && of.mean > spread.mean
            })
            .map(|(method, _)| method.name.as_str())
            .collect();
        let gained = match above.len() {
            _ if spread.n < 2 => {
                "one seed cannot tell whether the others are above that".to_string()
            }
            0 => "no method is above that by more than chance".to_string(),
            n if n == trained.len() => {
                "every trained method is above that by more than chance".to_string()
            }
            _ => format!("above that by more than chance: {}", above.join(", ")),
        };
        sentences.push(format!(
            "{} has {}; {gained}.",
            random.name,
            with_spread(spread)
        ));
    }
    if let Some(sentence) = costs(&report.methods) {
        sentences.push(sentence);
    }
    if !report.missing.is_empty() {
        sentences.push(format!(
            "{} of the runs are missing or not at their end, so this is not the last word.",
            report.missing.len()
        ));
    }
    sentences
}

/// `57.3 ± 0.4 (3 seeds)`.
pub(super) fn with_spread(spread: &Spread) -> String {
    match spread.std {
        Some(std) => format!("{:.1} ± {:.1} ({} seeds)", spread.mean, std, spread.n),
        None => format!("{:.1} (one seed, so no spread)", spread.mean),
    }
}

fn difference_of(report: &Report, best: &MethodReport, other: &MethodReport) -> Difference {
    let found = report
        .contrasts
        .iter()
        .find(|contrast: &&Contrast| contrast.best == best.name && contrast.other == other.name);
    match (found, best.headline(), other.headline()) {
        (Some(contrast), ..) => contrast.difference,
        // An untrained encoder is ahead of all: the best of the trained ones is no side of any contrast.
        (None, Some(a), Some(b)) => super::super::stats::difference(a, b),
        _ => Difference {
            mean: f64::NAN,
            half_width: None,
        },
    }
}

/// What an interval says, as the end of a sentence.
fn verdict(difference: &Difference) -> String {
    let Some(half) = difference.half_width else {
        return format!(
            "{:.1} less; one seed cannot tell whether that is chance.",
            difference.mean
        );
    };
    let (low, high) = (difference.mean - half, difference.mean + half);
    let so = match difference.is_clear() {
        true => "more than chance",
        false => "not more than chance at this budget and these seeds",
    };
    format!(
        "{:.1} less (95 % interval {low:.1} to {high:.1}): {so}.",
        difference.mean
    )
}

/// The dearest and the cheapest pair, if methods differ.
fn costs(methods: &[MethodReport]) -> Option<String> {
    let mut timed: Vec<_> = methods
        .iter()
        .filter_map(|method| {
            Some((
                method,
                method.cost.as_ref()?,
                method.cost.as_ref()?.pairs_per_s?,
            ))
        })
        .collect();
    timed.sort_by(|a, b| b.2.mean.total_cmp(&a.2.mean));
    let ((fast, fast_cost, fast_rate), (slow, slow_cost, slow_rate)) =
        (timed.first()?, timed.last()?);
    if fast.name == slow.name {
        return None;
    }
    Some(format!(
        "{} trains on {} pairs a second and {} on {} ({} times as many), with {} and {} billion multiply-adds a pair forward.",
        fast.name,
        short(fast_rate.mean),
        slow.name,
        short(slow_rate.mean),
        short(fast_rate.mean / slow_rate.mean),
        short(fast_cost.forward.gmacs),
        short(slow_cost.forward.gmacs)
    ))
}
