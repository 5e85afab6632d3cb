//! The part of Thrift's compact protocol that page headers and offset indexes need, and to pass over a footer.
//!
//! Input is hostile: every length is checked against the bytes that are left, and nothing is allocated.

use crate::error::{Malformed, malformed};

/// Deepest nesting that [`Cursor::skip`] follows; Parquet's own structures stay below 6.
const MAX_DEPTH: u32 = 16;

/// Type codes of the compact protocol.
pub(crate) mod wire {
    pub(crate) const TRUE: u8 = 1;
    pub(crate) const FALSE: u8 = 2;
    pub(crate) const BYTE: u8 = 3;
    pub(crate) const I16: u8 = 4;
    pub(crate) const I32: u8 = 5;
    pub(crate) const I64: u8 = 6;
    pub(crate) const DOUBLE: u8 = 7;
    pub(crate) const BINARY: u8 = 8;
    pub(crate) const LIST: u8 = 9;
    pub(crate) const SET: u8 = 10;
    pub(crate) const MAP: u8 = 11;
    pub(crate) const STRUCT: u8 = 12;
}

/// A place in a buffer.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

/// A field's header: its id and the type of the value that follows.
pub(crate) struct Field {
    pub(crate) id: i16,
    pub(crate) wire_type: u8,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, position: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self
            .bytes
            .get(self.position)
            .copied()
            .ok_or_else(|| self.cut())?;
        self.position += 1;
        Ok(byte)
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let end = self.position.checked_add(n).ok_or_else(|| self.cut())?;
        let taken = self
            .bytes
            .get(self.position..end)
            .ok_or_else(|| self.cut())?;
        self.position = end;
        Ok(taken)
    }

    fn cut(&self) -> Malformed {
        malformed!(
            "metadata ends after {} bytes, in the middle of a value",
            self.bytes.len()
        )
    }

    /// An unsigned number of 7 bits a byte, low bits first.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed!(
            "a number of more than 10 bytes at byte {} of the metadata",
            self.position
        ))
    }

    /// A signed number, its sign in the lowest bit.
    pub(crate) fn zigzag(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A signed number of 32 bits.
    pub(crate) fn zigzag_i32(&mut self) -> Result<i32, Malformed> {
        let value = self.zigzag()?;
        i32::try_from(value).map_err(|_| malformed!("{value} in the metadata, expected 32 bits"))
    }

    /// The next field of a structure, or `None` at its end. `last_id` starts at 0 for each structure.
    pub(crate) fn field(&mut self, last_id: &mut i16) -> Result<Option<Field>, Malformed> {
        let header = self.byte()?;
        if header == 0 {
            return Ok(None);
        }
        let id = match header >> 4 {
            0 => self.zigzag()?,
            delta => i64::from(*last_id) + i64::from(delta),
        };
        let id = i16::try_from(id)
            .map_err(|_| malformed!("field {id} in the metadata, expected 16 bits"))?;
        *last_id = id;
        Ok(Some(Field {
            id,
            wire_type: header & 0x0f,
        }))
    }

    /// A list's element type and length; the length is no more than the bytes left, as no element takes less than one.
    pub(crate) fn list(&mut self) -> Result<(u8, usize), Malformed> {
        let header = self.byte()?;
        let len = match header >> 4 {
            15 => self.varint()?,
            short => u64::from(short),
        };
        match usize::try_from(len) {
            Ok(len) if len <= self.remaining() => Ok((header & 0x0f, len)),
            _ => Err(malformed!(
                "a list of {len} with {} bytes of metadata left",
                self.remaining()
            )),
        }
    }

    /// Passes over a field's value.
    pub(crate) fn skip(&mut self, wire_type: u8) -> Result<(), Malformed> {
        self.skip_value(wire_type, MAX_DEPTH)
    }

    fn skip_value(&mut self, wire_type: u8, depth: u32) -> Result<(), Malformed> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(malformed!("metadata nested deeper than {MAX_DEPTH}"));
        };
        match wire_type {
            wire::TRUE | wire::FALSE => Ok(()), // the field's type is its value
            wire::BYTE => self.byte().map(drop),
            wire::I16 | wire::I32 | wire::I64 => self.varint().map(drop),
            wire::DOUBLE => self.take(8).map(drop),
            wire::BINARY => {
                let len = self.varint()?;
                self.take(usize::try_from(len).unwrap_or(usize::MAX))
                    .map(drop)
            }
            wire::LIST | wire::SET => {
                let (element, len) = self.list()?;
                self.skip_elements(&[element], len as u64, depth)
            }
            wire::MAP => match self.varint()? {
                0 => Ok(()),
                len => {
                    let types = self.byte()?;
                    self.skip_elements(&[types >> 4, types & 0x0f], len, depth)
                }
            },
            wire::STRUCT => {
                let mut last_id = 0;
                while let Some(field) = self.field(&mut last_id)? {
                    self.skip_value(field.wire_type, depth)?;
                }
                Ok(())
            }
            other => Err(malformed!("value of unknown type {other} in the metadata")),
        }
    }

    /// The elements of a list, or the keys and values of a map. Truth values are refused: nothing that is passed over here
    /// has a list of them, and how many bytes they take is a matter of the reader.
    fn skip_elements(&mut self, types: &[u8], len: u64, depth: u32) -> Result<(), Malformed> {
        if len == 0 {
            return Ok(());
        }
        if types.contains(&wire::TRUE) || types.contains(&wire::FALSE) {
            return Err(malformed!("a list of truth values in the metadata"));
        }
        // The elements take a byte each at least, so that a length that is made up ends with the bytes.
        for _ in 0..len {
            for &wire_type in types {
                self.skip_value(wire_type, depth)?;
            }
        }
        Ok(())
    }

    /// Passes over a field's value, which must be of the types expected, fields of a structure that are not known aside.
    pub(crate) fn skip_expecting(
        &mut self,
        wire_type: u8,
        expected: &Expected,
    ) -> Result<(), Malformed> {
        if !expected.is(wire_type) {
            return Err(malformed!(
                "a value of type {wire_type} in the metadata, expected {expected}"
            ));
        }
        match *expected {
            Expected::List(of) => {
                let (element, len) = self.list()?;
                (0..len).try_for_each(|_| self.skip_expecting(element, of))
            }
            Expected::Struct(known) => {
                let mut last_id = 0;
                while let Some(field) = self.field(&mut last_id)? {
                    self.skip_field(&field, known)?;
                }
                Ok(())
            }
            _ => self.skip(wire_type),
        }
    }

    /// The same of the value of one field of a structure.
    pub(crate) fn skip_field(
        &mut self,
        field: &Field,
        known: &[(i16, Expected)],
    ) -> Result<(), Malformed> {
        match known.iter().find(|(id, _)| *id == field.id) {
            Some((_, expected)) => self.skip_expecting(field.wire_type, expected),
            None => self.skip(field.wire_type),
        }
    }
}

