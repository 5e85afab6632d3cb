//! Where tensors live: opening the device, and bringing batches to it.
//!
//! Threads of the CPU device: see [`prepare_process`].

#[cfg(feature = "cuda")]
pub mod cuda;
mod process;

pub use candle_core::Device;
pub use process::{cores, prepare_process};

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::Tensor;
use pipeline::loader::Batch;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ops::Precision;

/// Mean of each colour channel over ImageNet, on a scale of 0 to 1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of each colour channel over ImageNet, on a scale of 0 to 1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Opens `"cpu"`, `"cuda"`, `"cuda:N"`, or, for `"auto"`, the first GPU if this program can use one and the CPU if not.
///
/// # Errors
/// [`Error::Device`] if the name is none of these, if a GPU is asked of a program built without the feature
/// `cuda`, or if the GPU cannot be opened.
pub fn open(name: &str) -> Result<Device> {
    match parse(name)? {
        Wanted::Cpu => Ok(Device::Cpu),
        Wanted::Cuda(index) => open_cuda(name, index),
        Wanted::Auto => Ok(open_cuda(name, 0).unwrap_or(Device::Cpu)),
    }
}

/// The device of the name for one of several processes of a machine: a GPU without a number is that of the local rank.
///
/// `"auto"` is the same kind for all of them: with fewer GPUs than processes the rest get one that cannot be opened, which
/// is an error, and not the CPU, on which they would wait for the others in vain.
pub fn of_local_rank(name: &str, local_rank: usize) -> String {
    match name {
        "cuda" => format!("cuda:{local_rank}"),
        "auto" if sees_gpu() => format!("cuda:{local_rank}"),
        "auto" => "cpu".to_owned(),
        other => other.to_owned(),
    }
}

/// Checks a device's name without opening it.
///
/// # Errors
/// [`Error::Device`] if it is not a name that [`open`] knows.
pub fn check_name(name: &str) -> Result<()> {
    parse(name).map(|_| ())
}

/// A few words for the run's head: `cpu, 8 threads` or `cuda:0`.
pub fn describe(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => {
            format!("cpu, {} threads", candle_core::utils::get_num_threads())
        }
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The most memory held at one time: by tensors on a GPU, by the whole process otherwise. `None` where that is not known.
pub fn peak_memory_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return cuda::peak_memory_bytes(device).ok();
    }
    match device {
        Device::Cpu => pipeline::process::peak_memory_bytes(),
        _ => None,
    }
}

#[derive(Debug, PartialEq)]
enum Wanted {
    Cpu,
    Cuda(usize),
    Auto,
}

fn parse(name: &str) -> Result<Wanted> {
    let index = |text: &str| text.parse().ok().map(Wanted::Cuda);
    let wanted = match name {
        "cpu" => Some(Wanted::Cpu),
        "cuda" => Some(Wanted::Cuda(0)),
        "auto" => Some(Wanted::Auto),
        other => other.strip_prefix("cuda:").and_then(index),
    };
    let problem =
        || "is not a device, expected \"cpu\", \"cuda\", \"cuda:N\" or \"auto\"".to_string();
    wanted.ok_or_else(|| Error::Device {
        asked: name.to_string(),
        problem: problem(),
    })
}

#[cfg(feature = "cuda")]
fn open_cuda(name: &str, index: usize) -> Result<Device> {
    let refused = |source: candle_core::Error| Error::Device {
        asked: name.to_string(),
        problem: source.to_string(),
    };
    cuda::open(index).map_err(refused)
}

#[cfg(feature = "cuda")]
fn sees_gpu() -> bool {
    cuda::count().is_ok_and(|n_gpus| n_gpus > 0)
}

#[cfg(not(feature = "cuda"))]
fn sees_gpu() -> bool {
    false
}

