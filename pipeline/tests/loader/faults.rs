//! What goes wrong is replaced, counted and named, or surfaces as an error; nothing hangs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pipeline::Error;
use pipeline::config::{DataConfig, MaxBad, OrderKind, ViewsKind};
use pipeline::loader::{Loader, Rank};

use crate::source::MemorySource;
use crate::{SEED, at, config, start, take};

fn sequential(batch_size: usize, max_bad: MaxBad) -> DataConfig {
    DataConfig {
        order: Some(OrderKind::Sequential),
        max_bad,
        ..config(batch_size)
    }
}

#[test]
fn bad_samples_are_replaced_counted_and_named() {
    let source = MemorySource {
        corrupt: [1].into(),
        bad_rows: [6].into(),
        ..MemorySource::images(10)
    };
    let mut loader = start(source, &sequential(5, MaxBad::Count(2)));
    let batches = take(&mut loader, 4);
    assert_eq!(batches[0].samples[0], 0);
    for batch in &batches {
        assert!(!batch.samples.contains(&1) && !batch.samples.contains(&6));
        for (sample, key) in batch.samples.iter().zip(&batch.keys) {
            assert_eq!(*key, format!("class/{sample:03}"));
        }
    }
    // Another epoch draws other substitutes.
    let stats = loader.stats();
    assert!(stats.replaced >= 4);
    let named: Vec<_> = stats
        .bad
        .iter()
        .map(|bad| (bad.index, bad.key.as_str()))
        .collect();
    assert_eq!(named, [(1, "class/001"), (6, "class/006")]);
    assert!(
        stats.bad[0].reason.contains("JPEG"),
        "{}",
        stats.bad[0].reason
    );
    assert!(
        stats.bad[1].reason.contains("row 6"),
        "{}",
        stats.bad[1].reason
    );
}

#[test]
fn too_many_bad_samples_end_the_run_and_name_them() {
    let source = MemorySource {
        corrupt: [0, 7].into(),
        ..MemorySource::images(10)
    };
    let mut loader = start(source, &sequential(5, MaxBad::Percent(10.0)));
    let first = loader.next_batch();
    // The second bad sample may already stand in for the first one.
    let error = first.and_then(|_| loader.next_batch()).unwrap_err();
    let message = error.to_string();
    assert!(
        matches!(
            error,
            Error::TooManyBad {
                found: 2,
                limit: 1,
                ..
            }
        ),
        "{message}"
    );
    assert!(
        message.contains("class/000") && message.contains("class/007"),
        "{message}"
    );
    assert!(matches!(loader.next_batch(), Err(Error::LoaderStopped)));
}

#[test]
fn a_set_without_a_good_sample_is_an_error() {
    let source = MemorySource {
        corrupt: (0..4).collect(),
        ..MemorySource::images(4)
    };
    let mut loader = start(source, &sequential(2, MaxBad::Count(1000)));
    assert!(matches!(loader.next_batch(), Err(Error::TooManyBad { .. })));
}

#[test]
fn single_frames_are_bad_samples_of_frame_pairs() {
    let source = MemorySource {
        one_frame: [2].into(),
        ..MemorySource::clips(8, 10)
    };
    let config = DataConfig {
        views: ViewsKind::FramePair,
        ..sequential(4, MaxBad::Percent(20.0))
    };
    let mut loader = start(source, &config);
    take(&mut loader, 2);
    let stats = loader.stats();
    assert_eq!(stats.bad.len(), 1);
    assert_eq!(stats.bad[0].key, "class/002");
    assert!(
        stats.bad[0].reason.contains("1 frame"),
        "{}",
        stats.bad[0].reason
    );
}

#[test]
fn failures_come_with_their_batch_for_any_number_of_threads() {
    for threads in [1, 4] {
        let config = DataConfig {
            threads,
            prefetch_batches: 4,
            ..sequential(5, MaxBad::Count(0))
        };
        let source = MemorySource {
            broken: [12].into(),
            ..MemorySource::images(30)
        };
        let mut loader = start(source, &config);
        take(&mut loader, 2);
        assert_eq!(loader.state(), at(0, 2));
        let error = loader.next_batch().unwrap_err();
        assert!(
            matches!(error, Error::Shards(shards::Error::Shard { .. })),
            "{error}"
        );
        assert_eq!(loader.state(), at(0, 2));
        assert!(matches!(loader.next_batch(), Err(Error::LoaderStopped)));
    }
}

