//! The end of every decoder here: the final norm, the predicted pixels, and the reconstruction loss.
//!
//! Letters: B batch, N patches, P values of a patch, D width, M removed patches of the batch.

use candle_core::Tensor;

use super::Reconstruction;
use super::config::ModelConfig;
use crate::error::Result;
use crate::masking::Masking;
use crate::nn::linear::Linear;
use crate::nn::norm::LayerNorm;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::{ops, tape};

/// `decoder_norm` and `decoder_pred`.
#[derive(Debug, Clone)]
pub struct Predictor {
    decoder_norm: LayerNorm,
    decoder_pred: Linear,
    norm_pix_loss: bool,
}

impl Predictor {
    /// Registers `decoder_norm` and `decoder_pred`.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(params: &mut Params, config: &ModelConfig) -> Result<Predictor> {
        let sizes = config.sizes();
        let width = sizes.decoder_embed_dim;
        Ok(Predictor {
            decoder_norm: LayerNorm::new(params, "decoder_norm", width)?,
            decoder_pred: Linear::new(params, "decoder_pred", width, sizes.patch_values())?,
            norm_pix_loss: config.norm_pix_loss,
        })
    }

    /// The loss over the removed ones of `patches` `[B, N, P]`, from the decoder's tokens `x` `[B, 1 + N, D]`.
    ///
    /// While a tape records, only what the loss needs is computed, and there is nothing to show: removed patches alone
    /// are normalised and predicted.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn loss(
        &self,
        x: &Tensor,
        patches: &Tensor,
        masking: &Masking,
        target_view: usize,
        pass: Pass,
    ) -> Result<(Tensor, Option<Reconstruction>)> {
        let removed = masking.removed();
        if tape::is_recording() {
            let x = ops::select_rows(x, &masking.removed_tokens())?; // [M, D]
            let pred = self.decoder_pred.forward(&self.decoder_norm.forward(&x)?)?; // [M, P]
            let loss = ops::patch_mse(&pred, patches, &removed, self.norm_pix_loss)?;
            return Ok((loss, None));
        }
        let x = self.decoder_norm.forward(x)?;
        pass.see("decoder_norm", "", &x);
        // The class token predicts nothing.
        let tokens = x.narrow(1, 1, x.dim(1)? - 1)?.contiguous()?;
        let pred = self.decoder_pred.forward(&tokens)?; // [B, N, P]
        pass.see("decoder_pred", "", &pred);
        let of_removed = ops::select_rows(&pred, &removed)?;
        let loss = ops::patch_mse(&of_removed, patches, &removed, self.norm_pix_loss)?;
        let mask = masking.mask(pred.dtype(), pred.device())?;
        let reconstruction = Reconstruction {
            pred,
            mask,
            target_view,
        };
        Ok((loss, Some(reconstruction)))
    }
}
