//! A run with labels between two steps: one file, replaced in one go.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::accuracy::Hits;
use crate::checkpoint::{read_tensors, write_tensors};
use crate::error::{Error, Result};
use crate::files;

/// Weights and optimizer, in the evaluation's folder.
pub const STATE_FILE: &str = "state.safetensors";

/// The metadata entry that holds a [`Saved`].
const STATE_KEY: &str = "pairquet.eval";

/// Where a run stood. Floats are kept by their bits: their text would not always come back the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    /// What the run is of; another means other settings, weights or data.
    pub(super) identity: serde_json::Map<String, serde_json::Value>,
    /// The epochs that were trained and scored.
    pub(super) epochs: Vec<SavedEpoch>,
    /// Steps made of the epoch after these.
    pub(super) steps_of_epoch: u64,
    /// Sum of that epoch's losses so far.
    pub(super) loss_sum_bits: u64,
    /// Steps made in all.
    pub(super) steps: u64,
}

/// An epoch that was trained and scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedEpoch {
    /// Mean training loss.
    pub(super) loss_bits: u64,
    /// On the val split.
    pub(super) hits: Hits,
}

impl Saved {
    /// Replaces the file: a kill leaves the old one or the new one.
    pub(super) fn write(&self, path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let json = serde_json::to_string(self).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (STATE_KEY.to_owned(), json),
        ]);
        let temp = path.with_extension("tmp");
        write_tensors(&temp, tensors, &metadata)?;
        files::sync(&temp)?;
        fs::rename(&temp, path).map_err(Error::io(path))
    }

    /// Reads the file, if it is there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is not such a file.
    pub(super) fn read(
        path: &Path,
        device: &Device,
    ) -> Result<Option<(Self, HashMap<String, Tensor>)>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(Error::io(path))?,
        };
        let damaged = |problem: String| Error::Checkpoint {
            path: path.to_owned(),
            problem: format!("{problem}; delete it to start over"),
        };
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
        let json = header
            .metadata()
            .as_ref()
            .and_then(|all| all.get(STATE_KEY));
        let json =
            json.ok_or_else(|| damaged(format!("has no {STATE_KEY}, expected a run's state")))?;
        let saved = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
        Ok(Some((saved, read_tensors(path, device)?)))
    }

    /// Whether this is the state of the run `identity`.
    ///
    /// # Errors
    /// [`Error::ConfigChanged`] naming what differs.
    pub(super) fn check(
        &self,
        path: &Path,
        identity: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<()> {
        let none = serde_json::Value::Null;
        let differences: Vec<String> = identity
            .keys()
            .chain(
                self.identity
                    .keys()
                    .filter(|key| !identity.contains_key(*key)),
            )
            .filter_map(|key| {
                let old = self.identity.get(key).unwrap_or(&none);
                let new = identity.get(key).unwrap_or(&none);
                (old != new).then(|| format!("{key}: {old} -> {new}"))
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::ConfigChanged {
            path: path.to_owned(),
            differences: differences.join("; "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn identity(lr: f64) -> serde_json::Map<String, serde_json::Value> {
        let value = json!({"lr": lr, "epochs": 3});
        value.as_object().unwrap().clone()
    }

    #[test]
    fn comes_back_as_it_was_and_only_for_its_own_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        assert!(Saved::read(&path, &Device::Cpu).unwrap().is_none());
        let mut hits = Hits::default();
        hits.add(Some(3));
        let saved = Saved {
            identity: identity(0.1),
            epochs: vec![SavedEpoch {
                loss_bits: (1.0f64 / 3.0).to_bits(),
                hits,
            }],
            steps_of_epoch: 2,
            loss_sum_bits: f64::NAN.to_bits(),
            steps: 7,
        };
        let tensor = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("w".to_owned(), tensor)]);
        saved.write(&path, &tensors).unwrap();
        saved.write(&path, &tensors).unwrap();
        let (read, tensors) = Saved::read(&path, &Device::Cpu).unwrap().unwrap();
        assert_eq!(read, saved);
        assert_eq!(tensors["w"].to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        read.check(&path, &identity(0.1)).unwrap();
        let message = read.check(&path, &identity(0.2)).unwrap_err().to_string();
        assert!(message.contains("lr: 0.1 -> 0.2"), "{message}");
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        write_tensors(&path, &BTreeMap::new(), &BTreeMap::new()).unwrap();
        for _ in 0..2 {
            let message = Saved::read(&path, &Device::Cpu).unwrap_err().to_string();
            assert!(message.contains("delete it to start over"), "{message}");
            fs::write(&path, b"no").unwrap();
        }
    }
}
