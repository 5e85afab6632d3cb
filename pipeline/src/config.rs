//! What a run trains on: which shards, in which order, cut into which views.
//!
//! Every field has the reference's published value or, where it has none, a stated default; [`DataConfig::validate`]
//! checks the combinations before anything is opened.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shards::{CacheOptions, StoreOptions, check_address};

use crate::error::{Error, Result};

/// The `[data]` table of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Folder or URL of the shard set.
    pub path: String,
    /// Split of the set.
    pub split: String,
    /// Which samples of the set are used (all).
    #[serde(skip_serializing_if = "Select::is_all")]
    pub select: Select,
    /// Several sets that are mixed, in place of `path`, `split` and `select`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceConfig>,
    /// Pairs per micro-batch, over all ranks (papers: 2048); at most 64 GiB of views.
    pub batch_size: usize,
    /// Order of the samples; absent: `full` for local sets, `blocks` for remote ones and for Parquet files of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderKind>,
    /// Row groups shuffled together under `order = "blocks"`.
    pub window_groups: usize,
    /// Whether single pictures are read or whole row groups; absent: what fetches fewer bytes from a bucket, and single
    /// pictures from a disk. It changes nothing in the batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<ReadKind>,
    /// Memory for row groups that are read ahead, in MiB.
    pub read_ahead_mib: u64,
    /// Threads that decode and cut views, at most 1024; 0: one less than the cores given, at least 1. The cores given are
    /// those that affinity and a cgroup's quota leave.
    pub threads: usize,
    /// Whether each thread that decodes stays on a core of its own (Linux only; off). Cores are taken from the end of the
    /// affinity mask, so the first ones are left to the training thread; ranks on one machine need masks of their own.
    pub pin: bool,
    /// Reads under way at once, at most 1024; 0: 1 for a disk, and for a bucket 128 of single pictures or 8 of row groups.
    pub io_threads: usize,
    /// Patience and traffic of remote stores.
    #[serde(skip_serializing_if = "is_default")]
    pub store: StoreOptions,
    /// Where what was read of remote stores is kept on this machine (nowhere).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheOptions>,
    /// Batches being made or waiting beyond the one in use, at most 1024.
    pub prefetch_batches: usize,
    /// Bad samples that are replaced before the run ends with an error, as a share of the split (`"1%"`) or a count.
    /// Counted from the start of each session: a run that is resumed begins at 0 again.
    pub max_bad: MaxBad,
    /// Views drawn from each sample in an epoch (SiamMAE: 2). Every sample is visited that often each epoch; the
    /// reference's loop reads only 1/R of the samples, which is not copied.
    pub repeated_sampling: u64,
    /// What one sample becomes.
    pub views: ViewsKind,
    /// Side of a view in pixels (224).
    pub size: u32,
    /// How a crop pair is cut (`views = "crop_pair"`).
    pub strategy: Strategy,
    /// Area of the global crop as a share of the picture's (CropMAE: ImageNet 0.1-1, K400 0.5-1).
    pub global_area: [f64; 2],
    /// Area of the local crop as a share of the global view's (CropMAE: 0.3-0.6).
    pub local_area: [f64; 2],
    /// Area of each crop for `views = "single"` and `"multi_view"` (MAE: 0.2-1).
    pub view_area: [f64; 2],
    /// Area of the crop shared by both frames for `views = "frame_pair"` (SiamMAE: 0.5-1).
    pub frame_area: [f64; 2],
    /// Width over height of every crop (3/4 to 4/3).
    pub aspect: [f64; 2],
    /// Probability of a horizontal flip (0.5).
    pub flip_p: f64,
    /// How faithfully JPEG pictures are decoded (`exact`).
    pub decode: DecodeKind,
    /// Filter of the resize, always antialiased (CropMAE, SiamMAE: bilinear; MAE: bicubic).
    pub interpolation: Interpolation,
    /// How crop boxes are drawn (the papers' runs: torchvision).
    pub sampler: Sampler,
    /// Smallest distance of a frame pair in frames (4). Short clips: see [`crate::views::frame_pair`].
    pub min_gap: u32,
    /// Bound of the distance of a frame pair in frames, itself excluded (48: at most 47).
    pub max_gap: u32,
    /// Colour changes of the whole view `f1` (none).
    #[serde(skip_serializing_if = "AugmentConfig::is_off")]
    pub augment_f1: AugmentConfig,
    /// Colour changes of the masked view `f2` (none).
    #[serde(skip_serializing_if = "AugmentConfig::is_off")]
    pub augment_f2: AugmentConfig,
    /// RandAugment of every view, before the colour changes (none); for supervised training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugmentConfig>,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: String::new(),
            split: "train".to_owned(),
            select: Select::default(),
            sources: Vec::new(),
            batch_size: 256,
            order: None,
            window_groups: 16,
            read: None,
            read_ahead_mib: 1024,
            threads: 0,
            pin: false,
            io_threads: 0,
            store: StoreOptions::default(),
            cache: None,
            prefetch_batches: 2,
            max_bad: MaxBad::Percent(1.0),
            repeated_sampling: 1,
            views: ViewsKind::CropPair,
            size: 224,
            strategy: Strategy::GlobalToLocal,
            global_area: [0.1, 1.0],
            local_area: [0.3, 0.6],
            view_area: [0.2, 1.0],
            frame_area: [0.5, 1.0],
            aspect: [3.0 / 4.0, 4.0 / 3.0],
            flip_p: 0.5,
            decode: DecodeKind::Exact,
            interpolation: Interpolation::Bilinear,
            sampler: Sampler::Torchvision,
            min_gap: 4,
            max_gap: 48,
            augment_f1: AugmentConfig::default(),
            augment_f2: AugmentConfig::default(),
            rand_augment: None,
        }
    }
}

