use candle_core::{DType, Var};
use pipeline::loader::LoaderState;

use super::*;
use crate::nn::init::Init;
use crate::optim::{AdamWOptions, Gradients, param_groups};

const KEEP: Keep = Keep {
    last: 2,
    is_milestone: &|_| false,
};

fn setup(seed: u64) -> (Params, AdamW) {
    let mut params = Params::new(seed, DType::F32, &Device::Cpu);
    params
        .trainable("a.weight", &[3, 4], Init::XavierUniform)
        .unwrap();
    params.trainable("a.bias", &[3], Init::Zeros).unwrap();
    let table = candle_core::Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
    params.frozen("pos_embed", &table).unwrap();
    let groups = param_groups(trainable(&params), 0.05);
    (
        params,
        AdamW::new(
            groups,
            AdamWOptions {
                beta1: 0.9,
                beta2: 0.95,
            },
        )
        .unwrap(),
    )
}

fn trainable(params: &Params) -> Vec<(String, Var)> {
    params
        .iter_trainable()
        .map(|param| (param.name.clone(), param.var.clone()))
        .collect()
}

fn step(params: &Params, optim: &mut AdamW) {
    let mut grads = Gradients::new(trainable(params));
    for (_, var) in trainable(params) {
        let loss = (var.as_tensor() - 0.7)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap();
        grads.accumulate(loss.backward().unwrap()).unwrap();
    }
    optim.step(&grads, 1e-2).unwrap();
}

fn state(step: u64) -> State {
    let losses = LossBits {
        first: vec![0.1f32.to_bits()],
        last: vec![],
    };
    State::new(
        step,
        LoaderState {
            epoch: 1,
            batch: step,
        },
        10,
        "name = \"x\"\n".to_string(),
        losses,
    )
}

fn values(params: &Params) -> Vec<Vec<f32>> {
    params
        .iter()
        .map(|param| param.var.flatten_all().unwrap().to_vec1().unwrap())
        .collect()
}

/// Saves at steps 1 to `n`, one optimizer step apart.
fn saved(n: u64) -> (tempfile::TempDir, Checkpoints, Params, AdamW) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(dir.path()).unwrap();
    let (params, mut optim) = setup(1);
    for number in 1..=n {
        step(&params, &mut optim);
        checkpoints
            .save(&params, &optim, None, state(number), KEEP)
            .unwrap();
    }
    (dir, checkpoints, params, optim)
}

#[test]
fn the_newest_before_a_step_is_found() {
    let (_dir, checkpoints, _, _) = saved(4);
    let before = |step| {
        let found = checkpoints.latest_before(step).unwrap();
        found.map(|(step, dir)| (step, dir.ends_with(dir_name(step))))
    };
    let expected = [Some((4, true)), Some((3, true)), None];
    assert_eq!([5, 4, 3].map(before), expected, "the last two are kept");
}

#[test]
fn what_is_saved_comes_back_and_goes_on_bit_for_bit() {
    let (_dir, checkpoints, params, mut optim) = saved(2);
    let (found, warnings) = checkpoints.newest().unwrap();
    let found = found.unwrap();
    assert!(warnings.is_empty());
    assert_eq!((found.state.step, found.state.loader.batch), (2, 2));
    let (other, mut other_optim) = setup(9);
    found.restore(&other, &mut other_optim, None).unwrap();
    assert_eq!(values(&other), values(&params));
    step(&params, &mut optim);
    step(&other, &mut other_optim);
    assert_eq!(values(&other), values(&params));
}

#[test]
fn the_same_state_gives_the_same_bytes() {
    let (one, _, _, _) = saved(1);
    let (two, _, _, _) = saved(1);
    for file in [MODEL_FILE, OPTIM_FILE, STATE_FILE] {
        let read = |dir: &tempfile::TempDir| {
            fs::read(dir.path().join("checkpoints/step-00000001").join(file)).unwrap()
        };
        assert_eq!(read(&one), read(&two), "{file}");
    }
}

