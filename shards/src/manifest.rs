//! `manifest.json`: what a set consists of. Written last and atomically; a set without it is unfinished.
//!
//! Its last field, `sha256`, is the hash of the text that the file would have without that field: class names, options
//! and counts are in no other checksum. Manifests of earlier programs have none and are read all the same.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::footer::MAGIC;
use crate::format::OtherFormat;
use crate::hex::hex;
use crate::schema::{ClassName, FORMAT_VERSION, Kind};
use crate::storage::{Store, Version, Written};
use crate::writer::ShardCounts;

/// Bytes between the last of the other fields and the digits of the checksum, and after the digits.
const SEAL_BEFORE: &str = ",\n  \"sha256\": \"";
const SEAL_AFTER: &str = "\"\n}\n";

/// What a manifest without a checksum ends with.
const END: &str = "\n}\n";

/// Name of the manifest within its set.
pub const MANIFEST_NAME: &str = "manifest.json";

/// What a set consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the object of a manifest")]
pub struct Manifest {
    /// Format version of the shards, [`FORMAT_VERSION`].
    pub format: u32,
    /// Images or clips.
    pub kind: Kind,
    /// The splits by name.
    pub splits: BTreeMap<String, SplitManifest>,
    /// The classes, in order of their labels; empty if the set has none.
    pub class_names: Vec<ClassName>,
    /// For each split the options of its conversion.
    pub options: Map<String, Value>,
    /// What the conversion left out.
    pub skipped: Skipped,
}

/// The shards of one split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the shards of a split")]
pub struct SplitManifest {
    /// In order; the samples of the split are those of the shards, one shard after the other.
    pub shards: Vec<ShardEntry>,
}

impl SplitManifest {
    /// Rows of all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    /// Samples of all shards.
    pub fn samples(&self) -> u64 {
        self.shards.iter().map(|shard| shard.samples).sum()
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the object of a shard")]
pub struct ShardEntry {
    /// File name beside the manifest, see [`shard_name`].
    pub name: String,
    /// Rows: images, or frames.
    pub rows: u64,
    /// Samples: images, or clips.
    pub samples: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file in lower-case hexadecimal digits.
    pub sha256: String,
    /// Its row groups in order, so that whoever reads whole groups needs no footer first.
    pub groups: Vec<GroupEntry>,
}

impl ShardEntry {
    /// The entry of a shard that was written and committed under `name`.
    pub fn new(name: String, counts: ShardCounts, written: Written) -> Self {
        ShardEntry {
            name,
            rows: counts.rows,
            samples: counts.samples,
            bytes: written.bytes,
            sha256: written.sha256,
            groups: counts.groups,
        }
    }

    /// Where each row group lies in the file: the first one behind the magic number, each other one behind the one before.
    pub fn group_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.groups.iter().scan(MAGIC.len() as u64, |end, group| {
            let start = *end;
            *end += group.bytes;
            Some(start..*end)
        })
    }

    /// What a reader relies on.
    fn check_groups(&self) -> std::result::Result<(), String> {
        let sum = |of: fn(&GroupEntry) -> u64| {
            let mut parts = self.groups.iter().map(of);
            parts.try_fold(0, u64::checked_add).unwrap_or(u64::MAX)
        };
        let (rows, samples) = (sum(|g| g.rows), sum(|g| g.samples));
        if (rows, samples) != (self.rows, self.samples)
            || self.groups.iter().any(|g| g.samples == 0)
        {
            return Err(format!(
                "shard {} of {} rows and {} samples with row groups of {rows} rows and {samples} samples",
                self.name, self.rows, self.samples
            ));
        }
        let bytes = sum(|g| g.bytes);
        if bytes >= self.bytes {
            return Err(format!(
                "shard {} of {} bytes with row groups of {bytes} bytes",
                self.name, self.bytes
            ));
        }
        Ok(())
    }
}

/// One row group of a shard: the chunks of all its columns, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the object of a row group")]
pub struct GroupEntry {
    /// Rows: images, or frames.
    pub rows: u64,
    /// Samples: images, or clips.
    pub samples: u64,
    /// Bytes of all its columns together.
    pub bytes: u64,
}

/// What a conversion left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "the object of what was skipped")]
pub struct Skipped {
    /// Files that were not converted.
    pub count: u64,
    /// How many for each reason.
    pub by_reason: BTreeMap<String, u64>,
}

/// `train-00042-of-01024.parquet`, for shard `i` of `n`.
pub fn shard_name(split: &str, i: usize, n: usize) -> String {
    format!("{split}-{i:05}-of-{n:05}.parquet")
}

impl Manifest {
    /// Reads the manifest of the set in `store`.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if there is none, [`Error::Manifest`] if it cannot be used, or the store's error.
    pub fn read(store: &Store) -> Result<Self> {
        Ok(Self::read_version(store)?.0)
    }

