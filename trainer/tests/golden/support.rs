//! Finding the folder, reading it, comparing, and keeping count.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use trainer::models::Forward;
use trainer::nn::params::Params;
use trainer::optim::Gradients;
use trainer::tape;

/// Absolute tolerance of activations.
pub const ACTIVATION: f64 = 1e-5;
/// Absolute tolerance of losses.
pub const LOSS: f64 = 1e-6;
/// Tolerance of gradients, relative in the l2 norm of each tensor.
pub const GRADIENT: f64 = 1e-5;

/// The folder of a part with its manifest; `None`, said aloud, if it is not there.
pub fn part(name: &str) -> Option<(PathBuf, Value)> {
    let root = std::env::var_os("PAIRQUET_GOLDEN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let shared = std::env::var_os("PAIRQUET_SHARED_DIR").map(PathBuf::from);
            shared
                .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"))
                .join("golden")
        });
    let folder = root.join(name);
    if !folder.join("manifest.json").is_file() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: golden part {name} is not in {}",
            root.display()
        );
        return None;
    }
    let manifest = json(&folder.join("manifest.json"));
    Some((folder, manifest))
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files that a manifest lists, each with its entry.
pub fn files(manifest: &Value) -> Vec<(String, &Value)> {
    let files = manifest["files"]
        .as_array()
        .expect("a manifest lists its files");
    files
        .iter()
        .map(|entry| {
            (
                entry["file"]
                    .as_str()
                    .expect("a file has a name")
                    .to_owned(),
                entry,
            )
        })
        .collect()
}

/// The tensors of a file that no test has asked for yet.
pub struct Tensors(HashMap<String, Tensor>);

impl Tensors {
    /// Reads a safetensors file; its names must be those that the manifest's entry lists.
    pub fn read(path: &Path, entry: &Value, report: &mut Report) -> Tensors {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let listed = entry["tensors"]
            .as_object()
            .expect("a manifest lists its tensors");
        for name in listed.keys().filter(|name| !tensors.contains_key(*name)) {
            report.fail(format!("{}: {name} is listed but absent", path.display()));
        }
        Tensors(tensors)
    }

    /// Takes a tensor out.
    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }

    /// Takes a tensor out that must be there.
    pub fn expect(&mut self, name: &str) -> Tensor {
        self.take(name)
            .unwrap_or_else(|| panic!("{name} is missing"))
    }

    /// Takes out all tensors whose names start with `prefix`, without it, sorted.
    pub fn take_prefixed(&mut self, prefix: &str) -> Vec<(String, Tensor)> {
        let mut names: Vec<String> = self
            .0
            .keys()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect();
        names.sort();
        names
            .into_iter()
            .map(|name| (name[prefix.len()..].to_owned(), self.expect(&name)))
            .collect()
    }

    /// What nobody asked for is not understood.
    pub fn finish(self, report: &mut Report) {
        for name in self.0.keys() {
            report.fail(format!("{name}: a case that this test does not understand"));
        }
    }
}

/// Counts comparisons and collects failures, so that one run shows all of them.
#[derive(Default)]
pub struct Report {
    cases: usize,
    failures: Vec<String>,
}

impl Report {
    /// Notes a failure.
    pub fn fail(&mut self, message: String) {
        self.failures.push(message);
    }

    /// One comparison.
    pub fn check(&mut self, ok: bool, message: impl FnOnce() -> String) {
        self.cases += 1;
        if !ok {
            self.failures.push(message());
        }
    }

    /// Two numbers.
    pub fn number(&mut self, name: &str, got: f64, want: f64, tolerance: f64) {
        self.check((got - want).abs() <= tolerance, || {
            format!("{name}: {got}, expected {want} within {tolerance}")
        });
    }

    /// All elements of two tensors of the same shape, absolutely.
    pub fn tensor(&mut self, name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
        if got.dims() != want.dims() {
            return self.check(false, || {
                format!("{name}: shape {:?}, expected {:?}", got.dims(), want.dims())
            });
        }
        let worst = values(got)
            .iter()
            .zip(values(want))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, worst_of);
        self.check(worst <= tolerance, || {
            format!("{name}: off by {worst:e}, expected within {tolerance:e}")
        });
    }

    /// A gradient, relatively in its l2 norm; the key third of a packed bias, which is zero but for rounding,
    /// absolutely.
    pub fn gradient(&mut self, name: &str, got: &Tensor, want: &Tensor) {
        if got.dims() != want.dims() {
            return self.check(false, || {
                format!("{name}: shape {:?}, expected {:?}", got.dims(), want.dims())
            });
        }
        let (got, want) = (values(got), values(want));
        let packed = name.ends_with("qkv.bias") || name.ends_with("in_proj_bias");
        let third = got.len() / 3;
        let is_key = |i: usize| packed && (third..2 * third).contains(&i);
        let rest = || (0..got.len()).filter(|&i| !is_key(i));
        let distance = rest()
            .map(|i| (got[i] - want[i]).powi(2))
            .sum::<f64>()
            .sqrt();
        let length = rest().map(|i| want[i].powi(2)).sum::<f64>().sqrt();
        self.check(distance <= GRADIENT * length, || {
            format!(
                "{name}: off by {:e} of its length {length:e}",
                distance / length
            )
        });
        let keys = (0..got.len())
            .filter(|&i| is_key(i))
            .map(|i| (got[i] - want[i]).abs())
            .fold(0.0, worst_of);
        self.check(keys <= GRADIENT, || {
            format!("{name}: key third off by {keys:e}")
        });
    }

    /// Says how much was compared, and fails if anything was wrong.
    pub fn finish(self, part: &str) {
        let _ = writeln!(
            std::io::stderr(),
            "golden part {part}: {} cases",
            self.cases
        );
        assert!(self.cases > 0, "golden part {part} has no case");
        assert!(
            self.failures.is_empty(),
            "golden part {part}:\n{}",
            self.failures.join("\n")
        );
    }
}

/// The larger one, NaN counting as the largest.
fn worst_of(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

/// All elements, row-major.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// A scalar.
pub fn scalar(tensor: &Tensor) -> f64 {
    values(tensor)[0]
}

/// One forward pass with every parameter's gradient by name, on the tape that training uses.
pub fn gradients(
    params: &Params,
    forward: impl FnOnce() -> trainer::Result<Forward>,
) -> HashMap<String, Tensor> {
    let (forward, tape) = tape::record(forward).unwrap();
    let trainable = params.iter_trainable();
    let mut gradients =
        Gradients::new(trainable.map(|param| (param.name.clone(), param.var.clone())));
    gradients
        .backward(tape, &forward.loss, 1.0, &mut |_, _| Ok(()))
        .unwrap();
    let found = gradients.iter();
    found
        .map(|(name, gradient)| {
            let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
            (name.to_owned(), gradient.clone())
        })
        .collect()
}
