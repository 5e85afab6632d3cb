//! A Parquet file's footer, decoded by the library once it is known to be what the library takes it for.
//!
//! The library reads the fields that it knows without a look at their types, and passes over the others by claimed
//! lengths, for minutes where a list claims enough elements that it thinks take no byte. A footer whose known fields have
//! their types, and in which no list has such elements, is read as it was meant, in time proportional to its bytes.

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::error::{Malformed, malformed};
use crate::thrift::Expected::{self, Bool, Byte, Bytes, Double, Integer, List, Struct};
use crate::thrift::{Cursor, wire};

/// The metadata of a Parquet file's footer.
pub(crate) fn decode(footer: &[u8]) -> Result<ParquetMetaData, Malformed> {
    let unreadable = |fault: &dyn std::fmt::Display| malformed!("unreadable footer: {fault}");
    Cursor::new(footer)
        .skip_expecting(wire::STRUCT, &FILE)
        .map_err(|fault| unreadable(&fault))?;
    ParquetMetaDataReader::decode_metadata(footer).map_err(|fault| unreadable(&fault))
}

// The structures of <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>, by their names
// there, as far as the library reads them.

const FILE: Expected = Struct(&[
    (1, Integer),
    (2, List(&SCHEMA_ELEMENT)),
    (3, Integer),
    (4, List(&ROW_GROUP)),
    (5, List(&KEY_VALUE)),
    (6, Bytes),
    (7, List(&COLUMN_ORDER)),
]);

const SCHEMA_ELEMENT: Expected = Struct(&[
    (1, Integer),
    (2, Integer),
    (3, Integer),
    (4, Bytes),
    (5, Integer),
    (6, Integer),
    (7, Integer),
    (8, Integer),
    (9, Integer),
    (10, LOGICAL_TYPE),
]);

const LOGICAL_TYPE: Expected = Struct(&[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Struct(&[(1, Integer), (2, Integer)])),
    (6, EMPTY),
    (7, TIME),
    (8, TIME),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Bytes)])),
    (18, Struct(&[(1, Bytes), (2, Integer)])),
    (19, EMPTY),
]);

const TIME: Expected = Struct(&[
    (1, Bool),
    (2, Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)])),
]);

const COLUMN_ORDER: Expected = Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]);

const EMPTY: Expected = Struct(&[]);

const KEY_VALUE: Expected = Struct(&[(1, Bytes), (2, Bytes)]);

const ROW_GROUP: Expected = Struct(&[
    (1, List(&COLUMN_CHUNK)),
    (2, Integer),
    (3, Integer),
    (4, List(&Struct(&[(1, Integer), (2, Bool), (3, Bool)]))),
    (5, Integer),
    (7, Integer),
]);

const COLUMN_CHUNK: Expected = Struct(&[
    (1, Bytes),
    (2, Integer),
    (3, COLUMN_META_DATA),
    (4, Integer),
    (5, Integer),
    (6, Integer),
    (7, Integer),
]);

const COLUMN_META_DATA: Expected = Struct(&[
    (1, Integer),
    (2, List(&Integer)),
    (4, Integer),
    (5, Integer),
    (6, Integer),
    (7, Integer),
    (9, Integer),
    (10, Integer),
    (11, Integer),
    (12, STATISTICS),
    (
        13,
        List(&Struct(&[(1, Integer), (2, Integer), (3, Integer)])),
    ),
    (14, Integer),
    (15, Integer),
    (
        16,
        Struct(&[(1, Integer), (2, List(&Integer)), (3, List(&Integer))]),
    ),
    (17, Struct(&[(1, BOUNDING_BOX), (2, List(&Integer))])),
]);

const STATISTICS: Expected = Struct(&[
    (1, Bytes),
    (2, Bytes),
    (3, Integer),
    (4, Integer),
    (5, Bytes),
    (6, Bytes),
    (7, Bool),
    (8, Bool),
    (9, Integer),
]);

const BOUNDING_BOX: Expected = Struct(&[
    (1, Double),
    (2, Double),
    (3, Double),
    (4, Double),
    (5, Double),
    (6, Double),
    (7, Double),
    (8, Double),
]);
