//! Files of format version 1 are read for ever, and files of a format that comes after are refused as such.

use std::fs;
use std::path::{Path, PathBuf};

use pipeline::codec::decode_rgb8;
use pipeline::config::{DataConfig, ViewsKind};
use pipeline::hex;
use pipeline::loader::{Loader, LoaderState, Rank};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shards::{Column, Environment, Kind, ShardSet};
use trainer::checkpoint::State;

use crate::eval::davis;
use crate::support::{fails, json as report, ok, tree, utf8};

/// Digits of SHA-256 in `expected.json`.
const DIGITS: usize = 12;

/// See `tests/data/v1/README.md`.
fn v1(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/v1")
        .join(path)
}

/// What other programs read in a file.
fn expected(what: &str) -> Vec<Value> {
    let all: Value = serde_json::from_slice(&fs::read(v1("expected.json")).unwrap()).unwrap();
    all[what].as_array().expect("a list").clone()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))[..DIGITS].to_owned()
}

/// A copy of one of the folders that may be written to.
fn copy(from: &str, to: &Path) {
    for (path, bytes) in tree(&v1(from)) {
        let to = to.join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
}

#[test]
fn every_row_is_what_other_programs_read() {
    for (set, split) in [("images", "train"), ("images", "val"), ("clips", "train")] {
        let expected = expected(&format!("{set}/{split}"));
        let found = rows(&v1(set), split);
        assert_eq!(found.len(), expected.len(), "{set}/{split}");
        for (row, expected) in found.iter().zip(&expected) {
            assert_eq!(row, expected, "{set}/{split}");
        }
    }
}

/// All rows of a split by the two ways there are: column by column, and sample by sample.
fn rows(set: &Path, split: &str) -> Vec<Value> {
    let set = ShardSet::open(utf8(set), split).unwrap();
    let mut rows = Vec::new();
    for shard in 0..set.n_shards() {
        let mut small = Column::of(set.kind()).to_vec();
        small.retain(|column| !matches!(column, Column::ImageBytes | Column::ImagePath));
        let (_, columns) = set.columns(shard, &small).unwrap();
        for n in set.samples_of(shard) {
            let sample = set.sample(n).unwrap();
            let named = set.named_sample(n).unwrap();
            assert_eq!(
                (named.n_frames, named.label),
                (sample.n_frames, sample.label)
            );
            for frame in 0..sample.n_frames {
                let bytes = set.picture(n, frame).unwrap();
                let pixels = decode_rgb8(&bytes).unwrap();
                let at = (sample.first_row + u64::from(frame)) as usize;
                assert_eq!(*columns.names[at], *sample.key);
                assert_eq!(columns.labels[at], sample.label);
                let mut row = json!({
                    "label": sample.label,
                    "width": columns.widths[at],
                    "height": columns.heights[at],
                    "crc32c": columns.crc32c[at],
                    "bytes": sha256(&bytes),
                    "pixels": sha256(&pixels.data),
                });
                let more = match set.kind() {
                    Kind::Images => {
                        json!({"key": sample.key})
                    }
                    Kind::Clips => json!({
                        "clip": sample.key,
                        "frame": columns.frames[at],
                        "n_frames": columns.n_frames[at],
                        "time_us": columns.times_us[at],
                    }),
                };
                row.as_object_mut()
                    .unwrap()
                    .extend(more.as_object().unwrap().clone());
                rows.push(row);
            }
        }
    }
    rows
}

#[test]
fn the_manifests_say_what_they_said() {
    let images = ShardSet::open(utf8(&v1("images")), "train").unwrap();
    let names: Vec<_> = images
        .class_names()
        .iter()
        .map(|class| (class.id.as_str(), class.name.as_str()))
        .collect();
    let expected = [
        ("diamond_checked", "a checked diamond"),
        ("ring_clouded", "a clouded ring"),
    ];
    assert_eq!(names, expected);
    let manifest = images.manifest();
    assert_eq!(manifest.splits["train"].rows(), 11);
    assert_eq!(manifest.splits["train"].shards[0].groups.len(), 3);
    assert_eq!(manifest.splits["val"].samples(), 2);
    assert_eq!(manifest.options["train"]["short_side"], 24);
    assert_eq!(manifest.skipped.count, 1);
    let clips = ShardSet::open(utf8(&v1("clips")), "train").unwrap();
    assert_eq!((clips.n_samples(), clips.kind()), (2, Kind::Clips));
    for set in ["images", "clips"] {
        assert_eq!(
            report(&["verify", utf8(&v1(set))])["findings"],
            json!([]),
            "{set}"
        );
    }
}

/// The pixels that a run is given, with all that keys its randomness.
#[test]
fn the_loader_makes_the_same_batches() {
    let images = DataConfig {
        batch_size: 4,
        views: ViewsKind::CropPair,
        size: 16,
        threads: 1,
        path: utf8(&v1("images")).to_owned(),
        ..DataConfig::default()
    };
    let clips = DataConfig {
        batch_size: 2,
        views: ViewsKind::FramePair,
        min_gap: 1,
        max_gap: 3,
        path: utf8(&v1("clips")).to_owned(),
        ..images.clone()
    };
    for (config, expected) in [(images, IMAGES_BATCHES), (clips, CLIPS_BATCHES)] {
        let start = LoaderState { epoch: 1, batch: 0 };
        let mut loader = Loader::new(&config, 5, Rank::SINGLE, start).unwrap();
        let found: Vec<String> = (0..expected.len())
            .map(|_| {
                let batch = loader.next_batch().unwrap();
                let names = format!(
                    "{} {} {:?} {:?} {:?}",
                    batch.epoch, batch.index, batch.labels, batch.samples, batch.keys
                );
                format!("{} {}", sha256(names.as_bytes()), sha256(&batch.views))
            })
            .collect();
        assert_eq!(found, expected, "{:?}", config.views);
    }
}

const IMAGES_BATCHES: &[&str] = &[
    "73162612f7c5 e005ac7b03f9",
    "9ee1bd30481d 650c86820fc9",
    "e6204e9ed2c6 5ef393a936e3",
];
const CLIPS_BATCHES: &[&str] = &["1092166f0b43 6969951b9bce", "3bec6df8e4b6 91f1ff59b1c2"];

const STEP: &str = "run/checkpoints/step-00000003";

#[test]
fn a_checkpoint_says_where_the_run_was() {
    let state = State::read_verified(&v1(STEP)).unwrap();
    assert_eq!((state.step, state.batches_per_epoch), (3, 2));
    assert_eq!(state.loader, LoaderState { epoch: 1, batch: 1 });
    let losses: Vec<f32> = state
        .losses
        .first
        .iter()
        .map(|&bits| f32::from_bits(bits))
        .collect();
    assert_eq!(losses, [1.1819229, 1.0808619, 1.046893]);
    let config: trainer::TrainConfig = trainer::TrainConfig::from_toml(&state.config).unwrap();
    assert_eq!((config.seed, config.optim.ema_decay), (7, Some(0.9)));
}

/// A file of safetensors as it lies on the disk: name, shape and values of each tensor.
fn tensors(path: &Path) -> Vec<(String, Value, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let (len, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let header: Value = serde_json::from_slice(header).unwrap();
    let tensors = header.as_object().unwrap().iter();
    let mut tensors: Vec<_> = tensors
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, tensor)| {
            let at = |n: usize| tensor["data_offsets"][n].as_u64().unwrap() as usize;
            let values = data[at(0)..at(1)].to_vec();
            (name.clone(), tensor["shape"].clone(), values)
        })
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// Euclidean distance between the values of two files with the same tensors.
fn distance(a: &Path, b: &Path) -> f64 {
    let (a, b) = (tensors(a), tensors(b));
    assert_eq!(a.len(), b.len());
    let mut sum = 0.0;
    for ((a_name, _, a), (b_name, _, b)) in a.iter().zip(&b) {
        assert_eq!((a_name, a.len()), (b_name, b.len()));
        let values = |bytes: &[u8]| -> Vec<f32> {
            let (words, _) = bytes.as_chunks::<4>();
            words.iter().map(|&word| f32::from_le_bytes(word)).collect()
        };
        let pairs = values(a).into_iter().zip(values(b));
        sum += pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    }
    sum.sqrt()
}

/// Steps 4 to 6 of the run of version 0.1.0, and how far its files went in them.
const LOSSES: [f64; 3] = [1.0433948, 1.0323483, 1.028157];
const GRAD_NORMS: [f64; 3] = [0.2555007819373912, 0.19376677078857507, 0.21308807616786157];
const DISTANCES: [(&str, f64); 3] = [
    ("model", 0.25784470901522627),
    ("ema", 0.32391010017004424),
    ("optim", 0.10140872587718729),
];
/// Other processors add in another order.
const TOLERANCE: f64 = 1e-3;

fn assert_near(found: f64, expected: f64, what: &str) {
    assert!(
        ((found - expected) / expected).abs() < TOLERANCE,
        "{what} is {found}, was {expected}"
    );
}

#[test]
fn a_run_goes_on_from_an_old_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    copy("run", &run);
    let config = run.join("config.toml");
    let path = format!("data.path={}", v1("images").display());
    let summary = report(&[
        "train",
        utf8(&config),
        "--out",
        utf8(&run),
        "--set",
        &path,
        "--set",
        "run.stop_after=6",
    ]);
    assert_eq!(summary["steps"], 6, "{summary}");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 6);
    for (n, line) in lines[3..].iter().enumerate() {
        let step = n + 4;
        assert_eq!(line["step"], step);
        let number = |name: &str| line[name].as_f64().unwrap();
        assert_near(number("loss"), LOSSES[n], &format!("loss of step {step}"));
        assert_near(
            number("grad_norm"),
            GRAD_NORMS[n],
            &format!("gradient norm of step {step}"),
        );
    }
    for (file, expected) in DISTANCES {
        let name = format!("{file}.safetensors");
        let last = run.join("checkpoints/step-00000006").join(&name);
        assert_near(
            distance(&v1(STEP).join(name), &last),
            expected,
            &format!("the way of {file}"),
        );
    }
}

