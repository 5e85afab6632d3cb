//! A decoded frame to upright packed RGB.

use ffmpeg_next as ffmpeg;

use ffmpeg::color::{Range, Space};
use ffmpeg::format::Pixel;
use ffmpeg::util::frame;

use super::ffi::{Scaler, Source};
use super::read::refusal;
use crate::codec::{CodecError, Rgb8Image};

/// How the container asks its frames to be turned; quarter turns and mirrorings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Orientation {
    /// Rows become columns, before the mirrorings.
    pub transpose: bool,
    /// Left and right change places.
    pub mirror_x: bool,
    /// Top and bottom change places.
    pub mirror_y: bool,
}

impl Orientation {
    /// From the nine native-endian 32-bit numbers of a display matrix. Turns that are not a multiple of 90 degrees, and
    /// anything malformed, count as upright.
    ///
    /// Source: FFmpeg, `libavutil/display.h`: shown (x', y') = (a x + c y, b x + d y) with rows (a, b, u), (c, d, v).
    pub fn from_display_matrix(bytes: &[u8]) -> Orientation {
        let mut numbers = bytes
            .chunks_exact(4)
            .map(|four| i32::from_ne_bytes([four[0], four[1], four[2], four[3]]));
        let mut next = || numbers.next().unwrap_or(0);
        let (a, b, _, c, d) = (next(), next(), next(), next(), next());
        match (a != 0, b != 0, c != 0, d != 0) {
            (true, false, false, true) => Orientation {
                transpose: false,
                mirror_x: a < 0,
                mirror_y: d < 0,
            },
            (false, true, true, false) => Orientation {
                transpose: true,
                mirror_x: c < 0,
                mirror_y: b < 0,
            },
            _ => Orientation::default(),
        }
    }

    /// Width and height after turning.
    pub fn size(self, width: u32, height: u32) -> (u32, u32) {
        if self.transpose {
            (height, width)
        } else {
            (width, height)
        }
    }

    /// Copies packed RGB rows (`stride` bytes apart) to their turned places in `image`, which gets its size here.
    fn apply(self, rows: &[u8], stride: usize, width: u32, height: u32, image: &mut Rgb8Image) {
        (image.width, image.height) = self.size(width, height);
        let (width, height) = (width as usize, height as usize);
        image.data.resize(width * height * 3, 0);
        if width * height == 0 {
            return;
        }
        if self == Orientation::default() {
            for (to, from) in image
                .data
                .chunks_exact_mut(width * 3)
                .zip(rows.chunks(stride))
            {
                to.copy_from_slice(&from[..width * 3]);
            }
            return;
        }
        let (shown_width, shown_height) = (image.width as usize, image.height as usize);
        for (shown_y, to) in image.data.chunks_exact_mut(shown_width * 3).enumerate() {
            let v = if self.mirror_y {
                shown_height - 1 - shown_y
            } else {
                shown_y
            };
            for (shown_x, pixel) in to.chunks_exact_mut(3).enumerate() {
                let u = if self.mirror_x {
                    shown_width - 1 - shown_x
                } else {
                    shown_x
                };
                let (x, y) = if self.transpose { (v, u) } else { (u, v) };
                pixel.copy_from_slice(&rows[y * stride + x * 3..][..3]);
            }
        }
    }
}

/// Converts frames; keeps the conversion set up for as long as format, size and colours stay the same.
#[derive(Default)]
pub(super) struct ToRgb {
    scaler: Option<(Source, Scaler)>,
}

impl ToRgb {
    /// Writes `picture` upright into `image`, whose memory is reused.
    pub fn convert(
        &mut self,
        picture: &frame::Video,
        orientation: Orientation,
        image: &mut Rgb8Image,
    ) -> Result<(), CodecError> {
        let source = source_of(picture);
        let no_conversion = |error| CodecError::Unsupported {
            format: "video".to_owned(),
            reason: format!(
                "{} x {} pixels of type {:?} to RGB: {error}",
                source.width, source.height, source.format
            ),
        };
        let failed = |error| refusal(error, no_conversion);
        let current = match self.scaler.take() {
            Some((set_up_for, scaler)) if set_up_for == source => scaler,
            _ => Scaler::new(&source).map_err(failed)?,
        };
        let (_, scaler) = self.scaler.insert((source, current));
        let (stride, rows) = scaler.run(picture).map_err(failed)?;
        orientation.apply(rows, stride, source.width, source.height, image);
        Ok(())
    }
}

/// The conversion that a frame's tags ask for.
fn source_of(picture: &frame::Video) -> Source {
    let format = picture.format();
    let is_full_by_format = matches!(
        format,
        Pixel::YUVJ420P | Pixel::YUVJ422P | Pixel::YUVJ444P | Pixel::YUVJ440P | Pixel::YUVJ411P
    );
    Source {
        format,
        width: picture.width(),
        height: picture.height(),
        matrix: match picture.color_space() {
            Space::BT709 => 1,
            Space::FCC => 4,
            Space::SMPTE240M => 7,
            Space::BT2020NCL | Space::BT2020CL => 9,
            _ => 5, // BT.601, also for frames without a tag, whatever their size
        },
        full_range: is_full_by_format || picture.color_range() == Range::JPEG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: i32 = 1 << 16;

    fn matrix(a: i32, b: i32, c: i32, d: i32) -> Vec<u8> {
        [a, b, 0, c, d, 0, 0, 0, 1 << 30]
            .iter()
            .flat_map(|number: &i32| number.to_ne_bytes())
            .collect()
    }

    fn turned(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        // Two rows of three pixels, 1 2 3 / 4 5 6, rows padded to 11 bytes.
        let rows: Vec<u8> = [[1u8, 2, 3], [4, 5, 6]]
            .iter()
            .flat_map(|row| row.iter().flat_map(|&v| [v; 3]).chain([99, 99]))
            .collect();
        let mut image = Rgb8Image::default();
        Orientation::from_display_matrix(bytes).apply(&rows, 11, 3, 2, &mut image);
        (
            image.width,
            image.height,
            image.data.chunks_exact(3).map(|pixel| pixel[0]).collect(),
        )
    }

    #[test]
    fn quarter_turns_and_mirrors() {
        assert_eq!(
            turned(&matrix(ONE, 0, 0, ONE)),
            (3, 2, vec![1, 2, 3, 4, 5, 6])
        );
        assert_eq!(
            turned(&matrix(-ONE, 0, 0, -ONE)),
            (3, 2, vec![6, 5, 4, 3, 2, 1])
        );
        assert_eq!(
            turned(&matrix(-ONE, 0, 0, ONE)),
            (3, 2, vec![3, 2, 1, 6, 5, 4])
        );
        // The matrix of a telephone held upright: a quarter turn clockwise.
        assert_eq!(
            turned(&matrix(0, ONE, -ONE, 0)),
            (2, 3, vec![4, 1, 5, 2, 6, 3])
        );
        assert_eq!(
            turned(&matrix(0, -ONE, ONE, 0)),
            (2, 3, vec![3, 6, 2, 5, 1, 4])
        );
        assert_eq!(
            turned(&matrix(0, ONE, ONE, 0)),
            (2, 3, vec![1, 4, 2, 5, 3, 6])
        );
    }

    #[test]
    fn other_matrices_leave_frames_alone() {
        for bytes in [
            matrix(ONE, ONE, -ONE, ONE),
            matrix(0, 0, 0, 0),
            vec![],
            vec![1, 2, 3],
        ] {
            assert_eq!(
                Orientation::from_display_matrix(&bytes),
                Orientation::default()
            );
        }
    }
}
