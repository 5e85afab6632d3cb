//! `curves.svg`: loss and learning rate over the steps, as one self-contained picture.

use std::fmt::Write;

use super::MetricsLine;

/// Size of the whole picture and of one chart's plotting area, in pixels.
const WIDTH: f64 = 860.0;
const CHART_HEIGHT: f64 = 250.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 56.0;
const GAP: f64 = 62.0;

/// Points drawn of a line at most; longer runs are averaged in groups.
const MAX_POINTS: usize = 800;

/// Steps that the smoothed loss looks back: this share of the run, within these bounds.
const SMOOTHED_SHARE: f64 = 0.025;
const SMOOTHED_STEPS: (f64, f64) = (4.0, 100.0);

/// Draws loss (raw and smoothed) and learning rate of a run.
///
/// * `title`: the run's name.
pub fn svg(title: &str, lines: &[MetricsLine]) -> String {
    let losses: Vec<_> = lines
        .iter()
        .map(|line| (line.step as f64, f64::from(line.loss)))
        .collect();
    let rates: Vec<_> = lines
        .iter()
        .map(|line| (line.step as f64, line.lr))
        .collect();
    let height = TOP + 2.0 * CHART_HEIGHT + 2.0 * GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"18\" font-weight=\"600\">{}</text>\n",
        escape(title)
    );
    let loss = Chart {
        top: TOP,
        label: "loss",
        frame: Frame::around(&losses, false),
    };
    loss.draw_axes(&mut out);
    loss.draw_line(&mut out, &thin(&losses), "#9db8d9", 1.0);
    loss.draw_line(&mut out, &thin(&smooth(&losses)), "#1f4e8c", 2.0);
    let rate = Chart {
        top: TOP + CHART_HEIGHT + GAP,
        label: "learning rate",
        frame: Frame::around(&rates, true),
    };
    rate.draw_axes(&mut out);
    rate.draw_line(&mut out, &thin(&rates), "#b4561f", 2.0);
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">optimizer step</text>\n</svg>",
        WIDTH - RIGHT,
        height - 14.0
    );
    out
}

/// The ranges of both axes.
#[derive(Debug)]
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn around(points: &[(f64, f64)], from_zero: bool) -> Self {
        let finite: Vec<_> = points.iter().filter(|(_, y)| y.is_finite()).collect();
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| {
                (lo.min(v), hi.max(v))
            })
        };
        let (mut x, mut y) = (
            range(&mut finite.iter().map(|p| p.0)),
            range(&mut finite.iter().map(|p| p.1)),
        );
        if finite.is_empty() {
            (x, y) = ((0.0, 1.0), (0.0, 1.0));
        }
        if from_zero {
            y.0 = 0.0;
        }
        if x.1 <= x.0 {
            x.1 = x.0 + 1.0;
        }
        let margin = if y.1 > y.0 {
            0.05 * (y.1 - y.0)
        } else {
            0.5 * y.1.abs().max(1e-6)
        };
        y = (if from_zero { 0.0 } else { y.0 - margin }, y.1 + margin);
        Self { x, y }
    }
}

/// One chart: its place, its label and its ranges.
struct Chart {
    top: f64,
    label: &'static str,
    frame: Frame,
}

impl Chart {
    fn px(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.frame.x.0) / (self.frame.x.1 - self.frame.x.0);
        let up = (y - self.frame.y.0) / (self.frame.y.1 - self.frame.y.0);
        (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            self.top + (1.0 - up) * CHART_HEIGHT,
        )
    }

    fn draw_axes(&self, out: &mut String) {
        let right = WIDTH - RIGHT;
        let bottom = self.top + CHART_HEIGHT;
        let y_ticks = ticks(self.frame.y);
        for (tick, label) in y_ticks.iter().copied().zip(labels(&y_ticks)) {
            let (_, y) = self.px((self.frame.x.0, tick));
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e6e6e6\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                label
            );
        }
        let x_ticks = ticks(self.frame.x);
        for (tick, label) in x_ticks.iter().copied().zip(labels(&x_ticks)) {
            let (x, _) = self.px((tick, self.frame.y.0));
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#888\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 20.0,
                label
            );
        }
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\" stroke=\"#888\"/>\
             <text x=\"{LEFT}\" y=\"{}\" font-weight=\"600\">{}</text>",
            self.top - 10.0,
            self.label
        );
    }

    fn draw_line(&self, out: &mut String, points: &[(f64, f64)], colour: &str, width: f64) {
        let mut path = String::new();
        for &point in points.iter().filter(|(_, y)| y.is_finite()) {
            let (x, y) = self.px(point);
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\"/>",
            path.trim_end()
        );
    }
}

/// About five round values within a range.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|m| m * magnitude)
        .into_iter()
        .find(|&s| s >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..)
        .map(|i| i as f64 * step)
        .take_while(|&tick| tick <= high * (1.0 + 1e-12))
        .collect()
}

/// Labels of an axis's ticks, without rounding noise; small values as powers of ten.
fn labels(ticks: &[f64]) -> Vec<String> {
    let largest = ticks.iter().fold(0.0, |max: f64, tick| max.max(tick.abs()));
    let label = |&tick: &f64| {
        if tick == 0.0 {
            return "0".to_string();
        }
        if (1e-2..1e6).contains(&largest) {
            let text = format!("{tick:.4}");
            return text.trim_end_matches('0').trim_end_matches('.').to_string();
        }
        format!("{tick:.2e}").replace("0e", "e").replace(".0e", "e")
    };
    ticks.iter().map(label).collect()
}

/// Exponential moving average, corrected for its start.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let steps = (points.len() as f64 * SMOOTHED_SHARE).clamp(SMOOTHED_STEPS.0, SMOOTHED_STEPS.1);
    let past = 1.0 - 1.0 / steps;
    let (mut mean, mut weight) = (0.0, 0.0);
    let step = |&(x, y): &(f64, f64)| {
        mean = past * mean + (1.0 - past) * y;
        weight = past * weight + (1.0 - past);
        (x, mean / weight)
    };
    points
        .iter()
        .filter(|(_, y)| y.is_finite())
        .map(step)
        .collect()
}

/// Averages neighbouring points until at most [`MAX_POINTS`] are left.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        let (x, y) = chunk
            .iter()
            .fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (x / n, y / n)
    };
    points.chunks(group).map(mean).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u64) -> Vec<MetricsLine> {
        let line = |step| MetricsLine {
            step,
            loss: 1.0 / step as f32,
            lr: 1e-4,
            ..MetricsLine::default()
        };
        (1..=n).map(line).collect()
    }

    #[test]
    fn draws_every_run_length() {
        for n in [0, 1, 2, 50, 5000] {
            let picture = svg("a <run> & more", &run(n));
            assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
            assert!(
                !picture.contains("NaN") && !picture.contains("inf"),
                "{n} steps"
            );
            assert!(picture.contains("a &lt;run&gt; &amp; more"));
            assert!(picture.len() < 100_000);
        }
    }

    #[test]
    fn a_nan_in_the_record_is_left_out() {
        let mut lines = run(5);
        lines[2].loss = f32::NAN;
        assert!(!svg("run", &lines).contains("NaN"));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            ticks((0.0, 1.0)),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(labels(&[0.2, 0.6000000000000001]), ["0.2", "0.6"]);
        assert_eq!(labels(&[50.0, 100.0]), ["50", "100"]);
        assert_eq!(labels(&[0.0, 5e-4, 1.25e-3]), ["0", "5e-4", "1.25e-3"]);
    }
}
