//! Optimisation: which parameters decay, gradients and their norm, AdamW and LARS, the learning rate of a step.
//!
//! Everything here is deterministic on the CPU for any number of threads: element-wise work is split
//! freely, sums are taken over chunks of a fixed size in a fixed order.

pub mod adamw;
pub mod clip;
pub mod ema;
pub mod gradients;
pub mod lars;
pub mod param_groups;
pub mod schedule;

pub use adamw::{AdamW, AdamWOptions, UnreadNorms};
pub use ema::Ema;
pub use gradients::Gradients;
pub use lars::Lars;
pub use param_groups::{LayerGroups, ParamGroup, layer_groups, param_groups};
pub use schedule::{LrOrder, Place, Schedule};
