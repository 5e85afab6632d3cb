//! Items in the order of the plan, through threads that decode, into one shard after the other.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use shards::{ShardSpec, ShardWriter};

use super::error::{Error, Result};
use super::in_order::InOrder;
use super::layout::Layout;
use super::outcome::{Outcome, Scratch};
use super::plan::Plan;
use super::progress::{Progress, ProgressEvent};
use super::report::{Damaged, Skipped, first_few};
use super::source::{Item, Listing};
use super::work::{Record, Work, shard_file};
use crate::config::MaxBad;
use crate::stall;
use crate::stop::Stop;

/// Results that wait for an earlier one hold at most this, in bytes.
const WAITING_BYTES: u64 = 256 << 20;

/// What a result costs besides its pictures, in bytes, so that also results without any are bounded.
const RESULT_BYTES: u64 = 1024;

/// Turns an item into a row, or says why not; called on many threads at once.
pub(crate) type ConvertItem<'a> = dyn Fn(&Item, &mut Scratch) -> Result<Outcome> + Sync + 'a;

/// The shards to make and how.
pub(crate) struct Job<'a> {
    pub listing: &'a Listing,
    pub layout: &'a Layout,
    pub spec: &'a ShardSpec,
    pub plan: &'a Plan,
    pub work: &'a Work,
    /// Numbers of the shards to make, ascending.
    pub shards: &'a [u64],
    /// Shards of this run that are there already, for messages.
    pub shards_done: u64,
    pub convert: &'a ConvertItem<'a>,
    pub n_workers: usize,
    pub bad: BadLimit,
}

/// Counts broken items against the limit.
pub(crate) struct BadLimit {
    pub max_bad: MaxBad,
    /// Items of this run, all its shards together.
    pub n_items: u64,
    pub n_bad: u64,
    /// The first few.
    pub first: Vec<Skipped>,
}

impl BadLimit {
    /// Counts items and refuses one too many.
    pub fn add(&mut self, skipped: &[Skipped]) -> Result<()> {
        self.n_bad += skipped.len() as u64;
        let room = 4_usize.saturating_sub(self.first.len());
        self.first.extend(skipped.iter().take(room).cloned());
        if self.n_bad > self.max_bad.limit(self.n_items) {
            return Err(Error::TooManyBad {
                bad: self.n_bad,
                of: self.n_items,
                allowed: self.max_bad.to_string(),
                first: first_few(&self.first),
            });
        }
        Ok(())
    }
}

/// Makes the shards; returns their records, in the same order.
///
/// One shard is written at a time, to a temporary name, and gets its own name when it is whole; then its record is
/// written. So whatever ends this, what has a record is complete.
///
/// # Errors
/// The first error in the order of the items; [`Error::Stopped`], [`Error::TooManyBad`].
pub(crate) fn make_shards(
    job: Job<'_>,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<Vec<Record>> {
    let items: Vec<u32> = job
        .shards
        .iter()
        .flat_map(|&shard| job.layout.shard(shard))
        .copied()
        .collect();
    let queue = InOrder::new(items.len() as u64, WAITING_BYTES);
    let (queue, items, convert, listing) = (&queue, items.as_slice(), job.convert, job.listing);
    std::thread::scope(|scope| {
        for _ in 0..job.n_workers.min(items.len()) {
            scope.spawn(move || {
                let _guard = queue.close_on_panic();
                let mut scratch = Scratch::default();
                while let Some(number) = queue.claim() {
                    let item = item_at(listing, items[number as usize]);
                    let busy = stall::busy("converting", &*item.key);
                    let outcome = convert(item, &mut scratch);
                    drop(busy);
                    let bytes = outcome.as_ref().map_or(0, Outcome::image_bytes) + RESULT_BYTES;
                    queue.bring(number, outcome, bytes);
                }
            });
        }
        let n_planned = job.shards_done + job.shards.len() as u64;
        let mut writer = Writer {
            n_done: job.shards_done,
            job,
            queue,
            progress,
            stop,
        };
        let result = writer.all_shards();
        queue.close();
        match result {
            // A thread that saw the wish to stop does not know how far the run is.
            Err(Error::Stopped { .. }) => Err(Error::Stopped {
                done: writer.n_done,
                planned: n_planned,
            }),
            other => other,
        }
    })
}

fn item_at(listing: &Listing, item: u32) -> &Item {
    &listing.items[item as usize]
}

struct Writer<'a> {
    job: Job<'a>,
    queue: &'a InOrder<Result<Outcome>>,
    progress: &'a dyn Progress,
    stop: &'a Stop,
    /// Shards of the run that are complete.
    n_done: u64,
}

