//! Matrix products with a bias, GELU, and both together.
//!
//! The products are candle's, which are cuBLAS'. The masters of weights are f32; a product of bf16 activations takes a
//! bf16 copy of them, made where it is used: for ViT-B one such copy of all weights moves 0.5 GB, a tenth of a
//! millisecond of an H200's memory, and keeping copies would take a sixth of the masters' and moments' memory more.

use candle_core::{DType, Result, Tensor};

use super::buffer::{Launch, Output, address, none, type_code};
use super::node::{Keeps, node};
use crate::nn::dropout::KeepMask;
use crate::tape;

/// What follows the bias, as the kernels name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    None = 0,
    Gelu = 1,
}

/// `x Wᵀ + b`: `x` `[.., in]`, `weight` `[out, in]` and `bias` `[out]` in f32.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let z = product(x, weight)?;
    let y = bias_act(&z, Some(bias), Act::None)?;
    drop(z);
    let (saved, matrix, needs_dx) = (x.detach(), weight.detach(), tape::is_tracked(x));
    node(
        "linear",
        &[x, weight, bias],
        y,
        Keeps::Nothing,
        move |_, dy| {
            let (_, dbias) = bias_act_backward(None, None, dy, Act::None, true)?;
            let (dx, dweight) = product_backward(&saved, &matrix, dy, needs_dx)?;
            Ok(vec![dx, Some(dweight), dbias])
        },
    )
}

/// `gelu(x Wᵀ + b)`, exact.
pub(crate) fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let z = product(x, weight)?; // without the bias, which backward adds again
    let y = bias_act(&z, Some(bias), Act::Gelu)?;
    let (saved, matrix, needs_dx) = (x.detach(), weight.detach(), tape::is_tracked(x));
    let offset = bias.detach();
    node(
        "linear-gelu",
        &[x, weight, bias],
        y,
        Keeps::Nothing,
        move |_, dy| {
            let (dz, dbias) = bias_act_backward(Some(&z), Some(&offset), dy, Act::Gelu, true)?;
            let Some(dz) = dz else {
                candle_core::bail!("the gradient before GELU was not made")
            };
            let (dx, dweight) = product_backward(&saved, &matrix, &dz, needs_dx)?;
            Ok(vec![dx, Some(dweight), dbias])
        },
    )
}

/// `x Φ(x)`.
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    let y = bias_act(x, None, Act::Gelu)?;
    let saved = x.detach();
    node("gelu", &[x], y, Keeps::Nothing, move |_, dy| {
        let (dx, _) = bias_act_backward(Some(&saved), None, dy, Act::Gelu, false)?;
        Ok(vec![dx])
    })
}

/// The linear map of `gelu(h)` under a dropout.
pub(crate) fn gelu_linear(
    h: &Tensor,
    drop: Option<&KeepMask>,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let activated = gelu(h)?;
    match drop {
        Some(mask) => linear(&super::random::dropout(&activated, mask)?, weight, bias),
        None => linear(&activated, weight, bias),
    }
}

/// `x Wᵀ` as `[.., out]`, outside of the graph.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = n_out;
    }
    let weight = weight.detach().to_dtype(x.dtype())?;
    x.detach()
        .reshape(((), n_in))?
        .matmul(&weight.t()?)?
        .reshape(dims)
}

/// The gradients of a product with respect to `x`, if that takes one, and to the f32 weight.
fn product_backward(
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    needs_dx: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let (n_out, n_in) = weight.dims2()?;
    let rows = dy.reshape(((), n_out))?;
    let dweight = rows.t()?.matmul(&x.reshape(((), n_in))?)?;
    let dx = match needs_dx {
        true => Some(
            rows.matmul(&weight.to_dtype(x.dtype())?)?
                .reshape(x.shape())?,
        ),
        false => None,
    };
    Ok((dx, dweight.to_dtype(DType::F32)?))
}

fn bias_act(x: &Tensor, bias: Option<&Tensor>, act: Act) -> Result<Output> {
    let width = x.dims().last().copied().unwrap_or(1);
    let mut y = Output::like(x)?;
    let (code, rows) = (type_code(x)?, x.elem_count() / width.max(1));
    let launch = Launch::on(x.device())?;
    let (x, bias, y_out) = (address(x)?, bias.map_or(Ok(none()), address)?, y.address()?);
    launch.run("bias and activation", |kernels, stream| {
        // SAFETY: rows x width elements in x and y, width in the bias.
        unsafe {
            (kernels.pairquet_bias_act_forward)(
                code,
                act as i32,
                x,
                bias,
                y_out,
                rows as i64,
                width as i64,
                stream,
            )
        }
    })?;
    Ok(y)
}

/// The gradient before the activation, which is `dy` and not made if there is none, and that of the bias if it is wanted.
fn bias_act_backward(
    x: Option<&Tensor>,
    bias: Option<&Tensor>,
    dy: &Tensor,
    act: Act,
    with_bias: bool,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let launch = Launch::on(dy.device())?;
    let width = dy.dims().last().copied().unwrap_or(1);
    let rows = dy.elem_count() / width.max(1);
    let new = |shape: &[usize]| Output::new(shape, DType::F32, dy.device());
    let mut dx = (act != Act::None).then(|| Output::like(dy)).transpose()?;
    let mut sums = match with_bias {
        true => Some((new(&[launch.chunks(rows), width])?, new(&[width])?)),
        false => None,
    };
    let dx_out = match &mut dx {
        Some(dx) => dx.address()?,
        None => std::ptr::null_mut(),
    };
    let (partial, dbias) = match &mut sums {
        Some((partial, dbias)) => (partial.address()?, dbias.address()?),
        None => (std::ptr::null_mut(), std::ptr::null_mut()),
    };
    let code = type_code(dy)?;
    let (x, bias, dy) = (
        x.map_or(Ok(none()), address)?,
        bias.map_or(Ok(none()), address)?,
        address(dy)?,
    );
    launch.run("bias and activation's backward", |kernels, stream| {
        // SAFETY: as forward; the scratch has the kernel's number of chunks.
        unsafe {
            (kernels.pairquet_bias_act_backward)(
                code,
                act as i32,
                x,
                bias,
                dy,
                dx_out,
                partial,
                dbias,
                rows as i64,
                width as i64,
                stream,
            )
        }
    })?;
    Ok((
        dx.map(Output::into_tensor),
        sums.map(|(_, dbias)| dbias.into_tensor()),
    ))
}
