//! Sources of pictures, and what becomes of them.

use shards::{Manifest, ShardSet, Store};

use super::support::*;
use crate::codec::{decode_rgb8, encode_rgb8};
use crate::convert::tar_index::tests::tar_of;
use crate::convert::*;
use crate::stop::Stop;

#[test]
fn one_and_four_workers_make_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 4, 12);
    let mut options = small_shards();
    options.short_side = Some(24);
    for workers in [1, 4] {
        options.common.workers = workers;
        let report = convert(&src, &dir.path().join(format!("w{workers}")), &options).unwrap();
        assert!(report.split.shards > 4, "{report:?}");
        assert_eq!((report.split.items, report.split.samples), (48, 48));
    }
    assert_same(
        &snapshot(&dir.path().join("w1")),
        &snapshot(&dir.path().join("w4")),
    );
}

#[test]
fn the_coding_is_chosen_alike_by_any_number_of_workers_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 2, 12);
    let mut options = small_shards();
    options.short_side = Some(24);
    options.min_psnr = Some(36.0);
    for workers in [1, 4] {
        options.common.workers = workers;
        convert(&src, &dir.path().join(format!("w{workers}")), &options).unwrap();
    }
    assert_same(
        &snapshot(&dir.path().join("w1")),
        &snapshot(&dir.path().join("w4")),
    );
    let store = Store::open(dir.path().join("w1").to_str().unwrap()).unwrap();
    let recorded = &Manifest::read(&store).unwrap().options["train"];
    assert_eq!(recorded["min_psnr"], 36.0);
    assert_eq!(recorded.get("quality"), None);
    options.min_psnr = Some(44.0);
    convert(&src, &dir.path().join("finer"), &options).unwrap();
    let bytes = |name: &str| {
        let set = ShardSet::open(dir.path().join(name).to_str().unwrap(), "train").unwrap();
        let sizes = (0..set.n_samples()).map(|index| set.picture(index, 0).unwrap().len());
        sizes.sum::<usize>()
    };
    assert!(bytes("finer") > bytes("w1"));
}

#[test]
fn folder_and_tars_make_the_same_shards() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 3, 5);
    let mut flat = Vec::new();
    let mut class_tars = Vec::new();
    for class in ["c0", "c1", "c2"] {
        let mut files: Vec<_> = std::fs::read_dir(src.join(class))
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        files.sort();
        files.reverse();
        let members: Vec<(String, Vec<u8>)> = files
            .iter()
            .map(|f| {
                (
                    f.file_name().unwrap().to_str().unwrap().to_owned(),
                    std::fs::read(f).unwrap(),
                )
            })
            .collect();
        let borrowed: Vec<(&str, &[u8])> = members
            .iter()
            .map(|(n, b)| (n.as_str(), b.as_slice()))
            .collect();
        class_tars.push((format!("{class}.tar"), tar_of(&borrowed)));
        flat.extend(
            members
                .into_iter()
                .map(|(name, bytes)| (format!("train/{class}/{name}"), bytes)),
        );
    }
    let borrow = |files: &[(String, Vec<u8>)]| {
        tar_of(
            &files
                .iter()
                .map(|(n, b)| (n.as_str(), b.as_slice()))
                .collect::<Vec<(&str, &[u8])>>(),
        )
    };
    std::fs::write(dir.path().join("flat.tar"), borrow(&flat)).unwrap();
    std::fs::write(dir.path().join("tars.tar"), borrow(&class_tars)).unwrap();
    convert(&src, &dir.path().join("from_folder"), &small_shards()).unwrap();
    for form in ["flat", "tars"] {
        let dst = dir.path().join(format!("from_{form}"));
        convert(
            &dir.path().join(format!("{form}.tar")),
            &dst,
            &small_shards(),
        )
        .unwrap();
        assert_same(&snapshot(&dir.path().join("from_folder")), &snapshot(&dst));
    }
}

#[test]
fn rows_are_mixed_by_default_and_sorted_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 3, 6);
    let keys = |dst: &std::path::Path| -> Vec<String> {
        let set = ShardSet::open(dst.to_str().unwrap(), "train").unwrap();
        (0..set.n_samples())
            .map(|i| set.sample(i).unwrap().key)
            .collect()
    };
    let (mixed, sorted) = (dir.path().join("mixed"), dir.path().join("sorted"));
    let mut options = small_shards();
    convert(&src, &mixed, &options).unwrap();
    options.common.shuffle_seed = None;
    convert(&src, &sorted, &options).unwrap();
    let (mut mixed, sorted) = (keys(&mixed), keys(&sorted));
    assert!(sorted.is_sorted() && !mixed.is_sorted());
    assert!(
        mixed[..6].iter().any(|key| key.starts_with("c2")),
        "{mixed:?}"
    );
    mixed.sort();
    assert_eq!(mixed, sorted);
}

#[test]
fn kept_bytes_are_the_files_and_only_large_pictures_are_coded_anew() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("src");
    std::fs::create_dir(&src).unwrap();
    let large = encode_rgb8(&picture(1, 64, 48), 95).unwrap();
    let small = encode_rgb8(&picture(2, 20, 90), 95).unwrap();
    std::fs::write(src.join("large.JPEG"), &large).unwrap();
    std::fs::write(src.join("small.jpg"), &small).unwrap();
    let mut options = ImagenetOptions::default();
    options.common.shuffle_seed = None;
    convert(&src, &dir.path().join("kept"), &options).unwrap();
    options.short_side = Some(24);
    convert(&src, &dir.path().join("reduced"), &options).unwrap();
    let read = |name: &str, i| {
        let set = ShardSet::open(dir.path().join(name).to_str().unwrap(), "train").unwrap();
        assert_eq!(set.sample(i).unwrap().label, None);
        set.picture(i, 0).unwrap().to_vec()
    };
    assert_eq!((read("kept", 0), read("kept", 1)), (large, small.clone()));
    assert_eq!(read("reduced", 1), small);
    let reduced = decode_rgb8(&read("reduced", 0)).unwrap();
    assert_eq!((reduced.width, reduced.height), (32, 24));
}

