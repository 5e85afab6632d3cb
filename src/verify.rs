//! `pairquet verify`: is every byte what the manifest, the indexes and the checksums say?

use std::process::ExitCode;

use anyhow::Result;

use crate::output::{Output, facts};
use crate::progress::Bar;
use crate::sizes::human_bytes;

/// Findings listed on the terminal; `--json` has more.
const FINDINGS_SHOWN: usize = 50;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the shard set, or an address such as s3://bucket/set.
    set: String,
}

/// Runs the verb: exit code 1 if anything was found.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    let bar = Bar::new(out, "verifying", "MiB");
    let report = shards::verify(&args.set, &mut |progress| {
        bar.set_total(progress.n_bytes >> 20);
        bar.set_done(progress.bytes_done >> 20);
        bar.note(progress.shard.to_owned());
    })?;
    bar.finish();
    out.result(&report, |report| {
        let mut text = String::new();
        for finding in report.findings.iter().take(FINDINGS_SHOWN) {
            text.push_str(&format!("{finding}\n"));
        }
        let more = report.n_findings.saturating_sub(FINDINGS_SHOWN as u64);
        if more > 0 {
            text.push_str(&format!("and {more} more\n"));
        }
        text + &facts([
            ("shards", report.shards.to_string()),
            (
                "rows",
                format!("{}, {} of them good", report.rows, report.good_rows),
            ),
            ("bytes", human_bytes(report.bytes)),
            (
                "result",
                if report.is_clean() {
                    "clean".into()
                } else {
                    format!("findings: {}", report.n_findings)
                },
            ),
        ])
    })?;
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
