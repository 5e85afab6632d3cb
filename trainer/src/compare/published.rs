//! What papers report, to stand beside what was measured here. The figures are in `published.toml`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// All published figures that the report knows.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    row: Vec<PublishedRow>,
    ablation: Vec<PublishedAblation>,
}

/// One method's scores on the propagation benchmarks, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRow {
    /// What a comparison's `published` names.
    pub id: String,
    /// The method.
    pub method: String,
    /// Its encoder.
    pub net: String,
    /// What it was trained on.
    pub data: String,
    /// For how long.
    pub epochs: u64,
    /// J&F mean, and J mean and F mean where they are known.
    pub davis: Vec<f64>,
    /// mIoU.
    pub vip: f64,
    /// PCK@0.1, and PCK@0.2 where it is known.
    pub jhmdb: Vec<f64>,
    /// Which text has the figures.
    pub source: String,
}

/// Scores over the values of one setting, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedAblation {
    /// What a comparison's `ablation` names.
    pub id: String,
    /// What was scored: `davis` or `probe`.
    pub benchmark: String,
    /// Score of each setting; a method's `point` names one.
    pub points: BTreeMap<String, f64>,
    /// Which text has the figures.
    pub source: String,
}

impl Published {
    /// The figures that come with the program.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`] if the file within the program is broken.
    pub fn load() -> Result<Published> {
        toml::from_str(include_str!("published.toml"))
            .map_err(|error| Error::ConfigSyntax(format!("published.toml: {error}")))
    }

    /// # Errors
    /// [`Error::Config`] naming the rows there are.
    pub fn row(&self, id: &str) -> Result<&PublishedRow> {
        let ids = || self.row.iter().map(|row| row.id.as_str());
        let found = self.row.iter().find(|row| row.id == id);
        found.ok_or_else(|| unknown("published", id, ids()))
    }

    /// # Errors
    /// [`Error::Config`] naming the ablations there are.
    pub fn ablation(&self, id: &str) -> Result<&PublishedAblation> {
        let ids = || self.ablation.iter().map(|ablation| ablation.id.as_str());
        let found = self.ablation.iter().find(|ablation| ablation.id == id);
        found.ok_or_else(|| unknown("ablation", id, ids()))
    }
}

fn unknown<'a>(key: &str, id: &str, ids: impl Iterator<Item = &'a str>) -> Error {
    let ids: Vec<_> = ids.collect();
    Error::Config(format!(
        "{key} is {id:?}, expected one of {}",
        ids.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_whole_and_their_names_are_told() {
        let published = Published::load().unwrap();
        assert_eq!(published.row("cropmae_in1k").unwrap().davis, [60.4]);
        assert_eq!(
            published.ablation("mask_ratio").unwrap().points["98.5 %"],
            60.4
        );
        let error = published.row("cropmae").unwrap_err().to_string();
        assert!(
            error.contains("\"cropmae\"") && error.contains("siammae_k400"),
            "{error}"
        );
        let mut ids: Vec<_> = published.row.iter().map(|row| &row.id).collect();
        let n = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), n, "a name is used once");
    }
}
