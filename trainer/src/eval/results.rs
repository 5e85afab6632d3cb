//! What an evaluation leaves behind: `results.json`, every number with what it was made from.

use std::collections::BTreeMap;
use std::path::Path;

use pipeline::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encoder::CheckpointId;
use crate::error::{Error, Result};
use crate::files;

/// An evaluation's results in its folder.
pub const RESULTS_FILE: &str = "results.json";

/// Version of the layout of `results.json`.
pub const RESULTS_FORMAT: u32 = 1;

/// `results.json`: `S` are the settings of the protocol, every one written out, `N` its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results<S, N> {
    /// Version of this layout.
    pub format: u32,
    /// Which evaluation: `davis`, `vip`, `jhmdb`, `knn`, ...
    pub protocol: String,
    /// Whether everything that was to be scored is.
    pub complete: bool,
    /// The weights.
    pub checkpoint: CheckpointId,
    /// What they looked at.
    pub data: DataId,
    /// What the numbers depend on beside these.
    pub settings: S,
    /// The numbers.
    pub scores: N,
    /// What could not be scored, and why.
    pub failed: Vec<Failed>,
    /// The program and what it ran on.
    pub versions: Versions,
}

/// Something that could not be scored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// A sequence, a class, a split.
    pub what: String,
    /// The error.
    pub why: String,
}

/// What ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Of the program.
    pub pairquet: String,
    /// As [`crate::device::describe`] puts it.
    pub device: String,
}

impl Versions {
    /// This program on `device`.
    pub fn here(device: &candle_core::Device) -> Versions {
        Versions {
            pairquet: env!("CARGO_PKG_VERSION").to_owned(),
            device: crate::device::describe(device),
        }
    }
}

impl<S: Serialize, N: Serialize> Results<S, N> {
    /// Writes the file in one go: a reader, and a kill, meet the old one or the new one.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::Json`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        text.push(b'\n');
        files::replace(path, &text)
    }
}

/// Which data an evaluation read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataId {
    /// Files read.
    pub n_files: u64,
    /// Their length together.
    pub n_bytes: u64,
    /// SHA-256 over name and SHA-256 of each, in order of the names.
    pub sha256: String,
}

/// Collects what is read, in any order.
#[derive(Debug, Clone, Default)]
pub struct DataHash {
    n_files: u64,
    n_bytes: u64,
    parts: BTreeMap<String, String>,
}

impl DataHash {
    /// A file, under a name that does not depend on where the data set lies.
    pub fn file(&mut self, name: &str, bytes: &[u8]) {
        self.n_files += 1;
        self.n_bytes += bytes.len() as u64;
        self.parts
            .insert(name.to_owned(), hex(&Sha256::digest(bytes)));
    }

    /// Several files, collected before.
    pub fn part(&mut self, name: &str, part: &DataId) {
        self.n_files += part.n_files;
        self.n_bytes += part.n_bytes;
        self.parts.insert(name.to_owned(), part.sha256.clone());
    }

    /// All of it.
    pub fn finish(&self) -> DataId {
        let mut hasher = Sha256::new();
        for (name, sha256) in &self.parts {
            hasher.update(format!("{sha256}  {name}\n"));
        }
        DataId {
            n_files: self.n_files,
            n_bytes: self.n_bytes,
            sha256: hex(&hasher.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_of_names_and_bytes_and_not_of_their_order() {
        let hash = |files: &[(&str, &str)]| {
            let mut hash = DataHash::default();
            for (name, bytes) in files {
                hash.file(name, bytes.as_bytes());
            }
            hash.finish()
        };
        let data = hash(&[("a", "1"), ("b", "22")]);
        assert_eq!((data.n_files, data.n_bytes), (2, 3));
        assert_eq!(data, hash(&[("b", "22"), ("a", "1")]));
        assert_ne!(data.sha256, hash(&[("a", "1"), ("b", "23")]).sha256);
        assert_ne!(data.sha256, hash(&[("a", "1"), ("c", "22")]).sha256);
        // printf '%s  a\n%s  b\n' $(printf 1 | sha256sum | head -c64) $(printf 22 | sha256sum | head -c64) | sha256sum
        assert_eq!(
            data.sha256,
            "5f7f905419cbfd157c687f1fe40a631a0e843faee3fef0c10b692d21720c78ff"
        );
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RESULTS_FILE);
        let results = Results {
            format: RESULTS_FORMAT,
            protocol: "test".to_owned(),
            complete: true,
            checkpoint: CheckpointId {
                path: "run".to_owned(),
                weights_sha256: "00".to_owned(),
                epoch: Some(3),
                step: None,
                encoder: "width 8".to_owned(),
                notes: vec!["a note".to_owned()],
            },
            data: DataHash::default().finish(),
            settings: BTreeMap::from([("top_k".to_owned(), 7)]),
            scores: vec![0.1, 1.0 / 3.0],
            failed: vec![],
            versions: Versions::here(&candle_core::Device::Cpu),
        };
        results.write(&path).unwrap();
        let text = std::fs::read(&path).unwrap();
        let read: Results<BTreeMap<String, i32>, Vec<f64>> = serde_json::from_slice(&text).unwrap();
        assert_eq!(read, results);
        assert!(results.write(&dir.path().join("none/x.json")).is_err());
    }
}
