//! Real pictures and clips, odd and broken ones among them, against what Pillow and PyAV make of them.
//!
//! The files are not part of the repository: they are looked for in `PAIRQUET_SHARED_DIR` (default `../shared` beside the
//! workspace). Without them the tests say so and pass.

// Helpers of tests are outside of test functions to clippy.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pipeline::codec::{
    CodecError, CropBox, PartDecoder, PicturePart, Rgb8Image, VideoReader, decode_rgb8, probe,
};
use pipeline::rng::{Purpose, SampleRng};
use serde_json::Value;

fn data_dir(name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("PAIRQUET_SHARED_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let dir = shared.join("data").join(name);
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!(
        "SKIPPED: no folder {}; set PAIRQUET_SHARED_DIR",
        dir.display()
    );
    None
}

fn files_in(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

#[test]
fn odd_pictures_are_what_pillow_reads() {
    let Some(dir) = data_dir("imagenet_odd") else {
        return;
    };
    let (mut n_equal, mut refused) = (0, Vec::new());
    for path in files_in(&dir, "JPEG") {
        let bytes = fs::read(&path).unwrap();
        let expected = path.with_extension("JPEG.expected.png");
        if !expected.exists() {
            refused.push((
                path.file_stem().unwrap().to_string_lossy().into_owned(),
                decode_rgb8(&bytes).unwrap_err(),
            ));
            continue;
        }
        let expected = decode_rgb8(&fs::read(expected).unwrap()).unwrap();
        let found = decode_rgb8(&bytes).unwrap();
        assert!(
            found == expected,
            "{} differs from Pillow's",
            path.display()
        );
        let info = probe(&bytes).unwrap();
        assert_eq!((info.width, info.height), (expected.width, expected.height));
        n_equal += 1;
    }
    assert_eq!(n_equal, 7);
    let names: Vec<&str> = refused.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["empty", "not_an_image", "truncated"]);
    assert!(matches!(refused[0].1, CodecError::Empty));
    assert!(matches!(refused[1].1, CodecError::UnknownFormat { .. }));
    assert!(matches!(refused[2].1, CodecError::Truncated { .. }));
}

#[test]
fn parts_of_real_pictures_are_parts_of_what_pillow_reads() {
    let (mut decoder, mut part) = (PartDecoder::new(), PicturePart::default());
    let mut n_parts = 0;
    for name in ["imagenet", "imagenet_odd"] {
        let Some(dir) = data_dir(name) else {
            return;
        };
        for (n, path) in jpegs_below(&dir).into_iter().enumerate() {
            let bytes = fs::read(&path).unwrap();
            let Ok(whole) = decode_rgb8(&bytes) else {
                assert!(decoder.open(&bytes).is_err() || name == "imagenet_odd");
                continue;
            };
            for sample in 0..4 {
                let mut rng = SampleRng::new(n as u64, 0, sample, Purpose::Crop);
                let mut along = |side: u32| {
                    let len = 1 + rng.below(u64::from(side)) as u32;
                    (rng.below(u64::from(side - len) + 1) as u32, len)
                };
                let ((x, width), (y, height)) = (along(whole.width), along(whole.height));
                let crop = CropBox {
                    x,
                    y,
                    width,
                    height,
                };
                let picture = decoder.open(&bytes).unwrap();
                picture.decode_part(crop, 1, &mut part).unwrap();
                let at = part.locate(crop);
                let row = |data: &[u8], stride: u32, x: u32, y: u32| {
                    let from = (y as usize * stride as usize + x as usize) * 3;
                    data[from..from + width as usize * 3].to_vec()
                };
                let is_equal = (0..height).all(|line| {
                    row(part.pixels(), part.pixels_size().0, at.x, at.y + line)
                        == row(&whole.data, whole.width, x, y + line)
                });
                assert!(is_equal, "{}: {crop:?}", path.display());
                n_parts += 1;
            }
        }
    }
    assert!(n_parts > 400, "{n_parts}");
}

fn jpegs_below(dir: &Path) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter();
    let paths = files.map(|entry| entry.unwrap().into_path());
    paths
        .filter(|path| path.extension().is_some_and(|found| found == "JPEG"))
        .take(300)
        .collect()
}

/// Reduces to 32 x 32 by averaging, as Pillow's `resize((32, 32), BOX)`.
fn thumbnail(image: &Rgb8Image) -> Vec<u8> {
    const SIDE: usize = 32;
    let (width, height) = (image.width as usize, image.height as usize);
    let spans = |size: usize| -> Vec<Range<usize>> {
        let scale = size as f64 / SIDE as f64;
        let support = scale.max(1.0) * 0.5;
        let span = |i: usize| {
            let centre = (i as f64 + 0.5) * scale;
            ((centre - support + 0.5).max(0.0) as usize)
                ..((centre + support + 0.5) as usize).min(size)
        };
        (0..SIDE).map(span).collect()
    };
    let mean = |sum: usize, n: usize| ((sum + n / 2) / n) as u8;
    let columns = spans(width);
    let mut narrow = Vec::with_capacity(height * SIDE * 3);
    for row in image.data.chunks_exact(width * 3) {
        for span in &columns {
            narrow.extend((0..3).map(|c| {
                mean(
                    span.clone().map(|x| usize::from(row[x * 3 + c])).sum(),
                    span.len(),
                )
            }));
        }
    }
    let mut out = Vec::with_capacity(SIDE * SIDE * 3);
    for span in spans(height) {
        out.extend((0..SIDE * 3).map(|i| {
            mean(
                span.clone()
                    .map(|y| usize::from(narrow[y * SIDE * 3 + i]))
                    .sum(),
                span.len(),
            )
        }));
    }
    out
}

