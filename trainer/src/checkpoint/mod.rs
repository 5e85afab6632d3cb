//! Checkpoints: everything that a run needs to go on as if it had never stopped.
//!
//! ```text
//! checkpoints/
//!   latest                    the newest folder's name, replaced atomically
//!   step-00000300/
//!     model.safetensors       every parameter and fixed table, by the reference's names
//!     optim.safetensors       exp_avg.<name> and exp_avg_sq.<name> of AdamW
//!     ema.safetensors         the running mean of model.safetensors, if the run keeps one
//!     state.json              step, place in the data, config, sizes and checksums of the others
//! ```
//!
//! A folder is written under a temporary name, made durable and renamed, so it is either whole or not there.
//! Finding one to resume from checks every byte of it; a damaged one is named and the one before it is taken.

mod state;
mod tensors;

pub use state::{FORMAT_VERSION, FileSum, LossBits, State};
pub use tensors::read_tensors;
pub(crate) use tensors::write_tensors;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::Device;
use pipeline::stall;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{sync, write_durably};
use crate::nn::params::Params;
use crate::optim::{AdamW, Ema};

/// Folder of the checkpoints in the run folder.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// File that names the newest checkpoint.
pub const LATEST_FILE: &str = "latest";

/// Parameters and fixed tables.
pub const MODEL_FILE: &str = "model.safetensors";

/// The optimizer's moments.
pub const OPTIM_FILE: &str = "optim.safetensors";

/// The running mean of the parameters, with the fixed tables: a whole model.
pub const EMA_FILE: &str = "ema.safetensors";

/// Everything else.
pub const STATE_FILE: &str = "state.json";

/// Start of the names of folders that are still being written or already being removed.
const TEMP_PREFIX: &str = ".tmp-";

/// Start of the names of folders that stood in the way of a newer copy of themselves.
const REPLACED_PREFIX: &str = ".tmp-replaced-";

/// Start of the names of checkpoints that are not whole and were passed over.
const DAMAGED_PREFIX: &str = "damaged-";

/// Which older checkpoints stay.
#[derive(Clone, Copy)]
pub struct Keep<'a> {
    /// This many of the newest.
    pub last: usize,
    /// And every one whose step is a milestone.
    pub is_milestone: &'a dyn Fn(u64) -> bool,
}

/// A checkpoint that was found whole.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    /// Its folder.
    pub dir: PathBuf,
    /// Its `state.json`.
    pub state: State,
}

/// The checkpoints of one run.
#[derive(Debug)]
pub struct Checkpoints {
    root: PathBuf,
}

