//! Parts, splits, and runs that do not go together.

use super::support::*;
use crate::convert::*;
use crate::stop::Stop;

#[test]
fn parts_and_finish_equal_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 4, 10);
    std::fs::write(src.join("c1/i003.JPEG"), b"nothing").unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let mut options = small_shards();
    options.short_side = Some(24);
    options.common.max_bad = MaxBad::Count(1);
    convert(&src, &whole, &options).unwrap();
    let mut n_items = 0;
    for part in ["2/2", "1/2"] {
        if n_items > 0 {
            let error = finish(parts.to_str().unwrap()).unwrap_err();
            assert!(
                matches!(&error, Error::Unfinished { first, .. } if first.starts_with("train-00000-of-")),
                "{error}"
            );
        }
        options.common.part = Some(part.parse().unwrap());
        let report = convert(&src, &parts, &options).unwrap();
        assert!(!report.is_finished && report.split.items > 0);
        n_items += report.split.items;
        assert!(!parts.join("manifest.json").exists());
    }
    assert_eq!(n_items, 40);
    let reports = finish(parts.to_str().unwrap()).unwrap();
    assert_eq!(reports[0].skipped[0].key, "c1/i003");
    assert_same(&snapshot(&whole), &snapshot(&parts));
}

#[test]
fn more_parts_than_shards_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 1, 2);
    let dst = dir.path().join("dst");
    for part in ["1/3", "2/3", "3/3"] {
        let mut options = ImagenetOptions::default();
        options.common.part = Some(part.parse().unwrap());
        convert(&src, &dst, &options).unwrap();
    }
    assert_eq!(finish(dst.to_str().unwrap()).unwrap()[0].samples, 2);
}

#[test]
fn two_splits_in_one_set() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 3, 4);
    let dst = dir.path().join("dst");
    convert(&src, &dst, &small_shards()).unwrap();
    let train_alone = set_of(&dst);
    let mut options = small_shards();
    options.common.split = "val".into();
    convert(&src, &dst, &options).unwrap();
    let both = set_of(&dst);
    for (name, bytes) in train_alone
        .iter()
        .filter(|(name, _)| name.ends_with(".parquet"))
    {
        assert!(
            both[name] == *bytes,
            "{name} of the other split was touched"
        );
    }
    let manifest: serde_json::Value = serde_json::from_slice(&both["manifest.json"]).unwrap();
    assert!(
        manifest["splits"]["train"]["shards"].is_array()
            && manifest["splits"]["val"]["shards"].is_array()
    );
    assert_eq!(manifest["options"]["val"]["check"], "full");

    // The other way round it is the same set.
    let other = dir.path().join("other");
    convert(&src, &other, &options).unwrap();
    convert(&src, &other, &small_shards()).unwrap();
    assert_same(&snapshot(&dst), &snapshot(&other));
}

#[test]
fn splits_with_other_classes_or_of_another_kind_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 3, 4);
    let dst = dir.path().join("dst");
    convert(&src, &dst, &small_shards()).unwrap();
    std::fs::rename(src.join("c1"), src.join("renamed")).unwrap();
    let mut options = small_shards();
    options.common.split = "val".into();
    let message = convert(&src, &dst, &options).unwrap_err().to_string();
    assert!(
        message.contains("class 1 is 'c1'") && message.contains("'c2'"),
        "{message}"
    );
    std::fs::write(src.join("c0/clip.mp4"), b"").unwrap();
    let clips = KineticsOptions {
        common: options.common.clone(),
        ..Default::default()
    };
    let message = convert_clips(&src, &dst, &clips).unwrap_err().to_string();
    assert!(
        message.contains("clips need a destination of their own"),
        "{message}"
    );

    let loose = dir.path().join("loose");
    std::fs::create_dir(&loose).unwrap();
    std::fs::write(loose.join("a.jpg"), jpeg(1)).unwrap();
    convert(&loose, &dst, &options).unwrap();
}

