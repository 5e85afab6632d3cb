//! A split of a shard set as one long list of samples, each picture one range read away.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use crate::bounds::Bounds;
use crate::columns::ShardColumns;
use crate::error::{Error, Malformed, Result, malformed};
use crate::footer::{FooterStep, ShardFooter, tail_range};
use crate::group::{GroupPlace, LoadedGroup, Origin};
use crate::manifest::{Manifest, ShardEntry};
use crate::reader::{NamedSample, ShardIndex, index_columns};
use crate::schema::{ClassName, Column, Kind};
use crate::storage::Store;

/// A sample of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRef {
    /// Which shard of the split.
    pub shard: u32,
    /// Row of its only or first picture in that shard.
    pub first_row: u64,
    /// Its pictures: 1 for an image.
    pub n_frames: u32,
    /// Place of its class in [`ShardSet::class_names`].
    pub label: Option<i32>,
    /// `key` or `clip`, unique in the split.
    pub key: String,
}

/// A row group of a split, in samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupRef {
    /// Its first sample, counted over the whole split.
    pub first_sample: u64,
    /// Its samples.
    pub n_samples: u64,
    /// Its rows: images, or frames.
    pub n_rows: u64,
    /// Its bytes in the shard.
    pub bytes: u64,
}

/// A split, opened for reading from many threads at once.
///
/// Opening reads the manifest alone. A shard's index is read when one of its samples is first asked for, and kept:
/// 8 bytes a row, and some 12 bytes and the name a sample.
pub struct ShardSet {
    store: Store,
    split: String,
    manifest: Manifest,
    /// Samples before each shard, and those of the whole split at the end.
    sample_starts: Vec<u64>,
    shards: Vec<LazyShard>,
}

struct LazyShard {
    entry: ShardEntry,
    /// Or what is wrong with the shard, so that it is not read again for each of its samples.
    index: OnceLock<std::result::Result<Arc<ShardIndex>, Malformed>>,
    /// Held while the index is read, so that it is read once. Where the store failed, the next who asks tries again.
    loading: Mutex<()>,
}

impl ShardSet {
    /// Opens a split of the set at `uri`, a local path or `file://` address.
    ///
    /// # Errors
    /// [`Error::Unfinished`], [`Error::Manifest`], [`Error::NoSplit`], or the store's error.
    pub fn open(uri: &str, split: &str) -> Result<Self> {
        Self::open_in(Store::open(uri)?, split)
    }

    /// Opens a split of the set in `store`.
    ///
    /// # Errors
    /// As [`ShardSet::open`].
    pub fn open_in(store: Store, split: &str) -> Result<Self> {
        let manifest = Manifest::read(&store)?;
        let Some(split_manifest) = manifest.splits.get(split) else {
            let known = manifest.splits.keys().cloned().collect();
            return Err(Error::NoSplit {
                uri: store.uri().to_owned(),
                split: split.to_owned(),
                known,
            });
        };
        let mut sample_starts = vec![0];
        let mut n_samples = 0;
        for entry in &split_manifest.shards {
            n_samples += entry.samples;
            sample_starts.push(n_samples);
        }
        let shards = split_manifest.shards.iter().map(LazyShard::new).collect();
        Ok(ShardSet {
            store,
            split: split.to_owned(),
            sample_starts,
            shards,
            manifest,
        })
    }

    /// Images or clips.
    pub fn kind(&self) -> Kind {
        self.manifest.kind
    }

    /// Name of the split.
    pub fn split(&self) -> &str {
        &self.split
    }

    /// Samples of the split.
    pub fn n_samples(&self) -> u64 {
        self.sample_starts.last().copied().unwrap_or_default()
    }

    /// Shards of the split.
    pub fn n_shards(&self) -> u32 {
        self.shards.len() as u32
    }

    /// The samples of a shard; none if there is no such shard.
    pub fn samples_of(&self, shard: u32) -> Range<u64> {
        let bounds = self.sample_starts.get(shard as usize..).unwrap_or_default();
        match *bounds {
            [start, end, ..] => start..end,
            _ => 0..0,
        }
    }

    /// The classes, in order of their labels.
    pub fn class_names(&self) -> &[ClassName] {
        &self.manifest.class_names
    }

