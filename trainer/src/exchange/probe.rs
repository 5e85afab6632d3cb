//! A fixed input and the encoder's features for it, so that another program's can be compared.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::names::{Tensors, is_encoder};
use crate::error::{Error, Result};
use crate::models::ModelConfig;
use crate::models::encoder::Encoder;
use crate::models::tokens::EncoderTokens;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;

/// Pictures in the probe.
const N_IMAGES: usize = 2;

/// `images` `[2, 3, S, S]`, as if normalised, and `features` `[2, 1 + N, D]`, the normed tokens of all patches with
/// the class token first.
///
/// # Errors
/// [`Error::Parameter`] if a parameter of the encoder is missing, [`Error::Shape`] if one does not fit.
pub(super) fn probe(model: &ModelConfig, tensors: &Tensors, device: &Device) -> Result<Tensors> {
    let sizes = model.sizes();
    let mut params = Params::new(0, DType::F32, device);
    let tokens = EncoderTokens::new(&mut params, &sizes)?;
    let encoder = Encoder::new(&mut params, &sizes, tokens, 0.0)?;
    let encoder_tensors: HashMap<String, Tensor> = tensors
        .iter()
        .filter(|(name, _)| is_encoder(name))
        .map(|(name, t)| (name.clone(), t.clone()))
        .collect();
    params.load(&encoder_tensors)?;

    let side = sizes.img_size;
    let images = Tensor::from_vec(
        values(N_IMAGES * 3 * side * side),
        (N_IMAGES, 3, side, side),
        device,
    )?;
    let features = encoder.forward(&patchify(&images, sizes.patch_size)?, Pass::evaluation())?; // [2, 1 + N, D]
    if features.dims() != [N_IMAGES, 1 + sizes.n_patches(), sizes.embed_dim] {
        return Err(Error::Shape {
            what: "features".to_owned(),
            got: features.dims().to_vec(),
            expected: format!(
                "[{N_IMAGES}, {}, {}]",
                1 + sizes.n_patches(),
                sizes.embed_dim
            ),
        });
    }
    Ok([
        ("images".to_owned(), images),
        ("features".to_owned(), features),
    ]
    .into())
}

/// Values in [-2, 2), the range of normalised pixels, that look like noise and need no generator.
fn values(n: usize) -> Vec<f32> {
    // the fractional parts of multiples of the golden ratio's inverse, in 32-bit arithmetic
    (0..n as u32)
        .map(|i| (i.wrapping_mul(2_654_435_769) >> 8) as f32 / (1 << 24) as f32 * 4.0 - 2.0)
        .collect()
}
