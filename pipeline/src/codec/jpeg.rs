//! JPEG: whole pictures, both ways, and parts of pictures.

use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use super::turbo::{Decompressor, Ending, Layout, Opened};
use super::work::{Grant, max_scans};
use super::{CodecError, CropBox, PicturePart, Rgb8Image};

/// Decodes JPEG to RGB, pixel for pixel as Pillow does with libjpeg-turbo: accurate DCT, smooth chroma upsampling.
///
/// Holds only memory for reuse. What it decoded before has no influence on what it decodes next.
#[derive(Debug, Default)]
pub struct JpegDecoder {
    cmyk: Vec<u8>,
}

impl JpegDecoder {
    /// A decoder; costs nothing until used.
    pub fn new() -> JpegDecoder {
        JpegDecoder::default()
    }

    /// Decodes a whole picture.
    ///
    /// # Errors
    /// [`CodecError::Truncated`] if the data ends before the picture does (libjpeg-turbo would fill the rest with grey),
    /// [`CodecError::Corrupt`] where it gives up, [`CodecError::TooLarge`], [`CodecError::Bomb`]. Defects that it can work around, such as
    /// stray bytes between segments, are no error, as in Pillow.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Rgb8Image, CodecError> {
        let mut image = Rgb8Image::default();
        self.decode_into(bytes, &mut image)?;
        Ok(image)
    }

    /// As [`decode`](Self::decode), into a picture whose memory is reused. After an error its content is unspecified.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_into(&mut self, bytes: &[u8], image: &mut Rgb8Image) -> Result<(), CodecError> {
        let turbo = open(bytes)?;
        let header = *turbo.header();
        let n_pixels = header.width as usize * header.height as usize;
        (image.width, image.height) = (header.width, header.height);
        image.data.resize(n_pixels * 3, 0);
        let ending = if header.is_cmyk {
            self.cmyk.resize(n_pixels * 4, 0);
            let ending = turbo.decode(Layout::Cmyk, &mut self.cmyk);
            for (rgb, ink) in image
                .data
                .chunks_exact_mut(3)
                .zip(self.cmyk.chunks_exact(4))
            {
                rgb.copy_from_slice(&adobe_cmyk_to_rgb(ink));
            }
            ending
        } else {
            turbo.decode(Layout::Rgb, &mut image.data)
        };
        match ending.map_err(|reason| failure(bytes, reason))? {
            // Only after a warning is the file walked: an undamaged one never gives any.
            Ending::Warned(reason) if !reaches_end(bytes) => Err(truncated(bytes, reason)),
            _ => Ok(()),
        }
    }

    /// Reads the header, so that what is to be decoded can be made to depend on the size.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), as far as the header shows it.
    pub fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<OpenJpeg<'a>, CodecError> {
        Ok(OpenJpeg {
            turbo: open(bytes)?,
            bytes,
            decoder: self,
        })
    }
}

/// A picture whose header was read.
pub struct OpenJpeg<'a> {
    turbo: Opened<'a>,
    bytes: &'a [u8],
    decoder: &'a mut JpegDecoder,
}

