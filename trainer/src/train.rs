//! The training loop, from a configuration to a trained checkpoint, top to bottom.
//!
//! A *step* is one optimizer step over `optim.accum_steps` micro-batches of the endless stream of batches. Steps are
//! counted from 1 in everything that a person reads: "after step 300" is what checkpoint `step-00000300` holds.

mod bad;
mod clock;
pub(crate) mod lock;
mod plan;
mod progress;
mod watch;

pub use pipeline::Stop;
pub use progress::{DataCost, Progress, StepReport, Summary};

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use pipeline::loader::{Batch, Loader, LoaderState};
use pipeline::stall::Task;

use crate::checkpoint::{Checkpoints, Found, Keep, State};
use crate::config::{TrainConfig, differences};
use crate::device;
use crate::distributed::{Buckets, Ranks};
use crate::error::{Error, Result};
use crate::exchange;
use crate::files;
use crate::masking::StepRandomness;
use crate::metrics::{self, MetricsLine, MetricsLog, curves};
use crate::models::{self, Pretrain};
use crate::nn::params::Params;
use crate::ops;
use crate::optim::{AdamW, AdamWOptions, Ema, Gradients, clip, param_groups};
use crate::pictures::Reconstructions;
use crate::tape;
use bad::BadSamples;
use clock::Clock;
use plan::Plan;
use watch::{Losses, StepLoss};

/// The resolved configuration in the run folder.
pub const CONFIG_FILE: &str = "config.toml";

/// Loss and learning rate over the steps, in the run folder.
pub const CURVES_FILE: &str = "curves.svg";

/// Folder of the reconstructions in the run folder.
pub const PICTURES_DIR: &str = "pictures";

/// The [`Summary`] as JSON, in the run folder.
pub const SUMMARY_FILE: &str = "summary.json";

/// Trains what `config` describes in `run_dir`, going on from the newest checkpoint there if there is one.
///
/// * `stop`: once requested, the micro-batch in hand is finished, a checkpoint is written and the summary returned. A
///   step that lacks micro-batches then is dropped, and made anew on resume.
/// * `progress`: told of every step, and of everything that a person should read.
///
/// On the CPU of one machine the result depends on the configuration alone, to the last bit: not on the number of
/// threads of the loader, nor on where the run was stopped or killed.
///
/// # Errors
/// [`Error::ConfigChanged`] if the checkpoint is another experiment's, [`Error::NotFinite`] if the loss or a gradient
/// is NaN or infinite, [`Error::GradientCoverage`] if a parameter does not learn, and whatever data, device or disk
/// report. Where the data fail in mid-run, the steps made are saved before the error is returned.
pub fn train(
    config: &TrainConfig,
    run_dir: &Path,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    train_over(&Ranks::single(), config, run_dir, stop, progress)
}

/// As [`train`], as one of several processes that share every batch and make the steps that one would make alone.
///
/// Every rank calls this with the same configuration and the same run folder, which all must see. Rank 0 alone writes
/// there (but for the keys of the samples of a step that is not finite) and tells of progress; a wish to stop on any rank
/// stops all at the same place.
///
/// # Errors
/// As [`train`], on the rank that it concerns, which has to end the others ([`Ranks::abort`]); [`Error::Ranks`] if the
/// ranks lose each other, or their configurations or weights differ.
pub fn train_over(
    ranks: &Ranks,
    config: &TrainConfig,
    run_dir: &Path,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    train_portion(ranks, config, run_dir, Lock::Take, stop, progress)
}

/// Who takes the lock of the run folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// The training does, while it lasts.
    Take,
    /// The caller has it.
    Held,
}

/// As [`train_over`], for a caller that does more in the run folder than to train.
///
/// # Errors
/// As [`train_over`].
pub(crate) fn train_portion(
    ranks: &Ranks,
    config: &TrainConfig,
    run_dir: &Path,
    lock: Lock,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    let mut data = config.data.clone();
    if data.threads == 0 {
        data.threads = (device::cores() - 1).max(1);
    }
    let open = |start| Ok(Loader::new(&data, config.seed, ranks.share(), start)?);
    train_batches(ranks, config, &open, run_dir, lock, stop, progress)
}

/// As [`train_over`], with batches from any loader: `open` starts this rank's at a place in the stream.
///
/// # Errors
/// As [`train_over`].
pub fn train_from(
    ranks: &Ranks,
    config: &TrainConfig,
    open: &dyn Fn(LoaderState) -> Result<Loader>,
    run_dir: &Path,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    train_batches(ranks, config, open, run_dir, Lock::Take, stop, progress)
}

