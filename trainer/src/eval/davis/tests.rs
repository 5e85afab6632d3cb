use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use pipeline::Stop;

use super::*;
use crate::eval::encoder::FrozenEncoder;
use crate::eval::frames::davis_palette;
use crate::exchange::Tensors;
use crate::models::ModelConfig;
use crate::models::encoder::Encoder;
use crate::models::tokens::EncoderTokens;
use crate::nn::params::Params;

const SIZE: Size = Size {
    height: 24,
    width: 32,
};
const N_FRAMES: usize = 5;

/// A data set of one sequence: a square that moves to the right.
struct DataSet(tempfile::TempDir);

impl DataSet {
    fn new() -> DataSet {
        let set = DataSet(tempfile::tempdir().unwrap());
        let write = |path: PathBuf, bytes: &[u8]| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        for t in 0..N_FRAMES {
            let labels: Vec<u8> = (0..SIZE.area())
                .map(|i| {
                    let (y, x) = (i / SIZE.width, i % SIZE.width);
                    u8::from((6..18).contains(&y) && (4 + t..16 + t).contains(&x))
                })
                .collect();
            let pixels: Vec<u8> = labels
                .iter()
                .enumerate()
                .flat_map(|(i, label)| [200 * label, (i * 37 % 100) as u8, 60])
                .collect();
            write(set.frame(t), &rgb_png(SIZE, &pixels));
            write(set.annotation(t), &[]);
            write_labels(&set.annotation(t), &labels, SIZE, &davis_palette()).unwrap();
        }
        write(set.root().join("ImageSets/2017/val.txt"), b"square");
        set
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn frame(&self, t: usize) -> PathBuf {
        self.root()
            .join(format!("JPEGImages/480p/square/{t:05}.png"))
    }

    fn annotation(&self, t: usize) -> PathBuf {
        self.root()
            .join(format!("Annotations/480p/square/{t:05}.png"))
    }

    fn rewrite_annotation(&self, t: usize, size: Size, change: impl Fn(usize, u8) -> u8) {
        let labels = LabelMap::read(&self.annotation(t)).unwrap().resized(size);
        let labels: Vec<u8> = (0..)
            .zip(labels)
            .map(|(i, label)| change(i, label))
            .collect();
        write_labels(&self.annotation(t), &labels, size, &davis_palette()).unwrap();
    }

    fn score(&self, masks: Option<&Path>) -> Result<SequenceScores> {
        let (_, sequence) = find(self.root(), "val").unwrap().remove(0);
        let settings = DavisSettings {
            input: Input::at(InputSize::Exactly(Size {
                height: 48,
                width: 64,
            })),
            ..DavisSettings::default()
        };
        let encoder = tiny_encoder();
        let worker = Worker {
            encoder: &encoder,
            propagation: &settings.propagation,
            input: &settings.input,
            batch: 2,
            stop: &Stop::new(),
        };
        let sequence = sequence?;
        let data = super::super::video::identify(self.root(), sequence.files())?;
        evaluate(&worker, &sequence, data, settings.label_order, masks)
    }

    fn problem(&self) -> String {
        self.score(None).unwrap_err().to_string()
    }
}

fn rgb_png(size: Size, pixels: &[u8]) -> Vec<u8> {
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, size.width as u32, size.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(pixels).unwrap();
    drop(writer);
    png
}

fn tiny_encoder() -> FrozenEncoder {
    let model = ModelConfig {
        img_size: Some(32),
        patch_size: Some(4),
        embed_dim: Some(16),
        depth: Some(1),
        num_heads: Some(2),
        ..ModelConfig::default()
    };
    let sizes = model.sizes();
    let mut params = Params::new(3, DType::F32, &Device::Cpu);
    let tokens = EncoderTokens::new(&mut params, &sizes).unwrap();
    Encoder::new(&mut params, &sizes, tokens, 0.0).unwrap();
    let tensors: BTreeMap<String, Tensor> = params
        .iter()
        .map(|param| (param.name.clone(), param.var.as_tensor().copy().unwrap()))
        .collect();
    FrozenEncoder::new(&model, &Tensors::from(tensors), &Device::Cpu).unwrap()
}

#[test]
fn a_moving_square_is_followed_and_its_masks_are_written() {
    let set = DataSet::new();
    let masks = tempfile::tempdir().unwrap();
    let scores = set.score(Some(masks.path())).unwrap();
    let BothScales { original, resized } = scores.mean;
    assert!(original.j.mean > 0.7 && resized.f.mean > 0.5, "{scores:?}");
    assert_eq!((scores.n_frames, scores.annotation_size), (N_FRAMES, SIZE));
    for t in 0..N_FRAMES {
        let path = masks.path().join(format!("square/{t:05}.png"));
        let map = LabelMap::read(&path).unwrap();
        assert_eq!((map.size, map.largest()), (SIZE, 1));
    }
    // what was written scores as what was reported
    let (_, sequence) = find(set.root(), "val").unwrap().remove(0);
    let truth = read_truth(&sequence.unwrap()).unwrap();
    let written: Vec<Vec<u8>> = (0..N_FRAMES)
        .map(|t| masks.path().join(format!("square/{t:05}.png")))
        .map(|path| LabelMap::read(&path).unwrap().labels)
        .collect();
    let again = measure(&score_sequence("square", &truth.maps, &written, SIZE, 1).unwrap());
    assert_eq!(again, [original]);
}

#[test]
fn each_fault_names_its_file() {
    let fault = |damage: &dyn Fn(&DataSet), expected: &[&str]| {
        let set = DataSet::new();
        damage(&set);
        let problem = set.problem();
        for words in expected {
            assert!(problem.contains(words), "{problem}: expected {words}");
        }
    };
    fault(
        &|set| fs::remove_file(set.frame(2)).unwrap(),
        &[
            "Annotations/480p/square/00002.png",
            "has no frame of its number",
        ],
    );
    fault(
        &|set| fs::remove_file(set.annotation(3)).unwrap(),
        &[
            "JPEGImages/480p/square/00003.png",
            "has no label map of its number",
        ],
    );
    fault(
        &|set| set.rewrite_annotation(2, SIZE, |i, label| if i == 5 { 4 } else { label }),
        &["square/00002.png", "has object 4, expected at most the 1"],
    );
    let smaller = Size {
        height: 24,
        width: 31,
    };
    fault(
        &|set| set.rewrite_annotation(4, smaller, |_, label| label),
        &["square/00004.png", "24x31", "24x32"],
    );
    fault(
        &|set| {
            (0..N_FRAMES).for_each(|t| set.rewrite_annotation(t, smaller, |_, label| label));
        },
        &["square/00000.png", "24x31", "24x32"],
    );
    fault(
        &|set| fs::write(set.frame(3), rgb_png(smaller, &vec![9; smaller.area() * 3])).unwrap(),
        &["JPEGImages/480p/square/00003.png", "24x31", "24x32"],
    );
    fault(
        &|set| fs::write(set.annotation(1), "nonsense").unwrap(),
        &["square/00001.png", "is no readable PNG"],
    );
    fault(
        &|set| fs::write(set.frame(1), "nonsense").unwrap(),
        &["JPEGImages/480p/square/00001.png", "not a picture"],
    );
    fault(
        &|set| (0..N_FRAMES).for_each(|t| set.rewrite_annotation(t, SIZE, |_, _| 0)),
        &["square/00000.png", "has no object"],
    );
    fault(
        &|set| fs::write(set.root().join("ImageSets/2017/val.txt"), "triangle").unwrap(),
        &["triangle"],
    );
    fault(
        &|set| {
            for t in 2..N_FRAMES {
                fs::remove_file(set.frame(t)).unwrap();
                fs::remove_file(set.annotation(t)).unwrap();
            }
        },
        &["square has 2 frames", "at least 3"],
    );
}

#[test]
fn void_pixels_are_background() {
    let set = DataSet::new();
    let before = set.score(None).unwrap();
    set.rewrite_annotation(0, SIZE, |i, label| if i == 0 { VOID } else { label });
    set.rewrite_annotation(2, SIZE, |i, label| if i == 0 { VOID } else { label });
    let after = set.score(None).unwrap();
    assert_eq!(before.objects, after.objects);
    assert_ne!(before.data, after.data);
}

#[test]
fn an_input_that_is_no_whole_patches_is_refused() {
    let encoder = tiny_encoder();
    let input = Input::at(InputSize::Exactly(Size {
        height: 48,
        width: 66,
    }));
    let worker = Worker {
        encoder: &encoder,
        propagation: &Propagation::default(),
        input: &input,
        batch: 2,
        stop: &Stop::new(),
    };
    let problem = worker
        .canvas(&DataSet::new().frame(0))
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("48x66") && problem.contains("multiples of the patch, 4"),
        "{problem}"
    );
}

