//! The operations as CUDA kernels (`kernels/*.cu`), forward and backward, for f32 and bf16 tensors.
//!
//! Each function here allocates results, launches, and puts the result into candle's graph with its backward pass; the
//! callers in [`super`] have checked shapes. Parameters (weights, biases, tokens, positions) are always f32 masters and
//! get f32 gradients; activations are f32 or bf16, and everything that is summed up is summed in f32. There are no
//! atomic additions: equal inputs give equal bits, at the price that gradients which are sums over rows take two passes
//! and attention's backward makes its scores twice.
//!
//! `abi` declares the kernels, `buffer` finds addresses and launches, `node` is the graph's side. The kernels compile as
//! plain C++ too (`kernels/emulation.h`), and the tests run them so, on tensors in main memory: the same functions as on
//! a GPU, against the CPU's operations.
#![allow(unsafe_code)] // Kernels are foreign functions that take addresses; each call says why its sizes are right.

mod abi;
pub(crate) mod activation;
pub(crate) mod attention;
mod buffer;
#[cfg(test)]
pub(crate) mod emulation;
pub(crate) mod loss;
mod node;
pub(crate) mod norm;
pub(crate) mod optim;
pub(crate) mod random;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;

use candle_core::{DType, Tensor};

/// Whether the kernels take this tensor.
pub(crate) fn takes(x: &Tensor) -> bool {
    let is_there = x.device().is_cuda();
    #[cfg(test)]
    let is_there = is_there || emulation::is_asked_for();
    is_there && matches!(x.dtype(), DType::F32 | DType::BF16)
}
