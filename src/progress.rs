//! Progress on standard error: a bar where there is a terminal, a line every ten seconds where there is none; and a line
//! when a stage of the work stands still.

use std::io::{IsTerminal, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pipeline::stall::Watch;

use crate::output::{Output, printable_text, talk};

/// Between two lines of a progress that goes to a file or a pipe.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// One bar with rate and time left.
pub struct Bar {
    bar: ProgressBar,
    lines: Option<Mutex<Instant>>,
    what: &'static str,
    _stalls: Option<Watch>,
}

impl Bar {
    /// `what` names the work (`converting`), `unit` what is counted (`images`).
    pub fn new(out: &Output, what: &'static str, unit: &'static str) -> Self {
        let shown = !out.is_quiet();
        let terminal = stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            None,
            if shown && terminal {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        let template = format!(
            "{what} [{{bar:28}}] {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left  {{msg}}"
        );
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let lines = (shown && !terminal).then(|| Mutex::new(Instant::now()));
        let (above, has_lines) = (bar.clone(), lines.is_some());
        Self {
            bar,
            lines,
            what,
            _stalls: out.watch_stalls(move |text| say(&above, has_lines, text)),
        }
    }

    /// The number of things to do.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// So many are done, since the beginning.
    pub fn set_done(&self, done: u64) {
        self.bar.set_position(done);
        self.line();
    }

    /// One more is done.
    pub fn inc(&self) {
        self.bar.inc(1);
        self.line();
    }

    /// A short note at the end of the bar.
    pub fn note(&self, text: String) {
        self.bar.set_message(text);
    }

    /// A line above the bar.
    pub fn say(&self, text: &str) {
        say(&self.bar, self.lines.is_some(), text);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self) {
        let Some(last) = &self.lines else { return };
        let Ok(mut last) = last.lock() else { return };
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let total = self
                .bar
                .length()
                .map_or_else(String::new, |n| format!("/{n}"));
            let left = self.bar.eta().as_secs();
            talk(&format!(
                "{} {}{total}, about {left} s left  {}",
                self.what,
                self.bar.position(),
                self.bar.message()
            ));
        }
    }
}

fn say(bar: &ProgressBar, has_lines: bool, text: &str) {
    if has_lines {
        talk(text);
    } else {
        bar.println(printable_text(text));
    }
}
