//! Parts of pictures: of a picture only what its views show is decoded.

use super::{CodecError, ImageFormat, JpegDecoder, OpenJpeg, Rgb8Image, format_of, still};

/// A rectangle of whole pixels inside a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// Left edge in px.
    pub x: u32,
    /// Top edge in px.
    pub y: u32,
    /// Width in px, at least 1.
    pub width: u32,
    /// Height in px, at least 1.
    pub height: u32,
}

impl CropBox {
    /// The whole of a picture.
    pub fn whole(width: u32, height: u32) -> Self {
        Self {
            x: 0,
            y: 0,
            width,
            height,
        }
    }

    /// Whether `other` lies within `self`.
    pub fn contains(&self, other: &CropBox) -> bool {
        let inside = |at: u32, len: u32, outer_at: u32, outer_len: u32| {
            at >= outer_at
                && u64::from(at) + u64::from(len) <= u64::from(outer_at) + u64::from(outer_len)
        };
        inside(other.x, other.width, self.x, self.width)
            && inside(other.y, other.height, self.y, self.height)
    }

    /// The smallest box that holds both.
    pub fn union(&self, other: &CropBox) -> CropBox {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        CropBox {
            x,
            y,
            width: (self.x + self.width).max(other.x + other.width) - x,
            height: (self.y + self.height).max(other.y + other.height) - y,
        }
    }

    /// The pixels of the picture reduced to one `scale`th of its size that show any of this box.
    pub(crate) fn divided(&self, scale: u32) -> CropBox {
        let (x, y) = (self.x / scale, self.y / scale);
        CropBox {
            x,
            y,
            width: (self.x + self.width).div_ceil(scale) - x,
            height: (self.y + self.height).div_ceil(scale) - y,
        }
    }
}

/// The decoded pixels of a rectangle of a picture.
#[derive(Debug, Clone)]
pub struct PicturePart {
    /// Columns and rows of the whole picture.
    size: (u32, u32),
    /// By how much the whole picture was reduced: 1, 2, 4 or 8.
    scale: u32,
    /// The rectangle, in px of the reduced picture.
    area: CropBox,
    /// `[H, W, 3]` of the area, and beyond that what larger parts left: memory is not cleared to be filled again.
    memory: Vec<u8>,
}

/// Memory that is kept for the next part; what a huge picture took beyond it is given back.
const KEPT_BYTES: usize = 16 << 20;

impl Default for PicturePart {
    fn default() -> Self {
        Self::from(Rgb8Image::default())
    }
}

impl From<Rgb8Image> for PicturePart {
    fn from(image: Rgb8Image) -> Self {
        Self {
            size: (image.width, image.height),
            scale: 1,
            area: CropBox::whole(image.width, image.height),
            memory: image.data,
        }
    }
}

impl PicturePart {
    /// Columns and rows of the whole picture.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// By how much the picture was reduced in decoding; 1 for its own pixels.
    pub fn scale(&self) -> u32 {
        self.scale
    }

    /// Columns and rows of the pixels that are there.
    pub fn pixels_size(&self) -> (u32, u32) {
        (self.area.width, self.area.height)
    }

    /// The pixels that are there, `[H, W, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.memory[..area_bytes(self.area)]
    }

    /// Where among [`Self::pixels`] a box in px of the whole picture lies: exactly, or to the nearest px of a reduced
    /// picture. It must lie within what was asked for.
    pub fn locate(&self, crop: CropBox) -> CropBox {
        let nearest = |at: u32| (at + self.scale / 2) / self.scale;
        let along = |at: u32, len: u32, origin: u32, extent: u32| {
            let start = nearest(at)
                .saturating_sub(origin)
                .min(extent.saturating_sub(1));
            let end = nearest(at + len).saturating_sub(origin).min(extent);
            (start, end.max(start + 1) - start)
        };
        let (x, width) = along(crop.x, crop.width, self.area.x, self.area.width);
        let (y, height) = along(crop.y, crop.height, self.area.y, self.area.height);
        CropBox {
            x,
            y,
            width,
            height,
        }
    }

    /// Room for the pixels of `area` of a picture of `size` reduced by `scale`.
    pub(super) fn prepare(&mut self, size: (u32, u32), scale: u32, area: CropBox) -> &mut [u8] {
        (self.size, self.scale, self.area) = (size, scale, area);
        let n_bytes = area_bytes(area);
        if self.memory.capacity() > KEPT_BYTES && n_bytes <= KEPT_BYTES {
            self.memory = Vec::new();
        }
        if self.memory.len() < n_bytes {
            self.memory.resize(n_bytes, 0);
        }
        &mut self.memory[..n_bytes]
    }

    /// A picture of no pixels with this part's memory, which is left with neither.
    pub(super) fn take_memory(&mut self) -> Rgb8Image {
        Rgb8Image {
            data: std::mem::take(self).memory,
            ..Rgb8Image::default()
        }
    }
}

