//! Parquet files as the Hugging Face hub has them.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::Result;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional int64 label;
}";

/// A row of an image set.
#[derive(Debug, Clone, Default)]
pub struct HubRow {
    /// The encoded picture.
    pub bytes: Option<Vec<u8>>,
    /// What its file was called.
    pub path: Option<String>,
    /// Its class.
    pub label: Option<i64>,
}

/// Writes a file in row groups of so many rows, compressed and without an offset index's help.
///
/// * `class_names`: as `datasets` writes them into the file; none if empty.
///
/// # Errors
/// The writer's.
pub fn write_hub_parquet(
    path: &Path,
    rows: &[HubRow],
    group_rows: usize,
    class_names: &[&str],
) -> Result<()> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let names = class_names.join("\",\"");
    let features = format!(
        r#"{{"info":{{"features":{{"image":{{"_type":"Image"}},"label":{{"names":["{names}"],"_type":"ClassLabel"}}}}}}}}"#
    );
    let metadata = KeyValue::new("huggingface".to_owned(), features);
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata((!class_names.is_empty()).then(|| vec![metadata]))
        .build();
    let file = std::fs::File::create(path)?;
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    for rows in rows.chunks(group_rows) {
        let mut group = writer.next_row_group()?;
        let pictures = rows
            .iter()
            .map(|row| row.bytes.clone().map(ByteArray::from));
        let paths = rows
            .iter()
            .map(|row| row.path.as_deref().map(ByteArray::from));
        for column in [pictures.collect::<Vec<_>>(), paths.collect()] {
            let levels: Vec<i16> = column.iter().map(|v| 1 + i16::from(v.is_some())).collect();
            let values: Vec<ByteArray> = column.into_iter().flatten().collect();
            if let Some(mut column) = group.next_column()? {
                let typed = column.typed::<ByteArrayType>();
                typed.write_batch(&values, Some(&levels), None)?;
                column.close()?;
            }
        }
        let levels: Vec<i16> = rows
            .iter()
            .map(|row| i16::from(row.label.is_some()))
            .collect();
        let values: Vec<i64> = rows.iter().filter_map(|row| row.label).collect();
        if let Some(mut column) = group.next_column()? {
            let typed = column.typed::<Int64Type>();
            typed.write_batch(&values, Some(&levels), None)?;
            column.close()?;
        }
        group.close()?;
    }
    writer.close()?;
    Ok(())
}
