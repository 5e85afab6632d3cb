//! PyTorch's checkpoint files (`torch.save`): a zip of one pickle and one raw file a storage, or, before PyTorch 1.6,
//! pickles and raw storages one after the other. Reads tensors, runs nothing.
//!
//! Everything in the file is checked before it is used: sizes against the file's length, each tensor's reach (offset,
//! shape and strides) against its storage, checksums by the zip reader. Tensors come out contiguous, in the element type
//! of the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

use super::pickle::{Id, Pickle, Value};
use crate::error::{Error, Result};

/// Largest pickle that is read. A state dict takes about 100 bytes a tensor.
const MAX_PICKLE_BYTES: u64 = 256 << 20;
/// Storages kept in memory for the tensors that share them; beyond this they are read again.
const MAX_CACHED_BYTES: usize = 512 << 20;
/// A file may ask for this many times its own length of tensors (shared storages, expanded tensors), and no more.
const MAX_GROWTH: u64 = 4;
/// What a small file may ask for in any case.
const MIN_BUDGET_BYTES: u64 = 64 << 20;
/// 0x1950a86a20f9469cfc6c, the first pickle of the format before PyTorch 1.6, as the pickle has it.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Depth of calls around a tensor (`_rebuild_parameter(_rebuild_from_type_v2(..))`) that is followed.
const MAX_WRAPPERS: usize = 4;

/// Tensors in a file's order.
pub(crate) type NamedTensors = Vec<(String, Tensor)>;

/// An open checkpoint: its pickle is parsed, its tensors are read on demand.
pub(crate) struct PthFile {
    path: PathBuf,
    pickle: Pickle,
    storages: Storages,
    cache: HashMap<String, Rc<Vec<u8>>>,
    cached_bytes: usize,
    budget_bytes: u64,
}

/// A tensor as the pickle describes it, checked in itself but not yet against its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TensorSpec {
    storage: String,
    dtype: DType,
    /// Elements that the pickle says the storage has.
    numel: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl PthFile {
    /// Opens a checkpoint and parses its pickle.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Checkpoint`] if it is not a whole checkpoint of PyTorch.
    pub(crate) fn open(path: &Path) -> Result<PthFile> {
        let damaged = |problem: String| Error::Checkpoint {
            path: path.to_owned(),
            problem,
        };
        let mut file = File::open(path).map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut magic = Vec::new();
        file.by_ref()
            .take(2)
            .read_to_end(&mut magic)
            .map_err(Error::io(path))?;
        file.rewind().map_err(Error::io(path))?;
        let (pickle, storages) = match magic.as_slice() {
            b"PK" => open_zip(file, file_bytes).map_err(damaged)?,
            [0x80, _] => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(Error::io(path))?;
                open_legacy(bytes).map_err(damaged)?
            }
            _ => {
                return Err(damaged(
                    "neither a zip nor a pickle, expected a file that torch.save wrote".to_owned(),
                ));
            }
        };
        let budget_bytes = file_bytes.saturating_mul(MAX_GROWTH).max(MIN_BUDGET_BYTES);
        Ok(PthFile {
            path: path.to_owned(),
            pickle,
            storages,
            cache: HashMap::new(),
            cached_bytes: 0,
            budget_bytes,
        })
    }

    /// The file's values.
    pub(crate) fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// The tensors of the dict at `id` by name, in the file's order, and the names of its other entries.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor that cannot be read.
    pub(crate) fn tensors(&mut self, id: Id) -> Result<(NamedTensors, Vec<String>)> {
        let entries = self
            .pickle
            .entries(id)
            .ok_or_else(|| self.damaged("a dict of tensors was expected".to_owned()))?;
        let mut tensors = Vec::new();
        let mut others = Vec::new();
        for (key, value) in entries {
            let name = match self.pickle.get(key) {
                Value::Text(text) => text.clone(),
                Value::Int(number) => number.to_string(),
                other => format!("({})", other.kind()),
            };
            match self.tensor(value).map_err(|e| self.at_tensor(&name, e))? {
                Some(_) if self.pickle.text(key).is_none() => {
                    return Err(
                        self.damaged(format!("a tensor is filed under {name}, expected a text"))
                    );
                }
                Some(tensor) => tensors.push((name, tensor)),
                None => others.push(name),
            }
        }
        Ok((tensors, others))
    }

    /// The tensor at `id`, contiguous; none if the value is something else.
    ///
    /// # Errors
    /// A sentence if it is a tensor that cannot be read.
    pub(crate) fn tensor(&mut self, id: Id) -> Result<Option<Tensor>, String> {
        let Some(spec) = tensor_spec(&self.pickle, id)? else {
            return Ok(None);
        };
        let n_bytes = elements(&spec.shape)
            .and_then(|n| n.checked_mul(spec.dtype.size_in_bytes()))
            .ok_or_else(|| format!("shape {:?} has no size", spec.shape))?;
        self.spend(n_bytes as u64)?;
        let storage = self.storage(&spec.storage)?;
        let n_stored = storage.len() / spec.dtype.size_in_bytes();
        if spec.numel > n_stored {
            return Err(format!(
                "storage {} has {n_stored} elements, expected {}",
                spec.storage, spec.numel
            ));
        }
        let bytes = gather(&storage, &spec)?;
        Tensor::from_raw_buffer(&bytes, spec.dtype, &spec.shape, &Device::Cpu)
            .map(Some)
            .map_err(|e| e.to_string())
    }

    fn storage(&mut self, key: &str) -> Result<Rc<Vec<u8>>, String> {
        if let Some(bytes) = self.cache.get(key) {
            return Ok(Rc::clone(bytes));
        }
        let bytes = self.storages.read(key)?;
        self.spend(bytes.len() as u64)?;
        if self.cached_bytes > MAX_CACHED_BYTES {
            self.cache.clear();
            self.cached_bytes = 0;
        }
        self.cached_bytes += bytes.len();
        let bytes = Rc::new(bytes);
        self.cache.insert(key.to_owned(), Rc::clone(&bytes));
        Ok(bytes)
    }

    fn spend(&mut self, n_bytes: u64) -> Result<(), String> {
        self.budget_bytes = self.budget_bytes.checked_sub(n_bytes).ok_or_else(|| {
            format!("the tensors are more than {MAX_GROWTH} times as large as the file")
        })?;
        Ok(())
    }

    fn damaged(&self, problem: String) -> Error {
        Error::Checkpoint {
            path: self.path.clone(),
            problem,
        }
    }

    fn at_tensor(&self, name: &str, problem: String) -> Error {
        self.damaged(format!("tensor {name}: {problem}"))
    }
}

