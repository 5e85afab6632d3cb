//! Whole row groups in place of single pictures: the same batches, each group read once, within the memory given.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pipeline::config::{DataConfig, OrderKind, ReadKind, ViewsKind};
use pipeline::loader::order::Group;
use pipeline::loader::{Loader, Pictures, Rank, ReadPlan, Sample, Source};
use proptest::prelude::*;

use crate::source::{GROUP_BYTES, MemorySource, picture};
use crate::{SEED, at, config, start, take};

fn by(read: ReadKind, config: DataConfig) -> DataConfig {
    DataConfig {
        read: Some(read),
        ..config
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn groups_and_pages_give_the_same_batches(
        n in 3u64..60, batch_size in 1usize..7, window_groups in 1usize..5, repeated_sampling in 1u64..3,
        order in prop::sample::select(vec![OrderKind::Blocks, OrderKind::Sequential]),
        (threads, io_threads, budget_groups) in (1usize..4, 1usize..4, 5u64..20), resume in 0u64..3, world in 1u64..3,
    ) {
        let batch_size = batch_size * world as usize;
        prop_assume!(batch_size as u64 <= n * repeated_sampling);
        let config = DataConfig {
            size: 4, order: Some(order), window_groups, repeated_sampling, threads, io_threads,
            read_ahead_mib: (budget_groups * GROUP_BYTES) >> 20,
            max_bad: "100%".parse().unwrap(), ..config(batch_size)
        };
        let source = || Arc::new(MemorySource {
            corrupt: [1, 8].into(), bad_rows: [2, 5].into(), ..MemorySource::images(n)
        });
        for rank in 0..world {
            let rank = Rank { rank, world };
            let batches = |read, state| {
                let config = by(read, config.clone());
                let mut loader = Loader::from_source(source(), &config, SEED, rank, state).unwrap();
                let batches = take(&mut loader, 12);
                let bad = loader.stats().bad;
                (batches, bad)
            };
            let whole = batches(ReadKind::Pages, at(0, 0));
            prop_assert!(batches(ReadKind::Groups, at(0, 0)) == whole);
            let at_batch = |n: usize| at(whole.0[n].epoch, whole.0[n].index);
            let from = at_batch(resume as usize + 2);
            let resumed = batches(ReadKind::Groups, from).0;
            prop_assert!(resumed[..6] == whole.0[resume as usize + 2..][..6]);
        }
    }
}

#[test]
fn each_group_is_read_once_an_epoch_and_memory_is_bounded() {
    let source = MemorySource {
        delay: Duration::from_micros(200),
        ..MemorySource::images(96)
    };
    let window_groups = 3;
    let config = DataConfig {
        size: 4,
        order: Some(OrderKind::Blocks),
        window_groups,
        io_threads: 3,
        read_ahead_mib: 5 * GROUP_BYTES / (1 << 20),
        ..by(ReadKind::Groups, config(8))
    };
    let mut loader = start(source.clone(), &config);
    take(&mut loader, 36); // three epochs
    assert_eq!(loader.stats().stages[0].name, "read");
    drop(loader);
    let reads = source.group_reads.lock().unwrap();
    for epoch in reads.chunks(24).take(3) {
        let mut groups = epoch.to_vec();
        groups.sort_unstable();
        assert!(groups.into_iter().eq(0..24), "{reads:?}");
    }
    assert!(reads.len() > 72, "nothing is read ahead of the next epoch");
    let most = source.most_groups.load(Ordering::SeqCst);
    assert!((4..=5).contains(&most), "{most} groups in memory");
}

/// Images in row groups of one to five units of memory, whose pictures are parts of the group's bytes as those of a shard are.
#[derive(Default)]
struct Weighed {
    in_memory: Arc<AtomicU64>,
    most: Arc<AtomicU64>,
}

const UNIT_BYTES: u64 = 256 << 10;

/// Memory that tells when it goes.
struct Tracked(Vec<u8>, Arc<AtomicU64>);

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len() as u64, Ordering::SeqCst);
    }
}

struct WeighedGroup(Bytes);

impl Pictures for WeighedGroup {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        Ok(Sample {
            n_frames: 1,
            label: None,
            key: index.to_string().into(),
        })
    }

    fn picture(&self, _index: u64, _frame: u32) -> shards::Result<Bytes> {
        Ok(self.0.slice(..picture(0).len()))
    }
}

impl Pictures for Weighed {
    fn sample(&self, _index: u64) -> shards::Result<Sample> {
        panic!("a sample that was not read with its group")
    }

    fn picture(&self, _index: u64, _frame: u32) -> shards::Result<Bytes> {
        panic!("a picture that was not read with its group")
    }
}

impl Source for Weighed {
    fn n_samples(&self) -> u64 {
        400
    }

    fn holds_clips(&self) -> bool {
        false
    }

    fn groups(&self) -> Vec<Group> {
        let group = |number: u64| Group {
            first_sample: number * 4,
            n_samples: 4,
            n_pictures: 4,
            bytes: (number % 5 + 1) * UNIT_BYTES,
        };
        (0..100).map(group).collect()
    }

