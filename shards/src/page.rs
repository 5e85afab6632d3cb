//! One Parquet page: its header, and the picture in a page of one picture.

use bytes::Bytes;

use crate::error::{Malformed, malformed};
use crate::levels;
use crate::thrift::{Cursor, wire};

/// `PageType` of a version 1 data page.
pub(crate) const DATA_PAGE: i32 = 0;
/// `PageType` of a dictionary page.
const DICTIONARY_PAGE: i32 = 2;

/// `Encoding::PLAIN`.
const PLAIN: i32 = 0;
/// `Encoding::PLAIN_DICTIONARY`: PLAIN in a dictionary page, indexes in a data page.
const PLAIN_DICTIONARY: i32 = 2;
/// `Encoding::RLE_DICTIONARY`, indexes in a data page.
const RLE_DICTIONARY: i32 = 8;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// Values one after the other.
    Plain,
    /// Indexes into the chunk's dictionary.
    Indexes,
    /// The chunk's dictionary, its values one after the other.
    Dictionary,
}

/// The header of a page that this format allows: version 1, uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub(crate) kind: PageKind,
    /// Values, null ones counted.
    pub(crate) n_values: usize,
    /// Bytes of the header itself.
    pub(crate) header_len: usize,
    /// Bytes of the page after its header.
    pub(crate) body_len: usize,
}

impl PageHeader {
    /// Reads the header at the start of `bytes`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (fields, header_len) = Fields::parse(bytes)?;
        let Some((n_values, encoding)) = fields.values else {
            return Err(malformed!(
                "page of type {}, expected a data page of version 1",
                fields.page_type
            ));
        };
        let kind = match (fields.page_type, encoding) {
            (DATA_PAGE, PLAIN) => PageKind::Plain,
            (DATA_PAGE, PLAIN_DICTIONARY | RLE_DICTIONARY) => PageKind::Indexes,
            (DICTIONARY_PAGE, PLAIN | PLAIN_DICTIONARY) => PageKind::Dictionary,
            (page_type, _) => {
                return Err(malformed!(
                    "page of type {page_type} with encoding {encoding}, expected PLAIN"
                ));
            }
        };
        if fields.uncompressed != fields.compressed {
            return Err(malformed!(
                "page of {} bytes for {}, expected no compression",
                fields.compressed,
                fields.uncompressed
            ));
        }
        Ok(PageHeader {
            kind,
            n_values: len(n_values)?,
            header_len,
            body_len: len(fields.compressed)?,
        })
    }
}

/// How far a page of any encoding reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageSpan {
    /// Rows of the page; a dictionary page has none.
    pub(crate) n_rows: u64,
    header_len: usize,
    body_len: usize,
}

impl PageSpan {
    /// Reads the header at the start of `bytes`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (fields, header_len) = Fields::parse(bytes)?;
        let n_rows = match (fields.page_type, fields.values) {
            (DICTIONARY_PAGE, _) => 0,
            (DATA_PAGE, Some((n_values, _))) if n_values > 0 => n_values as u64,
            (page_type, values) => {
                return Err(malformed!(
                    "page of type {page_type} with {} values",
                    values.map_or(0, |(n, _)| n)
                ));
            }
        };
        Ok(PageSpan {
            n_rows,
            header_len,
            body_len: len(fields.compressed)?,
        })
    }

    /// Bytes of header and body.
    pub(crate) fn n_bytes(&self) -> Option<usize> {
        self.header_len.checked_add(self.body_len)
    }
}

/// A page header as it stands there.
struct Fields {
    page_type: i32,
    uncompressed: i32,
    compressed: i32,
    /// Number and encoding of the values, of a version 1 page.
    values: Option<(i32, i32)>,
}

impl Fields {
    /// The fields, and the bytes that they take.
    fn parse(bytes: &[u8]) -> Result<(Self, usize), Malformed> {
        let mut cursor = Cursor::new(bytes);
        let (mut page_type, mut uncompressed, mut compressed, mut values) =
            (None, None, None, None);
        let mut last_id = 0;
        while let Some(field) = cursor.field(&mut last_id)? {
            match (field.id, field.wire_type) {
                (1, wire::I32) => page_type = Some(cursor.zigzag_i32()?),
                (2, wire::I32) => uncompressed = Some(cursor.zigzag_i32()?),
                (3, wire::I32) => compressed = Some(cursor.zigzag_i32()?),
                // Field 5 is a DataPageHeader and 7 a DictionaryPageHeader; both begin with count and encoding.
                (5 | 7, wire::STRUCT) => values = Some(count_and_encoding(&mut cursor)?),
                (_, other) => cursor.skip(other)?,
            }
        }
        let (Some(page_type), Some(uncompressed), Some(compressed)) =
            (page_type, uncompressed, compressed)
        else {
            return Err(malformed!("a page header without type or sizes"));
        };
        let fields = Fields {
            page_type,
            uncompressed,
            compressed,
            values,
        };
        Ok((fields, cursor.position()))
    }
}

fn len(n: i32) -> Result<usize, Malformed> {
    usize::try_from(n).map_err(|_| malformed!("a page header with a length of {n}"))
}