impl OpenJpeg<'_> {
    /// Columns and rows of the whole picture.
    pub fn size(&self) -> (u32, u32) {
        (self.turbo.header().width, self.turbo.header().height)
    }

    /// Decodes at least the pixels of `wanted`, a box in px of the whole picture, into `part`.
    ///
    /// At `scale` 1 every pixel of the box is what decoding the whole picture makes of it. At 2, 4 or 8 the picture is
    /// reduced by that factor inside of the transform, for less work.
    ///
    /// Rows below the box are not looked at, but for the end of the file, which must be there. Wherever anything else
    /// is unusual (a warning of the library, CMYK, rare kinds of sampling, a box or scale that cannot be), the whole
    /// picture is decoded instead: so a truncated file is an error for every box, and damage that the box does not see is
    /// none.
    ///
    /// # Errors
    /// As [`JpegDecoder::decode`].
    pub fn decode_part(
        self,
        wanted: CropBox,
        scale: u32,
        part: &mut PicturePart,
    ) -> Result<(), CodecError> {
        let header = *self.turbo.header();
        let (width, height) = (header.width, header.height);
        if let Some(mcu_width) = header.mcu_width
            && matches!(scale, 1 | 2 | 4 | 8)
            && CropBox::whole(width, height).contains(&wanted)
        {
            let reduced = |side: u32| side.div_ceil(scale);
            let wanted = wanted.divided(scale);
            let columns = Columns {
                width: reduced(width),
                mcu: reduced(mcu_width),
                per_chroma: mcu_width / 8,
                is_progressive: header.is_progressive,
            };
            let (x, right) = columns.covering(wanted.x, wanted.x + wanted.width);
            let area = CropBox {
                x,
                width: right - x,
                ..wanted
            };
            let pixels = part.prepare((width, height), scale, area);
            let ending = self.turbo.decode_part(area, scale, pixels);
            if matches!(ending, Ok(Ending::Clean)) && reaches_end(self.bytes) {
                return Ok(());
            }
        }
        let mut whole = part.take_memory();
        self.decoder.decode_into(self.bytes, &mut whole)?;
        *part = PicturePart::from(whole);
        Ok(())
    }
}

/// What decides which columns must be decoded.
struct Columns {
    /// Of the picture.
    width: u32,
    /// Of the smallest unit that is decoded or left out.
    mcu: u32,
    /// For each column of chroma.
    per_chroma: u32,
    is_progressive: bool,
}

impl Columns {
    /// The columns to decode so that those from `left` to before `right` come out as if all had been.
    fn covering(&self, left: u32, right: u32) -> (u32, u32) {
        // Smooth upsampling of halved chroma looks at one column of it on either side, treats the first and the last
        // decoded column as the picture's edges, and is given up below two columns, which these make sure of.
        let upsampling = if self.per_chroma > 1 {
            self.per_chroma
        } else {
            0
        };
        // Where scans are missing, libjpeg smooths across two blocks to either side.
        let smoothing = if self.is_progressive { 2 * self.mcu } else { 0 };
        let mut left = left.saturating_sub(upsampling) / self.mcu * self.mcu;
        left = left.saturating_sub(smoothing);
        let mut right = right + upsampling;
        if self.is_progressive {
            right = right.next_multiple_of(self.mcu) + smoothing;
        }
        (left, right.min(self.width))
    }
}

fn open(bytes: &[u8]) -> Result<Opened<'_>, CodecError> {
    let grant = Grant::of(bytes.len());
    let mut turbo = Decompressor::new()
        .map_err(library)?
        .open(bytes)
        .map_err(|reason| failure(bytes, reason))?;
    let header = *turbo.header();
    grant.check(header.width, header.height, header.pixel_bytes())?;
    turbo
        .limit(max_scans(header.width, header.height), grant.memory_bytes())
        .map_err(library)?;
    Ok(turbo)
}

/// Size of the picture, (width, height), from the header.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), CodecError> {
    let turbo = open(bytes)?;
    Ok((turbo.header().width, turbo.header().height))
}

/// How much of the colours a JPEG keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chroma {
    /// 4:2:0, half as many columns and rows as of brightness.
    Halved,
    /// 4:4:4, as many.
    Full,
}

/// [`encode_jpeg`] with halved chroma.
///
/// # Errors
/// As [`encode_jpeg`].
pub fn encode_rgb8(image: &Rgb8Image, quality: u8) -> Result<Vec<u8>, CodecError> {
    encode_jpeg(image, quality, Chroma::Halved)
}