    /// [`Manifest::read`], and which version of the object it is.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn read_version(store: &Store) -> Result<(Self, Version)> {
        let (bytes, version) = match store.read_version(MANIFEST_NAME) {
            Err(Error::NotFound { .. }) => {
                return Err(Error::Unfinished {
                    uri: store.uri().to_owned(),
                    is_missing: store.folder().is_some_and(|folder| !folder.exists()),
                });
            }
            read => read?,
        };
        let manifest = Self::parse(&bytes).map_err(|reason| Error::Manifest {
            path: store.full_path(MANIFEST_NAME),
            reason,
        })?;
        Ok((manifest, version))
    }

    /// Writes the manifest, which makes the set a finished one.
    ///
    /// # Errors
    /// [`Error::Manifest`] if it contradicts itself, or the store's error.
    pub fn write(&self, store: &Store) -> Result<()> {
        store.put_atomic(MANIFEST_NAME, &self.to_object(store)?)
    }

    /// [`Manifest::write`], unless somebody else wrote it since, see [`Store::replace`].
    ///
    /// * `known`: the version that was read, or `None` if there was none.
    ///
    /// # Errors
    /// [`Error::Conflict`], or as [`Manifest::write`].
    pub fn replace(&self, store: &Store, known: Option<&Version>) -> Result<()> {
        store.replace(MANIFEST_NAME, known, &self.to_object(store)?)
    }

    fn to_object(&self, store: &Store) -> Result<Vec<u8>> {
        let fault = |reason| Error::Manifest {
            path: store.full_path(MANIFEST_NAME),
            reason,
        };
        self.check().map_err(fault)?;
        let mut text = serde_json::to_string_pretty(self).map_err(|e| fault(e.to_string()))?;
        text.push('\n');
        Ok(sealed(&text).into_bytes())
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let unsealed = unsealed(bytes)?;
        let bytes = unsealed.as_deref().unwrap_or(bytes);
        let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let found = match &value {
            Value::Object(_) => None,
            Value::Null => Some("null"),
            Value::Bool(_) => Some("true or false"),
            Value::Number(_) => Some("a number"),
            Value::String(_) => Some("a text"),
            Value::Array(_) => Some("a list"),
        };
        if let Some(found) = found {
            return Err(format!(
                "it holds {found}, expected the object of a manifest"
            ));
        }
        OtherFormat::check_json(bytes, FORMAT_VERSION).map_err(|other| other.to_string())?;
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    /// What a reader relies on; the sums fit 64 bits, because each shard is checked to stay below 2^32 rows.
    fn check(&self) -> std::result::Result<(), String> {
        for shard in self.splits.values().flat_map(|split| &split.shards) {
            let ShardEntry {
                name,
                rows,
                samples,
                bytes,
                sha256,
                groups: _,
            } = shard;
            if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
                return Err(format!("shard name {name:?}, expected a file name"));
            }
            if *rows > u64::from(u32::MAX)
                || samples > rows
                || (self.kind == Kind::Images && samples != rows)
            {
                return Err(format!(
                    "shard {name} of {rows} rows and {samples} samples of {}",
                    self.kind.as_str()
                ));
            }
            if *bytes > i64::MAX as u64 {
                return Err(format!("shard {name} of {bytes} bytes"));
            }
            if sha256.len() != 64
                || !sha256
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            {
                return Err(format!(
                    "shard {name} with sha256 {sha256:?}, expected 64 hexadecimal digits"
                ));
            }
            shard.check_groups()?;
        }
        Ok(())
    }
}

/// The text of a manifest with its checksum as the last field.
fn sealed(text: &str) -> String {
    let body = text.strip_suffix(END).unwrap_or(text);
    let digits = hex(&Sha256::digest(text));
    format!("{body}{SEAL_BEFORE}{digits}{SEAL_AFTER}")
}

