//! PNG, GIF, BMP, WebP and TIFF.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};
use pipeline::codec::{ImageFormat as Found, decode_rgb8, probe};

use super::Target;
use super::jpeg::picture;
use crate::made;
use crate::repair;

pub(super) const TARGET: Target = Target {
    name: "still",
    run,
    seeds: || {
        let rgb = made(RgbImage::from_raw(9, 7, picture(9, 7).data).ok_or("9 x 7 pixels"));
        let rgb = DynamicImage::from(rgb);
        let kinds = [
            rgb.clone(),
            rgb.to_luma8().into(),
            rgb.to_rgba16().into(),
            rgb.to_luma_alpha8().into(),
        ];
        let formats = [
            ImageFormat::Png,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::WebP,
            ImageFormat::Tiff,
        ];
        let mut seeds = Vec::new();
        for format in formats {
            for kind in &kinds {
                let mut bytes = Cursor::new(Vec::new());
                // Not every format has every kind of pixel.
                if kind.write_to(&mut bytes, format).is_ok() {
                    seeds.push(bytes.into_inner());
                }
            }
        }
        seeds
    },
    rounds: 5000,
};

fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    match Found::guess(&bytes) {
        None | Some(Found::Jpeg) => return,
        Some(Found::Png) => repair::png(&mut bytes),
        Some(_) => {}
    }
    let found = probe(&bytes);
    if let Ok(image) = decode_rgb8(&bytes) {
        let n_pixels = image.width as usize * image.height as usize;
        assert_eq!(image.data.len(), n_pixels * 3);
        assert_eq!(
            found.map(|info| (info.width, info.height)),
            Ok((image.width, image.height))
        );
    }
}
