//! JHMDB, pose tracking: the joints of the first frame are carried through each clip; the score is the share of joints
//! that arrive near enough (PCK).
//!
//! The data lies as it was released: `joint_positions/CLASS/CLIP/joint_positions.mat`,
//! `Rename_Images/CLASS/CLIP/00001.png`.
//!
//! Letters: J joints, T frames.
//!
//! Source: CropMAE, `downstreams/propagation/src/{data/jhmdb.py, utils/test_utils.py, eval/eval_pck.py}`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::frames::{InputSize, numbered_pictures};
use super::mat;
use super::propagate::Propagation;
use super::results::DataId;
use super::run::{Found, Scored, Scores, Video};
use super::sampling::Size;
use super::video::{Canvas, Input, Worker, read_list};
use crate::error::{Error, Result};

/// J.
pub const N_JOINTS: usize = 15;

/// Distances, as shares of a person's size, within which a joint counts.
pub const THRESHOLDS: [f64; 5] = [0.1, 0.2, 0.3, 0.4, 0.5];

/// Name of the array of joint positions, `[2, J, T]`, 1-based pixels, x first.
const POSITIONS: &str = "pos_img";

/// Everything that a score depends on beside weights and data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JhmdbSettings {
    /// How frames are seen.
    pub input: Input,
    /// How labels travel.
    pub propagation: Propagation,
    /// Deviation of the blob that stands for a joint, in patches; 0.5.
    pub sigma: f64,
    /// Whether a blob's place is rounded towards zero, as the reference does, or always down.
    pub rounding: Rounding,
    /// Patches that a joint's place is read from: the largest of its map, weighted; 5.
    pub pose_top_k: usize,
    /// Whether a place is that of a patch's first pixel, as in the reference, or of its middle.
    pub place: Place,
    /// Diagonal of the box of the joints times this is a person's size; 0.6.
    pub box_share: f64,
    /// What becomes of a joint whose map has died out.
    pub lost_joints: LostJoints,
}

/// Rounding of places beside the border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// The reference's: blobs that begin left of or above the picture by less than a patch move into it.
    #[default]
    TowardsZero,
    /// They stay where they are.
    Down,
}

/// What a patch's number means in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The reference's: patch 3 is at pixel 3 p.
    #[default]
    Edge,
    /// Patch 3 is at pixel 3 p + p / 2 - 1 / 2.
    Middle,
}

/// Joints that are nowhere any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostJoints {
    /// The reference's: they count neither as joints nor for the size of the person.
    #[default]
    LeftOut,
    /// They count as missed.
    Missed,
}

impl Default for JhmdbSettings {
    /// The reference's.
    fn default() -> Self {
        let size = Size {
            height: 320,
            width: 320,
        };
        JhmdbSettings {
            input: Input::at(InputSize::Exactly(size)),
            propagation: Propagation::default(),
            sigma: 0.5,
            rounding: Rounding::default(),
            pose_top_k: 5,
            place: Place::default(),
            box_share: 0.6,
            lost_joints: LostJoints::default(),
        }
    }
}

/// A clip: pictures and joints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    /// Its name.
    pub name: String,
    /// Pictures in order.
    pub frames: Vec<PathBuf>,
    /// The file of its joints.
    pub joints: PathBuf,
}

impl Clip {
    /// The pictures of a folder and their joints.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Evaluation`] naming the folder if there is no picture, or a file that is missing.
    pub fn open(name: &str, frames: &Path, joints: &Path) -> Result<Clip> {
        let pictures = numbered_pictures(frames, &["png", "jpg"])?;
        if pictures.is_empty() {
            return Err(Error::evaluation(
                frames,
                "holds no picture, expected frames",
            ));
        }
        if !joints.is_file() {
            return Err(Error::evaluation(
                joints,
                "is not there, expected joint positions",
            ));
        }
        Ok(Clip {
            name: name.to_owned(),
            frames: pictures.into_iter().map(|(_, path)| path).collect(),
            joints: joints.to_owned(),
        })
    }
}

