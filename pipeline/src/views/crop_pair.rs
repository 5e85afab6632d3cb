//! Two crops of one picture (CropMAE): the whole view `f1` and the masked view `f2`.
//!
//! The local crop is cut out of the **resized** global view, so it is an enlarged, blurrier window that is certain to
//! lie inside it. The views flip independently: half of the pairs are mirrored relative to each other.
//! Source: CropMAE, `data/util/CropMAEStrategies.py`.

use crate::codec::PicturePart;
use crate::config::Strategy;
use crate::error::Result;
use crate::rng::Purpose;
use crate::views::{CropBox, CropSampler, Mirror, Renderer, RgbRef, SampleKey};

/// Draws and cuts a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropPair {
    /// How the two crops relate.
    pub strategy: Strategy,
    /// Draws the global crop.
    pub global: CropSampler,
    /// Draws the local crop.
    pub local: CropSampler,
    /// Probability of a flip.
    pub flip_p: f64,
}

/// What was drawn for a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropPairDraw {
    /// The global crop, in px of the picture.
    pub global: CropBox,
    /// Where the other view comes from.
    pub other: OtherCrop,
    /// Whether the whole view `f1` and the masked view `f2` are mirrored.
    pub flip: [bool; 2],
}

/// Where the view beside the global one comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherCrop {
    /// A window of the resized global view before its flip, in px of that view.
    InGlobalView(CropBox),
    /// Another crop of the picture, in px of the picture.
    InPicture(CropBox),
    /// The global view again.
    Same,
}

impl CropPairDraw {
    /// The same pair of what was decoded of the picture.
    pub(super) fn within(&self, part: &PicturePart) -> Self {
        Self {
            global: part.locate(self.global),
            other: match self.other {
                OtherCrop::InPicture(crop) => OtherCrop::InPicture(part.locate(crop)),
                other => other,
            },
            ..*self
        }
    }
}

impl CropPair {
    /// The draws for a picture of `width` by `height` px and views of `size` px.
    pub fn draw(&self, key: SampleKey, width: u32, height: u32, size: u32) -> CropPairDraw {
        let (mut crops, mut flips) = (key.rng(Purpose::Crop), key.rng(Purpose::Flip));
        let global = self.global.draw(&mut crops, width, height);
        let other = match self.strategy {
            Strategy::GlobalToLocal | Strategy::LocalToGlobal => {
                OtherCrop::InGlobalView(self.local.draw(&mut crops, size, size))
            }
            Strategy::Random => OtherCrop::InPicture(self.global.draw(&mut crops, width, height)),
            Strategy::Same => OtherCrop::Same,
        };
        let first = flips.bool(self.flip_p);
        let second = if self.strategy == Strategy::Same {
            first
        } else {
            flips.bool(self.flip_p)
        };
        CropPairDraw {
            global,
            other,
            flip: [first, second],
        }
    }