/// What a value of a known structure is.
pub(crate) enum Expected {
    /// Of 16, 32 or 64 bits, which look alike.
    Integer,
    Byte,
    Double,
    Bytes,
    /// In a structure, not in a list.
    Bool,
    List(&'static Expected),
    /// By the fields' ids.
    Struct(&'static [(i16, Expected)]),
}

impl Expected {
    fn is(&self, wire_type: u8) -> bool {
        match self {
            Expected::Integer => matches!(wire_type, wire::I16 | wire::I32 | wire::I64),
            Expected::Byte => wire_type == wire::BYTE,
            Expected::Double => wire_type == wire::DOUBLE,
            Expected::Bytes => wire_type == wire::BINARY,
            Expected::Bool => matches!(wire_type, wire::TRUE | wire::FALSE),
            Expected::List(_) => wire_type == wire::LIST,
            Expected::Struct(_) => wire_type == wire::STRUCT,
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Expected::Integer => "an integer",
            Expected::Byte => "a byte",
            Expected::Double => "a floating point number",
            Expected::Bytes => "a text",
            Expected::Bool => "true or false",
            Expected::List(_) => "a list",
            Expected::Struct(_) => "a structure",
        })
    }
}

/// Writes what [`Cursor::zigzag_i32`] reads.
#[cfg(test)]
pub(crate) fn put_zigzag(out: &mut Vec<u8>, value: i32) {
    let mut rest = ((value << 1) ^ (value >> 31)).cast_unsigned();
    while rest > 0x7f {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_read_as_the_protocol_says() {
        assert_eq!(Cursor::new(&[0xac, 0x02]).varint(), Ok(300));
        assert_eq!(Cursor::new(&[0x01]).zigzag(), Ok(-1));
        assert_eq!(Cursor::new(&[0x02]).zigzag(), Ok(1));
        let most_negative = [0xff; 9].into_iter().chain([0x01]).collect::<Vec<u8>>();
        assert_eq!(Cursor::new(&most_negative).zigzag(), Ok(i64::MIN));
        assert!(Cursor::new(&[0xff; 11]).varint().is_err());
        assert!(Cursor::new(&[0x80]).varint().is_err());
        assert!(Cursor::new(&most_negative).zigzag_i32().is_err());
    }

    #[test]
    fn fields_have_short_and_long_ids() {
        let mut cursor = Cursor::new(&[0x15, 0x02, 0x05, 0x64, 0x02, 0x00]);
        let mut last_id = 0;
        assert_eq!(cursor.field(&mut last_id).unwrap().unwrap().id, 1);
        cursor.skip(wire::I32).unwrap();
        assert_eq!(cursor.field(&mut last_id).unwrap().unwrap().id, 50);
        cursor.skip(wire::I32).unwrap();
        assert!(cursor.field(&mut last_id).unwrap().is_none());
    }

    #[test]
    fn lengths_beyond_the_buffer_are_refused() {
        let list = [0xf5, 0xff, 0xff, 0xff, 0xff, 0x07];
        assert!(Cursor::new(&list).list().is_err());
        let binary = [0xff, 0xff, 0xff, 0xff, 0x07, 1, 2, 3];
        assert!(Cursor::new(&binary).skip(wire::BINARY).is_err());
        assert!(
            Cursor::new(&[0x1c; 64]).skip(wire::STRUCT).is_err(),
            "endless nesting"
        );
    }

    #[test]
    fn what_claims_more_elements_than_bytes_is_refused_at_once() {
        // Lists and maps of truth values, which may take no byte each, in the field of a structure that nobody knows.
        let many = [0xff, 0xff, 0xff, 0xff, 0x07];
        for (wire_type, element) in [(wire::LIST, 0xf1), (wire::SET, 0xf2), (wire::MAP, 0)] {
            let mut bytes = vec![0x10 | wire_type];
            bytes.extend((wire_type != wire::MAP).then_some(element));
            bytes.extend(many);
            bytes.extend([0x11; 8]);
            assert!(
                Cursor::new(&bytes).skip(wire::STRUCT).is_err(),
                "{wire_type}"
            );
        }
        let few = [0x19, 0x21, 1, 1, 0];
        let error = Cursor::new(&few).skip(wire::STRUCT).unwrap_err();
        assert!(error.to_string().contains("truth values"), "{error}");
    }

    #[test]
    fn known_fields_are_of_their_types_and_others_of_any() {
        const INNER: Expected = Expected::Struct(&[(1, Expected::Bool)]);
        const OUTER: Expected =
            Expected::Struct(&[(1, Expected::Integer), (3, Expected::List(&INNER))]);
        let said = |bytes: &[u8]| {
            let mut cursor = Cursor::new(bytes);
            let outcome = cursor.skip_expecting(wire::STRUCT, &OUTER);
            outcome
                .map(|()| cursor.position())
                .map_err(|e| e.to_string())
        };
        // 1: 7, 2: "a", 3: [{1: true}, {}], 4: 0.
        let good = [0x15, 14, 0x18, 1, b'a', 0x19, 0x2c, 0x11, 0, 0, 0x13, 0, 0];
        assert_eq!(said(&good), Ok(good.len()));
        let of = |place: usize, byte: u8| {
            let mut bad = good;
            bad[place] = byte;
            said(&bad).unwrap_err()
        };
        assert!(of(0, 0x1c).contains("type 12 in the metadata, expected an integer"));
        assert!(of(5, 0x1a).contains("type 10 in the metadata, expected a list"));
        assert!(of(6, 0x21).contains("type 1 in the metadata, expected a structure"));
        assert!(of(7, 0x13).contains("type 3 in the metadata, expected true or false"));
    }

    proptest! {
        #[test]
        fn skipping_rubbish_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200), wire_type in 0u8..16) {
            let mut cursor = Cursor::new(&bytes);
            let _ = cursor.skip(wire_type);
            prop_assert!(cursor.position() <= bytes.len());
        }
    }
}
