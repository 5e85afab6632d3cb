//! The part of MATLAB's file format, version 5, that joint positions are stored in: real numeric arrays, compressed or not.
//!
//! Source: MathWorks, "MAT-File Format", chapter 1.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// A numeric array.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its dimensions, the fastest first.
    pub dims: Vec<usize>,
    /// Its values in that order.
    pub values: Vec<f64>,
}

const HEADER_BYTES: usize = 128;
/// Data types of elements.
const INT8: u32 = 1;
const UINT32: u32 = 6;
const INT32: u32 = 5;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
/// Array classes that hold numbers: double, single, and integers of 8 to 64 bits.
const NUMERIC_CLASSES: std::ops::RangeInclusive<u32> = 6..=15;
/// Flag of arrays with an imaginary part.
const COMPLEX: u32 = 0x0800;
/// Most bytes that a compressed element may become; joint positions are some thousand.
const MAX_BYTES: u64 = 8 << 20;

/// The array called `name` in a file's bytes; a sentence if there is none or the file cannot be understood.
///
/// # Errors
/// What is wrong with the file, without its name.
pub fn read(bytes: &[u8], name: &str) -> Result<Array, String> {
    let header = bytes
        .get(..HEADER_BYTES)
        .ok_or("is shorter than the header of a MAT file, 128 bytes")?;
    let big_endian = match (&header[124..126], &header[126..128]) {
        ([0, 1], b"IM") => false,
        ([1, 0], b"MI") => true,
        (version, order) => {
            return Err(format!(
                "is no MAT file of version 5: version {version:?}, byte order {:?}",
                order.escape_ascii().to_string()
            ));
        }
    };
    let mut rest = Bytes {
        data: &bytes[HEADER_BYTES..],
        big_endian,
    };
    let mut others = Vec::new();
    while !rest.data.is_empty() {
        let (kind, data) = rest.element()?;
        let decompressed;
        let matrix = match kind {
            MATRIX => data,
            COMPRESSED => {
                decompressed = decompress(data)?;
                let mut inner = Bytes {
                    data: &decompressed,
                    big_endian,
                };
                match inner.element()? {
                    (MATRIX, data) => data,
                    (kind, _) => {
                        return Err(format!("has an element of type {kind}, expected an array"));
                    }
                }
            }
            _ => continue,
        };
        let (found, array) = read_matrix(Bytes {
            data: matrix,
            big_endian,
        })?;
        if found == name {
            return array.map_err(|problem| format!("array {name} {problem}"));
        }
        others.push(found);
    }
    Err(format!("has no array {name}, only [{}]", others.join(", ")))
}

fn decompress(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    ZlibDecoder::new(data)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("has a compressed part that cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!(
            "has a compressed part of more than {MAX_BYTES} bytes"
        ));
    }
    Ok(bytes)
}

/// Bytes that are read from the front.
struct Bytes<'a> {
    data: &'a [u8],
    big_endian: bool,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .data
            .split_at_checked(n)
            .ok_or_else(|| format!("ends in the middle of an element of {n} bytes"))?;
        self.data = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&self, bytes: [u8; N]) -> [u8; N] {
        let mut bytes = bytes;
        if self.big_endian {
            bytes.reverse();
        }
        bytes
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        Ok(u32::from_le_bytes(self.number(bytes)))
    }

    /// Type and data of the next element, in the long form or the one of eight bytes; the padding behind it is skipped.
    fn element(&mut self) -> Result<(u32, &'a [u8]), String> {
        let tag = self.u32()?;
        let (small_bytes, kind) = (tag >> 16, tag & 0xffff);
        if small_bytes > 0 {
            let data = self.take(4)?;
            let data = data.get(..small_bytes as usize).ok_or_else(|| {
                format!("has a small element of {small_bytes} bytes, expected at most 4")
            })?;
            return Ok((kind, data));
        }
        let n_bytes = self.u32()? as usize;
        let data = self.take(n_bytes)?;
        if kind != COMPRESSED {
            let padding = n_bytes.next_multiple_of(8) - n_bytes;
            self.data = self.data.get(padding..).unwrap_or_default();
        }
        Ok((kind, data))
    }

    /// The values of a numeric element.
    fn values(&self, kind: u32, data: &[u8]) -> Result<Vec<f64>, String> {
        macro_rules! all {
            ($type:ty) => {{
                let (chunks, rest) = data.as_chunks::<{ size_of::<$type>() }>();
                if !rest.is_empty() {
                    return Err(format!("has {} bytes of {}", data.len(), stringify!($type)));
                }
                chunks
                    .iter()
                    .map(|&bytes| <$type>::from_le_bytes(self.number(bytes)) as f64)
                    .collect()
            }};
        }
        Ok(match kind {
            INT8 => all!(i8),
            2 => all!(u8),
            3 => all!(i16),
            4 => all!(u16),
            INT32 => all!(i32),
            UINT32 => all!(u32),
            7 => all!(f32),
            9 => all!(f64),
            12 => all!(i64),
            13 => all!(u64),
            _ => return Err(format!("has values of type {kind}, expected numbers")),
        })
    }
}

