//! The operations that models are made of.
//!
//! Each has two forms with the same result: `plain`, a composition of candle's operations for every device and float
//! type, and a fused one with its own backward for f32 on the CPU, which keeps less in memory and is several times
//! faster. The tests compare the two, and the fused gradients with finite differences.
//!
//! Letters: B batch, N queries, M keys, D width, H heads.

mod attention;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod cuda;
mod elementwise;
mod kernels;
mod layer_norm;
mod linear;
mod matmul;
pub(crate) mod plain;
mod storage;
#[cfg(test)]
mod tests;

use candle_core::{D, DType, Tensor};

use crate::error::{Error, Result};
use crate::nn::dropout::KeepMask;

/// `x Wᵀ + b` over the last dimension: `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
///
/// # Errors
/// [`Error::Shape`] if the last dimension of `x` is not `in`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    expect_width("input of linear", x, weight.dim(1)?)?;
    if !is_fused(x) {
        return plain::linear(x, weight, bias);
    }
    let op = linear::Linear {
        needs_dx: x.track_op(),
        in_order: false,
    };
    Ok(x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

/// As [`linear`], but summed over the inner dimension strictly in its order, which the CPU's f32 form does as the
/// reference's convolution, bit for bit.
///
/// # Errors
/// As [`linear`].
pub fn linear_in_order(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    expect_width("input of linear", x, weight.dim(1)?)?;
    if !is_fused(x) {
        return plain::linear(x, weight, bias);
    }
    let op = linear::Linear {
        needs_dx: x.track_op(),
        in_order: true,
    };
    Ok(x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

/// Normalisation over the last dimension (biased variance, `eps` inside the root), then scale and shift.
///
/// # Errors
/// [`Error::Shape`] if the last dimension of `x` is not the width of `weight`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    expect_width("input of layer norm", x, weight.dim(0)?)?;
    if !is_fused(x) {
        return plain::layer_norm(x, weight, bias, eps);
    }
    let op = layer_norm::LayerNorm { eps: eps as f32 };
    Ok(x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

/// The exact Gaussian error linear unit, `x Φ(x)`.
///
/// # Errors
/// If the device is out of memory.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !is_fused(x) {
        return plain::gelu(x);
    }
    Ok(x.contiguous()?.apply_op1(elementwise::Gelu)?)
}

/// Drops single elements and scales the others.
///
/// # Errors
/// [`Error::Shape`] if the mask has another number of elements.
pub fn dropout(x: &Tensor, mask: &KeepMask) -> Result<Tensor> {
    expect_mask(x.elem_count(), mask)?;
    if !is_fused(x) {
        return plain::dropout(x, mask);
    }
    Ok(x.contiguous()?
        .apply_op1(elementwise::Dropout { mask: mask.clone() })?)
}

/// Multi-head attention of a sequence to itself: `qkv` `[B, N, 3 D]` holds queries, keys and values side by side, each
/// with its heads side by side. Returns `[B, N, D]`. `drop` acts on the attention weights `[B, H, N, N]`.
///
/// # Errors
/// [`Error::Shape`] if the width is not three times a multiple of `n_heads`, or the mask is not one of the weights.
pub fn self_attention(qkv: &Tensor, n_heads: usize, drop: Option<&KeepMask>) -> Result<Tensor> {
    let (batch, n, width) = qkv.dims3()?;
    if n_heads == 0 || !width.is_multiple_of(3 * n_heads) {
        return Err(Error::Shape {
            what: "packed queries, keys and values".to_owned(),
            got: qkv.dims().to_vec(),
            expected: format!("[B, N, 3 D] with D a multiple of {n_heads} heads"),
        });
    }
    drop.map_or(Ok(()), |mask| expect_mask(batch * n_heads * n * n, mask))?;
    if !is_fused(qkv) {
        return plain::self_attention(qkv, n_heads, drop);
    }
    let op = attention::SelfAttention {
        heads: n_heads,
        drop: drop.cloned(),
    };
    Ok(qkv.contiguous()?.apply_op1(op)?)
}

/// Multi-head attention of `q` `[B, N, D]` to keys and values `kv` `[B, M, 2 D]` (keys first). Returns `[B, N, D]`.
/// `drop` acts on the attention weights `[B, H, N, M]`.
///
/// # Errors
/// [`Error::Shape`] if the widths do not fit, or the mask is not one of the weights.
pub fn cross_attention(
    q: &Tensor,
    kv: &Tensor,
    n_heads: usize,
    drop: Option<&KeepMask>,
) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    expect_width("packed keys and values", kv, 2 * width)?;
    if n_heads == 0 || !width.is_multiple_of(n_heads) {
        return Err(Error::Shape {
            what: "queries".to_owned(),
            got: q.dims().to_vec(),
            expected: format!("[B, N, D] with D a multiple of {n_heads} heads"),
        });
    }
    drop.map_or(Ok(()), |mask| {
        expect_mask(batch * n_heads * n * kv.dim(D::Minus2)?, mask)
    })?;
    if !is_fused(q) {
        return plain::cross_attention(q, kv, n_heads, drop);
    }
    let op = attention::CrossAttention {
        heads: n_heads,
        drop: drop.cloned(),
    };
    Ok(q.contiguous()?.apply_op2(&kv.contiguous()?, op)?)
}

/// Whether the fused form exists for this tensor.
fn is_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

fn expect_width(what: &str, x: &Tensor, width: usize) -> Result<()> {
    if x.dims().last() == Some(&width) {
        return Ok(());
    }
    Err(Error::Shape {
        what: what.to_owned(),
        got: x.dims().to_vec(),
        expected: format!("[.., {width}]"),
    })
}

fn expect_mask(n_elements: usize, mask: &KeepMask) -> Result<()> {
    if mask.len() == n_elements {
        return Ok(());
    }
    Err(Error::Shape {
        what: "dropout mask".to_owned(),
        got: vec![mask.len()],
        expected: format!("{n_elements} elements"),
    })
}
