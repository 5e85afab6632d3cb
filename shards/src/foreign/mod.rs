//! Parquet files that others wrote, such as the image sets of the Hugging Face hub: any size of row group, any
//! compression, no offset index. A row group is the least that can be read of their pictures.
//!
//! `file` knows a footer and its columns, `decode` makes values of column chunks, `pages` says first what they become.

mod decode;
mod file;
mod pages;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::ByteArray;
use parquet::file::metadata::RowGroupMetaData;
use serde::Serialize;

use crate::bounds::Bounds;
use crate::error::{Error, Malformed, Result, malformed};
use crate::parallel::in_parallel;
use crate::schema::ClassName;
use crate::set::GroupRef;
use crate::storage::Store;
use decode::{Chunks, Parts};
use file::File;

/// Footers that are read at once.
const FOOTER_READERS: usize = 16;

/// Parquet files with a column of pictures.
#[derive(Debug)]
pub struct ForeignSet {
    store: Store,
    split: String,
    files: Vec<File>,
    groups: Vec<Place>,
    class_names: Vec<ClassName>,
}

/// Where a row group is.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    /// Its number in the file.
    number: usize,
    /// Rows of the file before it.
    first_row: u64,
    group: GroupRef,
}

/// What the columns of a split are, and what it costs to read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForeignLayout {
    /// The column of pictures.
    pub picture: String,
    /// The column of labels, if there is one.
    pub label: Option<String>,
    /// The column of names, if there is one.
    pub key: Option<String>,
    /// Compression of the pictures, without repeats.
    pub codecs: Vec<String>,
    /// Row groups.
    pub groups: u64,
    /// Rows of the smallest, the middle and the largest row group.
    pub group_rows: [u64; 3],
    /// The same in bytes of the columns named here.
    pub group_bytes: [u64; 3],
    /// Bytes of these columns, as stored.
    pub stored_bytes: u64,
    /// The same after decompression.
    pub decoded_bytes: u64,
}

/// Names and labels of the rows of a row group.
#[derive(Debug)]
pub struct ForeignRows {
    file: String,
    first_row: u64,
    labels: Vec<Option<i64>>,
    keys: Vec<Option<Arc<str>>>,
}

/// The rows of a row group that was read, with their pictures.
#[derive(Debug)]
pub struct ForeignGroup {
    rows: ForeignRows,
    pictures: Vec<Option<Bytes>>,
}

/// The folder of an address and the name of the Parquet file there, if it ends like that of one.
pub fn parquet_file(uri: &str) -> Option<(&str, &str)> {
    // Some programs write folders of that name.
    if !uri.ends_with(".parquet") || std::path::Path::new(uri).is_dir() {
        return None;
    }
    Some(match uri.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(at) => at,
        None => (".", uri),
    })
}

impl ForeignSet {
    /// The splits that the names of the Parquet files in `store` speak of; `train` alone if none does.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if there is no Parquet file at all, or the store's error.
    pub fn splits_in(store: &Store) -> Result<Vec<String>> {
        let mut known = known_splits(&files_in(store)?);
        if known.is_empty() {
            known.push("train".to_owned());
        }
        Ok(known)
    }

    /// Opens the Parquet files of a split in `store`: those whose name begins with the split's, or that lie in a folder of
    /// its name; where no file belongs to any split, all of them are `train`. Reads their footers.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if there is no Parquet file at all, [`Error::NoSplit`], [`Error::Shard`] for a file without a
    /// column of pictures or that cannot be read, or the store's error.
    pub fn open_in(store: Store, split: &str) -> Result<Self> {
        let mut files = files_in(&store)?;
        let known = known_splits(&files);
        if !(known.is_empty() && split == "train") {
            files.retain(|(path, _)| split_of(path).as_deref() == Some(split));
        }
        if files.is_empty() {
            return Err(Error::NoSplit {
                uri: store.uri().to_owned(),
                split: split.to_owned(),
                known,
            });
        }
        Self::of_files(store, split, files)
    }

    /// Opens one Parquet file of `store`, see [`parquet_file`], as a split of any name.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Shard`] if it has no column of pictures or cannot be read, or the store's error.
    pub fn open_file(store: Store, path: &str, split: &str) -> Result<Self> {
        let bytes = store.size(path)?;
        match Self::of_files(store, split, vec![(path.to_owned(), bytes)]) {
            Err(Error::Unfinished { .. }) => {
                Err(malformed!("a shard, expected the folder of its set").in_shard(path))
            }
            opened => opened,
        }
    }

