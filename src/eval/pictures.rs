//! `pairquet eval pictures`: what an encoder sees.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use trainer::eval::davis::PICTURES;
use trainer::eval::frames::{FramePicture, InputSize, numbered_pictures};
use trainer::eval::sampling::Size;
use trainer::eval::sheets;

use super::Shared;
use super::videos::input_size;
use crate::output::{Output, facts};

/// Pictures of features and attention, as papers show them: principal components of the patch features as colours, found over
/// a row, and how the class token looks at the patches (last block, mean over its heads).
#[derive(clap::Args)]
pub struct PicturesArgs {
    #[command(flatten)]
    shared: Shared,
    /// Pictures, one a row, or folders of numbered frames, of which six are a row; the first six rows are drawn.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folder for features.png and attention.png.
    #[arg(long, value_name = "DIR", default_value = "eval/pictures")]
    out: PathBuf,
    /// Size of the network's input: HEIGHTxWIDTH, or one number for the longer side [default: as it was trained].
    #[arg(long, value_name = "SIZE", value_parser = input_size)]
    size: Option<InputSize>,
}

#[derive(Serialize)]
struct Written {
    features: PathBuf,
    attention: PathBuf,
}

/// Runs `eval pictures`.
pub fn run_pictures(args: &PicturesArgs, out: &Output) -> Result<ExitCode> {
    let (encoder, _) = args.shared.load(out)?;
    let rows = args
        .paths
        .iter()
        .map(|path| frames(path))
        .collect::<Result<Vec<_>>>()?;
    let size = match (args.size, rows.first().and_then(|row| row.first())) {
        (Some(size), Some(first)) => size.of(FramePicture::read(first)?.size()),
        _ => {
            let side = encoder.sizes().img_size;
            Size {
                height: side,
                width: side,
            }
        }
    };
    fs::create_dir_all(&args.out).with_context(|| format!("making {}", args.out.display()))?;
    let written = Written {
        features: args.out.join("features.png"),
        attention: args.out.join("attention.png"),
    };
    sheets::write(&written.features, &sheets::features(&encoder, &rows, size)?)?;
    sheets::write(
        &written.attention,
        &sheets::attention(&encoder, &rows, size)?,
    )?;
    out.result(&written, |written| {
        facts([
            ("features", written.features.display().to_string()),
            ("attention", written.attention.display().to_string()),
        ])
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The frames of a folder, or a picture alone.
fn frames(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let numbered = numbered_pictures(path, &PICTURES)?;
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}
