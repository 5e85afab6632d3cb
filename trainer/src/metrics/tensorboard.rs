//! TensorBoard event files: TFRecord frames around hand-encoded `Event` messages with scalar summaries.
//!
//! Only scalars are needed, so the dozen bytes of protobuf are written by hand rather than through a
//! generated crate.
//!
//! Source: TensorFlow, `core/lib/io/record_writer.cc` (frames, masked CRC), `core/util/event.proto` and
//! `core/framework/summary.proto` (field numbers).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Protobuf wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Appends scalar events to one file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new event file in `dir` and removes older ones of this program there: the caller writes
    /// the whole run into the new one.
    pub fn create_in(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
            let path = entry.map_err(Error::io(dir))?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().ends_with(".pairquet"))
            {
                fs::remove_file(&path).map_err(Error::io(&path))?;
            }
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let path = dir.join(format!(
            "events.out.tfevents.{:010}.{:09}.pairquet",
            now.as_secs(),
            now.subsec_nanos()
        ));
        let file = File::create(&path).map_err(Error::io(&path))?;
        let mut writer = Self { path, file };
        let mut event = wall_time(now.as_secs_f64());
        put_bytes(&mut event, 3, b"brain.Event:2");
        writer.write_record(&event)?;
        Ok(writer)
    }

    /// Appends one event with these tags and values.
    ///
    /// * `time`: seconds since 1970.
    pub fn write_scalars(&mut self, step: u64, time: f64, scalars: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut field = Vec::new();
            put_bytes(&mut field, 1, tag.as_bytes());
            put_key(&mut field, 2, FIXED32);
            field.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &field);
        }
        let mut event = wall_time(time);
        put_key(&mut event, 2, VARINT);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.write_record(&event)
    }

    fn write_record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

/// CRC-32C, rotated and shifted as TFRecord files have it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// The start of every event: field 1, seconds since 1970.
fn wall_time(seconds: f64) -> Vec<u8> {
    let mut event = Vec::new();
    put_key(&mut event, 1, FIXED64);
    event.extend(seconds.to_le_bytes());
    event
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a file into its records, checking both checksums.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(
                u32::from_le_bytes(file[8..12].try_into().unwrap()),
                masked_crc(&file[..8])
            );
            let data = &file[12..12 + length];
            let crc = u32::from_le_bytes(file[12 + length..16 + length].try_into().unwrap());
            assert_eq!(crc, masked_crc(data));
            records.push(data.to_vec());
            file = &file[16 + length..];
        }
        records
    }

    #[derive(Debug, PartialEq)]
    enum Value {
        Number(u64),
        Bytes(Vec<u8>),
    }

    /// Parses one protobuf message into its fields.
    fn fields(mut message: &[u8]) -> Vec<(u64, Value)> {
        let varint = |message: &mut &[u8]| {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = message[0];
                *message = &message[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        };
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = varint(&mut message);
            let mut take = |n: usize| {
                let (head, tail) = message.split_at(n);
                message = tail;
                head.to_vec()
            };
            let value = match key & 7 {
                FIXED64 => Value::Bytes(take(8)),
                FIXED32 => Value::Bytes(take(4)),
                BYTES => {
                    let n = varint(&mut message) as usize;
                    let (head, tail) = message.split_at(n);
                    message = tail;
                    Value::Bytes(head.to_vec())
                }
                _ => Value::Number(varint(&mut message)),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    #[test]
    fn what_is_written_parses_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path()
                .join("events.out.tfevents.0000000001.old.pairquet"),
            b"x",
        )
        .unwrap();
        fs::write(dir.path().join("notes.txt"), b"kept").unwrap();
        let mut writer = EventWriter::create_in(dir.path()).unwrap();
        let scalars = [
            ("train/loss".to_string(), 0.5),
            ("train/lr".to_string(), 1e-4),
        ];
        writer.write_scalars(300, 1.5, &scalars).unwrap();
        let records = records(&fs::read(&writer.path).unwrap());
        assert_eq!(
            fields(&records[0])[1],
            (3, Value::Bytes(b"brain.Event:2".to_vec()))
        );
        let event = fields(&records[1]);
        assert_eq!(event[0], (1, Value::Bytes(1.5f64.to_le_bytes().to_vec())));
        assert_eq!(event[1], (2, Value::Number(300)));
        let Value::Bytes(summary) = &event[2].1 else {
            panic!("summary is a message")
        };
        let values: Vec<_> = fields(summary)
            .into_iter()
            .map(|(_, value)| match value {
                Value::Bytes(bytes) => fields(&bytes),
                Value::Number(_) => panic!("value is a message"),
            })
            .collect();
        assert_eq!(values[0][0], (1, Value::Bytes(b"train/loss".to_vec())));
        assert_eq!(
            values[0][1],
            (2, Value::Bytes(0.5f32.to_le_bytes().to_vec()))
        );
        assert_eq!(
            values[1][1],
            (2, Value::Bytes(1e-4f32.to_le_bytes().to_vec()))
        );
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "older event files are replaced, others kept"
        );
    }

    #[test]
    fn the_masked_checksum_is_tensorflows() {
        // The length of the 24-byte version record that opens TensorFlow's event files, and its checksum there.
        assert_eq!(
            masked_crc(&24u64.to_le_bytes()).to_le_bytes(),
            [0xa3, 0x7f, 0x4b, 0x22]
        );
    }
}
