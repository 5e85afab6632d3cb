//! What the pages of a column chunk become, found out before they are decoded: Parquet's decoder makes room for whatever a
//! header claims, and some of its decompressors go on for as long as there is something to come.

use std::io::Read;

use parquet::basic::CompressionCodec;

use crate::error::{Malformed, malformed};
use crate::page::DATA_PAGE;
use crate::parquet_metadata::PAGE_HEADER;
use crate::thrift::{Cursor, wire};

type Result<T> = std::result::Result<T, Malformed>;

/// The kind of a page with a header of version 2.
const DATA_PAGE_V2: i32 = 3;

/// A column chunk may become this many bytes, however few it takes.
const FREE_BYTES: u64 = 64 << 20;
/// And for each byte that it takes this many more. Pictures hardly shrink; labels and names shrink to a fiftieth at most.
const BYTES_PER_BYTE: u64 = 64;

/// Refuses a column chunk whose pages claim, or become, more than that.
///
/// * `chunk`: its bytes, page after page.
/// * `n_values`: of the chunk, as its footer says; what lies behind them need not be pages.
pub(super) fn check(chunk: &[u8], codec: CompressionCodec, n_values: i64) -> Result<()> {
    let limit = FREE_BYTES.saturating_add(BYTES_PER_BYTE.saturating_mul(chunk.len() as u64));
    let (mut rest, mut n_seen, mut n_bytes) = (chunk, 0i64, 0u64);
    while !rest.is_empty() {
        let (page, header_len) = match Page::parse(rest) {
            Err(_) if n_seen >= n_values => break,
            parsed => parsed?,
        };
        let Some(body) = rest[header_len..].get(..page.stored) else {
            let stored = page.stored;
            return Err(malformed!(
                "page of {stored} bytes, longer than its column chunk"
            ));
        };
        n_bytes += page.claimed as u64;
        if n_bytes > limit {
            return Err(malformed!(
                "pages that claim {n_bytes} bytes or more when decompressed, expected at most {limit}: \
                 {FREE_BYTES} and {BYTES_PER_BYTE} for each of the {} bytes stored; written without compression it can be read",
                chunk.len()
            ));
        }
        if page.is_compressed {
            let packed = body.get(page.levels..).unwrap_or_default();
            let unpacked = page.claimed.saturating_sub(page.levels) as u64;
            if goes_beyond(packed, codec, unpacked) {
                return Err(malformed!(
                    "a page of more than the {} bytes that it claims when decompressed",
                    page.claimed
                ));
            }
        }
        n_seen = n_seen.saturating_add(page.n_values);
        rest = &rest[header_len + page.stored..];
    }
    Ok(())
}

/// Whether a page becomes more than it claims, by decompressors that do not ask. What they cannot read is left to the
/// decoder to name.
fn goes_beyond(packed: &[u8], codec: CompressionCodec, claimed: u64) -> bool {
    let mut unpacked: Box<dyn Read + '_> = match codec {
        CompressionCodec::GZIP => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        CompressionCodec::BROTLI => Box::new(brotli::Decompressor::new(packed, 4096)),
        CompressionCodec::LZ4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
        _ => return false,
    };
    let mut beyond = unpacked.by_ref().take(claimed.saturating_add(1));
    match std::io::copy(&mut beyond, &mut std::io::sink()) {
        Ok(n) => n > claimed,
        Err(_) => beyond.limit() == 0,
    }
}

/// A page's header, as far as sizes go.
#[derive(Default)]
struct Page {
    /// Bytes as they lie there.
    stored: usize,
    /// Bytes that it says it has when decompressed.
    claimed: usize,
    /// Bytes at its start that are never compressed.
    levels: usize,
    is_compressed: bool,
    /// A dictionary has none.
    n_values: i64,
}

/// Of the part of a header that is for one kind of page.
struct OfKind {
    n_values: i64,
    /// Bytes of the definition and the repetition levels.
    levels: [usize; 2],
    is_compressed: bool,
}

