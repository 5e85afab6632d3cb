//! The operations that models are made of.
//!
//! Letters: B batch, N queries, M keys, D width, H heads.

pub(crate) mod plain;

use candle_core::{D, Tensor};

use crate::error::{Error, Result};
use crate::nn::dropout::KeepMask;

/// `x Wᵀ + b` over the last dimension: `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
///
/// # Errors
/// [`Error::Shape`] if the last dimension of `x` is not `in`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    expect_width("input of linear", x, weight.dim(1)?)?;
    plain::linear(x, weight, bias)
}

/// Normalisation over the last dimension (biased variance, `eps` inside the root), then scale and shift.
///
/// # Errors
/// [`Error::Shape`] if the last dimension of `x` is not the width of `weight`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    expect_width("input of layer norm", x, weight.dim(0)?)?;
    plain::layer_norm(x, weight, bias, eps)
}

/// The exact Gaussian error linear unit, `x Φ(x)`.
///
/// # Errors
/// If the device is out of memory.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    plain::gelu(x)
}

/// Drops single elements and scales the others.
///
/// # Errors
/// [`Error::Shape`] if the mask has another number of elements.
pub fn dropout(x: &Tensor, mask: &KeepMask) -> Result<Tensor> {
    plain::dropout(x, mask)
}

/// Multi-head attention of a sequence to itself: `qkv` `[B, N, 3 D]` holds queries, keys and values side by side, each
/// with its heads side by side. Returns `[B, N, D]`. `drop` acts on the attention weights `[B, H, N, N]`.
///
/// # Errors
/// [`Error::Shape`] if the width is not three times a multiple of `n_heads`.
pub fn self_attention(qkv: &Tensor, n_heads: usize, drop: Option<&KeepMask>) -> Result<Tensor> {
    let width = qkv.dim(D::Minus1)?;
    if n_heads == 0 || !width.is_multiple_of(3 * n_heads) {
        return Err(Error::Shape {
            what: "packed queries, keys and values".to_owned(),
            got: qkv.dims().to_vec(),
            expected: format!("[B, N, 3 D] with D a multiple of {n_heads} heads"),
        });
    }
    plain::self_attention(qkv, n_heads, drop)
}

/// Multi-head attention of `q` `[B, N, D]` to keys and values `kv` `[B, M, 2 D]` (keys first). Returns `[B, N, D]`.
/// `drop` acts on the attention weights `[B, H, N, M]`.
///
/// # Errors
/// [`Error::Shape`] if the widths do not fit.
pub fn cross_attention(q: &Tensor, kv: &Tensor, n_heads: usize, drop: Option<&KeepMask>) -> Result<Tensor> {
    let width = q.dim(D::Minus1)?;
    expect_width("packed keys and values", kv, 2 * width)?;
    if n_heads == 0 || !width.is_multiple_of(n_heads) {
        return Err(Error::Shape {
            what: "queries".to_owned(),
            got: q.dims().to_vec(),
            expected: format!("[B, N, D] with D a multiple of {n_heads} heads"),
        });
    }
    plain::cross_attention(q, kv, n_heads, drop)
}

fn expect_width(what: &str, x: &Tensor, width: usize) -> Result<()> {
    if x.dims().last() == Some(&width) {
        return Ok(());
    }
    Err(Error::Shape { what: what.to_owned(), got: x.dims().to_vec(), expected: format!("[.., {width}]") })
}
