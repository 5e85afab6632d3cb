//! DAVIS 2017, semi-supervised: the masks of the first frame are carried through each sequence and scored.
//!
//! The data lies as it was released: `JPEGImages/480p/SEQUENCE/00000.jpg`, `Annotations/480p/SEQUENCE/00000.png`,
//! `ImageSets/2017/val.txt`. Copies that were resized beforehand have the same layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::davis_metrics::{Statistics, contour_accuracy, region_similarity};
use super::frames::{
    InputSize, LabelMap, Palette, VOID, first_labels, hard_labels, numbered_pictures, write_labels,
};
use super::propagate::Propagation;
use super::results::DataId;
use super::run::{Found, Scored, Scores, Video};
use super::sampling::{Size, resize_nearest};
use super::video::{Canvas, Input, Worker, read_list};
use crate::error::{Error, Result};

/// Everything that a score depends on beside weights and data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DavisSettings {
    /// How frames are seen.
    pub input: Input,
    /// How labels travel.
    pub propagation: Propagation,
    /// The order of labels, of which the first one wins where several are equal.
    pub label_order: LabelOrder,
}

/// The order of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelOrder {
    /// By the blue, then the green, then the red of their colours: the reference's.
    #[default]
    Colour,
    /// By their indices.
    Index,
}

impl Default for DavisSettings {
    /// The reference's.
    fn default() -> Self {
        let size = Size {
            height: 480,
            width: 880,
        };
        DavisSettings {
            input: Input::at(InputSize::Exactly(size)),
            propagation: Propagation::default(),
            label_order: LabelOrder::default(),
        }
    }
}

/// A sequence: pictures and label maps, frame by frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its name.
    pub name: String,
    /// Pictures in order.
    pub frames: Vec<PathBuf>,
    /// Label maps in order, as many.
    pub annotations: Vec<PathBuf>,
}

/// File extensions of frames. (The release has JPEG; resized copies may be anything.)
pub const PICTURES: [&str; 5] = ["jpg", "jpeg", "png", "bmp", "webp"];

impl Sequence {
    /// Pairs the pictures of `frames` with the label maps of `annotations` by their numbers.
    ///
    /// # Errors
    /// [`Error::Evaluation`] naming a frame or a label map without its counterpart; [`Error::Io`] naming a folder.
    pub fn pair(name: &str, frames: &Path, annotations: &Path) -> Result<Sequence> {
        let pictures = numbered_pictures(frames, &PICTURES)?;
        let maps = numbered_pictures(annotations, &["png"])?;
        let numbers =
            |list: &[(u64, PathBuf)]| -> BTreeMap<u64, PathBuf> { list.iter().cloned().collect() };
        let (of_pictures, of_maps) = (numbers(&pictures), numbers(&maps));
        let alone = |list: &BTreeMap<u64, PathBuf>, other: &BTreeMap<u64, PathBuf>| {
            let alone = list.iter().find(|(number, _)| !other.contains_key(number));
            alone.map(|(_, path)| path.clone())
        };
        if let Some(path) = alone(&of_maps, &of_pictures) {
            let problem = format!("has no frame of its number in {}", frames.display());
            return Err(Error::evaluation(path, problem));
        }
        if let Some(path) = alone(&of_pictures, &of_maps) {
            let problem = format!(
                "has no label map of its number in {}",
                annotations.display()
            );
            return Err(Error::evaluation(path, problem));
        }
        if pictures.is_empty() {
            return Err(Error::evaluation(
                frames,
                "holds no picture, expected frames",
            ));
        }
        Ok(Sequence {
            name: name.to_owned(),
            frames: pictures.into_iter().map(|(_, path)| path).collect(),
            annotations: maps.into_iter().map(|(_, path)| path).collect(),
        })
    }
}

/// Finds the sequences that `ImageSets/2017/{subset}.txt` names.
///
/// # Errors
/// [`Error::Io`] if there is no such list; [`Error::Evaluation`] if it names nothing.
pub fn find(root: &Path, subset: &str) -> Result<Found<Sequence>> {
    let list = root.join(format!("ImageSets/2017/{subset}.txt"));
    let text = fs::read_to_string(&list).map_err(Error::io(&list))?;
    let names: Vec<&str> = text.split_whitespace().collect();
    if names.is_empty() {
        return Err(Error::evaluation(
            list,
            "names nothing, expected a sequence a line",
        ));
    }
    let (frames, annotations) = (root.join("JPEGImages/480p"), root.join("Annotations/480p"));
    Ok(names
        .iter()
        .map(|&name| {
            let sequence = Sequence::pair(name, &frames.join(name), &annotations.join(name));
            (name.to_owned(), sequence)
        })
        .collect())
}

