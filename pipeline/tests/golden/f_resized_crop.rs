//! Part f: resized crops and view pairs, pixel by pixel.

use pipeline::codec::Rgb8Image;
use pipeline::config::{Interpolation, Sampler, Strategy};
use pipeline::views::crop_pair::{CropPair, CropPairDraw, OtherCrop};
use pipeline::views::{CropBox, CropResizer, CropSampler, Mirror, Renderer};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::{Part, array, number, string, whole_numbers};

const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

#[test]
fn part_f() {
    let Some(part) = Part::open("f_resized_crop") else {
        return;
    };
    let crops = part.json("crops.json");
    let mut n_cases = 0;
    for file in part.files() {
        n_cases += match string(&file["file"]) {
            "crops.json" => {
                array(&crops["crops"])
                    .iter()
                    .map(|crop| resized_crops(&part, crop))
                    .sum::<usize>()
                    + array(&crops["global_to_local"])
                        .iter()
                        .map(|pair| view_pair(&part, pair))
                        .sum::<usize>()
            }
            name if name.ends_with(".safetensors") => view_tensors(&part, file, &crops),
            // Sources and expected pictures, all named in crops.json.
            name if name.ends_with(".png") => 0,
            other => panic!("part f lists {other}, which this test does not understand"),
        };
    }
    println!("golden part f_resized_crop: {n_cases} cases");
    assert!(n_cases > 0, "part f lists no cases");
}

/// How far a picture may lie from the expected one.
struct Tolerance {
    /// Levels.
    within: u8,
    /// Share of values that must be.
    share: f64,
}

/// Crops of one box of one source, each expected output a case.
fn resized_crops(part: &Part, crop: &Value) -> usize {
    let source = read_png(part, string(&crop["source"]));
    let crop_box = to_box(&crop["box_top_left_height_width"]);
    let outputs = crop["outputs"].as_object().unwrap().iter();
    let mut n_cases = 0;
    for (path, output) in outputs {
        // Outputs without a file tell how the reference's own paths differ.
        let Some(file) = output.get("file").map(string) else {
            continue;
        };
        let expected = read_png(part, file);
        let (interpolation, tolerance) = resize_path(path);
        let mut out = vec![0; expected.data.len()];
        CropResizer::new()
            .resize_crop(
                (&source).into(),
                crop_box,
                expected.width,
                expected.height,
                interpolation,
                &mut out,
            )
            .unwrap();
        assert_close(&out, &expected.data, &tolerance, file);
        n_cases += 1;
    }
    n_cases
}

/// Filter and tolerance of one of the reference's ways to resize.
fn resize_path(name: &str) -> (Interpolation, Tolerance) {
    match name {
        "pil_bilinear" => (
            Interpolation::Bilinear,
            Tolerance {
                within: 1,
                share: 1.0,
            },
        ),
        "pil_bicubic" => (
            Interpolation::Bicubic,
            Tolerance {
                within: 1,
                share: 0.999,
            },
        ),
        // torch resamples in floats, up to a level from Pillow, whom we follow; its bicubic overshoots are not clipped
        // between the passes.
        "tensor_v1_bilinear" | "tensor_v2_bilinear" => (Interpolation::Bilinear, TENSOR),
        "tensor_v1_bicubic" | "tensor_v2_bicubic" => (
            Interpolation::Bicubic,
            Tolerance {
                within: 1,
                share: 0.99,
            },
        ),
        other => panic!("a crop by {other} is not understood"),
    }
}

/// A global view, and a local view cut out of it.
fn view_pair(part: &Part, pair: &Value) -> usize {
    let name = string(&pair["local_view"]);
    let expected =
        [&pair["global_view"], &pair["local_view"]].map(|file| read_png(part, string(file)));
    let views = render_pair(part, pair, expected[0].width, [false, false]);
    assert_close(
        &views[0],
        &expected[0].data,
        &GLOBAL,
        string(&pair["global_view"]),
    );
    assert_close(&views[1], &expected[1].data, &LOCAL, name);

    // From the reference's own global view, the local one is as close as any crop.
    let mut out = vec![0; expected[1].data.len()];
    let (size, local) = (expected[1].width, to_box(&pair["local_box_in_global_view"]));
    let mut renderer = Renderer::new(size, Interpolation::Bilinear);
    renderer
        .cut((&expected[0]).into(), local, Mirror::default(), &mut out)
        .unwrap();
    assert_close(&out, &expected[1].data, &GLOBAL, name);
    1
}

const GLOBAL: Tolerance = Tolerance {
    within: 1,
    share: 1.0,
};

/// A level between torch and Pillow, and one between Pillow and us.
const TENSOR: Tolerance = Tolerance {
    within: 2,
    share: 1.0,
};

