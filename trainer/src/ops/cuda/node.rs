//! A result of kernels as a piece of the tape, or a node of candle's graph.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage,
    Tensor, bail,
};

use super::buffer::Output;
use crate::tape;

/// From the result and its gradient to one gradient for each input, `None` for those that take none.
type Backward = dyn Fn(&Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// Whether backward looks at the result, which a tape otherwise need not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    Nothing,
    Result,
}

/// Puts `output`, which was made from one to three `inputs`, on the tape or into the graph.
pub(super) fn node(
    name: &'static str,
    inputs: &[&Tensor],
    output: Output,
    keeps: Keeps,
    backward: impl Fn(&Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if tape::is_recording() {
        let y = output.into_tensor();
        let kept = (keeps == Keeps::Result).then(|| y.clone());
        tape::push(&y, inputs, false, move |dy| {
            let dy = dy.contiguous()?;
            Ok(backward(kept.as_ref().unwrap_or(&dy), &dy)?)
        });
        return Ok(y);
    }
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(output.into_tensor());
    }
    let op = Node {
        name,
        output: Mutex::new(Some(output)),
        backward: Box::new(backward),
    };
    match inputs {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("{name} of {} tensors, expected one to three", inputs.len()),
    }
}

struct Node {
    name: &'static str,
    /// Until candle asks for it, right away.
    output: Mutex<Option<Output>>,
    backward: Box<Backward>,
}

impl Node {
    fn take(&self) -> Result<(Storage, Shape)> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        match output.take() {
            Some(output) => Ok((output.storage, output.shape)),
            None => bail!("{} was computed a second time", self.name),
        }
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!(
                "{}: result and arguments are on different devices",
                self.name
            ),
        }
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!(
                "{}: result and arguments are on different devices",
                self.name
            ),
        }
    }

    fn gradients<const N: usize>(&self, y: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; N]> {
        match (self.backward)(y, &dy.contiguous()?)?.try_into() {
            Ok(gradients) => Ok(gradients),
            Err(_) => bail!("{}: expected {N} gradients", self.name),
        }
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients(y, dy)?;
        Ok(a)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients(y, dy)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients(y, dy)?;
        Ok((a, b, c))
    }
}
