//! Where the members of a tar lie: headers are read once, contents are skipped, nothing is unpacked.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tar::EntryType;

use super::error::{Error, Result};
use super::source::{Ignored, Place};
use super::tree::Entry;

/// How deep tars may lie in tars: ImageNet's training tar holds one tar a class.
const MOST_NESTED: u32 = 1;

/// Lists the regular files of a tar, those of the tars inside it included.
///
/// A member `x.JPEG` of the tar is entered as `<prefix>x.JPEG`, a member of its inner tar `n01440764.tar` as
/// `<prefix>n01440764/x.JPEG`, whether or not the inner tar repeats the folder `n01440764` itself.
///
/// # Errors
/// [`Error::Read`], and [`Error::Archive`] if a header is damaged or the archive ends before its last member does.
pub(crate) fn index_tar(
    path: &Path,
    archive: u32,
    prefix: &str,
    entries: &mut Vec<Entry>,
    ignored: &mut Ignored,
) -> Result<()> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut walk = Walk {
        path,
        file: &file,
        archive,
        entries,
        ignored,
    };
    walk.stretch(0, bytes, prefix, 0)
}

struct Walk<'a> {
    path: &'a Path,
    file: &'a File,
    archive: u32,
    entries: &'a mut Vec<Entry>,
    ignored: &'a mut Ignored,
}

impl Walk<'_> {
    fn stretch(&mut self, start: u64, bytes: u64, prefix: &str, depth: u32) -> Result<()> {
        let damaged = |reason: String| Error::Archive {
            path: self.path.to_path_buf(),
            reason,
        };
        let mut tar = tar::Archive::new(Stretch {
            file: self.file,
            start,
            bytes,
            position: 0,
        });
        let members = tar
            .entries_with_seek()
            .map_err(|error| damaged(error.to_string()))?;
        for member in members {
            let member =
                member.map_err(|error| damaged(format!("damaged in '{prefix}': {error}")))?;
            let raw_name = member.path_bytes();
            let name = String::from_utf8_lossy(&raw_name);
            match member.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {}
                EntryType::Directory | EntryType::XGlobalHeader => continue,
                EntryType::Symlink | EntryType::Link => {
                    self.ignored.add("links in an archive", &name);
                    continue;
                }
                _ => {
                    self.ignored.add("special members of an archive", &name);
                    continue;
                }
            }
            let Ok(name) = std::str::from_utf8(&raw_name) else {
                self.ignored
                    .add("members of an archive whose name is not UTF-8", &name);
                continue;
            };
            let Some(name) = safe_name(name) else {
                self.ignored
                    .add("members of an archive whose name leads out of it", name);
                continue;
            };
            if name.split('/').any(|part| part.starts_with('.')) {
                self.ignored.add("hidden files", &name);
                continue;
            }
            let (offset, size) = (member.raw_file_position(), member.size());
            if offset.checked_add(size).is_none_or(|end| end > bytes) {
                return Err(damaged(format!(
                    "it is cut short: '{prefix}{name}' reaches past its end"
                )));
            }
            let name = without_repeated_folder(prefix, &name);
            match tar_stem(name) {
                Some(stem) if depth < MOST_NESTED => {
                    self.stretch(start + offset, size, &format!("{prefix}{stem}/"), depth + 1)?;
                }
                Some(_) => self
                    .ignored
                    .add("archives nested too deep", &format!("{prefix}{name}")),
                None => self.entries.push(Entry {
                    path: format!("{prefix}{name}"),
                    place: Place::Member {
                        archive: self.archive,
                        offset: start + offset,
                    },
                    bytes: size,
                }),
            }
        }
        Ok(())
    }
}

/// `n01440764` of `n01440764.tar`.
pub(crate) fn tar_stem(name: &str) -> Option<&str> {
    let stem_len = name.len().checked_sub(4)?;
    let is_tar = name.is_char_boundary(stem_len) && name[stem_len..].eq_ignore_ascii_case(".tar");
    (is_tar && !name[..stem_len].is_empty()).then(|| &name[..stem_len])
}

/// A member's name without `.` parts, or `None` if it is absolute, empty or has a `..`.
fn safe_name(name: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let parts: Vec<&str> = name
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// With the prefix `n01440764/`, `n01440764/x.JPEG` is `x.JPEG`.
fn without_repeated_folder<'a>(prefix: &str, name: &'a str) -> &'a str {
    let folder = prefix
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    match name.split_once('/') {
        Some((first, rest)) if first == folder && !rest.is_empty() => rest,
        _ => name,
    }
}

