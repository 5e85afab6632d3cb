//! GELU and dropout, each one pass forward and one backward.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels;
use super::storage::{slice, tensor_like, with_slice};
use crate::nn::dropout::KeepMask;

/// Elements of one task: input and output together fit in a second-level cache.
const CHUNK: usize = 1 << 14;

/// The exact GELU.
pub(super) struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut y = vec![0f32; x.len()];
        x.par_chunks(CHUNK)
            .zip(y.par_chunks_mut(CHUNK))
            .for_each(|(x, y)| kernels::gelu(x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice(x, |x| {
            with_slice(dy, |dy| {
                let mut dx = vec![0f32; x.len()];
                x.par_chunks(CHUNK)
                    .zip(dy.par_chunks(CHUNK))
                    .zip(dx.par_chunks_mut(CHUNK))
                    .for_each(|((x, dy), dx)| kernels::gelu_backward(x, dy, dx));
                Ok(dx)
            })
        })?;
        Ok(Some(tensor_like(dx, x)?))
    }
}

/// Dropout under a mask that was drawn before.
pub(super) struct Dropout {
    pub mask: KeepMask,
}

impl Dropout {
    fn apply(&self, x: &[f32]) -> Result<Vec<f32>> {
        let keep = self.mask.keep();
        if keep.len() != x.len() {
            bail!(
                "dropout mask of {} elements for a tensor of {}",
                keep.len(),
                x.len()
            );
        }
        let mut y = vec![0f32; x.len()];
        x.par_chunks(CHUNK)
            .zip(keep.par_chunks(CHUNK))
            .zip(y.par_chunks_mut(CHUNK))
            .for_each(|((x, keep), y)| kernels::drop_into(x, keep, self.mask.scale(), y));
        Ok(y)
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((
            CpuStorage::F32(self.apply(slice(x, layout)?)?),
            layout.shape().clone(),
        ))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(tensor_like(with_slice(dy, |dy| self.apply(dy))?, x)?))
    }
}