/// One of the sets that are mixed: a `[[data.sources]]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// Folder or URL of the shard set.
    pub path: String,
    /// Split of the set.
    pub split: String,
    /// Visits of each of its samples in an epoch, times `repeated_sampling`: 2 visits each twice, 0.5 a half of them,
    /// which changes from epoch to epoch.
    pub weight: f64,
    /// Which samples of the set are used (all).
    #[serde(skip_serializing_if = "Select::is_all")]
    pub select: Select,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            path: String::new(),
            split: "train".to_owned(),
            weight: 1.0,
            select: Select::default(),
        }
    }
}

/// Which samples of a set are used: those that meet every condition given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// Of one of these classes: ids (`n01440764`), names (`tench`) or labels (`"0"`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// With a key that one of these patterns matches; `*` stands for any text, `?` for any character, `[ab]` for one of
    /// these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// With a key that stands in this file, one a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_list: Option<PathBuf>,
    /// Of what is left the first so many as stored, which `convert` has shuffled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_samples: Option<u64>,
}

impl SourceConfig {
    fn validate(&self) -> Result<()> {
        let address = "the folder or URL of a shard set";
        check(!self.path.is_empty(), "data.sources.path", "\"\"", address)?;
        check_address(&self.path)?;
        check(
            !self.split.is_empty(),
            "data.split",
            "\"\"",
            "a name such as \"train\"",
        )?;
        check(
            self.weight > 0.0 && self.weight <= MAX_WEIGHT,
            "data.sources.weight",
            self.weight,
            format!("visits above 0 and up to {MAX_WEIGHT}"),
        )?;
        let Select {
            keys, max_samples, ..
        } = &self.select;
        for pattern in keys {
            check(
                glob::Pattern::new(pattern).is_ok(),
                "data.select.keys",
                format!("{pattern:?}"),
                "a pattern such as \"n01440764/*\"",
            )?;
        }
        check(
            *max_samples != Some(0),
            "data.select.max_samples",
            0,
            "at least 1",
        )
    }
}

/// Most visits of a sample in an epoch by its source's weight.
const MAX_WEIGHT: f64 = 1e6;

