//! Evaluations: the same weights score the same from any file, what fails is told apart, what is done is kept.

use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::support::{fails, json, ok, pairquet, text, utf8};
use crate::train::{strs, train_args};

const SIDES: (usize, usize) = (48, 64);
const N_FRAMES: usize = 4;

/// A square that moves to the right by 3 pixels a frame.
fn labels(t: usize, label: u8) -> Vec<u8> {
    let (height, width) = SIDES;
    (0..height * width)
        .map(|i| {
            let inside =
                (12..36).contains(&(i / width)) && (8 + 3 * t..32 + 3 * t).contains(&(i % width));
            if inside { label } else { 0 }
        })
        .collect()
}

fn write_png(path: &Path, color: png::ColorType, data: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(path).unwrap();
    let mut encoder = png::Encoder::new(file, SIDES.1 as u32, SIDES.0 as u32);
    encoder.set_color(color);
    if color == png::ColorType::Indexed {
        encoder.set_palette(&[0, 0, 0, 128, 0, 0, 0, 128, 0][..]);
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(data).unwrap();
}

fn write_frame(path: &Path, t: usize) {
    let pixels: Vec<u8> = labels(t, 1)
        .iter()
        .enumerate()
        .flat_map(|(i, label)| [220 * label, (i * 37 % 90) as u8, 50])
        .collect();
    write_png(path, png::ColorType::Rgb, &pixels);
}

/// Two sequences in DAVIS's layout.
pub fn davis(root: &Path) -> PathBuf {
    let root = root.join("davis");
    for name in ["one", "two"] {
        for t in 0..N_FRAMES {
            write_frame(&root.join(format!("JPEGImages/480p/{name}/{t:05}.png")), t);
            let path = root.join(format!("Annotations/480p/{name}/{t:05}.png"));
            write_png(&path, png::ColorType::Indexed, &labels(t, 1));
        }
    }
    fs::create_dir_all(root.join("ImageSets/2017")).unwrap();
    fs::write(root.join("ImageSets/2017/val.txt"), "one\ntwo").unwrap();
    root
}

/// A run of a tiny model, and its weights as other programs' files.
fn weights(root: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let run = root.join("run");
    let mut args = train_args("cropmae", &run, 1);
    args.extend(["--set".into(), "optim.max_steps=1".into()]);
    ok(&strs(&args));
    let exported = root.join("exported");
    ok(&["export", utf8(&run), utf8(&exported), "--to", "torch"]);
    let file = |extension: &str| {
        let mut files = fs::read_dir(&exported)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files
            .find(|path| path.extension().is_some_and(|e| e == extension))
            .unwrap()
    };
    (run, file("pth"), file("safetensors"))
}

#[test]
fn weights_score_the_same_from_any_file_and_scores_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let data = davis(dir.path());
    let (run, pth, safetensors) = weights(dir.path());
    let size = ["--size", "48x64", "--data", utf8(&data)];
    let score = |checkpoint: &Path, out: &str, more: &[&str]| -> Value {
        let out = dir.path().join(out);
        let args = [
            "eval",
            "davis",
            "-q",
            "-c",
            utf8(checkpoint),
            "--out",
            utf8(&out),
        ];
        json(&[&args[..], &size, more].concat())
    };
    let from_run = score(&run, "a", &[]);
    assert_eq!(from_run["complete"], true);
    assert_eq!(from_run["settings"]["propagation"]["top_k"], 7);
    let total = &from_run["scores"]["total"]["original"]["jf_mean"];
    assert!(total.as_f64().is_some_and(|jf| jf > 0.3), "{from_run}");
    let written: Value =
        serde_json::from_slice(&fs::read(dir.path().join("a/results.json")).unwrap()).unwrap();
    assert_eq!(written, from_run);

    let masks = dir.path().join("masks");
    for (file, out) in [(&pth, "b"), (&safetensors, "c")] {
        // The file does not say how many heads there are.
        let scored = score(file, out, &["--num-heads", "3", "--masks", utf8(&masks)]);
        assert_eq!(scored["scores"], from_run["scores"], "{}", file.display());
        let hash = |results: &Value| results["checkpoint"]["weights_sha256"].clone();
        assert_eq!(hash(&scored), hash(&from_run));
    }
    assert!(masks.join("two/00003.png").is_file());

    // Scores that are there are taken over; scores of other settings are not.
    let path = dir.path().join("a/results.json");
    let edited = fs::read_to_string(&path)
        .unwrap()
        .replace("\"n_frames\": 4", "\"n_frames\": 44");
    fs::write(&path, edited).unwrap();
    let frames = |results: &Value| results["scores"]["sequences"][1]["n_frames"].clone();
    assert_eq!(frames(&score(&run, "a", &[])), 44);
    let other = score(&run, "a", &["--top-k", "3", "--hard-labels"]);
    assert_eq!(frames(&other), 4);
    assert_eq!(other["settings"]["propagation"]["feed_back"], "hard");
}

