//! Everything that lies in a folder or an archive, as paths with `/` from the top of the source.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::error::{Error, Result};
use super::source::{Archive, Ignored, Place};
use super::tar_index::{index_tar, tar_stem};

/// A file or a member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From the top of the source, with `/`, tars counted as folders.
    pub path: String,
    pub place: Place,
    pub bytes: u64,
}

/// What a walk found.
#[derive(Debug)]
pub(crate) struct Tree {
    pub root: PathBuf,
    pub entries: Vec<Entry>,
    pub archives: Vec<Archive>,
    pub ignored: Ignored,
}

/// Whether tar files are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tars {
    Index,
    AsFiles,
}

/// Lists a folder, following links, or a single tar. Hidden files are left out.
///
/// # Errors
/// [`Error::Read`], [`Error::Archive`], and [`Error::NothingFound`] if `src` is neither a folder nor a tar.
pub(crate) fn walk(src: &Path, tars: Tars) -> Result<Tree> {
    let metadata = std::fs::metadata(src).map_err(|source| Error::Read {
        path: src.to_path_buf(),
        source,
    })?;
    let mut tree = Tree {
        root: src.to_path_buf(),
        entries: vec![],
        archives: vec![],
        ignored: Ignored::default(),
    };
    if metadata.is_dir() {
        walk_folder(&mut tree, tars)?;
    } else {
        refuse_compressed(src)?;
        let is_tar = src.to_str().and_then(tar_stem).is_some();
        if tars == Tars::AsFiles || !is_tar {
            return Err(Error::NothingFound {
                path: src.to_path_buf(),
                expected: "expected a folder or a .tar".into(),
            });
        }
        tree.archives.push(Archive::new(src.to_path_buf()));
        index_tar(src, 0, "", &mut tree.entries, &mut tree.ignored)?;
    }
    if tree.archives.len() > Archive::MOST_KEPT_OPEN {
        tree.archives.iter_mut().for_each(Archive::do_not_keep_open);
    }
    Ok(tree)
}

fn walk_folder(tree: &mut Tree, tars: Tars) -> Result<()> {
    let root = tree.root.clone();
    let is_hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    let files = WalkDir::new(&root)
        .follow_links(true)
        .min_depth(1)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| !(entry.file_type().is_dir() && is_hidden(entry.file_name())));
    for file in files {
        let file = file.map_err(|error| {
            let path = error.path().unwrap_or(&root).to_path_buf();
            Error::Read {
                path,
                source: error.into(),
            }
        })?;
        if file.file_type().is_dir() {
            continue;
        }
        let relative = file.path().strip_prefix(&root).unwrap_or(file.path());
        let Some(name) = relative.to_str() else {
            tree.ignored
                .add("files whose name is not UTF-8", &relative.to_string_lossy());
            continue;
        };
        if is_hidden(file.file_name()) {
            tree.ignored.add("hidden files", name);
            continue;
        }
        let failed = |error: walkdir::Error| Error::Read {
            path: file.path().to_path_buf(),
            source: error.into(),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            tree.ignored.add("special files", name);
            continue;
        }
        if tars == Tars::Index {
            refuse_compressed(file.path())?;
            if let Some(stem) = tar_stem(name) {
                let archive = u32::try_from(tree.archives.len())
                    .map_err(|_| Error::Internal("more than 4294967295 archives".into()))?;
                tree.archives.push(Archive::new(file.path().to_path_buf()));
                index_tar(
                    file.path(),
                    archive,
                    &format!("{stem}/"),
                    &mut tree.entries,
                    &mut tree.ignored,
                )?;
                continue;
            }
        }
        let place = Place::Named;
        tree.entries.push(Entry {
            path: name.to_owned(),
            place,
            bytes: metadata.len(),
        });
    }
    Ok(())
}

/// A compressed tar has no places to read from; to skip it silently would lose a class.
fn refuse_compressed(path: &Path) -> Result<()> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    let endings = [
        ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4",
    ];
    if endings.iter().any(|ending| name.ends_with(ending)) {
        let reason =
            "a compressed archive cannot be read in place; decompress it to a plain .tar first"
                .into();
        return Err(Error::Archive {
            path: path.to_path_buf(),
            reason,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tar_index::tests::tar_of;

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.entries
            .iter()
            .map(|entry| entry.path.as_str())
            .collect()
    }

    #[test]
    fn a_folder_with_tars_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("l.jpg"), b"x").unwrap();
        std::fs::create_dir_all(dir.path().join("b/.git")).unwrap();
        std::fs::write(dir.path().join("b/.git/h.jpg"), b"x").unwrap();
        std::fs::write(dir.path().join("b/.DS_Store"), b"x").unwrap();
        std::fs::write(dir.path().join("b/x.jpg"), b"12").unwrap();
        std::fs::write(
            dir.path().join("a.tar"),
            tar_of(&[("y.jpg", b"1"), ("a/z.jpg", b"1")]),
        )
        .unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("c")).unwrap();
        let tree = walk(dir.path(), Tars::Index).unwrap();
        assert_eq!(paths(&tree), ["a/y.jpg", "a/z.jpg", "b/x.jpg", "c/l.jpg"]);
        assert_eq!(tree.entries[2].bytes, 2);
        assert_eq!(
            tree.ignored.into_notes(),
            ["ignored 1 hidden files, first: b/.DS_Store"]
        );
        let as_files = walk(dir.path(), Tars::AsFiles).unwrap();
        assert_eq!(paths(&as_files), ["a.tar", "b/x.jpg", "c/l.jpg"]);
    }

    #[test]
    fn what_is_no_source() {
        let dir = tempfile::tempdir().unwrap();
        let missing = walk(&dir.path().join("none"), Tars::Index).unwrap_err();
        assert!(matches!(missing, Error::Read { .. }) && missing.to_string().contains("none"));
        let text = dir.path().join("x.txt");
        std::fs::write(&text, b"x").unwrap();
        assert!(matches!(
            walk(&text, Tars::Index),
            Err(Error::NothingFound { .. })
        ));
        std::fs::write(dir.path().join("a.tar.gz"), b"x").unwrap();
        let message = walk(dir.path(), Tars::Index).unwrap_err().to_string();
        assert!(
            message.contains("decompress") && message.contains("a.tar.gz"),
            "{message}"
        );
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/up")).unwrap();
        assert!(matches!(
            walk(dir.path(), Tars::Index),
            Err(Error::Read { .. })
        ));
    }
}
