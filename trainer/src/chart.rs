//! Charts as SVG text: lines over a range, and dots with whiskers beside names.
//!
//! Every mark has a colour of its own for a picture that stands alone, and a class (`series-0`, `axis`, `grid`), through
//! which a page sets other colours.

use std::fmt::Write;

/// Colours of series, told apart by people with any colour vision; further series begin again.
pub(crate) const COLOURS: [&str; 6] = [
    "#0b62a8", "#b8480a", "#00755a", "#86399a", "#756400", "#565656",
];

/// Size of a chart in pixels: narrow enough to be read on a phone without being shrunk much.
pub(crate) const WIDTH: f64 = 460.0;
pub(crate) const HEIGHT: f64 = 280.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;

/// Points drawn of a line at most; longer ones are averaged in groups.
const MAX_POINTS: usize = 400;

/// One line of a [`LineChart`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    /// What a reader sees when pointing at it.
    pub label: String,
    /// Which of [`COLOURS`].
    pub colour: usize,
    /// `(x, y)`, in order of x.
    pub points: Vec<(f64, f64)>,
    /// `(x, low, high)` around the line; may be empty.
    pub band: Vec<(f64, f64, f64)>,
    /// Whether each point is marked.
    pub marked: bool,
    /// Whether it stands behind the others: a raw line behind its mean.
    pub faint: bool,
}

/// Lines over a common range.
#[derive(Debug, Clone, Default)]
pub(crate) struct LineChart {
    /// Above the chart.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// Whether the vertical axis begins at 0.
    pub from_zero: bool,
    /// The lines.
    pub series: Vec<Series>,
}

impl LineChart {
    /// The whole picture.
    pub fn svg(&self) -> String {
        let mut out = open(WIDTH, HEIGHT, &self.title);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let bands = || self.series.iter().flat_map(|series| &series.band);
        let x = range(&mut points().map(|point| point.0));
        let low = bands().map(|band| band.1);
        let high = bands().map(|band| band.2);
        let mut y = range(&mut points().map(|point| point.1).chain(low).chain(high));
        if self.from_zero {
            y.0 = 0.0;
        }
        let frame = Frame {
            x: widened(x, 0.0),
            y: widened(y, if self.from_zero { 0.0 } else { 0.05 }),
        };
        frame.draw(&mut out, &self.title, &self.x_label);
        for series in &self.series {
            series.draw(&mut out, &frame);
        }
        out.push_str("</svg>\n");
        out
    }
}

/// The ranges of both axes.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn px(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            TOP + (1.0 - up) * (HEIGHT - TOP - BOTTOM),
        )
    }

    fn draw(&self, out: &mut String, title: &str, x_label: &str) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let ys = ticks(self.y);
        for (&tick, label) in ys.iter().zip(labels(&ys)) {
            let (_, y) = self.px((self.x.0, tick));
            grid_line(out, (LEFT, y), (right, y));
            text(out, (LEFT - 7.0, y + 4.0), "end", &label);
        }
        let xs = ticks(self.x);
        for (&tick, label) in xs.iter().zip(labels(&xs)) {
            let (x, _) = self.px((tick, self.y.0));
            axis_line(out, (x, bottom), (x, bottom + 4.0));
            text(out, (x, bottom + 18.0), "middle", &label);
        }
        axis_line(out, (LEFT, bottom), (right, bottom));
        text(out, (right, HEIGHT - 6.0), "end", x_label);
        heading(out, title);
    }
}

impl Series {
    fn draw(&self, out: &mut String, frame: &Frame) {
        let at = |&(x, y): &(f64, f64)| {
            let (x, y) = frame.px((x, y));
            format!("{x:.1},{y:.1}")
        };
        let (colour, class) = (COLOURS[self.colour % COLOURS.len()], self.class());
        if !self.band.is_empty() {
            let upper = self.band.iter().map(|&(x, _, high)| (x, high));
            let lower = self.band.iter().rev().map(|&(x, low, _)| (x, low));
            let edge: Vec<_> = upper.chain(lower).map(|point| at(&point)).collect();
            let _ = writeln!(
                out,
                "<polygon class=\"{class} band\" points=\"{}\" fill=\"{colour}\" fill-opacity=\"0.16\" stroke=\"none\"/>",
                edge.join(" ")
            );
        }
        let finite: Vec<_> = self
            .points
            .iter()
            .filter(|point| point.1.is_finite())
            .copied()
            .collect();
        let thinned = thin(&finite);
        let line: Vec<_> = thinned.iter().map(at).collect();
        let (width, opacity) = if self.faint { (1.0, 0.35) } else { (2.0, 1.0) };
        let _ = writeln!(
            out,
            "<polyline class=\"{class}\" points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-opacity=\"{opacity}\" stroke-linejoin=\"round\"><title>{}</title></polyline>",
            line.join(" "),
            escape(&self.label)
        );
        if self.marked {
            for point in &finite {
                let place = frame.px(*point);
                let tip = format!("{}: {} at {}", self.label, short(point.1), short(point.0));
                mark(out, self.colour, place, &tip);
            }
        }
    }

