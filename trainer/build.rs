//! Compiles the kernels with nvcc where the feature `cuda` is on; does nothing where it is off.
//!
//! * `CUDA_HOME`: the CUDA toolkit; its nvcc is used, whatever else is on the path.
//! * `CUDA_COMPUTE_CAP`: the GPU's compute capability without its dot, such as 90. The code runs on that one, and on later
//!   ones once their driver has compiled it again. candle's build takes the same variable.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The first capability with tensor cores for bf16.
const LEAST_CAPABILITY: u32 = 80;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the kernels of feature `cuda` were not built: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), Box<dyn Error>> {
    for name in ["CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=kernels");
    let home = PathBuf::from(
        env::var_os("CUDA_HOME")
            .ok_or("CUDA_HOME is not set, expected the folder of a CUDA toolkit (with bin/nvcc)")?,
    );
    let nvcc = home.join("bin/nvcc");
    if !nvcc.is_file() {
        return Err(format!("CUDA_HOME is {}, which has no bin/nvcc", home.display()).into());
    }
    let capability = capability()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);

    let mut sources = Vec::new();
    for entry in fs::read_dir("kernels")? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("cu")) {
            sources.push(path);
        }
    }
    sources.sort(); // the library does not depend on the folder's order
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let mut objects = Vec::new();
    for some in sources.chunks(jobs.unwrap_or(1).max(1)) {
        let mut running = Vec::new();
        for source in some {
            let object = out
                .join(source.file_name().ok_or("a source without a name")?)
                .with_extension("o");
            let compiler = Command::new(&nvcc)
                .arg(format!(
                    "-gencode=arch=compute_{capability},code=[sm_{capability},compute_{capability}]"
                ))
                .args(["-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-c", "-o"])
                .arg(&object)
                .arg(source)
                .spawn()?;
            running.push((source, compiler));
            objects.push(object);
        }
        for (source, mut compiler) in running {
            let status = compiler.wait()?;
            if !status.success() {
                return Err(format!("nvcc of {} ended with {status}", source.display()).into());
            }
        }
    }
    archive(&nvcc, &objects, &out.join("libpairquet_kernels.a"))?;

    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=pairquet_kernels");
    for lib in ["lib64", "lib"].map(|lib| home.join(lib)) {
        if lib.is_dir() {
            println!("cargo::rustc-link-search=native={}", lib.display());
        }
    }
    println!("cargo::rustc-link-lib=cudart");
    println!("cargo::rustc-link-lib=stdc++");
    Ok(())
}

fn capability() -> Result<u32, Box<dyn Error>> {
    let text = match env::var("CUDA_COMPUTE_CAP") {
        Ok(text) => text,
        Err(_) => ask_the_driver().ok_or(
            "CUDA_COMPUTE_CAP is not set and there is no GPU to ask, expected a compute capability such as 90",
        )?,
    };
    match text.trim().replace('.', "").parse() {
        Ok(capability) if capability >= LEAST_CAPABILITY => Ok(capability),
        _ => {
            Err(format!("CUDA_COMPUTE_CAP is {text:?}, expected {LEAST_CAPABILITY} or more").into())
        }
    }
}

/// The capability of the first GPU here.
fn ask_the_driver() -> Option<String> {
    let answer = Command::new("nvidia-smi")
        .args(["--query-gpu=compute_cap", "--format=csv,noheader"])
        .output()
        .ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    Some(text.lines().next()?.to_owned())
}

fn archive(nvcc: &Path, objects: &[PathBuf], library: &Path) -> Result<(), Box<dyn Error>> {
    let status = Command::new(nvcc)
        .arg("--lib")
        .arg("-o")
        .arg(library)
        .args(objects)
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("nvcc --lib ended with {status}").into()),
    }
}
