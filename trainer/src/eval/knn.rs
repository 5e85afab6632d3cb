//! Classification by the nearest neighbours of frozen features, nothing trained.
//!
//! Source: DINO (Caron et al., 2021), `eval_knn.py`, after Wu et al., 2018.
//!
//! Letters: Q queries (val), T samples of a tile (train), D width.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipeline::Stop;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::accuracy::{Accuracy, Hits, rank_of};
use super::encoder::{CheckpointId, FrozenEncoder};
use super::labelled::{
    LOOK_BATCH, LabelledData, LabelledSet, Progress, data_id, features, host_rows,
};
use super::results::{Failed, RESULTS_FORMAT, Results, Versions};
use crate::error::{Error, Result};
use crate::models::Pool;
use crate::nn::norm::unit_length;

/// The `k` of DINO's tables.
pub const PAPER_KS: [usize; 4] = [10, 20, 100, 200];

/// What DINO divides cosines by.
pub const PAPER_TEMPERATURE: f64 = 0.07;

/// Queries whose similarities to a tile are in memory at once.
const QUERY_TILE: usize = 4096;

/// Everything the numbers depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnnSettings {
    /// The splits.
    pub data: LabelledData,
    /// What is compared (DINO: the class token).
    pub pool: Pool,
    /// Numbers of neighbours that vote; if there are none, the paper's, as far as the train split has so many pictures.
    pub ks: Vec<usize>,
    /// Divides the cosine before the exponential that weights a vote (0.07).
    pub temperature: f64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnnScores {
    /// Accuracy on the val split by the number of neighbours.
    pub by_k: BTreeMap<usize, Accuracy>,
    /// Pictures among which neighbours were looked for.
    pub n_train: u64,
    /// Classes.
    pub n_classes: usize,
}

/// Scores an encoder.
///
/// Only the val split's features and the nearest neighbours found so far are kept, so memory does not grow with the train
/// split.
///
/// # Errors
/// [`Error::Config`] for settings without sense, among them a `k` beyond the train split; [`Error::Stopped`]; whatever the
/// data report.
pub fn knn(
    settings: &KnnSettings,
    encoder: &FrozenEncoder,
    checkpoint: CheckpointId,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Results<KnnSettings, KnnScores>> {
    let [train, val] = settings.data.open()?;
    let settings = &settings.resolved(train.n_samples(), progress);
    settings.validate(train.n_samples())?;
    let data = data_id(&train, &val);

    let k_max = settings.ks.iter().copied().max().unwrap_or(1);
    let mut queries = Vec::new();
    let mut right = Vec::new();
    let mut failed = settings.look(
        "val features",
        &val,
        encoder,
        stop,
        progress,
        &mut |x, y| {
            queries.push(x.clone());
            right.extend_from_slice(y);
            Ok(())
        },
    )?;
    if queries.is_empty() {
        return Err(val.refused("has no picture that can be read, expected some".to_owned()));
    }
    let mut nearest = Nearest::new(Tensor::cat(&queries, 0)?, k_max)?;
    drop(queries);
    failed.extend(settings.look(
        "train features",
        &train,
        encoder,
        stop,
        progress,
        &mut |x, y| nearest.look_among(x, y),
    )?);

    let n_train = nearest.n_seen;
    let neighbours = nearest.into_sorted();
    let mut by_k = BTreeMap::new();
    for &k in &settings.ks {
        let mut hits = Hits::default();
        for (found, &label) in neighbours.iter().zip(&right) {
            hits.add(vote(
                &found[..k.min(found.len())],
                settings.temperature,
                label,
            ));
        }
        by_k.insert(k, hits.accuracy());
    }
    Ok(Results {
        format: RESULTS_FORMAT,
        protocol: "knn".to_owned(),
        complete: failed.is_empty(),
        checkpoint,
        data,
        settings: settings.clone(),
        scores: KnnScores {
            by_k,
            n_train,
            n_classes: train.n_classes(),
        },
        failed,
        versions: Versions::here(encoder.device()),
    })
}

impl KnnSettings {
    fn resolved(&self, n_train: u64, progress: &mut dyn FnMut(&Progress)) -> Self {
        let mut settings = self.clone();
        if settings.ks.is_empty() {
            let has = |&k: &usize| k as u64 <= n_train;
            let (ks, beyond): (Vec<usize>, Vec<usize>) = PAPER_KS.into_iter().partition(has);
            if !beyond.is_empty() {
                progress(&Progress::Note(&format!(
                    "no score for k = {beyond:?}: the train split has {n_train} pictures"
                )));
            }
            settings.ks = ks;
        }
        settings
    }

    fn validate(&self, n_train: u64) -> Result<()> {
        let wrong = |text: String| Err(Error::Config(text));
        if let Some(k) = self.ks.iter().find(|&&k| k == 0 || k as u64 > n_train) {
            return wrong(format!(
                "k is {k}, expected 1 to {n_train}, the pictures of the train split"
            ));
        }
        if self.ks.is_empty() {
            return wrong(format!(
                "k is missing, expected 1 to {n_train}: the paper's begin at {}",
                PAPER_KS[0]
            ));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return wrong(format!(
                "temperature is {}, expected a number above 0",
                self.temperature
            ));
        }
        Ok(())
    }

    /// Shows the unit-length features `[B, D]` of a split's pictures, and their labels.
    fn look(
        &self,
        stage: &'static str,
        set: &LabelledSet,
        encoder: &FrozenEncoder,
        stop: &Stop,
        progress: &mut dyn FnMut(&Progress),
        see: &mut dyn FnMut(&Tensor, &[usize]) -> Result<()>,
    ) -> Result<Vec<Failed>> {
        let size = encoder.sizes().img_size;
        let (mut done, total) = (0, set.n_samples());
        set.visit(
            size,
            LOOK_BATCH,
            encoder.device(),
            stop,
            &mut |pixels, labels| {
                see(
                    &unit_length(&features(encoder, pixels, self.pool)?)?,
                    labels,
                )?;
                done += labels.len() as u64;
                let note = String::new();
                progress(&Progress::Done {
                    stage,
                    done,
                    total,
                    note,
                });
                Ok(())
            },
        )
    }
}

/// A train sample near a query.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Neighbour {
    similarity: f32,
    /// Its place in the train split.
    index: u64,
    label: usize,
}

