//! A set of samples in memory whose pixels tell where they come from, with faults to order.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pipeline::codec::{Rgb8Image, encode_rgb8};
use pipeline::loader::order::Group;
use pipeline::loader::{Sample, Source};

/// Clips of `n_frames` frames, or images where that is `None`.
#[derive(Debug, Default)]
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
    /// Time that each read takes.
    pub delay: Duration,
    pub reads: AtomicU64,
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

impl Source for MemorySource {
    fn n_samples(&self) -> u64 {
        self.n_samples
    }

    fn holds_clips(&self) -> bool {
        self.n_frames.is_some()
    }

    fn sample(&self, index: u64) -> shards::Result<Sample> {
        let n_frames = if self.one_frame.contains(&index) {
            1
        } else {
            self.n_frames.unwrap_or(1)
        };
        Ok(Sample {
            n_frames,
            label: Some(index as i32 % 7),
            key: format!("class/{index:03}"),
        })
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
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

    fn groups(&self) -> shards::Result<Vec<Group>> {
        let group = |first_sample| Group {
            first_sample,
            n_samples: 4.min(self.n_samples - first_sample),
        };
        Ok((0..self.n_samples).step_by(4).map(group).collect())
    }
}
