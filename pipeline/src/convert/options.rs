//! What a caller can choose.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::coding::{MAX_PSNR, MIN_PSNR};
use super::contain::Containment;
use super::error::{Error, Result};
use super::part::Part;
use crate::config::MaxBad;

const MIB: u64 = 1 << 20;

/// More threads than any machine can use, and a sign of a slip.
const MAX_WORKERS: usize = 1024;

/// Options of [`imagenet`](super::imagenet).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagenetOptions {
    /// What images and clips have in common.
    #[serde(flatten)]
    pub common: CommonOptions,
    /// Pictures whose shorter side is longer than this, in pixels, are reduced to it and coded anew as JPEG;
    /// all others keep their bytes. `None` keeps the bytes of all. The reference keeps them.
    pub short_side: Option<u32>,
    /// JPEG quality of the pictures coded anew, 1 to 100.
    pub quality: u8,
    /// Chooses quality and chroma for each of them in place of `quality`, so that no picture is farther than this from what
    /// was coded: peak signal-to-noise ratio in dB, 20 to 45.
    pub min_psnr: Option<f64>,
    /// How pictures that keep their bytes are looked at.
    pub check: Check,
}

impl Default for ImagenetOptions {
    fn default() -> Self {
        Self {
            common: CommonOptions::default(),
            short_side: None,
            quality: 90,
            min_psnr: None,
            check: Check::Full,
        }
    }
}

/// Options of [`kinetics`](super::kinetics).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KineticsOptions {
    /// What images and clips have in common.
    #[serde(flatten)]
    pub common: CommonOptions,
    /// A list of clips or a Kinetics table; the source folder is then where its files are looked for.
    pub list: Option<PathBuf>,
    /// Frames whose shorter side is longer than this, in pixels, are reduced to it. `None` keeps their size.
    pub short_side: Option<u32>,
    /// JPEG quality of the frames, 1 to 100.
    pub quality: u8,
    /// As [`ImagenetOptions::min_psnr`], for each frame.
    pub min_psnr: Option<f64>,
    /// Keeps every so-maniest frame, counted from the start of the range.
    pub frame_stride: u32,
    /// Keeps only these frames, counted in what really decodes.
    pub frame_range: FrameRange,
    /// Decodes in processes of their own; `None` decodes in this one, which a clip can then take down. Has no effect on
    /// clips that need neither more time nor more memory than it allows.
    #[serde(skip)]
    pub containment: Option<Containment>,
}

impl Default for KineticsOptions {
    fn default() -> Self {
        Self {
            common: CommonOptions::default(),
            list: None,
            short_side: Some(256),
            quality: 90,
            min_psnr: None,
            frame_stride: 1,
            frame_range: FrameRange::default(),
            containment: None,
        }
    }
}

/// Options that images and clips share. Flattened into theirs, so a file of options stays flat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommonOptions {
    /// Name of the split that is made: `train`, `val`.
    pub split: String,
    /// Threads that decode, at most 1024; 0 takes one for each core. Has no effect on the result.
    pub workers: usize,
    /// Size of a shard to aim at, in bytes.
    pub shard_bytes: u64,
    /// Size of a row group to aim at, in bytes of pictures.
    pub row_group_bytes: u64,
    /// Lays the items out in the permutation of this seed, so that neighbours are of different classes and
    /// reading a set block by block is well mixed. `None` keeps the order of the keys.
    pub shuffle_seed: Option<u64>,
    /// A file `id<TAB or space>name` a line: names the classes, and its ids, sorted, number them.
    /// Without it the classes are those found, sorted, and their names are their ids.
    pub class_names: Option<PathBuf>,
    /// More broken items than this end the run.
    pub max_bad: MaxBad,
    /// The share of the shards that this run makes; `finish` then has to be called. `None` makes all and finishes.
    pub part: Option<Part>,
}

impl Default for CommonOptions {
    fn default() -> Self {
        Self {
            split: "train".into(),
            workers: 0,
            shard_bytes: 256 * MIB,
            row_group_bytes: 16 * MIB,
            shuffle_seed: Some(0),
            class_names: None,
            max_bad: MaxBad::Percent(1.0),
            part: None,
        }
    }
}

