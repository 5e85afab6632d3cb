//! A read that hangs is named, and changes nothing.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pipeline::config::{OrderKind, ReadKind};
use pipeline::stall::Watch;

use crate::source::MemorySource;
use crate::{config, start, take};

/// What is said until `expected` is part of it; other tests' work may be spoken of too.
fn heard(said: &Receiver<String>, expected: &str) -> String {
    let patience = Duration::from_secs(60);
    std::iter::from_fn(|| said.recv_timeout(patience).ok())
        .find(|line| line.contains(expected))
        .unwrap_or_else(|| panic!("nothing was said of {expected:?}"))
}

#[test]
fn a_read_that_hangs_is_named_by_its_place_and_changes_nothing() {
    const SAMPLES: u64 = 40;
    for (read, place) in [
        (ReadKind::Pages, "shelf 4, picture 17"),
        (
            ReadKind::Groups,
            "all of the row group of shelf 4, picture 16",
        ),
    ] {
        let mut config = config(2);
        config.order = Some(OrderKind::Blocks);
        config.read = Some(read);
        let epoch = SAMPLES as usize / 2;
        let expected = take(&mut start(MemorySource::images(SAMPLES), &config), epoch);

        let lock = Arc::new(Mutex::new(()));
        let source = MemorySource {
            stuck: Some((17, Arc::clone(&lock))),
            ..MemorySource::images(SAMPLES)
        };
        let held = lock.lock().unwrap();
        let (say, said) = channel();
        let patience = Duration::from_millis(100);
        let watch = Watch::start(patience, move |line| drop(say.send(line.to_owned())));
        let mut loader = start(source, &config);
        let consumer = std::thread::spawn(move || take(&mut loader, epoch));
        for _ in 0..2 {
            let line = heard(&said, place);
            assert!(line.contains(" s for stage reading: "), "{line}");
        }
        drop(held);
        assert_eq!(consumer.join().unwrap(), expected, "{read:?}");
        heard(&said, "stage reading goes on");
        drop(watch.unwrap());
    }
}
