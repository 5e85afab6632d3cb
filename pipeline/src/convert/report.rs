//! What was read and written, and what was left out and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shards::Kind;

/// An item that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Its key.
    pub key: String,
    /// The kind of fault in a word or two, for counting: `truncated`, `not decodable`.
    pub fault: String,
    /// The full reason.
    pub reason: String,
}

/// A clip of which only a part could be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damaged {
    /// Its key.
    pub key: String,
    /// What is wrong with it, and what was kept.
    pub reason: String,
}

/// What became of the items of a split. The same however the conversion ran: this is what
/// `.pairquet/report-<split>.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitReport {
    /// Images or clips.
    pub kind: Kind,
    /// The split.
    pub split: String,
    /// Items looked at.
    pub items: u64,
    /// Their size in the source, in bytes.
    pub source_bytes: u64,
    /// Images or clips written.
    pub samples: u64,
    /// Rows written: images, or frames of clips.
    pub rows: u64,
    /// Size of the pictures written, in bytes.
    pub image_bytes: u64,
    /// Shards.
    pub shards: u64,
    /// Their size, in bytes.
    pub shard_bytes: u64,
    /// Items left out, by key.
    pub skipped: Vec<Skipped>,
    /// Clips kept in part, by key.
    pub damaged: Vec<Damaged>,
    /// What the listing left out.
    pub notes: Vec<String>,
}

impl SplitReport {
    pub(crate) fn new(kind: Kind, split: &str, notes: Vec<String>) -> Self {
        Self {
            kind,
            split: split.to_owned(),
            items: 0,
            source_bytes: 0,
            samples: 0,
            rows: 0,
            image_bytes: 0,
            shards: 0,
            shard_bytes: 0,
            skipped: Vec::new(),
            damaged: Vec::new(),
            notes,
        }
    }

    /// How many items were left out for each kind of fault.
    pub fn skipped_by_fault(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for skipped in &self.skipped {
            *counts.entry(skipped.fault.clone()).or_default() += 1;
        }
        counts
    }
}

/// What one run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConvertReport {
    /// The split, or this run's part of it.
    #[serde(flatten)]
    pub split: SplitReport,
    /// Shards that earlier runs had made.
    pub shards_resumed: u64,
    /// Items whose shards this run made.
    pub items_converted: u64,
    /// Their size in the source, in bytes.
    pub bytes_converted: u64,
    /// Pictures written into those shards.
    pub rows_converted: u64,
    /// How long this run took, in seconds.
    pub seconds: f64,
    /// Whether the manifest is written. If not, other parts lack and `finish` is to be called.
    pub is_finished: bool,
}

/// The first few skipped items in words.
pub(crate) fn first_few(skipped: &[Skipped]) -> String {
    let mut text: Vec<String> = skipped
        .iter()
        .take(3)
        .map(|s| format!("{} ({})", s.key, s.reason))
        .collect();
    if skipped.len() > 3 {
        text.push("...".into());
    }
    text.join(", ")
}