impl Neighbour {
    /// Nearest first; of equally near ones the first of the split.
    fn order(&self, other: &Neighbour) -> std::cmp::Ordering {
        other
            .similarity
            .total_cmp(&self.similarity)
            .then(self.index.cmp(&other.index))
    }
}

/// The `k` nearest neighbours of every query among what was shown so far.
struct Nearest {
    queries: Tensor,
    k: usize,
    n_seen: u64,
    found: Vec<Found>,
}

/// Of one query: at least the nearest `k`, in no order, and what a newcomer must exceed.
#[derive(Clone)]
struct Found {
    candidates: Vec<Neighbour>,
    threshold: f32,
}

impl Nearest {
    /// * `queries`: `[Q, D]`, of unit length.
    fn new(queries: Tensor, k: usize) -> Result<Nearest> {
        let none = Found {
            candidates: Vec::new(),
            threshold: f32::NEG_INFINITY,
        };
        Ok(Nearest {
            found: vec![none; queries.dim(0)?],
            queries,
            k,
            n_seen: 0,
        })
    }

    /// Takes in the next samples of the train split: `features` `[T, D]`, of unit length, and their labels.
    fn look_among(&mut self, features: &Tensor, labels: &[usize]) -> Result<()> {
        let (k, first) = (self.k, self.n_seen);
        let keys = features.t()?.contiguous()?; // [D, T]
        for (tile, found) in self.found.chunks_mut(QUERY_TILE).enumerate() {
            let queries = self.queries.narrow(0, tile * QUERY_TILE, found.len())?;
            let similarities = host_rows(&queries.matmul(&keys)?)?; // [Q, T]
            found
                .par_iter_mut()
                .zip(similarities)
                .for_each(|(found, similarities)| {
                    for ((index, &label), similarity) in (first..).zip(labels).zip(similarities) {
                        // Of equally near ones the first stay.
                        if similarity > found.threshold {
                            found.candidates.push(Neighbour {
                                similarity,
                                index,
                                label,
                            });
                        }
                        if found.candidates.len() >= 2 * k {
                            found.keep(k);
                        }
                    }
                });
        }
        self.n_seen += labels.len() as u64;
        Ok(())
    }

    /// The nearest `k` of every query, nearest first.
    fn into_sorted(mut self) -> Vec<Vec<Neighbour>> {
        self.found.par_iter_mut().for_each(|found| {
            found.candidates.sort_unstable_by(Neighbour::order);
            found.candidates.truncate(self.k);
        });
        self.found.into_iter().map(|it| it.candidates).collect()
    }
}

impl Found {
    fn keep(&mut self, k: usize) {
        let (_, last, _) = self
            .candidates
            .select_nth_unstable_by(k - 1, Neighbour::order);
        self.threshold = last.similarity;
        self.candidates.truncate(k);
    }
}

