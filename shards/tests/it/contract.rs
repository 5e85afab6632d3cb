//! What every store promises, asked of a disk, of memory, and of an S3 server.

use std::io::Write;
use std::sync::Arc;

use bucket::Server;
use object_store::memory::InMemory;
use shards::{Environment, Error, Store, StoreOptions};

use crate::support::noise;

/// Parts of the least size, so that a test of several parts is quick.
fn options() -> StoreOptions {
    StoreOptions {
        part_bytes: 5 << 20,
        parts_in_flight: 2,
        ..StoreOptions::default()
    }
}

/// The stores, by name, and what has to outlive them.
fn stores() -> (Vec<(&'static str, Store)>, impl Drop, Server) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().unwrap();
    let environment: Environment = server.environment().into_iter().collect();
    let s3 = |uri| Store::open_with(uri, &options(), &environment).unwrap();
    let stores = vec![
        ("disk", Store::open(dir.path().to_str().unwrap()).unwrap()),
        (
            "memory",
            Store::with_backend(Arc::new(InMemory::new()), "memory://"),
        ),
        ("s3", s3("s3://sets")),
        ("s3 with a prefix", s3("s3://sets/a prefix/of two/")),
    ];
    (stores, dir, server)
}

#[test]
fn every_store_keeps_the_contract() {
    let (stores, _dir, _server) = stores();
    for (name, store) in &stores {
        let says = |what: &str| format!("{name}: {what}");
        // Put, get, overwrite.
        assert!(!store.exists("a/b").unwrap(), "{}", says("nothing there"));
        store.put_atomic("a/b", b"0123456789").unwrap();
        assert!(store.read("a/b").unwrap() == b"0123456789".as_slice());
        assert_eq!(store.size("a/b").unwrap(), 10, "{}", says("size"));
        store.put_atomic("a/b", b"abcdefghij").unwrap();
        assert!(store.read("a/b").unwrap() == b"abcdefghij".as_slice());
        // Ranges.
        assert!(store.read_range("a/b", 2..5).unwrap() == b"cde".as_slice());
        for gap in [0, 3, 100] {
            let ranges = [7..10, 0..1, 1..2, 4..4, 7..10];
            let parts = store.read_ranges_merging("a/b", &ranges, gap).unwrap();
            let expected = [b"hij".as_slice(), b"a", b"b", b"", b"hij"];
            assert_eq!(parts, expected, "{}", says("ranges"));
        }
        assert!(store.read_ranges("a/b", &[]).unwrap().is_empty());
        for range in [8..11, 10..11, 20..30] {
            let error = store.read_range("a/b", range).unwrap_err().to_string();
            assert!(
                error.contains("a/b") && error.contains("it ends early"),
                "{}",
                says(&error)
            );
        }
        // Empty objects.
        store.put_atomic("empty", b"").unwrap();
        assert_eq!(store.size("empty").unwrap(), 0);
        assert!(store.read("empty").unwrap().is_empty(), "{}", says("empty"));
        assert!(store.read_range("empty", 0..1).is_err());
        // Odd names.
        let odd = [
            "with space",
            "Größe",
            "100%",
            "a%20b",
            "a+b&c=d",
            "a#b;c",
            "x,y'(z)!*",
        ];
        for key in odd {
            let path = format!("odd/{key}/{key}");
            store.put_atomic(&path, key.as_bytes()).unwrap();
            assert!(
                store.read(&path).unwrap() == key.as_bytes(),
                "{}",
                says(key)
            );
            assert_eq!(store.size(&path).unwrap(), key.len() as u64);
        }
        // Lists.
        let names = |prefix: &str| -> Vec<String> {
            let found = store.list(prefix).unwrap();
            found.into_iter().map(|(path, _)| path).collect()
        };
        let mut expected: Vec<String> = odd.iter().map(|k| format!("odd/{k}/{k}")).collect();
        expected.sort();
        assert_eq!(names("odd/"), expected, "{}", says("odd names in a list"));
        assert_eq!(names("a/"), ["a/b"]);
        assert_eq!(names("emp"), ["empty"]);
        assert!(names("none/there").is_empty());
        assert_eq!(store.list("a/").unwrap(), [("a/b".to_owned(), 10)]);
        // Removal.
        store.delete("a/b").unwrap();
        assert!(!store.exists("a/b").unwrap(), "{}", says("deleted"));
        // What is missing.
        for result in [
            store.read("a/b").map(drop),
            store.read_range("a/b", 0..1).map(drop),
            store.size("a/b").map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::NotFound { .. }), "{name}: {error}");
        }
        assert!(store.put_atomic("../up", b"").is_err());
    }
}

