//! Rows in, Parquet out: one page a picture, a row group when enough bytes are collected.
//!
//! The low-level column writers are used, one column after the other at the end of each row group, because a page of
//! one picture comes from writing `image.bytes` value by value, while all other columns keep ordinary pages.

mod columns;

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::manifest::GroupEntry;
use crate::schema::{ClassName, ClipRow, Column, ImageRow, Kind, MAX_NAME_BYTES, parquet_schema};
use columns::{Row, mismatch, properties, write_column};

/// Largest picture in bytes: a Parquet page's size has 31 bits, and the page holds a few bytes besides.
pub const MAX_PICTURE_BYTES: usize = i32::MAX as usize - 1024;

/// Largest row group in bytes: a reader keeps places within a row group as 32-bit numbers.
pub const MAX_ROW_GROUP_BYTES: u64 = u32::MAX as u64 - (1 << 24);

/// What a page of one picture holds besides the picture, at most, in bytes.
const PAGE_OVERHEAD_BYTES: u64 = 64;

/// What the shards of a split have in common.
#[derive(Debug, Clone)]
pub struct ShardSpec {
    /// Images or clips.
    pub kind: Kind,
    /// Name of the split, such as `train`.
    pub split: String,
    /// The classes, in order of their labels; empty if the split has none.
    pub class_names: Vec<ClassName>,
    /// The conversion's options, kept in the file for the record.
    pub options: Map<String, Value>,
    /// A row group is closed when its pictures reach this many bytes.
    pub row_group_bytes: u64,
}

/// What a shard holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardCounts {
    /// Rows: images, or frames.
    pub rows: u64,
    /// Samples: images, or clips.
    pub samples: u64,
    /// Bytes of all pictures.
    pub image_bytes: u64,
    /// The row groups in order.
    pub groups: Vec<GroupEntry>,
}

/// Writes one shard. The bytes depend on the rows and the [`ShardSpec`] alone.
pub struct ShardWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    kind: Kind,
    n_classes: Option<usize>,
    row_group_bytes: u64,
    group: Vec<Row>,
    group_bytes: u64,
    counts: ShardCounts,
}

impl<W: Write + Send> ShardWriter<W> {
    /// Starts a shard that is written to `out`.
    ///
    /// # Errors
    /// [`Error::Write`] if `out` fails.
    pub fn new(out: W, spec: &ShardSpec) -> Result<Self> {
        let properties = Arc::new(properties(spec));
        let schema = parquet_schema(spec.kind).map_err(write_error)?;
        Ok(ShardWriter {
            file: SerializedFileWriter::new(out, schema, properties).map_err(write_error)?,
            kind: spec.kind,
            n_classes: (!spec.class_names.is_empty()).then_some(spec.class_names.len()),
            row_group_bytes: spec.row_group_bytes.min(MAX_ROW_GROUP_BYTES),
            group: Vec::new(),
            group_bytes: 0,
            counts: ShardCounts::default(),
        })
    }

    /// Adds an image.
    ///
    /// # Errors
    /// [`Error::Input`] if the row cannot be stored, [`Error::Write`] if the output fails.
    pub fn push_image(&mut self, row: &ImageRow) -> Result<()> {
        self.expect_kind(Kind::Images, &row.key)?;
        self.check_sample(
            &row.key,
            row.label,
            [(&row.bytes, row.width, row.height)].into_iter(),
        )?;
        self.make_room(row.bytes.len() as u64)?;
        self.push(Row {
            name: ByteArray::from(row.key.as_str()),
            frame: 0,
            n_frames: 1,
            time_us: 0,
            bytes: row.bytes.clone(),
            path: row.path.clone(),
            label: row.label,
            width: row.width,
            height: row.height,
        });
        self.end_sample()
    }

    /// Adds a clip; all its frames go into one row group.
    ///
    /// # Errors
    /// [`Error::Input`] if the clip cannot be stored, [`Error::Write`] if the output fails.
    pub fn push_clip(&mut self, row: &ClipRow) -> Result<()> {
        self.expect_kind(Kind::Clips, &row.clip)?;
        self.check_sample(
            &row.clip,
            row.label,
            row.frames.iter().map(|f| (&f.bytes, f.width, f.height)),
        )?;
        let times = row.frames.iter().map(|frame| frame.time_us);
        if let Some((before, after)) = times
            .clone()
            .zip(times.skip(1))
            .find(|(before, after)| after < before)
        {
            return Err(input(
                &row.clip,
                format!("a frame at {after} us after one at {before} us"),
            ));
        }
        let n_frames = i32::try_from(row.frames.len()).map_err(|_| {
            input(
                &row.clip,
                format!("{} frames, expected less than 2^31", row.frames.len()),
            )
        })?;
        self.make_room(row.frames.iter().map(|f| f.bytes.len() as u64).sum())?;
        let name = ByteArray::from(row.clip.as_str());
        for (frame, stored) in (0..n_frames).zip(&row.frames) {
            self.push(Row {
                name: name.clone(),
                frame,
                n_frames,
                time_us: stored.time_us,
                bytes: stored.bytes.clone(),
                path: format!("{}/{frame:06}.jpg", row.clip),
                label: row.label,
                width: stored.width,
                height: stored.height,
            });
        }
        self.end_sample()
    }

