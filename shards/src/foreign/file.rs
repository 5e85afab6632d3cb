//! A Parquet file of others: its footer, and which of its columns are pictures, labels and names.

use std::ops::Range;

use bytes::Bytes;
use parquet::basic::Type as PhysicalType;
use parquet::file::metadata::{KeyValue, ParquetMetaData, RowGroupMetaData};
use parquet::schema::types::ColumnDescriptor;

use crate::bounds::Bounds;
use crate::error::{Malformed, Result, malformed};
use crate::footer::MAGIC;
use crate::metadata::{META_FORMAT, META_HUGGINGFACE};
use crate::parquet_metadata::decode_footer;
use crate::schema::ClassName;
use crate::storage::Store;
use crate::writer::MAX_ROW_GROUP_BYTES;

/// What the first read of a file's tail takes.
const TAIL_BYTES: u64 = 256 << 10;

/// A row group may have this many rows, however few bytes: rows without a picture take hardly any.
const FREE_ROWS: u64 = 1 << 20;

/// And one more for every so many bytes: before each picture lies its length.
const BYTES_PER_ROW: u64 = 4;

/// Names that columns of pictures have, the likeliest first.
const PICTURE_NAMES: [&str; 7] = ["image", "img", "jpg", "jpeg", "png", "webp", "picture"];

/// Names of columns of labels.
const LABEL_NAMES: [&str; 4] = ["label", "labels", "cls", "class"];

/// Names of columns that name a picture.
const KEY_NAMES: [&str; 6] = ["key", "__key__", "id", "image_id", "file_name", "filename"];

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: String,
    /// Of the whole file.
    bytes: u64,
    pub(super) metadata: ParquetMetaData,
    pub(super) columns: Columns,
}

/// The leaves that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) picture: usize,
    pub(super) label: Option<usize>,
    pub(super) key: Option<usize>,
}

impl File {
    /// Reads a file's footer.
    ///
    /// # Errors
    /// [`Error::Shard`] for a file without a column of pictures or that cannot be read, or the store's error.
    pub(super) fn read(store: &Store, path: &str, bytes: u64) -> Result<Self> {
        let in_file = |fault: Malformed| fault.in_shard(path);
        let footer = read_footer(store, path, bytes)?;
        let metadata = decode_footer(&footer).map_err(in_file)?;
        let leaves = metadata.file_metadata().schema_descr().columns();
        let columns = columns(leaves.iter().map(AsRef::as_ref)).map_err(in_file)?;
        Ok(File {
            path: path.to_owned(),
            bytes,
            metadata,
            columns,
        })
    }

    pub(super) fn is_shard(&self) -> bool {
        self.key_values().any(|pair| pair.key == META_FORMAT)
    }

    /// Rows of a group, and the bytes that its columns take.
    pub(super) fn checked_size(&self, group: &RowGroupMetaData) -> Result<(u64, u64)> {
        let ranges = self.ranges(group, &self.columns.leaves())?;
        let stored: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let n_rows = u64::try_from(group.num_rows()).ok();
        let bytes = u64::try_from(group.total_byte_size()).ok();
        let (n_rows, _) = n_rows
            .zip(bytes)
            .filter(|&(_, bytes)| bytes <= MAX_ROW_GROUP_BYTES)
            .ok_or_else(|| {
                malformed!(
                    "a row group of {} rows and {} bytes, expected less than 4 GiB",
                    group.num_rows(),
                    group.total_byte_size()
                )
                .in_shard(&self.path)
            })?;
        let most = FREE_ROWS + stored / BYTES_PER_ROW;
        if n_rows > most {
            return Err(malformed!(
                "a row group of {n_rows} rows, expected at most {most}: {FREE_ROWS}, and one for every \
                 {BYTES_PER_ROW} of its {stored} bytes; written in smaller row groups it can be read"
            )
            .in_shard(&self.path));
        }
        Ok((n_rows, stored))
    }

    fn key_values(&self) -> impl Iterator<Item = &KeyValue> {
        let metadata = self.metadata.file_metadata().key_value_metadata();
        metadata.into_iter().flatten()
    }

    /// The names of the labels, if `datasets` left them in the file.
    pub(super) fn class_names(&self) -> Vec<ClassName> {
        let names = || -> Option<Vec<String>> {
            let label = self.column_name(self.columns.label?);
            let text = self
                .key_values()
                .find(|pair| pair.key == META_HUGGINGFACE)?;
            let value: serde_json::Value = serde_json::from_str(text.value.as_deref()?).ok()?;
            let names = &value["info"]["features"][&label]["names"];
            serde_json::from_value(names.clone()).ok()
        };
        let class = |name: String| ClassName {
            id: name.clone(),
            name,
        };
        names().into_iter().flatten().map(class).collect()
    }