    /// Cuts both views out of `picture` into `f1` and `f2`, `[S, S, 3]` each.
    ///
    /// # Errors
    /// As [`CropResizer::resize_crop`](crate::views::CropResizer::resize_crop).
    pub fn render(
        &self,
        draw: &CropPairDraw,
        picture: RgbRef<'_>,
        renderer: &mut Renderer,
        f1: &mut [u8],
        f2: &mut [u8],
    ) -> Result<()> {
        let [flip_1, flip_2] = draw.flip;
        let (global, global_flip, other, other_flip) = if self.strategy == Strategy::LocalToGlobal {
            (f2, flip_2, f1, flip_1)
        } else {
            (f1, flip_1, f2, flip_2)
        };
        let mirrored = |source, view| Mirror { source, view };
        renderer.cut(picture, draw.global, mirrored(false, global_flip), global)?;
        match draw.other {
            OtherCrop::InGlobalView(crop) => {
                let view = RgbRef {
                    width: renderer.size(),
                    height: renderer.size(),
                    data: global,
                };
                renderer.cut(view, crop, mirrored(global_flip, other_flip), other)?;
            }
            OtherCrop::InPicture(crop) => {
                renderer.cut(picture, crop, mirrored(false, other_flip), other)?;
            }
            OtherCrop::Same => other.copy_from_slice(global),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Rgb8Image;
    use crate::config::{Interpolation, Sampler};
    use crate::views::augment::flip_horizontal;

    const SIZE: u32 = 24;
    const VIEW_BYTES: usize = 24 * 24 * 3;

    fn pair(strategy: Strategy) -> CropPair {
        let sampler = |area| CropSampler {
            sampler: Sampler::Torchvision,
            area,
            aspect: [0.75, 4.0 / 3.0],
        };
        CropPair {
            strategy,
            global: sampler([0.1, 1.0]),
            local: sampler([0.3, 0.6]),
            flip_p: 0.5,
        }
    }

    fn key(sample: u64) -> SampleKey {
        SampleKey {
            seed: 3,
            epoch: 1,
            sample,
        }
    }

    fn picture() -> Rgb8Image {
        let data = (0..60 * 80 * 3u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        Rgb8Image {
            width: 80,
            height: 60,
            data,
        }
    }

    fn views(pair: &CropPair, draw: &CropPairDraw) -> [Vec<u8>; 2] {
        let mut renderer = Renderer::new(SIZE, Interpolation::Bilinear);
        let (mut f1, mut f2) = (vec![0; VIEW_BYTES], vec![0; VIEW_BYTES]);
        pair.render(draw, (&picture()).into(), &mut renderer, &mut f1, &mut f2)
            .unwrap();
        [f1, f2]
    }

    #[test]
    fn the_local_view_is_cut_from_the_resized_global_view() {
        let pair = pair(Strategy::GlobalToLocal);
        for sample in 0..20 {
            let draw = pair.draw(key(sample), 80, 60, SIZE);
            let OtherCrop::InGlobalView(local) = draw.other else {
                panic!("{draw:?}")
            };
            assert!(CropBox::whole(SIZE, SIZE).contains(&local));
            let [mut f1, f2] = views(&pair, &draw);
            if draw.flip[0] {
                flip_horizontal(&mut f1, SIZE);
            }
            let mut expected = vec![0; VIEW_BYTES];
            let mut renderer = Renderer::new(SIZE, Interpolation::Bilinear);
            renderer
                .cut(
                    RgbRef {
                        width: SIZE,
                        height: SIZE,
                        data: &f1,
                    },
                    local,
                    Mirror::default(),
                    &mut expected,
                )
                .unwrap();
            if draw.flip[1] {
                flip_horizontal(&mut expected, SIZE);
            }
            assert_eq!(f2, expected);
        }
    }

    #[test]
    fn local_to_global_is_the_same_pair_swapped() {
        let draw = pair(Strategy::GlobalToLocal).draw(key(4), 80, 60, SIZE);
        let draw = CropPairDraw {
            flip: [true, false],
            ..draw
        };
        let swapped = CropPairDraw {
            flip: [false, true],
            ..draw
        };
        let [f1, f2] = views(&pair(Strategy::GlobalToLocal), &draw);
        let [g1, g2] = views(&pair(Strategy::LocalToGlobal), &swapped);
        assert_eq!((f1, f2), (g2, g1));
        assert_eq!(
            draw.global,
            pair(Strategy::LocalToGlobal)
                .draw(key(4), 80, 60, SIZE)
                .global
        );
    }

    #[test]
    fn same_views_are_bit_identical_and_flip_together() {
        let pair = pair(Strategy::Same);
        let mut flips = [0; 2];
        for sample in 0..40 {
            let draw = pair.draw(key(sample), 80, 60, SIZE);
            let [f1, f2] = views(&pair, &draw);
            assert_eq!(f1, f2);
            flips[usize::from(draw.flip[0])] += 1;
        }
        assert!(flips[0] > 5 && flips[1] > 5);
    }

    #[test]
    fn random_views_are_independent_global_crops_with_independent_flips() {
        let pair = pair(Strategy::Random);
        let mut flips = [[0; 2]; 2];
        for sample in 0..4000 {
            let draw = pair.draw(key(sample), 500, 375, SIZE);
            let OtherCrop::InPicture(other) = draw.other else {
                panic!("{draw:?}")
            };
            assert!(other != draw.global && CropBox::whole(500, 375).contains(&other));
            flips[usize::from(draw.flip[0])][usize::from(draw.flip[1])] += 1;
        }
        assert!(
            flips.iter().flatten().all(|n| (880..1120).contains(n)),
            "{flips:?}"
        );
    }
}
