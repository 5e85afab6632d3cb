//! The page: one file that needs nothing else, for a screen of any width, light or dark, and for paper.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::stats::Spread;
use super::{MethodReport, Metric, Point, Report, RunReport};
use crate::chart::{COLOURS, Dot, DotChart, LineChart, Series, escape, short};
use crate::error::{Error, Result};
use crate::train::DataCost;

/// A picture larger than this is named instead of shown, in bytes: a page must open on a phone.
const MAX_PICTURE_BYTES: usize = 4 << 20;

/// How long a run has been, by one measure.
type Measure = fn(&Point) -> f64;

/// The measures, by name.
const MEASURES: [(&str, Measure); 3] = [
    ("epochs", |point| point.epoch),
    ("pairs", |point| point.pairs),
    ("hours of training", |point| point.hours),
];

pub(super) fn html(report: &Report) -> Result<String> {
    let mut body = String::new();
    head(&mut body, report);
    scores(&mut body, report);
    ablation(&mut body, report);
    curves(&mut body, report);
    costs(&mut body, report);
    strips(&mut body, report)?;
    settings(&mut body, report);
    provenance(&mut body, report);
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(&report.question),
        include_str!("page.css")
    ))
}

fn head(out: &mut String, report: &Report) {
    let n_seeds = report.methods.iter().map(|method| method.runs.len()).max();
    let seeds = match n_seeds.unwrap_or(0) {
        1 => "one seed".to_string(),
        n => format!("{n} seeds"),
    };
    let _ = writeln!(
        out,
        "<header><p class=\"kicker\">Comparison {} · {} each · {}</p>\n<h1>{}</h1></header>\n<section class=\"answer\">",
        escape(&report.name),
        escape(&report.budget),
        seeds,
        escape(&report.question)
    );
    for sentence in &report.summary {
        let _ = writeln!(out, "<p>{}</p>", escape(sentence));
    }
    out.push_str("</section>\n");
    if !report.missing.is_empty() {
        let _ = writeln!(
            out,
            "<details><summary>Missing runs: {}</summary><ul>",
            report.missing.len()
        );
        for run in &report.missing {
            let _ = writeln!(out, "<li>{}</li>", escape(run));
        }
        out.push_str("</ul></details>\n");
    }
}

