//! Crop, then resize with antialiasing, as Pillow does it.
//!
//! The crop comes first: the resampler then never sees pixels outside the box. Passing the box to the resizer instead
//! would be a different result at the borders (up to 40 levels).

use crate::codec::{PicturePart, Rgb8Image};
use crate::config::Interpolation;
use crate::error::{Error, Result};
use crate::views::CropBox;
use crate::views::resample::{READ_PAST, Taps};

/// Borrowed 8-bit RGB pixels.
#[derive(Debug, Clone, Copy)]
pub struct RgbRef<'a> {
    /// Width in px.
    pub width: u32,
    /// Height in px.
    pub height: u32,
    /// `[H, W, 3]`.
    pub data: &'a [u8],
}

impl<'a> From<&'a Rgb8Image> for RgbRef<'a> {
    fn from(image: &'a Rgb8Image) -> Self {
        Self {
            width: image.width,
            height: image.height,
            data: &image.data,
        }
    }
}

impl<'a> From<&'a PicturePart> for RgbRef<'a> {
    fn from(part: &'a PicturePart) -> Self {
        let (width, height) = part.pixels_size();
        Self {
            width,
            height,
            data: part.pixels(),
        }
    }
}

/// Which of two pictures are stored mirrored, left to right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mirror {
    /// The picture that is cut from. A crop still counts from where its left edge would be if it were not.
    pub source: bool,
    /// The view to be made.
    pub view: bool,
}

/// Resizes crops; keep one for each thread, its scratch memory is reused.
#[derive(Debug, Default)]
pub struct CropResizer {
    across: Taps,
    down: Taps,
    /// The crop resized along one axis alone.
    half_done: Vec<u8>,
    /// Copies of the last rows of a picture, with readable bytes behind them.
    last_rows: Vec<u8>,
}

impl CropResizer {
    /// A resizer with no memory taken yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts `crop` out of `picture` and resizes it to `out_width` by `out_height` px into `out`, `[H, W, 3]`.
    ///
    /// As Pillow's `crop().resize()` but for the rounding of weights: within one level everywhere for bilinear and on
    /// 99.9 % of values for bicubic, and equal to it on some 99.8 %.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the crop leaves the picture or `out` has another length.
    pub fn resize_crop(
        &mut self,
        picture: RgbRef<'_>,
        crop: CropBox,
        out_width: u32,
        out_height: u32,
        interpolation: Interpolation,
        out: &mut [u8],
    ) -> Result<()> {
        let out_size = (out_width, out_height);
        self.resize_mirrored(
            picture,
            crop,
            out_size,
            interpolation,
            Mirror::default(),
            out,
        )
    }

    /// As [`Self::resize_crop`], from a mirrored picture or to a mirrored view, for nothing more: the view is, to the bit,
    /// what mirroring before or after would give.
    ///
    /// * `out_width`, `out_height`: in px.
    ///
    /// # Errors
    /// As [`Self::resize_crop`].
    pub fn resize_mirrored(
        &mut self,
        picture: RgbRef<'_>,
        crop: CropBox,
        (out_width, out_height): (u32, u32),
        interpolation: Interpolation,
        mirror: Mirror,
        out: &mut [u8],
    ) -> Result<()> {
        let wrong_crop = || Error::Invalid {
            name: "crop",
            value: format!("{crop:?}"),
            expected: format!("a box within {}x{} px", picture.width, picture.height),
        };
        let wrong_out = |bytes| Error::Invalid {
            name: "out",
            value: format!("{bytes} bytes"),
            expected: format!("the {out_width}x{out_height} RGB pixels of a view"),
        };
        if !CropBox::whole(picture.width, picture.height).contains(&crop) {
            return Err(wrong_crop());
        }
        if out.len() as u64 != u64::from(out_width) * u64::from(out_height) * 3 {
            return Err(wrong_out(out.len()));
        }
        let (width, height) = (picture.width as usize, picture.height as usize);
        if picture.data.len() < width * height * 3 || crop.width == 0 || crop.height == 0 {
            return Err(wrong_crop());
        }
        if out.is_empty() {
            return Ok(());
        }
        let x = if mirror.source {
            picture.width - crop.x - crop.width
        } else {
            crop.x
        };
        let stride = width * 3;
        let source = Rows {
            data: &picture.data[crop.y as usize * stride + x as usize * 3..],
            stride,
            row_bytes: crop.width as usize * 3,
        };
        self.across.prepare(
            crop.width,
            out_width,
            interpolation,
            mirror.source,
            mirror.view,
        );
        if crop.height == out_height {
            self.across.across(
                out_height as usize,
                source.padded(out_height, &mut self.last_rows),
                out,
            );
            return Ok(());
        }
        self.down
            .prepare(crop.height, out_height, interpolation, false, false);
        // Between the passes values are rounded, and bicubic overshoots clipped, so the order of the passes shows: in a
        // quarter of all values by a level, at clipped edges by up to 11. It is Pillow's.
        if height_first_in_pillow(crop, out_width, out_height) {
            let half_bytes = out_height as usize * source.row_bytes;
            make_room(&mut self.half_done, half_bytes);
            let half_done = &mut self.half_done[..half_bytes];
            self.down
                .down(source.data, stride, source.row_bytes, half_done);
            let half = Rows {
                data: &self.half_done,
                stride: source.row_bytes,
                ..source
            };
            self.across.across(
                out_height as usize,
                half.padded(out_height, &mut self.last_rows),
                out,
            );
        } else {
            let row_bytes = out_width as usize * 3;
            let half_bytes = crop.height as usize * row_bytes;
            make_room(&mut self.half_done, half_bytes);
            let half_done = &mut self.half_done[..half_bytes];
            self.across.across(
                crop.height as usize,
                source.padded(crop.height, &mut self.last_rows),
                half_done,
            );
            self.down.down(half_done, row_bytes, row_bytes, out);
        }
        Ok(())
    }
}

