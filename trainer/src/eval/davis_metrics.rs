//! DAVIS's measures of a mask: region similarity J, contour accuracy F, and their statistics over frames.
//!
//! Source of all of it: davis2017-evaluation, `davis2017/metrics.py` and `davis2017/utils.py`.

use serde::{Deserialize, Serialize};

use super::sampling::Size;

/// Distance within which contours count as the same, as a share of the frame's diagonal.
const BOUND_SHARE: f64 = 0.008;

/// A frame counts for recall if its value is larger.
const RECALL_ABOVE: f64 = 0.5;

/// Parts that a sequence is divided into for its decay.
const DECAY_BINS: usize = 4;

/// J, the intersection over union of two masks; 1 if both are empty.
pub fn region_similarity(truth: &[bool], predicted: &[bool]) -> f64 {
    let (mut both, mut either) = (0u64, 0u64);
    for (&t, &p) in truth.iter().zip(predicted) {
        both += u64::from(t & p);
        either += u64::from(t | p);
    }
    if either == 0 {
        1.0
    } else {
        both as f64 / either as f64
    }
}

/// F, the harmonic mean of precision and recall of the contours of two masks `[H, W]`, which match within
/// [`contour_radius`]. Two masks without contours match wholly, one without does not match at all; a mask that fills the
/// frame has none.
pub fn contour_accuracy(truth: &[bool], predicted: &[bool], size: Size) -> f64 {
    let radius = contour_radius(size);
    let (truth, predicted) = (contour(truth, size), contour(predicted, size));
    let count = |mask: &[bool]| mask.iter().filter(|&&set| set).count();
    let (n_truth, n_predicted) = (count(&truth), count(&predicted));
    let (precision, recall) = match (n_truth, n_predicted) {
        (0, 0) => (1.0, 1.0),
        (0, _) => (0.0, 1.0),
        (_, 0) => (1.0, 0.0),
        _ => {
            let matched = |mask: &[bool], other: &[bool]| {
                let near = dilate(other, size, radius);
                mask.iter()
                    .zip(near)
                    .filter(|&(&set, near)| set && near)
                    .count()
            };
            (
                matched(&predicted, &truth) as f64 / n_predicted as f64,
                matched(&truth, &predicted) as f64 / n_truth as f64,
            )
        }
    };
    if precision + recall == 0.0 {
        0.0
    } else {
        2.0 * precision * recall / (precision + recall)
    }
}

/// Distance within which contours match: 0.8 % of the diagonal, rounded up.
pub fn contour_radius(size: Size) -> usize {
    (BOUND_SHARE * (size.height as f64).hypot(size.width as f64)).ceil() as usize
}

/// The pixels of a mask `[H, W]` that differ from the one to the right, below, or both; the last row looks to the right
/// only, the last column below only, and the last pixel nowhere.
pub fn contour(mask: &[bool], size: Size) -> Vec<bool> {
    let Size { height, width } = size;
    let mut map = vec![false; mask.len()];
    for y in 0..height {
        for x in 0..width {
            let here = mask[y * width + x];
            let differs = |dy: usize, dx: usize| here != mask[(y + dy) * width + x + dx];
            map[y * width + x] = match (y + 1 < height, x + 1 < width) {
                (true, true) => differs(0, 1) || differs(1, 0) || differs(1, 1),
                (false, true) => differs(0, 1),
                (true, false) => differs(1, 0),
                (false, false) => false,
            };
        }
    }
    map
}

/// Every pixel within `radius` of a set one, in the Euclidean sense.
pub fn dilate(mask: &[bool], size: Size, radius: usize) -> Vec<bool> {
    let Size { height, width } = size;
    // How far a disk reaches to the sides in each of its rows.
    let reach: Vec<usize> = (0..=radius)
        .map(|dy| (radius * radius - dy * dy).isqrt())
        .collect();
    let mut out = vec![false; mask.len()];
    for (y, row) in mask.chunks_exact(width).enumerate() {
        for x in (0..width).filter(|&x| row[x]) {
            for (dy, &reach) in reach.iter().enumerate() {
                let (from, to) = (x.saturating_sub(reach), (x + reach + 1).min(width));
                if let Some(above) = y.checked_sub(dy) {
                    out[above * width..][from..to].fill(true);
                }
                if y + dy < height {
                    out[(y + dy) * width..][from..to].fill(true);
                }
            }
        }
    }
    out
}