/// How a picture that keeps its bytes is looked at before it goes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Decode it whole: a cut or damaged picture is found now and not in training.
    #[default]
    Full,
    /// Read its header alone: fast, finds what is no picture at all.
    Header,
}

impl FromStr for Check {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "full" => Ok(Self::Full),
            "header" => Ok(Self::Header),
            _ => Err(Error::Option {
                name: "check",
                value: text.into(),
                expected: "'full' or 'header'",
            }),
        }
    }
}

/// Frames `start..end` of a clip, `end` excluded; all by default. Written `10..200`, `10..`, `..200`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FrameRange {
    /// First frame.
    pub start: u64,
    /// The frame after the last one; `None` is the clip's end.
    pub end: Option<u64>,
}

impl FrameRange {
    /// Whether a frame number lies past the range, and so all that follow it.
    pub fn is_past(&self, frame: u64) -> bool {
        self.end.is_some_and(|end| frame >= end)
    }
}

impl fmt::Display for FrameRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..", self.start)?;
        self.end.map_or(Ok(()), |end| write!(f, "{end}"))
    }
}

impl FromStr for FrameRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Option {
            name: "frame_range",
            value: text.into(),
            expected: "start..end, start.. or ..end with start < end",
        };
        let (start, end) = text.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let start = if start.is_empty() { 0 } else { number(start)? };
        let end = if end.is_empty() {
            None
        } else {
            Some(number(end)?)
        };
        if end.is_some_and(|end| end <= start) {
            return Err(wrong());
        }
        Ok(Self { start, end })
    }
}

