//! Parquet files of others.

use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::Result;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use shards::{ForeignSet, Store};

use super::Target;
use crate::made;
use crate::scratch;

pub(super) const TARGET: Target = Target {
    name: "foreign",
    run,
    seeds: || {
        let codecs = [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::ZSTD(ZstdLevel::default()),
            Compression::BROTLI(BrotliLevel::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
        ];
        let versions = [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0];
        let both = |codec| versions.map(|version| made(file(codec, version)));
        codecs.into_iter().flat_map(both).collect()
    },
    rounds: 1800,
};

const FILE: &str = "hostile.parquet";

fn run(input: &[u8]) {
    scratch::file(FILE, input);
    let store = made(Store::open(&scratch::folder().to_string_lossy()));
    drop(read_all(store));
}

fn read_all(store: Store) -> shards::Result<()> {
    let set = ForeignSet::open_file(store, FILE, "train")?;
    set.layout();
    for number in 0..set.n_groups() {
        set.bounds(number)?.may_have_label(1);
        drop(set.load_rows(number, true, true));
        let Ok(group) = set.load_group(number) else {
            continue;
        };
        for sample in 0..group.n_samples() {
            drop(group.sample(sample));
            drop(group.picture(sample));
        }
    }
    Ok(())
}

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional int64 label;
}";

fn file(codec: Compression, version: WriterVersion) -> Result<Vec<u8>> {
    let features = r#"{"info":{"features":{"label":{"names":["a","b"],"_type":"ClassLabel"}}}}"#;
    let metadata = KeyValue::new("huggingface".to_owned(), features.to_owned());
    let properties = WriterProperties::builder()
        .set_compression(codec)
        .set_writer_version(version)
        .set_key_value_metadata(Some(vec![metadata]))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    for rows in [0..4u8, 4..6] {
        let mut group = writer.next_row_group()?;
        let pictures: Vec<ByteArray> = rows.clone().map(|n| vec![n % 3; 40].into()).collect();
        let paths: Vec<ByteArray> = rows
            .clone()
            .map(|n| format!("{n}.jpg").into_bytes().into())
            .collect();
        for values in [pictures, paths] {
            if let Some(mut column) = group.next_column()? {
                let typed = column.typed::<ByteArrayType>();
                typed.write_batch(&values, Some(&vec![2; values.len()]), None)?;
                column.close()?;
            }
        }
        let labels: Vec<i64> = rows.clone().skip(1).map(|n| i64::from(n % 2)).collect();
        let mut levels = vec![1; rows.len()];
        levels[0] = 0;
        if let Some(mut column) = group.next_column()? {
            let typed = column.typed::<Int64Type>();
            typed.write_batch(&labels, Some(&levels), None)?;
            column.close()?;
        }
        group.close()?;
    }
    writer.into_inner()
}
