//! Comparison with the numbers of the PyTorch reference, read from the folder named by `PAIRQUET_GOLDEN_DIR`
//! (by default `golden` in `PAIRQUET_SHARED_DIR`, by default `../shared`).
//!
//! Each part runs every case that its `manifest.json` lists, whatever the sizes, seeds and options, and fails on a
//! case that it does not understand. A part that is absent is skipped aloud.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod davis_metrics;
mod davis_vits16;
mod models;
mod propagation;
mod support;
mod tables;
mod vits16;