    fn of_files(store: Store, split: &str, paths: Vec<(String, u64)>) -> Result<Self> {
        let files = in_parallel(paths.len(), FOOTER_READERS, |at| {
            let (path, bytes) = &paths[at];
            File::read(&store, path, *bytes)
        })?;
        // Shards without their manifest: a conversion that has not finished, whose files are not to be trusted.
        if files.iter().any(File::is_shard) {
            return Err(Error::Unfinished {
                uri: store.uri().to_owned(),
                is_missing: false,
            });
        }
        let mut groups = Vec::new();
        let mut first_sample = 0;
        for (at, file) in files.iter().enumerate() {
            let mut first_row = 0;
            for (number, group) in file.metadata.row_groups().iter().enumerate() {
                let (n_rows, bytes) = file.checked_size(group)?;
                let place = Place {
                    file: at,
                    number,
                    first_row,
                    group: GroupRef {
                        first_sample,
                        n_samples: n_rows,
                        n_rows,
                        bytes,
                    },
                };
                if n_rows > 0 {
                    groups.push(place);
                }
                first_row += n_rows;
                first_sample += n_rows;
            }
        }
        let class_names = class_names(&files)?;
        Ok(Self {
            store,
            split: split.to_owned(),
            files,
            groups,
            class_names,
        })
    }

    /// Images of the split.
    pub fn n_samples(&self) -> u64 {
        self.groups.iter().map(|place| place.group.n_samples).sum()
    }

    /// Files of the split.
    pub fn n_files(&self) -> usize {
        self.files.len()
    }

    /// The row groups of the split, in order, with the bytes that are read of each.
    pub fn groups(&self) -> Vec<GroupRef> {
        self.groups.iter().map(|place| place.group).collect()
    }

    /// Row groups of the split.
    pub fn n_groups(&self) -> usize {
        self.groups.len()
    }

