//! The reconstruction loss: mean squared error of predicted patches, the targets normalised on the way.
//!
//! Letters: M predicted patches, N all patches, P values of a patch.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels;
use super::storage::{slice, tensor_like, with_slice};
use crate::loss::NORM_PIX_EPS;

/// Patches of one task.
const ROWS: usize = 32;

/// Arguments: predictions `[M, P]` and patches `[.., P]` of N rows, which take no gradient; result: a scalar.
pub(super) struct PatchMse {
    /// The row of the patches that each prediction is of, M of them.
    pub rows: Vec<u32>,
    pub normalised: bool,
}

impl PatchMse {
    /// `(row, inverse deviation, mean)` of the target of one prediction.
    fn target<'a>(&self, patches: &'a [f32], row: u32, width: usize) -> (&'a [f32], f32, f32) {
        let target = &patches[row as usize * width..][..width];
        if !self.normalised {
            return (target, 1.0, 0.0);
        }
        let (inverse_std, mean) = kernels::unbiased_statistics(target, NORM_PIX_EPS as f32);
        (target, inverse_std, mean)
    }

    fn check(&self, pred: usize, patches: usize, width: usize) -> Result<()> {
        let n_rows = patches / width.max(1);
        if pred != self.rows.len() * width || self.rows.iter().any(|&row| row as usize >= n_rows) {
            bail!(
                "{} predicted patches of {width} values: {pred} values, {n_rows} patches",
                self.rows.len()
            );
        }
        Ok(())
    }
}

impl CustomOp2 for PatchMse {
    fn name(&self) -> &'static str {
        "patch-mse"
    }

    fn cpu_fwd(
        &self,
        pred: &CpuStorage,
        pred_layout: &Layout,
        patches: &CpuStorage,
        patches_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = pred_layout.shape().dims2()?;
        let (pred, patches) = (slice(pred, pred_layout)?, slice(patches, patches_layout)?);
        self.check(pred.len(), patches.len(), width)?;
        let sums: Vec<f64> = pred
            .par_chunks(ROWS * width)
            .zip(self.rows.par_chunks(ROWS))
            .map(|(pred, rows)| {
                let errors = pred.chunks_exact(width).zip(rows).map(|(pred, &row)| {
                    let (target, inverse_std, mean) = self.target(patches, row, width);
                    f64::from(kernels::squared_error(pred, target, inverse_std, mean))
                });
                errors.sum()
            })
            .collect();
        let mean = sums.iter().sum::<f64>() / pred.len() as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        pred: &Tensor,
        patches: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = pred.dim(1)?;
        let factor = (2.0 / pred.elem_count() as f64 * f64::from(dy.to_scalar::<f32>()?)) as f32;
        let dpred = with_slice(pred, |pred| {
            with_slice(patches, |patches| {
                let mut dpred = vec![0f32; pred.len()];
                dpred
                    .par_chunks_mut(ROWS * width)
                    .zip(pred.par_chunks(ROWS * width))
                    .zip(self.rows.par_chunks(ROWS))
                    .for_each(|((dpred, pred), rows)| {
                        let predictions =
                            dpred.chunks_exact_mut(width).zip(pred.chunks_exact(width));
                        for ((dpred, pred), &row) in predictions.zip(rows) {
                            let (target, inverse_std, mean) = self.target(patches, row, width);
                            kernels::scaled_error(pred, target, inverse_std, mean, factor, dpred);
                        }
                    });
                Ok(dpred)
            })
        })?;
        Ok((Some(tensor_like(dpred, pred)?), None))
    }
}
