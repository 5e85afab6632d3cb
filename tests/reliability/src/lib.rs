//! Does the built program lose anything? Kills, failing system calls and flipped bytes, each followed by a look at what is
//! left and by the same command once more, which must end as an undisturbed one.
//!
//! Reading order: [`program`] (what is run), [`outcome`] (what must always come out the same), [`kills`], [`faults`],
//! [`corruption`]. Used by the tests, a few times each, and by this crate's program for `make reliability`, many times.
//! Everything random is a function of a seed, but for where in the program's work a moment falls.

pub mod corruption;
pub mod faults;
pub mod kills;
pub mod outcome;
pub mod program;

mod draw;

/// A row of the table that `make reliability` prints.
pub fn row(what: &str, measured: &str, required: &str, ok: bool) -> String {
    let ok = if ok { "ok" } else { "FAILED" };
    format!("| {what} | {measured} | {required} | {ok} |")
}
