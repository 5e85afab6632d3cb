//! Everything that lies in a folder or an archive, as paths with `/` from the top of the source.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use walkdir::WalkDir;

use super::error::{Error, Result};
use super::source::{Archive, Broken, Ignored, Place};
use super::tar_index::{index_tar, other_format, tar_stem};

/// A file or a member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From the top of the source, with `/`, tars counted as folders.
    pub path: String,
    pub place: Place,
    pub bytes: u64,
}

/// Something that cannot be read, while the rest of the source can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokenEntry {
    /// As [`Entry::path`]; that of a folder ends with `/`.
    pub path: String,
    /// What it is called in the report: as the path, but a tar with its ending.
    pub name: String,
    pub kind: BrokenKind,
    pub broken: Broken,
}

/// What it is that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BrokenKind {
    File,
    /// A folder, or a tar, which counts as one.
    Folder,
    /// A link that leads nowhere and by its name could mean either, or one that leads in a circle.
    Link,
}

/// What a walk found.
#[derive(Debug)]
pub(crate) struct Tree {
    pub root: PathBuf,
    pub entries: Vec<Entry>,
    pub archives: Vec<Archive>,
    pub broken: Vec<BrokenEntry>,
    pub ignored: Ignored,
}

/// Whether tar files are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tars {
    Index,
    AsFiles,
}

/// Lists a folder, following links, or a single tar. Hidden files and all files in hidden folders are left out.
///
/// What cannot be read within a folder is listed as broken, and no error.
///
/// # Errors
/// [`Error::Read`] and [`Error::Archive`] if it is `src` itself that cannot be read or a compressed tar lies in it, and [`Error::NothingFound`] if `src` is neither a folder nor a tar.
pub(crate) fn walk(src: &Path, tars: Tars) -> Result<Tree> {
    let metadata = std::fs::metadata(src).map_err(|source| Error::Read {
        path: src.to_path_buf(),
        source,
    })?;
    let mut tree = Tree {
        root: src.to_path_buf(),
        entries: vec![],
        archives: vec![],
        broken: vec![],
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
        let Tree {
            entries,
            broken,
            ignored,
            ..
        } = &mut tree;
        index_tar(src, 0, "", entries, broken, ignored)?;
    }
    if tree.archives.len() > Archive::MOST_KEPT_OPEN {
        tree.archives.iter_mut().for_each(Archive::do_not_keep_open);
    }
    Ok(tree)
}

fn walk_folder(tree: &mut Tree, tars: Tars) -> Result<()> {
    let root = tree.root.clone();
    let files = WalkDir::new(&root)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter();
    for file in files {
        let file = match file {
            Ok(file) if file.file_type().is_dir() => continue,
            other => other,
        };
        let path = match &file {
            Ok(file) => file.path(),
            Err(error) => error.path().unwrap_or(&root),
        };
        let relative = path.strip_prefix(&root).unwrap_or(path);
        if file.is_err() && relative.as_os_str().is_empty() {
            let path = root;
            let source = file.map_or_else(Into::into, |_| std::io::Error::other("no folder"));
            return Err(Error::Read { path, source });
        }
        let is_hidden = |part: Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b".");
        if relative.components().any(is_hidden) {
            tree.ignored
                .add("hidden files", &relative.to_string_lossy());
            continue;
        }
        let Some(name) = relative.to_str() else {
            tree.ignored
                .add("files whose name is not UTF-8", &relative.to_string_lossy());
            continue;
        };
        let found = match &file {
            Ok(file) => file.metadata().map_err(|error| broken_entry(name, &error)),
            Err(error) => Err(broken_entry(name, error)),
        };
        let metadata = match found {
            Ok(metadata) => metadata,
            // Where a disk has its root, only the system may look into this folder.
            Err(_) if name.ends_with("lost+found") => {
                tree.ignored.add("folders of the file system", name);
                continue;
            }
            Err(broken) => {
                tree.broken.push(broken);
                continue;
            }
        };
        if !metadata.is_file() {
            tree.ignored.add("special files", name);
            continue;
        }
        if tars == Tars::Index {
            refuse_compressed(path)?;
            if let Some(stem) = tar_stem(name) {
                add_tar(tree, path, name, &format!("{stem}/"))?;
                continue;
            }
        }
        tree.entries.push(Entry {
            path: name.to_owned(),
            place: Place::Named,
            bytes: metadata.len(),
        });
    }
    Ok(())
}

