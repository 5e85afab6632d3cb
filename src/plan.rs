//! `pairquet inspect --plan`: how a config reads its data, and what that costs.

use std::path::Path;

use anyhow::Result;
use pipeline::config::{OrderKind, ReadKind};
use pipeline::loader::state::Batching;
use pipeline::loader::{Line, Rank, ReadPlan, open};
use serde::Serialize;
use trainer::TrainConfig;

use crate::output::{Output, counted, facts};
use crate::sizes::human_bytes;

#[derive(Serialize)]
struct PlanReport {
    order: OrderKind,
    rank: Rank,
    #[serde(flatten)]
    plan: ReadPlan,
    batches_per_epoch: u64,
    line: Line,
    seconds_per_batch: f64,
}

/// Prints the plan of a config.
///
/// * `ranks`: processes that share the reading.
pub fn show(
    config: &Path,
    overrides: &[String],
    ranks: u64,
    line: Line,
    out: &Output,
) -> Result<()> {
    let config = TrainConfig::read(config, overrides)?;
    let source = open::source(&config.data)?;
    let rank = Rank {
        rank: 0,
        world: ranks,
    };
    let order = open::order(source.as_ref(), &config.data, config.seed)?;
    let plan = ReadPlan::new(&config.data, source.as_ref(), &order, rank)?;
    let batch_size = config.data.batch_size as u64;
    let batches = Batching::new(order.n_positions(), batch_size, rank)?.batches_per_epoch();
    let report = PlanReport {
        order: config.data.order_in_force(),
        rank,
        plan,
        batches_per_epoch: batches,
        line,
        seconds_per_batch: plan.seconds_per_batch(line, batches),
    };
    out.result(&report, describe)
}

fn describe(report: &PlanReport) -> String {
    let PlanReport { plan, line, .. } = report;
    let reads = |what: ReadKind, (bytes, requests): (u64, u64)| {
        let what = match what {
            ReadKind::Pages => "single pictures",
            ReadKind::Groups => "whole row groups",
        };
        let requests = counted(requests, ["request", "requests"]);
        format!("{what}: {} in {requests}", human_bytes(bytes))
    };
    let other = match plan.read {
        ReadKind::Pages => ReadKind::Groups,
        ReadKind::Groups => ReadKind::Pages,
    };
    let instead = match plan.other {
        Some(cost) => reads(other, cost),
        None => "whole row groups need data.order = \"blocks\"".to_owned(),
    };
    let memory = match plan.read {
        ReadKind::Pages => "the pictures on their way".to_owned(),
        ReadKind::Groups => format!(
            "up to {} of row groups, of which a window takes {}",
            human_bytes(plan.budget_bytes),
            human_bytes(plan.window_bytes)
        ),
    };
    facts([
        ("order", format!("{:?}", report.order).to_lowercase()),
        (
            "an epoch",
            format!(
                "{}; a rank of {} reads {}",
                counted(report.batches_per_epoch, ["batch", "batches"]),
                report.rank.world,
                reads(plan.read, (plan.bytes, plan.requests))
            ),
        ),
        ("instead", instead),
        (
            "a batch",
            format!(
                "{:.3} s of reading at {:.0} ms and {}/s, {} at once",
                report.seconds_per_batch,
                line.latency_s * 1e3,
                human_bytes(line.bytes_per_s as u64),
                counted(plan.readers() as u64, ["read", "reads"])
            ),
        ),
        ("memory", memory),
        (
            "cache",
            format!(
                "{} hold all that is read in any epoch",
                human_bytes(plan.distinct_bytes)
            ),
        ),
    ])
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    let number = text
        .parse()
        .ok()
        .filter(|n: &f64| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| "expected a number above 0".to_owned())
}
