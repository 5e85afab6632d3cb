//! One picture: looked at, made smaller if it is to be, and kept.

use std::io::ErrorKind;

use shards::ImageRow;

use super::coding::Coding;
use super::error::{Error, Result};
use super::options::{Check, ImagenetOptions};
use super::outcome::{Outcome, Scratch, fault, pixels};
use super::source::{Item, Listing, Place, file_name};
use crate::codec::{CodecError, ImageFormat, ImageInfo, decode_rgb8, probe};
use crate::views::resize::resize_short_side;

/// Converts one picture.
///
/// # Errors
/// Only what is not the picture's fault: see [`Listing::read`].
pub(crate) fn convert_image(
    listing: &Listing,
    item: &Item,
    options: &ImagenetOptions,
    scratch: &mut Scratch,
) -> Result<Outcome> {
    if let Some(outcome) = skip_unread(item) {
        return Ok(outcome);
    }
    let bytes = match listing.read(item) {
        Err(Error::Read { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            return Ok(skip_unreadable(item, &source));
        }
        Err(Error::BadRow { fault, reason }) => return Ok(Outcome::skip(item, fault, reason)),
        read => read?,
    };
    let refused = |error| Outcome::refused(item, error);
    let info = match probe(&bytes) {
        Ok(info) => info,
        Err(error) => return refused(error),
    };
    let too_large = options
        .short_side
        .filter(|&short| info.width.min(info.height) > short);
    let is_decoded = too_large.is_some() || options.check == Check::Full;
    if is_decoded && let Err(error) = decode(&bytes, info, scratch) {
        return refused(error);
    }
    let Some(short_side) = too_large else {
        return Ok(Outcome::Image(ImageRow {
            key: item.key.to_string(),
            bytes: bytes.into(),
            path: file_name(item),
            label: item.label,
            width: pixels(info.width),
            height: pixels(info.height),
        }));
    };
    let coding = Coding::of(options.quality, options.min_psnr);
    match reduced(scratch, short_side, coding)? {
        Ok(jpeg) => Ok(Outcome::Image(ImageRow {
            key: item.key.to_string(),
            bytes: jpeg.bytes.into(),
            path: format!("{}.jpg", item.key),
            label: item.label,
            width: pixels(jpeg.width),
            height: pixels(jpeg.height),
        })),
        Err(error) => refused(error),
    }
}

/// The outcome of what the listing already found to be missing or broken.
pub(crate) fn skip_unread(item: &Item) -> Option<Outcome> {
    match &item.place {
        Place::Absent(path) => {
            let reason = format!("no such file: {}", path.display());
            Some(Outcome::skip(item, "no such file", reason))
        }
        Place::Broken(broken) => Some(Outcome::skip(item, broken.fault, broken.reason.clone())),
        Place::Named | Place::File(_) | Place::Member { .. } | Place::Row { .. } => None,
    }
}

/// A file that is closed to this user is that file's fault, unlike a disk that fails.
pub(crate) fn skip_unreadable(item: &Item, error: &std::io::Error) -> Outcome {
    Outcome::skip(item, "unreadable", format!("cannot be read: {error}"))
}

/// Decodes into the scratch picture.
fn decode(bytes: &[u8], info: ImageInfo, scratch: &mut Scratch) -> Result<(), CodecError> {
    match info.format {
        ImageFormat::Jpeg => scratch.decoder.decode_into(bytes, &mut scratch.image),
        _ => {
            scratch.image = decode_rgb8(bytes)?;
            Ok(())
        }
    }
}

/// A coded picture and its size.
pub(crate) struct Jpeg {
    pub bytes: Vec<u8>,
    pub width: u32,
    pub height: u32,
}

/// The scratch picture as JPEG, its short side reduced to `short_side` if it is longer.
///
/// # Errors
/// The outer one is not the picture's fault.
pub(crate) fn reduced(
    scratch: &mut Scratch,
    short_side: u32,
    coding: Coding,
) -> Result<Result<Jpeg, CodecError>> {
    let Scratch {
        decoder,
        image,
        recoded,
        ..
    } = scratch;
    let image = &*image;
    let smaller;
    let image = if image.width.min(image.height) > short_side {
        smaller = resize_short_side(image, short_side)
            .map_err(|error| Error::Internal(error.to_string()))?;
        &smaller
    } else {
        image
    };
    match coding.encode(image, decoder, recoded) {
        Ok(bytes) => Ok(Ok(Jpeg {
            bytes,
            width: image.width,
            height: image.height,
        })),
        Err(error) if fault(&error).is_some() => Ok(Err(error)),
        Err(error) => Err(Error::Internal(error.to_string())),
    }
}
