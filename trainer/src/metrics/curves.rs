//! `curves.svg`: loss and learning rate over the steps, as one self-contained picture.

use super::MetricsLine;
use crate::chart::{HEIGHT, LineChart, Series, WIDTH, escape, smooth};

/// Height of the line with the run's name.
const HEAD: f64 = 34.0;

/// Draws loss (raw and smoothed) and learning rate of a run.
///
/// * `title`: the run's name.
pub fn svg(title: &str, lines: &[MetricsLine]) -> String {
    let over_steps = |value: fn(&MetricsLine) -> f64| -> Vec<(f64, f64)> {
        lines
            .iter()
            .map(|line| (line.step as f64, value(line)))
            .collect()
    };
    let losses = over_steps(|line| f64::from(line.loss));
    let chart = |title: &str, from_zero, series| LineChart {
        title: title.to_string(),
        x_label: "optimizer step".to_string(),
        from_zero,
        series,
    };
    let series = |label: &str, colour, points, faint| Series {
        label: label.to_string(),
        colour,
        points,
        faint,
        ..Series::default()
    };
    let loss = chart(
        "loss",
        false,
        vec![
            series("loss", 0, losses.clone(), true),
            series("smoothed loss", 0, smooth(&losses), false),
        ],
    );
    let rates = over_steps(|line| line.lr);
    let rate = chart(
        "learning rate",
        true,
        vec![series("learning rate", 1, rates, false)],
    );
    let height = HEAD + 2.0 * HEIGHT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{}\" height=\"{}\" \
         font-family=\"system-ui, sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"4\" y=\"22\" font-size=\"17\" font-weight=\"600\" fill=\"#333\">{}</text>\n\
         <g transform=\"translate(0 {HEAD})\">{}</g>\n<g transform=\"translate(0 {})\">{}</g>\n</svg>\n",
        2.0 * WIDTH,
        2.0 * height,
        escape(title),
        loss.svg(),
        HEAD + HEIGHT,
        rate.svg()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_charts_of_a_run_of_any_length_are_there() {
        for n in [0, 1, 5000] {
            let line = |step| MetricsLine {
                step,
                loss: 1.0 / step as f32,
                lr: 1e-4,
                ..MetricsLine::default()
            };
            let lines: Vec<_> = (1..=n).map(line).collect();
            let picture = svg("a <run> & more", &lines);
            assert_eq!(picture.matches("<svg").count(), 3);
            assert_eq!(picture.matches("</svg>").count(), 3);
            assert!(picture.contains("a &lt;run&gt; &amp; more"));
            assert!(picture.len() < 100_000, "{n} lines");
        }
    }
}
