//! `pairquet import` and `pairquet export`: checkpoints from and to other programs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use trainer::exchange::{self, ExportOptions, Format, ImportOptions, Target};
use trainer::models::{ModelConfig, ModelKind};

use crate::output::{Output, facts};
use crate::sizes::human_bytes;

#[derive(clap::Args)]
pub struct ImportArgs {
    /// A checkpoint of MAE, CropMAE, SiamMAE, timm or Hugging Face: .pth or safetensors. Only tensors are read; nothing in it
    /// is executed.
    file: PathBuf,
    /// Checkpoint folder to write.
    dst: PathBuf,
    /// What the file is written in.
    #[arg(long, value_enum, default_value_t = From::Auto)]
    from: From,
    /// The method, where the file does not tell [default: siamese for an encoder alone].
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Attention heads of the encoder [default: the papers' for its width].
    #[arg(long)]
    num_heads: Option<usize>,
    /// Attention heads of the decoder [default: as the file or the papers say].
    #[arg(long)]
    decoder_num_heads: Option<usize>,
    /// Missing parameters keep their initial values and unexpected ones are left out, each with a note, instead of an error.
    #[arg(long)]
    allow_missing: bool,
    /// Take over AdamW's state too.
    #[arg(long)]
    optimizer: bool,
}

#[derive(clap::Args)]
pub struct ExportArgs {
    /// Checkpoint folder: runs/NAME/checkpoints/step-N, or what `import` wrote.
    checkpoint: PathBuf,
    /// Folder to write.
    dst: PathBuf,
    /// Whose names and files.
    #[arg(long, value_enum)]
    to: To,
    /// Add an input and the features that the encoder makes of it, to check the other program by.
    #[arg(long)]
    probe: bool,
    /// The running mean of the weights, which runs with `optim.ema_decay` keep, in place of the weights.
    #[arg(long)]
    ema: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum From {
    /// Told from the first bytes.
    Auto,
    /// torch.save.
    Pth,
    /// safetensors.
    Safetensors,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// SiamMAE, CropMAE.
    Siamese,
    /// MAE.
    Mae,
    /// Multi-View MAE.
    MultiView,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    /// timm's VisionTransformer: the encoder, safetensors.
    Timm,
    /// The papers' names, the whole model: safetensors and .pth.
    Torch,
    /// Hugging Face ViTMAE (MAE) or ViT (others), with config.json.
    Hf,
}

#[derive(Serialize)]
struct ImportReport {
    checkpoint: PathBuf,
    model: ModelConfig,
    epoch: Option<u64>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Exported {
    folder: PathBuf,
    model: ModelConfig,
    files: Vec<(String, u64, String)>,
    tensors: usize,
    values: usize,
    left_out: Vec<String>,
}

/// Runs `import`.
pub fn import(args: ImportArgs, out: &Output) -> Result<ExitCode> {
    let options = ImportOptions {
        from: match args.from {
            From::Auto => Format::Auto,
            From::Pth => Format::Pth,
            From::Safetensors => Format::Safetensors,
        },
        kind: args.kind.map(|kind| match kind {
            Kind::Siamese => ModelKind::Siamese,
            Kind::Mae => ModelKind::Mae,
            Kind::MultiView => ModelKind::MultiView,
        }),
        num_heads: args.num_heads,
        decoder_num_heads: args.decoder_num_heads,
        allow_missing: args.allow_missing,
        optimizer: args.optimizer,
        ..ImportOptions::default()
    };
    let imported = exchange::import(&args.file, &options)?;
    imported.write(&args.dst)?;
    for note in &imported.notes {
        out.say(format!("note: {note}"));
    }
    let report = ImportReport {
        checkpoint: args.dst,
        model: imported.model,
        epoch: imported.epoch,
        notes: imported.notes,
    };
    out.result(&report, |report| {
        facts([
            ("checkpoint", report.checkpoint.display().to_string()),
            ("model", sizes(&report.model)),
            (
                "epoch",
                report
                    .epoch
                    .map_or_else(|| "not told".into(), |epoch| epoch.to_string()),
            ),
        ])
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `export`.
pub fn export(args: ExportArgs, out: &Output) -> Result<ExitCode> {
    let to = match args.to {
        To::Timm => Target::Timm,
        To::Torch => Target::Torch,
        To::Hf => Target::HuggingFace,
    };
    let report = exchange::export(
        &args.checkpoint,
        &args.dst,
        &ExportOptions {
            to,
            probe: args.probe,
            ema: args.ema,
        },
    )?;
    let report = Exported {
        folder: args.dst,
        model: report.model,
        files: report
            .files
            .into_iter()
            .map(|file| (file.name, file.bytes, file.sha256))
            .collect(),
        tensors: report.n_tensors,
        values: report.n_values,
        left_out: report.left_out,
    };
    out.result(&report, |report| {
        let mut text = facts([
            ("folder", report.folder.display().to_string()),
            ("model", sizes(&report.model)),
            (
                "tensors",
                format!("{}, {} values", report.tensors, report.values),
            ),
            (
                "left out",
                format!(
                    "{} parameters that the target has no place for",
                    report.left_out.len()
                ),
            ),
        ]);
        for (name, bytes, sha256) in &report.files {
            text.push_str(&format!(
                "\n  {name}  {}  sha256 {sha256}",
                human_bytes(*bytes)
            ));
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

fn sizes(model: &ModelConfig) -> String {
    let known =
        |size: Option<usize>| size.map_or_else(|| "?".into(), |size: usize| size.to_string());
    format!(
        "{:?}, width {}, depth {}, patches of {}, pictures of {}",
        model.kind,
        known(model.embed_dim),
        known(model.depth),
        known(model.patch_size),
        known(model.img_size),
    )
}
