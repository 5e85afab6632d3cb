//! What happens to all parameters between two passes, in one launch each: norms and clipping, AdamW, running means.

use candle_core::{DType, Device, Result, Tensor, bail};

pub(crate) use super::abi::Step;
use super::buffer::{Launch, Output, address, address_mut, none};

/// 64-bit words of one entry of the table that the kernels read: `struct Parameter` of `kernels/optim.cu`.
const ENTRY_WORDS: usize = 6;

/// One parameter of a table; everything f32 and contiguous.
pub(crate) struct Entry<'a> {
    pub weight: Option<&'a Tensor>,
    /// The first moment, or a running mean.
    pub exp_avg: Option<&'a Tensor>,
    pub exp_avg_sq: Option<&'a Tensor>,
    /// Without one, the parameter is left as it is.
    pub gradient: Option<&'a Tensor>,
    /// What weight decay leaves of it.
    pub keep: f32,
}

/// How parameters of these sizes are split over the blocks of a launch.
#[derive(Debug)]
pub(crate) struct Split {
    sizes: Vec<usize>,
    device: Device,
    /// `[parts, 2]`: which parameter, and the first element.
    parts: Tensor,
    n_parts: usize,
    /// `[parameters + 1]`: the first part of each.
    first_parts: Tensor,
}

/// What [`Split::norms`] leaves on the device.
#[derive(Debug)]
pub(crate) struct Norms {
    /// Each gradient's sum of squares, f64; 0 where there is none.
    pub squares: Tensor,
    /// The global norm, and the factor that clips: NaN if the norm is not finite.
    pub norm_and_factor: Tensor,
}

impl Split {
    pub fn new(sizes: Vec<usize>, device: &Device) -> Result<Split> {
        let launch = Launch::on(device)?;
        // SAFETY: a constant.
        let elements = unsafe { (launch.kernels.pairquet_part_elements)() } as usize;
        let (mut parts, mut first_parts) = (Vec::new(), vec![0i64]);
        for (parameter, &size) in sizes.iter().enumerate() {
            for first in (0..size).step_by(elements) {
                parts.extend([parameter as i64, first as i64]);
            }
            first_parts.push(parts.len() as i64 / 2);
        }
        let n_parts = parts.len() / 2;
        Ok(Split {
            n_parts,
            parts: Tensor::from_vec(parts, (n_parts, 2), device)?,
            first_parts: Tensor::from_vec(first_parts, sizes.len() + 1, device)?,
            sizes,
            device: device.clone(),
        })
    }

    /// The norms of the gradients, and what clips them to `max_norm` (or not, if there is none).
    pub fn norms(&self, gradients: &[Option<&Tensor>], max_norm: Option<f64>) -> Result<Norms> {
        let entries = gradients.iter().map(|&gradient| Entry {
            weight: None,
            exp_avg: None,
            exp_avg_sq: None,
            gradient,
            keep: 1.0,
        });
        let table = self.table(entries)?;
        let new = |n: usize, dtype| Output::new(n, dtype, &self.device);
        let mut squares = new(self.n_parts, DType::F64)?;
        let mut sums = new(self.sizes.len(), DType::F64)?;
        let mut norm_and_factor = new(2, DType::F32)?;
        let (table_in, parts, first_parts) = (
            address(&table)?,
            address(&self.parts)?,
            address(&self.first_parts)?,
        );
        let (squares_out, sums_out, norm_out) = (
            squares.address()?,
            sums.address()?,
            norm_and_factor.address()?,
        );
        Launch::on(&self.device)?.run("gradient norms", |kernels, stream| {
            // SAFETY: every address in the table is of a tensor that is borrowed here, and has the size of its entry.
            unsafe {
                (kernels.pairquet_gradient_norms)(
                    table_in,
                    parts,
                    first_parts,
                    self.sizes.len() as i64,
                    self.n_parts as i64,
                    max_norm.unwrap_or(0.0) as f32,
                    squares_out,
                    sums_out,
                    norm_out,
                    stream,
                )
            }
        })?;
        Ok(Norms {
            squares: sums.into_tensor(),
            norm_and_factor: norm_and_factor.into_tensor(),
        })
    }

    /// One step of AdamW in place. With `norms`, gradients are clipped, and nothing changes if they are not finite.
    pub fn adamw<'a>(
        &self,
        entries: impl Iterator<Item = Entry<'a>>,
        step: Step,
        norms: Option<&Norms>,
    ) -> Result<()> {
        let table = self.table(entries)?;
        let (table_in, parts) = (address(&table)?, address(&self.parts)?);
        let factor = match norms {
            Some(norms) => address(&norms.norm_and_factor)?,
            None => none(),
        };
        Launch::on(&self.device)?.run("adamw", |kernels, stream| {
            // SAFETY: as for the norms; candle's graph holds no weight while the optimizer runs, and all that comes
            // later on the stream sees the new values.
            unsafe {
                (kernels.pairquet_adamw)(
                    table_in,
                    parts,
                    self.n_parts as i64,
                    &step,
                    factor,
                    stream,
                )
            }
        })
    }

    /// `mean = decay * mean + (1 - decay) * weight` in place.
    pub fn running_mean<'a>(
        &self,
        means_and_weights: impl Iterator<Item = (&'a Tensor, &'a Tensor)>,
        decay: f64,
    ) -> Result<()> {
        let table = self.table(means_and_weights.map(|(mean, weight)| Entry {
            weight: Some(weight),
            exp_avg: Some(mean),
            exp_avg_sq: None,
            gradient: None,
            keep: 1.0,
        }))?;
        let (table_in, parts) = (address(&table)?, address(&self.parts)?);
        Launch::on(&self.device)?.run("running mean", |kernels, stream| {
            // SAFETY: as for AdamW.
            unsafe {
                (kernels.pairquet_running_mean)(
                    table_in,
                    parts,
                    self.n_parts as i64,
                    decay as f32,
                    (1.0 - decay) as f32,
                    stream,
                )
            }
        })
    }

    /// The table of one launch on the device.
    fn table<'a>(&self, entries: impl Iterator<Item = Entry<'a>>) -> Result<Tensor> {
        let mut words = Vec::with_capacity(self.sizes.len() * ENTRY_WORDS);
        for (entry, &size) in entries.zip(&self.sizes) {
            for tensor in [
                entry.weight,
                entry.exp_avg,
                entry.exp_avg_sq,
                entry.gradient,
            ] {
                words.push(match tensor {
                    None => 0,
                    Some(tensor) if (tensor.elem_count(), tensor.dtype()) != (size, DType::F32) => {
                        bail!(
                            "a parameter's tensor is {:?} of {} elements, expected f32 of {size}",
                            tensor.dtype(),
                            tensor.elem_count()
                        )
                    }
                    Some(tensor) => address_mut::<f32>(tensor)? as i64,
                });
            }
            words.extend([size as i64, i64::from(entry.keep.to_bits())]);
        }
        let n = words.len() / ENTRY_WORDS;
        if n != self.sizes.len() {
            bail!("{n} parameters, expected {}", self.sizes.len());
        }
        Tensor::from_vec(words, (n, ENTRY_WORDS), &self.device)
    }
}
