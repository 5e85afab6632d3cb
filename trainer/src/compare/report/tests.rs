use std::fs;

use super::super::cost::forward_cost;
use super::super::record::{Machine, RECORD_FORMAT, Record};
use super::super::{COMPARE_FILE, config::CompareConfig};
use super::*;
use crate::eval::during::Score;
use crate::metrics::{MetricsLine, MetricsLog};
use crate::train::DataCost;

const CONFIG: &str = r#"
name = "two"
question = "Video or <images>?"
seeds = [0, 1, 2]
budget = { steps = 40 }
ablation = "mask_ratio"
[train]
data = { path = "sets/images", views = "crop_pair", batch_size = 16, size = 64 }
model = { patch_size = 4 }
[[method]]
name = "CropMAE"
published = "cropmae_in1k"
point = "98.5 %"
[[method]]
name = "SiamMAE, clips"
point = "95 %"
[method.train]
data = { path = "sets/clips", views = "frame_pair" }
[[method]]
name = "untrained"
untrained = true
"#;

/// Final J&F of each method and seed.
const FINAL: [[f64; 3]; 3] = [[41.0, 42.0, 43.0], [40.0, 42.0, 41.0], [30.0, 30.5, 31.0]];

/// A folder as the runner leaves it, but for the runs that `skip` names.
fn folder(skip: &[(usize, u64)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(COMPARE_FILE), CONFIG).unwrap();
    let config = CompareConfig::read(&dir.path().join(COMPARE_FILE), &[] as &[&str]).unwrap();
    for run in config.runs().unwrap() {
        let seed = run.config.seed;
        if skip.contains(&(run.method, seed)) {
            continue;
        }
        let run_dir = dir.path().join(&run.dir);
        fs::create_dir_all(run_dir.join("eval/davis-40")).unwrap();
        let untrained = config.methods[run.method].untrained;
        let last_step = if untrained { 0 } else { 40 };
        if !untrained {
            let mut log = MetricsLog::open(&run_dir, 0).unwrap();
            for step in [1, 20, 40] {
                log.write(&MetricsLine {
                    step,
                    epoch: step as f64 / 10.0,
                    loss: 1.0 / step as f32,
                    pairs_per_s: if run.method == 0 { 100.0 } else { 50.0 },
                    data_wait_pct: 10.0,
                    ..MetricsLine::default()
                })
                .unwrap();
            }
        }
        let score = |step: u64, jf_mean: f64| Score {
            step,
            protocol: "davis".to_string(),
            numbers: [("jf_mean".to_string(), jf_mean)].into(),
            dir: PathBuf::from(format!("eval/davis-{step}")),
        };
        let end = FINAL[run.method][seed as usize];
        let mut scores = vec![score(last_step, end)];
        if !untrained {
            scores.insert(0, score(20, end - 4.0));
        }
        Record {
            format: RECORD_FORMAT,
            comparison: config.name.clone(),
            method: config.methods[run.method].name.clone(),
            seed,
            complete: true,
            forward: forward_cost(&run.config.model).unwrap(),
            config: run.config,
            machine: Machine {
                pairquet: "1".to_string(),
                device: "cpu".to_string(),
                processor: "a <processor>".to_string(),
                threads: 2,
            },
            data: Some(DataCost {
                pictures_per_pair: 1.0,
                ..DataCost::default()
            }),
            scores,
        }
        .write(&run_dir)
        .unwrap();
    }
    dir
}

fn collect(dir: &tempfile::TempDir) -> Report {
    Report::collect(&[dir.path().to_path_buf()]).unwrap()
}