    /// The manifest of the whole set.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What is known of a sample without its pictures.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], or what reading the shard's index met.
    pub fn sample(&self, idx: u64) -> Result<SampleRef> {
        let (shard, within) = self.locate(idx)?;
        let sample = self.index(shard)?.sample(within)?;
        let (first_row, n_frames, label) = (sample.first_row, sample.n_frames, sample.label);
        Ok(SampleRef {
            shard: shard as u32,
            first_row,
            n_frames,
            label,
            key: sample.name.to_owned(),
        })
    }

    /// What is known of a sample, without a copy of its name.
    ///
    /// # Errors
    /// As [`ShardSet::sample`].
    pub fn named_sample(&self, idx: u64) -> Result<NamedSample> {
        let (shard, within) = self.locate(idx)?;
        self.index(shard)?.named_sample(within)
    }

    /// Shard and row group of a sample in words, by the manifest alone.
    pub fn place(&self, idx: u64) -> String {
        let (shard, within) = match self.locate(idx) {
            Ok(located) => located,
            Err(error) => return error.to_string(),
        };
        let entry = &self.shards[shard].entry;
        let mut end = 0;
        let group = entry.groups.iter().position(|group| {
            end += group.samples;
            within < end
        });
        let group = group.map_or_else(String::new, |number| format!(", row group {number}"));
        format!("{}{group}, sample {within}", entry.name)
    }

    /// Pictures of a sample: 1 for an image.
    ///
    /// # Errors
    /// As [`ShardSet::sample`].
    pub fn n_frames(&self, idx: u64) -> Result<u32> {
        let (shard, within) = self.locate(idx)?;
        Ok(self.index(shard)?.sample(within)?.n_frames)
    }

    /// The encoded picture of a sample, by one range read, checked against the row's crc32c.
    ///
    /// * `frame`: 0 for an image.
    ///
    /// # Errors
    /// [`Error::Row`] if the picture is damaged, [`Error::OutOfRange`], or the store's error.
    pub fn picture(&self, idx: u64, frame: u32) -> Result<Bytes> {
        let (shard, index, [row]) = self.rows(idx, [frame])?;
        let page = self.store.read_part(shard, index.picture_range(row)?)?;
        index.picture(row, &page)
    }

    /// Two frames of a clip as [`ShardSet::picture`] gives them; a remote store is asked for both at once.
    ///
    /// # Errors
    /// As [`ShardSet::picture`].
    pub fn pair(&self, idx: u64, frames: [u32; 2]) -> Result<[Bytes; 2]> {
        let (shard, index, [first, second]) = self.rows(idx, frames)?;
        let ranges = [index.picture_range(first)?, index.picture_range(second)?];
        let [one, two] = self.store.read_two_parts(shard, ranges)?;
        Ok([index.picture(first, &one)?, index.picture(second, &two)?])
    }

    /// Name and index of a sample's shard, and the rows of some of its frames.
    fn rows<const N: usize>(
        &self,
        idx: u64,
        frames: [u32; N],
    ) -> Result<(&str, &ShardIndex, [u64; N])> {
        let (shard, within) = self.locate(idx)?;
        let index = self.index(shard)?;
        let sample = index.sample(within)?;
        if let Some(beyond) = frames.iter().find(|&&frame| frame >= sample.n_frames) {
            return Err(Error::OutOfRange {
                what: "frame",
                index: u64::from(*beyond),
                len: u64::from(sample.n_frames),
            });
        }
        let rows = frames.map(|frame| sample.first_row + u64::from(frame));
        Ok((&self.shards[shard].entry.name, index, rows))
    }

    /// The row groups of the split, in order, as the manifest has them.
    pub fn groups(&self) -> Vec<GroupRef> {
        let mut first_sample = 0;
        let entries = self.shards.iter().flat_map(|shard| &shard.entry.groups);
        entries
            .map(|group| {
                let first = first_sample;
                first_sample += group.samples;
                GroupRef {
                    first_sample: first,
                    n_samples: group.samples,
                    n_rows: group.rows,
                    bytes: group.bytes,
                }
            })
            .collect()
    }

