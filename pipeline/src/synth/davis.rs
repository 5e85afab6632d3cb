//! Palette masks as DAVIS and VOC store them.

use std::borrow::Cow;

use crate::codec::CodecError;
use crate::error::{Error, Result};

/// Colours of the first 8 labels in DAVIS and VOC masks, RGB: the bits of the label, spread over the highest bits.
pub const DAVIS_PALETTE: [[u8; 3]; 8] = [
    [0, 0, 0],
    [128, 0, 0],
    [0, 128, 0],
    [128, 128, 0],
    [0, 0, 128],
    [128, 0, 128],
    [0, 128, 128],
    [128, 128, 128],
];

/// An 8-bit palette PNG of labels `[height, width]`, each below 8.
pub(super) fn palette_png(labels: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(Cow::Owned(DAVIS_PALETTE.concat()));
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(labels))
        .map_err(|error| {
            let reason = error.to_string();
            Error::codec("mask")(CodecError::Encode {
                format: "PNG",
                width,
                height,
                reason,
            })
        })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::decode_rgb8;

    #[test]
    fn labels_become_palette_colours() {
        let png = palette_png(&[0, 1, 2, 1, 0, 7], 3, 2).unwrap();
        let shown = decode_rgb8(&png).unwrap();
        assert_eq!((shown.width, shown.height), (3, 2));
        let expected: Vec<u8> = [0, 1, 2, 1, 0, 7]
            .iter()
            .flat_map(|&label: &usize| DAVIS_PALETTE[label])
            .collect();
        assert_eq!(shown.data, expected);
        let mut reader = png::Decoder::new(std::io::Cursor::new(&png))
            .read_info()
            .unwrap();
        let mut raw = vec![0; 6];
        reader.next_frame(&mut raw).unwrap();
        assert_eq!(
            (raw, reader.info().color_type),
            (vec![0, 1, 2, 1, 0, 7], png::ColorType::Indexed)
        );
        assert!(palette_png(&[0; 5], 3, 2).is_err());
    }
}
