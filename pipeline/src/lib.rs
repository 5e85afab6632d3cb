//! Raw data in, shards out (offline); shards in, batches of view pairs out (online).
//!
//! Reading order:
//!
//! 1. [`codec`]: bytes of pictures and clips to 8-bit RGB and back; the one room that links image and video libraries
//! 2. [`rng`]: all randomness of the project, a pure function of (seed, epoch, sample, purpose)
//! 3. [`config`]: what a run trains on, as a table of an experiment's file
//! 4. [`views`]: what a sample becomes: frames, crops and flips drawn from its key, then cut from the decoded pictures
//! 5. [`loader`]: shards in, batches of views out, by threads that agree on every pixel
//! 6. [`convert`]: sources of pictures and clips to a set of shards
//! 7. [`synth`]: made pictures, clips and masks with known answers
//! 8. [`sheet`]: a set, or what a configuration makes of it, as one picture to look at
//! 9. [`speed`]: how fast the loader is on this machine, beside the floor of its cost
//! 10. [`error`], [`stop`], [`stall`] and [`process`]: what can go wrong, told apart by what a caller can do about it; the wish to end early; what stands
//!     still; what the process used
//!
//! Invariants:
//!
//! - No state travels between two decodes: the same bytes give the same pixels in any order, on any thread.
//! - Bad input is an error that names what is wrong with it, never a panic and never a grey picture.
//! - Parquet and storage belong to `shards`, tensors to `trainer`; neither appears here.

pub mod codec;
pub mod config;
pub mod convert;
pub mod error;
pub mod loader;
pub mod process;
pub mod rng;
pub mod sheet;
pub mod speed;
pub mod stall;
pub mod stop;
mod sync;
pub mod synth;
pub mod views;

pub use error::{Error, Result};
pub use shards::{OtherFormat, check_address, hex, printable};
pub use stop::Stop;
