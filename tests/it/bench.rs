//! `pairquet bench loader` and `pairquet inspect --speed`.

use serde_json::Value;

use crate::support::{demo_set, fails, json, ok, utf8};

fn config(name: &str) -> String {
    format!("{}/configs/smoke/{name}.toml", env!("CARGO_MANIFEST_DIR"))
}

/// `data.path=…` of one of the demo's sets.
fn path_of(set: &str) -> String {
    format!("data.path={}", utf8(&demo_set().join("shards").join(set)))
}

#[test]
fn the_loader_of_a_config_is_timed() {
    let (crops, frames) = (config("cropmae"), config("siammae"));
    let repeated = "data.repeated_sampling=4";
    for (config, set) in [(&crops, "images"), (&frames, "clips")] {
        let path = path_of(set);
        let args = [
            "bench",
            "loader",
            config,
            "--set",
            &path,
            "--set",
            repeated,
            "--threads",
            "1,2",
            "--rounds",
            "2",
            "--seconds",
            "0.05",
            "--rate",
            "1000",
            "--float32",
        ];
        let report = json(&args);
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{report:#}"));
        assert_eq!(
            (&report["rounds"], &report["stopped"]),
            (&2.into(), &false.into())
        );
        assert!(number(&report["floor"]["pairs_per_s"]) > 0.0);
        for (loader, threads) in report["loaders"].as_array().unwrap().iter().zip([1, 2]) {
            assert_eq!(loader["threads"], threads);
            for figure in [
                "pairs_per_s",
                "percent_of_floor",
                "percent_of_memory",
                "bytes_per_pair",
            ] {
                assert!(number(&loader[figure]) > 0.0, "{figure}");
            }
            assert!(number(&loader["paced"]["wanted_pairs_per_s"]) == 1000.0);
            assert!(
                ["fetch", "views", "consumer"].contains(&loader["bottleneck"].as_str().unwrap())
            );
        }
        if cfg!(target_os = "linux") {
            assert!(number(&report["peak_memory_bytes"]) > 1e6);
        }
    }
}

#[test]
fn the_table_says_what_it_shows_and_only_the_loader_can_be_timed() {
    let (config, path) = (config("cropmae"), path_of("images"));
    let text = ok(&[
        "bench",
        "loader",
        &config,
        "--set",
        &path,
        "--set",
        "data.repeated_sampling=4",
        "--threads",
        "1",
        "--rounds",
        "1",
        "--batches",
        "3",
        "--loader-only",
    ]);
    for part in [
        "not timed",
        "pairs/s",
        "bottleneck",
        "waiting for input",
        "views",
        "fetch",
    ] {
        assert!(text.contains(part), "{part} is missing from\n{text}");
    }
}

#[test]
fn wrong_options_are_named() {
    let (config, path) = (config("cropmae"), path_of("images"));
    for (code, option, value, named) in [
        (2, "--seconds", "0", "--seconds 0"),
        (2, "--seconds", "nan", "--seconds NaN"),
        (2, "--threads", "two", "two"),
        (2, "--batches", "0", "0"),
        (1, "--threads", "0", "threads"),
        (1, "--rounds", "0", "rounds"),
        (1, "--rate", "0", "rate"),
        (1, "--batch-size", "0", "data.batch_size"),
        (1, "--set", "data.path=/no/such/set", "/no/such/set"),
    ] {
        let message = fails(
            code,
            &["bench", "loader", &config, "--set", &path, option, value],
        );
        assert!(message.contains(named), "{option} {value}: {message}");
    }
}

#[test]
fn inspect_tells_the_expected_speed_when_asked() {
    let shards = demo_set().join("shards");
    for (set, config) in [("images", config("cropmae")), ("clips", config("siammae"))] {
        let set = shards.join(set);
        let speed = |args: &[&str]| {
            let mut all = vec!["inspect", utf8(&set), "--rows", "1"];
            all.extend(args);
            json(&all)["speed"].clone()
        };
        assert_eq!(speed(&[]), Value::Null);
        let (standard, of_config) = (
            speed(&["--speed"]),
            speed(&["--speed", "--config", &config]),
        );
        for speed in [&standard, &of_config] {
            assert!(speed["pairs_per_s"].as_f64().unwrap() > 0.0, "{speed}");
        }
        // Views of 64 px instead of 224 are cut in less time.
        assert!(of_config["views_ms"].as_f64() < standard["views_ms"].as_f64());
    }
    let text = ok(&["inspect", utf8(&shards.join("images")), "--speed"]);
    assert!(text.contains("pairs/s a core from memory"), "{text}");
}
