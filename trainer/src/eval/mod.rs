//! Evaluations of a trained encoder, as the papers do them.
//!
//! [`encoder`] loads the weights of any checkpoint and looks at pictures of any size; [`results`] is what an evaluation
//! leaves behind: every number with what it was made from. [`during`] evaluates along a training run; [`show`] and [`sheets`]
//! draw what an encoder sees. Protocols are in `docs/evaluations.md`.
//!
//! Videos, in reading order: [`frames`] and [`sampling`] make the network's input and the first labels; [`propagate`]
//! carries labels from frame to frame; [`video`] is both for one video; [`davis`] (with [`davis_metrics`]), [`vip`] and
//! [`jhmdb`] (with [`mat`]) are the protocols; [`run`] scores a list of videos and keeps what is done.
//!
//! Classification: [`labelled`] is a train and a val split, [`accuracy`] what is counted; [`knn`] trains nothing, [`probe`] a
//! linear layer, [`finetune`] everything, with [`mixing`] and [`erasing`] of its pictures; [`supervised`] is the loop of the
//! latter two, and `saved` what it goes on from.

pub mod accuracy;
pub mod davis;
pub mod davis_metrics;
pub mod during;
pub mod encoder;
pub mod erasing;
pub mod finetune;
pub mod frames;
pub mod jhmdb;
pub mod knn;
pub mod labelled;
pub mod mat;
pub mod mixing;
pub mod probe;
pub mod propagate;
pub mod results;
pub mod run;
pub mod sampling;
mod saved;
pub mod sheets;
pub mod show;
pub mod supervised;
pub mod video;
pub mod vip;
