//! Column chunks of any encoding and compression to values, by Parquet's own decoder.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use bytes::buf::{Buf, Reader};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::pages;
use crate::error::{Malformed, malformed};

type Result<T> = std::result::Result<T, Malformed>;

/// The column chunks of a row group that were read.
pub(super) struct Chunks<'a> {
    pub(super) group: &'a RowGroupMetaData,
    pub(super) bytes: Arc<Parts>,
}

impl Chunks<'_> {
    /// The values of a column of bytes, one a row.
    pub(super) fn bytes(&self, leaf: usize) -> Result<Vec<Option<ByteArray>>> {
        guarded(|| match self.open(leaf)? {
            (ColumnReader::ByteArrayColumnReader(reader), level) => {
                values::<ByteArrayType>(reader, level, self.n_rows())
            }
            _ => Err(unexpected()),
        })
    }

    /// The values of a column of integers, one a row.
    pub(super) fn integers(&self, leaf: usize) -> Result<Vec<Option<i64>>> {
        guarded(|| match self.open(leaf)? {
            (ColumnReader::Int64ColumnReader(reader), level) => {
                values::<Int64Type>(reader, level, self.n_rows())
            }
            (ColumnReader::Int32ColumnReader(reader), level) => {
                let values = values::<Int32Type>(reader, level, self.n_rows())?;
                Ok(values
                    .into_iter()
                    .map(|value| value.map(i64::from))
                    .collect())
            }
            _ => Err(unexpected()),
        })
    }

    fn n_rows(&self) -> usize {
        self.group.num_rows() as usize
    }

    fn open(&self, leaf: usize) -> Result<(ColumnReader, i16)> {
        let chunk = self.group.column(leaf);
        let (start, len) = chunk.byte_range();
        let bytes = self.bytes.get_bytes(start, len as usize);
        let bytes = bytes.map_err(|e| malformed!("{e}"))?;
        let codec = chunk.compression_codec();
        pages::check(&bytes, codec, chunk.num_values())?;
        let reader = reader(chunk, &self.bytes, self.n_rows()).map_err(|e| malformed!("{e}"))?;
        Ok((reader, chunk.column_descr().max_def_level()))
    }
}

/// Parquet's decoder meets lengths from the file, and a few of them it asserts.
fn guarded<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(malformed!("its pages make the decoder fail")))
}

fn unexpected() -> Malformed {
    malformed!("a column of another type than its schema says")
}

fn reader(
    chunk: &ColumnChunkMetaData,
    bytes: &Arc<Parts>,
    n_rows: usize,
) -> parquet::errors::Result<ColumnReader> {
    let pages = SerializedPageReader::new(Arc::clone(bytes), chunk, n_rows, None)?;
    Ok(get_column_reader(chunk.column_descr_ptr(), Box::new(pages)))
}

/// All values of a column chunk, one a row.
fn values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    max_level: i16,
    n_rows: usize,
) -> Result<Vec<Option<T::T>>>
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

/// The parts of a file that were read, each with its place.
pub(super) struct Parts(pub(super) Vec<(u64, Bytes)>);

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
