//! How the stages of a loader spend their time, and what they skipped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Counters of one stage, written by its workers.
#[derive(Debug, Default)]
pub(super) struct StageCounters {
    items: AtomicU64,
    busy_ns: AtomicU64,
    waiting_in_ns: AtomicU64,
    waiting_out_ns: AtomicU64,
}

impl StageCounters {
    pub(super) fn count_item(&self) {
        self.items.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_busy(&self, worked: Duration) {
        add(&self.busy_ns, worked);
    }

    pub(super) fn add_waiting_in(&self, waited: Duration) {
        add(&self.waiting_in_ns, waited);
    }

    pub(super) fn add_waiting_out(&self, waited: Duration) {
        add(&self.waiting_out_ns, waited);
    }

    pub(super) fn read(&self, name: &'static str, workers: usize) -> StageStats {
        StageStats {
            name,
            workers,
            items: self.items.load(Ordering::Relaxed),
            busy_s: seconds(&self.busy_ns),
            waiting_in_s: seconds(&self.waiting_in_ns),
            waiting_out_s: seconds(&self.waiting_out_ns),
        }
    }
}

/// Counters of the samples whose pictures were reduced in decoding, written by many threads.
#[derive(Debug, Default)]
pub(super) struct ReducedCounters {
    items: AtomicU64,
    compared: AtomicU64,
    n_values: AtomicU64,
    difference: AtomicU64,
}

impl ReducedCounters {
    pub(super) fn count_item(&self) {
        self.items.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes in how far the views of a sample are from those of the unreduced picture.
    pub(super) fn compare(&self, views: &[u8], exact: &[u8]) {
        let differences = views
            .iter()
            .zip(exact)
            .map(|(a, b)| u64::from(a.abs_diff(*b)));
        self.difference
            .fetch_add(differences.sum(), Ordering::Relaxed);
        self.n_values
            .fetch_add(views.len() as u64, Ordering::Relaxed);
        self.compared.fetch_add(1, Ordering::Relaxed);
    }

    /// `None` if nothing was reduced.
    pub(super) fn read(&self) -> Option<ReducedStats> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let n_values = load(&self.n_values);
        (load(&self.items) > 0).then(|| ReducedStats {
            items: load(&self.items),
            compared: load(&self.compared),
            mean_difference: (n_values > 0)
                .then(|| load(&self.difference) as f64 / n_values as f64),
        })
    }
}

/// A sum of durations, written by many threads.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicU64);

impl Clock {
    pub(super) fn add(&self, spent: Duration) {
        add(&self.0, spent);
    }

    pub(super) fn seconds(&self) -> f64 {
        seconds(&self.0)
    }
}

fn add(counter: &AtomicU64, spent: Duration) {
    counter.fetch_add(
        u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX),
        Ordering::Relaxed,
    );
}

fn seconds(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64 / 1e9
}

/// Time since the last lap.
#[derive(Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now))
    }
}

/// What one stage did so far, summed over its workers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageStats {
    /// Name of the stage.
    pub name: &'static str,
    /// Its threads.
    pub workers: usize,
    /// Samples it has finished.
    pub items: u64,
    /// Seconds of work.
    pub busy_s: f64,
    /// Seconds of waiting for the stage before.
    pub waiting_in_s: f64,
    /// Seconds of waiting for room behind.
    pub waiting_out_s: f64,
}

/// A sample that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadSample {
    /// Its index in the split.
    pub index: u64,
    /// Its name, or its index where even that cannot be read.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What reduced decoding (`data.decode = "fast"`) did to the views.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReducedStats {
    /// Samples whose pictures were reduced in decoding.
    pub items: u64,
    /// Those of them that were made exactly too: every 64th sample id.
    pub compared: u64,
    /// Mean absolute difference of these samples' views from the exact ones, in levels of 255; absent before the first.
    pub mean_difference: Option<f64>,
}

