//! A shard's footer and offset index: where its pages and columns lie. Performs no I/O.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::CompressionCodec;
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaData, RowGroupMetaData,
};
use parquet::schema::printer::print_schema;

use crate::bounds::Bounds;
use crate::columns::{self, ShardColumns};
use crate::error::{Malformed, Result, malformed};
use crate::format::OtherFormat;
use crate::metadata::{META_FORMAT, META_KIND};
use crate::offset_index::{PicturePlaces, picture_places};
use crate::parquet_metadata::decode_footer;
use crate::schema::{Column, FORMAT_VERSION, Kind, MAX_NAME_BYTES};

/// Bytes at the very end: the footer's length and the magic number.
const TRAILER_BYTES: u64 = 8;

/// What the first read of a shard's tail takes besides its rows' places: the footer of some tens of row groups.
const TAIL_BASE_BYTES: u64 = 64 << 10;

/// What the places of one row take in the offset index, at most.
const TAIL_BYTES_PER_ROW: u64 = 24;

/// The first read takes no more than this, whatever number of rows a manifest speaks of.
const TAIL_MAX_BYTES: u64 = 16 << 20;

pub(crate) const MAGIC: &[u8; 4] = b"PAR1";

/// The part of a shard to read first: most often it holds the whole footer and offset index.
///
/// * `file_size`: bytes of the shard, from the manifest.
/// * `n_rows`: rows of the shard, from the manifest.
pub fn tail_range(file_size: u64, n_rows: u64) -> Range<u64> {
    let guess = n_rows
        .saturating_mul(TAIL_BYTES_PER_ROW)
        .saturating_add(TAIL_BASE_BYTES);
    file_size.saturating_sub(guess.min(TAIL_MAX_BYTES))..file_size
}

/// What [`ShardFooter::parse`] made of a tail.
#[derive(Debug)]
pub enum FooterStep {
    /// The tail was enough.
    Done(ShardFooter),
    /// The tail must begin earlier: read this range, which ends where the file does, and parse again.
    NeedsMore(Range<u64>),
}

/// Where everything in a shard lies.
#[derive(Debug)]
pub struct ShardFooter {
    pub(crate) shard: String,
    pub(crate) kind: Kind,
    pub(crate) n_rows: u64,
    pub(crate) groups: Vec<FooterGroup>,
    metadata: Vec<(String, String)>,
    schema: String,
}

/// One row group.
#[derive(Debug)]
pub(crate) struct FooterGroup {
    pub(crate) n_rows: usize,
    /// Where each column's chunk lies, in the order of [`Column::of`].
    pub(crate) chunks: Vec<Range<u64>>,
    pub(crate) pictures: PicturePlaces,
    /// What its statistics say.
    pub(crate) bounds: Bounds,
}

impl ShardFooter {
    /// Reads footer and offset index.
    ///
    /// * `shard`: its name, for messages.
    /// * `tail`: the last bytes of the file, at first those of [`tail_range`].
    ///
    /// # Errors
    /// [`crate::Error::Shard`] if this is not a whole shard of a version that this crate reads.
    pub fn parse(shard: &str, file_size: u64, tail: &Bytes) -> Result<FooterStep> {
        parse(shard, file_size, tail).map_err(|fault| fault.in_shard(shard))
    }

    /// The footer of a shard of which only one row group is known, from a walk through its pages.
    pub(crate) fn of_group(shard: &str, kind: Kind, group: FooterGroup) -> Self {
        ShardFooter {
            shard: shard.to_owned(),
            kind,
            n_rows: group.n_rows as u64,
            groups: vec![group],
            metadata: Vec::new(),
            schema: String::new(),
        }
    }

    /// Images or clips.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Rows of the shard.
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// The file's key-value metadata.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// The file's schema in Parquet's notation.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// Rows of each row group, and where its known columns lie.
    pub(crate) fn group_places(&self) -> impl Iterator<Item = (u64, Range<u64>)> {
        self.groups.iter().map(|group| {
            let start = group.chunks.iter().map(|chunk| chunk.start).min();
            let end = group.chunks.iter().map(|chunk| chunk.end).max();
            (
                group.n_rows as u64,
                start.unwrap_or_default()..end.unwrap_or_default(),
            )
        })
    }

    /// Where the chunks of `columns` lie, by row group, then in the order given; columns of the other kind are left out.
    pub fn column_ranges(&self, columns: &[Column]) -> Vec<Range<u64>> {
        let of_group = |group| {
            self.chunk_places(columns)
                .map(move |(_, place)| chunk(group, place))
        };
        self.groups.iter().flat_map(of_group).collect()
    }

