//! ImageNet and what is laid out like it: class folders, tars of class folders, tars of tars, loose files.

use std::path::Path;

use super::classes::Classes;
use super::error::Result;
use super::folder::class_folders;
use super::options::ImagenetOptions;
use super::source::{Listing, split_extension};
use super::tree::{Tars, walk};

/// Endings of files that are taken for pictures; what they really hold is found out from their bytes.
const PICTURE_ENDINGS: [&str; 9] = [
    "jpg", "jpeg", "jpe", "png", "gif", "bmp", "webp", "tif", "tiff",
];

/// Lists the pictures of a source.
pub(crate) fn list(src: &Path, options: &ImagenetOptions) -> Result<Listing> {
    let classes = options
        .common
        .class_names
        .as_deref()
        .map(Classes::read)
        .transpose()?;
    let tree = walk(src, Tars::Index)?;
    class_folders(
        tree,
        &options.common.split,
        classes,
        is_picture_name,
        "files that are not named like pictures",
    )
}

fn is_picture_name(path: &str) -> bool {
    let (_, ending) = split_extension(path);
    PICTURE_ENDINGS
        .iter()
        .any(|known| ending.trim_start_matches('.').eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::convert::source::Item;
    use crate::convert::tar_index::tests::tar_of;

    /// The same four pictures in every form that is read.
    fn forms(dir: &Path) -> Vec<PathBuf> {
        let files = [
            ("n02/b.JPEG", b"bb".as_slice()),
            ("n01/x.JPEG", b"x"),
            ("n01/y.jpeg", b"yyy"),
            ("n03/z.PNG", b"z"),
        ];
        for (path, bytes) in files {
            let path = dir.join("folder").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let tar_of_class = |class: &str| {
            let members: Vec<(&str, &[u8])> = files
                .iter()
                .filter_map(|(path, bytes)| {
                    Some((path.strip_prefix(class)?.strip_prefix('/')?, *bytes))
                })
                .collect();
            tar_of(&members)
        };
        let class_tars: Vec<(String, Vec<u8>)> = ["n01", "n03", "n02"]
            .iter()
            .map(|class| (format!("{class}.tar"), tar_of_class(class)))
            .collect();
        let members: Vec<(&str, &[u8])> = class_tars
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        std::fs::write(dir.join("of_tars.tar"), tar_of(&members)).unwrap();
        std::fs::write(dir.join("flat.tar"), tar_of(&files)).unwrap();
        std::fs::create_dir(dir.join("tars")).unwrap();
        for (name, bytes) in &class_tars {
            std::fs::write(dir.join("tars").join(name), bytes).unwrap();
        }
        std::fs::create_dir(dir.join("one")).unwrap();
        std::fs::copy(
            dir.join("of_tars.tar"),
            dir.join("one/ILSVRC2012_img_train.tar"),
        )
        .unwrap();
        ["folder", "of_tars.tar", "flat.tar", "tars", "one"]
            .iter()
            .map(|name| dir.join(name))
            .collect()
    }

    #[test]
    fn every_form_lists_the_same_items_and_reads_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for form in forms(dir.path()) {
            let listing = list(&form, &ImagenetOptions::default()).unwrap();
            let read = |item: &Item| {
                let bytes = String::from_utf8(listing.read(item).unwrap()).unwrap();
                format!("{}{} {:?} {bytes}", item.key, item.extension, item.label)
            };
            let items: Vec<String> = listing.items.iter().map(read).collect();
            let expected = [
                "n01/x.JPEG Some(0) x",
                "n01/y.jpeg Some(0) yyy",
                "n02/b.JPEG Some(1) bb",
                "n03/z.PNG Some(2) z",
            ];
            assert_eq!(items, expected, "{}", form.display());
        }
    }

    #[test]
    fn more_archives_than_may_stay_open_are_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let n_tars = super::super::source::Archive::MOST_KEPT_OPEN + 1;
        for i in 0..n_tars {
            std::fs::write(
                dir.path().join(format!("c{i:03}.tar")),
                tar_of(&[("x.jpg", format!("{i}").as_bytes())]),
            )
            .unwrap();
        }
        let listing = list(dir.path(), &ImagenetOptions::default()).unwrap();
        assert_eq!(listing.items.len(), n_tars);
        assert_eq!(
            listing.read(&listing.items[n_tars - 1]).unwrap(),
            (n_tars - 1).to_string().as_bytes()
        );
    }

    #[test]
    fn class_names_number_the_classes_even_of_a_sample() {
        let dir = tempfile::tempdir().unwrap();
        let form = forms(dir.path()).remove(0);
        let names = dir.path().join("names.txt");
        std::fs::write(&names, "n00 zero\nn01 one\nn02 two\nn03 three\n").unwrap();
        let mut options = ImagenetOptions::default();
        options.common.class_names = Some(names.clone());
        let listing = list(&form, &options).unwrap();
        assert_eq!(listing.items[0].label, Some(1));
        assert_eq!(listing.classes[3].name, "three");
        std::fs::write(&names, "n01 one\n").unwrap();
        assert!(
            list(&form, &options)
                .unwrap_err()
                .to_string()
                .contains("n02")
        );
    }
}
