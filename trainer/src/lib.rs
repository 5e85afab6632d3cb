//! Batches in, numbers out: models, optimisation, checkpoints and metrics on candle.
//!
//! A tour, in reading order:
//!
//! - `error`: what can go wrong.
//! - `masking`: which patches are hidden, and all randomness of a step.
//! - `nn`: parameters and layers. `ops`: the operations they are made of.
//! - `models`: SiamMAE and CropMAE, MAE, Multi-View MAE. `loss`: what they minimise.
//!
//! Invariants: a model's parameters have the reference checkpoints' names and order. Everything random is a function
//! of (seed, epoch, sample, place in the model), so a sample's masks and dropout do not depend on its batch.

pub mod error;
pub mod loss;
pub mod masking;
pub mod models;
pub mod nn;
pub mod ops;

pub use error::{Error, Result};
