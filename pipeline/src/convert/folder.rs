//! Class folders: which part of a tree is meant, and which class each file is of.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use shards::printable;

use super::classes::Classes;
use super::error::{Error, Result};
use super::source::{Archive, Broken, Ignored, Item, Listing, Place, file_name, split_extension};
use super::tree::{BrokenKind, Entry, Tree};

/// Makes a listing from a tree of class folders, or of loose files without classes.
///
/// * The class of `n01440764/deeper/x.JPEG` is its first folder; its key is the path without its ending.
/// * Folders above the class folders are taken off: those that all files share (`ILSVRC/train/n01440764/x.JPEG`),
///   and, where a folder is named like the split (`train` beside `val`), that one, and the others are left out.
/// * Files beside class folders are left out; where there are no folders at all, all files are items without label.
///
/// What is broken is an item too, which is skipped when its turn comes; and where files differ by their ending alone, so
/// that they would have the same key, all but the first by name are.
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
    let (links, broken): (Vec<_>, Vec<_>) = tree
        .broken
        .into_iter()
        .partition(|broken| broken.kind == BrokenKind::Link);
    // Links that lead nowhere may mean anything, so they play no part in what the folders are taken for.
    let mut names: HashMap<String, String> = HashMap::new();
    for broken in broken {
        if broken.kind == BrokenKind::Folder {
            names.insert(broken.path.clone(), broken.name);
        }
        entries.push(Entry {
            path: broken.path,
            place: Place::Broken(Box::new(broken.broken)),
            bytes: 0,
        });
    }
    let is_folder = |entry: &Entry| entry.path.ends_with('/');
    entries.retain(|entry| {
        let keep = is_folder(entry) || wanted(&entry.path);
        if !keep {
            ignored.add(unwanted, &entry.path);
        }
        keep
    });
    let skip_bytes = strip_top(&mut entries, split, ignored);
    let has_folders = entries
        .iter()
        .any(|entry| entry.path[skip_bytes..].contains('/'));
    let top = entries
        .first()
        .map_or(String::new(), |entry| entry.path[..skip_bytes].to_owned());
    if let Some(split) = entries.iter().find(|entry| entry.path.len() == skip_bytes)
        && let Place::Broken(broken) = &split.place
    {
        return Err(Error::Read {
            path: tree.root.join(top),
            source: std::io::Error::other(broken.reason.clone()),
        });
    }
    if has_folders {
        entries.retain(|entry| {
            let keep = entry.path[skip_bytes..].contains('/');
            if !keep {
                ignored.add("files beside the class folders", &entry.path);
            }
            keep
        });
    }
    if entries.is_empty() && links.is_empty() {
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
    let root = tree.root.join(&top);
    let mut extensions: HashMap<String, Arc<str>> = HashMap::new();
    let mut item = |entry: Entry| -> Result<Item> {
        let mut path = entry.path;
        if path.ends_with('/') {
            let label = class_of(&path[skip_bytes..])
                .map(|class| classes.label(class))
                .transpose()?;
            let name = names.remove(&path).unwrap_or(path);
            return Ok(Item {
                key: name.get(skip_bytes..).unwrap_or_default().into(),
                extension: "".into(),
                label,
                place: entry.place,
                bytes: 0,
            });
        }
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
    let mut items = entries
        .into_iter()
        .map(&mut item)
        .collect::<Result<Vec<Item>>>()?;
    for link in links {
        match link.name.strip_prefix(&top) {
            Some(name) => items.push(Item {
                key: name.into(),
                extension: "".into(),
                label: None,
                place: Place::Broken(Box::new(link.broken)),
                bytes: 0,
            }),
            None => tree
                .ignored
                .add("broken links beside the folders", &link.name),
        }
    }
    skip_second_files(&mut items, &tree.root, &tree.archives);
    Listing::new(
        root,
        tree.archives,
        items,
        classes.into_names(),
        tree.ignored.into_notes(),
    )
}

/// Keys are unique, so of the files that would get the same one the first by name that is whole keeps it. The others
/// are broken, and called by their full names.
fn skip_second_files(items: &mut [Item], root: &Path, archives: &[Archive]) {
    // Stable: two of the very same name, as a folder and a tar may hold, stay as they were found.
    items.sort_by(|a, b| (&a.key, &a.extension).cmp(&(&b.key, &b.extension)));
    let shown = |item: &Item| {
        let archive = match item.place {
            Place::Member { archive, .. } => archives.get(archive as usize),
            _ => None,
        };
        // A sole archive is the source itself and needs no name.
        match archive.and_then(|archive| archive.path.strip_prefix(root).ok()) {
            Some(path) if !path.as_os_str().is_empty() => {
                format!("{} in {}", file_name(item), path.display())
            }
            _ => file_name(item),
        }
    };
    let mut first: Option<(Box<str>, String)> = None;
    for item in items {
        if matches!(item.place, Place::Broken(_)) {
            continue;
        }
        match &first {
            Some((key, kept)) if *key == item.key => {
                let reason = format!("it would have the key '{key}', which {kept} has");
                item.key = file_name(item).into();
                item.extension = "".into();
                item.place = Place::Broken(Box::new(Broken {
                    fault: "same key",
                    reason: printable(&reason).into_owned(),
                }));
                item.bytes = 0;
            }
            _ => first = Some((item.key.clone(), shown(item))),
        }
    }
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
    use crate::convert::tree::BrokenEntry;

    fn list(split: &str, paths: &[&str]) -> Result<Listing> {
        list_with(split, paths, vec![])
    }

    fn list_with(split: &str, paths: &[&str], broken: Vec<BrokenEntry>) -> Result<Listing> {
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
            broken,
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

    fn broken(name: &str, kind: BrokenKind) -> BrokenEntry {
        let path = match kind {
            BrokenKind::Folder => format!("{}/", name.trim_end_matches(".tar")),
            _ => name.to_owned(),
        };
        BrokenEntry {
            path,
            name: name.to_owned(),
            kind,
            broken: Broken {
                fault: "unreadable",
                reason: format!("why {name}"),
            },
        }
    }

    #[test]
    fn what_is_broken_is_an_item_and_its_folder_a_class() {
        let all = || {
            vec![
                broken("d/train/n1/gone.JPEG", BrokenKind::File),
                broken("d/train/n1/gone.txt", BrokenKind::File),
                broken("d/train/n2.tar", BrokenKind::Folder),
                broken("d/train/up", BrokenKind::Link),
                broken("d/val/n4", BrokenKind::Folder),
                broken("nowhere", BrokenKind::Link),
            ]
        };
        let paths = ["d/train/n1/x.JPEG", "d/train/n3/y.JPEG", "d/val/n1/z.JPEG"];
        let listing = list_with("train", &paths, all()).unwrap();
        assert_eq!(
            keys(&listing),
            [
                ("n1/gone", Some(0)),
                ("n1/x", Some(0)),
                ("n2.tar", Some(1)),
                ("n3/y", Some(2)),
                ("up", None)
            ]
        );
        assert_eq!(
            listing.notes,
            [
                "ignored 1 broken links beside the folders, first: nowhere",
                "ignored 2 files outside the folder of the split, first: d/val/n1/z.JPEG",
                "ignored 1 texts, first: d/train/n1/gone.txt"
            ]
        );
    }

    #[test]
    fn broken_links_do_not_make_classes_of_loose_files() {
        let links = vec![broken("up", BrokenKind::Link)];
        let listing = list_with("val", &["v_1.JPEG"], links).unwrap();
        assert_eq!(keys(&listing), [("up", None), ("v_1", None)]);
        let folders = vec![broken("train", BrokenKind::Folder)];
        let error = list_with("train", &["val/n1/x.JPEG"], folders).unwrap_err();
        assert!(
            matches!(&error, Error::Read { path, .. } if path.ends_with("train")),
            "{error}"
        );
    }

    #[test]
    fn the_first_whole_file_keeps_a_key_and_the_others_are_called_by_name() {
        let links = vec![broken("a/x.gif", BrokenKind::File)];
        let paths = [
            "a/x.png", "a/x.jpg", "a/x.tif", "a/y.jpg", "b/z.jpg", "b/z.jpg",
        ];
        let listing = list_with("train", &paths, links).unwrap();
        let whole: Vec<String> = listing
            .items
            .iter()
            .filter(|item| item.place == Place::Named)
            .map(file_name)
            .collect();
        assert_eq!(whole, ["a/x.jpg", "a/y.jpg", "b/z.jpg"]);
        let skipped: Vec<(&str, &str)> = listing
            .items
            .iter()
            .filter_map(|item| match &item.place {
                Place::Broken(broken) => Some((&*item.key, broken.reason.as_str())),
                _ => None,
            })
            .collect();
        let reason = "it would have the key 'a/x', which a/x.jpg has";
        let second = "it would have the key 'b/z', which b/z.jpg has";
        assert_eq!(
            skipped,
            [
                ("a/x", "why a/x.gif"),
                ("a/x.png", reason),
                ("a/x.tif", reason),
                ("b/z.jpg", second)
            ]
        );
    }
}
