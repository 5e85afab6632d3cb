//! Help, exit codes and messages.

use crate::support::{demo_set, fails, json, ok, utf8};

#[test]
fn help_names_every_verb() {
    let help = ok(&["--help"]);
    for verb in [
        "convert", "inspect", "verify", "bench", "train", "eval", "import", "export", "demo",
    ] {
        assert!(help.contains(verb), "{verb} is missing from\n{help}");
        assert!(ok(&[verb, "--help"]).contains("Usage"));
    }
}

#[test]
fn a_wrong_command_is_2_and_says_what_was_wrong() {
    for (args, named) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["verify"], "<SET>"),
        (
            &[
                "convert",
                "imagenet",
                "src",
                "dst",
                "--shard-size",
                "12 parsecs",
            ],
            "12 parsecs",
        ),
        (
            &["convert", "imagenet", "src", "dst", "--max-bad", "101%"],
            "101%",
        ),
        (
            &["convert", "kinetics", "src", "dst", "--part", "3/2"],
            "3/2",
        ),
        (
            &["convert", "kinetics", "src", "dst", "--frames", "9..3"],
            "9..3",
        ),
        (
            &["convert", "imagenet", "src", "dst", "--quality", "0"],
            "0",
        ),
        (
            &[
                "convert",
                "imagenet",
                "src",
                "dst",
                "--quality",
                "80",
                "--min-psnr",
                "40",
            ],
            "--min-psnr",
        ),
        (&["demo", "--only", "everything"], "everything"),
        (&["inspect"], "shard set"),
    ] {
        let message = fails(2, args);
        assert!(message.contains(named), "{args:?}: {message}");
    }
}

#[test]
fn failed_work_is_1_and_names_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    let (nowhere, dst) = (utf8(&nowhere), utf8(dir.path()));
    for args in [
        &["verify", nowhere][..],
        &["inspect", nowhere],
        &["convert", "imagenet", nowhere, dst],
        &["convert", "kinetics", nowhere, dst],
        &["convert", "finish", nowhere],
        &["train", nowhere],
    ] {
        let message = fails(1, args);
        assert!(message.contains("nowhere"), "{args:?}: {message}");
    }
}

#[test]
fn a_config_with_a_wrong_value_is_named_before_anything_is_opened() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/smoke/cropmae.toml");
    for (change, named) in [
        ("optim.base_rl=1e-4", "base_rl"),
        ("model.mask_ratio=1.5", "1.5"),
        ("data.flip_p=-1", "flip_p"),
        ("device=abacus", "abacus"),
        ("model.num_heads=7", "num_heads"),
        ("model.depth=100000000", "100000000"),
        ("model.embed_dim=960000", "960000"),
        ("data.size=65", "data.size"),
        ("nonsense", "nonsense"),
    ] {
        let message = fails(1, &["train", config, "--set", change, "--print-config"]);
        assert!(message.contains(named), "{change}: {message}");
    }
}

#[test]
fn every_config_in_the_repository_resolves() {
    let configs = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
    let mut seen = 0;
    for kind in ["train", "train/multi_view_ablations", "smoke"] {
        for entry in std::fs::read_dir(format!("{configs}/{kind}")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                ok(&["train", utf8(&path), "--print-config"]);
                seen += 1;
            }
        }
    }
    assert!(seen >= 27, "only {seen} configs found");
}

#[test]
fn inspect_tells_what_is_there() {
    let set = demo_set().join("shards/clips");
    let report = json(&["inspect", utf8(&set), "--rows", "2"]);
    assert_eq!(report["kind"], "clips");
    assert_eq!(report["first_samples"].as_array().unwrap().len(), 2);
    let frames = report["rows"].as_u64().unwrap();
    let clips = report["samples"].as_u64().unwrap();
    assert!(clips > 1 && frames > 10 * clips, "{report}");
    let text = ok(&["inspect", utf8(&set)]);
    assert!(
        text.contains("time_us") && text.contains(&clips.to_string()),
        "{text}"
    );
}

#[test]
fn contact_sheets_show_samples_and_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let (samples, pairs) = (dir.path().join("samples.png"), dir.path().join("pairs.png"));
    let set = demo_set().join("shards/images");
    ok(&[
        "inspect",
        utf8(&set),
        "--sheet",
        utf8(&samples),
        "--samples",
        "4",
    ]);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/smoke/cropmae.toml");
    ok(&[
        "inspect",
        utf8(&set),
        "--config",
        config,
        "--sheet",
        utf8(&pairs),
        "--samples",
        "4",
    ]);
    for file in [samples, pairs] {
        let decoder =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&file).unwrap()));
        let info = decoder.read_info().unwrap();
        assert!(info.info().width > 200, "{}", file.display());
    }
}