impl TryFrom<String> for FrameRange {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<FrameRange> for String {
    fn from(range: FrameRange) -> Self {
        range.to_string()
    }
}

impl CommonOptions {
    fn validate(&self, short_side: Option<u32>, quality: u8, min_psnr: Option<f64>) -> Result<()> {
        let wrong = |name, value: String, expected| {
            Err(Error::Option {
                name,
                value,
                expected,
            })
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if self.split.is_empty() || self.split.starts_with('.') || !self.split.chars().all(plain) {
            return wrong(
                "split",
                self.split.clone(),
                "letters, digits, '_' and '.', not '.' first",
            );
        }
        if self.workers > MAX_WORKERS {
            let expected = "at most 1024 threads";
            return wrong("workers", self.workers.to_string(), expected);
        }
        if self.shard_bytes == 0 {
            return wrong("shard_bytes", "0".into(), "at least 1");
        }
        if self.row_group_bytes == 0 {
            return wrong("row_group_bytes", "0".into(), "at least 1");
        }
        if short_side == Some(0) {
            return wrong("short_side", "0".into(), "at least 1 pixel");
        }
        if !(1..=100).contains(&quality) {
            return wrong("quality", quality.to_string(), "1 to 100");
        }
        if let Some(psnr) = min_psnr
            && !(MIN_PSNR..=MAX_PSNR).contains(&psnr)
        {
            return wrong("min_psnr", psnr.to_string(), "20 to 45 dB");
        }
        Ok(())
    }

    fn record(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("shard_bytes".into(), json!(self.shard_bytes));
        map.insert("row_group_bytes".into(), json!(self.row_group_bytes));
        map.insert("shuffle_seed".into(), json!(self.shuffle_seed));
        map
    }

    /// Number of decoding threads to start.
    pub(crate) fn n_workers(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// What decides on the bytes of pictures coded anew.
fn coding(quality: u8, min_psnr: Option<f64>) -> (String, Value) {
    min_psnr.map_or_else(
        || ("quality".into(), json!(quality)),
        |psnr| ("min_psnr".into(), json!(psnr)),
    )
}

impl ImagenetOptions {
    /// # Errors
    /// [`Error::Option`] for the first value outside its range.
    pub fn validate(&self) -> Result<()> {
        self.common
            .validate(self.short_side, self.quality, self.min_psnr)
    }

    /// The options that change the result: what a shard and the manifest record.
    pub(crate) fn record(&self) -> Map<String, Value> {
        let mut map = self.common.record();
        match self.short_side {
            Some(short_side) => {
                map.insert("short_side".into(), json!(short_side));
                map.extend([coding(self.quality, self.min_psnr)]);
            }
            None => {
                map.insert("short_side".into(), Value::Null);
            }
        }
        map.insert("check".into(), json!(self.check));
        map
    }
}

impl KineticsOptions {
    /// # Errors
    /// [`Error::Option`] for the first value outside its range.
    pub fn validate(&self) -> Result<()> {
        self.common
            .validate(self.short_side, self.quality, self.min_psnr)?;
        if self.frame_stride == 0 {
            return Err(Error::Option {
                name: "frame_stride",
                value: "0".into(),
                expected: "at least 1",
            });
        }
        self.containment
            .as_ref()
            .map_or(Ok(()), Containment::validate)
    }

    /// The options that change the result: what a shard and the manifest record.
    pub(crate) fn record(&self) -> Map<String, Value> {
        let mut map = self.common.record();
        map.insert("short_side".into(), json!(self.short_side));
        map.extend([coding(self.quality, self.min_psnr)]);
        map.insert("frame_stride".into(), json!(self.frame_stride));
        map.insert("frame_range".into(), json!(self.frame_range));
        map
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn frame_ranges_are_half_open() {
        let range: FrameRange = "10..20".parse().unwrap();
        assert_eq!(
            range,
            FrameRange {
                start: 10,
                end: Some(20)
            }
        );
        assert!(!range.is_past(19) && range.is_past(20));
        assert_eq!(
            "5..".parse::<FrameRange>().unwrap(),
            FrameRange {
                start: 5,
                end: None
            }
        );
        assert_eq!(
            "..5".parse::<FrameRange>().unwrap(),
            FrameRange {
                start: 0,
                end: Some(5)
            }
        );
        assert_eq!(range.to_string(), "10..20");
        for text in ["", "5", "7..7", "9..3", "a..", "..-1"] {
            assert!(text.parse::<FrameRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn options_read_back_from_a_flat_file() {
        let options: ImagenetOptions =
            serde_json::from_str(r#"{"split":"val","short_side":256,"max_bad":"3%","part":"2/4"}"#)
                .unwrap();
        assert_eq!(options.common.split, "val");
        assert_eq!(options.short_side, Some(256));
        assert_eq!(options.common.part, Some(Part { index: 1, count: 4 }));
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(
            serde_json::from_str::<ImagenetOptions>(&text).unwrap(),
            options
        );
    }

    #[test]
    fn what_leaves_the_bytes_alone_is_not_recorded() {
        let mut options = KineticsOptions::default();
        let before = options.record();
        options.common.workers = 7;
        options.common.max_bad = MaxBad::Count(3);
        options.common.part = Some(Part { index: 0, count: 2 });
        options.containment = Some(Containment::new("pairquet".into(), vec![]));
        assert_eq!(options.record(), before);
        options.frame_stride = 2;
        assert_ne!(options.record(), before);
        options.min_psnr = Some(38.0);
        let record = options.record();
        assert_eq!(
            (record.get("min_psnr"), record.get("quality")),
            (Some(&json!(38.0)), None)
        );
    }

    #[test]
    fn values_out_of_range_are_named() {
        let mut options = KineticsOptions {
            frame_stride: 0,
            ..Default::default()
        };
        assert!(
            options
                .validate()
                .unwrap_err()
                .to_string()
                .contains("frame_stride")
        );
        options.frame_stride = 1;
        options.common.split = "../x".into();
        assert!(options.validate().unwrap_err().to_string().contains("../x"));
        options.common.split = "x".into();
        options.validate().unwrap();
        let sound = Containment::new("pairquet".into(), vec![]);
        for (containment, named) in [
            (
                Containment {
                    timeout: Duration::ZERO,
                    ..sound.clone()
                },
                "timeout",
            ),
            (
                Containment {
                    memory_bytes: (64 << 20) - 1,
                    ..sound
                },
                "67108863",
            ),
        ] {
            options.containment = Some(containment);
            let message = options.validate().unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
        let options = ImagenetOptions {
            quality: 0,
            ..Default::default()
        };
        assert!(options.validate().is_err());
        for psnr in [19.9, 45.1, f64::NAN] {
            let options = ImagenetOptions {
                min_psnr: Some(psnr),
                ..Default::default()
            };
            let message = options.validate().unwrap_err().to_string();
            assert!(message.contains("min_psnr"), "{message}");
        }
    }
}