/// Encodes as baseline JPEG. The same picture, quality and chroma give the same bytes.
///
/// * `quality`: 1 to 100.
///
/// # Errors
/// [`CodecError::Encode`] if the quality or the picture's size is out of range (JPEG ends at 65535 a side) or the
/// picture's data does not fit its size.
pub fn encode_jpeg(image: &Rgb8Image, quality: u8, chroma: Chroma) -> Result<Vec<u8>, CodecError> {
    let refuse = |reason: String| CodecError::Encode {
        format: "JPEG",
        width: image.width,
        height: image.height,
        reason,
    };
    let (width, height) = (image.width as usize, image.height as usize);
    if !(1..=100).contains(&quality) {
        return Err(refuse(format!("quality {quality}, expected 1 to 100")));
    }
    if width == 0
        || height == 0
        || Some(image.data.len()) != width.checked_mul(height).and_then(|n| n.checked_mul(3))
    {
        return Err(refuse(format!(
            "{} bytes of pixels, expected width * height * 3 and not 0",
            image.data.len()
        )));
    }
    let view = Image {
        pixels: image.data.as_slice(),
        width,
        pitch: width * 3,
        height,
        format: PixelFormat::RGB,
    };
    let mut turbo = Compressor::new().map_err(|error| refuse(error.to_string()))?;
    let encode = |turbo: &mut Compressor| {
        turbo.set_quality(i32::from(quality))?;
        turbo.set_subsamp(match chroma {
            Chroma::Halved => Subsamp::Sub2x2,
            Chroma::Full => Subsamp::None,
        })?;
        turbo.compress_to_vec(view)
    };
    encode(&mut turbo).map_err(|error| refuse(error.to_string()))
}

/// Ink to light by plain arithmetic, for values stored inverted (255 is no ink) as all CMYK files in JPEG are taken to be.
///
/// Source: Pillow, `Convert.c`, `cmyk2rgb`.
fn adobe_cmyk_to_rgb(inverted: &[u8]) -> [u8; 3] {
    let light = i32::from(inverted[3]); // 255 - black
    std::array::from_fn(|channel| {
        let product = (255 - i32::from(inverted[channel])) * light + 128;
        let ink = ((product >> 8) + product) >> 8; // product / 255, rounded
        (light - ink).clamp(0, 255) as u8
    })
}

/// Whether the chain of segments arrives at the end-of-image marker.
fn reaches_end(bytes: &[u8]) -> bool {
    // Entropy-coded data never holds the marker, so a file that ends on it was not cut there.
    if bytes.ends_with(&[0xff, 0xd9]) {
        return true;
    }
    let mut at = 2; // behind the start-of-image marker
    loop {
        // Entropy-coded data, stuffed zeros, restart markers and stray bytes: on to the next marker.
        let Some(found) = bytes.get(at..).and_then(|rest| {
            rest.windows(2).position(|pair| {
                pair[0] == 0xff && !matches!(pair[1], 0x00 | 0x01 | 0xd0..=0xd7 | 0xff)
            })
        }) else {
            return false;
        };
        let marker = at + found;
        if bytes[marker + 1] == 0xd9 {
            return true;
        }
        let Some(&[high, low]) = bytes.get(marker + 2..marker + 4) else {
            return false;
        };
        at = marker + 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
    }
}

fn failure(bytes: &[u8], reason: String) -> CodecError {
    if reason.starts_with("Unsupported") {
        CodecError::Unsupported {
            format: "JPEG".to_owned(),
            reason,
        }
    } else if reaches_end(bytes) {
        CodecError::Corrupt {
            format: "JPEG".to_owned(),
            reason,
        }
    } else {
        truncated(bytes, reason)
    }
}

fn truncated(bytes: &[u8], reason: String) -> CodecError {
    CodecError::Truncated {
        format: "JPEG".to_owned(),
        reason: format!("no end of image in {} bytes ({reason})", bytes.len()),
    }
}

