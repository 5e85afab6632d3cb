//! From a configuration to the source that it names.

use std::sync::Arc;

use shards::ShardSet;

use crate::config::{DataConfig, SourceConfig};
use crate::error::Result;
use crate::loader::mix::Mix;
use crate::loader::select::{Selected, select};
use crate::loader::source::Source;

/// Opens the sets of `config`, with what is selected of them, as one source.
///
/// # Errors
/// [`crate::Error::Invalid`] for a configuration that does not fit itself or a set, [`crate::Error::Shards`] if a set does
/// not open.
pub fn source(config: &DataConfig) -> Result<Arc<dyn Source>> {
    config.validate()?;
    let mut sources = Vec::new();
    for source in config.sources() {
        sources.push((open(&source)?, source.weight));
    }
    Ok(match sources.as_slice() {
        [(only, 1.0)] => Arc::clone(only),
        _ => Arc::new(Mix::new(sources)),
    })
}

fn open(source: &SourceConfig) -> Result<Arc<dyn Source>> {
    let set = ShardSet::open(&source.path, &source.split)?;
    if source.select.is_all() {
        return Ok(Arc::new(set));
    }
    let indices = select(&set, &source.select)?;
    Ok(Arc::new(Selected::new(Arc::new(set), indices)))
}
