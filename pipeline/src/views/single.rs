//! One crop of one picture (MAE); the other kinds build on it.

use crate::codec::PicturePart;
use crate::error::Result;
use crate::rng::Purpose;
use crate::views::{CropBox, CropSampler, Mirror, Renderer, RgbRef, SampleKey};

/// A randomly cropped and flipped view.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Single {
    /// Draws the crop.
    pub crop: CropSampler,
    /// Probability of a flip.
    pub flip_p: f64,
}

/// What was drawn for one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewDraw {
    /// The crop, in px of the picture.
    pub crop: CropBox,
    /// Whether the view is mirrored.
    pub flip: bool,
}

impl Single {
    /// The draws of `N` independent views of a picture of `width` by `height` px.
    pub fn draw<const N: usize>(&self, key: SampleKey, width: u32, height: u32) -> [ViewDraw; N] {
        let (mut crops, mut flips) = (key.rng(Purpose::Crop), key.rng(Purpose::Flip));
        std::array::from_fn(|_| ViewDraw {
            crop: self.crop.draw(&mut crops, width, height),
            flip: flips.bool(self.flip_p),
        })
    }
}

impl ViewDraw {
    /// The same view of what was decoded of the picture.
    pub(super) fn within(&self, part: &PicturePart) -> Self {
        Self {
            crop: part.locate(self.crop),
            ..*self
        }
    }

    /// Cuts the view out of `picture` into `out`, `[S, S, 3]`.
    ///
    /// # Errors
    /// As [`CropResizer::resize_crop`](crate::views::CropResizer::resize_crop).
    pub fn render(
        &self,
        picture: RgbRef<'_>,
        renderer: &mut Renderer,
        out: &mut [u8],
    ) -> Result<()> {
        let mirror = Mirror {
            source: false,
            view: self.flip,
        };
        renderer.cut(picture, self.crop, mirror, out)
    }
}