#[test]
fn numbers_and_words_come_from_the_records() {
    let report = collect(&folder(&[]));
    assert_eq!(report.metrics.len(), 1);
    assert!(report.missing.is_empty());
    let crop = &report.methods[0];
    let spread = crop.headline().unwrap();
    assert_eq!((spread.mean, spread.std, spread.n), (42.0, Some(1.0), 3));
    let cost = crop.cost.as_ref().unwrap();
    assert!((cost.pairs_per_s.unwrap().mean - 100.0).abs() < 1e-9);
    assert!((cost.compute_ms.unwrap().mean - 9.0).abs() < 1e-9);
    assert!((cost.wait_ms.unwrap().mean - 1.0).abs() < 1e-9);
    assert_eq!((cost.steps, cost.pairs), (40, 640.0));
    // CropMAE has to come from 38 (step 20) to SiamMAE's 41: three quarters of the way from step 20 to 40, seed by seed.
    let reach = crop.reach.as_ref().unwrap();
    assert_eq!((reach.level, reach.n_runs), (41.0, 3));
    assert!((reach.pairs.mean - 560.0).abs() < 1e-6, "{reach:?}");
    let settings = &crop.settings;
    assert_eq!(settings["data.path"], "\"sets/images\"");
    assert!(!settings.contains_key("seed") && !settings.contains_key("model.mask_ratio"));

    let words = report.summary.join("\n");
    for expected in [
        "After 40 steps each, CropMAE has the highest DAVIS J&F: 42.0 ± 1.0 (3 seeds).",
        "SiamMAE, clips comes to 41.0 ± 1.0 (3 seeds), 1.0 less (95 % interval -1.3 to 3.3): not more than chance",
        "untrained has 30.5 ± 0.5 (3 seeds); every trained method is above that by more than chance.",
        "(2 times as many)",
    ] {
        assert!(words.contains(expected), "{expected}\n---\n{words}");
    }
}

#[test]
fn the_page_stands_alone_and_escapes_what_it_is_given() {
    let dir = folder(&[]);
    let report = collect(&dir);
    report.write(dir.path()).unwrap();
    let page = fs::read_to_string(dir.path().join(PAGE_FILE)).unwrap();
    assert!(page.contains("Video or &lt;images&gt;?") && !page.contains("<images>"));
    assert!(page.contains("a &lt;processor&gt;"));
    for outside in ["http-equiv", "<script", "src=\"http", "href=\"http", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf\""));
    assert!(
        page.contains("published: 51.2"),
        "the ablation has the paper's value"
    );
    assert!(page.contains("CropMAE ViT-S/16, ImageNet subset, 400 epochs"));
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join(JSON_FILE)).unwrap()).unwrap();
    assert_eq!(json["methods"][0]["scores"][0]["mean"], 42.0);
    let table = fs::read_to_string(dir.path().join(RESULTS_FILE)).unwrap();
    assert!(
        table.contains("\"SiamMAE, clips\",1,true,davis,jf_mean,40,42\n"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 10);
    let curves = fs::read_to_string(dir.path().join(CURVES_FILE)).unwrap();
    assert!(
        curves.contains("CropMAE,0,davis.jf_mean,20,2,320,"),
        "{curves}"
    );

    let again = tempfile::tempdir().unwrap();
    collect(&dir).write(again.path()).unwrap();
    assert!(
        fs::read_to_string(again.path().join(PAGE_FILE)).unwrap() == page,
        "the same records give the same page"
    );
}

#[test]
fn parts_from_several_machines_are_one_comparison() {
    let whole = collect(&folder(&[]));
    let (a, b) = (folder(&[(0, 1), (2, 0)]), folder(&[(1, 0), (1, 1), (1, 2)]));
    let parts = Report::collect(&[a.path().to_path_buf(), b.path().to_path_buf()]).unwrap();
    assert_eq!(parts.summary, whole.summary);
    let half = collect(&a);
    assert_eq!(
        half.missing,
        ["CropMAE, seed 1: not begun", "untrained, seed 0: not begun"]
    );
    assert!(
        half.summary
            .last()
            .unwrap()
            .starts_with("2 of the runs are missing")
    );
}

#[test]
fn what_cannot_be_one_comparison_is_refused() {
    let (a, b) = (folder(&[]), folder(&[]));
    fs::write(b.path().join(COMPARE_FILE), CONFIG.replace("= 40", "= 41")).unwrap();
    let error = |dirs: &[PathBuf]| Report::collect(dirs).unwrap_err().to_string();
    let both = [a.path().to_path_buf(), b.path().to_path_buf()];
    assert!(error(&both).contains("different comparisons"));
    assert!(error(&[]).contains("no folder"));
    let empty = tempfile::tempdir().unwrap();
    assert!(error(&[empty.path().to_path_buf()]).contains(COMPARE_FILE));
}

#[test]
fn a_comparison_that_has_not_begun_says_so() {
    let all: Vec<_> = (0..3)
        .flat_map(|method| (0..3).map(move |seed| (method, seed)))
        .collect();
    let dir = folder(&all);
    let report = collect(&dir);
    assert_eq!(report.summary, ["No run has been evaluated yet."]);
    assert_eq!(report.missing.len(), 9);
    report.write(dir.path()).unwrap();
}
