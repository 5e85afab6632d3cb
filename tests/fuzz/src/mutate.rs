//! Changes to an input, as a function of a number.

use pipeline::rng::{Purpose, SampleRng};

/// Most changes at once.
const MOST_CHANGES: u64 = 6;
/// Most bytes of an input that grew.
const MOST_BYTES: usize = 64 << 10;

/// Numbers at which counts and sizes go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// The same in texts.
const TEXT_EDGES: [&str; 10] = [
    "0",
    "-1",
    "1e308",
    "nan",
    "255",
    "4294967296",
    "9223372036854775807",
    "18446744073709551616",
    "0.0000001",
    "1000000000000",
];

/// The `round`-th change of `seed`, which is the `place`-th; `other` is where pieces come from.
pub(crate) fn mutated(seed: &[u8], other: &[u8], place: u64, round: u64) -> Vec<u8> {
    let mut draw = SampleRng::new(0, place, round, Purpose::Augment);
    let mut bytes = seed.to_vec();
    for _ in 0..=draw.below(MOST_CHANGES) {
        change(&mut bytes, other, &mut draw);
    }
    bytes.truncate(MOST_BYTES.max(seed.len()));
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], draw: &mut SampleRng) {
    if bytes.is_empty() {
        bytes.extend(piece(other, draw));
        return;
    }
    let at = draw.below(bytes.len() as u64) as usize;
    match draw.below(11) {
        0 | 1 => bytes[at] ^= 1 << draw.below(8),
        2 => bytes[at] = draw.next_u32() as u8,
        3..=5 => {
            let width = [1, 2, 4, 8][draw.below(4) as usize];
            let near = draw.below(3).wrapping_sub(1);
            let edge = EDGES[draw.below(EDGES.len() as u64) as usize].wrapping_add(near);
            let number = match draw.bool(0.5) {
                true => edge.to_le_bytes()[..width].to_vec(),
                false => edge.to_be_bytes()[8 - width..].to_vec(),
            };
            for (byte, new) in bytes[at..].iter_mut().zip(number) {
                *byte = new;
            }
        }
        6 => bytes.truncate(at),
        7 => {
            let end = at + draw.below((bytes.len() - at) as u64 + 1).min(64) as usize;
            bytes.drain(at..end);
        }
        8 => {
            let piece = piece(other, draw);
            bytes.splice(at..at, piece);
        }
        9 => {
            let end = at + draw.below((bytes.len() - at) as u64 + 1) as usize;
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
        _ => number_in_text(bytes, at, draw),
    }
}

fn piece(other: &[u8], draw: &mut SampleRng) -> Vec<u8> {
    if other.is_empty() {
        return vec![draw.next_u32() as u8];
    }
    let start = draw.below(other.len() as u64) as usize;
    let len = draw.below(256) as usize + 1;
    other[start..].iter().take(len).copied().collect()
}

/// Puts an edge where the next decimal number stands.
fn number_in_text(bytes: &mut Vec<u8>, from: usize, draw: &mut SampleRng) {
    let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit) else {
        return;
    };
    let start = from + start;
    let len = bytes[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit() || **byte == b'.')
        .count();
    let edge = TEXT_EDGES[draw.below(TEXT_EDGES.len() as u64) as usize];
    bytes.splice(start..start + len, edge.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_a_function_of_their_number() {
        let seed: Vec<u8> = (0..200).collect();
        let all = |round| mutated(&seed, b"other", 3, round);
        let changed = (0..100).filter(|&round| all(round) != seed).count();
        assert!(changed > 90, "{changed} of 100 are changed");
        assert!((0..100).all(|round| all(round) == all(round)));
        assert!(all(1) != all(2));
        assert!(mutated(b"", b"", 0, 0).len() < 10);
    }
}
