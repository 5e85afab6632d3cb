//! Classification by a checkpoint: nearest neighbours, linear probes, fine-tuning.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline::codec::{Rgb8Image, encode_rgb8};
use pipeline::synth::{Scene, SynthFrame, SynthKind, SynthOptions, write_images};
use serde_json::Value;

use crate::support::{fails, json, ok, pairquet, send_signal, shared, text, utf8};
use crate::train::strs;

/// Made pictures in class folders.
fn write_raw(dir: &Path, seed: u64, n_classes: u32, images_per_class: u32) {
    let options = SynthOptions {
        seed,
        n_classes,
        images_per_class,
        size: 64,
        ..SynthOptions::default()
    };
    write_images(dir, &options).unwrap();
}

fn convert(raw: &Path, set: &Path, split: &str, more: &[&str]) {
    let mut args = vec!["convert", "imagenet", utf8(raw), utf8(set), "--quiet"];
    args.extend(["--split", split]);
    args.extend(more);
    ok(&args);
}

/// A set of made pictures of six classes with a train and a val split, of `n_train` and `n_val` of each.
fn make_set(dir: &Path, n_train: u32, n_val: u32) -> PathBuf {
    let set = dir.join("set");
    for (seed, split, n) in [(1, "train", n_train), (2, "val", n_val)] {
        let raw = dir.join("raw").join(split);
        write_raw(&raw, seed, 6, n);
        convert(&raw, &set, split, &[]);
    }
    set
}

/// Trains a very small encoder of `size` px on a set's train split.
fn train_tiny(set: &Path, run: &Path, method: &str, size: u32, steps: u64, more: &[&str]) {
    let config = format!("{}/configs/smoke/{method}.toml", env!("CARGO_MANIFEST_DIR"));
    let mut args = vec![
        "train".to_owned(),
        config,
        "--quiet".into(),
        "--out".into(),
        utf8(run).to_owned(),
    ];
    let values = [
        format!("data.path={}", set.display()),
        format!("data.size={size}"),
        format!("optim.max_steps={steps}"),
        "model.embed_dim=32".into(),
        "model.depth=2".into(),
        "model.num_heads=2".into(),
        "model.decoder_embed_dim=32".into(),
        "model.decoder_depth=1".into(),
    ];
    let more = more.iter().map(|&value| value.to_owned());
    for value in values.into_iter().chain(more) {
        args.extend(["--set".to_owned(), value]);
    }
    ok(&strs(&args));
}

/// 72 and 48 pictures, and an encoder that has seen some of them once.
fn small() -> (&'static Path, &'static Path) {
    static MADE: OnceLock<(tempfile::TempDir, PathBuf, PathBuf)> = OnceLock::new();
    let (_, set, run) = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let set = make_set(dir.path(), 12, 8);
        let run = dir.path().join("run");
        train_tiny(&set, &run, "mae", 32, 2, &[]);
        (dir, set, run)
    });
    (set, run)
}

/// Arguments of an evaluation of the small encoder on the small set.
fn args(protocol: &str, out: &Path, more: &[&str]) -> Vec<String> {
    let (set, run) = small();
    let fixed = [
        "eval",
        protocol,
        "--quiet",
        "--device",
        "cpu",
        "--checkpoint",
        utf8(run),
        "--data",
        utf8(set),
        "--out",
        utf8(out),
    ];
    fixed
        .iter()
        .chain(more)
        .map(|&arg| arg.to_owned())
        .collect()
}