    fn class(&self) -> String {
        format!("series-{}", self.colour % COLOURS.len())
    }
}

/// One row of a [`DotChart`].
#[derive(Debug, Clone)]
pub(crate) struct Dot {
    /// Name of the row.
    pub label: String,
    /// Which of [`COLOURS`].
    pub colour: usize,
    /// The value and the ends of its whisker, if there is one.
    pub value: Option<(f64, f64, f64)>,
    /// Somebody else's value, drawn as a hollow diamond.
    pub published: Option<f64>,
}

/// Values with whiskers, one row a name.
#[derive(Debug, Clone, Default)]
pub(crate) struct DotChart {
    /// Above the chart.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// From the top.
    pub dots: Vec<Dot>,
}

impl DotChart {
    /// The whole picture.
    pub fn svg(&self) -> String {
        const ROW: f64 = 30.0;
        /// Room for a name of this many characters, at most half of the chart.
        const PX_A_CHARACTER: f64 = 7.2;
        let longest = self.dots.iter().map(|dot| dot.label.chars().count()).max();
        let left = (longest.unwrap_or(0) as f64 * PX_A_CHARACTER + 14.0).clamp(LEFT, WIDTH / 2.0);
        let height = TOP + ROW * self.dots.len() as f64 + BOTTOM;
        let bottom = height - BOTTOM;
        let values = self.dots.iter().flat_map(|dot| {
            let whisker = dot.value.map(|(value, low, high)| [value, low, high]);
            whisker.into_iter().flatten().chain(dot.published)
        });
        let x_range = widened(range(&mut values.into_iter()), 0.05);
        let px = |x: f64| left + (x - x_range.0) / (x_range.1 - x_range.0) * (WIDTH - left - RIGHT);
        let mut out = open(WIDTH, height, &self.title);
        let xs = ticks(x_range);
        for (&tick, label) in xs.iter().zip(labels(&xs)) {
            grid_line(&mut out, (px(tick), TOP), (px(tick), bottom));
            text(&mut out, (px(tick), bottom + 18.0), "middle", &label);
        }
        text(
            &mut out,
            (WIDTH - RIGHT, height - 6.0),
            "end",
            &self.x_label,
        );
        for (row, dot) in self.dots.iter().enumerate() {
            let y = TOP + (row as f64 + 0.5) * ROW;
            text(&mut out, (left - 8.0, y + 4.0), "end", &dot.label);
            if let Some((value, low, high)) = dot.value {
                let colour = COLOURS[dot.colour % COLOURS.len()];
                let class = dot.colour % COLOURS.len();
                let _ = writeln!(
                    out,
                    "<line class=\"series-{class}\" x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" \
                     stroke-width=\"2\"/>",
                    px(low),
                    px(high)
                );
                let tip = format!(
                    "{}: {} ({} to {})",
                    dot.label,
                    short(value),
                    short(low),
                    short(high)
                );
                mark(&mut out, dot.colour, (px(value), y), &tip);
            }
            if let Some(published) = dot.published {
                let x = px(published);
                let _ = writeln!(
                    out,
                    "<path class=\"axis\" d=\"M{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z\" fill=\"none\" stroke=\"#666\" \
                     stroke-width=\"1.5\"><title>{}, published: {}</title></path>",
                    x - 6.0,
                    y - 6.0,
                    x + 6.0,
                    y + 6.0,
                    escape(&dot.label),
                    short(published)
                );
            }
        }
        heading(&mut out, &self.title);
        out.push_str("</svg>\n");
        out
    }
}

fn open(width: f64, height: f64, label: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n",
        escape(label)
    )
}

fn heading(out: &mut String, title: &str) {
    let _ = writeln!(
        out,
        "<text class=\"label\" x=\"4\" y=\"17\" font-size=\"14\" font-weight=\"600\" fill=\"#333\">{}</text>",
        escape(title)
    );
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, content: &str) {
    let _ = writeln!(
        out,
        "<text class=\"label\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#333\">{}</text>",
        escape(content)
    );
}

