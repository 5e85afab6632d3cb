//! Parquet's hybrid of runs and bit-packed numbers: definition levels and dictionary indexes.

use crate::error::{Malformed, malformed};
use crate::page::split_u32;
use crate::thrift::Cursor;

/// Bits that a number up to `max` takes.
pub(crate) fn bit_width(max: u32) -> u32 {
    u32::BITS - max.leading_zeros()
}

/// The definition levels at the start of a version 1 page's body, and the values after them.
pub(crate) fn split(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    split_u32(body)
        .and_then(|(len, rest)| rest.split_at_checked(len as usize))
        .ok_or_else(|| malformed!("definition levels longer than their page"))
}

/// Exactly `n` numbers of `bit_width` bits each.
///
/// The caller bounds `n`: a run of any length takes a few bytes, so `n` cannot be checked against `bytes`.
pub(crate) fn expand(bytes: &[u8], bit_width: u32, n: usize) -> Result<Vec<u32>, Malformed> {
    if bit_width > 32 {
        return Err(malformed!(
            "numbers of {bit_width} bits, expected at most 32"
        ));
    }
    let mut numbers = Vec::with_capacity(n);
    let mut cursor = Cursor::new(bytes);
    while numbers.len() < n {
        let header = cursor.varint()?;
        let wanted = n - numbers.len();
        let count = usize::try_from(header >> 1).unwrap_or(usize::MAX);
        if count == 0 {
            return Err(malformed!("an empty run of numbers"));
        }
        if header & 1 == 0 {
            let value = little_endian(cursor.take(bit_width.div_ceil(8) as usize)?);
            numbers.extend(std::iter::repeat_n(value, count.min(wanted)));
        } else {
            // Groups of eight numbers fill whole bytes; the last group may go beyond the end.
            let packed = cursor.take(count.saturating_mul(bit_width as usize))?;
            let n_packed = count.saturating_mul(8).min(wanted);
            numbers.extend((0..n_packed).map(|i| bits(packed, i * bit_width as usize, bit_width)));
        }
    }
    Ok(numbers)
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| (value << 8) | u32::from(byte))
}

/// `width` bits of `packed` from bit `start`, low bits first.
fn bits(packed: &[u8], start: usize, width: u32) -> u32 {
    let window = packed.iter().skip(start / 8).take(5);
    let value = window
        .rev()
        .fold(0u64, |value, &byte| (value << 8) | u64::from(byte));
    let mask = (1u64 << width) - 1;
    ((value >> (start % 8)) & mask) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_specifications_example_unpacks() {
        // Numbers 0 to 7 with 3 bits each, from the description of the encoding.
        assert_eq!(
            expand(&[0x03, 0x88, 0xc6, 0xfa], 3, 8).unwrap(),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
        assert_eq!(
            expand(&[0x03, 0x88, 0xc6, 0xfa], 3, 5).unwrap(),
            [0, 1, 2, 3, 4]
        );
        assert_eq!(expand(&[0x0a, 0x07], 3, 5).unwrap(), [7; 5]);
        assert_eq!(
            expand(&[0x06, 0x2c, 0x01, 0x04, 0x01, 0x00], 9, 5).unwrap(),
            [300, 300, 300, 1, 1]
        );
        assert_eq!(expand(&[0x08], 0, 4).unwrap(), [0; 4]);
    }

    #[test]
    fn too_few_numbers_are_an_error() {
        assert!(expand(&[0x0a, 0x07], 3, 6).is_err());
        assert!(expand(&[0x03, 0x88], 3, 8).is_err());
        assert!(expand(&[0x00, 0x00], 1, 1).is_err());
        assert!(
            expand(
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                32,
                1
            )
            .is_err()
        );
        assert!(expand(&[], 33, 0).is_err());
    }

    proptest! {
        #[test]
        fn packed_numbers_come_back(width in 1u32..=32, seed in proptest::collection::vec(any::<u32>(), 1..50)) {
            let mask = u32::MAX >> (32 - width);
            let numbers: Vec<u32> = seed.iter().map(|n| n & mask).collect();
            let n_groups = numbers.len().div_ceil(8);
            let mut packed = vec![0u8; n_groups * width as usize];
            for (i, number) in numbers.iter().enumerate() {
                for bit in 0..width as usize {
                    let place = i * width as usize + bit;
                    packed[place / 8] |= (((number >> bit) & 1) as u8) << (place % 8);
                }
            }
            let bytes: Vec<u8> = std::iter::once((n_groups << 1 | 1) as u8).chain(packed).collect();
            prop_assert_eq!(expand(&bytes, width, numbers.len()).unwrap(), numbers);
        }

        #[test]
        fn rubbish_gives_that_many_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..40), width in 0u32..40, n in 0usize..100) {
            if let Ok(numbers) = expand(&bytes, width, n) {
                prop_assert_eq!(numbers.len(), n);
            }
        }
    }
}
