//! Where the members of a tar lie: headers are read once, contents are skipped, nothing is unpacked.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use shards::printable;
use tar::EntryType;

use super::error::{Error, Result};
use super::source::{Broken, Ignored, Place};
use super::tree::{BrokenEntry, BrokenKind, Entry};

/// How deep tars may lie in tars: ImageNet's training tar holds one tar a class.
const MOST_NESTED: u32 = 1;

/// Headers and contents begin at multiples of this.
const BLOCK_BYTES: u64 = 512;

/// Lists the regular files of a tar, those of the tars inside it included.
///
/// A member `x.JPEG` of the tar is entered as `<prefix>x.JPEG`, a member of its inner tar `n01440764.tar` as
/// `<prefix>n01440764/x.JPEG`, whether or not the inner tar repeats the folder `n01440764` itself. A damaged inner tar
/// is entered as broken.
///
/// # Errors
/// [`Error::Read`], and [`Error::Archive`] if a header is damaged or the archive ends before its last member does. Then
/// what comes before the damage is entered.
pub(crate) fn index_tar(
    path: &Path,
    archive: u32,
    prefix: &str,
    entries: &mut Vec<Entry>,
    broken: &mut Vec<BrokenEntry>,
    ignored: &mut Ignored,
) -> Result<()> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut walk = Walk {
        file: &file,
        archive,
        entries,
        broken,
        ignored,
    };
    walk.stretch(0, bytes, prefix, 0)
        .map_err(|fault| match fault {
            Fault::System(source) => failed(source),
            Fault::Damage(reason) => Error::Archive {
                path: path.to_path_buf(),
                reason,
            },
        })
}

/// Why a tar cannot be read on.
enum Fault {
    System(io::Error),
    Damage(String),
}

struct Walk<'a> {
    file: &'a File,
    archive: u32,
    entries: &'a mut Vec<Entry>,
    broken: &'a mut Vec<BrokenEntry>,
    ignored: &'a mut Ignored,
}

