//! A shard: footer, offset index, columns and the pages of pictures.

use std::ops::Range;

use bytes::Bytes;
use serde_json::Map;
use shards::{
    ClassName, ClipRow, Column, FooterStep, FrameRow, ImageRow, Kind, Result, ShardCounts,
    ShardFooter, ShardIndex, ShardSpec, ShardWriter, index_columns, slice_picture, tail_range,
};

use super::Target;
use crate::made;

pub(super) const TARGET: Target = Target {
    name: "shard",
    run,
    seeds: || {
        let of = |kind, rows| shard(kind, rows).0;
        vec![
            of(Kind::Images, 3),
            of(Kind::Clips, 2),
            of(Kind::Images, 40),
            of(Kind::Images, 0),
        ]
    },
    rounds: 6000,
};

fn run(input: &[u8]) {
    let file = Bytes::copy_from_slice(input);
    // A page alone, too: what is wrong with one must not depend on what else is there.
    drop(slice_picture(&file));
    drop(read_all(&file));
}

/// Reads the tail as a reader of files does, then all that can be asked of it.
fn read_all(file: &Bytes) -> Result<()> {
    let slice = |range: &Range<u64>| file.slice(range.start as usize..range.end as usize);
    let mut tail = tail_range(file.len() as u64, 0);
    // So small a file that the tail is cut by hand, for the second and third steps to be made.
    tail.start = tail.end.saturating_sub(64);
    let footer = loop {
        match ShardFooter::parse("hostile", file.len() as u64, &slice(&tail))? {
            FooterStep::Done(footer) => break footer,
            FooterStep::NeedsMore(range) => {
                assert!(
                    range.start < tail.start && range.end == file.len() as u64
                        || range.end - range.start > tail.end - tail.start,
                    "asked for {range:?} after {tail:?}"
                );
                tail = range;
            }
        }
    };
    let columns_of = |columns: &[Column]| {
        let chunks: Vec<Bytes> = footer.column_ranges(columns).iter().map(slice).collect();
        footer.decode(columns, &chunks)
    };
    for column in Column::of(footer.kind()) {
        drop(columns_of(&[*column]));
    }
    let columns = columns_of(index_columns(footer.kind()))?;
    let index = ShardIndex::new(footer, &columns)?;
    for sample in 0..index.n_samples() {
        index.named_sample(sample)?;
    }
    for row in 0..index.n_rows() {
        let page = slice(&index.picture_range(row)?);
        drop(index.picture(row, &page));
    }
    Ok(())
}

/// A shard of so many samples, as the project writes it.
pub(super) fn shard(kind: Kind, samples: usize) -> (Vec<u8>, ShardCounts) {
    let class = |id: &str| ClassName {
        id: id.to_owned(),
        name: id.to_owned(),
    };
    let spec = ShardSpec {
        kind,
        split: "train".to_owned(),
        class_names: vec![class("n01"), class("n02")],
        options: Map::new(),
        row_group_bytes: 400,
    };
    let mut writer = made(ShardWriter::new(Vec::new(), &spec));
    let picture = |n: usize| Bytes::from(vec![n as u8; 10 + n * 7 % 50]);
    for n in 0..samples {
        let label = (n % 3 < 2).then_some(n as i32 % 2);
        made(match kind {
            Kind::Images => writer.push_image(&ImageRow {
                key: format!("n0{}/{n}", n % 2),
                bytes: picture(n),
                path: format!("{n}.jpg"),
                label,
                width: 4,
                height: 3,
            }),
            Kind::Clips => writer.push_clip(&ClipRow {
                clip: format!("clip{n}"),
                label,
                frames: (0..3 + n)
                    .map(|frame| FrameRow {
                        time_us: frame as i64 * 40_000,
                        bytes: picture(frame),
                        width: 4,
                        height: 3,
                    })
                    .collect(),
            }),
        });
    }
    made(writer.finish())
}
