//! Class folders: which part of a tree is meant, and which class each file is of.

use std::collections::HashMap;
use std::sync::Arc;

use super::classes::Classes;
use super::error::{Error, Result};
use super::source::{Ignored, Item, Listing, split_extension};
use super::tree::{Entry, Tree};

/// Makes a listing from a tree of class folders, or of loose files without classes.
///
/// * The class of `n01440764/deeper/x.JPEG` is its first folder; its key is the path without its ending.
/// * Folders above the class folders are taken off: those that all files share (`ILSVRC/train/n01440764/x.JPEG`),
///   and, where a folder is named like the split (`train` beside `val`), that one, and the others are left out.
/// * Files beside class folders are left out; where there are no folders at all, all files are items without label.
///
/// `wanted` tells by a path whether a file is to be looked at; `unwanted` completes "ignored 3 ..." for the others.
pub(crate) fn class_folders(
    mut tree: Tree,
    split: &str,
    classes: Option<Classes>,
    wanted: fn(&str) -> bool,
    unwanted: &'static str,
) -> Result<Listing> {
    let ignored = &mut tree.ignored;
    let mut entries = tree.entries;
    entries.retain(|entry| {
        let keep = wanted(&entry.path);
        if !keep {
            ignored.add(unwanted, &entry.path);
        }
        keep
    });
    let skip_bytes = strip_top(&mut entries, split, ignored);
    let has_folders = entries
        .iter()
        .any(|entry| entry.path[skip_bytes..].contains('/'));
    if has_folders {
        entries.retain(|entry| {
            let keep = entry.path[skip_bytes..].contains('/');
            if !keep {
                ignored.add("files beside the class folders", &entry.path);
            }
            keep
        });
    }
    if entries.is_empty() {
        let expected = format!(
            "expected class folders or files directly inside{}",
            found(tree.ignored)
        );
        return Err(Error::NothingFound {
            path: tree.root,
            expected,
        });
    }
    fn class_of(path: &str) -> Option<&str> {
        path.split_once('/').map(|(class, _)| class)
    }
    let classes = match classes {
        Some(classes) => classes,
        None => Classes::found(
            entries
                .iter()
                .filter_map(|entry| class_of(&entry.path[skip_bytes..])),
        )?,
    };
    let top = entries
        .first()
        .map_or("", |entry| &entry.path[..skip_bytes]);
    let root = tree.root.join(top);
    let mut extensions: HashMap<String, Arc<str>> = HashMap::new();
    let item = |entry: Entry| -> Result<Item> {
        let mut path = entry.path;
        path.drain(..skip_bytes);
        let label = class_of(&path)
            .map(|class| classes.label(class))
            .transpose()?;
        let (key, extension) = split_extension(&path);
        let extension = match extensions.get(extension) {
            Some(known) => Arc::clone(known),
            None => {
                let shared: Arc<str> = extension.into();
                extensions.insert(extension.to_owned(), Arc::clone(&shared));
                shared
            }
        };
        path.truncate(key.len());
        Ok(Item {
            // Key and path share their memory: there may be millions.
            key: path.into(),
            extension,
            label,
            place: entry.place,
            bytes: entry.bytes,
        })
    };
    let items = entries
        .into_iter()
        .map(item)
        .collect::<Result<Vec<Item>>>()?;
    Listing::new(
        root,
        tree.archives,
        items,
        classes.into_names(),
        tree.ignored.into_notes(),
    )
}

fn found(ignored: Ignored) -> String {
    let notes = ignored.into_notes();
    if notes.is_empty() {
        String::new()
    } else {
        format!(" ({})", notes.join("; "))
    }
}

/// Names that a folder of a whole split has; a class could have one too, but not all classes.
fn is_split_name(name: &str) -> bool {
    [
        "train",
        "training",
        "val",
        "valid",
        "validate",
        "validation",
        "test",
        "testing",
    ]
    .contains(&name)
}

