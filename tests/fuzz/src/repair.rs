//! Checksums put right after a mutation: behind one that is wrong, nothing is read.

/// The checksums of a PNG's chunks.
pub(crate) fn png(bytes: &mut [u8]) {
    let mut at = 8; // behind the signature
    while let Some(length) = be_u32(bytes, at) {
        let end = at.saturating_add(8).saturating_add(length as usize);
        let Some(chunk) = bytes.get(at + 4..end) else {
            return;
        };
        let sum = crc32(chunk).to_be_bytes();
        let Some(place) = bytes.get_mut(end..end + 4) else {
            return;
        };
        place.copy_from_slice(&sum);
        at = end + 4;
    }
}

/// The checksums of a zip's stored entries, in its directory and before each entry.
pub(crate) fn zip(bytes: &mut [u8]) {
    let Some(end) = bytes.windows(4).rposition(|four| four == b"PK\x05\x06") else {
        return;
    };
    let Some(mut at) = le_u32(bytes, end + 16).map(|at| at as usize) else {
        return;
    };
    while bytes.get(at..at + 4) == Some(b"PK\x01\x02") {
        let fields = [20, 42].map(|field| le_u32(bytes, at + field));
        let lengths = [28, 30, 32].map(|field| le_u16(bytes, at + field));
        let ([Some(n_bytes), Some(local)], [Some(name), Some(extra), Some(comment)]) =
            (fields, lengths)
        else {
            return;
        };
        stored_entry(bytes, at, local as usize, n_bytes as usize);
        at += 46 + usize::from(name) + usize::from(extra) + usize::from(comment);
    }
}

fn stored_entry(bytes: &mut [u8], directory: usize, local: usize, n_bytes: usize) {
    let lengths = [26, 28].map(|field| le_u16(bytes, local + field));
    let [Some(name), Some(extra)] = lengths else {
        return;
    };
    let start = local + 30 + usize::from(name) + usize::from(extra);
    let Some(contents) = bytes.get(start..start.saturating_add(n_bytes)) else {
        return;
    };
    let sum = crc32(contents).to_le_bytes();
    // A bit says that the checksum before the entry is left out and stands behind it.
    let stands_behind = bytes.get(local + 6).is_some_and(|flags| flags & 8 != 0);
    for place in [directory + 16, local + 14] {
        if place == local + 14 && stands_behind {
            continue;
        }
        if let Some(place) = bytes.get_mut(place..place + 4) {
            place.copy_from_slice(&sum);
        }
    }
}

/// The checksums of a tar's headers, as far as the members' sizes lead from one to the next.
pub(crate) fn tar(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + 512) {
        if header.iter().all(|&byte| byte == 0) {
            return;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
        let digits = header[124..136]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let size = digits.fold(0usize, |size, digit| {
            size.saturating_mul(8)
                .saturating_add(usize::from(digit - b'0'))
        });
        at = at
            .saturating_add(512)
            .saturating_add(size.checked_next_multiple_of(512).unwrap_or(usize::MAX / 2));
        if at > bytes.len() {
            return;
        }
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    sum.sum()
}

fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*four))
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*four))
}

fn le_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*two))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target;

    /// A seed whose checksums were spoiled comes back as it was.
    fn comes_back(name: &str, repair: fn(&mut [u8]), spoil: impl Fn(&[u8]) -> Option<usize>) {
        let seeds = (target(name).unwrap().seeds)();
        let (seed, at) = seeds
            .iter()
            .find_map(|seed| Some((seed, spoil(seed)?)))
            .unwrap();
        let mut spoiled = seed.clone();
        spoiled[at] ^= 1;
        repair(&mut spoiled);
        assert!(spoiled == *seed, "{name}: byte {at} of {}", seed.len());
    }

    #[test]
    fn spoiled_checksums_come_back() {
        let png_of = |seed: &[u8]| (seed.starts_with(b"\x89PNG")).then_some(8 + 8 + 13);
        comes_back("still", png, png_of);
        let directory = |seed: &[u8]| {
            seed.windows(4)
                .position(|four| four == b"PK\x01\x02")
                .map(|at| at + 16)
        };
        comes_back("pth", zip, directory);
        comes_back("tar", tar, |seed| (seed.len() > 512).then_some(150));
    }
}