/// Where the raw values are.
enum Storages {
    /// One entry of the zip each, in `{folder}data/`.
    Zip {
        zip: Box<ZipArchive<BufReader<File>>>,
        folder: String,
        file_bytes: u64,
    },
    /// One after the other at the end of the file.
    Legacy {
        bytes: Vec<u8>,
        places: HashMap<String, Range<usize>>,
    },
}

impl Storages {
    fn read(&mut self, key: &str) -> Result<Vec<u8>, String> {
        match self {
            Storages::Zip {
                zip,
                folder,
                file_bytes,
            } => read_entry(zip, &format!("{folder}data/{key}"), *file_bytes),
            Storages::Legacy { bytes, places } => {
                let place = places
                    .get(key)
                    .ok_or_else(|| format!("no storage {key} in the file"))?;
                Ok(bytes[place.clone()].to_vec())
            }
        }
    }
}

fn open_zip(file: File, file_bytes: u64) -> Result<(Pickle, Storages), String> {
    let mut zip =
        ZipArchive::new(BufReader::new(file)).map_err(|e| format!("not a whole zip: {e}"))?;
    let mut folder = None;
    for name in zip.file_names() {
        let name = name.map_err(|e| e.to_string())?;
        if let Some(prefix) = name
            .strip_suffix("data.pkl")
            .filter(|p| p.is_empty() || p.ends_with('/'))
        {
            if folder.is_some() {
                return Err("two files named data.pkl in the zip, expected one".to_owned());
            }
            folder = Some(prefix.to_owned());
        }
    }
    let folder = folder.ok_or("no data.pkl in the zip")?;
    let bytes = read_entry(
        &mut zip,
        &format!("{folder}data.pkl"),
        MAX_PICKLE_BYTES.min(file_bytes),
    )?;
    let pickle = Pickle::parse(&bytes)?;
    if let Ok(order) = read_entry(&mut zip, &format!("{folder}byteorder"), 16)
        && order != b"little"
    {
        return Err("written on a big-endian machine, which is not supported".to_owned());
    }
    Ok((
        pickle,
        Storages::Zip {
            zip: Box::new(zip),
            folder,
            file_bytes,
        },
    ))
}

