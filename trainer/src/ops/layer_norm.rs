//! Layer normalisation in one pass forward and one backward.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::kernels;
use super::storage::{slice, tensor_like, with_slice};

/// Rows of one task. Fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 128;

/// Arguments: `x` `[.., D]`, `weight` `[D]`, `bias` `[D]`.
pub(super) struct LayerNorm {
    pub eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let chunk = ROWS * weight.len();
        let mut y = vec![0f32; x.len()];
        x.par_chunks(chunk)
            .zip(y.par_chunks_mut(chunk))
            .for_each(|(x, y)| kernels::layer_norm_rows(x, weight, bias, y, self.eps));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count();
        let chunk = ROWS * width;
        let (dx, dweight, dbias) = with_slice(x, |x| {
            with_slice(weight, |weight| {
                with_slice(dy, |dy| {
                    let mut dx = vec![0f32; x.len()];
                    let partial: Vec<(Vec<f32>, Vec<f32>)> = x
                        .par_chunks(chunk)
                        .zip(dy.par_chunks(chunk))
                        .zip(dx.par_chunks_mut(chunk))
                        .map(|((x, dy), dx)| {
                            let (mut dw, mut db) = (vec![0f32; width], vec![0f32; width]);
                            kernels::layer_norm_backward_rows(
                                x, weight, dy, dx, &mut dw, &mut db, self.eps,
                            );
                            (dw, db)
                        })
                        .collect();
                    let (mut dweight, mut dbias) = (vec![0f32; width], vec![0f32; width]);
                    for (dw, db) in &partial {
                        kernels::add_rows(dw, &mut dweight);
                        kernels::add_rows(db, &mut dbias);
                    }
                    Ok((dx, dweight, dbias))
                })
            })
        })?;
        Ok((
            Some(tensor_like(dx, x)?),
            Some(tensor_like(dweight, weight)?),
            Some(tensor_like(dbias, bias)?),
        ))
    }
}
