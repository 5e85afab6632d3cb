//! Several sources as one, their samples numbered through.

use std::sync::Arc;

use bytes::Bytes;

use crate::loader::order::{Group, Part};
use crate::loader::source::{Pictures, Sample, Shifted, Source};

/// Sources side by side, each with its number of visits.
pub(super) struct Mix {
    parts: Vec<MixPart>,
}

struct MixPart {
    source: Arc<dyn Source>,
    visits: f64,
    first_sample: u64,
    groups: Vec<Group>,
}

impl Mix {
    pub(super) fn new(sources: impl IntoIterator<Item = (Arc<dyn Source>, f64)>) -> Self {
        let mut first_sample = 0;
        let part = |(source, visits): (Arc<dyn Source>, f64)| {
            let part = MixPart {
                first_sample,
                visits,
                groups: source.groups(),
                source,
            };
            first_sample += part.source.n_samples();
            part
        };
        Self {
            parts: sources.into_iter().map(part).collect(),
        }
    }

    /// The source of a sample, and the sample's index there.
    fn locate(&self, index: u64) -> shards::Result<(&MixPart, u64)> {
        let after = self
            .parts
            .partition_point(|part| part.first_sample <= index);
        let part = after.checked_sub(1).and_then(|at| self.parts.get(at));
        let part = part.ok_or(shards::Error::OutOfRange {
            what: "sample",
            index,
            len: self.n_samples(),
        })?;
        Ok((part, index - part.first_sample))
    }
}

impl Pictures for Mix {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        let (part, index) = self.locate(index)?;
        part.source.sample(index)
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        let (part, index) = self.locate(index)?;
        part.source.picture(index, frame)
    }

    fn pair(&self, index: u64, frames: [u32; 2]) -> shards::Result<[Bytes; 2]> {
        let (part, index) = self.locate(index)?;
        part.source.pair(index, frames)
    }
}

impl Source for Mix {
    fn n_samples(&self) -> u64 {
        self.parts.iter().map(|part| part.source.n_samples()).sum()
    }

    fn holds_clips(&self) -> bool {
        self.parts.iter().all(|part| part.source.holds_clips())
    }

    fn place(&self, index: u64) -> String {
        match self.locate(index) {
            Ok((part, index)) => part.source.place(index),
            Err(error) => error.to_string(),
        }
    }

    fn reads_groups_alone(&self) -> bool {
        self.parts
            .iter()
            .any(|part| part.source.reads_groups_alone())
    }

    fn parts(&self) -> Vec<Part> {
        let part = |part: &MixPart| Part {
            n_samples: part.source.n_samples(),
            visits: part.visits,
        };
        self.parts.iter().map(part).collect()
    }

    fn groups(&self) -> Vec<Group> {
        let of_part = |part: &MixPart| {
            let first_sample = part.first_sample;
            let groups = part.groups.iter();
            groups
                .map(move |group| Group {
                    first_sample: first_sample + group.first_sample,
                    ..*group
                })
                .collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of_part).collect()
    }

    fn load_group(&self, number: usize) -> shards::Result<Box<dyn Pictures>> {
        let mut within = number;
        for part in &self.parts {
            if within < part.groups.len() {
                let group = part.source.load_group(within)?;
                let first_sample = part.first_sample;
                return Ok(Box::new(Shifted {
                    group,
                    first_sample,
                }));
            }
            within -= part.groups.len();
        }
        Err(shards::Error::OutOfRange {
            what: "row group",
            index: number as u64,
            len: (number - within) as u64,
        })
    }
}
