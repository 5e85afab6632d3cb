//! The operations that models are made of.
//!
//! Each has several forms with the same result: `plain`, a composition of candle's operations for every device and float
//! type; a fused one with its own backward for f32 on the CPU, which keeps less in memory and is several times faster;
//! and kernels for f32 and bf16 on a GPU (`cuda`). The tests compare each with the plain one, and the fused gradients
//! with finite differences.
//!
//! Letters: B batch, N queries, M keys, D width, H heads.

mod attention;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod cuda;
mod elementwise;
pub(crate) mod kernels;
mod layer_norm;
mod linear;
pub(crate) mod matmul;
mod patch_mse;
pub(crate) mod plain;
pub(crate) mod storage;
#[cfg(test)]
mod tests;
mod tokens;

use candle_core::{D, DType, Tensor};

use crate::error::{Error, Result};
use crate::nn::dropout::KeepMask;
use crate::tape;

pub use matmul::{Precision, precision, with_precision};

/// Returns what the kernels make, where they take the first tensor.
macro_rules! on_gpu {
    ($x:expr, $call:expr) => {
        #[cfg(any(feature = "cuda", test))]
        if cuda::takes($x) {
            return Ok($call?);
        }
    };
}

/// `x Wᵀ + b` over the last dimension: `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
///
/// # Errors
/// [`Error::Shape`] if the last dimension of `x` is not `in`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    linear_by(x, weight, bias, false)
}

/// As [`linear`], but summed over the inner dimension strictly in its order, which the CPU's f32 form does as the
/// reference's convolution, bit for bit.
///
/// # Errors
/// As [`linear`].
pub fn linear_in_order(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    linear_by(x, weight, bias, true)
}

fn linear_by(x: &Tensor, weight: &Tensor, bias: &Tensor, in_order: bool) -> Result<Tensor> {
    expect_width("input of linear", x, weight.dim(1)?)?;
    on_gpu!(
        x,
        cuda::activation::linear(&aligned(x)?, weight, &aligned(bias)?)
    );
    if !is_fused(x) {
        return tape::composed(&[x, weight, bias], |t| plain::linear(&t[0], &t[1], &t[2]));
    }
    let op = linear::Linear {
        needs_dx: tape::is_tracked(x),
        in_order,
        precision: precision(),
    };
    tape::apply3(
        &contiguous(x)?,
        &weight.contiguous()?,
        &bias.contiguous()?,
        op,
    )
}

/// Normalisation over the last dimension (biased variance, `eps` inside the root), then scale and shift.
///
/// # Errors
/// [`Error::Shape`] if the last dimension of `x` is not the width of `weight`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    expect_width("input of layer norm", x, weight.dim(0)?)?;
    on_gpu!(
        x,
        cuda::norm::layer_norm(&aligned(x)?, &aligned(weight)?, &aligned(bias)?, eps)
    );
    if !is_fused(x) {
        return tape::composed(&[x, weight, bias], |t| {
            plain::layer_norm(&t[0], &t[1], &t[2], eps)
        });
    }
    let op = layer_norm::LayerNorm { eps: eps as f32 };
    tape::apply3(
        &contiguous(x)?,
        &weight.contiguous()?,
        &bias.contiguous()?,
        op,
    )
}

/// A residual sum, as [`add`] makes it, and its normalisation, as [`layer_norm`] makes it.
///
/// # Errors
/// As these two.
pub fn add_layer_norm(
    x: &Tensor,
    branch: &Tensor,
    drop: Option<&KeepMask>,
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    #[cfg(any(feature = "cuda", test))]
    if drop.is_none() && cuda::takes(x) && x.dims() == branch.dims() {
        expect_width("input of layer norm", x, weight.dim(0)?)?;
        let (x, branch) = (aligned(x)?, aligned(branch)?);
        return cuda::norm::add_layer_norm(&x, &branch, &aligned(weight)?, &aligned(bias)?, eps);
    }
    let sum = add(x, branch, drop)?;
    let normed = layer_norm(&sum, weight, bias, eps)?;
    Ok((sum, normed))
}

