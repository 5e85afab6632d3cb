//! Sets in a bucket: the same batches as from a disk, whatever happens on the line.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::bucket::{Fault, Proxy, Rates, Server};
use pipeline::config::{DataConfig, OrderKind, ReadKind, ViewsKind};
use pipeline::loader::{Batch, Loader, LoaderState, Rank};
use shards::{CacheOptions, Environment, Kind, ShardSet, Store, StoreOptions};

use crate::shard_set::write_set;
use crate::{SEED, at, config};

const ADDRESS: &str = "s3://sets/set";

/// A set on a disk and in a bucket, with a proxy in between that counts.
struct Twins {
    local: tempfile::TempDir,
    _server: Server,
    proxy: Proxy,
}

fn twins(kind: Kind) -> Twins {
    let local = write_set(kind);
    let server = Server::start().unwrap();
    let folder = server.folder().join("set");
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(local.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let proxy = Proxy::start(server.address()).unwrap();
    Twins {
        local,
        _server: server,
        proxy,
    }
}

impl Twins {
    fn store(&self, options: &StoreOptions) -> Store {
        let environment: Environment = self.proxy.environment().into_iter().collect();
        Store::open_with(ADDRESS, options, &environment).unwrap()
    }

    fn loader(&self, store: Store, config: &DataConfig, start: LoaderState) -> Loader {
        let set = Arc::new(ShardSet::open_in(store, "train").unwrap());
        let config = DataConfig {
            path: ADDRESS.to_owned(),
            ..config.clone()
        };
        Loader::from_source(set, &config, SEED, Rank::SINGLE, start).unwrap()
    }

    fn disk_batches(&self, config: &DataConfig, n: usize) -> Vec<Batch> {
        let config = DataConfig {
            path: self.local.path().to_str().unwrap().to_owned(),
            read: None,
            ..config.clone()
        };
        let mut loader = Loader::new(&config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
        (0..n).map(|_| loader.next_batch().unwrap()).collect()
    }
}

fn of(kind: Kind, read: ReadKind) -> DataConfig {
    DataConfig {
        order: Some(OrderKind::Blocks),
        window_groups: 2,
        read: Some(read),
        views: match kind {
            Kind::Images => ViewsKind::CropPair,
            Kind::Clips => ViewsKind::FramePair,
        },
        ..config(3)
    }
}

/// Tries again for less than a second.
fn impatient() -> StoreOptions {
    StoreOptions {
        patience_ms: 600,
        first_patience_ms: 600,
        stall_timeout_ms: 200,
        ..StoreOptions::default()
    }
}

#[test]
fn a_bucket_gives_the_batches_of_the_disk() {
    for kind in [Kind::Images, Kind::Clips] {
        let twins = twins(kind);
        let dir = tempfile::tempdir().unwrap();
        let cache = CacheOptions {
            dir: dir.path().to_owned(),
            max_bytes: 64 << 20,
        };
        for read in [ReadKind::Pages, ReadKind::Groups] {
            let config = of(kind, read);
            let expected = twins.disk_batches(&config, 8);
            let mut without = 0;
            for round in ["without a cache", "filling the cache", "from the cache"] {
                let mut store = twins.store(&StoreOptions::default());
                if round != "without a cache" {
                    store = store.with_cache(&cache).unwrap();
                }
                twins.proxy.take_log();
                let mut loader = twins.loader(store, &config, at(0, 0));
                let batches: Vec<Batch> = (0..8).map(|_| loader.next_batch().unwrap()).collect();
                assert!(batches == expected, "{kind:?} by {read:?} {round}");
                drop(loader);
                let log = twins.proxy.take_log();
                let fetched = log.iter().filter(|r| r.header("range").is_some()).count();
                match round {
                    "without a cache" => without = fetched,
                    // What had just been asked for when the round before ended is not there.
                    "from the cache" => assert!(fetched < without / 2, "{fetched} of {without}"),
                    _ => assert!(fetched > 0),
                }
            }
        }
    }
}

#[test]
fn groups_are_fetched_once_an_epoch_and_nothing_else_is() {
    let twins = twins(Kind::Images);
    let config = DataConfig {
        prefetch_batches: 1,
        io_threads: 1, // which asks in order
        ..of(Kind::Images, ReadKind::Groups)
    };
    let store = twins.store(&StoreOptions::default());
    let mut loader = twins.loader(store, &config, at(0, 0));
    (0..loader.batches_per_epoch()).for_each(|_| drop(loader.next_batch().unwrap()));
    drop(loader);
    let log = twins.proxy.take_log();
    let mut ranges: Vec<(String, &str)> = log
        .iter()
        .filter_map(|r| Some((r.path.clone(), r.header("range")?)))
        .collect();
    let n_groups = {
        let set = ShardSet::open_in(twins.store(&StoreOptions::default()), "train").unwrap();
        set.groups().len()
    };
    assert_eq!(log.len() - ranges.len(), 1, "the manifest and the groups");
    // Those of the next epoch were asked for already.
    ranges.truncate(n_groups);
    ranges.sort();
    ranges.dedup();
    assert_eq!(ranges.len(), n_groups, "a group was fetched twice");
}

#[test]
fn a_bad_line_changes_nothing() {
    for (kind, read) in [
        (Kind::Images, ReadKind::Groups),
        (Kind::Images, ReadKind::Pages),
        (Kind::Clips, ReadKind::Pages),
    ] {
        let twins = twins(kind);
        let config = of(kind, read);
        let expected = twins.disk_batches(&config, 20);
        // Ten times as bad as a line ever is, because there are few requests.
        let rates = Rates {
            errors: 0.1,
            resets: 0.05,
            truncations: 0.05,
            ..Rates::default()
        };
        twins.proxy.set_plan(rates.plan(5));
        let store = twins.store(&StoreOptions::default());
        let mut loader = twins.loader(store, &config, at(0, 0));
        let batches: Vec<Batch> = (0..20).map(|_| loader.next_batch().unwrap()).collect();
        assert!(batches == expected, "{kind:?} by {read:?}");
        assert!(loader.stats().bad.is_empty(), "a sample was taken for bad");
    }
}

#[test]
fn a_store_that_goes_away_is_named_and_the_run_resumes_exactly() {
    for read in [ReadKind::Pages, ReadKind::Groups] {
        let twins = twins(Kind::Images);
        let config = DataConfig {
            prefetch_batches: 1,
            ..of(Kind::Images, read)
        };
        let expected = twins.disk_batches(&config, 40);
        let mut loader = twins.loader(twins.store(&impatient()), &config, at(0, 0));
        let mut batches: Vec<Batch> = (0..3).map(|_| loader.next_batch().unwrap()).collect();
        twins.proxy.set_plan(Box::new(|_| Fault::HangUp));
        let gone = Instant::now();
        let error = loop {
            match loader.next_batch() {
                Ok(batch) => batches.push(batch),
                Err(error) => break error.to_string(),
            }
            assert!(batches.len() < 40, "nothing is read any more");
        };
        let waited = gone.elapsed();
        assert!(error.contains("s3://sets/set/train-0000"), "{error}");
        assert!(error.contains("bytes "), "no range: {error}");
        assert!(waited > Duration::from_millis(200) && waited < Duration::from_secs(20));
        let state = loader.state();
        drop(loader);
        assert!(batches == expected[..batches.len()]);
        twins.proxy.set_plan(Box::new(|_| Fault::None));
        let mut resumed = twins.loader(twins.store(&impatient()), &config, state);
        for expected in &expected[batches.len()..] {
            assert!(resumed.next_batch().unwrap() == *expected);
        }
    }
}

#[test]
fn a_late_answer_is_overtaken() {
    let twins = twins(Kind::Images);
    let config = of(Kind::Images, ReadKind::Pages);
    let expected = twins.disk_batches(&config, 4);
    // Of every third part the first request hangs for minutes; without another one each costs the stall time-out.
    let asked = Mutex::new(HashSet::new());
    twins.proxy.set_plan(Box::new(move |request| {
        let Some(range) = request.header("range") else {
            return Fault::None;
        };
        let mut asked = asked.lock().unwrap();
        let is_first = asked.insert((request.path.clone(), range.to_owned()));
        match is_first && asked.len() % 3 == 0 {
            true => Fault::Stall,
            false => Fault::None,
        }
    }));
    let options = StoreOptions {
        hedge_after_ms: 30,
        stall_timeout_ms: 20_000,
        ..StoreOptions::default()
    };
    let start = Instant::now();
    let mut loader = twins.loader(twins.store(&options), &config, at(0, 0));
    for expected in &expected {
        assert!(loader.next_batch().unwrap() == *expected);
    }
    drop(loader);
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn many_reads_are_under_way_at_once() {
    let twins = twins(Kind::Clips);
    let config = DataConfig {
        batch_size: 32,
        threads: 1,
        repeated_sampling: 8,
        ..of(Kind::Clips, ReadKind::Pages)
    };
    let mut loader = twins.loader(twins.store(&StoreOptions::default()), &config, at(0, 0));
    loader.next_batch().unwrap();
    twins.proxy.set_line(::bucket::Line {
        latency: Duration::from_millis(30),
        bytes_per_s: Some(100 << 20),
    });
    // What had been read ahead comes first.
    (0..8).for_each(|_| drop(loader.next_batch().unwrap()));
    let start = Instant::now();
    (0..4).for_each(|_| drop(loader.next_batch().unwrap()));
    // Their 256 reads one after the other would take eight seconds.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}