    /// The same of one row group.
    pub(crate) fn group_ranges(&self, number: usize, columns: &[Column]) -> Vec<Range<u64>> {
        let group = &self.groups[number];
        let places = self.chunk_places(columns);
        places.map(|(_, place)| chunk(group, place)).collect()
    }

    /// The values of `columns`, from the bytes of their [`column_ranges`](Self::column_ranges).
    ///
    /// # Errors
    /// [`crate::Error::Shard`] if the bytes are not what the format says.
    pub fn decode(&self, columns: &[Column], chunks: &[Bytes]) -> Result<ShardColumns> {
        self.decode_groups(0..self.groups.len(), columns, chunks)
    }

    /// The same of some row groups.
    pub(crate) fn decode_groups(
        &self,
        numbers: Range<usize>,
        columns: &[Column],
        chunks: &[Bytes],
    ) -> Result<ShardColumns> {
        let mut decoded = ShardColumns::default();
        let mut chunks = chunks.iter();
        for number in numbers {
            for (column, _) in self.chunk_places(columns) {
                let outcome = match chunks.next() {
                    Some(bytes) => decode(&mut decoded, column, bytes, self.groups[number].n_rows),
                    None => Err(malformed!("fewer column chunks than asked for")),
                };
                let placed =
                    |fault| malformed!("row group {number}, column {}: {fault}", column.path());
                outcome.map_err(|fault| placed(fault).in_shard(&self.shard))?;
            }
        }
        Ok(decoded)
    }

    fn chunk_places(&self, columns: &[Column]) -> impl Iterator<Item = (Column, usize)> {
        let of_kind = Column::of(self.kind);
        columns
            .iter()
            .filter_map(|&column| Some((column, of_kind.iter().position(|&c| c == column)?)))
    }
}

fn chunk(group: &FooterGroup, place: usize) -> Range<u64> {
    group.chunks[place].clone()
}

fn decode(
    into: &mut ShardColumns,
    column: Column,
    chunk: &[u8],
    n_rows: usize,
) -> std::result::Result<(), Malformed> {
    match column {
        Column::Key | Column::Clip => {
            // By its place in the chunk, which the rows that share a dictionary's entry share. A copy for each row could
            // take thousands of times the bytes that were read.
            let mut known: HashMap<*const u8, Arc<str>> = HashMap::new();
            for bytes in columns::required::<&[u8]>(chunk, n_rows)? {
                let name = match known.entry(bytes.as_ptr()) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(checked_name(bytes)?.into()),
                };
                into.names.push(Arc::clone(name));
            }
        }
        Column::Frame => into.frames.extend(columns::required::<i32>(chunk, n_rows)?),
        Column::NFrames => into
            .n_frames
            .extend(columns::required::<i32>(chunk, n_rows)?),
        Column::TimeUs => into
            .times_us
            .extend(columns::required::<i64>(chunk, n_rows)?),
        Column::Label => {
            for label in columns::optional::<i64>(chunk, n_rows)? {
                into.labels.push(label.map(checked_label).transpose()?);
            }
        }
        Column::Width => into.widths.extend(columns::required::<i32>(chunk, n_rows)?),
        Column::Height => into
            .heights
            .extend(columns::required::<i32>(chunk, n_rows)?),
        Column::Crc32c => into.crc32c.extend(
            columns::required::<i32>(chunk, n_rows)?
                .into_iter()
                .map(i32::cast_unsigned),
        ),
        Column::ImageBytes | Column::ImagePath => {
            return Err(malformed!("this column is not decoded"));
        }
    }
    Ok(())
}

fn checked_name(name: &[u8]) -> std::result::Result<&str, Malformed> {
    if name.len() > MAX_NAME_BYTES {
        return Err(malformed!(
            "a name of {} bytes, expected at most {MAX_NAME_BYTES}",
            name.len()
        ));
    }
    std::str::from_utf8(name).map_err(|_| malformed!("a name that is not UTF-8"))
}

fn checked_label(label: i64) -> std::result::Result<i32, Malformed> {
    let in_range = i32::try_from(label).ok().filter(|&label| label >= 0);
    in_range.ok_or_else(|| malformed!("label {label}, expected 0 to 2^31 - 1"))
}