/// Methods by benchmarks, the papers' figures below each; one chart of the first metric.
fn scores(out: &mut String, report: &Report) {
    let Some(headline) = report.headline() else {
        return;
    };
    out.push_str("<section>\n<h2>Scores</h2>\n<div class=\"wide\"><table>\n<caption>Percent, mean ± standard deviation over the seeds after the last step. Grey rows: as published, with their own length and data.</caption>\n<thead><tr><th>Method</th>");
    for metric in &report.metrics {
        let _ = write!(out, "<th>{}</th>", escape(metric.label));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for method in &report.methods {
        let _ = write!(out, "<tr><td>{}</td>", escape(&method.name));
        for score in &method.scores {
            let _ = write!(out, "<td>{}</td>", cell(score.as_ref()));
        }
        out.push_str("</tr>\n");
        if let Some(row) = &method.published {
            let _ = write!(
                out,
                "<tr class=\"published\"><td>{} {}, {}, {} epochs<br><span class=\"low\">{}</span></td>",
                escape(&row.method),
                escape(&row.net),
                escape(&row.data),
                row.epochs,
                escape(&row.source)
            );
            for metric in &report.metrics {
                let value = published_value(method, *metric);
                let text = value.map_or_else(|| "–".to_string(), |value| format!("{value:.1}"));
                let _ = write!(out, "<td>{text}</td>");
            }
            out.push_str("</tr>\n");
        }
    }
    out.push_str("</tbody></table></div>\n");

    let dots = report.methods.iter().enumerate().map(|(i, method)| Dot {
        label: method.name.clone(),
        colour: i,
        value: method.headline().map(whisker),
        published: None,
    });
    let chart = DotChart {
        title: headline.label.to_string(),
        x_label: "percent; whiskers from the lowest to the highest seed".to_string(),
        dots: dots.collect(),
    };
    let _ = writeln!(out, "<figure>{}</figure>", chart.svg());

    if !report.contrasts.is_empty() {
        let _ = writeln!(
            out,
            "<div class=\"wide\"><table>\n<caption>Differences in {}, with Welch's 95 % interval over the seeds. An interval that \
             holds 0 is not more than chance. Each interval is for one difference by itself: of many, some will leave out 0 by \
             chance alone.</caption>\n<thead><tr><th>Difference</th><th>Mean</th><th>95 % interval</th>\
             <th class=\"text\">More than chance</th></tr></thead>\n<tbody>",
            escape(headline.label)
        );
        for contrast in &report.contrasts {
            let between = contrast.difference;
            let (interval, clear) = match between.half_width {
                Some(half) => (
                    format!("{:.1} to {:.1}", between.mean - half, between.mean + half),
                    if between.is_clear() { "yes" } else { "no" },
                ),
                None => ("–".to_string(), "one seed cannot tell"),
            };
            let _ = writeln!(
                out,
                "<tr><td>{} − {}</td><td>{:.1}</td><td>{interval}</td><td class=\"text\">{clear}</td></tr>",
                escape(&contrast.best),
                escape(&contrast.other),
                between.mean
            );
        }
        out.push_str("</tbody></table></div>\n");
    }
    out.push_str("</section>\n");
}

fn cell(score: Option<&Spread>) -> String {
    match score {
        None => "–".to_string(),
        Some(Spread {
            mean,
            std: Some(std),
            ..
        }) => format!("{mean:.1} <span class=\"std\">± {std:.1}</span>"),
        Some(spread) => format!("{:.1}", spread.mean),
    }
}

fn whisker(spread: &Spread) -> (f64, f64, f64) {
    (spread.mean, spread.min, spread.max)
}

/// The paper's figure for a metric, in percent.
fn published_value(method: &MethodReport, metric: Metric) -> Option<f64> {
    let row = method.published.as_ref()?;
    match (metric.protocol, metric.name) {
        ("davis", "jf_mean") => row.davis.first().copied(),
        ("davis", "j_mean") => row.davis.get(1).copied(),
        ("davis", "f_mean") => row.davis.get(2).copied(),
        ("vip", "miou") => Some(row.vip),
        ("jhmdb", "pck_01") => row.jhmdb.first().copied(),
        ("jhmdb", "pck_02") => row.jhmdb.get(1).copied(),
        _ => None,
    }
}

/// The papers' ablation beside ours.
fn ablation(out: &mut String, report: &Report) {
    let Some(ablation) = &report.ablation else {
        return;
    };
    let mut metrics = report.metrics.iter().enumerate();
    let Some((index, metric)) = metrics.find(|(_, metric)| metric.protocol == ablation.benchmark)
    else {
        return;
    };
    let points: Vec<_> = report
        .methods
        .iter()
        .filter_map(|method| Some((method, method.point.as_ref()?)))
        .collect();
    let dots = points.iter().map(|(method, point)| Dot {
        label: point.to_string(),
        colour: 0,
        value: method.scores[index].as_ref().map(whisker),
        published: ablation.points.get(*point).copied(),
    });
    let chart = DotChart {
        title: metric.label.to_string(),
        x_label: "percent; hollow diamonds: as published".to_string(),
        dots: dots.collect(),
    };
    let _ = writeln!(
        out,
        "<section>\n<h2>Ablation</h2>\n<p class=\"note\">Published figures: {}. Compare the shape, not the height, where length, data, \
         encoder or the way of scoring differ.</p>\n<figure>{}</figure>\n</section>",
        escape(&ablation.source),
        chart.svg()
    );
}

/// Loss and first metric against epochs, pairs and hours.
fn curves(out: &mut String, report: &Report) {
    if report.methods.iter().all(|method| method.runs.is_empty()) {
        return;
    }
    out.push_str("<section>\n<h2>Curves</h2>\n<p class=\"note\">Lines are means over the seeds, bands reach from the lowest to the highest seed. Losses of different methods measure different things and cannot be compared with each other.</p>\n<ul class=\"key\">");
    for (i, method) in report.methods.iter().enumerate() {
        let _ = write!(
            out,
            "<li><svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><circle class=\"series-{} mark\" cx=\"5\" cy=\"5\" r=\"5\"/></svg>{}</li>",
            i % COLOURS.len(),
            escape(&method.name)
        );
    }
    out.push_str("</ul>\n<div class=\"tabs\">\n");
    for (i, (name, _)) in MEASURES.iter().enumerate() {
        let checked = if i == 0 { " checked" } else { "" };
        let _ = writeln!(
            out,
            "<input type=\"radio\" name=\"measure\" id=\"measure-{i}\"{checked}><label for=\"measure-{i}\">against {name}</label>"
        );
    }
    for (name, measure) in MEASURES {
        out.push_str("<div class=\"tab charts\">\n");
        if let Some(headline) = report.headline() {
            let series = |run: &RunReport| -> Vec<Point> {
                let values = run.evaluations.iter();
                values.filter_map(|e| e.values.first().copied()?).collect()
            };
            let chart = chart(report, headline.label, name, measure, &series, true);
            let _ = writeln!(out, "<figure>{chart}</figure>");
        }
        let losses = |run: &RunReport| run.losses.clone();
        let chart = chart(report, "training loss", name, measure, &losses, false);
        let _ = writeln!(out, "<figure>{chart}</figure>\n</div>");
    }
    out.push_str("</div>\n</section>\n");
}

fn chart(
    report: &Report,
    title: &str,
    x_label: &str,
    measure: Measure,
    points: &dyn Fn(&RunReport) -> Vec<Point>,
    marked: bool,
) -> String {
    let series = report.methods.iter().enumerate().map(|(i, method)| {
        let runs: Vec<_> = method.runs.iter().map(points).collect();
        let merged = over_seeds(&runs, measure);
        Series {
            label: method.name.clone(),
            colour: i,
            points: merged.iter().map(|(x, spread)| (*x, spread.mean)).collect(),
            band: merged
                .iter()
                .map(|(x, spread)| (*x, spread.min, spread.max))
                .collect(),
            marked,
            faint: false,
        }
    });
    LineChart {
        title: title.to_string(),
        x_label: x_label.to_string(),
        from_zero: false,
        series: series.filter(|series| !series.points.is_empty()).collect(),
    }
    .svg()
}

/// Values of the same step over the seeds, at the mean of what the seeds had seen or spent by then.
fn over_seeds(runs: &[Vec<Point>], measure: Measure) -> Vec<(f64, Spread)> {
    let mut by_step: BTreeMap<u64, Vec<&Point>> = BTreeMap::new();
    for point in runs.iter().flatten() {
        by_step.entry(point.step).or_default().push(point);
    }
    let most = by_step.values().map(Vec::len).max().unwrap_or(0);
    let full = by_step.values().filter(|points| points.len() == most);
    full.filter_map(|points| {
        let x = points.iter().map(|point| measure(point)).sum::<f64>() / points.len() as f64;
        let values: Vec<_> = points.iter().map(|point| point.value).collect();
        Some((x, Spread::of(&values)?))
    })
    .collect()
}

/// Where the time of a pair goes, and what it took to reach a common level.
fn costs(out: &mut String, report: &Report) {
    let costs: Vec<_> = report
        .methods
        .iter()
        .filter_map(|method| Some((method, method.cost.as_ref()?)))
        .filter(|(method, _)| !method.untrained)
        .collect();
    if costs.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>Where the time goes</h2>\n<div class=\"wide\"><table>\n<caption>Averages for a pair. Decoding and views run in threads beside the training; only the wait is lost time. Multiply-adds are counted for the forward pass: all products, and in brackets those with weights alone, which is what papers call GFLOPs.</caption>\n<thead><tr><th>Method</th><th>Pairs/s</th><th>Training,<br>ms a pair</th><th>Waiting for data,<br>ms a pair</th><th>Decoding,<br>core-ms a pair</th><th>Views,<br>core-ms a pair</th><th>Pictures decoded<br>a pair</th><th>KiB read<br>a pair</th><th>10⁹ multiply-adds<br>a pair</th><th>Hours</th></tr></thead>\n<tbody>\n");
    let mean = |spread: Option<Spread>| {
        spread.map_or_else(|| "–".to_string(), |spread| short(spread.mean))
    };
    for (method, cost) in &costs {
        let data = |value: fn(&DataCost) -> f64| {
            cost.data
                .as_ref()
                .map_or_else(|| "–".to_string(), |data| short(value(data)))
        };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} ({})</td><td>{}</td></tr>",
            escape(&method.name),
            mean(cost.pairs_per_s),
            mean(cost.compute_ms),
            mean(cost.wait_ms),
            data(|data| data.decode_ms_per_pair),
            data(|data| data.views_ms_per_pair),
            data(|data| data.pictures_per_pair),
            data(|data| data.bytes_per_pair / 1024.0),
            short(cost.forward.gmacs),
            short(cost.forward.gmacs_of_weights),
            mean(cost.hours)
        );
    }
    out.push_str("</tbody></table></div>\n");
    out.push_str(
        "<p class=\"note\">CropMAE's paper counts 5.8 billion for SiamMAE and 5.6 for CropMAE, 3 % apart, and yet reports 1.29 times \
         SiamMAE's speed on Kinetics-400 and 23.8 times on ImageNet: there SiamMAE decodes video files while it trains, two frames a pair \
         and every frame before them that they depend on. Here the frames of clips are pictures in shards, decoded like any other picture, \
         and video files are decoded once, when they are converted. What remains of the difference is what the table shows: a second picture \
         to decode, and the arithmetic.</p>\n",
    );
    reach(out, report);
    out.push_str("</section>\n");
}