/// Finds the sequences of a list in the reference's form: folder of frames, folder of label maps.
///
/// # Errors
/// As [`read_list`].
pub fn find_listed(list: &Path, root: &Path) -> Result<Found<Sequence>> {
    Ok(read_list(list, root)?
        .into_iter()
        .map(|(frames, annotations)| {
            let name = frames.file_name().unwrap_or_default().to_string_lossy();
            let sequence = Sequence::pair(&name, &frames, &annotations);
            (name.into_owned(), sequence)
        })
        .collect())
}

/// J and F of one object at one scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Mean of `j.mean` and `f.mean`.
    pub jf_mean: f64,
    /// Region similarity.
    pub j: Statistics,
    /// Contour accuracy.
    pub f: Statistics,
}

impl Measures {
    fn new(j: Statistics, f: Statistics) -> Measures {
        Measures {
            jf_mean: (j.mean + f.mean) / 2.0,
            j,
            f,
        }
    }

    /// The mean of each number over several objects; `None` of none.
    pub fn mean_of(all: &[Measures]) -> Option<Measures> {
        let j: Vec<Statistics> = all.iter().map(|m| m.j).collect();
        let f: Vec<Statistics> = all.iter().map(|m| m.f).collect();
        Some(Measures::new(
            Statistics::mean_of(&j)?,
            Statistics::mean_of(&f)?,
        ))
    }
}

/// The same numbers against two ground truths.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BothScales {
    /// Masks brought to the size of the annotations.
    pub original: Measures,
    /// Annotations brought to the size of the network's input, as in resized copies of the data.
    pub resized: Measures,
}

impl BothScales {
    fn mean_of<'a>(all: impl Iterator<Item = &'a BothScales>) -> Option<BothScales> {
        let (original, resized): (Vec<_>, Vec<_>) = all.map(|m| (m.original, m.resized)).unzip();
        Some(BothScales {
            original: Measures::mean_of(&original)?,
            resized: Measures::mean_of(&resized)?,
        })
    }
}

/// A scored sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceScores {
    /// Its name.
    pub name: String,
    /// Frames in it, the first and the last one, which do not count, included.
    pub n_frames: usize,
    /// Size of its annotations.
    pub annotation_size: Size,
    /// Size of the network's input.
    pub input_size: Size,
    /// What was read.
    pub data: DataId,
    /// The mean over its objects.
    pub mean: BothScales,
    /// Each object, object 1 first.
    pub objects: Vec<BothScales>,
}

/// The numbers of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DavisScores {
    /// The mean over the objects of all scored sequences; none if none was scored.
    pub total: Option<BothScales>,
    /// Each sequence, in the order of the list.
    pub sequences: Vec<SequenceScores>,
}

impl Scores for DavisScores {
    type Video = SequenceScores;

    fn of(sequences: Vec<SequenceScores>) -> DavisScores {
        DavisScores {
            total: BothScales::mean_of(sequences.iter().flat_map(|s| &s.objects)),
            sequences,
        }
    }

    fn videos(&self) -> &[SequenceScores] {
        &self.sequences
    }
}

impl Scored for SequenceScores {
    fn name(&self) -> &str {
        &self.name
    }

    fn data(&self) -> &DataId {
        &self.data
    }
}

impl Video for Sequence {
    fn files(&self) -> Vec<&PathBuf> {
        self.frames.iter().chain(&self.annotations).collect()
    }
}

/// J and F of every scored frame of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PerFrame {
    /// Region similarity.
    pub j: Vec<f64>,
    /// Contour accuracy.
    pub f: Vec<f64>,
}

/// J and F of each object of a frame.
pub fn score_frame(truth: &[u8], predicted: &[u8], size: Size, n_objects: u8) -> Vec<(f64, f64)> {
    (1..=n_objects)
        .into_par_iter()
        .map(|object| {
            let is = |map: &[u8]| {
                map.iter()
                    .map(|&label| label == object)
                    .collect::<Vec<bool>>()
            };
            let (truth, predicted) = (is(truth), is(predicted));
            (
                region_similarity(&truth, &predicted),
                contour_accuracy(&truth, &predicted, size),
            )
        })
        .collect()
}

