//! Bytes that change on a disk without a word: every region of a shard and the manifest, many places each.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde_json::Value;
use shards::{
    FooterStep, MANIFEST_NAME, ShardEntry, ShardFooter, ShardIndex, ShardSet, index_columns,
};

use crate::draw::Draw;
use crate::program::{Program, Toys, utf8};
use crate::row;

/// Bytes at the very end of a shard: four of the footer's length, four of the magic number.
const TRAILER_BYTES: u64 = 8;

/// Bytes of the magic number.
const MAGIC_BYTES: u64 = 4;

/// Pictures that are damaged for a run.
const N_BAD: usize = 3;

/// A part of a set's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Region {
    Magic,
    PageHeader,
    Payload,
    OtherColumns,
    PageIndex,
    Footer,
    FooterLength,
    Manifest,
}

impl Region {
    fn name(self) -> &'static str {
        match self {
            Region::Magic => "magic number",
            Region::PageHeader => "header of a picture's page",
            Region::Payload => "picture",
            Region::OtherColumns => "other columns",
            Region::PageIndex => "column and offset index",
            Region::Footer => "footer",
            Region::FooterLength => "footer length",
            Region::Manifest => "manifest",
        }
    }
}

/// What came of the flips of one region.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    n: u64,
    /// `verify` found it.
    n_verified: u64,
    /// The set could not be opened.
    n_refused: u64,
    /// One row could not be read, and it was the one.
    n_row: u64,
    /// A reader of pictures noticed nothing, and its pictures were the true ones.
    n_unseen: u64,
}

/// What came of all flips.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<Region, Count>);

impl Tally {
    /// Bytes that were flipped, and those of them that `verify` found.
    pub fn n(&self) -> (u64, u64) {
        let sum = |of: fn(&Count) -> u64| self.0.values().map(of).sum();
        (sum(|count| count.n), sum(|count| count.n_verified))
    }

    /// Rows for the table of `make reliability`, one a region.
    pub fn rows(&self) -> Vec<String> {
        let row = |(region, count): (&Region, &Count)| {
            let measured = format!(
                "verify found {} of {}; readers: {} refused the set, {} named the row, {} read true pictures",
                count.n_verified, count.n, count.n_refused, count.n_row, count.n_unseen
            );
            let is_good = count.n > 0 && count.n_verified == count.n;
            row(
                &format!("flipped bytes: {}", region.name()),
                &measured,
                "verify finds all, no reader gets a wrong picture",
                is_good,
            )
        };
        self.0.iter().map(row).collect()
    }
}

/// Flips bytes of a copy of a set, one after the other, `per_region` of each region, or all if it has fewer.
///
/// * `work`: an empty folder.
///
/// # Errors
/// A flip that `verify` misses or lays at the wrong door, and a picture that is read wrong.
pub fn flip(set: &Path, work: &Path, per_region: u64, seed: u64) -> Result<Tally> {
    let copy = copy_of(set, &work.join("flipped"))?;
    let uri = utf8(&copy)?;
    let truth = pictures(&uri)?;
    let mut draw = Draw::new(seed);
    let mut tally = Tally::default();
    let shards = ShardSet::open(&uri, "train")?;
    let entry = shards.manifest().splits["train"].shards[0].clone();
    let rows: Vec<u64> = (0..entry.rows).collect();
    for (region, ranges) in regions(&copy, &entry)? {
        let file = copy.join(if region == Region::Manifest {
            MANIFEST_NAME
        } else {
            &entry.name
        });
        let whole = fs::read(&file)?;
        let places = places(&ranges, per_region, &mut draw);
        let count = tally.0.entry(region).or_default();
        for place in places {
            let mask = match draw.below(2) {
                0 => 1 << draw.below(8),
                _ => 1 + draw.below(255) as u8,
            };
            let mut bytes = whole.clone();
            bytes[place as usize] ^= mask;
            fs::write(&file, bytes)?;
            let flipped = || {
                format!(
                    "{}: byte {place} of {} ^ {mask:#x}",
                    region.name(),
                    file.display()
                )
            };
            count.n += 1;
            verified(&uri, region, &entry.name).with_context(flipped)?;
            count.n_verified += 1;
            let of_row = rows.iter().position(|&row| match region {
                Region::Payload | Region::PageHeader => ranges[row as usize].contains(&place),
                _ => false,
            });
            match read(&uri, &truth).with_context(flipped)? {
                Read::Refused => count.n_refused += 1,
                Read::True if region == Region::Payload => {
                    bail!("{}: no reader noticed", flipped())
                }
                Read::True => count.n_unseen += 1,
                Read::Bad(bad)
                    if of_row.is_none_or(|row| bad == [(entry.name.clone(), row as u64)]) =>
                {
                    count.n_row += 1
                }
                Read::Bad(bad) => bail!("{}: laid at {bad:?}, expected row {of_row:?}", flipped()),
            }
        }
        fs::write(&file, whole)?;
    }
    ensure!(
        shards::verify(&uri, &mut |_| {})?.is_clean(),
        "not clean after everything was put back"
    );
    fs::remove_dir_all(&copy)?;
    Ok(tally)
}

