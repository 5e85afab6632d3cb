//! The operations as compositions of candle's own, for every device and float type: the definition that the fused
//! ones are tested against.
//!
//! `candle_nn::LayerNorm` and `ops::softmax_last_dim` must never appear here: they have no backward and cut the
//! gradient silently.

use candle_core::{D, Tensor};
use candle_nn::ops::softmax;

use crate::error::Result;
use crate::loss::pixel_targets;
use crate::nn::dropout::KeepMask;

pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let n_in = weight.dim(1)?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = weight.dim(0)?;
    }
    // Two dimensions: a batched product would sum one weight gradient per batch element.
    let rows = x.reshape(((), n_in))?;
    Ok(rows
        .matmul(&weight.t()?)?
        .broadcast_add(bias)?
        .reshape(dims)?)
}

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(var + eps)?.sqrt()?)?;
    Ok(normed.broadcast_mul(weight)?.broadcast_add(bias)?)
}

pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu_erf()?)
}

pub(crate) fn dropout(x: &Tensor, mask: &KeepMask) -> Result<Tensor> {
    Ok((x * mask.factors(x.dims(), x)?)?)
}

pub(crate) fn gelu_linear(
    h: &Tensor,
    drop: Option<&KeepMask>,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let activated = gelu(h)?;
    let activated = match drop {
        Some(mask) => dropout(&activated, mask)?,
        None => activated,
    };
    linear(&activated, weight, bias)
}

pub(crate) fn add(x: &Tensor, branch: &Tensor, drop: Option<&KeepMask>) -> Result<Tensor> {
    let Some(mask) = drop else {
        return Ok((x + branch)?);
    };
    let mut shape = branch.dims().to_vec();
    if mask.keep().len() != branch.elem_count() {
        shape.iter_mut().skip(1).for_each(|size| *size = 1);
    }
    Ok((x + branch.broadcast_mul(&mask.factors(&shape, branch)?)?)?)
}

pub(crate) fn class_in_front(
    tokens: &Tensor,
    class: &Tensor,
    positions: &Tensor,
) -> Result<Tensor> {
    let (batch, _, width) = tokens.dims3()?;
    let class = class.broadcast_as((batch, 1, width))?;
    Ok(Tensor::cat(&[&class, tokens], 1)?.broadcast_add(positions)?)
}

/// A product with a matrix of zeros and ones: exact, and its backward is again a product, where gather and scatter have
/// slow or missing ones.
pub(crate) fn restore(
    tokens: &Tensor,
    mask_token: &Tensor,
    positions: &Tensor,
    places: &[u32],
) -> Result<Tensor> {
    let (batch, n_tokens, width) = tokens.dims3()?;
    let n_patches = places.len() / batch;
    let (rows, columns) = (1 + n_patches, n_tokens + 1);
    let mut ones = vec![0f32; batch * rows * columns];
    for (matrix, places) in ones
        .chunks_exact_mut(rows * columns)
        .zip(places.chunks_exact(n_patches))
    {
        matrix[0] = 1.0;
        for (row, &place) in matrix.chunks_exact_mut(columns).skip(1).zip(places) {
            row[(1 + place as usize).min(n_tokens)] = 1.0;
        }
    }
    let ones = Tensor::from_vec(ones, (batch, rows, columns), tokens.device())?
        .to_dtype(tokens.dtype())?;
    let mask_token = mask_token.broadcast_as((batch, 1, width))?;
    let restored = ones.matmul(&Tensor::cat(&[tokens, &mask_token], 1)?)?;
    Ok(restored.broadcast_add(positions)?)
}

pub(crate) fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let rows = Tensor::from_slice(rows, rows.len(), x.device())?;
    Ok(x.reshape(((), x.dim(D::Minus1)?))?.index_select(&rows, 0)?)
}

pub(crate) fn patch_mse(
    pred: &Tensor,
    patches: &Tensor,
    rows: &[u32],
    normalised: bool,
) -> Result<Tensor> {
    let target = pixel_targets(&select_rows(patches, rows)?, normalised)?;
    Ok((pred - target)?.sqr()?.mean_all()?)
}

pub(crate) fn self_attention(
    qkv: &Tensor,
    n_heads: usize,
    drop: Option<&KeepMask>,
) -> Result<Tensor> {
    let width = qkv.dim(D::Minus1)? / 3;
    let part = |i: usize| qkv.narrow(D::Minus1, i * width, width);
    attention(&part(0)?, &part(1)?, &part(2)?, n_heads, drop)
}

pub(crate) fn cross_attention(
    q: &Tensor,
    kv: &Tensor,
    n_heads: usize,
    drop: Option<&KeepMask>,
) -> Result<Tensor> {
    let width = q.dim(D::Minus1)?;
    attention(
        q,
        &kv.narrow(D::Minus1, 0, width)?,
        &kv.narrow(D::Minus1, width, width)?,
        n_heads,
        drop,
    )
}

/// `q` `[B, N, D]`, `k` and `v` `[B, M, D]` to `[B, N, D]`.
fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    n_heads: usize,
    drop: Option<&KeepMask>,
) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let m = k.dim(1)?;
    let head = width / n_heads;
    let split = |x: &Tensor, len| {
        x.reshape((batch, len, n_heads, head))?
            .transpose(1, 2)?
            .contiguous()
    };
    let q = (split(q, n)? * (head as f64).powf(-0.5))?; // [B, H, N, d]
    let weights = softmax(&q.matmul(&split(k, m)?.t()?)?, D::Minus1)?; // [B, H, N, M]
    let weights = match drop {
        Some(mask) => dropout(&weights, mask)?,
        None => weights,
    };
    Ok(weights
        .matmul(&split(v, m)?)?
        .transpose(1, 2)?
        .reshape((batch, n, width))?)
}