impl Checkpoints {
    /// Opens (and makes) the checkpoint folder of a run and removes what a kill left half-written there; a copy
    /// that was about to be replaced by a newer one that never came is put back.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let root = run_dir.join(CHECKPOINTS_DIR);
        fs::create_dir_all(&root).map_err(Error::io(&root))?;
        for name in names(&root)? {
            let original = name
                .strip_prefix(REPLACED_PREFIX)
                .map(|name| root.join(name));
            if let Some(original) = original.filter(|original| !original.exists()) {
                fs::rename(root.join(&name), &original).map_err(Error::io(&original))?;
                sync(&root)?;
            } else if name.starts_with(TEMP_PREFIX) {
                remove(&root.join(name))?;
            }
        }
        Ok(Self { root })
    }

    /// The newest checkpoint that is whole, and a sentence for each newer one that is not. `None` for a run without
    /// checkpoints.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there are checkpoints and none is whole: starting over silently would waste the run.
    /// [`Error::Format`] if another version of this program wrote the newest.
    pub fn newest(&self) -> Result<(Option<Found>, Vec<String>)> {
        let mut damaged = Vec::new();
        for (_, dir) in self.list()?.into_iter().rev() {
            let _busy = stall::busy("checkpoint", format!("reading {}", dir.display()));
            match State::read_verified(&dir) {
                Ok(state) => return Ok((Some(Found { dir, state }), damaged)),
                // Whole for all that is known, so neither to be passed over nor to be renamed.
                Err(error @ Error::Format { .. }) => return Err(error),
                Err(error) => damaged.push(format!("{error}; trying the one before it")),
            }
        }
        let latest = self.root.join(LATEST_FILE);
        let problem = match (damaged.is_empty(), fs::read_to_string(&latest)) {
            (true, Err(_)) => return Ok((None, damaged)),
            (true, Ok(name)) => format!(
                "latest names {}, which is gone, and no other is there; put it back, or delete {} to start over",
                name.trim(),
                latest.display()
            ),
            (false, _) => format!("no checkpoint in it is whole: {}", damaged.join("; ")),
        };
        Err(Error::Checkpoint {
            path: self.root.clone(),
            problem,
        })
    }

    /// Renames every checkpoint after `step` to `damaged-step-N` and points `latest` at that of `step`; returns the new
    /// folders. For resuming: those are the ones that [`Self::newest`] passed over, and they must neither be counted
    /// among those to keep nor be met again.
    pub fn set_aside_after(&self, step: u64) -> Result<Vec<PathBuf>> {
        let mut aside = Vec::new();
        for (_, dir) in self.list()?.into_iter().filter(|(other, _)| *other > step) {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let numbered = |n: u32| match n {
                1 => self.root.join(format!("{DAMAGED_PREFIX}{name}")),
                n => self.root.join(format!("{DAMAGED_PREFIX}{name}-{n}")),
            };
            let Some(free) = (1..=u32::MAX).map(numbered).find(|path| !path.exists()) else {
                continue;
            };
            fs::rename(&dir, &free).map_err(Error::io(&dir))?;
            aside.push(free);
        }
        if !aside.is_empty() {
            self.point_latest_at(&dir_name(step))?;
        }
        Ok(aside)
    }

    /// Writes a checkpoint, points `latest` at it, removes those that need not stay, and returns its folder.
    ///
    /// * `ema`: the running mean of the parameters, where the run keeps one.
    /// * `state`: its checksums are filled in here.
    ///
    /// # Errors
    /// [`Error::Saving`] with the step and why; what was written of the checkpoint is removed, which a full disk needs most.
    pub fn save(
        &self,
        params: &Params,
        optim: &AdamW,
        ema: Option<&Ema>,
        state: State,
        keep: Keep,
    ) -> Result<PathBuf> {
        let step = state.step;
        let name = dir_name(step);
        let _busy = stall::busy(
            "checkpoint",
            format!("writing {}", self.root.join(&name).display()),
        );
        let temp = self.root.join(format!("{TEMP_PREFIX}{name}"));
        let saved = Self::write(&temp, params, optim, ema, state)
            .and_then(|()| self.put_in_place(&temp, &name))
            .and_then(|dir| self.prune(keep, step).map(|()| dir));
        saved.map_err(|source| {
            let _ = remove(&temp); // else the next start does
            self.not_saved(step, source)
        })
    }

    /// Ends what a process that died in [`Self::save`] left undone after the checkpoint of `step` had its name: `latest`
    /// names that one, and what need not stay is removed. For resuming from it.
    pub fn settle(&self, step: u64, keep: Keep) -> Result<()> {
        let (name, latest) = (dir_name(step), self.root.join(LATEST_FILE));
        if !fs::read_to_string(latest).is_ok_and(|named| named.trim() == name) {
            self.point_latest_at(&name)?;
        }
        self.prune(keep, step)
    }

    /// The error of a checkpoint that could not be written because of `source`.
    pub(crate) fn not_saved(&self, step: u64, source: Error) -> Error {
        let last = self.latest_dir().ok().flatten();
        Error::Saving {
            step,
            last_checkpoint: name_of(last),
            source: Box::new(source),
        }
    }

    /// Writes all files of a checkpoint into the new folder `dir`.
    fn write(
        dir: &Path,
        params: &Params,
        optim: &AdamW,
        ema: Option<&Ema>,
        mut state: State,
    ) -> Result<()> {
        remove(dir)?;
        fs::create_dir(dir).map_err(Error::io(dir))?;
        let model = params
            .iter()
            .map(|param| (param.name.clone(), param.var.as_tensor().clone()));
        state.files = BTreeMap::from([
            (
                MODEL_FILE.to_string(),
                tensors::write_durably(&dir.join(MODEL_FILE), model.collect())?,
            ),
            (
                OPTIM_FILE.to_string(),
                tensors::write_durably(&dir.join(OPTIM_FILE), optim.state()?)?,
            ),
        ]);
        if let Some(ema) = ema {
            let sum = tensors::write_durably(&dir.join(EMA_FILE), ema.tensors())?;
            state.files.insert(EMA_FILE.to_string(), sum);
        }
        write_durably(&dir.join(STATE_FILE), &state.to_json()?)?;
        sync(dir)
    }

    /// Gives a written checkpoint its name and points `latest` at it.
    fn put_in_place(&self, temp: &Path, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        let replaced = self.root.join(format!("{REPLACED_PREFIX}{name}"));
        if dir.exists() {
            fs::rename(&dir, &replaced).map_err(Error::io(&dir))?;
        }
        fs::rename(temp, &dir).map_err(Error::io(&dir))?;
        remove(&replaced)?;
        self.point_latest_at(name)?;
        Ok(dir)
    }

    /// Folder of the newest checkpoint that is whole; reads all of it.
    pub fn latest_dir(&self) -> Result<Option<PathBuf>> {
        Ok(self.latest_before(u64::MAX)?.map(|(_, dir)| dir))
    }

    /// Step and folder of the newest checkpoint before `step` that is whole; reads all of it.
    pub fn latest_before(&self, step: u64) -> Result<Option<(u64, PathBuf)>> {
        let all = self.list()?.into_iter().rev();
        let mut earlier = all.filter(|(saved, _)| *saved < step);
        Ok(earlier.find(|(_, dir)| State::read_verified(dir).is_ok()))
    }

    fn point_latest_at(&self, name: &str) -> Result<()> {
        let temp = self.root.join(format!("{TEMP_PREFIX}{LATEST_FILE}"));
        write_durably(&temp, format!("{name}\n").as_bytes())?;
        let latest = self.root.join(LATEST_FILE);
        fs::rename(&temp, &latest).map_err(Error::io(&latest))?;
        sync(&self.root)
    }

    /// Removes what need not stay of the checkpoints up to the one just saved: one after it is not known to be whole, so
    /// it must not take the place of one that is. Removes by renaming first, so that a kill leaves no checkpoint that is only partly there.
    fn prune(&self, keep: Keep, saved: u64) -> Result<()> {
        let mut all = self.list()?;
        all.retain(|(step, _)| *step <= saved);
        for (step, dir) in &all[..all.len().saturating_sub(keep.last)] {
            if (keep.is_milestone)(*step) {
                continue;
            }
            let doomed = self.root.join(format!("{TEMP_PREFIX}removed-{step}"));
            fs::rename(dir, &doomed).map_err(Error::io(dir))?;
            remove(&doomed)?;
        }
        Ok(())
    }

    /// Step and folder of every checkpoint, oldest first.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let step = |name: &String| name.strip_prefix("step-")?.parse::<u64>().ok();
        let mut all: Vec<_> = names(&self.root)?
            .iter()
            .filter_map(|name| Some((step(name)?, self.root.join(name))))
            .collect();
        all.sort();
        Ok(all)
    }
}

