//! A fixed input and the encoder's features for it, so that another program's can be compared.

use candle_core::{Device, Tensor};

use super::names::Tensors;
use super::read::encoder_of;
use crate::error::{Error, Result};
use crate::eval::encoder::FrozenEncoder;
use crate::models::ModelConfig;

/// Pictures in the probe.
const N_IMAGES: usize = 2;

/// `images` `[2, 3, S, S]`, as if normalised, and `features` `[2, 1 + N, D]`, the normed tokens of all patches with
/// the class token first.
///
/// # Errors
/// [`Error::Parameter`] if a parameter of the encoder is missing, [`Error::Shape`] if one does not fit.
pub(super) fn probe(model: &ModelConfig, tensors: &Tensors, device: &Device) -> Result<Tensors> {
    let sizes = model.sizes();
    let tensors = tensors.iter().map(|(name, t)| (name.clone(), t.clone()));
    let encoder = FrozenEncoder::new(model, &encoder_of(tensors), device)?;
    let side = sizes.img_size;
    let images = Tensor::from_vec(
        values(N_IMAGES * 3 * side * side),
        (N_IMAGES, 3, side, side),
        device,
    )?;
    let features = encoder.tokens(&images)?; // [2, 1 + N, D]
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