impl Page {
    /// Reads the header at the start of `bytes`, as the decoder will; also the bytes that it takes.
    fn parse(bytes: &[u8]) -> Result<(Self, usize)> {
        Cursor::new(bytes).skip_expecting(wire::STRUCT, &PAGE_HEADER)?;
        let mut cursor = Cursor::new(bytes);
        let (mut kind, mut of_v1, mut of_v2) = (0, None, None);
        let mut page = Page::default();
        let mut last_id = 0;
        while let Some(field) = cursor.field(&mut last_id)? {
            match field.id {
                1 => kind = cursor.zigzag_i32()?,
                2 => page.claimed = length(&mut cursor)?,
                3 => page.stored = length(&mut cursor)?,
                5 => of_v1 = Some(OfKind::parse(&mut cursor, false)?),
                8 => of_v2 = Some(OfKind::parse(&mut cursor, true)?),
                _ => cursor.skip(field.wire_type)?,
            }
        }
        let (v1, v2) = (of_v1.as_ref(), of_v2.as_ref());
        // As the decoder does it, whatever the page's kind.
        page.is_compressed = v2.is_none_or(|v2| v2.is_compressed);
        page.levels = v2.map_or(0, |v2| v2.levels[0].saturating_add(v2.levels[1]));
        let values = match kind {
            DATA_PAGE => v1,
            DATA_PAGE_V2 => v2,
            _ => None,
        };
        page.n_values = values.map_or(0, |of_kind| of_kind.n_values);
        Ok((page, cursor.position()))
    }
}

impl OfKind {
    /// The header of a data page of version 1 or 2.
    fn parse(cursor: &mut Cursor<'_>, is_v2: bool) -> Result<Self> {
        let mut of_kind = OfKind {
            n_values: 0,
            levels: [0; 2],
            is_compressed: true,
        };
        let mut last_id = 0;
        while let Some(field) = cursor.field(&mut last_id)? {
            match field.id {
                1 => of_kind.n_values = length(cursor)? as i64,
                5 if is_v2 => of_kind.levels[0] = length(cursor)?,
                6 if is_v2 => of_kind.levels[1] = length(cursor)?,
                7 if is_v2 => of_kind.is_compressed = field.wire_type == wire::TRUE,
                _ => cursor.skip(field.wire_type)?,
            }
        }
        Ok(of_kind)
    }
}

fn length(cursor: &mut Cursor<'_>) -> Result<usize> {
    let length = cursor.zigzag_i32()?;
    usize::try_from(length).map_err(|_| malformed!("a page header with a length of {length}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::thrift::put_zigzag;

    /// A page of version 1, its sizes as given and not as they are.
    fn page(claimed: i32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (field, value) in [(0x15, 0), (0x15, claimed), (0x15, body.len() as i32)] {
            bytes.push(field);
            put_zigzag(&mut bytes, value);
        }
        bytes.push(0x2c); // field 5, a structure
        for value in [1, 0, 3, 3] {
            bytes.push(0x15);
            put_zigzag(&mut bytes, value);
        }
        bytes.extend([0, 0]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn claims_and_bombs_are_refused() {
        let zeros = vec![0u8; 3 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&zeros).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut brotli = Vec::new();
        brotli::CompressorWriter::new(&mut brotli, 4096, 1, 20)
            .write_all(&zeros)
            .unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&zeros).unwrap();
        let lz4 = lz4.finish().unwrap();
        for (codec, packed) in [
            (CompressionCodec::GZIP, gzip),
            (CompressionCodec::BROTLI, brotli),
            (CompressionCodec::LZ4, lz4),
        ] {
            check(&page(3 << 20, &packed), codec, 1).unwrap();
            let error = check(&page((3 << 20) - 1, &packed), codec, 1).unwrap_err();
            assert!(error.0.contains("more than the 3145727 bytes"), "{error}");
            let error = check(&page(i32::MAX, &packed), codec, 1).unwrap_err();
            assert!(error.0.contains("2147483647 bytes or more"), "{error}");
        }
        let none = CompressionCodec::UNCOMPRESSED;
        assert!(check(&page(-1, b""), none, 1).is_err());
        let whole = page(5, b"12345");
        assert!(check(&whole[..whole.len() - 1], none, 1).is_err());
        // Two that are allowed alone; and what lies behind the last value.
        let two = [page(40 << 20, b""), page(40 << 20, b"")].concat();
        assert!(check(&two, none, 2).is_err());
        // Fields that the decoder reads, whatever their types: sizes of 64 bits are sizes, other types are refused.
        let mut wide = page(40 << 20, b"");
        assert_eq!((wide[0], wide[2]), (0x15, 0x15));
        wide[2] = 0x16;
        let two = [wide.as_slice(), &wide].concat();
        assert!(
            check(&two, none, 2)
                .unwrap_err()
                .0
                .contains("claim 83886080")
        );
        wide[2] = 0x1c;
        assert!(check(&wide, none, 1).unwrap_err().0.contains("an integer"));
        let padded = [whole.as_slice(), &[0xff; 9]].concat();
        check(&padded, none, 1).unwrap();
        assert!(check(&padded, none, 2).is_err());
    }
}