/// Lets a GPU's products of f32 round their factors to TF32, or not, for the whole process. Everything else that a
/// precision says, [`crate::ops::with_precision`] does.
pub fn set_precision(precision: Precision) {
    #[cfg(feature = "cuda")]
    cuda::set_tf32(precision == Precision::Tf32);
    #[cfg(not(feature = "cuda"))]
    let _ = precision; // a CPU has no such products
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(name: &str, _index: usize) -> Result<Device> {
    let problem = "this program was built without GPU support; build it with `--features cuda`, or use \"cpu\"";
    Err(Error::Device {
        asked: name.to_string(),
        problem: problem.to_string(),
    })
}

/// Brings batches to a device as `[B, V, 3, H, W]` f32, normalised with ImageNet's mean and deviation.
///
/// Bytes cross to a GPU as they are, four times fewer than floats, and are normalised there. A GPU still computes with
/// one batch while the next one is on its way.
#[derive(Debug)]
pub struct Uploader {
    device: Device,
    #[cfg(feature = "cuda")]
    lane: Option<cuda::Lane>,
}

impl Uploader {
    /// # Errors
    /// If a GPU has no room for another stream.
    pub fn new(device: &Device) -> Result<Uploader> {
        Ok(Uploader {
            #[cfg(feature = "cuda")]
            lane: match device.is_cuda() {
                true => Some(cuda::Lane::new(device)?),
                false => None,
            },
            device: device.clone(),
        })
    }

    /// # Errors
    /// [`Error::Shape`] if the batch has not the bytes that its sizes say; if the device is out of memory.
    pub fn upload(&mut self, batch: &Batch) -> Result<Tensor> {
        let (b, v, size) = (batch.samples.len(), batch.n_views, batch.size);
        if batch.views.len() != b * v * size * size * 3 {
            let got = vec![batch.views.len()];
            return Err(Error::Shape {
                what: "batch".into(),
                got,
                expected: format!("{b} x {v} x {size} x {size} x 3 bytes"),
            });
        }
        #[cfg(feature = "cuda")]
        if let Some(lane) = &mut self.lane {
            return Ok(lane.upload(&batch.views, &[b, v, size, size, 3], DType::F32)?);
        }
        let planes = normalise(&batch.views, size);
        Ok(Tensor::from_vec(
            planes,
            (b, v, 3, size, size),
            &self.device,
        )?)
    }
}

/// Turns interleaved bytes into normalised planes, picture by picture, through a table of the 3 x 256 values.
fn normalise(pixels: &[u8], size: usize) -> Vec<f32> {
    let table: [[f32; 256]; 3] = std::array::from_fn(|channel| {
        std::array::from_fn(|value| {
            (value as f32 / 255.0 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        })
    });
    let plane = size * size;
    let mut out = vec![0.0; pixels.len()];
    out.par_chunks_mut(3 * plane)
        .zip(pixels.par_chunks(3 * plane))
        .for_each(|(out, pixels)| {
            for (channel, out) in out.chunks_mut(plane).enumerate() {
                for (value, pixel) in out.iter_mut().zip(pixels.as_chunks::<3>().0) {
                    *value = table[channel][usize::from(pixel[channel])];
                }
            }
        });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(parse("cuda:3").unwrap(), Wanted::Cuda(3));
        assert_eq!(parse("cuda").unwrap(), Wanted::Cuda(0));
        for wrong in ["gpu", "cuda:", "cuda:x", "CPU", ""] {
            let message = parse(wrong).unwrap_err().to_string();
            assert!(message.contains("expected"), "{message}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_without_the_feature_is_a_clear_error() {
        assert!(
            open("cuda")
                .unwrap_err()
                .to_string()
                .contains("--features cuda")
        );
        assert!(matches!(open("auto").unwrap(), Device::Cpu));
    }

    #[test]
    fn normalises_as_torchvision_does() {
        let pixels: Vec<u8> = (0..2 * 2 * 3).map(|i| i * 20).collect();
        let planes = normalise(&pixels, 2);
        for pixel in 0..4 {
            for channel in 0..3 {
                let value = f32::from(pixels[pixel * 3 + channel]) / 255.0;
                let expected = (value - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel];
                assert_eq!(planes[channel * 4 + pixel], expected);
            }
        }
    }
}
