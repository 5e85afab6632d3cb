//! Where a random crop lies: torchvision's sampler, which the reference runs, and BYOL's, which its source spells out.

pub use crate::codec::CropBox;
use crate::config::Sampler;
use crate::rng::SampleRng;

/// Draws crop boxes of a given range of areas and aspect ratios.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropSampler {
    /// Which of the two ways.
    pub sampler: Sampler,
    /// Area of the crop as a share of the picture's, lowest and highest.
    pub area: [f64; 2],
    /// Width over height, lowest and highest.
    pub aspect: [f64; 2],
}

/// Tries before torchvision falls back to the central crop.
const MAX_TRIES: usize = 10;

impl CropSampler {
    /// A box inside a picture of `width` by `height` px.
    pub fn draw(&self, rng: &mut SampleRng, width: u32, height: u32) -> CropBox {
        match self.sampler {
            Sampler::Torchvision => self.torchvision(rng, width, height),
            Sampler::Byol => self.byol(rng, width, height),
        }
    }

    /// Ten tries of area and aspect, of which the first that fits is placed uniformly; else [`Self::central`]. Rejection
    /// thins out large areas, so areas are not uniform.
    ///
    /// Source: torchvision 0.17.1, `transforms.RandomResizedCrop.get_params`.
    fn torchvision(&self, rng: &mut SampleRng, width: u32, height: u32) -> CropBox {
        for _ in 0..MAX_TRIES {
            let (crop_width, crop_height) = self.draw_size(rng, width, height);
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                return place(rng, width, height, crop_width, crop_height);
            }
        }
        self.central(width, height)
    }

    /// One try, each side clamped to the picture: the aspect may leave its range.
    ///
    /// Source: CropMAE, `data/util/image_utils.py`, `RRC.get_params` (never called there), after MAE's `util/crop.py`.
    fn byol(&self, rng: &mut SampleRng, width: u32, height: u32) -> CropBox {
        let (crop_width, crop_height) = self.draw_size(rng, width, height);
        // The reference would fail on a side rounded to 0, which takes a picture a pixel or two wide.
        place(
            rng,
            width,
            height,
            crop_width.clamp(1, width.max(1)),
            crop_height.clamp(1, height.max(1)),
        )
    }

    /// Width and height in px from a uniform area and a log-uniform aspect.
    fn draw_size(&self, rng: &mut SampleRng, width: u32, height: u32) -> (u32, u32) {
        let area = f64::from(width) * f64::from(height) * rng.uniform(self.area[0], self.area[1]);
        let aspect = rng.uniform(self.aspect[0].ln(), self.aspect[1].ln()).exp();
        // Python's round: halves to even. A side beyond u32 saturates and is then too large for any picture.
        let whole = |side: f64| side.round_ties_even() as u32;
        (whole((area * aspect).sqrt()), whole((area / aspect).sqrt()))
    }

    /// The largest central crop whose aspect is in range.
    fn central(&self, width: u32, height: u32) -> CropBox {
        let [low, high] = self.aspect;
        let aspect = f64::from(width) / f64::from(height);
        let (crop_width, crop_height) = if aspect < low {
            (width, (f64::from(width) / low).round_ties_even() as u32)
        } else if aspect > high {
            ((f64::from(height) * high).round_ties_even() as u32, height)
        } else {
            (width, height)
        };
        let (crop_width, crop_height) = (crop_width.clamp(1, width), crop_height.clamp(1, height));
        CropBox {
            x: (width - crop_width) / 2,
            y: (height - crop_height) / 2,
            width: crop_width,
            height: crop_height,
        }
    }
}

/// Places a crop uniformly; the row is drawn first, as the reference does.
fn place(
    rng: &mut SampleRng,
    width: u32,
    height: u32,
    crop_width: u32,
    crop_height: u32,
) -> CropBox {
    let y = rng.below(u64::from(height - crop_height) + 1) as u32;
    let x = rng.below(u64::from(width - crop_width) + 1) as u32;
    CropBox {
        x,
        y,
        width: crop_width,
        height: crop_height,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Purpose;

    const ASPECT: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

    fn sampler(sampler: Sampler, area: [f64; 2]) -> CropSampler {
        CropSampler {
            sampler,
            area,
            aspect: ASPECT,
        }
    }

    fn rng(sample: u64) -> SampleRng {
        SampleRng::new(1, 2, sample, Purpose::Crop)
    }

    proptest! {
        #[test]
        fn boxes_lie_inside_the_picture(
            width in 1u32..5000, height in 1u32..5000, sample: u64, low in 0.01f64..1.0, byol: bool,
        ) {
            let kind = if byol { Sampler::Byol } else { Sampler::Torchvision };
            let crop = sampler(kind, [low, 1.0]).draw(&mut rng(sample), width, height);
            prop_assert!(crop.width >= 1 && crop.height >= 1);
            prop_assert!(CropBox::whole(width, height).contains(&crop), "{:?}", crop);
        }
    }

    #[test]
    fn a_strip_falls_back_to_the_central_crop() {
        let strip = sampler(Sampler::Torchvision, [0.9, 1.0]);
        let expected = CropBox {
            x: 433,
            y: 0,
            width: 133,
            height: 100,
        };
        assert!((0..50).all(|s| strip.draw(&mut rng(s), 1000, 100) == expected));
        let expected = CropBox {
            x: 0,
            y: 433,
            width: 100,
            height: 133,
        };
        assert!((0..50).all(|s| strip.draw(&mut rng(s), 100, 1000) == expected));
        assert_eq!(strip.central(110, 100), CropBox::whole(110, 100));
    }

    #[test]
    fn byol_clamps_where_torchvision_rejects() {
        let wide = sampler(Sampler::Byol, [1.0, 1.0]);
        let boxes: Vec<_> = (0..200).map(|s| wide.draw(&mut rng(s), 300, 200)).collect();
        assert!(boxes.iter().all(|b| b.height == 200));
        let aspects = boxes.iter().map(|b| f64::from(b.width) / 200.0);
        assert!(aspects.fold(0.0, f64::max) > 4.0 / 3.0 + 0.05);
    }
}
