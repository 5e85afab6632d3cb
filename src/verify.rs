//! `pairquet verify`: is every byte what the manifest, the indexes and the checksums say?

use std::process::ExitCode;

use anyhow::Result;

use crate::output::{Output, facts};
use crate::progress::Bar;
use crate::sizes::human_bytes;

/// Findings listed on the terminal; `--json` has all.
const FINDINGS_SHOWN: usize = 50;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the shard set.
    set: String,
}

/// Runs the verb: exit code 1 if anything was found.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    let bar = Bar::new(out, "verifying", "rows");
    let report = shards::verify(&args.set, &mut |progress| {
        bar.set_total(progress.rows_total);
        bar.set_done(progress.rows_done);
        bar.note(progress.shard.to_owned());
    })?;
    bar.finish();
    out.result(&report, |report| {
        let mut text = String::new();
        for finding in report.findings.iter().take(FINDINGS_SHOWN) {
            text.push_str(&format!("{finding}\n"));
        }
        if report.findings.len() > FINDINGS_SHOWN {
            text.push_str(&format!("and {} more\n", report.findings.len() - FINDINGS_SHOWN));
        }
        text + &facts([
            ("shards", report.shards.to_string()),
            ("rows", report.rows.to_string()),
            ("bytes", human_bytes(report.bytes)),
            ("result", if report.findings.is_empty() { "good".into() } else { format!("{} findings", report.findings.len()) }),
        ])
    })?;
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
