//! A matrix product with its bias, also of activated inputs.
//!
//! Letters: M rows, K inner dimension, N outputs.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels;
use super::matmul::{Manner, Precision, Start, View, ViewMut, multiply};
use super::storage::{slice, tensor_like, with_slice};
use crate::nn::dropout::KeepMask;

/// Rows of one task of the bias' sum. Fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 256;

/// Arguments: `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
pub(super) struct Linear {
    /// Whether `x` takes a gradient; patches do not.
    pub needs_dx: bool,
    /// Whether each output is one chain of fused multiply-adds over the inner dimension in its order, the bias coming
    /// last, as PyTorch's convolution computes a patch embedding. The product then is the same bit for bit; with
    /// values around 10, sums in another order are up to 2e-5 away.
    pub in_order: bool,
    pub precision: Precision,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (
            slice(x, x_layout)?,
            slice(weight, weight_layout)?,
            slice(bias, bias_layout)?,
        );
        let (n_out, n_in) = weight_layout.shape().dims2()?;
        let manner = Manner {
            one_chain: self.in_order,
            ..Manner::of(self.precision)
        };
        let y = forward(x, weight, bias, n_in, manner);
        let mut dims = x_layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = n_out;
        }
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n_out, n_in) = weight.dims2()?;
        let (dx, dweight, dbias) = with_slice(dy, |dy| {
            let dx = match self.needs_dx {
                false => None,
                true => Some(with_slice(weight, |weight| {
                    Ok(backward_input(dy, weight, n_in, n_out, self.precision))
                })?),
            };
            let dweight = with_slice(x, |x| {
                Ok(backward_weight(dy, x, n_in, n_out, self.precision))
            })?;
            Ok((dx, dweight, sum_of_rows(dy, n_out)))
        })?;
        let dx = dx.map(|dx| tensor_like(dx, x)).transpose()?;
        Ok((
            dx,
            Some(tensor_like(dweight, weight)?),
            Some(tensor_like(dbias, bias)?),
        ))
    }
}

/// Arguments: `h` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`: the linear map of `gelu(h)`, dropped by a mask.
///
/// What the map is applied to is not kept: the backward pass makes it from `h` again, in the pass over `h` that it needs
/// for the slope of the GELU anyway.
pub(super) struct GeluLinear {
    pub drop: Option<KeepMask>,
    pub precision: Precision,
}

/// Elements of one task: input and output together fit in a second-level cache.
const CHUNK: usize = 1 << 14;

impl GeluLinear {
    /// The mask over the elements from `start` on.
    fn keep(&self, start: usize, len: usize) -> Option<(&[u8], f32)> {
        let mask = self.drop.as_ref()?;
        Some((&mask.keep()[start..start + len], mask.scale()))
    }

    fn check(&self, n_elements: usize) -> Result<()> {
        match &self.drop {
            Some(mask) if mask.keep().len() != n_elements => {
                bail!(
                    "dropout mask of {} elements for {n_elements}",
                    mask.keep().len()
                )
            }
            _ => Ok(()),
        }
    }
}

impl CustomOp3 for GeluLinear {
    fn name(&self) -> &'static str {
        "gelu-linear"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        h_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (h, weight, bias) = (
            slice(h, h_layout)?,
            slice(weight, weight_layout)?,
            slice(bias, bias_layout)?,
        );
        self.check(h.len())?;
        let (n_out, n_in) = weight_layout.shape().dims2()?;
        let mut activated = vec![0f32; h.len()];
        h.par_chunks(CHUNK)
            .zip(activated.par_chunks_mut(CHUNK))
            .enumerate()
            .for_each(|(i, (h, y))| {
                kernels::gelu(h, y);
                if let Some((keep, scale)) = self.keep(i * CHUNK, y.len()) {
                    kernels::drop_in_place(y, keep, scale);
                }
            });
        let y = forward(&activated, weight, bias, n_in, Manner::of(self.precision));
        let mut dims = h_layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = n_out;
        }
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(
        &self,
        h: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n_out, n_in) = weight.dims2()?;
        let (dh, dweight, dbias) = with_slice(dy, |dy| {
            let mut dh = with_slice(weight, |weight| {
                Ok(backward_input(dy, weight, n_in, n_out, self.precision))
            })?;
            let dweight = with_slice(h, |h| {
                let mut activated = vec![0f32; h.len()];
                h.par_chunks(CHUNK)
                    .zip(activated.par_chunks_mut(CHUNK))
                    .zip(dh.par_chunks_mut(CHUNK))
                    .enumerate()
                    .for_each(|(i, ((h, y), dh))| {
                        kernels::gelu_both(h, y, dh);
                        if let Some((keep, scale)) = self.keep(i * CHUNK, y.len()) {
                            kernels::drop_in_place(y, keep, scale);
                            kernels::drop_in_place(dh, keep, scale);
                        }
                    });
                Ok(backward_weight(dy, &activated, n_in, n_out, self.precision))
            })?;
            Ok((dh, dweight, sum_of_rows(dy, n_out)))
        })?;
        Ok((
            Some(tensor_like(dh, h)?),
            Some(tensor_like(dweight, weight)?),
            Some(tensor_like(dbias, bias)?),
        ))
    }
}

/// `dy` `[M, N]` times `weight` `[N, K]`.
fn backward_input(
    dy: &[f32],
    weight: &[f32],
    n_in: usize,
    n_out: usize,
    precision: Precision,
) -> Vec<f32> {
    let rows = dy.len() / n_out;
    let mut dx = vec![0f32; rows * n_in];
    let out = ViewMut {
        data: &mut dx,
        row_stride: n_in,
    };
    multiply(
        View::new(dy, rows, n_out, n_out),
        View::new(weight, n_out, n_in, n_in),
        out,
        Start::Zero,
        Manner::of(precision),
    );
    dx
}

/// `dy` `[M, N]` transposed times `x` `[M, K]`.
fn backward_weight(
    dy: &[f32],
    x: &[f32],
    n_in: usize,
    n_out: usize,
    precision: Precision,
) -> Vec<f32> {
    let rows = dy.len() / n_out;
    let mut dweight = vec![0f32; n_out * n_in];
    let out = ViewMut {
        data: &mut dweight,
        row_stride: n_in,
    };
    multiply(
        View::new(dy, rows, n_out, n_out).t(),
        View::new(x, rows, n_in, n_in),
        out,
        Start::Zero,
        Manner::of(precision),
    );
    dweight
}

/// `[M, K]` times `[N, K]` transposed plus `[N]`.
fn forward(x: &[f32], weight: &[f32], bias: &[f32], n_in: usize, manner: Manner) -> Vec<f32> {
    let (rows, n_out) = (x.len() / n_in, bias.len());
    let mut y = vec![0f32; rows * n_out];
    let out = ViewMut {
        data: &mut y,
        row_stride: n_out,
    };
    let weight = View::new(weight, n_out, n_in, n_in);
    multiply(
        View::new(x, rows, n_in, n_in),
        weight.t(),
        out,
        Start::Bias(bias),
        manner,
    );
    y
}

/// In a fixed order, whatever the number of threads.
fn sum_of_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = rows
        .par_chunks(ROWS * width)
        .map(|rows| {
            let mut sum = vec![0f32; width];
            kernels::add_rows(rows, &mut sum);
            sum
        })
        .collect();
    let mut sum = vec![0f32; width];
    for part in &partial {
        kernels::add_rows(part, &mut sum);
    }
    sum
}