#[test]
fn broken_pictures_are_named_and_leave_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 2, 5);
    let whole = std::fs::read(src.join("c1/i003.JPEG")).unwrap();
    std::fs::write(src.join("c1/i003.JPEG"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(src.join("c0/i001.JPEG"), b"").unwrap();
    std::fs::write(src.join("c0/z.jpg"), b"hello").unwrap();
    std::fs::write(src.join("c0/notes.txt"), b"hello").unwrap();
    let dst = dir.path().join("dst");
    let mut options = small_shards();
    options.common.max_bad = MaxBad::Count(3);
    let report = convert(&src, &dst, &options).unwrap();
    let named: Vec<(&str, &str)> = report
        .split
        .skipped
        .iter()
        .map(|s| (s.key.as_str(), s.fault.as_str()))
        .collect();
    assert_eq!(
        named,
        [
            ("c0/i001", "empty"),
            ("c0/z", "unknown format"),
            ("c1/i003", "truncated")
        ]
    );
    assert!(report.split.skipped[1].reason.contains("hello"));
    let note = "ignored 1 files that are not named like pictures, first: c0/notes.txt";
    assert_eq!(report.split.notes, [note]);
    assert_eq!(
        (report.split.items, report.split.samples, report.split.rows),
        (11, 8, 8)
    );
    let manifest = Manifest::read(&Store::open(dst.to_str().unwrap()).unwrap()).unwrap();
    assert_eq!(manifest.skipped.count, 3);
    assert_eq!(manifest.skipped.by_reason["empty"], 1);
    assert_eq!(manifest.splits["train"].samples(), 8);

    options.check = Check::Header;
    let report = convert(&src, &dir.path().join("header"), &options).unwrap();
    assert_eq!(
        report.split.skipped.len(),
        2,
        "a header does not show that the end lacks"
    );
}

#[test]
fn too_many_broken_pictures_end_the_run_and_allowing_more_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 2, 10);
    for i in [2, 5, 8] {
        std::fs::write(src.join(format!("c1/i{i:03}.JPEG")), b"nothing").unwrap();
    }
    let dst = dir.path().join("dst");
    let mut options = small_shards();
    options.common.max_bad = "10%".parse().unwrap();
    let message = convert(&src, &dst, &options).unwrap_err().to_string();
    assert!(
        message.contains("3 of 20") && message.contains("10%") && message.contains("c1/i00"),
        "{message}"
    );
    assert!(!dst.join("manifest.json").exists());
    options.common.max_bad = "15%".parse().unwrap();
    assert_eq!(
        convert(&src, &dst, &options).unwrap().split.skipped.len(),
        3
    );
}

#[test]
fn a_source_of_broken_pictures_alone_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 1, 2);
    for i in 0..2 {
        std::fs::write(src.join(format!("c0/i{i:03}.JPEG")), b"nothing").unwrap();
    }
    let mut options = small_shards();
    options.common.max_bad = "100%".parse().unwrap();
    let error = convert(&src, &dir.path().join("dst"), &options).unwrap_err();
    assert!(
        matches!(&error, Error::NothingLeft { of: 2, .. }),
        "{error}"
    );
}

#[test]
fn failing_disks_are_errors_with_their_path() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 1, 3);
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    let message = convert(&src, &dir.path().join("file/dst"), &small_shards())
        .unwrap_err()
        .to_string();
    assert!(message.contains("file/dst"), "{message}");

    let gone = src.join("c0/i001.JPEG");
    let vanish = Hook(|event: &ProgressEvent| {
        if let ProgressEvent::Planned { .. } = event {
            std::fs::remove_file(&gone).unwrap();
        }
    });
    let dst = dir.path().join("dst");
    let error = imagenet(
        &src,
        dst.to_str().unwrap(),
        &small_shards(),
        &vanish,
        &Stop::new(),
    )
    .unwrap_err();
    assert!(
        matches!(&error, Error::Read { path, .. } if *path == gone),
        "{error}"
    );

    let inside = convert(&src, &src.join("dst"), &small_shards())
        .unwrap_err()
        .to_string();
    assert!(inside.contains("outside of the source"), "{inside}");
}

#[test]
fn progress_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 2, 6);
    let sums = std::cell::RefCell::new((0, 0, 0, 0, 0));
    let hook = Hook(|event: &ProgressEvent| {
        let mut sums = sums.borrow_mut();
        match event {
            ProgressEvent::Planned { items, bytes, .. } => (sums.0, sums.1) = (*items, *bytes),
            ProgressEvent::Item { bytes, pictures } => {
                sums.2 += bytes;
                sums.3 += pictures;
            }
            ProgressEvent::Shard { .. } => sums.4 += 1,
            _ => {}
        }
    });
    let dst = dir.path().join("dst");
    let report = imagenet(
        &src,
        dst.to_str().unwrap(),
        &small_shards(),
        &hook,
        &Stop::new(),
    )
    .unwrap();
    let split = report.split;
    assert_eq!(
        sums.into_inner(),
        (12, split.source_bytes, split.source_bytes, 12, split.shards)
    );
    assert_eq!(report.items_converted, 12);
}
