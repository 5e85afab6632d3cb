//! Truncated, foreign and damaged files: an error that names the shard, never a panic, a wrong picture or a large
//! allocation.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use shards::{
    ClipRow, Error, FooterStep, FrameRow, Kind, MAX_NAME_BYTES, Result, ShardFooter, ShardIndex,
    ShardSpec, ShardWriter, index_columns,
};

use crate::alloc::{largest_while, total_while};
use crate::support::*;

const SHARD: &str = "train-00000-of-00001.parquet";

/// What any reader does first, with the whole file at hand.
fn index_of(file: &Bytes) -> Result<ShardIndex> {
    let FooterStep::Done(footer) = ShardFooter::parse(SHARD, file.len() as u64, file)? else {
        panic!("the whole file was given");
    };
    let columns = index_columns(footer.kind());
    let slice = |range: Range<u64>| file.slice(range.start as usize..range.end as usize);
    let chunks: Vec<Bytes> = footer
        .column_ranges(columns)
        .into_iter()
        .map(slice)
        .collect();
    let decoded = footer.decode(columns, &chunks)?;
    ShardIndex::new(footer, &decoded)
}

/// Reads all that can be read, and says where the pictures lie.
fn read_all(file: &Bytes) -> Result<Vec<(Range<u64>, Result<Bytes>)>> {
    let index = index_of(file)?;
    (0..index.n_samples()).try_for_each(|n| index.sample(n).map(drop))?;
    let picture = |row| {
        let range = index.picture_range(row)?;
        let page = file.slice(range.start as usize..range.end as usize);
        Ok((range, index.picture(row, &page)))
    };
    (0..index.n_rows()).map(picture).collect()
}

/// The file's true pictures, and whether each byte belongs to one of their pages.
fn truth(file: &Bytes) -> (Vec<Bytes>, Vec<bool>) {
    let mut of_picture = vec![false; file.len()];
    let mut pictures = Vec::new();
    for (range, picture) in read_all(file).unwrap() {
        of_picture[range.start as usize..range.end as usize].fill(true);
        pictures.push(picture.unwrap());
    }
    (pictures, of_picture)
}

