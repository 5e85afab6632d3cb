//! Parquet files that others wrote, such as the image sets of the Hugging Face hub: any size of row group, any
//! compression, no offset index. A row group is the least that can be read of them.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use bytes::buf::{Buf, Reader};
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

use crate::error::{Error, Malformed, Result, malformed};
use crate::footer::MAGIC;
use crate::metadata::META_FORMAT;
use crate::set::GroupRef;
use crate::storage::Store;
use crate::writer::MAX_ROW_GROUP_BYTES;

/// What the first read of a file's tail takes.
const TAIL_BYTES: u64 = 256 << 10;

/// Footers that are read at once.
const FOOTER_READERS: usize = 16;

/// Names that columns of pictures have, the likeliest first.
const PICTURE_NAMES: [&str; 7] = ["image", "img", "jpg", "jpeg", "png", "webp", "picture"];

/// Names of columns of labels.
const LABEL_NAMES: [&str; 4] = ["label", "labels", "cls", "class"];

/// Names of columns that name a picture.
const KEY_NAMES: [&str; 6] = ["key", "__key__", "id", "image_id", "file_name", "filename"];

/// A folder of Parquet files with a column of pictures.
#[derive(Debug)]
pub struct ForeignSet {
    store: Store,
    files: Vec<File>,
    groups: Vec<Place>,
}

#[derive(Debug)]
struct File {
    path: String,
    metadata: ParquetMetaData,
    columns: Columns,
}

/// The leaves that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Columns {
    picture: usize,
    label: Option<usize>,
    key: Option<usize>,
}

/// Where a row group is.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    /// Its number in the file.
    number: usize,
    /// Rows of the file before it.
    first_row: u64,
    group: GroupRef,
}

/// The rows of a row group that was read.
#[derive(Debug)]
pub struct ForeignGroup {
    file: String,
    first_row: u64,
    pictures: Vec<Option<Bytes>>,
    labels: Vec<Option<i64>>,
    keys: Vec<Option<String>>,
}

impl ForeignSet {
    /// Opens the Parquet files of a split in `store`: those whose name begins with the split's, or that lie in a folder of
    /// its name; where no file belongs to any split, all of them are `train`. Reads their footers.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if there is no Parquet file at all, [`Error::NoSplit`], [`Error::Shard`] for a file without a
    /// column of pictures or that cannot be read, or the store's error.
    pub fn open_in(store: Store, split: &str) -> Result<Self> {
        let mut files = store.list("")?;
        files.retain(|(path, _)| path.ends_with(".parquet"));
        if files.is_empty() {
            return Err(Error::Unfinished {
                uri: store.uri().to_owned(),
                is_missing: store.folder().is_some_and(|folder| !folder.exists()),
            });
        }
        let mut known: Vec<String> = files
            .iter()
            .filter_map(|(path, _)| split_of(path))
            .collect();
        known.sort_unstable();
        known.dedup();
        if known.is_empty() && split == "train" {
            return Self::of_files(store, files);
        }
        files.retain(|(path, _)| split_of(path).as_deref() == Some(split));
        if files.is_empty() {
            return Err(Error::NoSplit {
                uri: store.uri().to_owned(),
                split: split.to_owned(),
                known,
            });
        }
        Self::of_files(store, files)
    }

    fn of_files(store: Store, paths: Vec<(String, u64)>) -> Result<Self> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut read = Vec::new();
            while let Some((at, (path, bytes))) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                paths.get(at).map(|file| (at, file))
            } {
                read.push((at, read_file(&store, path, *bytes)));
            }
            read
        };
        let mut read = std::thread::scope(|scope| {
            let readers = 0..FOOTER_READERS.min(paths.len());
            let readers: Vec<_> = readers.map(|_| scope.spawn(work)).collect();
            let outcomes = readers.into_iter().filter_map(|reader| reader.join().ok());
            outcomes.flatten().collect::<Vec<_>>()
        });
        read.sort_unstable_by_key(|(at, _)| *at);
        let read = read.into_iter().map(|(_, file)| file);
        let files = read.collect::<Result<Vec<File>>>()?;
        // Shards without their manifest: a conversion that has not finished, whose files are not to be trusted.
        if files.iter().any(File::is_shard) {
            return Err(Error::Unfinished {
                uri: store.uri().to_owned(),
                is_missing: false,
            });
        }
        let mut groups = Vec::new();
        let mut first_sample = 0;
        for (at, file) in files.iter().enumerate() {
            let mut first_row = 0;
            for (number, group) in file.metadata.row_groups().iter().enumerate() {
                let n_rows = file.checked_rows(group)?;
                let place = Place {
                    file: at,
                    number,
                    first_row,
                    group: GroupRef {
                        first_sample,
                        n_samples: n_rows,
                        n_rows,
                        bytes: file.ranges(group).iter().map(|r| r.end - r.start).sum(),
                    },
                };
                if n_rows > 0 {
                    groups.push(place);
                }
                first_row += n_rows;
                first_sample += n_rows;
            }
        }
        Ok(Self {
            store,
            files,
            groups,
        })
    }

    /// Images of the split.
    pub fn n_samples(&self) -> u64 {
        self.groups.iter().map(|place| place.group.n_samples).sum()
    }

    /// Files of the split.
    pub fn n_files(&self) -> usize {
        self.files.len()
    }

    /// The row groups of the split, in order, with the bytes that are read of each.
    pub fn groups(&self) -> Vec<GroupRef> {
        self.groups.iter().map(|place| place.group).collect()
    }

    /// Reads a whole row group.
    ///
    /// * `number`: its place in [`ForeignSet::groups`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Shard`] if it cannot be decoded, or the store's error.
    pub fn load_group(&self, number: usize) -> Result<ForeignGroup> {
        let place = self.groups.get(number).ok_or(Error::OutOfRange {
            what: "row group",
            index: number as u64,
            len: self.groups.len() as u64,
        })?;
        let file = &self.files[place.file];
        let group = file.metadata.row_group(place.number);
        let ranges = file.ranges(group);
        let chunks = self.store.read_ranges(&file.path, &ranges)?;
        let parts = ranges.into_iter().map(|range| range.start).zip(chunks);
        let bytes = Arc::new(Parts(parts.collect()));
        // Parquet's decoder meets lengths from the file, and a few of them it asserts.
        let decoded = catch_unwind(AssertUnwindSafe(|| file.decode(group, &bytes)))
            .unwrap_or_else(|_| Err(malformed!("its pages make the decoder fail")));
        let (pictures, labels, keys) = decoded
            .map_err(|fault| malformed!("row group {}: {fault}", place.number))
            .map_err(|fault| fault.in_shard(&file.path))?;
        Ok(ForeignGroup {
            file: file.path.clone(),
            first_row: place.first_row,
            pictures,
            labels,
            keys,
        })
    }
}