/// What is said about the values of an object's frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Mean over frames.
    pub mean: f64,
    /// Share of frames above 0.5.
    pub recall: f64,
    /// Mean of the first quarter minus mean of the last one.
    pub decay: f64,
    /// The decay as the reference computes it, whose places of the quarters are kept in 8 bits: another number, or none,
    /// for more than 256 frames.
    pub decay_8_bit: Option<f64>,
}

impl Statistics {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Statistics {
        let edges = quarter_edges(values.len());
        let wrapped = edges.map(|edge| edge % 256);
        Statistics {
            mean: mean(values).unwrap_or(f64::NAN),
            recall: values.iter().filter(|&&v| v > RECALL_ABOVE).count() as f64
                / values.len() as f64,
            decay: decay(values, edges).unwrap_or(f64::NAN),
            decay_8_bit: decay(values, wrapped),
        }
    }

    /// The mean of each number over several objects.
    pub fn mean_of(all: &[Statistics]) -> Option<Statistics> {
        let over = |of: &dyn Fn(&Statistics) -> f64| mean(&all.iter().map(of).collect::<Vec<_>>());
        let old: Option<Vec<f64>> = all.iter().map(|s| s.decay_8_bit).collect();
        Some(Statistics {
            mean: over(&|s| s.mean)?,
            recall: over(&|s| s.recall)?,
            decay: over(&|s| s.decay)?,
            decay_8_bit: old.and_then(|old| mean(&old)),
        })
    }
}

/// First frame of each quarter, and the last frame.
fn quarter_edges(n: usize) -> [usize; DECAY_BINS + 1] {
    std::array::from_fn(|i| {
        let place = 1.0 + i as f64 * (n as f64 - 1.0) / DECAY_BINS as f64;
        (place + 1e-10).round_ties_even() as usize - 1
    })
}

/// Quarters include the frames at both of their ends. `None` if one is empty, as in the reference.
fn decay(values: &[f64], edges: [usize; DECAY_BINS + 1]) -> Option<f64> {
    let quarter = |i: usize| values.get(edges[i]..edges[i + 1] + 1).and_then(mean);
    Some(quarter(0)? - quarter(DECAY_BINS - 1)?)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        height: 4,
        width: 5,
    };

    fn mask(rows: [&str; 4]) -> Vec<bool> {
        rows.iter()
            .flat_map(|row| row.bytes().map(|b| b == b'#'))
            .collect()
    }

    #[test]
    fn contours_lie_up_and_left_of_edges() {
        let square = mask([".....", ".##..", ".##..", "....."]);
        let expected = mask(["###..", "#.#..", "###..", "....."]);
        assert_eq!(contour(&square, SIZE), expected);
        let last = mask([".....", ".....", ".....", "...##"]);
        let expected = mask([".....", ".....", "..###", "..#.."]);
        assert_eq!(contour(&last, SIZE), expected);
    }

    #[test]
    fn disks_are_round() {
        let mut dot = vec![false; 49];
        dot[24] = true;
        let size = Size {
            height: 7,
            width: 7,
        };
        for (radius, n) in [(0, 1), (1, 5), (2, 13), (3, 29)] {
            let disk = dilate(&dot, size, radius);
            assert_eq!(disk.iter().filter(|&&set| set).count(), n);
        }
    }

    #[test]
    fn empty_and_full_masks_have_no_contour() {
        let (empty, full) = (vec![false; 20], vec![true; 20]);
        let some = mask([".....", ".##..", ".....", "....."]);
        assert_eq!(region_similarity(&empty, &empty), 1.0);
        assert_eq!(contour_accuracy(&empty, &full, SIZE), 1.0);
        assert_eq!(contour_accuracy(&some, &empty, SIZE), 0.0);
        assert_eq!(region_similarity(&full, &some), 0.1);
    }

    #[test]
    fn decay_is_right_beyond_256_frames() {
        let values: Vec<f64> = (0..300).map(|i| 1.0 - f64::from(i) / 300.0).collect();
        let statistics = Statistics::of(&values);
        // Quarters of 75 or 76 frames, each 0.25 below the one before it.
        assert!((statistics.decay - 0.7475).abs() < 2e-3, "{statistics:?}");
        assert_eq!(statistics.decay_8_bit, None);
        let short = Statistics::of(&values[..256]);
        assert_eq!(Some(short.decay), short.decay_8_bit);
        assert_eq!(Statistics::of(&[0.5, 0.6]).recall, 0.5);
    }
}