/// Trains on a set with some damaged pictures: the run goes on, counts and names them, comes out the same twice, and ends
/// with an error that names them where none are allowed.
///
/// # Errors
/// What is not so.
pub fn train_on_damaged(program: &Program, toys: &Toys, work: &Path, seed: u64) -> Result<String> {
    let set = copy_of(&toys.shards("images"), &work.join("damaged"))?;
    let mut draw = Draw::new(seed);
    let entry = ShardSet::open(&utf8(&set)?, "train")?.manifest().splits["train"].shards[0].clone();
    let path = set.join(&entry.name);
    let mut bytes = fs::read(&path)?;
    let payloads = regions(&set, &entry)?
        .remove(&Region::Payload)
        .unwrap_or_default();
    let mut rows: Vec<usize> = Vec::new();
    while rows.len() < N_BAD {
        let row = draw.below(payloads.len() as u64) as usize;
        if !rows.contains(&row) {
            let Range { start, end } = payloads[row];
            bytes[(start + draw.below(end - start)) as usize] ^= 1 << draw.below(8);
            rows.push(row);
        }
    }
    fs::write(&path, bytes)?;

    let train = |out: &Path, max_bad: &str| -> Result<_> {
        let job = toys.train_on(&utf8(&set)?);
        let max_bad = format!("data.max_bad={max_bad}");
        let job = job.with(&["--set", &max_bad, "--set", "optim.max_steps=30"]);
        Ok(program.start(&job, out).output()?)
    };
    let mut losses = Vec::new();
    for name in ["once", "twice"] {
        let out = work.join(name);
        let output = train(&out, "50%")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let summary: Value = serde_json::from_slice(&fs::read(out.join("summary.json"))?)?;
        let named = summary["bad_samples"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        ensure!(
            named.len() == N_BAD,
            "{} bad samples, expected {N_BAD}: {named:?}",
            named.len()
        );
        for row in &rows {
            let expected = format!("shard {}, row {row}:", entry.name);
            ensure!(
                named.iter().any(|bad| bad.to_string().contains(&expected)),
                "{expected} is not in {named:?}"
            );
        }
        losses.push(crate::outcome::Outcome::of(&out)?);
    }
    losses[1].expect(&losses[0])?;
    let output = train(&work.join("none"), "0")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && said.contains("row"),
        "with none allowed: {said}"
    );
    let measured = format!(
        "{N_BAD} damaged pictures: replaced, counted and named by shard and row, the same twice; an error where none is allowed"
    );
    Ok(row(
        "training on flipped bytes",
        &measured,
        "goes on by `data.max_bad`",
        true,
    ))
}

fn copy_of(set: &Path, to: &Path) -> Result<PathBuf> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(set)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(to.to_path_buf())
}

