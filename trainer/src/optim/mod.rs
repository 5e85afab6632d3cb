//! Optimisation: which parameters decay, gradients and their norm, AdamW, the learning rate of a step.
//!
//! Everything here is deterministic on the CPU for any number of threads: element-wise work is split
//! freely, sums are taken over chunks of a fixed size in a fixed order.

pub mod adamw;
pub mod clip;
pub mod ema;
pub mod gradients;
pub mod param_groups;
pub mod schedule;

pub use adamw::{AdamW, AdamWOptions, UnreadNorms};
pub use ema::Ema;
pub use gradients::Gradients;
pub use param_groups::{ParamGroup, param_groups};
pub use schedule::{LrOrder, Place, Schedule};
