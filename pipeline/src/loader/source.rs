//! Where pictures come from: what the loader asks of a shard set.

use bytes::Bytes;
use shards::Name;

use crate::loader::order::{Group, Part};

/// What is known of a sample before its pictures are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Frames of the clip; 1 for an image.
    pub n_frames: u32,
    /// Class, if the set has classes.
    pub label: Option<i32>,
    /// Name of the image or clip.
    pub key: Name,
}

impl From<shards::NamedSample> for Sample {
    fn from(sample: shards::NamedSample) -> Self {
        Self {
            n_frames: sample.n_frames,
            label: sample.label,
            key: sample.name,
        }
    }
}

/// A file of a set, as the set's manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name in the set.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// Samples that can be read one by one, by many threads at once.
pub trait Pictures: Send + Sync {
    /// What is known of sample `index` of the source.
    ///
    /// # Errors
    /// [`shards::Error::Row`] if the sample alone is at fault, others if the set is.
    fn sample(&self, index: u64) -> shards::Result<Sample>;

    /// The encoded picture of frame `frame` (0 for an image) of sample `index`.
    ///
    /// # Errors
    /// As [`Self::sample`].
    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes>;

    /// The encoded pictures of two frames of one sample, as [`Self::picture`] gives them; where reading takes time, both
    /// at once.
    ///
    /// # Errors
    /// As [`Self::sample`].
    fn pair(&self, index: u64, frames: [u32; 2]) -> shards::Result<[Bytes; 2]> {
        let [first, second] = frames;
        Ok([self.picture(index, first)?, self.picture(index, second)?])
    }
}

/// A set of samples. [`shards::ShardSet`] is one; tests and benches have others.
pub trait Source: Pictures {
    /// Samples in the split.
    fn n_samples(&self) -> u64;

    /// Whether samples are clips rather than images.
    fn holds_clips(&self) -> bool;

    /// The classes' ids, in the order of their labels; none where they are not known.
    fn class_ids(&self) -> Vec<String> {
        Vec::new()
    }

    /// The files that hold the split, for a record of what was read; none where no manifest names them.
    fn files(&self) -> Vec<SourceFile> {
        Vec::new()
    }

    /// Where sample `index` lies, in words; reads nothing and waits for nothing.
    fn place(&self, index: u64) -> String {
        format!("sample {index}")
    }

    /// Whether nothing less than a group can be read, so that a picture by itself costs as much.
    fn reads_groups_alone(&self) -> bool {
        false
    }

    /// Samples that are visited equally often, and how often relative to each other.
    fn parts(&self) -> Vec<Part> {
        let n_samples = self.n_samples();
        let visits = 1.0;
        vec![Part { n_samples, visits }]
    }

    /// Samples stored side by side, none without samples, each within one part, covering the split in order; one group for
    /// all where they are not stored in any.
    fn groups(&self) -> Vec<Group> {
        let n_samples = self.n_samples();
        let all = Group {
            first_sample: 0,
            n_samples,
            n_pictures: n_samples,
            bytes: 0,
        };
        vec![all]
    }

    /// Reads all samples of a group at once; what comes back knows these alone, by their indices in the source.
    ///
    /// * `number`: place in [`Self::groups`].
    ///
    /// # Errors
    /// As [`Pictures::sample`]; [`shards::Error::OutOfRange`] where no groups are stored.
    fn load_group(&self, number: usize) -> shards::Result<Box<dyn Pictures>> {
        Err(shards::Error::OutOfRange {
            what: "row group",
            index: number as u64,
            len: 0,
        })
    }
}

impl From<shards::GroupRef> for Group {
    fn from(group: shards::GroupRef) -> Self {
        Self {
            first_sample: group.first_sample,
            n_samples: group.n_samples,
            n_pictures: group.n_rows,
            bytes: group.bytes,
        }
    }
}

impl Pictures for shards::ShardSet {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        Ok(self.named_sample(index)?.into())
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.picture(index, frame)
    }

    fn pair(&self, index: u64, frames: [u32; 2]) -> shards::Result<[Bytes; 2]> {
        self.pair(index, frames)
    }
}

impl Source for shards::ShardSet {
    fn n_samples(&self) -> u64 {
        self.n_samples()
    }

    fn holds_clips(&self) -> bool {
        matches!(self.kind(), shards::Kind::Clips)
    }

    fn class_ids(&self) -> Vec<String> {
        let classes = self.class_names().iter();
        classes.map(|class| class.id.clone()).collect()
    }

    fn files(&self) -> Vec<SourceFile> {
        let split = self.manifest().splits.get(self.split());
        let shards = split.into_iter().flat_map(|split| &split.shards);
        shards
            .map(|shard| SourceFile {
                name: shard.name.clone(),
                bytes: shard.bytes,
                sha256: shard.sha256.clone(),
            })
            .collect()
    }

    fn place(&self, index: u64) -> String {
        self.place(index)
    }

    fn groups(&self) -> Vec<Group> {
        self.groups().into_iter().map(Group::from).collect()
    }

    fn load_group(&self, number: usize) -> shards::Result<Box<dyn Pictures>> {
        let (first_sample, group) = self.load_group(number)?;
        Ok(Box::new(Shifted {
            first_sample,
            group: Box::new(group),
        }))
    }
}

/// By their places in the group.
impl Pictures for shards::LoadedGroup {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        Ok(self.named_sample(index)?.into())
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.picture(index, frame)
    }
}

/// A group by the indices of the source that it is of.
pub(super) struct Shifted {
    pub(super) group: Box<dyn Pictures>,
    /// Index in the source of what the group calls 0.
    pub(super) first_sample: u64,
}

impl Pictures for Shifted {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        // Before the group's first sample is beyond its end, too.
        self.group.sample(index.wrapping_sub(self.first_sample))
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.group
            .picture(index.wrapping_sub(self.first_sample), frame)
    }
}