impl ForeignGroup {
    /// Images of the group.
    pub fn n_samples(&self) -> u64 {
        self.pictures.len() as u64
    }

    /// Name and label of an image by its place in the group; images without a name are called by their file and row.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn sample(&self, sample: u64) -> Result<(String, Option<i32>)> {
        let at = self.checked(sample)?;
        let name = self.keys[at].clone();
        let by_place = || format!("{}#{}", self.file, self.first_row + sample);
        let label = self.labels[at].and_then(|label| i32::try_from(label).ok());
        Ok((name.unwrap_or_else(by_place), label))
    }

    /// The encoded picture of an image.
    ///
    /// # Errors
    /// [`Error::Row`] if there is none, [`Error::OutOfRange`].
    pub fn picture(&self, sample: u64) -> Result<Bytes> {
        let at = self.checked(sample)?;
        self.pictures[at]
            .clone()
            .ok_or_else(|| malformed!("no picture").in_row(&self.file, self.first_row + sample))
    }

    /// Bytes of memory that the pictures take.
    pub fn memory_bytes(&self) -> usize {
        self.pictures.iter().flatten().map(Bytes::len).sum()
    }

    fn checked(&self, sample: u64) -> Result<usize> {
        let at = usize::try_from(sample).ok();
        at.filter(|&at| at < self.pictures.len())
            .ok_or(Error::OutOfRange {
                what: "sample",
                index: sample,
                len: self.n_samples(),
            })
    }
}

/// Pictures, labels and keys of a row group.
type Rows = (Vec<Option<Bytes>>, Vec<Option<i64>>, Vec<Option<String>>);

impl File {
    fn is_shard(&self) -> bool {
        let metadata = self.metadata.file_metadata().key_value_metadata();
        let mut pairs = metadata.into_iter().flatten();
        pairs.any(|pair| pair.key == META_FORMAT)
    }

    fn checked_rows(&self, group: &RowGroupMetaData) -> Result<u64> {
        let n_rows = u64::try_from(group.num_rows()).ok();
        let bytes = u64::try_from(group.total_byte_size()).ok();
        match n_rows.zip(bytes) {
            Some((n_rows, bytes))
                if n_rows <= u64::from(u32::MAX) && bytes <= MAX_ROW_GROUP_BYTES =>
            {
                Ok(n_rows)
            }
            _ => Err(malformed!(
                "a row group of {} rows and {} bytes, expected less than 4 GiB",
                group.num_rows(),
                group.total_byte_size()
            )
            .in_shard(&self.path)),
        }
    }

    fn leaves(&self) -> impl Iterator<Item = usize> {
        let Columns {
            picture,
            label,
            key,
        } = self.columns;
        [Some(picture), label, key].into_iter().flatten()
    }

    /// Where the columns of a row group lie.
    fn ranges(&self, group: &RowGroupMetaData) -> Vec<Range<u64>> {
        let range = |leaf| {
            let (start, len) = group.column(leaf).byte_range();
            start..start.saturating_add(len)
        };
        self.leaves().map(range).collect()
    }