/// A level from the global view and one from the resize that enlarges it.
const LOCAL: Tolerance = Tolerance {
    within: 2,
    share: 1.0,
};

/// Both views of a `global_to_local` entry, as the loader cuts them.
fn render_pair(part: &Part, pair: &Value, size: u32, flip: [bool; 2]) -> [Vec<u8>; 2] {
    let source = read_png(part, string(&pair["source"]));
    let sampler = CropSampler {
        sampler: Sampler::Torchvision,
        area: [0.1, 1.0],
        aspect: [0.75, 4.0 / 3.0],
    };
    let views = CropPair {
        strategy: Strategy::GlobalToLocal,
        global: sampler,
        local: sampler,
        flip_p: 0.5,
    };
    let draw = CropPairDraw {
        global: to_box(&pair["global_box"]),
        other: OtherCrop::InGlobalView(to_box(&pair["local_box_in_global_view"])),
        flip,
    };
    let mut renderer = Renderer::new(size, Interpolation::Bilinear);
    let mut out = [(); 2].map(|()| vec![0; size as usize * size as usize * 3]);
    let [f1, f2] = &mut out;
    views
        .render(&draw, (&source).into(), &mut renderer, f1, f2)
        .unwrap();
    out
}

/// Tensors made of the pairs of crops.json, and SiamMAE's pair of frames.
fn view_tensors(part: &Part, file: &Value, crops: &Value) -> usize {
    let bytes = part.bytes(string(&file["file"]));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let about = file["tensors"].as_object().unwrap();
    let find_pair = |stem: &str| {
        let is_named = |pair: &&Value| string(&pair["global_view"]) == format!("{stem}_global.png");
        let pair = array(&crops["global_to_local"]).iter().find(is_named);
        pair.unwrap_or_else(|| panic!("crops.json has no pair {stem}"))
    };
    for (name, about) in about {
        let values = Levels::read(&tensors, name);
        let meaning = string(&about["meaning"]);
        match name.split_once('.') {
            Some((stem, "merged")) => {
                let views = render_pair(part, find_pair(stem), values.size(), [false, false]);
                assert_close(&views[0], &values.view(0), &GLOBAL, name);
                assert_close(&views[1], &values.view(1), &LOCAL, name);
            }
            Some((stem, "local_flipped_row0")) => {
                let views = render_pair(part, find_pair(stem), values.size(), [false, true]);
                let row = values.size() as usize * 3;
                assert_close(&views[1][..row], &values.view(0), &LOCAL, name);
            }
            Some(("siam", frame)) => {
                let source = string(&array(&crops["crops"])[0]["source"]);
                let views = siam_frames(&read_png(part, source), file);
                let which = match frame {
                    "out_u8_frame1" => 0,
                    "out_u8_frame2" => 1,
                    other => panic!("tensor siam.{other} is not understood"),
                };
                assert_close(&views[which], &values.view(0), &TENSOR, name);
            }
            None if name == "views_u8" => {
                for pair in 0..values.shape[0] {
                    let views = render_pair(
                        part,
                        find_pair(&format!("g2l{pair}")),
                        values.size(),
                        [false, false],
                    );
                    assert_close(&views[0], &values.view(2 * pair), &GLOBAL, name);
                    assert_close(&views[1], &values.view(2 * pair + 1), &LOCAL, name);
                }
            }
            _ => panic!("tensor {name} ({meaning}) is not understood"),
        }
    }
    about.len()
}

/// The two frames of SiamMAE's case: the source and the source rolled, both cropped by the box that the first tensor's
/// text gives.
fn siam_frames(source: &Rgb8Image, file: &Value) -> [Vec<u8>; 2] {
    let text = |name: &str| string(&file["tensors"][name]["meaning"]);
    let (_, after) = text("siam.out_u8_frame1").split_once("= [").unwrap();
    let numbers = whole_numbers(after.split_once(']').unwrap().0);
    let [top, left, height, width] = numbers.try_into().unwrap();
    let crop = CropBox {
        x: left as u32,
        y: top as u32,
        width: width as u32,
        height: height as u32,
    };
    let (_, after) = text("siam.out_u8_frame2")
        .split_once("rolled by (")
        .unwrap();
    let roll = whole_numbers(after.split_once(')').unwrap().0);
    let size = number(&file["tensors"]["siam.out_u8_frame1"]["shape"][0]) as u32;
    [source.clone(), rolled(source, roll[0], roll[1])].map(|frame| {
        let mut out = vec![0; size as usize * size as usize * 3];
        Renderer::new(size, Interpolation::Bilinear)
            .cut((&frame).into(), crop, Mirror::default(), &mut out)
            .unwrap();
        out
    })
}