#[test]
fn a_broken_sequence_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let data = davis(dir.path());
    let (run, ..) = weights(dir.path());
    fs::write(data.join("ImageSets/2017/val.txt"), "one\nthree\ntwo\n").unwrap();
    fs::write(data.join("Annotations/480p/one/00002.png"), "broken").unwrap();
    let out = dir.path().join("out");
    let message = fails(
        1,
        &[
            "eval",
            "davis",
            "-c",
            utf8(&run),
            "--data",
            utf8(&data),
            "--out",
            utf8(&out),
            "--size",
            "48x64",
        ],
    );
    assert!(
        message.contains("one is not scored") && message.contains("one/00002.png"),
        "{message}"
    );
    assert!(message.contains("three is not scored"), "{message}");
    let results: Value =
        serde_json::from_slice(&fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["complete"], false);
    assert_eq!(results["failed"].as_array().unwrap().len(), 2);
    assert_eq!(results["scores"]["sequences"][0]["name"], "two");
    assert!(results["scores"]["total"].is_object());
}

#[test]
fn nonsense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = davis(dir.path());
    let (_, pth, _) = weights(dir.path());
    let eval = |code: i32, more: &[&str]| {
        let args = ["eval", "davis", "-c", utf8(&pth), "--data", utf8(&data)];
        fails(code, &[&args[..], more].concat())
    };
    assert!(eval(2, &["--top-k", "0"]).contains("top_k is 0"));
    assert!(eval(2, &["--size", "0x4"]).contains("above 0"));
    assert!(eval(1, &["--subset", "test"]).contains("ImageSets/2017/test.txt"));
    assert!(eval(1, &["--ema"]).contains("expected a run's folder"));
    let message = eval(
        1,
        &[
            "--size",
            "48x60",
            "--num-heads",
            "3",
            "--out",
            utf8(&dir.path().join("o")),
        ],
    );
    assert!(message.contains("multiples of the patch, 8"), "{message}");
    // A file that lacks a parameter is refused unless that is allowed.
    let lacking = dir.path().join("lacking.safetensors");
    let mut bytes = fs::read(pth.with_file_name("model.safetensors")).unwrap();
    let at = bytes.windows(11).position(|w| w == b"norm.weight").unwrap();
    bytes[at..at + 11].copy_from_slice(b"gone.weight");
    fs::write(&lacking, bytes).unwrap();
    let args = [
        "eval",
        "checkpoint",
        "-c",
        utf8(&lacking),
        "--num-heads",
        "3",
    ];
    assert!(fails(1, &args).contains("gone.weight"));
    assert!(ok(&[&args[..], &["--allow-missing"]].concat()).contains("width 48"));
}

#[test]
fn body_parts_and_joints_are_scored() {
    let dir = tempfile::tempdir().unwrap();
    let (run, ..) = weights(dir.path());
    let (vip, jhmdb) = (dir.path().join("vip"), dir.path().join("jhmdb"));
    for t in 0..N_FRAMES {
        write_frame(&vip.join(format!("Images/videos1/{t:012}.png")), t);
        let path = vip.join(format!("Annotations/Category_ids/videos1/{t:012}.png"));
        write_png(&path, png::ColorType::Grayscale, &labels(t, 4));
        write_frame(
            &jhmdb.join(format!("Rename_Images/walk/clip/{:05}.png", t + 1)),
            t,
        );
    }
    let joints = jhmdb.join("joint_positions/walk/clip/joint_positions.mat");
    fs::create_dir_all(joints.parent().unwrap()).unwrap();
    fs::write(&joints, joint_positions()).unwrap();

    let score = |protocol: &str, data: &Path, more: &[&str]| -> Value {
        let out = dir.path().join(format!("out-{protocol}"));
        let args = [
            "eval",
            protocol,
            "-q",
            "-c",
            utf8(&run),
            "--out",
            utf8(&out),
            "--data",
            utf8(data),
        ];
        json(&[&args[..], more].concat())
    };
    let results = score("vip", &vip, &["--size", "128"]);
    let iou = &results["scores"]["total"]["iou"];
    assert!(
        iou[0].as_f64().is_some_and(|iou| iou > 0.5)
            && iou[4].as_f64().is_some_and(|iou| iou > 0.3),
        "{iou}"
    );
    assert!(iou[1].is_null());
    let given = score("vip", &vip, &["--size", "128", "--skip-first-frame"]);
    assert!(
        given["scores"]["total"]["miou"].as_f64() < results["scores"]["total"]["miou"].as_f64()
    );

    let results = score("jhmdb", &jhmdb, &["--size", "64x64"]);
    let pck: Vec<f64> = results["scores"]["pck"]
        .as_array()
        .unwrap()
        .iter()
        .map(|percent| percent.as_f64().unwrap())
        .collect();
    assert!(
        pck.is_sorted() && pck[4] > 0.0 && pck[4] <= 100.0,
        "{pck:?}"
    );
    let table = ok(&[
        "eval",
        "jhmdb",
        "-q",
        "-c",
        utf8(&run),
        "--data",
        utf8(&jhmdb),
        "--out",
        utf8(&dir.path().join("t")),
        "--size",
        "64x64",
    ]);
    assert!(
        table.contains("PCK@0.1") && table.contains("walk/clip"),
        "{table}"
    );

    fs::write(&joints, text(&[b' '; 200])).unwrap();
    let out = dir.path().join("broken");
    let message = fails(
        1,
        &[
            "eval",
            "jhmdb",
            "-c",
            utf8(&run),
            "--data",
            utf8(&jhmdb),
            "--out",
            utf8(&out),
        ],
    );
    assert!(
        message.contains("joint_positions.mat") && message.contains("version 5"),
        "{message}"
    );
}

