//! Which samples come up when, and that nothing but seed and place decides it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pipeline::config::{DataConfig, OrderKind, ViewsKind};
use pipeline::loader::{Batch, Loader, Rank};
use proptest::prelude::*;

use crate::source::MemorySource;
use crate::{SEED, at, config, start, take};

fn faulty(n: u64) -> MemorySource {
    MemorySource {
        corrupt: [3, 8].into(),
        bad_rows: [5].into(),
        ..MemorySource::images(n)
    }
}

#[test]
fn batches_do_not_depend_on_the_threads() {
    let batches = |threads, io_threads, prefetch_batches| {
        let config = DataConfig {
            threads,
            io_threads,
            prefetch_batches,
            max_bad: "50%".parse().unwrap(),
            ..config(6)
        };
        take(&mut start(faulty(20), &config), 8)
    };
    let one = batches(1, 1, 1);
    assert_eq!(one.len(), 8);
    assert_eq!((one[3].epoch, one[3].index), (1, 0));
    assert!(one == batches(3, 2, 2));
    assert!(one == batches(8, 4, 5));
}

#[test]
fn ranks_share_the_global_batch() {
    let batches = |world| {
        let config = DataConfig {
            max_bad: "50%".parse().unwrap(),
            ..config(8)
        };
        let source = Arc::new(faulty(30));
        let mut loaders: Vec<Loader> = (0..world)
            .map(|rank| {
                Loader::from_source(
                    source.clone(),
                    &config,
                    SEED,
                    Rank { rank, world },
                    at(0, 0),
                )
                .unwrap()
            })
            .collect();
        (0..5)
            .map(|_| {
                join(
                    loaders
                        .iter_mut()
                        .map(|loader| loader.next_batch().unwrap()),
                )
            })
            .collect::<Vec<_>>()
    };
    let one = batches(1);
    assert_eq!(one[0].len(), 8);
    assert!(one == batches(2));
    assert!(one == batches(4));
}

/// The ranks' slices of a batch, one after the other.
fn join(parts: impl Iterator<Item = Batch>) -> Batch {
    let append = |mut whole: Batch, part: Batch| {
        assert_eq!((whole.epoch, whole.index), (part.epoch, part.index));
        whole.views.extend(part.views);
        whole.labels.extend(part.labels);
        whole.samples.extend(part.samples);
        whole.keys.extend(part.keys);
        whole
    };
    parts.reduce(append).unwrap()
}

#[test]
fn a_resumed_run_goes_on_as_if_nothing_had_been() {
    let config = DataConfig {
        repeated_sampling: 2,
        max_bad: "50%".parse().unwrap(),
        ..config(5)
    };
    let mut undisturbed = start(faulty(13), &config);
    assert_eq!(undisturbed.batches_per_epoch(), 5);
    let mut states = Vec::new();
    let mut batches = Vec::new();
    for _ in 0..11 {
        states.push(undisturbed.state());
        batches.push(undisturbed.next_batch().unwrap());
    }
    assert_eq!(
        (states[0], states[5], undisturbed.state()),
        (at(0, 0), at(1, 0), at(2, 1))
    );
    for (n, state) in states.into_iter().enumerate() {
        let written = serde_json::to_string(&state).unwrap();
        let state = serde_json::from_str(&written).unwrap();
        let source = Arc::new(faulty(13));
        let mut resumed = Loader::from_source(source, &config, SEED, Rank::SINGLE, state).unwrap();
        assert!(
            take(&mut resumed, 11 - n) == batches[n..],
            "resumed at batch {n}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn every_sample_comes_up_as_often_as_asked(
        n in 1u64..25, repeated_sampling in 1u64..4, batch_size in 1usize..9,
        order in prop::sample::select(vec![OrderKind::Full, OrderKind::Blocks, OrderKind::Sequential]),
    ) {
        let n_ids = n * repeated_sampling;
        prop_assume!(batch_size as u64 <= n_ids);
        let config = DataConfig { size: 4, repeated_sampling, order: Some(order), window_groups: 2, ..config(batch_size) };
        let mut loader = start(MemorySource::images(n), &config);
        for _epoch in 0..2 {
            let batches = take(&mut loader, (n_ids / batch_size as u64) as usize);
            let mut ids: Vec<u64> = batches.iter().flat_map(|batch| batch.samples.clone()).collect();
            let named = batches.iter().flat_map(|batch| batch.samples.iter().zip(&batch.keys));
            for (id, key) in named {
                prop_assert_eq!(key, &format!("class/{:03}", id / repeated_sampling));
            }
            ids.sort_unstable();
            ids.dedup();
            // All but the tail that fills no batch.
            prop_assert_eq!(ids.len() as u64, n_ids / batch_size as u64 * batch_size as u64);
            prop_assert!(ids.iter().all(|&id| id < n_ids));
            let mut visits = BTreeMap::new();
            for id in ids {
                *visits.entry(id / repeated_sampling).or_insert(0) += 1;
            }
            prop_assert!(visits.values().all(|&n| n <= repeated_sampling));
        }
    }
}

#[test]
fn repetitions_are_cut_differently_and_epochs_too() {
    let config = DataConfig {
        repeated_sampling: 2,
        order: Some(OrderKind::Sequential),
        ..config(2)
    };
    let batches = take(&mut start(MemorySource::images(1), &config), 2);
    assert_eq!(batches[0].samples, [0, 1]);
    assert_eq!((batches[1].epoch, &batches[1].samples), (1, &vec![0, 1]));
    let half = batches[0].views.len() / 2;
    let [a, b] = [&batches[0].views[..half], &batches[0].views[half..]];
    let [c, d] = [&batches[1].views[..half], &batches[1].views[half..]];
    assert!(a != b && a != c && b != d);
}

#[test]
fn batches_have_their_shape_and_labels() {
    for (views, n_views) in [
        (ViewsKind::Single, 1),
        (ViewsKind::MultiView, 2),
        (ViewsKind::CropPair, 2),
    ] {
        let config = DataConfig { views, ..config(3) };
        let batch = start(MemorySource::images(10), &config)
            .next_batch()
            .unwrap();
        assert_eq!((batch.n_views, batch.size, batch.len()), (n_views, 16, 3));
        assert_eq!(batch.views.len(), 3 * n_views * 16 * 16 * 3);
        for (id, label) in batch.samples.iter().zip(&batch.labels) {
            assert_eq!(*label, Some(*id as i32 % 7));
        }
        assert!(!batch.is_empty());
    }
}

#[test]
fn recycled_buffers_leave_no_trace() {
    let batches = |recycle: bool| {
        let mut loader = start(MemorySource::images(20), &config(4));
        let mut kept = Vec::new();
        for _ in 0..12 {
            let batch = loader.next_batch().unwrap();
            kept.push(batch.clone());
            if recycle {
                loader.recycle(batch);
            }
        }
        kept
    };
    assert!(batches(true) == batches(false));
}
