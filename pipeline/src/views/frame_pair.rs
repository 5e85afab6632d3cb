//! Two frames of a clip with one crop box and one flip for both (SiamMAE).

use crate::rng::{Purpose, SampleRng};
use crate::views::SampleKey;
use crate::views::single::{Single, ViewDraw};

/// Draws the frames and the view they share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FramePair {
    /// Smallest distance in frames.
    pub min_gap: u32,
    /// Bound of the distance in frames, itself excluded.
    pub max_gap: u32,
    /// The shared crop and flip.
    pub shared: Single,
}

impl FramePair {
    /// Indices of the earlier frame `f1` and the later frame `f2` of a clip of `n_frames`; `None` for a single frame.
    ///
    /// The gap is uniform on `min(min_gap, n-1) ..= min(max_gap, n) - 1`, the first frame on all that leave room: short
    /// clips get their widest gap.
    /// Source: CropMAE, `data/util/video_utils.py`, `sample_frames`.
    pub fn draw_frames(&self, rng: &mut SampleRng, n_frames: u32) -> Option<[u32; 2]> {
        let last = n_frames.checked_sub(1).filter(|&last| last > 0)?;
        let low = self.min_gap.min(last);
        let high = (self.max_gap - 1).min(last).max(low);
        let gap = low + rng.below(u64::from(high - low) + 1) as u32;
        let first = rng.below(u64::from(n_frames - gap)) as u32;
        Some([first, first + gap])
    }

    /// The crop and flip of both frames, `width` by `height` px each.
    pub fn draw(&self, key: SampleKey, width: u32, height: u32) -> ViewDraw {
        let [shared] = self.shared.draw(key, width, height);
        shared
    }
}

/// One frame of a clip, uniformly, for the kinds that take a single picture.
///
/// Source: CropMAE, `data/util/video_utils.py`, `sample_frame`.
pub fn draw_frame(key: SampleKey, n_frames: u32) -> u32 {
    key.rng(Purpose::Frames).below(u64::from(n_frames)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Sampler;
    use crate::views::CropSampler;

    fn pair(min_gap: u32, max_gap: u32) -> FramePair {
        let crop = CropSampler {
            sampler: Sampler::Torchvision,
            area: [0.5, 1.0],
            aspect: [0.75, 4.0 / 3.0],
        };
        FramePair {
            min_gap,
            max_gap,
            shared: Single { crop, flip_p: 0.5 },
        }
    }

    proptest! {
        #[test]
        fn pairs_lie_in_the_clip_with_gaps_in_range(n in 2u32..2000, min in 1u32..60, more in 1u32..60, sample: u64) {
            let pair = pair(min, min + more);
            let mut rng = SampleRng::new(1, 1, sample, Purpose::Frames);
            let [first, second] = pair.draw_frames(&mut rng, n).unwrap();
            let gap = second - first;
            prop_assert!(second < n);
            prop_assert!(gap >= min.min(n - 1) && gap < (min + more).min(n));
        }
    }

    #[test]
    fn single_frames_make_no_pair() {
        let mut rng = SampleRng::new(1, 1, 1, Purpose::Frames);
        assert_eq!(pair(4, 48).draw_frames(&mut rng, 1), None);
        assert_eq!(pair(4, 48).draw_frames(&mut rng, 0), None);
        assert_eq!(pair(4, 48).draw_frames(&mut rng, 2), Some([0, 1]));
    }
}
