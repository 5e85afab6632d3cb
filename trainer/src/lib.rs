//! Batches in, numbers out: models, optimisation, checkpoints and metrics on candle.
//!
//! A tour, in reading order:
//!
//! - [`config`]: the whole experiment as structs; [`mod@train`]: the loop that runs it, which reads top to bottom.
//! - [`device`]: where tensors live, and how batches get there.
//! - [`masking`]: which patches are hidden, and all randomness of a step.
//! - [`models`]: SiamMAE and CropMAE, MAE, Multi-View MAE; [`loss`]: what they minimise.
//! - [`nn`]: parameters and layers; [`ops`]: the operations they are made of; [`tape`]: the way back through them.
//! - [`optim`]: parameter groups, gradients and their norm, AdamW, the learning rate of a step.
//! - [`checkpoint`]: what a run needs to go on as if it had never stopped.
//! - [`exchange`]: checkpoints from and to other programs.
//! - [`metrics`] and [`pictures`]: what a person looks at.
//! - [`error`]: what can go wrong.
//!
//! Invariants: a model's parameters have the reference checkpoints' names and order. Everything random is a function
//! of (seed, epoch, sample, place in the model), so a sample's masks and dropout do not depend on its batch. On the
//! CPU of one machine a run's losses and weights depend on its configuration alone, to the last bit. Only `device` and
//! `ops` name CUDA.

pub mod checkpoint;
pub mod config;
pub mod device;
pub mod error;
pub mod exchange;
mod files;
pub mod loss;
pub mod masking;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod pictures;
pub mod tape;
pub mod train;

pub use config::TrainConfig;
pub use error::{Error, Result};
pub use train::{Progress, Stop, Summary, train};
