//! `pairquet inspect` of Parquet files that others wrote: what is in them, and what it costs to read them as they are.

use anyhow::Result;
use pipeline::speed::FloorSpeed;
use serde::Serialize;
use shards::{ForeignLayout, ForeignSet};

use super::{Sample, table};
use crate::bench;
use crate::output::{counted, facts};
use crate::sizes::human_bytes;

#[derive(Serialize)]
pub(super) struct Report {
    path: String,
    split: String,
    files: usize,
    rows: u64,
    classes: usize,
    #[serde(flatten)]
    layout: ForeignLayout,
    /// Bytes that are fetched for a picture by itself, as of a full shuffle: those of its row group.
    bytes_fetched_alone: u64,
    /// Bytes that are fetched for a picture where row groups are read whole.
    bytes_fetched_by_group: u64,
    /// Bytes that are decompressed for a picture where row groups are read whole.
    bytes_decoded: u64,
    /// Of the first rows, those that have a picture whose header reads.
    first_samples: Vec<Sample>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<FloorSpeed>,
}

/// * `n_rows`: that are shown; the row groups that they lie in are read.
pub(super) fn report(
    path: String,
    set: &ForeignSet,
    n_rows: u64,
    speed: Option<FloorSpeed>,
) -> Result<Report> {
    let layout = set.layout();
    let rows = set.n_samples();
    // A row of a large group is as likely to be drawn as one of a small one, so groups count by their rows.
    let alone: u128 = set
        .groups()
        .iter()
        .map(|group| u128::from(group.bytes) * u128::from(group.n_rows))
        .sum();
    Ok(Report {
        path,
        split: set.split().to_owned(),
        files: set.n_files(),
        rows,
        classes: set.class_names().len(),
        bytes_fetched_alone: (alone / u128::from(rows.max(1))) as u64,
        bytes_fetched_by_group: layout.stored_bytes / rows.max(1),
        bytes_decoded: layout.decoded_bytes / rows.max(1),
        layout,
        first_samples: first_samples(set, n_rows)?,
        speed,
    })
}

fn first_samples(set: &ForeignSet, n_rows: u64) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for (number, group) in set.groups().into_iter().enumerate() {
        if group.first_sample >= n_rows {
            break;
        }
        let loaded = set.load_group(number)?;
        for row in 0..group.n_samples.min(n_rows - group.first_sample) {
            let picture = match loaded.picture(row) {
                Err(shards::Error::Row { .. }) => continue,
                picture => picture?,
            };
            let (name, label) = loaded.sample(row)?;
            samples.extend(Sample::new(name, label, set.class_names(), 1, &picture).ok());
        }
    }
    Ok(samples)
}

pub(super) fn describe(report: &Report) -> String {
    let Report { layout, .. } = report;
    let absent = || "none".to_owned();
    let spread = |[least, middle, most]: [u64; 3], show: fn(u64) -> String| {
        format!("{} to {}, mostly {}", show(least), show(most), show(middle))
    };
    let mut text = facts([
        (
            "set",
            format!("{}, split {}, Parquet of others", report.path, report.split),
        ),
        (
            "holds",
            format!(
                "{} in {}, {}",
                counted(report.rows, ["row", "rows"]),
                counted(report.files as u64, ["file", "files"]),
                counted(report.classes as u64, ["named class", "named classes"])
            ),
        ),
        (
            "columns",
            format!(
                "pictures {}, labels {}, names {}",
                layout.picture,
                layout.label.clone().unwrap_or_else(absent),
                layout.key.clone().unwrap_or_else(absent)
            ),
        ),
        ("codecs", layout.codecs.join(", ")),
        (
            "row groups",
            format!(
                "{} of {} rows, {}",
                layout.groups,
                spread(layout.group_rows, |rows| rows.to_string()),
                spread(layout.group_bytes, human_bytes)
            ),
        ),
        (
            "a picture",
            format!(
                "{} fetched and {} decompressed by row groups (data.order = \"blocks\"), {} fetched by itself (\"full\")",
                human_bytes(report.bytes_fetched_by_group),
                human_bytes(report.bytes_decoded),
                human_bytes(report.bytes_fetched_alone)
            ),
        ),
    ]);
    if let Some(speed) = &report.speed {
        text.push_str(&format!("\nspeed: {}", bench::floor_text(speed)));
    }
    text + "\n\n" + &table(&report.first_samples)
}
