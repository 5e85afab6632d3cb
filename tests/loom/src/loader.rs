//! The loader's two places to wait, with samples in the order of their numbers.

// Of the sources, what waits is used.
#[allow(dead_code)]
#[path = "../../../pipeline/src/loader/batch.rs"]
mod batch;
#[allow(dead_code)]
#[path = "../../../pipeline/src/loader/read_ahead.rs"]
mod read_ahead;
#[allow(dead_code)]
#[path = "../../../pipeline/src/loader/state.rs"]
mod state;

/// Epochs of one sample after the other, each in a group and a window of its own.
mod order {
    use std::ops::Range;

    #[derive(Debug, Clone)]
    pub struct Order {
        pub groups: Vec<Group>,
    }

    #[derive(Debug, Clone)]
    pub struct Group {
        pub bytes: u64,
    }

    #[derive(Debug)]
    pub struct EpochOrder {
        n: u64,
    }

    impl Order {
        pub fn of(n: u64) -> Self {
            let groups = (0..n).map(|_| Group { bytes: 1 }).collect();
            Order { groups }
        }

        pub fn groups(&self) -> &[Group] {
            &self.groups
        }

        pub fn group_of(&self, index: u64) -> usize {
            index as usize
        }

        pub fn epoch(&self, _: u64) -> EpochOrder {
            let n = self.groups.len() as u64;
            EpochOrder { n }
        }
    }

    impl EpochOrder {
        pub fn sample(&self, position: u64) -> u64 {
            position
        }

        pub fn window_at(&self, position: u64) -> Option<usize> {
            (position < self.n).then_some(position as usize)
        }

        pub fn window(&self, number: usize) -> Option<(Range<u64>, Vec<usize>)> {
            let first = number as u64;
            (first < self.n).then(|| (first..first + 1, vec![number]))
        }
    }
}

mod source {
    /// A group's number, in place of its pictures.
    pub trait Pictures: Send + Sync {
        fn number(&self) -> usize;
    }

    impl Pictures for usize {
        fn number(&self) -> usize {
            *self
        }
    }
}

mod stats {
    #[derive(Debug)]
    #[expect(dead_code)] // no sample is bad here
    pub struct BadSample {
        pub index: u64,
    }
}

use loom::thread::{self, JoinHandle};
use std::sync::Arc;

use crate::error::Error;
use crate::{check, join};
use batch::{BatchShape, Filling, Window};
use order::Order;
use read_ahead::{Loaded, ReadAhead};
use state::{Batching, LoaderState, Rank};

fn batching(n_samples: u64, batch_size: u64) -> Batching {
    Batching::new(n_samples, batch_size, Rank::SINGLE).unwrap()
}

/// Room for one batch at a time, of an epoch of so many.
fn window(n_batches: u64, batch_size: u64) -> Arc<Window> {
    let n_samples = n_batches * batch_size;
    let shape = BatchShape {
        n_samples: batch_size as usize,
        n_views: 1,
        size: 1,
    };
    Arc::new(Window::new(
        Order::of(n_samples),
        batching(n_samples, batch_size),
        shape,
        1,
        LoaderState::default(),
    ))
}

/// A thread that fills places, with the sample's number for a picture, until the window stops.
fn fill(window: &Arc<Window>) -> JoinHandle<()> {
    let window = Arc::clone(window);
    thread::spawn(move || {
        while let Some(mut place) = window.next_place() {
            let sample = place.sample;
            place.views.fill(sample as u8);
            let filling = Filling {
                label: None,
                sample,
                key: "".into(),
            };
            window.fill(place, Ok(filling), Vec::new());
        }
    })
}

/// Takes the front batch, whose samples must be these, with their pictures.
fn take(window: &Window, expected: &[u64]) {
    let contents = window.take_front().unwrap();
    assert_eq!(contents.batch.samples, expected);
    for (picture, sample) in contents.batch.views.chunks(3).zip(expected) {
        assert_eq!(picture, [*sample as u8; 3]);
    }
    window.recycle(contents.batch);
}

/// Two threads fill the batches of an epoch, which are taken in order.
fn two_fill(batch_size: u64, batches: &[&[u64]]) {
    let window = window(batches.len() as u64, batch_size);
    let threads = [fill(&window), fill(&window)];
    for samples in batches {
        take(&window, samples);
    }
    window.stop(None);
    join(threads);
}

/// One group in memory at a time, of an epoch of so many.
fn read_ahead(n_groups: u64) -> Arc<ReadAhead> {
    let start = LoaderState::default();
    let batching = batching(n_groups, 1);
    Arc::new(ReadAhead::new(Order::of(n_groups), batching, 1, start))
}

/// A thread that reads groups until there is no need of more.
fn read(ahead: &Arc<ReadAhead>) -> JoinHandle<()> {
    let ahead = Arc::clone(ahead);
    thread::spawn(move || while ahead.read_one(|group| Ok(Box::new(group))) {})
}

pub fn models() {
    check("loader: 2 threads fill 2 batches, room for one", 3, || {
        two_fill(1, &[&[0], &[1]]);
    });
    check("loader: 2 threads fill a batch of 2", 3, || {
        two_fill(2, &[&[0, 1]]);
    });
    check("loader: stopped while one fills and one takes", 3, || {
        let window = window(2, 1);
        let filler = fill(&window);
        let taker = {
            let window = Arc::clone(&window);
            thread::spawn(move || {
                let mut expected = 0;
                while let Ok(contents) = window.take_front() {
                    assert_eq!(contents.batch.samples, [expected % 2]);
                    expected += 1;
                    if expected == 3 {
                        break;
                    }
                }
            })
        };
        window.stop(None);
        join([filler, taker]);
    });
    check("loader: what stops it reaches the one who takes", 3, || {
        let window = window(2, 1);
        let filler = fill(&window);
        let stopper = {
            let window = Arc::clone(&window);
            thread::spawn(move || {
                window.stop(Some(Error::Invalid {
                    name: "model",
                    value: String::new(),
                    expected: String::new(),
                }));
            })
        };
        for _ in 0..3 {
            match window.take_front() {
                Ok(_) => {}
                Err(Error::Invalid { .. }) => break,
                Err(other) => panic!("{other:?}"),
            }
        }
        join([stopper, filler]);
    });
    check(
        "read ahead: room for one group, held on by another thread",
        3,
        || {
            let ahead = read_ahead(2);
            let reader = read(&ahead);
            let mut holders = Vec::new();
            for position in 0..2 {
                let Loaded { pictures, room } = ahead.group(0, position, position).unwrap();
                assert_eq!(pictures.number() as u64, position);
                holders.push(thread::spawn(move || drop(room)));
            }
            ahead.stop();
            join(holders);
            join([reader]);
        },
    );
    check("read ahead: 2 threads, over the end of an epoch", 3, || {
        let ahead = read_ahead(1);
        let readers = [read(&ahead), read(&ahead)];
        for epoch in 0..2 {
            let loaded = ahead.group(epoch, 0, 0).unwrap();
            assert_eq!(loaded.pictures.number(), 0);
        }
        ahead.stop();
        join(readers);
    });
    check("read ahead: stopped at any moment", 3, || {
        let ahead = read_ahead(2);
        let reader = read(&ahead);
        let taker = {
            let ahead = Arc::clone(&ahead);
            thread::spawn(move || {
                for position in 0..2 {
                    if ahead.group(0, position, position).is_err() {
                        break;
                    }
                }
            })
        };
        ahead.stop();
        join([reader, taker]);
    });
}