/// Where each region lies: in the shard, or in the manifest. Of pictures and their headers one range a row, in order.
fn regions(set: &Path, entry: &ShardEntry) -> Result<BTreeMap<Region, Vec<Range<u64>>>> {
    let file = Bytes::from(fs::read(set.join(&entry.name))?);
    let size = file.len() as u64;
    let FooterStep::Done(footer) = ShardFooter::parse(&entry.name, size, &file)? else {
        bail!("the whole file was given");
    };
    let columns = index_columns(footer.kind());
    let slice = |range: Range<u64>| file.slice(range.start as usize..range.end as usize);
    let chunks: Vec<Bytes> = footer
        .column_ranges(columns)
        .into_iter()
        .map(slice)
        .collect();
    let decoded = footer.decode(columns, &chunks)?;
    let index = ShardIndex::new(footer, &decoded)?;

    let (mut headers, mut payloads, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let mut end = MAGIC_BYTES;
    for row in 0..index.n_rows() {
        let page = index.picture_range(row)?;
        let picture = index.picture(row, &slice(page.clone()))?;
        let payload = page.end - picture.len() as u64..page.end;
        if page.start > end {
            others.push(end..page.start);
        }
        end = page.end;
        headers.push(page.start..payload.start);
        payloads.push(payload);
    }
    let groups_end = entry.group_ranges().last().map_or(end, |group| group.end);
    others.push(end..groups_end);
    let length = file.slice((size - TRAILER_BYTES) as usize..(size - MAGIC_BYTES) as usize);
    let length = u32::from_le_bytes(length[..].try_into()?);
    let footer = size - TRAILER_BYTES - u64::from(length);
    let manifest = fs::metadata(set.join(MANIFEST_NAME))?.len();
    let one = |range: Range<u64>| std::iter::once(range).collect::<Vec<_>>();
    Ok(BTreeMap::from([
        (
            Region::Magic,
            vec![0..MAGIC_BYTES, size - MAGIC_BYTES..size],
        ),
        (Region::PageHeader, headers),
        (Region::Payload, payloads),
        (Region::OtherColumns, others),
        (Region::PageIndex, one(groups_end..footer)),
        (Region::Footer, one(footer..size - TRAILER_BYTES)),
        (
            Region::FooterLength,
            one(size - TRAILER_BYTES..size - MAGIC_BYTES),
        ),
        (Region::Manifest, one(0..manifest)),
    ]))
}

/// `n` places of a region by chance, or all of one that has no more.
fn places(ranges: &[Range<u64>], n: u64, draw: &mut Draw) -> Vec<u64> {
    let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    if total <= n {
        return ranges.iter().cloned().flatten().collect();
    }
    let place = |mut at: u64| {
        ranges.iter().find_map(|range| {
            let len = range.end - range.start;
            let found = (at < len).then_some(range.start + at);
            at = at.saturating_sub(len);
            found
        })
    };
    (0..n).filter_map(|_| place(draw.below(total))).collect()
}

/// # Errors
/// If `verify` finds nothing, or nothing of this shard.
fn verified(uri: &str, region: Region, shard: &str) -> Result<()> {
    match shards::verify(uri, &mut |_| {}) {
        Err(error) if region == Region::Manifest => {
            let message = error.to_string();
            ensure!(
                message.contains(MANIFEST_NAME),
                "verify does not name the manifest: {message}"
            );
        }
        Err(error) => return Err(error).context("verify met an error and found nothing"),
        Ok(report) if report.is_clean() => bail!("verify found nothing"),
        Ok(report) if region == Region::Manifest => {
            bail!("verify blames the shards: {:?}", report.findings);
        }
        Ok(report) => {
            let strange = report
                .findings
                .iter()
                .find(|finding| finding.shard != shard);
            ensure!(strange.is_none(), "verify blames {strange:?}");
        }
    }
    Ok(())
}

/// All pictures of a set.
fn pictures(uri: &str) -> Result<Vec<Bytes>> {
    let set = ShardSet::open(uri, "train")?;
    (0..set.n_samples())
        .map(|n| Ok(set.picture(n, 0)?))
        .collect()
}

/// What a reader of pictures makes of a damaged set.
enum Read {
    /// It cannot be opened, or says of a shard that it is broken.
    Refused,
    /// These shards and rows cannot be read; all others are true.
    Bad(Vec<(String, u64)>),
    /// All are true.
    True,
}

/// # Errors
/// If a picture is read and is not the true one.
fn read(uri: &str, truth: &[Bytes]) -> Result<Read> {
    let Ok(set) = ShardSet::open(uri, "train") else {
        return Ok(Read::Refused);
    };
    if set.n_samples() != truth.len() as u64 {
        bail!("{} samples, expected {}", set.n_samples(), truth.len());
    }
    let mut bad = Vec::new();
    for (n, expected) in truth.iter().enumerate() {
        match set.picture(n as u64, 0) {
            Ok(picture) => ensure!(picture == expected, "sample {n} reads as another picture"),
            Err(shards::Error::Row { shard, row, .. }) => bad.push((shard, row)),
            Err(_) => return Ok(Read::Refused),
        }
    }
    Ok(if bad.is_empty() {
        Read::True
    } else {
        Read::Bad(bad)
    })
}