fn train_batches(
    ranks: &Ranks,
    config: &TrainConfig,
    open: &dyn Fn(LoaderState) -> Result<Loader>,
    run_dir: &Path,
    lock: Lock,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    let config = &config.resolved()?;
    let is_first = ranks.is_first();
    let silent: &mut dyn FnMut(&Progress) = &mut |_| {};
    let progress = if is_first { progress } else { silent };
    device::prepare_process();
    let device = ranks.device(&config.device)?;
    device::set_precision(config.precision);
    let of_config = crc32c::crc32c(config.to_toml()?.as_bytes());
    ranks.agree("the checksum of the config", of_config.into())?;
    let takes_lock = is_first && lock == Lock::Take;
    let _lock = takes_lock.then(|| lock::lock(run_dir)).transpose()?;
    let opened = is_first.then(|| Checkpoints::open(run_dir)).transpose()?;
    let resumed = match &opened {
        Some(checkpoints) => find_resumable(checkpoints, config, progress)?,
        None => None,
    };
    let resumed = ranks.from_first(resumed)?;
    let checkpoints = match opened {
        Some(checkpoints) => checkpoints,
        None => Checkpoints::open(run_dir)?, // rank 0 has tidied up
    };

    let mut loader = open(
        resumed
            .as_ref()
            .map(|found| found.state.loader)
            .unwrap_or_default(),
    )?; // prefetching starts
    let plan = Plan::new(config, loader.batches_per_epoch())?;
    let mut params = Params::new(config.seed, DType::F32, &device).across(ranks.clone());
    let model = models::build(&config.model, &mut params)?;
    let options = AdamWOptions {
        beta1: config.optim.betas[0],
        beta2: config.optim.betas[1],
    };
    let mut optim = AdamW::new(
        param_groups(trainable(&params), config.optim.weight_decay),
        options,
    )?;
    let decay = config.optim.ema_decay;
    let mut ema = decay.map(|decay| Ema::new(&params, decay)).transpose()?;
    let mut losses = Losses::default();
    if let Some(found) = &resumed {
        plan.check_data(found)?;
        found.restore(&params, &mut optim, ema.as_mut())?;
        if is_first {
            for aside in checkpoints.set_aside_after(found.state.step)? {
                let text = format!("a damaged checkpoint is now {}", aside.display());
                progress(&Progress::Warning(&text));
            }
        }
        losses = Losses::from_bits(&found.state.losses);
    } else if let Some(init) = &config.init {
        exchange::start_from(init, &config.model, &params)?;
        ema = decay.map(|decay| Ema::new(&params, decay)).transpose()?;
        progress(&Progress::Note(&format!(
            "starting from the weights in {}",
            init.display()
        )));
    }
    let start = optim.steps();
    if is_first {
        files::replace(&run_dir.join(CONFIG_FILE), config.to_toml()?.as_bytes())?; // the record of what really ran
    }
    plan.announce(config, &params, &device, start, progress);
    if ranks.size() > 1 {
        progress(&Progress::Note(&format!(
            "{} ranks, each on {} of the {} pairs of a batch",
            ranks.size(),
            config.data.batch_size / ranks.size(),
            config.data.batch_size
        )));
    }

    let mut log = is_first
        .then(|| MetricsLog::open(run_dir, start))
        .transpose()?;
    let mut uploader = device::Uploader::new(&device)?;
    let mut grads = Gradients::new(trainable(&params));
    let mut buckets = Buckets::new(ranks, &params);
    let mut bad = BadSamples::default();
    let n_shares = (plan.accum_steps * ranks.size() as u64) as f64; // of a step's loss
    let mut clock = Clock::start();
    let mut computing = Task::new("computing", |step| format!("step {step}"));
    let mut done = start;
    let mut stopping = ranks.any(stop.is_requested())?;
    let is_milestone = |steps| plan.is_milestone(steps, config);
    let keep = Keep {
        last: config.run.keep_last,
        is_milestone: &is_milestone,
    };
    let save = |done,
                place,
                keys: &[String],
                losses: &Losses,
                optim: &AdamW,
                ema: Option<&Ema>,
                log: Option<&MetricsLog>,
                progress: &mut dyn FnMut(&Progress)|
     -> Result<()> {
        watch::check_weights(done, &params, keys, ranks, run_dir, &checkpoints)?;
        if ranks.size() > 1 {
            let what = format!("the checksum of the weights after step {done}");
            ranks.agree(&what, params.checksum()?.into())?;
        }
        let Some(log) = log else {
            return Ok(()); // rank 0 saves
        };
        // What was logged before a checkpoint is on the disk when the checkpoint is.
        log.sync()
            .map_err(|error| checkpoints.not_saved(done, error))?;
        let state = State::new(
            done,
            place,
            plan.batches_per_epoch,
            config.to_toml()?,
            losses.to_bits(),
        );
        progress(&Progress::Saved(
            &checkpoints.save(&params, optim, ema, state, keep)?,
        ));
        Ok(())
    };
    if is_first && start > 0 {
        checkpoints.settle(start, keep)?;
    }
    let mut saved = start;
    let mut failed = None; // the data: the steps until then are saved first
    let mut bottleneck = None;
    let mut place = loader.state(); // of the last step's end
    let mut keys = Vec::new(); // of its samples
    while done < plan.last_step && !stopping {
        let step = done + 1;
        let lr = plan.lr(step);
        clock.begin_step();
        grads.clear();
        let mut loss = StepLoss::default();
        let mut shown = None;
        for micro_batch in 1..=plan.accum_steps {
            stopping = ranks.any(stop.is_requested())?;
            if stopping {
                break; // the step is dropped: thousands of micro-batches may be missing from it
            }
            let batch = match clock.waiting(|| loader.next_batch()) {
                Ok(batch) => batch,
                // One rank alone cannot save: the others would not know.
                Err(error) if ranks.size() > 1 => return Err(error.into()),
                Err(error) => {
                    failed = Some(Error::from(error));
                    break;
                }
            };
            let _busy = computing.begin(step);
            loss.keys.extend_from_slice(&batch.keys);
            let views = uploader.upload(&batch)?; // [B, V, 3, H, W]
            let randomness = randomness(config.seed, &batch);
            let (forward, tape) = ops::with_precision(config.precision, || {
                tape::record(|| model.forward(&views, &randomness, true))
            })?;
            loss.add(&forward, plan.accum_steps)?;
            watch::check_loss(step, &loss, ranks, run_dir, &checkpoints)?; // before the update; names step and samples
            let mut on_ready = |name: &str, grad: &Tensor| match micro_batch == plan.accum_steps {
                true => buckets.ready(name, grad), // final, and on its way to the other ranks
                false => Ok(()),
            };
            grads.backward(tape, &forward.loss, 1.0 / n_shares, &mut on_ready)?;
            shown = Some((views, randomness));
            loader.recycle(batch);
        }
        if stopping || failed.is_some() {
            break;
        }
        buckets.finish(&mut grads)?;
        loss.average(ranks)?;
        bad.update(ranks, &loader)?;
        let norms = clip::norms(&grads)?;
        watch::check_gradients(step, &norms, &loss, ranks, run_dir, &checkpoints)?;
        if step == 1
            && let Some(text) = watch::check_coverage(&norms, config.model.drop_path)?
        {
            progress(&Progress::Warning(&text));
        }
        let busy = computing.begin(step);
        let clip_norm = config.optim.clip_norm;
        let factor = clip_norm.map_or(1.0, |max_norm| clip::factor(&norms, max_norm));
        optim.step_scaled(&grads, factor, lr)?;
        let progress_made = step as f64 / plan.total_steps as f64;
        if let Some(keep) = config.model.contrastive.momentum_at(progress_made) {
            params.follow(keep)?;
        }
        if let Some(ema) = &mut ema {
            ema.update()?;
        }
        drop(busy);
        done = step;
        place = loader.state();
        losses.push(loss.mean());
        clock.end_step(config.effective_batch(), plan.last_step - done);

        if let Some(log) = &mut log
            && config.run.log_due(done, plan.total_steps)
        {
            let stats = loader.stats();
            bottleneck = Some(stats.bottleneck());
            let line = MetricsLine {
                step: done,
                epoch: plan.epochs_after(done),
                loss: loss.mean(),
                parts: loss.parts(),
                lr,
                grad_norm: norms.global,
                pairs_per_s: clock.window().pairs_per_s(),
                data_wait_pct: clock.window().data_wait_pct(),
                eta_s: clock.eta_s(),
                bad_samples: bad.count(),
                bottleneck: bottleneck.map(str::to_owned),
                reduced_difference: stats.reduced.and_then(|reduced| reduced.mean_difference),
                time: clock::unix_time_s(),
            };
            log.write(&line)?;
            clock.clear_window();
        }
        progress(&Progress::Step(&StepReport {
            step: done,
            last_step: plan.last_step,
            epoch: plan.epochs_after(done),
            loss: loss.mean(),
            lr,
            grad_norm: norms.global,
            pairs_per_s: clock.session().pairs_per_s(),
            data_wait_pct: clock.session().data_wait_pct(),
            bottleneck,
            eta_s: clock.eta_s(),
        }));
        if let Some((views, randomness)) =
            shown.filter(|_| config.run.pictures_due(done, plan.total_steps))
        {
            draw(
                config,
                model.as_ref(),
                &views,
                randomness,
                is_first.then(|| run_dir.join(PICTURES_DIR)),
                done,
            )?;
        }
        keys = loss.keys;
        stopping = ranks.any(stop.is_requested())?;
        if plan.checkpoint_due(done, config) || stopping {
            save(
                done,
                place,
                &keys,
                &losses,
                &optim,
                ema.as_ref(),
                log.as_ref(),
                progress,
            )?;
            saved = done;
        }
    }
    let last_save = match done > saved {
        true => save(
            done,
            place,
            &keys,
            &losses,
            &optim,
            ema.as_ref(),
            log.as_ref(),
            progress,
        ), // stopped inside a step
        false => Ok(()),
    };
    match (failed, last_save) {
        (None, saved) => saved?,
        (Some(data), Ok(())) => return Err(data),
        (Some(data), Err(saving)) => {
            return Err(Error::Unsaved {
                data: Box::new(data),
                saving: Box::new(saving),
            });
        }
    }

    // Rank 0's word on it; the others wait until everything is written.
    let finish = || -> Result<Summary> {
        let lines = metrics::read(run_dir)?;
        files::replace(
            &run_dir.join(CURVES_FILE),
            curves::svg(&config.name, &lines).as_bytes(),
        )?;
        let summary = Summary {
            steps: done,
            total_steps: plan.total_steps,
            stopped: done < plan.total_steps,
            epochs: plan.epochs_after(done),
            first_loss: losses.first_mean(),
            last_loss: losses.last_mean(),
            pairs_per_s: clock.session().pairs_per_s(),
            data_wait_pct: clock.session().data_wait_pct(),
            data: DataCost::of(&loader.stats(), config.data.views),
            peak_memory_bytes: device::peak_memory_bytes(&device),
            bad_samples: bad.named(),
            run_dir: run_dir.to_path_buf(),
            checkpoint: checkpoints.latest_dir()?,
        };
        summary.write(&run_dir.join(SUMMARY_FILE))?;
        Ok(summary)
    };
    let summary = is_first.then(finish).transpose()?;
    let missing = || Error::Ranks("rank 0 ended without a summary".to_owned());
    ranks.from_first(summary)?.ok_or_else(missing)
}

