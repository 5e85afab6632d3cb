//! What lies on disk and in the bucket: the shard format, its writer and reader, the manifest, and storage.
//!
//! In reading order:
//! - `schema` and `metadata`: the columns, and what a shard says of itself; `FORMAT.md` beside this crate is the format
//!   on a page.
//! - `writer`: rows in, Parquet out.
//! - `manifest`: what a set consists of.
//! - `storage`: the one place that opens files and buckets, from `address` over `backend` to the clients of stores;
//!   `remote` is patient with them, `fault` says what they refuse, `cache` keeps what they gave, `writer` and `upload`
//!   write piece by piece.
//! - `footer` and `offset_index`, `columns`, `page` (over `levels` and `thrift`): the parts of a shard, from bytes.
//! - `reader`: a shard's index, built from those parts; `group`: a whole row group, which needs no footer.
//! - `set`: a split as one long list of samples.
//! - `foreign`: Parquet files of others, by whole row groups. `bounds`: what the statistics of a row group exclude.
//! - `verify`: whether a set is what its manifest says.
//!
//! What holds throughout:
//! - A shard's bytes depend on its rows and its [`ShardSpec`] alone.
//! - A picture is one range read of about its size, and comes without a copy, checked against its crc32c.
//! - `footer`, `offset_index`, `columns`, `page`, `reader` and `group` perform no I/O.
//! - Bytes of a file are never trusted: whatever they are, the outcome is a value or an error that names the shard,
//!   and the memory taken is in proportion to the bytes read.

mod bounds;
mod columns;
mod error;
mod footer;
mod foreign;
mod format;
mod group;
mod hex;
mod levels;
mod manifest;
mod metadata;
mod name;
mod offset_index;
mod page;
mod parallel;
mod parquet_metadata;
mod reader;
mod schema;
mod set;
mod storage;
mod thrift;
mod verify;
mod writer;

pub use bounds::Bounds;
pub use columns::ShardColumns;
pub use error::{Error, Malformed, Result};
pub use footer::{FooterStep, ShardFooter, tail_range};
pub use foreign::{ForeignGroup, ForeignLayout, ForeignRows, ForeignSet, parquet_file};
pub use format::OtherFormat;
pub use group::LoadedGroup;
pub use hex::hex;
pub use manifest::{
    GroupEntry, MANIFEST_NAME, Manifest, ShardEntry, Skipped, SplitManifest, shard_name,
};
pub use metadata::{
    META_FORMAT, META_HUGGINGFACE, META_KIND, META_OPTIONS, META_PAYLOAD, META_SPLIT, PAYLOAD,
};
pub use name::{Name, printable};
pub use page::slice_picture;
pub use parallel::in_parallel;
pub use reader::{IndexedSample, NamedSample, ShardIndex, index_columns};
pub use schema::{
    CREATED_BY, ClassName, ClipRow, Column, FORMAT_VERSION, FrameRow, ImageRow, Kind,
    MAX_NAME_BYTES,
};
pub use set::{GroupRef, SampleRef, ShardSet};
pub use storage::{
    CacheOptions, CacheStats, Environment, Lock, ObjectWriter, Sharing, Store, StoreOptions,
    Version, Written, check_address, is_remote,
};
pub use verify::{Finding, Progress, VerifyReport, verify, verify_in};
pub use writer::{MAX_PICTURE_BYTES, MAX_ROW_GROUP_BYTES, ShardCounts, ShardSpec, ShardWriter};