/// Name and contents of an array; arrays that are not real numbers have a name too.
#[allow(clippy::type_complexity)] // a name, and what may be wrong with the array that has it
fn read_matrix(mut bytes: Bytes) -> Result<(String, Result<Array, String>), String> {
    let (kind, flags) = bytes.element()?;
    let flags = bytes.values(kind, flags)?;
    let flags = *flags.first().ok_or("has an array without flags")? as u32;
    let (kind, dims) = bytes.element()?;
    let dims: Vec<f64> = bytes.values(kind, dims)?;
    let (_, name) = bytes.element()?;
    let name = String::from_utf8_lossy(name).into_owned();
    if !NUMERIC_CLASSES.contains(&(flags & 0xff)) || flags & COMPLEX != 0 {
        return Ok((name, Err("does not hold real numbers".to_owned())));
    }
    if dims.iter().any(|&dim| dim < 0.0) {
        return Err(format!(
            "has an array {name} of {dims:?}, expected no negative dimension"
        ));
    }
    let dims: Vec<usize> = dims.iter().map(|&dim| dim as usize).collect();
    let (kind, data) = bytes.element()?;
    let values = bytes.values(kind, data)?;
    let expected = dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let array = if expected == Some(values.len()) {
        Ok(Array { dims, values })
    } else {
        Err(format!("of {dims:?} has {} values", values.len()))
    };
    Ok((name, array))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A file of little-endian elements.
    fn file(elements: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b' '; 124];
        bytes.extend([0, 1]);
        bytes.extend(b"IM");
        bytes.extend(elements);
        bytes
    }

    fn element(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        if kind != COMPRESSED {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn matrix(name: &str, class: u32, dims: &[i32], kind: u32, data: &[u8]) -> Vec<u8> {
        let words = |words: &[i32]| {
            words
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let body = [
            element(UINT32, &words(&[class as i32, 0])),
            element(INT32, &words(dims)),
            element(INT8, name.as_bytes()),
            element(kind, data),
        ];
        element(MATRIX, &body.concat())
    }

    fn doubles(values: &[f64]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn compressed(data: &[u8]) -> Vec<u8> {
        let mut encoder =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        element(COMPRESSED, &encoder.finish().unwrap())
    }

    #[test]
    fn arrays_are_found_by_name_packed_or_not() {
        let wanted = matrix("pos_img", 6, &[2, 2], 9, &doubles(&[1.0, 2.5, -3.0, 4.0]));
        let other = matrix("viewpoint", 4, &[1, 2], 4, &[65, 0, 66, 0]);
        let expected = Array {
            dims: vec![2, 2],
            values: vec![1.0, 2.5, -3.0, 4.0],
        };
        for elements in [
            [other.clone(), wanted.clone()].concat(),
            [compressed(&other), compressed(&wanted)].concat(),
        ] {
            assert_eq!(read(&file(&elements), "pos_img").unwrap(), expected);
            let problem = read(&file(&elements), "scale").unwrap_err();
            assert!(problem.contains("[viewpoint, pos_img]"), "{problem}");
            let problem = read(&file(&elements), "viewpoint").unwrap_err();
            assert!(problem.contains("does not hold real numbers"), "{problem}");
        }
    }

    #[test]
    fn small_elements_and_small_integers_are_values_too() {
        // MATLAB stores doubles that are small integers as bytes, and four bytes inside the tag
        let mut body = element(UINT32, &[6, 0, 0, 0, 0, 0, 0, 0]);
        body.extend(element(INT32, &[3, 0, 0, 0, 1, 0, 0, 0]));
        body.extend([1, 0, 1, 0, b'x', 0, 0, 0]);
        body.extend([2, 0, 3, 0, 7, 8, 255, 0]);
        let array = read(&file(&element(MATRIX, &body)), "x").unwrap();
        assert_eq!(
            (array.dims, array.values),
            (vec![3, 1], vec![7.0, 8.0, 255.0])
        );
    }

    #[test]
    fn the_other_byte_order_is_read() {
        let mut bytes = vec![b' '; 124];
        bytes.extend([1, 0]);
        bytes.extend(b"MI");
        let element = |kind: u32, data: &[u8]| {
            let mut bytes = kind.to_be_bytes().to_vec();
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        };
        let body = [
            element(UINT32, &[0, 0, 0, 6, 0, 0, 0, 0]),
            element(INT32, &[0, 0, 0, 1, 0, 0, 0, 1]),
            element(INT8, b"y"),
            element(9, &1.5f64.to_be_bytes()),
        ];
        bytes.extend(element(MATRIX, &body.concat()));
        assert_eq!(read(&bytes, "y").unwrap().values, [1.5]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let wrong = file(&matrix("a", 6, &[2, 2], 9, &doubles(&[1.0])));
        assert!(
            read(&wrong, "a")
                .unwrap_err()
                .contains("[2, 2] has 1 values")
        );
        assert!(read(b"short", "a").unwrap_err().contains("128 bytes"));
        assert!(read(&[b'x'; 200], "a").unwrap_err().contains("version 5"));
        assert!(
            read(&file(&[14, 0, 0, 0, 99, 0, 0, 0]), "a")
                .unwrap_err()
                .contains("ends in the middle")
        );
        let bomb = compressed(&vec![0; MAX_BYTES as usize + 9]);
        assert!(read(&file(&bomb), "a").unwrap_err().contains("more than"));
    }

    proptest! {
        #[test]
        fn damage_is_never_a_panic(at in 0usize..400, value: u8, cut in 0usize..400) {
            let mut bytes = file(&matrix("pos_img", 6, &[2, 2], 9, &doubles(&[1.0, 2.5, -3.0, 4.0])));
            let n = bytes.len();
            bytes[at % n] = value;
            bytes.truncate(n - cut % n);
            let _ = read(&bytes, "pos_img");
        }
    }
}
