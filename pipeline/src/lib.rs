//! Raw data in, shards out (offline); shards in, batches of view pairs out (online).
//!
//! Reading order:
//!
//! 1. [`codec`]: bytes of pictures and clips to 8-bit RGB and back; the one room that links image and video libraries
//! 2. [`rng`]: all randomness of the project, a pure function of (seed, epoch, sample, purpose)
//! 3. [`error`]: what can go wrong, told apart by what a caller can do about it
//!
//! Invariants:
//!
//! - No state travels between two decodes: the same bytes give the same pixels in any order, on any thread.
//! - Bad input is an error that names what is wrong with it, never a panic and never a grey picture.
//! - Parquet and storage belong to `shards`, tensors to `trainer`; neither appears here.

pub mod codec;
pub mod error;
pub mod rng;

pub use error::{Error, Result};
