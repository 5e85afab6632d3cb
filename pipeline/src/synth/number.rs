//! A number written into the pixels, to be read back after JPEG and video coding and after resizing.
//!
//! Two rows of nine blocks along the upper edge, white for 1 and black for 0: two that are always white and black, twelve
//! bits of the number, the highest first, and four check bits.

use crate::codec::Rgb8Image;

/// Largest number that fits.
pub const MAX_FRAME_NUMBER: u32 = (1 << NUMBER_BITS) - 1;

const NUMBER_BITS: u32 = 12;
const N_BLOCKS: u32 = 2 + NUMBER_BITS + 4;
const ROWS: u32 = 2;
const COLUMNS: u32 = N_BLOCKS / ROWS;
/// A row takes this part of the picture's height.
const HEIGHT_PART: u32 = 20;
/// Least difference of white and black in levels.
const LEAST_CONTRAST: f64 = 80.0;

/// Rows of pixels that the blocks take.
pub(super) fn strip_rows(height: u32) -> u32 {
    (height * ROWS).div_ceil(HEIGHT_PART)
}

/// Draws the blocks of `number` (its lowest 12 bits) over the picture's upper edge.
pub(super) fn draw(image: &mut Rgb8Image, number: u32) {
    let (width, height) = (image.width, image.height);
    let code = code(number & MAX_FRAME_NUMBER);
    let rows = image.data.chunks_exact_mut(width as usize * 3);
    for (y, row) in (0..strip_rows(height)).zip(rows) {
        let first = (y * HEIGHT_PART / height).min(ROWS - 1) * COLUMNS;
        for (x, pixel) in (0..width).zip(row.chunks_exact_mut(3)) {
            let block = first + x * COLUMNS / width;
            let is_white = code >> (N_BLOCKS - 1 - block) & 1 == 1;
            pixel.fill(if is_white { 235 } else { 20 });
        }
    }
}

/// Reads the number that [`Scene::render`](super::Scene::render) wrote; `None` where there is none, or it is illegible.
///
/// Made for whole pictures, coded and resized at will down to about 64 pixels of width, but not cut or flipped.
pub fn frame_number(image: &Rgb8Image) -> Option<u32> {
    let levels: Vec<f64> = (0..N_BLOCKS)
        .map(|block| mean_level(image, block))
        .collect::<Option<_>>()?;
    let (white, black) = (*levels.first()?, *levels.get(1)?);
    if white - black < LEAST_CONTRAST {
        return None;
    }
    let middle = (white + black) / 2.0;
    // A level near the middle is a picture that only looks like a code.
    if levels
        .iter()
        .any(|level| (level - middle).abs() < (white - black) / 6.0)
    {
        return None;
    }
    let read = levels
        .iter()
        .fold(0u32, |code, &level| code << 1 | u32::from(level > middle));
    let number = read >> 4 & MAX_FRAME_NUMBER;
    (read == code(number)).then_some(number)
}

/// Mean grey of the inner half of a block.
fn mean_level(image: &Rgb8Image, block: u32) -> Option<f64> {
    let (row, column) = (f64::from(block / COLUMNS), f64::from(block % COLUMNS));
    let span = |index: f64, size: f64| {
        ((index + 0.25) * size).round() as u32..((index + 0.75) * size).round() as u32
    };
    let columns = span(column, f64::from(image.width) / f64::from(COLUMNS));
    let (mut sum, mut n) = (0u64, 0u64);
    for y in span(row, f64::from(image.height) / f64::from(HEIGHT_PART)) {
        for x in columns.clone() {
            sum += image
                .pixel(x, y)
                .iter()
                .map(|&level| u64::from(level))
                .sum::<u64>();
            n += 3;
        }
    }
    (n > 0).then(|| sum as f64 / n as f64)
}

fn code(number: u32) -> u32 {
    let check = (number ^ number >> 4 ^ number >> 8 ^ 0b0110) & 0b1111;
    0b10 << (NUMBER_BITS + 4) | number << 4 | check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode_rgb8, encode_rgb8};

    fn picture(width: u32, height: u32) -> Rgb8Image {
        let mut image = Rgb8Image::new(width, height);
        image
            .data
            .iter_mut()
            .enumerate()
            .for_each(|(i, level)| *level = (i * 7 % 251) as u8);
        image
    }

    #[test]
    fn survives_rough_jpeg() {
        for (width, height) in [(64, 64), (96, 64), (128, 171), (320, 240)] {
            for number in [0, 1, 2, 1365, 2730, 3000, MAX_FRAME_NUMBER] {
                let mut image = picture(width, height);
                draw(&mut image, number);
                assert_eq!(frame_number(&image), Some(number));
                let coded = decode_rgb8(&encode_rgb8(&image, 60).unwrap()).unwrap();
                assert_eq!(frame_number(&coded), Some(number), "{width} x {height}");
            }
        }
    }

    #[test]
    fn survives_resizing() {
        for side in [96, 128, 200, 256, 300] {
            let mut image = picture(170, 128);
            draw(&mut image, 2730);
            let resized = crate::views::resize::resize_short_side(&image, side).unwrap();
            assert_eq!(frame_number(&resized), Some(2730), "{side}");
        }
    }

    #[test]
    fn other_pictures_have_no_number() {
        assert_eq!(frame_number(&picture(128, 96)), None);
        assert_eq!(frame_number(&Rgb8Image::new(128, 96)), None);
        assert_eq!(frame_number(&Rgb8Image::new(1, 1)), None);
        assert_eq!(frame_number(&Rgb8Image::default()), None);
        let mut flipped = picture(128, 96);
        draw(&mut flipped, 77);
        let width = flipped.width as usize;
        for row in flipped.data.chunks_exact_mut(width * 3) {
            row.reverse();
        }
        assert_eq!(frame_number(&flipped), None);
    }
}