/// J and F of each object over a sequence, the first and the last frame left out, at one scale.
///
/// * `truth`, `predicted`: label maps of all frames.
///
/// # Errors
/// [`Error::Config`] if nothing is left to score.
pub fn score_sequence(
    name: &str,
    truth: &[Vec<u8>],
    predicted: &[Vec<u8>],
    size: Size,
    n_objects: u8,
) -> Result<Vec<PerFrame>> {
    let n = truth.len().min(predicted.len());
    if n < 3 || n_objects == 0 {
        return Err(Error::Config(format!(
            "sequence {name} has {n} frames and {n_objects} objects, expected at least 3 and 1: the first and the last frame \
             are not scored"
        )));
    }
    let frames: Vec<Vec<(f64, f64)>> = (1..n - 1)
        .into_par_iter()
        .map(|t| score_frame(&truth[t], &predicted[t], size, n_objects))
        .collect();
    Ok((0..usize::from(n_objects))
        .map(|object| PerFrame {
            j: frames.iter().map(|frame| frame[object].0).collect(),
            f: frames.iter().map(|frame| frame[object].1).collect(),
        })
        .collect())
}

/// Statistics of each object.
pub fn measure(objects: &[PerFrame]) -> Vec<Measures> {
    objects
        .iter()
        .map(|object| Measures::new(Statistics::of(&object.j), Statistics::of(&object.f)))
        .collect()
}

/// The label maps that a sequence's first one turns into.
#[derive(Debug)]
pub struct Predicted {
    /// The sizes it was worked on at.
    pub canvas: Canvas,
    /// Label maps at the size of the network's input, one a frame.
    pub maps: Vec<Vec<u8>>,
    /// The labels of the first frame in the order of the soft labels.
    pub set: Vec<u8>,
    /// What the labels look like.
    pub palette: Box<Palette>,
}

/// Carries a sequence's first label map through it.
///
/// * `see`: shown each frame's number and soft labels `[rows, columns, L]`.
///
/// # Errors
/// As [`Worker::carry`], and [`Error::Evaluation`] naming the first label map if it does not fit its frame or has no label.
pub fn carry(
    worker: &Worker,
    sequence: &Sequence,
    order: LabelOrder,
    mut see: impl FnMut(usize, &[f32]),
) -> Result<Predicted> {
    let (Some(first_frame), Some(first_map)) =
        (sequence.frames.first(), sequence.annotations.first())
    else {
        return Err(Error::Config(format!(
            "sequence {} is empty, expected frames and label maps",
            sequence.name
        )));
    };
    let canvas = worker.canvas(first_frame)?;
    let map = LabelMap::read(first_map)?;
    expect_size(first_map, map.size, canvas.frame)?;
    let mut labels = map.resized(canvas.input);
    labels.iter_mut().for_each(|label| *label = known(*label));
    let set = label_set(&labels, &map.palette, order);
    let first = first_labels(
        &labels,
        canvas.input,
        &set,
        canvas.grid,
        worker.input.label_filter,
    );
    let mut maps = Vec::with_capacity(sequence.frames.len());
    worker.carry(&sequence.frames, canvas, &first, |t, soft| {
        see(t, soft);
        maps.push(hard_labels(soft, canvas.grid, &set, canvas.input));
        Ok(())
    })?;
    Ok(Predicted {
        canvas,
        maps,
        set,
        palette: map.palette,
    })
}

