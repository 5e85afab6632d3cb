//! Every picture format but JPEG, through the `image` crate, with Pillow's conversions to 8-bit RGB.
//!
//! Compared by hand with Pillow 13 on some seventy kinds of file, all equal to the bit but for: TIFF with JPEG inside (one
//! level); TIFF of palette, YCbCr, grey with alpha, 32-bit whole or floating numbers (unsupported here); PNG without its
//! last chunk (Pillow reads it, here it is truncated).

use std::io::{Cursor, ErrorKind};

use image::error::ImageError;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};

use super::work::Grant;
use super::{CodecError, ImageFormat, Rgb8Image};

/// Decodes a picture of the given format; `bytes` carry its signature.
pub(super) fn decode(bytes: &[u8], format: ImageFormat) -> Result<Rgb8Image, CodecError> {
    let explain = |error| explain(error, format);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), in_crate(format)?);
    let mut limits = Limits::no_limits();
    let grant = Grant::of(bytes.len());
    limits.max_alloc = Some(match format {
        // Its decoder takes as much again for the strip at work.
        ImageFormat::Tiff => grant.memory_bytes() / 2,
        _ => grant.memory_bytes(),
    });
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = granted_size(&decoder, &grant, format)?;
    let stored = decoder.original_color_type();
    // The colour type in a PNG's first chunk, 0 for grey: the decoder turns a transparent value into an alpha channel.
    let is_grey = format == ImageFormat::Png && bytes.get(25) == Some(&0);
    let picture = DynamicImage::from_decoder(decoder).map_err(explain)?;
    let data = to_rgb8(picture, is_grey).ok_or_else(|| CodecError::Unsupported {
        format: format.to_string(),
        reason: format!("pixels of type {stored:?}"),
    })?;
    Ok(Rgb8Image {
        width,
        height,
        data,
    })
}

/// Size of the picture, (width, height), from the header.
pub(super) fn size(bytes: &[u8], format: ImageFormat) -> Result<(u32, u32), CodecError> {
    let reader = ImageReader::with_format(Cursor::new(bytes), in_crate(format)?);
    let decoder = reader
        .into_decoder()
        .map_err(|error| explain(error, format))?;
    granted_size(&decoder, &Grant::of(bytes.len()), format)
}

/// Size of the picture, if the memory to decode it is granted.
fn granted_size(
    decoder: &impl ImageDecoder,
    grant: &Grant,
    format: ImageFormat,
) -> Result<(u32, u32), CodecError> {
    let (width, height) = decoder.dimensions();
    grant.check(width, height, pixel_bytes(decoder.color_type(), format))?;
    Ok((width, height))
}

/// Bytes of memory for each pixel: as the decoder gives it, what it keeps meanwhile, and as RGB where that is something
/// else.
fn pixel_bytes(stored: ColorType, format: ImageFormat) -> u64 {
    let given = u64::from(stored.bytes_per_pixel());
    let kept = match format {
        // What a frame is drawn on, and brightness and colours before they are one picture.
        ImageFormat::Gif | ImageFormat::WebP => 4,
        ImageFormat::Tiff => given,
        ImageFormat::Png | ImageFormat::Bmp | ImageFormat::Jpeg => 0,
    };
    let converted = if stored == ColorType::Rgb8 { 0 } else { 3 };
    given + kept + converted
}