#[test]
fn other_options_and_another_source_are_refused_with_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 2, 4);
    let dst = dir.path().join("dst");
    convert(&src, &dst, &small_shards()).unwrap();
    let before = snapshot(&dst);
    let mut options = small_shards();
    options.short_side = Some(20);
    let message = convert(&src, &dst, &options).unwrap_err().to_string();
    assert!(
        message.contains("short_side was null and is 20") && message.contains("start over"),
        "{message}"
    );
    std::fs::write(src.join("c0/new.JPEG"), jpeg(99)).unwrap();
    let message = convert(&src, &dst, &small_shards())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("was 8 items") && message.contains("is 9 items"),
        "{message}"
    );
    assert_same(&before, &snapshot(&dst));
}

#[test]
fn a_foreign_set_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 1, 2);
    let dst = dir.path().join("dst");
    convert(&src, &dst, &small_shards()).unwrap();
    std::fs::remove_dir_all(dst.join(".pairquet")).unwrap();
    assert!(matches!(
        convert(&src, &dst, &small_shards()),
        Err(Error::SplitExists { .. })
    ));
    assert!(matches!(
        finish(dst.to_str().unwrap()),
        Err(Error::NoPlan { .. })
    ));
}

#[test]
fn two_at_once_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 2, 8);
    let dst = dir.path().join("dst");
    let with = |split: &str, part: Option<&str>| {
        let mut options = small_shards();
        options.common.split = split.into();
        options.common.part = part.map(|part| part.parse().unwrap());
        options
    };
    // While one runs, at its first item, another is started.
    let beside = |first: &ImagenetOptions, second: &ImagenetOptions| {
        let outcome = std::cell::OnceCell::new();
        let hook = Hook(|event: &ProgressEvent| {
            if let ProgressEvent::Item { .. } = event {
                outcome.get_or_init(|| convert(&src, &dst, second));
            }
        });
        imagenet(&src, dst.to_str().unwrap(), first, &hook, &Stop::new()).unwrap();
        outcome.into_inner().unwrap()
    };
    let busy = |outcome: Result<ConvertReport>| {
        let message = outcome.unwrap_err().to_string();
        assert!(
            message.contains("another pairquet is converting into"),
            "{message}"
        );
    };
    let (one, two, whole) = (
        with("train", Some("1/2")),
        with("train", Some("2/2")),
        with("train", None),
    );
    busy(beside(&one, &one));
    std::fs::remove_dir_all(&dst).unwrap();
    busy(beside(&two, &whole));
    beside(&one, &two).unwrap();
    finish(dst.to_str().unwrap()).unwrap();
    busy(beside(&with("val", None), &with("val", Some("1/2"))));
    std::fs::remove_dir_all(&dst).unwrap();
    beside(&with("val", None), &whole).unwrap();
    assert!(set_of(&dst).keys().any(|name| name.starts_with("val-")));
    let reports = finish(dst.to_str().unwrap()).unwrap();
    assert_eq!(reports.len(), 2);
}

#[test]
fn another_ffmpeg_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("src");
    std::fs::create_dir(&src).unwrap();
    let frames = [picture(1, 32, 32)];
    crate::codec::video::write_video(&src.join("a.mp4"), 10, &frames).unwrap();
    let dst = dir.path().join("dst");
    let mut options = KineticsOptions::default();
    options.common.part = Some("1/2".parse().unwrap());
    convert_clips(&src, &dst, &options).unwrap();
    let plan = dst.join(".pairquet/plan-train.json");
    let text = std::fs::read_to_string(&plan).unwrap();
    let here = crate::codec::video::library_versions();
    assert!(text.contains(&here), "{text}");
    std::fs::write(&plan, text.replace(&here, "libavcodec 1.2.3")).unwrap();
    options.common.part = Some("2/2".parse().unwrap());
    let message = convert_clips(&src, &dst, &options).unwrap_err().to_string();
    assert!(
        message.contains("decoded by libavcodec 1.2.3") && message.contains(&here),
        "{message}"
    );
}
