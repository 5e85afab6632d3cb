//! Made data for the demo and for comparisons: pictures, clips and sequences with masks, and shards of the first two.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use pipeline::convert::{self, ImagenetOptions, KineticsOptions};
use pipeline::{Stop, sheet, synth};
use shards::ShardSet;
use trainer::compare::config::Synthetic;

use crate::convert::ConvertBar;
use crate::output::Output;

/// Folders of the training data, raw and as shards.
const SOURCES: [&str; 2] = ["images", "clips"];

/// File in the folder of raw data that says what it was made of.
const OPTIONS_FILE: &str = "options.json";

/// How far the making goes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Make the pictures, clips and masks.
    Raw,
    /// Convert them as well.
    Shards,
}

/// Makes `raw` and `shards` in the data's folder; what is there is kept. Returns whether all is there: not if it was asked to
/// stop before.
///
/// # Errors
/// What is there was made of other options; whatever writing and converting meet.
pub fn data(synthetic: &Synthetic, last: Stage, stop: &Stop, out: &Output) -> Result<bool> {
    let dir = &synthetic.dir;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let path = dir.join("lock");
    let lock = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    if !lock_unless_stopped(&lock, &path, stop, out)? {
        return Ok(false);
    }
    let raw_dir = dir.join("raw");
    raw(&raw_dir, synthetic, out)?;
    match last {
        Stage::Raw => Ok(true),
        Stage::Shards => shards(&raw_dir, &dir.join("shards"), stop, out),
    }
}

/// Waits while another part makes the data; `false` if it was asked to stop meanwhile.
fn lock_unless_stopped(lock: &File, path: &Path, stop: &Stop, out: &Output) -> Result<bool> {
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if stop.is_requested() => return Ok(false),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        if !told {
            out.say(format!(
                "waiting for another process that makes the data ({})",
                path.display()
            ));
            told = true;
        }
        sleep(Duration::from_millis(200));
    }
}

/// Pictures, clips and sequences; made under another name first, so that what is there is whole.
fn raw(dir: &Path, synthetic: &Synthetic, out: &Output) -> Result<()> {
    let Synthetic {
        train, sequences, ..
    } = synthetic;
    let options = serde_json::to_string_pretty(&[train, sequences])?;
    if dir.is_dir() {
        let path = dir.join(OPTIONS_FILE);
        let remedy = format!(
            "remove raw and shards in {} or choose another folder",
            synthetic.dir.display()
        );
        let found = fs::read_to_string(&path).with_context(|| {
            let path = path.display();
            format!("{path} does not say what the data there was made of: {remedy}")
        })?;
        ensure!(
            found == options,
            "{}: the data there was made of other options: {remedy}",
            path.display(),
        );
        return Ok(());
    }
    out.say(format!(
        "making pictures, clips and masks in {}",
        dir.display()
    ));
    let partial = dir.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    synth::write_images(&partial.join("images"), train)?;
    synth::write_clips(&partial.join("clips"), train)?;
    synth::write_sequences(&partial.join("sequences"), sequences)?;
    let path = partial.join(OPTIONS_FILE);
    fs::write(&path, options).with_context(|| format!("writing {}", path.display()))?;
    fs::rename(&partial, dir)
        .with_context(|| format!("renaming {} to {}", partial.display(), dir.display()))
}

/// Shards of the pictures and clips in `raw`, with a contact sheet of each set.
fn shards(raw: &Path, shards: &Path, stop: &Stop, out: &Output) -> Result<bool> {
    for source in SOURCES {
        let dst = shards.join(source);
        if dst.join("manifest.json").is_file() {
            continue;
        }
        let (src, dst_name) = (raw.join(source), dst.display().to_string());
        out.say(format!("converting {} to {dst_name}", src.display()));
        let bar = ConvertBar::new(out);
        let converted = match source {
            "images" => convert::imagenet(&src, &dst_name, &ImagenetOptions::default(), &bar, stop),
            _ => convert::kinetics(&src, &dst_name, &KineticsOptions::default(), &bar, stop),
        };
        bar.finish();
        match converted {
            Err(convert::Error::Stopped { .. }) => return Ok(false),
            converted => converted?,
        };
        sheet::write_png(
            &shards.join(format!("{source}.png")),
            &sheet::samples(&ShardSet::open(&dst_name, "train")?, 16, 128)?,
        )?;
    }
    Ok(true)
}
