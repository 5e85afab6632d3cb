//! Part d: schedules, position tables and their resampling, the order of patches, targets, kept counts.

use candle_core::{Device, Tensor};
use serde_json::Value;
use trainer::loss::pixel_targets;
use trainer::masking::n_kept;
use trainer::nn::patch_embed::patchify;
use trainer::nn::pos_embed::{resample_pos_embed, sincos_pos_embed};
use trainer::optim::schedule::{LrOrder, Place, Schedule};

use crate::support::{ACTIVATION, Report, Tensors, files, json, part, values};

/// Patches of the resampled tables.
const PATCH_SIZE: usize = 16;
/// Grid of the table that is resampled.
const GRID: usize = 14;

#[test]
fn part_d_tables() {
    let name = "d_tables";
    let Some((folder, manifest)) = part(name) else {
        return;
    };
    let mut report = Report::default();
    for (file, entry) in files(&manifest) {
        let path = folder.join(&file);
        if file == "lr_in_force.json" {
            in_force(&json(&path), &mut report);
            continue;
        }
        let mut tensors = Tensors::read(&path, entry, &mut report);
        schedules(&mut tensors, &entry["tensors"], &mut report);
        positions(&mut tensors, &mut report);
        patches(&mut tensors, &mut report);
        if let Some(table) = tensors.take("len_keep") {
            for row in values(&table).chunks_exact(3) {
                let got = n_kept(row[0] as usize, row[1]).unwrap_or(0);
                report.number(
                    &format!("kept of {} at {}", row[0], row[1]),
                    got as f64,
                    row[2],
                    0.0,
                );
            }
        }
        tensors.finish(&mut report);
    }
    report.finish(name);
}

fn schedule(described: &Value) -> Schedule {
    let number = |key: &str| {
        described[key]
            .as_f64()
            .unwrap_or_else(|| panic!("schedule {described} has no {key}"))
    };
    Schedule {
        lr: number("lr"),
        min_lr: number("min_lr"),
        warmup_epochs: number("warmup_epochs"),
        epochs: number("epochs"),
    }
}

fn schedules(tensors: &mut Tensors, entries: &Value, report: &mut Report) {
    let mut cases = tensors.take_prefixed("lr.").into_iter();
    while let Some((name, epochs)) = cases.next() {
        let case = name
            .strip_suffix(".epoch")
            .unwrap_or_else(|| panic!("lr.{name} is not understood"));
        let (_, wanted) = cases
            .next()
            .filter(|(next, _)| *next == format!("{case}.lr"))
            .expect("epochs, then rates");
        // The case's numbers are in its description, as Python prints a dictionary.
        let meaning = entries[format!("lr.{name}")]["meaning"].as_str().unwrap();
        let described = meaning[meaning.find('{').unwrap()..].replace('\'', "\"");
        let schedule = schedule(&serde_json::from_str(&described).unwrap());
        for (epoch, want) in values(&epochs).into_iter().zip(values(&wanted)) {
            report.number(
                &format!("lr.{case} at {epoch}"),
                schedule.at_epoch(epoch),
                want,
                1e-15,
            );
        }
    }
}

fn in_force(cases: &Value, report: &mut Report) {
    for (name, case) in cases.as_object().unwrap() {
        let schedule = schedule(case);
        let batches = case["batches_per_epoch"].as_u64().unwrap();
        let mut before = None;
        for step in case["steps"].as_array().unwrap() {
            let place = Place {
                epoch: step["epoch"].as_u64().unwrap(),
                idx: step["idx"].as_u64().unwrap(),
            };
            let used = schedule.in_force(LrOrder::Reference, place, before, batches);
            let after = schedule.in_force(LrOrder::Standard, place, before, batches);
            report.number(
                &format!("{name}: lr_used at {place:?}"),
                used,
                step["lr_used"].as_f64().unwrap(),
                1e-15,
            );
            report.number(
                &format!("{name}: lr_set_after"),
                after,
                step["lr_set_after"].as_f64().unwrap(),
                1e-15,
            );
            before = Some(place);
        }
    }
}

/// `pos.d{width}_g{grid}`, `...row{i}_float64` of it, and `pos_interp.d{width}.{height}x{width in pixels}`.
fn positions(tensors: &mut Tensors, report: &mut Report) {
    for (name, want) in tensors.take_prefixed("pos.d") {
        let (table, row) = name
            .split_once('.')
            .map_or((name.as_str(), None), |(table, row)| (table, Some(row)));
        let (width, grid) = table.split_once("_g").expect("width and grid");
        let table = sincos_pos_embed(width.parse().unwrap(), grid.parse().unwrap())
            .unwrap()
            .squeeze(0)
            .unwrap();
        match row {
            None => report.tensor(&format!("pos.d{name}"), &table, &want, 1e-7),
            Some(row) => {
                let row = row
                    .strip_prefix("row")
                    .and_then(|row| row.strip_suffix("_float64"));
                let row = row.unwrap_or_else(|| panic!("pos.d{name} is not understood"));
                let got = table.get(row.parse().unwrap()).unwrap();
                report.tensor(&format!("pos.d{name}"), &got, &want, 6e-8);
            }
        }
    }
    for (name, want) in tensors.take_prefixed("pos_interp.d") {
        let (width, size) = name.split_once('.').expect("width and size");
        let (height_px, width_px) = size.split_once('x').expect("height x width");
        let table = sincos_pos_embed(width.parse().unwrap(), GRID).unwrap();
        let patches = |px: &str| px.parse::<usize>().unwrap() / PATCH_SIZE;
        let got = resample_pos_embed(&table, patches(height_px), patches(width_px))
            .unwrap()
            .squeeze(0)
            .unwrap();
        report.tensor(&format!("pos_interp.d{name}"), &got, &want, ACTIVATION);
    }
}

fn patches(tensors: &mut Tensors, report: &mut Report) {
    for (name, norm_pix, tolerance) in [("patchify", false, 0.0), ("normpix", true, ACTIVATION)] {
        let Some(images) = tensors.take(&format!("{name}.in")) else {
            continue;
        };
        let want: Tensor = tensors.expect(&format!("{name}.out"));
        let patch_size = ((want.dim(2).unwrap() / 3) as f64).sqrt() as usize;
        let got = pixel_targets(&patchify(&images, patch_size).unwrap(), norm_pix).unwrap();
        report.tensor(
            &format!("{name}.out"),
            &got.to_device(&Device::Cpu).unwrap(),
            &want,
            tolerance,
        );
    }
}
