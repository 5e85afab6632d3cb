//! Pictures with labels: a train and a val split of image shards, local or in a bucket.
//!
//! Letters: B batch, S side of a view, N patches, D width.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use pipeline::config::{DataConfig, Interpolation, OrderKind, ViewsKind};
use pipeline::loader::{Batch, Loader, LoaderState, Rank, Source, open};
use pipeline::{Stop, stall};
use serde::{Deserialize, Serialize};

use super::accuracy::{Hits, rank_of};
use super::encoder::{CheckpointId, FrozenEncoder};
use super::results::{DataHash, DataId, Failed};
use crate::device::Uploader;
use crate::error::{Error, Result};
use crate::models::Pool;

/// Pictures that an encoder sees at once where nothing is trained.
pub(super) const LOOK_BATCH: usize = 128;

/// Where the pictures are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelledData {
    /// Folder or URL of the shard set with the train split.
    pub train: String,
    /// Name of the train split.
    pub train_split: String,
    /// Folder or URL of the shard set with the val split.
    pub val: String,
    /// Name of the val split.
    pub val_split: String,
    /// Classes, for sets whose manifest does not name them.
    pub n_classes: Option<usize>,
    /// Threads that decode; 0: one less than the cores given, at least 1.
    pub threads: usize,
}

/// What an evaluation says while it works.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Something to read.
    Note(&'a str),
    /// So many of so many things of a stage are done.
    Done {
        /// The stage, such as `train features`.
        stage: &'static str,
        /// Done.
        done: u64,
        /// Of.
        total: u64,
        /// The latest figures, or nothing.
        note: String,
    },
}

/// One split.
pub struct LabelledSet {
    data: DataConfig,
    source: Arc<dyn Source>,
    class_ids: Vec<String>,
    n_classes: usize,
}

impl std::fmt::Debug for LabelledSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LabelledSet")
            .field("path", &self.data.path)
            .field("split", &self.data.split)
            .field("n_classes", &self.n_classes)
            .finish_non_exhaustive()
    }
}

impl LabelledData {
    /// Opens both splits.
    ///
    /// # Errors
    /// [`Error::Labels`] if one of them is empty, holds clips or has no labels, or if their classes differ;
    /// [`Error::Data`] if one does not open.
    pub fn open(&self) -> Result<[LabelledSet; 2]> {
        let open = |path: &str, split: &str| LabelledSet::open(path, split, self);
        let train = open(&self.train, &self.train_split)?;
        let val = open(&self.val, &self.val_split)?;
        let (ours, theirs) = (&train.class_ids, &val.class_ids);
        if train.n_classes != val.n_classes || ours != theirs {
            let first = ours
                .iter()
                .zip(theirs)
                .find(|(ours, theirs)| ours != theirs);
            let which = first.map_or(String::new(), |(ours, theirs)| {
                format!(", the first difference being {theirs}, expected {ours}")
            });
            return Err(val.refused(format!(
                "has {} classes, expected the {} of {} of {}{which}",
                val.n_classes, train.n_classes, self.train_split, self.train
            )));
        }
        Ok([train, val])
    }
}

impl LabelledSet {
    fn open(path: &str, split: &str, data: &LabelledData) -> Result<LabelledSet> {
        let config = DataConfig {
            path: path.to_owned(),
            split: split.to_owned(),
            threads: data.threads,
            interpolation: Interpolation::Bicubic,
            ..DataConfig::default()
        };
        let source = open::source(&config)?;
        Self::of_source(source, config, data.n_classes)
    }

    /// * `n_classes`: their number, where the source does not name them.
    fn of_source(
        source: Arc<dyn Source>,
        config: DataConfig,
        n_classes: Option<usize>,
    ) -> Result<LabelledSet> {
        let class_ids = source.class_ids();
        let mut set = LabelledSet {
            n_classes: class_ids.len(),
            data: config,
            source,
            class_ids,
        };
        if set.source.holds_clips() {
            return Err(set.refused("holds clips, expected images".to_owned()));
        }
        if set.n_samples() == 0 {
            return Err(set.refused("is empty, expected images".to_owned()));
        }
        let first = set.source.sample(0).map_err(pipeline::Error::from)?;
        let Some(label) = first.label else {
            return Err(set.refused(format!(
                "has no labels ({} has none), expected a set converted from class folders",
                first.key
            )));
        };
        match (set.n_classes, n_classes) {
            (0, Some(given)) => set.n_classes = given,
            (0, None) => {
                return Err(set.refused(format!(
                    "does not name its classes ({} has label {label}), expected their number to be given",
                    first.key
                )));
            }
            (named, Some(given)) if named != given => {
                return Err(set.refused(format!("has {named} classes, expected {given} as given")));
            }
            _ => {}
        }
        Ok(set)
    }

