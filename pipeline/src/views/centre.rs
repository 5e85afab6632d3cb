//! The middle of a picture, as evaluations see it.

use crate::codec::PicturePart;
use crate::error::Result;
use crate::views::resize::short_side_size;
use crate::views::{CropBox, Renderer};

/// Short side that a whole picture is resized to before its middle is cut: 256 px for views of 224, and in the same ratio
/// for smaller ones; larger views take all of the short side.
///
/// Source: MAE, `util/datasets.py`, `build_transform`.
pub fn resized_short_side(size: u32) -> u32 {
    if size <= 224 { size * 8 / 7 } else { size }
}

/// Resizes the whole picture, bicubic with antialiasing, and cuts the central square into `out`, `[S, S, 3]`.
///
/// This is not the resize of a central crop: pixels around the square have their part in its border.
/// Source: torchvision 0.17.1, `Resize` and `CenterCrop` (half pixels are rounded to even).
///
/// # Errors
/// As [`CropResizer::resize_crop`](crate::views::CropResizer::resize_crop).
pub(super) fn render(picture: &PicturePart, renderer: &mut Renderer, out: &mut [u8]) -> Result<()> {
    let size = renderer.size;
    let (width, height) = picture.size();
    let (wide, high) = short_side_size(width, height, resized_short_side(size));
    renderer
        .resized
        .resize(wide as usize * high as usize * 3, 0);
    renderer.resizer.resize_crop(
        picture.into(),
        CropBox::whole(width, height),
        wide,
        high,
        renderer.interpolation,
        &mut renderer.resized,
    )?;
    let (left, top) = (half_to_even(wide - size), half_to_even(high - size));
    let row_bytes = size as usize * 3;
    let rows = renderer.resized.chunks_exact(wide as usize * 3);
    for (row, out) in rows.skip(top as usize).zip(out.chunks_exact_mut(row_bytes)) {
        out.copy_from_slice(&row[left as usize * 3..][..row_bytes]);
    }
    Ok(())
}

/// `n / 2`, rounded as Python rounds.
fn half_to_even(n: u32) -> u32 {
    let down = n / 2;
    down + (n % 2) * (down % 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Rgb8Image;
    use crate::config::Interpolation;

    #[test]
    fn halves_are_rounded_to_even() {
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 7].map(half_to_even),
            [0, 0, 1, 2, 2, 2, 4]
        );
        assert_eq!(
            [224, 32, 16, 384].map(resized_short_side),
            [256, 36, 18, 384]
        );
    }

    /// `Image.resize((12, 8), BICUBIC).crop((2, 0, 9, 7))` of Pillow 13.0.0, which is what torchvision's two steps do.
    const EXPECTED: &str = "9fa26ee87a45516a0f51738d9895d3c6899e4b5274ba5179a47c502f591a68759fae42e0af94a918b77fce9085976b\
        5c30972b7c6458c080dcc13bb62e768bcbb0903177674d7c3c8e701cd4a4dc4e85c2404696c85a9c2e8673606247a17f2bd94bd846a5cf53bc\
        a25e93a72b787e749b54bd711f8c826a2246e56b94ad72bdb23c7c8a868760d0752da2b0573285df7d49ba";

    #[test]
    fn the_middle_is_torchvisions() {
        let (width, height) = (20u32, 13u32);
        let data = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| {
                [
                    x * 37 + y * 11 + 20,
                    x * x * 9 + y * 53 + 90,
                    (200 + y * 7).wrapping_sub(x * 25),
                ]
            })
            .map(|value| value as u8)
            .collect();
        let picture = PicturePart::from(Rgb8Image {
            width,
            height,
            data,
        });
        let mut out = vec![0; 7 * 7 * 3];
        render(
            &picture,
            &mut Renderer::new(7, Interpolation::Bicubic),
            &mut out,
        )
        .unwrap();
        let expected = (0..out.len()).map(|at| u8::from_str_radix(&EXPECTED[2 * at..][..2], 16));
        let off = out
            .iter()
            .zip(expected)
            .filter(|(got, expected)| got.abs_diff(*expected.as_ref().unwrap()) > 1)
            .count();
        assert_eq!((EXPECTED.len(), off), (2 * out.len(), 0));
    }
}