impl Select {
    /// Whether no sample is left out.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

/// Order in which an epoch visits the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    /// A random permutation of the whole split: the best shuffle, one random read a picture.
    Full,
    /// Row groups in random order, samples shuffled within a window of them: nearly sequential reads.
    Blocks,
    /// As stored, the same each epoch.
    Sequential,
}

/// What is read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadKind {
    /// The pictures that the views need, each by itself.
    Pages,
    /// Whole row groups, each at most once an epoch.
    Groups,
}

/// What one sample becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewsKind {
    /// Two crops of one picture (CropMAE); of a clip, one random frame is taken.
    CropPair,
    /// Two frames of a clip with the same crop and flip (SiamMAE).
    FramePair,
    /// One crop (MAE).
    Single,
    /// Two independent crops of one picture, both masked later (Multi-View MAE).
    MultiView,
    /// The middle of the picture, nothing random about it, as evaluations see it: its short side resized to 256 px for
    /// views of 224, then the central square.
    Centre,
}

/// How the two crops of a pair relate. View 0 is the whole one (`f1`), view 1 the masked one (`f2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// `f1` a global crop, `f2` a local crop cut out of the resized `f1`.
    GlobalToLocal,
    /// The same two crops with their roles swapped.
    LocalToGlobal,
    /// Two independent global crops.
    Random,
    /// One global crop with one flip, twice.
    Same,
}

/// How faithfully JPEG pictures are decoded. Either way only the part that a sample's crops need is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeKind {
    /// Every pixel as decoding the whole picture gives it.
    Exact,
    /// Where every crop of a sample is at least 2, 4 or 8 times as large as a view in both directions, the picture is
    /// reduced by that factor in decoding. The loader's statistics say by how much that changes the views.
    Fast,
}

/// Filter of the resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic filter with a = -0.5, as Pillow's.
    Bicubic,
}

/// How crop boxes are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// Ten tries, then a central crop: what the reference runs.
    Torchvision,
    /// One try, clamped to the picture: what the reference's source says but never runs.
    Byol,
}

/// How many bad samples are borne: a share of the split in percent or a count. Written `"1%"` or `20`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxBad {
    /// Percent of the split's samples, rounded up.
    Percent(f64),
    /// Number of samples.
    Count(u64),
}

impl MaxBad {
    /// The largest number of bad samples among `n_samples` that is not yet an error.
    pub fn limit(self, n_samples: u64) -> u64 {
        match self {
            Self::Percent(percent) => (percent / 100.0 * n_samples as f64).ceil() as u64,
            Self::Count(count) => count,
        }
    }
}

impl fmt::Display for MaxBad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

impl FromStr for MaxBad {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wanted =
            || format!("{text:?} is neither a share such as \"1%\" nor a count such as 20");
        match text.strip_suffix('%') {
            Some(number) => match number.trim().parse::<f64>() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Percent(percent)),
                _ => Err(wanted()),
            },
            None => text.trim().parse().map(Self::Count).map_err(|_| wanted()),
        }
    }
}

impl Serialize for MaxBad {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Percent(_) => serializer.collect_str(self),
            Self::Count(count) => serializer.serialize_u64(*count),
        }
    }
}

impl<'de> Deserialize<'de> for MaxBad {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Count(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Count(count) => Ok(Self::Count(count)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Colour changes of one view, drawn anew for each sample and applied to 8-bit pixels before normalisation.
///
/// This departs from the reference on purpose: its flags act after normalisation (the jitter clamps to 0..1 there),
/// touch the global view only, and its blur raises an error. Everything is off by default, as in the papers' runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentConfig {
    /// Probability of the colour jitter (SimCLR: 0.8).
    pub jitter_p: f64,
    /// Brightness factor drawn from `1 - b .. 1 + b`, not below 0.
    pub brightness: f64,
    /// Contrast factor, likewise.
    pub contrast: f64,
    /// Saturation factor, likewise.
    pub saturation: f64,
    /// Hue shift drawn from `-h .. h`, in turns of the colour circle, at most 0.5.
    pub hue: f64,
    /// Probability of grayscale (SimCLR: 0.2).
    pub grayscale_p: f64,
    /// Probability of the Gaussian blur (SimCLR: 0.5).
    pub blur_p: f64,
    /// Standard deviation of the blur in pixels of the view, drawn from this range.
    pub blur_sigma: [f64; 2],
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            jitter_p: 0.0,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.1,
            grayscale_p: 0.0,
            blur_p: 0.0,
            blur_sigma: [0.1, 2.0],
        }
    }
}

