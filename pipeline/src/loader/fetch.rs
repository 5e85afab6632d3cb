//! The waiting stage: reads the encoded pictures that a sample's views need, and no others.

use bytes::Bytes;
use crossbeam_channel::Sender;

use crate::error::Error;
use crate::loader::batch::Place;
use crate::loader::source::Sample;
use crate::loader::stats::Stopwatch;
use crate::loader::{Shared, guarded};
use crate::views::{Frames, SampleKey};

/// A sample with its encoded pictures.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) key: SampleKey,
    pub(super) sample: Sample,
    pub(super) pages: Pages,
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
    let mut watch = Stopwatch::start();
    while let Some(place) = shared.window.next_place() {
        shared.fetch.add_waiting_out(watch.lap());
        let key = SampleKey {
            seed: shared.seed,
            epoch: place.slot.at.epoch,
            sample: place.sample,
        };
        let outcome = guarded("fetch", || fetch(shared, key))
            .unwrap_or_else(|panic| Err(Trouble::Fatal(panic)));
        shared.fetch.count_item();
        shared.fetch.add_busy(watch.lap());
        if fetched.send((place, outcome)).is_err() {
            return;
        }
        shared.fetch.add_waiting_out(watch.lap());
    }
}

/// Reads what the views of one sample need.
pub(super) fn fetch(shared: &Shared, key: SampleKey) -> Result<Fetched, Trouble> {
    let index = key.sample / shared.repeats;
    let sample = shared
        .source
        .sample(index)
        .map_err(|error| trouble(None, error))?;
    let Some(frames) = shared.views.frames(key, sample.n_frames) else {
        let reason = format!(
            "{} frame(s), expected at least 2 for a pair",
            sample.n_frames
        );
        return Err(Trouble::Bad {
            key: Some(sample.key),
            reason,
        });
    };
    let read = |frame| {
        let page = shared
            .source
            .picture(index, frame)
            .map_err(|error| trouble(Some(&sample.key), error))?;
        shared
            .bytes_read
            .fetch_add(page.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(page)
    };
    let pages = match frames {
        Frames::One(frame) => Pages::One(read(frame)?),
        Frames::Two([first, second]) => Pages::Two([read(first)?, read(second)?]),
    };
    Ok(Fetched { key, sample, pages })
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
