//! Some samples of a set as a source of their own.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use shards::{Column, Kind, ShardSet};

use crate::config::Select;
use crate::error::{Error, Result};
use crate::loader::batch::lock;
use crate::loader::order::Group;
use crate::loader::source::{Pictures, Sample, Source, SourceFile};

/// Shards of a bucket whose columns are read at once.
const REMOTE_READERS: usize = 16;

/// The samples of a source that were selected.
pub(super) struct Selected {
    source: Arc<dyn Source>,
    /// Their indices in the source, rising.
    indices: Arc<[u64]>,
    /// The groups that hold any of them: the group's number in the source, and what of it was selected.
    groups: Vec<(usize, Group)>,
}

impl Selected {
    /// * `indices`: rising.
    pub(super) fn new(source: Arc<dyn Source>, indices: Vec<u64>) -> Self {
        let mut groups = Vec::new();
        let mut first_sample = 0;
        for (number, group) in source.groups().into_iter().enumerate() {
            let end = group.first_sample + group.n_samples;
            let n_samples = indices[first_sample..].partition_point(|&index| index < end);
            if n_samples > 0 {
                let selected = Group {
                    first_sample: first_sample as u64,
                    n_samples: n_samples as u64,
                    ..group
                };
                groups.push((number, selected));
            }
            first_sample += n_samples;
        }
        Self {
            source,
            indices: indices.into(),
            groups,
        }
    }
}

/// The index in the source of a selected sample.
fn index_of(indices: &[u64], at: u64) -> shards::Result<u64> {
    let index = usize::try_from(at).ok().and_then(|at| indices.get(at));
    index.copied().ok_or(shards::Error::OutOfRange {
        what: "sample",
        index: at,
        len: indices.len() as u64,
    })
}

impl Pictures for Selected {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        self.source.sample(index_of(&self.indices, index)?)
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.source.picture(index_of(&self.indices, index)?, frame)
    }

    fn pair(&self, index: u64, frames: [u32; 2]) -> shards::Result<[Bytes; 2]> {
        self.source.pair(index_of(&self.indices, index)?, frames)
    }
}

impl Source for Selected {
    fn n_samples(&self) -> u64 {
        self.indices.len() as u64
    }

    fn holds_clips(&self) -> bool {
        self.source.holds_clips()
    }

    fn class_ids(&self) -> Vec<String> {
        self.source.class_ids()
    }

    fn files(&self) -> Vec<SourceFile> {
        self.source.files()
    }

    fn reads_groups_alone(&self) -> bool {
        self.source.reads_groups_alone()
    }

    fn groups(&self) -> Vec<Group> {
        self.groups.iter().map(|(_, group)| *group).collect()
    }

    fn load_group(&self, number: usize) -> shards::Result<Box<dyn Pictures>> {
        let number = self.groups.get(number).map(|(number, _)| *number);
        let group = self.source.load_group(number.unwrap_or(usize::MAX))?;
        let indices = Arc::clone(&self.indices);
        Ok(Box::new(SelectedGroup { group, indices }))
    }
}

/// A group of the source, by the selection's indices.
struct SelectedGroup {
    group: Box<dyn Pictures>,
    indices: Arc<[u64]>,
}

impl Pictures for SelectedGroup {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        self.group.sample(index_of(&self.indices, index)?)
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        self.group.picture(index_of(&self.indices, index)?, frame)
    }
}

/// The samples of a split that meet the conditions, as rising indices. Of the shards only the columns that are asked about
/// are read.
///
/// # Errors
/// [`Error::Invalid`] for a class or key that the split does not have, and if no sample is left; [`Error::Io`] for the list
/// of keys; [`Error::Shards`].
pub(super) fn select(set: &ShardSet, select: &Select) -> Result<Vec<u64>> {
    let wanted = Wanted::new(set, select)?;
    let mut indices = if wanted.is_everything() {
        (0..set.n_samples()).collect()
    } else {
        matching(set, &wanted)?
    };
    wanted.check_all_found(set)?;
    if let Some(most) = select.max_samples {
        indices.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
    if indices.is_empty() {
        return Err(Error::Invalid {
            name: "data.select",
            value: format!("{select:?}"),
            expected: format!(
                "conditions that some of the {} samples of split {:?} meet",
                set.n_samples(),
                set.split()
            ),
        });
    }
    Ok(indices)
}

fn matching(set: &ShardSet, wanted: &Wanted) -> Result<Vec<u64>> {
    let next = AtomicU32::new(0);
    let found = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let shard = next.fetch_add(1, Ordering::Relaxed);
            if shard >= set.n_shards() {
                return Ok(());
            }
            let matching = matching_in(set, shard, wanted)?;
            lock(&found).push((shard, matching));
        }
    };
    std::thread::scope(|scope| {
        let readers = REMOTE_READERS.min(set.n_shards() as usize);
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(work)).collect();
        let lost = |_| {
            Err(Error::Panic {
                stage: "select",
                message: "a reader of columns".to_owned(),
            })
        };
        let outcomes = readers.into_iter().map(|r| r.join().unwrap_or_else(lost));
        outcomes.collect::<Result<Vec<()>>>()
    })?;
    let mut found = std::mem::take(&mut *lock(&found));
    found.sort_unstable_by_key(|(shard, _)| *shard);
    Ok(found.into_iter().flat_map(|(_, indices)| indices).collect())
}