/// Random changes of a view, a few of fifteen kinds (see [`crate::views::rand_augment`]). The defaults are timm's
/// `rand-m9-mstd0.5-inc1`, which MAE fine-tunes with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandAugmentConfig {
    /// Changes drawn for a view, each made with probability 0.5.
    pub n_changes: u32,
    /// Mean strength of a change, 0 to 10.
    pub magnitude: f64,
    /// Standard deviation of the strength.
    pub magnitude_std: f64,
}

impl Default for RandAugmentConfig {
    fn default() -> Self {
        Self {
            n_changes: 2,
            magnitude: 9.0,
            magnitude_std: 0.5,
        }
    }
}

impl RandAugmentConfig {
    fn validate(&self) -> Result<()> {
        for (field, value, expected) in [
            ("magnitude", self.magnitude, "a number from 0 to 10"),
            ("magnitude_std", self.magnitude_std, "a number from 0 to 10"),
            (
                "n_changes",
                f64::from(self.n_changes),
                "a count from 0 to 10",
            ),
        ] {
            check(
                (0.0..=10.0).contains(&value),
                "data.rand_augment",
                format!("{field} = {value}"),
                expected,
            )?;
        }
        Ok(())
    }
}

impl AugmentConfig {
    /// Whether no change is ever made.
    pub fn is_off(&self) -> bool {
        self.jitter_p == 0.0 && self.grayscale_p == 0.0 && self.blur_p == 0.0
    }

    fn validate(&self, name: &'static str) -> Result<()> {
        for (field, p) in [
            ("jitter_p", self.jitter_p),
            ("grayscale_p", self.grayscale_p),
            ("blur_p", self.blur_p),
        ] {
            check(
                (0.0..=1.0).contains(&p),
                name,
                format!("{field} = {p}"),
                "a probability from 0 to 1",
            )?;
        }
        for (field, strength) in [
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
        ] {
            check(
                strength >= 0.0 && strength.is_finite(),
                name,
                format!("{field} = {strength}"),
                "a number from 0",
            )?;
        }
        check(
            (0.0..=0.5).contains(&self.hue),
            name,
            format!("hue = {}", self.hue),
            "a number from 0 to 0.5",
        )?;
        let [low, high] = self.blur_sigma;
        let rises = low > 0.0 && low <= high && high <= 32.0;
        check(
            rises,
            name,
            format!("blur_sigma = [{low}, {high}]"),
            "a rising range above 0 and up to 32",
        )
    }
}

impl DataConfig {
    /// The sets to read: `sources`, or the one that `path`, `split` and `select` name.
    pub fn sources(&self) -> Vec<SourceConfig> {
        if !self.sources.is_empty() {
            return self.sources.clone();
        }
        vec![SourceConfig {
            path: self.path.clone(),
            split: self.split.clone(),
            weight: 1.0,
            select: self.select.clone(),
        }]
    }

    /// Whether any of the sets lies in a bucket.
    pub fn is_remote(&self) -> bool {
        let mut paths = self.sources().into_iter().map(|source| source.path);
        paths.any(|path| shards::is_remote(&path))
    }

    /// The order of the samples: `order`, or where it is absent what suits the place of the sets: `full` on a disk, but
    /// `blocks` in a bucket and for folders without a manifest, whose Parquet files are read by whole row groups.
    pub fn order_in_force(&self) -> OrderKind {
        let reads_groups = |source: &SourceConfig| {
            let folder = source.path.strip_prefix("file://").unwrap_or(&source.path);
            let folder = Path::new(folder);
            folder.is_dir() && !folder.join(shards::MANIFEST_NAME).exists()
        };
        let suiting = if self.is_remote() || self.sources().iter().any(reads_groups) {
            OrderKind::Blocks
        } else {
            OrderKind::Full
        };
        self.order.unwrap_or(suiting)
    }