    /// A row group by its place in [`ForeignSet::groups`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn group(&self, number: usize) -> Result<GroupRef> {
        Ok(self.place(number)?.group)
    }

    /// File and row group of a sample in words.
    pub fn place_of(&self, sample: u64) -> String {
        let after = self
            .groups
            .partition_point(|place| place.group.first_sample <= sample);
        match after.checked_sub(1).map(|at| &self.groups[at]) {
            Some(place) => format!(
                "{}, row group {}, row {}",
                self.files[place.file].path,
                place.number,
                place.first_row + (sample - place.group.first_sample)
            ),
            None => format!("sample {sample}"),
        }
    }

    /// Name of the split.
    pub fn split(&self) -> &str {
        &self.split
    }

    /// The address of the files.
    pub fn uri(&self) -> &str {
        self.store.uri()
    }

    /// The classes in order of their labels, if the files name them; names are ids.
    pub fn class_names(&self) -> &[ClassName] {
        &self.class_names
    }

    /// What the columns are, and what reading them costs.
    pub fn layout(&self) -> ForeignLayout {
        let name = |leaf| self.files.first().map(|file| file.column_name(leaf));
        let columns = self.files.first().map(|file| file.columns);
        let of_groups = |of: fn(&GroupRef) -> u64| {
            let mut all: Vec<u64> = self.groups.iter().map(|place| of(&place.group)).collect();
            all.sort_unstable();
            let at = |place: usize| all.get(place).copied().unwrap_or_default();
            [at(0), at(all.len() / 2), at(all.len().saturating_sub(1))]
        };
        let mut codecs: Vec<String> = Vec::new();
        let mut decoded_bytes = 0;
        for place in &self.groups {
            let (file, group) = self.file_of(place);
            let codec = group.column(file.columns.picture).compression_codec();
            codecs.push(format!("{codec:?}").to_lowercase());
            let sizes = file
                .columns
                .leaves()
                .into_iter()
                .map(|leaf| group.column(leaf));
            decoded_bytes += sizes
                .map(|c| c.uncompressed_size().max(0) as u64)
                .sum::<u64>();
        }
        codecs.sort_unstable();
        codecs.dedup();
        ForeignLayout {
            picture: columns.and_then(|c| name(c.picture)).unwrap_or_default(),
            label: columns.and_then(|c| name(c.label?)),
            key: columns.and_then(|c| name(c.key?)),
            codecs,
            groups: self.groups.len() as u64,
            group_rows: of_groups(|group| group.n_rows),
            group_bytes: of_groups(|group| group.bytes),
            stored_bytes: self.groups.iter().map(|place| place.group.bytes).sum(),
            decoded_bytes,
        }
    }

    /// What the statistics of a row group say of its labels and names.
    ///
    /// * `number`: its place in [`ForeignSet::groups`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn bounds(&self, number: usize) -> Result<Bounds> {
        let (file, group) = self.file_of(self.place(number)?);
        Ok(file.bounds(group))
    }

    /// Reads the labels, the names, or both, of a row group's rows; those that are not asked for are absent.
    ///
    /// * `number`: its place in [`ForeignSet::groups`].
    ///
    /// # Errors
    /// As [`ForeignSet::load_group`].
    pub fn load_rows(&self, number: usize, labels: bool, names: bool) -> Result<ForeignRows> {
        let place = self.place(number)?;
        let (file, _) = self.file_of(place);
        let label = file.columns.label.filter(|_| labels);
        let key = file.columns.key.filter(|_| names);
        let leaves: Vec<usize> = [label, key].into_iter().flatten().collect();
        let chunks = self.chunks(place, &leaves)?;
        rows(place, file, &chunks, label, key).map_err(|fault| self.fault(place, fault))
    }

    /// Reads a whole row group.
    ///
    /// * `number`: its place in [`ForeignSet::groups`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Shard`] if it cannot be decoded, or the store's error.
    pub fn load_group(&self, number: usize) -> Result<ForeignGroup> {
        let place = self.place(number)?;
        let (file, _) = self.file_of(place);
        let columns = file.columns;
        let chunks = self.chunks(place, &columns.leaves())?;
        let decode = || -> std::result::Result<ForeignGroup, Malformed> {
            let pictures = chunks.bytes(columns.picture)?;
            Ok(ForeignGroup {
                pictures: copies(&pictures, Bytes::copy_from_slice),
                rows: rows(place, file, &chunks, columns.label, columns.key)?,
            })
        };
        decode().map_err(|fault| self.fault(place, fault))
    }

    fn place(&self, number: usize) -> Result<&Place> {
        self.groups.get(number).ok_or(Error::OutOfRange {
            what: "row group",
            index: number as u64,
            len: self.groups.len() as u64,
        })
    }

    fn file_of(&self, place: &Place) -> (&File, &RowGroupMetaData) {
        let file = &self.files[place.file];
        (file, file.metadata.row_group(place.number))
    }

    fn chunks(&self, place: &Place, leaves: &[usize]) -> Result<Chunks<'_>> {
        let (file, group) = self.file_of(place);
        let ranges = file.ranges(group, leaves)?;
        let chunks = self.store.read_ranges(&file.path, &ranges)?;
        let parts = ranges.into_iter().map(|range| range.start).zip(chunks);
        let bytes = Arc::new(Parts(parts.collect()));
        Ok(Chunks { group, bytes })
    }

    fn fault(&self, place: &Place, fault: Malformed) -> Error {
        malformed!("row group {}: {fault}", place.number).in_shard(&self.files[place.file].path)
    }
}

/// A copy of each value that is there and not empty. Rows that share a dictionary's entry share its copy: a copy for each
/// row could take thousands of times the bytes that were read.
fn copies<T: Clone>(values: &[Option<ByteArray>], copy: impl Fn(&[u8]) -> T) -> Vec<Option<T>> {
    let mut known: HashMap<(*const u8, usize), T> = HashMap::new();
    let value = |value: &Option<ByteArray>| {
        let bytes = value.as_ref()?.data();
        if bytes.is_empty() {
            return None;
        }
        let place = (bytes.as_ptr(), bytes.len());
        Some(known.entry(place).or_insert_with(|| copy(bytes)).clone())
    };
    values.iter().map(value).collect()
}

/// Labels and names of a row group, from the columns that were read.
fn rows(
    place: &Place,
    file: &File,
    chunks: &Chunks<'_>,
    label: Option<usize>,
    key: Option<usize>,
) -> std::result::Result<ForeignRows, Malformed> {
    let n_rows = place.group.n_rows as usize;
    let text = |bytes: &[u8]| Arc::from(String::from_utf8_lossy(bytes));
    let labels = label.map(|leaf| chunks.integers(leaf)).transpose()?;
    let keys = key.map(|leaf| chunks.bytes(leaf)).transpose()?;
    Ok(ForeignRows {
        file: file.path.clone(),
        first_row: place.first_row,
        labels: labels.unwrap_or_else(|| vec![None; n_rows]),
        keys: match keys {
            Some(keys) => copies(&keys, text),
            None => vec![None; n_rows],
        },
    })
}

