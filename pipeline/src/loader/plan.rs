//! How a run's pictures are read: one by one, or whole row groups at a time.

use serde::Serialize;

use crate::config::{DataConfig, OrderKind, ReadKind};
use crate::error::{Error, Result};
use crate::loader::open;
use crate::loader::order::Order;
use crate::loader::read_ahead::ReadAhead;
use crate::loader::source::Source;
use crate::loader::state::Rank;
use crate::views::Views;

/// What a request to a bucket costs besides its bytes, as bytes: what 100 MiB/s bring in 30 ms, shared by as many requests
/// as are under way at once.
const REQUEST_BYTES: u64 = 24 << 10;

/// Readers of single pictures from a bucket, where a read takes tens of milliseconds: 100 MiB/s at 30 ms are 90 pairs of frames
/// under way. One keeps up with any number of workers on a disk.
const REMOTE_PAGE_READERS: usize = 128;

/// Readers of row groups from a bucket: each of their reads lasts long enough to fill a connection.
const REMOTE_GROUP_READERS: usize = 8;

/// How one rank reads an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReadPlan {
    /// What is read at once.
    pub read: ReadKind,
    /// Bytes read in an epoch; of single pictures an estimate from their mean size.
    pub bytes: u64,
    /// Reads in an epoch.
    pub requests: u64,
    /// The same by the other kind of reading, where the order allows it.
    pub other: Option<(u64, u64)>,
    /// Bytes of all row groups that any sample comes from: what a cache must hold so that nothing is fetched twice.
    pub distinct_bytes: u64,
    /// Largest memory for row groups that are read ahead; 0 for single pictures.
    pub budget_bytes: u64,
    /// Row groups of the largest window, in bytes; 0 for single pictures.
    pub window_bytes: u64,
    /// Threads that read row groups.
    pub read_threads: usize,
    /// Threads that read single pictures, or hand them out of the row groups.
    pub fetch_threads: usize,
}

/// The line to a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Line {
    /// Seconds until a request's first byte.
    pub latency_s: f64,
    /// Bytes a second of all requests together.
    pub bytes_per_s: f64,
}

impl ReadPlan {
    /// Reads that are under way at once.
    pub fn readers(&self) -> usize {
        match self.read {
            ReadKind::Pages => self.fetch_threads,
            ReadKind::Groups => self.read_threads,
        }
    }

    /// Seconds that one rank's reads of one batch take on `line`, if nothing is read ahead: the longer of what the bytes
    /// take and what the requests take, as many at once as there are readers.
    ///
    /// * `batches`: of an epoch.
    pub fn seconds_per_batch(&self, line: Line, batches: u64) -> f64 {
        let bytes = self.bytes as f64 / line.bytes_per_s;
        let requests = self.requests as f64 * line.latency_s / self.readers().max(1) as f64;
        bytes.max(requests) / batches.max(1) as f64
    }

    /// The plan of `config` for `rank` of a run over `source`, whichever its seed.
    ///
    /// # Errors
    /// As the loader's: [`Error::Invalid`] if the configuration does not fit itself, the set or the ranks.
    pub fn of(config: &DataConfig, source: &dyn Source, rank: Rank) -> Result<Self> {
        config.validate()?;
        let order = open::order(source, config, 0)?;
        Self::new(config, source, &order, rank)
    }

    /// The plan of a valid `config` for the part of its `order` that falls to `rank`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if row groups are asked for in an order that has no windows, or do not fit into the memory.
    pub fn new(
        config: &DataConfig,
        source: &dyn Source,
        order: &Order,
        rank: Rank,
    ) -> Result<Self> {
        let is_remote = config.is_remote();
        let group_bytes: u64 = order.groups().iter().map(|group| group.bytes).sum();
        let groups = (group_bytes, order.groups().len() as u64);
        let pictures = order.n_positions() / rank.world * Views::new(config).pictures_per_sample();
        let n_pictures: u64 = order.groups().iter().map(|group| group.n_pictures).sum();
        let mean = if source.reads_groups_alone() {
            group_bytes / groups.1.max(1)
        } else {
            group_bytes / n_pictures.max(1)
        };
        let pages = (pictures.saturating_mul(mean), pictures);

        let has_windows = config.order_in_force() != OrderKind::Full;
        let cost = |(bytes, requests): (u64, u64)| {
            bytes.saturating_add(requests.saturating_mul(REQUEST_BYTES))
        };
        let suits = (is_remote || source.reads_groups_alone())
            && has_windows
            && cost(groups) <= cost(pages);
        let suiting = if suits {
            ReadKind::Groups
        } else {
            ReadKind::Pages
        };
        let read = config.read.unwrap_or(suiting);
        let io_threads = |remote, disk| match config.io_threads {
            0 if is_remote => remote,
            0 => disk,
            n => n,
        };
        if read == ReadKind::Pages {
            return Ok(Self {
                read,
                bytes: pages.0,
                requests: pages.1,
                other: has_windows.then_some(groups),
                distinct_bytes: group_bytes,
                budget_bytes: 0,
                window_bytes: 0,
                read_threads: 0,
                fetch_threads: io_threads(REMOTE_PAGE_READERS, 1),
            });
        }
        if !has_windows {
            return Err(Error::Invalid {
                name: "data.read",
                value: "groups".to_owned(),
                expected:
                    "pages, or data.order = \"blocks\": a full shuffle needs all row groups at once"
                        .to_owned(),
            });
        }
        let window_bytes = ReadAhead::largest_window_bytes(order, config.window_groups);
        let budget_bytes = config.read_ahead_mib.saturating_mul(1 << 20);
        if window_bytes > budget_bytes {
            return Err(Error::Invalid {
                name: "data.read_ahead_mib",
                value: config.read_ahead_mib.to_string(),
                expected: format!(
                    "at least {} for the largest window of data.window_groups = {} row groups, better twice that",
                    window_bytes.div_ceil(1 << 20),
                    config.window_groups
                ),
            });
        }
        Ok(Self {
            read,
            bytes: groups.0,
            requests: groups.1,
            other: Some(pages),
            distinct_bytes: group_bytes,
            budget_bytes,
            window_bytes,
            read_threads: io_threads(REMOTE_GROUP_READERS, 2),
            fetch_threads: 1,
        })
    }
}
