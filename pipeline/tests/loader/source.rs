//! A set of samples in memory whose pixels tell where they come from, with faults to order.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pipeline::codec::{Rgb8Image, encode_rgb8};
use pipeline::loader::order::Group;
use pipeline::loader::{Pictures, Sample, Source};

/// Clips of `n_frames` frames, or images where that is `None`.
#[derive(Debug, Default, Clone)]
pub struct MemorySource {
    pub n_samples: u64,
    pub n_frames: Option<u32>,
    /// Samples whose pages do not decode.
    pub corrupt: BTreeSet<u64>,
    /// Samples whose rows fail their checksum.
    pub bad_rows: BTreeSet<u64>,
    /// Clips with a single frame.
    pub one_frame: BTreeSet<u64>,
    /// Samples that lie in a broken shard.
    pub broken: BTreeSet<u64>,
    /// Samples whose reading panics.
    pub panicking: BTreeSet<u64>,
    /// A sample whose reading waits until the lock is free.
    pub stuck: Option<(u64, Arc<Mutex<()>>)>,
    /// Time that each read takes.
    pub delay: Duration,
    pub reads: Arc<AtomicU64>,
    /// Samples whose group cannot be read whole.
    pub broken_groups: BTreeSet<u64>,
    /// Numbers of the groups that were read whole, in order.
    pub group_reads: Arc<Mutex<Vec<usize>>>,
    pub groups_in_memory: Arc<AtomicU64>,
    /// Most of them that were in memory at once.
    pub most_groups: Arc<AtomicU64>,
}

pub const WIDTH: u32 = 48;
pub const HEIGHT: u32 = 36;

impl MemorySource {
    pub fn images(n_samples: u64) -> Self {
        Self {
            n_samples,
            ..Self::default()
        }
    }

    fn wait_if_stuck(&self, read: Range<u64>) {
        if let Some((_, lock)) = self
            .stuck
            .as_ref()
            .filter(|(stuck, _)| read.contains(stuck))
        {
            drop(lock.lock().unwrap());
        }
    }

    pub fn clips(n_samples: u64, n_frames: u32) -> Self {
        Self {
            n_samples,
            n_frames: Some(n_frames),
            ..Self::default()
        }
    }
}

/// Red rises to the right and green downwards, the same in all frames, so crop and flip can be told; blue is five times
/// the frame's number.
pub fn picture(frame: u32) -> Bytes {
    let pixel = |x: u32, y: u32| [(x * 5) as u8, (y * 7) as u8, (frame * 5) as u8];
    let data = (0..HEIGHT)
        .flat_map(|y| (0..WIDTH).flat_map(move |x| pixel(x, y)))
        .collect();
    encode_rgb8(
        &Rgb8Image {
            width: WIDTH,
            height: HEIGHT,
            data,
        },
        98,
    )
    .unwrap()
    .into()
}

impl Pictures for MemorySource {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        let n_frames = if self.one_frame.contains(&index) {
            1
        } else {
            self.n_frames.unwrap_or(1)
        };
        Ok(Sample {
            n_frames,
            label: Some(index as i32 % 7),
            key: format!("class/{index:03}").into(),
        })
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        self.wait_if_stuck(index..index + 1);
        assert!(
            !self.panicking.contains(&index),
            "sample {index} panics as ordered"
        );
        let (shard, reason) = ("made-up".to_owned(), "as ordered".to_owned());
        if self.bad_rows.contains(&index) {
            return Err(shards::Error::Row {
                shard,
                row: index,
                reason,
            });
        }
        if self.broken.contains(&index) {
            return Err(shards::Error::Shard { shard, reason });
        }
        if self.corrupt.contains(&index) {
            return Ok(Bytes::from_static(
                b"\xff\xd8\xff\xe0 not much of a picture",
            ));
        }
        // Images differ by their index as frames do by their number.
        Ok(picture(if self.n_frames.is_some() {
            frame
        } else {
            index as u32 % 50
        }))
    }
}

/// Samples of a group.
const GROUP_SAMPLES: u64 = 4;

/// Bytes that a group is said to take.
pub const GROUP_BYTES: u64 = 4 << 20;

impl Source for MemorySource {
    fn n_samples(&self) -> u64 {
        self.n_samples
    }

    fn holds_clips(&self) -> bool {
        self.n_frames.is_some()
    }

    fn place(&self, index: u64) -> String {
        format!("shelf {}, picture {index}", index / GROUP_SAMPLES)
    }

    fn groups(&self) -> Vec<Group> {
        let group = |first_sample| {
            let n_samples = GROUP_SAMPLES.min(self.n_samples - first_sample);
            Group {
                first_sample,
                n_samples,
                n_pictures: n_samples * u64::from(self.n_frames.unwrap_or(1)),
                bytes: GROUP_BYTES,
            }
        };
        (0..self.n_samples)
            .step_by(GROUP_SAMPLES as usize)
            .map(group)
            .collect()
    }

    fn load_group(&self, number: usize) -> shards::Result<Box<dyn Pictures>> {
        let now = self.groups_in_memory.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_groups.fetch_max(now, Ordering::SeqCst);
        self.group_reads.lock().unwrap().push(number);
        std::thread::sleep(self.delay);
        let group = LoadedGroup {
            samples: number as u64 * GROUP_SAMPLES..(number as u64 + 1) * GROUP_SAMPLES,
            source: self.clone(),
        };
        self.wait_if_stuck(group.samples.clone());
        if group
            .samples
            .clone()
            .any(|index| self.broken_groups.contains(&index))
        {
            let (shard, reason) = ("made-up".to_owned(), "as ordered".to_owned());
            return Err(shards::Error::Shard { shard, reason });
        }
        Ok(Box::new(group))
    }
}

/// Knows its own samples alone, and tells the source when it goes.
struct LoadedGroup {
    samples: Range<u64>,
    source: MemorySource,
}

impl Pictures for LoadedGroup {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        assert!(self.samples.contains(&index), "a sample of another group");
        self.source.sample(index)
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        assert!(self.samples.contains(&index), "a sample of another group");
        self.source.picture(index, frame)
    }
}

impl Drop for LoadedGroup {
    fn drop(&mut self) {
        self.source.groups_in_memory.fetch_sub(1, Ordering::SeqCst);
    }
}
