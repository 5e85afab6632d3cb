//! Evaluations of a trained encoder, as the papers do them.
//!
//! [`encoder`] loads the weights of any checkpoint and looks at pictures of any size; [`results`] is what an evaluation
//! leaves behind: every number with what it was made from. Protocols are in `docs/evaluations.md`.

pub mod encoder;
pub mod results;
