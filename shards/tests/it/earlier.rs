//! Files written by earlier versions of this crate still read, and today's are the same byte for byte.

use bytes::Bytes;
use shards::{FooterStep, Kind, ShardFooter, ShardIndex, index_columns};

use crate::support::*;

/// Samples in each of the files.
const N_SAMPLES: u64 = 5;

/// Format version 1, written with parquet 60.1.
const FILES: [(Kind, &[u8]); 2] = [
    (Kind::Images, include_bytes!("../data/v1-images.parquet")),
    (Kind::Clips, include_bytes!("../data/v1-clips.parquet")),
];

#[test]
fn files_of_version_1_read() {
    for (kind, file) in FILES {
        let file = Bytes::from_static(file);
        let FooterStep::Done(footer) = ShardFooter::parse("v1", file.len() as u64, &file).unwrap()
        else {
            panic!("the whole file was given");
        };
        let slice =
            |range: std::ops::Range<u64>| file.slice(range.start as usize..range.end as usize);
        let chunks: Vec<Bytes> = footer
            .column_ranges(index_columns(kind))
            .into_iter()
            .map(slice)
            .collect();
        let columns = footer.decode(index_columns(kind), &chunks).unwrap();
        let index = ShardIndex::new(footer, &columns).unwrap();
        assert_eq!(index.n_samples(), N_SAMPLES);
        for n in 0..N_SAMPLES {
            let sample = index.sample(n).unwrap();
            let (name, frames) = match kind {
                Kind::Images => (image(n).key, vec![picture(n)]),
                Kind::Clips => (
                    clip(n).clip,
                    clip(n)
                        .frames
                        .into_iter()
                        .map(|frame| frame.bytes)
                        .collect(),
                ),
            };
            assert_eq!((sample.name, sample.label), (name.as_str(), label(n)));
            assert_eq!(sample.n_frames as usize, frames.len());
            for (row, frame) in (sample.first_row..).zip(frames) {
                let page = slice(index.picture_range(row).unwrap());
                assert_eq!(index.picture(row, &page).unwrap(), frame);
            }
        }
    }
}

/// A change of the bytes is no fault, but it must be a decision: a conversion that was stopped and is continued by
/// another version would no longer equal one that was not.
#[test]
fn the_bytes_of_version_1_have_not_changed() {
    for (kind, file) in FILES {
        assert!(
            shard(kind, 0, N_SAMPLES) == file,
            "a shard of {} has other bytes than before",
            kind.as_str()
        );
    }
}
