//! Runs of a tiny model on pictures held in memory.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use pipeline::codec::{Rgb8Image, jpeg};
use pipeline::config::{MaxBad, ViewsKind};
use pipeline::loader::source::Sample;
use pipeline::loader::{Pictures, Source};

use super::*;
use crate::checkpoint::read_tensors;
use crate::config::OptimConfig;
use crate::distributed::in_threads::on_ranks;
use crate::models::ModelKind;

/// Pictures of coloured waves, one a sample.
struct Waves {
    pictures: Vec<Bytes>,
    /// How many more pictures are read before somebody asks to stop, and whom.
    stop_after: Mutex<Option<(usize, Stop)>>,
}

impl Waves {
    fn new(n: usize) -> Arc<Self> {
        let picture = |index: usize| {
            let wave = |x: usize, y: usize, c: usize| {
                let phase = (x * (index % 5 + 1) + y * (c + 1)) as f64 / 6.0 + index as f64;
                (127.0 + 120.0 * phase.sin()) as u8
            };
            let data = (0..48 * 48 * 3)
                .map(|i| wave(i / 3 % 48, i / 3 / 48, i % 3))
                .collect();
            let image = Rgb8Image {
                width: 48,
                height: 48,
                data,
            };
            Bytes::from(jpeg::encode_rgb8(&image, 90).unwrap())
        };
        Arc::new(Self {
            pictures: (0..n).map(picture).collect(),
            stop_after: Mutex::default(),
        })
    }
}

impl Pictures for Waves {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        Ok(Sample {
            n_frames: 1,
            label: None,
            key: format!("wave-{index}").into(),
        })
    }

    fn picture(&self, index: u64, _frame: u32) -> shards::Result<Bytes> {
        if let Some((left, stop)) = self.stop_after.lock().unwrap().as_mut() {
            *left = left.saturating_sub(1);
            if *left == 0 {
                stop.request();
            }
        }
        Ok(self.pictures[index as usize].clone())
    }
}

impl Source for Waves {
    fn n_samples(&self) -> u64 {
        self.pictures.len() as u64
    }

    fn holds_clips(&self) -> bool {
        false
    }
}

/// 22 pictures in batches of 4: 5 batches an epoch, and a rest that is dropped.
fn tiny() -> TrainConfig {
    let mut config = TrainConfig {
        device: "cpu".to_string(),
        ..TrainConfig::default()
    };
    config.data.path = "waves".to_string();
    config.data.batch_size = 4;
    config.data.size = 32;
    config.data.threads = 1;
    config.model.patch_size = Some(8);
    config.model.embed_dim = Some(24);
    config.model.depth = Some(2);
    config.model.num_heads = Some(3);
    config.model.decoder_embed_dim = Some(16);
    config.model.decoder_depth = Some(1);
    config.model.decoder_num_heads = Some(2);
    config.model.mask_ratio = Some(0.75);
    config.optim = OptimConfig {
        lr: Some(2e-3),
        max_steps: Some(12),
        ..OptimConfig::default()
    };
    config.run.log_every = 1;
    config.run.checkpoint_every = Some(5);
    config.run.pictures_every = 0;
    config
}

struct Run {
    dir: tempfile::TempDir,
    source: Arc<Waves>,
}

impl Run {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            source: Waves::new(22),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    fn train(&self, config: &TrainConfig) -> Result<Summary> {
        self.train_until(config, u64::MAX)
    }

    /// Asks the run to stop after a step.
    fn train_until(&self, config: &TrainConfig, step: u64) -> Result<Summary> {
        let stop = Stop::new();
        self.train_with(config, &stop, &mut |progress| {
            if matches!(progress, Progress::Step(report) if report.step == step) {
                stop.request();
            }
        })
    }

