//! The work folder of a destination, `.pairquet`: plans, records of finished shards, reports.
//!
//! | file | written | removed |
//! | --- | --- | --- |
//! | `plan-<split>.json` | before the first shard | never: it tells a later run what this one did |
//! | `<shard>.json` | after its shard is safely in place | when the split is in the manifest |
//! | `report-<split>.json` | before the manifest | never |
//! | `lock-<split>`, `lock-<split>-<part>-of-<parts>`, `lock-manifest` | empty, while somebody works on it | never |
//!
//! All but the locks are written atomically, and none of those depends on workers, parts, machine or time.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shards::{Lock, Sharing, Store};

use super::error::{Error, Result};
use super::part::Part;
use super::plan::Plan;
use super::report::{Damaged, Skipped, SplitReport};

const FOLDER: &str = ".pairquet";

/// File name of a shard of a plan.
pub(crate) fn shard_file(plan: &Plan, shard: u64) -> String {
    // Both are below 2^32: no plan has more shards than items.
    shards::shard_name(&plan.split, shard as usize, plan.n_shards as usize)
}

/// `.pairquet/<shard>.json`: the shard is complete, and this is what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// [`Plan::identity`] of the plan that it was made under.
    pub plan: String,
    pub rows: u64,
    pub samples: u64,
    pub image_bytes: u64,
    /// Size of the shard.
    pub bytes: u64,
    pub sha256: String,
    /// Its row groups.
    pub groups: Vec<shards::GroupEntry>,
    /// Items looked at, and their size in the source.
    pub items: u64,
    pub source_bytes: u64,
    pub skipped: Vec<Skipped>,
    pub damaged: Vec<Damaged>,
}

/// The destination of a conversion.
#[derive(Clone)]
pub(crate) struct Work {
    pub store: Store,
    /// As the caller gave it, for messages.
    pub dst: String,
}

impl Work {
    pub fn open(dst: &str) -> Result<Self> {
        Ok(Self {
            store: Store::open(dst)?,
            dst: dst.to_owned(),
        })
    }

    /// Keeps others away from a split, or from one part of it: parts may be made at once, each of them once. The kernel
    /// lets go of it however this process ends.
    ///
    /// A bucket has no locks. Two runs that make the same there write the same bytes twice and no harm is done; the
    /// manifest of two that make different things is refused to the second, where the store can compare.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn lock(&self, split: &str, part: Option<Part>) -> Result<Vec<Lock>> {
        let take = |name: String, sharing| -> Result<Lock> {
            let lock = self
                .store
                .try_lock(&format!("{FOLDER}/lock-{name}"), sharing)?;
            lock.ok_or_else(|| Error::Busy {
                dst: self.dst.clone(),
                what: name,
            })
        };
        match part {
            None => Ok(vec![take(split.to_owned(), Sharing::Alone)?]),
            // The parts share the split, so that nobody makes the whole of it beside them.
            Some(Part { index, count }) => Ok(vec![
                take(split.to_owned(), Sharing::Shared)?,
                take(format!("{split}-{}-of-{count}", index + 1), Sharing::Alone)?,
            ]),
        }
    }

    /// Waits until nobody else writes the manifest. That takes moments, so nobody is turned away before a minute.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn lock_manifest(&self) -> Result<Lock> {
        for _ in 0..1200 {
            let path = format!("{FOLDER}/lock-manifest");
            if let Some(lock) = self.store.try_lock(&path, Sharing::Alone)? {
                return Ok(lock);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(Error::Busy {
            dst: self.dst.clone(),
            what: "manifest".into(),
        })
    }

    pub fn plan(&self, split: &str) -> Result<Option<Plan>> {
        self.read(&plan_path(split))
    }

    pub fn write_plan(&self, plan: &Plan) -> Result<()> {
        self.write(&plan_path(&plan.split), plan)
    }

    /// The plans of all splits, by name.
    pub fn plans(&self) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for (path, _) in self.store.list(&format!("{FOLDER}/"))? {
            let name = path.rsplit('/').next().unwrap_or_default();
            if let Some(split) = name
                .strip_prefix("plan-")
                .and_then(|name| name.strip_suffix(".json"))
            {
                plans.extend(self.plan(split)?);
            }
        }
        Ok(plans)
    }

    /// The record of a shard, if the shard is there, whole, and made under this plan.
    pub fn record(&self, shard: &str, plan: &str) -> Result<Option<Record>> {
        let Some(record) = self.read::<Record>(&record_path(shard))? else {
            return Ok(None);
        };
        let is_whole = record.plan == plan && self.is_whole(shard, record.bytes)?;
        Ok(is_whole.then_some(record))
    }

    /// Whether a file is there in the size it should have.
    pub fn is_whole(&self, path: &str, bytes: u64) -> Result<bool> {
        match self.store.size(path) {
            Ok(found) => Ok(found == bytes),
            Err(shards::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub fn write_record(&self, shard: &str, record: &Record) -> Result<()> {
        self.write(&record_path(shard), record)
    }

    /// Removes the records of a split's shards, as far as there are any.
    pub fn remove_records(&self, plan: &Plan) -> Result<()> {
        let shards = (0..plan.n_shards).map(|shard| record_path(&shard_file(plan, shard)));
        let records: BTreeSet<String> = shards.collect();
        for (path, _) in self.store.list(&format!("{FOLDER}/"))? {
            if records.contains(&path) {
                self.store.delete(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what killed runs left half written of the whole split, or of one shard if others may be at work.
    pub fn remove_stale_temps(&self, split_or_shard: &str) -> Result<()> {
        self.store.remove_stale_temps(split_or_shard)?;
        self.store
            .remove_stale_temps(&format!("{FOLDER}/{split_or_shard}"))?;
        Ok(())
    }

    /// Removes what killed runs left half written of a split's plan and report, and of the manifest: for who holds the
    /// locks of both.
    pub fn remove_stale_notes(&self, split: &str) -> Result<()> {
        for path in [plan_path(split), report_path(split)] {
            self.store.remove_stale_temps(&path)?;
        }
        self.store.remove_stale_temps(shards::MANIFEST_NAME)?;
        Ok(())
    }

    pub fn report(&self, split: &str) -> Result<Option<SplitReport>> {
        self.read(&report_path(split))
    }

    pub fn write_report(&self, report: &SplitReport) -> Result<()> {
        self.write(&report_path(&report.split), report)
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let bytes = match self.store.read(path) {
            Err(shards::Error::NotFound { .. }) => return Ok(None),
            read => read?,
        };
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|error| Error::State {
            path: format!("{}/{path}", self.dst),
            reason: error.to_string(),
        })
    }

    fn write<T: Serialize>(&self, path: &str, value: &T) -> Result<()> {
        let mut text =
            serde_json::to_vec_pretty(value).map_err(|error| Error::Internal(error.to_string()))?;
        text.push(b'\n');
        Ok(self.store.put_atomic(path, &text)?)
    }
}

fn plan_path(split: &str) -> String {
    format!("{FOLDER}/plan-{split}.json")
}

fn report_path(split: &str) -> String {
    format!("{FOLDER}/report-{split}.json")
}

fn record_path(shard: &str) -> String {
    format!("{FOLDER}/{shard}.json")
}
