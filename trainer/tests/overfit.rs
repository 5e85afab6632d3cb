//! Every method learns a handful of pictures by heart: real ones, or made ones where those are not at hand.
//!
//! What is learned: eight samples go through the real loader once, so their crops, flips and frames are drawn once and
//! stay. Patches are hidden anew in every step, so no mask can be learned; it is the pictures that have to be. The
//! optimizer is the trainer's, and targets are normalised patch by patch, which leaves nothing to be won by predicting
//! means: a model that says 0 everywhere has a loss of 1.
//!
//! What counts: the loss, each of its terms, and the squared error of the predictions as this file computes it from the
//! views' pixels, all under masks that were never trained on, must fall below 30 % of what they were.

#![allow(clippy::unwrap_used, clippy::panic)] // a test binary: its helpers fail loudly, as its tests do

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use pipeline::codec::encode_rgb8;
use pipeline::config::{DataConfig, Strategy, ViewsKind};
use pipeline::loader::{Loader, LoaderState, Pictures, Rank, Sample, Source};
use pipeline::synth::{Scene, SynthKind, SynthOptions};
use trainer::device;
use trainer::masking::StepRandomness;
use trainer::models::{
    self, ContrastiveConfig, Forward, ModelConfig, ModelKind, Pretrain, Targets,
};
use trainer::nn::params::Params;
use trainer::optim::{AdamW, AdamWOptions, Gradients, clip, param_groups};
use trainer::tape;

const N_SAMPLES: usize = 8;
const SIZE: usize = 16;
const PATCH_SIZE: usize = 4;
/// Frames of a clip: enough for the smallest gap.
const N_FRAMES: usize = 12;
const LEARNED: f64 = 0.3;
const PEAK_LR: f64 = 2.5e-3;
/// Masks of these epochs are not trained on.
const UNSEEN_EPOCHS: std::ops::Range<u64> = 1_000_000..1_000_004;

/// Encoded pictures in memory: one a sample, or the frames of a clip.
struct Album {
    samples: Vec<Vec<Bytes>>,
}

impl Source for Album {
    fn n_samples(&self) -> u64 {
        self.samples.len() as u64
    }

    fn holds_clips(&self) -> bool {
        self.samples[0].len() > 1
    }
}

impl Pictures for Album {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        Ok(Sample {
            n_frames: self.samples[index as usize].len() as u32,
            label: None,
            key: format!("sample-{index}").into(),
        })
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        Ok(self.samples[index as usize][frame as usize].clone())
    }
}

fn made(kind: SynthKind, n_frames: usize) -> Arc<Album> {
    let options = SynthOptions {
        size: 64,
        ..SynthOptions::default()
    };
    let sample = |class: usize| {
        let scene = Scene::new(&options, kind, class as u32, 0);
        let frames = 0..n_frames as u32;
        let encode = |frame| Bytes::from(encode_rgb8(&scene.render(frame).image, 90).unwrap());
        frames.map(encode).collect()
    };
    Arc::new(Album {
        samples: (0..N_SAMPLES).map(sample).collect(),
    })
}

/// The files under a folder of the shared data, in order; none, said aloud, if it is not there.
fn shared_files(folder: &str) -> Option<Vec<PathBuf>> {
    let shared = std::env::var("PAIRQUET_SHARED_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").to_string());
    let root = Path::new(&shared).join("data").join(folder);
    if !root.is_dir() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {} is not there",
            root.display()
        );
        return None;
    }
    let (mut folders, mut files) = (vec![root], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    Some(files)
}

fn read(path: &PathBuf) -> Bytes {
    Bytes::from(std::fs::read(path).unwrap())
}

/// Eight ImageNet pictures, far apart in their folders.
fn real_pictures() -> Option<Arc<Album>> {
    let files = shared_files("imagenet/train")?;
    let each = files.len() / N_SAMPLES;
    let samples = files.chunks(each).take(N_SAMPLES);
    Some(Arc::new(Album {
        samples: samples.map(|files| vec![read(&files[0])]).collect(),
    }))
}

/// Eight stretches of frames of DAVIS's sequences.
fn real_clips() -> Option<Arc<Album>> {
    let files = shared_files("davis/JPEGImages")?;
    let sequences = files.chunk_by(|a, b| a.parent() == b.parent());
    let mut stretches: Vec<&[PathBuf]> = Vec::new();
    for sequence in sequences {
        stretches.extend(sequence.chunks_exact(N_FRAMES).take(3));
    }
    let samples = stretches.iter().take(N_SAMPLES);
    let samples: Vec<_> = samples
        .map(|files| files.iter().map(read).collect())
        .collect();
    assert_eq!(samples.len(), N_SAMPLES, "stretches of {N_FRAMES} frames");
    Some(Arc::new(Album { samples }))
}

