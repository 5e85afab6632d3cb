//! Checkpoint folders as this room sees them: the model's tensors, its configuration and where it stands.
//!
//! A run's checkpoint has `state.json`; one that was imported has `import.json` in its place, because it belongs to no
//! run here. Both have `model.safetensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pipeline::OtherFormat;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{FORMAT_VERSION, FileSum, MODEL_FILE, STATE_FILE, State, locate};
use crate::error::{Error, Result};
use crate::files::sync;
use crate::models::ModelConfig;

/// Beside the tensors of an imported checkpoint: what it is and where it came from.
pub const IMPORT_FILE: &str = "import.json";

/// The file that a checkpoint was imported from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name, without folders.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it, in hexadecimal.
    pub sha256: String,
}

/// What is known about a checkpoint folder.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointInfo {
    /// The model, every size written out.
    pub model: ModelConfig,
    /// The last epoch that was trained to its end, counted from 0.
    pub epoch: Option<u64>,
    /// Optimizer steps made.
    pub step: Option<u64>,
    /// The file it was imported from.
    pub source: Option<Source>,
}

/// `import.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ImportCard {
    /// Version of this layout.
    pub format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    pub source: Source,
    /// The model's configuration as TOML: a float read from JSON is not always the one that was written.
    pub model: String,
    pub epoch: Option<u64>,
    /// Optimizer steps made, where the optimizer's state came along.
    pub step: Option<u64>,
    pub notes: Vec<String>,
    /// Size and checksum of the other files, by name.
    pub files: BTreeMap<String, FileSum>,
}

/// Version of `import.json`.
pub(super) const IMPORT_FORMAT: u32 = 1;

/// Finds the checkpoint that `path` means (as [`locate`]), checks every byte of its files and reads what it says about
/// itself. Returns its folder too.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none or it is damaged.
pub(super) fn open(path: &Path) -> Result<(PathBuf, CheckpointInfo)> {
    let dir = locate(path)?;
    let files = match read_card(&dir)? {
        None => State::read_verified(&dir)?.files,
        Some(card) => {
            for (name, expected) in &card.files {
                let path = dir.join(name);
                if FileSum::of(&path)? != *expected {
                    let problem =
                        format!("is not the file that was written, expected {expected:?}");
                    return Err(Error::Checkpoint { path, problem });
                }
            }
            card.files
        }
    };
    if !files.contains_key(MODEL_FILE) {
        let problem = format!("does not name {MODEL_FILE} among its files");
        return Err(Error::Checkpoint { path: dir, problem });
    }
    let info = checkpoint_info(&dir)?;
    Ok((dir, info))
}

/// `import.json`, if the folder has one.
fn read_card(dir: &Path) -> Result<Option<ImportCard>> {
    let path = dir.join(IMPORT_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read(&path).map_err(Error::io(&path))?;
    OtherFormat::check_json(&text, IMPORT_FORMAT).map_err(Error::format(&path))?;
    let card: ImportCard = serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    Ok(Some(card))
}

/// A model's configuration as TOML.
pub(super) fn model_to_toml(model: &ModelConfig) -> Result<String> {
    toml::to_string(model).map_err(|e| Error::ConfigSyntax(e.to_string()))
}

/// What [`model_to_toml`] wrote; a sentence if it is not.
pub(super) fn model_from_toml(text: &str) -> Result<ModelConfig, String> {
    toml::from_str(text).map_err(|e| format!("model: {}", e.to_string().trim_end()))
}

/// Reads what a checkpoint folder says about itself, a run's or an imported one; looks at no tensor.
///
/// # Errors
/// [`Error::Checkpoint`] if it is neither, or its configuration cannot be read.
pub fn checkpoint_info(dir: &Path) -> Result<CheckpointInfo> {
    if let Some(card) = read_card(dir)? {
        return Ok(CheckpointInfo {
            model: model_from_toml(&card.model).map_err(|problem| Error::Checkpoint {
                path: dir.join(IMPORT_FILE),
                problem,
            })?,
            epoch: card.epoch,
            step: card.step,
            source: Some(card.source),
        });
    }
    let path = dir.join(STATE_FILE);
    if !path.is_file() {
        let problem =
            format!("neither {STATE_FILE} nor {IMPORT_FILE} in it, expected a checkpoint's folder");
        return Err(Error::Checkpoint {
            path: dir.to_owned(),
            problem,
        });
    }
    let text = fs::read(&path).map_err(Error::io(&path))?;
    OtherFormat::check_json(&text, FORMAT_VERSION).map_err(Error::format(&path))?;
    let state: serde_json::Value = serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    let damaged = |problem: String| Error::Checkpoint {
        path: path.clone(),
        problem,
    };
    // The model's table alone: a checkpoint stays readable when other tables of the configuration change.
    let config = state["config"]
        .as_str()
        .ok_or_else(|| damaged("has no config".to_owned()))?;
    let config: toml::Table = config
        .parse()
        .map_err(|e: toml::de::Error| damaged(format!("config: {e}")))?;
    let model = config
        .get("model")
        .cloned()
        .unwrap_or_else(|| toml::Table::new().into());
    let model: ModelConfig = model
        .try_into()
        .map_err(|e: toml::de::Error| damaged(format!("config: model: {e}")))?;
    let size = model.sizes().img_size;
    Ok(CheckpointInfo {
        model: model.resolved(size)?,
        // the loader stands at the batch to come, so its epoch is not over
        epoch: state["loader"]["epoch"]
            .as_u64()
            .and_then(|epoch| epoch.checked_sub(1)),
        step: state["step"].as_u64(),
        source: None,
    })
}

/// Writes a value as JSON for people to read too.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    fs::write(path, text).map_err(Error::io(path))
}