/// The newest whole checkpoint, if it belongs to this experiment.
fn find_resumable(
    checkpoints: &Checkpoints,
    config: &TrainConfig,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Option<Found>> {
    let (found, damaged) = checkpoints.newest()?;
    for problem in &damaged {
        progress(&Progress::Warning(problem));
    }
    let Some(found) = found else { return Ok(None) };
    let changed = differences(
        &TrainConfig::from_toml(&found.state.config)?.resolved()?,
        config,
    )?;
    if !changed.fatal.is_empty() {
        return Err(Error::ConfigChanged {
            path: found.dir,
            differences: changed.fatal.join("; "),
        });
    }
    for change in changed.noted {
        progress(&Progress::Warning(&format!("going on with {change}")));
    }
    progress(&Progress::Note(&format!(
        "going on after step {} from {}",
        found.state.step,
        found.dir.display()
    )));
    Ok(Some(found))
}

fn trainable(params: &Params) -> Vec<(String, Var)> {
    params
        .iter_trainable()
        .map(|param| (param.name.clone(), param.var.clone()))
        .collect()
}

fn randomness(seed: u64, batch: &Batch) -> StepRandomness {
    StepRandomness {
        seed,
        epoch: batch.epoch,
        samples: batch.samples.clone(),
    }
}

/// Reconstructs the first samples of this rank's batch, without dropout, and writes the picture where `dir` says, on rank
/// 0; the others take part, since a model may look across the ranks.
fn draw(
    config: &TrainConfig,
    model: &dyn Pretrain,
    views: &Tensor,
    randomness: StepRandomness,
    dir: Option<PathBuf>,
    step: u64,
) -> Result<()> {
    let n_shown = config.run.pictures_samples.min(randomness.samples.len());
    let n_seen = n_shown.max(2).min(randomness.samples.len()); // a contrastive loss compares two at least
    let views = views.narrow(0, 0, n_seen)?;
    let samples = randomness.samples[..n_seen].to_vec();
    let forward = model.forward(
        &views,
        &StepRandomness {
            samples,
            ..randomness
        },
        false,
    )?;
    let values = |tensor: &Tensor| {
        tensor
            .narrow(0, 0, n_shown)?
            .to_dtype(DType::F32)?
            .to_device(&Device::Cpu)?
            .flatten_all()?
            .to_vec1::<f32>()
    };
    let (Some(reconstruction), Some(dir)) = (forward.reconstruction, dir) else {
        return Ok(()); // a model without a decoder has nothing to show
    };
    let sizes = config.model.sizes();
    let picture = Reconstructions {
        views: &values(&views)?,
        n_views: config.model.n_views(),
        size: sizes.img_size,
        pred: &values(&reconstruction.pred)?,
        mask: &values(&reconstruction.mask)?,
        target_view: reconstruction.target_view,
        patch_size: sizes.patch_size,
        norm_pix_loss: config.model.norm_pix_loss,
    }
    .render();
    fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    picture.write_png(&dir.join(format!("step-{step:08}.png")))
}

#[cfg(test)]
mod tests;
