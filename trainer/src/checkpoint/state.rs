//! `state.json`: where a run stood, and what the files beside it must be.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use pipeline::OtherFormat;
use pipeline::loader::LoaderState;
use serde::{Deserialize, Serialize};

use super::STATE_FILE;
use crate::error::{Error, Result};

/// Version of the checkpoint's layout.
pub const FORMAT_VERSION: u32 = 1;

/// Where a run stood between two optimizer steps. No floats: their text would not always come back the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Optimizer steps made.
    pub step: u64,
    /// The next batch to come.
    pub loader: LoaderState,
    /// Micro-batches in an epoch; another number means other data.
    pub batches_per_epoch: u64,
    /// The losses that the run's summary needs.
    pub losses: LossBits,
    /// The resolved configuration, as TOML.
    pub config: String,
    /// Size and checksum of the other files, by name.
    pub files: BTreeMap<String, FileSum>,
    /// CRC-32C of this file with 0 in this place.
    pub crc32c: u32,
}

/// The bits of f32 losses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossBits {
    /// Of the run's first steps.
    pub first: Vec<u32>,
    /// Of the last steps so far.
    pub last: Vec<u32>,
}

/// What a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    /// Its length.
    pub bytes: u64,
    /// CRC-32C of all of it.
    pub crc32c: u32,
}

impl FileSum {
    /// Reads a file to its end.
    pub fn of(path: &Path) -> Result<Self> {
        let mut file = fs::File::open(path).map_err(Error::io(path))?;
        let mut buffer = vec![0; 1 << 20];
        let mut sum = FileSum {
            bytes: 0,
            crc32c: 0,
        };
        loop {
            let n = file.read(&mut buffer).map_err(Error::io(path))?;
            if n == 0 {
                return Ok(sum);
            }
            sum.bytes += n as u64;
            sum.crc32c = crc32c::crc32c_append(sum.crc32c, &buffer[..n]);
        }
    }
}

impl State {
    /// A state without files yet.
    pub fn new(
        step: u64,
        loader: LoaderState,
        batches_per_epoch: u64,
        config: String,
        losses: LossBits,
    ) -> Self {
        Self {
            format: FORMAT_VERSION,
            program: env!("CARGO_PKG_VERSION").to_string(),
            step,
            loader,
            batches_per_epoch,
            losses,
            config,
            files: BTreeMap::new(),
            crc32c: 0,
        }
    }

    /// The file's text, its own checksum filled in.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let text = |state: &State| {
            serde_json::to_vec_pretty(state).map_err(|source| Error::Json {
                path: STATE_FILE.into(),
                source,
            })
        };
        let unsigned = Self {
            crc32c: 0,
            ..self.clone()
        };
        text(&Self {
            crc32c: crc32c::crc32c(&text(&unsigned)?),
            ..unsigned
        })
    }

    /// Reads a checkpoint's state and checks it and every file that it names.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file and what is wrong with it; [`Error::Format`].
    pub fn read_verified(dir: &Path) -> Result<Self> {
        let path = dir.join(STATE_FILE);
        let damaged = |path: &Path, problem: String| Error::Checkpoint {
            path: path.to_path_buf(),
            problem,
        };
        let text = fs::read(&path).map_err(|error| damaged(&path, error.to_string()))?;
        let state: Self = serde_json::from_slice(&text).map_err(|error| {
            match OtherFormat::check_json(&text, FORMAT_VERSION) {
                Err(other) => Error::format(&path)(other),
                Ok(()) => damaged(&path, error.to_string()),
            }
        })?;
        if state.to_json()? != text {
            return Err(damaged(
                &path,
                "does not match its own checksum".to_string(),
            ));
        }
        // After the checksum, so that a flipped bit in the number is damage.
        OtherFormat::check(state.format.into(), FORMAT_VERSION).map_err(Error::format(&path))?;
        for (name, &expected) in &state.files {
            let path = dir.join(name);
            let got = FileSum::of(&path).map_err(|error| damaged(dir, error.to_string()))?;
            if got != expected {
                let problem = format!(
                    "has {} bytes with CRC-32C {:08x}, expected {} with {:08x}",
                    got.bytes, got.crc32c, expected.bytes, expected.crc32c
                );
                return Err(damaged(&path, problem));
            }
        }
        Ok(state)
    }
}
