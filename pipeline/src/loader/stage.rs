//! The computing stage: decodes pictures and cuts views, in one thread from page to batch.

use crossbeam_channel::Receiver;

use crate::codec::{PartDecoder, PicturePart};
use crate::error::{Error, Result};
use crate::loader::batch::{Filling, Place};
use crate::loader::fetch::{Delivery, Fetched, Trouble, fetch, sample_task};
use crate::loader::stats::{BadSample, Stopwatch};
use crate::loader::{Shared, guarded};
use crate::stall::Task;
use crate::views::{Draw, Renderer, SampleKey};

/// Replacements of one place before the set is taken to be bad altogether.
const MAX_SUBSTITUTES: usize = 100;

/// Body of a computing thread: sample after sample, until the readers are gone or the loader stops.
pub(super) fn run(shared: &Shared, fetched: &Receiver<Delivery>) {
    let mut worker = Worker::new(shared);
    let mut watch = Stopwatch::start();
    while let Ok((mut place, outcome)) = fetched.recv() {
        if shared.window.is_stopped() {
            return;
        }
        shared.compute.add_waiting_in(watch.lap());
        let mut bad = Vec::new();
        let made = guarded("views", || {
            worker.make_or_replace(&mut place, outcome, &mut bad)
        });
        let made = made.unwrap_or_else(|panic| {
            // Its scratch memory may be half written.
            worker = Worker::new(shared);
            Err(panic)
        });
        let filling = made.map(|made| Filling {
            label: made.sample.label,
            sample: made.key.sample,
            key: made.sample.key,
        });
        // Before the batch may go out, so that the counters never lag behind the batches.
        shared.compute.count_item();
        shared.window.fill(place, filling, bad);
        shared.compute.add_busy(watch.lap());
    }
}

/// What one thread keeps from sample to sample.
struct Worker<'a> {
    shared: &'a Shared,
    decoder: PartDecoder,
    pictures: [PicturePart; 2],
    renderer: Renderer,
    /// Views to compare with, where decoding is not exact.
    exact_views: Vec<u8>,
    reading: Task,
    decoding: Task,
    cutting: Task,
}

/// Of the samples whose pictures are reduced in decoding, one in so many is made exactly too, to see the difference.
const COMPARED_EVERY: u64 = 64;

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            decoder: PartDecoder::new(),
            pictures: [PicturePart::default(), PicturePart::default()],
            renderer: shared.views.renderer(),
            exact_views: Vec::new(),
            reading: sample_task(shared, "reading"),
            decoding: sample_task(shared, "decoding"),
            cutting: sample_task(shared, "cutting"),
        }
    }

    /// Makes the views of what was fetched for `place`, or of the first good sample of its substitutes; `bad` gets the
    /// samples that were replaced.
    fn make_or_replace(
        &mut self,
        place: &mut Place,
        fetched: Result<Fetched, Trouble>,
        bad: &mut Vec<BadSample>,
    ) -> Result<Fetched> {
        let shared = self.shared;
        let epoch = place.slot.at.epoch;
        let mut sample = place.sample;
        let mut outcome = fetched;
        for substitute in shared
            .order
            .substitutes(epoch, place.position)
            .take(MAX_SUBSTITUTES)
        {
            let views = &mut place.views;
            match outcome.and_then(|fetched| self.make(&fetched, views).map(|()| fetched)) {
                Ok(made) => return Ok(made),
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Bad { key, reason }) => {
                    let index = shared.order.index(sample);
                    bad.push(BadSample {
                        index,
                        key: key.unwrap_or_else(|| format!("sample {index}")),
                        reason,
                    });
                }
            }
            sample = substitute;
            let key = SampleKey {
                seed: shared.seed,
                epoch,
                sample,
            };
            outcome = fetch(shared, key, &mut self.reading);
        }
        Err(Error::TooManyBad {
            found: bad.len() as u64,
            limit: MAX_SUBSTITUTES as u64,
            named: name_some(bad.iter()),
        })
    }

    /// Makes the views of a sample, `[V, S, S, 3]`.
    fn make(&mut self, fetched: &Fetched, views: &mut [u8]) -> Result<(), Trouble> {
        let bad = |reason: String| Trouble::Bad {
            key: Some(fetched.sample.key.to_string()),
            reason,
        };
        let mut watch = Stopwatch::start();
        let draw = self.decode(fetched, true).map_err(bad)?;
        self.shared.decode.add(watch.lap());
        self.render(fetched, &draw, views).map_err(bad)?;
        self.shared.render.add(watch.lap());
        if self.pictures[0].scale() > 1 {
            self.shared.reduced.count_item();
            if fetched.key.sample.is_multiple_of(COMPARED_EVERY) {
                self.compare(fetched, views).map_err(bad)?;
            }
        }
        Ok(())
    }

    /// Decodes what the views of a sample need, and says what they are; the error is what is wrong with the sample.
    fn decode(&mut self, fetched: &Fetched, may_reduce: bool) -> Result<Draw, String> {
        let views = &self.shared.views;
        let _busy = (self.decoding).begin(self.shared.order.index(fetched.key.sample));
        let mut drawn = None;
        for (page, part) in fetched.pages.as_slice().iter().zip(&mut self.pictures) {
            let picture = self.decoder.open(page).map_err(|e| e.to_string())?;
            let (width, height) = picture.size();
            // The first frame of a pair speaks for both: they are of one size, or the sample is bad.
            let draw = *drawn.get_or_insert_with(|| views.draw(fetched.key, width, height));
            let reduction = if may_reduce {
                views.reduction(&draw)
            } else {
                1
            };
            picture
                .decode_part(draw.needed(), reduction, part)
                .map_err(|e| e.to_string())?;
        }
        drawn.ok_or_else(|| "no picture".to_owned())
    }

    fn render(&mut self, fetched: &Fetched, draw: &Draw, views: &mut [u8]) -> Result<(), String> {
        let pictures = &self.pictures[..fetched.pages.as_slice().len()];
        let _busy = (self.cutting).begin(self.shared.order.index(fetched.key.sample));
        self.shared
            .views
            .render(fetched.key, draw, pictures, &mut self.renderer, views)
            .map_err(|e| e.to_string())
    }

    /// Makes the same views from pictures that are not reduced, and counts the difference.
    fn compare(&mut self, fetched: &Fetched, views: &[u8]) -> Result<(), String> {
        let draw = self.decode(fetched, false)?;
        let mut exact = std::mem::take(&mut self.exact_views);
        exact.resize(views.len(), 0);
        self.render(fetched, &draw, &mut exact)?;
        self.shared.reduced.compare(views, &exact);
        self.exact_views = exact;
        Ok(())
    }
}

/// Names of the first bad samples with their reasons.
pub(super) fn name_some<'a>(bad: impl IntoIterator<Item = &'a BadSample>) -> Vec<String> {
    bad.into_iter()
        .take(10)
        .map(|bad| format!("{}: {}", bad.key, bad.reason))
        .collect()
}
