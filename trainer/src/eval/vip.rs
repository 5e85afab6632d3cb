//! VIP, video instance parsing: body parts of the first frame are carried through each video; the score is the mean
//! intersection over union of 20 classes, over all pixels of all frames of the whole set.
//!
//! The data lies as it was released: `Images/VIDEO/000000000001.jpg`, `Annotations/Category_ids/VIDEO/000000000001.png`.
//!
//! Source: CropMAE, `downstreams/propagation/src/eval/eval_vip.py`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::davis::{LabelOrder, Sequence, carry};
use super::frames::{InputSize, LabelMap};
use super::propagate::Propagation;
use super::results::DataId;
use super::run::{Found, Scored, Scores};
use super::sampling::{nearest_pillow, pick};
use super::video::{Input, Worker};
use crate::error::{Error, Result};

/// Classes, background included.
pub const N_CLASSES: usize = 20;

/// What the classes are called.
pub const CLASSES: [&str; N_CLASSES] = [
    "background",
    "hat",
    "hair",
    "sun-glasses",
    "upper-clothes",
    "dress",
    "coat",
    "socks",
    "pants",
    "gloves",
    "scarf",
    "skirt",
    "torso-skin",
    "face",
    "right-arm",
    "left-arm",
    "right-leg",
    "left-leg",
    "right-shoe",
    "left-shoe",
];

/// Everything that a score depends on beside weights and data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VipSettings {
    /// How frames are seen.
    pub input: Input,
    /// How labels travel.
    pub propagation: Propagation,
    /// Whether the first frame, whose labels are given, counts; yes in the reference.
    pub count_first_frame: bool,
}

impl Default for VipSettings {
    /// The reference's.
    fn default() -> Self {
        VipSettings {
            input: Input::at(InputSize::LongSide(880)),
            propagation: Propagation {
                top_k: 10,
                ..Propagation::default()
            },
            count_first_frame: true,
        }
    }
}

/// Finds the videos that `lists/{subset}_videos.txt` names, or all of `Annotations/Category_ids` if there is no such list.
///
/// # Errors
/// [`Error::Io`], [`Error::Evaluation`] if there is no video.
pub fn find(root: &Path, subset: &str) -> Result<Found<Sequence>> {
    let (frames, annotations) = (root.join("Images"), root.join("Annotations/Category_ids"));
    let list = root.join(format!("lists/{subset}_videos.txt"));
    let names: Vec<String> = if list.is_file() {
        let text = fs::read_to_string(&list).map_err(Error::io(&list))?;
        text.split_whitespace().map(str::to_owned).collect()
    } else {
        let mut names = Vec::new();
        for entry in fs::read_dir(&annotations).map_err(Error::io(&annotations))? {
            let entry = entry.map_err(Error::io(&annotations))?;
            if entry.path().is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        names
    };
    if names.is_empty() {
        return Err(Error::evaluation(
            annotations,
            "holds no video, expected a folder for each",
        ));
    }
    Ok(names
        .into_iter()
        .map(|name| {
            let sequence = Sequence::pair(&name, &frames.join(&name), &annotations.join(&name));
            (name, sequence)
        })
        .collect())
}

/// Pixels of each class of the truth (rows) by what was predicted (columns).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion(pub [[u64; N_CLASSES]; N_CLASSES]);

impl Confusion {
    /// No pixel yet.
    pub fn new() -> Confusion {
        Confusion([[0; N_CLASSES]; N_CLASSES])
    }

    /// Adds the pixels of a frame; those whose truth is no class do not count.
    pub fn add(&mut self, truth: &[u8], predicted: &[u8]) {
        for (&t, &p) in truth.iter().zip(predicted) {
            let row = self.0.get_mut(usize::from(t));
            if let Some(count) = row.and_then(|row| row.get_mut(usize::from(p))) {
                *count += 1;
            }
        }
    }

    /// What the scores are made of.
    pub fn counts(&self) -> Counts {
        let over = |of: &dyn Fn(usize) -> u64| (0..N_CLASSES).map(of).collect();
        Counts {
            both: over(&|c| self.0[c][c]),
            truth: over(&|c| self.0[c].iter().sum()),
            predicted: over(&|c| self.0.iter().map(|row| row[c]).sum()),
        }
    }
}

impl Default for Confusion {
    fn default() -> Self {
        Confusion::new()
    }
}

/// Pixels of each class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Where truth and prediction agree.
    pub both: Vec<u64>,
    /// In the truth.
    pub truth: Vec<u64>,
    /// In the prediction.
    pub predicted: Vec<u64>,
}