    fn train_with(
        &self,
        config: &TrainConfig,
        stop: &Stop,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Summary> {
        self.train_as(&Ranks::single(), config, stop, progress)
    }

    fn train_as(
        &self,
        ranks: &Ranks,
        config: &TrainConfig,
        stop: &Stop,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Summary> {
        let source = &self.source;
        let open = |start| {
            let source: Arc<dyn Source> = Arc::clone(source) as _;
            Ok(Loader::from_source(
                source,
                &config.data,
                config.seed,
                ranks.share(),
                start,
            )?)
        };
        train_from(ranks, config, &open, self.dir.path(), stop, progress)
    }

    /// Trains on ranks that are threads; the last one has a wish to stop.
    fn train_on(&self, n_ranks: usize, config: &TrainConfig, stop_of_last: &Stop) -> Summary {
        let mut summaries = on_ranks(n_ranks, |ranks| {
            let stop = match ranks.rank() + 1 == n_ranks {
                true => stop_of_last.clone(),
                false => Stop::new(),
            };
            let silent = &mut |_: &Progress| assert!(ranks.is_first());
            let summary = self.train_as(&ranks, config, &stop, silent).unwrap();
            ranks.leave().unwrap();
            summary
        });
        let summary = summaries.swap_remove(0);
        assert!(summaries.into_iter().all(|other| other == summary));
        summary
    }

    /// Loss of every step.
    fn losses(&self) -> Vec<f32> {
        let lines = metrics::read(self.dir.path()).unwrap();
        lines.into_iter().map(|line| line.loss).collect()
    }

    /// Trains and dies after a step, without a word or a checkpoint.
    fn train_and_die(&self, config: &TrainConfig, step: u64) {
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.train_with(config, &Stop::new(), &mut |progress| {
                if matches!(progress, Progress::Step(report) if report.step == step) {
                    std::panic::resume_unwind(Box::new("killed"));
                }
            })
        }));
        assert!(died.is_err());
    }

    /// Step, loss, rate and gradient norm of every line, as written.
    fn record(&self) -> Vec<[String; 4]> {
        let text = fs::read_to_string(self.dir.path().join(metrics::METRICS_FILE)).unwrap();
        let field = |line: &str, name: &str| {
            let start = line.find(&format!("\"{name}\":")).unwrap();
            let written = line[start..].split([',', '}']).next().unwrap();
            written.to_string()
        };
        let fields = |line| ["step", "loss", "lr", "grad_norm"].map(|name| field(line, name));
        text.lines().map(fields).collect()
    }

    fn weights(&self) -> Vec<(String, Vec<u32>)> {
        let dir = crate::checkpoint::locate(self.dir.path()).unwrap();
        let tensors = read_tensors(&dir.join(crate::checkpoint::MODEL_FILE), &Device::Cpu).unwrap();
        let bits = |tensor: Tensor| {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        let mut weights: Vec<_> = tensors
            .into_iter()
            .map(|(name, tensor)| (name, bits(tensor)))
            .collect();
        weights.sort();
        weights
    }
}

#[test]
fn a_run_learns_and_leaves_everything_where_it_says() {
    let mut config = tiny();
    config.optim.max_steps = Some(60);
    config.run.pictures_every = 50;
    let run = Run::new();
    let mut notes = Vec::new();
    let summary = run
        .train_with(&config, &Stop::new(), &mut |progress| {
            if let Progress::Note(text) | Progress::Warning(text) = progress {
                notes.push((*text).to_string());
            }
        })
        .unwrap();
    assert_eq!((summary.steps, summary.stopped), (60, false));
    assert!(
        summary.last_loss.unwrap() < 0.97 * summary.first_loss.unwrap(),
        "{summary:?}"
    );
    for file in [
        CONFIG_FILE,
        CURVES_FILE,
        SUMMARY_FILE,
        "metrics.jsonl",
        "pictures/step-00000050.png",
        "pictures/step-00000060.png",
        "checkpoints/latest",
        "checkpoints/step-00000060/model.safetensors",
    ] {
        assert!(run.path().join(file).is_file(), "{file}");
    }
    assert_eq!(run.record().len(), 60);
    let written =
        TrainConfig::from_toml(&fs::read_to_string(run.path().join(CONFIG_FILE)).unwrap()).unwrap();
    assert_eq!(written, config.resolved().unwrap());
    assert!(
        notes.iter().any(|note| note.contains("effective batch 4")),
        "{notes:?}"
    );
    let again: Summary =
        serde_json::from_slice(&fs::read(run.path().join(SUMMARY_FILE)).unwrap()).unwrap();
    assert_eq!(
        (again.steps, again.last_loss, again.checkpoint),
        (summary.steps, summary.last_loss, summary.checkpoint)
    );
}

