//! Hostile bytes for everything that reads what others wrote.
//!
//! Reading order:
//! - `targets`: a function for each parser, which takes any bytes at all, and seeds made by the project's own writers.
//! - `repair`: checksums put right after a mutation, so that what lies behind them is reached.
//! - [`check`]: one input in one target: no panic, no more time and memory than its length allows. `memory` counts.
//! - `mutate`: changes to seeds that are a function of a number, so that every run is the same.
//! - [`campaign`]: seeds, the stored corpus and mutations of both, by number or by time. `make test` runs it through
//!   `tests/hostile.rs`, `make reliability` through the program `hostile`.
//!
//! [`bombs`]: small files that ask for more than any machine has.
//!
//! `libfuzzer` beside this crate has the same targets for cargo-fuzz, which finds what random changes do not.

pub mod bombs;
pub mod campaign;
mod check;
mod memory;
mod mutate;
mod repair;
mod scratch;
mod targets;

pub use check::{Cost, check, must_hold};
pub use targets::{TARGETS, Target, target};

/// Inputs are made of nothing from outside, so what they cannot be made of is a fault of this crate.
#[allow(clippy::expect_used)]
fn made<T, E: std::fmt::Debug>(outcome: Result<T, E>) -> T {
    outcome.expect("an input that can be made")
}