fn area_bytes(area: CropBox) -> usize {
    area.width as usize * area.height as usize * 3
}

/// Decodes parts of pictures of any format; keep one for each thread.
#[derive(Debug, Default)]
pub struct PartDecoder {
    jpeg: JpegDecoder,
}

/// A picture whose size is known.
pub struct OpenPicture<'a>(Kind<'a>);

enum Kind<'a> {
    Jpeg(OpenJpeg<'a>),
    /// Formats of which no part decodes alone.
    Decoded(Rgb8Image),
}

impl PartDecoder {
    /// A decoder; costs nothing until used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the header; formats other than JPEG are decoded at once.
    ///
    /// # Errors
    /// As [`decode_rgb8`](super::decode_rgb8), as far as the header shows it.
    pub fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<OpenPicture<'a>, CodecError> {
        Ok(OpenPicture(match format_of(bytes)? {
            ImageFormat::Jpeg => Kind::Jpeg(self.jpeg.open(bytes)?),
            format => Kind::Decoded(still::decode(bytes, format)?),
        }))
    }
}

impl OpenPicture<'_> {
    /// Columns and rows of the whole picture.
    pub fn size(&self) -> (u32, u32) {
        match &self.0 {
            Kind::Jpeg(jpeg) => jpeg.size(),
            Kind::Decoded(image) => (image.width, image.height),
        }
    }

    /// Decodes at least the pixels of `wanted`, a box in px of the whole picture, into `part`; see
    /// [`OpenJpeg::decode_part`]. Formats other than JPEG come whole and unreduced.
    ///
    /// # Errors
    /// As [`decode_rgb8`](super::decode_rgb8).
    pub fn decode_part(
        self,
        wanted: CropBox,
        scale: u32,
        part: &mut PicturePart,
    ) -> Result<(), CodecError> {
        match self.0 {
            Kind::Jpeg(jpeg) => jpeg.decode_part(wanted, scale, part),
            Kind::Decoded(image) => {
                *part = image.into();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turbojpeg::raw;

    use super::*;
    use crate::codec::turbo::encode::encode;
    use crate::codec::{decode_rgb8, encode_rgb8};

    /// Shapes with edges and colours, and some noise.
    fn pixels(width: u32, height: u32, channels: u32) -> Vec<u8> {
        let level = |at: u32| {
            let (x, y, channel) = (at / channels % width, at / channels / width, at % channels);
            let noise = at.wrapping_mul(2_654_435_761) >> 27;
            let edge = if (x / 9 + y / 7 * (channel + 1)) % 3 == 0 {
                120
            } else {
                20
            };
            ((x * (channel + 2) + y) % 90 + edge + noise) as u8
        };
        (0..width * height * channels).map(level).collect()
    }

    const SAMPLINGS: [raw::TJSAMP; 7] = [
        raw::TJSAMP_TJSAMP_444,
        raw::TJSAMP_TJSAMP_422,
        raw::TJSAMP_TJSAMP_420,
        raw::TJSAMP_TJSAMP_GRAY,
        raw::TJSAMP_TJSAMP_440,
        raw::TJSAMP_TJSAMP_411,
        raw::TJSAMP_TJSAMP_441,
    ];

    #[derive(Debug, Clone)]
    struct File {
        width: u32,
        height: u32,
        sampling: raw::TJSAMP,
        progressive: bool,
        arithmetic: bool,
        restart_blocks: i32,
        quality: i32,
    }

    impl File {
        fn encode(&self) -> Vec<u8> {
            let params = [
                (raw::TJPARAM_TJPARAM_SUBSAMP, self.sampling),
                (raw::TJPARAM_TJPARAM_QUALITY, self.quality),
                (
                    raw::TJPARAM_TJPARAM_PROGRESSIVE,
                    i32::from(self.progressive),
                ),
                (raw::TJPARAM_TJPARAM_ARITHMETIC, i32::from(self.arithmetic)),
                (raw::TJPARAM_TJPARAM_RESTARTBLOCKS, self.restart_blocks),
            ];
            let pixels = pixels(self.width, self.height, 3);
            encode(self.width, self.height, &pixels, &params)
        }
    }

    fn file() -> impl Strategy<Value = File> {
        let sampling = prop::sample::select(SAMPLINGS.to_vec());
        let sizes = (1u32..150, 1u32..120);
        let kinds = (any::<bool>(), prop::bool::weighted(0.1));
        let restart = prop_oneof![Just(0), 1..9];
        (sizes, sampling, kinds, restart, 20..98).prop_map(
            |((width, height), sampling, (progressive, arithmetic), restart_blocks, quality)| {
                File {
                    width,
                    height,
                    sampling,
                    progressive,
                    arithmetic,
                    restart_blocks,
                    quality,
                }
            },
        )
    }

    /// A box within `width` by `height` px, from four shares of them.
    fn box_within(shares: [f64; 4], width: u32, height: u32) -> CropBox {
        let along = |place: f64, share: f64, side: u32| {
            let len = ((share * f64::from(side)) as u32).clamp(1, side);
            ((place * f64::from(side - len + 1)) as u32, len)
        };
        let ((x, width), (y, height)) = (
            along(shares[0], shares[1], width),
            along(shares[2], shares[3], height),
        );
        CropBox {
            x,
            y,
            width,
            height,
        }
    }

    /// Shares for [`box_within`], often at an end: at an edge, a single pixel, the whole side.
    fn shares() -> impl Strategy<Value = [f64; 4]> {
        prop::array::uniform4(prop_oneof![2 => 0.0..1.0, 1 => Just(0.0), 1 => Just(0.9999)])
    }

    /// The first pixel of the box that differs from the whole picture's.
    fn difference(part: &PicturePart, whole: &Rgb8Image, crop: CropBox) -> Option<(u32, u32)> {
        let at = part.locate(crop);
        assert_eq!((at.width, at.height), (crop.width, crop.height));
        let decoded = Rgb8Image {
            width: part.pixels_size().0,
            height: part.pixels_size().1,
            data: part.pixels().to_vec(),
        };
        let mut places = (0..crop.height).flat_map(|y| (0..crop.width).map(move |x| (x, y)));
        places.find(|&(x, y)| {
            decoded.pixel(at.x + x, at.y + y) != whole.pixel(crop.x + x, crop.y + y)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn a_part_has_the_pixels_of_the_whole(
            file in file(),
            boxes in prop::collection::vec(shares(), 4),
            scans in 1usize..12,
        ) {
            let mut bytes = file.encode();
            if file.progressive && scans < 6 {
                // Scans that are missing are smoothed over.
                let starts = bytes.windows(2).enumerate().filter(|(_, pair)| *pair == [0xff, 0xda]);
                if let Some((end, _)) = starts.skip(scans).collect::<Vec<_>>().first() {
                    bytes.truncate(*end);
                    bytes.extend([0xff, 0xd9]);
                }
            }
            let whole = decode_rgb8(&bytes).unwrap();
            let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
            for shares in boxes {
                let crop = box_within(shares, file.width, file.height);
                let picture = decoder.open(&bytes).unwrap();
                prop_assert_eq!(picture.size(), (file.width, file.height));
                picture.decode_part(crop, 1, &mut part).unwrap();
                prop_assert_eq!(part.size(), (file.width, file.height));
                prop_assert_eq!(difference(&part, &whole, crop), None, "{:?}", crop);
            }
        }
    }

    #[test]
    fn a_small_box_costs_few_pixels() {
        let bytes = encode_rgb8(
            &Rgb8Image {
                width: 400,
                height: 300,
                data: pixels(400, 300, 3),
            },
            90,
        )
        .unwrap();
        let crop = CropBox {
            x: 200,
            y: 100,
            width: 50,
            height: 40,
        };
        let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
        decoder
            .open(&bytes)
            .unwrap()
            .decode_part(crop, 1, &mut part)
            .unwrap();
        assert!(part.pixels_size().0 <= 50 + 16 + 2 && part.pixels_size().1 == 40);
    }

    #[test]
    fn reduced_parts_are_where_the_whole_has_them() {
        // A plane of colour, so that a reduced picture is the same plane.
        let image = Rgb8Image {
            width: 320,
            height: 240,
            data: (0..320 * 240u32)
                .flat_map(|at| [(at % 320 / 2) as u8, (at / 320) as u8, 128])
                .collect(),
        };
        let bytes = encode_rgb8(&image, 98).unwrap();
        let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
        for scale in [2, 4, 8] {
            let crop = CropBox {
                x: 81,
                y: 51,
                width: 200,
                height: 150,
            };
            let picture = decoder.open(&bytes).unwrap();
            picture.decode_part(crop, scale, &mut part).unwrap();
            assert_eq!(part.scale(), scale);
            let at = part.locate(crop);
            assert!(at.width.abs_diff(200 / scale) <= 1 && at.height.abs_diff(150 / scale) <= 1);
            let (width, _) = part.pixels_size();
            let first = &part.pixels()[((at.y * width + at.x) * 3) as usize..][..3];
            let centre = |from: u32| f64::from(from) + f64::from(scale) / 2.0;
            assert!(
                (f64::from(first[0]) * 2.0 - centre(81)).abs() < 1.0 + f64::from(scale),
                "{first:?}"
            );
            assert!(
                (f64::from(first[1]) - centre(51)).abs() < 1.0 + f64::from(scale),
                "{first:?}"
            );
        }
    }

    #[test]
    fn kinds_without_parts_come_whole() {
        let crop = CropBox {
            x: 20,
            y: 10,
            width: 30,
            height: 25,
        };
        let cmyk = [
            (raw::TJPARAM_TJPARAM_COLORSPACE, raw::TJCS_TJCS_YCCK as i32),
            (raw::TJPARAM_TJPARAM_SUBSAMP, raw::TJSAMP_TJSAMP_420),
            (raw::TJPARAM_TJPARAM_QUALITY, 90),
        ];
        let cmyk = encode(80, 60, &pixels(80, 60, 4), &cmyk);
        let mut png = Vec::new();
        let mut writer = png::Encoder::new(&mut png, 80, 60);
        writer.set_color(png::ColorType::Rgb);
        writer
            .write_header()
            .unwrap()
            .write_image_data(&pixels(80, 60, 3))
            .unwrap();
        for bytes in [cmyk, png] {
            let whole = decode_rgb8(&bytes).unwrap();
            let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
            decoder
                .open(&bytes)
                .unwrap()
                .decode_part(crop, 2, &mut part)
                .unwrap();
            assert_eq!((part.scale(), part.pixels_size()), (1, (80, 60)));
            assert_eq!(difference(&part, &whole, crop), None);
        }
    }

    #[test]
    fn boxes_and_scales_that_cannot_be_give_the_whole() {
        let image = Rgb8Image {
            width: 80,
            height: 60,
            data: pixels(80, 60, 3),
        };
        let bytes = encode_rgb8(&image, 90).unwrap();
        let whole = CropBox::whole(80, 60);
        let boxes =
            [(0, 0, 0, 0), (5, 5, 10, 0), (70, 0, 11, 9)].map(|(x, y, width, height)| CropBox {
                x,
                y,
                width,
                height,
            });
        let cases = boxes.map(|crop| (crop, 1)).into_iter();
        for (crop, scale) in cases.chain([(whole, 0), (whole, 3)]) {
            let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
            let picture = decoder.open(&bytes).unwrap();
            picture.decode_part(crop, scale, &mut part).unwrap();
            assert_eq!(part.pixels_size(), (80, 60), "{crop:?}");
            assert_eq!(part.locate(whole), whole);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_cut_file_is_truncated_for_every_box(
            file in file(), shares in shares(), cut in any::<prop::sample::Index>(),
        ) {
            let bytes = file.encode();
            let bytes = &bytes[..3 + cut.index(bytes.len() - 3)];
            let crop = box_within(shares, file.width, file.height);
            let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
            let found = decoder.open(bytes).and_then(|picture| picture.decode_part(crop, 1, &mut part));
            prop_assert_eq!(found.err(), decode_rgb8(bytes).err());
            prop_assert!(decode_rgb8(bytes).is_err());
        }

        #[test]
        fn a_damaged_file_is_as_the_whole_or_damaged_elsewhere(
            file in file(), shares in shares(),
            at in any::<prop::sample::Index>(), value: u8,
        ) {
            let mut bytes = file.encode();
            let at = 2 + at.index(bytes.len() - 2);
            bytes[at] = value;
            let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
            let decode = |decoder: &mut PartDecoder, part: &mut PicturePart| {
                let picture = decoder.open(&bytes)?;
                let (width, height) = picture.size();
                let crop = box_within(shares, width, height);
                picture.decode_part(crop, 1, part).map(|()| crop)
            };
            match (decode(&mut decoder, &mut part), decode_rgb8(&bytes)) {
                (Ok(crop), Ok(whole)) => {
                    prop_assert_eq!(difference(&part, &whole, crop), None, "{:?}", crop);
                }
                // Damage that the box does not see.
                (Ok(_), Err(_)) => {}
                (Err(found), whole) => prop_assert_eq!(Some(found), whole.err()),
            }
            // What came before has no influence.
            let mut again = PicturePart::default();
            prop_assert_eq!(
                decode(&mut PartDecoder::new(), &mut again).is_ok(),
                decode(&mut decoder, &mut part).is_ok()
            );
        }
    }

    #[test]
    fn containment() {
        let outer = CropBox {
            x: 10,
            y: 10,
            width: 20,
            height: 20,
        };
        assert!(outer.contains(&CropBox {
            x: 10,
            y: 12,
            width: 20,
            height: 18
        }));
        assert!(!outer.contains(&CropBox {
            x: 9,
            y: 12,
            width: 2,
            height: 2
        }));
        assert!(!outer.contains(&CropBox {
            x: 20,
            y: 20,
            width: 11,
            height: 2
        }));
    }

    #[test]
    fn a_box_is_found_in_what_was_decoded() {
        let area = CropBox {
            x: 16,
            y: 5,
            width: 40,
            height: 20,
        };
        let mut part = PicturePart::default();
        assert_eq!(part.prepare((100, 80), 1, area).len(), 40 * 20 * 3);
        let crop = CropBox {
            x: 17,
            y: 5,
            width: 30,
            height: 20,
        };
        assert_eq!(part.locate(crop), CropBox { x: 1, y: 0, ..crop });
        // Reduced to a half: 33..93 is 16.5..46.5, rounded up to 17..47.
        part.prepare((200, 160), 2, area);
        let crop = CropBox {
            x: 33,
            y: 10,
            width: 60,
            height: 1,
        };
        assert_eq!(
            part.locate(crop),
            CropBox {
                x: 1,
                y: 0,
                width: 30,
                height: 1
            }
        );
    }

    #[test]
    fn memory_is_kept_within_reason() {
        let mut part = PicturePart::default();
        part.prepare((4000, 4000), 1, CropBox::whole(4000, 4000));
        part.prepare((100, 100), 1, CropBox::whole(100, 100));
        let kept = part.memory.as_ptr();
        assert!(part.memory.capacity() < KEPT_BYTES);
        part.prepare((90, 100), 1, CropBox::whole(90, 100));
        assert_eq!((part.pixels().len(), part.memory.as_ptr()), (27_000, kept));
    }

    #[test]
    fn unions_hold_both() {
        let [a, b] = [(3, 9, 5, 2), (4, 1, 9, 3)].map(|(x, y, width, height)| CropBox {
            x,
            y,
            width,
            height,
        });
        assert_eq!(
            a.union(&b),
            CropBox {
                x: 3,
                y: 1,
                width: 10,
                height: 10
            }
        );
        assert_eq!(a.union(&a), a);
    }
}