#[test]
fn stopped_or_killed_anywhere_it_ends_as_if_undisturbed_for_any_number_of_threads() {
    let undisturbed = Run::new();
    undisturbed.train(&tiny()).unwrap();
    let (record, weights) = (undisturbed.record(), undisturbed.weights());
    assert_eq!(record.len(), 12);
    for threads in [1, 3] {
        let mut config = tiny();
        config.data.threads = threads;
        let stopped = Run::new();
        for step in [1, 4, 5, 9] {
            let summary = stopped.train_until(&config, step).unwrap();
            assert!(summary.stopped && summary.steps == step);
        }
        stopped.train(&config).unwrap();
        assert_eq!(stopped.record(), record, "stopped, {threads} threads");
        assert_eq!(stopped.weights(), weights, "stopped, {threads} threads");
        let killed = Run::new();
        for step in [3, 7, 11] {
            killed.train_and_die(&config, step);
        }
        let summary = killed.train(&config).unwrap();
        assert_eq!(killed.record(), record, "killed, {threads} threads");
        assert_eq!(killed.weights(), weights, "killed, {threads} threads");
        let whole = undisturbed.train(&tiny()).unwrap();
        assert_eq!(
            (summary.first_loss, summary.last_loss),
            (whole.first_loss, whole.last_loss)
        );
    }
}

#[test]
fn accumulation_resumes_and_straddles_epochs() {
    let mut config = tiny();
    config.optim.accum_steps = 3;
    config.optim.max_steps = Some(5);
    config.optim.lr_order = crate::optim::LrOrder::Reference;
    config.optim.clip_norm = Some(0.1);
    let undisturbed = Run::new();
    let summary = undisturbed.train(&config).unwrap();
    assert_eq!(summary.epochs, 3.0);
    let stopped = Run::new();
    stopped.train_until(&config, 2).unwrap();
    stopped.train(&config).unwrap();
    assert_eq!(stopped.record(), undisturbed.record());
    assert_eq!(stopped.weights(), undisturbed.weights());
    assert_eq!(
        undisturbed.record()[0][2],
        "\"lr\":0.002",
        "the reference's first step is at the peak"
    );
}

