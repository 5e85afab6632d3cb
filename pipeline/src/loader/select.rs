//! Some samples of a set as a source of their own.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use shards::{Bounds, ClassName, Column, ForeignSet, Kind, ShardSet, in_parallel};

use crate::config::Select;
use crate::error::{Error, Result};
use crate::loader::batch::lock;
use crate::loader::order::Group;
use crate::loader::source::{Pictures, Sample, Source, SourceFile};

/// Parts of a set that are read at once.
const READERS: usize = 16;

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

    fn place(&self, index: u64) -> String {
        match index_of(&self.indices, index) {
            Ok(index) => self.source.place(index),
            Err(error) => error.to_string(),
        }
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

/// A set whose samples can be told apart without their pictures.
pub(super) trait Choosable: Sync {
    fn split(&self) -> &str;

    fn n_samples(&self) -> u64;

    fn class_names(&self) -> &[ClassName];

    /// Parts that are looked at one by one, in order.
    fn n_parts(&self) -> usize;

    /// The samples of a part that are wanted, as rising indices. Row groups whose statistics exclude what is wanted are
    /// not read.
    fn matching(&self, part: usize, wanted: &Wanted) -> shards::Result<Vec<u64>>;
}

/// Shard by shard: a footer is read by itself.
impl Choosable for ShardSet {
    fn split(&self) -> &str {
        self.split()
    }

    fn n_samples(&self) -> u64 {
        self.n_samples()
    }

    fn class_names(&self) -> &[ClassName] {
        self.class_names()
    }

    fn n_parts(&self) -> usize {
        self.n_shards() as usize
    }

    fn matching(&self, part: usize, wanted: &Wanted) -> shards::Result<Vec<u64>> {
        let clips = self.kind() == Kind::Clips;
        let name = if clips { Column::Clip } else { Column::Key };
        let columns = [
            clips.then_some(Column::NFrames),
            wanted.labels.is_some().then_some(Column::Label),
            wanted.reads_names().then_some(name),
        ];
        let columns: Vec<Column> = columns.into_iter().flatten().collect();
        let mut matching = Vec::new();
        let groups =
            self.columns_where(part as u32, &columns, |bounds| wanted.may_be_in(bounds))?;
        for (first_sample, columns) in groups {
            let n_rows = columns.labels.len().max(columns.names.len());
            let (mut row, mut index) = (0, first_sample);
            while row < n_rows {
                let label = columns.labels.get(row).copied().flatten();
                let name = columns.names.get(row).map(AsRef::as_ref);
                if wanted.holds(label, name) {
                    matching.push(index);
                }
                let n_frames = columns.n_frames.get(row).copied().unwrap_or(1);
                row += usize::try_from(n_frames).unwrap_or(1).max(1);
                index += 1;
            }
        }
        Ok(matching)
    }
}

/// Row group by row group: all footers are in memory.
impl Choosable for ForeignSet {
    fn split(&self) -> &str {
        self.split()
    }

    fn n_samples(&self) -> u64 {
        self.n_samples()
    }

    fn class_names(&self) -> &[ClassName] {
        self.class_names()
    }

    fn n_parts(&self) -> usize {
        self.n_groups()
    }

    fn matching(&self, part: usize, wanted: &Wanted) -> shards::Result<Vec<u64>> {
        if !wanted.may_be_in(&self.bounds(part)?) {
            return Ok(Vec::new());
        }
        let rows = self.load_rows(part, wanted.labels.is_some(), wanted.reads_names())?;
        let first_sample = self.group(part)?.first_sample;
        let mut matching = Vec::new();
        for row in 0..rows.n_rows() {
            if wanted.holds(rows.label(row)?, Some(&rows.name(row)?)) {
                matching.push(first_sample + row);
            }
        }
        Ok(matching)
    }
}

/// The samples of a split that meet the conditions, as rising indices. Only the columns that are asked about are read.
///
/// # Errors
/// [`Error::Invalid`] for a class or key that the split does not have, and if no sample is left; [`Error::Io`] for the list
/// of keys; [`Error::Shards`].
pub(super) fn select(set: &dyn Choosable, select: &Select) -> Result<Vec<u64>> {
    let wanted = Wanted::new(set, select)?;
    let mut indices = if wanted.is_everything() {
        (0..set.n_samples()).collect()
    } else {
        let matching = |part| set.matching(part, &wanted);
        in_parallel(set.n_parts(), READERS, matching)?.concat()
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

/// The conditions, ready to be held against samples.
pub(super) struct Wanted {
    labels: Option<HashSet<i32>>,
    patterns: Vec<glob::Pattern>,
    listed: Option<Listed>,
}

/// Keys of a file, sorted, and which of them were met.
struct Listed {
    keys: Vec<String>,
    met: Mutex<Vec<bool>>,
}

impl Wanted {
    fn new(set: &dyn Choosable, select: &Select) -> Result<Self> {
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
            let mut keys: Vec<String> = keys.map(str::to_owned).collect();
            keys.sort_unstable();
            keys.dedup();
            let met = Mutex::new(vec![false; keys.len()]);
            Ok(Listed { keys, met })
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

    /// Whether a row group of which this is known may hold a sample that is wanted.
    fn may_be_in(&self, bounds: &Bounds) -> bool {
        let of_class = |labels: &HashSet<i32>| labels.iter().any(|&l| bounds.may_have_label(l));
        let begins = |pattern: &glob::Pattern| {
            let text = pattern.as_str();
            let literal = text.find(['*', '?', '[']).unwrap_or(text.len());
            bounds.may_have_prefix(&text[..literal])
        };
        self.labels.as_ref().is_none_or(of_class)
            && (self.patterns.is_empty() || self.patterns.iter().any(begins))
            && self
                .listed
                .as_ref()
                .is_none_or(|l| bounds.may_have_name(&l.keys))
    }

    fn holds(&self, label: Option<i32>, name: Option<&str>) -> bool {
        let of_class = |labels: &HashSet<i32>| label.is_some_and(|label| labels.contains(&label));
        let name = name.unwrap_or_default();
        let in_list = |listed: &Listed| {
            let found = listed.keys.binary_search_by(|key| key.as_str().cmp(name));
            if let Ok(at) = found {
                lock(&listed.met)[at] = true;
            }
            found.is_ok()
        };
        let matches = |pattern: &glob::Pattern| pattern.matches(name);
        self.listed.as_ref().is_none_or(in_list)
            && self.labels.as_ref().is_none_or(of_class)
            && (self.patterns.is_empty() || self.patterns.iter().any(matches))
    }

    /// A key that is asked for by its name and is not there is a mistake in the list or in the choice of the set.
    fn check_all_found(&self, set: &dyn Choosable) -> Result<()> {
        let Some(listed) = &self.listed else {
            return Ok(());
        };
        let met = lock(&listed.met);
        let keys = listed.keys.iter().zip(met.iter());
        let mut missing = keys.filter(|(_, met)| !**met).map(|(key, _)| key);
        match missing.next() {
            None => Ok(()),
            Some(first) => Err(Error::Invalid {
                name: "data.select.key_list",
                value: format!("{first:?} and {} more", missing.count()),
                expected: format!("keys of split {:?}", set.split()),
            }),
        }
    }
}

/// The label of a class that is given by its id, its name or the label itself.
fn label_of(set: &dyn Choosable, class: &str) -> Result<i32> {
    let classes = set.class_names();
    let labels: Range<usize> = 0..classes.len();
    let by_id = labels.clone().find(|&at| classes[at].id == class);
    let mut by_name = labels.clone().filter(|&at| classes[at].name == class);
    // A set that names no classes may have any label.
    let by_number = || {
        class
            .parse()
            .ok()
            .filter(|at| classes.is_empty() || labels.contains(at))
    };
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
