//! Made data for the demo and for comparisons: pictures, clips and sequences with masks, and shards of the first two.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use pipeline::convert::{self, ImagenetOptions, KineticsOptions};
use pipeline::synth::{self, SynthOptions};
use pipeline::{Stop, sheet};
use shards::ShardSet;

use crate::convert::ConvertBar;
use crate::output::Output;

/// Folders of the training data, raw and as shards.
pub const SOURCES: [&str; 2] = ["images", "clips"];

/// Folder of the sequences with masks, as DAVIS.
pub const SEQUENCES: &str = "sequences";

/// Pictures and clips of `train`, and sequences of `sequences`; made under another name first, so that what is there is
/// whole.
pub fn raw(dir: &Path, train: &SynthOptions, sequences: &SynthOptions, out: &Output) -> Result<()> {
    if dir.is_dir() {
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
    synth::write_sequences(&partial.join(SEQUENCES), sequences)?;
    fs::rename(&partial, dir)
        .with_context(|| format!("renaming {} to {}", partial.display(), dir.display()))
}

/// Shards of the pictures and clips in `raw`, with a contact sheet of each set.
pub fn shards(raw: &Path, shards: &Path, stop: &Stop, out: &Output) -> Result<()> {
    for source in SOURCES {
        let dst = shards.join(source);
        if dst.join("manifest.json").is_file() {
            continue;
        }
        let (src, dst_name) = (raw.join(source), dst.display().to_string());
        out.say(format!("converting {} to {dst_name}", src.display()));
        let bar = ConvertBar::new(out);
        match source {
            "images" => {
                convert::imagenet(&src, &dst_name, &ImagenetOptions::default(), &bar, stop)?
            }
            _ => convert::kinetics(&src, &dst_name, &KineticsOptions::default(), &bar, stop)?,
        };
        bar.finish();
        sheet::write_png(
            &shards.join(format!("{source}.png")),
            &sheet::samples(&ShardSet::open(&dst_name, "train")?, 16, 128)?,
        )?;
    }
    Ok(())
}
