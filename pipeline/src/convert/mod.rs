//! Raw pictures and clips in, a set of shards out.
//!
//! [`imagenet`], [`images`] and [`kinetics`] list a source, plan the shards, and make them; [`finish`] joins the parts that
//! several machines made. Reading order:
//!
//! 1. what there is: `imagenet`, `kinetics` over `tree` (folders), `tar_index` (tars, read in place), `folder`
//!    (class folders), `classes`, `table` (Parquet files of others); the result is a `source::Listing`
//! 2. what will be done: `layout` (which item goes where), `plan` (written down), `work` (the folder it lies in)
//! 3. doing it: `engine` over `in_order`, with `image_item` and `clip_item` for one item each, `clip_frames` and `coding`
//!    for their bytes, `contain` for clips in processes of their own
//! 4. the end: `finish`, [`ConvertReport`]
//!
//! Invariants:
//!
//! - The result is a function of the source and of the options that [`ImagenetOptions`] and [`KineticsOptions`] do not
//!   call without effect. Workers, parts, machine, time, and any number of kills on the way play no part. Frames of
//!   clips depend on the version of FFmpeg as well, which is why the plan holds it and other versions are refused.
//! - A shard has its name only when it is whole, and a record only after that. The manifest comes last.
//! - A broken item is data: it is skipped, named and counted. A disk that fails is an error, never a thinner set.
//! - With a [`Containment`], so is a clip that crashes the video library, or needs more time or memory than allowed.
//!   What it needs is the one thing in which machine and load can play a part.
//! - Memory is bounded by the number of items (some 250 bytes each), by the clips in work, and by half a GiB of row groups
//!   of Parquet files, not by the set's size.

mod classes;
mod clip_frames;
mod clip_item;
mod coding;
mod contain;
mod engine;
mod error;
mod finish;
mod folder;
mod image_item;
mod imagenet;
mod in_order;
mod kinetics;
mod layout;
mod options;
mod outcome;
mod part;
mod plan;
mod progress;
mod report;
mod run;
mod source;
mod table;
mod tar_index;
mod tree;
mod work;

#[cfg(test)]
mod tests;

pub use crate::config::MaxBad;
pub use contain::{Containment, Faults, serve_clips};
pub use error::{Error, Result};
pub use finish::finish;
pub use options::{Check, CommonOptions, FrameRange, ImagenetOptions, KineticsOptions};
pub use part::Part;
pub use progress::{Progress, ProgressEvent};
pub use report::{ConvertReport, Damaged, Skipped, SplitReport};
pub use run::{Survey, imagenet, images, kinetics, survey};