fn reach(out: &mut String, report: &Report) {
    let reached: Vec<_> = report
        .methods
        .iter()
        .filter_map(|method| Some((method, method.reach.as_ref()?)))
        .collect();
    let (Some((_, first)), Some(headline)) = (reached.first(), report.headline()) else {
        return;
    };
    let _ = writeln!(
        out,
        "<div class=\"wide\"><table>\n<caption>To reach {} {:.1}, the lowest mean that a trained method ends with; along straight \
         lines between evaluations, over the runs that came there.</caption>\n<thead><tr><th>Method</th><th>Runs</th><th>Epochs</th>\
         <th>Pairs</th><th>Hours</th></tr></thead>\n<tbody>",
        escape(headline.label),
        first.level
    );
    for (method, reach) in &reached {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{} of {}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&method.name),
            reach.n_runs,
            method.complete().count(),
            short(reach.epochs.mean),
            short(reach.pairs.mean),
            short(reach.hours.mean)
        );
    }
    out.push_str("</tbody></table></div>\n");
}

/// What the first complete run of each method drew, side by side.
fn strips(out: &mut String, report: &Report) -> Result<()> {
    let mut kinds: BTreeMap<&str, Vec<(&str, &std::path::Path)>> = BTreeMap::new();
    for method in &report.methods {
        if let Some(run) = method.complete().next() {
            for (kind, path) in &run.pictures {
                kinds.entry(kind).or_default().push((&method.name, path));
            }
        }
    }
    if kinds.is_empty() {
        return Ok(());
    }
    out.push_str("<section>\n<h2>Pictures</h2>\n");
    for (kind, pictures) in kinds {
        let _ = writeln!(out, "<h3>{}</h3>\n<div class=\"strips\">", escape(kind));
        for (method, path) in pictures {
            let bytes = fs::read(path).map_err(Error::io(path))?;
            let shown = if bytes.len() > MAX_PICTURE_BYTES {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                format!(
                    "<p class=\"note\">{} is too large for this page</p>",
                    escape(&name)
                )
            } else {
                format!(
                    "<img alt=\"{}, {}\" loading=\"lazy\" src=\"data:image/png;base64,{}\">",
                    escape(kind),
                    escape(method),
                    STANDARD.encode(&bytes)
                )
            };
            let _ = writeln!(
                out,
                "<figure>{shown}<figcaption>{}</figcaption></figure>",
                escape(method)
            );
        }
        out.push_str("</div>\n");
    }
    out.push_str("</section>\n");
    Ok(())
}