/// Lists a tar beside others. One that is damaged keeps what comes before the damage, and is broken itself.
fn add_tar(tree: &mut Tree, path: &Path, name: &str, folder: &str) -> Result<()> {
    let archive = u32::try_from(tree.archives.len())
        .map_err(|_| Error::Internal("more than 4294967295 archives".into()))?;
    tree.archives.push(Archive::new(path.to_path_buf()));
    let Tree {
        entries,
        broken,
        ignored,
        ..
    } = tree;
    let n_before = entries.len();
    let (fault, reason) = match index_tar(path, archive, folder, entries, broken, ignored) {
        Ok(()) => return Ok(()),
        Err(Error::Archive { reason, .. }) => ("damaged archive", reason),
        Err(Error::Read { source, .. }) => ("unreadable", source.to_string()),
        Err(error) => return Err(error),
    };
    let reason = match entries.len() - n_before {
        0 => reason,
        n => format!("{reason}; the {n} files before that are used"),
    };
    broken.push(BrokenEntry {
        path: folder.to_owned(),
        name: name.to_owned(),
        kind: BrokenKind::Folder,
        broken: Broken { fault, reason },
    });
    Ok(())
}

/// What the walk could not get past. Only the system's own words go into the reason: the rest holds paths.
fn broken_entry(name: &str, error: &walkdir::Error) -> BrokenEntry {
    let is_link = error
        .path()
        .and_then(|path| path.symlink_metadata().ok())
        .is_some_and(|metadata| metadata.is_symlink());
    let system = error.io_error().map(ToString::to_string);
    let system = system.unwrap_or_default();
    let has_ending = !super::source::split_extension(name).1.is_empty();
    let (kind, fault, reason) = if error.loop_ancestor().is_some() {
        let reason = "a link to a folder that it lies in".to_owned();
        (BrokenKind::Link, "broken link", reason)
    } else if is_link {
        let kind = if has_ending {
            BrokenKind::File
        } else {
            BrokenKind::Link
        };
        (
            kind,
            "broken link",
            format!("a link that leads nowhere: {system}"),
        )
    } else if error.path().is_some_and(Path::is_dir) {
        let reason = format!("a folder that cannot be read: {system}");
        (BrokenKind::Folder, "unreadable", reason)
    } else {
        let reason = format!("cannot be read: {system}");
        (BrokenKind::File, "unreadable", reason)
    };
    let path = match kind {
        BrokenKind::Folder => format!("{name}/"),
        _ => name.to_owned(),
    };
    BrokenEntry {
        path,
        name: name.to_owned(),
        kind,
        broken: Broken { fault, reason },
    }
}