impl Writer<'_> {
    fn all_shards(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::with_capacity(self.job.shards.len());
        for &shard in self.job.shards {
            records.push(self.shard(shard)?);
            self.n_done += 1;
        }
        Ok(records)
    }

    fn shard(&mut self, shard: u64) -> Result<Record> {
        let name = shard_file(self.job.plan, shard);
        let items = self.job.layout.shard(shard);
        let out = self.job.work.store.create(&name)?;
        let failed = |source| Error::Shard {
            path: self.job.work.store.full_path(&name),
            source,
        };
        let mut writer = ShardWriter::new(out, self.job.spec).map_err(failed)?;
        let (mut skipped, mut damaged, mut source_bytes) = (Vec::new(), Vec::new(), 0);
        for &item in items {
            let item = item_at(self.job.listing, item);
            if self.stop.is_requested() {
                return Err(Error::Stopped {
                    done: 0,
                    planned: 0,
                });
            }
            let lost = || Error::Internal("a converting thread ended early".into());
            let outcome = self.queue.take().ok_or_else(lost)??;
            let busy = stall::busy("writing", name.as_str());
            let outcome = store(&mut writer, item, outcome).map_err(failed)?;
            drop(busy);
            let pictures = match outcome {
                Stored::Written { pictures, damage } => {
                    damaged.extend(damage);
                    pictures
                }
                Stored::Skipped(fault) => {
                    let (key, reason) = (fault.key.clone(), fault.reason.clone());
                    self.progress.on(&ProgressEvent::Skipped { key, reason });
                    self.job.bad.add(std::slice::from_ref(&fault))?;
                    skipped.push(fault);
                    0
                }
            };
            source_bytes += item.bytes;
            self.progress.on(&ProgressEvent::Item {
                bytes: item.bytes,
                pictures,
            });
        }
        let _busy = stall::busy("writing", name.as_str());
        let (out, counts) = writer.finish().map_err(failed)?;
        let written = out.commit()?;
        let record = Record {
            plan: self.job.plan.identity(),
            rows: counts.rows,
            samples: counts.samples,
            image_bytes: counts.image_bytes,
            bytes: written.bytes,
            sha256: written.sha256,
            groups: counts.groups,
            items: items.len() as u64,
            source_bytes,
            skipped,
            damaged,
        };
        self.job.work.write_record(&name, &record)?;
        self.progress.on(&ProgressEvent::Shard {
            name,
            bytes: record.bytes,
        });
        Ok(record)
    }
}

enum Stored {
    Written {
        pictures: u64,
        damage: Option<Damaged>,
    },
    Skipped(Skipped),
}

fn store<W: std::io::Write + Send>(
    writer: &mut ShardWriter<W>,
    item: &Item,
    outcome: Outcome,
) -> Result<Stored, shards::Error> {
    let (result, pictures, damage) = match outcome {
        Outcome::Image(row) => (writer.push_image(&row), 1, None),
        Outcome::Clip { row, damage } => {
            let damage = damage.map(|reason| Damaged {
                key: row.clip.clone(),
                reason,
            });
            (writer.push_clip(&row), row.frames.len() as u64, damage)
        }
        Outcome::Skip(skipped) => return Ok(Stored::Skipped(skipped)),
    };
    match result {
        Ok(()) => Ok(Stored::Written { pictures, damage }),
        // Such as a clip larger than a row group can be; the writer refuses it before it takes any of it.
        Err(shards::Error::Input { reason, .. }) => {
            let skipped = Skipped {
                key: item.key.to_string(),
                fault: "cannot be stored".into(),
                reason,
            };
            Ok(Stored::Skipped(skipped))
        }
        Err(error) => Err(error),
    }
}

/// Bytes that the pictures of some items come to after conversion; broken items count nothing.
///
/// # Errors
/// What is not an item's own fault, such as a disk that fails: that of any item that met it.
pub(crate) fn measure(
    listing: &Listing,
    sample: &[u32],
    convert: &ConvertItem<'_>,
    n_workers: usize,
) -> Result<u64> {
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || -> Result<()> {
        let mut scratch = Scratch::default();
        while let Some(&item) = sample.get(next.fetch_add(1, Ordering::Relaxed)) {
            let item = item_at(listing, item);
            let _busy = stall::busy("measuring", &*item.key);
            let outcome = convert(item, &mut scratch)?;
            bytes.fetch_add(outcome.image_bytes(), Ordering::Relaxed);
        }
        Ok(())
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..n_workers.min(sample.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let lost = |_| Err(Error::Internal("a measuring thread panicked".into()));
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(lost))
            .collect()
    });
    results.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(bytes.into_inner())
}