    /// Writes what waits and the footer, and gives the output back, neither flushed to a disk nor committed.
    ///
    /// # Errors
    /// [`Error::Write`] if the output fails.
    pub fn finish(mut self) -> Result<(W, ShardCounts)> {
        self.close_group()?;
        let out = self.file.into_inner().map_err(write_error)?;
        Ok((out, self.counts))
    }

    fn expect_kind(&self, kind: Kind, key: &str) -> Result<()> {
        if self.kind == kind {
            return Ok(());
        }
        Err(input(
            key,
            format!(
                "a row of {} given to a shard of {}",
                kind.as_str(),
                self.kind.as_str()
            ),
        ))
    }

    /// Everything that would make a file which readers refuse is refused here, before anything is kept.
    fn check_sample<'a>(
        &self,
        key: &str,
        label: Option<i32>,
        pictures: impl Iterator<Item = (&'a Bytes, i32, i32)>,
    ) -> Result<()> {
        if key.is_empty() || key.len() > MAX_NAME_BYTES {
            return Err(input(
                key,
                format!(
                    "a name of {} bytes, expected 1 to {MAX_NAME_BYTES}",
                    key.len()
                ),
            ));
        }
        if let Some(label) = label {
            let n_classes = self.n_classes.unwrap_or(i32::MAX as usize);
            if usize::try_from(label).map_or(true, |label| label >= n_classes) {
                return Err(input(
                    key,
                    format!("label {label}, expected 0 or more and less than {n_classes}"),
                ));
            }
        }
        let (mut total, mut n_pictures) = (0, 0);
        for (bytes, width, height) in pictures {
            if bytes.is_empty() || bytes.len() > MAX_PICTURE_BYTES {
                return Err(input(
                    key,
                    format!(
                        "a picture of {} bytes, expected 1 to {MAX_PICTURE_BYTES}",
                        bytes.len()
                    ),
                ));
            }
            if width < 1 || height < 1 {
                return Err(input(
                    key,
                    format!("a picture of {width} x {height} pixels, expected at least 1 x 1"),
                ));
            }
            total += bytes.len() as u64 + PAGE_OVERHEAD_BYTES;
            n_pictures += 1;
        }
        if n_pictures == 0 {
            return Err(input(key, "a clip without frames".to_owned()));
        }
        if total > MAX_ROW_GROUP_BYTES {
            return Err(input(
                key,
                format!("{total} bytes in one sample, expected at most {MAX_ROW_GROUP_BYTES}"),
            ));
        }
        Ok(())
    }

    /// Closes the row group if the sample to come would make it larger than any reader takes.
    fn make_room(&mut self, sample_bytes: u64) -> Result<()> {
        let pages = (self.group.len() as u64 + 1) * PAGE_OVERHEAD_BYTES;
        if self.group_bytes + sample_bytes + pages > MAX_ROW_GROUP_BYTES {
            self.close_group()?;
        }
        Ok(())
    }

    fn push(&mut self, row: Row) {
        self.group_bytes += row.bytes.len() as u64;
        self.counts.image_bytes += row.bytes.len() as u64;
        self.counts.rows += 1;
        self.group.push(row);
    }

    fn end_sample(&mut self) -> Result<()> {
        self.counts.samples += 1;
        if self.group_bytes >= self.row_group_bytes {
            self.close_group()?;
        }
        Ok(())
    }

    fn close_group(&mut self) -> Result<()> {
        if self.group.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        let start = self.file.bytes_written() as u64;
        self.write_group(&rows).map_err(write_error)?;
        let before: u64 = self.counts.groups.iter().map(|group| group.samples).sum();
        self.counts.groups.push(GroupEntry {
            rows: rows.len() as u64,
            samples: self.counts.samples - before,
            bytes: self.file.bytes_written() as u64 - start,
        });
        Ok(())
    }

    fn write_group(&mut self, rows: &[Row]) -> std::result::Result<(), ParquetError> {
        let mut group = self.file.next_row_group()?;
        for &column in Column::of(self.kind) {
            let mut writer = group.next_column()?.ok_or_else(|| mismatch(column))?;
            write_column(writer.untyped(), column, rows)?;
            writer.close()?;
        }
        group.close()?;
        Ok(())
    }
}

fn write_error(source: ParquetError) -> Error {
    Error::Write { source }
}

fn input(key: &str, reason: String) -> Error {
    Error::Input {
        key: key.to_owned(),
        reason,
    }
}
