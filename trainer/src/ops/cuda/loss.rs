//! The reconstruction loss in two passes over the predictions.
//!
//! Letters: M predicted patches, N all patches, P values of a patch.

use candle_core::{DType, Result, Shape, Tensor};

use super::buffer::{Launch, Output, address, type_code};
use super::node::{Keeps, node};
use crate::loss::NORM_PIX_EPS;

/// Mean squared error of `pred` `[M, P]` against the rows `rows` of `patches` `[.., P]`, normalised patch by patch if
/// asked; an f32 scalar.
pub(crate) fn patch_mse(
    pred: &Tensor,
    patches: &Tensor,
    rows: &[u32],
    normalised: bool,
) -> Result<Tensor> {
    let (n_rows, width) = pred.dims2()?;
    let rows = Tensor::from_slice(rows, n_rows, pred.device())?;
    let target = patches.detach().to_dtype(DType::F32)?;
    let mut errors = Output::new(n_rows, DType::F32, pred.device())?;
    let mut loss = Output::new(Shape::from(()), DType::F32, pred.device())?;
    let code = type_code(pred)?;
    let (pred_in, target_in, rows_in) = (address(pred)?, address(&target)?, address(&rows)?);
    let (errors_out, loss_out) = (errors.address()?, loss.address()?);
    Launch::on(pred.device())?.run("reconstruction loss", |kernels, stream| {
        // SAFETY: M x P elements predicted, and the rows of patches were checked by the caller.
        unsafe {
            (kernels.pairquet_patch_mse_forward)(
                code,
                pred_in,
                target_in,
                rows_in,
                errors_out,
                loss_out,
                n_rows as i64,
                width as i64,
                i32::from(normalised),
                NORM_PIX_EPS as f32,
                stream,
            )
        }
    })?;
    let saved = pred.detach();
    node(
        "patch-mse",
        &[pred],
        loss,
        Keeps::Nothing,
        move |_, dloss| {
            let mut dpred = Output::like(&saved)?;
            let (pred_in, target_in, rows_in) =
                (address(&saved)?, address(&target)?, address(&rows)?);
            let (dloss, out) = (address(dloss)?, dpred.address()?);
            Launch::on(saved.device())?.run(
                "reconstruction loss' backward",
                |kernels, stream| {
                    // SAFETY: as forward.
                    unsafe {
                        (kernels.pairquet_patch_mse_backward)(
                            code,
                            pred_in,
                            target_in,
                            rows_in,
                            dloss,
                            out,
                            n_rows as i64,
                            width as i64,
                            i32::from(normalised),
                            NORM_PIX_EPS as f32,
                            stream,
                        )
                    }
                },
            )?;
            Ok(vec![Some(dpred.into_tensor())])
        },
    )
}
