//! Part h: DAVIS's measures.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use trainer::eval::davis::{
    Measures, PerFrame, Sequence, measure, read_truth, score_sequence, truth_objects,
};
use trainer::eval::davis_metrics::{
    Statistics, contour, contour_accuracy, contour_radius, dilate, region_similarity,
};
use trainer::eval::frames::{LabelMap, numbered_pictures};
use trainer::eval::sampling::Size;

use crate::support::{Report, Tensors, files, json, part, shared_data, values};

/// Counts of pixels divided by each other: only the last bits are free.
const EXACT: f64 = 1e-9;

#[test]
fn part_h_davis_metrics() {
    let name = "h_davis_metrics";
    let Some((folder, manifest)) = part(name) else {
        return;
    };
    let mut report = Report::default();
    let mut scored = None;
    for (file, entry) in files(&manifest) {
        let path = folder.join(&file);
        match file.as_str() {
            "per_frame.safetensors" => per_frame(&folder, entry, &mut report),
            "micro.safetensors" => micro(&path, entry, &mut report),
            "scores.json" => {
                let sequences = score_folder(&folder);
                scores(&sequences, &json(&path), &mut report);
                scored = Some(sequences);
            }
            "global_results-val.csv" | "per-sequence_results-val.csv" => {
                let sequences = scored.get_or_insert_with(|| score_folder(&folder));
                csv(sequences, &path, &mut report);
            }
            "as_ground_truth/" | "as_prediction/" => report.check(path.is_dir(), || file.clone()),
            _ if file.starts_with("osvos_on_data_davis/") => {
                osvos(&folder, &mut report);
            }
            _ => report.fail(format!("{file}: a case that this test does not understand")),
        }
    }
    report.finish(name);
}

/// Every sequence of the part by name.
fn score_folder(folder: &Path) -> BTreeMap<String, Vec<PerFrame>> {
    let truth = folder.join("as_ground_truth");
    let list = std::fs::read_to_string(truth.join("ImageSets/2017/val.txt")).unwrap();
    let annotations = truth.join("Annotations/480p");
    list.split_whitespace()
        .map(|name| {
            let predicted = folder.join("as_prediction").join(name);
            let objects = score(name, &annotations.join(name), &predicted);
            (name.to_owned(), objects)
        })
        .collect()
}

fn score(name: &str, truth: &Path, predicted: &Path) -> Vec<PerFrame> {
    let maps = |folder: &Path| -> Vec<std::path::PathBuf> {
        let found = numbered_pictures(folder, &["png"]).unwrap();
        found.into_iter().map(|(_, path)| path).collect()
    };
    let annotations = maps(truth);
    let sequence = Sequence {
        name: name.to_owned(),
        frames: annotations.clone(),
        annotations,
    };
    let truth = read_truth(&sequence).unwrap();
    let predicted: Vec<Vec<u8>> = maps(predicted)
        .iter()
        .map(|path| LabelMap::read(path).unwrap().labels)
        .collect();
    let n_objects = truth_objects(&truth.maps);
    score_sequence(name, &truth.maps, &predicted, truth.size, n_objects).unwrap()
}

fn per_frame(folder: &Path, entry: &Value, report: &mut Report) {
    let mut tensors = Tensors::read(&folder.join("per_frame.safetensors"), entry, report);
    for (name, objects) in score_folder(folder) {
        type Values = fn(&PerFrame) -> &Vec<f64>;
        let measures: [(&str, Values); 2] = [("J", |o| &o.j), ("F", |o| &o.f)];
        for (measure, of) in measures {
            let want = values(&tensors.expect(&format!("{name}.{measure}")));
            let got: Vec<f64> = objects.iter().flat_map(|o| of(o).clone()).collect();
            close(&format!("{name}.{measure}"), &got, &want, report);
        }
    }
    tensors.finish(report);
}

fn close(name: &str, got: &[f64], want: &[f64], report: &mut Report) {
    report.number(
        &format!("{name}: number"),
        got.len() as f64,
        want.len() as f64,
        0.0,
    );
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        report.number(&format!("{name} {i}"), *got, *want, EXACT);
    }
}

