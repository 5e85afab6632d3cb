//! The loader as a trainer meets it: the same batches whatever the threads, ranks and resumes, and faults that surface.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which Clippy takes for production code

mod batches;
mod bucket;
mod faults;
mod groups;
mod huge;
mod mix;
mod pairs;
mod parts;
mod select;
mod shard_set;
mod source;
mod speed;
mod stall;

use std::sync::Arc;

use pipeline::config::DataConfig;
use pipeline::loader::{Batch, Loader, LoaderState, Rank};
use source::MemorySource;

const SEED: u64 = 42;

/// Small views of a set named for its kind.
fn config(batch_size: usize) -> DataConfig {
    DataConfig {
        path: "memory".into(),
        batch_size,
        size: 16,
        threads: 2,
        ..DataConfig::default()
    }
}

fn at(epoch: u64, batch: u64) -> LoaderState {
    LoaderState { epoch, batch }
}

fn start(source: MemorySource, config: &DataConfig) -> Loader {
    Loader::from_source(Arc::new(source), config, SEED, Rank::SINGLE, at(0, 0)).unwrap()
}

fn take(loader: &mut Loader, n: usize) -> Vec<Batch> {
    (0..n).map(|_| loader.next_batch().unwrap()).collect()
}