/// The scores in an evaluation's folder.
fn scores(out: &Path) -> Value {
    let text = fs::read_to_string(out.join("results.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["scores"].take()
}

#[test]
fn every_picture_is_its_own_nearest_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("knn");
    let same = ["--val-split", "train", "--k", "1,72"];
    let results = json(&strs(&args("knn", &out, &same)));
    let [one, all] = ["1", "72"].map(|k| &results["scores"]["by_k"][k]);
    assert_eq!(one["n"], 72);
    assert_eq!(one["top1"]["percent"], 100.0, "{one}");
    // Wilson's lower end: n / (n + z^2).
    let low = one["top1"]["low"].as_f64().unwrap();
    assert!(
        (low - 100.0 * 72.0 / (72.0 + 3.841_458_8)).abs() < 1e-6,
        "{low}"
    );
    assert!(all["top1"]["percent"].as_f64() < Some(100.0), "{all}");
    assert_eq!(results["scores"]["n_classes"], 6);
    assert_eq!(results["data"]["n_files"], 2);
    assert_eq!(results["settings"]["temperature"], 0.07);

    // The paper's numbers of neighbours, as far as they go, and in spite of other threads the same.
    let results = json(&strs(&args("knn", &out, &[])));
    let ks: Vec<&String> = results["scores"]["by_k"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    assert_eq!(ks, ["10", "20"]);
    let again = dir.path().join("again");
    ok(&strs(&args("knn", &again, &["--threads", "3"])));
    assert_eq!(scores(&again), scores(&out));
    let by_mean = json(&strs(&args("knn", &out, &["--pool", "mean"])));
    assert_ne!(by_mean["scores"], results["scores"]);
}

#[test]
fn a_set_in_a_bucket_scores_the_same() {
    let (set, run) = small();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    ok(&strs(&args("knn", &out, &[])));
    let expected = scores(&out);

    let server = bucket::Server::start().unwrap();
    let there = server.folder().join("a/set");
    fs::create_dir_all(&there).unwrap();
    for (name, bytes) in crate::support::shard_bytes(set) {
        fs::write(there.join(&name), &bytes).unwrap();
    }
    let mut args = vec![
        "eval",
        "knn",
        "--quiet",
        "--device",
        "cpu",
        "--out",
        utf8(&out),
    ];
    args.extend(["--checkpoint", utf8(run), "--data", "s3://sets/a/set"]);
    let remote = pairquet()
        .envs(server.environment())
        .args(args)
        .output()
        .unwrap();
    assert!(remote.status.success(), "{}", text(&remote.stderr));
    assert_eq!(scores(&out), expected);
}

#[test]
fn sets_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let fail = |more: &[&str]| fails(1, &strs(&args("knn", &path("out"), more)));

    let message = fail(&["--k", "10,73"]);
    assert!(message.contains("k is 73, expected 1 to 72"), "{message}");
    let message = fail(&["--val-split", "test"]);
    assert!(
        message.contains("test") && message.contains("train"),
        "{message}"
    );

    // Other classes.
    write_raw(&path("raw"), 3, 4, 3);
    convert(&path("raw"), &path("four"), "val", &[]);
    let message = fail(&["--val-data", utf8(&path("four"))]);
    assert!(
        message.contains("four") && message.contains("4 classes, expected the 6"),
        "{message}"
    );
    fs::rename(path("raw/ring_clouded"), path("raw/a_bird")).unwrap();
    convert(&path("raw"), &path("renamed"), "train", &[]);
    let message = fail(&["--val-data", utf8(&path("renamed")), "--val-split", "train"]);
    assert!(message.contains("a_bird"), "{message}");

    // No labels: one flat folder.
    let flat = path("raw/disc_striped");
    convert(&flat, &path("flat"), "train", &[]);
    let message = fail(&["--val-data", utf8(&path("flat")), "--val-split", "train"]);
    assert!(message.contains("has no labels"), "{message}");
    let message = fail(&["--classes", "7"]);
    assert!(message.contains("6 classes, expected 7"), "{message}");

    for (protocol, more, word) in [
        (
            "probe",
            vec!["--batch-size", "16"],
            "accum_steps is 32, expected at most the 4 batches",
        ),
        ("probe", vec![], "data.batch_size = 512"),
        (
            "probe",
            vec!["--epochs", "10"],
            "warmup_epochs is 10, expected less than the 10 epochs",
        ),
        ("finetune", vec!["--mixup=-1"], "mixup is -1"),
        (
            "finetune",
            vec!["--layer-decay", "1.5"],
            "layer_decay is 1.5, expected 0 to 1",
        ),
    ] {
        let more: Vec<&str> = more;
        let message = fails(1, &strs(&args(protocol, &path(protocol), &more)));
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_picture_that_cannot_be_read_is_left_out_and_named() {
    let (set, _) = small();
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    write_raw(&raw, 4, 6, 4);
    let broken = raw.join("cross_striped/cross_striped_00001.JPEG");
    let bytes = fs::read(&broken).unwrap();
    fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    let val = dir.path().join("val");
    convert(&raw, &val, "val", &["--check", "header"]);

    let out = dir.path().join("out");
    let message = fails(
        1,
        &strs(&args("knn", &out, &["--val-data", utf8(&val), "--k", "5"])),
    );
    assert!(message.is_empty(), "quiet: {message}");
    let text = fs::read_to_string(out.join("results.json")).unwrap();
    let results: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(results["complete"], false);
    assert_eq!(results["scores"]["by_k"]["5"]["n"], 23);
    assert_eq!(results["failed"].as_array().unwrap().len(), 1);
    let failed = &results["failed"][0]["what"];
    assert!(
        failed.as_str().unwrap().contains("cross_striped_00001"),
        "{failed}"
    );
    assert_eq!(results["data"]["n_files"], 2, "{}", set.display());
}

const FINETUNE: [&str; 10] = [
    "--epochs",
    "12",
    "--warmup-epochs",
    "2",
    "--batch-size",
    "8",
    "--accum-steps",
    "2",
    "--base-lr",
    "0.02",
];
const PROBE: [&str; 8] = [
    "--epochs",
    "40",
    "--warmup-epochs",
    "2",
    "--batch-size",
    "16",
    "--accum-steps",
    "1",
];

/// Starts an evaluation and waits until it has finished an epoch.
fn start(protocol: &str, out: &Path, settings: &[&str]) -> Child {
    let saved = || {
        let file = fs::metadata(out.join("state.safetensors")).ok()?;
        file.modified().ok()
    };
    let before = saved();
    let mut child = pairquet()
        .args(args(protocol, out, settings))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while saved() == before {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no epoch in two minutes"
        );
        assert!(
            child.try_wait().unwrap().is_none(),
            "{protocol} ended before an epoch"
        );
        sleep(Duration::from_millis(2));
    }
    child
}

#[test]
fn a_killed_and_a_stopped_run_go_on_bit_for_bit() {
    for (protocol, settings) in [("finetune", &FINETUNE[..]), ("probe", &PROBE[..])] {
        let dir = tempfile::tempdir().unwrap();
        let [whole, broken] = ["whole", "broken"].map(|name| dir.path().join(name));
        ok(&strs(&args(protocol, &whole, settings)));

        let mut child = start(protocol, &broken, settings);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !broken.join("results.json").exists(),
            "{protocol} ended before it was killed"
        );
        #[cfg(unix)]
        {
            let mut more = settings.to_vec();
            more.extend(["--threads", "3"]);
            let child = start(protocol, &broken, &more);
            send_signal("-TERM", child.id());
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
            assert!(
                text(&output.stderr)
                    .ends_with("pairquet: stopped; the same command goes on from here\n")
            );
        }
        ok(&strs(&args(protocol, &broken, settings)));
        assert_eq!(scores(&broken), scores(&whole), "{protocol}");
        let state = |out: &Path| fs::read(out.join("state.safetensors")).unwrap();
        assert!(
            state(&broken) == state(&whole),
            "{protocol}: weights and momentum"
        );

        let limited = dir.path().join("limited");
        let mut short = settings.to_vec();
        short.push("--max-hours=0.00001");
        let said = fails(1, &strs(&args(protocol, &limited, &short)));
        let end = "stopped as --max-hours 0.00001 are over; the same command goes on from here\n";
        assert!(said.ends_with(end), "{said}");

        // A finished run is not trained again, and other settings are another run.
        ok(&strs(&args(protocol, &whole, settings)));
        let mut other = settings.to_vec();
        other.extend(["--seed", "1"]);
        let message = fails(1, &strs(&args(protocol, &whole, &other)));
        assert!(message.contains("seed: 0 -> 1"), "{message}");
    }
}

#[test]
fn fine_tuning_learns_what_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // Of the pictures that it learns from, without augmentation that would hide them.
    let mut settings = vec![
        "--val-split",
        "train",
        "--epochs",
        "40",
        "--warmup-epochs",
        "2",
    ];
    settings.extend([
        "--batch-size",
        "24",
        "--accum-steps",
        "1",
        "--base-lr",
        "0.05",
    ]);
    settings.extend([
        "--mixup",
        "0",
        "--cutmix",
        "0",
        "--rand-augment",
        "0",
        "--erase-p",
        "0",
    ]);
    let results = json(&strs(&args("finetune", &out, &settings)));
    let epochs = results["scores"]["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 40);
    let loss = |epoch: &Value| epoch["loss"].as_f64().unwrap();
    let (first, last) = (loss(&epochs[0]), loss(&epochs[39]));
    assert!(last < first - 0.1, "{first}, then {last}");
    let top1 = results["scores"]["val"]["top1"]["percent"]
        .as_f64()
        .unwrap();
    assert!(
        top1 > 40.0,
        "{top1} % of its own pictures, chance is 16.7 %"
    );
}

/// Made pictures cut to their objects, in class folders.
fn write_objects(dir: &Path, seed: u64, images_per_class: u32) {
    let options = SynthOptions {
        seed,
        size: 64,
        ..SynthOptions::default()
    };
    for class in 0..options.n_classes {
        let folder = dir.join(options.class_name(class));
        fs::create_dir_all(&folder).unwrap();
        for index in 0..images_per_class {
            let SynthFrame { image, mask } =
                Scene::new(&options, SynthKind::Image, class, index).render(index);
            let (width, height) = (image.width as usize, image.height as usize);
            let of_object = |at: &usize| mask[*at] == 1;
            let (mut columns, mut rows) = ([width, 0], [height, 0]);
            for at in (0..mask.len()).filter(of_object) {
                let (row, column) = (at / width, at % width);
                columns = [columns[0].min(column), columns[1].max(column)];
                rows = [rows[0].min(row), rows[1].max(row)];
            }
            let wide = columns[1] + 1 - columns[0];
            let data = image
                .data
                .chunks(3 * width)
                .take(rows[1] + 1)
                .skip(rows[0])
                .flat_map(|row| row[3 * columns[0]..][..3 * wide].to_vec())
                .collect();
            let cut = Rgb8Image {
                width: wide as u32,
                height: (rows[1] + 1 - rows[0]) as u32,
                data,
            };
            let bytes = encode_rgb8(&cut, 95).unwrap();
            fs::write(folder.join(format!("{index:05}.JPEG")), bytes).unwrap();
        }
    }
}

/// Points of top-1 by which the probe of the trained encoder must be better than that of the same encoder as it began. It was
/// 15 when this was written, each with a standard error of 2.
const MARGIN: f64 = 6.0;

/// Six classes of shapes and textures in colours that say nothing, which a contrastive loss under strong colour changes
/// makes easier to tell apart within some 13,000 pairs.
#[test]
fn the_probe_of_a_trained_encoder_beats_that_of_a_random_one() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    for (seed, split) in [(1, "train"), (2, "val")] {
        let raw = dir.path().join("raw").join(split);
        write_objects(&raw, seed, 100);
        convert(&raw, &set, split, &[]);
    }
    let mut settings = vec![
        "data.batch_size=64",
        "data.view_area=[0.5, 1.0]",
        "model.embed_dim=64",
        "model.mask_ratio=0.0",
        "model.reconstruction_weight=0.0",
        "model.contrastive.weight=1.0",
    ];
    let jitter = ["f1", "f2"].map(|view| {
        ["jitter_p=1.0", "hue=0.5", "grayscale_p=0.3"]
            .map(|value| format!("data.augment_{view}.{value}"))
    });
    settings.extend(jitter.iter().flatten().map(String::as_str));
    let top1 = |steps: u64, lr: &str| {
        let run = dir.path().join(format!("run-{steps}"));
        let settings = [&settings[..], &[lr]].concat();
        train_tiny(&set, &run, "multi_view", 32, steps, &settings);
        let out = dir.path().join(format!("probe-{steps}"));
        let mut args = vec!["eval", "probe", "--fast", "--device", "cpu", "--quiet"];
        args.extend(["--checkpoint", utf8(&run), "--data", utf8(&set)]);
        args.extend([
            "--out",
            utf8(&out),
            "--batch-size",
            "64",
            "--base-lr",
            "0.01",
        ]);
        let top1 = &json(&args)["scores"]["val"]["top1"]["percent"];
        top1.as_f64().unwrap()
    };
    let (random, trained) = (top1(1, "optim.lr=1e-12"), top1(200, "optim.lr=2e-3"));
    let figures = format!("trained {trained:.1} %, random {random:.1} %, chance 16.7 %");
    writeln!(std::io::stderr(), "{figures}").unwrap();
    assert!(trained > random + MARGIN, "{figures}");
}