    /// An error about this split.
    pub(super) fn refused(&self, problem: String) -> Error {
        Error::Labels {
            path: self.data.path.clone(),
            split: self.data.split.clone(),
            problem,
        }
    }

    /// Pictures in it.
    pub fn n_samples(&self) -> u64 {
        self.source.n_samples()
    }

    /// Classes of it.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// The split's files, as its manifest has them; no files for sets that have no manifest.
    pub fn id(&self) -> DataId {
        let mut hash = DataHash::default();
        for file in self.source.files() {
            let part = DataId {
                n_files: 1,
                n_bytes: file.bytes,
                sha256: file.sha256,
            };
            hash.part(&file.name, &part);
        }
        hash.finish()
    }

    /// Shows every picture once, in the order of the set, as evaluations see it (see [`ViewsKind::Centre`]): pixels
    /// `[B, 3, S, S]`, normalised, and labels. Pictures that cannot be read are left out and returned.
    ///
    /// # Errors
    /// [`Error::Stopped`]; [`Error::Labels`] for a picture without a label; [`Error::Data`] for a broken set, or if more
    /// than 1 % of the pictures cannot be read; whatever `see` reports.
    pub fn visit(
        &self,
        size: usize,
        batch_size: usize,
        device: &Device,
        stop: &Stop,
        see: &mut dyn FnMut(&Tensor, &[usize]) -> Result<()>,
    ) -> Result<Vec<Failed>> {
        let n = self.n_samples();
        let batch_size = (batch_size as u64).min(n);
        let (n_whole, tail) = (n / batch_size, n % batch_size);
        let mut failed = Vec::new();
        let mut uploader = Uploader::new(device)?;
        // The loader gives whole batches alone; what does not fill one comes in batches of one.
        for (batch_size, first, n_batches) in [(batch_size, 0, n_whole), (1, n - tail, tail)] {
            if n_batches == 0 {
                continue;
            }
            let data = DataConfig {
                batch_size: batch_size as usize,
                order: Some(OrderKind::Sequential),
                views: ViewsKind::Centre,
                size: size as u32,
                ..self.data.clone()
            };
            let start = LoaderState {
                epoch: 0,
                batch: first,
            };
            let mut loader = self.loader(&data, 0, start)?;
            for _ in 0..n_batches {
                if stop.is_requested() {
                    return Err(Error::Stopped);
                }
                let batch = loader.next_batch()?;
                let _busy = stall::busy("evaluation", format!("batch {} of a split", batch.index));
                let at = batch.index * batch_size;
                // A picture that cannot be read was replaced by another, which has its own place already.
                let rows: Vec<usize> = (0..batch.len())
                    .filter(|&row| batch.samples[row] == at + row as u64)
                    .collect();
                let labels = rows
                    .iter()
                    .map(|&row| self.label(&batch, row))
                    .collect::<Result<Vec<_>>>()?;
                if !rows.is_empty() {
                    let pixels = uploader.upload(&batch)?.squeeze(1)?;
                    see(&chosen(pixels, &rows)?, &labels)?;
                }
                loader.recycle(batch);
            }
            let bad = loader.stats().bad.into_iter();
            failed.extend(bad.map(|bad| Failed {
                what: bad.key,
                why: bad.reason,
            }));
        }
        Ok(failed)
    }

    /// A loader of this split for training: `data` says how, but for the set.
    ///
    /// # Errors
    /// [`Error::Data`] if the split does not fill a batch.
    pub(super) fn training_loader(
        &self,
        data: &DataConfig,
        seed: u64,
        start: LoaderState,
    ) -> Result<Loader> {
        let data = DataConfig {
            path: self.data.path.clone(),
            split: self.data.split.clone(),
            threads: self.data.threads,
            ..data.clone()
        };
        self.loader(&data, seed, start)
    }

    fn loader(&self, data: &DataConfig, seed: u64, start: LoaderState) -> Result<Loader> {
        let source = Arc::clone(&self.source);
        Ok(Loader::from_source(
            source,
            data,
            seed,
            Rank::SINGLE,
            start,
        )?)
    }

    /// The class of a sample of a batch.
    ///
    /// # Errors
    /// [`Error::Labels`] if it has none, or one that the set does not have.
    pub(super) fn label(&self, batch: &Batch, row: usize) -> Result<usize> {
        let Some(label) = batch.labels[row] else {
            return Err(self.refused(format!(
                "has no label for {}, expected one for every picture",
                batch.keys[row]
            )));
        };
        usize::try_from(label)
            .ok()
            .filter(|&label| label < self.n_classes)
            .ok_or_else(|| {
                self.refused(format!(
                    "has label {label} for {}, expected 0 to {}",
                    batch.keys[row],
                    self.n_classes - 1
                ))
            })
    }
}

