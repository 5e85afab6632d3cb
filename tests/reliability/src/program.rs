//! The program, small inputs for it, and the jobs that are disturbed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use bucket::{BUCKET, Server};

/// Optimizer steps of a training job: several checkpoints, evaluations and pictures in seconds.
const STEPS: u64 = 12;

/// Stands for the output folder in a job's arguments.
const OUT: &str = "OUT";

/// The built program and the folder of the repository that it was built from.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
}

/// Made pictures, clips and shards, as `demo` leaves them.
#[derive(Debug, Clone)]
pub struct Toys {
    dir: PathBuf,
}

/// A command that fills a folder.
#[derive(Debug, Clone)]
pub struct Job {
    /// For messages and tables.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Shards of files.
    Convert,
    /// A run.
    Train,
    /// Runs with evaluations, and a report.
    Compare,
    /// Scores of a checkpoint.
    Eval,
    /// Reads a set and writes nothing.
    Verify,
}

impl Program {
    /// The program at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Program { path: path.into() }
    }

    /// The program with these arguments, nothing on its standard input.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(args)
            .stdin(Stdio::null())
            .env("CANDLE_NUM_THREADS", "1")
            .env("NO_PROXY", "127.0.0.1");
        command
    }

    /// A job that fills `out`.
    pub fn start(&self, job: &Job, out: &Path) -> Command {
        let args = job.args.iter().map(|arg| match arg.as_str() {
            OUT => out.as_os_str(),
            other => OsStr::new(other),
        });
        let mut command = self.command(args);
        command
            .envs(job.env.iter().cloned())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a job to its end.
    ///
    /// # Errors
    /// If it cannot be started or does not end well; with what it said.
    pub fn finish(&self, job: &Job, out: &Path) -> Result<Output> {
        let output = self
            .start(job, out)
            .output()
            .context("starting the program")?;
        ensure!(
            output.status.success(),
            "{}: undisturbed it ended with {}: {}",
            job.name,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }
}

impl Toys {
    /// Makes them in `dir`.
    ///
    /// # Errors
    /// If `demo` does not end well.
    pub fn make(program: &Program, dir: &Path) -> Result<Self> {
        let args = ["demo", "--quiet", "--only", "shards", "--out"];
        let args = args.into_iter().map(OsStr::new).chain([dir.as_os_str()]);
        let output = program.command(args).output().context("starting demo")?;
        ensure!(
            output.status.success(),
            "demo: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self::at(dir))
    }

    /// Those that `demo` made in `dir`.
    pub fn at(dir: &Path) -> Self {
        Toys { dir: dir.into() }
    }

    fn raw(&self, what: &str) -> PathBuf {
        self.dir.join("raw").join(what)
    }

    /// A set: `images` or `clips`.
    pub fn shards(&self, what: &str) -> PathBuf {
        self.dir.join("shards").join(what)
    }

    /// A server with the set of pictures in its bucket, as `s3://sets/images`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn serve(&self) -> Result<Server> {
        let server = Server::start_reader()?;
        let folder = server.folder().join("images");
        fs::create_dir(&folder)?;
        for entry in fs::read_dir(self.shards("images"))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        Ok(server)
    }

    /// Every job that goes on where it was ended. `work` is a folder for what they need; `cache` that of the job that reads
    /// from the server's bucket.
    ///
    /// # Errors
    /// The operating system's.
    pub fn jobs(&self, server: &Server, work: &Path, cache: &Path) -> Result<Vec<Job>> {
        let images = utf8(&self.shards("images"))?;
        let mut from_bucket = self.train(
            "train from a bucket",
            "cropmae",
            &format!("s3://{BUCKET}/images"),
            OUT,
        );
        from_bucket.env = server.environment();
        from_bucket.set("data.read=pages");
        from_bucket.set(&format!(
            "data.cache={{dir={:?}, max_bytes=67108864}}",
            utf8(cache)?
        ));
        Ok(vec![
            self.convert("convert pictures", "imagenet", "images")?,
            self.convert("convert clips", "kinetics", "clips")?,
            self.train("train", "cropmae", &images, OUT),
            self.train(
                "train on clips",
                "siammae",
                &utf8(&self.shards("clips"))?,
                OUT,
            ),
            from_bucket,
            self.compare(work)?,
        ])
    }

    /// Training on a set of pictures.
    pub fn train_on(&self, set: &str) -> Job {
        self.train("train", "cropmae", set, OUT)
    }

    /// A set of a few pictures in several row groups, made in `work`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn few_pictures(&self, program: &Program, work: &Path) -> Result<PathBuf> {
        let class = entries(&self.raw("images"))?
            .into_iter()
            .next()
            .context("a class of pictures")?;
        let (raw, set) = (work.join("few/raw"), work.join("few/set"));
        let (from, to) = (self.raw("images").join(&class), raw.join(&class));
        fs::create_dir_all(&to)?;
        for picture in entries(&from)? {
            fs::copy(from.join(&picture), to.join(&picture))?;
        }
        let args = [
            "convert",
            "imagenet",
            &utf8(&raw)?,
            OUT,
            "-q",
            "--row-group-size",
            "64KiB",
        ];
        program.finish(&job("convert", Kind::Convert, &args), &set)?;
        Ok(set)
    }

    /// A check of the set of pictures.
    ///
    /// # Errors
    /// If the path is not UTF-8.
    pub fn verify(&self) -> Result<Job> {
        let images = utf8(&self.shards("images"))?;
        Ok(job("verify", Kind::Verify, &["verify", &images, "-q"]))
    }

    /// Nearest neighbours of `checkpoint`, whose set of pictures is both what is learned from and what is scored.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn eval(&self, checkpoint: &Path) -> Result<Job> {
        let (checkpoint, images) = (utf8(checkpoint)?, utf8(&self.shards("images"))?);
        let mut args = vec![
            "eval",
            "knn",
            "--checkpoint",
            &checkpoint,
            "--out",
            OUT,
            "-q",
        ];
        args.extend(["--data", &images, "--val-split", "train", "--k", "5"]);
        Ok(job("eval knn", Kind::Eval, &args))
    }

    fn convert(&self, name: &'static str, verb: &str, what: &str) -> Result<Job> {
        let raw = utf8(&self.raw(what))?;
        let args = [
            "convert",
            verb,
            &raw,
            OUT,
            "--quiet",
            "--shard-size",
            "256KiB",
            "--workers",
            "2",
        ];
        Ok(job(name, Kind::Convert, &args))
    }

    fn train(&self, name: &'static str, method: &str, data: &str, out: &str) -> Job {
        let config = format!(
            "{}/../../configs/smoke/{method}.toml",
            env!("CARGO_MANIFEST_DIR")
        );
        let mut job = job(
            name,
            Kind::Train,
            &["train", &config, "--quiet", "--out", out],
        );
        job.set(&format!("data.path={data}"));
        job.set(&format!("optim.max_steps={STEPS}"));
        for value in [
            "data.threads=2",
            "data.size=32",
            "data.batch_size=8",
            "model.embed_dim=48",
            "model.depth=2",
            "model.decoder_embed_dim=32",
            "model.decoder_depth=1",
            "run.log_every=1",
            "run.checkpoint_every=3",
            "run.keep_last=1",
            "run.pictures_every=5",
        ] {
            job.set(value);
        }
        job
    }

    /// Two methods and an untrained one, evaluated twice on two sequences.
    fn compare(&self, work: &Path) -> Result<Job> {
        let sequences = self.two_sequences(&work.join("sequences"))?;
        let [images, clips] = ["images", "clips"].map(|what| self.shards(what));
        let config = work.join("compare.toml");
        let text = format!(
            r#"
name = "toy"
question = "Does a kill change anything?"
seeds = [0]
evaluations = 2
budget = {{ steps = 4 }}
[train]
device = "cpu"
data = {{ size = 32, batch_size = 8, threads = 2 }}
model = {{ encoder = "vit_ti16", patch_size = 8, embed_dim = 48, depth = 2, num_heads = 3, decoder_embed_dim = 32, decoder_depth = 1, decoder_num_heads = 4, mask_ratio = 0.5 }}
optim = {{ lr = 1e-3 }}
run = {{ log_every = 1, pictures_samples = 2, keep_last = 1 }}
[train.eval]
davis = {{ data = {:?}, input = [48, 64] }}
[[method]]
name = "CropMAE"
train = {{ data = {{ path = {:?}, views = "crop_pair" }} }}
[[method]]
name = "SiamMAE"
train = {{ data = {{ path = {:?}, views = "frame_pair" }} }}
[[method]]
name = "untrained"
untrained = true
train = {{ data = {{ path = {:?}, views = "crop_pair" }} }}
"#,
            utf8(&sequences)?,
            utf8(&images)?,
            utf8(&clips)?,
            utf8(&images)?
        );
        fs::create_dir_all(work)?;
        fs::write(&config, text)?;
        let args = ["compare", &utf8(&config)?, "--out", OUT];
        Ok(job("compare", Kind::Compare, &args))
    }

    /// The first frames of two of the sequences, in DAVIS's layout.
    fn two_sequences(&self, into: &Path) -> Result<PathBuf> {
        const N_FRAMES: usize = 4;
        let from = self.raw("sequences");
        let mut names = entries(&from.join("JPEGImages/480p"))?;
        names.truncate(2);
        for folder in ["JPEGImages/480p", "Annotations/480p"] {
            for name in &names {
                let (from, to) = (from.join(folder).join(name), into.join(folder).join(name));
                fs::create_dir_all(&to)?;
                for frame in entries(&from)?.into_iter().take(N_FRAMES) {
                    fs::copy(from.join(&frame), to.join(&frame))?;
                }
            }
        }
        fs::create_dir_all(into.join("ImageSets/2017"))?;
        fs::write(into.join("ImageSets/2017/val.txt"), names.join("\n"))?;
        Ok(into.to_path_buf())
    }
}

impl Job {
    fn set(&mut self, value: &str) {
        self.args.extend(["--set".to_owned(), value.to_owned()]);
    }

    /// The job with one more argument.
    #[must_use]
    pub fn with(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }
}

fn job(name: &'static str, kind: Kind, args: &[&str]) -> Job {
    Job {
        name,
        kind,
        args: args.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
    }
}

/// Names in a folder, sorted.
pub(crate) fn entries(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(crate) fn utf8(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}