/// Finds all clips that have joint positions, sorted. (Papers score the 268 clips of the first test split: see
/// [`find_listed`].)
///
/// # Errors
/// [`Error::Io`]; [`Error::Evaluation`] if there is no clip.
pub fn find(root: &Path) -> Result<Found<Clip>> {
    let positions = root.join("joint_positions");
    let mut names = Vec::new();
    for class in folders(&positions)? {
        for clip in folders(&positions.join(&class))? {
            names.push(format!("{class}/{clip}"));
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(Error::evaluation(
            positions,
            "holds no clip, expected CLASS/CLIP/joint_positions.mat",
        ));
    }
    Ok(names
        .into_iter()
        .map(|name| {
            let joints = positions.join(&name).join("joint_positions.mat");
            let clip = Clip::open(&name, &root.join("Rename_Images").join(&name), &joints);
            (name, clip)
        })
        .collect())
}

fn folders(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Finds the clips of a list in the reference's form: file of joint positions, folder of frames.
///
/// # Errors
/// As [`read_list`].
pub fn find_listed(list: &Path, root: &Path) -> Result<Found<Clip>> {
    Ok(read_list(list, root)?
        .into_iter()
        .map(|(joints, frames)| {
            let mut last: Vec<_> = frames
                .iter()
                .rev()
                .take(2)
                .map(|part| part.to_string_lossy())
                .collect();
            last.reverse();
            let name = last.join("/");
            let clip = Clip::open(&name, &frames, &joints);
            (name, clip)
        })
        .collect())
}

/// Places of the joints of all frames, x and y in 0-based pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Joints {
    /// One a frame.
    pub frames: Vec<[[f64; 2]; N_JOINTS]>,
}

impl Joints {
    /// Reads a clip's `joint_positions.mat`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Evaluation`] naming the file if it does not hold finite places of 15 joints.
    pub fn read(path: &Path) -> Result<Joints> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let wrong = |problem: String| Error::evaluation(path, problem);
        let array = mat::read(&bytes, POSITIONS).map_err(wrong)?;
        // A single frame's array has lost its last dimension.
        let fits = matches!(array.dims[..], [2, N_JOINTS] | [2, N_JOINTS, _]);
        if !fits || array.values.is_empty() {
            let dims = array.dims;
            return Err(wrong(format!(
                "{POSITIONS} is {dims:?}, expected [2, {N_JOINTS}, frames]"
            )));
        }
        if let Some(value) = array.values.iter().find(|value| !value.is_finite()) {
            return Err(wrong(format!(
                "{POSITIONS} holds {value}, expected finite places"
            )));
        }
        let frames = array.values.chunks_exact(2 * N_JOINTS);
        Ok(Joints {
            frames: frames
                .map(|frame| std::array::from_fn(|j| [frame[2 * j] - 1.0, frame[2 * j + 1] - 1.0]))
                .collect(),
        })
    }
}

/// Labels of the first frame's patches, `[rows, columns, 1 + J]`: a blob for each joint, and background where there is
/// none.
pub fn first_labels(
    joints: &[[f64; 2]; N_JOINTS],
    canvas: Canvas,
    settings: &JhmdbSettings,
) -> Vec<f32> {
    let (grid, input, frame) = (canvas.grid, canvas.input, canvas.frame);
    let channels = 1 + N_JOINTS;
    let mut labels = vec![0f32; grid.area() * channels];
    for (j, [x, y]) in joints.iter().enumerate() {
        let on_grid = |place: f64, input: usize, frame: usize, grid: usize| {
            let patch = input as f64 / grid as f64;
            match settings.place {
                Place::Edge => place * input as f64 / frame as f64 / patch,
                Place::Middle => (place + 0.5) * input as f64 / frame as f64 / patch - 0.5,
            }
        };
        let x = on_grid(*x, input.width, frame.width, grid.width);
        let y = on_grid(*y, input.height, frame.height, grid.height);
        for (at, value) in blob([x, y], grid, settings) {
            labels[at * channels + 1 + j] = value;
        }
    }
    for patch in labels.chunks_exact_mut(channels) {
        if patch[1..].iter().sum::<f32>() == 0.0 {
            patch[0] = 1.0;
        }
    }
    labels
}