/// The format before PyTorch 1.6: pickles of a magic number, a version, the machine, the object and the storages' keys,
/// then each storage as its number of elements and its values.
fn open_legacy(bytes: Vec<u8>) -> Result<(Pickle, Storages), String> {
    let mut at = 0;
    let mut next = || -> Result<Pickle, String> {
        let pickle = Pickle::parse(&bytes[at..]).map_err(|e| format!("legacy format: {e}"))?;
        at += pickle.n_bytes;
        Ok(pickle)
    };
    let magic = next()?;
    if *magic.get(magic.root()) != Value::Bytes(LEGACY_MAGIC.to_vec()) {
        return Err("a pickle, but not one that torch.save wrote".to_owned());
    }
    next()?;
    let machine = next()?;
    if machine
        .entry(machine.root(), "little_endian")
        .map(|id| machine.get(id))
        != Some(&Value::Bool(true))
    {
        return Err("written on a big-endian machine, which is not supported".to_owned());
    }
    let pickle = next()?;
    let keys = next()?;
    let Value::List(key_ids) = keys.get(keys.root()) else {
        return Err("no list of storages".to_owned());
    };

    let mut widths = HashMap::new();
    for id in pickle.persistent() {
        let (key, dtype, _) = storage_parts(&pickle, id)?;
        widths.insert(key.to_owned(), dtype.size_in_bytes());
    }
    let mut places = HashMap::new();
    for &id in key_ids {
        let key = keys.text(id).ok_or("a storage's key that is not a text")?;
        let width = widths
            .get(key)
            .ok_or_else(|| format!("storage {key} belongs to no tensor"))?;
        let cut = || format!("the file ends in storage {key}");
        let numel = bytes
            .get(at..at + 8)
            .and_then(|n| <[u8; 8]>::try_from(n).ok())
            .ok_or_else(cut)?;
        let end = usize::try_from(i64::from_le_bytes(numel))
            .ok()
            .and_then(|n| n.checked_mul(*width));
        let end = end
            .and_then(|n| n.checked_add(at + 8))
            .filter(|&end| end <= bytes.len())
            .ok_or_else(cut)?;
        places.insert(key.to_owned(), at + 8..end);
        at = end;
    }
    Ok((pickle, Storages::Legacy { bytes, places }))
}

/// The uncompressed entry `name`, of at most `max_bytes`; its checksum is checked by the zip reader at the end.
fn read_entry(
    zip: &mut ZipArchive<BufReader<File>>,
    name: &str,
    max_bytes: u64,
) -> Result<Vec<u8>, String> {
    let entry = zip.by_name(name).map_err(|e| format!("{name}: {e}"))?;
    let n_bytes = entry.size();
    if n_bytes > max_bytes {
        return Err(format!(
            "{name}: {n_bytes} bytes, expected at most {max_bytes}"
        ));
    }
    let mut bytes = Vec::new();
    // One byte more than announced would be a lie of the directory; reading past the end also checks the checksum.
    entry
        .take(n_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("{name}: {e}"))?;
    if bytes.len() as u64 != n_bytes {
        return Err(format!("{name}: {} bytes, expected {n_bytes}", bytes.len()));
    }
    Ok(bytes)
}

/// Takes a tensor's description out of the calls that would rebuild it; none if the value is not a tensor.
fn tensor_spec(pickle: &Pickle, id: Id) -> Result<Option<TensorSpec>, String> {
    let mut id = id;
    for _ in 0..MAX_WRAPPERS {
        let Value::Call { callable, args, .. } = pickle.get(id) else {
            return Ok(None);
        };
        let Some(name) = pickle.global(*callable) else {
            return Ok(None);
        };
        let args = pickle
            .tuple(*args)
            .ok_or_else(|| format!("{name} without a tuple of arguments"))?;
        let too_few = || format!("{name} with {} arguments", args.len());
        match name.as_str() {
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                let [storage, offset, shape, strides, ..] = args else {
                    return Err(too_few());
                };
                return rebuild(pickle, *storage, *offset, *shape, *strides).map(Some);
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                id = *args.first().ok_or_else(too_few)?;
            }
            // (function, type, its arguments, state): the function is one of those above
            "torch._tensor._rebuild_from_type_v2" => {
                let [function, _, inner, ..] = args else {
                    return Err(too_few());
                };
                let name = pickle.global(*function).unwrap_or_default();
                if name != "torch._utils._rebuild_tensor_v2" {
                    return Err(format!(
                        "a tensor rebuilt by {name:?}, which is not supported"
                    ));
                }
                let inner = pickle.tuple(*inner).unwrap_or_default();
                let [storage, offset, shape, strides, ..] = inner else {
                    return Err(too_few());
                };
                return rebuild(pickle, *storage, *offset, *shape, *strides).map(Some);
            }
            _ if name.starts_with("torch._utils._rebuild") => {
                return Err(format!(
                    "{name} (a sparse, quantised or other special tensor) is not supported"
                ));
            }
            _ => return Ok(None),
        }
    }
    Err(format!("more than {MAX_WRAPPERS} wrappers around a tensor"))
}

