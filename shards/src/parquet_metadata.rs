//! What the Parquet library is given to decode, looked at first.
//!
//! The library reads the fields that it knows without a look at their types, passes over the others by claimed lengths
//! (for minutes where a list claims enough elements that it thinks take no byte), and builds a schema by recursion, with
//! room for whatever number of columns a group claims. Metadata whose known fields have their types, in which no list has
//! such elements, and whose schema is no deeper and has no more columns than stand there, is read as it was meant, in time
//! and memory proportional to its bytes.

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::error::{Malformed, malformed};
use crate::thrift::Cursor;
use crate::thrift::Expected::{self, Bool, Byte, Bytes, Double, Integer, List, Struct};

type Result<T> = std::result::Result<T, Malformed>;

/// Deepest nesting of groups in a schema. The library keeps the path of each column from the root.
const MAX_SCHEMA_DEPTH: usize = 32;

/// The metadata of a Parquet file's footer.
pub(crate) fn decode_footer(footer: &[u8]) -> Result<ParquetMetaData> {
    let unreadable = |fault: &dyn std::fmt::Display| malformed!("unreadable footer: {fault}");
    check_footer(footer).map_err(|fault| unreadable(&fault))?;
    ParquetMetaDataReader::decode_metadata(footer).map_err(|fault| unreadable(&fault))
}

fn check_footer(footer: &[u8]) -> Result<()> {
    let mut cursor = Cursor::new(footer);
    let mut last_id = 0;
    while let Some(field) = cursor.field(&mut last_id)? {
        let value = cursor.position();
        cursor.skip_field(&field, FILE_META_DATA)?;
        if field.id == SCHEMA {
            check_schema(&mut Cursor::new(&footer[value..]))?;
        }
    }
    Ok(())
}

/// Reads a list of elements of the right types, each group before its children.
fn check_schema(cursor: &mut Cursor<'_>) -> Result<()> {
    let (_, n_elements) = cursor.list()?;
    // Children to come, of each group that is open.
    let mut open: Vec<usize> = Vec::new();
    for after in (0..n_elements).rev() {
        if let Some(to_come) = open.last_mut() {
            *to_come -= 1;
        }
        let n_children = n_children(cursor)?;
        if n_children > after {
            return Err(malformed!(
                "a group of {n_children} columns, expected at most the {after} elements left of the schema"
            ));
        }
        if n_children > 0 {
            open.push(n_children);
        }
        if open.len() > MAX_SCHEMA_DEPTH {
            return Err(malformed!(
                "a schema of groups in groups, expected at most {MAX_SCHEMA_DEPTH} deep"
            ));
        }
        while open.last() == Some(&0) {
            open.pop();
        }
    }
    Ok(())
}

/// The children of the next element.
fn n_children(cursor: &mut Cursor<'_>) -> Result<usize> {
    let (mut n_children, mut last_id) = (0, 0);
    while let Some(field) = cursor.field(&mut last_id)? {
        match field.id {
            5 => n_children = cursor.zigzag_i32()?,
            _ => cursor.skip(field.wire_type)?,
        }
    }
    usize::try_from(n_children).map_err(|_| malformed!("a group of {n_children} columns"))
}

// The structures of <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>, by their names
// there, as far as the library reads them.

const FILE_META_DATA: &[(i16, Expected)] = &[
    (1, Integer),
    (SCHEMA, List(&SCHEMA_ELEMENT)),
    (3, Integer),
    (4, List(&ROW_GROUP)),
    (5, List(&KEY_VALUE)),
    (6, Bytes),
    (7, List(&COLUMN_ORDER)),
];

/// The field with the schema.
const SCHEMA: i16 = 2;

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

/// The header of a page.
pub(crate) const PAGE_HEADER: Expected = Struct(&[
    (1, Integer),
    (2, Integer),
    (3, Integer),
    (4, Integer),
    (
        5,
        Struct(&[
            (1, Integer),
            (2, Integer),
            (3, Integer),
            (4, Integer),
            (5, STATISTICS),
        ]),
    ),
    (6, EMPTY),
    (7, Struct(&[(1, Integer), (2, Integer), (3, Bool)])),
    (
        8,
        Struct(&[
            (1, Integer),
            (2, Integer),
            (3, Integer),
            (4, Integer),
            (5, Integer),
            (6, Integer),
            (7, Bool),
            (8, STATISTICS),
        ]),
    ),
]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thrift::put_zigzag;

    /// A footer that is a schema alone, of elements with a name and so many children.
    fn schema(children: &[i32]) -> Vec<u8> {
        let mut bytes = vec![0x29, 0xfc, children.len() as u8];
        for &n in children {
            bytes.extend([0x48, 1, b'x', 0x15]);
            put_zigzag(&mut bytes, n);
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn known_fields_that_are_of_other_types_are_refused() {
        let said = |footer: &[u8]| check_footer(footer).unwrap_err().to_string();
        // A version that is a structure, a schema that is a set, a row group's size in a structure.
        assert!(said(&[0x1c, 0, 0]).contains("type 12 in the metadata, expected an integer"));
        assert!(said(&[0x2a, 0x0c, 0]).contains("type 10 in the metadata, expected a list"));
        assert!(said(&[0x49, 0x1c, 0x2c, 0, 0, 0]).contains("expected an integer"));
        // A field that nobody knows, with a list of truth values.
        assert!(said(&[0x09, 40, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0]).contains("list of"));
        check_footer(&[0x49, 0x1c, 0x26, 2, 0, 0x09, 40, 0x13, 1, 0]).unwrap();
    }

    #[test]
    fn schemas_have_the_columns_that_they_claim() {
        let said = |children: &[i32]| match check_footer(&schema(children)) {
            Ok(()) => String::new(),
            Err(fault) => fault.to_string(),
        };
        assert_eq!(said(&[2, 1, 0, 0]), "");
        assert_eq!(said(&[]), "");
        assert!(said(&[2, 3, 0, 0]).contains("a group of 3 columns, expected at most the 2"));
        assert!(said(&[i32::MAX]).contains("expected at most the 0 elements left"));
        assert!(said(&[-1]).contains("a group of -1 columns"));
        let deep = |n: usize| [vec![1; n], vec![0]].concat();
        assert_eq!(said(&deep(MAX_SCHEMA_DEPTH)), "");
        assert!(said(&deep(MAX_SCHEMA_DEPTH + 1)).contains("expected at most 32 deep"));
        // One group after the other is not deep.
        let flat: Vec<i32> = std::iter::once(50).chain([1, 0].repeat(50)).collect();
        assert_eq!(said(&flat), "");
    }
}