/// A method and the views it learns from.
struct Case {
    name: String,
    views: ViewsKind,
    strategy: Strategy,
    model: ModelConfig,
    n_steps: u64,
}

fn case(name: &str, kind: ModelKind, views: ViewsKind) -> Case {
    // The siamese decoder's feed-forward part is 2048 wide whatever the model's width, so it makes up for the rest.
    let (width, n_steps) = match kind {
        ModelKind::Siamese => (48, 200),
        ModelKind::Mae | ModelKind::MultiView => (96, 340),
    };
    Case {
        name: name.to_owned(),
        views,
        strategy: Strategy::GlobalToLocal,
        n_steps,
        model: ModelConfig {
            kind,
            img_size: Some(SIZE),
            patch_size: Some(PATCH_SIZE),
            embed_dim: Some(width),
            depth: Some(1),
            num_heads: Some(3),
            decoder_embed_dim: Some(width),
            decoder_depth: Some(1),
            decoder_num_heads: Some(3),
            mask_ratio: Some(0.75),
            decoder_dropout: 0.0,
            contrastive: ContrastiveConfig {
                projector_hidden_dim: 32,
                projector_dim: 16,
                ..ContrastiveConfig::default()
            },
            ..ModelConfig::default()
        },
    }
}

/// The eight samples as the loader makes them, `[8, V, 3, 32, 32]`, normalised.
fn load(case: &Case, source: &Arc<Album>) -> Tensor {
    let config = DataConfig {
        path: "memory".to_owned(),
        batch_size: N_SAMPLES,
        threads: 1,
        size: SIZE as u32,
        views: case.views,
        strategy: case.strategy,
        ..DataConfig::default()
    };
    let source: Arc<dyn Source> = Arc::clone(source) as _;
    let start = LoaderState::default();
    let mut loader = Loader::from_source(source, &config, 7, Rank::SINGLE, start).unwrap();
    device::Uploader::new(&Device::Cpu)
        .unwrap()
        .upload(&loader.next_batch().unwrap())
        .unwrap()
}

fn step(epoch: u64) -> StepRandomness {
    StepRandomness {
        seed: 7,
        epoch,
        samples: (0..N_SAMPLES as u64).collect(),
    }
}

fn scalar(tensor: &Tensor) -> f64 {
    f64::from(tensor.to_scalar::<f32>().unwrap())
}

/// Mean squared error of the predictions at the hidden patches, from the pixels of the view they are of; written
/// without the trainer's losses and patches, so that neither can be wrong on both sides.
fn error_in_pixels(forward: &Forward, views: &Tensor) -> f64 {
    let Some(shown) = &forward.reconstruction else {
        panic!("nothing was reconstructed")
    };
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (pred, mask, pixels) = (flat(&shown.pred), flat(&shown.mask), flat(views));
    let (n_views, grid) = (views.dim(1).unwrap(), SIZE / PATCH_SIZE);
    let n_values = PATCH_SIZE * PATCH_SIZE * 3;
    let (mut sum, mut n_hidden) = (0.0, 0.0);
    for (i, (pred, _)) in pred
        .chunks_exact(n_values)
        .zip(&mask)
        .enumerate()
        .filter(|(i, _)| mask[*i] == 1.0)
    {
        let (sample, patch) = (i / (grid * grid), i % (grid * grid));
        let view = (sample * n_views + shown.target_view) * 3 * SIZE * SIZE;
        let (top, left) = (patch / grid * PATCH_SIZE, patch % grid * PATCH_SIZE);
        let value = |k: usize| {
            let (row, column, channel) = (k / 3 / PATCH_SIZE, k / 3 % PATCH_SIZE, k % 3);
            f64::from(pixels[view + channel * SIZE * SIZE + (top + row) * SIZE + left + column])
        };
        let n = n_values as f64;
        let mean = (0..n_values).map(value).sum::<f64>() / n;
        let var = (0..n_values)
            .map(|k| (value(k) - mean).powi(2))
            .sum::<f64>()
            / (n - 1.0);
        let normed = |k: usize| (value(k) - mean) / (var + 1e-6).sqrt();
        let squares = pred
            .iter()
            .enumerate()
            .map(|(k, &p)| (f64::from(p) - normed(k)).powi(2));
        sum += squares.sum::<f64>() / n;
        n_hidden += 1.0;
    }
    sum / n_hidden
}

/// Figures by name.
type Measured = Vec<(String, f64)>;