/// The exact Gaussian error linear unit, `x Φ(x)`.
///
/// # Errors
/// If the device is out of memory.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    on_gpu!(x, cuda::activation::gelu(&aligned(x)?));
    if !is_fused(x) {
        return tape::composed(&[x], |t| plain::gelu(&t[0]));
    }
    tape::apply1(&contiguous(x)?, elementwise::Gelu)
}

/// Drops single elements and scales the others.
///
/// # Errors
/// [`Error::Shape`] if the mask has another number of elements.
pub fn dropout(x: &Tensor, mask: &KeepMask) -> Result<Tensor> {
    expect_mask(x.elem_count(), mask)?;
    on_gpu!(x, cuda::random::dropout(&aligned(x)?, mask));
    if !is_fused(x) {
        return tape::composed(&[x], |t| plain::dropout(&t[0], mask));
    }
    tape::apply1(&contiguous(x)?, elementwise::Dropout { mask: mask.clone() })
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
    #[cfg(any(feature = "cuda", test))]
    if cuda::takes(qkv) && width / 3 / n_heads <= cuda::attention::MOST_HEAD_ELEMENTS {
        return Ok(cuda::attention::self_attention(
            &aligned(qkv)?,
            n_heads,
            drop,
        )?);
    }
    if !is_fused(qkv) {
        return tape::composed(&[qkv], |t| plain::self_attention(&t[0], n_heads, drop));
    }
    let op = attention::SelfAttention {
        heads: n_heads,
        drop: drop.cloned(),
        precision: precision(),
    };
    tape::apply1(&contiguous(qkv)?, op)
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
    #[cfg(any(feature = "cuda", test))]
    if cuda::takes(q) && width / n_heads <= cuda::attention::MOST_HEAD_ELEMENTS {
        return Ok(cuda::attention::cross_attention(
            &aligned(q)?,
            &aligned(kv)?,
            n_heads,
            drop,
        )?);
    }
    if !is_fused(q) {
        return tape::composed(&[q, kv], |t| {
            plain::cross_attention(&t[0], &t[1], n_heads, drop)
        });
    }
    let op = attention::CrossAttention {
        heads: n_heads,
        drop: drop.cloned(),
        precision: precision(),
    };
    tape::apply2(&contiguous(q)?, &contiguous(kv)?, false, op)
}

/// `gelu` of [`linear`] where that is better done at once; `None` where [`gelu_linear`] of the linear map is better.
///
/// # Errors
/// As [`linear`].
pub(crate) fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Option<Tensor>> {
    expect_width("input of linear", x, weight.dim(1)?)?;
    expect_width("bias of linear", bias, weight.dim(0)?)?;
    on_gpu!(
        x,
        cuda::activation::linear_gelu(&aligned(x)?, weight, &aligned(bias)?).map(Some)
    );
    Ok(None)
}

/// The linear map of `gelu(h)`, whose elements `drop` drops: `h` `[.., in]`, `weight` `[out, in]`, `bias` `[out]`.
///
/// # Errors
/// [`Error::Shape`] if the last dimension of `h` is not `in`, or the mask has another number of elements.
pub fn gelu_linear(
    h: &Tensor,
    drop: Option<&KeepMask>,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    expect_width("input of linear", h, weight.dim(1)?)?;
    drop.map_or(Ok(()), |mask| expect_mask(h.elem_count(), mask))?;
    on_gpu!(
        h,
        cuda::activation::gelu_linear(&aligned(h)?, drop, weight, &aligned(bias)?)
    );
    if !is_fused(h) {
        return tape::composed(&[h, weight, bias], |t| {
            plain::gelu_linear(&t[0], drop, &t[1], &t[2])
        });
    }
    let op = linear::GeluLinear {
        drop: drop.cloned(),
        precision: precision(),
    };
    tape::apply3(
        &contiguous(h)?,
        &weight.contiguous()?,
        &bias.contiguous()?,
        op,
    )
}