/// Reads a damaged file. What still reads must be one of the true pictures at its own place.
fn check_damaged(file: &Bytes, true_pictures: &[Bytes]) {
    let mut outcome = None;
    let largest = largest_while(|| outcome = Some(read_all(file)));
    assert!(
        largest < 64 * file.len(),
        "an allocation of {largest} bytes for a file of {}",
        file.len()
    );
    match outcome.unwrap() {
        Ok(rows) => {
            for (row, (_, picture)) in rows.into_iter().enumerate() {
                match picture {
                    Ok(picture) => assert_eq!(picture, true_pictures[row]),
                    Err(Error::Row {
                        shard, row: named, ..
                    }) => assert_eq!((shard.as_str(), named), (SHARD, row as u64)),
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        Err(Error::Shard { shard, .. } | Error::Row { shard, .. }) => assert_eq!(shard, SHARD),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn every_truncation_is_an_error() {
    let file = Bytes::from(shard(Kind::Clips, 0, 6));
    for len in 0..file.len() {
        let error = read_all(&file.slice(..len)).unwrap_err();
        assert!(
            matches!(&error, Error::Shard { shard, .. } if shard == SHARD),
            "{len}: {error:?}"
        );
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_metadata_is_survived() {
    for kind in [Kind::Images, Kind::Clips] {
        let file = Bytes::from(shard(kind, 0, 8));
        let (pictures, of_picture) = truth(&file);
        let mut damaged = file.to_vec();
        for place in (0..file.len()).filter(|&place| !of_picture[place]) {
            let bit = 1 << (place % 8);
            damaged[place] ^= bit;
            check_damaged(&Bytes::copy_from_slice(&damaged), &pictures);
            damaged[place] ^= bit;
        }
    }
}

#[test]
fn a_flipped_bit_in_a_picture_is_found() {
    let file = shard(Kind::Images, 0, 3);
    let (pictures, of_picture) = truth(&Bytes::from(file.clone()));
    for place in (0..file.len())
        .filter(|&place| of_picture[place])
        .step_by(7)
    {
        let mut damaged = file.clone();
        damaged[place] ^= 1 << (place % 8);
        let rows = read_all(&Bytes::from(damaged)).unwrap();
        let (bad, good): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .map(|(_, picture)| picture)
            .partition(Result::is_err);
        // A bit of a page header that means nothing, such as the encoding of levels that are not there, may go unseen.
        assert!(
            bad.len() <= 1
                && bad
                    .iter()
                    .all(|bad| bad.as_ref().is_err_and(Error::is_bad_sample))
        );
        assert!(
            good.into_iter()
                .all(|good| pictures.contains(&good.unwrap()))
        );
    }
}

/// Clips of the longest name there is: its shards hold it once a row group, and its rows all speak of it.
fn clips_of_a_long_name(n_clips: u64, n_frames: u64) -> Bytes {
    let frame = FrameRow {
        time_us: 0,
        bytes: picture(0).slice(..8),
        width: 1,
        height: 1,
    };
    let clip = ClipRow {
        clip: "n".repeat(MAX_NAME_BYTES),
        label: None,
        frames: vec![frame; n_frames as usize],
    };
    let spec = ShardSpec {
        row_group_bytes: 1 << 20,
        ..spec(Kind::Clips)
    };
    let mut writer = ShardWriter::new(Vec::new(), &spec).unwrap();
    (0..n_clips).for_each(|_| writer.push_clip(&clip).unwrap());
    Bytes::from(writer.finish().unwrap().0)
}

#[test]
fn memory_is_in_proportion_to_the_bytes_read() {
    for (n_clips, n_frames) in [(1, 3000), (3000, 1)] {
        let file = clips_of_a_long_name(n_clips, n_frames);
        let mut outcome = None;
        let total = total_while(|| outcome = Some(index_of(&file)));
        assert!(
            total < 12 * file.len(),
            "{total} bytes in all for a file of {}",
            file.len()
        );
        match outcome.unwrap() {
            Ok(index) => assert_eq!(index.n_samples(), 1),
            Err(error) => assert!(
                n_clips > 1 && error.to_string().contains("share a name"),
                "{error}"
            ),
        }
    }
}

#[test]
fn foreign_files_are_named() {
    let says = |file: Vec<u8>, words: &str| {
        let error = index_of(&Bytes::from(file)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("shard {SHARD}: ")) && error.contains(words),
            "{error}"
        );
    };
    says(Vec::new(), "too short");
    says(b"PAR1".to_vec(), "too short");
    says(
        b"\xff\xd8\xff\xe0 a picture and not a Parquet file".to_vec(),
        "not a shard",
    );
    says(
        b"PAR1\xff\xff\xff\x7fPAR1".to_vec(),
        "footer of 2147483647 bytes",
    );
    says(b"PAR1\x00\x00\x00\x00PAR1".to_vec(), "unreadable footer");
    let schema = Arc::new(parse_message_type("message m { required int32 x; }").unwrap());
    let writer =
        SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::default()))
            .unwrap();
    says(writer.into_inner().unwrap(), "no pairquet.format");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn overwritten_metadata_is_survived(
        clips in any::<bool>(),
        from_end in 0usize..4000,
        rubbish in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xff), Just(0)], 1..40),
    ) {
        let kind = if clips { Kind::Clips } else { Kind::Images };
        let mut file = shard(kind, 0, 5);
        let (pictures, _) = truth(&Bytes::from(file.clone()));
        let place = file.len().saturating_sub(from_end + rubbish.len());
        let end = file.len().min(place + rubbish.len());
        file[place..end].copy_from_slice(&rubbish[..end - place]);
        check_damaged(&Bytes::from(file), &pictures);
    }

    #[test]
    fn rubbish_between_the_magic_numbers_is_survived(
        rubbish in proptest::collection::vec(any::<u8>(), 0..300),
        footer_len in 0u32..400,
    ) {
        let file = [b"PAR1", &rubbish[..], &footer_len.to_le_bytes(), b"PAR1"].concat();
        prop_assert!(index_of(&Bytes::from(file)).is_err());
    }
}
