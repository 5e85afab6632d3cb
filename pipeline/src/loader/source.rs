//! Where pictures come from: what the loader asks of a shard set.

use bytes::Bytes;

use crate::loader::order::Group;

/// What is known of a sample before its pictures are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Frames of the clip; 1 for an image.
    pub n_frames: u32,
    /// Class, if the set has classes.
    pub label: Option<i32>,
    /// Name of the image or clip.
    pub key: String,
}

/// A set of samples, read by many threads at once. [`shards::ShardSet`] is one; tests and benches have others.
pub trait Source: Send + Sync {
    /// Samples in the split.
    fn n_samples(&self) -> u64;

    /// Whether samples are clips rather than images.
    fn holds_clips(&self) -> bool;

    /// What is known of sample `index`.
    ///
    /// # Errors
    /// [`shards::Error::Row`] if the sample alone is at fault, others if the set is.
    fn sample(&self, index: u64) -> shards::Result<Sample>;

    /// The encoded picture of frame `frame` (0 for an image) of sample `index`.
    ///
    /// # Errors
    /// As [`Self::sample`].
    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes>;

    /// Samples stored side by side, covering the split in order.
    ///
    /// # Errors
    /// If the set's indexes cannot be read.
    fn groups(&self) -> shards::Result<Vec<Group>>;
}

impl Source for shards::ShardSet {
    fn n_samples(&self) -> u64 {
        self.n_samples()
    }

    fn holds_clips(&self) -> bool {
        matches!(self.kind(), shards::Kind::Clips)
    }

    fn sample(&self, index: u64) -> shards::Result<Sample> {
        let sample = self.sample(index)?;
        Ok(Sample {
            n_frames: sample.n_frames,
            label: sample.label,
            key: sample.key,
        })
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.picture(index, frame)
    }

    fn groups(&self) -> shards::Result<Vec<Group>> {
        let group = |group: shards::GroupRef| Group {
            first_sample: group.first_sample,
            n_samples: group.n_samples,
        };
        Ok(self.groups()?.into_iter().map(group).collect())
    }
}