    /// Reads a whole row group by one request, and gives it with the index of its first sample. It needs nothing else of its shard, unless its pages are damaged: then the
    /// shard's index tells which of its rows are.
    ///
    /// * `number`: its place in [`ShardSet::groups`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Shard`], or the store's error.
    pub fn load_group(&self, number: usize) -> Result<(u64, LoadedGroup)> {
        let (shard, place) = self.group_place(number)?;
        let bytes = self.store.read_range(place.shard, place.range.clone())?;
        let group = match LoadedGroup::walk(&place, bytes.clone()) {
            Err(Error::Shard { .. } | Error::Row { .. }) => {
                let index = Arc::clone(self.index(shard)?);
                LoadedGroup::indexed(&place, index, bytes)
            }
            loaded => loaded?,
        };
        Ok((self.sample_starts[shard] + place.before.sample, group))
    }

    fn group_place(&self, number: usize) -> Result<(usize, GroupPlace<'_>)> {
        let mut before = number;
        for (shard, LazyShard { entry, .. }) in self.shards.iter().enumerate() {
            let Some(group) = entry.groups.get(before) else {
                before -= entry.groups.len();
                continue;
            };
            let earlier = &entry.groups[..before];
            let place = GroupPlace {
                shard: &entry.name,
                kind: self.manifest.kind,
                range: entry.group_ranges().nth(before).unwrap_or_default(),
                before: Origin {
                    row: earlier.iter().map(|group| group.rows).sum(),
                    sample: earlier.iter().map(|group| group.samples).sum(),
                },
                n_rows: group.rows,
                n_samples: group.samples,
            };
            return Ok((shard, place));
        }
        Err(Error::OutOfRange {
            what: "row group",
            index: number as u64,
            len: (number - before) as u64,
        })
    }

    /// The footer and some columns of a shard, for whoever wants to look at rows; nothing of it is kept.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Shard`], or the store's error.
    pub fn columns(&self, shard: u32, columns: &[Column]) -> Result<(ShardFooter, ShardColumns)> {
        let len = u64::from(self.n_shards());
        let out_of_range = || Error::OutOfRange {
            what: "shard",
            index: u64::from(shard),
            len,
        };
        let LazyShard { entry, .. } = self.shards.get(shard as usize).ok_or_else(out_of_range)?;
        let footer = read_footer(&self.store, entry)?;
        let columns = read_columns(&self.store, &footer, entry, columns)?;
        Ok((footer, columns))
    }

    /// Some columns of those row groups of a shard that their statistics do not exclude, each with the index of its first
    /// sample. Of the others nothing is read but what the footer says.
    ///
    /// # Errors
    /// As [`ShardSet::columns`].
    pub fn columns_where(
        &self,
        shard: u32,
        columns: &[Column],
        is_wanted: impl Fn(&Bounds) -> bool,
    ) -> Result<Vec<(u64, ShardColumns)>> {
        let (footer, _) = self.columns(shard, &[])?;
        let LazyShard { entry, .. } = &self.shards[shard as usize];
        let groups = entry.groups.iter().zip(&footer.groups);
        if entry.groups.len() != footer.groups.len()
            || groups
                .clone()
                .any(|(known, found)| known.rows != found.n_rows as u64)
        {
            let fault = malformed!("other row groups than the manifest has");
            return Err(fault.in_shard(&entry.name));
        }
        let mut first_sample = self.sample_starts[shard as usize];
        let (mut wanted, mut ranges) = (Vec::new(), Vec::new());
        for (number, (known, found)) in groups.enumerate() {
            if is_wanted(&found.bounds) {
                wanted.push((number, first_sample));
                ranges.extend(footer.group_ranges(number, columns));
            }
            first_sample += known.samples;
        }
        let chunks = self.store.read_ranges(&entry.name, &ranges)?;
        let a_group = ranges.len() / wanted.len().max(1);
        let decode = |(at, (number, first_sample)): (usize, (usize, u64))| {
            let chunks = &chunks[at * a_group..(at + 1) * a_group];
            let columns = footer.decode_groups(number..number + 1, columns, chunks)?;
            Ok((first_sample, columns))
        };
        wanted.into_iter().enumerate().map(decode).collect()
    }

