//! The report's numbers as CSV.

use super::Report;

/// One line a run and number: `method,seed,complete,protocol,metric,step,value_pct`.
pub(super) fn results(report: &Report) -> String {
    let mut out = "method,seed,complete,protocol,metric,step,value_pct\n".to_string();
    for method in &report.methods {
        for run in &method.runs {
            for (index, metric) in report.metrics.iter().enumerate() {
                let mut values = run.evaluations.iter().filter_map(|e| e.values[index]);
                if let Some(last) = values.next_back() {
                    let fields = [
                        quoted(&method.name),
                        run.seed.to_string(),
                        run.complete.to_string(),
                        metric.protocol.to_string(),
                        metric.name.to_string(),
                        last.step.to_string(),
                        last.value.to_string(),
                    ];
                    push(&mut out, &fields);
                }
            }
        }
    }
    out
}

/// One line a run, quantity and step: `method,seed,quantity,step,epoch,pairs,hours,value`.
pub(super) fn curves(report: &Report) -> String {
    let mut out = "method,seed,quantity,step,epoch,pairs,hours,value\n".to_string();
    for method in &report.methods {
        for run in &method.runs {
            let losses = run.losses.iter().map(|point| ("loss".to_string(), point));
            let scores = report.metrics.iter().enumerate().flat_map(|(i, metric)| {
                let name = format!("{}.{}", metric.protocol, metric.name);
                let values = run
                    .evaluations
                    .iter()
                    .filter_map(move |e| e.values[i].as_ref());
                values.map(move |point| (name.clone(), point))
            });
            for (quantity, point) in losses.chain(scores) {
                let fields = [
                    quoted(&method.name),
                    run.seed.to_string(),
                    quantity,
                    point.step.to_string(),
                    point.epoch.to_string(),
                    point.pairs.to_string(),
                    point.hours.to_string(),
                    point.value.to_string(),
                ];
                push(&mut out, &fields);
            }
        }
    }
    out
}

fn push(out: &mut String, fields: &[String]) {
    out.push_str(&fields.join(","));
    out.push('\n');
}

/// A field in quotes where it needs them (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}
