//! Writes a checkpoint that `torch.load` reads, with `weights_only=True` too: a dict of `model` (an `OrderedDict` of f32
//! tensors) and `epoch`, which is what the reference's loaders ask for.
//!
//! The bytes depend on the tensors and the epoch alone.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::error::{Error, Result};

/// PyTorch maps storages from the file where they begin on such a multiple.
const ALIGNMENT: u16 = 64;
const FOLDER: &str = "checkpoint";

/// Writes f32 tensors on the CPU, in their order, and `epoch`, if known, to a new file.
///
/// # Errors
/// [`Error::Parameter`] for a tensor that is not f32, [`Error::Checkpoint`] if the file cannot be written.
pub(super) fn write<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    epoch: Option<u64>,
) -> Result<()> {
    let mut pickle = vec![0x80, 2, b'}', b'('];
    text(&mut pickle, "model");
    pickle.extend(b"ccollections\nOrderedDict\n)R(");
    let mut storages = Vec::new();
    for (name, tensor) in tensors {
        if tensor.dtype() != DType::F32 {
            let problem = format!("is {:?}, expected f32", tensor.dtype());
            return Err(Error::Parameter {
                name: name.to_owned(),
                problem,
            });
        }
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        text(&mut pickle, name);
        rebuild(&mut pickle, storages.len(), values.len(), tensor.dims());
        storages.push(
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>(),
        );
    }
    pickle.push(b'u');
    if let Some(epoch) = epoch {
        text(&mut pickle, "epoch");
        integer(&mut pickle, epoch);
    }
    pickle.extend(b"u.");

    write_zip(path, &pickle, &storages).map_err(|problem| Error::Checkpoint {
        path: path.to_owned(),
        problem,
    })
}

fn write_zip(path: &Path, pickle: &[u8], storages: &[Vec<u8>]) -> Result<(), String> {
    let file = File::create(path).map_err(|e| e.to_string())?;
    let mut zip = ZipWriter::new(BufWriter::new(file));
    let mut entry = |name: &str, bytes: &[u8]| -> Result<(), String> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(bytes.len() >= u32::MAX as usize);
        zip.start_file(format!("{FOLDER}/{name}"), options)
            .map_err(|e| e.to_string())?;
        zip.write_all(bytes).map_err(|e| e.to_string())
    };
    entry("data.pkl", pickle)?;
    entry("byteorder", b"little")?;
    for (i, storage) in storages.iter().enumerate() {
        entry(&format!("data/{i}"), storage)?;
    }
    entry("version", b"3\n")?;
    let mut out = zip.finish().map_err(|e| e.to_string())?;
    out.flush().map_err(|e| e.to_string())
}

/// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
fn rebuild(pickle: &mut Vec<u8>, key: usize, numel: usize, shape: &[usize]) {
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    text(pickle, &key.to_string());
    text(pickle, "cpu");
    integer(pickle, numel as u64);
    pickle.extend(b"tQ");
    integer(pickle, 0);
    let strides: Vec<usize> = (0..shape.len())
        .map(|d| shape[d + 1..].iter().product())
        .collect();
    for sizes in [shape, &strides] {
        pickle.push(b'(');
        for &size in sizes {
            integer(pickle, size as u64);
        }
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

/// A parameter's name or another short text.
fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

fn integer(pickle: &mut Vec<u8>, number: u64) {
    // LONG1, signed: eight bytes hold every size and epoch
    pickle.extend([0x8a, 8]);
    pickle.extend(number.min(i64::MAX as u64).to_le_bytes());
}
