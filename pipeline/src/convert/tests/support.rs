//! Sources made on the spot, and what a destination holds.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::codec::{Rgb8Image, encode_rgb8};
use crate::convert::*;
use crate::stop::Stop;

/// A picture of its own for each number.
pub(super) fn picture(number: u32, width: u32, height: u32) -> Rgb8Image {
    let mut image = Rgb8Image::new(width, height);
    for (i, value) in image.data.iter_mut().enumerate() {
        let (x, y) = (i as u32 / 3 % width, i as u32 / 3 / width);
        *value =
            (x * (number % 7 + 1) + y * (number % 5 + 1) + number * 13 + i as u32 % 3 * 60) as u8;
    }
    image
}

pub(super) fn jpeg(number: u32) -> Vec<u8> {
    encode_rgb8(&picture(number, 40 + number % 9, 30), 90).unwrap()
}

/// Class folders `c0`, `c1`, ... with `per_class` pictures each.
pub(super) fn class_folders(dir: &Path, n_classes: u32, per_class: u32) -> PathBuf {
    let src = dir.join("src");
    for class in 0..n_classes {
        let folder = src.join(format!("c{class}"));
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..per_class {
            std::fs::write(
                folder.join(format!("i{i:03}.JPEG")),
                jpeg(class * per_class + i),
            )
            .unwrap();
        }
    }
    src
}

/// Options that make many small shards of a small source.
pub(super) fn small_shards() -> ImagenetOptions {
    let common = CommonOptions {
        shard_bytes: 6000,
        row_group_bytes: 2500,
        workers: 2,
        ..Default::default()
    };
    ImagenetOptions {
        common,
        ..Default::default()
    }
}

/// [`imagenet`] without progress and stop.
pub(super) fn convert(src: &Path, dst: &Path, options: &ImagenetOptions) -> Result<ConvertReport> {
    imagenet(src, dst.to_str().unwrap(), options, &(), &Stop::new())
}

/// [`kinetics`] without progress and stop.
pub(super) fn convert_clips(
    src: &Path,
    dst: &Path,
    options: &KineticsOptions,
) -> Result<ConvertReport> {
    kinetics(src, dst.to_str().unwrap(), options, &(), &Stop::new())
}

/// Every file of a destination, hidden ones included, but for locks: which there are says how it was made.
pub(super) fn snapshot(dst: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = walkdir::WalkDir::new(dst)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|e| e.file_type().is_file());
    let name = |path: &Path| path.strip_prefix(dst).unwrap().to_str().unwrap().to_owned();
    files
        .filter(|file| !name(file.path()).starts_with(".pairquet/lock-"))
        .map(|file| (name(file.path()), std::fs::read(file.path()).unwrap()))
        .collect()
}

/// The shards and the manifest alone.
pub(super) fn set_of(dst: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = snapshot(dst);
    files.retain(|name, _| !name.starts_with(".pairquet/"));
    files
}

/// Compares snapshots without printing their bytes.
pub(super) fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        assert!(bytes == &b[name], "{name} differs");
    }
}

/// Asks to stop after so many items of a run.
pub(super) struct StopAfter {
    pub items: Cell<u64>,
    pub stop: Stop,
}

impl Progress for StopAfter {
    fn on(&self, event: &ProgressEvent) {
        if let ProgressEvent::Item { .. } = event {
            self.items.set(self.items.get().saturating_sub(1));
            if self.items.get() == 0 {
                self.stop.request();
            }
        }
    }
}

/// Calls a function at each event.
pub(super) struct Hook<F: Fn(&ProgressEvent)>(pub F);

impl<F: Fn(&ProgressEvent)> Progress for Hook<F> {
    fn on(&self, event: &ProgressEvent) {
        self.0(event);
    }
}

/// Folder of the shared data, or a message that the test is skipped.
pub(super) fn shared_data(name: &str) -> Option<PathBuf> {
    let shared = std::env::var("PAIRQUET_SHARED_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").to_owned());
    let path = Path::new(&shared).join("data").join(name);
    if !path.exists() {
        eprintln!("SKIPPED: no {}", path.display());
        return None;
    }
    Some(path)
}