impl Counts {
    fn sum<'a>(all: impl Iterator<Item = &'a Counts>) -> Counts {
        let mut total = Confusion::new().counts();
        for counts in all {
            for (total, counts) in [
                (&mut total.both, &counts.both),
                (&mut total.truth, &counts.truth),
                (&mut total.predicted, &counts.predicted),
            ] {
                for (total, count) in total.iter_mut().zip(counts) {
                    *total += count;
                }
            }
        }
        total
    }

    /// Intersection over union of each class; none of a class that is in neither.
    pub fn iou(&self) -> Vec<Option<f64>> {
        (0..N_CLASSES)
            .map(|c| {
                let both = self.both[c];
                share(both, self.truth[c] + self.predicted[c] - both)
            })
            .collect()
    }

    /// The scores.
    pub fn scores(&self) -> VipTotals {
        let iou = self.iou();
        let accuracy: Vec<Option<f64>> = (0..N_CLASSES)
            .map(|c| share(self.both[c], self.truth[c]))
            .collect();
        VipTotals {
            miou: mean(&iou),
            pixel_accuracy: share(self.both.iter().sum(), self.truth.iter().sum()),
            mean_accuracy: mean(&accuracy),
            iou,
        }
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Of those that there are.
fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// What is said about some frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VipTotals {
    /// Mean intersection over union of the classes that occur in truth or prediction.
    pub miou: Option<f64>,
    /// Share of pixels that are right.
    pub pixel_accuracy: Option<f64>,
    /// Mean over classes of the share of their pixels that are right.
    pub mean_accuracy: Option<f64>,
    /// Of each class of [`CLASSES`].
    pub iou: Vec<Option<f64>>,
}

/// A scored video.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoScores {
    /// Its name.
    pub name: String,
    /// Frames in it.
    pub n_frames: usize,
    /// What was read.
    pub data: DataId,
    /// Mean intersection over union within this video alone.
    pub miou: Option<f64>,
    /// Its pixels, which the total is made of.
    pub pixels: Counts,
}

/// The numbers of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VipScores {
    /// Over all pixels of all scored videos.
    pub total: VipTotals,
    /// Each video.
    pub videos: Vec<VideoScores>,
}

impl Scores for VipScores {
    type Video = VideoScores;

    fn of(videos: Vec<VideoScores>) -> VipScores {
        VipScores {
            total: Counts::sum(videos.iter().map(|video| &video.pixels)).scores(),
            videos,
        }
    }

    fn videos(&self) -> &[VideoScores] {
        &self.videos
    }
}

impl Scored for VideoScores {
    fn name(&self) -> &str {
        &self.name
    }

    fn data(&self) -> &DataId {
        &self.data
    }
}

/// Carries a video's first label map through it and counts the pixels of all frames.
///
/// # Errors
/// As [`carry`]; [`Error::Evaluation`] naming a first label map with a label that is no class, or a map that is unreadable.
pub fn confusion(worker: &Worker, video: &Sequence, count_first_frame: bool) -> Result<Confusion> {
    let predicted = carry(worker, video, LabelOrder::Colour, |_, _| {})?;
    if let (Some(label), Some(path)) = (
        predicted.set.iter().find(|&&l| usize::from(l) >= N_CLASSES),
        video.annotations.first(),
    ) {
        let problem = format!(
            "has the label {label}, expected classes 0 to {}",
            N_CLASSES - 1
        );
        return Err(Error::evaluation(path, problem));
    }
    let mut confusion = Confusion::new();
    let input = predicted.canvas.input;
    let uncounted = usize::from(!count_first_frame);
    for (path, map) in video
        .annotations
        .iter()
        .zip(&predicted.maps)
        .skip(uncounted)
    {
        let truth = LabelMap::read(path)?;
        let rows = nearest_pillow(input.height, truth.size.height);
        let columns = nearest_pillow(input.width, truth.size.width);
        confusion.add(&truth.labels, &pick(map, input, &rows, &columns));
    }
    Ok(confusion)
}

/// Scores a video.
///
/// # Errors
/// As [`confusion`].
pub fn evaluate(
    worker: &Worker,
    video: &Sequence,
    data: DataId,
    count_first_frame: bool,
) -> Result<VideoScores> {
    let pixels = confusion(worker, video, count_first_frame)?.counts();
    Ok(VideoScores {
        name: video.name.clone(),
        n_frames: video.frames.len(),
        data,
        miou: pixels.scores().miou,
        pixels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::DataHash;

    #[test]
    fn classes_that_do_not_occur_are_left_out_of_the_mean() {
        let mut confusion = Confusion::new();
        confusion.add(&[0, 0, 0, 1, 1, 255], &[0, 0, 1, 1, 0, 3]);
        let scores = confusion.counts().scores();
        // class 0: 2 of 4, class 1: 1 of 3; the pixel of no class is not counted anywhere
        assert_eq!(scores.iou[..3], [Some(0.5), Some(1.0 / 3.0), None]);
        assert_eq!(scores.miou, Some((0.5 + 1.0 / 3.0) / 2.0));
        assert_eq!(scores.pixel_accuracy, Some(0.6));
        assert_eq!(scores.mean_accuracy, Some((2.0 / 3.0 + 0.5) / 2.0));
        assert_eq!(Confusion::new().counts().scores().miou, None);
    }

    #[test]
    fn the_total_is_over_pixels_and_not_over_videos() {
        let video = |name: &str, truth: &[u8], predicted: &[u8]| {
            let mut confusion = Confusion::new();
            confusion.add(truth, predicted);
            let pixels = confusion.counts();
            VideoScores {
                name: name.to_owned(),
                n_frames: 2,
                data: DataHash::default().finish(),
                miou: pixels.scores().miou,
                pixels,
            }
        };
        let scores = VipScores::of(vec![
            video("a", &[1, 1, 1, 1], &[1, 1, 1, 1]),
            video("b", &[1, 0], &[0, 0]),
        ]);
        assert_eq!(scores.total.iou[..2], [Some(0.5), Some(0.8)]);
        assert_eq!(scores.videos[0].miou, Some(1.0));
    }
}
