//! A shard's index: where each picture lies and what it must hash to. Performs no I/O.
//!
//! Reading a shard goes: [`tail_range`](crate::tail_range), [`ShardFooter::parse`], the chunks of [`index_columns`],
//! [`ShardFooter::decode`], [`ShardIndex::new`]; then a picture is [`ShardIndex::picture_range`] and
//! [`ShardIndex::picture`].

use std::ops::Range;

use bytes::Bytes;

use crate::columns::ShardColumns;
use crate::error::{Error, Malformed, Result, malformed};
use crate::footer::ShardFooter;
use crate::name::Name;
use crate::page::slice_picture;
use crate::schema::{Column, Kind};

/// The columns that [`ShardIndex::new`] needs.
pub fn index_columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Images => &[Column::Key, Column::Label, Column::Crc32c],
        Kind::Clips => &[Column::Clip, Column::NFrames, Column::Label, Column::Crc32c],
    }
}

/// What stands for "no label" in [`ShardIndex::labels`]; labels are never negative.
const NO_LABEL: i32 = -1;

/// The places of a shard's pictures: 8 bytes a row, and some 12 bytes and the name a sample.
#[derive(Debug)]
pub struct ShardIndex {
    shard: String,
    groups: Vec<Group>,
    /// For each row where its page ends, counted from its row group's `base`.
    ends: Vec<u32>,
    crc32c: Vec<u32>,
    /// First row of each sample, and the number of rows at the end; empty for images, where sample i is row i.
    first_rows: Vec<u32>,
    labels: Vec<i32>,
    /// The samples' names, one after the other.
    names: Name,
    /// For each sample where its name ends.
    name_ends: Vec<u32>,
}

#[derive(Debug)]
struct Group {
    /// Where its first page of pictures begins in the file.
    base: u64,
    first_row: u32,
}

/// A sample of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedSample<'a> {
    /// Row of its only or first picture.
    pub first_row: u64,
    /// Its pictures: 1 for an image.
    pub n_frames: u32,
    /// Place of its class in the list of classes.
    pub label: Option<i32>,
    /// `key` or `clip`.
    pub name: &'a str,
}

/// What is known of a sample without a copy of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSample {
    /// Its pictures: 1 for an image.
    pub n_frames: u32,
    /// Place of its class in the list of classes.
    pub label: Option<i32>,
    /// `key` or `clip`.
    pub name: Name,
}

impl ShardIndex {
    /// Builds the index from the footer and the [`index_columns`].
    ///
    /// # Errors
    /// [`Error::Shard`] if the columns do not fit the footer, [`Error::Row`] for a clip whose rows do not follow each
    /// other in one row group.
    pub fn new(footer: ShardFooter, columns: &ShardColumns) -> Result<Self> {
        let n_rows = footer.n_rows as usize;
        let clips = footer.kind == Kind::Clips;
        let lens = [
            columns.names.len(),
            columns.labels.len(),
            columns.crc32c.len(),
        ];
        if lens != [n_rows; 3] || clips && columns.n_frames.len() != n_rows {
            return Err(
                malformed!("columns of {lens:?} rows, expected {n_rows}").in_shard(&footer.shard)
            );
        }
        // Names are unique, so together they are no longer than what was read of them.
        let names = footer.column_ranges(&[Column::Key, Column::Clip]);
        let most_name_bytes = names.iter().map(|chunk| chunk.end - chunk.start).sum();
        let mut index = ShardIndex {
            shard: footer.shard,
            groups: Vec::with_capacity(footer.groups.len()),
            ends: Vec::with_capacity(n_rows),
            crc32c: columns.crc32c.clone(),
            first_rows: Vec::new(),
            labels: Vec::new(),
            names: Name::default(),
            name_ends: Vec::new(),
        };
        let mut all_names = String::new();
        for group in footer.groups {
            let first_row = index.ends.len();
            index.groups.push(Group {
                base: group.pictures.base,
                first_row: first_row as u32,
            });
            index.ends.extend(group.pictures.ends);
            let rows = first_row..index.ends.len();
            index.add_samples(columns, rows, clips, most_name_bytes, &mut all_names)?;
        }
        if clips {
            index.first_rows.push(n_rows as u32);
        }
        for vec in [&mut index.first_rows, &mut index.name_ends] {
            vec.shrink_to_fit();
        }
        index.labels.shrink_to_fit();
        all_names.shrink_to_fit();
        index.names = all_names.into();
        Ok(index)
    }

