//! Batches in, numbers out: models, optimisation, checkpoints and metrics on candle.
//!
//! A tour, in reading order:
//!
//! - [`optim`]: parameter groups, gradients and their norm, AdamW, the learning rate of a step.
//! - [`error`]: what can go wrong.

pub mod error;
pub mod optim;

pub use error::{Error, Result};
