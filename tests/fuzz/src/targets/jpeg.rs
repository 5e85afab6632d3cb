//! JPEG: the header, a part of the picture, and the whole of it.

use pipeline::codec::{
    Chroma, CropBox, ImageFormat, JpegDecoder, PartDecoder, PicturePart, Rgb8Image, encode_jpeg,
    probe,
};

use super::Target;
use crate::made;

pub(super) const TARGET: Target = Target {
    name: "jpeg",
    run,
    seeds: || {
        let mut seeds = Vec::new();
        for (width, height) in [(40, 30), (17, 9), (1, 1)] {
            for (chroma, choice) in [(Chroma::Halved, 0), (Chroma::Full, 0x5a)] {
                let mut jpeg = made(encode_jpeg(&picture(width, height), 80, chroma));
                // Behind the end of the picture: which part is wanted.
                jpeg.extend([choice, 60, 128, 90, 200]);
                seeds.push(jpeg);
            }
        }
        seeds
    },
    rounds: 4000,
};

/// Scale, and the box in shares of the picture.
const TAIL_BYTES: usize = 5;

fn run(input: &[u8]) {
    if ImageFormat::guess(input) != Some(ImageFormat::Jpeg) {
        return;
    }
    let found = probe(input);
    let tail = input.last_chunk::<TAIL_BYTES>().copied();
    let [choice, x, width, y, height] = tail.unwrap_or_default();
    let mut decoder = PartDecoder::new();
    let mut part = PicturePart::default();
    if let Ok(open) = decoder.open(input) {
        let size = open.size();
        assert_eq!(found.map(|info| (info.width, info.height)), Ok(size));
        let along = |from: u8, share: u8, side: u32| {
            let len = (u64::from(side) * u64::from(share) / 255).max(1) as u32;
            let most = u64::from(side - len);
            ((most * u64::from(from) / 255) as u32, len)
        };
        let ((x, width), (y, height)) = (along(x, width, size.0), along(y, height, size.1));
        let wanted = CropBox {
            x,
            y,
            width,
            height,
        };
        if open
            .decode_part(wanted, 1 << (choice & 3), &mut part)
            .is_ok()
        {
            let (columns, rows) = part.pixels_size();
            assert_eq!(part.pixels().len(), columns as usize * rows as usize * 3);
            let there = part.locate(wanted);
            assert!(CropBox::whole(columns, rows).contains(&there), "{there:?}");
        }
    }
    drop(part);
    drop(JpegDecoder::new().decode(input));
}

/// Edges and colours.
pub(crate) fn picture(width: u32, height: u32) -> Rgb8Image {
    let mut image = Rgb8Image::new(width, height);
    for (at, byte) in image.data.iter_mut().enumerate() {
        *byte = (at * 7 % 251 + at / 40 * 13) as u8;
    }
    image
}
