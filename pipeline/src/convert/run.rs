//! A conversion from its first look at the source to its report.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value};
use shards::{Kind, ShardSpec, check_address};

use super::clip_item::convert_clip;
use super::engine::{BadLimit, ConvertItem, Job, make_shards, measure};
use super::error::{Error, Result};
use super::finish::{check_other_splits, finish_split, is_finished, read_manifest, summary};
use super::image_item::convert_image;
use super::layout::{Layout, evenly_spaced, n_shards};
use super::options::{CommonOptions, ImagenetOptions, KineticsOptions};
use super::part::Part;
use super::plan::{Plan, SourceDigest, Wanted};
use super::progress::{Progress, ProgressEvent};
use super::report::ConvertReport;
use super::source::{Item, Listing};
use super::work::{Record, Work, shard_file};
use super::{imagenet as imagenet_source, kinetics as kinetics_source, table as table_source};
use crate::codec::video::library_versions;
use crate::stop::Stop;

/// Most pictures converted to measure how large the others will get.
const IMAGE_SAMPLE: u32 = 64;

/// Most clips converted for that.
const CLIP_SAMPLE: u32 = 32;

/// At most one item of so many is converted for that: a small set is not worth measuring well.
const SAMPLE_SPACING: u32 = 16;

/// Makes an image set of class folders, a tar of them, a tar of class tars, a folder of class tars, or loose pictures.
///
/// * `src`: a folder or a `.tar`. * `dst`: a folder, or the address of a store.
///
/// Killed or stopped and called again with the same options it goes on after the last whole shard; called again when
/// all is done it says so. The result is the same however often that happens.
///
/// # Errors
/// See [`Error`]; [`Error::Stopped`] and [`Error::TooManyBad`] leave whole shards to go on from.
pub fn imagenet(
    src: &Path,
    dst: &str,
    options: &ImagenetOptions,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<ConvertReport> {
    options.validate()?;
    let start = Instant::now();
    say(progress, format!("listing {}", src.display()));
    let listing = imagenet_source::list(src, options)?;
    pictures(src, &listing, dst, options, progress, stop, start)
}

/// What [`imagenet`] would convert: nothing is decoded, and nothing written.
///
/// # Errors
/// As [`imagenet`], as far as the listing goes.
pub fn survey(src: &Path, options: &ImagenetOptions) -> Result<Survey> {
    options.validate()?;
    Ok(Survey(imagenet_source::list(src, options)?))
}

/// The pictures of a source, sorted by name.
#[derive(Debug)]
pub struct Survey(Listing);

impl Survey {
    /// How many there are, broken ones counted.
    pub fn n_items(&self) -> usize {
        self.0.items.len()
    }

    /// Name of an item, without its ending; `None` beyond the last.
    pub fn name(&self, number: usize) -> Option<&str> {
        Some(&self.0.items.get(number)?.key)
    }

    /// Bytes of an item.
    ///
    /// # Errors
    /// [`Error::Read`] if it is broken or the system fails, [`Error::Changed`], [`Error::Internal`] beyond the last.
    pub fn read(&self, number: usize) -> Result<Vec<u8>> {
        let item = self.0.items.get(number);
        let item = item.ok_or_else(|| Error::Internal(format!("no item {number}")))?;
        self.0.read(item)
    }

    /// What is left out, and why.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }
}

/// Makes an image set of Parquet files that others wrote, such as those of the Hugging Face hub.
///
/// * `src`: a `.parquet` file, a folder of them, or the address of either (`hf://datasets/OWNER/NAME`); of a folder those
///   files are read that belong to the split, see [`shards::ForeignSet::open_in`].
/// * `dst`: as in [`imagenet`].
///
/// A picture is called by its file's column of names, or by the path beside it without its ending; by its file and row
/// where there is no such name or several rows have it. Rows without a picture are skipped, as are those of row groups
/// that cannot be decoded.
///
/// # Errors
/// As [`imagenet`].
pub fn images(
    src: &str,
    dst: &str,
    options: &ImagenetOptions,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<ConvertReport> {
    options.validate()?;
    check_address(src).map_err(Error::Source)?; // before it is said
    let start = Instant::now();
    say(progress, format!("listing {src}"));
    let listing = table_source::list(src, options)?;
    let src = Path::new(src);
    pictures(src, &listing, dst, options, progress, stop, start)
}

fn pictures(
    src: &Path,
    listing: &Listing,
    dst: &str,
    options: &ImagenetOptions,
    progress: &dyn Progress,
    stop: &Stop,
    start: Instant,
) -> Result<ConvertReport> {
    let convert = |item: &Item, scratch: &mut _| convert_image(listing, item, options, scratch);
    let re_encoded = options.short_side.is_some();
    Run {
        kind: Kind::Images,
        src,
        common: &options.common,
        options: options.record(),
        listing,
        convert: &convert,
        // Pictures that keep their bytes are as large as they are; pictures made smaller are all about as large.
        weight: &|item| {
            if re_encoded {
                1
            } else {
                listing.items[item as usize].bytes
            }
        },
        sample: if re_encoded { IMAGE_SAMPLE } else { 0 },
        progress,
        stop,
    }
    .run(dst, start)
}

/// Makes a clip set of folders by class, of a list of clips, or of a Kinetics table.
///
/// * `src`: a folder; or a list or table, whose paths are then relative to its folder. * `dst`: as in [`imagenet`].
///
/// A list has a path a line, then optionally a tab and a class, or a space or comma and a class number. A table has
/// the columns `label,youtube_id,time_start,time_end,split` and names files `<youtube_id>_<start>_<end>` with six
/// digits a time, or `<youtube_id>`, with any ending, anywhere under `src`.
///
/// In folders, stills, sound and texts beside the clips are left out by their endings, and of files that differ by
/// their ending alone all but the first; the report's notes tell of both. In a list, and where a table's row has
/// several files, two of one name are an error.
///
/// Frames are as the installed FFmpeg decodes them, and versions of it differ. So a set is made by one version: a run
/// or part that brings another is refused.
///
/// # Errors
/// As [`imagenet`].
pub fn kinetics(
    src: &Path,
    dst: &str,
    options: &KineticsOptions,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<ConvertReport> {
    options.validate()?;
    let start = Instant::now();
    say(progress, format!("listing {}", src.display()));
    let listing = kinetics_source::list(src, options)?;
    let convert = |item: &Item, scratch: &mut _| {
        let outcome = convert_clip(&listing, item, options, scratch, stop)?;
        if outcome.is_less_than_whole() {
            expect_readable(&listing, item)?;
        }
        Ok(outcome)
    };
    Run {
        kind: Kind::Clips,
        src,
        common: &options.common,
        options: options.record(),
        listing: &listing,
        convert: &convert,
        weight: &|item| listing.items[item as usize].bytes,
        sample: CLIP_SAMPLE,
        progress,
        stop,
    }
    .run(dst, start)
}

struct Run<'a> {
    kind: Kind,
    src: &'a Path,
    common: &'a CommonOptions,
    /// Those that change the result.
    options: Map<String, Value>,
    listing: &'a Listing,
    convert: &'a ConvertItem<'a>,
    /// Size of an item in a unit of which the size of its pictures is a multiple, more or less.
    weight: &'a dyn Fn(u32) -> u64,
    /// Most items to find that multiple with; 0 if the unit is bytes of pictures.
    sample: u32,
    progress: &'a dyn Progress,
    stop: &'a Stop,
}

impl Run<'_> {
    fn run(self, dst: &str, start: Instant) -> Result<ConvertReport> {
        let work = Work::open(dst)?;
        refuse_inside(self.src, &work)?;
        for note in &self.listing.notes {
            say(self.progress, note.clone());
        }
        let _locks = work.lock(&self.common.split, self.common.part)?;
        let plan = self.plan(&work)?;
        let part = self.common.part.unwrap_or(Part::WHOLE);
        let (n_items, seed) = (self.n_items()?, self.common.shuffle_seed);
        let layout = match &self.listing.table {
            None => Layout::new(n_items, plan.n_shards, seed, self.weight),
            Some(table) => {
                let order = table.order(&self.listing.items, seed);
                Layout::of_order(order, plan.n_shards, self.weight)
            }
        };
        if is_finished(&work, &plan)? {
            return self.already_finished(&work, &layout, start);
        }

        if self.common.part.is_none() {
            work.remove_stale_temps(&format!("{}-", plan.split))?;
        }
        let identity = plan.identity();
        let mut kept: Vec<Record> = Vec::new();
        let mut missing: Vec<u64> = Vec::new();
        for shard in (0..plan.n_shards).filter(|&shard| part.has(shard)) {
            let name = shard_file(&plan, shard);
            match work.record(&name, &identity)? {
                Some(record) => kept.push(record),
                None => {
                    if self.common.part.is_some() {
                        // Of this shard alone: another part may be writing its own right now.
                        work.remove_stale_temps(&name)?;
                    }
                    missing.push(shard);
                }
            }
        }
        let bytes_of = |shards: &[u64]| -> u64 {
            let items = shards.iter().flat_map(|&shard| layout.shard(shard));
            items
                .map(|&item| self.listing.items[item as usize].bytes)
                .sum()
        };
        let items_of = |shards: &[u64]| {
            shards
                .iter()
                .map(|&shard| layout.shard(shard).len() as u64)
                .sum::<u64>()
        };
        let (items_done, bytes_done) = kept.iter().fold((0, 0), |(items, bytes), r| {
            (items + r.items, bytes + r.source_bytes)
        });
        let items = items_done + items_of(&missing);
        self.progress.on(&ProgressEvent::Planned {
            items,
            bytes: bytes_done + bytes_of(&missing),
            shards: (kept.len() + missing.len()) as u64,
            items_done,
            bytes_done,
            shards_done: kept.len() as u64,
        });

        let mut bad = BadLimit {
            max_bad: self.common.max_bad,
            n_items: items,
            n_bad: 0,
            first: Vec::new(),
        };
        for record in &kept {
            bad.add(&record.skipped)?;
        }
        let spec = ShardSpec {
            kind: plan.kind,
            split: plan.split.clone(),
            class_names: plan.class_names.clone(),
            options: plan.options.clone(),
            row_group_bytes: self.common.row_group_bytes,
        };
        let job = Job {
            listing: self.listing,
            layout: &layout,
            spec: &spec,
            plan: &plan,
            work: &work,
            shards: &missing,
            shards_done: kept.len() as u64,
            convert: self.convert,
            n_workers: self.common.n_workers(),
            bad,
        };
        let made = make_shards(job, self.progress, self.stop)?;

        let shards_resumed = kept.len() as u64;
        let mine = summary(&plan, &made);
        kept.extend(made);
        let split = summary(&plan, &kept);
        let is_finished = self.common.part.is_none();
        if is_finished {
            finish_split(&work, &plan.split)?;
            work.remove_stale_notes(&plan.split)?;
        }
        Ok(ConvertReport {
            split,
            shards_resumed,
            items_converted: mine.items,
            bytes_converted: mine.source_bytes,
            rows_converted: mine.rows,
            seconds: start.elapsed().as_secs_f64(),
            is_finished,
        })
    }

    /// The plan of an earlier run, if it is the same, or a new one, written down.
    fn plan(&self, work: &Work) -> Result<Plan> {
        let split = &self.common.split;
        let source = SourceDigest::of(self.listing);
        let decoder = (self.kind == Kind::Clips).then(library_versions);
        let wanted = Wanted {
            kind: self.kind,
            options: &self.options,
            source: &source,
            class_names: &self.listing.classes,
            decoder: decoder.as_deref(),
        };
        let agreed = |plan: Plan| match plan.differences(&wanted) {
            None => Ok(plan),
            Some(differences) => Err(Error::OtherPlan {
                dst: work.dst.clone(),
                differences,
            }),
        };
        if let Some(plan) = work.plan(split)? {
            return agreed(plan);
        }
        // A split without a plan was not made here; it could be neither kept nor replaced with a good conscience.
        for split in read_manifest(work)?
            .into_iter()
            .flat_map(|manifest| manifest.splits.into_keys())
        {
            if work.plan(&split)?.is_none() {
                return Err(Error::SplitExists {
                    dst: work.dst.clone(),
                    split,
                });
            }
        }
        let draft = |bytes, n| {
            Plan::new(
                self.kind,
                split,
                self.options.clone(),
                self.listing,
                decoder.clone(),
                bytes,
                n,
            )
        };
        check_other_splits(work, &draft(0, 0))?;
        let bytes = self.estimate()?;
        let n_shards = n_shards(
            bytes,
            self.common.shard_bytes,
            self.listing.items.len() as u64,
        );
        work.write_plan(&draft(bytes, n_shards))?;
        // Read again: where several parts start at once, one of them wrote last, and all take what is there.
        match work.plan(split)? {
            Some(plan) => agreed(plan),
            None => Err(Error::Internal("the plan just written is gone".into())),
        }
    }

    /// Bytes of all pictures after conversion, from the source's sizes and a few items.
    fn estimate(&self) -> Result<u64> {
        let n_items = self.n_items()?;
        let weights = |items: &mut dyn Iterator<Item = u32>| -> u128 {
            items.map(|i| u128::from((self.weight)(i))).sum()
        };
        let total = weights(&mut (0..n_items));
        if self.sample == 0 {
            return Ok(u64::try_from(total).unwrap_or(u64::MAX));
        }
        let n_sample = self.sample.min(n_items.div_ceil(SAMPLE_SPACING));
        let sample = match &self.listing.table {
            None => evenly_spaced(n_items, n_sample),
            Some(table) => table.sample(&self.listing.items, n_sample),
        };
        say(
            self.progress,
            format!("measuring {} of {n_items} items", sample.len()),
        );
        let bytes = measure(self.listing, &sample, self.convert, self.common.n_workers())?;
        let measured = weights(&mut sample.iter().copied());
        let estimate = (total * u128::from(bytes))
            .checked_div(measured)
            .unwrap_or(0);
        Ok(u64::try_from(estimate).unwrap_or(u64::MAX))
    }

    fn n_items(&self) -> Result<u32> {
        let n_items = self.listing.items.len();
        u32::try_from(n_items).map_err(|_| {
            Error::Internal(format!(
                "{n_items} items are too many, expected less than 2^32"
            ))
        })
    }

    fn already_finished(
        &self,
        work: &Work,
        layout: &Layout,
        start: Instant,
    ) -> Result<ConvertReport> {
        // Removes records that a run killed at its very end left behind.
        let mut reports = finish_split(work, &self.common.split)?;
        reports.retain(|report| report.split == self.common.split);
        let split = reports
            .pop()
            .ok_or_else(|| Error::Internal("the split just finished is gone".into()))?;
        say(
            self.progress,
            format!(
                "{} is complete, nothing to do (not verified; `pairquet verify` does)",
                work.dst
            ),
        );
        Ok(ConvertReport {
            split,
            shards_resumed: layout.n_shards(),
            items_converted: 0,
            bytes_converted: 0,
            rows_converted: 0,
            seconds: start.elapsed().as_secs_f64(),
            is_finished: true,
        })
    }
}

/// The video library does not tell a disk's fault from a clip's: what it found broken must be readable to its end, or the
/// disk is to blame, and the conversion ends before it thins out the set.
fn expect_readable(listing: &Listing, item: &Item) -> Result<()> {
    let Some(path) = listing.path(item) else {
        return Ok(());
    };
    let Ok(mut file) = File::open(&path) else {
        return Ok(()); // that has been judged
    };
    let read = io::copy(&mut file, &mut io::sink());
    read.map(drop)
        .map_err(|source| Error::Read { path, source })
}

fn say(progress: &dyn Progress, text: String) {
    progress.on(&ProgressEvent::Message(text));
}

/// A destination inside its own source would be taken for source by the next run.
fn refuse_inside(src: &Path, work: &Work) -> Result<()> {
    let Some(folder) = work.store.folder().filter(|_| src.is_dir()) else {
        return Ok(());
    };
    let inside = || -> io::Result<bool> {
        let src = src.canonicalize()?;
        let mut dst = folder.to_path_buf();
        // Of a destination that is not there yet, its nearest ancestor that is.
        while !dst.exists() && dst.pop() {}
        Ok(dst.canonicalize()?.starts_with(src))
    };
    if inside().unwrap_or(false) {
        return Err(Error::Option {
            name: "destination",
            value: work.dst.clone(),
            expected: "a place outside of the source",
        });
    }
    Ok(())
}
