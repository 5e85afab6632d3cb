//! What there is to convert: items, where their bytes lie, and how to read them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use shards::{ClassName, printable};

use super::error::{Error, Result};
use super::table::Table;

/// One picture or clip of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Unique; what the shard's row is called.
    pub key: Box<str>,
    /// Ending of the file name, dot included; may be empty. Shared: there are few, and millions of items.
    pub extension: Arc<str>,
    pub label: Option<i32>,
    pub place: Place,
    /// Size in bytes.
    pub bytes: u64,
}

/// Where an item's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file of its own, called as its key and ending under the listing's root; saves the memory of a path.
    Named,
    /// A file of its own, relative to the listing's root or absolute.
    File(Box<Path>),
    /// A stretch of an archive, which is an index into [`Listing::archives`].
    Member { archive: u32, offset: u64 },
    /// A row of [`Listing::table`].
    Row { group: u32, row: u32 },
    /// A list names it, but there is no such file.
    Absent(Box<Path>),
    /// The listing found it and found that it cannot be read: it is skipped.
    Broken(Box<Broken>),
}

/// Why something of the source cannot be read; no path of this machine in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// The kind of fault in a word or two.
    pub fault: &'static str,
    pub reason: String,
}

/// All items of a source, sorted bytewise by key.
#[derive(Debug)]
pub(crate) struct Listing {
    pub root: PathBuf,
    pub archives: Vec<Archive>,
    /// The rows, if the source is Parquet files.
    pub table: Option<Table>,
    pub items: Vec<Item>,
    /// Labels index these.
    pub classes: Vec<ClassName>,
    /// What was ignored, and why; no path of this machine in it.
    pub notes: Vec<String>,
}

impl Listing {
    /// Sorts the items and refuses keys that occur twice, but for items that are broken: those have no row.
    pub fn new(
        root: PathBuf,
        archives: Vec<Archive>,
        mut items: Vec<Item>,
        classes: Vec<ClassName>,
        notes: Vec<String>,
    ) -> Result<Self> {
        items.sort_unstable_by(|a, b| (&a.key, &a.extension).cmp(&(&b.key, &b.extension)));
        let whole = || {
            items
                .iter()
                .filter(|item| !matches!(item.place, Place::Broken(_)))
        };
        let twice = whole()
            .zip(whole().skip(1))
            .find(|(one, next)| one.key == next.key);
        if let Some((one, next)) = twice {
            let name = |item: &Item| match &item.place {
                Place::Named | Place::Row { .. } | Place::Broken(_) => file_name(item),
                Place::File(path) | Place::Absent(path) => path.display().to_string(),
                Place::Member { archive, .. } => {
                    let archive = archives
                        .get(*archive as usize)
                        .map(|a| a.path.display().to_string());
                    format!("{} in {}", file_name(item), archive.unwrap_or_default())
                }
            };
            return Err(Error::DuplicateKey {
                key: one.key.to_string(),
                first: name(one),
                second: name(next),
            });
        }
        Ok(Self {
            root,
            archives,
            table: None,
            items,
            classes,
            notes,
        })
    }

    /// Path of an item's own file; `None` for a member of an archive and for what is absent.
    pub fn path(&self, item: &Item) -> Option<PathBuf> {
        match &item.place {
            Place::Named => Some(self.root.join(file_name(item))),
            Place::File(path) => Some(self.root.join(path)),
            Place::Member { .. } | Place::Row { .. } | Place::Absent(_) | Place::Broken(_) => None,
        }
    }

    /// The bytes of an item. Called from many threads at once: reads are by position, nothing is shared but
    /// open files.
    ///
    /// # Errors
    /// [`Error::Read`] if the system fails, [`Error::Changed`] if the file is not as long as it was listed; those of
    /// [`Table::read`].
    pub fn read(&self, item: &Item) -> Result<Vec<u8>> {
        match &item.place {
            Place::Named | Place::File(_) => {
                let path = self.path(item).unwrap_or_default();
                let bytes = std::fs::read(&path).map_err(|source| Error::Read {
                    path: path.clone(),
                    source,
                })?;
                if bytes.len() as u64 != item.bytes {
                    let reason = format!(
                        "it had {} bytes when it was listed and has {} now",
                        item.bytes,
                        bytes.len()
                    );
                    return Err(Error::Changed { path, reason });
                }
                Ok(bytes)
            }
            Place::Member { archive, offset } => {
                let archive = self
                    .archives
                    .get(*archive as usize)
                    .ok_or_else(|| Error::Internal(format!("no archive {archive}")))?;
                archive.read_at(*offset, item.bytes)
            }
            Place::Row { group, row } => {
                let table = self.table.as_ref();
                let table = table.ok_or_else(|| Error::Internal("rows of no table".into()))?;
                table.read(*group, *row)
            }
            Place::Absent(path) => Err(Error::Read {
                path: path.to_path_buf(),
                source: std::io::Error::from(std::io::ErrorKind::NotFound),
            }),
            Place::Broken(broken) => Err(Error::Read {
                path: file_name(item).into(),
                source: std::io::Error::other(broken.reason.clone()),
            }),
        }
    }
}

/// Key and ending as one file name.
pub(crate) fn file_name(item: &Item) -> String {
    format!("{}{}", item.key, item.extension)
}

/// A tar file that is read in place.
#[derive(Debug)]
pub(crate) struct Archive {
    pub path: PathBuf,
    /// Opened at the first read and kept, unless there are so many archives that open files could run out.
    handle: OnceLock<File>,
    keep_open: bool,
}