#[test]
fn three_hundred_imagenet_pictures_are_classified() {
    let Some(src) = shared("imagenet/train") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    convert(&src, &set, "train", &["--short-side", "128"]);
    let run = dir.path().join("run");
    train_tiny(&set, &run, "mae", 32, 2, &[]);
    let eval = |protocol: &str, more: &[&str]| {
        let out = dir.path().join(protocol);
        let mut args = vec!["eval", protocol, "--device", "cpu", "--out", utf8(&out)];
        args.extend(["--checkpoint", utf8(&run), "--data", utf8(&set)]);
        args.extend(["--val-split", "train"]);
        args.extend(more);
        json(&args)["scores"].take()
    };
    let knn = eval("knn", &["--k", "1,200"]);
    assert_eq!(knn["n_classes"], 300);
    assert_eq!(knn["by_k"]["1"]["top1"]["percent"], 100.0, "{knn}");
    let course = [
        "--epochs",
        "2",
        "--warmup-epochs",
        "1",
        "--batch-size",
        "64",
        "--accum-steps",
        "2",
    ];
    for protocol in ["probe", "finetune"] {
        let scores = eval(protocol, &course);
        assert_eq!(scores["val"]["n"], 300, "{protocol}: {scores}");
        assert_eq!(scores["epochs"].as_array().unwrap().len(), 2);
        assert!(scores["epochs"][1]["loss"].as_f64().unwrap().is_finite());
    }
    let fast = eval("probe", &["--fast", "--epochs", "60", "--base-lr", "0.01"]);
    let top1 = fast["val"]["top1"]["percent"].as_f64().unwrap();
    assert!(top1 > 20.0, "{top1} % of its own pictures, chance is 0.3 %");
}
