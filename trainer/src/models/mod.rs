//! The methods: one file each, all behind [`Pretrain`].
//!
//! Letters: B batch, V views, N patches, P values of a patch.

pub mod config;
pub mod encoder;
pub mod mae;
pub mod multi_view;
pub mod predictor;
pub mod siamese;
#[cfg(test)]
mod tests;
pub mod tokens;

use candle_core::Tensor;

pub use config::{ContrastiveConfig, EncoderPreset, ModelConfig, ModelKind, Pool, Sizes, Targets};

use crate::error::{Error, Result};
use crate::masking::StepRandomness;
use crate::nn::params::Params;

/// What a forward pass gives.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The loss to go down, a scalar.
    pub loss: Tensor,
    /// The terms it is made of, before their weights, where there are several.
    pub parts: Vec<(&'static str, Tensor)>,
    /// What was predicted; `None` from a model that reconstructs nothing, and while a tape records.
    pub reconstruction: Option<Reconstruction>,
}

/// Predicted patches of one view.
#[derive(Debug, Clone)]
pub struct Reconstruction {
    /// `[B, N, P]`, in units of the targets: normalised patch by patch with `norm_pix_loss`.
    pub pred: Tensor,
    /// `[B, N]`, 1 where a patch was removed and the prediction counts.
    pub mask: Tensor,
    /// Which view `pred` predicts.
    pub target_view: usize,
}

/// A method of self-supervised pre-training.
pub trait Pretrain {
    /// One pass over a batch.
    ///
    /// * `views`: `[B, V, 3, H, W]`, normalised, of the parameters' type and device.
    /// * `step`: what masks and dropout are drawn from; as many samples as B.
    /// * `train`: whether dropout and stochastic depth act. Masking always does.
    ///
    /// # Errors
    /// [`Error::Shape`] if `views` does not fit the model or the number of samples.
    fn forward(&self, views: &Tensor, step: &StepRandomness, train: bool) -> Result<Forward>;
}

/// Builds the configured model; its parameters are made on `params`' device with `params`' type.
///
/// # Errors
/// [`Error::Config`] if the configuration makes no sense.
pub fn build(config: &ModelConfig, params: &mut Params) -> Result<Box<dyn Pretrain>> {
    config.validate()?;
    Ok(match config.kind {
        ModelKind::Siamese => Box::new(siamese::Siamese::new(config, params)?),
        ModelKind::Mae => Box::new(mae::Mae::new(config, params)?),
        ModelKind::MultiView => Box::new(multi_view::MultiView::new(config, params)?),
    })
}

/// `[B, V, 3, H, W]` as V tensors `[B, 3, H, W]`.
fn split_views<const V: usize>(views: &Tensor, sizes: &Sizes) -> Result<[Tensor; V]> {
    let side = sizes.img_size;
    if views.rank() != 5 || views.dims()[1..] != [V, 3, side, side] {
        return Err(Error::Shape {
            what: "views".to_owned(),
            got: views.dims().to_vec(),
            expected: format!("[B, {V}, 3, {side}, {side}]"),
        });
    }
    let mut split = Vec::with_capacity(V);
    for view in 0..V {
        split.push(views.narrow(1, view, 1)?.squeeze(1)?);
    }
    split
        .try_into()
        .map_err(|_| Error::Config("views could not be told apart".to_owned()))
}
