//! Parquet files of others as a source: whatever is asked of them, a whole row group is read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use shards::{ForeignGroup, ForeignSet, GroupRef};

use crate::loader::batch::lock;
use crate::loader::order::Group;
use crate::loader::source::{Pictures, Sample, Shifted, Source};

/// Row groups that are kept in case that another of their pictures is asked for.
const RECENT_BYTES: usize = 256 << 20;

/// The images of a folder of Parquet files.
pub(super) struct Foreign {
    set: ForeignSet,
    groups: Vec<GroupRef>,
    /// The groups that single pictures were taken of, the latest last.
    recent: Mutex<VecDeque<(usize, Arc<ForeignGroup>)>>,
}

impl Foreign {
    pub(super) fn new(set: ForeignSet) -> Self {
        Self {
            groups: set.groups(),
            set,
            recent: Mutex::default(),
        }
    }

    /// The group of a sample, and its place there.
    fn group(&self, index: u64) -> shards::Result<(Arc<ForeignGroup>, u64)> {
        let after = self
            .groups
            .partition_point(|group| group.first_sample <= index);
        let number = after.saturating_sub(1);
        let within = index
            - self
                .groups
                .get(number)
                .map_or(0, |group| group.first_sample);
        let mut recent = lock(&self.recent);
        if let Some((_, group)) = recent.iter().find(|(known, _)| *known == number) {
            return Ok((Arc::clone(group), within));
        }
        drop(recent);
        let group = Arc::new(self.set.load_group(number)?);
        recent = lock(&self.recent);
        recent.push_back((number, Arc::clone(&group)));
        let memory = |recent: &VecDeque<(usize, Arc<ForeignGroup>)>| -> usize {
            recent.iter().map(|(_, group)| group.memory_bytes()).sum()
        };
        while recent.len() > 1 && memory(&recent) > RECENT_BYTES {
            recent.pop_front();
        }
        Ok((group, within))
    }
}

impl Pictures for Foreign {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        let (group, within) = self.group(index)?;
        Pictures::sample(group.as_ref(), within)
    }

    fn picture(&self, index: u64, _frame: u32) -> shards::Result<Bytes> {
        let (group, within) = self.group(index)?;
        group.picture(within)
    }
}

impl Source for Foreign {
    fn n_samples(&self) -> u64 {
        self.set.n_samples()
    }

    fn holds_clips(&self) -> bool {
        false
    }

    fn place(&self, index: u64) -> String {
        self.set.place_of(index)
    }

    fn reads_groups_alone(&self) -> bool {
        true
    }

    fn groups(&self) -> Vec<Group> {
        self.groups.iter().copied().map(Group::from).collect()
    }

    fn load_group(&self, number: usize) -> shards::Result<Box<dyn Pictures>> {
        let first_sample = self.groups.get(number).map_or(0, |g| g.first_sample);
        let group = self.set.load_group(number)?;
        Ok(Box::new(Shifted {
            first_sample,
            group: Box::new(group),
        }))
    }
}

/// By their places in the group.
impl Pictures for ForeignGroup {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        let (key, label) = self.sample(index)?;
        Ok(Sample {
            n_frames: 1,
            label,
            key: key.into(),
        })
    }

    fn picture(&self, index: u64, _frame: u32) -> shards::Result<Bytes> {
        self.picture(index)
    }
}
