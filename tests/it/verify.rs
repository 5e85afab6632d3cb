//! `verify` finds what is wrong and says where.

use std::fs;

use crate::support::{demo_set, json, ok, run, text, tree, utf8};

#[test]
fn a_flipped_byte_a_cut_shard_and_a_missing_one_are_found() {
    let set = demo_set().join("shards/images");
    assert_eq!(
        json(&["verify", utf8(&set)])["findings"]
            .as_array()
            .unwrap()
            .len(),
        0
    );

    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in tree(&set) {
        let to = dir.path().join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
    let shard = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "parquet"))
        .unwrap();
    let name = shard.file_name().unwrap().to_str().unwrap().to_owned();
    let whole = fs::read(&shard).unwrap();

    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 0x10;
    for (damage, bytes) in [
        ("flip", Some(flipped)),
        ("cut", Some(whole[..whole.len() / 2].to_vec())),
        ("gone", None),
    ] {
        match bytes {
            Some(bytes) => fs::write(&shard, bytes).unwrap(),
            None => fs::remove_file(&shard).unwrap(),
        }
        let output = run(&["verify", utf8(dir.path())]);
        assert_eq!(output.status.code(), Some(1), "{damage}");
        let said = text(&output.stdout);
        assert!(said.contains(&name), "{damage}: {said}");
        if damage == "flip" {
            assert!(said.contains("row"), "{said}");
        }
    }
    fs::write(&shard, whole).unwrap();
    ok(&["verify", utf8(dir.path())]);
}