    fn decode(
        &self,
        group: &RowGroupMetaData,
        bytes: &Arc<Parts>,
    ) -> std::result::Result<Rows, Malformed> {
        let n_rows = group.num_rows() as usize;
        let open = |leaf: usize| {
            let chunk = group.column(leaf);
            let reader = reader(chunk, bytes, n_rows).map_err(|e| malformed!("{e}"));
            reader.map(|reader| (reader, chunk.column_descr().max_def_level()))
        };
        let unexpected = || malformed!("a column of another type than its schema says");
        let texts = |leaf| match open(leaf)? {
            (ColumnReader::ByteArrayColumnReader(reader), level) => {
                values::<ByteArrayType>(reader, level, n_rows)
            }
            _ => Err(unexpected()),
        };
        let pictures = texts(self.columns.picture)?;
        let labels = match self.columns.label.map(open).transpose()? {
            None => vec![None; n_rows],
            Some((ColumnReader::Int64ColumnReader(reader), level)) => {
                values::<Int64Type>(reader, level, n_rows)?
            }
            Some((ColumnReader::Int32ColumnReader(reader), level)) => {
                let labels = values::<Int32Type>(reader, level, n_rows)?;
                labels.into_iter().map(|l| l.map(i64::from)).collect()
            }
            Some(_) => return Err(unexpected()),
        };
        let keys = match self.columns.key {
            None => vec![None; n_rows],
            Some(leaf) => texts(leaf)?,
        };
        let picture = |bytes: Option<ByteArray>| {
            bytes
                .filter(|bytes| !bytes.is_empty())
                .map(|bytes| Bytes::copy_from_slice(bytes.data()))
        };
        let text = |bytes: Option<ByteArray>| Some(String::from_utf8_lossy(bytes?.data()).into());
        Ok((
            pictures.into_iter().map(picture).collect(),
            labels,
            keys.into_iter().map(text).collect(),
        ))
    }
}

fn reader(
    chunk: &ColumnChunkMetaData,
    bytes: &Arc<Parts>,
    n_rows: usize,
) -> std::result::Result<ColumnReader, ParquetError> {
    let pages = SerializedPageReader::new(Arc::clone(bytes), chunk, n_rows, None)?;
    Ok(get_column_reader(chunk.column_descr_ptr(), Box::new(pages)))
}

/// All values of a column chunk, one a row.
fn values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    max_level: i16,
    n_rows: usize,
) -> std::result::Result<Vec<Option<T::T>>, Malformed>
where
    T::T: Clone,
{
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let mut n_read = 0;
    while n_read < n_rows {
        let (records, _, _) = reader
            .read_records(n_rows - n_read, Some(&mut levels), None, &mut values)
            .map_err(|e| malformed!("{e}"))?;
        if records == 0 {
            return Err(malformed!("{n_read} rows, expected {n_rows}"));
        }
        n_read += records;
    }
    let mut values = values.into_iter();
    if max_level == 0 {
        return Ok(values.map(Some).collect());
    }
    let value = |level: i16| {
        if level == max_level {
            values.next()
        } else {
            None
        }
    };
    Ok(levels.into_iter().map(value).collect())
}

/// The split that a path speaks of: `data/train-00000-of-00010.parquet`, `train/0000.parquet`.
fn split_of(path: &str) -> Option<String> {
    const SPLITS: [&str; 5] = ["train", "validation", "valid", "val", "test"];
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let begins = |split: &str| {
        let rest = name.strip_prefix(split);
        rest.is_some_and(|rest| rest.starts_with(['-', '_', '.']))
    };
    let lies_in = |split: &str| folders.split('/').any(|folder| folder == split);
    let named = SPLITS.into_iter().find(|split| begins(split));
    let found = named.or_else(|| SPLITS.into_iter().find(|split| lies_in(split)))?;
    Some(found.to_owned())
}

fn read_file(store: &Store, path: &str, bytes: u64) -> Result<File> {
    let in_file = |fault: Malformed| fault.in_shard(path);
    let footer = read_footer(store, path, bytes)?;
    let metadata = ParquetMetaDataReader::decode_metadata(&footer)
        .map_err(|e| in_file(malformed!("unreadable footer: {e}")))?;
    let leaves = metadata.file_metadata().schema_descr().columns();
    let columns = columns(leaves.iter().map(AsRef::as_ref)).map_err(in_file)?;
    Ok(File {
        path: path.to_owned(),
        metadata,
        columns,
    })
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

/// The parts of a file that were read, each with its place.
struct Parts(Vec<(u64, Bytes)>);

impl Parts {
    fn from(&self, start: u64) -> parquet::errors::Result<Bytes> {
        let holds = |(at, bytes): &&(u64, Bytes)| start >= *at && start - at < bytes.len() as u64;
        let part = self.0.iter().find(holds);
        let (at, bytes) =
            part.ok_or_else(|| ParquetError::EOF(format!("byte {start} was not read")))?;
        Ok(bytes.slice((start - at) as usize..))
    }
}

impl Length for Parts {
    fn len(&self) -> u64 {
        let ends = self.0.iter().map(|(at, bytes)| at + bytes.len() as u64);
        ends.max().unwrap_or_default()
    }
}

impl ChunkReader for Parts {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            let reason = format!("{} bytes at {start}, expected {length}", bytes.len());
            return Err(ParquetError::EOF(reason));
        }
        Ok(bytes.slice(..length))
    }
}