/// Pillow's `convert("RGB")` of what it would have opened: alpha dropped; 16-bit colour cut to its high byte; 16-bit
/// grey (its modes `I;16` and `I`) clipped at 255, which makes most such pictures white.
///
/// Returns `None` for sample types that Pillow does not convert.
fn to_rgb8(picture: DynamicImage, is_grey: bool) -> Option<Vec<u8>> {
    let clip = |value: u16| value.min(255) as u8;
    let high = |value: u16| (value >> 8) as u8;
    Some(match picture {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageRgba8(p) => p
            .as_raw()
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        DynamicImage::ImageLuma8(p) => p.as_raw().iter().flat_map(|&grey| [grey; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => {
            p.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect()
        }
        DynamicImage::ImageLuma16(p) => p
            .as_raw()
            .iter()
            .flat_map(|&grey| [clip(grey); 3])
            .collect(),
        // Grey with one transparent value is grey to Pillow; grey with an alpha channel is colour.
        DynamicImage::ImageLumaA16(p) if is_grey => p
            .as_raw()
            .chunks_exact(2)
            .flat_map(|p| [clip(p[0]); 3])
            .collect(),
        DynamicImage::ImageLumaA16(p) => p
            .as_raw()
            .chunks_exact(2)
            .flat_map(|p| [high(p[0]); 3])
            .collect(),
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().map(|&value| high(value)).collect(),
        DynamicImage::ImageRgba16(p) => p
            .as_raw()
            .chunks_exact(4)
            .flat_map(|p| [high(p[0]), high(p[1]), high(p[2])])
            .collect(),
        _ => return None,
    })
}

fn in_crate(format: ImageFormat) -> Result<image::ImageFormat, CodecError> {
    match format {
        ImageFormat::Png => Ok(image::ImageFormat::Png),
        ImageFormat::Gif => Ok(image::ImageFormat::Gif),
        ImageFormat::Bmp => Ok(image::ImageFormat::Bmp),
        ImageFormat::WebP => Ok(image::ImageFormat::WebP),
        ImageFormat::Tiff => Ok(image::ImageFormat::Tiff),
        ImageFormat::Jpeg => Err(CodecError::Unsupported {
            format: format.to_string(),
            reason: "JPEG has a decoder of its own".to_owned(),
        }),
    }
}

fn explain(error: ImageError, format: ImageFormat) -> CodecError {
    let (format, reason) = (format.to_string(), error.to_string());
    match error {
        ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            CodecError::Truncated { format, reason }
        }
        ImageError::Unsupported(_) => CodecError::Unsupported { format, reason },
        ImageError::Limits(_) => CodecError::Unsupported {
            format,
            reason: format!("over the memory limit: {reason}"),
        },
        _ if reason.to_lowercase().contains("end of file") => {
            CodecError::Truncated { format, reason }
        }
        _ => CodecError::Corrupt { format, reason },
    }
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgb, Rgba};

    use super::*;
    use crate::codec::{decode_rgb8, probe};

    fn stored(picture: DynamicImage, format: image::ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn through_png(picture: impl Into<DynamicImage>) -> Vec<u8> {
        decode_rgb8(&stored(picture.into(), image::ImageFormat::Png))
            .unwrap()
            .data
    }

    #[test]
    fn every_format_gives_back_its_pixels() {
        let picture = ImageBuffer::from_fn(7, 5, |x, y| Rgb([x as u8 * 30, y as u8 * 40, 200]));
        for format in [
            ImageFormat::Png,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::WebP,
        ] {
            let bytes = stored(picture.clone().into(), in_crate(format).unwrap());
            let (info, found) = (probe(&bytes).unwrap(), decode_rgb8(&bytes).unwrap());
            assert_eq!((info.format, info.width, info.height), (format, 7, 5));
            assert_eq!(
                (found.width, found.height, &found.data),
                (7, 5, picture.as_raw())
            );
        }
        let bytes = stored(picture.into(), image::ImageFormat::Gif);
        assert_eq!(decode_rgb8(&bytes).unwrap().data.len(), 7 * 5 * 3);
    }

    #[test]
    fn conversions_are_pillows() {
        assert_eq!(
            through_png(ImageBuffer::from_pixel(1, 1, Luma([7u8]))),
            [7; 3]
        );
        assert_eq!(
            through_png(ImageBuffer::from_pixel(1, 1, LumaA([7u8, 0]))),
            [7; 3]
        );
        assert_eq!(
            through_png(ImageBuffer::from_pixel(1, 1, Rgba([1u8, 2, 3, 0]))),
            [1, 2, 3]
        );
        assert_eq!(
            through_png(ImageBuffer::from_pixel(1, 1, Luma([254u16]))),
            [254; 3]
        );
        assert_eq!(
            through_png(ImageBuffer::from_pixel(1, 1, Luma([0x1234u16]))),
            [255; 3]
        );
        assert_eq!(
            through_png(ImageBuffer::from_pixel(1, 1, LumaA([0x1234u16, 0]))),
            [0x12; 3]
        );
        assert_eq!(
            through_png(ImageBuffer::from_pixel(
                1,
                1,
                Rgb([0x12ffu16, 0x3400, 0xff80])
            )),
            [0x12, 0x34, 0xff]
        );
        assert_eq!(
            through_png(ImageBuffer::from_pixel(
                1,
                1,
                Rgba([0x12ffu16, 0x3400, 0xff80, 9])
            )),
            [0x12, 0x34, 0xff]
        );
    }

    #[test]
    fn truncation_is_an_error() {
        let picture = ImageBuffer::from_fn(40, 30, |x, y| {
            Rgb([x as u8 * 3, y as u8 * 5, (x * y) as u8])
        });
        for format in [
            image::ImageFormat::Png,
            image::ImageFormat::Gif,
            image::ImageFormat::Bmp,
            image::ImageFormat::Tiff,
            image::ImageFormat::WebP,
        ] {
            let bytes = stored(DynamicImage::from(picture.clone()), format);
            for len in [bytes.len() / 8, bytes.len() / 2, bytes.len() * 9 / 10] {
                assert!(
                    decode_rgb8(&bytes[..len]).is_err(),
                    "{format:?} cut to {len}"
                );
            }
        }
    }

    #[test]
    fn sizes_that_lie_are_refused_before_memory_is_taken() {
        let mut bytes = stored(
            ImageBuffer::from_pixel(1, 1, Luma([7u8])).into(),
            image::ImageFormat::Bmp,
        );
        bytes[18..26].copy_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]); // 65535 x 65535
        assert!(
            matches!(decode_rgb8(&bytes), Err(CodecError::TooLarge { .. })),
            "{:?}",
            decode_rgb8(&bytes)
        );
        assert!(matches!(probe(&bytes), Err(CodecError::TooLarge { .. })));
    }
}