/// A folder that appears under its name all at once, or not at all.
pub(super) struct NewFolder {
    temp: PathBuf,
    dst: PathBuf,
    done: bool,
}

impl NewFolder {
    /// Makes a temporary folder beside `dst`, which must not exist or be empty.
    pub(super) fn create(dst: &Path) -> Result<NewFolder> {
        let taken = match fs::read_dir(dst) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => dst.exists(),
        };
        if taken {
            let problem = "is there already, expected a new or an empty folder".to_owned();
            return Err(Error::Checkpoint {
                path: dst.to_owned(),
                problem,
            });
        }
        let name = dst.file_name().ok_or_else(|| Error::Checkpoint {
            path: dst.to_owned(),
            problem: "has no name, expected a folder to make".to_owned(),
        })?;
        let parent = dst
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let temp = parent.join(format!(".tmp-{}", name.to_string_lossy()));
        if temp.exists() {
            fs::remove_dir_all(&temp).map_err(Error::io(&temp))?;
        }
        fs::create_dir(&temp).map_err(Error::io(&temp))?;
        Ok(NewFolder {
            temp,
            dst: dst.to_owned(),
            done: false,
        })
    }

    /// Where to write a file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.temp.join(name)
    }

    /// Makes the files durable and gives the folder its name.
    pub(super) fn commit(mut self) -> Result<()> {
        for entry in fs::read_dir(&self.temp).map_err(Error::io(&self.temp))? {
            let path = entry.map_err(Error::io(&self.temp))?.path();
            sync(&path)?;
        }
        sync(&self.temp)?;
        fs::rename(&self.temp, &self.dst).map_err(Error::io(&self.dst))?;
        self.done = true;
        match self.dst.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => sync(parent),
            None => sync(Path::new(".")),
        }
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.done {
            // Best effort: what stays is replaced by the next try.
            drop(fs::remove_dir_all(&self.temp));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let dst = root.path().join("a/b");
        let folder = NewFolder::create(&dst).unwrap();
        fs::write(folder.path("x"), b"1").unwrap();
        drop(folder);
        assert!(!dst.exists());
        assert_eq!(fs::read_dir(root.path().join("a")).unwrap().count(), 0);

        let folder = NewFolder::create(&dst).unwrap();
        fs::write(folder.path("x"), b"1").unwrap();
        folder.commit().unwrap();
        assert_eq!(fs::read(dst.join("x")).unwrap(), b"1");
        assert!(
            NewFolder::create(&dst)
                .err()
                .unwrap()
                .to_string()
                .contains("is there already")
        );
        fs::remove_file(dst.join("x")).unwrap();
        NewFolder::create(&dst).unwrap().commit().unwrap();
    }

    #[test]
    fn a_runs_checkpoint_is_read_by_its_state() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            checkpoint_info(dir.path())
                .unwrap_err()
                .to_string()
                .contains("state.json")
        );
        let state = serde_json::json!({
            "step": 12, "loader": {"epoch": 3, "batch": 1},
            "config": "name = \"x\"\n[model]\nkind = \"mae\"\nencoder = \"vit_ti16\"\nimg_size = 96\n",
        });
        fs::write(dir.path().join(STATE_FILE), state.to_string()).unwrap();
        let info = checkpoint_info(dir.path()).unwrap();
        assert_eq!(
            (info.epoch, info.step, info.source),
            (Some(2), Some(12), None)
        );
        assert_eq!(
            (info.model.img_size, info.model.embed_dim),
            (Some(96), Some(192))
        );
        fs::write(
            dir.path().join(STATE_FILE),
            "{\"config\": \"[model]\\nkind = 7\"}",
        )
        .unwrap();
        assert!(checkpoint_info(dir.path()).is_err());
    }
}
