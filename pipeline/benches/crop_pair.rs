//! Time of the views alone, on decoded pictures: what a pair costs beyond its decoding.
//!
//! `cargo bench -p pairquet-pipeline --bench crop_pair`. Pictures of 500x375 and of 341x256 px, one thread; the ceiling
//! is a copy of as many bytes as the views have.

use std::hint::black_box;
use std::time::Instant;

use pipeline::codec::{PicturePart, Rgb8Image};
use pipeline::config::{AugmentConfig, DataConfig, Interpolation, Strategy, ViewsKind};
use pipeline::views::{SampleKey, Views};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const N_PAIRS: u64 = 2000;

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
    }
    let from = vec![1u8; 2 * 224 * 224 * 3];
    let mut to = from.clone();
    let start = Instant::now();
    for _ in 0..N_PAIRS {
        to.copy_from_slice(black_box(&from));
        black_box(&to);
    }
    print_rate("ceiling: a copy of both views", start);
    Ok(())
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
    let start = Instant::now();
    for sample in 0..N_PAIRS {
        let key = SampleKey {
            seed: 1,
            epoch: 0,
            sample,
        };
        let (width, height) = needed[0].size();
        let draw = views.draw(key, width, height);
        views.render(key, &draw, needed, &mut renderer, black_box(&mut out))?;
    }
    print_rate(name, start);
    Ok(())
}

fn print_rate(name: &str, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let (micros, rate) = (1e6 * seconds / N_PAIRS as f64, N_PAIRS as f64 / seconds);
    println!("  {name:<30} {micros:8.1} us a sample {rate:10.0} samples/s");
}

fn noise(width: u32, height: u32, seed: u32) -> Rgb8Image {
    let level = |at: u32| (at.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 24) as u8;
    Rgb8Image {
        width,
        height,
        data: (0..width * height * 3).map(level).collect(),
    }
}