/// At least `n_bytes`, with what was there before: all of it is written before it is read.
fn make_room(memory: &mut Vec<u8>, n_bytes: usize) {
    if memory.len() < n_bytes {
        memory.resize(n_bytes, 0);
    }
}

/// Rows of a crop where they lie in a picture.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// From the first row's first byte on.
    data: &'a [u8],
    /// Bytes from one row to the next.
    stride: usize,
    row_bytes: usize,
}

impl<'a> Rows<'a> {
    /// The rows with [`READ_PAST`] bytes behind each: nearly always the picture goes on there; the last rows are copied.
    fn padded(self, n_rows: u32, copies: &'a mut Vec<u8>) -> impl Fn(usize) -> &'a [u8] {
        let n_rows = n_rows as usize;
        let padded_bytes = self.row_bytes + READ_PAST;
        let n_in_place = match self.data.len().checked_sub(padded_bytes) {
            Some(room) => (room / self.stride + 1).min(n_rows),
            None => 0,
        };
        copies.clear();
        for row in n_in_place..n_rows {
            copies.extend_from_slice(&self.data[row * self.stride..][..self.row_bytes]);
            copies.extend_from_slice(&[0; READ_PAST]);
        }
        let copies = copies.as_slice();
        move |row| {
            if row < n_in_place {
                &self.data[row * self.stride..][..padded_bytes]
            } else {
                &copies[(row - n_in_place) * padded_bytes..][..padded_bytes]
            }
        }
    }
}

/// Whether Pillow resizes the height first: from version 13 on where it shrinks much more than the width. Crops of
/// the usual aspects never do; the factor is bracketed by the golden crops (1.33 does not, 1.65 does).
fn height_first_in_pillow(crop: CropBox, out_width: u32, out_height: u32) -> bool {
    let scale = |from: u32, to: u32| f64::from(from) / f64::from(to);
    let (across, down) = (scale(crop.width, out_width), scale(crop.height, out_height));
    down > 1.0 && down > 1.5 * across
}

/// Size of a picture whose short side becomes `short` px, aspect kept.
///
/// Source: torchvision 0.17.1, `transforms.functional._compute_resized_output_size`: the long side is rounded down.
pub fn short_side_size(width: u32, height: u32, short: u32) -> (u32, u32) {
    let scaled = |long: u32, old_short: u32| {
        let scaled = u64::from(short) * u64::from(long) / u64::from(old_short.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX)
    };
    if width <= height {
        (short, scaled(height, width))
    } else {
        (scaled(width, height), short)
    }
}

/// The picture with its short side resized to `short` px, bilinear with antialiasing; enlarges smaller ones.
///
/// # Errors
/// [`Error::Invalid`] if `picture` has fewer pixels than it says or the result is beyond 2^31 px.
pub fn resize_short_side(picture: &Rgb8Image, short: u32) -> Result<Rgb8Image> {
    let (width, height) = short_side_size(picture.width, picture.height, short);
    let n_bytes = u64::from(width) * u64::from(height) * 3;
    let n_bytes = usize::try_from(n_bytes)
        .ok()
        .filter(|_| n_bytes <= 3 << 31)
        .ok_or_else(|| Error::Invalid {
            name: "short side",
            value: short.to_string(),
            expected: format!(
                "a size that keeps a {}x{} px picture under 2^31 px",
                picture.width, picture.height
            ),
        })?;
    let mut data = vec![0; n_bytes];
    let whole = CropBox::whole(picture.width, picture.height);
    CropResizer::new().resize_crop(
        picture.into(),
        whole,
        width,
        height,
        Interpolation::Bilinear,
        &mut data,
    )?;
    Ok(Rgb8Image {
        width,
        height,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::augment::flip_horizontal;

    fn gradient(width: u32, height: u32) -> Rgb8Image {
        let data = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, (x + y) as u8]))
            .collect();
        Rgb8Image {
            width,
            height,
            data,
        }
    }

