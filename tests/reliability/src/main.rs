//! `pairquet-reliability kills|faults|corruption [N] [JOB ...]`: the long variants, for `make reliability`; kills and
//! faults can be those of some jobs alone. `PAIRQUET` is the built program, `WORK` an empty folder. Rows of the table go to
//! standard output, progress to standard error.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use reliability::corruption;
use reliability::faults::{self, Faults};
use reliability::kills::Kills;
use reliability::program::{Program, Toys};
use reliability::row;

/// Of everything here; another one is another run.
const SEED: u64 = 9;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pairquet-reliability: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let verb = args.first().map(String::as_str).unwrap_or_default();
    let n = args
        .get(1)
        .map(|n| n.parse::<u64>().context("a number is expected"));
    let n = n.transpose()?;
    let only: Vec<&str> = args.iter().skip(2).map(String::as_str).collect();
    let folder = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .with_context(|| format!("{name} is not set"))
    };
    let (program, work) = (Program::new(folder("PAIRQUET")?), folder("WORK")?);
    let toys = Toys::make(&program, &work.join("toys"))?;
    let mut say = |line: &str| eprintln!("{line}");
    match verb {
        "kills" => {
            let n = n.unwrap_or(200);
            let kills = Kills {
                program: &program,
                toys: &toys,
                work: &work,
                seed: SEED,
            };
            let tally = kills.run_some(&only, n, &mut say)?;
            tally.lines().iter().for_each(|line| eprintln!("{line}"));
            print(&tally.rows(n));
        }
        "faults" => {
            let tally =
                Faults::new(&program, &toys, &work, n.unwrap_or(3), SEED)?.run(&only, &mut say)?;
            print(&tally.rows());
            let skipped =
                "| a disk that is full | - | - | skipped: no file system can be mounted here |";
            let full = faults::small_disk(&program, &toys, &work.join("small"))?;
            print(&[full.unwrap_or_else(|| skipped.to_owned())]);
        }
        "corruption" => {
            let tally = corruption::flip(
                &toys.few_pictures(&program, &work)?,
                &work,
                n.unwrap_or(600),
                SEED,
            )?;
            print(&tally.rows());
            let (n, found) = tally.n();
            print(&[row(
                "flipped bytes in all",
                &format!("verify found {found} of {n}"),
                "all",
                found == n,
            )]);
            print(&[corruption::train_on_damaged(&program, &toys, &work, SEED)?]);
        }
        other => bail!("{other:?} is no verb, expected kills, faults or corruption"),
    }
    Ok(())
}

fn print(rows: &[String]) {
    rows.iter().for_each(|row| println!("{row}"));
}