/// Patches of the blob around a place on the grid, with their values: a Gaussian of [`JhmdbSettings::sigma`], cut off at
/// three deviations, its middle on a patch.
fn blob(place: [f64; 2], grid: Size, settings: &JhmdbSettings) -> Vec<(usize, f32)> {
    let round = |value: f64| match settings.rounding {
        Rounding::TowardsZero => value.trunc() as i64,
        Rounding::Down => value.floor() as i64,
    };
    let reach = 3.0 * settings.sigma;
    let first = place.map(|p| round(p - reach));
    let end = place.map(|p| round(p + reach + 1.0));
    // The pattern has this many patches to a side, its middle on patch number `middle`.
    let side = (6.0 * settings.sigma + 1.0).ceil() as i64;
    let middle = ((6.0 * settings.sigma + 1.0) / 2.0).floor();
    let squared = 2.0 * settings.sigma * settings.sigma;
    let range = |axis: usize, size: usize| {
        first[axis].max(0)..end[axis].min(size as i64).min(first[axis] + side)
    };
    let mut found = Vec::new();
    for y in range(1, grid.height) {
        for x in range(0, grid.width) {
            let off = |value: i64, first: i64| (value - first) as f64 - middle;
            let distance = off(x, first[0]).powi(2) + off(y, first[1]).powi(2);
            let at = y as usize * grid.width + x as usize;
            found.push((at, (-distance / squared).exp() as f32));
        }
    }
    found
}

/// Where each joint is on the grid, x and y in patches; none if its map is zero everywhere.
///
/// * `labels`: `[rows, columns, 1 + J]`.
pub fn joints_of(labels: &[f32], grid: Size, top_k: usize) -> [Option<[f32; 2]>; N_JOINTS] {
    std::array::from_fn(|j| {
        let mut map: Vec<(f32, usize)> = labels
            .chunks_exact(1 + N_JOINTS)
            .map(|patch| patch[1 + j])
            .zip(0..)
            .collect();
        if map.iter().map(|(value, _)| value).sum::<f32>() == 0.0 {
            return None;
        }
        map.sort_by(|a, b| b.0.total_cmp(&a.0));
        map.truncate(top_k);
        let sum: f32 = map.iter().map(|(value, _)| value).sum();
        let mean = |of: &dyn Fn(usize) -> usize| {
            map.iter()
                .map(|&(value, at)| of(at) as f32 * (value / sum))
                .sum()
        };
        Some([mean(&|at| at % grid.width), mean(&|at| at / grid.width)])
    })
}

/// Joints near enough, and all that count, of each kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JointCounts {
    /// `[5][J]`: within each of [`THRESHOLDS`].
    pub near: Vec<Vec<u64>>,
    /// `[J]`.
    pub all: Vec<u64>,
}

impl JointCounts {
    fn new() -> JointCounts {
        JointCounts {
            near: vec![vec![0; N_JOINTS]; THRESHOLDS.len()],
            all: vec![0; N_JOINTS],
        }
    }

    /// Counts a frame.
    ///
    /// * `truth`: in pixels. `predicted`: in pixels, none where it was lost.
    pub fn add(
        &mut self,
        truth: &[[f64; 2]; N_JOINTS],
        predicted: &[Option<[f64; 2]>; N_JOINTS],
        settings: &JhmdbSettings,
    ) {
        let counts =
            |j: usize| predicted[j].is_some() || settings.lost_joints == LostJoints::Missed;
        let counted = || (0..N_JOINTS).filter(|&j| counts(j));
        let extent = |axis: usize| {
            let largest = counted().map(|j| truth[j][axis]).fold(f64::MIN, f64::max);
            let smallest = counted().map(|j| truth[j][axis]).fold(f64::MAX, f64::min);
            largest - smallest
        };
        let size = settings.box_share * extent(0).hypot(extent(1));
        for j in counted() {
            self.all[j] += 1;
            let Some(place) = predicted[j] else { continue };
            let distance = (place[0] - truth[j][0]).hypot(place[1] - truth[j][1]) / size;
            for (near, threshold) in self.near.iter_mut().zip(THRESHOLDS) {
                near[j] += u64::from(distance <= threshold);
            }
        }
    }

    fn sum<'a>(all: impl Iterator<Item = &'a JointCounts>) -> JointCounts {
        let mut total = JointCounts::new();
        for counts in all {
            for (total, counts) in total.near.iter_mut().zip(&counts.near) {
                total.iter_mut().zip(counts).for_each(|(a, b)| *a += b);
            }
            total
                .all
                .iter_mut()
                .zip(&counts.all)
                .for_each(|(a, b)| *a += b);
        }
        total
    }

    /// At each threshold the mean over the joints of their shares in percent; joints that never count are left out, none if
    /// none counts.
    pub fn pck(&self) -> Option<[f64; THRESHOLDS.len()]> {
        let counted = || (0..N_JOINTS).filter(|&j| self.all[j] > 0);
        let n = counted().count();
        (n > 0).then(|| {
            std::array::from_fn(|i| {
                let share = |j: usize| 100.0 * self.near[i][j] as f64 / self.all[j] as f64;
                counted().map(share).sum::<f64>() / n as f64
            })
        })
    }
}

