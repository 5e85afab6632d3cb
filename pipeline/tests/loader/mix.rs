//! Parts of a set, and several sets at once.

use std::collections::BTreeMap;

use pipeline::config::{DataConfig, OrderKind, ReadKind, Select, SourceConfig};
use pipeline::loader::{Loader, Rank, open};
use shards::Kind;
use tempfile::TempDir;

use crate::shard_set::write_set;
use crate::{SEED, at, config, take};

fn source(dir: &TempDir, weight: f64, select: Select) -> SourceConfig {
    SourceConfig {
        path: dir.path().to_str().unwrap().to_owned(),
        weight,
        select,
        ..SourceConfig::default()
    }
}

fn mixed(sources: Vec<SourceConfig>, batch_size: usize) -> DataConfig {
    DataConfig {
        path: String::new(),
        sources,
        size: 4,
        ..config(batch_size)
    }
}

/// How often each key comes up in an epoch of batches of one.
fn visits(config: &DataConfig, epoch: u64) -> BTreeMap<String, usize> {
    let mut loader = Loader::new(config, SEED, Rank::SINGLE, at(epoch, 0)).unwrap();
    let n = loader.batches_per_epoch() as usize;
    let mut visits = BTreeMap::new();
    for key in take(&mut loader, n)
        .into_iter()
        .flat_map(|batch| batch.keys)
    {
        *visits.entry(key).or_insert(0) += 1;
    }
    visits
}

fn names(visits: &BTreeMap<String, usize>) -> Vec<&str> {
    visits.keys().map(String::as_str).collect()
}

#[test]
fn conditions_select_samples_in_every_order() {
    let images = write_set(Kind::Images);
    let list = images.path().join("keys.txt");
    std::fs::write(&list, "image/3\n\nimage/10 \nimage/7\n").unwrap();
    let class = |class: &str| Select {
        classes: vec![class.to_owned()],
        ..Select::default()
    };
    let keys = |patterns: &[&str]| Select {
        keys: patterns.iter().map(|&p| p.to_owned()).collect(),
        ..Select::default()
    };
    let listed = Select {
        key_list: Some(list),
        ..Select::default()
    };
    let few = Select {
        max_samples: Some(2),
        ..class("tench")
    };
    let both = Select {
        keys: vec!["image/1*".to_owned()],
        ..class("1")
    };
    let cases = [
        (
            class("tench"),
            vec!["image/1", "image/10", "image/4", "image/7"],
        ),
        (
            class("n2"),
            vec!["image/11", "image/2", "image/5", "image/8"],
        ),
        (keys(&["image/1?"]), vec!["image/10", "image/11"]),
        (keys(&["*/1", "*/11"]), vec!["image/1", "image/11"]),
        (listed, vec!["image/10", "image/3", "image/7"]),
        (few, vec!["image/1", "image/4"]),
        (both, vec!["image/1", "image/10"]),
    ];
    for (select, expected) in cases {
        for (order, read) in [
            (OrderKind::Full, ReadKind::Pages),
            (OrderKind::Blocks, ReadKind::Pages),
            (OrderKind::Blocks, ReadKind::Groups),
        ] {
            let config = DataConfig {
                path: images.path().to_str().unwrap().to_owned(),
                select: select.clone(),
                order: Some(order),
                read: Some(read),
                window_groups: 2,
                ..config(1)
            };
            let visits = visits(&config, 0);
            assert_eq!(names(&visits), expected, "{select:?}");
            assert!(visits.values().all(|&n| n == 1));
        }
    }
}

#[test]
fn clips_are_selected_whole() {
    let clips = write_set(Kind::Clips);
    let select = Select {
        keys: vec!["clip/[25]".to_owned()],
        ..Select::default()
    };
    let config = mixed(vec![source(&clips, 1.0, select)], 1);
    assert_eq!(names(&visits(&config, 0)), ["clip/2", "clip/5"]);
}

