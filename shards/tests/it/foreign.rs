//! Parquet files as others write them: compressed, with dictionaries, in row groups of any size, by several layouts.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use shards::{Error, ForeignSet, Kind, Store};

use crate::support::*;

/// As the Hugging Face hub has them.
const HUB: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional int64 label;
}";

/// A flat table with names.
const FLAT: &str = "message schema {
    required binary key (STRING); required binary jpg; required int32 cls; optional double score;
}";

/// Pictures alone.
const BARE: &str = "message schema { optional binary img; }";

/// Writes rows `first..first + n` in row groups of `group_rows`; every seventh picture is missing where that can be.
fn write(path: &Path, schema: &str, compression: Compression, first: u64, n: u64, group_rows: u64) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema.clone(), Arc::new(properties)).unwrap();
    let rows: Vec<u64> = (first..first + n).collect();
    for rows in rows.chunks(group_rows as usize) {
        let mut group = writer.next_row_group().unwrap();
        let leaves = parquet::schema::types::SchemaDescriptor::new(schema.clone());
        for leaf in leaves.columns() {
            let mut column = group.next_column().unwrap().unwrap();
            let top = leaf.max_def_level();
            let name = leaf.path().string();
            let is_picture = ["image.bytes", "jpg", "img"].contains(&name.as_str());
            let present = |row: u64| !(is_picture && top > 0 && row % 7 == 3);
            let level = |&row: &u64| if present(row) { top } else { top - 1 };
            let levels: Vec<i16> = rows.iter().map(level).collect();
            let levels = (top > 0).then_some(levels.as_slice());
            let there = rows.iter().copied().filter(|&row| present(row));
            match name.as_str() {
                "label" => {
                    let labels: Vec<i64> = there.map(|row| row as i64 % 3).collect();
                    let column = column.typed::<Int64Type>();
                    column.write_batch(&labels, levels, None).unwrap();
                }
                "cls" => {
                    let labels: Vec<i32> = there.map(|row| row as i32 % 3).collect();
                    let column = column.typed::<Int32Type>();
                    column.write_batch(&labels, levels, None).unwrap();
                }
                "score" => {
                    let column = column.typed::<parquet::data_type::DoubleType>();
                    let scores = vec![0.5; rows.len()];
                    column.write_batch(&scores, levels, None).unwrap();
                }
                _ => {
                    let value = |row| {
                        if is_picture {
                            ByteArray::from(picture(row))
                        } else {
                            ByteArray::from(format!("row_{row}").as_str())
                        }
                    };
                    let values: Vec<ByteArray> = there.map(value).collect();
                    let column = column.typed::<ByteArrayType>();
                    column.write_batch(&values, levels, None).unwrap();
                }
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn open(dir: &Path, split: &str) -> shards::Result<ForeignSet> {
    ForeignSet::open_in(Store::open(dir.to_str().unwrap())?, split)
}

/// All samples: name, label, picture or what is wrong with it.
fn read(set: &ForeignSet) -> Vec<(String, Option<i32>, Result<bytes::Bytes, String>)> {
    let mut all = Vec::new();
    for (number, place) in set.groups().into_iter().enumerate() {
        assert_eq!(place.first_sample, all.len() as u64);
        let named = set.place_of(place.first_sample);
        assert!(named.contains(".parquet, row group "), "{named}");
        let group = set.load_group(number).unwrap();
        assert_eq!(group.n_samples(), place.n_samples);
        for n in 0..group.n_samples() {
            let (name, label) = group.sample(n).unwrap();
            all.push((name, label, group.picture(n).map_err(|e| e.to_string())));
        }
        assert!(group.sample(place.n_samples).is_err() && group.picture(place.n_samples).is_err());
    }
    assert_eq!(set.n_samples(), all.len() as u64);
    all
}

#[test]
fn layouts_and_compressions_read() {
    let compressions = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
        Compression::GZIP(GzipLevel::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(BrotliLevel::default()),
    ];
    for compression in compressions {
        for (schema, has_label, has_key) in
            [(HUB, true, true), (FLAT, true, true), (BARE, false, false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("train-00000-of-00001.parquet");
            write(&file, schema, compression, 0, 20, 8);
            let rows = read(&open(dir.path(), "train").unwrap());
            assert_eq!(rows.len(), 20);
            for (n, (name, label, found)) in (0..).zip(rows) {
                let place = format!("train-00000-of-00001.parquet#{n}");
                assert_eq!(name, if has_key { format!("row_{n}") } else { place });
                assert_eq!(label, has_label.then_some(n % 3));
                if schema != FLAT && n % 7 == 3 {
                    assert!(found.unwrap_err().contains("no picture"));
                } else {
                    assert!(found.unwrap() == picture(n as u64));
                }
            }
        }
    }
}

#[test]
fn splits_are_told_by_names_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("default/test")).unwrap();
    let plain = Compression::SNAPPY;
    write(
        &dir.path().join("train-00001-of-00002.parquet"),
        FLAT,
        plain,
        5,
        5,
        3,
    );
    write(
        &dir.path().join("train-00000-of-00002.parquet"),
        FLAT,
        plain,
        0,
        5,
        100,
    );
    write(
        &dir.path().join("default/test/0000.parquet"),
        FLAT,
        plain,
        90,
        2,
        1,
    );
    let names = |split: &str| -> Vec<String> {
        let rows = read(&open(dir.path(), split).unwrap());
        rows.into_iter().map(|(name, ..)| name).collect()
    };
    assert!(
        names("train")
            .into_iter()
            .eq((0..10).map(|n| format!("row_{n}")))
    );
    assert_eq!(names("test"), ["row_90", "row_91"]);
    let error = open(dir.path(), "validation").unwrap_err();
    assert!(
        matches!(&error, Error::NoSplit { known, .. } if known == &["test", "train"]),
        "{error}"
    );
    let unnamed = tempfile::tempdir().unwrap();
    write(&unnamed.path().join("part-0.parquet"), BARE, plain, 0, 4, 4);
    assert_eq!(open(unnamed.path(), "train").unwrap().n_samples(), 4);
}

#[test]
fn what_is_no_image_set_is_refused() {
    let message = |dir: &Path| open(dir, "train").unwrap_err().to_string();
    let dir = tempfile::tempdir().unwrap();
    assert!(message(dir.path()).contains("no manifest.json"));
    assert!(message(&dir.path().join("nowhere")).contains("does not exist"));
    let file = dir.path().join("train-0.parquet");
    let texts = "message schema { required binary text (STRING); optional int64 label; }";
    write(&file, texts, Compression::SNAPPY, 0, 3, 3);
    let error = message(dir.path());
    assert!(
        error.contains("no column of pictures among [\"text\", \"label\"]"),
        "{error}"
    );
    std::fs::write(&file, b"PAR1 and no more").unwrap();
    assert!(message(dir.path()).contains("train-0.parquet"));
    std::fs::write(&file, b"").unwrap();
    assert!(message(dir.path()).contains("no Parquet footer"));
    // Shards whose conversion has not finished are not taken for somebody else's files.
    let shards = set(Kind::Images, 1, 10);
    std::fs::remove_file(shards.path().join("manifest.json")).unwrap();
    assert!(message(shards.path()).contains("has not finished"));
}

#[test]
fn damage_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("train-0.parquet");
    write(&file, HUB, Compression::SNAPPY, 0, 6, 3);
    let bytes = std::fs::read(&file).unwrap();
    for at in (0..bytes.len()).step_by(31) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&file, &damaged).unwrap();
        if let Ok(set) = open(dir.path(), "train") {
            for number in 0..set.groups().len() {
                if let Err(error) = set.load_group(number) {
                    assert!(error.to_string().contains("train-0.parquet"), "{error}");
                }
            }
        }
        std::fs::write(&file, &bytes[..at]).unwrap();
        assert!(open(dir.path(), "train").is_err(), "cut at {at}");
    }
}
