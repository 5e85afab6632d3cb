//! What the store promises about files on a disk.

use std::io::Write;

use shards::{Error, Sharing, Store, is_remote};

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(dir.path().to_str().unwrap()).unwrap()
}

fn names(store: &Store, prefix: &str) -> Vec<String> {
    store
        .list(prefix)
        .unwrap()
        .into_iter()
        .map(|(path, _)| path)
        .collect()
}

#[test]
fn an_object_appears_when_it_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut writer = store.create("deep/er/file.bin").unwrap();
    writer.write_all(b"abc").unwrap();
    assert!(names(&store, "").is_empty() && !store.exists("deep/er/file.bin").unwrap());
    let written = writer.commit().unwrap();
    assert_eq!(written.bytes, 3);
    assert_eq!(
        written.sha256,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(
        store.list("").unwrap(),
        [("deep/er/file.bin".to_owned(), 3)]
    );
    assert_eq!(store.read("deep/er/file.bin").unwrap(), b"abc".as_slice());
}

#[test]
fn a_dropped_writer_leaves_nothing_and_the_old_object_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    store.put_atomic("a", b"old").unwrap();
    let mut writer = store.create("a").unwrap();
    writer.write_all(b"new").unwrap();
    drop(writer);
    assert_eq!(store.read("a").unwrap(), b"old".as_slice());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    store.put_atomic("a", b"newer").unwrap();
    assert_eq!(store.read("a").unwrap(), b"newer".as_slice());
}

#[cfg(unix)]
#[test]
fn files_are_readable_as_any_new_file_is() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    open(&dir).put_atomic("ours", b"").unwrap();
    std::fs::write(dir.path().join("plain"), b"").unwrap();
    let mode = |name| {
        std::fs::metadata(dir.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(mode("ours"), mode("plain"));
}

#[test]
fn what_killed_writers_left_is_hidden_and_removed_by_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for name in [
        "train-00001.parquet",
        "train-00002.parquet",
        "val-00001.parquet",
    ] {
        std::mem::forget(store.create(name).unwrap());
    }
    store.put_atomic("train-00003.parquet", b"x").unwrap();
    assert_eq!(names(&store, ""), ["train-00003.parquet"]);
    assert_eq!(store.remove_stale_temps("train-00001").unwrap(), 1);
    assert_eq!(store.remove_stale_temps("train-").unwrap(), 1);
    assert_eq!(store.remove_stale_temps("").unwrap(), 1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn lists_are_sorted_and_take_any_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for name in ["b", "a/2", "a/1", "ab", "a/x/3"] {
        store.put_atomic(name, b"").unwrap();
    }
    assert_eq!(names(&store, ""), ["a/1", "a/2", "a/x/3", "ab", "b"]);
    assert_eq!(names(&store, "a"), ["a/1", "a/2", "a/x/3", "ab"]);
    assert_eq!(names(&store, "a/"), ["a/1", "a/2", "a/x/3"]);
    assert_eq!(names(&store, "a/x"), ["a/x/3"]);
    assert!(names(&store, "none/there").is_empty());
    store.delete("a/1").unwrap();
    assert_eq!(names(&store, "a/"), ["a/2", "a/x/3"]);
}

#[test]
fn ranges_are_exact_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    store.put_atomic("digits", b"0123456789").unwrap();
    assert_eq!(store.size("digits").unwrap(), 10);
    assert_eq!(store.read_range("digits", 2..5).unwrap(), b"234".as_slice());
    let parts = store.read_ranges("digits", &[7..10, 0..1, 1..2]).unwrap();
    assert_eq!(parts, [b"789".as_slice(), b"0", b"1"]);
    assert!(store.read_ranges("digits", &[]).unwrap().is_empty());
    for range in [8..11, 10..11, 20..30] {
        let error = store.read_range("digits", range).unwrap_err().to_string();
        assert!(error.contains("digits"), "{error}");
        assert!(
            error.starts_with("reading ") && error.contains("it ends early"),
            "{error}"
        );
        assert!(!error.contains("invalid"), "{error}");
    }
}

