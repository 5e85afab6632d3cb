//! What changed between the configuration of a checkpoint and that of the run that wants to go on from it.

use std::collections::BTreeMap;

use super::TrainConfig;
use crate::error::{Error, Result};

/// Keys, or tables, that may change between a checkpoint and its resumption without a word: they change what is
/// written down, how fast data comes and what is kept in memory, not what is computed.
const FREE: [&str; 10] = [
    "name",
    "paper",
    "device",
    "run",
    "model.checkpoint_blocks",
    "data.threads",
    "data.pin",
    "data.io_threads",
    "data.prefetch_batches",
    "data.max_bad",
];

/// Keys that may change, but that a person should know of: a longer run stretches the schedule, a moved set must hold
/// the same samples.
const NOTED: [&str; 3] = ["optim.epochs", "optim.max_steps", "data.path"];

/// The keys that differ, as `key: old -> new`.
#[derive(Debug, Default, PartialEq)]
pub struct Differences {
    /// Those that make it another experiment.
    pub fatal: Vec<String>,
    /// Those that are allowed and worth a warning.
    pub noted: Vec<String>,
}

/// Compares two configurations, both resolved.
///
/// # Errors
/// [`Error::ConfigSyntax`] if one of them cannot be written as TOML.
pub fn differences(old: &TrainConfig, new: &TrainConfig) -> Result<Differences> {
    let (old, new) = (flat(old)?, flat(new)?);
    let mut found = Differences::default();
    let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        if old.get(key) == new.get(key) || FREE.iter().any(|free| is_under(key, free)) {
            continue;
        }
        let value = |values: &BTreeMap<String, String>| {
            values.get(key).map_or("absent", String::as_str).to_string()
        };
        let difference = format!("{key}: {} -> {}", value(&old), value(&new));
        let list = if NOTED.contains(&key.as_str()) {
            &mut found.noted
        } else {
            &mut found.fatal
        };
        list.push(difference);
    }
    Ok(found)
}

fn is_under(key: &str, table: &str) -> bool {
    key.strip_prefix(table)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn flat(config: &TrainConfig) -> Result<BTreeMap<String, String>> {
    let table =
        toml::Table::try_from(config).map_err(|error| Error::ConfigSyntax(error.to_string()))?;
    let mut values = BTreeMap::new();
    flatten("", &toml::Value::Table(table), &mut values);
    Ok(values)
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    let toml::Value::Table(table) = value else {
        out.insert(prefix.to_string(), value.to_string());
        return;
    };
    for (key, value) in table {
        let path = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        flatten(&path, value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_fatal_what_only_moves_is_noted_the_rest_is_free() {
        let old = TrainConfig::default();
        let mut new = old.clone();
        assert_eq!(differences(&old, &new).unwrap(), Differences::default());
        new.name = "other".to_string();
        new.device = "cpu".to_string();
        new.run.log_every = 1;
        new.run.checkpoint_every = Some(5);
        new.data.threads = 3;
        assert_eq!(differences(&old, &new).unwrap(), Differences::default());
        new.optim.epochs = 800;
        new.optim.weight_decay = 0.1;
        new.seed = 7;
        new.data.batch_size = 32;
        new.model.depth = Some(2);
        let found = differences(&old, &new).unwrap();
        assert_eq!(found.noted, ["optim.epochs: 400 -> 800"]);
        assert_eq!(
            found.fatal,
            [
                "data.batch_size: 256 -> 32",
                "model.depth: absent -> 2",
                "optim.weight_decay: 0.05 -> 0.1",
                "seed: 42 -> 7"
            ]
        );
    }
}
