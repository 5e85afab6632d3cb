//! Small files that ask for more than any machine has are refused, with the limit in the message.

// The helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use fuzz::{bombs, check, target};
use pipeline::codec::{VideoReader, decode_rgb8, probe};
use pipeline::convert::{ImagenetOptions, survey};
use shards::{ForeignSet, Store};
use trainer::eval::mat;
use trainer::exchange::{ImportOptions, import};

fn written(dir: &tempfile::TempDir, (name, bytes): &bombs::File) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// One test: memory is counted for the whole process.
#[test]
fn bombs_are_refused_by_name_of_the_limit_and_in_little_memory() {
    let refused = |what: &str, message: String, words: &[&str]| {
        for word in words {
            assert!(message.contains(word), "{what}: no {word:?} in {message}");
        }
    };
    for (name, bytes) in bombs::pictures() {
        assert!(bytes.len() < 300 << 10, "{name} of {} bytes", bytes.len());
        let limit = ["limit"];
        refused(name, decode_rgb8(&bytes).unwrap_err().to_string(), &limit);
        refused(name, probe(&bytes).unwrap_err().to_string(), &limit);
        let of = if name.ends_with("jpg") {
            "jpeg"
        } else {
            "still"
        };
        check(target(of).unwrap(), &bytes).unwrap();
    }

    let dir = tempfile::tempdir().unwrap();
    for (files, words) in [
        (bombs::parquet(), "rows, expected at most"),
        (bombs::schemas(), "unreadable footer: a "),
    ] {
        for file in files {
            written(&dir, &file);
            let store = Store::open(dir.path().to_str().unwrap()).unwrap();
            let error = ForeignSet::open_file(store, file.0, "train").unwrap_err();
            refused(file.0, error.to_string(), &[words, "expected at most"]);
            check(target("foreign").unwrap(), &file.1).unwrap();
        }
    }
    for file in bombs::pth() {
        let error = import(&written(&dir, &file), &ImportOptions::default()).unwrap_err();
        refused(
            file.0,
            error.to_string(),
            &["expanded", "more than 4 times"],
        );
        check(target("pth").unwrap(), &file.1).unwrap();
    }
    for (name, bytes) in bombs::mat() {
        let error = mat::read(&bytes, "pos_img").unwrap_err();
        refused(name, error, &["more than 8388608 bytes"]);
        check(target("mat").unwrap(), &bytes).unwrap();
    }
    for file in bombs::tars() {
        let found = survey(&written(&dir, &file), &ImagenetOptions::default()).unwrap();
        assert_eq!((found.n_items(), found.name(0)), (1, Some("a/good")));
        let notes = found.notes().join("\n");
        refused(
            file.0,
            notes,
            &[
                "2 links",
                "1 special",
                "2 members of an archive whose name leads out",
            ],
        );
    }
    // What the header claims is not believed: five frames, or an error.
    for file in bombs::videos() {
        let frames = VideoReader::open(&written(&dir, &file)).map(|reader| reader.count());
        assert!(
            frames.as_ref().is_ok_and(|&n| n <= 6) || frames.is_err(),
            "{frames:?}"
        );
    }
}
