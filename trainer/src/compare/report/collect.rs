//! Records into a report.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pipeline::OtherFormat;

use super::super::COMPARE_FILE;
use super::super::config::{CompareConfig, Method};
use super::super::published::Published;
use super::super::record::{Progress, RECORD_FILE, Record, at_step, course};
use super::super::stats::{Spread, difference};
use super::{
    Contrast, Evaluation, METRICS, MethodCost, MethodReport, Metric, Point, Reach, Report,
    RunReport, summary,
};
use crate::chart::smooth;
use crate::config::flat;
use crate::error::{Error, Result};
use crate::eval::results::{RESULTS_FILE, RESULTS_FORMAT};
use crate::metrics;
use crate::train::PICTURES_DIR;

/// Folders below one of a comparison's that are looked into: its own, a method's, a seed's.
const DEPTH: usize = 3;

/// A record, its folder and the course of its run.
struct Found {
    record: Record,
    dir: PathBuf,
    course: Vec<Progress>,
}

pub(super) fn collect(dirs: &[PathBuf]) -> Result<Report> {
    let config = read_config(dirs)?;
    let mut found = Vec::new();
    for dir in dirs {
        find(dir, DEPTH, &config.name, &mut found)?;
    }
    let found = without_twins(found)?;
    let metrics: Vec<Metric> = METRICS
        .into_iter()
        .filter(|metric| found.iter().any(|run| has_metric(&run.record, *metric)))
        .collect();
    let published = Published::load()?;
    let ablation = config.ablation.as_deref().map(|id| published.ablation(id));
    let settings = differing_settings(&config, &found)?;
    let mut methods = Vec::new();
    let mut missing = Vec::new();
    for (method, settings) in config.methods.iter().zip(settings) {
        for seed in &config.seeds {
            let run = of_method(&found, method).find(|run| run.record.seed == *seed);
            match run.map(|run| run.record.complete) {
                Some(true) => {}
                Some(false) => {
                    missing.push(format!("{}, seed {seed}: not at its end", method.name))
                }
                None => missing.push(format!("{}, seed {seed}: not begun", method.name)),
            }
        }
        let row = method.published.as_deref().map(|id| published.row(id));
        methods.push(MethodReport {
            name: method.name.clone(),
            untrained: method.untrained,
            published: row.transpose()?.cloned(),
            point: method.point.clone(),
            settings,
            scores: metrics
                .iter()
                .map(|&metric| final_spread(&found, method, metric))
                .collect(),
            cost: method_cost(&found, method),
            reach: None,
            runs: of_method(&found, method)
                .map(|run| run_report(run, &metrics))
                .collect::<Result<_>>()?,
        });
    }
    set_reach(&mut methods);
    let mut machines: Vec<_> = found.iter().map(|run| run.record.machine.clone()).collect();
    machines.sort();
    machines.dedup();
    let mut report = Report {
        contrasts: contrasts(&methods),
        name: config.name,
        question: config.question,
        budget: config.budget.to_string(),
        summary: Vec::new(),
        metrics,
        methods,
        ablation: ablation.transpose()?.cloned(),
        machines,
        missing,
    };
    report.summary = summary::sentences(&report);
    Ok(report)
}

/// The comparison that all folders belong to.
fn read_config(dirs: &[PathBuf]) -> Result<CompareConfig> {
    let mut first: Option<(CompareConfig, &Path)> = None;
    for dir in dirs {
        let path = dir.join(COMPARE_FILE);
        let config = CompareConfig::read(&path, &[] as &[&str])?;
        match &first {
            Some((known, from)) if *known != config => {
                return Err(Error::Config(format!(
                    "{} and {} hold different comparisons, expected parts of one",
                    from.display(),
                    dir.display()
                )));
            }
            _ => first = Some((config, dir)),
        }
    }
    first
        .map(|(config, _)| config)
        .ok_or_else(|| Error::Config("no folder of a comparison is given".to_string()))
}

