//! The waiting stage: reads the encoded pictures that a sample's views need, each by itself or out of a row group that
//! was read whole.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Sender;

use crate::error::Error;
use crate::loader::batch::Place;
use crate::loader::read_ahead::{Loaded, ReadAhead, Room};
use crate::loader::source::{Pictures, Sample};
use crate::loader::stats::Stopwatch;
use crate::loader::{Shared, guarded};
use crate::stall::Task;
use crate::views::{Frames, SampleKey};

/// A sample with its encoded pictures.
pub(super) struct Fetched {
    pub(super) key: SampleKey,
    pub(super) sample: Sample,
    pub(super) pages: Pages,
    /// Of the row group whose bytes the pictures are, which they keep in memory.
    pub(super) _room: Option<Arc<Room>>,
}

/// The pictures of a sample in the order of its views.
#[derive(Debug)]
pub(super) enum Pages {
    One(Bytes),
    Two([Bytes; 2]),
}

impl Pages {
    pub(super) fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::One(page) => std::slice::from_ref(page),
            Self::Two(pages) => pages,
        }
    }
}

/// Why a sample was not made.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The sample is at fault: another one takes its place.
    Bad {
        /// Its name, where that can be read.
        key: Option<String>,
        reason: String,
    },
    /// Something else is: the run ends.
    Fatal(Error),
}

/// A place on its way to the next stage, with what was fetched for it.
pub(super) type Delivery = (Place, Result<Fetched, Trouble>);

/// Body of a reading thread: place after place, until the loader stops.
pub(super) fn run(shared: &Shared, fetched: &Sender<Delivery>) {
    let mut reading = sample_task(shared, "reading");
    let mut watch = Stopwatch::start();
    while let Some(place) = shared.window.next_place() {
        shared.fetch.add_waiting_out(watch.lap());
        let key = SampleKey {
            seed: shared.seed,
            epoch: place.slot.at.epoch,
            sample: place.sample,
        };
        let outcome = guarded("fetch", || match &shared.read_ahead {
            None => fetch(shared, key, &mut reading),
            Some(ahead) => {
                let index = shared.order.index(key.sample);
                let group = ahead.group(key.epoch, place.position, index);
                shared.fetch.add_waiting_in(watch.lap());
                let Loaded { pictures, room } = group.map_err(Trouble::Fatal)?;
                let fetched = fetch_from(shared, pictures.as_ref(), key)?;
                Ok(Fetched {
                    _room: Some(room),
                    ..fetched
                })
            }
        })
        .unwrap_or_else(|panic| Err(Trouble::Fatal(panic)));
        shared.fetch.count_item();
        shared.fetch.add_busy(watch.lap());
        if fetched.send((place, outcome)).is_err() {
            return;
        }
        shared.fetch.add_waiting_out(watch.lap());
    }
}

/// Body of a thread that reads whole row groups ahead, until the loader stops.
pub(super) fn run_ahead(shared: &Shared, ahead: &ReadAhead) {
    let source = Arc::clone(&shared.source);
    let groups: Vec<u64> = shared
        .order
        .groups()
        .iter()
        .map(|group| group.first_sample)
        .collect();
    let mut reading = Task::new("reading", move |group| {
        let first = groups.get(group as usize).copied().unwrap_or_default();
        format!("all of the row group of {}", source.place(first))
    });
    let mut watch = Stopwatch::start();
    while ahead.read_one(|group| {
        shared.read.add_waiting_out(watch.lap());
        let busy = reading.begin(group as u64);
        let loaded = guarded("read", || shared.source.load_group(group));
        drop(busy);
        let loaded = loaded.and_then(|loaded| loaded.map_err(Error::from));
        shared.count_read(shared.order.groups()[group].bytes);
        shared.read.count_item();
        shared.read.add_busy(watch.lap());
        loaded
    }) {}
}

/// Work on one sample after the other, by their indices.
pub(super) fn sample_task(shared: &Shared, stage: &'static str) -> Task {
    let source = Arc::clone(&shared.source);
    Task::new(stage, move |index| source.place(index))
}

/// Reads what the views of one sample need, picture by picture.
pub(super) fn fetch(
    shared: &Shared,
    key: SampleKey,
    reading: &mut Task,
) -> Result<Fetched, Trouble> {
    let _busy = reading.begin(shared.order.index(key.sample));
    let fetched = fetch_from(shared, shared.source.as_ref(), key)?;
    shared.count_read(
        fetched
            .pages
            .as_slice()
            .iter()
            .map(|p| p.len() as u64)
            .sum(),
    );
    Ok(fetched)
}

fn fetch_from(
    shared: &Shared,
    pictures: &dyn Pictures,
    key: SampleKey,
) -> Result<Fetched, Trouble> {
    let index = shared.order.index(key.sample);
    let sample = pictures
        .sample(index)
        .map_err(|error| trouble(None, error))?;
    let Some(frames) = shared.views.frames(key, sample.n_frames) else {
        let reason = format!(
            "{} frame(s), expected at least 2 for a pair",
            sample.n_frames
        );
        return Err(Trouble::Bad {
            key: Some(sample.key.to_string()),
            reason,
        });
    };
    let pages = match frames {
        Frames::One(frame) => pictures.picture(index, frame).map(Pages::One),
        Frames::Two(frames) => pictures.pair(index, frames).map(Pages::Two),
    };
    match pages {
        Ok(pages) => Ok(Fetched {
            key,
            sample,
            pages,
            _room: None,
        }),
        Err(error) => Err(trouble(Some(&sample.key), error)),
    }
}

fn trouble(key: Option<&str>, error: shards::Error) -> Trouble {
    if error.is_bad_sample() {
        Trouble::Bad {
            key: key.map(str::to_owned),
            reason: error.to_string(),
        }
    } else {
        Trouble::Fatal(error.into())
    }
}