#[test]
fn only_what_should_stay_stays_and_latest_points_at_the_newest() {
    let (dir, checkpoints, params, optim) = saved(1);
    let keep = Keep {
        last: 2,
        is_milestone: &|step| step == 4,
    };
    for number in 2..=7 {
        checkpoints
            .save(&params, &optim, None, state(number), keep)
            .unwrap();
    }
    let mut left = names(&dir.path().join(CHECKPOINTS_DIR)).unwrap();
    left.sort();
    assert_eq!(
        left,
        ["latest", "step-00000004", "step-00000006", "step-00000007"]
    );
    assert_eq!(
        locate(dir.path()).unwrap(),
        dir.path().join("checkpoints/step-00000007")
    );
    assert_eq!(
        locate(&dir.path().join("checkpoints/step-00000004"))
            .unwrap()
            .file_name()
            .unwrap(),
        "step-00000004"
    );
    assert!(locate(&dir.path().join("nowhere")).is_err());
}

#[test]
fn saving_the_same_step_again_replaces_it() {
    let (_dir, checkpoints, params, mut optim) = saved(1);
    step(&params, &mut optim);
    checkpoints
        .save(&params, &optim, None, state(1), KEEP)
        .unwrap();
    let found = checkpoints.newest().unwrap().0.unwrap();
    let (other, mut other_optim) = setup(9);
    found.restore(&other, &mut other_optim, None).unwrap();
    assert_eq!(values(&other), values(&params));
}

#[test]
fn any_damage_is_seen_named_and_passed_over() {
    for file in [MODEL_FILE, OPTIM_FILE, STATE_FILE] {
        for damage in ["flip", "cut", "gone"] {
            let (_dir, checkpoints, _, _) = saved(2);
            let path = checkpoints.root.join("step-00000002").join(file);
            let mut bytes = fs::read(&path).unwrap();
            match damage {
                "flip" => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    fs::write(&path, bytes).unwrap();
                }
                "cut" => fs::write(&path, &bytes[..bytes.len() - 1]).unwrap(),
                _ => fs::remove_file(&path).unwrap(),
            }
            let (found, warnings) = checkpoints.newest().unwrap();
            assert_eq!(found.unwrap().state.step, 1, "{file} {damage}");
            assert!(
                warnings[0].contains("step-00000002") && warnings[0].contains(file),
                "{warnings:?}"
            );
        }
    }
}

#[test]
fn every_bit_of_the_state_is_watched() {
    let (_dir, checkpoints, _, _) = saved(2);
    let path = checkpoints.root.join("step-00000002").join(STATE_FILE);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(
            checkpoints.newest().unwrap().0.unwrap().state.step,
            1,
            "byte {at}"
        );
    }
}

