//! The checks of one shard.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Finding, KEPT_PER_SHARD, as_finding};
use crate::columns::ShardColumns;
use crate::error::{Error, Malformed, Result};
use crate::footer::ShardFooter;
use crate::hex::hex;
use crate::manifest::{Manifest, ShardEntry};
use crate::metadata::META_SPLIT;
use crate::reader::ShardIndex;
use crate::schema::{Column, Kind};
use crate::set::{check_footer, read_columns, read_footer};
use crate::storage::Store;

/// Bytes of one read.
const PIECE_BYTES: u64 = 8 << 20;

/// One shard under examination.
pub(super) struct ShardCheck<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    split: &'a str,
    entry: &'a ShardEntry,
    pub(super) findings: Vec<Finding>,
    pub(super) n_findings: u64,
    pub(super) good_rows: u64,
    /// Rows with findings.
    bad_rows: BTreeSet<u64>,
    pub(super) bytes_read: u64,
}

impl<'a> ShardCheck<'a> {
    pub(super) fn new(
        store: &'a Store,
        manifest: &'a Manifest,
        split: &'a str,
        entry: &'a ShardEntry,
    ) -> Self {
        ShardCheck {
            store,
            manifest,
            split,
            entry,
            findings: Vec::new(),
            n_findings: 0,
            good_rows: 0,
            bad_rows: BTreeSet::new(),
            bytes_read: 0,
        }
    }

    /// Runs all checks.
    ///
    /// * `names`: hashes of the names seen in the split so far.
    /// * `tick`: told after each read how many bytes of this shard have been read.
    pub(super) fn run(
        &mut self,
        names: &mut BTreeSet<[u8; 16]>,
        tick: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let size = match self.store.size(&self.entry.name) {
            Ok(size) => size,
            Err(error) => return self.note_error(error),
        };
        if size != self.entry.bytes {
            self.note(
                None,
                format!(
                    "{size} bytes, expected {} as in the manifest",
                    self.entry.bytes
                ),
            );
            return Ok(()); // the footer is not where it must be, and every byte after the first missing one is wrong
        }
        let index = match self.index(names) {
            Ok(index) => Some(index),
            Err(error) => {
                self.note_error(error)?;
                None
            }
        };
        self.read_through(index.as_ref(), tick)
    }

    /// Checks footer and small columns, and gives the index for the check of the pictures.
    fn index(&mut self, names: &mut BTreeSet<[u8; 16]>) -> Result<ShardIndex> {
        let kind = self.manifest.kind;
        let in_shard = |fault: Malformed| fault.in_shard(&self.entry.name);
        let footer = read_footer(self.store, self.entry)?;
        check_footer(&footer, kind, self.entry).map_err(in_shard)?;
        self.check_split(&footer);
        self.check_groups(&footer);
        let wanted: Vec<Column> = Column::of(kind)
            .iter()
            .copied()
            .filter(|column| !matches!(column, Column::ImageBytes | Column::ImagePath))
            .collect();
        let columns = read_columns(self.store, &footer, self.entry, &wanted)?;
        self.check_values(&columns);
        let index = ShardIndex::new(footer, &columns)?;
        if index.n_samples() != self.entry.samples {
            self.note(
                None,
                format!(
                    "{} samples, expected {} as in the manifest",
                    index.n_samples(),
                    self.entry.samples
                ),
            );
        }
        self.check_samples(&index, &columns, names)?;
        Ok(index)
    }

    fn check_split(&mut self, footer: &ShardFooter) {
        let split = footer
            .metadata()
            .iter()
            .find(|(key, _)| key == META_SPLIT)
            .map(|(_, split)| split.as_str());
        if split != Some(self.split) {
            self.note(
                None,
                format!(
                    "of split {:?}, expected {:?}",
                    split.unwrap_or_default(),
                    self.split
                ),
            );
        }
    }

    /// Readers of whole row groups take their places from the manifest.
    fn check_groups(&mut self, footer: &ShardFooter) {
        let listed = self.entry.groups.iter().zip(self.entry.group_ranges());
        let listed: Vec<_> = listed.map(|(g, range)| (g.rows, range)).collect();
        let found: Vec<_> = footer.group_places().collect();
        if let Some(group) =
            (0..listed.len().max(found.len())).find(|&g| listed.get(g) != found.get(g))
        {
            let show = |group: Option<&(u64, Range<u64>)>| match group {
                Some((rows, range)) => format!("{rows} rows in bytes {range:?}"),
                None => "nothing".to_owned(),
            };
            self.note(
                None,
                format!(
                    "row group {group}: {}, expected {} as in the manifest",
                    show(found.get(group)),
                    show(listed.get(group))
                ),
            );
        }
    }

    /// What can be said of a row alone.
    fn check_values(&mut self, columns: &ShardColumns) {
        let n_classes = self.manifest.class_names.len();
        for row in 0..columns.names.len() {
            let size = (columns.widths[row], columns.heights[row]);
            if size.0 < 1 || size.1 < 1 {
                self.note(
                    Some(row),
                    format!("picture of {} x {} pixels", size.0, size.1),
                );
            }
            if let Some(label) = columns.labels[row]
                && n_classes > 0
                && label as usize >= n_classes
            {
                self.note(
                    Some(row),
                    format!("label {label}, expected less than {n_classes}"),
                );
            }
        }
    }