fn library(reason: String) -> CodecError {
    CodecError::Library {
        library: "libjpeg-turbo",
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gradient(width: u32, height: u32) -> Rgb8Image {
        let mut image = Rgb8Image::new(width, height);
        for (i, pixel) in image.data.chunks_exact_mut(3).enumerate() {
            let (x, y) = (i as u32 % width, i as u32 / width);
            pixel.copy_from_slice(&[
                (x * 255 / width) as u8,
                (y * 255 / height) as u8,
                ((x + y) * 3 % 256) as u8,
            ]);
        }
        image
    }

    #[test]
    fn round_trip_is_close_and_repeatable() {
        for (width, height) in [(64, 48), (17, 9), (1, 1)] {
            let image = gradient(width, height);
            let bytes = encode_rgb8(&image, 95).unwrap();
            assert_eq!(bytes, encode_rgb8(&image, 95).unwrap());
            assert!(bytes.len() >= encode_rgb8(&image, 30).unwrap().len());
            let back = JpegDecoder::new().decode(&bytes).unwrap();
            assert_eq!(
                (back.width, back.height, back.data.len()),
                (width, height, image.data.len())
            );
            assert_eq!(size(&bytes), Ok((width, height)));
            let error: u64 = image
                .data
                .iter()
                .zip(&back.data)
                .map(|(a, b)| u64::from(a.abs_diff(*b)))
                .sum();
            assert!(error / image.data.len() as u64 <= 8, "{error}");
        }
    }

    #[test]
    fn what_came_before_has_no_influence() {
        let (small, large) = (
            encode_rgb8(&gradient(20, 10), 60).unwrap(),
            encode_rgb8(&gradient(90, 70), 97).unwrap(),
        );
        let mut reused = JpegDecoder::new();
        let first = reused.decode(&small).unwrap();
        reused.decode(&large).unwrap();
        assert!(reused.decode(&large[..large.len() / 2]).is_err());
        assert_eq!(reused.decode(&small).unwrap(), first);
        // Without its quantisation tables a file must fail, and not borrow its predecessor's.
        let at = small
            .windows(2)
            .position(|pair| pair == [0xff, 0xdb])
            .unwrap();
        let mut bare = small.clone();
        let length = usize::from(u16::from_be_bytes([bare[at + 2], bare[at + 3]])) + 2;
        bare.drain(at..at + length);
        let at = bare.windows(2).position(|pair| pair == [0xff, 0xdb]);
        if let Some(at) = at {
            bare.drain(at..at + length);
        }
        assert!(matches!(
            reused.decode(&bare),
            Err(CodecError::Corrupt { .. })
        ));
    }

    #[test]
    fn truncation_is_an_error_wherever_it_falls() {
        let bytes = encode_rgb8(&gradient(64, 48), 90).unwrap();
        for len in (3..bytes.len())
            .step_by(7)
            .chain([bytes.len() - 2, bytes.len() - 1])
        {
            let error = JpegDecoder::new().decode(&bytes[..len]).unwrap_err();
            assert!(
                matches!(error, CodecError::Truncated { .. }),
                "{len}: {error}"
            );
        }
    }

    #[test]
    fn stray_bytes_are_forgiven() {
        let bytes = encode_rgb8(&gradient(64, 48), 90).unwrap();
        let mut stray = bytes.clone();
        stray.splice(bytes.len() - 2..bytes.len() - 2, [0x11; 40]);
        stray.extend([0x22; 100]);
        assert_eq!(
            JpegDecoder::new().decode(&stray),
            JpegDecoder::new().decode(&bytes)
        );
    }

    #[test]
    fn impossible_pictures_are_not_encoded() {
        for (image, quality) in [
            (Rgb8Image::default(), 90),
            (
                Rgb8Image {
                    width: 4,
                    height: 4,
                    data: vec![0; 47],
                },
                90,
            ),
            (gradient(4, 4), 0),
            (gradient(4, 4), 101),
            (Rgb8Image::new(70_000, 1), 90),
        ] {
            assert!(matches!(
                encode_rgb8(&image, quality),
                Err(CodecError::Encode { .. })
            ));
        }
    }

    #[test]
    fn cmyk_is_pillows_arithmetic() {
        assert_eq!(adobe_cmyk_to_rgb(&[255, 255, 255, 255]), [255; 3]);
        assert_eq!(adobe_cmyk_to_rgb(&[255, 0, 128, 0]), [0; 3]);
        assert_eq!(adobe_cmyk_to_rgb(&[0, 255, 128, 200]), [0, 200, 100]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damage_never_panics(position in 2usize..600, value: u8, keep in 3usize..2000) {
            let mut bytes = encode_rgb8(&gradient(40, 30), 85).unwrap();
            let position = position % bytes.len();
            bytes[position] = value;
            bytes.truncate(keep);
            let mut decoder = JpegDecoder::new();
            prop_assert_eq!(decoder.decode(&bytes), JpegDecoder::new().decode(&bytes));
        }
    }
}
