//! A function for each parser. Each takes any bytes at all, returns nothing, and must not panic.

mod config;
mod foreign;
mod group;
mod jpeg;
mod manifest;
mod mat;
mod pth;
mod safetensors;
mod shard;
mod still;
mod tar;
mod weights;

pub(crate) use jpeg::picture;
pub(crate) use tar::odd as odd_tar;

/// A parser and what it is given.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Gives an input to the parser.
    pub run: fn(&[u8]),
    /// Inputs that are right, made by the project's own writers where it has some.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Changes that `make test` tries: about a second's worth without optimisation.
    pub rounds: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    shard::TARGET,
    group::TARGET,
    foreign::TARGET,
    manifest::TARGET,
    jpeg::TARGET,
    still::TARGET,
    pth::TARGET,
    safetensors::TARGET,
    mat::TARGET,
    tar::TARGET,
    config::TARGET,
];

/// The target called `name`.
///
/// # Errors
/// A sentence with the names there are.
pub fn target(name: &str) -> Result<&'static Target, String> {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        format!("no target {name:?}, expected one of {}", names.join(", "))
    })
}