#[test]
fn what_selects_nothing_is_refused() {
    let images = write_set(Kind::Images);
    let list = images.path().join("keys.txt");
    std::fs::write(&list, "image/3\nimage/99\nimage/98").unwrap();
    let refused = |select: Select| {
        let config = mixed(vec![source(&images, 1.0, select)], 1);
        open::source(&config).err().unwrap().to_string()
    };
    let class = |class: &str| {
        refused(Select {
            classes: vec![class.to_owned()],
            ..Select::default()
        })
    };
    assert!(class("n9").contains("3 classes, such as \"n0\" or \"crane\""));
    assert!(class("3").contains("\"3\""));
    assert!(class("crane").contains("several classes"));
    let listed = Select {
        key_list: Some(list),
        ..Select::default()
    };
    let message = refused(listed);
    assert!(message.contains("\"image/98\" and 1 more"), "{message}");
    let missing = Select {
        key_list: Some("nowhere.txt".into()),
        ..Select::default()
    };
    assert!(refused(missing).contains("nowhere.txt"));
    let nothing = Select {
        keys: vec!["nothing*".to_owned()],
        ..Select::default()
    };
    assert!(refused(nothing).contains("12 samples"));
    let no_pattern = Select {
        keys: vec!["a***b[".to_owned()],
        ..Select::default()
    };
    assert!(refused(no_pattern).contains("data.select.keys"));
}

#[test]
fn weights_are_visits() {
    let (images, clips) = (write_set(Kind::Images), write_set(Kind::Clips));
    let sources = vec![
        source(&images, 2.0, Select::default()),
        source(&clips, 0.5, Select::default()),
    ];
    for (order, read) in [
        (OrderKind::Full, ReadKind::Pages),
        (OrderKind::Blocks, ReadKind::Groups),
        (OrderKind::Sequential, ReadKind::Groups),
    ] {
        let config = DataConfig {
            order: Some(order),
            read: Some(read),
            ..mixed(sources.clone(), 1)
        };
        let of = |kind: &str, epoch| {
            let mut visits = visits(&config, epoch);
            visits.retain(|key, _| key.starts_with(kind));
            visits
        };
        let (of_images, of_clips) = (of("image/", 0), of("clip/", 0));
        assert_eq!((of_images.len(), of_clips.len()), (12, 6));
        assert!(of_images.values().all(|&n| n == 2) && of_clips.values().all(|&n| n == 1));
        assert_ne!(of_clips, of("clip/", 1), "always the same half");
    }
}

#[test]
fn mixed_sets_resume_and_split_over_ranks() {
    let (images, clips) = (write_set(Kind::Images), write_set(Kind::Clips));
    let sources = vec![
        source(&images, 1.5, Select::default()),
        source(&clips, 0.75, Select::default()),
    ];
    let config = DataConfig {
        order: Some(OrderKind::Blocks),
        window_groups: 3,
        ..mixed(sources, 4)
    };
    let whole = take(
        &mut Loader::new(&config, SEED, Rank::SINGLE, at(0, 0)).unwrap(),
        12,
    );
    for start in [1, 6, 9] {
        let state = at(whole[start].epoch, whole[start].index);
        let mut resumed = Loader::new(&config, SEED, Rank::SINGLE, state).unwrap();
        assert!(take(&mut resumed, 12 - start) == whole[start..]);
    }
    let ranks = [0, 1].map(|rank| {
        let rank = Rank { rank, world: 2 };
        take(&mut Loader::new(&config, SEED, rank, at(0, 0)).unwrap(), 12)
    });
    for (n, batch) in whole.iter().enumerate() {
        let halves = ranks.each_ref().map(|batches| batches[n].keys.clone());
        assert_eq!(batch.keys, halves.concat());
    }
}

#[test]
fn sources_beside_a_path_are_refused() {
    let images = write_set(Kind::Images);
    let both = DataConfig {
        path: "shards".to_owned(),
        ..mixed(vec![source(&images, 1.0, Select::default())], 1)
    };
    assert!(
        both.validate()
            .unwrap_err()
            .to_string()
            .contains("data.sources")
    );
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = mixed(vec![source(&images, weight, Select::default())], 1);
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains("data.sources.weight"), "{message}");
    }
}
