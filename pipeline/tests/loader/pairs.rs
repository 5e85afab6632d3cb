//! What the views of a pair have in common, read from their pixels.

use pipeline::config::{DataConfig, Strategy, ViewsKind};
use pipeline::loader::Batch;

use crate::source::MemorySource;
use crate::{config, start, take};

/// Mean of a channel of a view, and its differences from the first to the last column and row.
struct Channel {
    mean: f64,
    across: f64,
    down: f64,
}

fn channel(batch: &Batch, sample: usize, view: usize, channel: usize) -> Channel {
    let side = batch.size;
    let bytes = side * side * 3;
    let from = (sample * batch.n_views + view) * bytes;
    let pixels = &batch.views[from..from + bytes];
    let at = |x: usize, y: usize| f64::from(pixels[(y * side + x) * 3 + channel]);
    let mean_of = |points: Vec<f64>| points.iter().sum::<f64>() / points.len() as f64;
    let column = |x| mean_of((0..side).map(|y| at(x, y)).collect());
    let row = |y| mean_of((0..side).map(|x| at(x, y)).collect());
    Channel {
        mean: mean_of((0..side).map(column).collect()),
        across: column(side - 1) - column(0),
        down: row(side - 1) - row(0),
    }
}

const BLUE: usize = 2;

#[test]
fn frame_pairs_keep_their_order_gap_crop_and_flip() {
    let config = DataConfig {
        views: ViewsKind::FramePair,
        min_gap: 4,
        max_gap: 9,
        ..config(20)
    };
    let mut gaps = [0; 50];
    let mut flipped = 0;
    for batch in take(&mut start(MemorySource::clips(40, 50), &config), 4) {
        for sample in 0..batch.len() {
            let frames =
                [0, 1].map(|view| (channel(&batch, sample, view, BLUE).mean / 5.0).round());
            assert!(frames[1] > frames[0]);
            gaps[(frames[1] - frames[0]) as usize] += 1;
            for place in 0..2 {
                let [a, b] = [0, 1].map(|view| channel(&batch, sample, view, place));
                let close = |a: f64, b: f64| (a - b).abs() < 3.0;
                assert!(
                    close(a.mean, b.mean) && close(a.across, b.across) && close(a.down, b.down)
                );
            }
            flipped += usize::from(channel(&batch, sample, 0, 0).across < 0.0);
        }
    }
    assert_eq!(gaps.iter().sum::<i32>(), 80);
    assert!(
        gaps.iter()
            .enumerate()
            .all(|(gap, &n)| (n > 0) == (4..9).contains(&gap)),
        "{gaps:?}"
    );
    assert!((25..56).contains(&flipped), "{flipped} of 80 flipped");
}

#[test]
fn crop_pairs_of_clips_take_both_views_from_one_frame() {
    let mut seen = std::collections::BTreeSet::new();
    for batch in take(&mut start(MemorySource::clips(30, 20), &config(10)), 3) {
        for sample in 0..batch.len() {
            let frames =
                [0, 1].map(|view| (channel(&batch, sample, view, BLUE).mean / 5.0).round() as u32);
            assert_eq!(frames[0], frames[1]);
            seen.insert(frames[0]);
        }
    }
    assert!(
        seen.len() > 8 && seen.iter().all(|&frame| frame < 20),
        "{seen:?}"
    );
}

/// Lowest and highest level of red and green of a view: the window of the picture that it shows.
fn window(batch: &Batch, sample: usize, view: usize) -> [[u8; 2]; 2] {
    let bytes = batch.size * batch.size * 3;
    let from = (sample * batch.n_views + view) * bytes;
    let pixels = &batch.views[from..from + bytes];
    [0, 1].map(|place| {
        let levels = || pixels.iter().skip(place).step_by(3).copied();
        [levels().min().unwrap(), levels().max().unwrap()]
    })
}

#[test]
fn the_local_view_shows_a_window_of_the_global_view() {
    for (strategy, global, local) in [
        (Strategy::GlobalToLocal, 0, 1),
        (Strategy::LocalToGlobal, 1, 0),
    ] {
        let config = DataConfig {
            strategy,
            global_area: [0.5, 1.0],
            ..config(20)
        };
        let batch = start(MemorySource::images(40), &config)
            .next_batch()
            .unwrap();
        for sample in 0..batch.len() {
            let [outer, inner] = [
                window(&batch, sample, global),
                window(&batch, sample, local),
            ];
            let mut narrower = false;
            for place in 0..2 {
                assert!(
                    inner[place][0] + 4 >= outer[place][0]
                        && inner[place][1] <= outer[place][1] + 4
                );
                let width = |window: [[u8; 2]; 2]| window[place][1] - window[place][0];
                narrower |= width(inner) + 15 < width(outer);
            }
            assert!(narrower, "{outer:?} {inner:?}");
        }
    }
}

#[test]
fn same_views_are_bit_identical() {
    let config = DataConfig {
        strategy: Strategy::Same,
        ..config(10)
    };
    let batch = start(MemorySource::images(10), &config)
        .next_batch()
        .unwrap();
    for pair in batch.views.chunks(batch.views.len() / 10) {
        let (f1, f2) = pair.split_at(pair.len() / 2);
        assert_eq!(f1, f2);
    }
}

#[test]
fn colour_changes_touch_the_view_that_asks_for_them() {
    let plain = DataConfig {
        strategy: Strategy::Same,
        ..config(10)
    };
    let mut grey = plain.clone();
    grey.augment_f2.grayscale_p = 1.0;
    let [plain, grey] = [plain, grey].map(|config| {
        start(MemorySource::images(10), &config)
            .next_batch()
            .unwrap()
    });
    let view = plain.size * plain.size * 3;
    for (at, (before, after)) in plain
        .views
        .chunks(view)
        .zip(grey.views.chunks(view))
        .enumerate()
    {
        if at % 2 == 0 {
            assert_eq!(before, after);
        } else {
            assert!(
                after
                    .chunks(3)
                    .all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2])
            );
        }
    }
}