    /// What can be said of a sample: its name is its own, and a clip's frames are numbered and in time.
    fn check_samples(
        &mut self,
        index: &ShardIndex,
        columns: &ShardColumns,
        names: &mut BTreeSet<[u8; 16]>,
    ) -> Result<()> {
        for n in 0..index.n_samples() {
            let sample = index.sample(n)?;
            let first = sample.first_row as usize;
            if sample.name.is_empty() {
                self.note(Some(first), "an empty name".to_owned());
            }
            // Half a SHA-256 stands for the name: two names that share it are not found by chance.
            let digest = Sha256::digest(sample.name.as_bytes());
            let (half, _) = digest.split_at(16);
            if let Ok(half) = half.try_into()
                && !names.insert(half)
            {
                self.note(
                    Some(first),
                    format!("{:?} is in the split already", sample.name),
                );
            }
            if self.manifest.kind == Kind::Clips {
                self.check_frames(columns, first..first + sample.n_frames as usize);
            }
        }
        Ok(())
    }

    fn check_frames(&mut self, columns: &ShardColumns, rows: Range<usize>) {
        for row in rows.clone() {
            let expected = row - rows.start;
            if usize::try_from(columns.frames[row]) != Ok(expected) {
                self.note(
                    Some(row),
                    format!("frame {}, expected {expected}", columns.frames[row]),
                );
            }
            if row > rows.start && columns.times_us[row] < columns.times_us[row - 1] {
                let (time, before) = (columns.times_us[row], columns.times_us[row - 1]);
                self.note(
                    Some(row),
                    format!("frame at {time} us after one at {before} us"),
                );
            }
        }
    }

    /// Reads the shard from its first to its last byte, once: for its hash, and for the pictures if there is an index.
    fn read_through(
        &mut self,
        index: Option<&ShardIndex>,
        tick: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut hasher = Sha256::new();
        let mut rows = 0..index.map_or(0, ShardIndex::n_rows);
        while self.bytes_read < self.entry.bytes {
            let (piece, pictures) = self.next_piece(index, &mut rows)?;
            let bytes = self.store.read_range(&self.entry.name, piece.clone())?;
            hasher.update(&bytes);
            if let Some(index) = index {
                self.check_pictures(index, pictures, &piece, &bytes)?;
            }
            self.bytes_read = piece.end;
            tick(self.bytes_read);
        }
        if !rows.is_empty() {
            self.note(
                Some(rows.start as usize),
                "picture before that of an earlier row".to_owned(),
            );
        }
        let found = hex(&hasher.finalize());
        if found != self.entry.sha256 {
            self.note(
                None,
                format!(
                    "sha-256 {found}, expected {} as in the manifest",
                    self.entry.sha256
                ),
            );
        }
        Ok(())
    }

    /// The next bytes to read, and the rows whose pages they are: pages together up to some size, or what lies between.
    fn next_piece(
        &self,
        index: Option<&ShardIndex>,
        rows: &mut Range<u64>,
    ) -> Result<(Range<u64>, Range<u64>)> {
        let start = self.bytes_read;
        let limit = self.entry.bytes.min(start + PIECE_BYTES);
        let Some(index) = index.filter(|_| !rows.is_empty()) else {
            return Ok((start..limit, 0..0));
        };
        let first_row = rows.start;
        let mut end = start;
        while !rows.is_empty() {
            let page = index.picture_range(rows.start)?;
            let fits = page.end <= limit || end == start; // a page larger than a piece is a piece
            if page.start != end || !fits {
                if page.start > end && end == start {
                    return Ok((start..limit.min(page.start), 0..0));
                }
                break;
            }
            end = page.end;
            rows.start += 1;
        }
        if end == start {
            return Ok((start..limit, 0..0)); // the next page lies behind: read on to the end, and report it there
        }
        Ok((start..end, first_row..rows.start))
    }

    fn check_pictures(
        &mut self,
        index: &ShardIndex,
        rows: Range<u64>,
        piece: &Range<u64>,
        bytes: &Bytes,
    ) -> Result<()> {
        for row in rows {
            let page = index.picture_range(row)?;
            let page =
                bytes.slice((page.start - piece.start) as usize..(page.end - piece.start) as usize);
            match index.picture(row, &page) {
                Ok(_) => self.good_rows += u64::from(!self.bad_rows.contains(&row)),
                Err(error) => self.note_error(error)?,
            }
        }
        Ok(())
    }

    fn note(&mut self, row: Option<usize>, problem: String) {
        self.keep(Finding {
            shard: self.entry.name.clone(),
            row: row.map(|row| row as u64),
            problem,
        });
    }

    fn note_error(&mut self, error: Error) -> Result<()> {
        let finding = as_finding(&self.entry.name, error)?;
        self.keep(finding);
        Ok(())
    }

    fn keep(&mut self, finding: Finding) {
        self.n_findings += 1;
        self.bad_rows.extend(finding.row);
        if self.findings.len() < KEPT_PER_SHARD {
            self.findings.push(finding);
        }
    }
}
