//! Time of the views alone, on decoded pictures: what a pair costs beyond its decoding.
//!
//! `cargo bench -p pairquet-pipeline --bench crop_pair`. Pictures of 500x375 and of 341x256 px, one thread; the ceiling
//! is a copy of as many bytes as the views have. The last row is a library's resize in place of ours.

use std::hint::black_box;
use std::time::Instant;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use pipeline::codec::{PicturePart, Rgb8Image};
use pipeline::config::{AugmentConfig, DataConfig, Interpolation, Strategy, ViewsKind};
use pipeline::views::{SampleKey, Views};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const N_PAIRS: u64 = 400;

/// The best of so many rounds counts: other programs only ever add to the time.
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    let pair = |strategy| DataConfig {
        strategy,
        ..DataConfig::default()
    };
    let kind = |views| DataConfig {
        views,
        ..DataConfig::default()
    };
    let bicubic = DataConfig {
        interpolation: Interpolation::Bicubic,
        ..DataConfig::default()
    };
    let all = AugmentConfig {
        jitter_p: 1.0,
        grayscale_p: 1.0,
        blur_p: 1.0,
        ..AugmentConfig::default()
    };
    let cases = [
        ("crop pair, global to local", pair(Strategy::GlobalToLocal)),
        ("crop pair, random", pair(Strategy::Random)),
        ("crop pair, same", pair(Strategy::Same)),
        ("crop pair, bicubic", bicubic),
        ("frame pair", kind(ViewsKind::FramePair)),
        ("single", kind(ViewsKind::Single)),
        ("multi-view", kind(ViewsKind::MultiView)),
        (
            "multi-view, all colours",
            DataConfig {
                augment_f1: all,
                augment_f2: all,
                ..kind(ViewsKind::MultiView)
            },
        ),
    ];
    for (width, height) in [(500, 375), (341, 256)] {
        let pictures = [1, 2].map(|seed| PicturePart::from(noise(width, height, seed)));
        println!("{width}x{height} px to 224 px, 1 thread");
        for (name, config) in &cases {
            time(name, config, &pictures)?;
        }
        time_library(&pictures[0])?;
    }
    let from = vec![1u8; 2 * 224 * 224 * 3];
    let mut to = from.clone();
    print_best("ceiling: a copy of both views", |_| {
        to.copy_from_slice(black_box(&from));
        black_box(&to);
        Ok(())
    })
}

fn time(name: &str, config: &DataConfig, pictures: &[PicturePart]) -> Result<()> {
    let views = Views::new(config);
    let needed = if views.needs_clips() {
        pictures
    } else {
        &pictures[..1]
    };
    let mut renderer = views.renderer();
    let mut out = vec![0; views.sample_bytes()];
    print_best(name, |key| {
        let (width, height) = needed[0].size();
        let draw = views.draw(key, width, height);
        Ok(views.render(key, &draw, needed, &mut renderer, black_box(&mut out))?)
    })
}

/// The crop of a single view by `fast_image_resize`, of which the own resampling has the bytes.
fn time_library(picture: &PicturePart) -> Result<()> {
    let config = DataConfig {
        views: ViewsKind::Single,
        ..DataConfig::default()
    };
    let views = Views::new(&config);
    let (width, height) = picture.size();
    let source = TypedImageRef::<U8x3>::from_buffer(width, height, picture.pixels())?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    let (mut resizer, mut out) = (Resizer::new(), vec![0; views.sample_bytes()]);
    print_best("single, fast_image_resize", |key| {
        let crop = views.draw(key, width, height).needed();
        let cropped =
            TypedCroppedImage::from_ref(&source, crop.x, crop.y, crop.width, crop.height)?;
        let mut target =
            TypedImage::<U8x3>::from_buffer(config.size, config.size, black_box(&mut out))?;
        Ok(resizer.resize_typed(&cropped, &mut target, &options)?)
    })
}

fn print_best(name: &str, mut make: impl FnMut(SampleKey) -> Result<()>) -> Result<()> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for sample in 0..N_PAIRS {
            make(SampleKey {
                seed: 1,
                epoch: 0,
                sample,
            })?;
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (micros, rate) = (1e6 * best / N_PAIRS as f64, N_PAIRS as f64 / best);
    println!("  {name:<30} {micros:8.1} us a sample {rate:10.0} samples/s");
    Ok(())
}

fn noise(width: u32, height: u32, seed: u32) -> Rgb8Image {
    let level = |at: u32| (at.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 24) as u8;
    Rgb8Image {
        width,
        height,
        data: (0..width * height * 3).map(level).collect(),
    }
}