/// A residual sum, `x + branch`. `drop` acts on the elements of the branch `[B, ..]`, or, with B elements, on its samples.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or the mask fits neither way.
pub fn add(x: &Tensor, branch: &Tensor, drop: Option<&KeepMask>) -> Result<Tensor> {
    if x.dims() != branch.dims() {
        return Err(Error::Shape {
            what: "branch".to_owned(),
            got: branch.dims().to_vec(),
            expected: format!("{:?}, as what it is added to", x.dims()),
        });
    }
    if let Some(mask) = drop
        && mask.len() != x.dim(0)?
    {
        expect_mask(x.elem_count(), mask)?;
    }
    if drop.is_none() && !tape::is_recording() {
        return Ok((x + branch)?);
    }
    #[cfg(any(feature = "cuda", test))]
    if let Some(mask) = drop
        && cuda::takes(x)
    {
        return Ok(cuda::random::add_dropped(
            &aligned(x)?,
            &aligned(branch)?,
            mask,
        )?);
    }
    let op = elementwise::AddBranch {
        drop: drop.cloned(),
    };
    match (drop.is_some(), is_fused(x)) {
        (true, true) => tape::apply2(&contiguous(x)?, &contiguous(branch)?, true, op),
        (true, false) => tape::composed(&[x, branch], |t| plain::add(&t[0], &t[1], drop)),
        (false, true) => {
            let (x, branch) = (contiguous(x)?, contiguous(branch)?);
            tape::sum(&x, &branch, || Ok(x.apply_op2_no_bwd(&branch, &op)?))
        }
        (false, false) => tape::sum(x, branch, || Ok((x.detach() + branch.detach())?)),
    }
}

/// `sum + gradient`, in the memory of `gradient` where that can be: nothing else may hold it.
pub(crate) fn add_into(gradient: Tensor, sum: &Tensor) -> Result<Tensor> {
    if is_fused(&gradient) && gradient.is_contiguous() && sum.is_contiguous() {
        gradient.inplace_op2(sum, &elementwise::AddInto)?;
        return Ok(gradient);
    }
    Ok((sum + gradient)?)
}

/// `keep * mean + (1 - keep) * values`, in the memory of `mean` where that can be.
pub(crate) fn running_mean(mean: Tensor, values: &Tensor, keep: f64) -> Result<Tensor> {
    if is_fused(&mean) && mean.is_contiguous() && values.is_contiguous() {
        mean.inplace_op2(values, &elementwise::RunningMean { keep })?;
        return Ok(mean);
    }
    Ok((mean.affine(keep, 0.0)? + values.affine(1.0 - keep, 0.0)?)?)
}

/// The class token in front of `tokens` `[B, K, D]`, then positions added: `class` is `[1, 1, D]`, `positions` (constants)
/// `[1 or B, 1 + K, D]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn class_in_front(tokens: &Tensor, class: &Tensor, positions: &Tensor) -> Result<Tensor> {
    on_gpu!(
        tokens,
        cuda::tokens::class_in_front(&aligned(tokens)?, &aligned(class)?, &aligned(positions)?)
    );
    if !is_fused(tokens) {
        return tape::composed(&[tokens, class], |t| {
            plain::class_in_front(&t[0], &t[1], positions)
        });
    }
    let (class, positions) = (class.contiguous()?, positions.contiguous()?);
    tape::apply3(
        &contiguous(tokens)?,
        &class,
        &positions,
        tokens::ClassInFront,
    )
}

/// Puts encoded tokens back in their places, with the mask token where one was removed, then adds positions.
///
/// * `tokens`: `[B, 1 + K, D]`, the class token first. `mask_token`: `[1, 1, D]`. `positions`: constants `[1, 1 + N, D]`.
/// * `places`: `[B, N]` row-major: the place of each patch among the kept ones, K or more for a removed one.
///
/// Returns `[B, 1 + N, D]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn restore(
    tokens: &Tensor,
    mask_token: &Tensor,
    positions: &Tensor,
    places: &[u32],
) -> Result<Tensor> {
    on_gpu!(
        tokens,
        cuda::tokens::restore(
            &aligned(tokens)?,
            &aligned(mask_token)?,
            &aligned(positions)?,
            places
        )
    );
    if !is_fused(tokens) {
        return tape::composed(&[tokens, mask_token], |t| {
            plain::restore(&t[0], &t[1], positions, places)
        });
    }
    let op = tokens::Restore {
        places: places.to_vec(),
    };
    let (mask_token, positions) = (mask_token.contiguous()?, positions.contiguous()?);
    tape::apply3(&contiguous(tokens)?, &mask_token, &positions, op)
}

