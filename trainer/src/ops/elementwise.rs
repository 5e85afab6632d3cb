//! GELU, dropout and residual sums, each one pass forward and one backward.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, InplaceOp2, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;

use super::kernels;
use super::storage::{slice, slice_mut, tensor_like, with_slice};
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

/// `x + branch`, the branch dropped by a mask over its elements or over its samples.
pub(super) struct AddBranch {
    pub drop: Option<KeepMask>,
}

impl AddBranch {
    /// Elements that share one entry of the mask.
    fn stretch(&self, n_elements: usize) -> Result<usize> {
        let n_entries = self
            .drop
            .as_ref()
            .map_or(n_elements, |mask| mask.keep().len());
        if n_entries == 0 || !n_elements.is_multiple_of(n_entries) {
            bail!("dropout mask of {n_entries} elements for a tensor of {n_elements}");
        }
        Ok(n_elements / n_entries)
    }
}

impl CustomOp2 for AddBranch {
    fn name(&self) -> &'static str {
        "add-branch"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        branch: &CpuStorage,
        branch_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, branch) = (slice(x, x_layout)?, slice(branch, branch_layout)?);
        if x.len() != branch.len() {
            bail!("sum of {} and {} elements", x.len(), branch.len());
        }
        let stretch = self.stretch(x.len())?;
        // Whole samples where the mask is over samples.
        let chunk = if stretch == 1 { CHUNK } else { stretch };
        let mut y = vec![0f32; x.len()];
        x.par_chunks(chunk)
            .zip(branch.par_chunks(chunk))
            .zip(y.par_chunks_mut(chunk))
            .enumerate()
            .for_each(|(i, ((x, branch), y))| match &self.drop {
                None => kernels::add(x, branch, y),
                Some(mask) if stretch == 1 => {
                    let keep = &mask.keep()[i * CHUNK..][..y.len()];
                    kernels::add_dropped(x, branch, keep, mask.scale(), y);
                }
                Some(mask) => {
                    let factor = f32::from(mask.keep()[i]) * mask.scale();
                    kernels::add_scaled(x, branch, factor, y);
                }
            });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        branch: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(mask) = &self.drop else {
            return Ok((Some(dy.clone()), Some(dy.clone())));
        };
        let stretch = self.stretch(branch.elem_count())?;
        let chunk = if stretch == 1 { CHUNK } else { stretch };
        let dbranch = with_slice(dy, |dy| {
            let mut dbranch = vec![0f32; dy.len()];
            dy.par_chunks(chunk)
                .zip(dbranch.par_chunks_mut(chunk))
                .enumerate()
                .for_each(|(i, (dy, dbranch))| {
                    if stretch == 1 {
                        let keep = &mask.keep()[i * CHUNK..][..dy.len()];
                        kernels::drop_into(dy, keep, mask.scale(), dbranch);
                    } else {
                        kernels::scale(dy, f32::from(mask.keep()[i]) * mask.scale(), dbranch);
                    }
                });
            Ok(dbranch)
        })?;
        Ok((Some(dy.clone()), Some(tensor_like(dbranch, x)?)))
    }
}

/// `y += x` in place.
pub(super) struct AddInto;

impl InplaceOp2 for AddInto {
    fn name(&self) -> &'static str {
        "add-into"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let x = slice(x, x_layout)?;
        let y = slice_mut(y, y_layout)?;
        if y.len() != x.len() {
            bail!("sum of {} and {} elements", y.len(), x.len());
        }
        y.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .for_each(|(y, x)| kernels::add_in_place(x, y));
        Ok(())
    }
}

/// `y = keep * y + (1 - keep) * x` in place.
pub(super) struct RunningMean {
    pub keep: f64,
}

impl InplaceOp2 for RunningMean {
    fn name(&self) -> &'static str {
        "running-mean"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let (y, x) = (slice_mut(y, y_layout)?, slice(x, x_layout)?);
        if y.len() != x.len() {
            bail!("mean of {} and {} elements", y.len(), x.len());
        }
        let (keep, take) = (self.keep as f32, (1.0 - self.keep) as f32);
        y.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .for_each(|(y, x)| kernels::running_mean(y, x, keep, take));
        Ok(())
    }
}
