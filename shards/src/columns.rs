//! Column chunks to values, for all columns but the pictures and their paths.
//!
//! Parquet's own decoder is not used here: it trusts lengths in page headers, and the encodings that the format
//! allows (PLAIN, and a PLAIN dictionary) take a page of code.

use std::sync::Arc;

use crate::error::{Malformed, malformed};
use crate::levels;
use crate::page::{PageHeader, PageKind, split_u32};

/// The small columns of a shard, one entry a row; a column that was not read is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardColumns {
    /// `key` of an image, or `clip` of a frame; rows that share a dictionary's entry share its memory.
    pub names: Vec<Arc<str>>,
    /// `frame`.
    pub frames: Vec<i32>,
    /// `n_frames`.
    pub n_frames: Vec<i32>,
    /// `time_us`.
    pub times_us: Vec<i64>,
    /// `label`.
    pub labels: Vec<Option<i32>>,
    /// `width` in pixels.
    pub widths: Vec<i32>,
    /// `height` in pixels.
    pub heights: Vec<i32>,
    /// `crc32c` of the picture.
    pub crc32c: Vec<u32>,
}

/// A value as PLAIN encoding lays it out.
pub(crate) trait Plain<'a>: Copy {
    /// Splits the first value off.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])>;
}

impl Plain<'_> for i32 {
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (value, rest) = bytes.split_first_chunk()?;
        Some((i32::from_le_bytes(*value), rest))
    }
}

impl Plain<'_> for i64 {
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (value, rest) = bytes.split_first_chunk()?;
        Some((i64::from_le_bytes(*value), rest))
    }
}

impl<'a> Plain<'a> for &'a [u8] {
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (len, rest) = split_u32(bytes)?;
        rest.split_at_checked(len as usize)
    }
}

/// The `n_rows` values of a column chunk, none of them null.
pub(crate) fn required<'a, V: Plain<'a>>(
    chunk: &'a [u8],
    n_rows: usize,
) -> Result<Vec<V>, Malformed> {
    let values = decode(chunk, n_rows, false)?;
    Ok(values.into_iter().flatten().collect())
}

/// The `n_rows` values of a column chunk that may hold nulls.
pub(crate) fn optional<'a, V: Plain<'a>>(
    chunk: &'a [u8],
    n_rows: usize,
) -> Result<Vec<Option<V>>, Malformed> {
    decode(chunk, n_rows, true)
}

/// Every vector made here is bounded by `n_rows` or by the bytes of the chunk, never by a number in a header alone.
fn decode<'a, V: Plain<'a>>(
    chunk: &'a [u8],
    n_rows: usize,
    nullable: bool,
) -> Result<Vec<Option<V>>, Malformed> {
    let mut rest = chunk;
    let mut dictionary: Vec<V> = Vec::new();
    let mut rows = Vec::with_capacity(n_rows);
    while rows.len() < n_rows {
        let header = PageHeader::parse(rest)?;
        let body;
        (body, rest) = rest[header.header_len..]
            .split_at_checked(header.body_len)
            .ok_or_else(|| {
                malformed!(
                    "page of {} bytes, longer than its column chunk",
                    header.body_len
                )
            })?;
        if header.kind == PageKind::Dictionary {
            if !dictionary.is_empty() || !rows.is_empty() {
                return Err(malformed!("a dictionary that does not come first"));
            }
            (dictionary, _) = plain(body, header.n_values)?;
            continue;
        }
        if header.n_values == 0 || header.n_values > n_rows - rows.len() {
            return Err(malformed!(
                "page of {} values, expected 1 to {}",
                header.n_values,
                n_rows - rows.len()
            ));
        }
        let (present, values) = presence(body, header.n_values, nullable)?;
        let n_present = present.iter().filter(|&&present| present).count();
        let values = match header.kind {
            PageKind::Indexes => look_up(&dictionary, values, n_present)?,
            _ => plain(values, n_present)?.0,
        };
        let mut values = values.into_iter();
        rows.extend(
            present
                .into_iter()
                .map(|present| if present { values.next() } else { None }),
        );
    }
    Ok(rows)
}

/// Which of a page's values are there, and the bytes of those that are.
fn presence(body: &[u8], n_values: usize, nullable: bool) -> Result<(Vec<bool>, &[u8]), Malformed> {
    if !nullable {
        return Ok((vec![true; n_values], body));
    }
    let (levels, values) = levels::split(body)?;
    let present = levels::expand(levels, levels::bit_width(1), n_values)?;
    Ok((
        present.into_iter().map(|level| level == 1).collect(),
        values,
    ))
}

fn plain<'a, V: Plain<'a>>(bytes: &'a [u8], n: usize) -> Result<(Vec<V>, &'a [u8]), Malformed> {
    let mut values = Vec::with_capacity(n.min(bytes.len()));
    let mut rest = bytes;
    for _ in 0..n {
        let value;
        (value, rest) =
            V::split(rest).ok_or_else(|| malformed!("page ends before its {n} values do"))?;
        values.push(value);
    }
    Ok((values, rest))
}

fn look_up<V: Copy>(dictionary: &[V], bytes: &[u8], n: usize) -> Result<Vec<V>, Malformed> {
    let (&bit_width, bytes) = bytes
        .split_first()
        .ok_or_else(|| malformed!("page of indexes without their width"))?;
    let value = |index: u32| {
        let value = dictionary.get(index as usize).copied();
        value.ok_or_else(|| malformed!("index {index} into a dictionary of {}", dictionary.len()))
    };
    levels::expand(bytes, u32::from(bit_width), n)?
        .into_iter()
        .map(value)
        .collect()
}