/// The text without its checksum, which is compared; `None` if it has none. One that is not written as [`sealed`] does it
/// is left in, and refused as a field that nobody knows.
fn unsealed(bytes: &[u8]) -> std::result::Result<Option<Vec<u8>>, String> {
    let split = || {
        let rest = bytes.strip_suffix(SEAL_AFTER.as_bytes())?;
        let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
        let body = rest.strip_suffix(SEAL_BEFORE.as_bytes())?;
        Some(([body, END.as_bytes()].concat(), digits))
    };
    let Some((text, digits)) = split() else {
        return Ok(None);
    };
    let found = hex(&Sha256::digest(&text));
    if found.as_bytes() != digits {
        return Err(format!(
            "its sha-256 is {found}, expected {} as in its last line: damaged, or changed by hand (then remove its field \"sha256\")",
            String::from_utf8_lossy(digits)
        ));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let shard = ShardEntry {
            name: shard_name("train", 0, 1),
            rows: 3,
            samples: 3,
            bytes: 99,
            sha256: "0a".repeat(32),
            groups: vec![
                GroupEntry {
                    rows: 2,
                    samples: 2,
                    bytes: 40,
                },
                GroupEntry {
                    rows: 1,
                    samples: 1,
                    bytes: 20,
                },
            ],
        };
        assert!(shard.group_ranges().eq([4..44, 44..64]));
        Manifest {
            format: FORMAT_VERSION,
            kind: Kind::Images,
            splits: BTreeMap::from([(
                "train".to_owned(),
                SplitManifest {
                    shards: vec![shard],
                },
            )]),
            class_names: vec![ClassName {
                id: "n1".to_owned(),
                name: "tench".to_owned(),
            }],
            options: Map::new(),
            skipped: Skipped {
                count: 1,
                by_reason: BTreeMap::from([("not a picture".to_owned(), 1)]),
            },
        }
    }

    #[test]
    fn a_manifest_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        assert!(matches!(
            Manifest::read(&store),
            Err(Error::Unfinished {
                is_missing: false,
                ..
            })
        ));
        let nowhere = dir.path().join("nowhere");
        let nowhere = Store::open(nowhere.to_str().unwrap()).unwrap();
        let message = Manifest::read(&nowhere).unwrap_err().to_string();
        assert!(message.ends_with("nowhere does not exist"), "{message}");
        manifest().write(&store).unwrap();
        assert_eq!(Manifest::read(&store).unwrap(), manifest());
    }

    #[test]
    fn no_changed_byte_is_overlooked_and_a_manifest_without_a_checksum_reads() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        let text = manifest().to_object(&store).unwrap();
        assert_eq!(Manifest::parse(&text).unwrap(), manifest());
        for place in 0..text.len() {
            for mask in [1, 2, 4, 8, 16, 32, 64, 128, 0x2a] {
                let mut changed = text.clone();
                changed[place] ^= mask;
                assert!(Manifest::parse(&changed).is_err(), "byte {place} ^ {mask}");
            }
            assert!(Manifest::parse(&text[..place]).is_err(), "cut at {place}");
        }
        let unsealed = unsealed(&text).unwrap().unwrap();
        let value = serde_json::to_value(manifest()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&unsealed).unwrap(), value);
        assert_eq!(Manifest::parse(&unsealed).unwrap(), manifest());
        let other = String::from_utf8(text).unwrap().replace("tench", "bench");
        let message = Manifest::parse(other.as_bytes()).unwrap_err();
        assert!(message.contains("sha-256"), "{message}");
    }

    #[test]
    fn shard_names_sort() {
        assert_eq!(
            shard_name("train", 42, 1024),
            "train-00042-of-01024.parquet"
        );
    }

    #[test]
    fn bad_manifests_name_what_is_wrong() {
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut value = serde_json::to_value(manifest()).unwrap();
            change(&mut value);
            Manifest::parse(value.to_string().as_bytes()).unwrap_err()
        };
        let shard = "/splits/train/shards/0";
        let set = |field: &'static str, new: Value| {
            refused(&move |value| value.pointer_mut(shard).unwrap()[field] = new.clone())
        };
        assert!(set("name", "../secret".into()).contains("../secret"));
        assert!(set("name", ".hidden".into()).contains(".hidden"));
        assert!(set("rows", 4.into()).contains("4 rows"));
        assert!(set("rows", (1u64 << 40).into()).contains("rows"));
        assert!(set("bytes", u64::MAX.into()).contains("bytes"));
        assert!(set("bytes", 60.into()).contains("row groups of 60 bytes"));
        assert!(set("groups", Value::Array(Vec::new())).contains("0 rows"));
        let group = |rows: u64, samples: u64, bytes: u64| serde_json::json!([{ "rows": rows, "samples": samples, "bytes": bytes }]);
        assert!(set("groups", group(3, 2, 9)).contains("2 samples"));
        assert!(set("groups", group(u64::MAX, 3, 9)).contains("rows"));
        assert!(set("groups", group(3, 3, u64::MAX)).contains("bytes"));
        assert!(set("sha256", "0A".repeat(32).into()).contains("sha256"));
        assert!(refused(&|value| value["format"] = 2.into()).contains("format 2"));
        assert!(refused(&|value| value["kind"] = "films".into()).contains("films"));
        assert!(refused(&|value| value["surprise"] = 1.into()).contains("surprise"));
        assert!(Manifest::parse(b"{\"format\": 1").is_err());
        for (text, found) in [
            ("null", "null"),
            ("[]", "a list"),
            ("[1]", "a list"),
            ("1", "a number"),
        ] {
            let message = Manifest::parse(text.as_bytes()).unwrap_err();
            assert!(
                message.contains(found) && !message.contains("struct"),
                "{message}"
            );
        }
        let message = set("rows", "x".into());
        assert!(!message.contains("struct"), "{message}");
        let message = refused(&|value| value["splits"]["train"] = Value::Null);
        assert!(
            message.contains("the shards of a split") && !message.contains("struct"),
            "{message}"
        );
    }
}
