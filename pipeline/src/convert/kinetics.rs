//! Kinetics and what is laid out like it: folders by class, lists of paths, and its own tables.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::classes::Classes;
use super::error::{Error, Result};
use super::folder::class_folders;
use super::options::KineticsOptions;
use super::source::{Item, Listing, Place, split_extension};
use super::tree::{Tars, Tree, refuse_no_text, walk};

/// Endings of what lies beside clips and is none: texts, downloads cut off, stills and sound. Everything else is tried:
/// contents count, not names.
const NOT_CLIPS: [&str; 37] = [
    "txt", "md", "csv", "tsv", "json", "jsonl", "xml", "html", "log", "yaml", "yml", "py", "sh",
    "pkl", "npy", "part", "ytdl", "srt", "vtt", "ass", "jpg", "jpeg", "jpe", "png", "bmp", "webp",
    "tif", "tiff", "wav", "mp3", "m4a", "aac", "flac", "ogg", "opus", "wma", "aiff",
];

/// A list that numbers more classes than this is taken to be wrong: they are all held in memory, and in each shard.
const MOST_CLASSES: u32 = 1 << 20;

/// Lists the clips of a source.
pub(crate) fn list(src: &Path, options: &KineticsOptions) -> Result<Listing> {
    let classes = options
        .common
        .class_names
        .as_deref()
        .map(Classes::read)
        .transpose()?;
    let failed = |source| Error::Read {
        path: src.to_path_buf(),
        source,
    };
    let src_is_file = std::fs::metadata(src).map_err(failed)?.is_file();
    let (list, root) = match &options.list {
        Some(list) => (list.as_path(), src),
        None if src_is_file => (src, src.parent().unwrap_or(Path::new(""))),
        None => {
            let mut tree = walk(src, Tars::AsFiles)?;
            leave_out_second_files(&mut tree);
            return class_folders(
                tree,
                &options.common.split,
                classes,
                may_be_clip,
                "files that are not named like clips",
            );
        }
    };
    let root = if root.as_os_str().is_empty() {
        Path::new(".")
    } else {
        root
    };
    refuse_no_text(list)?;
    let text = std::fs::read_to_string(list).map_err(|source| Error::Read {
        path: list.to_path_buf(),
        source,
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let is_table = text
        .lines()
        .next()
        .is_some_and(|head| head.split(',').any(|name| name.trim() == "youtube_id"));
    let listing = if is_table {
        from_table(list, text, root, &options.common.split, classes)?
    } else {
        from_lines(list, text, root, classes)?
    };
    if listing.items.is_empty() {
        let expected = if is_table {
            format!(
                "no row has a file '<youtube_id>_<start>_<end>.*' or '<youtube_id>.*' under {}",
                root.display()
            )
        } else {
            "expected one path a line".into()
        };
        return Err(Error::NothingFound {
            path: list.to_path_buf(),
            expected,
        });
    }
    Ok(listing)
}

/// Where files differ by their ending alone they are one clip, fetched twice: the first by name stays. Unlike pictures,
/// of which two called the same are two.
fn leave_out_second_files(tree: &mut Tree) {
    let Tree {
        entries, ignored, ..
    } = tree;
    let mut known = HashSet::new();
    entries.retain(|entry| {
        let (name, _) = split_extension(&entry.path);
        let keep = !may_be_clip(&entry.path) || known.insert(name.to_owned());
        if !keep {
            ignored.add("second files of a clip with another ending", &entry.path);
        }
        keep
    });
}

fn may_be_clip(path: &str) -> bool {
    let (_, ending) = split_extension(path);
    !NOT_CLIPS
        .iter()
        .any(|known| ending.trim_start_matches('.').eq_ignore_ascii_case(known))
}

/// One path a line, relative to `root` or absolute, then optionally a tab and a class, or a space or comma and a
/// class number. Without a label on its line a clip has none. A path without a file is an item that is skipped.
fn from_lines(list: &Path, text: &str, root: &Path, classes: Option<Classes>) -> Result<Listing> {
    let root = std::path::absolute(root).map_err(|source| Error::Read {
        path: root.to_path_buf(),
        source,
    })?;
    let lines: Vec<(u64, PathBuf, Option<&str>)> = (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            let (path, label) = split_label(line.trim());
            (number, normalised(&root.join(path)), label)
        })
        .collect();
    let top = if lines
        .iter()
        .all(|(_, path, _)| path.starts_with(normalised(&root)))
    {
        normalised(&root)
    } else {
        common_folder(lines.iter().map(|(_, path, _)| path.as_path()))
    };
    let wrong = |line, reason| Error::List {
        path: list.to_path_buf(),
        line,
        reason,
    };
    let number = |line: u64, label: &str| -> Result<u32> {
        let number = label.parse().ok().filter(|&number| number < MOST_CLASSES);
        number.ok_or_else(|| {
            wrong(
                line,
                format!("label {label}, expected less than {MOST_CLASSES}"),
            )
        })
    };
    let labels = || {
        lines
            .iter()
            .filter_map(|&(line, _, label)| Some((line, label?)))
    };
    let are_numbers = labels().all(|(_, label)| label.bytes().all(|b| b.is_ascii_digit()));
    let classes = match classes {
        Some(classes) => classes,
        None if are_numbers => {
            let beyond = labels().map(|(line, label)| Ok(number(line, label)? + 1));
            Classes::counted(
                beyond
                    .collect::<Result<Vec<u32>>>()?
                    .into_iter()
                    .max()
                    .unwrap_or(0),
            )?
        }
        None => Classes::found(labels().map(|(_, label)| label))?,
    };
    let names = classes.clone().into_names();
    let item = |(line, path, label): (u64, PathBuf, Option<&str>)| -> Result<Item> {
        let wrong = |reason| wrong(line, reason);
        let relative = path.strip_prefix(&top).unwrap_or(&path);
        let relative = relative.to_str().filter(|text| !text.is_empty());
        let relative =
            relative.ok_or_else(|| wrong(format!("'{}' is no path of a file", path.display())))?;
        let label = match label {
            None => None,
            // Numbers are labels as they stand, also beside a file of class names.
            Some(label) if are_numbers => {
                let label = number(line, label)?;
                if label as usize >= names.len() {
                    return Err(wrong(format!(
                        "label {label} is not below the number of classes, {}",
                        names.len()
                    )));
                }
                Some(label.cast_signed())
            }
            Some(label) => Some(classes.label(label)?),
        };
        let (key, extension) = split_extension(relative);
        let (place, bytes) = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                (Place::File(path.as_path().into()), metadata.len())
            }
            Ok(_) => return Err(wrong(format!("'{}' is not a file", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (Place::Absent(Path::new(relative).into()), 0)
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        Ok(Item {
            key: key.into(),
            extension: extension.into(),
            label,
            place,
            bytes,
        })
    };
    let items = lines.into_iter().map(item).collect::<Result<Vec<_>>>()?;
    Listing::new(root, vec![], items, names, vec![])
}

/// Splits the label off a line of a list.
fn split_label(line: &str) -> (&str, Option<&str>) {
    if let Some((path, label)) = line.rsplit_once('\t') {
        return (
            path.trim_end(),
            Some(label.trim_start()).filter(|label| !label.is_empty()),
        );
    }
    match line.rsplit_once([' ', ',']) {
        Some((path, label)) if label.bytes().all(|b| b.is_ascii_digit()) && !label.is_empty() => {
            (path.trim_end_matches([' ', ',']), Some(label))
        }
        _ => (line, None),
    }
}

/// Takes `.` and `..` out of an absolute path, without looking at the disk.
fn normalised(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn common_folder<'a>(mut paths: impl Iterator<Item = &'a Path>) -> PathBuf {
    let mut top = paths
        .next()
        .and_then(Path::parent)
        .map(Path::to_path_buf)
        .unwrap_or_default();
    for path in paths {
        while !path.starts_with(&top) {
            if !top.pop() {
                break;
            }
        }
    }
    top
}

/// A table of Kinetics: `label,youtube_id,time_start,time_end,split`, of which only `youtube_id` must be there.
///
/// A row's file is looked for anywhere under `root`, whatever its ending: `<id>_<start>_<end>` with six digits a
/// time, or `<id>`. Rows without a file are counted in a note: clips vanish from the web, so some always lack.
/// Where the table has splits, rows of other splits are left out.
fn from_table(
    list: &Path,
    text: &str,
    root: &Path,
    split: &str,
    classes: Option<Classes>,
) -> Result<Listing> {
    let wrong = |line, reason| Error::List {
        path: list.to_path_buf(),
        line,
        reason,
    };
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .flexible(true)
        .from_reader(text.as_bytes());
    let head = reader
        .headers()
        .map_err(|error| wrong(1, error.to_string()))?
        .clone();
    let column = |name: &str| head.iter().position(|head| head == name);
    let id_column =
        column("youtube_id").ok_or_else(|| wrong(1, "no column 'youtube_id'".into()))?;
    let (label_column, split_column) = (column("label"), column("split"));
    let times = column("time_start").zip(column("time_end"));

    let files = FilesByStem::find(root)?;
    let (mut found, mut n_rows, mut missing) = (Vec::new(), 0_u64, Vec::new());
    let mut other_splits = std::collections::BTreeSet::new();
    for record in reader.records() {
        let record = record.map_err(|error| {
            let line = error.position().map_or(0, csv::Position::line);
            wrong(line, error.to_string())
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |column: Option<usize>| {
            column
                .and_then(|c| record.get(c))
                .filter(|text| !text.is_empty())
        };
        if let Some(of) = field(split_column).filter(|of| !is_same_split(of, split)) {
            other_splits.insert(of.to_owned());
            continue;
        }
        n_rows += 1;
        let id = field(Some(id_column)).ok_or_else(|| wrong(line, "no youtube_id".into()))?;
        let stem = match times {
            Some((start, end)) => {
                let seconds = |column| -> Result<u64> {
                    let text = field(Some(column)).unwrap_or_default();
                    let seconds = text.parse::<f64>().ok().filter(|s| (0.0..1e6).contains(s));
                    // The published tables hold whole seconds; some tools rewrite them as `12.0`.
                    seconds
                        .map(|s| s.round() as u64)
                        .ok_or_else(|| wrong(line, format!("'{text}' is not a time in seconds")))
                };
                format!("{id}_{:06}_{:06}", seconds(start)?, seconds(end)?)
            }
            None => id.to_owned(),
        };
        match files
            .get(&stem)?
            .map_or_else(|| files.get(id), |file| Ok(Some(file)))?
        {
            Some(file) => found.push((stem, field(label_column).map(str::to_owned), file)),
            None => missing.push(stem),
        }
    }
    if n_rows == 0 {
        let splits: Vec<String> = other_splits.into_iter().collect();
        return Err(wrong(
            1,
            format!("no row of split '{split}', only of: {}", splits.join(", ")),
        ));
    }
    let classes = match classes {
        Some(classes) => classes,
        None => Classes::found(found.iter().filter_map(|(_, label, _)| label.as_deref()))?,
    };
    let item =
        |(stem, label, (path, bytes)): (String, Option<String>, (&str, u64))| -> Result<Item> {
            let key = label
                .as_ref()
                .map_or_else(|| stem.clone(), |label| format!("{label}/{stem}"));
            let label = label.map(|label| classes.label(&label)).transpose()?;
            let extension = split_extension(path).1.into();
            Ok(Item {
                key: key.into(),
                extension,
                label,
                place: Place::File(Path::new(path).into()),
                bytes,
            })
        };
    let items = found.into_iter().map(item).collect::<Result<Vec<_>>>()?;
    let mut notes = Vec::new();
    if let Some(first) = missing.first() {
        notes.push(format!(
            "{} of {n_rows} rows of the table have no file, first: {first}",
            missing.len()
        ));
    }
    Listing::new(
        root.to_path_buf(),
        vec![],
        items,
        classes.into_names(),
        notes,
    )
}

/// Kinetics writes `val`, `validate` and `validation` for one thing.
fn is_same_split(a: &str, b: &str) -> bool {
    let plain = |name: &str| match name.to_ascii_lowercase().as_str() {
        "validate" | "validation" => "val".to_owned(),
        other => other.to_owned(),
    };
    plain(a) == plain(b)
}

/// The files under a folder by their name without ending.
struct FilesByStem {
    root: PathBuf,
    files: HashMap<String, Found>,
}

struct Found {
    path: String,
    bytes: u64,
    /// Another file of the same name.
    second: Option<String>,
}

impl FilesByStem {
    fn find(root: &Path) -> Result<Self> {
        let mut files: HashMap<String, Found> = HashMap::new();
        for entry in walk(root, Tars::AsFiles)?
            .entries
            .into_iter()
            .filter(|entry| may_be_clip(&entry.path))
        {
            let (path, _) = split_extension(&entry.path);
            let stem = path.rsplit('/').next().unwrap_or(path).to_owned();
            match files.entry(stem) {
                std::collections::hash_map::Entry::Occupied(mut known) => {
                    known.get_mut().second.get_or_insert(entry.path);
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(Found {
                        path: entry.path,
                        bytes: entry.bytes,
                        second: None,
                    });
                }
            }
        }
        Ok(Self {
            root: root.to_path_buf(),
            files,
        })
    }

    /// Path under the root, and size, of the one file of this name.
    fn get(&self, stem: &str) -> Result<Option<(&str, u64)>> {
        match self.files.get(stem) {
            None => Ok(None),
            Some(Found {
                path,
                bytes,
                second: None,
            }) => Ok(Some((path, *bytes))),
            Some(Found {
                path,
                second: Some(second),
                ..
            }) => Err(Error::DuplicateKey {
                key: stem.to_owned(),
                first: self.root.join(path).display().to_string(),
                second: self.root.join(second).display().to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file.as_bytes()).unwrap();
        }
        dir
    }

    fn keys(listing: &Listing) -> Vec<(&str, Option<i32>)> {
        listing
            .items
            .iter()
            .map(|item| (&*item.key, item.label))
            .collect()
    }

    fn listed(src: &Path) -> Result<Listing> {
        list(src, &KineticsOptions::default())
    }

    #[test]
    fn folders_by_class() {
        let dir = folder(&[
            "arm wrestling/a.mp4",
            "arm wrestling/b.lies",
            "yoga/c",
            "yoga/c.json",
            "list.txt",
        ]);
        let listing = listed(dir.path()).unwrap();
        assert_eq!(
            keys(&listing),
            [
                ("arm wrestling/a", Some(0)),
                ("arm wrestling/b", Some(0)),
                ("yoga/c", Some(1))
            ]
        );
        let text = String::from_utf8(listing.read(&listing.items[1]).unwrap()).unwrap();
        assert_eq!(text, "arm wrestling/b.lies");
    }

    #[test]
    fn stills_sound_and_second_files_beside_clips_are_left_out() {
        let dir = folder(&[
            "a/x.mp4", "a/x.jpg", "a/x.m4a", "a/x.mkv", "a/y.PNG", "b/x.mp4",
        ]);
        let listing = listed(dir.path()).unwrap();
        assert_eq!(keys(&listing), [("a/x", Some(0)), ("b/x", Some(1))]);
        assert_eq!(&*listing.items[0].extension, ".mkv");
        assert_eq!(
            listing.notes,
            [
                "ignored 3 files that are not named like clips, first: a/x.jpg",
                "ignored 1 second files of a clip with another ending, first: a/x.mp4"
            ]
        );
    }

    #[test]
    fn labels_out_of_reason_name_their_line() {
        let dir = folder(&["x.mp4", "y.mp4"]);
        let list = dir.path().join("list.txt");
        for label in ["4294967294", "1048576", "99999999999999999999"] {
            std::fs::write(&list, format!("x.mp4 0\ny.mp4 {label}\n")).unwrap();
            let message = listed(&list).unwrap_err().to_string();
            assert!(
                message.contains("list.txt, line 2") && message.contains(label),
                "{message}"
            );
        }
    }

    #[test]
    fn a_list_of_paths_with_and_without_labels() {
        let dir = folder(&["a b/x 1.mp4", "c/y.mp4", "z.mkv"]);
        let list = dir.path().join("list.txt");
        std::fs::write(&list, "c/y.mp4\n\na b/x 1.mp4\r\n./gone.mp4\n").unwrap();
        let listing = listed(&list).unwrap();
        assert_eq!(
            keys(&listing),
            [("a b/x 1", None), ("c/y", None), ("gone", None)]
        );
        assert!(matches!(listing.items[2].place, Place::Absent(_)));
        assert!(listing.classes.is_empty());
        assert_eq!(listing.read(&listing.items[0]).unwrap(), b"a b/x 1.mp4");

        std::fs::write(&list, "c/y.mp4 3\na b/x 1.mp4,1\nz.mkv\n").unwrap();
        let listing = listed(&list).unwrap();
        assert_eq!(
            keys(&listing),
            [("a b/x 1", Some(1)), ("c/y", Some(3)), ("z", None)]
        );
        assert_eq!(listing.classes.len(), 4);

        std::fs::write(&list, "c/y.mp4\tyoga\na b/x 1.mp4\tarm wrestling\n").unwrap();
        let listing = listed(&list).unwrap();
        assert_eq!(keys(&listing), [("a b/x 1", Some(0)), ("c/y", Some(1))]);
        assert_eq!(listing.classes[1].id, "yoga");
    }

    #[test]
    fn absolute_paths_are_called_from_their_common_folder() {
        let dir = folder(&["k/a/x.mp4", "k/b/y.mp4", "lists/train.txt"]);
        let list = dir.path().join("lists/train.txt");
        let absolute = dir.path().join("k/a/x.mp4");
        std::fs::write(&list, format!("{}\n../k/b/y.mp4\n", absolute.display())).unwrap();
        let listing = listed(&list).unwrap();
        assert_eq!(keys(&listing), [("a/x", None), ("b/y", None)]);
        assert_eq!(listing.read(&listing.items[1]).unwrap(), b"k/b/y.mp4");
    }

    #[test]
    fn a_list_elsewhere_with_the_folder_of_its_clips() {
        let dir = folder(&["clips/a/x.mp4", "elsewhere/list.txt"]);
        let list_path = dir.path().join("elsewhere/list.txt");
        std::fs::write(&list_path, "a/x.mp4\n").unwrap();
        let options = KineticsOptions {
            list: Some(list_path),
            ..Default::default()
        };
        assert_eq!(
            keys(&list(&dir.path().join("clips"), &options).unwrap()),
            [("a/x", None)]
        );
    }

    #[test]
    fn the_table_of_kinetics() {
        let dir = folder(&[
            "train/yoga/-ab_000001_000011.mkv",
            "x y/cd.webm",
            "e_000000_000010.mp4",
            "t.csv",
        ]);
        let table = dir.path().join("t.csv");
        let rows = "label,youtube_id,time_start,time_end,split\n\
            yoga,-ab,1,11,train\n\"tai chi\",cd,5.0,15.0,train\nyoga,gone,0,10,train\nyoga,e,0,10,validate\n";
        std::fs::write(&table, rows).unwrap();
        let options = KineticsOptions {
            list: Some(table.clone()),
            ..Default::default()
        };
        let train = list(dir.path(), &options).unwrap();
        assert_eq!(
            keys(&train),
            [
                ("tai chi/cd_000005_000015", Some(0)),
                ("yoga/-ab_000001_000011", Some(1))
            ]
        );
        assert_eq!(train.read(&train.items[0]).unwrap(), b"x y/cd.webm");
        assert_eq!(
            train.notes,
            ["1 of 3 rows of the table have no file, first: gone_000000_000010"]
        );
        let mut options = options;
        options.common.split = "val".into();
        assert_eq!(
            keys(&list(dir.path(), &options).unwrap()),
            [("yoga/e_000000_000010", Some(0))]
        );
        options.common.split = "test".into();
        let message = list(dir.path(), &options).unwrap_err().to_string();
        assert!(message.contains("train, validate"), "{message}");
        assert_eq!(
            keys(&listed(&table).unwrap()).len(),
            2,
            "the table itself as the source"
        );
    }

    #[test]
    fn a_table_with_nonsense_names_the_line() {
        let dir = folder(&["ab.mp4"]);
        let table = dir.path().join("t.csv");
        std::fs::write(
            &table,
            "label,youtube_id,time_start,time_end\nyoga,ab,one,11\n",
        )
        .unwrap();
        let message = listed(&table).unwrap_err().to_string();
        assert!(
            message.contains("line 2") && message.contains("'one'"),
            "{message}"
        );
    }

    #[test]
    fn two_files_of_one_clip_are_an_error_that_names_both() {
        let dir = folder(&["a/ab.mp4", "b/ab.mkv"]);
        let table = dir.path().join("t.csv");
        std::fs::write(&table, "youtube_id\nab\n").unwrap();
        let message = listed(&table).unwrap_err().to_string();
        assert!(
            message.contains("a/ab.mp4") && message.contains("b/ab.mkv"),
            "{message}"
        );
    }
}
