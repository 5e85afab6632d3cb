//! What a config reads, and in which order, without reading it.

use crate::support::{demo_set, fails, json, ok};

fn with_images<'a>(verb: &[&'a str], path: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/smoke/cropmae.toml");
    [verb, &[config, "--set", path], more].concat()
}

#[test]
fn the_hash_of_an_order_is_the_same_for_any_number_of_ranks() {
    let path = format!("data.path={}", demo_set().join("shards/images").display());
    let batch = ["--set", "data.batch_size=16", "--batches", "20", "--hash"];
    for order in ["data.order=full", "data.order=blocks"] {
        let hash = |more: &[&str]| {
            let more = [&batch, &["--set", order][..], more].concat();
            ok(&with_images(&["order"], &path, &more))
        };
        let alone = hash(&[]);
        assert_eq!(alone.trim().len(), 64);
        for ranks in ["2", "4", "8"] {
            assert_eq!(hash(&["--ranks", ranks]), alone);
        }
        assert_eq!(hash(&["--set", "data.threads=3"]), alone);
        assert_ne!(hash(&["--set", "seed=9"]), alone);
        assert_ne!(hash(&["--start", "0:1"]), alone);
    }
    let uneven = [&batch[..], &["--ranks", "3"]].concat();
    let error = fails(1, &with_images(&["order"], &path, &uneven));
    assert!(error.contains("a multiple of the 3 ranks"), "{error}");
    fails(2, &with_images(&["order"], &path, &["--start", "3"]));
}

#[test]
fn an_order_is_listed_and_its_shuffle_described() {
    let path = format!("data.path={}", demo_set().join("shards/images").display());
    let args = |more: &[&'static str]| {
        let more = [&["--set", "data.batch_size=16"], more].concat();
        json(&with_images(&["order"], &path, &more))
    };
    let report = args(&["--set", "data.order=full"]);
    let n = report["visits_per_epoch"].as_u64().unwrap();
    assert_eq!(report["batches_per_epoch"].as_u64().unwrap(), n / 16);
    let correlation = report["quality"]["neighbour_correlation"].as_f64().unwrap();
    assert!(correlation.abs() < 0.5, "{report}");
    let stored = args(&["--set", "data.order=sequential"]);
    assert!(
        stored["quality"]["neighbour_correlation"].as_f64().unwrap() > 0.9,
        "{stored}"
    );
    let more = [
        "--set",
        "data.batch_size=16",
        "--set",
        "data.order=sequential",
        "--list",
    ];
    let list = ok(&with_images(
        &["order"],
        &path,
        &[&more[..], &["--batches", "2"]].concat(),
    ));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[31]),
        (32, "0\t0\t0\t0\t0", "0\t1\t15\t31\t31")
    );
}

#[test]
fn a_plan_says_what_is_read() {
    let path = format!("data.path={}", demo_set().join("shards/images").display());
    let plan = |more: &[&'static str]| {
        let more = [
            &["--set", "data.batch_size=16", "--set", "data.order=blocks"],
            more,
        ]
        .concat();
        json(&with_images(&["inspect", "--plan"], &path, &more))
    };
    let pages = plan(&[]);
    assert_eq!(pages["read"], "pages");
    let groups = plan(&["--set", "data.read=groups"]);
    assert_eq!(groups["read"], "groups");
    assert_eq!(groups["bytes"], groups["distinct_bytes"]);
    assert!(groups["requests"].as_u64() < pages["requests"].as_u64());
    // A slower line takes longer.
    let slow = plan(&["--set", "data.read=groups", "--bandwidth-mib", "0.1"]);
    let seconds = |plan: &serde_json::Value| plan["seconds_per_batch"].as_f64().unwrap();
    assert!(seconds(&slow) > 10.0 * seconds(&groups));
    let text = ok(&with_images(&["inspect", "--plan"], &path, &[]));
    for word in ["an epoch", "single pictures", "requests", "cache"] {
        assert!(text.contains(word), "{text}");
    }
    fails(
        2,
        &with_images(&["inspect", "--plan"], &path, &["--latency-ms", "-1"]),
    );
}