#[test]
fn objects_of_any_size_are_written_piece_by_piece() {
    let (stores, _dir, _server) = stores();
    let part = 5 << 20;
    for (name, store) in &stores {
        for size in [0, 1, part - 1, part, part + 1, 2 * part, 3 * part + 12_345] {
            let bytes = noise(size as u64, size);
            let mut writer = store.create("big/object").unwrap();
            for piece in bytes.chunks(777_777) {
                writer.write_all(piece).unwrap();
            }
            writer.flush().unwrap();
            let written = writer.commit().unwrap();
            assert_eq!(written.bytes, size as u64, "{name}");
            assert_eq!(written.sha256, crate::support::sha256(&bytes), "{name}");
            assert!(
                store.read("big/object").unwrap() == bytes,
                "{name}, {size} bytes"
            );
        }
    }
}

#[test]
fn nothing_is_seen_of_an_object_before_it_is_committed_nor_after_it_is_dropped() {
    let (stores, _dir, server) = stores();
    for (name, store) in &stores {
        store.put_atomic("x", b"old").unwrap();
        let mut writer = store.create("x").unwrap();
        writer.write_all(&noise(1, 11 << 20)).unwrap();
        assert!(store.read("x").unwrap() == b"old".as_slice(), "{name}");
        drop(writer);
        assert!(store.read("x").unwrap() == b"old".as_slice(), "{name}");
        assert_eq!(store.list("").unwrap(), [("x".to_owned(), 3)], "{name}");
        store.delete("x").unwrap();
    }
    assert_eq!(server.unfinished().unwrap(), [""; 0]);
}

#[test]
fn an_object_is_replaced_only_if_it_is_the_one_that_was_read() {
    let (stores, _dir, _server) = stores();
    for (name, store) in &stores {
        store.replace("x", None, b"first").unwrap();
        let (bytes, first) = store.read_version("x").unwrap();
        assert!(bytes == b"first".as_slice(), "{name}");
        store.replace("x", Some(&first), b"second").unwrap();
        if store.folder().is_some() {
            continue; // there a lock does this
        }
        for known in [None, Some(&first)] {
            let error = store.replace("x", known, b"third").unwrap_err();
            assert!(matches!(error, Error::Conflict { .. }), "{name}: {error}");
            // What is there already may be one's own, of which the reply was lost.
            store.replace("x", known, b"second").unwrap();
        }
        assert!(store.read("x").unwrap() == b"second".as_slice(), "{name}");
    }
}

#[test]
fn the_server_that_only_reads_answers_reads_as_the_other_does() {
    let (full, reader) = (Server::start().unwrap(), Server::start_reader().unwrap());
    let large = noise(7, 3 << 20);
    let stores = [&full, &reader].map(|server| {
        std::fs::create_dir(server.folder().join("a")).unwrap();
        std::fs::write(server.folder().join("a/b"), b"0123456789").unwrap();
        std::fs::write(server.folder().join("a/large"), &large).unwrap();
        let environment: Environment = server.environment().into_iter().collect();
        Store::open_with("s3://sets/a", &options(), &environment).unwrap()
    });
    let answers = stores.each_ref().map(|store| {
        let parts = store.read_ranges("b", &[2..5, 9..10, 0..10]);
        let past_end = store.read_range("b", 8..11).unwrap_err().to_string();
        let beyond = store.read_range("b", 10..11).unwrap_err().to_string();
        let missing = store.read_range("c", 0..1).unwrap_err().to_string();
        let upwards = store.size("../../b").is_err();
        let whole = store.read("b").unwrap();
        let size = store.size("b").unwrap();
        (
            (parts.unwrap(), whole, size),
            (past_end, beyond, missing, upwards),
        )
    });
    assert_eq!(answers[0], answers[1]);
    // Parts that take pages of memory of their own, to the byte; and one that the object has not all of.
    for store in &stores {
        for range in [5..(1 << 20) + 5, 7..(2 << 20) + 12_345, 0..3 << 20] {
            let part = store.read_range("large", range.clone()).unwrap();
            assert!(
                part == large[range.start as usize..range.end as usize],
                "{range:?}"
            );
        }
        let error = store.read_range("large", 1 << 20..4 << 20).unwrap_err();
        assert!(error.to_string().contains("it ends early"), "{error}");
    }
    // A file that was replaced is another version.
    let changed = reader.folder().join("a/b");
    std::fs::write(changed, b"01234567890").unwrap();
    let error = stores[1].read_range("b", 0..1).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}
