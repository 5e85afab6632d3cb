//! Part g: label propagation through the reference's own code, for DAVIS, VIP and JHMDB.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use pipeline::Stop;
use serde_json::Value;
use trainer::eval::davis::{
    DavisSettings, LabelOrder, Measures, Predicted, Sequence, carry, measure, read_truth,
    score_sequence, truth_objects,
};
use trainer::eval::encoder::FrozenEncoder;
use trainer::eval::frames::{
    FrameFilter, FramePicture, InputSize, LabelFilter, LabelMap, first_labels,
};
use trainer::eval::jhmdb::{self, JhmdbScores, JhmdbSettings, THRESHOLDS};
use trainer::eval::propagate::{Propagation, Propagator};
use trainer::eval::results::DataHash;
use trainer::eval::run::Scores;
use trainer::eval::sampling::{Size, resize_nearest};
use trainer::eval::video::{Canvas, Input, Worker};
use trainer::eval::vip;
use trainer::models::ModelConfig;

use crate::davis_metrics::global_numbers;
use crate::support::{ACTIVATION, Report, Tensors, files, part, root, shared_data, values};

const PART: &str = "g_label_propagation";

/// Labels that are stored as half floats, in [0, 1].
const HALF: f64 = 1e-3;

/// Labels of features that are the reference's own to the bit.
const SOFT: f64 = 2e-5;

/// Neighbours are compared where the last one is better than the next by this much, in similarity over temperature: what
/// rounding can turn round is below it.
const MARGIN: f64 = 2e-6;

#[test]
fn part_g_label_propagation() {
    let folder = root().join(PART);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        part(PART); // says aloud that it is skipped
        return;
    };
    let mut cases: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    cases.sort();
    let mut report = Report::default();
    for case in cases {
        let (folder, manifest) = part(&format!("{PART}/{case}")).expect("a case has a manifest");
        for (file, entry) in files(&manifest) {
            match file.as_str() {
                _ if file.ends_with(".safetensors") => {
                    let loaded = Case::read(&case, &folder, &file, entry, &mut report);
                    match case.split('_').next() {
                        Some("davis") => davis(loaded, &mut report),
                        Some("vip") => vip_case(loaded, &mut report),
                        Some("jhmdb") => jhmdb_case(loaded, &mut report),
                        _ => report
                            .fail(format!("{case}: a case that this test does not understand")),
                    }
                }
                "masks/<sequence>/<frame>.png"
                | "raw_<video>_<t>_mask.png"
                | "Predicted/<video>/<frame>_mask.png"
                | "Images/ Annotations/"
                | "Rename_Images/ joint_positions/ jhmdb_list.txt" => {} // read by the cases
                _ => report.fail(format!(
                    "{case}/{file}: a case that this test does not understand"
                )),
            }
        }
    }
    report.finish(PART);
}

struct Case<'a> {
    name: String,
    folder: PathBuf,
    meta: &'a Value,
    tensors: Tensors,
    encoder: FrozenEncoder,
    propagation: Propagation,
    input: Input,
    stop: Stop,
}

impl<'a> Case<'a> {
    fn read(name: &str, folder: &Path, file: &str, entry: &'a Value, report: &mut Report) -> Self {
        let meta = &entry["meta"];
        let mut tensors = Tensors::read(&folder.join(file), entry, report);
        let number = |what: &str| meta[what].as_u64().map(|n| n as usize);
        let parameters: trainer::exchange::Tensors =
            tensors.take_prefixed("enc.").into_iter().collect();
        let grid = (parameters["pos_embed"].dim(1).unwrap() - 1).isqrt();
        let model = ModelConfig {
            img_size: Some(grid * number("patch").unwrap()),
            patch_size: number("patch"),
            embed_dim: number("embed_dim"),
            depth: number("depth"),
            num_heads: number("heads"),
            ..ModelConfig::default()
        };
        let encoder = FrozenEncoder::new(&model, &parameters, &Device::Cpu).unwrap();
        let sides: Vec<usize> = meta["crop_size"]
            .as_array()
            .unwrap()
            .iter()
            .map(|side| side.as_u64().unwrap() as usize)
            .collect();
        let size = match sides[..] {
            [long] => InputSize::LongSide(long),
            [height, width] => InputSize::Exactly(Size { height, width }),
            _ => panic!("{name}: crop_size {sides:?} is not understood"),
        };
        Case {
            name: name.to_owned(),
            folder: folder.to_owned(),
            meta,
            tensors,
            encoder,
            propagation: Propagation {
                n_context: number("n_context").unwrap(),
                top_k: number("topk").unwrap(),
                radius: meta["radius"].as_f64().unwrap(),
                temperature: meta["temperature"].as_f64().unwrap(),
                ..Propagation::default()
            },
            input: Input::at(size),
            stop: Stop::new(),
        }
    }