/// Some rows of `x` `[.., D]`, different from each other, as `[rows, D]`; they are counted over all dimensions but the
/// last.
///
/// # Errors
/// [`Error::Shape`] if there is no such row.
pub fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let n_rows = x.elem_count() / x.dim(D::Minus1)?.max(1);
    if let Some(row) = rows.iter().find(|&&row| row as usize >= n_rows) {
        return Err(Error::Shape {
            what: "rows to select from".to_owned(),
            got: x.dims().to_vec(),
            expected: format!("more than {row} rows"),
        });
    }
    on_gpu!(x, cuda::tokens::select_rows(&aligned(x)?, rows));
    if !is_fused(x) {
        return tape::composed(&[x], |t| plain::select_rows(&t[0], rows));
    }
    let op = tokens::SelectRows {
        rows: rows.to_vec(),
    };
    tape::apply1(&contiguous(x)?, op)
}

/// The mean squared error of predicted patches `pred` `[M, P]`: row i is of row `rows[i]` of `patches` `[.., P]`, which are
/// constants. With `normalised`, targets are as [`crate::loss::pixel_targets`] makes them.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit.
pub fn patch_mse(
    pred: &Tensor,
    patches: &Tensor,
    rows: &[u32],
    normalised: bool,
) -> Result<Tensor> {
    let width = pred.dim(D::Minus1)?;
    expect_width("target patches", patches, width)?;
    let n_patches = patches.elem_count() / width.max(1);
    if pred.dims() != [rows.len(), width] || rows.iter().any(|&row| row as usize >= n_patches) {
        return Err(Error::Shape {
            what: "predicted patches".to_owned(),
            got: pred.dims().to_vec(),
            expected: format!("[{}, {width}], of {n_patches} patches", rows.len()),
        });
    }
    on_gpu!(
        pred,
        cuda::loss::patch_mse(&aligned(pred)?, &aligned(patches)?, rows, normalised)
    );
    if !is_fused(pred) {
        return tape::composed(&[pred], |t| {
            plain::patch_mse(&t[0], patches, rows, normalised)
        });
    }
    let op = patch_mse::PatchMse {
        rows: rows.to_vec(),
        normalised,
    };
    tape::apply2(&contiguous(pred)?, &patches.contiguous()?, false, op)
}

/// Inputs of a model, which take no gradient, in the type in which it computes: bf16 where that is the [`precision`] and
/// kernels take it, and the activations then are bf16 from here on; elsewhere as they are.
pub(crate) fn in_precision(x: &Tensor) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if precision() == Precision::Bf16 && cuda::takes(x) {
        return Ok(x.to_dtype(DType::BF16)?);
    }
    Ok(x.clone())
}

/// Cuts images `[B, 3, H, W]`, which take no gradient, into `[B, N, P]`: patches in raster order, values in (row, column,
/// channel) order; H and W are multiples of `patch_size`. `None` where there is no own form for them.
pub(crate) fn patchify(images: &Tensor, patch_size: usize) -> Result<Option<Tensor>> {
    on_gpu!(images, cuda::tokens::patchify(images, patch_size).map(Some));
    if !is_fused(images) || tape::is_tracked(images) || images.stride().last() != Some(&1) {
        return Ok(None);
    }
    Ok(Some(
        images.apply_op1_no_bwd(&tokens::Patchify { patch_size })?,
    ))
}

/// The same elements without gaps.
fn contiguous(x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() {
        return Ok(x.clone());
    }
    tape::composed(&[x], |t| Ok(t[0].contiguous()?))
}

/// The same elements without gaps, beginning at a multiple of 8 elements: kernels read 16 bytes at a time.
#[cfg(any(feature = "cuda", test))]
fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = contiguous(x)?;
    match x.layout().start_offset().is_multiple_of(8) {
        true => Ok(x),
        false => tape::composed(&[&x], |t| Ok(t[0].copy()?)),
    }
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
