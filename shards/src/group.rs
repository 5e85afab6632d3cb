//! A row group that was read whole: its index is found by a walk through its own pages, without the shard's footer.
//! Performs no I/O.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::bounds::Bounds;
use crate::error::{Error, Malformed, Result, malformed};
use crate::footer::{FooterGroup, ShardFooter};
use crate::offset_index::PicturePlaces;
use crate::page::PageSpan;
use crate::reader::{IndexedSample, NamedSample, ShardIndex, index_columns};
use crate::schema::{Column, Kind};

/// A row group in memory, its samples numbered from 0.
#[derive(Debug)]
pub struct LoadedGroup {
    /// Of this group alone, or of its whole shard.
    index: Arc<ShardIndex>,
    /// What the index calls the group's first row and first sample.
    origin: Origin,
    /// Row of the shard that the index calls 0.
    first_row: u64,
    n_samples: u64,
    /// Where the group lies in its shard.
    range: Range<u64>,
    bytes: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) row: u64,
    pub(crate) sample: u64,
}

/// Where a group lies in its shard, and what it must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupPlace<'a> {
    pub(crate) shard: &'a str,
    pub(crate) kind: Kind,
    pub(crate) range: Range<u64>,
    /// Rows and samples of the shard before the group.
    pub(crate) before: Origin,
    pub(crate) n_rows: u64,
    pub(crate) n_samples: u64,
}

impl LoadedGroup {
    /// Finds the rows of a group by walking through its pages.
    ///
    /// * `bytes`: those of `place.range`.
    ///
    /// # Errors
    /// [`Error::Shard`] or [`Error::Row`] if the pages are not those of such a group.
    pub(crate) fn walk(place: &GroupPlace<'_>, bytes: Bytes) -> Result<Self> {
        let in_shard = |fault: Malformed| fault.in_shard(place.shard);
        let group = walk(place, &bytes).map_err(in_shard)?;
        let footer = ShardFooter::of_group(place.shard, place.kind, group);
        let columns = index_columns(place.kind);
        let chunks: Vec<Bytes> = footer
            .column_ranges(columns)
            .into_iter()
            .map(|chunk| slice(&bytes, &place.range, &chunk))
            .collect::<Option<_>>()
            .ok_or_else(|| in_shard(malformed!("a column chunk outside of its row group")))?;
        let columns = footer.decode(columns, &chunks)?;
        let index = ShardIndex::new(footer, &columns)?;
        if index.n_samples() != place.n_samples {
            return Err(in_shard(malformed!(
                "{} samples in a row group, expected {} as in the manifest",
                index.n_samples(),
                place.n_samples
            )));
        }
        Ok(Self {
            index: Arc::new(index),
            origin: Origin { row: 0, sample: 0 },
            first_row: place.before.row,
            n_samples: place.n_samples,
            range: place.range.clone(),
            bytes,
        })
    }

    /// The group by the index of its whole shard, which damage in the group's pages leaves untouched.
    pub(crate) fn indexed(place: &GroupPlace<'_>, index: Arc<ShardIndex>, bytes: Bytes) -> Self {
        Self {
            index,
            origin: place.before,
            first_row: 0,
            n_samples: place.n_samples,
            range: place.range.clone(),
            bytes,
        }
    }

    /// Samples of the group.
    pub fn n_samples(&self) -> u64 {
        self.n_samples
    }

    /// A sample by its place in the group; its `first_row` is that in the shard.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn sample(&self, sample: u64) -> Result<IndexedSample<'_>> {
        if sample >= self.n_samples {
            return Err(Error::OutOfRange {
                what: "sample",
                index: sample,
                len: self.n_samples,
            });
        }
        let found = self.index.sample(self.origin.sample + sample)?;
        Ok(IndexedSample {
            first_row: self.first_row + found.first_row,
            ..found
        })
    }

    /// The same without a copy of its name.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn named_sample(&self, sample: u64) -> Result<NamedSample> {
        self.sample(sample)?;
        self.index.named_sample(self.origin.sample + sample)
    }

    /// The encoded picture of frame `frame` (0 for an image) of a sample, checked against the row's crc32c, without a copy.
    ///
    /// # Errors
    /// [`Error::Row`] if the picture is damaged, [`Error::OutOfRange`].
    pub fn picture(&self, sample: u64, frame: u32) -> Result<Bytes> {
        let found = self.sample(sample)?;
        if frame >= found.n_frames {
            return Err(Error::OutOfRange {
                what: "frame",
                index: u64::from(frame),
                len: u64::from(found.n_frames),
            });
        }
        let row = found.first_row - self.first_row + u64::from(frame);
        let page = self.index.picture_range(row)?;
        let outside = || Error::Row {
            shard: self.index.shard().to_owned(),
            row,
            reason: "picture outside of its row group".to_owned(),
        };
        let picture = slice(&self.bytes, &self.range, &page)
            .ok_or_else(outside)
            .and_then(|page| self.index.picture(row, &page));
        picture.map_err(|error| match error {
            Error::Row { shard, row, reason } => Error::Row {
                shard,
                row: row + self.first_row,
                reason,
            },
            other => other,
        })
    }

    /// Bytes of memory that the group takes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.index.memory_bytes()
    }
}

/// The part of `bytes`, which are those of `whole`, that holds `part`.
fn slice(bytes: &Bytes, whole: &Range<u64>, part: &Range<u64>) -> Option<Bytes> {
    let start = usize::try_from(part.start.checked_sub(whole.start)?).ok()?;
    let end = usize::try_from(part.end.checked_sub(whole.start)?).ok()?;
    (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
}

/// The column chunks lie one after the other in the order of the schema, each of them pages until all rows are there.
fn walk(place: &GroupPlace<'_>, bytes: &Bytes) -> std::result::Result<FooterGroup, Malformed> {
    let mut at = 0;
    let mut chunks = Vec::new();
    let mut pictures = None;
    for &column in Column::of(place.kind) {
        let start = at;
        let (mut n_rows, mut ends) = (0, Vec::new());
        while n_rows < place.n_rows {
            let page = bytes.get(at..).unwrap_or_default();
            let page = PageSpan::parse(page)
                .map_err(|fault| malformed!("column {}: {fault}", column.path()))?;
            at = page
                .n_bytes()
                .and_then(|n| at.checked_add(n))
                .filter(|&end| end <= bytes.len())
                .ok_or_else(|| malformed!("a page longer than its row group"))?;
            n_rows += page.n_rows;
            if column == Column::ImageBytes {
                ends.push(u32::try_from(at - start).map_err(|_| malformed!("4 GiB of pictures"))?);
            }
        }
        if n_rows != place.n_rows || !ends.is_empty() && ends.len() as u64 != n_rows {
            return Err(malformed!(
                "{n_rows} rows in column {}, expected {} as in the manifest",
                column.path(),
                place.n_rows
            ));
        }
        let chunk = place.range.start + start as u64..place.range.start + at as u64;
        if column == Column::ImageBytes {
            pictures = Some(PicturePlaces {
                base: chunk.start,
                ends,
            });
        }
        chunks.push(chunk);
    }
    if at != bytes.len() {
        return Err(malformed!(
            "{} bytes behind the last column",
            bytes.len() - at
        ));
    }
    Ok(FooterGroup {
        n_rows: usize::try_from(place.n_rows).map_err(|_| malformed!("2^64 rows"))?,
        chunks,
        pictures: pictures.ok_or_else(|| malformed!("no column of pictures"))?,
        bounds: Bounds::default(), // which only the footer has
    })
}
