//! All randomness of the project: a pure function of (seed, epoch, sample, purpose).
//!
//! No generator state travels anywhere. Whoever needs randomness for a sample builds a [`SampleRng`] from the four
//! numbers and throws it away, so that threads, ranks and resumed runs cannot disagree. The conversions to floats and
//! ranges are written out here instead of taken from a library, because a library may change them between versions;
//! the golden values in the tests hold the streams fixed for ever.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for. Two purposes of one sample never share numbers.
///
/// The discriminants are part of every run's results: new purposes are appended, old ones never renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// Order of the samples in an epoch.
    Order = 1,
    /// Which sample stands in for a bad one.
    Substitute = 2,
    /// Which frames of a clip are taken.
    Frames = 3,
    /// Crop boxes.
    Crop = 4,
    /// Horizontal flips.
    Flip = 5,
    /// Which patches are masked.
    Mask = 6,
    /// Initial values of parameters.
    Init = 7,
    /// Dropout inside the model.
    Dropout = 8,
    /// Stochastic depth inside the model.
    DropPath = 9,
    /// Made pictures and clips.
    Synth = 10,
    /// Any other augmentation of a view.
    Augment = 11,
    /// Order in which a conversion lays its items out.
    Layout = 12,
    /// Which samples come once more in an epoch.
    Extra = 13,
    /// RandAugment of a view.
    RandAugment = 14,
    /// Rectangles erased from a view.
    Erase = 15,
    /// How the pictures of a batch are mixed; the sample is the batch's number in its epoch.
    Mix = 16,
}

/// Random numbers of one sample for one purpose: ChaCha with 8 rounds, its 256-bit key being the four numbers.
#[derive(Debug, Clone)]
pub struct SampleRng(ChaCha8Rng);

impl SampleRng {
    /// The stream of `(seed, epoch, sample, purpose)`.
    pub fn new(seed: u64, epoch: u64, sample: u64, purpose: Purpose) -> SampleRng {
        let mut key = [0u8; 32];
        let words = [seed, epoch, sample, purpose as u64];
        for (slot, word) in key.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        SampleRng(ChaCha8Rng::from_seed(key))
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// The next 64 bits: two words of the stream, the first one in the low half.
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | (u64::from(self.next_u32()) << 32)
    }

    /// Uniform in `[0, 1)`, all multiples of 2^-53 equally likely.
    pub fn unit_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[0, n)` without bias; 0 if `n` is 0 or 1.
    ///
    /// Source: Lemire, "Fast random integer generation in an interval", 2019.
    pub fn below(&mut self, n: u64) -> u64 {
        if n < 2 {
            return 0;
        }
        let rejected_below = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            if wide as u64 >= rejected_below {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Uniform in `[lo, hi)`; `lo` if the range is empty.
    pub fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.unit_f64()
    }

    /// True with probability `p`.
    pub fn bool(&mut self, p: f64) -> bool {
        self.unit_f64() < p
    }

    /// Normal with mean 0 and standard deviation 1, from two uniform values (Box and Muller; the sine half is not used, which
    /// keeps value k a function of draws 2k and 2k + 1).
    pub fn standard_normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit_f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit_f64()).cos()
    }

    /// Fills with uniform values in `[0, 1)`, all multiples of 2^-24 equally likely; one word of the stream a value.
    pub fn fill_unit_f32(&mut self, values: &mut [f32]) {
        for value in values {
            *value = (self.next_u32() >> 8) as f32 * (1.0 / (1u32 << 24) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng() -> SampleRng {
        SampleRng::new(7, 3, 123_456_789_012, Purpose::Crop)
    }

    #[test]
    fn streams_never_change() {
        let mut words = rng();
        assert_eq!([words.next_u32(), words.next_u32()], GOLDEN_WORDS);
        assert_eq!(words.next_u64(), GOLDEN_U64);
        assert_eq!(words.unit_f64(), GOLDEN_UNIT);
        assert_eq!(
            (0..8).map(|_| words.below(10)).collect::<Vec<_>>(),
            GOLDEN_BELOW
        );
        let mut floats = [0f32; 3];
        words.fill_unit_f32(&mut floats);
        assert_eq!(floats, GOLDEN_F32);
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let first =
            |seed, epoch, sample, purpose| SampleRng::new(seed, epoch, sample, purpose).next_u64();
        let base = first(7, 3, 5, Purpose::Crop);
        assert_eq!(base, first(7, 3, 5, Purpose::Crop));
        for other in [
            first(8, 3, 5, Purpose::Crop),
            first(7, 4, 5, Purpose::Crop),
            first(7, 3, 6, Purpose::Crop),
            first(7, 3, 5, Purpose::Flip),
            first(3, 7, 5, Purpose::Crop),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn ranges_hold_and_are_even() {
        let mut rng = rng();
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1;
        }
        assert!(
            counts.iter().all(|&n| (9_500..10_500).contains(&n)),
            "{counts:?}"
        );
        assert_eq!((rng.below(0), rng.below(1)), (0, 0));
        assert!((0..1000).all(|_| rng.below(u64::MAX) < u64::MAX));
        let mean = (0..20_000).map(|_| rng.uniform(-2.0, 4.0)).sum::<f64>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        let heads = (0..20_000).filter(|_| rng.bool(0.25)).count();
        assert!((4_700..5_300).contains(&heads), "{heads}");
        assert!(!rng.bool(0.0) && rng.bool(1.0));
        let mut floats = vec![1.0; 1000];
        rng.fill_unit_f32(&mut floats);
        assert!(floats.iter().all(|&x| (0.0..1.0).contains(&x)));
    }

    #[test]
    fn is_chacha8() {
        // The first words of ChaCha8 with a key of zeros, from the eSTREAM test vectors (3e00ef2f895f40d6...).
        let mut rng = SampleRng(ChaCha8Rng::from_seed([0; 32]));
        assert_eq!(rng.next_u32().to_le_bytes(), [0x3e, 0x00, 0xef, 0x2f]);
        assert_eq!(rng.next_u32().to_le_bytes(), [0x89, 0x5f, 0x40, 0xd6]);
    }

    // For seed 7, epoch 3, sample 123456789012, purpose 4; worked out by an independent ChaCha8 in Python.
    const GOLDEN_WORDS: [u32; 2] = [1_549_315_394, 1_820_670_110];
    const GOLDEN_U64: u64 = 11_206_586_034_977_367_392;
    const GOLDEN_UNIT: f64 = 0.979_215_836_426_984_6;
    const GOLDEN_BELOW: [u64; 8] = [5, 0, 6, 8, 2, 2, 3, 0];
    const GOLDEN_F32: [f32; 3] = [0.811_464_85, 0.597_572_15, 0.504_476_4];
}