/// Refuses what is no list or table of clips: a video decoder needs files, so clips are not read out of archives.
///
/// # Errors
/// [`Error::Archive`] for an archive, [`Error::NothingFound`] for any other file that is no text.
pub(crate) fn refuse_no_text(path: &Path) -> Result<()> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut head = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(512).read_to_end(&mut head))
        .map_err(failed)?;
    let is_tar = head.get(257..262) == Some(b"ustar")
        || path.to_str().and_then(tar_stem).is_some()
        || refuse_compressed(path).is_err();
    if is_tar || other_format(&head).is_some() {
        return Err(Error::Archive {
            path: path.to_path_buf(),
            reason: "clips in archives are not read; unpack it first, then give the folder".into(),
        });
    }
    if head.contains(&0) {
        return Err(Error::NothingFound {
            path: path.to_path_buf(),
            expected: "expected a folder of clips, or a list or table of clips as text".into(),
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
            ["ignored 2 hidden files, first: b/.DS_Store"]
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
    fn what_cannot_be_read_is_broken_and_the_rest_is_listed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/.hidden")).unwrap();
        std::fs::write(at("a/x.jpg"), b"1").unwrap();
        symlink("nowhere", at("a/.#x.jpg")).unwrap();
        symlink("nowhere", at("a/.hidden/y.jpg")).unwrap();
        symlink("nowhere", at("a/gone.jpg")).unwrap();
        symlink("nowhere", at("gone")).unwrap();
        symlink("itself.jpg", at("a/itself.jpg")).unwrap();
        symlink(dir.path(), at("a/up")).unwrap();
        let whole = tar_of(&[("y.jpg", &[7; 600]), ("z.jpg", &[8; 600])]);
        std::fs::write(at("b.tar"), &whole[..512 + 1024 + 512 + 10]).unwrap();
        std::fs::write(at("c.tar"), [0x1f, 0x8b, 8, 0, 0, 0, 0]).unwrap();
        let mut tree = walk(dir.path(), Tars::Index).unwrap();
        assert_eq!(paths(&tree), ["a/x.jpg", "b/y.jpg"]);
        tree.broken.sort_by(|a, b| a.name.cmp(&b.name));
        let found: Vec<_> = tree
            .broken
            .iter()
            .map(|b| (b.name.as_str(), b.kind, b.broken.fault))
            .collect();
        assert_eq!(
            found,
            [
                ("a/gone.jpg", BrokenKind::File, "broken link"),
                ("a/itself.jpg", BrokenKind::File, "broken link"),
                ("a/up", BrokenKind::Link, "broken link"),
                ("b.tar", BrokenKind::Folder, "damaged archive"),
                ("c.tar", BrokenKind::Folder, "damaged archive"),
                ("gone", BrokenKind::Link, "broken link"),
            ]
        );
        let reasons: Vec<&str> = tree
            .broken
            .iter()
            .map(|b| b.broken.reason.as_str())
            .collect();
        assert!(
            reasons[3].contains("cut short at byte 2058 of 2648") && reasons[3].contains("1 files"),
            "{reasons:?}"
        );
        assert!(reasons[4].contains("gzip"), "{reasons:?}");
        let root = dir.path().to_str().unwrap();
        assert!(
            reasons.iter().all(|reason| !reason.contains(root)),
            "{reasons:?}"
        );
        assert_eq!(
            tree.ignored.into_notes(),
            ["ignored 2 hidden files, first: a/.#x.jpg"]
        );
    }

    #[test]
    fn a_folder_without_permission_is_broken_but_not_the_top() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (locked, fine) = (dir.path().join("n02"), dir.path().join("n01"));
        std::fs::create_dir(&locked).unwrap();
        std::fs::create_dir(&fine).unwrap();
        std::fs::write(fine.join("x.jpg"), b"1").unwrap();
        let allow = |mode| {
            std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(0o000);
        if std::fs::read_dir(&locked).is_ok() {
            eprintln!("SKIPPED: this user may read everything");
            return;
        }
        let tree = walk(dir.path(), Tars::Index);
        let top = walk(&locked, Tars::Index);
        allow(0o755);
        let tree = tree.unwrap();
        assert_eq!(paths(&tree), ["n01/x.jpg"]);
        assert_eq!(
            (tree.broken[0].path.as_str(), tree.broken[0].kind),
            ("n02/", BrokenKind::Folder)
        );
        assert!(tree.broken[0].broken.reason.contains("denied"));
        assert!(matches!(top, Err(Error::Read { path, .. }) if path == locked));
    }

    #[test]
    fn what_is_no_text_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            refuse_no_text(&path).map_err(|error| error.to_string())
        };
        let tar = tar_of(&[("x.mp4", b"x")]);
        for (name, bytes) in [
            ("kin.tar", tar.as_slice()),
            ("kin", &tar),
            ("kin.tgz", &[0x1f, 0x8b, 8]),
            ("empty.tar", &[]),
        ] {
            let message = refused(name, bytes).unwrap_err();
            assert!(
                message.contains(name) && message.contains("unpack"),
                "{message}"
            );
        }
        let message = refused("x.mp4", b"\0\0\0\x18ftyp").unwrap_err();
        assert!(message.contains("a list or table"), "{message}");
        assert!(refused("list.txt", "Größe/x.mp4 0\n".as_bytes()).is_ok());
    }
}