impl ForeignRows {
    /// Rows of the group.
    pub fn n_rows(&self) -> u64 {
        self.keys.len() as u64
    }

    /// The name that a row has in its file, if it has one.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn stored_name(&self, row: u64) -> Result<Option<&str>> {
        Ok(self.keys[self.checked(row)?].as_deref())
    }

    /// File and number of a row, which is its name where it has no other.
    pub fn place(&self, row: u64) -> String {
        format!("{}#{}", self.file, self.first_row + row)
    }

    /// Name of a row.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn name(&self, row: u64) -> Result<String> {
        let stored = self.stored_name(row)?.map(str::to_owned);
        Ok(stored.unwrap_or_else(|| self.place(row)))
    }

    /// Label of a row; sets that keep their labels to themselves have -1, which is none.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn label(&self, row: u64) -> Result<Option<i32>> {
        let label = self.labels[self.checked(row)?];
        Ok(label.and_then(|label| i32::try_from(label).ok().filter(|&label| label >= 0)))
    }

    fn checked(&self, row: u64) -> Result<usize> {
        let at = usize::try_from(row).ok();
        at.filter(|&at| at < self.keys.len())
            .ok_or(Error::OutOfRange {
                what: "sample",
                index: row,
                len: self.n_rows(),
            })
    }
}

impl ForeignGroup {
    /// Images of the group.
    pub fn n_samples(&self) -> u64 {
        self.rows.n_rows()
    }

    /// Names and labels of its images.
    pub fn rows(&self) -> &ForeignRows {
        &self.rows
    }

    /// Name and label of an image by its place in the group; images without a name are called by their file and row.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn sample(&self, sample: u64) -> Result<(String, Option<i32>)> {
        Ok((self.rows.name(sample)?, self.rows.label(sample)?))
    }

    /// The encoded picture of an image.
    ///
    /// # Errors
    /// [`Error::Row`] if there is none, [`Error::OutOfRange`].
    pub fn picture(&self, sample: u64) -> Result<Bytes> {
        let at = self.rows.checked(sample)?;
        let row = self.rows.first_row + sample;
        self.pictures[at]
            .clone()
            .ok_or_else(|| malformed!("no picture").in_row(&self.rows.file, row))
    }

    /// Bytes of memory that the pictures take.
    pub fn memory_bytes(&self) -> usize {
        self.pictures.iter().flatten().map(Bytes::len).sum()
    }
}

/// The names of the classes, which must be the same in all files that have any: labels are places among them.
fn class_names(files: &[File]) -> Result<Vec<ClassName>> {
    let mut first: Option<(&File, Vec<ClassName>)> = None;
    for file in files {
        let names = file.class_names();
        match &first {
            _ if names.is_empty() => {}
            None => first = Some((file, names)),
            Some((_, known)) if *known == names => {}
            Some((known, _)) => {
                let fault = malformed!("other names of classes than {} has", known.path);
                return Err(fault.in_shard(&file.path));
            }
        }
    }
    Ok(first.map(|(_, names)| names).unwrap_or_default())
}

/// The Parquet files of a store, and their bytes.
fn files_in(store: &Store) -> Result<Vec<(String, u64)>> {
    let mut files = store.list("")?;
    files.retain(|(path, _)| path.ends_with(".parquet"));
    if files.is_empty() {
        return Err(Error::Unfinished {
            uri: store.uri().to_owned(),
            is_missing: store.folder().is_some_and(|folder| !folder.exists()),
        });
    }
    Ok(files)
}

fn known_splits(files: &[(String, u64)]) -> Vec<String> {
    let mut known: Vec<String> = files
        .iter()
        .filter_map(|(path, _)| split_of(path))
        .collect();
    known.sort_unstable();
    known.dedup();
    known
}

/// The split that a path speaks of: `data/train-00000-of-00010.parquet`, `train/0000.parquet`.
fn split_of(path: &str) -> Option<String> {
    const SPLITS: [&str; 5] = ["train", "validation", "valid", "val", "test"];
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let begins = |split: &str| {
        let rest = name.strip_prefix(split);
        rest.is_some_and(|rest| rest.starts_with(['-', '_', '.']))
    };
    let lies_in = |split: &str| folders.split('/').any(|folder| folder == split);
    let named = SPLITS.into_iter().find(|split| begins(split));
    let found = named.or_else(|| SPLITS.into_iter().find(|split| lies_in(split)))?;
    Some(found.to_owned())
}