/// The place of the right class among those that got votes, each neighbour voting by `exp(cosine / temperature)`; `None` if
/// it got none. DINO's code goes on counting in classes without votes, in whatever order sorting left them.
fn vote(neighbours: &[Neighbour], temperature: f64, right: usize) -> Option<usize> {
    let nearest = neighbours.first()?.similarity;
    let mut votes = BTreeMap::<usize, f64>::new();
    for neighbour in neighbours {
        // Relative to the nearest, so that nothing overflows.
        let closeness = f64::from(neighbour.similarity - nearest) / temperature;
        *votes.entry(neighbour.label).or_default() += closeness.exp();
    }
    let place = votes.keys().position(|&class| class == right)?;
    let votes: Vec<f32> = votes.into_values().map(|weight| weight as f32).collect();
    rank_of(place, &votes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use pipeline::rng::{Purpose, SampleRng};

    /// Small whole numbers: every product is exact, and many are equal.
    fn random(n: usize, width: usize, sample: u64) -> Tensor {
        let mut rng = SampleRng::new(0, 0, sample, Purpose::Synth);
        let values: Vec<f32> = (0..n * width).map(|_| rng.below(9) as f32 - 4.0).collect();
        Tensor::from_vec(values, (n, width), &Device::Cpu).unwrap()
    }

    #[test]
    fn neighbours_are_those_of_a_full_sort_whatever_the_tiles() {
        let (queries, train) = (random(30, 5, 1), random(1000, 5, 2));
        let labels: Vec<usize> = (0..1000).map(|i| i % 7).collect();
        let similarities = host_rows(&queries.matmul(&train.t().unwrap()).unwrap()).unwrap();
        for tile in [1, 64, 333, 1000] {
            let mut nearest = Nearest::new(queries.clone(), 20).unwrap();
            for start in (0..1000).step_by(tile) {
                let n = tile.min(1000 - start);
                nearest
                    .look_among(
                        &train.narrow(0, start, n).unwrap(),
                        &labels[start..start + n],
                    )
                    .unwrap();
            }
            for (found, similarities) in nearest.into_sorted().iter().zip(&similarities) {
                let mut all: Vec<usize> = (0..1000).collect();
                all.sort_by(|&a, &b| similarities[b].total_cmp(&similarities[a]).then(a.cmp(&b)));
                let expected: Vec<u64> = all[..20].iter().map(|&at| at as u64).collect();
                let got: Vec<u64> = found.iter().map(|it| it.index).collect();
                assert_eq!(got, expected, "tiles of {tile}");
                assert!(found.iter().all(|it| it.label == labels[it.index as usize]));
            }
        }
    }

    fn neighbours(labels: &[(usize, f32)]) -> Vec<Neighbour> {
        let neighbour = |(index, &(label, similarity))| Neighbour {
            similarity,
            index,
            label,
        };
        (0u64..).zip(labels).map(neighbour).collect()
    }

    #[test]
    fn near_votes_outweigh_many() {
        // exp(0.9 / 0.07) = 3.8e5 against 3 exp(0.8 / 0.07) = 2.8e5, and exp(0.7 / 0.07) = 2.2e4.
        let found = neighbours(&[(5, 0.9), (2, 0.8), (2, 0.8), (2, 0.8), (0, 0.7)]);
        let place = |right| vote(&found, 0.07, right);
        assert_eq!([5, 2, 0, 1].map(place), [Some(0), Some(1), Some(2), None]);
        // With a higher temperature numbers count: 3 exp(0.8) > exp(0.9).
        assert_eq!(vote(&found, 1.0, 2), Some(0));
        assert_eq!(vote(&found[..1], 0.07, 5), Some(0));
        // Nothing overflows, however cold.
        assert_eq!(vote(&found, 1e-6, 5), Some(0));
    }

    #[test]
    fn ks_beyond_the_train_split_are_refused_and_the_papers_are_bounded() {
        let settings = |ks: &[usize], temperature| KnnSettings {
            data: LabelledData {
                train: String::new(),
                train_split: String::new(),
                val: String::new(),
                val_split: String::new(),
                n_classes: None,
                threads: 1,
            },
            pool: Pool::Cls,
            ks: ks.to_vec(),
            temperature,
        };
        let papers = |n_train| settings(&[], 0.07).resolved(n_train, &mut |_| {}).ks;
        assert_eq!(papers(1_281_167), [10, 20, 100, 200]);
        assert_eq!(papers(120), [10, 20, 100]);
        assert_eq!(papers(9), [0; 0]);
        settings(&[1, 120], 0.07).validate(120).unwrap();
        for (wrong, word) in [
            (settings(&[10, 121], 0.07), "1 to 120"),
            (settings(&[0], 0.07), "k is 0"),
            (settings(&[], 0.07), "k is missing"),
            (settings(&[1], 0.0), "temperature is 0"),
        ] {
            let message = wrong.validate(120).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
