//! What is written comes back, through this crate and through a general Parquet reader.

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use shards::{Column, Error, Kind, MAX_NAME_BYTES, ShardSet, ShardWriter};

use crate::support::*;

#[test]
fn images_come_back() {
    let dir = set(Kind::Images, 3, 20);
    let set = ShardSet::open(dir.path().to_str().unwrap(), "train").unwrap();
    assert_eq!(
        (set.kind(), set.n_samples(), set.n_shards()),
        (Kind::Images, 60, 3)
    );
    assert_eq!(set.class_names().len(), 3);
    for n in 0..60 {
        let sample = set.sample(n).unwrap();
        assert_eq!(u64::from(sample.shard), n / 20);
        assert_eq!(
            (sample.first_row, sample.n_frames, sample.label),
            (n % 20, 1, label(n))
        );
        assert_eq!(sample.key, image(n).key);
        assert_eq!(set.picture(n, 0).unwrap(), picture(n));
    }
    assert!(matches!(
        set.sample(60),
        Err(Error::OutOfRange {
            what: "sample",
            index: 60,
            len: 60
        })
    ));
    assert!(matches!(
        set.picture(3, 1),
        Err(Error::OutOfRange {
            what: "frame",
            index: 1,
            len: 1
        })
    ));
}

#[test]
fn clips_come_back_and_stay_in_one_row_group() {
    let dir = set(Kind::Clips, 2, 15);
    let set = ShardSet::open(dir.path().to_str().unwrap(), "train").unwrap();
    for n in (0..30).rev() {
        let sample = set.sample(n).unwrap();
        assert_eq!((sample.key, sample.label), (clip(n).clip, label(n)));
        assert_eq!(set.n_frames(n).unwrap(), n_frames(n));
        for frame in 0..n_frames(n) {
            assert_eq!(set.picture(n, frame).unwrap(), frame_picture(n, frame));
        }
    }
    let groups = set.groups();
    assert!(groups.len() > 4, "several row groups a shard");
    let mut next = 0;
    for group in groups {
        assert_eq!(group.first_sample, next);
        assert!(group.n_samples > 0);
        next += group.n_samples;
    }
    assert_eq!(next, 30);
}

#[test]
fn small_columns_come_back() {
    let dir = set(Kind::Clips, 1, 12);
    let set = ShardSet::open(dir.path().to_str().unwrap(), "train").unwrap();
    let (footer, columns) = set
        .columns(
            0,
            Column::of(Kind::Clips)
                .iter()
                .copied()
                .filter(|c| !c.path().starts_with("image"))
                .collect::<Vec<_>>()
                .as_slice(),
        )
        .unwrap();
    let mut row = 0;
    for n in 0..12 {
        for (k, frame) in clip(n).frames.iter().enumerate() {
            assert_eq!(*columns.names[row], *clip(n).clip);
            assert_eq!(
                (columns.frames[row], columns.n_frames[row]),
                (k as i32, n_frames(n) as i32)
            );
            assert_eq!(
                (columns.times_us[row], columns.labels[row]),
                (frame.time_us, label(n))
            );
            assert_eq!((columns.widths[row], columns.heights[row]), (64, 48));
            assert_eq!(columns.crc32c[row], crc32c::crc32c(&frame.bytes));
            row += 1;
        }
    }
    assert_eq!(footer.n_rows(), row as u64);
    assert!(footer.schema().contains("image"));
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    for kind in [Kind::Images, Kind::Clips] {
        assert_eq!(shard(kind, 5, 20), shard(kind, 5, 20));
        assert_ne!(shard(kind, 5, 20), shard(kind, 6, 20));
    }
}

#[test]
fn an_empty_shard_is_a_shard() {
    let dir = set(Kind::Images, 1, 0);
    let set = ShardSet::open(dir.path().to_str().unwrap(), "train").unwrap();
    assert_eq!((set.n_samples(), set.groups().len()), (0, 0));
}