    #[test]
    fn a_crop_of_the_wanted_size_is_copied() {
        let picture = gradient(40, 30);
        let mut out = vec![0; 5 * 4 * 3];
        let crop = CropBox {
            x: 7,
            y: 9,
            width: 5,
            height: 4,
        };
        let mut resizer = CropResizer::new();
        resizer
            .resize_crop(
                (&picture).into(),
                crop,
                5,
                4,
                Interpolation::Bilinear,
                &mut out,
            )
            .unwrap();
        assert_eq!(&out[..6], &[7, 9, 16, 8, 9, 17]);
        assert_eq!(&out[57..], &[11, 12, 23]);
    }

    #[test]
    fn pixels_outside_the_crop_play_no_part() {
        let mut picture = gradient(64, 64);
        let crop = CropBox {
            x: 20,
            y: 20,
            width: 24,
            height: 24,
        };
        let mut inside = vec![0; 16 * 16 * 3];
        let mut resizer = CropResizer::new();
        resizer
            .resize_crop(
                (&picture).into(),
                crop,
                16,
                16,
                Interpolation::Bicubic,
                &mut inside,
            )
            .unwrap();
        for (at, value) in picture.data.iter_mut().enumerate() {
            let (x, y) = (at / 3 % 64, at / 3 / 64);
            if !((20..44).contains(&x) && (20..44).contains(&y)) {
                *value = 255 - *value;
            }
        }
        let mut again = vec![0; 16 * 16 * 3];
        resizer
            .resize_crop(
                (&picture).into(),
                crop,
                16,
                16,
                Interpolation::Bicubic,
                &mut again,
            )
            .unwrap();
        assert_eq!(inside, again);
    }

    #[test]
    fn wrong_boxes_and_buffers_are_errors() {
        let picture = gradient(10, 10);
        let mut resizer = CropResizer::new();
        let mut out = vec![0; 12];
        for crop in [
            CropBox {
                x: 5,
                y: 0,
                width: 6,
                height: 5,
            },
            CropBox {
                x: u32::MAX,
                y: 0,
                width: 2,
                height: 5,
            },
        ] {
            let error = resizer.resize_crop(
                (&picture).into(),
                crop,
                2,
                2,
                Interpolation::Bilinear,
                &mut out,
            );
            assert!(error.unwrap_err().to_string().contains("within 10x10 px"));
        }
        let whole = CropBox::whole(10, 10);
        assert!(
            resizer
                .resize_crop(
                    (&picture).into(),
                    whole,
                    3,
                    2,
                    Interpolation::Bilinear,
                    &mut out
                )
                .is_err()
        );
        let lying = RgbRef {
            width: 100,
            height: 100,
            data: &picture.data,
        };
        assert!(
            resizer
                .resize_crop(lying, whole, 2, 2, Interpolation::Bilinear, &mut out)
                .is_err()
        );
    }

    #[test]
    fn mirrors_are_what_mirroring_gives() {
        let picture = gradient(61, 47);
        let mut stored = picture.clone();
        flip_horizontal(&mut stored.data, 61);
        let crop = CropBox {
            x: 3,
            y: 4,
            width: 50,
            height: 40,
        };
        let mut resizer = CropResizer::new();
        for (size, kind) in [
            ((24, 24), Interpolation::Bilinear),
            ((50, 40), Interpolation::Bilinear),
            ((50, 17), Interpolation::Bicubic),
            ((90, 40), Interpolation::Bicubic),
            ((90, 9), Interpolation::Bicubic), // the height first
        ] {
            let mut views = [false, true].map(|source| {
                [false, true].map(|view| {
                    let from = if source { &stored } else { &picture };
                    let mut out = vec![0; (size.0 * size.1 * 3) as usize];
                    let mirror = Mirror { source, view };
                    resizer
                        .resize_mirrored(from.into(), crop, size, kind, mirror, &mut out)
                        .unwrap();
                    if view {
                        flip_horizontal(&mut out, size.0);
                    }
                    out
                })
            });
            let plain = std::mem::take(&mut views[0][0]);
            views[0][0] = views[0][1].clone();
            assert!(
                views.iter().flatten().all(|view| *view == plain),
                "{size:?}"
            );
        }
    }

    #[test]
    fn short_sides_as_torchvision_rounds_them() {
        assert_eq!(short_side_size(500, 375, 256), (341, 256));
        assert_eq!(short_side_size(375, 500, 256), (256, 341));
        assert_eq!(short_side_size(300, 300, 256), (256, 256));
        assert_eq!(short_side_size(1920, 1080, 240), (426, 240));
        let small = resize_short_side(&gradient(50, 100), 10).unwrap();
        assert_eq!((small.width, small.height, small.data.len()), (10, 20, 600));
        assert!(resize_short_side(&gradient(1, 200), 100_000).is_err());
    }
}