/// What a loader did so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoaderStats {
    /// The stages in the order a sample passes them.
    pub stages: Vec<StageStats>,
    /// Of the second stage's busy time: decoding.
    pub decode_s: f64,
    /// Of the second stage's busy time: cutting views.
    pub views_s: f64,
    /// What reduced decoding did; absent where no picture was reduced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduced: Option<ReducedStats>,
    /// Encoded bytes read.
    pub bytes_read: u64,
    /// Samples handed out in batches, on this rank.
    pub pairs: u64,
    /// Batches handed out.
    pub batches: u64,
    /// Seconds since the loader started.
    pub elapsed_s: f64,
    /// Seconds the caller waited in `next_batch`.
    pub consumer_waiting_s: f64,
    /// Replacements made in the batches handed out.
    pub replaced: u64,
    /// The distinct bad samples met in the batches handed out, by index.
    pub bad: Vec<BadSample>,
}

/// Below this share of the elapsed time spent waiting for data, the caller is the bottleneck.
const CONSUMER_BOUND: f64 = 0.05;

impl LoaderStats {
    /// What was done since an `earlier` look at the same loader; `bad` and `reduced` stay those of its whole life.
    pub fn since(&self, earlier: &Self) -> Self {
        self.combined(earlier, |now, then| now - then, u64::saturating_sub)
    }

    /// What was done in two stretches of time; `bad` and `reduced` are those of this one.
    pub fn plus(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a + b, u64::saturating_add)
    }

    fn combined(
        &self,
        other: &Self,
        seconds: fn(f64, f64) -> f64,
        counts: fn(u64, u64) -> u64,
    ) -> Self {
        let stage = |(a, b): (&StageStats, &StageStats)| StageStats {
            name: a.name,
            workers: a.workers,
            items: counts(a.items, b.items),
            busy_s: seconds(a.busy_s, b.busy_s),
            waiting_in_s: seconds(a.waiting_in_s, b.waiting_in_s),
            waiting_out_s: seconds(a.waiting_out_s, b.waiting_out_s),
        };
        Self {
            stages: self.stages.iter().zip(&other.stages).map(stage).collect(),
            decode_s: seconds(self.decode_s, other.decode_s),
            views_s: seconds(self.views_s, other.views_s),
            reduced: self.reduced.clone(),
            bytes_read: counts(self.bytes_read, other.bytes_read),
            pairs: counts(self.pairs, other.pairs),
            batches: counts(self.batches, other.batches),
            elapsed_s: seconds(self.elapsed_s, other.elapsed_s),
            consumer_waiting_s: seconds(self.consumer_waiting_s, other.consumer_waiting_s),
            replaced: counts(self.replaced, other.replaced),
            bad: self.bad.clone(),
        }
    }

    /// Name of what limits the speed: the busiest stage, or `"consumer"` if the caller hardly ever waits for data.
    pub fn bottleneck(&self) -> &'static str {
        if self.consumer_waiting_s < CONSUMER_BOUND * self.elapsed_s {
            return "consumer";
        }
        let load = |stage: &StageStats| stage.busy_s / stage.workers.max(1) as f64;
        self.stages
            .iter()
            .max_by(|a, b| load(a).total_cmp(&load(b)))
            .map_or("consumer", |stage| stage.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(fetch_busy: f64, views_busy: f64, waited: f64) -> LoaderStats {
        let stage = |name, workers, busy_s| StageStats {
            name,
            workers,
            items: 1,
            busy_s,
            waiting_in_s: 0.0,
            waiting_out_s: 0.0,
        };
        LoaderStats {
            stages: vec![stage("fetch", 1, fetch_busy), stage("views", 4, views_busy)],
            decode_s: 0.0,
            views_s: 0.0,
            reduced: None,
            bytes_read: 0,
            pairs: 0,
            batches: 0,
            elapsed_s: 10.0,
            consumer_waiting_s: waited,
            replaced: 0,
            bad: Vec::new(),
        }
    }

    #[test]
    fn stretches_of_time_add_up() {
        let (early, late) = (stats(1.0, 4.0, 0.5), stats(9.0, 20.0, 5.0));
        let between = late.since(&early);
        assert_eq!((between.stages[0].busy_s, between.elapsed_s), (8.0, 0.0));
        assert_eq!(between.consumer_waiting_s, 4.5);
        assert_eq!(between.plus(&early), late);
    }

    #[test]
    fn the_busiest_worker_names_the_bottleneck() {
        assert_eq!(stats(9.0, 20.0, 5.0).bottleneck(), "fetch");
        assert_eq!(stats(4.0, 39.0, 5.0).bottleneck(), "views");
        assert_eq!(stats(9.0, 39.0, 0.1).bottleneck(), "consumer");
    }
}