    /// A leaf as its schema calls it, with dots.
    pub(super) fn column_name(&self, leaf: usize) -> String {
        let schema = self.metadata.file_metadata().schema_descr();
        schema.column(leaf).path().string()
    }

    /// Where some columns of a row group lie.
    ///
    /// # Errors
    /// [`Error::Shard`](crate::Error::Shard) for places that are not in the file.
    pub(super) fn ranges(
        &self,
        group: &RowGroupMetaData,
        leaves: &[usize],
    ) -> Result<Vec<Range<u64>>> {
        let range = |&leaf: &usize| {
            let column = group.column(leaf);
            let start = column
                .dictionary_page_offset()
                .unwrap_or_else(|| column.data_page_offset());
            let len = column.compressed_size();
            let places = u64::try_from(start).ok().zip(u64::try_from(len).ok());
            places
                .and_then(|(start, len)| Some(start..start.checked_add(len)?))
                .filter(|range| range.end <= self.bytes)
                .ok_or_else(|| {
                    malformed!(
                        "column {} of {len} bytes at {start} in a file of {}",
                        self.column_name(leaf),
                        self.bytes
                    )
                    .in_shard(&self.path)
                })
        };
        leaves.iter().map(range).collect()
    }

    /// What a row group's statistics say.
    pub(super) fn bounds(&self, group: &RowGroupMetaData) -> Bounds {
        let chunk = |leaf: Option<usize>| leaf.map(|leaf| group.column(leaf));
        Bounds::of(chunk(self.columns.label), chunk(self.columns.key))
    }
}

impl Columns {
    /// All of them.
    pub(super) fn leaves(self) -> Vec<usize> {
        [Some(self.picture), self.label, self.key]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// The footer without the trailer behind it.
fn read_footer(store: &Store, path: &str, bytes: u64) -> Result<Bytes> {
    let in_file = |fault: Malformed| fault.in_shard(path);
    let tail_start = bytes.saturating_sub(TAIL_BYTES);
    let tail = store.read_range(path, tail_start..bytes)?;
    let trailer = tail
        .last_chunk::<8>()
        .filter(|trailer| &trailer[4..] == MAGIC);
    let [a, b, c, d, ..] = *trailer.ok_or_else(|| {
        in_file(malformed!(
            "no Parquet footer at the end: truncated, or not Parquet"
        ))
    })?;
    let footer_end = bytes - 8;
    let footer_len = u64::from(u32::from_le_bytes([a, b, c, d]));
    let footer_start = footer_end.checked_sub(footer_len).ok_or_else(|| {
        in_file(malformed!(
            "a footer of {footer_len} bytes in a file of {bytes}"
        ))
    })?;
    match footer_start.checked_sub(tail_start) {
        Some(at) => Ok(tail.slice(at as usize..tail.len() - 8)),
        None => store.read_range(path, footer_start..footer_end),
    }
}

/// Finds the columns by their names and types.
fn columns<'a>(
    leaves: impl Iterator<Item = &'a ColumnDescriptor>,
) -> std::result::Result<Columns, Malformed> {
    let leaves: Vec<(Vec<String>, PhysicalType)> = leaves
        .map(|leaf| {
            // Lists of pictures or labels have no one row each.
            let parts = if leaf.max_rep_level() == 0 {
                leaf.path().parts().to_vec()
            } else {
                Vec::new()
            };
            (parts, leaf.physical_type())
        })
        .collect();
    let find = |path: &[&str], types: &[PhysicalType]| {
        leaves
            .iter()
            .position(|(parts, of)| parts.iter().eq(path.iter()) && types.contains(of))
    };
    const BYTES: [PhysicalType; 1] = [PhysicalType::BYTE_ARRAY];
    let named = PICTURE_NAMES
        .iter()
        .find_map(|name| find(&[name, "bytes"], &BYTES).or_else(|| find(&[name], &BYTES)));
    let only_struct = || {
        let mut structs = (0..leaves.len()).filter(|&leaf| {
            let (parts, of) = &leaves[leaf];
            parts.len() == 2 && parts[1] == "bytes" && *of == PhysicalType::BYTE_ARRAY
        });
        structs.next().filter(|_| structs.next().is_none())
    };
    let picture = named.or_else(only_struct).ok_or_else(|| {
        let names: Vec<String> = leaves.iter().map(|(parts, _)| parts.join(".")).collect();
        malformed!(
            "no column of pictures among {names:?}, expected `image` of bytes or of a struct with `bytes`"
        )
    })?;
    let integers = [PhysicalType::INT32, PhysicalType::INT64];
    let path = [leaves[picture].0[0].as_str(), "path"];
    Ok(Columns {
        picture,
        label: LABEL_NAMES.iter().find_map(|name| find(&[name], &integers)),
        key: KEY_NAMES
            .iter()
            .find_map(|name| find(&[name], &BYTES))
            .or_else(|| find(&path, &BYTES)),
    })
}
