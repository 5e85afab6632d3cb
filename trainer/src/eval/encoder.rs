//! An encoder that only looks: weights that take no gradient, pictures of any size.
//!
//! Letters: B batch, N patches, D width.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pipeline::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::exchange::{self, ReadOptions};
use crate::models::encoder::Encoder;
use crate::models::tokens::EncoderTokens;
use crate::models::{ModelConfig, Sizes};
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;
pub use crate::nn::pos_embed::PositionScale;

/// Which weights an evaluation looked with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointId {
    /// The file or folder, as it was given; for a run, the checkpoint in it that was taken.
    pub path: String,
    /// SHA-256 over name, shape and values of every parameter of the encoder: the same for the same weights in any
    /// kind of file.
    pub weights_sha256: String,
    /// The last epoch that was trained to its end, counted from 0, if the checkpoint says.
    pub epoch: Option<u64>,
    /// Optimizer steps made, if the checkpoint says.
    pub step: Option<u64>,
    /// The encoder: `width 384, depth 12, heads 6, patches of 16, trained at 224`.
    pub encoder: String,
    /// What was converted, guessed or left out when it was read.
    pub notes: Vec<String>,
}

/// A checkpoint's encoder, ready to look.
#[derive(Debug, Clone)]
pub struct FrozenEncoder {
    sizes: Sizes,
    encoder: Encoder,
    device: Device,
}

impl FrozenEncoder {
    /// Loads the encoder of a run folder (its newest checkpoint), a checkpoint folder, or a file of another program.
    ///
    /// # Errors
    /// [`crate::Error::Checkpoint`] if it cannot be read, or lacks parameters and that is not allowed.
    pub fn load(
        path: &Path,
        options: &ReadOptions,
        device: &Device,
    ) -> Result<(FrozenEncoder, CheckpointId)> {
        let (read, id) = read(path, options)?;
        let encoder = FrozenEncoder::new(&read.model, &read.encoder, device)?;
        Ok((encoder, id))
    }

    /// An encoder of exactly these parameters: `cls_token`, `pos_embed`, `patch_embed.*`, `blocks.*`, `norm.*`.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] or [`crate::Error::Shape`] if they are not those of the model's encoder.
    pub fn new(
        model: &ModelConfig,
        parameters: &exchange::Tensors,
        device: &Device,
    ) -> Result<FrozenEncoder> {
        let sizes = model.sizes();
        let mut params = Params::new(0, DType::F32, device);
        let build = |params: &mut Params| {
            let tokens = EncoderTokens::new(params, &sizes)?;
            Encoder::new(params, &sizes, tokens, 0.0)
        };
        build(&mut params)?;
        let by_name: HashMap<String, Tensor> = parameters
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        params.load(&by_name)?;
        // Followers take no gradient, so a pass keeps none of its intermediate results.
        let encoder = params.following("frozen", build)?;
        Ok(FrozenEncoder {
            sizes,
            encoder,
            device: device.clone(),
        })
    }

    /// The encoder of a model as its parameters stand.
    ///
    /// # Errors
    /// As [`FrozenEncoder::new`].
    pub fn of_params(
        model: &ModelConfig,
        params: &Params,
        device: &Device,
    ) -> Result<(FrozenEncoder, CheckpointId)> {
        let encoder = params
            .iter()
            .filter(|param| exchange::is_encoder(&param.name))
            .map(|param| (param.name.clone(), param.var.as_tensor().clone()))
            .collect();
        let id = CheckpointId {
            path: "parameters in memory".to_owned(),
            weights_sha256: weights_sha256(&encoder)?,
            epoch: None,
            step: None,
            encoder: describe(&model.sizes()),
            notes: Vec::new(),
        };
        Ok((FrozenEncoder::new(model, &encoder, device)?, id))
    }

    /// The sizes it was trained with.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Normed tokens `[B, 1 + N, D]` of normalised pictures `[B, 3, H, W]`, class token first, patches in raster order.
    /// The position table is resampled if the grid is not the one of training (`resample_pos_embed`).
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if it is not a batch of colour pictures whose sides are multiples of the patch's.
    pub fn tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        self.tokens_with(pixels, PositionScale::default())
    }

    /// As [`FrozenEncoder::tokens`], the position table resampled by a ratio of choice.
    ///
    /// # Errors
    /// As [`FrozenEncoder::tokens`].
    pub fn tokens_with(&self, pixels: &Tensor, scale: PositionScale) -> Result<Tensor> {
        let (encoder, patches) = self.at_size_of(pixels, scale)?;
        encoder.forward(&patches, Pass::evaluation())
    }

    /// How the class token looks at the patches of pictures `[B, 3, H, W]` in the last block: `[B, heads, N]`.
    ///
    /// # Errors
    /// As [`FrozenEncoder::tokens`].
    pub fn class_attention(&self, pixels: &Tensor) -> Result<Tensor> {
        let (encoder, patches) = self.at_size_of(pixels, PositionScale::default())?;
        encoder.class_attention(&patches)
    }

    fn at_size_of(&self, pixels: &Tensor, scale: PositionScale) -> Result<(Encoder, Tensor)> {
        let patch = self.sizes.patch_size;
        let patches = patchify(pixels, patch)?;
        let (_, _, height, width) = pixels.dims4()?;
        let encoder = self.encoder.at_grid(height / patch, width / patch, scale)?;
        Ok((encoder, patches))
    }
}

