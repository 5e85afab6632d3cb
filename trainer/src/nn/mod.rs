//! The layers, with the reference's parameter names and initialisation.
//!
//! [`params`] owns the parameters, [`init`] their first values; [`pass`] is what a forward pass carries (training or
//! not, where dropout draws come from, a watcher). [`block`] is timm's transformer block, [`decoder_block`] the
//! siamese decoder's.

pub mod attention;
pub mod block;
pub mod decoder_block;
pub mod dropout;
pub mod init;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod params;
pub mod pass;
pub mod patch_embed;
pub mod pos_embed;