/// Finds the folders above the class folders; returns how many bytes of each path they take.
fn strip_top(entries: &mut Vec<Entry>, split: &str, ignored: &mut Ignored) -> usize {
    let mut skip_bytes = 0;
    loop {
        // A top folder, with its slash, of a path that has two folders at least: one to take off and a class.
        let top = |entry: &Entry| {
            let path = &entry.path[skip_bytes..];
            let (folder, rest) = path.split_once('/')?;
            rest.contains('/').then_some(folder.len() + 1)
        };
        let folder = |entry: &Entry| {
            entry.path[skip_bytes..]
                .find('/')
                .map(|end| skip_bytes..skip_bytes + end)
        };
        let are_splits = entries
            .iter()
            .filter_map(|entry| Some(&entry.path[folder(entry)?]))
            .all(is_split_name);
        let is_split = |entry: &Entry| {
            let is_named = folder(entry).is_some_and(|folder| entry.path[folder] == *split);
            is_named && (are_splits || top(entry).is_some())
        };
        let Some(first) = entries.first() else {
            return skip_bytes;
        };
        if entries.iter().any(is_split) {
            let keep: Vec<bool> = entries.iter().map(is_split).collect();
            let mut keep = keep.into_iter();
            entries.retain(|entry| {
                let keep = keep.next().unwrap_or(false);
                if !keep {
                    ignored.add("files outside the folder of the split", &entry.path);
                }
                keep
            });
            return skip_bytes + split.len() + 1;
        }
        let Some(bytes) = top(first) else {
            return skip_bytes;
        };
        let shared = first.path[skip_bytes..][..bytes].to_owned();
        let all_share =
            |entry: &Entry| entry.path[skip_bytes..].starts_with(&shared) && top(entry).is_some();
        if !entries.iter().all(all_share) {
            return skip_bytes;
        }
        skip_bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::convert::source::Place;

    fn list(split: &str, paths: &[&str]) -> Result<Listing> {
        let entry = |path: &&str| Entry {
            path: (*path).into(),
            place: Place::Named,
            bytes: 1,
        };
        let entries = paths.iter().map(entry).collect();
        let tree = Tree {
            root: PathBuf::from("src"),
            entries,
            archives: vec![],
            ignored: Ignored::default(),
        };
        class_folders(tree, split, None, |path| !path.ends_with(".txt"), "texts")
    }

    fn keys(listing: &Listing) -> Vec<(&str, Option<i32>)> {
        listing
            .items
            .iter()
            .map(|item| (&*item.key, item.label))
            .collect()
    }

    #[test]
    fn classes_are_the_first_folders_sorted() {
        let listing = list(
            "train",
            &["n2/b.JPEG", "n2/deep/er/a.JPEG", "n1/x.JPEG", "README.txt"],
        )
        .unwrap();
        assert_eq!(
            keys(&listing),
            [
                ("n1/x", Some(0)),
                ("n2/b", Some(1)),
                ("n2/deep/er/a", Some(1))
            ]
        );
        assert_eq!(
            listing
                .classes
                .iter()
                .map(|c| c.id.as_str())
                .collect::<Vec<_>>(),
            ["n1", "n2"]
        );
        assert_eq!(listing.notes, ["ignored 1 texts, first: README.txt"]);
    }

    #[test]
    fn folders_above_the_classes_are_taken_off() {
        for top in ["train/", "ILSVRC/Data/train/", "other/"] {
            let paths = [format!("{top}n1/x.JPEG"), format!("{top}n2/y.JPEG")];
            let listing = list("train", &[&paths[0], &paths[1]]).unwrap();
            assert_eq!(
                keys(&listing),
                [("n1/x", Some(0)), ("n2/y", Some(1))],
                "{top}"
            );
        }
        let beside = [
            "train/n1/x.JPEG",
            "train/n2/y.JPEG",
            "val/n1/z.JPEG",
            "loose.JPEG",
        ];
        let train = list("train", &beside).unwrap();
        assert_eq!(keys(&train), [("n1/x", Some(0)), ("n2/y", Some(1))]);
        assert_eq!(
            train.notes,
            ["ignored 2 files outside the folder of the split, first: loose.JPEG"]
        );
        assert_eq!(keys(&list("val", &beside).unwrap()), [("n1/z", Some(0))]);
    }

    #[test]
    fn a_split_of_loose_files_beside_one_of_class_folders() {
        let paths = [
            "d/train/n1/x.JPEG",
            "d/train/n2/y.JPEG",
            "d/val/v_1.JPEG",
            "d/test/t_1.JPEG",
        ];
        assert_eq!(
            keys(&list("train", &paths).unwrap()),
            [("n1/x", Some(0)), ("n2/y", Some(1))]
        );
        assert_eq!(keys(&list("val", &paths).unwrap()), [("v_1", None)]);
        let class_of_that_name = ["train/x.JPEG", "bicycle/y.JPEG"];
        assert_eq!(
            keys(&list("train", &class_of_that_name).unwrap()),
            [("bicycle/y", Some(0)), ("train/x", Some(1))]
        );
    }

    #[test]
    fn a_single_class_folder_stays_a_class() {
        assert_eq!(
            keys(&list("train", &["n1/x.JPEG", "n1/y.JPEG"]).unwrap()),
            [("n1/x", Some(0)), ("n1/y", Some(0))]
        );
    }

    #[test]
    fn loose_files_have_no_class() {
        let listing = list("val", &["v_2.JPEG", "v_1.JPEG"]).unwrap();
        assert_eq!(keys(&listing), [("v_1", None), ("v_2", None)]);
        assert!(listing.classes.is_empty());
        let mixed = list("val", &["v_2.JPEG", "a/v_1.JPEG"]).unwrap();
        assert_eq!(keys(&mixed), [("a/v_1", Some(0))]);
        assert_eq!(
            mixed.notes,
            ["ignored 1 files beside the class folders, first: v_2.JPEG"]
        );
    }

    #[test]
    fn nothing_to_do_says_what_was_there() {
        let message = list("train", &["a.txt"]).unwrap_err().to_string();
        assert!(
            message.contains("ignored 1 texts") && message.contains("src"),
            "{message}"
        );
    }
}