#[test]
fn old_checkpoints_go_out_and_come_back_with_every_value() {
    let dir = tempfile::tempdir().unwrap();
    for (from, ema, file) in [
        (
            "run",
            false,
            "run/checkpoints/step-00000003/model.safetensors",
        ),
        ("run", true, "run/checkpoints/step-00000003/ema.safetensors"),
        ("imported", false, "imported/model.safetensors"),
    ] {
        let out = dir.path().join(format!("{from}-{ema}"));
        let (from, to) = (v1(from), utf8(&out));
        let mut args = vec!["export", utf8(&from), to, "--to", "torch"];
        args.extend(ema.then_some("--ema"));
        ok(&args);
        let found: Vec<Value> = tensors(&out.join("model.safetensors"))
            .into_iter()
            .map(|(name, shape, values)| json!([name, shape, sha256(&values)]))
            .collect();
        assert_eq!(found, expected(file), "{file}");
    }

    // An exported file of version 1 is imported as it was then.
    let back = dir.path().join("back");
    let file = v1("export/model.safetensors");
    ok(&["import", utf8(&file), utf8(&back)]);
    assert!(tensors(&back.join("model.safetensors")) == tensors(&v1("imported/model.safetensors")));
    let seen = report(&["eval", "checkpoint", "-c", utf8(&v1("imported"))]);
    assert!(
        seen.to_string()
            .contains("width 4, depth 1, heads 1, patches of 4"),
        "{seen}"
    );
}