    fn worker(&self) -> Worker<'_> {
        Worker {
            encoder: &self.encoder,
            propagation: &self.propagation,
            input: &self.input,
            batch: 5,
            stop: &self.stop,
        }
    }

    /// Pixels that change in the reference itself when only the rounding of its features does.
    fn free_pixels(&self) -> f64 {
        self.meta["float64_features"]["label_pixels_changed"]
            .as_f64()
            .unwrap()
    }

    /// What is said of a video's first steps: input, labels, sources, features, neighbours.
    fn steps(&mut self, video: usize, frames: &[PathBuf], labels: &[f32], report: &mut Report) {
        let canvas = self.worker().canvas(&frames[0]).unwrap();
        let case = self.name.clone();
        let name = |what: &str| format!("{case}/v{video}.{what}");
        let key = |what: &str| format!("v{video}.{what}");
        let want = self.tensors.expect(&key("labels_frame0"));
        report.tensor(&name("labels_frame0"), &like(labels, &want), &want, 1e-6);

        for (tensor, frame) in [("img0_corner", 0), ("img1", 1)] {
            if let Some(want) = self.tensors.take(&key(tensor)) {
                let planes = self.planes(&frames[frame], canvas);
                let (_, rows, columns) = want.dims3().unwrap();
                let corner = planes.narrow(1, 0, rows).unwrap();
                let corner = corner.narrow(2, 0, columns).unwrap();
                report.tensor(&name(tensor), &corner, &want, 1e-5);
            }
        }
        if let Some(want) = self.tensors.take(&key("feats_0_last")) {
            let ends = [frames.first().unwrap(), frames.last().unwrap()];
            let got: Vec<Tensor> = ends.map(|f| self.unit_features(f, canvas)).into();
            report.tensor(
                &name("feats_0_last"),
                &Tensor::stack(&got, 0).unwrap(),
                &want,
                ACTIVATION,
            );
        }
        self.sources(&key("key_index"), report);
        let margin = self.tensors.expect(&key("margin"));
        match self.tensors.take(&key("feats")) {
            Some(features) => {
                let got: Vec<Tensor> = frames
                    .iter()
                    .map(|f| self.unit_features(f, canvas))
                    .collect();
                let got = Tensor::stack(&got, 0).unwrap();
                report.tensor(&name("feats"), &got, &features, ACTIVATION);
                self.neighbours(video, &features, &margin, labels, canvas, report);
            }
            None => report.check(margin.dims() == [frames.len(), canvas.grid.area()], || {
                format!("{}: shape {:?}", name("margin"), margin.dims())
            }),
        }
    }

    /// `[3, H, W]`.
    fn planes(&self, frame: &Path, canvas: Canvas) -> Tensor {
        let picture = FramePicture::read(frame).unwrap();
        let planes = picture.planes(canvas.input, FrameFilter::Sampled).unwrap();
        let Size { height, width } = canvas.input;
        Tensor::from_vec(planes, (3, height, width), &Device::Cpu).unwrap()
    }

    /// `[D, rows, columns]`, each patch's features of length 1.
    fn unit_features(&self, frame: &Path, canvas: Canvas) -> Tensor {
        let pixels = self.planes(frame, canvas).unsqueeze(0).unwrap();
        let tokens = self.encoder.tokens(&pixels).unwrap();
        let patches = tokens
            .squeeze(0)
            .unwrap()
            .narrow(0, 1, canvas.grid.area())
            .unwrap();
        let length = patches
            .sqr()
            .unwrap()
            .sum_keepdim(1)
            .unwrap()
            .sqrt()
            .unwrap();
        let unit = patches.broadcast_div(&length).unwrap();
        let Size { height, width } = canvas.grid;
        unit.t().unwrap().reshape(((), height, width)).unwrap()
    }

    /// The sources of each frame: the first one, then the context, copies of the first one in front.
    fn sources(&mut self, key: &str, report: &mut Report) {
        let want = self.tensors.expect(key);
        let n = self.propagation.n_context;
        for (t, row) in values(&want).chunks_exact(n + 1).enumerate() {
            let expected = std::iter::once(0).chain(t..t + n);
            let same = row
                .iter()
                .zip(expected)
                .all(|(&got, want)| got == want as f64);
            report.check(same, || format!("{}/{key}: frame {t}", self.name));
        }
    }

    /// Neighbours, weights and labels from the reference's own features.
    fn neighbours(
        &mut self,
        video: usize,
        features: &Tensor,
        margin: &Tensor,
        labels: &[f32],
        canvas: Canvas,
        report: &mut Report,
    ) {
        let name = format!("{}/v{video}", self.name);
        let (n_frames, width, ..) = features.dims4().unwrap();
        let (n, k) = (canvas.grid.area(), self.propagation.top_k);
        let ids = values(&self.tensors.expect(&format!("v{video}.topk_ids")));
        let weights = values(&self.tensors.expect(&format!("v{video}.topk_weights")));
        let margin = values(margin);
        let frame = |t: usize| -> Vec<f32> {
            let rows = features
                .get(t)
                .unwrap()
                .reshape((width, n))
                .unwrap()
                .t()
                .unwrap();
            rows.flatten_all().unwrap().to_vec1().unwrap()
        };
        let settings = Propagation {
            cosine: false, // they are of length 1 to the bit
            ..self.propagation.clone()
        };
        let mut engine = Propagator::new(&settings, canvas.grid, frame(0), labels).unwrap();
        for t in 1..n_frames {
            let found = engine.neighbours(frame(t)).unwrap();
            for (q, found) in found.iter().enumerate() {
                let at = |i: usize| (t * k + i) * n + q;
                let want: Vec<f64> = (0..k).map(|i| weights[at(i)]).collect();
                for (got, want) in engine.weights(found).iter().zip(&want) {
                    report.number(&format!("{name} weight"), f64::from(*got), *want, 1e-5);
                }
                if margin[t * n + q] > MARGIN {
                    let mut got: Vec<u32> = found.iter().map(|neighbour| neighbour.id).collect();
                    let mut want: Vec<u32> = (0..k).map(|i| ids[at(i)] as u32).collect();
                    got.sort_unstable();
                    want.sort_unstable();
                    report.check(got == want, || {
                        format!("{name}: neighbours of patch {q} of frame {t}: {got:?}, expected {want:?}")
                    });
                }
            }
            engine.push(frame(t)).unwrap();
        }
    }

    /// Soft labels of every frame against `v{video}.pred`, from our own features.
    fn soft_labels(&mut self, video: usize, soft: &[Vec<f32>], report: &mut Report) {
        let want = self.tensors.expect(&format!("v{video}.pred"));
        let name = format!("{}/v{video}.pred", self.name);
        // Where rounding decides between neighbours, labels jump; the manifest says how far in the reference itself.
        let jump = self.meta["float64_features"]["soft_label_max_abs"]
            .as_f64()
            .unwrap();
        let stored = if want.dtype() == candle_core::DType::F16 {
            HALF
        } else {
            SOFT
        };
        let want = values(&want);
        let got: Vec<f32> = soft.concat();
        report.number(
            &format!("{name}: number"),
            got.len() as f64,
            want.len() as f64,
            0.0,
        );
        let off = |i: usize| (f64::from(got[i]) - want[i]).abs();
        let n_off = (0..want.len().min(got.len()))
            .filter(|&i| off(i) > stored)
            .count();
        let worst = (0..want.len().min(got.len())).map(off).fold(0.0, f64::max);
        report.check(
            n_off == 0 || (self.free_pixels() > 0.0 || jump > stored) && n_off * 100 <= got.len(),
            || format!("{name}: {n_off} of {} are off by up to {worst}", got.len()),
        );
        report.number(&name, worst, 0.0, stored.max(2.0 * jump));
    }
}

