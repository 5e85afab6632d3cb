//! The learned tokens and fixed tables that every model here starts with.

use candle_core::Tensor;

use super::config::Sizes;
use crate::error::Result;
use crate::nn::init::Init;
use crate::nn::params::Params;
use crate::nn::pos_embed::sincos_pos_embed;

/// Standard deviation of the class and mask tokens at the start.
const TOKEN_STD: f64 = 0.02;

/// They come first in the reference's parameter order.
pub(super) struct Tokens {
    /// `[1, 1, D]`.
    pub cls_token: Tensor,
    /// `[1, 1 + N, D]`, fixed.
    pub pos_embed: Tensor,
    /// `[1, 1, decoder D]`.
    pub mask_token: Tensor,
    /// `[1, 1 + N, decoder D]`, fixed.
    pub decoder_pos_embed: Tensor,
}

impl Tokens {
    pub fn new(params: &mut Params, sizes: &Sizes) -> Result<Tokens> {
        let normal = Init::Normal { std: TOKEN_STD };
        let (width, decoder_width) = (sizes.embed_dim, sizes.decoder_embed_dim);
        Ok(Tokens {
            cls_token: params.trainable("cls_token", &[1, 1, width], normal)?,
            pos_embed: params.frozen("pos_embed", &sincos_pos_embed(width, sizes.grid())?)?,
            mask_token: params.trainable("mask_token", &[1, 1, decoder_width], normal)?,
            decoder_pos_embed: params.frozen(
                "decoder_pos_embed",
                &sincos_pos_embed(decoder_width, sizes.grid())?,
            )?,
        })
    }
}
