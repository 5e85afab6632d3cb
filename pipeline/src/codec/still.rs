//! Every picture format but JPEG, through the `image` crate, with Pillow's conversions to 8-bit RGB.

use std::io::{Cursor, ErrorKind};

use image::error::ImageError;
use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageReader, Limits};

use super::{CodecError, ImageFormat, MAX_PIXELS, Rgb8Image, check_size};

/// Most memory that a decoder may take: the largest picture at 16-bit RGBA.
const MAX_ALLOC_BYTES: u64 = MAX_PIXELS * 8;

/// Decodes a picture of the given format; `bytes` carry its signature.
pub(super) fn decode(bytes: &[u8], format: ImageFormat) -> Result<Rgb8Image, CodecError> {
    let explain = |error| explain(error, format);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), in_crate(format)?);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_ALLOC_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let stored = decoder.original_color_type();
    let picture = DynamicImage::from_decoder(decoder).map_err(explain)?;
    let data = to_rgb8(&picture, stored).ok_or_else(|| CodecError::Unsupported {
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
    let (width, height) = reader
        .into_dimensions()
        .map_err(|error| explain(error, format))?;
    check_size(width.into(), height.into())?;
    Ok((width, height))
}

/// Pillow's `convert("RGB")` of what it would have opened: alpha dropped; 16-bit colour cut to its high byte; 16-bit
/// grey (its modes `I;16` and `I`) clipped at 255, which makes most such pictures white.
///
/// Returns `None` for sample types that Pillow does not convert.
fn to_rgb8(picture: &DynamicImage, stored: ExtendedColorType) -> Option<Vec<u8>> {
    let clip = |value: u16| value.min(255) as u8;
    let high = |value: u16| (value >> 8) as u8;
    Some(match (picture, picture.color()) {
        (DynamicImage::ImageRgb8(p), _) => p.as_raw().clone(),
        (DynamicImage::ImageRgba8(p), _) => p
            .as_raw()
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        (DynamicImage::ImageLuma8(p), _) => p.as_raw().iter().flat_map(|&grey| [grey; 3]).collect(),
        (DynamicImage::ImageLumaA8(p), _) => {
            p.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect()
        }
        (DynamicImage::ImageLuma16(p), _) => p
            .as_raw()
            .iter()
            .flat_map(|&grey| [clip(grey); 3])
            .collect(),
        // Grey with one transparent value is grey to Pillow; grey with an alpha channel is colour.
        (DynamicImage::ImageLumaA16(p), ColorType::La16) if stored == ExtendedColorType::L16 => p
            .as_raw()
            .chunks_exact(2)
            .flat_map(|p| [clip(p[0]); 3])
            .collect(),
        (DynamicImage::ImageLumaA16(p), _) => p
            .as_raw()
            .chunks_exact(2)
            .flat_map(|p| [high(p[0]); 3])
            .collect(),
        (DynamicImage::ImageRgb16(p), _) => p.as_raw().iter().map(|&value| high(value)).collect(),
        (DynamicImage::ImageRgba16(p), _) => p
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
