//! Label propagation: labels of the first frame travel along a video by the similarity of patches.
//!
//! Each patch of a frame takes the labels of the `top_k` most similar patches of the frames before it (the first one,
//! and the last `n_context`), weighted by a softmax of the similarities. Nothing of the size of a frame times its context
//! is ever kept: similarities are made in tiles, one strip of a frame against one other frame at a time, and only the
//! best of them survive.
//!
//! Two things that leave the result as it is make it fast. The radius rules most of a context frame out, so a strip is
//! multiplied only with the patches that some of its own can see. And the copies of the first frame that the reference
//! puts in front of a video have the same similarities, so they are made once and counted as often as they occur.
//!
//! Letters: N patches of a frame, D width, L labels.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::frames::first_largest;
use super::sampling::Size;
use crate::error::{Error, Result};
use crate::ops::matmul::{Manner, Precision, Start, Threads, View, ViewMut, multiply};

/// How labels travel. Defaults are the reference's settings for DAVIS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Propagation {
    /// Frames before the target that it looks at, beside the first one; 20.
    pub n_context: usize,
    /// Patches that a patch takes its labels from; 7 (10 for VIP).
    pub top_k: usize,
    /// Patches of the context nearer than this many patches are seen, in the Euclidean sense; 20.
    pub radius: f64,
    /// What similarities are divided by before the softmax; 0.7.
    pub temperature: f64,
    /// Whether the first frame is looked at from every frame; yes.
    pub first_frame: bool,
    /// Whether the radius holds in the first frame too; no, it is searched everywhere.
    pub radius_in_first_frame: bool,
    /// Whether the context of early frames is filled up with copies of the first frame; yes. A patch of it then counts
    /// as often as there are copies, and the 7 nearest patches of the second frame are one patch seven times.
    pub copies_of_first_frame: bool,
    /// Whether a frame's labels travel on as they are, or made hard before; soft.
    pub feed_back: FeedBack,
    /// Whether a frame's labels are scaled to 0..1, patch by patch; no.
    pub scale_labels: bool,
    /// Whether features are scaled to length 1, so that similarities are cosines; yes.
    pub cosine: bool,
}

/// What travels on from a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedBack {
    /// The weighted labels, as they are.
    #[default]
    Soft,
    /// 1 for the largest of them, 0 for the others.
    Hard,
}

impl Default for Propagation {
    fn default() -> Self {
        Propagation {
            n_context: 20,
            top_k: 7,
            radius: 20.0,
            temperature: 0.7,
            first_frame: true,
            radius_in_first_frame: false,
            copies_of_first_frame: true,
            feed_back: FeedBack::Soft,
            scale_labels: false,
            cosine: true,
        }
    }
}

