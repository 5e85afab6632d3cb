//! The built program from outside, one module for each behaviour.

// Helpers outside of `#[test]` functions may fail a test too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod browser;
mod bucket;
mod classify;
mod cli;
mod cluster;
mod compare;
mod contain;
mod convert;
mod eval;
mod exchange;
mod foreign;
mod old_files;
mod order;
mod ranks;
mod real_data;
mod reliability;
mod secrets;
mod support;
mod train;
mod unsafe_list;
mod verify;