/// The samples of one shard that are wanted.
fn matching_in(set: &ShardSet, shard: u32, wanted: &Wanted) -> Result<Vec<u64>> {
    let clips = set.kind() == Kind::Clips;
    let mut columns = Vec::new();
    if clips {
        columns.push(Column::NFrames);
    }
    if wanted.labels.is_some() {
        columns.push(Column::Label);
    }
    if wanted.reads_names() {
        columns.push(if clips { Column::Clip } else { Column::Key });
    }
    let (_, columns) = set.columns(shard, &columns)?;
    let samples = set.samples_of(shard);
    let (mut row, mut matching) = (0, Vec::new());
    for index in samples {
        let label = columns.labels.get(row).copied().flatten();
        let name = columns.names.get(row).map(AsRef::as_ref);
        if wanted.holds(label, name) {
            matching.push(index);
        }
        let n_frames = columns.n_frames.get(row).copied().unwrap_or(1);
        row += usize::try_from(n_frames).unwrap_or(1).max(1);
    }
    Ok(matching)
}

/// The conditions, ready to be held against samples.
struct Wanted {
    labels: Option<HashSet<i32>>,
    patterns: Vec<glob::Pattern>,
    listed: Option<Listed>,
}

/// Keys of a file, and which of them were met.
struct Listed {
    keys: HashSet<String>,
    met: Mutex<HashSet<String>>,
}

impl Wanted {
    fn new(set: &ShardSet, select: &Select) -> Result<Self> {
        let label = |class: &String| label_of(set, class);
        let labels: HashSet<i32> = select.classes.iter().map(label).collect::<Result<_>>()?;
        let pattern = |text: &String| {
            glob::Pattern::new(text).map_err(|error| Error::Invalid {
                name: "data.select.keys",
                value: format!("{text:?}"),
                expected: format!("a pattern ({error})"),
            })
        };
        let listed = |path: &Path| -> Result<Listed> {
            let text = std::fs::read_to_string(path).map_err(Error::io("reading", path))?;
            let keys = text.lines().map(str::trim).filter(|key| !key.is_empty());
            Ok(Listed {
                keys: keys.map(str::to_owned).collect(),
                met: Mutex::default(),
            })
        };
        Ok(Self {
            labels: (!labels.is_empty()).then_some(labels),
            patterns: select.keys.iter().map(pattern).collect::<Result<_>>()?,
            listed: select.key_list.as_deref().map(listed).transpose()?,
        })
    }

    fn reads_names(&self) -> bool {
        !self.patterns.is_empty() || self.listed.is_some()
    }

    fn is_everything(&self) -> bool {
        self.labels.is_none() && !self.reads_names()
    }

    fn holds(&self, label: Option<i32>, name: Option<&str>) -> bool {
        let of_class = |labels: &HashSet<i32>| label.is_some_and(|label| labels.contains(&label));
        let name = name.unwrap_or_default();
        let in_list = |listed: &Listed| {
            let is_listed = listed.keys.contains(name);
            if is_listed {
                lock(&listed.met).insert(name.to_owned());
            }
            is_listed
        };
        let matches = |pattern: &glob::Pattern| pattern.matches(name);
        self.listed.as_ref().is_none_or(in_list)
            && self.labels.as_ref().is_none_or(of_class)
            && (self.patterns.is_empty() || self.patterns.iter().any(matches))
    }

    /// A key that is asked for by its name and is not there is a mistake in the list or in the choice of the set.
    fn check_all_found(&self, set: &ShardSet) -> Result<()> {
        let Some(listed) = &self.listed else {
            return Ok(());
        };
        let met = lock(&listed.met);
        let mut missing: Vec<&String> = listed.keys.difference(&met).collect();
        missing.sort_unstable();
        match missing.first() {
            None => Ok(()),
            Some(first) => Err(Error::Invalid {
                name: "data.select.key_list",
                value: format!("{first:?} and {} more", missing.len() - 1),
                expected: format!("keys of split {:?}", set.split()),
            }),
        }
    }
}

/// The label of a class that is given by its id, its name or the label itself.
fn label_of(set: &ShardSet, class: &str) -> Result<i32> {
    let classes = set.class_names();
    let labels: Range<usize> = 0..classes.len();
    let by_id = labels.clone().find(|&at| classes[at].id == class);
    let mut by_name = labels.clone().filter(|&at| classes[at].name == class);
    let by_number = || class.parse().ok().filter(|at| labels.contains(at));
    let found = match (by_id, by_name.next(), by_name.next()) {
        (Some(at), ..) => Some(at),
        (None, Some(_), Some(_)) => {
            return Err(Error::Invalid {
                name: "data.select.classes",
                value: format!("{class:?}"),
                expected: "an id: several classes have that name".to_owned(),
            });
        }
        (None, Some(at), None) => Some(at),
        (None, None, _) => by_number(),
    };
    let label = found.and_then(|at| i32::try_from(at).ok());
    label.ok_or_else(|| Error::Invalid {
        name: "data.select.classes",
        value: format!("{class:?}"),
        expected: match classes.first() {
            Some(first) if first.id == first.name => {
                format!(
                    "one of the set's {} classes, such as {:?}",
                    classes.len(),
                    first.id
                )
            }
            Some(first) => format!(
                "one of the set's {} classes, such as {:?} or {:?}",
                classes.len(),
                first.id,
                first.name
            ),
            None => "a set with classes".to_owned(),
        },
    })
}