/// Carries, scores and, with `masks`, writes a sequence's masks there at the size of the annotations.
///
/// # Errors
/// As [`carry`]; [`Error::Evaluation`] naming a label map that has another size or an object that the first one has not.
pub fn evaluate(
    worker: &Worker,
    sequence: &Sequence,
    data: DataId,
    order: LabelOrder,
    masks: Option<&Path>,
) -> Result<SequenceScores> {
    let truth = read_truth(sequence)?;
    let predicted = carry(worker, sequence, order, |_, _| {})?;
    let (original, input) = (truth.size, predicted.canvas.input);
    let resize = |maps: &[Vec<u8>], from, to| -> Vec<Vec<u8>> {
        maps.par_iter()
            .map(|map| resize_nearest(map, from, to))
            .collect()
    };
    let at_original = resize(&predicted.maps, input, original);
    // An object may lose its last pixel when it is resized; there are as many as before all the same.
    let n_objects = truth_objects(&truth.maps);
    let measure_at = |truth: &[Vec<u8>], predicted: &[Vec<u8>], size| -> Result<Vec<Measures>> {
        let frames = score_sequence(&sequence.name, truth, predicted, size, n_objects)?;
        Ok(measure(&frames))
    };
    let originals = measure_at(&truth.maps, &at_original, original)?;
    let resized = if input == original {
        originals.clone()
    } else {
        let truth = resize(&truth.maps, original, input);
        measure_at(&truth, &predicted.maps, input)?
    };
    if let Some(folder) = masks {
        let folder = folder.join(&sequence.name);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        for (frame, map) in sequence.frames.iter().zip(&at_original) {
            let name = frame.file_stem().unwrap_or_default().to_string_lossy();
            let path = folder.join(format!("{name}.png"));
            write_labels(&path, map, original, &predicted.palette)?;
        }
    }
    let objects: Vec<BothScales> = originals
        .into_iter()
        .zip(resized)
        .map(|(original, resized)| BothScales { original, resized })
        .collect();
    let mean = BothScales::mean_of(objects.iter()).ok_or_else(|| no_object(sequence))?;
    Ok(SequenceScores {
        name: sequence.name.clone(),
        n_frames: sequence.frames.len(),
        annotation_size: original,
        input_size: input,
        data,
        mean,
        objects,
    })
}

fn no_object(sequence: &Sequence) -> Error {
    let path = sequence.annotations.first().cloned().unwrap_or_default();
    Error::evaluation(path, "has no object, expected labels above 0")
}

/// Label maps of a sequence, all of one size, 255 as background.
#[derive(Debug)]
pub struct Truth {
    /// Their size.
    pub size: Size,
    /// One a frame.
    pub maps: Vec<Vec<u8>>,
}

/// Objects of a sequence: the largest label of its first map.
pub fn truth_objects(maps: &[Vec<u8>]) -> u8 {
    maps.first()
        .and_then(|first| first.iter().copied().max())
        .unwrap_or(0)
}

/// Reads and checks all label maps of a sequence.
///
/// # Errors
/// [`Error::Evaluation`] naming a map that is not readable, has another size, or an object that the first has not.
pub fn read_truth(sequence: &Sequence) -> Result<Truth> {
    let maps = sequence
        .annotations
        .par_iter()
        .map(|path| LabelMap::read(path))
        .collect::<Result<Vec<_>>>()?;
    let Some(first) = maps.first() else {
        return Err(no_object(sequence));
    };
    let (size, n_objects) = (first.size, first.largest());
    if n_objects == 0 {
        return Err(no_object(sequence));
    }
    for (path, map) in sequence.annotations.iter().zip(&maps) {
        expect_size(path, map.size, size)?;
        if map.largest() > n_objects {
            let problem = format!(
                "has object {}, expected at most the {n_objects} of the first label map",
                map.largest()
            );
            return Err(Error::evaluation(path, problem));
        }
    }
    Ok(Truth {
        size,
        maps: maps
            .into_iter()
            .map(|map| map.labels.into_iter().map(known).collect())
            .collect(),
    })
}

/// What belongs to nothing is background.
fn known(label: u8) -> u8 {
    if label == VOID { 0 } else { label }
}

pub(super) fn expect_size(path: &Path, got: Size, expected: Size) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let problem = format!("has {got} px, expected {expected} as the sequence's first frame");
    Err(Error::evaluation(path, problem))
}

/// The labels that occur, in order.
pub(super) fn label_set(labels: &[u8], palette: &Palette, order: LabelOrder) -> Vec<u8> {
    let mut occurs = [false; 256];
    labels
        .iter()
        .for_each(|&label| occurs[usize::from(label)] = true);
    let mut set: Vec<u8> = (0..=255).filter(|&l| occurs[usize::from(l)]).collect();
    if order == LabelOrder::Colour {
        set.sort_by_key(|&label| {
            let [red, green, blue] = palette[usize::from(label)];
            [blue, green, red]
        });
    }
    set
}

#[cfg(test)]
mod tests;
