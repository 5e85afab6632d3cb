//! Conditions are told by statistics where these suffice: what is excluded is not read.

use std::path::Path;

use ::bucket::{HubRow, Proxy, Server, write_hub_parquet};
use pipeline::config::{DataConfig, OrderKind, Select};
use pipeline::loader::{Loader, Rank, open};
use shards::{GroupRef, Kind, SampleRef, ShardSet, StoreOptions};

use crate::shard_set::write_set;
use crate::source::picture;
use crate::{SEED, at, config, take};

/// The requests for parts of objects, and the bytes of all replies, that choosing takes.
fn asked(proxy: &Proxy, path: &str, select: &Select) -> (usize, u64) {
    let config = DataConfig {
        path: format!("{}/sets/{path}", proxy.endpoint()),
        select: select.clone(),
        store: StoreOptions {
            merge_gap_bytes: 0,
            ..StoreOptions::default()
        },
        ..config(1)
    };
    proxy.take_log();
    proxy.take_traffic();
    open::source(&config).unwrap();
    let log = proxy.take_log();
    let parts = log
        .iter()
        .filter(|request| request.header("range").is_some());
    (parts.count(), proxy.take_traffic().reply_bytes)
}

fn serve(files: &Path) -> (Server, Proxy) {
    let server = Server::start_public().unwrap();
    let folder = server.folder().join("set");
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(files).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let proxy = Proxy::start(server.address()).unwrap();
    (server, proxy)
}

fn keys(patterns: &[&str]) -> Select {
    Select {
        keys: patterns.iter().map(|&p| p.to_owned()).collect(),
        ..Select::default()
    }
}

fn class(class: &str) -> Select {
    Select {
        classes: vec![class.to_owned()],
        ..Select::default()
    }
}

/// The least and the greatest key and label of a row group.
struct Span {
    keys: (String, String),
    labels: (i32, i32),
}

fn span(set: &ShardSet, group: &GroupRef) -> Span {
    let samples = group.first_sample..group.first_sample + group.n_samples;
    let samples: Vec<SampleRef> = samples.map(|n| set.sample(n).unwrap()).collect();
    let keys = || samples.iter().map(|sample| sample.key.clone());
    let labels = || samples.iter().filter_map(|sample| sample.label);
    Span {
        keys: (keys().min().unwrap(), keys().max().unwrap()),
        labels: (labels().min().unwrap(), labels().max().unwrap()),
    }
}

#[test]
fn row_groups_that_hold_nothing_wanted_are_not_read() {
    let images = write_set(Kind::Images);
    let set = ShardSet::open(images.path().to_str().unwrap(), "train").unwrap();
    let spans: Vec<Span> = set.groups().iter().map(|g| span(&set, g)).collect();
    let count = |may: &dyn Fn(&Span) -> bool| spans.iter().filter(|span| may(span)).count();
    let (_server, proxy) = serve(images.path());
    let (n_all, all) = asked(&proxy, "set", &keys(&["*"]));
    assert_eq!(n_all, 2 + spans.len(), "two footers and all names");
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("keys.txt");
    std::fs::write(&list, "image/3\nimage/5\n").unwrap();
    let listed = Select {
        key_list: Some(list),
        ..Select::default()
    };
    let holds =
        |span: &Span, key: &str| (span.keys.0.as_str()..=span.keys.1.as_str()).contains(&key);
    let in_list = count(&|span| holds(span, "image/3") || holds(span, "image/5"));
    assert!(in_list < spans.len());
    let cases = [
        (listed, in_list),
        (keys(&["image/8"]), count(&|span| holds(span, "image/8"))),
        (
            class("n1"),
            count(&|span| (span.labels.0..=span.labels.1).contains(&1)),
        ),
    ];
    for (select, n) in cases {
        let (n_some, some) = asked(&proxy, "set", &select);
        assert_eq!(n_some, 2 + n, "{select:?}");
        // Of the same column; labels have a dictionary in each row group, which takes more than these names.
        let is_by_key = select.classes.is_empty();
        assert!(
            !is_by_key || some < all,
            "{some} of {all} bytes for {select:?}"
        );
    }
}

#[test]
fn parquet_of_others_is_chosen_from_by_class_and_key_and_read_as_little() {
    let dir = tempfile::tempdir().unwrap();
    let row = |n: u32| HubRow {
        bytes: Some(picture(n).to_vec()),
        path: Some(format!("{:03}.jpg", n)),
        label: Some(i64::from(n / 5)),
    };
    let rows: Vec<HubRow> = (0..20).map(row).collect();
    let names = ["tench", "crane", "goose", "kite"];
    let file = dir.path().join("train.parquet");
    write_hub_parquet(&file, &rows, 5, &names).unwrap();
    let (_server, proxy) = serve(dir.path());
    let address = "set/train.parquet"; // a web server cannot list
    let (none, footer) = asked(&proxy, address, &Select::default());
    assert_eq!(none, 1, "the footer alone");
    let (n_all, all) = asked(&proxy, address, &keys(&["*"]));
    assert_eq!(n_all, 1 + 4, "the footer and the names of four row groups");
    for (select, n) in [
        (class("goose"), 1),
        (class("3"), 1),
        (keys(&["00[78].jpg"]), 2),
        (keys(&["012*", "nothing"]), 1),
    ] {
        let (n_some, some) = asked(&proxy, address, &select);
        assert_eq!(n_some, 1 + n, "{select:?}");
        let (some, all) = (some - footer, all - footer);
        assert!(
            some * 4 <= all * (n as u64 + 1),
            "{some} of {all} bytes for {select:?}"
        );
    }
    // And what is chosen is what comes.
    for (select, expected) in [
        (
            class("goose"),
            vec!["010.jpg", "011.jpg", "012.jpg", "013.jpg", "014.jpg"],
        ),
        (
            keys(&["00[78].jpg", "019*"]),
            vec!["007.jpg", "008.jpg", "019.jpg"],
        ),
    ] {
        let config = DataConfig {
            path: file.to_str().unwrap().to_owned(),
            select,
            order: Some(OrderKind::Full),
            ..config(1)
        };
        let mut loader = Loader::new(&config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
        let batches = take(&mut loader, expected.len());
        let mut found: Vec<String> = batches.into_iter().flat_map(|batch| batch.keys).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
    let unknown = DataConfig {
        path: file.to_str().unwrap().to_owned(),
        select: class("swan"),
        ..config(1)
    };
    let error = open::source(&unknown).err().unwrap().to_string();
    assert!(error.contains("4 classes, such as \"tench\""), "{error}");
}
