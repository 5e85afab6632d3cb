//! `hostile SECONDS KEPT [TARGET..]`: each target for so many seconds, as rows of a table in Markdown.
//!
//! Inputs that fail are kept in the folder KEPT. `hostile seeds FOLDER` writes the seeds, a folder for each target, and
//! `hostile bombs FOLDER` small files that ask for more than any machine has, a folder for each kind.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use fuzz::campaign::{Length, clean, corpus, run};
use fuzz::{TARGETS, Target, bombs, target};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, folder, names @ ..] = arguments.as_slice() else {
        return Err("expected SECONDS KEPT [TARGET..], seeds FOLDER or bombs FOLDER".into());
    };
    let folder = Path::new(folder);
    if first == "seeds" {
        for target in TARGETS {
            let folder = folder.join(target.name);
            std::fs::create_dir_all(&folder)?;
            for (n, seed) in (target.seeds)().into_iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{n}")), seed)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    if first == "bombs" {
        for (kind, files) in [
            ("pictures", bombs::pictures()),
            ("parquet", bombs::parquet()),
            ("schemas", bombs::schemas()),
            ("pth", bombs::pth()),
            ("videos", bombs::videos()),
            ("tars", bombs::tars()),
        ] {
            let folder = folder.join(kind);
            std::fs::create_dir_all(&folder)?;
            for (name, bytes) in files {
                std::fs::write(folder.join(name), bytes)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let seconds: f64 = first
        .parse()
        .map_err(|_| format!("{first:?} seconds, expected a number"))?;
    let chosen: Vec<&Target> = match names {
        [] => TARGETS.iter().collect(),
        names => names.iter().map(|n| target(n)).collect::<Result<_, _>>()?,
    };
    std::fs::create_dir_all(folder)?;
    let mut out = std::io::stdout();
    let mut failed = false;
    for target in chosen {
        let length = Length::Time(Duration::from_secs_f64(seconds));
        let report = run(target, &corpus(), folder, length)?;
        for failure in &report.failures {
            writeln!(std::io::stderr(), "{}: {failure}", target.name)?;
        }
        failed |= !report.failures.is_empty();
        let verdict = match report.failures.len() {
            0 => "ok",
            _ => "FAILED",
        };
        writeln!(
            out,
            "| hostile bytes, {}: {} inputs, slowest {:.0} ms, most memory {} MiB | {} failures | 0 | {verdict} |",
            target.name,
            report.inputs,
            report.slowest_s * 1e3,
            report.largest_bytes >> 20,
            report.failures.len(),
        )?;
    }
    clean();
    Ok(match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}