#[test]
fn nothing_whole_is_an_error_and_nothing_at_all_is_a_fresh_start() {
    let (_dir, checkpoints, _, _) = saved(1);
    fs::write(checkpoints.root.join("step-00000001").join(MODEL_FILE), b"").unwrap();
    let message = checkpoints.newest().unwrap_err().to_string();
    assert!(
        message.contains("no checkpoint in it is whole") && message.contains(MODEL_FILE),
        "{message}"
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(
        Checkpoints::open(empty.path())
            .unwrap()
            .newest()
            .unwrap()
            .0
            .is_none()
    );
}

#[test]
fn checkpoints_that_were_taken_away_are_missed() {
    let (_dir, checkpoints, _, _) = saved(1);
    fs::remove_dir_all(checkpoints.root.join(dir_name(1))).unwrap();
    let message = checkpoints.newest().unwrap_err().to_string();
    assert!(
        message.contains("step-00000001, which is gone"),
        "{message}"
    );
    fs::remove_file(checkpoints.root.join(LATEST_FILE)).unwrap();
    assert!(checkpoints.newest().unwrap().0.is_none(), "a fresh start");
}

#[test]
fn what_a_kill_left_half_written_is_ignored_and_removed() {
    let (dir, checkpoints, _, _) = saved(1);
    let half = checkpoints.root.join(".tmp-step-00000002");
    fs::create_dir(&half).unwrap();
    fs::write(half.join(MODEL_FILE), b"half").unwrap();
    fs::write(checkpoints.root.join(".tmp-latest"), b"step").unwrap();
    let checkpoints = Checkpoints::open(dir.path()).unwrap();
    assert_eq!(checkpoints.newest().unwrap().0.unwrap().state.step, 1);
    let mut left = names(&checkpoints.root).unwrap();
    left.sort();
    assert_eq!(left, ["latest", "step-00000001"]);
}

#[test]
fn what_a_kill_left_undone_after_a_checkpoint_is_done_when_resuming() {
    let (dir, checkpoints, ..) = saved(3);
    let root = dir.path().join(CHECKPOINTS_DIR);
    // Between the new name, `latest` and the removal of the oldest.
    for named in ["step-00000002", "step-00000003"] {
        fs::write(root.join(LATEST_FILE), format!("{named}\n")).unwrap();
        fs::create_dir(root.join("step-00000001")).unwrap();
        checkpoints.settle(3, KEEP).unwrap();
        assert_eq!(locate(dir.path()).unwrap(), root.join("step-00000003"));
        assert!(!root.join("step-00000001").exists());
    }
}

#[test]
fn a_running_mean_is_saved_watched_and_restored_bit_for_bit() {
    let (_dir, checkpoints, params, mut optim) = saved(1);
    let mut ema = Ema::new(&params, 0.9).unwrap();
    step(&params, &mut optim);
    ema.update().unwrap();
    checkpoints
        .save(&params, &optim, Some(&ema), state(2), KEEP)
        .unwrap();
    let found = checkpoints.newest().unwrap().0.unwrap();
    let (other, mut other_optim) = setup(9);
    let mut restored = Ema::new(&other, 0.9).unwrap();
    found
        .restore(&other, &mut other_optim, Some(&mut restored))
        .unwrap();
    let bits = |ema: &Ema| -> Vec<Vec<f32>> {
        let flat = |(_, tensor): (String, candle_core::Tensor)| tensor.flatten_all().unwrap();
        let tensors = ema.tensors().into_iter().map(flat);
        tensors.map(|flat| flat.to_vec1().unwrap()).collect()
    };
    assert_eq!(bits(&restored), bits(&ema));
    let path = found.dir.join(EMA_FILE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let (found, warnings) = checkpoints.newest().unwrap();
    assert_eq!(found.unwrap().state.step, 1);
    assert!(warnings[0].contains(EMA_FILE), "{warnings:?}");
}

#[test]
fn a_damaged_newer_checkpoint_neither_counts_nor_is_called_good() {
    let (_dir, checkpoints, params, optim) = saved(3);
    let path = |step: u64| checkpoints.root.join(dir_name(step));
    fs::write(path(3).join(MODEL_FILE), b"").unwrap();
    assert_eq!(checkpoints.latest_dir().unwrap(), Some(path(2)));
    let keep = Keep { last: 1, ..KEEP };
    // As a program that does not set it aside would: what it saves must stay.
    fs::rename(path(3), path(9)).unwrap();
    checkpoints
        .save(&params, &optim, None, state(4), keep)
        .unwrap();
    assert!(path(4).is_dir() && !path(2).exists());
    for n in ["damaged-step-00000009", "damaged-step-00000009-2"] {
        let aside = checkpoints.set_aside_after(4).unwrap();
        assert_eq!(aside, [checkpoints.root.join(n)]);
        fs::create_dir(path(9)).unwrap();
    }
    fs::remove_dir(path(9)).unwrap();
    assert_eq!(locate(&checkpoints.root).unwrap(), path(4));
    assert!(checkpoints.set_aside_after(4).unwrap().is_empty());
}

#[test]
fn a_kill_while_a_step_is_replaced_leaves_the_old_copy() {
    let (dir, checkpoints, _, _) = saved(1);
    let (step, replaced) = ("step-00000001", ".tmp-replaced-step-00000001");
    fs::rename(checkpoints.root.join(step), checkpoints.root.join(replaced)).unwrap();
    let checkpoints = Checkpoints::open(dir.path()).unwrap();
    assert_eq!(checkpoints.newest().unwrap().0.unwrap().state.step, 1);
    // And where the new copy did come, the old one goes.
    fs::create_dir(checkpoints.root.join(replaced)).unwrap();
    let checkpoints = Checkpoints::open(dir.path()).unwrap();
    let mut left = names(&checkpoints.root).unwrap();
    left.sort();
    assert_eq!(left, ["latest", step]);
}
