//! PyTorch's checkpoints: the zip, the pickle in it and the tensors it describes.

use trainer::exchange::{Format, ImportOptions, import};

use super::Target;
use super::weights::{files, given_heads};
use crate::{repair, scratch};

pub(super) const TARGET: Target = Target {
    name: "pth",
    run,
    seeds: || {
        let odd = [
            include_bytes!("../../../../trainer/tests/data/odd.pth").to_vec(),
            include_bytes!("../../../../trainer/tests/data/odd_protocol4.pth").to_vec(),
            include_bytes!("../../../../trainer/tests/data/odd_legacy.pth").to_vec(),
        ];
        [odd.to_vec(), files().pth.clone()].concat()
    },
    rounds: 3000,
};

fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    repair::zip(&mut bytes);
    let path = scratch::file("hostile.pth", &bytes);
    let options = ImportOptions {
        from: Format::Pth,
        ..given_heads()
    };
    drop(import(&path, &options));
    let options = ImportOptions {
        allow_missing: true,
        ..options
    };
    drop(import(&path, &options));
}
