//! Evaluations of a trained encoder, as the papers do them.
//!
//! [`encoder`] loads the weights of any checkpoint and looks at pictures of any size; [`results`] is what an evaluation
//! leaves behind: every number with what it was made from.
//!
//! Classification: [`labelled`] is a train and a val split, [`accuracy`] what is counted; [`knn`] trains nothing, [`probe`] a
//! linear layer, [`finetune`] everything, with [`mixing`] and [`erasing`] of its pictures; `supervised` is the loop of the
//! latter two, and `saved` what it goes on from. Protocols are in `docs/evaluations.md`.

pub mod accuracy;
pub mod during;
pub mod encoder;
pub mod erasing;
pub mod finetune;
pub mod knn;
pub mod labelled;
pub mod mixing;
pub mod probe;
pub mod results;
mod saved;
pub mod show;
pub mod supervised;