/// Values in the shape of another tensor.
fn like(values: &[f32], other: &Tensor) -> Tensor {
    Tensor::from_slice(values, other.dims(), &Device::Cpu)
        .unwrap_or_else(|e| panic!("{} values, expected {:?}: {e}", values.len(), other.dims()))
}

/// Carries a sequence, keeping the soft labels.
fn carried(worker: &Worker, sequence: &Sequence) -> (Predicted, Vec<Vec<f32>>) {
    let mut soft = Vec::new();
    let predicted = carry(worker, sequence, LabelOrder::Colour, |_, labels| {
        soft.push(labels.to_vec());
    });
    (predicted.unwrap(), soft)
}

/// The labels of a sequence's first frame, in the order of `label_set`, which is checked too.
fn given_labels(
    case: &mut Case,
    video: usize,
    sequence: &Sequence,
    report: &mut Report,
) -> Vec<f32> {
    let map = LabelMap::read(&sequence.annotations[0]).unwrap();
    let canvas = case.worker().canvas(&sequence.frames[0]).unwrap();
    let labels = map.resized(canvas.input);
    let want = case.tensors.expect(&format!("v{video}.label_set"));
    let columns = want.dim(1).unwrap();
    let mut set = Vec::new();
    for colour in values(&want).chunks_exact(columns) {
        // One column is an index or the blue of a grey; three are blue, green, red.
        let [blue, green, red] = [0, columns / 2, columns - 1].map(|i| colour[i] as u8);
        let index = map
            .palette
            .iter()
            .position(|&known| known == [red, green, blue]);
        set.push(index.expect("the colour is in the palette") as u8);
    }
    let (predicted, _) = {
        let first = Sequence {
            name: sequence.name.clone(),
            frames: sequence.frames[..1].to_vec(),
            annotations: sequence.annotations[..1].to_vec(),
        };
        carried(&case.worker(), &first)
    };
    report.check(predicted.set == set, || {
        format!(
            "{}/v{video}.label_set: {:?}, expected {set:?}",
            case.name, predicted.set
        )
    });
    first_labels(
        &labels,
        canvas.input,
        &set,
        canvas.grid,
        LabelFilter::Sampled,
    )
}

