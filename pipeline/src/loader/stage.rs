//! The computing stage: decodes pictures and cuts views, in one thread from page to batch.

use crossbeam_channel::Receiver;

use crate::codec::{self, CodecError, ImageFormat, JpegDecoder, Rgb8Image};
use crate::error::{Error, Result};
use crate::loader::batch::{Filling, Place};
use crate::loader::fetch::{Delivery, Fetched, Trouble, fetch};
use crate::loader::stats::{BadSample, Stopwatch};
use crate::loader::{Shared, guarded};
use crate::views::{Renderer, SampleKey};

/// Replacements of one place before the set is taken to be bad altogether.
const MAX_SUBSTITUTES: usize = 100;

/// Body of a computing thread: sample after sample, until the readers are gone or the loader stops.
pub(super) fn run(shared: &Shared, fetched: &Receiver<Delivery>) {
    let mut worker = Worker::new(shared);
    let mut watch = Stopwatch::start();
    while let Ok((place, outcome)) = fetched.recv() {
        if shared.window.is_stopped() {
            return;
        }
        shared.compute.add_waiting_in(watch.lap());
        let mut bad = Vec::new();
        let made = guarded("views", || {
            worker.make_or_replace(&place, outcome, &mut bad)
        });
        let made = made.unwrap_or_else(|panic| {
            // Its scratch memory may be half written.
            worker = Worker::new(shared);
            Err(panic)
        });
        let filling = made.map(|made| Filling {
            views: &worker.views,
            label: made.sample.label,
            sample: made.key.sample,
            key: made.sample.key,
        });
        // Before the batch may go out, so that the counters never lag behind the batches.
        shared.compute.count_item();
        shared.window.fill(&place, filling, bad);
        shared.compute.add_busy(watch.lap());
    }
}

/// What one thread keeps from sample to sample.
struct Worker<'a> {
    shared: &'a Shared,
    decoder: JpegDecoder,
    pictures: [Rgb8Image; 2],
    renderer: Renderer,
    /// Views of the sample in hand, `[V, S, S, 3]`.
    views: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            decoder: JpegDecoder::new(),
            pictures: [Rgb8Image::default(), Rgb8Image::default()],
            renderer: shared.views.renderer(),
            views: vec![0; shared.views.sample_bytes()],
        }
    }

    /// Makes the views of what was fetched for `place`, or of the first good sample of its substitutes; `bad` gets the
    /// samples that were replaced.
    fn make_or_replace(
        &mut self,
        place: &Place,
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
            match outcome.and_then(|fetched| self.make(&fetched).map(|()| fetched)) {
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
            outcome = fetch(
                shared,
                SampleKey {
                    seed: shared.seed,
                    epoch,
                    sample,
                },
            );
        }
        Err(Error::TooManyBad {
            found: bad.len() as u64,
            limit: MAX_SUBSTITUTES as u64,
            named: name_some(bad.iter()),
        })
    }

    fn make(&mut self, fetched: &Fetched) -> Result<(), Trouble> {
        let bad = |reason: String| Trouble::Bad {
            key: Some(fetched.sample.key.clone()),
            reason,
        };
        let mut watch = Stopwatch::start();
        let pages = fetched.pages.as_slice();
        for (page, picture) in pages.iter().zip(&mut self.pictures) {
            decode_into(&mut self.decoder, page, picture)
                .map_err(|error| bad(error.to_string()))?;
        }
        self.shared.decode.add(watch.lap());
        let pictures = &self.pictures[..pages.len()];
        self.shared
            .views
            .render(fetched.key, pictures, &mut self.renderer, &mut self.views)
            .map_err(|error| bad(error.to_string()))?;
        self.shared.render.add(watch.lap());
        Ok(())
    }
}

/// Decodes into a picture whose memory is reused where the format allows it.
fn decode_into(
    decoder: &mut JpegDecoder,
    page: &[u8],
    picture: &mut Rgb8Image,
) -> Result<(), CodecError> {
    if ImageFormat::guess(page) == Some(ImageFormat::Jpeg) {
        return decoder.decode_into(page, picture);
    }
    *picture = codec::decode_rgb8(page)?;
    Ok(())
}

/// Names of the first bad samples with their reasons.
pub(super) fn name_some<'a>(bad: impl IntoIterator<Item = &'a BadSample>) -> Vec<String> {
    bad.into_iter()
        .take(10)
        .map(|bad| format!("{}: {}", bad.key, bad.reason))
        .collect()
}