#[test]
fn a_general_reader_reads_the_same() {
    let file = SerializedFileReader::new(Bytes::from(shard(Kind::Images, 0, 40))).unwrap();
    let mut n = 0;
    for row in file.get_row_iter(None).unwrap() {
        let (row, image) = (row.unwrap(), image(n));
        assert_eq!(row.get_string(0).unwrap(), &image.key);
        let stored = row.get_group(1).unwrap();
        assert_eq!(stored.get_bytes(0).unwrap().data(), image.bytes);
        assert_eq!(stored.get_string(1).unwrap(), &image.path);
        assert_eq!(row.get_long(2).ok().map(|label| label as i32), image.label);
        assert_eq!(
            (row.get_int(3).unwrap(), row.get_int(4).unwrap()),
            (image.width, image.height)
        );
        assert_eq!(row.get_uint(5).unwrap(), crc32c::crc32c(&image.bytes));
        n += 1;
    }
    assert_eq!(n, 40);
}

#[test]
fn pictures_have_a_page_each_and_other_columns_do_not() {
    for kind in [Kind::Images, Kind::Clips] {
        let bytes = Bytes::from(shard(kind, 0, 40));
        let mut reader =
            ParquetMetaDataReader::new().with_offset_index_policy(PageIndexPolicy::Required);
        reader.try_parse(&bytes).unwrap();
        let metadata = reader.finish().unwrap();
        assert!(metadata.num_row_groups() > 3);
        for (g, group) in metadata.row_groups().iter().enumerate() {
            let index = metadata.page_index_for_row_group(g);
            for (c, column) in group.columns().iter().enumerate() {
                let n_pages = index.offset_index(c).unwrap().page_locations().len() as i64;
                let pictures = column.column_path().string() == "image.bytes";
                assert_eq!(n_pages, if pictures { group.num_rows() } else { 1 });
                assert_eq!(column.compression(), Compression::UNCOMPRESSED);
                if pictures {
                    assert!(
                        column.statistics().is_none() && column.dictionary_page_offset().is_none()
                    );
                    assert!(
                        column
                            .encodings()
                            .all(|e| e == Encoding::PLAIN || e == Encoding::RLE)
                    );
                }
            }
        }
    }
}

#[test]
fn rows_that_readers_would_refuse_are_refused_by_the_writer() {
    let mut images = ShardWriter::new(Vec::new(), &spec(Kind::Images)).unwrap();
    for (change, reason) in [
        (
            (|row| row.key.clear()) as fn(&mut shards::ImageRow),
            "a name of 0 bytes",
        ),
        (
            |row| row.key = "k".repeat(MAX_NAME_BYTES + 1),
            "a name of 4097 bytes",
        ),
        (|row| row.bytes = Bytes::new(), "0 bytes"),
        (|row| row.label = Some(3), "label 3"),
        (|row| row.label = Some(-1), "label -1"),
        (|row| row.width = 0, "0 x 50"),
    ] {
        let mut row = image(0);
        change(&mut row);
        let error = images.push_image(&row).unwrap_err();
        assert!(
            matches!(error, Error::Input { .. }) && error.to_string().contains(reason),
            "{error}"
        );
    }
    assert!(matches!(
        images.push_clip(&clip(0)),
        Err(Error::Input { .. })
    ));
    let mut empty = clip(0);
    empty.frames.clear();
    let mut clips = ShardWriter::new(Vec::new(), &spec(Kind::Clips)).unwrap();
    assert!(
        clips
            .push_clip(&empty)
            .unwrap_err()
            .to_string()
            .contains("without frames")
    );
    let mut falling = clip(1);
    falling.frames[2].time_us = falling.frames[1].time_us;
    clips.push_clip(&falling).unwrap();
    falling.frames[2].time_us -= 1;
    assert!(
        clips
            .push_clip(&falling)
            .unwrap_err()
            .to_string()
            .contains("us after one at")
    );
    assert_eq!(clips.finish().unwrap().1.samples, 1);
}
