//! Batches in, numbers out: models, optimisation, checkpoints and metrics on candle.
//!
//! A tour, in reading order:
//!
//! - `error`: what can go wrong.

pub mod error;

pub use error::{Error, Result};