fn parse(shard: &str, file_size: u64, tail: &Bytes) -> std::result::Result<FooterStep, Malformed> {
    let tail_start = file_size
        .checked_sub(tail.len() as u64)
        .ok_or_else(|| malformed!("{} bytes of tail for a file of {file_size}", tail.len()))?;
    let Some((body, trailer)) = tail.split_last_chunk::<{ TRAILER_BYTES as usize }>() else {
        if tail_start > 0 {
            return Ok(FooterStep::NeedsMore(
                file_size.saturating_sub(TRAILER_BYTES)..file_size,
            ));
        }
        return Err(malformed!(
            "{file_size} bytes, too short for a Parquet file"
        ));
    };
    let [a, b, c, d, magic @ ..] = trailer;
    if magic != MAGIC {
        return Err(malformed!(
            "no Parquet footer at the end: truncated, or not a shard"
        ));
    }
    let footer_len = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
    let footer_start = (file_size - TRAILER_BYTES)
        .checked_sub(footer_len)
        .filter(|&start| start >= MAGIC.len() as u64)
        .ok_or_else(|| malformed!("a footer of {footer_len} bytes in a file of {file_size}"))?;
    if footer_start < tail_start {
        // The offset index lies just before the footer: as much again saves a third read.
        return Ok(FooterStep::NeedsMore(
            footer_start.saturating_sub(footer_len + TAIL_BASE_BYTES)..file_size,
        ));
    }
    let footer = &body[(footer_start - tail_start) as usize..];
    let decoded = decode_footer(footer)?;
    let places = Places {
        tail,
        tail_start,
        footer_start,
    };
    let index_start = places.index_start(&decoded)?;
    if index_start < tail_start {
        return Ok(FooterStep::NeedsMore(index_start..file_size));
    }
    places.footer(shard, &decoded).map(FooterStep::Done)
}

/// A tail that holds the whole footer.
struct Places<'a> {
    tail: &'a Bytes,
    tail_start: u64,
    footer_start: u64,
}

impl Places<'_> {
    /// Where the first of the offset indexes that are needed begins.
    fn index_start(&self, decoded: &ParquetMetaData) -> std::result::Result<u64, Malformed> {
        let mut start = self.footer_start;
        for group in decoded.row_groups() {
            for column in group
                .columns()
                .iter()
                .filter(|c| c.column_path().string() == Column::ImageBytes.path())
            {
                start = start.min(self.offset_index_range(column)?.start);
            }
        }
        Ok(start)
    }

    fn footer(
        &self,
        shard: &str,
        decoded: &ParquetMetaData,
    ) -> std::result::Result<ShardFooter, Malformed> {
        let file = decoded.file_metadata();
        let metadata = key_values(file);
        let kind = checked_kind(&metadata)?;
        let leaves = leaves(file, kind)?;
        let mut groups = Vec::with_capacity(decoded.num_row_groups());
        let mut n_rows = 0;
        for (number, group) in decoded.row_groups().iter().enumerate() {
            let group = self
                .group(kind, &leaves, group)
                .map_err(|fault| malformed!("row group {number}: {fault}"))?;
            n_rows += group.n_rows as u64;
            groups.push(group);
        }
        if u64::try_from(file.num_rows()).ok() != Some(n_rows) || u32::try_from(n_rows).is_err() {
            return Err(malformed!(
                "{} rows in the footer, {n_rows} in its row groups",
                file.num_rows()
            ));
        }
        let mut schema = Vec::new();
        print_schema(&mut schema, file.schema());
        let schema = String::from_utf8_lossy(&schema).into_owned();
        Ok(ShardFooter {
            shard: shard.to_owned(),
            kind,
            n_rows,
            groups,
            metadata,
            schema,
        })
    }

    fn group(
        &self,
        kind: Kind,
        leaves: &[usize],
        group: &RowGroupMetaData,
    ) -> std::result::Result<FooterGroup, Malformed> {
        let mut chunks = Vec::with_capacity(leaves.len());
        let (mut pictures, mut label, mut name) = (None, None, None);
        for (&column, &leaf) in Column::of(kind).iter().zip(leaves) {
            let meta = group
                .columns()
                .get(leaf)
                .ok_or_else(|| malformed!("no column {}", column.path()))?;
            let fault = |fault| malformed!("column {}: {fault}", column.path());
            let chunk = self.chunk_range(meta).map_err(fault)?;
            match column {
                Column::ImageBytes => {
                    let index = self.offset_index_range(meta).map_err(fault)?;
                    pictures = Some(picture_places(self.slice(&index), &chunk).map_err(fault)?);
                }
                Column::Label => label = Some(meta),
                Column::Key | Column::Clip => name = Some(meta),
                _ => {}
            }
            chunks.push(chunk);
        }
        let pictures = pictures.ok_or_else(|| malformed!("no column of pictures"))?;
        let n_rows = pictures.ends.len();
        if n_rows == 0 || usize::try_from(group.num_rows()).ok() != Some(n_rows) {
            return Err(malformed!(
                "{} rows and {n_rows} pages of pictures, expected one page a row",
                group.num_rows()
            ));
        }
        Ok(FooterGroup {
            n_rows,
            chunks,
            pictures,
            bounds: Bounds::of(label, name),
        })
    }

    fn chunk_range(
        &self,
        column: &ColumnChunkMetaData,
    ) -> std::result::Result<Range<u64>, Malformed> {
        if column.compression_codec() != CompressionCodec::UNCOMPRESSED {
            return Err(malformed!(
                "compressed with {:?}, expected no compression",
                column.compression_codec()
            ));
        }
        let start = column
            .dictionary_page_offset()
            .unwrap_or(column.data_page_offset());
        self.checked_range(start, column.compressed_size())
    }

    fn offset_index_range(
        &self,
        column: &ColumnChunkMetaData,
    ) -> std::result::Result<Range<u64>, Malformed> {
        let place = column
            .offset_index_offset()
            .zip(column.offset_index_length());
        let (start, len) =
            place.ok_or_else(|| malformed!("no offset index, expected one page a picture"))?;
        self.checked_range(start, i64::from(len))
    }

    /// A range of the file that lies between its first bytes and its footer.
    fn checked_range(&self, start: i64, len: i64) -> std::result::Result<Range<u64>, Malformed> {
        let range = u64::try_from(start)
            .ok()
            .zip(u64::try_from(len).ok())
            .map(|(start, len)| start..start.saturating_add(len));
        range
            .filter(|range| range.start >= MAGIC.len() as u64 && range.end <= self.footer_start)
            .ok_or_else(|| {
                malformed!(
                    "{len} bytes at {start}, outside of the file's {} bytes of data",
                    self.footer_start
                )
            })
    }

    /// The bytes of a range that [`Places::index_start`] has found to lie in the tail.
    fn slice(&self, range: &Range<u64>) -> &[u8] {
        let at = |place: u64| place.saturating_sub(self.tail_start) as usize;
        self.tail
            .get(at(range.start)..at(range.end))
            .unwrap_or_default()
    }
}

