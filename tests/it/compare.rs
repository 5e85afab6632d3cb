//! Comparisons: the same report however the runs came about, and nothing run twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use crate::browser::{self, Scheme};
use crate::eval::davis;
use crate::support::{demo_set, fails, json, ok, pairquet, run, text, utf8};

/// Two methods and an untrained one, two seeds, four steps, on the demo's data.
pub fn config(dir: &Path) -> PathBuf {
    let demo = demo_set();
    let (images, clips) = (demo.join("shards/images"), demo.join("shards/clips"));
    let sequences = davis(dir);
    let path = dir.join("tiny.toml");
    let text = format!(
        r#"
name = "tiny"
question = "Video or images?"
seeds = [0, 1]
evaluations = 2
budget = {{ steps = 4 }}
[train]
device = "cpu"
data = {{ size = 32, batch_size = 8, threads = 1 }}
model = {{ encoder = "vit_ti16", patch_size = 8, embed_dim = 48, depth = 2, num_heads = 3, decoder_embed_dim = 32, decoder_depth = 1, decoder_num_heads = 4, mask_ratio = 0.5 }}
optim = {{ lr = 1e-3 }}
run = {{ log_every = 1, pictures_samples = 2 }}
[train.eval]
pictures = true
davis = {{ data = "{}", input = [48, 64] }}
[[method]]
name = "CropMAE"
published = "cropmae_in1k"
train = {{ data = {{ path = "{}", views = "crop_pair" }} }}
[[method]]
name = "SiamMAE"
train = {{ data = {{ path = "{}", views = "frame_pair" }} }}
[[method]]
name = "untrained"
untrained = true
train = {{ data = {{ path = "{}", views = "crop_pair" }} }}
"#,
        utf8(&sequences),
        utf8(&images),
        utf8(&clips),
        utf8(&images)
    );
    fs::write(&path, text).unwrap();
    path
}

fn results(dir: &Path) -> String {
    fs::read_to_string(dir.join("results.csv")).unwrap()
}

#[test]
fn killed_and_resumed_it_repeats_nothing_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let undisturbed = dir.path().join("undisturbed");
    ok(&["-q", "compare", utf8(&config), "--out", utf8(&undisturbed)]);

    let killed = dir.path().join("killed");
    let limited = [
        "compare",
        utf8(&config),
        "--out",
        utf8(&killed),
        "--max-hours=0.0001",
    ];
    let said = fails(1, &limited);
    assert!(
        said.ends_with(
            "stopped as --max-hours 0.0001 are over; the same command goes on from here\n"
        ),
        "{said}"
    );
    for millis in [300, 900, 1500] {
        let mut child = pairquet()
            .args(["-q", "compare", utf8(&config), "--out", utf8(&killed)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let report = json(&["compare", utf8(&config), "--out", utf8(&killed)]);
    assert_eq!(results(&killed), results(&undisturbed));
    let evaluated = fs::read_to_string(killed.join("cropmae/seed-1/evaluations.jsonl")).unwrap();
    assert_eq!(evaluated.lines().count(), 2, "as often as the config says");
    assert_eq!(report["missing"].as_array().unwrap().len(), 0);
    assert!(
        report["summary"][0]
            .as_str()
            .unwrap()
            .starts_with("After 4 steps each, ")
    );
    assert_eq!(report["methods"][0]["published"]["davis"][0], 60.4);

    let page = killed.join("report.html");
    let (first, record) = (
        fs::read(&page).unwrap(),
        killed.join("cropmae/seed-1/record.json"),
    );
    let written = fs::metadata(&record).unwrap().modified().unwrap();
    let output = run(&["compare", utf8(&config), "--out", utf8(&killed)]);
    let said = text(&output.stderr);
    assert_eq!(said.matches("is complete").count(), 6, "{said}");
    assert_eq!(fs::metadata(&record).unwrap().modified().unwrap(), written);
    assert!(
        fs::read(&page).unwrap() == first,
        "the report of the same records is the same"
    );
    read_in_a_browser(&page);
}

/// The report as a reader opens it: nothing goes wrong, nothing is asked of the network, and it follows the reader's
/// choice of light or dark.
fn read_in_a_browser(page: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let [light, dark] = [Scheme::Light, Scheme::Dark].map(|scheme| {
        let visit = browser::open(page, scheme, dir.path())?;
        assert_eq!(visit.console, [""; 0]);
        assert_eq!(visit.requests, [""; 0]);
        Some(browser::brightness(&visit.screenshot))
    });
    if let (Some(light), Some(dark)) = (light, dark) {
        assert!(light > 200.0 && dark < 80.0, "{light} and {dark}");
    }
}

#[test]
fn parts_from_two_folders_are_reported_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let whole = dir.path().join("whole");
    ok(&["-q", "compare", utf8(&config), "--out", utf8(&whole)]);
    let listed = json(&["compare", utf8(&config), "--list"]);
    assert_eq!(listed.as_array().unwrap().len(), 6);
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    for (part, out) in [("1/2", &one), ("2/2", &other)] {
        ok(&[
            "-q",
            "compare",
            utf8(&config),
            "--out",
            utf8(out),
            "--part",
            part,
        ]);
        assert!(
            !out.join("report.html").exists(),
            "a part alone is no answer"
        );
    }
    let half = json(&[
        "compare",
        "report",
        utf8(&one),
        "--out",
        utf8(&dir.path().join("half")),
    ]);
    assert_eq!(half["missing"].as_array().unwrap().len(), 3);
    let merged = dir.path().join("merged");
    ok(&[
        "compare",
        "report",
        utf8(&one),
        utf8(&other),
        "--out",
        utf8(&merged),
    ]);
    assert_eq!(results(&merged), results(&whole));
}

#[test]
fn what_cannot_be_compared_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let config = utf8(&config);
    for (code, args, named) in [
        (2, vec!["compare"], "CONFIG"),
        (1, vec!["compare", config, "--run", "6"], "One(6)"),
        (2, vec!["compare", config, "--part", "0/2"], "0/2"),
        (
            1,
            vec!["compare", config, "--list", "--set", "budget={}"],
            "budget",
        ),
        (
            1,
            vec!["compare", config, "--list", "--set", "seeds=[]"],
            "seeds is []",
        ),
        (
            1,
            vec!["compare", config, "--list", "--set", "train.modle.depth=1"],
            "modle",
        ),
        (
            1,
            vec!["compare", "report", utf8(dir.path())],
            "compare.toml",
        ),
    ] {
        let message = fails(code, &args);
        assert!(message.contains(named), "{args:?}: {message}");
    }
}
