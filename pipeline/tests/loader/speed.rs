//! Measuring the loader of a set on disk.

use std::time::Duration;

use pipeline::config::{DataConfig, ViewsKind};
use pipeline::speed::{self, Length, LoaderSpeed, SpeedOptions};
use pipeline::stop::Stop;
use shards::Kind;

use crate::shard_set::write_set;
use crate::source::picture;
use crate::{SEED, config};

fn options() -> SpeedOptions {
    SpeedOptions {
        threads: vec![1, 2],
        rounds: 2,
        length: Length::Batches(5),
        compare: true,
        consumer_pairs_per_s: None,
        seed: SEED,
    }
}

fn data(dir: &tempfile::TempDir, views: ViewsKind) -> DataConfig {
    DataConfig {
        path: dir.path().to_str().unwrap().into(),
        views,
        min_gap: 2,
        max_gap: 6,
        ..config(4)
    }
}

fn measure(config: &DataConfig, options: &SpeedOptions) -> LoaderSpeed {
    speed::loader(config, options, &Stop::new(), |_| {}, |_, _| {}).unwrap()
}

#[test]
fn every_number_of_threads_is_measured_beside_the_floor_and_memory() {
    for (kind, views) in [
        (Kind::Images, ViewsKind::CropPair),
        (Kind::Clips, ViewsKind::FramePair),
    ] {
        let dir = write_set(kind);
        let speed = measure(&data(&dir, views), &options());
        assert_eq!((speed.samples, speed.rounds, speed.stopped), (12, 2, false));
        let floor = speed.floor.unwrap();
        assert_eq!(floor.pairs_in_memory, 12);
        assert!(floor.decode_ms > 0.0 && floor.views_ms > 0.0);
        assert!(floor.pairs_per_s.unwrap() > 0.0, "{floor:?}");
        for (loader, threads) in speed.loaders.iter().zip([1, 2]) {
            assert_eq!(loader.threads, threads);
            let rate = loader.pairs_per_s.unwrap();
            assert_eq!(loader.pairs_per_s_per_thread, Some(rate / threads as f64));
            assert!(rate > 0.0 && loader.percent_of_floor.unwrap() > 0.0);
            assert!(loader.percent_of_memory.unwrap() > 0.0);
            assert_eq!(
                loader.memory_bytes.len(),
                if cfg!(target_os = "linux") { 2 } else { 0 }
            );
            let names: Vec<_> = loader.stages.iter().map(|stage| stage.name).collect();
            assert_eq!(names, ["fetch", "views"]);
            assert_eq!(loader.stages[1].workers, threads);
            for stage in &loader.stages {
                let sum = stage.busy_percent + stage.waiting_in_percent + stage.waiting_out_percent;
                assert!((sum - 100.0).abs() < 1e-6, "{stage:?}");
            }
            assert_eq!((loader.replaced, loader.paced.clone()), (0, None));
        }
    }
}

#[test]
fn bytes_read_are_those_of_the_pictures() {
    let dir = write_set(Kind::Images);
    let options = SpeedOptions {
        threads: vec![1],
        length: Length::Batches(30),
        ..options()
    };
    let speed = measure(&data(&dir, ViewsKind::CropPair), &options);
    let pictures = (0..12).map(|n| picture(n).len()).sum::<usize>() as f64 / 12.0;
    let [loader] = speed.loaders.as_slice() else {
        panic!("{speed:?}")
    };
    for (figure, tolerance) in [
        (speed.floor.unwrap().bytes_per_pair, 1e-9),
        (loader.bytes_per_pair, 0.1 * pictures),
    ] {
        assert!(
            (figure - pictures).abs() <= tolerance,
            "{figure}, not {pictures}"
        );
    }
}

#[test]
fn a_slow_consumer_does_not_wait_and_a_greedy_one_does() {
    let dir = write_set(Kind::Images);
    let paced = |rate: f64| {
        let options = SpeedOptions {
            threads: vec![1],
            rounds: 1,
            compare: false,
            consumer_pairs_per_s: Some(rate),
            ..options()
        };
        let speed = measure(&data(&dir, ViewsKind::CropPair), &options);
        assert_eq!(speed.floor, None);
        speed.loaders[0].paced.clone().unwrap()
    };
    let (slow, greedy) = (paced(40.0), paced(1e9));
    assert!(slow.pairs_per_s.unwrap() <= 40.0, "{slow:?}");
    assert!(
        slow.wait_percent < greedy.wait_percent,
        "{slow:?} {greedy:?}"
    );
}

#[test]
fn the_consumer_sees_every_batch_that_is_timed() {
    let dir = write_set(Kind::Images);
    let mut seen = 0;
    let options = SpeedOptions {
        compare: false,
        ..options()
    };
    let config = data(&dir, ViewsKind::CropPair);
    let see = |batch: &pipeline::loader::Batch| seen += batch.len();
    speed::loader(&config, &options, &Stop::new(), see, |_, _| {}).unwrap();
    assert_eq!(seen, 2 * 2 * 5 * 4); // loaders, rounds, batches, pairs
}

#[test]
fn what_was_measured_before_a_stop_is_reported() {
    let dir = write_set(Kind::Images);
    let (stop, options) = (
        Stop::new(),
        SpeedOptions {
            rounds: 100,
            ..options()
        },
    );
    let raise = |done, planned| {
        assert_eq!(planned, 500); // the floor, two loaders, the same two on memory
        if done == 6 {
            stop.request();
        }
    };
    let config = data(&dir, ViewsKind::CropPair);
    let speed = speed::loader(&config, &options, &stop, |_| {}, raise).unwrap();
    assert!(speed.stopped);
    assert_eq!(speed.rounds, 1);
    assert!(
        speed
            .loaders
            .iter()
            .all(|loader| loader.pairs_per_s.is_some())
    );
}

#[test]
fn options_that_make_no_sense_are_named() {
    let dir = write_set(Kind::Images);
    type Change = fn(&mut SpeedOptions);
    let changes: [(&str, Change); 5] = [
        ("threads", |o| o.threads = vec![]),
        ("threads", |o| o.threads = vec![2, 0]),
        ("rounds", |o| o.rounds = 0),
        ("rate", |o| o.consumer_pairs_per_s = Some(0.0)),
        ("rate", |o| o.consumer_pairs_per_s = Some(f64::NAN)),
    ];
    for (name, change) in changes {
        let mut options = options();
        change(&mut options);
        let config = data(&dir, ViewsKind::CropPair);
        let error = speed::loader(&config, &options, &Stop::new(), |_| {}, |_, _| {}).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
    }
}

#[test]
fn a_set_that_gives_no_pair_has_no_speed() {
    let dir = write_set(Kind::Images);
    let config = data(&dir, ViewsKind::FramePair);
    let time = Duration::from_millis(1);
    let error = speed::floor(&config, SEED, time, &Stop::new()).unwrap_err();
    assert!(error.to_string().starts_with("data.path"), "{error}");
    let floor = speed::floor(&data(&dir, ViewsKind::CropPair), SEED, time, &Stop::new()).unwrap();
    assert_eq!(floor.pairs_in_memory, 12);
}
