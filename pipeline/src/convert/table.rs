//! Parquet files of pictures as a source, such as the image sets of the Hugging Face hub: on a disk or at an address.
//!
//! Of their pictures a row group is the least that can be read. So groups are permuted and taken window by window, rows
//! are permuted within a window, and the groups of a window are kept until its rows are done.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use shards::{ForeignGroup, ForeignRows, ForeignSet, GroupRef, Store, in_parallel, parquet_file};

use super::classes::Classes;
use super::error::{Error, Result};
use super::layout::{evenly_spaced, shuffle};
use super::options::ImagenetOptions;
use super::source::{Item, Listing, Place, split_extension};
use crate::rng::{Purpose, SampleRng};

/// Row groups of which names and labels are read at once.
const READERS: usize = 16;

/// Bytes of the row groups whose rows are mixed, as stored; a larger one is a window of its own.
const WINDOW_BYTES: u64 = 256 << 20;

/// Row groups that are kept: those of a window, and those of the next one, in which the fastest threads already are.
const KEPT_BYTES: u64 = 2 * WINDOW_BYTES;

/// Row groups that are read to measure how large the others' pictures will get.
const MEASURED_GROUPS: u32 = 4;

/// Labels without names below this are numbered classes; larger ones are numbers that mean something else.
const MAX_NUMBERED: i32 = 1 << 16;

/// The files, and their row groups that were read last.
#[derive(Debug)]
pub(crate) struct Table {
    set: ForeignSet,
    groups: Vec<GroupRef>,
    /// The last used at the end.
    kept: Mutex<VecDeque<(u32, Arc<Slot>)>>,
}

/// A row group or what is wrong with it, once it was read; locked while it is.
type Slot = Mutex<Option<std::result::Result<Arc<ForeignGroup>, String>>>;

/// Lists the rows of a file, or of a split of a folder: their names and labels alone are read.
pub(crate) fn list(src: &str, options: &ImagenetOptions) -> Result<Listing> {
    let common = &options.common;
    if let Some(path) = &common.class_names {
        return Err(Error::Option {
            name: "class_names",
            value: path.display().to_string(),
            expected: "nothing: Parquet files name their classes themselves",
        });
    }
    let set = open(src, &common.split)?;
    let groups = set.groups();
    let rows = in_parallel(groups.len(), READERS, |number| {
        match set.load_rows(number, true, true) {
            // Its rows are items all the same, which are skipped when their turn comes.
            Err(shards::Error::Shard { .. }) => set.load_rows(number, false, false),
            rows => rows,
        }
    });
    let rows = rows.map_err(Error::Source)?;
    let listing = listing(src, &set, &groups, &rows)?;
    Ok(Listing {
        table: Some(Table {
            set,
            groups,
            kept: Mutex::default(),
        }),
        ..listing
    })
}

fn open(src: &str, split: &str) -> Result<ForeignSet> {
    let opened = match parquet_file(src) {
        Some((folder, file)) => {
            Store::open(folder).and_then(|store| ForeignSet::open_file(store, file, split))
        }
        None => Store::open(src).and_then(|store| ForeignSet::open_in(store, split)),
    };
    opened.map_err(|error| match error {
        shards::Error::Unfinished { .. } => Error::NothingFound {
            path: src.into(),
            expected: "expected Parquet files of others (`convert imagenet` reads class folders)"
                .into(),
        },
        error => Error::Source(error),
    })
}

fn listing(
    src: &str,
    set: &ForeignSet,
    groups: &[GroupRef],
    rows: &[ForeignRows],
) -> Result<Listing> {
    let mut uses: HashMap<&str, u32> = HashMap::new();
    for rows in rows {
        for row in 0..rows.n_rows() {
            if let Some((key, _)) = name(rows, row)? {
                *uses.entry(key).or_default() += 1;
            }
        }
    }
    let mut extensions: HashMap<&str, Arc<str>> = HashMap::new();
    let (mut items, mut n_ambiguous, mut greatest) = (Vec::new(), 0_u64, None);
    for (number, (group, rows)) in (0..).zip(groups.iter().zip(rows)) {
        for row in 0..rows.n_rows() {
            let named = name(rows, row)?;
            let unique = named.filter(|(key, _)| uses.get(key) == Some(&1));
            n_ambiguous += u64::from(named.is_some() && unique.is_none());
            let (key, extension) = match unique {
                Some((key, extension)) => (key.into(), extension),
                None => (rows.place(row).into(), ""),
            };
            let extension = extensions
                .entry(extension)
                .or_insert_with(|| extension.into());
            let label = rows.label(row)?;
            greatest = greatest.max(label);
            items.push(Item {
                key,
                extension: Arc::clone(extension),
                label,
                place: Place::Row {
                    group: number,
                    row: row as u32, // a group has less than 2^32
                },
                // What it takes of its group, more or less: sizes of pictures are known to who reads them.
                bytes: group.bytes / group.n_rows + u64::from(row < group.bytes % group.n_rows),
            });
        }
    }
    if items.is_empty() {
        return Err(Error::NothingFound {
            path: src.into(),
            expected: format!("expected rows in its {} Parquet files", set.n_files()),
        });
    }
    let classes = match greatest {
        Some(greatest) if set.class_names().is_empty() && greatest < MAX_NUMBERED => {
            Classes::counted(greatest.unsigned_abs() + 1)?.into_names()
        }
        _ => set.class_names().to_vec(),
    };
    let note = format!(
        "{n_ambiguous} rows have names that others have too, and are called by file and row"
    );
    let notes = (n_ambiguous > 0).then_some(note).into_iter().collect();
    Listing::new(PathBuf::from(src), Vec::new(), items, classes, notes)
}