    /// Checks every value and their combinations; opens nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        if self.sources.is_empty() {
            check(
                !self.path.is_empty(),
                "data.path",
                "\"\"",
                "the folder or URL of a shard set",
            )?;
        } else {
            let alone = self.path.is_empty() && self.select.is_all();
            let expected =
                "nothing beside data.sources, whose entries have their own path and select";
            check(alone, "data.path", format!("{:?}", self.path), expected)?;
        }
        for source in self.sources() {
            source.validate()?;
        }
        self.store.validate()?;
        self.cache.as_ref().map_or(Ok(()), CacheOptions::validate)?;
        for (name, value) in [
            ("data.batch_size", self.batch_size as u64),
            ("data.window_groups", self.window_groups as u64),
            ("data.read_ahead_mib", self.read_ahead_mib),
            ("data.prefetch_batches", self.prefetch_batches as u64),
            ("data.repeated_sampling", self.repeated_sampling),
            ("data.min_gap", u64::from(self.min_gap)),
        ] {
            check(value > 0, name, value, "at least 1")?;
        }
        for (name, value) in [
            ("data.threads", self.threads),
            ("data.io_threads", self.io_threads),
            ("data.prefetch_batches", self.prefetch_batches),
        ] {
            let expected = format!("at most {MAX_WORKERS}");
            check(value <= MAX_WORKERS, name, value, expected)?;
        }
        check(
            (1..=MAX_SIZE_PX).contains(&self.size),
            "data.size",
            self.size,
            "1 to 4096 px",
        )?;
        let size = u64::from(self.size);
        let batch_bytes = (self.batch_size as u64).saturating_mul(MAX_VIEWS * 3 * size * size);
        check(
            batch_bytes <= MAX_BATCH_BYTES,
            "data.batch_size",
            self.batch_size,
            format!(
                "at most {} with views of data.size = {size} px, which are 64 GiB; optim.accum_steps makes larger steps of \
                 smaller batches",
                MAX_BATCH_BYTES / (MAX_VIEWS * 3 * size * size)
            ),
        )?;
        let above = format!(
            "more than data.min_gap = {}, being excluded itself",
            self.min_gap
        );
        check(
            self.max_gap > self.min_gap,
            "data.max_gap",
            self.max_gap,
            above,
        )?;
        check(
            (0.0..=1.0).contains(&self.flip_p),
            "data.flip_p",
            self.flip_p,
            "a probability from 0 to 1",
        )?;
        for (name, [low, high]) in [
            ("data.global_area", self.global_area),
            ("data.local_area", self.local_area),
            ("data.view_area", self.view_area),
            ("data.frame_area", self.frame_area),
        ] {
            let rises = low > 0.0 && low <= high && high <= 1.0;
            check(
                rises,
                name,
                format!("[{low}, {high}]"),
                "a rising range above 0 and up to 1",
            )?;
        }
        let [low, high] = self.aspect;
        let rises = low > 0.0 && low <= high && high.is_finite();
        check(
            rises,
            "data.aspect",
            format!("[{low}, {high}]"),
            "a rising range above 0",
        )?;
        if let MaxBad::Percent(percent) = self.max_bad {
            check(
                (0.0..=100.0).contains(&percent),
                "data.max_bad",
                self.max_bad,
                "0% to 100%, or a count",
            )?;
        }
        self.augment_f1.validate("data.augment_f1")?;
        self.augment_f2.validate("data.augment_f2")?;
        self.rand_augment
            .as_ref()
            .map_or(Ok(()), RandAugmentConfig::validate)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Largest side of a view; beyond it a batch does not fit any memory.
const MAX_SIZE_PX: u32 = 4096;

/// Views of a sample, at most.
const MAX_VIEWS: u64 = 2;