impl Found {
    /// Sets parameters, optimizer and the running mean, where there is one, to what was saved.
    ///
    /// # Errors
    /// [`Error::Parameter`] or [`Error::Shape`] if the checkpoint does not fit the model.
    pub fn restore(&self, params: &Params, optim: &mut AdamW, ema: Option<&mut Ema>) -> Result<()> {
        if let Some(ema) = ema {
            ema.restore(&read_tensors(&self.dir.join(EMA_FILE), params.device())?)?;
        }
        params.load(&read_tensors(&self.dir.join(MODEL_FILE), params.device())?)?;
        let path = self.dir.join(OPTIM_FILE);
        let moments = read_tensors(&path, &Device::Cpu)?;
        optim.restore(self.state.step, &mut |name| {
            let missing = || Error::Checkpoint {
                path: path.clone(),
                problem: format!("has no tensor {name}"),
            };
            moments.get(name).cloned().ok_or_else(missing)
        })
    }
}

/// The checkpoint folder that a path means: itself, or what `latest` names in it or in its `checkpoints`.
///
/// # Errors
/// [`Error::Checkpoint`] if there is none; [`Error::Io`] if what names it cannot be read.
pub fn locate(path: &Path) -> Result<PathBuf> {
    if path.join(MODEL_FILE).is_file() {
        return Ok(path.to_path_buf());
    }
    for root in [path.to_path_buf(), path.join(CHECKPOINTS_DIR)] {
        let latest = root.join(LATEST_FILE);
        let named = match fs::read_to_string(&latest) {
            Ok(name) => root.join(name.trim()),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(error) => return Err(Error::io(latest)(error)),
        };
        if named.join(MODEL_FILE).is_file() {
            return Ok(named);
        }
    }
    let problem = format!(
        "is no checkpoint, expected a folder with {MODEL_FILE}, or a run folder with checkpoints"
    );
    Err(Error::Checkpoint {
        path: path.to_path_buf(),
        problem,
    })
}

/// A checkpoint's folder as messages name it.
pub(crate) fn name_of(checkpoint: Option<PathBuf>) -> String {
    checkpoint.map_or_else(|| "none".to_string(), |dir| dir.display().to_string())
}

fn dir_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        names.push(
            entry
                .map_err(Error::io(dir))?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    Ok(names)
}

/// Removes a file or folder if it is there.
fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
