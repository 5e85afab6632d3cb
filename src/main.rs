//! The command line of Pairquet: arguments become options or a config, a library does the work.
//!
//! Results go to standard output (`--json` for machines), talk and progress to standard error. Exit codes: 0 done, 1 the work
//! failed or was stopped or is partial, 2 the command was wrong.

mod bench;
mod compare;
mod convert;
mod demo;
mod eval;
mod exchange;
mod inspect;
mod made;
mod order;
mod output;
mod plan;
mod progress;
mod signals;
mod sizes;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::Output;

/// Video or images? Parquet shards, a deterministic loader, and training of siamese masked autoencoders.
#[derive(Parser)]
#[command(
    name = "pairquet",
    version,
    propagate_version = true,
    infer_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,

    /// Print the result as one JSON document on standard output.
    #[arg(long, global = true)]
    json: bool,

    /// No progress bars and no talk; errors still go to standard error.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Turn folders, tars or lists of images and videos into Parquet shards.
    #[command(subcommand)]
    Convert(convert::Command),
    /// Show what a shard set holds: counts, sizes, schema, rows, a contact sheet.
    Inspect(inspect::Args),
    /// Check every byte of a shard set against its manifest, its indexes and its checksums.
    Verify(verify::Args),
    /// Show in which order a config visits its samples, and a hash of it to compare runs by.
    Order(order::Args),
    /// Time a config on this machine without training.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Train a model from shards; a run folder that exists is resumed.
    Train(train::Args),
    /// Score a trained encoder as the papers do.
    #[command(subcommand)]
    Eval(Box<eval::Command>),
    /// Train several methods alike, evaluate them, and report which is better and whether that is chance.
    Compare(compare::Args),
    /// Turn another program's checkpoint into one of ours.
    Import(exchange::ImportArgs),
    /// Turn a checkpoint into files for timm, PyTorch or Hugging Face.
    Export(exchange::ExportArgs),
    /// Make a small synthetic set, convert it, train on it, and say where everything is.
    Demo(demo::Args),
    /// Decode the clips that a conversion names.
    #[command(name = convert::WORKER, hide = true)]
    ClipWorker,
}

fn main() -> ExitCode {
    trainer::device::prepare_process(); // before any thread is started
    let cli = Cli::parse();
    let out = match Output::new(cli.json, cli.quiet).with_environment() {
        Ok(out) => out,
        Err(error) => {
            Output::new(cli.json, cli.quiet).error(&error);
            return ExitCode::from(2);
        }
    };
    let result = match cli.verb {
        Verb::Convert(command) => convert::run(command, &out),
        Verb::Inspect(args) => inspect::run(args, &out),
        Verb::Verify(args) => verify::run(args, &out),
        Verb::Order(args) => order::run(args, &out),
        Verb::Bench(command) => bench::run(command, &out),
        Verb::Train(args) => train::run(args, &out),
        Verb::Eval(command) => eval::run(*command, &out),
        Verb::Compare(args) => compare::run(args, &out),
        Verb::Import(args) => exchange::import(args, &out),
        Verb::Export(args) => exchange::export(args, &out),
        Verb::Demo(args) => demo::run(args, &out),
        Verb::ClipWorker => convert::serve_clips(),
    };
    match result {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(if error.is::<output::Usage>() { 2 } else { 1 })
        }
    }
}