fn find(dir: &Path, depth: usize, comparison: &str, found: &mut Vec<Found>) -> Result<()> {
    if dir.join(RECORD_FILE).is_file() {
        if let Some(record) = Record::read(dir)?
            && record.comparison == comparison
        {
            let batch = record.config.effective_batch();
            let lines = match dir.join(metrics::METRICS_FILE).is_file() {
                true => metrics::read(dir)?,
                false => Vec::new(),
            };
            found.push(Found {
                course: course(&lines, batch),
                dir: dir.to_path_buf(),
                record,
            });
        }
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    let mut folders: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(Error::io(dir))?
        .map(|entry| Ok(entry.map_err(Error::io(dir))?.path()))
        .collect::<Result<_>>()?;
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
        .iter()
        .try_for_each(|folder| find(folder, depth - 1, comparison, found))
}

/// One record a run: of the same run from two places, the one that is further.
fn without_twins(found: Vec<Found>) -> Result<Vec<Found>> {
    let mut runs: BTreeMap<(String, u64), Found> = BTreeMap::new();
    for run in found {
        let key = (run.record.method.clone(), run.record.seed);
        let Some(known) = runs.get(&key) else {
            runs.insert(key, run);
            continue;
        };
        if known.record.config != run.record.config {
            return Err(Error::Config(format!(
                "{} and {} are the same run with different configurations",
                known.dir.display(),
                run.dir.display()
            )));
        }
        let place = |run: &Found| {
            let last = run.record.scores.iter().map(|score| score.step).max();
            (run.record.complete, last)
        };
        if place(&run) > place(known) {
            runs.insert(key, run);
        }
    }
    Ok(runs.into_values().collect())
}

fn of_method<'a>(found: &'a [Found], method: &'a Method) -> impl Iterator<Item = &'a Found> {
    found.iter().filter(|run| run.record.method == method.name)
}

fn complete<'a>(found: &'a [Found], method: &'a Method) -> impl Iterator<Item = &'a Found> {
    of_method(found, method).filter(|run| run.record.complete)
}

fn has_metric(record: &Record, metric: Metric) -> bool {
    let mut scores = record.scores.iter();
    scores.any(|s| s.protocol == metric.protocol && s.numbers.contains_key(metric.name))
}

/// A metric after the last step that it was taken at.
fn final_value(record: &Record, metric: Metric) -> Option<f64> {
    let scores = record.scores.iter();
    let last = scores
        .filter(|score| score.protocol == metric.protocol)
        .max_by_key(|score| score.step)?;
    last.numbers.get(metric.name).copied()
}

fn final_spread(found: &[Found], method: &Method, metric: Metric) -> Option<Spread> {
    let values: Vec<_> = complete(found, method)
        .filter_map(|run| final_value(&run.record, metric))
        .collect();
    Spread::of(&values)
}

fn method_cost(found: &[Found], method: &Method) -> Option<MethodCost> {
    let runs: Vec<_> = complete(found, method).collect();
    let first = runs.first()?;
    let trained = |value: fn(&Progress) -> f64| {
        let values: Vec<_> = runs
            .iter()
            .filter_map(|run| run.course.last())
            .filter(|end| end.step > 0)
            .map(value)
            .collect();
        Spread::of(&values)
    };
    let end = first.course.last().copied().unwrap_or_default();
    const MS: f64 = 3.6e6;
    Some(MethodCost {
        forward: first.record.forward,
        data: runs.iter().find_map(|run| run.record.data),
        pairs_per_s: trained(|end| end.pairs / (end.hours * 3600.0)),
        compute_ms: trained(|end| (end.hours - end.waiting_hours) * MS / end.pairs),
        wait_ms: trained(|end| end.waiting_hours * MS / end.pairs),
        hours: trained(|end| end.hours),
        steps: end.step,
        epochs: end.epoch,
        pairs: end.pairs,
    })
}

fn run_report(run: &Found, metrics: &[Metric]) -> Result<RunReport> {
    let raw: Vec<_> = run.course.iter().map(|p| (p.step as f64, p.loss)).collect();
    let smoothed = smooth(&raw).into_iter().map(|(step, loss)| {
        let at = at_step(&run.course, step as u64);
        point(at, loss)
    });
    let mut steps: Vec<u64> = run.record.scores.iter().map(|score| score.step).collect();
    steps.sort_unstable();
    steps.dedup();
    let evaluations = steps.iter().map(|&step| {
        let at = at_step(&run.course, step);
        let value = |metric: &Metric| {
            let mut scores = run.record.scores.iter();
            let score = scores.find(|s| s.step == step && s.protocol == metric.protocol)?;
            Some(point(at, *score.numbers.get(metric.name)?))
        };
        Evaluation {
            step,
            values: metrics.iter().map(value).collect(),
        }
    });
    let results = last_results(run)?;
    let text = |pointer: &str| {
        let value = results.as_ref()?.pointer(pointer)?;
        value.as_str().map(str::to_owned)
    };
    Ok(RunReport {
        seed: run.record.seed,
        complete: run.record.complete,
        dir: run.dir.clone(),
        losses: smoothed.collect(),
        evaluations: evaluations.collect(),
        weights_sha256: text("/checkpoint/weights_sha256"),
        data_sha256: text("/data/sha256"),
        config: run.record.config.to_toml()?,
        pictures: pictures(run),
    })
}

fn point(at: Progress, value: f64) -> Point {
    Point {
        step: at.step,
        epoch: at.epoch,
        pairs: at.pairs,
        hours: at.hours,
        value,
    }
}

/// `results.json` of the last evaluation, if it is there: a report is made without it too.
///
/// # Errors
/// [`Error::Format`].
fn last_results(run: &Found) -> Result<Option<serde_json::Value>> {
    let Some(last) = run.record.scores.last() else {
        return Ok(None);
    };
    let path = run.dir.join(&last.dir).join(RESULTS_FILE);
    let text = fs::read(&path).unwrap_or_default();
    OtherFormat::check_json(&text, RESULTS_FORMAT).map_err(Error::format(path))?;
    Ok(serde_json::from_slice(&text).ok())
}

/// The last reconstruction, and what the last evaluations drew.
fn pictures(run: &Found) -> Vec<(String, PathBuf)> {
    let mut pictures = Vec::new();
    if let Some(newest) = pngs(&run.dir.join(PICTURES_DIR)).pop() {
        pictures.push(("reconstructions".to_string(), newest));
    }
    let last_step = run.record.scores.iter().map(|score| score.step).max();
    for score in &run.record.scores {
        if Some(score.step) == last_step {
            for path in pngs(&run.dir.join(&score.dir)) {
                let stem = path.file_stem().map(|stem| stem.to_string_lossy());
                let shown = stem.unwrap_or_default().replace('_', " ");
                pictures.push((format!("{}: {shown}", score.protocol), path));
            }
        }
    }
    pictures
}

/// PNG files of a folder in order of their names; none if it cannot be read.
fn pngs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "png"));
    paths.sort();
    paths
}

