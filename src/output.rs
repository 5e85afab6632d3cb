//! Where words go: results to standard output, talk to standard error.

use std::env;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use pipeline::stall::{self, Watch};
use serde::Serialize;
use shards::printable;

/// How this invocation talks.
pub struct Output {
    json: bool,
    quiet: bool,
    patience: Duration,
}

/// How long a stage may stand still before that is said, in seconds, instead of a minute.
const PATIENCE: &str = "PAIRQUET_STALL_SECONDS";

/// The least patience that makes sense: the stages are looked at four times in it.
const SHORTEST: Duration = Duration::from_millis(10);

/// An error of the command, not of the work: the exit code is 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl Output {
    /// `json`: results as JSON; `quiet`: no talk and no progress.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            patience: stall::PATIENCE,
        }
    }

    /// As the environment says.
    ///
    /// # Errors
    /// [`Usage`] naming the variable and its value.
    pub fn with_environment(mut self) -> Result<Self> {
        let Some(value) = env::var_os(PATIENCE) else {
            return Ok(self);
        };
        let value = value.to_string_lossy();
        let seconds = value.trim().parse().unwrap_or_default();
        let patience = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        if patience < SHORTEST {
            bail!(Usage(format!(
                "{PATIENCE} is {value:?}, expected a number of seconds, at least {}",
                SHORTEST.as_secs_f64()
            )));
        }
        self.patience = patience;
        Ok(self)
    }

    /// Has a thread say, through `say`, which stage of the work stands still for too long; none if nobody is to be told.
    pub fn watch_stalls(&self, say: impl Fn(&str) + Send + 'static) -> Option<Watch> {
        let watch = (!self.quiet).then(|| Watch::start(self.patience, say));
        watch.transpose().unwrap_or_else(|error| {
            self.say(format!("stalled stages will not be reported: {error}"));
            None
        })
    }

    /// Whether progress and talk are unwanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A sentence about what goes on, to standard error.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            talk(text.as_ref());
        }
    }

    /// The error and its causes on one line, to standard error, `quiet` or not.
    pub fn error(&self, error: &anyhow::Error) {
        talk(&format!("pairquet: {}", one_line(error)));
    }

    /// The result: `value` as JSON, or what `human` makes of it.
    pub fn result<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        let mut stdout = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from)?;
            writeln!(stdout)?;
        } else {
            writeln!(stdout, "{}", printable_text(human(value).trim_end()))?;
        }
        Ok(stdout.flush()?)
    }
}

/// A line on standard error. If nobody reads it any more (`pairquet train … 2>&1 | head`), the work goes on all the same.
pub fn talk(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable_text(line));
}

/// A text with lines and columns of its own as a terminal may get it, whatever names are in it.
pub fn printable_text(text: &str) -> String {
    let piece = |piece: &str| {
        let (body, end) = piece.split_at(piece.trim_end_matches(['\n', '\t']).len());
        printable(body).into_owned() + end
    };
    text.split_inclusive(['\n', '\t']).map(piece).collect()
}

/// A number of things, by the names of one and of several.
pub fn counted(n: u64, [one, several]: [&str; 2]) -> String {
    format!("{n} {}", if n == 1 { one } else { several })
}

/// The error followed by those of its causes that its own words do not already include.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// A two-column table of names and values.
pub fn facts<const N: usize>(rows: [(&str, String); N]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    table.trim_fmt()
}

/// Whether the reader of our output has gone (`pairquet inspect … | head`), which is no failure.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out() {
        assert_eq!(printable_text("a\n\tb\rc"), "a\n\tb\\rc");
    }

    #[test]
    fn one_is_not_several() {
        let reads = |n| counted(n, ["read", "reads"]);
        assert_eq!(
            [reads(0), reads(1), reads(2)],
            ["0 reads", "1 read", "2 reads"]
        );
    }
}
