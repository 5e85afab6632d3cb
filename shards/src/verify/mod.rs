//! Is a set what its manifest says? Every byte is read once; every finding names the shard and, where there is one, the
//! row.

mod shard;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::storage::Store;
use shard::ShardCheck;

/// Findings kept of one shard; a shard with more is rotten, and the rest is only counted.
const KEPT_PER_SHARD: usize = 50;

/// How far [`verify`] has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The shard being read.
    pub shard: String,
    /// Shards done before it.
    pub shards_done: u64,
    /// Shards of all splits.
    pub n_shards: u64,
    /// Bytes read of all shards.
    pub bytes_done: u64,
    /// Bytes of all shards, as the manifest says.
    pub n_bytes: u64,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// File name of the shard.
    pub shard: String,
    /// Row of the shard, from 0, if one row is at fault.
    pub row: Option<u64>,
    /// What is wrong.
    pub problem: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.row {
            Some(row) => write!(f, "shard {}, row {row}: {}", self.shard, self.problem),
            None => write!(f, "shard {}: {}", self.shard, self.problem),
        }
    }
}

/// What [`verify`] saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Shards of all splits.
    pub shards: u64,
    /// Rows that were read and are as they must be: those without a finding of their own.
    pub good_rows: u64,
    /// Rows that the manifest speaks of.
    pub rows: u64,
    /// Samples that the manifest speaks of.
    pub samples: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// How many findings there are; more than `findings` holds if a shard has very many.
    pub n_findings: u64,
    /// The findings, in order of shards and rows.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.n_findings == 0
    }
}

/// Reads every byte of the set at `uri` and compares it with the manifest, the footers and the rows' checksums.
///
/// Checked are: each shard's size and SHA-256, its footer and its page places, the number of its rows and samples, the
/// crc32c of each picture, clips that are whole and in order, labels and sizes in range, names that are unique in their
/// split, and that no shard lies beside those of the manifest, where the store can be listed.
///
/// # Errors
/// [`Error::Unfinished`] or [`Error::Manifest`] if there is nothing to compare with, or the store's error. What is wrong
/// with shards is no error but in the report.
pub fn verify(uri: &str, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport> {
    verify_in(&Store::open(uri)?, progress)
}

/// [`verify`] of the set in `store`.
///
/// # Errors
/// As [`verify`].
pub fn verify_in(store: &Store, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport> {
    let manifest = Manifest::read(store)?;
    let all = || manifest.splits.values().flat_map(|split| &split.shards);
    let n_bytes = all().map(|entry| entry.bytes).sum();
    let n_shards = all().count() as u64;
    let mut report = VerifyReport::default();
    for (split, shards) in &manifest.splits {
        let mut names = BTreeSet::new();
        for entry in &shards.shards {
            let (shards_done, bytes_before) = (report.shards, report.bytes);
            let mut tick = |bytes| {
                let shard = entry.name.clone();
                progress(Progress {
                    shard,
                    shards_done,
                    n_shards,
                    bytes_done: bytes_before + bytes,
                    n_bytes,
                });
            };
            let mut check = ShardCheck::new(store, &manifest, split, entry);
            check.run(&mut names, &mut tick)?;
            report.shards += 1;
            report.rows += entry.rows;
            report.samples += entry.samples;
            report.good_rows += check.good_rows;
            report.bytes += check.bytes_read;
            report.n_findings += check.n_findings;
            report.findings.append(&mut check.findings);
        }
    }
    for stranger in strangers(store, &manifest)? {
        report.n_findings += 1;
        let problem = "not in the manifest".to_owned();
        report.findings.push(Finding {
            shard: stranger,
            row: None,
            problem,
        });
    }
    Ok(report)
}

/// Parquet files beside the shards: readers that open `*.parquet` would take them for a part of the set.
fn strangers(store: &Store, manifest: &Manifest) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = manifest
        .splits
        .values()
        .flat_map(|split| &split.shards)
        .map(|entry| entry.name.as_str())
        .collect();
    let listed = match store.list("") {
        Err(Error::CannotDo { .. }) => return Ok(Vec::new()), // nor can any other reader see them
        listed => listed?,
    };
    let mut found: Vec<String> = listed.into_iter().map(|(path, _)| path).collect();
    found.retain(|path| path.ends_with(".parquet") && !known.contains(path.as_str()));
    Ok(found)
}

/// Splits an error into a finding, or gives it back if it is the store's and not the shard's.
fn as_finding(shard: &str, error: Error) -> Result<Finding> {
    let finding = |row, problem| {
        Ok(Finding {
            shard: shard.to_owned(),
            row,
            problem,
        })
    };
    match error {
        Error::Shard { reason, .. } => finding(None, reason),
        Error::Row { row, reason, .. } => finding(Some(row), reason),
        Error::NotFound { .. } => finding(None, "is missing".to_owned()),
        other => Err(other),
    }
}
