//! Evaluations of a trained encoder, as the papers do them.
//!
//! [`encoder`] loads the weights of any checkpoint and looks at pictures of any size; [`results`] is what an evaluation
//! leaves behind: every number with what it was made from.
//!
//! Classification: [`labelled`] is a train and a val split, [`accuracy`] what is counted; [`knn`]. Protocols are in `docs/evaluations.md`.

pub mod accuracy;
pub mod encoder;
pub mod knn;
pub mod labelled;
pub mod results;