/// A scored clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipScores {
    /// Its name.
    pub name: String,
    /// Frames that count: those with joints but the first.
    pub n_frames: usize,
    /// What was read.
    pub data: DataId,
    /// PCK at each of [`THRESHOLDS`] within this clip alone.
    pub pck: Option<[f64; THRESHOLDS.len()]>,
    /// Its joints, which the total is made of.
    pub joints: JointCounts,
}

/// The numbers of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JhmdbScores {
    /// [`THRESHOLDS`].
    pub thresholds: [f64; THRESHOLDS.len()],
    /// PCK over all clips in percent, at each of them.
    pub pck: Option<[f64; THRESHOLDS.len()]>,
    /// Each clip.
    pub clips: Vec<ClipScores>,
}

impl Scores for JhmdbScores {
    type Video = ClipScores;

    fn of(clips: Vec<ClipScores>) -> JhmdbScores {
        JhmdbScores {
            thresholds: THRESHOLDS,
            pck: JointCounts::sum(clips.iter().map(|clip| &clip.joints)).pck(),
            clips,
        }
    }

    fn videos(&self) -> &[ClipScores] {
        &self.clips
    }
}

impl Scored for ClipScores {
    fn name(&self) -> &str {
        &self.name
    }

    fn data(&self) -> &DataId {
        &self.data
    }
}

impl Video for Clip {
    fn files(&self) -> Vec<&PathBuf> {
        self.frames.iter().chain([&self.joints]).collect()
    }
}

/// Carries the joints of a clip's first frame through it and counts those that arrive.
///
/// * `see`: shown each frame's number, soft labels `[rows, columns, 1 + J]` and joints on the grid.
///
/// # Errors
/// As [`Worker::carry`]; [`Error::Evaluation`] naming the joints' file.
pub fn count(
    worker: &Worker,
    clip: &Clip,
    settings: &JhmdbSettings,
    mut see: impl FnMut(usize, &[f32], &[Option<[f32; 2]>; N_JOINTS]),
) -> Result<JointCounts> {
    let joints = Joints::read(&clip.joints)?;
    let (Some(first), Some(given)) = (clip.frames.first(), joints.frames.first()) else {
        return Err(Error::evaluation(&clip.joints, "has no frame"));
    };
    if joints.frames.len() > clip.frames.len() {
        let (n, m) = (joints.frames.len(), clip.frames.len());
        let problem = format!("has joints of {n} frames, expected at most the {m} that there are");
        return Err(Error::evaluation(&clip.joints, problem));
    }
    let canvas = worker.canvas(first)?;
    let labels = first_labels(given, canvas, settings);
    let mut counts = JointCounts::new();
    worker.carry(&clip.frames, canvas, &labels, |t, soft| {
        let on_grid = joints_of(soft, canvas.grid, settings.pose_top_k);
        see(t, soft, &on_grid);
        if t > 0
            && let Some(truth) = joints.frames.get(t)
        {
            let places = on_grid.map(|place| place.map(|place| to_pixels(place, canvas, settings)));
            counts.add(truth, &places, settings);
        }
        Ok(())
    })?;
    Ok(counts)
}

/// From patches of the grid to pixels of the frame.
fn to_pixels([x, y]: [f32; 2], canvas: Canvas, settings: &JhmdbSettings) -> [f64; 2] {
    let scale = |place: f32, grid: usize, frame: usize| match settings.place {
        Place::Edge => f64::from(place / grid as f32 * frame as f32),
        Place::Middle => (f64::from(place) + 0.5) / grid as f64 * frame as f64 - 0.5,
    };
    [
        scale(x, canvas.grid.width, canvas.frame.width),
        scale(y, canvas.grid.height, canvas.frame.height),
    ]
}

/// Scores a clip.
///
/// # Errors
/// As [`count`].
pub fn evaluate(
    worker: &Worker,
    clip: &Clip,
    data: DataId,
    settings: &JhmdbSettings,
) -> Result<ClipScores> {
    let joints = count(worker, clip, settings, |_, _, _| {})?;
    Ok(ClipScores {
        name: clip.name.clone(),
        n_frames: clip.frames.len(),
        data,
        pck: joints.pck(),
        joints,
    })
}

#[cfg(test)]
mod tests;