/// For each method the keys whose values are not the same for all of them; name and seed are no settings.
fn differing_settings(
    config: &CompareConfig,
    found: &[Found],
) -> Result<Vec<BTreeMap<String, String>>> {
    let mut all = Vec::new();
    for method in &config.methods {
        let mut values = match of_method(found, method).next() {
            Some(run) => flat(&run.record.config)?,
            None => BTreeMap::new(),
        };
        values.retain(|key, _| !matches!(key.as_str(), "name" | "seed" | "paper"));
        all.push(values);
    }
    let known: Vec<_> = all.iter().filter(|values| !values.is_empty()).collect();
    let differs = |key: &String| {
        let mut values = known.iter().map(|values| values.get(key));
        let first = values.next();
        values.any(|value| Some(value) != first)
    };
    let keys: Vec<String> = known
        .iter()
        .flat_map(|values| values.keys())
        .filter(|key| differs(key))
        .cloned()
        .collect();
    let of = |values: &BTreeMap<String, String>| {
        let shown = keys.iter().filter(|_| !values.is_empty()).map(|key| {
            let value = values.get(key).map_or("absent", String::as_str);
            (key.clone(), value.to_string())
        });
        shown.collect()
    };
    Ok(all.iter().map(of).collect())
}

/// The best method against every other, by the first metric.
fn contrasts(methods: &[MethodReport]) -> Vec<Contrast> {
    let mut ranked: Vec<_> = methods
        .iter()
        .filter_map(|method| Some((method, method.headline()?)))
        .collect();
    ranked.sort_by(|a, b| b.1.mean.total_cmp(&a.1.mean));
    let Some(((best, best_spread), others)) = ranked.split_first() else {
        return Vec::new();
    };
    let contrast = |(other, spread): &(&MethodReport, &Spread)| Contrast {
        best: best.name.clone(),
        other: other.name.clone(),
        difference: difference(best_spread, spread),
    };
    others.iter().map(contrast).collect()
}

/// What each method took to reach the lowest final mean among the trained ones.
fn set_reach(methods: &mut [MethodReport]) {
    let level = methods
        .iter()
        .filter(|method| !method.untrained)
        .filter_map(|method| method.headline())
        .map(|spread| spread.mean)
        .min_by(f64::total_cmp);
    let Some(level) = level else { return };
    for method in methods.iter_mut().filter(|method| !method.untrained) {
        let reached: Vec<Point> = method
            .complete()
            .filter_map(|run| reaches(run, level))
            .collect();
        let spread =
            |value: fn(&Point) -> f64| Spread::of(&reached.iter().map(value).collect::<Vec<_>>());
        if let (Some(epochs), Some(pairs), Some(hours)) = (
            spread(|p| p.epoch),
            spread(|p| p.pairs),
            spread(|p| p.hours),
        ) {
            method.reach = Some(Reach {
                level,
                n_runs: reached.len(),
                epochs,
                pairs,
                hours,
            });
        }
    }
}

/// Where a run's first metric first reaches a level, along straight lines between its evaluations.
fn reaches(run: &RunReport, level: f64) -> Option<Point> {
    let mut before: Option<Point> = None;
    for evaluation in &run.evaluations {
        let Some(now) = evaluation.values.first().copied().flatten() else {
            continue;
        };
        if now.value >= level {
            let Some(before) = before else {
                return Some(now);
            };
            let share = (level - before.value) / (now.value - before.value);
            let between = |a: f64, b: f64| a + share * (b - a);
            return Some(Point {
                step: between(before.step as f64, now.step as f64).round() as u64,
                epoch: between(before.epoch, now.epoch),
                pairs: between(before.pairs, now.pairs),
                hours: between(before.hours, now.hours),
                value: level,
            });
        }
        before = Some(now);
    }
    None
}
