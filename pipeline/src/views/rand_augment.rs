//! RandAugment: a few random changes of a finished view in place, each by a strength of 0 to 10.
//!
//! The fifteen changes are Pillow's operations, to the last bit, in the order and with the strengths of timm's "increasing"
//! set. They act on 8-bit pixels `[H, W, 3]`, after the resize and the flip and before normalisation.
//!
//! Source: Cubuk et al., "RandAugment"; timm 0.4.5, `data/auto_augment.py`, `rand-m9-mstd0.5-inc1`; Pillow's `ImageOps`,
//! `ImageEnhance`, `ImageFilter.SMOOTH`, and `Image.transform` with `BICUBIC`.

use crate::config::RandAugmentConfig;
use crate::rng::SampleRng;
use crate::views::augment::luma;

/// Probability of each change that is drawn.
const CHANGE_P: f64 = 0.5;
/// The largest strength.
const MAX_LEVEL: f64 = 10.0;
/// Kinds of changes.
const N_KINDS: u64 = 15;
/// What shows where a geometric change leaves the picture: ImageNet's mean.
const FILL: [u8; 3] = [124, 116, 104];

/// Draws and applies changes to a view of `width` px.
///
/// The number of draws does not depend on what comes of them.
pub fn rand_augment(
    config: &RandAugmentConfig,
    rng: &mut SampleRng,
    view: &mut [u8],
    width: usize,
    scratch: &mut Vec<u8>,
) {
    for _ in 0..config.n_changes {
        let kind = rng.below(N_KINDS);
        let is_made = rng.bool(CHANGE_P);
        let level = config.magnitude + config.magnitude_std * rng.standard_normal();
        let sign = if rng.bool(0.5) { -1.0 } else { 1.0 };
        if is_made {
            Change::new(kind, level.clamp(0.0, MAX_LEVEL) / MAX_LEVEL, sign)
                .apply(view, width, scratch);
        }
    }
}

/// A change and how strong it is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    AutoContrast,
    Equalize,
    Invert,
    /// Counter-clockwise.
    Rotate {
        degrees: f64,
    },
    /// Bits that are kept of each value.
    Posterize {
        bits: u32,
    },
    /// Values from here on are inverted.
    Solarize {
        threshold: u32,
    },
    /// What is added to values below 128.
    SolarizeAdd {
        add: u8,
    },
    Color(f32),
    Contrast(f32),
    Brightness(f32),
    Sharpness(f32),
    /// Columns by which a row is moved for each row.
    ShearX(f64),
    ShearY(f64),
    /// As a share of the width.
    TranslateX(f64),
    TranslateY(f64),
}

impl Change {
    /// * `kind`: less than [`N_KINDS`].
    /// * `strength`: 0 to 1.
    /// * `sign`: 1 or -1, for the changes that go both ways.
    fn new(kind: u64, strength: f64, sign: f64) -> Self {
        let enhance = (1.0 + sign * 0.9 * strength) as f32;
        match kind {
            0 => Self::AutoContrast,
            1 => Self::Equalize,
            2 => Self::Invert,
            3 => Self::Rotate {
                degrees: sign * 30.0 * strength,
            },
            4 => Self::Posterize {
                bits: 4 - (4.0 * strength) as u32,
            },
            5 => Self::Solarize {
                threshold: 256 - (256.0 * strength) as u32,
            },
            6 => Self::SolarizeAdd {
                add: (110.0 * strength) as u8,
            },
            7 => Self::Color(enhance),
            8 => Self::Contrast(enhance),
            9 => Self::Brightness(enhance),
            10 => Self::Sharpness(enhance),
            11 => Self::ShearX(sign * 0.3 * strength),
            12 => Self::ShearY(sign * 0.3 * strength),
            13 => Self::TranslateX(sign * 0.45 * strength),
            _ => Self::TranslateY(sign * 0.45 * strength),
        }
    }