#[test]
fn a_portion_of_a_run_is_the_start_of_the_whole() {
    let mut config = tiny();
    config.run.log_every = 3;
    config.run.pictures_every = 5;
    let whole = Run::new();
    whole.train(&config).unwrap();
    let portions = Run::new();
    config.run.stop_after = Some(7);
    assert!(portions.train(&config).unwrap().stopped);
    config.run.stop_after = None;
    assert!(!portions.train(&config).unwrap().stopped);
    assert_eq!(portions.record(), whole.record());
    let pictures = |run: &Run| {
        let dir = fs::read_dir(run.path().join(PICTURES_DIR)).unwrap();
        let mut names: Vec<_> = dir.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(pictures(&portions), pictures(&whole));
}

#[test]
fn a_stop_inside_a_step_drops_it_and_saves_the_one_before() {
    let mut config = tiny();
    config.optim.accum_steps = 20;
    config.optim.max_steps = Some(3);
    config.optim.ema_decay = Some(0.9);
    config.run.checkpoint_every = None;
    config.data.prefetch_batches = 1;
    let undisturbed = Run::new();
    undisturbed.train(&config).unwrap();
    let run = Run::new();
    let stop = Stop::new();
    *run.source.stop_after.lock().unwrap() = Some((30 * 4, stop.clone())); // inside the second step
    let summary = run.train_with(&config, &stop, &mut |_| ()).unwrap();
    assert_eq!((summary.steps, summary.stopped), (1, true));
    assert!(summary.checkpoint.unwrap().ends_with("step-00000001"));
    *run.source.stop_after.lock().unwrap() = None;
    run.train(&config).unwrap();
    assert_eq!(run.record(), undisturbed.record());
    assert_eq!(run.weights(), undisturbed.weights());

    // In the first step there is nothing to save yet.
    let run = Run::new();
    let stop = Stop::new();
    *run.source.stop_after.lock().unwrap() = Some((5 * 4, stop.clone()));
    let summary = run.train_with(&config, &stop, &mut |_| ()).unwrap();
    assert_eq!((summary.steps, summary.checkpoint), (0, None));
}

#[test]
fn a_running_mean_survives_stops_and_kills_bit_for_bit() {
    let mut config = tiny();
    config.optim.ema_decay = Some(0.8);
    let mean = |run: &Run| {
        let dir = crate::checkpoint::locate(run.dir.path()).unwrap();
        fs::read(dir.join(crate::checkpoint::EMA_FILE)).unwrap()
    };
    let undisturbed = Run::new();
    undisturbed.train(&config).unwrap();
    let weights = crate::checkpoint::locate(undisturbed.dir.path()).unwrap();
    let weights = fs::read(weights.join(crate::checkpoint::MODEL_FILE)).unwrap();
    assert_ne!(mean(&undisturbed), weights);
    let disturbed = Run::new();
    disturbed.train_until(&config, 3).unwrap();
    disturbed.train_and_die(&config, 7);
    disturbed.train(&config).unwrap();
    assert_eq!(mean(&disturbed), mean(&undisturbed));
    assert_eq!(disturbed.weights(), undisturbed.weights());

    config.optim.ema_decay = None;
    let message = disturbed.train(&config).unwrap_err().to_string();
    assert!(
        message.contains("optim.ema_decay: 0.8 -> absent"),
        "{message}"
    );
}

/// The two-view method with every part that looks across the batch.
fn tiny_contrast() -> TrainConfig {
    let mut config = tiny();
    config.model.kind = ModelKind::MultiView;
    config.data.views = ViewsKind::MultiView;
    config.model.contrastive.projector_hidden_dim = 12;
    config.model.contrastive.projector_dim = 8;
    config
}

fn assert_same_losses(got: &Run, expected: &Run, what: &str) {
    let (got, expected) = (got.losses(), expected.losses());
    assert_eq!(got.len(), expected.len(), "{what}");
    let apart = |(a, b): (&f32, &f32)| f64::from((a - b).abs() / b.abs());
    let apart = got.iter().zip(&expected).map(apart).fold(0.0, f64::max);
    assert!(apart < 1e-5, "{what}: {apart:e}");
}

#[test]
fn ranks_make_the_steps_of_one_process() {
    let mut momentum = tiny_contrast();
    momentum.model.contrastive.predictor = true;
    momentum.model.contrastive.momentum = Some(0.9);
    momentum.optim.accum_steps = 2;
    // Few and small steps: a batch normalisation over four encodings that are almost equal multiplies rounding.
    momentum.optim.lr = Some(1e-4);
    momentum.optim.max_steps = Some(4);
    momentum.run.pictures_every = 2; // a forward pass in which all take part
    for (name, config) in [
        ("siamese", tiny()),
        ("contrast", tiny_contrast()),
        ("momentum", momentum),
    ] {
        let alone = Run::new();
        alone.train(&config).unwrap();
        for n_ranks in [2, 4] {
            let many = Run::new();
            let summary = many.train_on(n_ranks, &config, &Stop::new());
            assert!(!summary.stopped);
            assert_same_losses(&many, &alone, &format!("{name} on {n_ranks} ranks"));
        }
    }
}

#[test]
fn a_stop_on_one_rank_stops_all_and_other_numbers_of_ranks_go_on() {
    let undisturbed = Run::new();
    undisturbed.train(&tiny()).unwrap();
    let run = Run::new();
    let mut config = tiny();
    config.data.prefetch_batches = 1;
    for n_ranks in [2, 4] {
        let stop = Stop::new();
        *run.source.stop_after.lock().unwrap() = Some((3 * 4, stop.clone()));
        let summary = run.train_on(n_ranks, &config, &stop);
        assert!(
            summary.stopped && summary.checkpoint.is_some(),
            "{summary:?}"
        );
    }
    *run.source.stop_after.lock().unwrap() = None;
    let summary = run.train(&config).unwrap();
    assert_eq!((summary.steps, summary.stopped), (12, false));
    assert_same_losses(&run, &undisturbed, "2, 4 and 1 ranks in turn");
}

#[test]
fn bad_samples_are_counted_over_all_ranks_and_each_once() {
    let broken = || {
        let mut source = Waves::new(22);
        let pictures = &mut Arc::get_mut(&mut source).unwrap().pictures;
        (5..9).for_each(|index| pictures[index] = Bytes::from_static(b"no picture"));
        Run {
            source,
            ..Run::new()
        }
    };
    let mut config = tiny();
    config.data.max_bad = MaxBad::Count(4);
    let count = |run: &Run| metrics::read(run.dir.path()).unwrap()[11].bad_samples;
    let alone = broken();
    let names = alone.train(&config).unwrap().bad_samples;
    assert_eq!((names.len(), count(&alone)), (4, 4), "{names:?}");
    let many = broken();
    let summary = many.train_on(2, &config, &Stop::new());
    assert_eq!((summary.bad_samples, count(&many)), (names, 4));

    config.data.max_bad = MaxBad::Count(3);
    let run = broken();
    let errors = on_ranks(2, |ranks| {
        let trained = run.train_as(&ranks, &config, &Stop::new(), &mut |_| {});
        trained.unwrap_err().to_string()
    });
    for message in errors {
        assert!(
            message.contains("4 bad samples, expected at most 3"),
            "{message}"
        );
    }
}

#[test]
fn ranks_with_different_configs_are_refused() {
    let run = Run::new();
    let errors = on_ranks(2, |ranks| {
        let mut config = tiny();
        config.seed += ranks.rank() as u64;
        let trained = run.train_as(&ranks, &config, &Stop::new(), &mut |_| {});
        trained.unwrap_err().to_string()
    });
    for message in errors {
        assert!(message.contains("config of rank 1"), "{message}");
    }
}

#[test]
fn a_refused_run_leaves_the_record_of_the_one_before() {
    let run = Run::new();
    run.train_until(&tiny(), 2).unwrap();
    let path = run.path().join(CONFIG_FILE);
    let before = fs::read_to_string(&path).unwrap();
    let mut config = tiny();
    config.name = "other".to_string();
    let smaller = Run {
        source: Waves::new(16),
        ..run
    };
    smaller.train(&config).unwrap_err();
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
}

#[test]
fn a_moved_set_keeps_its_order() {
    let run = Run::new();
    run.train_until(&tiny(), 2).unwrap();
    let mut config = tiny();
    config.data.path = "elsewhere".to_string();
    run.train_until(&config, 3).unwrap();
    config.data.order = Some(pipeline::config::OrderKind::Blocks);
    let message = run.train(&config).unwrap_err().to_string();
    assert!(
        message.contains("data.order: \"full\" -> \"blocks\""),
        "{message}"
    );
}

#[test]
fn what_is_saved_past_a_damaged_checkpoint_stays() {
    let mut config = tiny();
    config.run.keep_last = 1;
    let run = Run::new();
    run.train_until(&config, 5).unwrap();
    let checkpoint = |name: &str| run.path().join("checkpoints").join(name);
    fs::create_dir(checkpoint("step-00000008")).unwrap(); // and nothing in it
    let summary = run.train_until(&config, 6).unwrap();
    assert_eq!(summary.checkpoint, Some(checkpoint("step-00000006")));
    assert!(checkpoint("step-00000006/state.json").is_file());
    assert!(checkpoint("damaged-step-00000008").is_dir());
    assert!(!run.train(&config).unwrap().stopped);
}

#[test]
fn a_finished_run_does_nothing_and_says_the_same() {
    let run = Run::new();
    let first = run.train(&tiny()).unwrap();
    let again = run.train(&tiny()).unwrap();
    assert_eq!(
        (again.steps, again.stopped, again.last_loss),
        (first.steps, false, first.last_loss)
    );
    assert_eq!(run.record().len(), 12);
}

#[test]
fn another_experiment_in_the_same_folder_is_refused() {
    let run = Run::new();
    run.train_until(&tiny(), 2).unwrap();
    let mut other = tiny();
    other.optim.weight_decay = 0.1;
    other.model.mask_ratio = Some(0.5);
    let message = run.train(&other).unwrap_err().to_string();
    assert!(
        message.contains("model.mask_ratio: 0.75 -> 0.5; optim.weight_decay: 0.05 -> 0.1"),
        "{message}"
    );
    let mut smaller = Run {
        source: Waves::new(16),
        ..run
    };
    let message = smaller.train(&tiny()).unwrap_err().to_string();
    assert!(message.contains("5 -> 4"), "{message}");
    smaller.source = Waves::new(22);
    smaller.train(&tiny()).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_warned_of_and_the_one_before_taken() {
    let undisturbed = Run::new();
    undisturbed.train(&tiny()).unwrap();
    let run = Run::new();
    run.train_until(&tiny(), 7).unwrap();
    let path = run
        .path()
        .join("checkpoints/step-00000007/optim.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).unwrap();
    let mut warnings = Vec::new();
    run.train_with(&tiny(), &Stop::new(), &mut |progress| {
        if let Progress::Warning(text) = progress {
            warnings.push((*text).to_string());
        }
    })
    .unwrap();
    assert!(
        warnings[0].contains("step-00000007") && warnings[0].contains("optim.safetensors"),
        "{warnings:?}"
    );
    assert_eq!(run.record(), undisturbed.record());
    assert_eq!(run.weights(), undisturbed.weights());
}

#[test]
fn a_rate_too_high_ends_in_a_named_step_with_named_samples() {
    let mut config = tiny();
    config.optim.lr = Some(1e30);
    config.optim.warmup_ratio = 0.0;
    config.run.checkpoint_every = Some(1);
    let run = Run::new();
    let error = run.train(&config).unwrap_err();
    let Error::NotFinite {
        step,
        keys,
        last_checkpoint,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(*step > 1 && keys.contains("wave-"), "{error}");
    assert!(
        last_checkpoint.ends_with(&format!("step-{:08}", step - 1)),
        "{error}"
    );
    let file = run.path().join(format!("not-finite-step-{step:08}.txt"));
    assert_eq!(fs::read_to_string(file).unwrap().lines().count(), 4);
}

#[test]
fn weights_that_an_update_spoiled_are_not_saved() {
    let mut config = tiny();
    config.optim.lr = Some(1e300); // infinite in f32
    config.optim.warmup_ratio = 0.0;
    config.run.checkpoint_every = Some(1);
    let run = Run::new();
    let error = run.train(&config).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("step 1: a value of "), "{message}");
    assert!(
        message.contains("wave-") && message.ends_with("last good checkpoint: none"),
        "{message}"
    );
    assert!(run.record().is_empty() || run.record().len() == 1);
    let (found, _) = Checkpoints::open(&run.path()).unwrap().newest().unwrap();
    assert!(found.is_none());
}

#[test]
fn a_deadline_stops_all_ranks_at_one_step_with_a_checkpoint() {
    let mut config = tiny();
    config.optim.max_steps = Some(1_000_000);
    for n_ranks in [1, 2] {
        let run = Run::new();
        let deadline = std::time::Instant::now().checked_add(std::time::Duration::from_millis(300));
        let stop = Stop::new().by(deadline); // that of the last rank
        let summary = run.train_on(n_ranks, &config, &stop);
        assert!(summary.stopped && stop.is_overdue(), "{summary:?}");
        assert_eq!(summary.checkpoint.is_some(), summary.steps > 0);
        assert_eq!(run.losses().len() as u64, summary.steps);
    }
}

#[test]
fn every_method_trains() {
    for (kind, views) in [
        (ModelKind::Mae, ViewsKind::Single),
        (ModelKind::MultiView, ViewsKind::MultiView),
    ] {
        let mut config = tiny();
        config.model.kind = kind;
        config.model.contrastive.projector_hidden_dim = 16;
        config.model.contrastive.projector_dim = 8;
        config.data.views = views;
        config.optim.max_steps = Some(3);
        config.run.pictures_every = 3;
        let run = Run::new();
        run.train(&config).unwrap();
        assert!(run.path().join("pictures/step-00000003.png").is_file());
    }
}

#[test]
fn the_running_mean_goes_out_in_place_of_the_weights() {
    let mut config = tiny();
    config.optim.ema_decay = Some(0.5);
    config.optim.max_steps = Some(3);
    let run = Run::new();
    run.train(&config).unwrap();
    let export = |run: &Run, name: &str, ema| {
        let (to, probe) = (exchange::Target::Torch, false);
        let dst = run.path().join(name);
        exchange::export(
            &run.path(),
            &dst,
            &exchange::ExportOptions { to, probe, ema },
        )?;
        read_tensors(&dst.join(crate::checkpoint::MODEL_FILE), &Device::Cpu)
    };
    let bits = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let dir = crate::checkpoint::locate(&run.path()).unwrap();
    let saved = read_tensors(&dir.join(crate::checkpoint::EMA_FILE), &Device::Cpu).unwrap();
    let (mean, weights) = (
        export(&run, "mean", true).unwrap(),
        export(&run, "weights", false).unwrap(),
    );
    assert_eq!(mean.len(), weights.len());
    assert!(
        mean.iter()
            .all(|(name, mean)| bits(mean) == bits(&saved[name]))
    );
    assert!(bits(&mean["cls_token"]) != bits(&weights["cls_token"]));

    let without = Run::new();
    config.optim.ema_decay = None;
    without.train(&config).unwrap();
    let message = export(&without, "mean", true).unwrap_err().to_string();
    assert!(message.contains("no ema.safetensors"), "{message}");
}

/// MoCo v3's scheme, the widest one: no decoder, a predictor, and a momentum branch that the running mean carries along.
fn contrastive() -> TrainConfig {
    let mut config = tiny();
    config.model.kind = ModelKind::MultiView;
    config.model.reconstruction_weight = 0.0;
    config.model.mask_ratio = Some(0.0);
    config.model.contrastive.predictor = true;
    config.model.contrastive.momentum = Some(0.9);
    config.model.contrastive.momentum_rises = true;
    config.model.contrastive.projector_hidden_dim = 16;
    config.model.contrastive.projector_dim = 8;
    config.data.views = ViewsKind::MultiView;
    config.optim.ema_decay = Some(0.5);
    config.optim.weight_decay = 0.05;
    config.run.pictures_every = 6;
    config.run.pictures_samples = 1;
    config
}

#[test]
fn a_momentum_branch_is_saved_and_resumed_bit_for_bit() {
    let undisturbed = Run::new();
    undisturbed.train(&contrastive()).unwrap();
    let stopped = Run::new();
    for step in [4, 7] {
        stopped.train_until(&contrastive(), step).unwrap();
    }
    stopped.train(&contrastive()).unwrap();
    assert_eq!(stopped.record(), undisturbed.record());
    assert_eq!(stopped.weights(), undisturbed.weights());

    let of = |file: &str| {
        let dir = crate::checkpoint::locate(&undisturbed.path()).unwrap();
        read_tensors(&dir.join(file), &Device::Cpu).unwrap()
    };
    let [model, mean, optim] =
        ["model", "ema", "optim"].map(|name| of(&format!("{name}.safetensors")));
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let name = "blocks.1.mlp.fc1.weight";
    let slow = values(&model[&format!("momentum.{name}")]);
    assert!(slow != values(&model[name]), "it lags behind");
    assert!(
        slow == values(&mean[&format!("momentum.{name}")]),
        "not the mean of a mean"
    );
    assert!(!optim.keys().any(|key| key.contains("momentum.")));
    assert!(
        !undisturbed.path().join(PICTURES_DIR).exists(),
        "nothing is reconstructed"
    );
}

/// After one step the branch keeps its share of the initial weights and takes the rest from the trained ones.
#[test]
fn the_momentum_branch_follows_by_the_configured_share() {
    let mut config = contrastive();
    config.model.contrastive.momentum_rises = false;
    config.optim.max_steps = Some(1);
    config.optim.warmup_ratio = 0.0;
    let run = Run::new();
    run.train(&config).unwrap();
    let mut params = Params::new(config.seed, DType::F32, &Device::Cpu);
    models::build(&config.resolved().unwrap().model, &mut params).unwrap();
    let dir = crate::checkpoint::locate(&run.path()).unwrap();
    let trained = read_tensors(&dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let name = "projector.fc1.weight";
    let start = values(params.get(name).unwrap().var.as_tensor());
    let (now, slow) = (
        values(&trained[name]),
        values(&trained[&format!("momentum.{name}")]),
    );
    assert!(now != start);
    for ((start, now), slow) in start.iter().zip(&now).zip(&slow) {
        assert!((0.9 * start + 0.1 * now - slow).abs() < 1e-7);
    }
}

#[test]
fn a_run_starts_from_the_weights_of_another() {
    let first = Run::new();
    first.train(&tiny()).unwrap();
    let mut config = tiny();
    config.seed += 1;
    config.init = Some(first.path());
    config.optim.max_steps = Some(1);
    config.optim.lr = Some(1e-30); // too small to change a bit
    let second = Run::new();
    second.train(&config).unwrap();
    assert_eq!(second.weights(), first.weights());

    config.init = Some(first.path().join("nowhere"));
    assert!(matches!(
        Run::new().train(&config),
        Err(Error::Checkpoint { .. })
    ));
}