fn key_values(file: &FileMetaData) -> Vec<(String, String)> {
    let pairs = file.key_value_metadata().into_iter().flatten();
    pairs
        .map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default()))
        .collect()
}

fn checked_kind(metadata: &[(String, String)]) -> std::result::Result<Kind, Malformed> {
    let value = |key: &str| {
        metadata
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    };
    let format = value(META_FORMAT)
        .ok_or_else(|| malformed!("no {META_FORMAT} in the footer: not a shard"))?;
    let version = format
        .parse()
        .map_err(|_| malformed!("has format {format:?}, expected {FORMAT_VERSION}"))?;
    OtherFormat::check(version, FORMAT_VERSION).map_err(|other| malformed!("{other}"))?;
    Kind::from_name(value(META_KIND).unwrap_or_default())
}

/// The leaf of each column of the kind. Columns that the format does not know are passed over.
fn leaves(file: &FileMetaData, kind: Kind) -> std::result::Result<Vec<usize>, Malformed> {
    let schema = file.schema_descr();
    let leaf_of = |column: &Column| {
        let leaf = schema
            .columns()
            .iter()
            .position(|leaf| leaf.path().string() == column.path());
        let leaf = leaf.ok_or_else(|| malformed!("no column {}", column.path()))?;
        let found = schema.column(leaf);
        let shape = (
            found.physical_type(),
            found.max_def_level(),
            found.max_rep_level(),
        );
        if shape != (column.physical_type(), column.max_def_level(), 0) {
            return Err(malformed!(
                "column {} is {shape:?}, expected {} at level {}",
                column.path(),
                column.physical_type(),
                column.max_def_level()
            ));
        }
        Ok(leaf)
    };
    Column::of(kind).iter().map(leaf_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_longest_length() {
        let longest = [b'a'; MAX_NAME_BYTES];
        assert_eq!(checked_name(&longest).map(str::len), Ok(MAX_NAME_BYTES));
        assert!(checked_name(&[b'a'; MAX_NAME_BYTES + 1]).is_err());
        assert!(checked_name(b"\xff").is_err());
    }
}