#[test]
fn labels_are_in_the_order_of_their_blue_green_and_red() {
    let palette = davis_palette();
    // (128, 0, 0), (0, 128, 0), (0, 0, 128) as red, green, blue; then the index that is red and green
    let labels = [4, 3, 2, 1, 0];
    assert_eq!(
        label_set(&labels, &palette, LabelOrder::Colour),
        [0, 1, 2, 3, 4]
    );
    let labels = [4, 2, 9, 0];
    assert_eq!(
        label_set(&labels, &palette, LabelOrder::Colour),
        [0, 9, 2, 4]
    );
    assert_eq!(
        label_set(&labels, &palette, LabelOrder::Index),
        [0, 2, 4, 9]
    );
}

#[test]
fn lists_name_folders_in_the_references_form() {
    let set = DataSet::new();
    let list = set.root().join("list.txt");
    fs::write(
        &list,
        "JPEGImages/480p/square Annotations/480p/square\n\nno/frames no/maps",
    )
    .unwrap();
    let found = find_listed(&list, set.root()).unwrap();
    assert!(found[0].0 == "square" && found[0].1.is_ok());
    let problem = found[1].1.as_ref().unwrap_err().to_string();
    assert!(problem.contains("no/frames"), "{problem}");
    fs::write(&list, "one").unwrap();
    let problem = find_listed(&list, set.root()).unwrap_err().to_string();
    assert!(
        problem.contains("line 1") && problem.contains("expected two paths"),
        "{problem}"
    );
    let missing = find(set.root(), "test").unwrap_err().to_string();
    assert!(missing.contains("ImageSets/2017/test.txt"), "{missing}");
}