    fn load_group(&self, number: usize) -> shards::Result<Box<dyn Pictures>> {
        let n_bytes = self.groups()[number].bytes;
        let mut bytes = picture(0).to_vec();
        bytes.resize(n_bytes as usize, 0);
        let now = self.in_memory.fetch_add(n_bytes, Ordering::SeqCst) + n_bytes;
        self.most.fetch_max(now, Ordering::SeqCst);
        let tracked = Tracked(bytes, Arc::clone(&self.in_memory));
        Ok(Box::new(WeighedGroup(Bytes::from_owner(tracked))))
    }
}

#[test]
fn the_bytes_in_memory_never_exceed_the_budget() {
    // The largest window of 3 takes 15 units; the least budget there is makes that exactly fit.
    for (read_ahead_mib, threads) in [(4, 1), (4, 4), (6, 4)] {
        let source = Weighed::default();
        let (most, in_memory) = (source.most.clone(), source.in_memory.clone());
        let config = DataConfig {
            size: 4,
            order: Some(OrderKind::Blocks),
            window_groups: 3,
            io_threads: 4,
            threads,
            prefetch_batches: 4,
            read_ahead_mib,
            ..by(ReadKind::Groups, config(16))
        };
        let source = Arc::new(source);
        let mut loader =
            Loader::from_source(source, &config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
        take(&mut loader, 75); // three epochs
        drop(loader);
        let (most, budget) = (most.load(Ordering::SeqCst), read_ahead_mib << 20);
        assert!(most <= budget, "{most} bytes of {budget}");
        assert!(most > budget / 2, "{most} bytes: nothing is read ahead");
        assert_eq!(in_memory.load(Ordering::SeqCst), 0, "kept after the end");
    }
}

#[test]
fn a_group_that_fails_ends_the_run_with_its_batch() {
    let source = MemorySource {
        broken_groups: [17].into(),
        ..MemorySource::images(40)
    };
    let config = DataConfig {
        order: Some(OrderKind::Sequential),
        window_groups: 2,
        ..by(ReadKind::Groups, config(4))
    };
    let mut loader = start(source, &config);
    assert_eq!(take(&mut loader, 4).len(), 4);
    let message = loader.next_batch().unwrap_err().to_string();
    assert!(message.contains("shard made-up: as ordered"), "{message}");
}

#[test]
fn a_loader_that_is_dropped_while_it_reads_ends() {
    let source = MemorySource {
        delay: Duration::from_millis(5),
        ..MemorySource::images(400)
    };
    let config = DataConfig {
        order: Some(OrderKind::Blocks),
        ..by(ReadKind::Groups, config(4))
    };
    drop(start(source.clone(), &config));
    let mut loader = start(source, &config);
    loader.next_batch().unwrap();
}

#[test]
fn what_cannot_be_read_by_groups_is_refused() {
    let refused = |config: DataConfig| {
        let source = Arc::new(MemorySource::images(64));
        let loader = Loader::from_source(source, &config, SEED, Rank::SINGLE, at(0, 0));
        loader.unwrap_err().to_string()
    };
    let message = refused(by(ReadKind::Groups, config(4)));
    assert!(message.contains("data.order"), "{message}");
    let message = refused(DataConfig {
        order: Some(OrderKind::Blocks),
        read_ahead_mib: 12,
        window_groups: 4,
        ..by(ReadKind::Groups, config(4))
    });
    assert!(
        message.contains("data.read_ahead_mib = 12") && message.contains("at least 16"),
        "{message}"
    );
}

#[test]
fn the_plan_reads_what_is_less() {
    let plan = |source: MemorySource, config: DataConfig, world| {
        let rank = Rank { rank: 0, world };
        ReadPlan::of(&config, &source, rank).unwrap()
    };
    let bucket = DataConfig {
        path: "s3://bucket/set".to_owned(),
        ..config(4)
    };
    let images = || MemorySource::images(64);
    // A disk is read picture by picture.
    let local = plan(images(), config(4), 1);
    assert_eq!((local.read, local.fetch_threads), (ReadKind::Pages, 1));
    assert_eq!((local.requests, local.bytes), (64, 16 * GROUP_BYTES));
    // Every image of a bucket is needed, so whole groups are as many bytes in fewer requests,
    let whole = plan(images(), bucket.clone(), 1);
    assert_eq!(
        (whole.read, whole.bytes, whole.requests),
        (ReadKind::Groups, 16 * GROUP_BYTES, 16)
    );
    // unless there are ranks that need only their part,
    assert_eq!(plan(images(), bucket.clone(), 8).read, ReadKind::Pages);
    // and of a long clip only two frames are.
    let pairs = DataConfig {
        views: ViewsKind::FramePair,
        ..bucket.clone()
    };
    let clips = plan(MemorySource::clips(64, 300), pairs, 1);
    assert_eq!((clips.read, clips.requests), (ReadKind::Pages, 128));
    assert!(clips.bytes * 100 < clips.other.unwrap().0);
    let shuffled = DataConfig {
        order: Some(OrderKind::Full),
        ..bucket
    };
    assert_eq!(plan(images(), shuffled, 1).read, ReadKind::Pages);
}
