//! Tensors to and from safetensors files, one tensor in memory at a time on the way out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, View};

use super::FileSum;
use crate::error::{Error, Result};
use crate::files::sync;

/// One f32 tensor whose bytes are made when the file gets to it.
struct Lazy {
    tensor: Tensor,
    bytes: usize,
}

impl View for Lazy {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // The trait has no room for an error; a tensor that cannot be read comes out empty, which leaves the file
        // shorter than its header says and is caught by the check after writing.
        let values = self
            .tensor
            .flatten_all()
            .and_then(|flat| flat.to_vec1::<f32>())
            .unwrap_or_default();
        Cow::Owned(
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}

/// Writes f32 tensors durably and returns the file's size and checksum, read back from it.
pub(super) fn write(path: &Path, tensors: Vec<(String, Tensor)>) -> Result<FileSum> {
    let mut views = Vec::with_capacity(tensors.len());
    let mut data_bytes = 0;
    for (name, tensor) in tensors {
        if tensor.dtype() != DType::F32 {
            let problem = format!("is {:?}, expected f32", tensor.dtype());
            return Err(Error::Parameter { name, problem });
        }
        let bytes = tensor.elem_count() * size_of::<f32>();
        data_bytes += bytes as u64;
        views.push((name, Lazy { tensor, bytes }));
    }
    // `format: pt` is what Hugging Face's readers ask for.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), path)?;
    sync(path)?;
    let sum = FileSum::of(path)?;
    if sum.bytes < data_bytes {
        let problem = format!(
            "has {} bytes after writing, expected at least {data_bytes}",
            sum.bytes
        );
        return Err(Error::Checkpoint {
            path: path.to_path_buf(),
            problem,
        });
    }
    Ok(sum)
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
