//! How each column is laid out.

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use parquet::schema::types::ColumnPath;

use super::ShardSpec;
use crate::metadata::key_values;
use crate::schema::{CREATED_BY, Column};

/// A row that waits for its row group to be full.
pub(super) struct Row {
    /// `key` or `clip`.
    pub(super) name: ByteArray,
    pub(super) frame: i32,
    pub(super) n_frames: i32,
    pub(super) time_us: i64,
    pub(super) bytes: Bytes,
    pub(super) path: String,
    pub(super) label: Option<i32>,
    pub(super) width: i32,
    pub(super) height: i32,
}

/// Writes one column of a row group.
pub(super) fn write_column(
    writer: &mut ColumnWriter<'_>,
    column: Column,
    rows: &[Row],
) -> Result<(), ParquetError> {
    match (writer, column) {
        (ColumnWriter::ByteArrayColumnWriter(writer), Column::ImageBytes) => {
            for row in rows {
                // One value a call: the limit of one row a page is looked at after each call, which closes the page.
                writer.write_batch(
                    &[ByteArray::from(row.bytes.clone())],
                    Some(&[column.max_def_level()]),
                    None,
                )?;
            }
        }
        (ColumnWriter::ByteArrayColumnWriter(writer), Column::ImagePath) => {
            let paths: Vec<ByteArray> = rows
                .iter()
                .map(|row| ByteArray::from(row.path.as_str()))
                .collect();
            writer.write_batch(
                &paths,
                Some(&vec![column.max_def_level(); rows.len()]),
                None,
            )?;
        }
        (ColumnWriter::ByteArrayColumnWriter(writer), _) => {
            let names: Vec<ByteArray> = rows.iter().map(|row| row.name.clone()).collect();
            writer.write_batch(&names, None, None)?;
        }
        (ColumnWriter::Int64ColumnWriter(writer), Column::Label) => {
            let labels: Vec<i64> = rows
                .iter()
                .filter_map(|row| row.label.map(i64::from))
                .collect();
            let levels: Vec<i16> = rows
                .iter()
                .map(|row| i16::from(row.label.is_some()))
                .collect();
            writer.write_batch(&labels, Some(&levels), None)?;
        }
        (ColumnWriter::Int64ColumnWriter(writer), _) => {
            let times: Vec<i64> = rows.iter().map(|row| row.time_us).collect();
            writer.write_batch(&times, None, None)?;
        }
        (ColumnWriter::Int32ColumnWriter(writer), _) => {
            let value = |row: &Row| match column {
                Column::Frame => row.frame,
                Column::NFrames => row.n_frames,
                Column::Width => row.width,
                Column::Height => row.height,
                _ => crc32c::crc32c(&row.bytes).cast_signed(),
            };
            let values: Vec<i32> = rows.iter().map(value).collect();
            writer.write_batch(&values, None, None)?;
        }
        _ => return Err(mismatch(column)),
    }
    Ok(())
}

/// Uncompressed everywhere; dictionaries only where values repeat.
pub(super) fn properties(spec: &ShardSpec) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::UNCOMPRESSED)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(key_values(spec)));
    for &column in Column::of(spec.kind) {
        builder = column_properties(builder, column);
    }
    builder.build()
}

fn column_properties(builder: WriterPropertiesBuilder, column: Column) -> WriterPropertiesBuilder {
    let path = ColumnPath::new(column.path().split('.').map(str::to_owned).collect());
    match column {
        Column::ImageBytes => builder
            .set_column_data_page_row_count_limit(path.clone(), 1)
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path.clone(), Encoding::PLAIN)
            .set_column_statistics_enabled(path, EnabledStatistics::None),
        Column::ImagePath => builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path.clone(), Encoding::DELTA_BYTE_ARRAY)
            .set_column_statistics_enabled(path, EnabledStatistics::None),
        Column::Key => builder.set_column_dictionary_enabled(path, false),
        Column::Frame | Column::TimeUs => builder.set_column_dictionary_enabled(path, false),
        Column::Crc32c => builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_statistics_enabled(path, EnabledStatistics::None),
        Column::Clip | Column::NFrames | Column::Label | Column::Width | Column::Height => builder,
    }
}

pub(super) fn mismatch(column: Column) -> ParquetError {
    ParquetError::General(format!(
        "the schema has no column {} at its place",
        column.path()
    ))
}
