//! Writes safetensors files whose bytes depend on the tensors and the metadata alone.
//!
//! The crate `safetensors` keeps metadata in a hash map, so with more than one entry its files differ from run to run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::DType;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::names::Tensors;
use crate::error::{Error, Result};

/// The header's length is padded to this, so that the values lie aligned.
const ALIGNMENT: usize = 8;

/// Writes f32 tensors by name to a new file, in the names' order.
///
/// # Errors
/// [`Error::Parameter`] for a tensor that is not f32, [`Error::Io`].
pub(super) fn write(
    path: &Path,
    tensors: &Tensors,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut at = 0;
    for (name, tensor) in tensors {
        if tensor.dtype() != DType::F32 {
            return Err(Error::Parameter {
                name: name.clone(),
                problem: format!("is {:?}, expected f32", tensor.dtype()),
            });
        }
        let end = at + tensor.elem_count() * size_of::<f32>();
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let mut out = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    write_all(&mut out, &header, tensors)
        .and_then(|()| out.flush())
        .map_err(Error::io(path))
}

fn write_all(out: &mut impl Write, header: &[u8], tensors: &Tensors) -> io::Result<()> {
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header)?;
    for tensor in tensors.values() {
        let values = tensor
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(io::Error::other)?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Passes bytes on and hashes them.
pub(super) struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W> Hashing<W> {
    pub(super) fn new(inner: W) -> Self {
        Hashing {
            inner,
            hasher: Sha256::new(),
        }
    }

    /// The writer, and the hash of all that went through in hexadecimal.
    pub(super) fn finish(self) -> (W, String) {
        (
            self.inner,
            self.hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn the_crate_reads_what_is_written() {
        let tensors: Tensors = [
            (
                "b".to_owned(),
                Tensor::arange(0f32, 6., &Device::Cpu)
                    .unwrap()
                    .reshape((2, 3))
                    .unwrap(),
            ),
            ("a\"ω".to_owned(), Tensor::new(-0f32, &Device::Cpu).unwrap()),
            (
                "none".to_owned(),
                Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap(),
            ),
        ]
        .into();
        let metadata = [
            ("format".to_owned(), "pt".to_owned()),
            ("x".to_owned(), "{\"y\": 1}".to_owned()),
        ]
        .into();
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), &tensors, &metadata).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["x"], "{\"y\": 1}");
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(read.tensor("b").unwrap().shape(), [2, 3]);
        assert_eq!(read.tensor("a\"ω").unwrap().data(), (-0f32).to_le_bytes());
        let f64s = [("x".to_owned(), Tensor::new(1f64, &Device::Cpu).unwrap())].into();
        assert!(write(file.path(), &f64s, &BTreeMap::new()).is_err());
    }

    #[test]
    fn hashes_are_of_everything() {
        let mut hashing = Hashing::new(Vec::new());
        hashing.write_all(b"a").unwrap();
        hashing.write_all(b"bc").unwrap();
        let (bytes, hash) = hashing.finish();
        assert_eq!(bytes, b"abc");
        assert_eq!(
            hash,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
