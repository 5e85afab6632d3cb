//! Operations over the ranks that gradients pass through.
//!
//! Each rank's loss is its share of the loss of the whole batch, which is their sum; so what a rank's loss gives to a
//! value that came from several ranks is summed over the ranks on its way back.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape, Storage, Tensor, bail};

use super::Ranks;
use crate::error::Result;

/// Of several ranks; one alone has nobody to ask, which is an error.
impl Ranks {
    /// The sum of the ranks' `x` (f32, any shape).
    ///
    /// # Errors
    /// What the communication library reports.
    pub fn sum(&self, x: &Tensor) -> Result<Tensor> {
        self.joined(x, Kind::Sum, self.start_sum(x)?.wait()?)
    }

    /// The ranks' rows `[b, ..]` (f32), one rank's after the other's: `[size * b, ..]`.
    ///
    /// # Errors
    /// What the communication library reports.
    pub fn gather_rows(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.detach().contiguous()?;
        let all = self
            .ask("rows of every rank", move |engine| engine.all_gather(&rows))?
            .wait()?;
        self.joined(x, Kind::Rows, all)
    }

    fn joined(&self, x: &Tensor, kind: Kind, result: Tensor) -> Result<Tensor> {
        let ranks = self.clone();
        let op = Joined {
            kind,
            result,
            ranks,
        };
        Ok(x.apply_op1(op)?)
    }
}

enum Kind {
    Sum,
    Rows,
}

/// Puts what the ranks made of `x` in the place of a function of `x`.
struct Joined {
    kind: Kind,
    result: Tensor,
    ranks: Ranks,
}

impl CustomOp1 for Joined {
    fn name(&self) -> &'static str {
        "over-ranks"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.result.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("over-ranks: the result is on another device than its argument")
        };
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.result.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("over-ranks: the result is on another device than its argument")
        };
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let sum = self
            .ranks
            .start_sum(grad)
            .and_then(super::Pending::wait)
            .map_err(candle_core::Error::wrap)?;
        Ok(Some(match self.kind {
            Kind::Sum => sum,
            Kind::Rows => {
                let n_rows = x.dim(0)?;
                sum.narrow(0, self.ranks.rank() * n_rows, n_rows)?
            }
        }))
    }
}