/// Some rows of a tensor, without a copy if they are all.
fn chosen(pixels: Tensor, rows: &[usize]) -> Result<Tensor> {
    if rows.len() == pixels.dim(0)? {
        return Ok(pixels);
    }
    let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    Ok(pixels.index_select(&Tensor::new(rows, pixels.device())?, 0)?)
}

/// The files of both splits.
pub(super) fn data_id(train: &LabelledSet, val: &LabelledSet) -> DataId {
    let mut hash = DataHash::default();
    hash.part("train", &train.id());
    hash.part("val", &val.id());
    hash.finish()
}

/// What a picture is classified by, `[B, D]`: the encoder's class token or the mean of its patches' tokens, after the final
/// norm.
///
/// # Errors
/// [`Error::Shape`] if the pictures do not fit the encoder.
pub fn features(encoder: &FrozenEncoder, pixels: &Tensor, pool: Pool) -> Result<Tensor> {
    pooled(&encoder.tokens(pixels)?, pool)
}

/// The class token of `[B, 1 + N, D]`, or the mean of the others.
pub(super) fn pooled(tokens: &Tensor, pool: Pool) -> Result<Tensor> {
    Ok(match pool {
        Pool::Cls => tokens.narrow(1, 0, 1)?.squeeze(1)?,
        Pool::Mean => tokens.narrow(1, 1, tokens.dim(1)? - 1)?.mean(1)?,
    })
}

/// The values of a matrix on the host, row by row.
pub(super) fn host_rows(matrix: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(matrix.to_device(&Device::Cpu)?.to_vec2::<f32>()?)
}

/// Counts a batch: `logits` `[B, C]`.
pub(super) fn add_hits(hits: &mut Hits, logits: &Tensor, labels: &[usize]) -> Result<()> {
    for (scores, &label) in host_rows(logits)?.iter().zip(labels) {
        hits.add(rank_of(label, scores));
    }
    Ok(())
}

