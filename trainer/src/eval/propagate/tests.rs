//! The engine against the plain form of the same thing: everything at once, sorted.

use proptest::prelude::*;

use super::*;

const GRID: Size = Size {
    height: 5,
    width: 7,
};
const WIDTH: usize = 6;
const LABELS: usize = 3;

/// Values that look like noise and are a function of their place.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    (0..n as u32)
        .map(|i| {
            let mixed = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
            let mixed = (mixed ^ mixed >> 15).wrapping_mul(0xc2b2_ae35);
            (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn features(seed: u32, grid: Size) -> Vec<f32> {
    noise(seed, grid.area() * WIDTH)
}

fn labels(grid: Size) -> Vec<f32> {
    noise(1, grid.area() * LABELS)
        .iter()
        .map(|v| v.abs())
        .collect()
}

/// Labels of every frame but the first, by the definition: all sources as a list of copies, masked by -1e10.
fn plainly(
    settings: &Propagation,
    grid: Size,
    frames: &[Vec<f32>],
    first: &[f32],
) -> Vec<Vec<f32>> {
    let n = grid.area();
    let unit = |frame: &[f32]| -> Vec<f32> {
        let mut unit = frame.to_vec();
        if settings.cosine {
            scale_to_length_1(&mut unit, WIDTH);
        }
        unit
    };
    let frames: Vec<Vec<f32>> = frames.iter().map(|frame| unit(frame)).collect();
    let mut known = vec![first.to_vec()];
    let mut out = Vec::new();
    for t in 1..frames.len() {
        let mut sources: Vec<(usize, bool)> = Vec::new();
        if settings.first_frame {
            sources.push((0, settings.radius_in_first_frame));
        }
        let context = (t as i64 - settings.n_context as i64)..t as i64;
        let clamped: Vec<usize> = context.map(|frame| frame.max(0) as usize).collect();
        for (i, &frame) in clamped.iter().enumerate() {
            let is_copy = i > 0 && clamped[i - 1] == frame;
            if settings.copies_of_first_frame || !is_copy {
                sources.push((frame, true));
            }
        }
        let mut labels = vec![0f32; n * LABELS];
        for q in 0..n {
            let mut all: Vec<(f32, usize, usize)> = Vec::new();
            for &(frame, masked) in &sources {
                for p in 0..n {
                    let mut similarity: f32 = (0..WIDTH)
                        .map(|d| frames[t][q * WIDTH + d] * frames[frame][p * WIDTH + d])
                        .sum();
                    let dy = (q / grid.width).abs_diff(p / grid.width) as f64;
                    let dx = (q % grid.width).abs_diff(p % grid.width) as f64;
                    if masked && dy.hypot(dx) >= settings.radius {
                        similarity -= 1e10;
                    }
                    all.push((similarity / settings.temperature as f32, frame, p));
                }
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            all.truncate(settings.top_k);
            let sum: f32 = all.iter().map(|a| (a.0 - all[0].0).exp()).sum();
            for (similarity, frame, p) in &all {
                let weight = (similarity - all[0].0).exp() / sum;
                for l in 0..LABELS {
                    labels[q * LABELS + l] += weight * known[*frame][p * LABELS + l];
                }
            }
        }
        out.push(labels.clone());
        if settings.feed_back == FeedBack::Hard {
            for patch in labels.chunks_exact_mut(LABELS) {
                let largest = first_largest(patch);
                for (l, value) in patch.iter_mut().enumerate() {
                    *value = f32::from(u8::from(l == largest));
                }
            }
        }
        known.push(labels);
    }
    out
}

fn by_engine(settings: &Propagation, grid: Size, frames: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut engine = Propagator::new(settings, grid, frames[0].clone(), &labels(grid)).unwrap();
    frames[1..]
        .iter()
        .map(|frame| engine.push(frame.clone()).unwrap())
        .collect()
}

fn assert_close(got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len());
    for (t, (got, want)) in got.iter().zip(want).enumerate() {
        let worst = got
            .iter()
            .zip(want)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-5, "frame {}: off by {worst}", t + 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_definition_says(
        (n_context, top_k) in (0usize..6, 1usize..12),
        radius in 0.5f64..9.0,
        temperature in 0.05f64..2.0,
        (height, width) in (1usize..8, 1usize..8),
        flags in any::<[bool; 5]>(),
    ) {
        let settings = Propagation {
            n_context,
            top_k,
            radius,
            temperature,
            first_frame: flags[0] || n_context == 0,
            radius_in_first_frame: flags[1],
            copies_of_first_frame: flags[2],
            feed_back: if flags[3] { FeedBack::Hard } else { FeedBack::Soft },
            scale_labels: false,
            cosine: flags[4],
        };
        let grid = Size { height, width };
        let frames: Vec<Vec<f32>> = (0..6).map(|t| features(100 + t, grid)).collect();
        let want = plainly(&settings, grid, &frames, &labels(grid));
        assert_close(&by_engine(&settings, grid, &frames), &want);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let grid = Size {
        height: 20,
        width: 31,
    };
    let frames: Vec<Vec<f32>> = (0..5).map(|t| features(t, grid)).collect();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| by_engine(&Propagation::default(), grid, &frames))
    };
    let one = with(1);
    assert!(one == with(3) && one == with(8));
}

#[test]
fn neighbours_of_the_second_frame_are_copies_of_one_patch() {
    let settings = Propagation {
        n_context: 8,
        top_k: 7,
        ..Propagation::default()
    };
    let engine = Propagator::new(&settings, GRID, features(0, GRID), &labels(GRID)).unwrap();
    let n = GRID.area() as u32;
    for found in engine.neighbours(features(1, GRID)).unwrap() {
        let slots: Vec<u32> = found.iter().map(|neighbour| neighbour.id / n).collect();
        assert_eq!(slots, [0, 1, 2, 3, 4, 5, 6]);
        assert!(
            found
                .iter()
                .all(|neighbour| neighbour.id % n == found[0].id % n)
        );
        let weights = engine.weights(&found);
        assert!(
            weights
                .iter()
                .all(|weight| (weight - 1.0 / 7.0).abs() < 1e-6)
        );
    }
}

#[test]
fn ids_are_in_raster_order() {
    // a frame that moved one patch to the right: each patch is most like the one to its left
    let first = features(0, GRID);
    let moved: Vec<f32> = (0..GRID.area())
        .flat_map(|p| {
            let from = if p % GRID.width == 0 { p } else { p - 1 };
            first[from * WIDTH..][..WIDTH].to_vec()
        })
        .collect();
    let engine = Propagator::new(&Propagation::default(), GRID, first, &labels(GRID)).unwrap();
    for (p, found) in engine.neighbours(moved).unwrap().iter().enumerate() {
        let from = if p % GRID.width == 0 { p } else { p - 1 };
        assert_eq!(found[0].id as usize, from);
    }
}

#[test]
fn scaled_labels_run_from_0_to_1() {
    let settings = Propagation {
        scale_labels: true,
        ..Propagation::default()
    };
    let frames = [features(0, GRID), features(1, GRID)];
    for patch in by_engine(&settings, GRID, &frames)[0].chunks_exact(LABELS) {
        let largest = patch.iter().copied().fold(f32::MIN, f32::max);
        let smallest = patch.iter().copied().fold(f32::MAX, f32::min);
        assert_eq!((smallest, largest), (0.0, 1.0));
    }
}

#[test]
fn nonsense_is_refused() {
    let new = |settings: &Propagation, n_features: usize| {
        Propagator::new(settings, GRID, vec![1.0; n_features], &labels(GRID)).map(|_| ())
    };
    let good = Propagation::default();
    assert!(new(&good, GRID.area() * WIDTH).is_ok());
    assert!(matches!(
        new(&good, GRID.area() * WIDTH + 1),
        Err(Error::Shape { .. })
    ));
    assert!(matches!(new(&good, 0), Err(Error::Shape { .. })));
    for wrong in [
        Propagation {
            top_k: 0,
            ..good.clone()
        },
        Propagation {
            radius: -1.0,
            ..good.clone()
        },
        Propagation {
            temperature: f64::NAN,
            ..good.clone()
        },
        Propagation {
            n_context: 0,
            first_frame: false,
            ..good.clone()
        },
    ] {
        assert!(matches!(
            new(&wrong, GRID.area() * WIDTH),
            Err(Error::Config(_))
        ));
    }
    let mut engine = Propagator::new(&good, GRID, features(0, GRID), &labels(GRID)).unwrap();
    assert!(matches!(
        engine.push(vec![1.0; 3]),
        Err(Error::Shape { .. })
    ));
    let mut damaged = features(1, GRID);
    damaged[5] = f32::NAN;
    let message = engine.push(damaged).unwrap_err().to_string();
    assert!(message.contains("frame 1"), "{message}");
}