fn grid_line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    line(out, "grid", "#e3e3e3", from, to);
}

fn axis_line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    line(out, "axis", "#888", from, to);
}

fn line(out: &mut String, class: &str, colour: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// A mark whose shape tells a series apart where its colour does not.
fn mark(out: &mut String, series: usize, (x, y): (f64, f64), tip: &str) {
    const R: f64 = 4.0;
    let path = match series % 3 {
        0 => format!(
            "M{:.1} {y:.1}a{R} {R} 0 1 0 {d} 0a{R} {R} 0 1 0 -{d} 0Z",
            x - R,
            d = 2.0 * R
        ),
        1 => format!("M{:.1} {:.1}h{d}v{d}h-{d}Z", x - R, y - R, d = 2.0 * R),
        _ => format!(
            "M{x:.1} {:.1}L{:.1} {:.1}H{:.1}Z",
            y - 1.2 * R,
            x + 1.2 * R,
            y + R,
            x - 1.2 * R
        ),
    };
    let class = series % COLOURS.len();
    let _ = writeln!(
        out,
        "<path class=\"series-{class} mark\" d=\"{path}\" fill=\"{}\"><title>{}</title></path>",
        COLOURS[class],
        escape(tip)
    );
}

/// Lowest and highest finite value; 0 to 1 if there is none.
fn range(values: &mut dyn Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        });
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// The range with a share of itself as a margin, never empty.
fn widened((low, high): (f64, f64), margin: f64) -> (f64, f64) {
    if high > low {
        let margin = margin * (high - low);
        return (low - margin, high + margin);
    }
    let half = 0.5 * high.abs().max(1e-6);
    (low - half, high + half)
}

/// Round numbers that divide an axis in some five parts.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..)
        .map(|i| i as f64 * step)
        .take_while(|&tick| tick <= high + step * 1e-9)
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

/// Exponential moving average over a fortieth of the line, corrected for its start.
pub(crate) fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const SHARE: f64 = 0.025;
    let steps = (points.len() as f64 * SHARE).clamp(4.0, 100.0);
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

/// A number as a person reads it: four digits.
pub(crate) fn short(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.2e}");
    }
    let decimals = (3 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 4) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// Text inside markup.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(points: Vec<(f64, f64)>) -> LineChart {
        let band = points.iter().map(|&(x, y)| (x, y - 1.0, y + 1.0)).collect();
        LineChart {
            title: "a <run> & more".to_string(),
            series: vec![Series {
                points,
                band,
                marked: true,
                ..Series::default()
            }],
            ..LineChart::default()
        }
    }

    #[test]
    fn lines_of_every_length_are_drawn() {
        for n in [0, 1, 2, 5000] {
            let picture = lines((0..n).map(|i| (f64::from(i), 1.0)).collect()).svg();
            assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{n}");
            assert!(picture.contains("a &lt;run&gt; &amp; more"));
        }
        let long = LineChart {
            series: vec![Series {
                points: (0..100_000).map(|i| (f64::from(i), 1.0)).collect(),
                ..Series::default()
            }],
            ..LineChart::default()
        };
        assert!(long.svg().len() < 20_000, "points are averaged");
    }

    #[test]
    fn values_that_are_no_numbers_are_left_out() {
        let chart = lines(vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)]);
        let line = LineChart {
            series: vec![Series {
                band: Vec::new(),
                ..chart.series[0].clone()
            }],
            ..chart
        };
        assert!(!line.svg().contains("NaN"));
    }

    #[test]
    fn a_row_without_a_value_keeps_its_place() {
        let dot = |label: &str, value: Option<f64>| Dot {
            label: label.to_string(),
            colour: 7,
            value: value.map(|v| (v, v - 1.0, v + 1.0)),
            published: Some(60.4),
        };
        let chart = DotChart {
            dots: vec![dot("random views", Some(33.0)), dot("same views", None)],
            ..DotChart::default()
        };
        let picture = chart.svg();
        assert_eq!(picture.matches("published: 60.4").count(), 2);
        assert_eq!(picture.matches("33 (32 to 34)").count(), 1);
        assert!(DotChart::default().svg().ends_with("</svg>\n"));
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

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (60.4, "60.4"),
            (0.12345, "0.1235"),
            (1234.5, "1234"),
            (5e-7, "5.00e-7"),
            (-2.5, "-2.5"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