fn micro(path: &Path, entry: &Value, report: &mut Report) {
    let mut tensors = Tensors::read(path, entry, report);
    let meta = &entry["meta"];
    for (case, scores) in meta["scores"].as_object().unwrap() {
        let side = |i: usize| scores["shape"][i].as_u64().unwrap() as usize;
        let size = Size {
            height: side(0),
            width: side(1),
        };
        let (truth, predicted) = match case.strip_prefix("big_480x854_shift") {
            Some(shift) => ellipses(shift, size),
            None => {
                let mut mask = |name: &str| -> Vec<bool> {
                    let tensor = tensors.expect(&format!("{case}.{name}"));
                    values(&tensor).iter().map(|&v| v != 0.0).collect()
                };
                let (truth, predicted) = (mask("gt"), mask("pred"));
                for (name, of) in [("gt_boundary", &truth), ("pred_boundary", &predicted)] {
                    let want = mask(name);
                    report.check(contour(of, size) == want, || format!("{case}.{name}"));
                }
                (truth, predicted)
            }
        };
        let expected = |what: &str| scores[what].as_f64().unwrap();
        let j = region_similarity(&truth, &predicted);
        let f = contour_accuracy(&truth, &predicted, size);
        report.number(&format!("{case}.J"), j, expected("J"), EXACT);
        report.number(&format!("{case}.F"), f, expected("F"), EXACT);
        let radius = contour_radius(size) as f64;
        report.number(
            &format!("{case}.radius"),
            radius,
            expected("dilation_radius"),
            0.0,
        );
    }
    for (name, disk) in tensors.take_prefixed("disk") {
        let radius: usize = name.parse().unwrap();
        let side = 2 * radius + 1;
        let size = Size {
            height: side,
            width: side,
        };
        let mut dot = vec![false; side * side];
        dot[side * side / 2] = true;
        let want: Vec<bool> = values(&disk).iter().map(|&v| v != 0.0).collect();
        report.check(dilate(&dot, size, radius) == want, || format!("disk{name}"));
    }
    for (n, want) in meta["db_statistics"].as_object().unwrap() {
        let got = Statistics::of(&values(&tensors.expect(&format!("stats{n}.in"))));
        let number = |what: &str| want[what].as_f64();
        report.number(
            &format!("stats{n}.mean"),
            got.mean,
            number("mean").unwrap(),
            EXACT,
        );
        report.number(
            &format!("stats{n}.recall"),
            got.recall,
            number("recall").unwrap(),
            EXACT,
        );
        match (got.decay_8_bit, number("decay")) {
            (Some(got), Some(want)) => report.number(&format!("stats{n}.decay"), got, want, EXACT),
            (got, want) => report.check(got == want, || {
                format!("stats{n}.decay: {got:?}, expected {want:?}")
            }),
        }
        report.check(got.decay.is_finite(), || {
            format!("stats{n}: decay is not finite")
        });
    }
    tensors.finish(report);
}

/// The large masks, which the manifest gives as a formula: an ellipse, and the same rolled.
fn ellipses(shift: &str, size: Size) -> (Vec<bool>, Vec<bool>) {
    let (down, right) = match shift {
        "7" => (0, 7),
        "8" => (0, 8),
        "12" => (12, 5),
        _ => panic!("shift {shift} is not understood"),
    };
    let inside = |y: usize, x: usize| {
        let (dy, dx) = ((y as f64 - 240.0) / 150.0, (x as f64 - 400.0) / 220.0);
        dy * dy + dx * dx < 1.0
    };
    let mask = |down: usize, right: usize| {
        (0..size.area())
            .map(|i| {
                let (y, x) = (i / size.width, i % size.width);
                inside(
                    (y + size.height - down) % size.height,
                    (x + size.width - right) % size.width,
                )
            })
            .collect()
    };
    (mask(0, 0), mask(down, right))
}

