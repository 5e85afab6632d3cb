//! The end of a conversion: all shards are there, so the manifest is written.

use std::collections::BTreeMap;

use shards::{ClassName, FORMAT_VERSION, Kind, Manifest, ShardEntry, SplitManifest, Version};

use super::error::{Error, Result};
use super::plan::Plan;
use super::report::{SplitReport, first_few};
use super::work::{Record, Work, shard_file};

/// Checks that every shard of every split that was begun in `dst` is there and writes `manifest.json`, last and
/// atomically. Returns the report of each split, by name.
///
/// Needed after a conversion in parts; one without parts does it by itself. Doing it again changes nothing.
///
/// # Errors
/// [`Error::Unfinished`] with the first shard that lacks, [`Error::NoPlan`], [`Error::Classes`] if splits disagree,
/// [`Error::Busy`] while a part is being made.
pub fn finish(dst: &str) -> Result<Vec<SplitReport>> {
    let work = Work::open(dst)?;
    let plans = work.plans()?;
    if plans.is_empty() {
        return Err(Error::NoPlan {
            dst: dst.to_owned(),
        });
    }
    let locks = plans.iter().map(|plan| work.lock(&plan.split, None));
    let _locks = locks.collect::<Result<Vec<_>>>()?;
    let _manifest = work.lock_manifest()?;
    let reports = finish_splits(&work, &plans)?;
    for plan in &plans {
        work.remove_stale_temps(&format!("{}-", plan.split))?;
        work.remove_stale_notes(&plan.split)?;
    }
    Ok(reports)
}

/// The same for one split, and for those others that are complete.
pub(crate) fn finish_split(work: &Work, split: &str) -> Result<Vec<SplitReport>> {
    let _manifest = work.lock_manifest()?;
    let manifest = read_manifest(work)?;
    let mut plans = work.plans()?;
    let mut complete = Vec::with_capacity(plans.len());
    for plan in &plans {
        // One that was complete before has to be still: to drop it from the manifest would hide the loss.
        let was_complete = manifest
            .as_ref()
            .is_some_and(|manifest| manifest.splits.contains_key(&plan.split));
        let is_complete =
            || Ok::<_, Error>(Shards::of(work, plan, manifest.as_ref())?.is_complete());
        complete.push(plan.split == split || was_complete || is_complete()?);
    }
    let mut complete = complete.into_iter();
    plans.retain(|_| complete.next().unwrap_or(false));
    finish_splits(work, &plans)
}

fn finish_splits(work: &Work, plans: &[Plan]) -> Result<Vec<SplitReport>> {
    let (before, version) = manifest_and_version(work)?.unzip();
    let Some(first) = plans.first() else {
        return Err(Error::NoPlan {
            dst: work.dst.clone(),
        });
    };
    let mut manifest = Manifest {
        format: FORMAT_VERSION,
        kind: first.kind,
        splits: BTreeMap::new(),
        class_names: merged_classes(plans)?,
        options: serde_json::Map::new(),
        skipped: shards::Skipped::default(),
    };
    let mut reports = Vec::new();
    for plan in plans {
        if plan.kind != first.kind {
            return Err(Error::Classes(format!(
                "split '{}' holds {} and split '{}' holds {}; a set is of one kind",
                first.split,
                first.kind.as_str(),
                plan.split,
                plan.kind.as_str()
            )));
        }
        let found = Shards::of(work, plan, before.as_ref())?;
        let (split, report) = found.into_split(work, plan)?;
        manifest.splits.insert(plan.split.clone(), split);
        manifest
            .options
            .insert(plan.split.clone(), plan.options.clone().into());
        manifest.skipped.count += report.skipped.len() as u64;
        for (fault, count) in report.skipped_by_fault() {
            *manifest.skipped.by_reason.entry(fault).or_default() += count;
        }
        reports.push(report);
    }
    // What is there already is left alone: a complete set may lie where nothing can be written.
    for report in &reports {
        if work.report(&report.split)?.as_ref() != Some(report) {
            work.write_report(report)?;
        }
    }
    if before.as_ref() != Some(&manifest) {
        match manifest.replace(&work.store, version.as_ref()) {
            Err(shards::Error::Conflict { .. }) => {
                return Err(Error::Busy {
                    dst: work.dst.clone(),
                    what: "manifest".into(),
                });
            }
            written => written?,
        }
    }
    for plan in plans {
        work.remove_records(plan)?;
    }
    Ok(reports)
}

/// Whether the manifest already holds this split as the plan has it, and it is still there.
pub(crate) fn is_finished(work: &Work, plan: &Plan) -> Result<bool> {
    let manifest = read_manifest(work)?;
    Ok(matches!(
        Shards::of(work, plan, manifest.as_ref())?,
        Shards::InManifest { .. }
    ))
}

/// The manifest, if the destination has one.
pub(crate) fn read_manifest(work: &Work) -> Result<Option<Manifest>> {
    Ok(manifest_and_version(work)?.map(|(manifest, _)| manifest))
}