/// What the result of a run depends on: its settings but for the threads, its weights and its data.
///
/// # Errors
/// [`Error::Config`] if the settings have no JSON form.
pub(super) fn identity<S: Serialize>(
    settings: &S,
    data: &LabelledData,
    checkpoint: &CheckpointId,
    id: &DataId,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let data = LabelledData {
        threads: 0,
        ..data.clone()
    };
    let json = |value: serde_json::Result<serde_json::Value>| {
        value.map_err(|error| Error::Config(error.to_string()))
    };
    let mut identity = match json(serde_json::to_value(settings))? {
        serde_json::Value::Object(fields) => fields,
        other => serde_json::Map::from_iter([("settings".to_owned(), other)]),
    };
    identity.insert("data".to_owned(), json(serde_json::to_value(data))?);
    identity.insert("data_sha256".to_owned(), id.sha256.clone().into());
    identity.insert(
        "weights_sha256".to_owned(),
        checkpoint.weights_sha256.clone().into(),
    );
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pipeline::codec::{Rgb8Image, encode_rgb8};
    use pipeline::loader::{Pictures, Sample};

    use super::*;
    use crate::device::{IMAGENET_MEAN, IMAGENET_STD};

    /// Grey pictures, some of them broken, with labels or without.
    struct Made {
        labels: Vec<Option<i32>>,
        broken: Vec<u64>,
        class_ids: Vec<String>,
        holds_clips: bool,
    }

    impl Pictures for Made {
        fn sample(&self, index: u64) -> shards::Result<Sample> {
            Ok(Sample {
                n_frames: 1,
                label: self.labels[index as usize],
                key: format!("picture {index}").into(),
            })
        }

        fn picture(&self, index: u64, _frame: u32) -> shards::Result<Bytes> {
            if self.broken.contains(&index) {
                return Ok(Bytes::from_static(b"no picture"));
            }
            let picture = Rgb8Image {
                width: 20,
                height: 16,
                data: vec![index as u8; 20 * 16 * 3],
            };
            Ok(encode_rgb8(&picture, 95).unwrap().into())
        }
    }

    impl Source for Made {
        fn n_samples(&self) -> u64 {
            self.labels.len() as u64
        }

        fn holds_clips(&self) -> bool {
            self.holds_clips
        }

        fn class_ids(&self) -> Vec<String> {
            self.class_ids.clone()
        }
    }

    fn made(n: usize) -> Made {
        Made {
            labels: (0..n).map(|i| Some(i as i32 % 3)).collect(),
            broken: Vec::new(),
            class_ids: ["a", "b", "c"].map(String::from).to_vec(),
            holds_clips: false,
        }
    }

    fn set(made: Made, n_classes: Option<usize>) -> Result<LabelledSet> {
        let config = DataConfig {
            path: "made".to_owned(),
            split: "val".to_owned(),
            threads: 2,
            ..DataConfig::default()
        };
        LabelledSet::of_source(Arc::new(made), config, n_classes)
    }

    /// Grey and label of every picture shown.
    type Seen = Vec<(u8, usize)>;

    /// What was shown, and what failed.
    fn visit(made: Made, n_classes: Option<usize>) -> Result<(Seen, Vec<Failed>)> {
        let mut seen = Vec::new();
        let failed =
            set(made, n_classes)?.visit(8, 4, &Device::Cpu, &Stop::new(), &mut |x, y| {
                assert_eq!(x.dims(), [y.len(), 3, 8, 8]);
                let reds = x.flatten_from(1)?.to_vec2::<f32>()?;
                let grey = |row: &Vec<f32>| {
                    let unit = row[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0];
                    (unit * 255.0).round() as u8
                };
                seen.extend(reds.iter().map(grey).zip(y.iter().copied()));
                Ok(())
            })?;
        Ok((seen, failed))
    }

    #[test]
    fn every_picture_is_shown_once_in_order_whether_or_not_it_fills_a_batch() {
        for n in [1, 3, 4, 8, 11] {
            let (seen, failed) = visit(made(n), None).unwrap();
            let expected: Vec<(u8, usize)> = (0..n).map(|i| (i as u8, i % 3)).collect();
            assert_eq!(seen, expected);
            assert!(failed.is_empty());
        }
    }

    #[test]
    fn a_broken_picture_is_left_out_and_its_stand_in_too() {
        for broken in [2, 10] {
            let made = Made {
                broken: vec![broken],
                ..made(11)
            };
            let (seen, failed) = visit(made, None).unwrap();
            let expected: Vec<u8> = (0..11).filter(|&i| u64::from(i) != broken).collect();
            assert_eq!(
                seen.iter().map(|(grey, _)| *grey).collect::<Vec<_>>(),
                expected
            );
            assert_eq!(failed[0].what, format!("picture {broken}"));
        }
        let broken = vec![2, 3, 4];
        let made = Made { broken, ..made(11) };
        let error = visit(made, None).unwrap_err();
        assert!(
            matches!(error, Error::Data(pipeline::Error::TooManyBad { .. })),
            "{error}"
        );
    }

    #[test]
    fn splits_without_what_is_needed_are_refused() {
        let nameless = |n| Made {
            class_ids: Vec::new(),
            ..made(n)
        };
        let message = |made: Made, n_classes| visit(made, n_classes).unwrap_err().to_string();
        let clips = Made {
            holds_clips: true,
            ..made(5)
        };
        let unlabelled = Made {
            labels: vec![None; 5],
            ..nameless(5)
        };
        let gap = Made {
            labels: vec![Some(0), None],
            ..made(2)
        };
        for (got, expected) in [
            (message(made(0), None), "split val of made is empty"),
            (message(clips, None), "holds clips"),
            (
                message(unlabelled, None),
                "has no labels (picture 0 has none)",
            ),
            (message(gap, None), "has no label for picture 1"),
            (message(nameless(5), None), "does not name its classes"),
            (
                message(nameless(5), Some(2)),
                "has label 2 for picture 2, expected 0 to 1",
            ),
            (message(made(5), Some(7)), "has 3 classes, expected 7"),
        ] {
            assert!(got.contains(expected), "{got}");
        }
        assert_eq!(visit(nameless(5), Some(3)).unwrap().0.len(), 5);
    }

    #[test]
    fn stopping_stops() {
        let stop = Stop::new();
        stop.request();
        let set = set(made(5), None).unwrap();
        let stopped = set.visit(8, 4, &Device::Cpu, &stop, &mut |_, _| Ok(()));
        assert!(matches!(stopped, Err(Error::Stopped)));
    }

    #[test]
    fn pooling_takes_the_class_token_or_the_mean_of_the_others() {
        let tokens = Tensor::new(&[[[1f32, 2.0], [3.0, 5.0], [5.0, 9.0]]], &Device::Cpu).unwrap();
        let of = |pool| pooled(&tokens, pool).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(of(Pool::Cls), [[1.0, 2.0]]);
        assert_eq!(of(Pool::Mean), [[4.0, 7.0]]);
    }
}