    fn apply(self, view: &mut [u8], width: usize, scratch: &mut Vec<u8>) {
        let height = view.len() / (3 * width.max(1));
        let (wide, high) = (width as f64, height as f64);
        let mut affine = |matrix| transform(view, width, matrix, scratch);
        match self {
            Self::AutoContrast => through_tables(view, auto_contrast_table),
            Self::Equalize => through_tables(view, equalize_table),
            Self::Invert => through_table(view, |value| 255 - value),
            Self::Rotate { degrees } => affine(rotation(degrees, wide, high)),
            Self::Posterize { bits } => {
                let mask = !(0xff_u32 >> bits) as u8;
                through_table(view, |value| value & mask);
            }
            Self::Solarize { threshold } => through_table(view, |value| {
                if u32::from(value) < threshold {
                    value
                } else {
                    255 - value
                }
            }),
            Self::SolarizeAdd { add } => through_table(view, |value| {
                if value < 128 {
                    value.saturating_add(add)
                } else {
                    value
                }
            }),
            Self::Color(factor) => {
                for pixel in view.as_chunks_mut::<3>().0 {
                    let grey = luma(*pixel);
                    *pixel = pixel.map(|value| blend(grey, value, factor));
                }
            }
            Self::Contrast(factor) => {
                let mean = mean_luma(view);
                through_table(view, |value| blend(mean, value, factor));
            }
            Self::Brightness(factor) => through_table(view, |value| blend(0, value, factor)),
            Self::Sharpness(factor) => sharpen(view, width, factor, scratch),
            Self::ShearX(by) => affine([1.0, by, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY(by) => affine([1.0, 0.0, 0.0, by, 1.0, 0.0]),
            Self::TranslateX(share) => affine([1.0, 0.0, share * wide, 0.0, 1.0, 0.0]),
            Self::TranslateY(share) => affine([1.0, 0.0, 0.0, 0.0, 1.0, share * high]),
        }
    }
}

/// Changes every value by itself, the same in all channels.
fn through_table(view: &mut [u8], change: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| change(value as u8));
    for value in view {
        *value = table[usize::from(*value)];
    }
}

/// Changes every value by a table made of its channel's histogram.
fn through_tables(view: &mut [u8], table: impl Fn(&[u32; 256]) -> [u8; 256]) {
    let mut histograms = [[0; 256]; 3];
    for pixel in view.as_chunks::<3>().0 {
        for (histogram, value) in histograms.iter_mut().zip(pixel) {
            histogram[usize::from(*value)] += 1;
        }
    }
    let tables = histograms.each_ref().map(table);
    for pixel in view.as_chunks_mut::<3>().0 {
        for (table, value) in tables.iter().zip(pixel) {
            *value = table[usize::from(*value)];
        }
    }
}

/// Spreads the values met over 0 to 255.
fn auto_contrast_table(histogram: &[u32; 256]) -> [u8; 256] {
    let low = histogram.iter().position(|&n| n > 0).unwrap_or(0);
    let high = histogram.iter().rposition(|&n| n > 0).unwrap_or(0);
    if high <= low {
        return std::array::from_fn(|value| value as u8);
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
}

/// Makes all values met about as frequent.
fn equalize_table(histogram: &[u32; 256]) -> [u8; 256] {
    let n_pixels: u32 = histogram.iter().sum();
    let n_highest = histogram.iter().rev().copied().find(|&n| n > 0);
    let step = (n_pixels - n_highest.unwrap_or(0)) / 255;
    if step == 0 {
        return std::array::from_fn(|value| value as u8);
    }
    let mut below = step / 2;
    std::array::from_fn(|value| {
        let level = (below / step).min(255) as u8;
        below += histogram[value];
        level
    })
}

/// `factor` of the value and `1 - factor` of the other, clamped and cut off, in Pillow's single precision.
fn blend(other: u8, value: u8, factor: f32) -> u8 {
    let other = f32::from(other);
    (other + factor * (f32::from(value) - other)) as u8
}

fn mean_luma(view: &[u8]) -> u8 {
    let pixels = view.as_chunks::<3>().0;
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(luma(pixel))).sum();
    (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8
}

/// Away from the view smoothed by a kernel of 3 by 3 px, 5 in its middle and 1 around; the border is not smoothed.
fn sharpen(view: &mut [u8], width: usize, factor: f32, scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend_from_slice(view);
    let stride = 3 * width;
    let height = view.len() / stride.max(1);
    for y in 0..height {
        for at in y * stride..(y + 1) * stride {
            let x = (at - y * stride) / 3;
            let inside = x > 0 && x + 1 < width && y > 0 && y + 1 < height;
            let smooth = if inside {
                let rows = [at - stride, at, at + stride];
                let around: u32 = rows
                    .iter()
                    .flat_map(|&at| [scratch[at - 3], scratch[at], scratch[at + 3]])
                    .map(u32::from)
                    .sum();
                // The thirteenth, to the nearest: never half-way.
                ((2 * (around + 4 * u32::from(scratch[at])) + 13) / 26) as u8
            } else {
                scratch[at]
            };
            view[at] = blend(smooth, scratch[at], factor);
        }
    }
}

/// From places in the rotated view to those in the view.
fn rotation(degrees: f64, width: f64, height: f64) -> [f64; 6] {
    let angle = -degrees.to_radians();
    // Pillow rounds to 15 digits, so that right angles are exact.
    let round = |value: f64| (value * 1e15).round() / 1e15;
    let (sin, cos) = (round(angle.sin()), round(angle.cos()));
    let (x, y) = (width / 2.0, height / 2.0);
    [
        cos,
        sin,
        x - cos * x - sin * y,
        -sin,
        cos,
        y + sin * x - cos * y,
    ]
}

/// Fetches every pixel from where the affine `matrix` sends its centre.
fn transform(view: &mut [u8], width: usize, matrix: [f64; 6], scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend_from_slice(view);
    let [a, b, c, d, e, f] = matrix;
    for (y, row) in view.chunks_exact_mut(3 * width.max(1)).enumerate() {
        for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
            let from = (a * x + b * y + c, d * x + e * y + f);
            *pixel = bicubic(scratch, width, from).unwrap_or(FILL);
        }
    }
}

/// The picture's value between its pixels; `None` outside of it.
///
/// Pillow's cubic has a = -1. Columns beyond the border repeat it; rows beyond it repeat the row last looked at.
fn bicubic(picture: &[u8], width: usize, (x, y): (f64, f64)) -> Option<[u8; 3]> {
    let height = picture.len() / (3 * width);
    let inside = (0.0..width as f64).contains(&x) && (0.0..height as f64).contains(&y);
    if !inside {
        return None;
    }
    let (x, y) = (x - 0.5, y - 0.5);
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let columns: [usize; 4] =
        std::array::from_fn(|tap| clip(left as isize + tap as isize - 1, width));
    let first = top as isize - 1;
    Some(std::array::from_fn(|channel| {
        let across = |row: usize| {
            let taps =
                columns.map(|column| f64::from(picture[(row * width + column) * 3 + channel]));
            cubic(taps, dx)
        };
        let mut value = across(clip(first, height));
        let mut rows = [value; 4];
        for (tap, row) in rows.iter_mut().enumerate().skip(1) {
            if let Ok(at @ 0..) = usize::try_from(first + tap as isize)
                && at < height
            {
                value = across(at);
            }
            *row = value;
        }
        cubic(rows, dy) as u8
    }))
}

fn clip(at: isize, len: usize) -> usize {
    at.clamp(0, len as isize - 1) as usize
}

/// `at` between the second and the third of four values.
fn cubic([v1, v2, v3, v4]: [f64; 4], at: f64) -> f64 {
    let p1 = v2;
    let p2 = -v1 + v3;
    let p3 = 2.0 * (v1 - v2) + v3 - v4;
    let p4 = -v1 + v2 - v3 + v4;
    p1 + at * (p2 + at * (p3 + at * p4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    /// A picture whose channels are polynomials of the place.
    fn picture(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u32; 3]) -> Vec<u8> {
        (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| pixel(x, y))
            .map(|value| value as u8)
            .collect()
    }

    fn small() -> Vec<u8> {
        picture(7, 5, |x, y| {
            [
                x * 37 + y * 11 + 20,
                x * x * 9 + y * 53 + 90,
                (200 + y * 7).wrapping_sub(x * 25),
            ]
        })
    }

    /// What Pillow 13.0.0 makes of [`small`], in hexadecimal, by the calls in `timm`.
    const EXPECTED: [(Change, &str); 19] = [
        (
            Change::AutoContrast,
            "0c5ad63364b359808f80ae6ba6ef47cd3a23f3a1001791e03e9abd64b6998be575b11d51d8712dffd70a23c8ea49d1c770eda396\
             137fbd545be3a8370006142efff45500d17b1bada24a89c88b65efde410b3c1e3a2dff6036db8752b7ad8193d4c26ffa0d4b167328",
        ),
        (
            Change::Invert,
            "eba537c69c50a181697c548257159b32c4b40d61cde07030bb6749964c62711f7b4ce094278fad022cc6d53b29b032428b175b66\
             ea7441ab8d1c5aa6f7f7bfca0622a5fd3b80e2545bb56d36768611259fecc2b8bfd11b9ac83475ad4d5080662b417f06f098e18db1",
        ),
        (
            Change::Rotate { degrees: 27.0 },
            "7c74687c746882a67ba4c569c24156e0b0407c74682a55b65076a177de8ca16f79d33d64b38b4f0000402275c551a9af75e69c99\
             158bbc5779ffe966626c5021a6d540c8c66991b190319cba8b89f39274cf005f7c74683bbad56a00bf8d45acaf849a7c74687c7468",
        ),
        (
            Change::Rotate { degrees: -11.3 },
            "1372cf2a6dbd5076a273968895fc6eba8b557c746821a7d53fc1bf62caa583ee8ba46070c03f56ffa73932fad8567dbe78c2a599\
             158bb93a70e08b579c823d4469dc6b00bf8d1fa5ae568ad69a70c6d1560000407c7468774cc09c68a7beab8df88e73ad5e58004f46",
        ),
        (
            Change::Posterize { bits: 1 },
            "00008000008000008080800080800080000080800000808000808000808080808080000080000080800000808000808000808080\
             0080800000808000000000008080000080000080800080808000808000000000000080000080800080800080808080800000000000",
        ),
        (
            Change::Solarize { threshold: 26 },
            "14a537c69c50a181697c548257159b32c4b40d61cde07030bb6749964c62711f7b4ce094278fad022cc6d53b29b032428b175b66\
             157441ab8d1c5aa60808bfca0622a5023b80e2545bb56d36768611259f13c2b8bfd11b9ac83475ad4d5080662b417f060f98e18db1",
        ),
        (
            Change::SolarizeAdd { add: 99 },
            "77bdc89cc6afc1e19683abe0a8eac7cd9eaef29e95828fcfa798b6ccb39d8ee084b382ced8d3b5fdd39c8dc4d6b2cdbdd7e8a499\
             788bbeb7d5e3a5bc6b6ba398f9ddbd65c4e280aba4ad92c989dceedac376a0aaa391e4c89acb8ab5b2afe299d4be80f972ca81d5b1",
        ),
        (
            Change::Color(1.81),
            "0060ff1a66ef4983af70b8658eff13ff1633ff930000a4ff11a9e041c79f67fc55ff007dff5923ffd70000e7ff08eccf38ff8ed8\
             00bff7376dff9c1303036800fff87a00ffa900f9d02dafef7b5effe0030045583918ff711dffa03be9c871a0e5be4dff006d008948",
        ),
        (
            Change::Color(0.19),
            "465368575f6e72787c959d94c1cdb47b5f62b8a89464798676868b909e9ab4c3b26649589a8680d6ceb183a0a395adaaafc5b959\
             3f56847076b8ad9e0c0c17a1c6c139284d54415c776674a29693d7d3bc2c343546436558506c73687a958c91c2beb27c4f604a5a53",
        ),
        (
            Change::Contrast(1.81),
            "003cff004cd5437da886ce7bc9ff4eff0320ffb700009bff14ace257ddb59aff88dd005aff632dffff0000fbff28ffef6bffc1ae\
             0094f13167ffc33a00000c00ffff3c00fb7f00cec11fa1ff9174ffff460007190c00ff4f00ff922ddbd57faefff180ff0053006726",
        ),
        (
            Change::Contrast(0.19),
            "6a778c717988787e837f877e8693798d72759484706c828e7383897a888481917f886c7b8f7c76968e716e8c8f758d8a7c928683\
             6a818a767c92867768687370969077678c7f6c878674828d807d9490796a7274736f927a718d817688887f838f8a7f96697a6c7c75",
        ),
        (
            Change::Brightness(1.81),
            "24a2ff67b3ffaae4ffedffe2ffffb5ff6a87ffff5a38ffff7bffffbeffffffffeeff38c1ffca94ffff674cffff8effffd1ffffff\
             26fbff98ceffffa10e0e735fffffa203ffe534ffff85fffff7dbffffad226e807353ffb663fff994ffffe5ffffffe7ff1bba36ce8d",
        ),
        (
            Change::Brightness(0.19),
            "0311260a122111171c1820171f2c13260b0e2d1e09051b270c1c2213221d1a2a1922051429150f30280a0725280f2623162c1f1d\
             031a240f152b1f1001010c0a2f291100251805201f0e1b261a162d2912030b0d0c082b130a261a0f2121181d2824182f021305150e",
        ),
        (
            Change::Sharpness(1.81),
            "145ac83963af5e7e9683ab7da8ea64cd3b4bf29e321f8fcf4494b669bf9d8eff84b3006be86c52fdd3392ac4d64fe9bd74ffa499\
             008bbe4072ffc15908084035f9dd5a00c47f00aba43692c99579ffff60133d47402ee46537cb8a52b2af7f99d4be80f90f671e724e",
        ),
        (
            Change::Sharpness(0.19),
            "145ac83963af5e7e9683ab7da8ea64cd3b4bf29e321f8fcf449bb669a69d8eb384b3526bc77352fdd3392ac4d64fb0bd74aba499\
             488bbe6772c3885908084035f9dd5a45c47f40aba45d92c97c79be9d60133d47402ee46537cb8a52b2af7f99d4be80f90f671e724e",
        ),
        (
            Change::ShearX(0.27),
            "185ac54166a96685908bba77b0d75ed53645f5a82f2a90c7549faa79db919e9078c31a5feca344ffe1353dc6c865ffae8a5295af\
             247cfaa6635140467c7468560ec67b18ada04494c5817bf6dd621f45487c7468703cc3955caaba9891e89d78ce0d5e007f4a7c7468",
        ),
        (
            Change::ShearY(-0.27),
            "1254c7375bad7c74687c74687c74687c74687c74681c82cd3d7ab2608b9783ae7da6ff63cb344a7c746827b8d44ad9b96dda9f8f\
             d784af4368d14f4dffb43332ffdb5551c078aaa69a0d8bba3a6fdd8a55c2a63b3e4ae3610dc88410aea54f92c57876e8e05c000042",
        ),
        (
            Change::TranslateX(0.405),
            "799c839ef46ac34d51ec89357c74687c74687c746884ef8aa93671ce5258f7c43c7c74687c74687c74688f3191b43b78f6ab5f2c\
             23437c74687c74687c74689a3b98bf767fffe06637584a7c74687c74687c7468a5709fcac886ff216d425d517c74687c74687c7468",
        ),
        (
            Change::TranslateY(-0.405),
            "7c74687c74687c74687c74687c74687c74687c74687c74687c74687c74687c74687c74687c74687c74681358c73861ae5d7c9582\
             a97ca7ee63cc394af19c311e8cce4395b568b09c8de383b2226ad76d51ffd63829c1d54ed0bc73eba398188abd5171e2a2580d0b3f",
        ),
    ];

    #[test]
    fn changes_are_pillows_to_the_bit() {
        for (change, expected) in EXPECTED {
            let mut view = small();
            change.apply(&mut view, 7, &mut Vec::new());
            let got: String = view.iter().map(|value| format!("{value:02x}")).collect();
            assert!(got == expected, "{change:?}: {got}");
        }
    }

    /// Pillow 13.0.0, `ImageOps.equalize`, every 97th pixel.
    const EQUALIZED: [[u8; 3]; 13] = [
        [0, 0, 220],
        [99, 51, 194],
        [231, 194, 176],
        [66, 198, 255],
        [199, 73, 230],
        [34, 104, 26],
        [166, 51, 255],
        [255, 78, 255],
        [134, 117, 64],
        [255, 215, 36],
        [101, 255, 128],
        [234, 113, 103],
        [69, 204, 163],
    ];

    #[test]
    fn equalizing_is_pillows_to_the_bit() {
        let mut view = picture(40, 30, |x, y| {
            [x * 3 + y, x * x + y * 5, (200 + y * 7).wrapping_sub(x * 2)]
        });
        Change::Equalize.apply(&mut view, 40, &mut Vec::new());
        let some: Vec<[u8; 3]> = view.as_chunks().0.iter().copied().step_by(97).collect();
        assert_eq!(some, EQUALIZED);
        // Too few pixels to spread over 255 levels stay as they are.
        let mut few = small();
        Change::Equalize.apply(&mut few, 7, &mut Vec::new());
        assert!(few == small());
    }

    #[test]
    fn strengths_are_timms() {
        let at = |kind| Change::new(kind, 0.9, -1.0);
        assert_eq!(at(3), Change::Rotate { degrees: -27.0 });
        assert_eq!(at(4), Change::Posterize { bits: 1 });
        assert_eq!(at(5), Change::Solarize { threshold: 26 });
        assert_eq!(at(6), Change::SolarizeAdd { add: 99 });
        assert_eq!(at(7), Change::Color(1.0 - 0.81));
        assert_eq!(at(11), Change::ShearX(-0.27));
        assert_eq!(at(14), Change::TranslateY(-0.405));
        // At the largest strength posterizing keeps nothing and solarizing inverts all.
        let mut black = small();
        Change::new(4, 1.0, 1.0).apply(&mut black, 7, &mut Vec::new());
        assert!(black.iter().all(|&value| value == 0));
        let mut inverted = small();
        Change::new(5, 1.0, 1.0).apply(&mut inverted, 7, &mut Vec::new());
        assert!(
            inverted
                .iter()
                .zip(small())
                .all(|(&one, two)| one == 255 - two)
        );
    }

    #[test]
    fn draws_are_the_samples_and_all_kinds_come() {
        let config = RandAugmentConfig::default();
        let of = |sample| {
            let mut view = small();
            let mut rng = SampleRng::new(1, 2, sample, Purpose::RandAugment);
            rand_augment(&config, &mut rng, &mut view, 7, &mut Vec::new());
            view
        };
        assert!((0..20).all(|sample| of(sample) == of(sample)));
        let n = 2000;
        let unchanged = (0..n).filter(|&sample| of(sample) == small()).count();
        // Both changes left out: a quarter; equalizing so small a picture does nothing either.
        let expected = (0.5f64 + 0.5 / 15.0).powi(2) * n as f64;
        assert!(
            (unchanged as f64 - expected).abs() < 80.0,
            "{unchanged} of {n}, expected {expected}"
        );
        let kinds: std::collections::HashSet<_> = (0..n)
            .map(|sample| SampleRng::new(1, 2, sample, Purpose::RandAugment).below(N_KINDS))
            .collect();
        assert_eq!(kinds.len(), 15);
    }
}
