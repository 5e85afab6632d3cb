//! Views of partly decoded pictures against the plain way: decode the whole, then cut.

use std::sync::Arc;

use bytes::Bytes;
use pipeline::codec::{PicturePart, Rgb8Image, decode_rgb8, encode_rgb8};
use pipeline::config::{DataConfig, DecodeKind, Interpolation, Strategy, ViewsKind};
use pipeline::loader::{Batch, Loader, Pictures, Rank, Sample, Source};
use pipeline::views::{SampleKey, Views};

use crate::{SEED, at, config};

/// Pictures of many sizes; two frames a clip, or one.
struct Album {
    pages: Vec<[Bytes; 2]>,
    n_frames: u32,
}

impl Album {
    fn new(n: u32, n_frames: u32) -> Self {
        let page = |seed: u32, width: u32, height: u32| {
            let level = |at: u32| {
                let (x, y) = (at / 3 % width, at / 3 / width);
                let noise = (at + seed).wrapping_mul(2_654_435_761) >> 27;
                ((x * (at % 3 + 1) + y * (seed % 5 + 1)) % 220 + noise) as u8
            };
            let data = (0..width * height * 3).map(level).collect();
            let image = Rgb8Image {
                width,
                height,
                data,
            };
            Bytes::from(encode_rgb8(&image, 85 + (seed % 10) as u8).unwrap())
        };
        let pages = (0..n).map(|n| {
            let (width, height) = (20 + (n * 37 + 150) % 251, 20 + (n * 53 + 100) % 199);
            [0, 1].map(|frame| page(2 * n + frame, width, height))
        });
        Self {
            pages: pages.collect(),
            n_frames,
        }
    }
}

impl Source for Album {
    fn n_samples(&self) -> u64 {
        self.pages.len() as u64
    }

    fn holds_clips(&self) -> bool {
        self.n_frames > 1
    }
}

impl Pictures for Album {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        Ok(Sample {
            n_frames: self.n_frames,
            label: None,
            key: index.to_string().into(),
        })
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        Ok(self.pages[index as usize][frame as usize].clone())
    }
}

/// A sample's views from whole pictures.
fn plain(views: &Views, source: &Album, sample: u64) -> Vec<u8> {
    let key = SampleKey {
        seed: SEED,
        epoch: 0,
        sample,
    };
    let frames = views.frames(key, source.n_frames).unwrap();
    let pictures: Vec<PicturePart> = frames
        .as_slice()
        .iter()
        .map(|&frame| {
            let page = &source.pages[sample as usize][frame as usize];
            decode_rgb8(page).unwrap().into()
        })
        .collect();
    let (width, height) = pictures[0].size();
    let draw = views.draw(key, width, height);
    let mut out = vec![0; views.sample_bytes()];
    views
        .render(key, &draw, &pictures, &mut views.renderer(), &mut out)
        .unwrap();
    out
}

fn batch(source: &Arc<Album>, config: &DataConfig) -> (Batch, Loader) {
    let mut loader =
        Loader::from_source(source.clone(), config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
    (loader.next_batch().unwrap(), loader)
}

/// Samples whose views are not those of whole pictures.
fn differing(source: &Album, config: &DataConfig, batch: &Batch) -> Vec<u64> {
    let views = Views::new(config);
    let rows = batch.views.chunks(views.sample_bytes());
    let samples = batch.samples.iter().copied().zip(rows);
    samples
        .filter(|(sample, row)| plain(&views, source, *sample) != *row)
        .map(|(sample, _)| sample)
        .collect()
}

#[test]
fn views_are_those_of_whole_pictures() {
    let images = Arc::new(Album::new(60, 1));
    let clips = Arc::new(Album::new(60, 2));
    let base = DataConfig {
        size: 48,
        ..config(60)
    };
    let strategies = [
        Strategy::GlobalToLocal,
        Strategy::LocalToGlobal,
        Strategy::Random,
        Strategy::Same,
    ];
    for strategy in strategies {
        let config = DataConfig {
            strategy,
            ..base.clone()
        };
        let (batch, _) = batch(&images, &config);
        assert_eq!(differing(&images, &config, &batch), [0; 0], "{strategy:?}");
    }
    for (views, source) in [
        (ViewsKind::Single, &images),
        (ViewsKind::MultiView, &images),
        (ViewsKind::MultiView, &clips),
        (ViewsKind::FramePair, &clips),
    ] {
        let mut config = DataConfig {
            views,
            interpolation: Interpolation::Bicubic,
            ..base.clone()
        };
        config.augment_f2.jitter_p = 0.5;
        let (batch, _) = batch(source, &config);
        assert_eq!(differing(source, &config, &batch), [0; 0], "{views:?}");
    }
}

#[test]
fn fast_decoding_reduces_large_crops_alone_and_says_what_that_changes() {
    let images = Arc::new(Album::new(130, 1));
    let fast = |size| DataConfig {
        size,
        decode: DecodeKind::Fast,
        ..config(130)
    };
    let config = fast(30);
    let (batch, loader) = batch(&images, &config);
    let views = Views::new(&config);
    let is_reduced = |sample: &u64| {
        let key = SampleKey {
            seed: SEED,
            epoch: 0,
            sample: *sample,
        };
        let image = decode_rgb8(&images.pages[*sample as usize][0]).unwrap();
        views.reduction(&views.draw(key, image.width, image.height)) > 1
    };
    let mut differing = differing(&images, &config, &batch);
    differing.sort_unstable();
    let reduced: Vec<u64> = (0..130).filter(is_reduced).collect();
    assert!(
        reduced.len() > 20 && reduced.len() < 120,
        "{}",
        reduced.len()
    );
    assert_eq!(differing, reduced);

    let stats = loader.stats().reduced.unwrap();
    assert!(stats.items >= reduced.len() as u64);
    let compared = reduced.iter().filter(|sample| **sample % 64 == 0).count() as u64;
    assert!(compared > 0 && stats.compared >= compared);
    // Of the first batch and what was made ahead.
    let difference = stats.mean_difference.unwrap();
    assert!((0.1..10.0).contains(&difference), "{difference}");

    // No crop of these pictures is twice as large as a view of 150 px.
    let config = fast(150);
    let (batch, loader) = self::batch(&images, &config);
    assert_eq!(self::differing(&images, &config, &batch), [0; 0]);
    assert_eq!(loader.stats().reduced, None);
}
