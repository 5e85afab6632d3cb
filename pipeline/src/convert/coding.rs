//! How pictures are coded anew.

use crate::codec::{Chroma, CodecError, JpegDecoder, Rgb8Image, encode_jpeg};

/// Qualities that [`Coding::MinPsnr`] chooses from. Steps of 5 change a file by about a tenth below 90 and a quarter above.
const QUALITIES: [u8; 9] = [60, 65, 70, 75, 80, 85, 90, 95, 98];

/// The largest PSNR that can be asked for, in dB. The best that there is, quality 100 with chroma of full size, is within it
/// for every picture, noise included.
pub(crate) const MAX_PSNR: f64 = 45.0;
/// The least, in dB: less is no picture to train on.
pub(crate) const MIN_PSNR: f64 = 20.0;

/// What decides on quality and chroma.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Coding {
    /// This quality, chroma halved both ways.
    Quality(u8),
    /// The lowest quality at which the decoded picture is within so many dB of the one that was coded: with chroma halved
    /// both ways if that ever is, else with chroma of full size.
    MinPsnr(f64),
}

impl Coding {
    /// `min_psnr` takes the place of `quality`.
    pub(crate) fn of(quality: u8, min_psnr: Option<f64>) -> Self {
        min_psnr.map_or(Self::Quality(quality), Self::MinPsnr)
    }

    /// Codes a picture; what comes out is a function of the picture alone. `decoded` is memory to be reused.
    ///
    /// # Errors
    /// As [`encode_jpeg`].
    pub(crate) fn encode(
        self,
        image: &Rgb8Image,
        decoder: &mut JpegDecoder,
        decoded: &mut Rgb8Image,
    ) -> Result<Vec<u8>, CodecError> {
        let psnr_db = match self {
            Self::Quality(quality) => return encode_jpeg(image, quality, Chroma::Halved),
            Self::MinPsnr(psnr_db) => psnr_db,
        };
        for chroma in [Chroma::Halved, Chroma::Full] {
            let mut best = None;
            // The error falls with the quality, so the lowest good enough is found by halving.
            let (mut low, mut high) = (0, QUALITIES.len());
            while low < high {
                let middle = (low + high) / 2;
                let bytes = encode_jpeg(image, QUALITIES[middle], chroma)?;
                decoder.decode_into(&bytes, decoded)?;
                if psnr(image, decoded) >= psnr_db {
                    (best, high) = (Some(bytes), middle);
                } else {
                    low = middle + 1;
                }
            }
            if let Some(bytes) = best {
                return Ok(bytes);
            }
        }
        encode_jpeg(image, 100, Chroma::Full)
    }
}

/// Peak signal-to-noise ratio over all values of two pictures of one size, in dB; infinite for equal ones.
fn psnr(a: &Rgb8Image, b: &Rgb8Image) -> f64 {
    let squares = a.data.iter().zip(&b.data).map(|(a, b)| {
        let difference = u64::from(a.abs_diff(*b));
        difference * difference
    });
    let mean = squares.sum::<u64>() as f64 / a.data.len().max(1) as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::decode_rgb8;
    use crate::rng::{Purpose, SampleRng};

    const SIDE: u32 = 64;

    fn image(pixel: impl FnMut(u32) -> [u8; 3]) -> Rgb8Image {
        Rgb8Image {
            width: SIDE,
            height: SIDE,
            data: (0..SIDE * SIDE).flat_map(pixel).collect(),
        }
    }

    fn smooth() -> Rgb8Image {
        image(|at| [(at % SIDE * 3) as u8, (at / SIDE * 2) as u8, 90])
    }

    /// Neighbours of opposite colours: halved chroma cannot hold them.
    fn colourful() -> Rgb8Image {
        image(|at| [[220, 30, 40], [30, 60, 230]][((at % SIDE + at / SIDE) % 2) as usize])
    }

    fn noise() -> Rgb8Image {
        let mut rng = SampleRng::new(1, 0, 0, Purpose::Augment);
        image(|_| [(); 3].map(|()| rng.below(256) as u8))
    }

    fn code(image: &Rgb8Image, psnr_db: f64) -> (Vec<u8>, f64) {
        let (mut decoder, mut decoded) = (JpegDecoder::new(), Rgb8Image::default());
        let bytes = Coding::MinPsnr(psnr_db)
            .encode(image, &mut decoder, &mut decoded)
            .unwrap();
        let reached = psnr(image, &decode_rgb8(&bytes).unwrap());
        (bytes, reached)
    }

    #[test]
    fn every_picture_stays_within_what_was_asked_for() {
        for image in [smooth(), colourful(), noise()] {
            for psnr_db in [MIN_PSNR, 33.0, 40.0, MAX_PSNR] {
                let (_, reached) = code(&image, psnr_db);
                assert!(reached >= psnr_db, "{reached} dB, not {psnr_db}");
            }
        }
    }

    #[test]
    fn no_lower_quality_would_do_and_chroma_is_halved_where_it_can_be() {
        let (bytes, _) = code(&smooth(), 40.0);
        let at = |quality| encode_jpeg(&smooth(), quality, Chroma::Halved).unwrap();
        let chosen = QUALITIES.iter().position(|&quality| at(quality) == bytes);
        let chosen = chosen.expect("a quality of the list with halved chroma");
        let reached = |quality| psnr(&smooth(), &decode_rgb8(&at(quality)).unwrap());
        assert!(
            QUALITIES[..chosen]
                .iter()
                .all(|&quality| reached(quality) < 40.0)
        );
        let (bytes, _) = code(&colourful(), 33.0);
        let full = |quality| encode_jpeg(&colourful(), quality, Chroma::Full).unwrap();
        assert!(QUALITIES.iter().any(|&quality| full(quality) == bytes));
    }

    #[test]
    fn psnr_is_that_of_the_mean_square() {
        let flat = |value| image(|_| [value; 3]);
        assert!((psnr(&flat(100), &flat(110)) - 10.0 * 650.25_f64.log10()).abs() < 1e-9);
        assert_eq!(psnr(&flat(7), &flat(7)), f64::INFINITY);
    }
}