impl Propagation {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Config`] naming the value and what was expected.
    pub fn validate(&self) -> Result<()> {
        let positive = |name: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                Ok(())
            } else {
                Err(Error::Config(format!(
                    "{name} is {value}, expected more than 0"
                )))
            }
        };
        positive("top_k", self.top_k as f64)?;
        positive("radius", self.radius)?;
        positive("temperature", self.temperature)?;
        if self.n_context == 0 && !self.first_frame {
            return Err(Error::Config(
                "n_context is 0, expected at least 1 where the first frame is not looked at"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// Where the labels of one patch came from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Similarity, before the division by the temperature.
    pub similarity: f32,
    /// `slot * N + patch`. Slot 0 is the first frame as such, slots 1 to `n_context` are the context, oldest first,
    /// copies of the first frame included. (Without the first frame as such, the context begins at slot 0.)
    pub id: u32,
    frame: u32,
    patch: u32,
}

/// A frame's patches and labels, both in the order of [`Layout`].
#[derive(Debug, Clone)]
struct Known {
    /// `[N, D]`.
    features: Arc<[f32]>,
    /// `[N, L]`.
    labels: Arc<[f32]>,
}

/// Patches in the order in which they are worked on: along the shorter side of the grid first, so that a strip and what
/// lies within a radius of it are each one block.
#[derive(Debug, Clone, Copy)]
struct Layout {
    grid: Size,
}

impl Layout {
    fn is_transposed(self) -> bool {
        self.grid.width > self.grid.height
    }

    /// Patches of a line, the shorter side.
    fn line(self) -> usize {
        self.grid.height.min(self.grid.width)
    }

    fn n_lines(self) -> usize {
        self.grid.height.max(self.grid.width)
    }

    /// Raster index of a place in this order.
    fn raster(self, place: usize) -> usize {
        if self.is_transposed() {
            place % self.line() * self.grid.width + place / self.line()
        } else {
            place
        }
    }

    /// `[N, width]` from raster order into this one.
    fn arrange(self, rows: &[f32], width: usize) -> Vec<f32> {
        if !self.is_transposed() {
            return rows.to_vec();
        }
        (0..self.grid.area())
            .flat_map(|place| &rows[self.raster(place) * width..][..width])
            .copied()
            .collect()
    }

    /// The other way.
    fn restore(self, arranged: &[f32], width: usize) -> Vec<f32> {
        if !self.is_transposed() {
            return arranged.to_vec();
        }
        let mut rows = vec![0f32; arranged.len()];
        for (place, values) in arranged.chunks_exact(width).enumerate() {
            rows[self.raster(place) * width..][..width].copy_from_slice(values);
        }
        rows
    }

    /// Squared distance of two places in patches.
    fn distance_squared(self, a: usize, b: usize) -> usize {
        let line = self.line();
        (a / line).abs_diff(b / line).pow(2) + (a % line).abs_diff(b % line).pow(2)
    }
}

/// Queries of a strip are about this many: enough that making a block of keys ready for the product is a small part of
/// it, few enough that the similarities stay in a thread's cache. Fixed, so that results do not depend on the threads.
const STRIP_QUERIES: usize = 128;

/// One frame that a strip looks at.
struct SourceFrame<'a> {
    known: &'a Known,
    frame: u32,
    /// Slot that sees all of the frame, if one does.
    everywhere: Option<u32>,
    /// Slots that see what is within the radius.
    within: Range<u32>,
}

/// A video on its way: pushed one frame after the other, it gives each one's labels.
#[derive(Debug)]
pub struct Propagator {
    settings: Propagation,
    layout: Layout,
    n_labels: usize,
    width: usize,
    /// Number of the next frame.
    next: usize,
    first: Known,
    /// The last `n_context` frames, the first one included, oldest first.
    recent: VecDeque<Known>,
}

impl Propagator {
    /// Starts with the first frame.
    ///
    /// * `features`: `[N, D]`, patches in raster order.
    /// * `labels`: `[N, L]`.
    ///
    /// # Errors
    /// [`Error::Config`] if a setting makes no sense or a feature is not finite; [`Error::Shape`] if the sizes do not fit
    /// the grid.
    pub fn new(
        settings: &Propagation,
        grid: Size,
        mut features: Vec<f32>,
        labels: &[f32],
    ) -> Result<Propagator> {
        settings.validate()?;
        let n = grid.area();
        for (what, len) in [("features", features.len()), ("labels", labels.len())] {
            if n == 0 || len == 0 || !len.is_multiple_of(n) {
                return Err(Error::Shape {
                    what: format!("{what} of the first frame"),
                    got: vec![len],
                    expected: format!("a multiple of {n} patches, more than 0"),
                });
            }
        }
        expect_finite(&features, 0)?;
        let (width, n_labels) = (features.len() / n, labels.len() / n);
        if settings.cosine {
            scale_to_length_1(&mut features, width);
        }
        let layout = Layout { grid };
        let first = Known {
            features: layout.arrange(&features, width).into(),
            labels: layout.arrange(labels, n_labels).into(),
        };
        let mut recent = VecDeque::new();
        if settings.n_context > 0 {
            recent.push_back(first.clone());
        }
        Ok(Propagator {
            settings: settings.clone(),
            layout,
            n_labels,
            width,
            next: 1,
            first,
            recent,
        })
    }

    /// Labels `[N, L]` of the next frame from its features `[N, D]`, in raster order.
    ///
    /// # Errors
    /// [`Error::Shape`] if the features have another size than the first frame's; [`Error::Config`] if one is not finite.
    pub fn push(&mut self, features: Vec<f32>) -> Result<Vec<f32>> {
        let (features, neighbours) = self.look(features)?;
        let n_labels = self.n_labels;
        let mut labels = vec![0f32; self.layout.grid.area() * n_labels];
        labels
            .par_chunks_mut(n_labels)
            .zip(&neighbours)
            .for_each(|(labels, neighbours)| self.weigh(neighbours, labels));
        let known = Known {
            features: features.into(),
            labels: self.travelling(&labels).into(),
        };
        if self.settings.n_context > 0 {
            if self.recent.len() == self.settings.n_context {
                self.recent.pop_front();
            }
            self.recent.push_back(known);
        }
        self.next += 1;
        Ok(self.layout.restore(&labels, n_labels))
    }

    /// The patches that each patch of the next frame would take its labels from, best first, in raster order; `features`
    /// are not kept.
    ///
    /// # Errors
    /// As [`Propagator::push`].
    pub fn neighbours(&self, features: Vec<f32>) -> Result<Vec<Vec<Neighbour>>> {
        let (_, found) = self.look(features)?;
        let mut raster = vec![Vec::new(); found.len()];
        for (place, mut neighbours) in found.into_iter().enumerate() {
            let n = self.layout.grid.area() as u32;
            for neighbour in &mut neighbours {
                let patch = self.layout.raster(neighbour.patch as usize) as u32;
                neighbour.id = neighbour.id / n * n + patch;
            }
            raster[self.layout.raster(place)] = neighbours;
        }
        Ok(raster)
    }

    /// Softmax weights of neighbours, best first.
    pub fn weights(&self, neighbours: &[Neighbour]) -> Vec<f32> {
        let temperature = self.settings.temperature as f32;
        let best = neighbours.first().map_or(0.0, |n| n.similarity) / temperature;
        let mut weights: Vec<f32> = neighbours
            .iter()
            .map(|n| (n.similarity / temperature - best).exp())
            .collect();
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        weights
    }

    /// Arranged features, and the neighbours of each place.
    fn look(&self, mut features: Vec<f32>) -> Result<(Vec<f32>, Vec<Vec<Neighbour>>)> {
        if features.len() != self.first.features.len() {
            return Err(Error::Shape {
                what: "features of a frame".to_owned(),
                got: vec![features.len()],
                expected: format!("{} as the first frame's", self.first.features.len()),
            });
        }
        expect_finite(&features, self.next)?;
        if self.settings.cosine {
            scale_to_length_1(&mut features, self.width);
        }
        let features = self.layout.arrange(&features, self.width);
        let sources = self.sources();
        let lines = (STRIP_QUERIES / self.layout.line()).max(1);
        let strip = lines * self.layout.line();
        let neighbours = features
            .par_chunks(strip * self.width)
            .enumerate()
            .map_init(Vec::new, |scratch, (i, queries)| {
                self.look_from(queries, i * strip, &sources, scratch)
            })
            .collect::<Vec<_>>()
            .concat();
        Ok((features, neighbours))
    }

    /// What the next frame looks at, in the order of the slots.
    fn sources(&self) -> Vec<SourceFrame<'_>> {
        let (t, n_context) = (self.next, self.settings.n_context);
        let first_slots = u32::from(self.settings.first_frame);
        // Of the frames t - n_context .. t of the context, those up to 0 are the first frame and its copies.
        let n_first = match (n_context + 1).saturating_sub(t) {
            n if self.settings.copies_of_first_frame => n,
            n => n.min(1),
        } as u32;
        let in_radius = first_slots..first_slots + n_first;
        let first = if self.settings.radius_in_first_frame {
            SourceFrame {
                known: &self.first,
                frame: 0,
                everywhere: None,
                within: 0..in_radius.end,
            }
        } else {
            SourceFrame {
                known: &self.first,
                frame: 0,
                everywhere: (first_slots > 0).then_some(0),
                within: in_radius.clone(),
            }
        };
        let oldest = t - self.recent.len();
        let later = self
            .recent
            .iter()
            .enumerate()
            .map(|(i, known)| (oldest + i, known));
        let later = later.filter(|&(frame, _)| frame > 0).zip(in_radius.end..);
        let later = later.map(|((frame, known), slot)| SourceFrame {
            known,
            frame: frame as u32,
            everywhere: None,
            within: slot..slot + 1,
        });
        std::iter::once(first)
            .filter(|first| first.everywhere.is_some() || !first.within.is_empty())
            .chain(later)
            .collect()
    }

    /// Neighbours of the places from `start` on, whose features are `queries`.
    fn look_from(
        &self,
        queries: &[f32],
        start: usize,
        sources: &[SourceFrame],
        scratch: &mut Vec<f32>,
    ) -> Vec<Vec<Neighbour>> {
        let (layout, width) = (self.layout, self.width);
        let n_queries = queries.len() / width;
        let line = layout.line();
        // Lines that some query sees: those nearer than the radius.
        let reach = (self.settings.radius.ceil() as usize).saturating_sub(1);
        let first_line = (start / line).saturating_sub(reach);
        let last_line = ((start + n_queries - 1) / line)
            .saturating_add(reach)
            .min(layout.n_lines() - 1);
        let seen = first_line * line..(last_line + 1) * line;
        let limit = self.settings.radius * self.settings.radius;
        let mut best = vec![Best::new(self.settings.top_k); n_queries];
        for source in sources {
            let keys = if source.everywhere.is_some() {
                0..layout.grid.area()
            } else {
                seen.clone()
            };
            scratch.resize((n_queries * keys.len()).max(scratch.len()), 0.0);
            let similarities = &mut scratch[..n_queries * keys.len()];
            multiply(
                View::new(queries, n_queries, width, width),
                View::new(
                    &source.known.features[keys.start * width..],
                    keys.len(),
                    width,
                    width,
                )
                .t(),
                ViewMut {
                    data: similarities,
                    row_stride: keys.len(),
                },
                Start::Zero,
                Manner {
                    threads: Threads::One,
                    ..Manner::of(Precision::F32)
                },
            );
            for ((i, best), row) in best
                .iter_mut()
                .enumerate()
                .zip(similarities.chunks_exact(keys.len()))
            {
                best.look_through(row, |best, offset, similarity| {
                    let patch = keys.start + offset;
                    let mut offer = |slot: u32| {
                        best.offer(Neighbour {
                            similarity,
                            id: slot * layout.grid.area() as u32 + patch as u32,
                            frame: source.frame,
                            patch: patch as u32,
                        });
                    };
                    if let Some(slot) = source.everywhere {
                        offer(slot);
                    }
                    if (layout.distance_squared(start + i, patch) as f64) < limit {
                        source.within.clone().for_each(offer);
                    }
                });
            }
        }
        best.into_iter().map(|best| best.found).collect()
    }

    /// The weighted labels of neighbours.
    fn weigh(&self, neighbours: &[Neighbour], labels: &mut [f32]) {
        let oldest = self.next - self.recent.len();
        for (neighbour, weight) in neighbours.iter().zip(self.weights(neighbours)) {
            let known = match neighbour.frame as usize {
                0 => &self.first,
                frame => &self.recent[frame - oldest],
            };
            let source = &known.labels[neighbour.patch as usize * self.n_labels..];
            for (sum, value) in labels.iter_mut().zip(source) {
                *sum += weight * value;
            }
        }
        if self.settings.scale_labels {
            let smallest = labels.iter().copied().fold(f32::INFINITY, f32::min);
            labels.iter_mut().for_each(|value| *value -= smallest);
            let largest = labels.iter().copied().fold(0.0, f32::max);
            if largest > 0.0 {
                labels.iter_mut().for_each(|value| *value /= largest);
            }
        }
    }

    /// The labels that later frames see.
    fn travelling(&self, labels: &[f32]) -> Vec<f32> {
        match self.settings.feed_back {
            FeedBack::Soft => labels.to_vec(),
            FeedBack::Hard => {
                let mut hard = vec![0f32; labels.len()];
                for (soft, hard) in labels
                    .chunks_exact(self.n_labels)
                    .zip(hard.chunks_exact_mut(self.n_labels))
                {
                    hard[first_largest(soft)] = 1.0;
                }
                hard
            }
        }
    }
}

/// The best so far, best first; of equal ones, those that were offered first.
#[derive(Debug, Clone)]
struct Best {
    found: Vec<Neighbour>,
    k: usize,
    /// What a similarity must be above to count: that of the last one found, once there are k.
    above: f32,
}

/// Similarities that are compared with the last of the best at once.
const CHUNK: usize = 32;

impl Best {
    fn new(k: usize) -> Best {
        Best {
            found: Vec::with_capacity(k),
            k,
            above: f32::NEG_INFINITY,
        }
    }

    /// Calls `candidate` for each similarity above the last of the best. Nearly all chunks have none.
    fn look_through(&mut self, row: &[f32], mut candidate: impl FnMut(&mut Best, usize, f32)) {
        for (i, chunk) in row.chunks(CHUNK).enumerate() {
            let any = chunk
                .iter()
                .fold(false, |any, &similarity| any | (similarity > self.above));
            if any {
                for (j, &similarity) in chunk.iter().enumerate() {
                    if similarity > self.above {
                        candidate(self, i * CHUNK + j, similarity);
                    }
                }
            }
        }
    }

    fn offer(&mut self, neighbour: Neighbour) {
        if self.found.len() == self.k {
            if neighbour.similarity <= self.above {
                return;
            }
            self.found.pop();
        }
        let place = self
            .found
            .partition_point(|other| other.similarity >= neighbour.similarity);
        self.found.insert(place, neighbour);
        if self.found.len() == self.k {
            self.above = self.found[self.k - 1].similarity;
        }
    }
}

fn expect_finite(features: &[f32], frame: usize) -> Result<()> {
    if features.par_iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "features of frame {frame} hold NaN or infinity, expected finite numbers: are the weights a trained encoder's?"
    )))
}

/// Scales each row to length 1; rows of zeros stay. Source: torch, `normalize`, whose smallest divisor this is.
fn scale_to_length_1(rows: &mut [f32], width: usize) {
    const SMALLEST: f32 = 1e-12;
    rows.par_chunks_mut(width).for_each(|row| {
        let squares: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let length = (squares.sqrt() as f32).max(SMALLEST);
        row.iter_mut().for_each(|value| *value /= length);
    });
}

#[cfg(test)]
mod tests;
