//! Column names and types, the rows that go into them, and the format version.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{LogicalType, Repetition, Type as PhysicalType};
use parquet::errors::ParquetError;
use parquet::schema::types::{Type, TypePtr};
use serde::{Deserialize, Serialize};

use crate::error::{Malformed, malformed};

/// Version of the shard format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Longest `key` or `clip` in bytes: as much as a path of Linux.
pub const MAX_NAME_BYTES: usize = 4096;

/// `created_by` of every shard. A constant, so that a shard's bytes depend on its rows alone.
pub const CREATED_BY: &str = "pairquet version 1.0.0";

/// The two kinds of set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One row an image; a sample is an image.
    Images,
    /// One row a frame; a sample is a clip, that is a run of rows.
    Clips,
}

impl Kind {
    /// The name in metadata and manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Images => "images",
            Kind::Clips => "clips",
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// [`Malformed`] if there is no such kind.
    pub fn from_name(name: &str) -> Result<Self, Malformed> {
        [Kind::Images, Kind::Clips]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| malformed!("kind is {name:?}, expected \"images\" or \"clips\""))
    }
}

/// A class; its label is its place in the list of classes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassName {
    /// WordNet id (`n01440764`) or folder name; unique.
    pub id: String,
    /// Readable name; several classes may share it (ImageNet has two kinds of crane).
    pub name: String,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Unique in its split, such as `n01440764/n01440764_10026`.
    pub key: String,
    /// The encoded picture.
    pub bytes: Bytes,
    /// File name for readers that want one, with the extension of the picture's format.
    pub path: String,
    /// Place of the class in the list of classes, if the split is labelled.
    pub label: Option<i32>,
    /// Stored width in pixels.
    pub width: i32,
    /// Stored height in pixels.
    pub height: i32,
}

/// One clip with all its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipRow {
    /// Unique in its split.
    pub clip: String,
    /// Place of the class in the list of classes, if the split is labelled.
    pub label: Option<i32>,
    /// The frames in order of presentation; at least one.
    pub frames: Vec<FrameRow>,
}

/// One frame of a clip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRow {
    /// Time of presentation in microseconds.
    pub time_us: i64,
    /// The encoded picture.
    pub bytes: Bytes,
    /// Stored width in pixels.
    pub width: i32,
    /// Stored height in pixels.
    pub height: i32,
}

/// A leaf column of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Column {
    /// `key` of an image.
    Key,
    /// `clip` of a frame.
    Clip,
    /// `frame`, from 0 within its clip.
    Frame,
    /// `n_frames` of the clip.
    NFrames,
    /// `time_us` of the frame.
    TimeUs,
    /// `image.bytes`, the encoded picture.
    ImageBytes,
    /// `image.path`.
    ImagePath,
    /// `label`, nullable.
    Label,
    /// `width` in pixels.
    Width,
    /// `height` in pixels.
    Height,
    /// `crc32c` of `image.bytes`.
    Crc32c,
}

impl Column {
    /// The columns of a kind, in file order.
    pub fn of(kind: Kind) -> &'static [Column] {
        use Column::*;
        match kind {
            Kind::Images => &[Key, ImageBytes, ImagePath, Label, Width, Height, Crc32c],
            Kind::Clips => &[
                Clip, Frame, NFrames, TimeUs, ImageBytes, ImagePath, Label, Width, Height, Crc32c,
            ],
        }
    }

    /// Path of the leaf in the Parquet schema, its parts joined by dots.
    pub fn path(self) -> &'static str {
        match self {
            Column::Key => "key",
            Column::Clip => "clip",
            Column::Frame => "frame",
            Column::NFrames => "n_frames",
            Column::TimeUs => "time_us",
            Column::ImageBytes => "image.bytes",
            Column::ImagePath => "image.path",
            Column::Label => "label",
            Column::Width => "width",
            Column::Height => "height",
            Column::Crc32c => "crc32c",
        }
    }

    /// Parquet type of the leaf.
    pub(crate) fn physical_type(self) -> PhysicalType {
        match self {
            Column::Key | Column::Clip | Column::ImageBytes | Column::ImagePath => {
                PhysicalType::BYTE_ARRAY
            }
            Column::TimeUs | Column::Label => PhysicalType::INT64,
            _ => PhysicalType::INT32,
        }
    }

    /// Highest definition level: how many of the leaf and its parents are optional.
    pub(crate) fn max_def_level(self) -> i16 {
        match self {
            Column::ImageBytes | Column::ImagePath => 2,
            Column::Label => 1,
            _ => 0,
        }
    }
}

/// The Parquet schema of a kind.
///
/// `image`, its parts and `label` are optional, and `label` has 64 bits, although no picture is ever null and no label
/// needs them: `datasets` takes a column for an `Image` or a `ClassLabel` only if its type equals that feature's own.
pub(crate) fn parquet_schema(kind: Kind) -> Result<TypePtr, ParquetError> {
    let mut fields = Vec::new();
    for &column in Column::of(kind) {
        match column {
            Column::ImageBytes => {
                let parts = vec![
                    leaf(
                        "bytes",
                        PhysicalType::BYTE_ARRAY,
                        Repetition::OPTIONAL,
                        None,
                    )?,
                    leaf(
                        "path",
                        PhysicalType::BYTE_ARRAY,
                        Repetition::OPTIONAL,
                        Some(LogicalType::String),
                    )?,
                ];
                let image = Type::group_type_builder("image")
                    .with_repetition(Repetition::OPTIONAL)
                    .with_fields(parts);
                fields.push(Arc::new(image.build()?));
            }
            Column::ImagePath => {} // written with its struct
            Column::Label => fields.push(leaf(
                "label",
                PhysicalType::INT64,
                Repetition::OPTIONAL,
                None,
            )?),
            Column::Crc32c => {
                let unsigned = LogicalType::integer(32, false);
                fields.push(leaf(
                    "crc32c",
                    PhysicalType::INT32,
                    Repetition::REQUIRED,
                    Some(unsigned),
                )?);
            }
            _ => {
                let physical = column.physical_type();
                let logical = (physical == PhysicalType::BYTE_ARRAY).then_some(LogicalType::String);
                fields.push(leaf(
                    column.path(),
                    physical,
                    Repetition::REQUIRED,
                    logical,
                )?);
            }
        }
    }
    Ok(Arc::new(
        Type::group_type_builder("schema")
            .with_fields(fields)
            .build()?,
    ))
}

fn leaf(
    name: &str,
    physical: PhysicalType,
    repetition: Repetition,
    logical: Option<LogicalType>,
) -> Result<TypePtr, ParquetError> {
    let builder = Type::primitive_type_builder(name, physical).with_repetition(repetition);
    Ok(Arc::new(builder.with_logical_type(logical).build()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_that_read_back() {
        for kind in [Kind::Images, Kind::Clips] {
            assert_eq!(Kind::from_name(kind.as_str()), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert!(Kind::from_name("movies").is_err());
    }

    #[test]
    fn schema_leaves_are_the_columns() {
        for kind in [Kind::Images, Kind::Clips] {
            let schema =
                parquet::schema::types::SchemaDescriptor::new(parquet_schema(kind).unwrap());
            let leaves: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
            let columns: Vec<&str> = Column::of(kind).iter().map(|c| c.path()).collect();
            assert_eq!(leaves, columns);
            for (leaf, column) in schema.columns().iter().zip(Column::of(kind)) {
                assert_eq!(leaf.physical_type(), column.physical_type());
                assert_eq!(leaf.max_def_level(), column.max_def_level());
                assert_eq!(leaf.max_rep_level(), 0);
            }
        }
    }
}