impl Archive {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            handle: OnceLock::new(),
            keep_open: true,
        }
    }

    /// Most archives kept open at once: a folder of 1000 tars must not meet the usual limit of 1024 open files.
    pub const MOST_KEPT_OPEN: usize = 64;

    pub fn do_not_keep_open(&mut self) {
        self.keep_open = false;
    }

    fn read_at(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let failed = |source| Error::Read {
            path: self.path.clone(),
            source,
        };
        let n_bytes = usize::try_from(bytes)
            .map_err(|_| Error::Internal(format!("a member of {bytes} bytes")))?;
        let mut buffer = vec![0; n_bytes];
        let mut read = |file: &File| match file.read_exact_at(&mut buffer, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Error::Changed {
                    path: self.path.clone(),
                    reason: "it is shorter than when it was listed".into(),
                })
            }
            other => other.map_err(failed),
        };
        match self.handle.get() {
            Some(file) => read(file)?,
            None => {
                let file = File::open(&self.path).map_err(failed)?;
                read(&file)?;
                if self.keep_open {
                    // Another thread may have been faster; then this handle is closed again.
                    drop(self.handle.set(file));
                }
            }
        }
        Ok(buffer)
    }
}

/// Counts what a listing leaves out, by reason, and remembers the first of each.
#[derive(Debug, Default)]
pub(crate) struct Ignored(BTreeMap<&'static str, (u64, String)>);

impl Ignored {
    /// `reason` completes "ignored 3 ...".
    pub fn add(&mut self, reason: &'static str, name: &str) {
        let name = printable(name);
        let name = name.as_ref();
        let entry = self.0.entry(reason).or_insert_with(|| (0, name.to_owned()));
        entry.0 += 1;
        if name < entry.1.as_str() {
            name.clone_into(&mut entry.1);
        }
    }

    /// One line a reason.
    pub fn into_notes(self) -> Vec<String> {
        let line = |(reason, (count, first)): (&str, (u64, String))| {
            format!("ignored {count} {reason}, first: {first}")
        };
        self.0.into_iter().map(line).collect()
    }
}

/// Splits `a/b.c` into `a/b` and `.c`; a name without a dot has an empty ending.
pub(crate) fn split_extension(path: &str) -> (&str, &str) {
    let name_start = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[name_start..].rfind('.') {
        Some(dot) if dot > 0 => path.split_at(name_start + dot),
        _ => (path, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, extension: &str) -> Item {
        let place = Place::File(Path::new(&format!("{key}{extension}")).into());
        Item {
            key: key.into(),
            extension: extension.into(),
            label: None,
            place,
            bytes: 0,
        }
    }

    #[test]
    fn items_are_sorted_bytewise() {
        let items = vec![
            item("b/a", ".jpg"),
            item("B/z", ".jpg"),
            item("b.c", ".jpg"),
        ];
        let listing = Listing::new(PathBuf::new(), vec![], items, vec![], vec![]).unwrap();
        let keys: Vec<&str> = listing.items.iter().map(|item| &*item.key).collect();
        assert_eq!(keys, ["B/z", "b.c", "b/a"]);
    }

    #[test]
    fn a_key_that_occurs_twice_names_both() {
        let items = vec![
            item("a/x", ".png"),
            item("a/y", ".jpg"),
            item("a/x", ".jpg"),
        ];
        let message = Listing::new(PathBuf::new(), vec![], items, vec![], vec![])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("a/x.jpg") && message.contains("a/x.png"),
            "{message}"
        );
    }

    #[test]
    fn a_broken_item_may_have_the_key_of_a_whole_one() {
        let mut items = vec![
            item("a/x", ".jpg"),
            item("a/x", ".png"),
            item("a/x", ".tif"),
        ];
        items[1].place = Place::Broken(Box::new(Broken {
            fault: "unreadable",
            reason: "why".into(),
        }));
        let twice = Listing::new(PathBuf::new(), vec![], items.clone(), vec![], vec![]);
        assert!(matches!(twice, Err(Error::DuplicateKey { .. })));
        items.pop();
        assert!(Listing::new(PathBuf::new(), vec![], items, vec![], vec![]).is_ok());
    }

    #[test]
    fn names_are_shown_without_control_characters() {
        let mut ignored = Ignored::default();
        ignored.add("things", "x\x07");
        assert_eq!(ignored.into_notes(), ["ignored 1 things, first: x\\u{7}"]);
    }

    #[test]
    fn extensions() {
        assert_eq!(split_extension("a.b/c"), ("a.b/c", ""));
        assert_eq!(split_extension("a/c.tar.gz"), ("a/c.tar", ".gz"));
        assert_eq!(split_extension("a/.hidden"), ("a/.hidden", ""));
        assert_eq!(split_extension("c.JPEG"), ("c", ".JPEG"));
    }

    #[test]
    fn a_file_that_changed_or_went_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.jpg"), b"12345").unwrap();
        let mut items = vec![item("x", ".jpg"), item("y", ".jpg")];
        items[0].bytes = 5;
        let listing = Listing::new(dir.path().into(), vec![], items, vec![], vec![]).unwrap();
        assert_eq!(listing.read(&listing.items[0]).unwrap(), b"12345");
        std::fs::write(dir.path().join("x.jpg"), b"123").unwrap();
        let changed = listing.read(&listing.items[0]).unwrap_err();
        assert!(
            matches!(&changed, Error::Changed { path, .. } if path.ends_with("x.jpg")),
            "{changed}"
        );
        let gone = listing.read(&listing.items[1]).unwrap_err();
        assert!(
            matches!(&gone, Error::Read { path, .. } if path.ends_with("y.jpg")),
            "{gone}"
        );
    }
}