#[test]
fn an_old_comparison_is_reported_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let said = report(&[
        "compare",
        "report",
        utf8(&v1("compare")),
        "--out",
        utf8(dir.path()),
    ]);
    assert_eq!(said["missing"], json!([]));
    let results = |dir: &Path| fs::read_to_string(dir.join("results.csv")).unwrap();
    assert_eq!(results(dir.path()), results(&v1("compare")));
}

const NEWER: &str = "has format 2, expected 1: a newer version of this program wrote it";

/// Makes a JSON file one of the next format, which has a field that nobody here knows.
fn make_newer(path: &Path) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    value["format"] = 2.into();
    value["invented_later"] = "x".into();
    fs::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

#[test]
fn files_of_a_later_format_are_refused_as_such_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for folder in ["images", "run", "imported", "compare"] {
        copy(folder, &root.join(folder));
    }
    let refused = |args: &[&str], file: &str| {
        let before = tree(root);
        let message = fails(1, args);
        assert!(
            message.contains(NEWER) && message.contains(file),
            "{args:?}: {message}"
        );
        assert!(tree(root) == before, "{args:?} changed something");
    };
    let at = |path: &str| utf8(&root.join(path)).to_owned();

    let (images, run, imported) = (at("images"), at("run"), at("imported"));
    let data = format!("data.path={}", v1("images").display());
    let config = at("run/config.toml");
    let out = at("out");
    let state = root.join(STEP).join("state.json");
    make_newer(&state);
    fs::write(root.join("run/.lock"), "").unwrap(); // as every run leaves it
    let train = ["train", &config, "--out", &run, "--set", &data, "-q"];
    refused(&train, "state.json");
    refused(&["export", &run, &out, "--to", "timm"], "state.json");
    refused(&["eval", "checkpoint", "-c", &run], "state.json");

    make_newer(&root.join("imported/import.json"));
    refused(&["export", &imported, &out, "--to", "timm"], "import.json");

    let compare = at("compare");
    let results = root.join("compare/mae/seed-3/eval/knn-00000002/results.json");
    make_newer(&results);
    refused(&["compare", "report", &compare], "results.json");
    make_newer(&root.join("compare/mae/seed-3/record.json"));
    refused(&["compare", "report", &compare], "record.json");

    // An evaluation that would be gone on with.
    let davis = utf8(&davis(root)).to_owned();
    let scores = root.join("scores");
    fs::create_dir(&scores).unwrap();
    fs::copy(&results, scores.join("results.json")).unwrap();
    let weights = utf8(&v1("run")).to_owned();
    let into = at("scores");
    refused(
        &[
            "eval", "davis", "-q", "-c", &weights, "--data", &davis, "--out", &into, "--size",
            "48x64",
        ],
        "results.json",
    );

    // A shard's version is in its footer, behind its key and the head of a text of one byte.
    let shard = root.join("images/val-00000-of-00001.parquet");
    let mut bytes = fs::read(&shard).unwrap();
    let key = b"pairquet.format";
    let place = bytes.windows(key.len()).position(|part| part == key);
    let version = place.unwrap() + key.len() + 2;
    assert_eq!(bytes[version - 1..=version], [1, b'1']);
    bytes[version] = b'2';
    fs::write(&shard, &bytes).unwrap();
    let set = ShardSet::open(&images, "val").unwrap();
    let message = set.sample(0).unwrap_err().to_string();
    assert!(
        message.contains(NEWER) && message.contains("val-00000-of-00001"),
        "{message}"
    );
    let environment = Environment::default();
    let store = shards::Store::open_with(&images, &Default::default(), &environment).unwrap();
    let seen = shards::verify_in(&store, &mut |_| ()).unwrap();
    assert!(
        seen.findings
            .iter()
            .any(|finding| finding.to_string().contains(NEWER))
    );

    make_newer(&root.join("images/manifest.json"));
    for verb in ["inspect", "verify"] {
        refused(&[verb, &images], "manifest.json");
    }
}