/// What is not the same for all methods.
fn settings(out: &mut String, report: &Report) {
    let keys: Vec<&String> = report
        .methods
        .iter()
        .find(|method| !method.settings.is_empty())
        .map(|method| method.settings.keys().collect())
        .unwrap_or_default();
    out.push_str("<section>\n<h2>What differs</h2>\n<p>Everything else in the resolved configurations is equal: encoder, optimizer, budget, loader and evaluation included, where they are not listed.</p>\n");
    if keys.is_empty() {
        out.push_str("<p class=\"note\">Nothing differs.</p>\n</section>\n");
        return;
    }
    out.push_str("<div class=\"wide\"><table><thead><tr><th>Setting</th>");
    let with_settings: Vec<_> = report
        .methods
        .iter()
        .filter(|method| !method.settings.is_empty())
        .collect();
    for method in &with_settings {
        let _ = write!(out, "<th class=\"text\">{}</th>", escape(&method.name));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for key in keys {
        let _ = write!(out, "<tr><td><code>{}</code></td>", escape(key));
        for method in &with_settings {
            let value = method.settings.get(key).map_or("", String::as_str);
            let _ = write!(
                out,
                "<td class=\"text\"><code>{}</code></td>",
                escape(value)
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n</section>\n");
}

fn provenance(out: &mut String, report: &Report) {
    out.push_str("<section>\n<h2>Provenance</h2>\n<h3>Machines</h3>\n<ul>");
    for machine in &report.machines {
        let _ = write!(
            out,
            "<li>Pairquet {}, {}, {} with {} threads</li>",
            escape(&machine.pairquet),
            escape(&machine.device),
            escape(&machine.processor),
            machine.threads
        );
    }
    out.push_str("</ul>\n<h3>Runs</h3>\n");
    for method in &report.methods {
        for run in &method.runs {
            let known = |hash: &Option<String>| {
                hash.as_deref().map_or_else(
                    || "–".to_string(),
                    |hash| format!("<code>{}</code>", escape(hash)),
                )
            };
            let score = method.headline().filter(|_| run.complete).and(
                run.evaluations
                    .last()
                    .and_then(|last| last.values.first().copied()?),
            );
            let score = score.map_or_else(String::new, |point| format!(", {:.1}", point.value));
            let _ = writeln!(
                out,
                "<details><summary>{}, seed {}{score}</summary>\n<p class=\"note\">weights at the end: {}<br>evaluation data: {}</p>\n<pre>{}</pre></details>",
                escape(&method.name),
                run.seed,
                known(&run.weights_sha256),
                known(&run.data_sha256),
                escape(&run.config)
            );
        }
    }
    out.push_str("</section>\n");
}