/// The loss, its terms and the error in pixels under masks that are not trained on, by name.
fn measure(model: &dyn Pretrain, views: &Tensor) -> Measured {
    let mut means = Measured::new();
    let n = UNSEEN_EPOCHS.count() as f64;
    for epoch in UNSEEN_EPOCHS {
        let forward = model.forward(views, &step(epoch), false).unwrap();
        let (loss, error) = (scalar(&forward.loss), error_in_pixels(&forward, views));
        if forward.parts.is_empty() {
            assert!(
                (loss - error).abs() < 1e-5,
                "the loss is {loss}, not {error}"
            );
        }
        let mut now = vec![
            ("loss".to_owned(), loss),
            ("error in pixels".to_owned(), error),
        ];
        now.extend(
            forward
                .parts
                .iter()
                .map(|(name, part)| ((*name).to_owned(), scalar(part))),
        );
        if means.is_empty() {
            means = now.iter().map(|(name, _)| (name.clone(), 0.0)).collect();
        }
        means
            .iter_mut()
            .zip(now)
            .for_each(|(mean, (_, value))| mean.1 += value / n);
    }
    means
}

/// Trains a model on the views, always the same ones, and returns what was measured before and after.
fn overfit(case: &Case, views: &Tensor) -> [Measured; 2] {
    let mut params = Params::new(7, DType::F32, &Device::Cpu);
    let model = models::build(&case.model, &mut params).unwrap();
    let trainable: Vec<_> = params
        .iter_trainable()
        .map(|param| (param.name.clone(), param.var.clone()))
        .collect();
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.95,
    };
    let mut optim = AdamW::new(param_groups(trainable.clone(), 0.0), options).unwrap();
    let mut grads = Gradients::new(trainable);
    let before = measure(model.as_ref(), views);
    for epoch in 0..case.n_steps {
        let (forward, tape) = tape::record(|| model.forward(views, &step(epoch), true)).unwrap();
        grads.clear();
        grads
            .backward(tape, &forward.loss, 1.0, &mut |_, _| Ok(()))
            .unwrap();
        if epoch == 0 {
            let idle = clip::norms(&grads).unwrap().uncovered();
            assert!(idle.is_empty(), "{}: {idle:?} do not learn", case.name);
        }
        let lr = PEAK_LR * (1.0 - epoch as f64 / case.n_steps as f64);
        optim.step(&grads, lr).unwrap();
    }
    [before, measure(model.as_ref(), views)]
}

fn is_learned(case: &Case, real: Option<Arc<Album>>, made: impl FnOnce() -> Arc<Album>) {
    // These models are so small that a second thread costs more than it brings, and the tests run side by side.
    static ONE_THREAD: Once = Once::new();
    ONE_THREAD.call_once(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
        pool.build_global().unwrap();
    });
    let views = load(case, &real.unwrap_or_else(made));
    let [before, after] = overfit(case, &views);
    for ((what, before), (_, after)) in before.iter().zip(&after) {
        let _ = writeln!(
            std::io::stderr(),
            "{}: {what} from {before:.3} to {after:.3}, {:.2} of it",
            case.name,
            after / before
        );
        assert!(
            *after < LEARNED * before,
            "{}: {what} from {before} to {after}",
            case.name
        );
    }
}

fn pictures_are_learned(case: &Case) {
    is_learned(case, real_pictures(), || made(SynthKind::Image, 1));
}

#[test]
fn mae_learns_by_heart() {
    pictures_are_learned(&case("MAE", ModelKind::Mae, ViewsKind::Single));
}

#[test]
fn siam_mae_learns_by_heart() {
    let case = case("SiamMAE", ModelKind::Siamese, ViewsKind::FramePair);
    is_learned(&case, real_clips(), || made(SynthKind::Clip, N_FRAMES));
}

#[test]
fn crop_mae_learns_by_heart_with_every_strategy() {
    for strategy in [
        Strategy::GlobalToLocal,
        Strategy::LocalToGlobal,
        Strategy::Random,
        Strategy::Same,
    ] {
        let name = format!("CropMAE {strategy:?}");
        pictures_are_learned(&Case {
            strategy,
            ..case(&name, ModelKind::Siamese, ViewsKind::CropPair)
        });
    }
}

#[test]
fn multi_view_mae_learns_by_heart_with_every_target() {
    for targets in [Targets::Own, Targets::Shared, Targets::Cross] {
        let name = format!("Multi-View MAE {targets:?}");
        let mut case = case(&name, ModelKind::MultiView, ViewsKind::MultiView);
        case.model.targets = targets;
        case.model.mask_ratio = Some(0.8);
        pictures_are_learned(&case);
    }
}