impl Walk<'_> {
    fn stretch(&mut self, start: u64, bytes: u64, prefix: &str, depth: u32) -> Result<(), Fault> {
        if let Some(what) = self.other_format(start, bytes)? {
            return Err(Fault::Damage(format!(
                "it is {what}, and only plain tars are read in place; make it a plain .tar first"
            )));
        }
        let reading = Reading::default();
        let mut tar = tar::Archive::new(Stretch {
            file: self.file,
            start,
            bytes,
            reading: &reading,
        });
        let damaged = || match reading.failed.take() {
            Some(error) => Fault::System(error),
            None if reading.met_end.get() => Fault::Damage(format!(
                "it is cut short at byte {bytes} of {} or more",
                (bytes + 1).next_multiple_of(BLOCK_BYTES)
            )),
            None => Fault::Damage(format!(
                "it is no tar, or damaged before byte {}: no header of a member there",
                reading.position.get()
            )),
        };
        let members = tar.entries_with_seek().map_err(|_| damaged())?;
        for member in members {
            let member = member.map_err(|_| damaged())?;
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
            let end = offset.saturating_add(size);
            if end > bytes {
                return Err(Fault::Damage(format!(
                    "it is cut short at byte {bytes} of {end} or more, within '{}'",
                    printable(&format!("{prefix}{name}"))
                )));
            }
            let name = without_repeated_folder(prefix, &name);
            match tar_stem(name) {
                Some(stem) if depth < MOST_NESTED => {
                    let folder = format!("{prefix}{stem}/");
                    match self.stretch(start + offset, size, &folder, depth + 1) {
                        Err(Fault::Damage(reason)) => self.broken.push(BrokenEntry {
                            path: folder,
                            name: format!("{prefix}{name}"),
                            kind: BrokenKind::Folder,
                            broken: Broken {
                                fault: "damaged archive",
                                reason,
                            },
                        }),
                        other => other?,
                    }
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

    /// What a stretch is that begins as other kinds of archive do.
    fn other_format(&self, start: u64, bytes: u64) -> Result<Option<&'static str>, Fault> {
        let mut head = [0; 6];
        let n_bytes = bytes.min(head.len() as u64) as usize; // at most 6
        match self.file.read_exact_at(&mut head[..n_bytes], start) {
            Ok(()) => Ok(other_format(&head[..n_bytes])),
            // The file became shorter: what follows will say so.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(Fault::System(error)),
        }
    }
}

/// Names the archive that a file is which begins so, if that is no tar.
pub(crate) fn other_format(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x1f, 0x8b, ..] => Some("compressed with gzip"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Some("compressed with bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("compressed with xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("compressed with zstd"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some("compressed with lz4"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        _ => None,
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
    reading: &'a Reading,
}

/// How far the reading of a stretch is.
#[derive(Default)]
struct Reading {
    position: Cell<u64>,
    /// Whether more was asked for than there is.
    met_end: Cell<bool>,
    /// The system's error, which the tar library would wrap.
    failed: Cell<Option<io::Error>>,
}

impl Read for Stretch<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.reading.position.get();
        let left = usize::try_from(self.bytes.saturating_sub(position)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self
            .file
            .read_at(&mut buffer[..wanted], self.start + position);
        let n = read.map_err(|error| {
            let kind = error.kind();
            self.reading.failed.set(Some(error));
            io::Error::from(kind)
        })?;
        self.reading.met_end.set(n == 0 && !buffer.is_empty());
        self.reading.position.set(position + n as u64);
        Ok(n)
    }
}

impl Seek for Stretch<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.reading.position.get().checked_add_signed(by),
        };
        let position = position.ok_or(io::ErrorKind::InvalidInput)?;
        self.reading.position.set(position);
        Ok(position)
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
        let (mut entries, mut broken) = (Vec::new(), Vec::new());
        let mut ignored = Ignored::default();
        let result = index_tar(&path, 0, "", &mut entries, &mut broken, &mut ignored).map(|()| {
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
        let broken = broken
            .iter()
            .map(|broken| format!("{}: {}", broken.name, broken.broken.reason));
        (
            result,
            ignored.into_notes().into_iter().chain(broken).collect(),
        )
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
    fn a_cut_archive_says_where_and_garbage_what_it_is() {
        let whole = tar_of(&[("a/x.JPEG", &[7; 2000]), ("a/y.JPEG", &[8; 2000])]);
        let message = |bytes: &[u8]| match index(bytes).0 {
            Err(Error::Archive { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
        let cut = message(&whole[..512 + 2048 + 512 + 100]);
        assert_eq!(
            cut,
            "it is cut short at byte 3172 of 5072 or more, within 'a/y.JPEG'"
        );
        let half_header = message(&whole[..512 + 2048 + 100]);
        assert_eq!(half_header, "it is cut short at byte 2660 of 3072 or more");
        let mut torn = whole.clone();
        torn[2560..2600].fill(b'x');
        assert!(message(&torn).contains("damaged before byte 3072"));
        assert!(message(&[b'x'; 2000]).contains("no tar, or damaged before byte 512"));
        let gzip = message(&[[0x1f, 0x8b, 8].as_slice(), &[9; 2000]].concat());
        assert!(
            gzip.contains("compressed with gzip") && gzip.contains("plain"),
            "{gzip}"
        );
        let control = tar_of(&[("a/\x1b[2J.JPEG", &[7; 2000])]);
        let control = message(&control[..600]);
        assert!(
            control.contains("'a/\\u{1b}[2J.JPEG'") && !control.contains('\x1b'),
            "{control}"
        );
    }

    #[test]
    fn a_damaged_inner_tar_is_broken_and_the_others_are_listed() {
        let inner = tar_of(&[("x.JPEG", &[1; 600])]);
        let outer = tar_of(&[
            ("n01.tar", &inner[..700]),
            ("n02.tar", &inner),
            ("n03.tar", &[0x1f, 0x8b, 8]),
        ]);
        let (entries, notes) = index(&outer);
        assert_eq!(
            entries.unwrap(),
            [("n02/x.JPEG".to_owned(), [1; 600].to_vec())]
        );
        assert_eq!(notes.len(), 2);
        assert!(notes[0].starts_with("n01.tar: it is cut short at byte 700 of 1112"));
        assert!(notes[1].starts_with("n03.tar: it is compressed with gzip"));
    }
}
