//! Checkpoints out to other programs and back.

use std::fs;
use std::path::Path;

use crate::support::{fails, json, ok, utf8};
use crate::train::{strs, train_args};

#[test]
fn a_run_goes_out_comes_back_and_starts_another() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut args = train_args("cropmae", &run, 1);
    for value in ["optim.max_steps=2", "optim.ema_decay=0.5"] {
        args.extend(["--set".into(), value.into()]);
    }
    ok(&strs(&args));

    for to in ["timm", "hf", "torch"] {
        let out = dir.path().join(to);
        let report = json(&["export", utf8(&run), utf8(&out), "--to", to]);
        assert!(report["tensors"].as_u64().unwrap() > 10, "{report}");
        for file in report["files"].as_array().unwrap() {
            assert!(out.join(file[0].as_str().unwrap()).is_file(), "{file}");
        }
    }
    let model = fs::read_dir(dir.path().join("torch"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "pth"))
        .expect("a .pth file");
    let back = dir.path().join("back");
    let heads = ["--num-heads", "3", "--decoder-num-heads", "4"];
    ok(&[&["import", utf8(&model), utf8(&back)][..], &heads].concat());

    let mean = dir.path().join("mean");
    ok(&["export", utf8(&run), utf8(&mean), "--to", "torch", "--ema"]);
    let card = fs::read_to_string(mean.join("card.json")).unwrap();
    assert!(card.contains("ema.safetensors"), "{card}");
    let nowhere = dir.path().join("nowhere");
    let message = fails(
        1,
        &[
            "export",
            utf8(&back),
            utf8(&nowhere),
            "--to",
            "timm",
            "--ema",
        ],
    );
    assert!(message.contains("no ema.safetensors"), "{message}");

    let message = fails(1, &strs(&train_args("cropmae", &back, 1)));
    assert!(message.contains("init="), "{message}");

    let again = dir.path().join("again");
    ok(&["export", utf8(&back), utf8(&again), "--to", "torch"]);
    let weights = |folder: &str| tensor_bytes(&dir.path().join(folder).join("model.safetensors"));
    assert!(
        weights("again") == weights("torch"),
        "out, back and out again"
    );
    assert!(
        weights("mean") != weights("torch"),
        "the mean is not the weights"
    );

    let mut args = train_args("cropmae", &dir.path().join("second"), 1);
    for value in [
        "optim.max_steps=1".to_owned(),
        format!("init={}", back.display()),
    ] {
        args.extend(["--set".to_owned(), value]);
    }
    ok(&strs(&args));
}

/// What follows the header of a safetensors file: all values, in the order of the names.
fn tensor_bytes(file: &Path) -> Vec<u8> {
    let bytes = fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

#[test]
fn nonsense_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (file, dst) = (dir.path().join("weights.pth"), dir.path().join("dst"));
    fs::write(&file, b"not a checkpoint").unwrap();
    let message = fails(1, &["import", utf8(&file), utf8(&dst)]);
    assert!(message.contains("weights.pth"), "{message}");
    let message = fails(1, &["export", utf8(dir.path()), utf8(&dst), "--to", "timm"]);
    assert!(message.contains("checkpoint"), "{message}");
    assert!(!dst.exists());
}
