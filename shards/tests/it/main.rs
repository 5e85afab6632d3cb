//! Tests of the crate's public API, one module a behaviour.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers outside of `#[test]` functions too

mod alloc;
mod cache;
mod contract;
mod earlier;
mod faults;
mod foreign;
mod groups;
mod hostile;
mod ranges;
mod round_trip;
mod storage;
mod support;
mod verify;
mod web;
