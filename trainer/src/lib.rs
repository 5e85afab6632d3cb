//! Batches in, numbers out: models, optimisation, checkpoints and metrics on candle.
//!
//! A tour, in reading order:
//!
//! - `exchange`: checkpoints from and to other programs.
//! - `error`: what can go wrong.

pub mod error;
pub mod exchange;

pub use error::{Error, Result};