    /// Bytes of memory that the indexes read so far take.
    pub fn index_memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .filter_map(|shard| shard.index.get()?.as_ref().ok())
            .map(|index| index.memory_bytes())
            .sum()
    }

    /// Which shard a sample is in, and its place there.
    fn locate(&self, idx: u64) -> Result<(usize, u64)> {
        if idx >= self.n_samples() {
            return Err(Error::OutOfRange {
                what: "sample",
                index: idx,
                len: self.n_samples(),
            });
        }
        let shard = self.sample_starts.partition_point(|&start| start <= idx) - 1;
        Ok((shard, idx - self.sample_starts[shard]))
    }

    fn index(&self, shard: usize) -> Result<&Arc<ShardIndex>> {
        let LazyShard {
            entry,
            index,
            loading,
        } = &self.shards[shard];
        let known = match index.get() {
            Some(known) => known,
            None => {
                let _one_at_a_time = loading.lock().unwrap_or_else(PoisonError::into_inner);
                match index.get() {
                    Some(known) => known,
                    None => {
                        let read = read_index(&self.store, self.manifest.kind, entry)?;
                        index.get_or_init(|| read.map(Arc::new))
                    }
                }
            }
        };
        known
            .as_ref()
            .map_err(|fault| fault.clone().in_shard(&entry.name))
    }
}

impl LazyShard {
    fn new(entry: &ShardEntry) -> Self {
        LazyShard {
            entry: entry.clone(),
            index: OnceLock::new(),
            loading: Mutex::new(()),
        }
    }
}

/// Reads a shard's index, and checks that it is the shard the manifest speaks of. Gives the shard's fault apart from
/// the store's: without an index no row can be read, so a fault in one row is the whole shard's here.
fn read_index(
    store: &Store,
    kind: Kind,
    entry: &ShardEntry,
) -> Result<std::result::Result<ShardIndex, Malformed>> {
    match read_checked_index(store, kind, entry) {
        Ok(index) => Ok(Ok(index)),
        Err(Error::Shard { reason, .. }) => Ok(Err(Malformed(reason))),
        Err(Error::Row { row, reason, .. }) => Ok(Err(malformed!("row {row}: {reason}"))),
        Err(error) => Err(error),
    }
}

fn read_checked_index(store: &Store, kind: Kind, entry: &ShardEntry) -> Result<ShardIndex> {
    let footer = read_footer(store, entry)?;
    check_footer(&footer, kind, entry).map_err(|fault| fault.in_shard(&entry.name))?;
    let columns = read_columns(store, &footer, entry, index_columns(kind))?;
    let index = ShardIndex::new(footer, &columns)?;
    if index.n_samples() != entry.samples {
        let fault = malformed!(
            "{} samples, expected {} as in the manifest",
            index.n_samples(),
            entry.samples
        );
        return Err(fault.in_shard(&entry.name));
    }
    Ok(index)
}

pub(crate) fn check_footer(
    footer: &ShardFooter,
    kind: Kind,
    entry: &ShardEntry,
) -> std::result::Result<(), Malformed> {
    if footer.kind() != kind {
        return Err(malformed!(
            "a shard of {}, expected {} as in the manifest",
            footer.kind().as_str(),
            kind.as_str()
        ));
    }
    if footer.n_rows() != entry.rows {
        return Err(malformed!(
            "{} rows, expected {} as in the manifest",
            footer.n_rows(),
            entry.rows
        ));
    }
    Ok(())
}

/// Reads a shard's footer, mostly by one range read.
pub(crate) fn read_footer(store: &Store, entry: &ShardEntry) -> Result<ShardFooter> {
    let mut range = tail_range(entry.bytes, entry.rows);
    loop {
        let tail = store.read_range(&entry.name, range.clone())?;
        match ShardFooter::parse(&entry.name, entry.bytes, &tail)? {
            FooterStep::Done(footer) => return Ok(footer),
            FooterStep::NeedsMore(more) if more.start < range.start => range = more,
            FooterStep::NeedsMore(_) => {
                return Err(malformed!("a footer that wants what it has").in_shard(&entry.name));
            }
        }
    }
}

pub(crate) fn read_columns(
    store: &Store,
    footer: &ShardFooter,
    entry: &ShardEntry,
    columns: &[Column],
) -> Result<ShardColumns> {
    let chunks = store.read_ranges(&entry.name, &footer.column_ranges(columns))?;
    footer.decode(columns, &chunks)
}
