//! A column chunk's offset index: where the pages of one row group's pictures lie. Performs no I/O.

use std::ops::Range;

use crate::error::{Malformed, malformed};
use crate::thrift::{Cursor, wire};

/// Where the pages of pictures of one row group lie: one after the other.
#[derive(Debug)]
pub(crate) struct PicturePlaces {
    /// Where the first page begins in the file.
    pub(crate) base: u64,
    /// For each row where its page ends, counted from `base`.
    pub(crate) ends: Vec<u32>,
}

/// Reads an offset index whose pages hold one row each and lie one after the other within `chunk`.
pub(crate) fn picture_places(index: &[u8], chunk: &Range<u64>) -> Result<PicturePlaces, Malformed> {
    let mut cursor = Cursor::new(index);
    let (mut last_id, mut places) = (0, None);
    while let Some(field) = cursor.field(&mut last_id)? {
        match (field.id, field.wire_type) {
            (1, wire::LIST) => places = Some(page_locations(&mut cursor, chunk)?),
            (_, other) => cursor.skip(other)?,
        }
    }
    places.ok_or_else(|| malformed!("an offset index without places"))
}

fn page_locations(cursor: &mut Cursor<'_>, chunk: &Range<u64>) -> Result<PicturePlaces, Malformed> {
    let (element, n_pages) = cursor.list()?;
    if element != wire::STRUCT {
        return Err(malformed!(
            "an offset index of type {element}, expected structures"
        ));
    }
    let mut places = PicturePlaces {
        base: chunk.start,
        ends: Vec::with_capacity(n_pages),
    };
    let mut end = 0u32;
    for page in 0..n_pages {
        let (mut offset, mut size, mut first_row) = (-1, -1, -1);
        let mut last_id = 0;
        while let Some(field) = cursor.field(&mut last_id)? {
            match (field.id, field.wire_type) {
                (1, wire::I64) => offset = cursor.zigzag()?,
                (2, wire::I32) => size = cursor.zigzag_i32()?,
                (3, wire::I64) => first_row = cursor.zigzag()?,
                (_, other) => cursor.skip(other)?,
            }
        }
        let contiguous = u64::try_from(offset) == Ok(chunk.start + u64::from(end));
        let page_end = u32::try_from(size)
            .ok()
            .filter(|&size| size > 0)
            .and_then(|size| end.checked_add(size));
        match page_end {
            Some(page_end)
                if contiguous
                    && first_row == page as i64
                    && chunk.start + u64::from(page_end) <= chunk.end =>
            {
                places.ends.push(page_end);
                end = page_end;
            }
            _ => {
                return Err(malformed!(
                    "page {page} with {size} bytes at {offset} from row {first_row}, expected one row a page, one page after the other"
                ));
            }
        }
    }
    Ok(places)
}