#[test]
fn a_panic_surfaces_as_an_error() {
    let source = MemorySource {
        panicking: [7].into(),
        ..MemorySource::images(20)
    };
    let mut loader = start(source, &sequential(5, MaxBad::Count(0)));
    take(&mut loader, 1);
    let error = loader.next_batch().unwrap_err();
    assert!(
        matches!(error, Error::Panic { stage: "fetch", .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("sample 7 panics as ordered"),
        "{error}"
    );
}

#[test]
fn dropping_a_busy_loader_returns_at_once() {
    for (threads, io_threads, prefetch_batches) in [(1, 1, 1), (3, 2, 4), (2, 8, 2)] {
        let config = DataConfig {
            threads,
            io_threads,
            prefetch_batches,
            ..config(16)
        };
        let mut loader = start(MemorySource::images(100), &config);
        take(&mut loader, 1);
        std::thread::sleep(Duration::from_millis(30)); // until the queues are full
        let dropped = Instant::now();
        drop(loader);
        assert!(
            dropped.elapsed() < Duration::from_millis(500),
            "{:?}",
            dropped.elapsed()
        );
    }
    // In the middle of slow reads, too.
    let source = MemorySource {
        delay: Duration::from_millis(20),
        ..MemorySource::images(100)
    };
    let loader = start(
        source,
        &DataConfig {
            io_threads: 8,
            ..config(50)
        },
    );
    let dropped = Instant::now();
    drop(loader);
    assert!(
        dropped.elapsed() < Duration::from_millis(500),
        "{:?}",
        dropped.elapsed()
    );
}

#[test]
fn memory_is_bounded_by_the_window() {
    let source = Arc::new(MemorySource::images(1000));
    let config = DataConfig {
        prefetch_batches: 2,
        ..config(8)
    };
    let loader =
        Loader::from_source(source.clone(), &config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let reads = source.reads.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(
        reads, 16,
        "a loader whose batches nobody takes reads two batches and waits"
    );
    drop(loader);
}

#[test]
fn stages_count_their_work_and_the_bottleneck_is_named() {
    let slow = MemorySource {
        delay: Duration::from_millis(4),
        ..MemorySource::images(100)
    };
    let mut loader = start(
        slow,
        &DataConfig {
            io_threads: 1,
            ..config(5)
        },
    );
    take(&mut loader, 4);
    let stats = loader.stats();
    assert_eq!((stats.pairs, stats.batches), (20, 4));
    let [fetch, views] = stats.stages.as_slice() else {
        panic!("{stats:?}")
    };
    assert_eq!(
        (fetch.name, fetch.workers, views.name, views.workers),
        ("fetch", 1, "views", 2)
    );
    assert!(fetch.items >= 20 && views.items >= 20 && stats.bytes_read > 0);
    assert!(
        fetch.busy_s > 0.07 && views.waiting_in_s > 0.05,
        "{stats:?}"
    );
    assert!(stats.decode_s > 0.0 && stats.views_s > 0.0);
    assert_eq!(stats.bottleneck(), "fetch");
    assert!(
        serde_json::to_string(&stats)
            .unwrap()
            .contains("\"waiting_out_s\"")
    );
}

#[cfg(target_os = "linux")]
#[test]
fn pinned_threads_make_the_same_batches_and_are_no_more_than_the_cores() {
    let pinned = |threads| DataConfig {
        threads,
        pin: true,
        ..config(6)
    };
    let free = take(&mut start(MemorySource::images(20), &config(6)), 3);
    let batches = take(&mut start(MemorySource::images(20), &pinned(1)), 3);
    assert!(batches == free);
    let error = Loader::from_source(
        Arc::new(MemorySource::images(20)),
        &pinned(1000),
        SEED,
        Rank::SINGLE,
        at(0, 0),
    )
    .unwrap_err();
    assert!(error.to_string().contains("data.pin"), "{error}");
}

#[test]
fn what_cannot_be_loaded_is_refused_at_the_start() {
    let refused = |source: MemorySource, config: &DataConfig, rank, state| {
        Loader::from_source(Arc::new(source), config, SEED, rank, state)
            .unwrap_err()
            .to_string()
    };
    let pairs = DataConfig {
        views: ViewsKind::FramePair,
        ..config(2)
    };
    assert!(
        refused(MemorySource::images(9), &pairs, Rank::SINGLE, at(0, 0))
            .contains("frame pairs need clips")
    );
    assert!(
        refused(MemorySource::images(9), &config(10), Rank::SINGLE, at(0, 0))
            .contains("at most the 9 samples")
    );
    let third = Rank { rank: 0, world: 3 };
    assert!(
        refused(MemorySource::images(9), &config(4), third, at(0, 0))
            .contains("multiple of the 3 ranks")
    );
    assert!(
        refused(MemorySource::images(9), &config(4), Rank::SINGLE, at(0, 9))
            .contains("at most the 2 batches")
    );
    let huge = DataConfig {
        repeated_sampling: u64::MAX,
        ..config(4)
    };
    assert!(refused(MemorySource::images(9), &huge, Rank::SINGLE, at(0, 0)).contains("2^62"));
    let invalid = DataConfig {
        flip_p: 2.0,
        ..config(4)
    };
    assert!(
        refused(MemorySource::images(9), &invalid, Rank::SINGLE, at(0, 0)).contains("data.flip_p")
    );
    assert!(
        Loader::new(
            &DataConfig {
                path: "/no/such/set".into(),
                ..config(4)
            },
            SEED,
            Rank::SINGLE,
            at(0, 0)
        )
        .is_err()
    );
}
