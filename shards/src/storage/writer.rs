//! Objects that are written piece by piece, to whatever kind of store.

use std::io::Write;

use sha2::{Digest, Sha256};

use super::local::FileWriter;
use super::upload::Upload;
use crate::error::Result;
use crate::hex::hex;

/// What a committed object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the object.
    pub bytes: u64,
    /// SHA-256 of the object in lower-case hexadecimal digits.
    pub sha256: String,
}

/// Writes one object. Without [`commit`](Self::commit) nothing remains of it.
pub struct ObjectWriter {
    sink: Sink,
    hasher: Sha256,
    bytes: u64,
}

pub(super) enum Sink {
    File(FileWriter),
    Upload(Upload),
}

impl ObjectWriter {
    pub(super) fn new(sink: Sink) -> Self {
        ObjectWriter {
            sink,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// Makes the object appear under its name, in place of one that may be there.
    ///
    /// # Errors
    /// The store's error; then nothing has appeared.
    pub fn commit(self) -> Result<Written> {
        match self.sink {
            Sink::File(file) => file.commit()?,
            Sink::Upload(upload) => upload.commit()?,
        }
        Ok(Written {
            bytes: self.bytes,
            sha256: hex(&self.hasher.finalize()),
        })
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = match &mut self.sink {
            Sink::File(file) => file.write(bytes)?,
            Sink::Upload(upload) => upload.write(bytes)?,
        };
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.sink {
            Sink::File(file) => file.flush(),
            Sink::Upload(_) => Ok(()), // a part that is not full cannot be sent before the last one
        }
    }
}
