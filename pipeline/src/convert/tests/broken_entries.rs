//! Sources of which something cannot be read, and sets that are there already.

use std::cell::RefCell;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::support::*;
use crate::convert::tar_index::tests::tar_of;
use crate::convert::*;
use crate::stop::Stop;

/// Key and fault of what was left out.
fn named(report: &SplitReport) -> Vec<(&str, &str)> {
    let skipped = report.skipped.iter();
    skipped
        .map(|s| (s.key.as_str(), s.fault.as_str()))
        .collect()
}

/// Two class folders of ten pictures, a cut class tar, links that lead nowhere, and a second file of a picture.
fn source(dir: &Path) -> PathBuf {
    let src = class_folders(dir, 2, 10);
    symlink("nowhere.JPEG", src.join("c0/gone.JPEG")).unwrap();
    symlink(&src, src.join("c1/up")).unwrap();
    std::fs::copy(src.join("c1/i003.JPEG"), src.join("c1/i003.jpg")).unwrap();
    let (x, y) = (jpeg(50), jpeg(51));
    let whole = tar_of(&[("x.JPEG", &x), ("y.JPEG", &y)]);
    std::fs::write(src.join("c2.tar"), &whole[..whole.len() - 2048]).unwrap();
    src
}

#[test]
fn broken_entries_are_skipped_and_named_however_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let src = source(dir.path());
    let mut options = small_shards();
    options.common.max_bad = MaxBad::Count(4);
    let mut sets = Vec::new();
    for workers in [1, 4] {
        let dst = dir.path().join(format!("w{workers}"));
        options.common.workers = workers;
        let report = convert(&src, &dst, &options).unwrap();
        assert_eq!(
            named(&report.split),
            [
                ("c0/gone", "broken link"),
                ("c1/i003.jpg", "same key"),
                ("c1/up", "broken link"),
                ("c2.tar", "damaged archive")
            ]
        );
        let reason = &report.split.skipped[1].reason;
        assert!(reason.contains("c1/i003.JPEG"), "{reason}");
        let reason = &report.split.skipped[3].reason;
        assert!(
            reason.contains("cut short at byte") && reason.contains("the 1 files before"),
            "{reason}"
        );
        assert_eq!((report.split.items, report.split.samples), (25, 21));
        sets.push(snapshot(&dst));
    }
    let parts = dir.path().join("parts");
    for part in ["2/2", "1/2"] {
        options.common.part = Some(part.parse().unwrap());
        convert(&src, &parts, &options).unwrap();
    }
    finish(parts.to_str().unwrap()).unwrap();
    assert_same(&sets[0], &sets[1]);
    assert_same(&sets[0], &snapshot(&parts));

    options.common.part = None;
    options.common.max_bad = MaxBad::Count(3);
    let error = convert(&src, &dir.path().join("few"), &options).unwrap_err();
    assert!(matches!(error, Error::TooManyBad { bad: 4, .. }), "{error}");
}

#[test]
fn a_picture_without_permission_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 1, 3);
    let closed = src.join("c0/i001.JPEG");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read(&closed).is_ok() {
        eprintln!("SKIPPED: this user may read everything");
        return;
    }
    let mut options = small_shards();
    options.common.max_bad = MaxBad::Count(1);
    let report = convert(&src, &dir.path().join("dst"), &options).unwrap();
    assert_eq!(named(&report.split), [("c0/i001", "unreadable")]);
    let reason = &report.split.skipped[0].reason;
    assert!(reason.contains("denied"), "{reason}");
}

#[test]
fn still_pictures_are_no_clips() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("src/a");
    std::fs::create_dir_all(&src).unwrap();
    for i in 0..3 {
        std::fs::write(src.join(format!("{i}.mp4")), jpeg(i)).unwrap();
    }
    let mut options = KineticsOptions::default();
    options.common.max_bad = "100%".parse().unwrap();
    let error = convert_clips(&dir.path().join("src"), &dir.path().join("dst"), &options);
    let error = error.unwrap_err();
    assert!(
        matches!(&error, Error::NothingLeft { of: 3, first, .. } if first.contains("still picture (JPEG)")),
        "{error}"
    );
}

#[test]
fn clips_in_a_tar_are_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("kin.tar");
    std::fs::write(&tar, tar_of(&[("a/x.mp4", &[0xff; 700])])).unwrap();
    let error = convert_clips(&tar, &dir.path().join("dst"), &KineticsOptions::default());
    let message = error.unwrap_err().to_string();
    assert!(
        message.contains("kin.tar") && message.contains("unpack"),
        "{message}"
    );
}

#[test]
fn a_complete_set_is_not_written_to_again() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 1, 3);
    let dst = dir.path().join("dst");
    convert(&src, &dst, &small_shards()).unwrap();
    // A file that is written anew is another file, since it is renamed into place.
    let files = || -> Vec<u64> {
        [".pairquet/report-train.json", "manifest.json"]
            .map(|name| std::fs::metadata(dst.join(name)).unwrap().ino())
            .into()
    };
    let before = files();
    let said = RefCell::new(Vec::new());
    let listen = Hook(|event: &ProgressEvent| {
        if let ProgressEvent::Message(text) = event {
            said.borrow_mut().push(text.clone());
        }
    });
    let (dst_name, options) = (dst.to_str().unwrap(), small_shards());
    let report = imagenet(&src, dst_name, &options, &listen, &Stop::new()).unwrap();
    assert!(report.is_finished && report.items_converted == 0);
    assert_eq!(files(), before);
    let said = said.into_inner().join("\n");
    assert!(
        said.contains("(not verified; `pairquet verify` does)"),
        "{said}"
    );

    let allow = |mode| {
        for folder in [dst.clone(), dst.join(".pairquet")] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    allow(0o555);
    let again = convert(&src, &dst, &options);
    allow(0o755);
    again.unwrap();
}