    fn add_samples(
        &mut self,
        columns: &ShardColumns,
        rows: Range<usize>,
        clips: bool,
        most_name_bytes: u64,
        names: &mut String,
    ) -> Result<()> {
        let mut row = rows.start;
        while row < rows.end {
            let n_rows = if clips {
                clip_rows(columns, row, rows.end)
                    .map_err(|fault| fault.in_row(&self.shard, row as u64))?
            } else {
                1
            };
            if clips {
                self.first_rows.push(row as u32);
            }
            self.labels.push(columns.labels[row].unwrap_or(NO_LABEL));
            names.push_str(&columns.names[row]);
            let name_end = u32::try_from(names.len())
                .ok()
                .filter(|&end| u64::from(end) <= most_name_bytes)
                .ok_or_else(|| {
                    malformed!(
                        "samples that share a name, or more than 4 GiB of names: {:?}",
                        columns.names[row]
                    )
                    .in_shard(&self.shard)
                })?;
            self.name_ends.push(name_end);
            row += n_rows;
        }
        Ok(())
    }

    /// Name of the shard.
    pub(crate) fn shard(&self) -> &str {
        &self.shard
    }

    /// Rows of the shard.
    pub fn n_rows(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Samples of the shard.
    pub fn n_samples(&self) -> u64 {
        self.labels.len() as u64
    }

    /// A sample by its place in the shard.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn sample(&self, sample: u64) -> Result<IndexedSample<'_>> {
        let at = checked("sample", sample, self.n_samples())?;
        let label = self.labels[at];
        let rows = match self.first_rows.get(at..at + 2) {
            Some(&[first, next]) => first..next,
            _ => at as u32..at as u32 + 1,
        };
        Ok(IndexedSample {
            first_row: u64::from(rows.start),
            n_frames: rows.end - rows.start,
            label: (label != NO_LABEL).then_some(label),
            name: &self.names[self.name_range(at)],
        })
    }

    /// The same without a copy, for whoever keeps it longer than the index.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn named_sample(&self, sample: u64) -> Result<NamedSample> {
        let found = self.sample(sample)?;
        Ok(NamedSample {
            n_frames: found.n_frames,
            label: found.label,
            name: self.names.part(self.name_range(sample as usize)),
        })
    }

    fn name_range(&self, at: usize) -> Range<usize> {
        let start = at.checked_sub(1).map_or(0, |before| self.name_ends[before]);
        start as usize..self.name_ends[at] as usize
    }

    /// Where the page of a row's picture lies in the file.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn picture_range(&self, row: u64) -> Result<Range<u64>> {
        let at = checked("row", row, self.n_rows())?;
        let group = self
            .groups
            .partition_point(|group| u64::from(group.first_row) <= row)
            .saturating_sub(1);
        let Group {
            base, first_row, ..
        } = self.groups[group];
        let start = if at == first_row as usize {
            0
        } else {
            self.ends[at - 1]
        };
        Ok(base + u64::from(start)..base + u64::from(self.ends[at]))
    }

    /// The picture of a row in the bytes of its [`picture_range`](Self::picture_range), checked, without a copy.
    ///
    /// # Errors
    /// [`Error::Row`] if these are not the bytes that were written, [`Error::OutOfRange`].
    pub fn picture(&self, row: u64, page: &Bytes) -> Result<Bytes> {
        let expected = self.crc32c[checked("row", row, self.n_rows())?];
        let picture = slice_picture(page).map_err(|fault| fault.in_row(&self.shard, row))?;
        let found = crc32c::crc32c(&picture);
        if found != expected {
            return Err(
                malformed!("picture with crc32c {found:08x}, expected {expected:08x}")
                    .in_row(&self.shard, row),
            );
        }
        Ok(picture)
    }

    /// Bytes of memory that the index takes.
    pub fn memory_bytes(&self) -> usize {
        let numbers = self.ends.len()
            + self.crc32c.len()
            + self.first_rows.len()
            + self.labels.len()
            + self.name_ends.len();
        numbers * size_of::<u32>()
            + self.names.len()
            + self.groups.len() * size_of::<Group>()
            + size_of::<Self>()
    }
}

fn checked(what: &'static str, index: u64, len: u64) -> Result<usize> {
    if index < len {
        Ok(index as usize)
    } else {
        Err(Error::OutOfRange { what, index, len })
    }
}

/// Rows of the clip that begins at `row`; all of them must come before `end`.
fn clip_rows(
    columns: &ShardColumns,
    row: usize,
    end: usize,
) -> std::result::Result<usize, Malformed> {
    let n_frames = columns.n_frames[row];
    let n_rows = usize::try_from(n_frames)
        .ok()
        .filter(|&n| n > 0 && n <= end - row);
    let n_rows = n_rows.ok_or_else(|| {
        malformed!(
            "clip of {n_frames} frames with {} rows left in its row group",
            end - row
        )
    })?;
    let clip = row..row + n_rows;
    let name = &columns.names[row];
    let same = |r: usize| {
        columns.names[r] == *name
            && columns.n_frames[r] == n_frames
            && columns.labels[r] == columns.labels[row]
    };
    match clip.clone().find(|&r| !same(r)) {
        Some(other) => Err(malformed!(
            "clip {name:?} of {n_frames} frames is interrupted at row {other}"
        )),
        None => Ok(n_rows),
    }
}