/// Largest batch, over all ranks: a hundred times the papers' 2048 pairs.
const MAX_BATCH_BYTES: u64 = 64 << 30;

/// Most threads of a kind, and most batches in the making: more than any machine can use, and a sign of a slip.
const MAX_WORKERS: usize = 1024;

fn check(
    holds: bool,
    name: &'static str,
    value: impl ToString,
    expected: impl Into<String>,
) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::Invalid {
            name,
            value: value.to_string(),
            expected: expected.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> DataConfig {
        DataConfig {
            path: "shards".into(),
            ..DataConfig::default()
        }
    }

    #[test]
    fn defaults_are_valid_once_there_is_a_path() {
        valid().validate().unwrap();
        assert!(
            DataConfig::default()
                .validate()
                .unwrap_err()
                .to_string()
                .starts_with("data.path")
        );
    }

    #[test]
    fn survives_serialisation() {
        let config = DataConfig {
            max_bad: MaxBad::Percent(2.5),
            order: Some(OrderKind::Blocks),
            augment_f2: AugmentConfig {
                blur_p: 0.5,
                ..AugmentConfig::default()
            },
            ..valid()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DataConfig>(&text).unwrap(), config);
        assert!(
            text.contains("\"2.5%\"")
                && text.contains("\"global_to_local\"")
                && !text.contains("augment_f1")
        );
    }

    #[test]
    fn bad_limits_read_as_share_or_count() {
        let read = |text: &str| serde_json::from_str::<MaxBad>(text);
        assert_eq!(read("\"1%\"").unwrap(), MaxBad::Percent(1.0));
        assert_eq!(read("\"12\"").unwrap(), MaxBad::Count(12));
        assert_eq!(read("12").unwrap(), MaxBad::Count(12));
        for wrong in ["\"many\"", "\"101%\"", "\"-1%\"", "-3", "1.5"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(MaxBad::Percent(1.0).limit(300), 3);
        assert_eq!(MaxBad::Percent(1.0).limit(20), 1);
        assert_eq!(MaxBad::Percent(0.0).limit(20), 0);
        assert_eq!(MaxBad::Count(7).limit(3), 7);
    }

    #[test]
    fn refuses_what_cannot_be_trained_on() {
        type Spoil = fn(&mut DataConfig);
        let cases: [(&str, Spoil); 18] = [
            ("data.batch_size", |c| c.batch_size = 0),
            ("data.batch_size", |c| c.batch_size = 1_000_000_000_000),
            ("data.batch_size", |c| {
                (c.batch_size, c.size) = (1 << 20, 4096);
            }),
            ("data.prefetch_batches", |c| c.prefetch_batches = 0),
            ("data.repeated_sampling", |c| c.repeated_sampling = 0),
            ("data.window_groups", |c| c.window_groups = 0),
            ("data.threads", |c| c.threads = 1025),
            ("data.io_threads", |c| c.io_threads = 1_000_000),
            ("data.prefetch_batches", |c| c.prefetch_batches = 1025),
            ("data.size", |c| c.size = 0),
            ("data.max_gap", |c| c.max_gap = 4),
            ("data.min_gap", |c| c.min_gap = 0),
            ("data.flip_p", |c| c.flip_p = 1.5),
            ("data.local_area", |c| c.local_area = [0.6, 0.3]),
            ("data.global_area", |c| c.global_area = [0.0, 1.0]),
            ("data.aspect", |c| c.aspect = [0.75, f64::INFINITY]),
            ("data.augment_f1", |c| c.augment_f1.hue = 0.7),
            ("data.rand_augment", |c| {
                let magnitude = 11.0;
                c.rand_augment = Some(RandAugmentConfig {
                    magnitude,
                    ..RandAugmentConfig::default()
                });
            }),
        ];
        for (name, spoil) in cases {
            let mut config = valid();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }

    #[test]
    fn unknown_fields_are_errors() {
        assert!(serde_json::from_str::<DataConfig>("{\"batchsize\": 3}").is_err());
    }
}
