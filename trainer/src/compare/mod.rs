//! Many runs, one report: do we need video, or are images enough?
//!
//! [`config`] says what is compared and cuts it into runs; [`run`] makes them; [`cost`] counts their arithmetic; [`record`] is what a run leaves
//! behind; [`report`] makes tables, charts and a page of the records; [`stats`] says what a few seeds can show;
//! [`published`] is what the papers report.
//!
//! Invariants: methods differ in what their tables say and in nothing else; a run that is complete is never run again; a
//! report is a function of the records alone.

pub mod config;
pub mod cost;
pub mod published;
pub mod record;
pub mod report;
pub mod run;
pub mod stats;

/// The comparison itself in its folder, as it was run.
pub const COMPARE_FILE: &str = "compare.toml";
