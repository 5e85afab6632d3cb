//! The recipes of `configs/cluster`: what they run, run here, with the variables that a cluster would set.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::compare;
use crate::ranks::mpirun;
use crate::support::{demo_set, ok, shard_bytes, text, tree, utf8};

fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("configs/cluster")
        .join(name)
}

/// A folder of programs that a cluster has: `srun` runs its command by `launch`, without its own options.
fn programs(dir: &Path, launch: &str) -> PathBuf {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let srun =
        format!("#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec {launch} \"$@\"\n");
    for (name, script) in [
        ("srun", srun.as_str()),
        ("scontrol", "#!/bin/bash\necho localhost\n"),
    ] {
        let path = bin.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let program = bin.join("pairquet");
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pairquet"), program).unwrap();
    }
    bin
}

/// Runs a recipe or a program with these variables and the programs of `bin` before all others.
fn succeeds(command: &mut Command, bin: &Path, variables: &[(&str, &str)]) {
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = command
        .env("PATH", path)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn parts_of_a_slurm_array_convert_one_set() {
    let dir = tempfile::tempdir().unwrap();
    let bin = programs(dir.path(), "");
    let images = demo_set().join("raw/images");
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let sides = ["--short-side", "256"];
    let args = [
        ["convert", "imagenet", utf8(&images), utf8(&whole)].as_slice(),
        &sides,
    ]
    .concat();
    ok(&args);
    for part in ["0", "1", "2"] {
        succeeds(
            Command::new("bash")
                .arg(recipe("convert.sbatch"))
                .args([&images, &parts]),
            &bin,
            &[
                ("SLURM_ARRAY_TASK_ID", part),
                ("SLURM_ARRAY_TASK_COUNT", "3"),
                ("SLURM_CPUS_PER_TASK", "2"),
            ],
        );
    }
    ok(&["convert", "finish", utf8(&parts)]);
    assert!(
        shard_bytes(&parts) == shard_bytes(&whole),
        "parts and whole differ"
    );
}

/// The arguments of a recipe's container, as its list has them.
fn container_args(recipe_name: &str) -> Vec<String> {
    let manifest = fs::read_to_string(recipe(recipe_name)).unwrap();
    let list = manifest
        .lines()
        .find_map(|line| line.trim().strip_prefix("args: [")?.strip_suffix(']'))
        .unwrap();
    list.split(", ")
        .map(|word| word.trim_matches('"').to_owned())
        .collect()
}

#[test]
fn pods_of_an_indexed_job_convert_one_set() {
    let dir = tempfile::tempdir().unwrap();
    let images = demo_set().join("raw/images");
    let set = dir.path().join("set");
    let args: Vec<_> = container_args("convert.yaml")
        .into_iter()
        .map(|word| match word.as_str() {
            "/data/imagenet/train" => utf8(&images).to_owned(),
            "s3://bucket/sets/in1k" => utf8(&set).to_owned(),
            _ => word,
        })
        .collect();
    for index in ["0", "1"] {
        succeeds(
            Command::new(env!("CARGO_BIN_EXE_pairquet")).args(&args),
            dir.path(),
            &[("JOB_COMPLETION_INDEX", index), ("JOB_COMPLETIONS", "2")],
        );
    }
    ok(&["convert", "finish", utf8(&set)]);
    ok(&["verify", utf8(&set)]);
}

#[test]
fn tasks_of_a_slurm_array_make_one_comparison() {
    let dir = tempfile::tempdir().unwrap();
    let bin = programs(dir.path(), "");
    let config = compare::config(dir.path());
    let out = dir.path().join("runs");
    for task in ["0", "1"] {
        succeeds(
            Command::new("bash")
                .arg(recipe("compare.sbatch"))
                .args([&config, &out]),
            &bin,
            &[
                ("SLURM_ARRAY_TASK_ID", task),
                ("SLURM_ARRAY_TASK_COUNT", "2"),
            ],
        );
    }
    ok(&["compare", "report", utf8(&out)]);
    assert!(out.join("report.html").is_file());
}

/// Slurm's ranks are MPI's here.
#[test]
fn tasks_of_a_slurm_job_train_together_and_go_on() {
    if mpirun().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bin = programs(dir.path(), "mpirun -n 2");
    let config = dir.path().join("tiny.toml");
    let smoke = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/smoke/cropmae.toml");
    let set = demo_set().join("shards/images");
    let text = format!(
        "extends = {smoke:?}\ndevice = \"cpu\"\ndata = {{ path = {set:?}, batch_size = 8, threads = 1 }}\n\
         optim = {{ max_steps = 4 }}\n"
    );
    fs::write(&config, text).unwrap();
    let run = dir.path().join("run");
    let mut files = Vec::new();
    for _ in 0..2 {
        succeeds(
            Command::new("bash")
                .arg(recipe("train.sbatch"))
                .args([&config, &run]),
            &bin,
            &[
                ("SLURM_JOB_NODELIST", "localhost"),
                ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
                ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
                ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
                ("RAYON_NUM_THREADS", "1"),
            ],
        );
        files.push(tree(&run.join("checkpoints")));
    }
    assert!(files[0] == files[1], "a complete run trains no more");
    assert!(run.join("checkpoints/latest").exists());
}