fn describe(sizes: &Sizes) -> String {
    format!(
        "width {}, depth {}, heads {}, patches of {}, trained at {}",
        sizes.embed_dim, sizes.depth, sizes.num_heads, sizes.patch_size, sizes.img_size
    )
}

/// The encoder's parameters of a checkpoint as [`FrozenEncoder::load`] finds them, for whoever trains them on.
///
/// # Errors
/// [`crate::Error::Checkpoint`] if it cannot be read, or lacks parameters and that is not allowed.
pub fn read(path: &Path, options: &ReadOptions) -> Result<(exchange::Read, CheckpointId)> {
    let read = exchange::read(path, options)?;
    let id = CheckpointId {
        path: read.path.display().to_string(),
        weights_sha256: weights_sha256(&read.encoder)?,
        epoch: read.epoch,
        step: read.step,
        encoder: describe(&read.model.sizes()),
        notes: read.notes.clone(),
    };
    Ok((read, id))
}

/// SHA-256 over name, shape and little-endian values of every tensor, in order of the names.
fn weights_sha256(tensors: &exchange::Tensors) -> Result<String> {
    let mut hasher = Sha256::new();
    for (name, tensor) in tensors {
        hasher.update(format!("{name} {:?}\n", tensor.dims()));
        let values = tensor
            .flatten_all()?
            .to_dtype(DType::F32)?
            .to_vec1::<f32>()?;
        for value in values {
            hasher.update(value.to_le_bytes());
        }
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn model() -> ModelConfig {
        ModelConfig {
            img_size: Some(16),
            patch_size: Some(4),
            embed_dim: Some(8),
            depth: Some(2),
            num_heads: Some(2),
            ..ModelConfig::default()
        }
    }

    fn parameters() -> exchange::Tensors {
        let sizes = model().sizes();
        let mut params = Params::new(5, DType::F32, &Device::Cpu);
        let tokens = EncoderTokens::new(&mut params, &sizes).unwrap();
        Encoder::new(&mut params, &sizes, tokens, 0.0).unwrap();
        params
            .iter()
            .map(|param| (param.name.clone(), param.var.as_tensor().copy().unwrap()))
            .collect()
    }

    fn pixels(height: usize, width: usize) -> Tensor {
        let values = (0..3 * height * width).map(|i| (i * 29 % 61) as f32 / 30.0 - 1.0);
        Tensor::from_iter(values, &Device::Cpu)
            .unwrap()
            .reshape((1, 3, height, width))
            .unwrap()
    }

    #[test]
    fn looks_at_any_size_and_keeps_no_graph() {
        let encoder = FrozenEncoder::new(&model(), &parameters(), &Device::Cpu).unwrap();
        for (height, width) in [(16, 16), (12, 24), (4, 4)] {
            let tokens = encoder.tokens(&pixels(height, width)).unwrap();
            assert_eq!(tokens.dims(), [1, 1 + height * width / 16, 8]);
            assert!(!tokens.track_op());
        }
        assert!(matches!(
            encoder.tokens(&pixels(16, 18)),
            Err(Error::Shape { .. })
        ));
    }

    #[test]
    fn the_position_table_counts_at_every_size() {
        let mut parameters = parameters();
        let tokens = |parameters: &exchange::Tensors, side: usize| {
            FrozenEncoder::new(&model(), parameters, &Device::Cpu)
                .unwrap()
                .tokens(&pixels(side, side))
                .unwrap()
                .to_vec3::<f32>()
                .unwrap()
        };
        let before = [16, 24].map(|side| tokens(&parameters, side));
        let table = parameters["pos_embed"].affine(-1.0, 0.5).unwrap();
        parameters.insert("pos_embed".to_owned(), table);
        let after = [16, 24].map(|side| tokens(&parameters, side));
        assert!(before[0] != after[0] && before[1] != after[1]);
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let mut parameters = parameters();
        parameters.remove("blocks.1.norm2.bias");
        let error = FrozenEncoder::new(&model(), &parameters, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("blocks.1.norm2.bias"), "{error}");
    }

    #[test]
    fn the_hash_is_of_names_shapes_and_values() {
        let parameters = parameters();
        let hash = weights_sha256(&parameters).unwrap();
        assert_eq!(hash, weights_sha256(&parameters.clone()).unwrap());
        let changed = |change: &dyn Fn(&mut exchange::Tensors)| {
            let mut other = parameters.clone();
            change(&mut other);
            weights_sha256(&other).unwrap()
        };
        let scaled = |t: &mut exchange::Tensors| {
            let bias = t["norm.bias"].affine(1.0, 1e-6).unwrap();
            t.insert("norm.bias".to_owned(), bias);
        };
        let renamed = |t: &mut exchange::Tensors| {
            let bias = t.remove("norm.bias").unwrap();
            t.insert("norm.bias2".to_owned(), bias);
        };
        assert_ne!(hash, changed(&scaled));
        assert_ne!(hash, changed(&renamed));
    }
}
