//! Tensors to and from safetensors files, one tensor in memory at a time on the way out.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use super::FileSum;
use crate::error::{Error, Result};
use crate::files::sync;

/// The header's length is padded to this, so that the values lie aligned.
const ALIGNMENT: usize = 8;

/// Writes f32 tensors by name to a new file, in the names' order, so that its bytes depend on the tensors and the
/// metadata alone. (The crate `safetensors` keeps metadata in a hash map: with more than one entry its files differ from
/// run to run.)
///
/// # Errors
/// [`Error::Parameter`] for a tensor that is not f32, [`Error::Io`].
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
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

fn write_all(
    out: &mut impl Write,
    header: &[u8],
    tensors: &BTreeMap<String, Tensor>,
) -> io::Result<()> {
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

/// Writes f32 tensors durably and returns the file's size and checksum, read back from it.
pub(super) fn write_durably(path: &Path, tensors: Vec<(String, Tensor)>) -> Result<FileSum> {
    // `format: pt` is what Hugging Face's readers ask for.
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_tensors(path, &tensors.into_iter().collect(), &metadata)?;
    sync(path)?;
    FileSum::of(path)
}

/// Reads every f32 tensor of a safetensors file to a device.
///
/// # Errors
/// [`Error::Checkpoint`] for a tensor of another type, [`Error::SafeTensors`] for a broken file.
pub fn read_tensors(path: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut tensors = HashMap::with_capacity(file.len());
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            let problem = format!("tensor {name} is {:?}, expected f32", view.dtype());
            return Err(Error::Checkpoint {
                path: path.to_path_buf(),
                problem,
            });
        }
        let (words, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        tensors.insert(
            name.to_string(),
            Tensor::from_vec(values, view.shape(), device)?,
        );
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_reads_what_is_written() {
        let tensors: BTreeMap<_, _> = [
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
        write_tensors(file.path(), &tensors, &metadata).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["x"], "{\"y\": 1}");
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(read.tensor("b").unwrap().shape(), [2, 3]);
        assert_eq!(read.tensor("a\"ω").unwrap().data(), (-0f32).to_le_bytes());
        let f64s = [("x".to_owned(), Tensor::new(1f64, &Device::Cpu).unwrap())].into();
        assert!(write_tensors(file.path(), &f64s, &BTreeMap::new()).is_err());
    }
}
