//! Whole conversions, from files to shards.

mod broken_entries;
mod clips;
mod images;
mod interrupted;
mod several_runs;
mod shared_data;
mod support;
mod tables;
