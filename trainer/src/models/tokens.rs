//! The learned tokens and fixed tables that models here start with, in the reference's parameter order: the encoder's,
//! the decoder's, then the layers.

use candle_core::Tensor;

use super::config::Sizes;
use crate::error::Result;
use crate::nn::init::Init;
use crate::nn::params::Params;
use crate::nn::pos_embed::sincos_pos_embed;

/// At the start.
const TOKEN: Init = Init::Normal { std: 0.02 };

/// What the encoder begins with.
#[derive(Debug, Clone)]
pub struct EncoderTokens {
    /// `[1, 1, D]`.
    pub cls_token: Tensor,
    /// `[1, 1 + N, D]`, fixed.
    pub pos_embed: Tensor,
}

impl EncoderTokens {
    /// Registers `cls_token` and `pos_embed`.
    ///
    /// # Errors
    /// If a name is taken or the width is not a multiple of 4.
    pub fn new(params: &mut Params, sizes: &Sizes) -> Result<EncoderTokens> {
        let width = sizes.embed_dim;
        Ok(EncoderTokens {
            cls_token: params.trainable("cls_token", &[1, 1, width], TOKEN)?,
            pos_embed: params.frozen("pos_embed", &sincos_pos_embed(width, sizes.grid())?)?,
        })
    }
}

/// What a decoder begins with.
#[derive(Debug, Clone)]
pub struct DecoderTokens {
    /// `[1, 1, decoder D]`.
    pub mask_token: Tensor,
    /// `[1, 1 + N, decoder D]`, fixed.
    pub decoder_pos_embed: Tensor,
}

impl DecoderTokens {
    /// Registers `mask_token` and `decoder_pos_embed`.
    ///
    /// # Errors
    /// If a name is taken or the width is not a multiple of 4.
    pub fn new(params: &mut Params, sizes: &Sizes) -> Result<DecoderTokens> {
        let width = sizes.decoder_embed_dim;
        let table = sincos_pos_embed(width, sizes.grid())?;
        Ok(DecoderTokens {
            mask_token: params.trainable("mask_token", &[1, 1, width], TOKEN)?,
            decoder_pos_embed: params.frozen("decoder_pos_embed", &table)?,
        })
    }
}