fn davis(mut case: Case, report: &mut Report) {
    let own = case.folder.join("JPEGImages").is_dir();
    let Some(data) = (if own {
        Some(case.folder.clone())
    } else {
        shared_data("davis")
    }) else {
        return;
    };
    let settings = DavisSettings::default();
    report.check(settings.label_order == LabelOrder::Colour, || {
        "label order".to_owned()
    });
    let sequences: Vec<String> = strings(&case.meta["sequences"]);
    let (mut wrong_pixels, mut all) = (0, Vec::new());
    for (video, name) in sequences.iter().enumerate() {
        let mut sequence = Sequence::pair(
            name,
            &data.join("JPEGImages/480p").join(name),
            &data.join("Annotations/480p").join(name),
        )
        .unwrap();
        if !own {
            let listed = case.meta["frames"][name].as_array().unwrap();
            let pick = |paths: &[PathBuf]| -> Vec<PathBuf> {
                let numbers = listed.iter().map(|n| n.as_u64().unwrap() as usize);
                numbers.map(|n| paths[n].clone()).collect()
            };
            sequence.frames = pick(&sequence.frames);
            sequence.annotations = pick(&sequence.annotations);
        }
        let labels = given_labels(&mut case, video, &sequence, report);
        case.steps(video, &sequence.frames, &labels, report);
        let (predicted, soft) = carried(&case.worker(), &sequence);
        case.soft_labels(video, &soft, report);

        let truth = read_truth(&sequence).unwrap();
        let original: Vec<Vec<u8>> = predicted
            .maps
            .iter()
            .map(|map| resize_nearest(map, predicted.canvas.input, truth.size))
            .collect();
        for (t, map) in original.iter().enumerate() {
            let path = case.folder.join(format!("masks/{name}/{t:05}.png"));
            let want = LabelMap::read(&path).unwrap();
            wrong_pixels += map.iter().zip(&want.labels).filter(|(a, b)| a != b).count();
        }
        for t in 0..2 {
            // Written with red and blue exchanged.
            let path = case.folder.join(format!("raw_{video}_{t}_mask.png"));
            let raw = pipeline::codec::decode_rgb8(&std::fs::read(&path).unwrap()).unwrap();
            let wrong = predicted.maps[t]
                .iter()
                .zip(raw.data.as_chunks::<3>().0)
                .filter(|&(&label, &[b, g, r])| predicted.palette[usize::from(label)] != [r, g, b])
                .count();
            report.check(wrong as f64 <= case.free_pixels(), || {
                format!("{}: {wrong} pixels are wrong", path.display())
            });
        }
        if case.meta["scores"].is_object() {
            let n_objects = truth_objects(&truth.maps);
            let objects = measure(
                &score_sequence(name, &truth.maps, &original, truth.size, n_objects).unwrap(),
            );
            for (i, got) in objects.iter().enumerate() {
                let want = &case.meta["scores"]["per_object"][format!("{name}_{}", i + 1)];
                let what = format!("{}: {name}_{}", case.name, i + 1);
                report.number(&what, got.j.mean, want[0].as_f64().unwrap(), 1e-3);
                report.number(&what, got.f.mean, want[1].as_f64().unwrap(), 1e-3);
            }
            all.extend(objects);
        }
    }
    report.check(wrong_pixels as f64 <= case.free_pixels(), || {
        format!(
            "{}: {wrong_pixels} pixels are wrong, {} may be",
            case.name,
            case.free_pixels()
        )
    });
    if let Some(total) = Measures::mean_of(&all) {
        for (name, got) in global_numbers(&total) {
            let want = case.meta["scores"][name].as_f64().unwrap();
            report.number(&format!("{}: {name}", case.name), got, want, 1e-3);
        }
    }
    case.tensors.finish(report);
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap();
    list.iter()
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

fn vip_case(mut case: Case, report: &mut Report) {
    let videos = strings(&case.meta["videos"]);
    let found = vip::find(&case.folder, "val").unwrap();
    report.number("vip videos", found.len() as f64, videos.len() as f64, 0.0);
    let (mut total, mut wrong_pixels) = (vip::Confusion::new(), 0);
    for (video, name) in videos.iter().enumerate() {
        let folder = |part: &str| case.folder.join(part).join(name);
        let sequence =
            Sequence::pair(name, &folder("Images"), &folder("Annotations/Category_ids")).unwrap();
        let canvas = case.worker().canvas(&sequence.frames[0]).unwrap();
        let want = &case.meta["network_input_sizes"][video];
        let want = Size {
            height: want[0].as_u64().unwrap() as usize,
            width: want[1].as_u64().unwrap() as usize,
        };
        report.check(canvas.input == want, || {
            format!("{name}: {}, expected {want}", canvas.input)
        });
        let labels = given_labels(&mut case, video, &sequence, report);
        case.steps(video, &sequence.frames, &labels, report);
        let (predicted, soft) = carried(&case.worker(), &sequence);
        case.soft_labels(video, &soft, report);
        for (frame, map) in sequence.frames.iter().zip(&predicted.maps) {
            let stem = frame.file_stem().unwrap().to_string_lossy();
            let path = case
                .folder
                .join(format!("Predicted/{name}/{stem}_mask.png"));
            let want = pipeline::codec::decode_rgb8(&std::fs::read(path).unwrap()).unwrap();
            let labels = want.data.as_chunks::<3>().0.iter().map(|pixel| pixel[0]);
            wrong_pixels += map.iter().zip(labels).filter(|&(&a, b)| a != b).count();
        }
        let pixels = vip::confusion(&case.worker(), &sequence, true).unwrap();
        for (total, row) in total.0.iter_mut().zip(&pixels.0) {
            total.iter_mut().zip(row).for_each(|(total, n)| *total += n);
        }
    }
    report.number(
        "vip wrong pixels",
        wrong_pixels as f64,
        0.0,
        case.free_pixels(),
    );
    let hist: Vec<f64> = total.0.iter().flatten().map(|&n| n as f64).collect();
    let want = values(&case.tensors.expect("eval.hist"));
    report.check(hist == want, || "vip: eval.hist".to_owned());
    let scores = total.counts().scores();
    let per_class = values(&case.tensors.expect("eval.iou_per_class"));
    for (class, (got, want)) in scores.iou.iter().zip(per_class).enumerate() {
        report.check(got.is_none() == want.is_nan(), || {
            format!("vip: class {class}")
        });
        report.number(
            &format!("vip: class {class}"),
            got.unwrap_or(0.0),
            if want.is_nan() { 0.0 } else { want },
            1e-12,
        );
    }
    let want = case.meta["mIoU"].as_f64().unwrap();
    report.number("vip mIoU", scores.miou.unwrap(), want, 1e-12);
    case.tensors.finish(report);
}

/// Whether the last of the `k` largest values of a channel is as large as the next.
fn is_tied(labels: &[f32], channel: usize, k: usize) -> bool {
    let mut values: Vec<f32> = labels
        .chunks_exact(1 + jhmdb::N_JOINTS)
        .map(|patch| patch[channel])
        .collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values[0] > 0.0 && values[k - 1] == values[k]
}

fn jhmdb_case(mut case: Case, report: &mut Report) {
    let settings = JhmdbSettings {
        sigma: case.meta["sigma"].as_f64().unwrap(),
        pose_top_k: case.meta["pose_topk"].as_u64().unwrap() as usize,
        ..JhmdbSettings::default()
    };
    let found = jhmdb::find_listed(&case.folder.join("jhmdb_list.txt"), &case.folder).unwrap();
    let mut clips = Vec::new();
    for (video, (_, clip)) in found.into_iter().enumerate() {
        let clip = clip.unwrap();
        let joints = jhmdb::Joints::read(&clip.joints).unwrap();
        let want = case.tensors.expect(&format!("v{video}.pos_img")); // [2, 15, T]
        let got: Vec<f64> = (0..2)
            .flat_map(|axis| (0..jhmdb::N_JOINTS).map(move |j| (axis, j)))
            .flat_map(|(axis, j)| joints.frames.iter().map(move |frame| frame[j][axis] + 1.0))
            .collect();
        report.check(got == values(&want), || format!("jhmdb/v{video}.pos_img"));
        let canvas = case.worker().canvas(&clip.frames[0]).unwrap();
        let labels = jhmdb::first_labels(&joints.frames[0], canvas, &settings);
        case.steps(video, &clip.frames, &labels, report);
        // The colours of joints in pictures; nothing is computed with them.
        case.tensors.expect(&format!("v{video}.label_set"));

        let (mut soft, mut places) = (Vec::new(), Vec::new());
        let counts = jhmdb::count(&case.worker(), &clip, &settings, |_, labels, joints| {
            soft.push(labels.to_vec());
            places.push(*joints);
        });
        case.soft_labels(video, &soft, report);
        let coords = case.tensors.expect(&format!("v{video}.coords")); // [2, 15, N]
        let n = places.len();
        for (i, want) in values(&coords).into_iter().enumerate() {
            let (axis, j, t) = (i / n / jhmdb::N_JOINTS, i / n % jhmdb::N_JOINTS, i % n);
            // Which of equal patches are the largest is not said.
            if is_tied(&soft[t], 1 + j, settings.pose_top_k) {
                continue;
            }
            let got = places[t][j].map_or(-1.0, |place| f64::from(place[axis]));
            report.number(
                &format!("jhmdb/v{video}.coords {axis} {j} {t}"),
                got,
                want,
                1e-3,
            );
        }
        let joints = counts.unwrap();
        clips.push(jhmdb::ClipScores {
            name: clip.name.clone(),
            n_frames: clip.frames.len(),
            data: DataHash::default().finish(),
            pck: joints.pck(),
            joints,
        });
    }
    let pck = JhmdbScores::of(clips).pck.unwrap();
    for (threshold, got) in THRESHOLDS.iter().zip(pck) {
        let want = case.meta["PCK"][threshold.to_string()].as_f64().unwrap();
        report.number(&format!("PCK@{threshold}"), got, want, 1e-9);
    }
    case.tensors.finish(report);
}