fn count_and_encoding(cursor: &mut Cursor<'_>) -> Result<(i32, i32), Malformed> {
    let (mut count, mut encoding) = (None, None);
    let mut last_id = 0;
    while let Some(field) = cursor.field(&mut last_id)? {
        match (field.id, field.wire_type) {
            (1, wire::I32) => count = Some(cursor.zigzag_i32()?),
            (2, wire::I32) => encoding = Some(cursor.zigzag_i32()?),
            (_, other) => cursor.skip(other)?,
        }
    }
    count
        .zip(encoding)
        .ok_or_else(|| malformed!("a page header without count or encoding"))
}

/// The levels of one value that is there, as every writer puts them: a run of one 2. Known by sight, they cost no memory.
const PRESENT: [u8; 2] = [1 << 1, 2];

/// The picture in a page of `image.bytes`, without a copy.
///
/// * `page`: exactly the bytes of one page, as [`crate::ShardIndex::picture_range`] places it.
///
/// # Errors
/// [`Malformed`] if these are not the bytes of one uncompressed version 1 page with one value in it.
pub fn slice_picture(page: &Bytes) -> Result<Bytes, Malformed> {
    let header = PageHeader::parse(page)?;
    if header.kind != PageKind::Plain || header.n_values != 1 {
        return Err(malformed!(
            "page of {} values, expected one picture",
            header.n_values
        ));
    }
    if page.len() - header.header_len != header.body_len {
        let found = page.len() - header.header_len;
        return Err(malformed!(
            "page of {found} bytes where its header says {}",
            header.body_len
        ));
    }
    let body = &page[header.header_len..];
    let (levels, values) = levels::split(body)?;
    if levels != PRESENT && levels::expand(levels, levels::bit_width(2), 1)? != [2] {
        return Err(malformed!("a null where a picture should be"));
    }
    let (len, payload) =
        split_u32(values).ok_or_else(|| malformed!("page without room for a picture's length"))?;
    if payload.len() != len as usize {
        return Err(malformed!(
            "picture of {len} bytes in a page with {}",
            payload.len()
        ));
    }
    Ok(page.slice_ref(payload))
}

/// A little-endian number at the start of `bytes`, and the rest.
pub(crate) fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thrift::put_zigzag;
    use proptest::prelude::*;

    /// A page as the writer lays it out, with the counts given, true or not.
    fn page(picture: &[u8], n_values: i32, body_len: i32, picture_len: u32, level: u8) -> Bytes {
        let mut page = Vec::new();
        for (field, value) in [(0x15, DATA_PAGE), (0x15, body_len), (0x15, body_len)] {
            page.push(field);
            put_zigzag(&mut page, value);
        }
        page.push(0x2c); // field 5, a structure
        for (field, value) in [(0x15, n_values), (0x15, PLAIN), (0x15, 3), (0x15, 3)] {
            page.push(field);
            put_zigzag(&mut page, value);
        }
        page.extend([0, 0]); // ends of both structures
        page.extend([2, 0, 0, 0, 2, level]); // definition levels: a run of one
        page.extend(picture_len.to_le_bytes());
        page.extend(picture);
        Bytes::from(page)
    }

    fn true_page(picture: &[u8]) -> Bytes {
        page(
            picture,
            1,
            picture.len() as i32 + 10,
            picture.len() as u32,
            2,
        )
    }

    #[test]
    fn lies_in_a_page_are_found() {
        let picture = b"picture";
        let (body, len) = (picture.len() as i32 + 10, picture.len() as u32);
        assert_eq!(
            slice_picture(&page(picture, 1, body, len, 2)).unwrap(),
            picture.as_slice()
        );
        for lie in [
            page(picture, 2, body, len, 2),
            page(picture, -1, body, len, 2),
            page(picture, 1, body + 1, len, 2),
            page(picture, 1, i32::MAX, len, 2),
            page(picture, 1, -1, len, 2),
            page(picture, 1, body, len - 1, 2),
            page(picture, 1, body, u32::MAX, 2),
            page(picture, 1, body, len, 1),
        ] {
            slice_picture(&lie).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn a_picture_comes_back_without_a_copy(picture in proptest::collection::vec(any::<u8>(), 0..300)) {
            let page = true_page(&picture);
            let sliced = slice_picture(&page).unwrap();
            prop_assert_eq!(&sliced[..], &picture[..]);
            prop_assert!(page.as_ptr_range().contains(&sliced.as_ptr()) || sliced.is_empty());
        }

        #[test]
        fn a_cut_or_longer_page_is_an_error(len in 0usize..300, cut in 1usize..400) {
            let page = true_page(&vec![7; len]);
            prop_assert!(slice_picture(&page.slice(..page.len().saturating_sub(cut))).is_err());
            let longer = [&page[..], &vec![0; cut][..]].concat();
            prop_assert!(slice_picture(&Bytes::from(longer)).is_err());
        }

        #[test]
        fn flipped_bits_and_rubbish_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
            at in any::<proptest::sample::Index>(),
            bit in 0u8..8,
        ) {
            let _ = slice_picture(&Bytes::from(bytes.clone()));
            let page = true_page(&bytes);
            bytes.clear();
            bytes.extend_from_slice(&page);
            let place = at.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if let Ok(picture) = slice_picture(&Bytes::from(bytes)) {
                prop_assert!(picture.len() <= page.len());
            }
        }
    }
}
