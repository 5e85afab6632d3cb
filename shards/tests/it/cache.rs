//! Stores that keep what they read on a disk of this machine.

use bucket::{Proxy, Server};
use shards::{CacheOptions, Environment, Error, Kind, ShardSet, Store, StoreOptions};

use crate::support::*;

fn open(environment: Vec<(String, String)>) -> Store {
    let environment: Environment = environment.into_iter().collect();
    let options = StoreOptions {
        patience_ms: 500,
        ..StoreOptions::default()
    };
    Store::open_with("s3://sets/set", &options, &environment).unwrap()
}

fn options(dir: &std::path::Path) -> CacheOptions {
    CacheOptions {
        dir: dir.to_owned(),
        max_bytes: 64 << 20,
    }
}

/// A server that holds a set, and a proxy that counts.
fn server_with_a_set() -> (Server, Proxy) {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let local = set(Kind::Images, 2, 30);
    let disk = Store::open(local.path().to_str().unwrap()).unwrap();
    let store = open(server.environment());
    for (path, _) in disk.list("").unwrap() {
        store.put_atomic(&path, &disk.read(&path).unwrap()).unwrap();
    }
    (server, proxy)
}

fn read_all(store: Store) {
    let set = ShardSet::open_in(store, "train").unwrap();
    for n in 0..60 {
        assert!(set.picture(n, 0).unwrap() == picture(n), "{n}");
    }
}

#[test]
fn what_was_read_once_is_not_fetched_again() {
    let (_server, proxy) = server_with_a_set();
    let dir = tempfile::tempdir().unwrap();
    let store = || {
        open(proxy.environment())
            .with_cache(&options(dir.path()))
            .unwrap()
    };
    let cold = store();
    read_all(cold.clone());
    let heads = |log: &[bucket::Request]| log.iter().filter(|r| r.method == "HEAD").count();
    let log = proxy.take_log();
    assert!(log.len() > 60 && heads(&log) == 0, "{} requests", log.len());
    assert_eq!(cold.cache_stats().unwrap().hits, 0);

    let warm = store();
    read_all(warm.clone());
    let log = proxy.take_log();
    // The manifest, and the etag of each shard.
    assert_eq!((log.len(), heads(&log)), (3, 2), "{log:?}");
    let stats = warm.cache_stats().unwrap();
    assert_eq!((stats.misses, stats.damaged, stats.fault), (0, 0, None));
    assert!(stats.hits > 60, "{}", stats.hits);

    assert!(open(proxy.environment()).cache_stats().is_none());
}

#[test]
fn an_object_that_was_replaced_is_not_taken_from_the_cache() {
    let server = Server::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cached = || {
        open(server.environment())
            .with_cache(&options(dir.path()))
            .unwrap()
    };
    let other = open(server.environment());
    for content in [b"one", b"two", b"one"] {
        other.put_atomic("x", content).unwrap();
        for _ in 0..2 {
            assert!(cached().read_range("x", 0..3).unwrap() == content.as_slice());
        }
    }
    // Replaced while it is being read: an error, and not a mixture.
    let reader = cached();
    reader.read_range("x", 0..1).unwrap();
    other.put_atomic("x", b"new").unwrap();
    let error = reader.read_range("x", 1..2).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    // Replaced by the reader itself.
    let writer = cached();
    writer.read_range("x", 0..3).unwrap();
    writer.put_atomic("x", b"own").unwrap();
    assert!(writer.read_range("x", 0..3).unwrap() == b"own".as_slice());
}

#[test]
fn a_cache_that_cannot_be_used_is_done_without() {
    let (_server, proxy) = server_with_a_set();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let store = open(proxy.environment());
    let store = store
        .with_cache(&options(&dir.path().join("file")))
        .unwrap();
    read_all(store.clone());
    assert!(store.cache_stats().unwrap().fault.is_some());

    let small = CacheOptions {
        max_bytes: 1000,
        ..options(dir.path())
    };
    let error = open(proxy.environment()).with_cache(&small).unwrap_err();
    assert!(error.to_string().contains("max_bytes is 1000"), "{error}");
    let disk = Store::open(dir.path().to_str().unwrap()).unwrap();
    assert!(
        disk.with_cache(&options(dir.path()))
            .unwrap()
            .cache_stats()
            .is_none()
    );
}