/// A MAT file of version 5 with the joints of a figure that moves with the square.
fn joint_positions() -> Vec<u8> {
    let element = |kind: u32, data: &[u8]| {
        let mut bytes = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let places: Vec<u8> = (0..N_FRAMES)
        .flat_map(|t| (0..15).map(move |j| (t, j)))
        .flat_map(|(t, j)| [(10 + 3 * t + 5 * (j % 5)) as f64, (14 + 8 * (j / 5)) as f64])
        .flat_map(f64::to_le_bytes)
        .collect();
    let body = [
        element(6, &words(&[6, 0])),
        element(5, &words(&[2, 15, N_FRAMES as u32])),
        element(1, b"pos_img"),
        element(9, &places),
    ];
    let mut file = vec![b' '; 124];
    file.extend([0, 1]);
    file.extend(b"IM");
    file.extend(element(14, &body.concat()));
    file
}

#[test]
fn a_run_is_evaluated_on_the_way_and_its_weights_do_not_know_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = davis(dir.path());
    let plain = dir.path().join("plain");
    ok(&strs(&train_args("cropmae", &plain, 1)));
    let run = dir.path().join("run");
    let mut args = train_args("cropmae", &run, 1);
    for value in [
        "eval.every_steps=10".to_owned(),
        "eval.pictures=true".to_owned(),
        format!("eval.davis.data={}", utf8(&data)),
        "eval.davis.input=[48,64]".to_owned(),
    ] {
        args.extend(["--set".to_owned(), value]);
    }
    ok(&strs(&args));
    let lines = fs::read_to_string(run.join("evaluations.jsonl")).unwrap();
    let scores: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let steps: Vec<_> = scores.iter().map(|score| score["step"].as_u64()).collect();
    assert_eq!(steps, [Some(10), Some(20), Some(24)]);
    let last = run.join(scores[2]["dir"].as_str().unwrap());
    for picture in ["masks.png", "features.png", "attention.png"] {
        let bytes = fs::read(last.join(picture)).unwrap();
        assert!(bytes.starts_with(b"\x89PNG"), "{picture}");
    }
    let of = |run: &Path| {
        let id = json(&["eval", "checkpoint", "--checkpoint", utf8(run)]);
        id["weights_sha256"].as_str().unwrap().to_owned()
    };
    assert_eq!(of(&run), of(&plain));

    let out = dir.path().join("pictures");
    let frames = data.join("JPEGImages/480p/one");
    ok(&[
        "eval",
        "pictures",
        "--checkpoint",
        utf8(&run),
        utf8(&frames),
        utf8(&frames.join("00001.png")),
        "--out",
        utf8(&out),
    ]);
    for picture in ["features.png", "attention.png"] {
        assert!(fs::read(out.join(picture)).unwrap().starts_with(b"\x89PNG"));
    }
    let broken = data.join("JPEGImages/480p/two/00002.png");
    fs::write(&broken, "no picture").unwrap();
    let message = fails(
        1,
        &[
            "eval",
            "pictures",
            "--checkpoint",
            utf8(&run),
            utf8(&broken),
        ],
    );
    assert!(message.contains("00002.png"), "{message}");
    args.extend(["--set".into(), "optim.max_steps=26".into()]);
    let message = fails(1, &strs(&args));
    assert!(message.contains("two cannot be scored"), "{message}");
}

#[test]
fn the_run_folder_is_locked_while_a_run_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let data = davis(dir.path());
    let run = dir.path().join("run");
    let mut args = train_args("cropmae", &run, 1);
    for value in [
        "optim.max_steps=1".to_owned(),
        format!("eval.davis.data={}", utf8(&data)),
        "eval.davis.input=[160,208]".to_owned(),
    ] {
        args.extend(["--set".to_owned(), value]);
    }
    let mut child = pairquet()
        .args(&args)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Made when the evaluation begins.
    while !run.join("eval").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        sleep(Duration::from_millis(1));
    }
    let lock = fs::File::open(run.join(".lock")).unwrap();
    let taken = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    let evaluates = !run.join("evaluations.jsonl").exists();
    drop(lock);
    assert!(child.wait().unwrap().success());
    assert!(taken && evaluates, "taken: {taken}, evaluates: {evaluates}");
}