/// The name of a row as key and ending, if it has one.
fn name(rows: &ForeignRows, row: u64) -> Result<Option<(&str, &str)>> {
    let stored = rows.stored_name(row).map_err(Error::Source)?;
    let name = stored.map(|name| split_extension(name.trim_start_matches('/')));
    Ok(name.filter(|(key, _)| !key.is_empty()))
}

impl Table {
    /// The items in the order of their rows, or permuted by a seed as far as one may that reads each row group once.
    pub fn order(&self, items: &[Item], seed: Option<u64>) -> Vec<u32> {
        let mut order: Vec<u32> = (0..items.len() as u32).collect();
        order.sort_by_key(|&item| place(&items[item as usize]));
        let Some(seed) = seed else {
            return order;
        };
        let mut rng = SampleRng::new(seed, 0, 0, Purpose::Layout);
        let mut groups: Vec<u32> = (0..self.groups.len() as u32).collect();
        shuffle(&mut groups, &mut rng);
        let mut permuted = Vec::with_capacity(order.len());
        let (mut start, mut bytes) = (0, 0);
        for number in groups {
            let group = self.groups[number as usize];
            if bytes > 0 && bytes + group.bytes > WINDOW_BYTES {
                shuffle(&mut permuted[start..], &mut rng);
                (start, bytes) = (permuted.len(), 0);
            }
            bytes += group.bytes;
            let first = group.first_sample as usize;
            permuted.extend_from_slice(&order[first..first + group.n_rows as usize]);
        }
        shuffle(&mut permuted[start..], &mut rng);
        permuted
    }

    /// Some items of few row groups, to measure how large the others will get.
    pub fn sample(&self, items: &[Item], n_wanted: u32) -> Vec<u32> {
        let groups = evenly_spaced(self.groups.len() as u32, MEASURED_GROUPS);
        let of_groups: Vec<u32> = (0..items.len() as u32)
            .filter(|&item| groups.contains(&place(&items[item as usize]).0))
            .collect();
        let sample = evenly_spaced(of_groups.len() as u32, n_wanted);
        sample
            .into_iter()
            .map(|at| of_groups[at as usize])
            .collect()
    }

    /// The picture of a row.
    ///
    /// # Errors
    /// [`Error::BadRow`] if the row has none or its group cannot be decoded, [`Error::Source`] if the store fails.
    pub fn read(&self, number: u32, row: u32) -> Result<Vec<u8>> {
        let bad = |fault, reason| Error::BadRow { fault, reason };
        match self.group(number)? {
            Ok(group) => match group.picture(u64::from(row)) {
                Ok(picture) => Ok(picture.to_vec()),
                Err(shards::Error::Row { reason, .. }) => Err(bad("no picture", reason)),
                Err(error) => Err(Error::Source(error)),
            },
            Err(reason) => Err(bad("unreadable", reason)),
        }
    }

    /// A row group, read once by whoever is first, or why it cannot be decoded.
    fn group(&self, number: u32) -> Result<std::result::Result<Arc<ForeignGroup>, String>> {
        let slot = self.slot(number);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*slot {
            return Ok(known.clone());
        }
        let read = match self.set.load_group(number as usize) {
            Ok(group) => Ok(Arc::new(group)),
            Err(error @ shards::Error::Shard { .. }) => Err(error.to_string()),
            Err(error) => return Err(Error::Source(error)),
        };
        Ok(slot.insert(read).clone())
    }

    fn slot(&self, number: u32) -> Arc<Slot> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.iter().position(|(known, _)| *known == number);
        let entry = known.and_then(|at| kept.remove(at));
        let (_, slot) = entry.unwrap_or_default();
        kept.push_back((number, Arc::clone(&slot)));
        let bytes = |kept: &VecDeque<(u32, Arc<Slot>)>| -> u64 {
            let groups = kept
                .iter()
                .map(|(number, _)| &self.groups[*number as usize]);
            groups.map(|group| group.bytes).sum()
        };
        while kept.len() > 2 && bytes(&kept) > KEPT_BYTES {
            kept.pop_front();
        }
        slot
    }
}

fn place(item: &Item) -> (u32, u32) {
    match item.place {
        Place::Row { group, row } => (group, row),
        _ => (u32::MAX, u32::MAX), // a table lists rows alone
    }
}
