//! From a configuration to the source that it names.

use std::sync::Arc;

use shards::{Environment, ForeignSet, ShardSet, Store, parquet_file};

use crate::config::{DataConfig, SourceConfig};
use crate::error::{Error, Result};
use crate::loader::foreign::Foreign;
use crate::loader::mix::Mix;
use crate::loader::order::Order;
use crate::loader::select::{Selected, select};
use crate::loader::source::Source;
use crate::loader::state::{Batching, Rank};
use crate::stall;

/// Opens the sets of `config`, with what is selected of them, as one source.
///
/// # Errors
/// [`Error::Invalid`] for a configuration that does not fit itself or a set, [`Error::Shards`] if a set does
/// not open.
pub fn source(config: &DataConfig) -> Result<Arc<dyn Source>> {
    config.validate()?;
    let mut sources = Vec::new();
    for source in config.sources() {
        let (path, file) = match parquet_file(&source.path) {
            Some((folder, file)) => (folder, Some(file)),
            None => (source.path.as_str(), None),
        };
        let _busy = stall::busy("opening", source.path.as_str());
        let store = Store::open_with(path, &config.store, &Environment::of_process())?;
        let store = match &config.cache {
            Some(cache) => store.with_cache(cache)?,
            None => store,
        };
        let opened = match file {
            Some(file) => foreign(ForeignSet::open_file(store, file, &source.split)?, &source)?,
            None => open(store, &source)?,
        };
        sources.push((opened, source.weight));
    }
    Ok(match sources.as_slice() {
        [(only, 1.0)] => Arc::clone(only),
        _ => Arc::new(Mix::new(sources)),
    })
}

/// The order in which `config` visits the samples of `source`.
///
/// # Errors
/// [`Error::Invalid`] if there are more than 2^62 visits.
pub fn order(source: &dyn Source, config: &DataConfig, seed: u64) -> Result<Order> {
    let mut parts = source.parts();
    for part in &mut parts {
        part.visits *= config.repeated_sampling as f64;
    }
    let kind = config.order_in_force();
    Order::new(seed, kind, &parts, source.groups(), config.window_groups).ok_or_else(|| {
        Error::Invalid {
            name: "data.repeated_sampling",
            value: config.repeated_sampling.to_string(),
            expected: format!(
                "at most 2^62 visits of {} samples, all of them in row groups",
                source.n_samples()
            ),
        }
    })
}

/// Whole batches in a pass over the data of `config`, without reading a sample.
///
/// # Errors
/// As [`source`] and [`order`]; [`Error::Invalid`] if the data does not fill a batch.
pub fn batches_per_epoch(config: &DataConfig) -> Result<u64> {
    let n_positions = order(source(config)?.as_ref(), config, 0)?.n_positions();
    let batching = Batching::new(n_positions, config.batch_size as u64, Rank::SINGLE)?;
    Ok(batching.batches_per_epoch())
}

fn open(store: Store, source: &SourceConfig) -> Result<Arc<dyn Source>> {
    let set = match ShardSet::open_in(store.clone(), &source.split) {
        // No set of ours: images of somebody else's, or nothing at all.
        Err(unfinished @ shards::Error::Unfinished { .. }) => {
            return match ForeignSet::open_in(store, &source.split) {
                Ok(set) => foreign(set, source),
                Err(shards::Error::Unfinished { .. }) => Err(unfinished.into()),
                Err(error) => Err(error.into()),
            };
        }
        opened => opened?,
    };
    if source.select.is_all() {
        return Ok(Arc::new(set));
    }
    let indices = select(&set, &source.select)?;
    Ok(Arc::new(Selected::new(Arc::new(set), indices)))
}

fn foreign(set: ForeignSet, source: &SourceConfig) -> Result<Arc<dyn Source>> {
    if source.select.is_all() {
        return Ok(Arc::new(Foreign::new(set)));
    }
    let indices = select(&set, &source.select)?;
    Ok(Arc::new(Selected::new(
        Arc::new(Foreign::new(set)),
        indices,
    )))
}