/// Thumbnails `[k, 32, 32, 3]` by name, from a safetensors file.
fn thumbnails(path: &Path) -> HashMap<String, Vec<Vec<u8>>> {
    let bytes = fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> =
        serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offset = |entry: &Value, i: usize| {
        8 + header_len + entry["data_offsets"][i].as_u64().unwrap() as usize
    };
    header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, entry)| {
            let data = &bytes[offset(entry, 0)..offset(entry, 1)];
            (
                name.clone(),
                data.chunks_exact(32 * 32 * 3).map(<[u8]>::to_vec).collect(),
            )
        })
        .collect()
}

fn mean_abs_difference(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(a.abs_diff(*b)))
        .sum::<f64>()
        / a.len() as f64
}

/// One clip against its entry of the index; what is wrong with it, if anything.
fn check_clip(
    dir: &Path,
    entry: &Value,
    thumbs: &HashMap<String, Vec<Vec<u8>>>,
) -> Result<(), String> {
    let file = entry["file"].as_str().unwrap();
    let opened = VideoReader::open(&dir.join(file));
    if entry.get("open_error").is_some() {
        return match opened {
            Err(error) if error.to_string().len() > 15 || error == CodecError::Empty => Ok(()),
            Err(error) => Err(format!("says only {error}")),
            Ok(_) => Err("opened".to_owned()),
        };
    }
    let mut reader = opened.map_err(|error| error.to_string())?;
    let wanted: Vec<u64> = entry["thumb_index"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i.as_u64().unwrap())
        .collect();
    let times = entry["thumb_time"].as_array().unwrap();
    // Rotated files: PyAV's thumbnails are not turned, decord's are.
    let is_rotated = entry["rotation_degrees"].as_i64() != Some(0);
    let truth = &thumbs[&format!("{}/{file}", if is_rotated { "decord" } else { "pyav" })];
    let mut image = Rgb8Image::default();
    let mut n_frames = 0;
    loop {
        let wanted = wanted.iter().position(|&index| index == n_frames);
        let time_us = if wanted.is_some() {
            reader.read_into(&mut image)
        } else {
            reader.skip_frame()
        };
        let Some(time_us) = time_us.map_err(|error| error.to_string())? else {
            break;
        };
        if let Some(k) = wanted {
            let difference = mean_abs_difference(&thumbnail(&image), &truth[k]);
            if difference > most_levels(file) {
                return Err(format!(
                    "frame {n_frames} differs by {difference:.2} levels"
                ));
            }
            let expected_us = times[k].as_f64().map_or(time_us as f64, |time| time * 1e6);
            if (time_us as f64 - expected_us).abs() > 1.0 {
                return Err(format!(
                    "frame {n_frames} at {time_us} us, expected {expected_us}"
                ));
            }
        }
        n_frames += 1;
    }
    if Some(n_frames) != entry["frames_decoded"].as_u64() {
        return Err(format!(
            "{n_frames} frames, expected {}",
            entry["frames_decoded"]
        ));
    }
    // FFmpeg takes the end of a cut Matroska file for the end of the clip, so the index has no error of it.
    let is_cut = file == "broken/truncated.mkv";
    if reader.damage().is_some() != (is_cut || entry.get("decode_error").is_some()) {
        return Err(format!(
            "damage {:?}, expected {:?}",
            reader.damage(),
            entry.get("decode_error")
        ));
    }
    Ok(())
}

/// Mean difference of a thumbnail from PyAV's that still is the same frame. PyAV brings a newer FFmpeg: it interpolates
/// the chroma of 10-bit frames and guesses the lost parts of damaged ones differently. Elsewhere
/// only the averaging rounds differently.
fn most_levels(file: &str) -> f64 {
    if file.contains("10bits") || file.starts_with("broken/") {
        4.0
    } else {
        0.5
    }
}

#[test]
fn frame_k_is_frame_k_of_every_clip() {
    let Some(dir) = data_dir("videos") else {
        return;
    };
    let index: Vec<Value> =
        serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let thumbs = thumbnails(&dir.join("thumbnails.safetensors"));
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(entry) = index.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(reason) = check_clip(&dir, entry, &thumbs) {
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("{}: {reason}", entry["file"]));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {} clips\n{}",
        wrong.len(),
        index.len(),
        wrong.join("\n")
    );
    assert!(index.len() >= 45);
}