fn statistics(name: &str, got: &Statistics, want: &Value, report: &mut Report) {
    for (what, got) in [
        ("mean", got.mean),
        ("recall", got.recall),
        ("decay", got.decay),
    ] {
        report.number(
            &format!("{name} {what}"),
            got,
            want[what].as_f64().unwrap(),
            EXACT,
        );
    }
}

fn scores(sequences: &BTreeMap<String, Vec<PerFrame>>, want: &Value, report: &mut Report) {
    let listed = want["sequences"].as_object().unwrap();
    report.number(
        "sequences",
        sequences.len() as f64,
        listed.len() as f64,
        0.0,
    );
    let mut all = Vec::new();
    for (name, want) in listed {
        let objects = measure(&sequences[name]);
        let expected = want["objects"].as_array().unwrap();
        report.number(
            &format!("{name} objects"),
            objects.len() as f64,
            expected.len() as f64,
            0.0,
        );
        for (i, (got, want)) in objects.iter().zip(expected).enumerate() {
            statistics(&format!("{name}_{} J", i + 1), &got.j, &want["J"], report);
            statistics(&format!("{name}_{} F", i + 1), &got.f, &want["F"], report);
        }
        all.extend(objects);
    }
    global(
        &Measures::mean_of(&all).unwrap(),
        &want["global_results"],
        report,
    );
}

/// The seven global numbers, under the reference's names.
pub fn global_numbers(total: &Measures) -> [(&'static str, f64); 7] {
    [
        ("J&F-Mean", total.jf_mean),
        ("J-Mean", total.j.mean),
        ("J-Recall", total.j.recall),
        ("J-Decay", total.j.decay),
        ("F-Mean", total.f.mean),
        ("F-Recall", total.f.recall),
        ("F-Decay", total.f.decay),
    ]
}

fn global(total: &Measures, want: &Value, report: &mut Report) {
    for (name, got) in global_numbers(total) {
        report.number(name, got, want[name].as_f64().unwrap(), EXACT);
    }
}

/// The CSV files, which hold three decimals.
fn csv(sequences: &BTreeMap<String, Vec<PerFrame>>, path: &Path, report: &mut Report) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let rounded = |what: &str, got: f64, want: &str, report: &mut Report| {
        report.number(what, got, want.parse().unwrap(), 0.000_500_1);
    };
    let of = |name: &str| measure(&sequences[name]);
    for line in lines {
        if head[0] == "Sequence" {
            let (name, object) = line[0].rsplit_once('_').unwrap();
            let object = of(name)[object.parse::<usize>().unwrap() - 1];
            rounded(line[0], object.j.mean, line[1], report);
            rounded(line[0], object.f.mean, line[2], report);
        } else {
            let all: Vec<Measures> = sequences.keys().flat_map(|name| of(name)).collect();
            let numbers = global_numbers(&Measures::mean_of(&all).unwrap());
            for (name, want) in head.iter().zip(line) {
                let got = numbers.iter().find(|(known, _)| known == name);
                let (_, got) = got.unwrap_or_else(|| panic!("{name} is not understood"));
                rounded(name, *got, want, report);
            }
        }
    }
}

fn osvos(folder: &Path, report: &mut Report) {
    let Some(data) = shared_data("davis") else {
        return;
    };
    let want = json(&folder.join("osvos_on_data_davis.json"));
    let mut all = Vec::new();
    let mut names: Vec<String> = want["per_object"]
        .as_object()
        .unwrap()
        .keys()
        .map(|object| object.rsplit_once('_').unwrap().0.to_owned())
        .collect();
    names.dedup();
    for name in names {
        let truth = data.join("Annotations/480p").join(&name);
        let predicted = folder.join("osvos_on_data_davis").join(&name);
        let objects = measure(&score(&name, &truth, &predicted));
        for (i, got) in objects.iter().enumerate() {
            let object = format!("{name}_{}", i + 1);
            let want = &want["per_object"][&object];
            report.number(&object, got.j.mean, want["J"].as_f64().unwrap(), EXACT);
            report.number(&object, got.f.mean, want["F"].as_f64().unwrap(), EXACT);
        }
        all.extend(objects);
    }
    global(&Measures::mean_of(&all).unwrap(), &want, report);
}
