//! Rates of decoding: `cargo bench -p pairquet-pipeline --bench decode -- [FOLDER OF JPEGS] [CLIP]`.
//!
//! Without arguments made pictures (short side 256) and a made clip are timed. Everything is in memory (the clip in the
//! page cache) before the clock starts; a row is the best of three passes.
// A bench has nobody to report to.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use pipeline::codec::{
    JpegDecoder, PartDecoder, PicturePart, Rgb8Image, VideoReader, decode_rgb8, encode_rgb8,
};
use pipeline::config::{DataConfig, DecodeKind, Strategy};
use pipeline::synth::{Scene, SynthKind, SynthOptions, write_clips};
use pipeline::views::{SampleKey, Views};

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let pictures = match arguments.first() {
        Some(folder) => read_jpegs(Path::new(folder)),
        None => made_jpegs(),
    };
    assert!(!pictures.is_empty(), "no JPEG files there");
    let mean_kib =
        pictures.iter().map(Vec::len).sum::<usize>() as f64 / pictures.len() as f64 / 1024.0;
    println!("{} JPEGs, mean {mean_kib:.1} KiB", pictures.len());

    let rate = best(pictures.len(), || {
        let (mut decoder, mut image) = (JpegDecoder::new(), Rgb8Image::default());
        for bytes in &pictures {
            decoder.decode_into(bytes, &mut image).unwrap();
            black_box(&image);
        }
    });
    report("decode, memory reused", 1, rate, mean_kib);
    let rate = best(pictures.len(), || {
        let mut decoder = PartDecoder::new();
        for bytes in &pictures {
            black_box(decoder.open(bytes).unwrap().size());
        }
    });
    report("header alone", 1, rate, mean_kib);
    let random = DataConfig {
        strategy: Strategy::Random,
        ..DataConfig::default()
    };
    let fast = DataConfig {
        decode: DecodeKind::Fast,
        ..DataConfig::default()
    };
    for (name, config) in [
        ("part for a crop pair", DataConfig::default()),
        ("the same, fast", fast),
        ("part for two crops", random),
    ] {
        let views = Views::new(&config);
        let rate = best(pictures.len(), || decode_parts(&views, &pictures));
        report(name, 1, rate, mean_kib);
    }
    let rate = best(pictures.len(), || {
        pictures
            .iter()
            .for_each(|bytes| drop(black_box(decode_rgb8(bytes).unwrap())))
    });
    report("decode, new memory", 1, rate, mean_kib);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rate = best(pictures.len() * n_threads, || {
        std::thread::scope(|scope| {
            for _ in 0..n_threads {
                scope.spawn(|| {
                    pictures
                        .iter()
                        .for_each(|bytes| drop(black_box(decode_rgb8(bytes).unwrap())))
                });
            }
        });
    });
    report("decode, new memory", n_threads, rate, mean_kib);
    let decoded: Vec<Rgb8Image> = pictures
        .iter()
        .take(64)
        .map(|bytes| decode_rgb8(bytes).unwrap())
        .collect();
    let rate = best(decoded.len(), || {
        decoded
            .iter()
            .for_each(|image| drop(black_box(encode_rgb8(image, 90).unwrap())))
    });
    report("encode, quality 90", 1, rate, mean_kib);

    let dir = tempfile::tempdir().unwrap();
    let clip = arguments.get(1).map_or_else(
        || made_clip(dir.path()),
        |path| Path::new(path).to_path_buf(),
    );
    let mut reader = VideoReader::open(&clip).unwrap();
    while reader.skip_frame().unwrap().is_some() {}
    let (n_frames, info) = (reader.n_frames() as usize, reader.info().clone());
    println!(
        "{n_frames} frames of {} x {}, {}",
        info.width, info.height, info.codec
    );
    let rate = best(n_frames, || {
        let mut reader = VideoReader::open(&clip).unwrap();
        while reader.skip_frame().unwrap().is_some() {}
    });
    println!("  {:<24} 1 thread  {rate:8.0} frames/s", "decode alone");
    let rate = best(n_frames, || {
        let (mut reader, mut image) = (VideoReader::open(&clip).unwrap(), Rgb8Image::default());
        while reader.read_into(&mut image).unwrap().is_some() {
            black_box(&image);
        }
    });
    println!("  {:<24} 1 thread  {rate:8.0} frames/s", "decode to RGB");
}

/// What the loader decodes of each picture: crops of a tenth to all of the area.
fn decode_parts(views: &Views, pictures: &[Vec<u8>]) {
    let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
    for (sample, bytes) in (0..).zip(pictures) {
        let key = SampleKey {
            seed: 1,
            epoch: 0,
            sample,
        };
        let picture = decoder.open(bytes).unwrap();
        let (width, height) = picture.size();
        let draw = views.draw(key, width, height);
        let reduction = views.reduction(&draw);
        picture
            .decode_part(draw.needed(), reduction, &mut part)
            .unwrap();
        black_box(&part);
    }
}

/// Items a second of the best of three passes.
fn best(n_items: usize, mut pass: impl FnMut()) -> f64 {
    let seconds = (0..3).map(|_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    });
    n_items as f64 / seconds.fold(f64::INFINITY, f64::min)
}

fn report(what: &str, n_threads: usize, rate: f64, mean_kib: f64) {
    let mib = rate * mean_kib / 1024.0;
    println!(
        "  {what:<24} {n_threads} thread{} {rate:8.0} images/s {mib:7.1} MiB/s",
        if n_threads == 1 { " " } else { "s" }
    );
}

fn read_jpegs(folder: &Path) -> Vec<Vec<u8>> {
    let files = walkdir::WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(Result::ok);
    let pictures = files
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| std::fs::read(entry.path()).unwrap());
    pictures
        .filter(|bytes| bytes.starts_with(&[0xff, 0xd8]))
        .take(1000)
        .collect()
}

fn made_jpegs() -> Vec<Vec<u8>> {
    let options = SynthOptions {
        size: 256,
        ..SynthOptions::default()
    };
    let made = (0..64).map(|index| {
        Scene::new(&options, SynthKind::Image, index % 24, index)
            .render(index)
            .image
    });
    made.map(|image| encode_rgb8(&image, 90).unwrap()).collect()
}

fn made_clip(dir: &Path) -> std::path::PathBuf {
    let options = SynthOptions {
        size: 240,
        n_classes: 1,
        clips_per_class: 1,
        frames: 120,
        ..SynthOptions::default()
    };
    write_clips(dir, &options).unwrap();
    let name = options.class_name(0);
    dir.join(&name).join(format!("{name}_000.mp4"))
}