#[test]
fn failures_say_what_was_done_to_which_path_and_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    let store = Store::open(dir.path().join("file/set").to_str().unwrap()).unwrap();
    let read = store.read("a").unwrap_err().to_string();
    let range = store.read_range("a", 0..1).unwrap_err().to_string();
    let size = store.size("a").unwrap_err().to_string();
    let write = store.put_atomic("a", b"").unwrap_err().to_string();
    let lock = store.try_lock("a", Sharing::Alone).unwrap_err().to_string();
    for (message, doing) in [
        (read, "reading "),
        (range, "reading "),
        (size, "looking at "),
        (write, "making the folder "),
        (lock, "making the folder "),
    ] {
        assert!(
            message.starts_with(doing)
                && message.contains("file/set")
                && message.ends_with("Not a directory (os error 20)"),
            "{message}"
        );
        assert!(!message.contains("Generic"), "{message}");
    }
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    let message = open(&dir)
        .put_atomic("folder", b"")
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("writing ") && message.ends_with("Is a directory (os error 21)"),
        "{message}"
    );
}

#[test]
fn missing_objects_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("not/yet").to_str().unwrap()).unwrap();
    assert!(matches!(store.read("x"), Err(Error::NotFound { .. })));
    assert!(matches!(
        store.read_range("x", 0..1),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(store.size("x"), Err(Error::NotFound { .. })));
    assert!(matches!(store.delete("x"), Err(Error::NotFound { .. })));
    assert!(!store.exists("x").unwrap());
    assert!(names(&store, "").is_empty());
    assert_eq!(store.remove_stale_temps("").unwrap(), 0);
}

#[test]
fn folders_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "with space",
        "Größe",
        "100%",
        "a%20b",
        "a#b?c",
        "new\u{301}",
    ] {
        let folder = dir.path().join(name);
        let store = Store::open(folder.to_str().unwrap()).unwrap();
        store.put_atomic("x/file", b"1").unwrap();
        assert!(folder.join("x/file").is_file(), "{name}");
        assert_eq!(store.read("x/file").unwrap(), b"1".as_slice(), "{name}");
        assert_eq!(names(&store, ""), ["x/file"], "{name}");
    }
}

#[test]
fn addresses_are_understood_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).put_atomic("a b/x", b"1").unwrap();
    let uri = format!("file://{}/a%20b", dir.path().display());
    assert_eq!(
        Store::open(&uri).unwrap().read("x").unwrap(),
        b"1".as_slice()
    );
    let error = Store::open("ftp://host/set").unwrap_err();
    assert!(matches!(&error, Error::UnsupportedStore { scheme, .. } if scheme == "ftp"));
    assert!(error.to_string().contains("s3://"));
    assert!(matches!(Store::open(""), Err(Error::BadPath { .. })));
    assert!(matches!(
        Store::open("file://relative"),
        Err(Error::BadPath { .. })
    ));
    for path in ["", "/", "a//b", "../up", "a/../b"] {
        assert!(
            matches!(open(&dir).put_atomic(path, b""), Err(Error::BadPath { .. })),
            "{path:?}"
        );
    }
}

#[test]
fn locks_exclude_and_end_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let lock = |sharing| open(&dir).try_lock("deep/lock", sharing).unwrap();
    let (first, second) = (lock(Sharing::Shared), lock(Sharing::Shared));
    assert!(first.is_some() && second.is_some() && lock(Sharing::Alone).is_none());
    drop((first, second));
    let alone = lock(Sharing::Alone);
    assert!(alone.is_some() && lock(Sharing::Alone).is_none() && lock(Sharing::Shared).is_none());
    drop(alone);
    assert!(lock(Sharing::Alone).is_some());
}

#[test]
fn buckets_are_remote_and_disks_are_not() {
    assert!(is_remote("s3://bucket/set") && !is_remote("file:///set") && !is_remote("a/set"));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(open(&dir).folder(), Some(dir.path()));
}