/// The picture moved down and right, what leaves it coming in on the other side.
fn rolled(picture: &Rgb8Image, rows: i64, columns: i64) -> Rgb8Image {
    let (width, height) = (i64::from(picture.width), i64::from(picture.height));
    let mut data = Vec::with_capacity(picture.data.len());
    for y in 0..height {
        for x in 0..width {
            let from = ((y - rows).rem_euclid(height) * width + (x - columns).rem_euclid(width))
                as usize
                * 3;
            data.extend_from_slice(&picture.data[from..from + 3]);
        }
    }
    Rgb8Image {
        width: picture.width,
        height: picture.height,
        data,
    }
}

/// A tensor of views as 8-bit levels, whatever its type and layout.
struct Levels {
    shape: Vec<usize>,
    channels_first: bool,
    levels: Vec<u8>,
}

impl Levels {
    fn read(tensors: &SafeTensors<'_>, name: &str) -> Levels {
        let tensor = tensors.tensor(name).unwrap();
        let shape = tensor.shape().to_vec();
        let channels_first = shape.last() != Some(&3);
        // Pixels of a channel, for tensors of channels first.
        let plane: usize = match shape.as_slice() {
            [.., 3, height, width] if shape.len() > 2 => height * width,
            [3, width] => *width,
            _ => 1,
        };
        let level = |at: usize, value: f64| {
            let channel = at / plane % 3;
            ((value * STD[channel] + MEAN[channel]) * 255.0).round() as u8
        };
        let data = tensor.data();
        let levels = match tensor.dtype() {
            Dtype::U8 => data.to_vec(),
            Dtype::F16 => {
                let halves = data
                    .chunks_exact(2)
                    .map(|b| from_half(u16::from_le_bytes([b[0], b[1]])));
                halves
                    .enumerate()
                    .map(|(at, value)| level(at, value))
                    .collect()
            }
            Dtype::F32 => {
                let floats = data
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                floats
                    .enumerate()
                    .map(|(at, value)| level(at, f64::from(value)))
                    .collect()
            }
            other => panic!("{name}: {other:?} is not understood"),
        };
        Levels {
            shape,
            channels_first,
            levels,
        }
    }

    /// Width of a view in px.
    fn size(&self) -> u32 {
        let from_end = if self.channels_first { 1 } else { 2 };
        self.shape[self.shape.len() - from_end] as u32
    }

    /// View `at` with its channels last.
    fn view(&self, at: usize) -> Vec<u8> {
        let n_leading = self.shape.len().saturating_sub(3);
        let n_views: usize = self.shape[..n_leading].iter().product();
        let bytes = self.levels.len() / n_views;
        let view = &self.levels[at * bytes..(at + 1) * bytes];
        if !self.channels_first {
            return view.to_vec();
        }
        let plane = bytes / 3;
        (0..plane)
            .flat_map(|pixel| (0..3).map(move |c| view[c * plane + pixel]))
            .collect()
    }
}

fn from_half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    sign * if exponent == 0 {
        fraction * 2f64.powi(-14)
    } else {
        (1.0 + fraction) * 2f64.powi(exponent - 15)
    }
}

/// A list of top, left, height, width.
fn to_box(value: &Value) -> CropBox {
    let [y, x, height, width] = array(value)
        .iter()
        .map(|v| number(v) as u32)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    CropBox {
        x,
        y,
        width,
        height,
    }
}

fn assert_close(ours: &[u8], expected: &[u8], tolerance: &Tolerance, name: &str) {
    assert_eq!(ours.len(), expected.len(), "{name}: number of values");
    let differences = || ours.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let within =
        differences().filter(|&d| d <= tolerance.within).count() as f64 / ours.len() as f64;
    let largest = differences().max().unwrap_or(0);
    assert!(
        within >= tolerance.share,
        "{name}: {:.3} % of values within {} levels, expected {:.1} %; the largest difference is {largest}",
        within * 100.0,
        tolerance.within,
        tolerance.share * 100.0,
    );
    if std::env::var_os("PAIRQUET_GOLDEN_SHOW").is_some() {
        println!(
            "{name}: {:.4} % within {}, at most {largest}",
            within * 100.0,
            tolerance.within
        );
    }
}

fn read_png(part: &Part, name: &str) -> Rgb8Image {
    let bytes = part.bytes(name);
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    data.truncate(info.buffer_size());
    let data = match info.color_type {
        png::ColorType::Rgb => data,
        png::ColorType::Grayscale => data.iter().flat_map(|&v| [v; 3]).collect(),
        png::ColorType::Rgba => data
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        other => panic!("{name}: {other:?} is not understood"),
    };
    Rgb8Image {
        width: info.width,
        height: info.height,
        data,
    }
}