/// A stretch of a file as a file of its own, read by position.
struct Stretch<'a> {
    file: &'a File,
    start: u64,
    bytes: u64,
    position: u64,
}

impl Read for Stretch<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.bytes.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let n = buffer.len().min(left);
        let n = self
            .file
            .read_at(&mut buffer[..n], self.start + self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for Stretch<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tar of these files, in memory.
    pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Name and content of each member.
    type Members = Vec<(String, Vec<u8>)>;

    fn index(bytes: &[u8]) -> (Result<Members>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        std::fs::write(&path, bytes).unwrap();
        let (mut entries, mut ignored) = (Vec::new(), Ignored::default());
        let result = index_tar(&path, 0, "", &mut entries, &mut ignored).map(|()| {
            let content = |entry: &Entry| match entry.place {
                Place::Member { offset, .. } => {
                    bytes[offset as usize..][..entry.bytes as usize].to_vec()
                }
                _ => unreachable!("a tar has members alone"),
            };
            entries
                .iter()
                .map(|entry| (entry.path.clone(), content(entry)))
                .collect()
        });
        (result, ignored.into_notes())
    }

    #[test]
    fn members_and_members_of_inner_tars() {
        let long_name = format!("c/{}.JPEG", "l".repeat(150));
        let inner = tar_of(&[
            ("x.JPEG", b"inner x"),
            ("n01/y.JPEG", b"inner y"),
            (&long_name, b"long"),
        ]);
        let outer = tar_of(&[("./a/b.JPEG", b"plain"), ("n01.tar", &inner)]);
        let (entries, notes) = index(&outer);
        let expected: Vec<(String, Vec<u8>)> = vec![
            ("a/b.JPEG".into(), b"plain".to_vec()),
            ("n01/x.JPEG".into(), b"inner x".to_vec()),
            ("n01/y.JPEG".into(), b"inner y".to_vec()),
            (format!("n01/{long_name}"), b"long".to_vec()),
        ];
        assert_eq!(entries.unwrap(), expected);
        assert!(notes.is_empty());
    }

    #[test]
    fn ways_out_links_and_specials_are_left_out_and_noted() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &[u8], kind: EntryType| {
            let mut header = tar::Header::new_old();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, io::empty()).unwrap();
        };
        add(b"../../etc/x.JPEG", EntryType::Regular);
        add(b"/etc/y.JPEG", EntryType::Regular);
        add(b"a/link.JPEG", EntryType::Symlink);
        add(b"a/hard.JPEG", EntryType::Link);
        add(b"a/fifo.JPEG", EntryType::Fifo);
        add(b"a/._z.JPEG", EntryType::Regular);
        add(b"a/\xff.JPEG", EntryType::Regular);
        add(b"a/good.JPEG", EntryType::Regular);
        let (entries, notes) = index(&builder.into_inner().unwrap());
        assert_eq!(entries.unwrap(), [("a/good.JPEG".to_owned(), Vec::new())]);
        let notes = notes.join("\n");
        for text in [
            "2 links",
            "1 special",
            "2 members of an archive whose name leads out",
            "1 hidden",
            "not UTF-8",
        ] {
            assert!(notes.contains(text), "{text} in {notes}");
        }
    }

    #[test]
    fn a_cut_archive_and_garbage_are_errors() {
        let whole = tar_of(&[("a/x.JPEG", &[7; 2000]), ("a/y.JPEG", &[8; 2000])]);
        let (cut, _) = index(&whole[..512 + 2048 + 512 + 100]);
        assert!(cut.unwrap_err().to_string().contains("cut short"));
        let (garbage, _) = index(&[b'x'; 2000]);
        assert!(matches!(garbage, Err(Error::Archive { .. })));
        let (half_header, _) = index(&whole[..512 + 2048 + 100]);
        assert!(matches!(half_header, Err(Error::Archive { .. })));
    }

    #[test]
    fn an_inner_tar_that_lies_about_its_size() {
        let inner = tar_of(&[("x.JPEG", &[1; 600])]);
        let outer = tar_of(&[("n01.tar", &inner[..700])]);
        assert!(
            index(&outer)
                .0
                .unwrap_err()
                .to_string()
                .contains("n01/x.JPEG")
        );
    }
}
