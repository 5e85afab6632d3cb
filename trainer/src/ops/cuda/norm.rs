//! Layer normalisation, alone and after a residual sum.

use candle_core::{DType, Result, Tensor};

use super::buffer::{Launch, Output, address, none, type_code};
use super::node::{Keeps, node};
use crate::tape;

/// What backward needs of the rows' statistics, `[rows]` each.
struct Statistics {
    mean: Tensor,
    inverse_std: Tensor,
}

/// `x` `[.., D]`, f32 `weight` and `bias` `[D]`.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (_, y, statistics) = forward(x, None, weight, bias, eps)?;
    normed(x, weight, bias, y, statistics)
}

/// `x + branch`, and its normalisation, in one pass.
pub(crate) fn add_layer_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> crate::error::Result<(Tensor, Tensor)> {
    let sum = Output::like(x)?;
    let (sum, y, statistics) = forward(x, Some((branch, sum)), weight, bias, eps)?;
    let sum = sum.ok_or_else(|| candle_core::Error::Msg("a residual sum was not made".into()))?;
    let sum = match tape::is_recording() {
        true => tape::sum(x, branch, || Ok(sum.into_tensor()))?,
        false => node("add", &[x, branch], sum, Keeps::Nothing, |_, dy| {
            Ok(vec![Some(dy.clone()), Some(dy.clone())])
        })?,
    };
    let y = normed(&sum, weight, bias, y, statistics)?;
    Ok((sum, y))
}

fn forward(
    x: &Tensor,
    residual: Option<(&Tensor, Output)>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Option<Output>, Output, Statistics)> {
    let launch = Launch::on(x.device())?;
    let width = weight.elem_count();
    let rows = x.elem_count() / width;
    let statistic = || Output::new(rows, DType::F32, x.device());
    let (mut y, mut mean, mut inverse_std) = (Output::like(x)?, statistic()?, statistic()?);
    let (branch, mut sum) = residual.unzip();
    let branch = branch.map_or(Ok(none()), address)?;
    let sum_address = match &mut sum {
        Some(sum) => sum.address()?,
        None => std::ptr::null_mut(),
    };
    let (code, x, weight, bias) = (type_code(x)?, address(x)?, address(weight)?, address(bias)?);
    let (y_out, mean_out, inverse_std_out) =
        (y.address()?, mean.address()?, inverse_std.address()?);
    launch.run("layer norm", |kernels, stream| {
        // SAFETY: rows x width elements in x, branch, sum and y, width in weight and bias, rows in the statistics.
        unsafe {
            (kernels.pairquet_layer_norm_forward)(
                code,
                x,
                branch,
                weight,
                bias,
                sum_address,
                y_out,
                mean_out,
                inverse_std_out,
                rows as i64,
                width as i64,
                eps as f32,
                stream,
            )
        }
    })?;
    let statistics = Statistics {
        mean: mean.into_tensor(),
        inverse_std: inverse_std.into_tensor(),
    };
    Ok((sum, y, statistics))
}

/// The graph's node of a normalisation of `x` that has been computed.
fn normed(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    y: Output,
    statistics: Statistics,
) -> Result<Tensor> {
    let (saved, scale) = (x.detach(), weight.detach());
    node(
        "layer-norm",
        &[x, weight, bias],
        y,
        Keeps::Nothing,
        move |_, dy| {
            let launch = Launch::on(dy.device())?;
            let width = scale.elem_count();
            let rows = saved.elem_count() / width;
            let new = |shape: &[usize]| Output::new(shape, DType::F32, dy.device());
            let mut partial = new(&[launch.chunks(rows), 2, width])?;
            let (mut dweight, mut dbias) = (new(&[width])?, new(&[width])?);
            let mut dx = Output::like(&saved)?;
            let (code, x, dy, weight) = (
                type_code(&saved)?,
                address(&saved)?,
                address(dy)?,
                address(&scale)?,
            );
            let (mean, inverse_std) = (
                address(&statistics.mean)?,
                address(&statistics.inverse_std)?,
            );
            let (dx_out, partial_out) = (dx.address()?, partial.address()?);
            let (dweight_out, dbias_out) = (dweight.address()?, dbias.address()?);
            launch.run("layer norm's backward", |kernels, stream| {
                // SAFETY: as forward; the scratch has the kernel's number of chunks.
                unsafe {
                    (kernels.pairquet_layer_norm_backward)(
                        code,
                        x,
                        dy,
                        weight,
                        mean,
                        inverse_std,
                        dx_out,
                        partial_out,
                        dweight_out,
                        dbias_out,
                        rows as i64,
                        width as i64,
                        stream,
                    )
                }
            })?;
            Ok([dx, dweight, dbias]
                .map(|output| Some(output.into_tensor()))
                .into())
        },
    )
}
