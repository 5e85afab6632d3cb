//! safetensors: what others wrote, and a checkpoint of this project's.

use candle_core::Device;
use trainer::checkpoint::read_tensors;
use trainer::exchange::{ImportOptions, import};

use super::Target;
use super::weights::{files, given_heads};
use crate::scratch;

pub(super) const TARGET: Target = Target {
    name: "safetensors",
    run,
    seeds: || files().safetensors.clone(),
    rounds: 3000,
};

fn run(input: &[u8]) {
    let path = scratch::file("hostile.safetensors", input);
    drop(read_tensors(&path, &Device::Cpu));
    let options = ImportOptions {
        allow_missing: true,
        ..given_heads()
    };
    drop(import(&path, &options));
}
