//! Part e: crop boxes and frame pairs come from the reference's distributions.

use pipeline::config::Sampler;
use pipeline::rng::{Purpose, SampleRng};
use pipeline::views::frame_pair::FramePair;
use pipeline::views::single::Single;
use pipeline::views::{CropBox, CropSampler};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::statistics::{
    ks_distance, ks_limit, mean_and_std, quantile_distance, same_histogram, same_mean, same_share,
};
use crate::{Part, array, number, string, whole_numbers};

/// Draws of each case, ours and the reference's.
const N_DRAWS: u64 = 20_000;

/// As many times the draws where a first test fails.
const POOLED: u64 = 10;

/// Tests one case: 20,000 draws under a seed that hangs on its name alone, at p > 0.001 for each statistic.
///
/// With some 300 statistics in a folder, one fails by chance in every fourth folder. So where one fails, ten times as
/// many draws, all of them new, are held against the reference's at the same p: a real difference shows only more in
/// them, while our share of the chance is all but gone. (Raising the limits for the number of tests would be weaker for
/// each of them; drawing as few again until they agree would be weaker too.)
///
/// * `differing`: the first statistic that differs, for a seed and a number of draws.
fn test_case(name: &str, differing: impl Fn(u64, u64) -> Option<String>) {
    let seed = name.bytes().fold(20_240_317, |seed: u64, byte| {
        seed.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let Some(first) = differing(seed, N_DRAWS) else {
        return;
    };
    eprintln!("golden part e_sampling: {name}: {first} differs at first; {POOLED} times the draws");
    let pooled = differing(seed + 1, POOLED * N_DRAWS);
    assert!(pooled.is_none(), "{name}: {first}, then {pooled:?} differ");
}

#[test]
fn part_e() {
    let Some(part) = Part::open("e_sampling") else {
        return;
    };
    let mut n_cases = 0;
    for file in part.files() {
        n_cases += match string(&file["file"]) {
            name if name.ends_with("draws.safetensors") => crop_draws(&part, file),
            name if name.ends_with("stats.json") => crop_statistics(&part.json(name)),
            name if name.ends_with("gaps.json") => frame_pairs(&part.json(name)),
            other => panic!("part e lists {other}, which this test does not understand"),
        };
    }
    println!("golden part e_sampling: {n_cases} cases");
    assert!(n_cases > 0, "part e lists no cases");
}

/// Size of the picture and sampler of a case such as `effective.500x375.scale0.1-1.0`.
struct CropCase {
    width: u32,
    height: u32,
    sampler: CropSampler,
}

impl CropCase {
    fn parse(name: &str, meaning: &str) -> CropCase {
        Self::try_parse(name, meaning)
            .unwrap_or_else(|| panic!("crop case {name:?} ({meaning}) is not understood"))
    }

    fn try_parse(name: &str, meaning: &str) -> Option<CropCase> {
        let mut words = name.splitn(3, '.');
        let sampler = match words.next()? {
            "effective" => Sampler::Torchvision,
            "as_written" => Sampler::Byol,
            _ => return None,
        };
        let (width, height) = words.next()?.split_once('x')?;
        let (low, high) = words.next()?.strip_prefix("scale")?.split_once('-')?;
        let area = [low.parse().ok()?, high.parse().ok()?];
        let aspect = match meaning {
            "" => [3.0 / 4.0, 4.0 / 3.0],
            _ => parse_ratio(meaning)?,
        };
        let sampler = CropSampler {
            sampler,
            area,
            aspect,
        };
        Some(CropCase {
            width: width.parse().ok()?,
            height: height.parse().ok()?,
            sampler,
        })
    }

    fn draw(&self, seed: u64, n: u64) -> Vec<CropBox> {
        let draw = |sample| {
            let mut rng = SampleRng::new(seed, 0, sample, Purpose::Crop);
            self.sampler.draw(&mut rng, self.width, self.height)
        };
        (0..n).map(draw).collect()
    }
}

/// The range in a text such as `..., ratio 3/4..4/3, ...`.
fn parse_ratio(meaning: &str) -> Option<[f64; 2]> {
    let (_, after) = meaning.split_once("ratio ")?;
    let (low, high) = after.split([',', ' ']).next()?.split_once("..")?;
    let fraction = |text: &str| match text.split_once('/') {
        Some((over, under)) => Some(over.parse::<f64>().ok()? / under.parse::<f64>().ok()?),
        None => text.parse().ok(),
    };
    Some([fraction(low)?, fraction(high)?])
}

fn column(boxes: &[CropBox], value: impl Fn(&CropBox) -> f64) -> Vec<f64> {
    boxes.iter().map(value).collect()
}

type Measure = fn(&CropBox) -> f64;

const MEASURES: [(&str, Measure); 6] = [
    ("left", |b| f64::from(b.x)),
    ("top", |b| f64::from(b.y)),
    ("width", |b| f64::from(b.width)),
    ("height", |b| f64::from(b.height)),
    ("area", |b| f64::from(b.width) * f64::from(b.height)),
    ("aspect", |b| f64::from(b.width) / f64::from(b.height)),
];

fn crop_draws(part: &Part, file: &Value) -> usize {
    let bytes = part.bytes(string(&file["file"]));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let cases = file["tensors"].as_object().unwrap();
    for (name, about) in cases {
        let case = CropCase::parse(name, string(&about["meaning"]));
        let theirs = read_boxes(&tensors, name);
        test_case(name, |seed, n| {
            let ours = case.draw(seed, n);
            MEASURES.iter().find_map(|(measure, value)| {
                let distance = ks_distance(column(&ours, value), column(&theirs, value));
                (distance > ks_limit(ours.len(), theirs.len()))
                    .then(|| format!("{measure} (Kolmogorov-Smirnov distance {distance})"))
            })
        });
    }
    cases.len()
}

/// Rows of top, left, height, width.
fn read_boxes(tensors: &SafeTensors<'_>, name: &str) -> Vec<CropBox> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.shape()[1], 4, "{name}: {:?}", tensor.shape());
    let values: Vec<u32> = match tensor.dtype() {
        safetensors::Dtype::I16 => tensor
            .data()
            .chunks_exact(2)
            .map(|b| i16::from_le_bytes([b[0], b[1]]) as u32)
            .collect(),
        safetensors::Dtype::I32 => tensor
            .data()
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as u32)
            .collect(),
        other => panic!("{name}: {other:?} is not understood"),
    };
    let to_box = |v: &[u32]| CropBox {
        y: v[0],
        x: v[1],
        height: v[2],
        width: v[3],
    };
    values.chunks_exact(4).map(to_box).collect()
}

fn crop_statistics(stats: &Value) -> usize {
    let levels: Vec<f64> = array(&stats["quantile_levels"])
        .iter()
        .map(number)
        .collect();
    let cases = stats["cases"].as_object().unwrap();
    for (name, expected) in cases {
        let case = CropCase::parse(name, "");
        test_case(name, |seed, n| {
            let boxes = case.draw(seed, n);
            let statistics = expected.as_object().unwrap().iter();
            let differing = |(statistic, value): (&String, &Value)| {
                (!agrees(&case, &boxes, statistic, value, &levels)).then(|| statistic.clone())
            };
            statistics.map(differing).find_map(|differs| differs)
        });
    }
    cases.len()
}

/// Whether one statistic of a case may be of our distribution.
fn agrees(
    case: &CropCase,
    boxes: &[CropBox],
    name: &str,
    expected: &Value,
    levels: &[f64],
) -> bool {
    let (width, height) = (f64::from(case.width), f64::from(case.height));
    let [low, high] = case.sampler.aspect;
    let aspect = |b: &CropBox| f64::from(b.width) / f64::from(b.height);
    let spread = |sample: Vec<f64>| {
        let quantiles: Vec<f64> = array(&expected["quantiles"]).iter().map(number).collect();
        let m = number(&expected["n"]);
        let (mean, std) = mean_and_std(&sample);
        let n = sample.len();
        same_mean(
            mean,
            std,
            n as f64,
            number(&expected["mean"]),
            number(&expected["std"]),
            m,
        ) && quantile_distance(sample, m as usize, levels, &quantiles) <= ks_limit(n, m as usize)
    };
    let share = |holds: &dyn Fn(&CropBox) -> bool| {
        let count = boxes.iter().filter(|b| holds(b)).count() as f64;
        let (n, m) = (boxes.len() as f64, N_DRAWS as f64);
        same_share(count, n, number(expected) * m, m)
    };
    // Where a crop as wide as the picture leaves no choice, its place says nothing.
    let place = |at: Measure, room: &dyn Fn(&CropBox) -> f64| {
        boxes
            .iter()
            .filter(|b| room(b) > 0.0)
            .map(|b| at(b) / room(b))
            .collect::<Vec<_>>()
    };
    match name {
        "area_fraction" => spread(column(boxes, |b| {
            f64::from(b.width) * f64::from(b.height) / (width * height)
        })),
        "aspect_w_over_h" => spread(column(boxes, aspect)),
        "left_fraction" | "top_fraction" if expected.get("mean").is_none_or(Value::is_null) => {
            let free = |b: &&CropBox| {
                if name == "left_fraction" {
                    b.width < case.width
                } else {
                    b.height < case.height
                }
            };
            boxes.iter().filter(free).count() == 0
        }
        "left_fraction" => spread(place(|b| f64::from(b.x), &|b| width - f64::from(b.width))),
        "top_fraction" => spread(place(|b| f64::from(b.y), &|b| height - f64::from(b.height))),
        "share_full_width" => share(&|b| b.width == case.width),
        "share_full_height" => share(&|b| b.height == case.height),
        // Whole pixels leave the range by a hair: the golden numbers count what lies more than 2 % outside.
        "share_aspect_outside_ratio" => {
            share(&|b| aspect(b) < low * 0.98 || aspect(b) > high * 1.02)
        }
        other => panic!("statistic {other} of a crop case is not understood"),
    }
}

fn frame_pairs(golden: &Value) -> usize {
    let range: Vec<u32> = array(&golden["gap_range"])
        .iter()
        .map(|v| number(v) as u32)
        .collect();
    let crop = CropSampler {
        sampler: Sampler::Torchvision,
        area: [0.5, 1.0],
        aspect: [0.75, 4.0 / 3.0],
    };
    let pair = FramePair {
        min_gap: range[0],
        max_gap: range[1],
        shared: Single { crop, flip_p: 0.5 },
    };
    let mut rng = SampleRng::new(0, 0, 0, Purpose::Frames);
    if string(&golden["one_frame"]).contains("at least 2") {
        assert_eq!(
            pair.draw_frames(&mut rng, 1),
            None,
            "a single frame is no pair"
        );
    }
    let cases = golden["by_frame_count"].as_object().unwrap();
    for (frames, expected) in cases {
        let n_frames = whole_numbers(frames)[0] as u32;
        let draws = number(&golden["draws"]);
        test_case(&format!("clips of {frames} frames"), |seed, n| {
            pairs_differ(&pair, (seed, n), n_frames, expected, draws).map(str::to_owned)
        });
    }
    cases.len() + 1
}

fn pairs_differ(
    pair: &FramePair,
    (seed, n_draws): (u64, u64),
    n_frames: u32,
    expected: &Value,
    draws: f64,
) -> Option<&'static str> {
    let draw = |sample| {
        let mut rng = SampleRng::new(seed, 0, sample, Purpose::Frames);
        pair.draw_frames(&mut rng, n_frames).unwrap()
    };
    let pairs: Vec<[u32; 2]> = (0..n_draws).map(draw).collect();
    let gaps: Vec<u32> = pairs.iter().map(|[first, second]| second - first).collect();
    let range = [&expected["gap_low"], &expected["gap_high_inclusive"]].map(|v| number(v) as u32);
    assert!(
        gaps.iter().all(|gap| (range[0]..=range[1]).contains(gap)),
        "{n_frames} frames: gaps outside {range:?}"
    );

    let counts = expected["gap_counts"].as_object().unwrap();
    let theirs: Vec<f64> = (range[0]..=range[1])
        .map(|gap| counts.get(&gap.to_string()).map_or(0.0, number))
        .collect();
    assert_eq!(
        theirs.iter().sum::<f64>(),
        draws,
        "{n_frames} frames: gaps outside their own range"
    );
    let count = |wanted| gaps.iter().filter(|&&gap| gap == wanted).count() as f64;
    let ours: Vec<f64> = (range[0]..=range[1]).map(count).collect();
    if !same_histogram(&ours, &theirs) {
        return Some("gaps");
    }
    let limit = ks_limit(pairs.len(), draws as usize);
    for (name, which) in [("first_frame_deciles", 0), ("second_frame_deciles", 1)] {
        let sample = pairs.iter().map(|pair| f64::from(pair[which])).collect();
        let deciles: Vec<f64> = array(&expected[name]).iter().map(number).collect();
        let levels: Vec<f64> = (0..deciles.len())
            .map(|i| i as f64 / (deciles.len() - 1) as f64)
            .collect();
        if quantile_distance(sample, draws as usize, &levels, &deciles) > limit {
            return Some(if which == 0 {
                "first frames"
            } else {
                "second frames"
            });
        }
    }
    let first: Vec<f64> = pairs.iter().map(|pair| f64::from(pair[0])).collect();
    let (mean, std) = mean_and_std(&first);
    let n = first.len() as f64;
    let close = same_mean(
        mean,
        std,
        n,
        number(&expected["first_frame_mean"]),
        std,
        draws,
    );
    (!close).then_some("mean of the first frames")
}