fn rebuild(
    pickle: &Pickle,
    storage: Id,
    offset: Id,
    shape: Id,
    strides: Id,
) -> Result<TensorSpec, String> {
    let Value::Persistent(storage) = pickle.get(storage) else {
        return Err(format!(
            "a storage was expected, found {}",
            pickle.get(storage).kind()
        ));
    };
    let (key, dtype, numel) = storage_parts(pickle, *storage)?;
    let sizes = |id: Id, what: &str| -> Result<Vec<usize>, String> {
        let items = pickle
            .tuple(id)
            .ok_or_else(|| format!("{what} is {}, expected a tuple", pickle.get(id).kind()))?;
        items
            .iter()
            .map(|&i| {
                pickle
                    .size(i)
                    .ok_or_else(|| format!("{what} is not made of sizes"))
            })
            .collect()
    };
    let spec = TensorSpec {
        storage: key.to_owned(),
        dtype,
        numel,
        offset: pickle.size(offset).ok_or("an offset that is not a size")?,
        shape: sizes(shape, "the shape")?,
        strides: sizes(strides, "the strides")?,
    };
    if spec.shape.len() != spec.strides.len() {
        return Err(format!(
            "shape {:?} with strides {:?}",
            spec.shape, spec.strides
        ));
    }
    Ok(spec)
}

/// Key, element type and number of elements out of `("storage", class, key, place, number, ..)`.
fn storage_parts(pickle: &Pickle, id: Id) -> Result<(&str, DType, usize), String> {
    let parts = pickle.tuple(id).unwrap_or_default();
    let [tag, class, key, _, numel, ..] = parts else {
        return Err(format!("a storage of {} parts, expected 5", parts.len()));
    };
    if pickle.text(*tag) != Some("storage") {
        return Err("a persistent id that is not a storage".to_owned());
    }
    let class = pickle.global(*class).ok_or("a storage without a class")?;
    let key = pickle.text(*key).ok_or("a storage without a key")?;
    if !key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    {
        return Err(format!("storage key {key:?}, expected letters and digits"));
    }
    let numel = pickle.size(*numel).ok_or("a storage without a length")?;
    Ok((key, storage_dtype(&class)?, numel))
}

fn storage_dtype(class: &str) -> Result<DType, String> {
    match class {
        "torch.FloatStorage" => Ok(DType::F32),
        "torch.DoubleStorage" => Ok(DType::F64),
        "torch.HalfStorage" => Ok(DType::F16),
        "torch.BFloat16Storage" => Ok(DType::BF16),
        "torch.LongStorage" => Ok(DType::I64),
        "torch.IntStorage" => Ok(DType::I32),
        "torch.ShortStorage" => Ok(DType::I16),
        "torch.ByteStorage" | "torch.BoolStorage" => Ok(DType::U8),
        _ => Err(format!(
            "storage {class}, expected a float, integer or bool storage"
        )),
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    // An empty dimension makes the tensor empty however large the others are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// The tensor's elements in row-major order, as bytes.
fn gather(storage: &[u8], spec: &TensorSpec) -> Result<Vec<u8>, String> {
    let width = spec.dtype.size_in_bytes();
    let past = || {
        format!(
            "offset {}, shape {:?}, strides {:?} reach past a storage of {} elements",
            spec.offset, spec.shape, spec.strides, spec.numel
        )
    };
    let n = elements(&spec.shape).ok_or_else(past)?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let last = spec
        .shape
        .iter()
        .zip(&spec.strides)
        .try_fold(spec.offset, |at, (&d, &s)| {
            (d - 1)
                .checked_mul(s)
                .and_then(|reach| at.checked_add(reach))
        });
    if last.is_none_or(|last| last >= spec.numel) {
        return Err(past());
    }
    if is_contiguous(&spec.shape, &spec.strides) {
        return Ok(storage[spec.offset * width..(spec.offset + n) * width].to_vec());
    }
    let mut bytes = Vec::with_capacity(n * width);
    let mut index = vec![0usize; spec.shape.len()];
    let mut at = spec.offset;
    for _ in 0..n {
        bytes.extend_from_slice(&storage[at * width..(at + 1) * width]);
        // the next index in row-major order, and its place: like an odometer, from the last dimension
        for d in (0..index.len()).rev() {
            index[d] += 1;
            at += spec.strides[d];
            if index[d] < spec.shape[d] {
                break;
            }
            at -= spec.strides[d] * spec.shape[d];
            index[d] = 0;
        }
    }
    Ok(bytes)
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (&d, &s) in shape.iter().zip(strides).rev() {
        // the stride of a dimension of one element says nothing
        if d != 1 && s != expected {
            return false;
        }
        expected *= d;
    }
    true
}

#[cfg(test)]
mod tests;
