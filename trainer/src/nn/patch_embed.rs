//! Images to patches, and patches to tokens.
//!
//! Letters: B batch, N patches, P = p * p * 3 values of a patch, D width.

use candle_core::Tensor;

use super::init::Init;
use super::params::Params;
use crate::error::{Error, Result};
use crate::ops;

/// Colour channels of an image.
pub const CHANNELS: usize = 3;

/// Cuts `[B, 3, H, W]` into `[B, N, P]`: patches in raster order, values in (row, column, channel) order.
///
/// # Errors
/// [`Error::Shape`] if it is not a batch of colour images whose sides are multiples of `patch_size`.
///
/// Source: MAE, `models_mae.py`, `patchify`.
pub fn patchify(images: &Tensor, patch_size: usize) -> Result<Tensor> {
    let p = patch_size;
    match *images.dims() {
        [batch, CHANNELS, height, width]
            if p > 0 && height.is_multiple_of(p) && width.is_multiple_of(p) =>
        {
            if let Some(patches) = ops::patchify(images, p)? {
                return Ok(patches);
            }
            let (rows, columns) = (height / p, width / p);
            Ok(images
                .reshape((batch, CHANNELS, rows, p, columns, p))?
                .permute((0, 2, 4, 3, 5, 1))?
                .reshape((batch, rows * columns, p * p * CHANNELS))?)
        }
        _ => Err(Error::Shape {
            what: "images".to_owned(),
            got: images.dims().to_vec(),
            expected: format!("[B, 3, H, W] with H and W multiples of {p}"),
        }),
    }
}

/// The reference's patch embedding, a convolution whose stride is its kernel, as one matrix product.
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    weight: Tensor,
    bias: Tensor,
}

impl PatchEmbed {
    /// Registers `{path}.proj.weight` in the convolution's shape `[D, 3, p, p]` and `{path}.proj.bias`.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(
        params: &mut Params,
        path: &str,
        patch_size: usize,
        embed_dim: usize,
    ) -> Result<PatchEmbed> {
        let p = patch_size;
        let shape = [embed_dim, CHANNELS, p, p];
        let fan_in = CHANNELS * p * p;
        Ok(PatchEmbed {
            weight: params.trainable(
                &format!("{path}.proj.weight"),
                &shape,
                Init::XavierUniform,
            )?,
            bias: params.trainable(
                &format!("{path}.proj.bias"),
                &[embed_dim],
                Init::UniformFanIn(fan_in),
            )?,
        })
    }

    /// Patches `[B, K, P]` as [`patchify`] cuts them (any subset), which take no gradient, to `[B, K, D]`.
    ///
    /// # Errors
    /// If the patches have another size.
    pub fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        let embed_dim = self.weight.dim(0)?;
        // The kernel's (channel, row, column) order becomes the patches' (row, column, channel) order, in which the
        // reference's convolution sums too.
        let weight = self
            .weight
            .permute((0, 2, 3, 1))?
            .reshape((embed_dim, ()))?;
        ops::linear_in_order(&ops::in_precision(patches)?, &weight, &self.bias)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn one_product_is_the_convolution() {
        let mut params = Params::new(0, DType::F32, &Device::Cpu);
        let embed = PatchEmbed::new(&mut params, "patch_embed", 4, 5).unwrap();
        let values: Vec<f32> = (0..2 * 3 * 8 * 12)
            .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
            .collect();
        let images = Tensor::from_vec(values, (2, 3, 8, 12), &Device::Cpu).unwrap();
        let tokens = embed.forward(&patchify(&images, 4).unwrap()).unwrap(); // [2, 6, 5]
        let conv = images.conv2d(&embed.weight, 0, 4, 1, 1).unwrap(); // [2, 5, 2, 3]
        let conv = conv.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        let conv = conv.broadcast_add(&embed.bias).unwrap();
        let difference = (tokens - conv)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn odd_sizes_are_errors() {
        for shape in [[1, 3, 9, 8], [1, 1, 8, 8]] {
            let images = Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
            assert!(
                matches!(patchify(&images, 4), Err(Error::Shape { .. })),
                "{shape:?}"
            );
        }
    }
}