fn manifest_and_version(work: &Work) -> Result<Option<(Manifest, Version)>> {
    match Manifest::read_version(&work.store) {
        Ok(found) => Ok(Some(found)),
        Err(shards::Error::Unfinished { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is known of a split's shards.
enum Shards {
    /// An earlier manifest lists them, and they are there.
    InManifest {
        split: SplitManifest,
        report: SplitReport,
    },
    /// Each shard's record, if it has one.
    Records(Vec<Option<Record>>),
}

impl Shards {
    fn of(work: &Work, plan: &Plan, manifest: Option<&Manifest>) -> Result<Self> {
        let listed = manifest.and_then(|manifest| manifest.splits.get(&plan.split));
        if let Some((split, report)) = listed.zip(work.report(&plan.split)?) {
            let mut is_whole = split.shards.len() as u64 == plan.n_shards;
            for entry in &split.shards {
                is_whole = is_whole && work.is_whole(&entry.name, entry.bytes)?;
            }
            if is_whole {
                return Ok(Self::InManifest {
                    split: split.clone(),
                    report,
                });
            }
        }
        let identity = plan.identity();
        let record = |shard| work.record(&shard_file(plan, shard), &identity);
        Ok(Self::Records(
            (0..plan.n_shards).map(record).collect::<Result<_>>()?,
        ))
    }

    fn is_complete(&self) -> bool {
        match self {
            Self::InManifest { .. } => true,
            Self::Records(records) => records.iter().all(Option::is_some),
        }
    }

    fn into_split(self, work: &Work, plan: &Plan) -> Result<(SplitManifest, SplitReport)> {
        let records = match self {
            Self::InManifest { split, report } => return Ok((split, report)),
            Self::Records(records) => records,
        };
        let name = |shard: usize| shard_file(plan, shard as u64);
        if let Some(first) = records.iter().position(Option::is_none) {
            return Err(Error::Unfinished {
                dst: work.dst.clone(),
                split: plan.split.clone(),
                missing: records.iter().filter(|record| record.is_none()).count() as u64,
                planned: plan.n_shards,
                first: name(first),
            });
        }
        let records: Vec<Record> = records.into_iter().flatten().collect();
        let report = summary(plan, &records);
        if report.samples == 0 {
            return Err(Error::NothingLeft {
                split: plan.split.clone(),
                of: report.items,
                first: first_few(&report.skipped),
            });
        }
        let entry = |(shard, record): (usize, Record)| ShardEntry {
            name: name(shard),
            rows: record.rows,
            samples: record.samples,
            bytes: record.bytes,
            sha256: record.sha256,
            groups: record.groups,
        };
        let shards = records.into_iter().enumerate().map(entry).collect();
        Ok((SplitManifest { shards }, report))
    }
}

/// What some shards' records come to.
pub(crate) fn summary(plan: &Plan, records: &[Record]) -> SplitReport {
    let mut report = SplitReport::new(plan.kind, &plan.split, plan.notes.clone());
    for record in records {
        report.items += record.items;
        report.source_bytes += record.source_bytes;
        report.samples += record.samples;
        report.rows += record.rows;
        report.image_bytes += record.image_bytes;
        report.shards += 1;
        report.shard_bytes += record.bytes;
        report.skipped.extend_from_slice(&record.skipped);
        report.damaged.extend_from_slice(&record.damaged);
    }
    report.skipped.sort_by(|a, b| a.key.cmp(&b.key));
    report.damaged.sort_by(|a, b| a.key.cmp(&b.key));
    report
}

/// The classes of all splits, which must agree; a split without classes (loose files) goes with any.
pub(crate) fn merged_classes(plans: &[Plan]) -> Result<Vec<ClassName>> {
    let mut with_classes = plans.iter().filter(|plan| !plan.class_names.is_empty());
    let Some(first) = with_classes.next() else {
        return Ok(Vec::new());
    };
    for plan in with_classes {
        let at = (0..first.class_names.len().max(plan.class_names.len()))
            .find(|&i| first.class_names.get(i) != plan.class_names.get(i));
        if let Some(at) = at {
            let show = |plan: &Plan| match plan.class_names.get(at) {
                Some(class) => format!("'{}' ({})", class.id, class.name),
                None => "nothing".to_owned(),
            };
            return Err(Error::Classes(format!(
                "class {at} is {} in split '{}' and {} in split '{}'; give both a file of class names, \
                 or put them into sets of their own",
                show(first),
                first.split,
                show(plan),
                plan.split
            )));
        }
    }
    Ok(first.class_names.clone())
}

/// Refuses a split that does not go with those already there, before any work is done.
pub(crate) fn check_other_splits(work: &Work, plan: &Plan) -> Result<()> {
    let mut plans = work.plans()?;
    plans.retain(|other| other.split != plan.split);
    if let Some(other) = plans.iter().find(|other| other.kind != plan.kind) {
        let words = |kind: Kind| kind.as_str();
        return Err(Error::Classes(format!(
            "{} holds {} in its split '{}'; {} need a destination of their own",
            work.dst,
            words(other.kind),
            other.split,
            words(plan.kind)
        )));
    }
    plans.push(plan.clone());
    merged_classes(&plans).map(|_| ())
}
