//! From a file of another program to a model with all its parameters.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device};

use super::folder::{
    IMPORT_FILE, IMPORT_FORMAT, ImportCard, NewFolder, Source, model_from_toml, model_to_toml,
    write_json,
};
use super::foreign::{Foreign, Format};
use super::moments::OptimizerState;
use super::names::{Tensors, from_hugging_face, is_encoder, is_hugging_face};
use super::{sha256_of, sizes};
use crate::checkpoint::{FileSum, MODEL_FILE, OPTIM_FILE, write_tensors};
use crate::error::{Error, Result};
use crate::models::multi_view::MOMENTUM;
use crate::models::{self, ModelConfig, ModelKind};
use crate::nn::params::Params;

/// Metadata entry in which an export keeps its model's configuration, as TOML.
pub(super) const MODEL_KEY: &str = "pairquet.model";
/// Metadata entry in which an export keeps its epoch.
pub(super) const EPOCH_KEY: &str = "pairquet.epoch";

/// Heads that other programs put on an encoder; nothing here has a use for them.
const HEADS: [&str; 5] = [
    "head.",
    "head_dist.",
    "classifier.",
    "vit.pooler.",
    "vit.classifier.",
];

/// How to read a foreign checkpoint.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// What the file is written in.
    pub from: Format,
    /// The method, where the file holds an encoder alone (by default siamese) or Multi-View MAE is to start from MAE.
    pub kind: Option<ModelKind>,
    /// Attention heads of the encoder, which no tensor tells; by default as the papers have them for the width.
    pub num_heads: Option<usize>,
    /// Attention heads of the decoder; by default as the file's `args` say, else as the papers have them.
    pub decoder_num_heads: Option<usize>,
    /// Whether missing parameters may keep their initial values, and unexpected ones be left out, each with a note.
    /// A wrong shape is always an error.
    pub allow_missing: bool,
    /// Whether to take over AdamW's moments, if the file has them.
    pub optimizer: bool,
    /// Seed of the initial values of parameters that the file does not have.
    pub seed: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions {
            from: Format::Auto,
            kind: None,
            num_heads: None,
            decoder_num_heads: None,
            allow_missing: false,
            optimizer: true,
            seed: 42,
        }
    }
}

/// A model that was read from a foreign file.
#[derive(Debug)]
pub struct Imported {
    /// The model, every size written out.
    pub model: ModelConfig,
    /// All its parameters and tables, f32 on the CPU; those that the file did not have hold their initial values.
    pub params: Params,
    /// AdamW's moments, if asked for and found.
    pub optimizer: Option<OptimizerState>,
    /// The last epoch that was trained, if the file says.
    pub epoch: Option<u64>,
    /// The file.
    pub source: Source,
    /// What was guessed, converted, left out or kept at its initial value: one sentence each.
    pub notes: Vec<String>,
}

/// Reads a checkpoint of MAE, CropMAE, SiamMAE, timm's `VisionTransformer`, Hugging Face's ViT or ViTMAE, or an export.
///
/// The method and the sizes are told from the tensors. Every parameter of the model must be in the file, and every tensor
/// of the file in the model; only a file without any decoder may leave out the decoder, and the heads of classifiers are
/// passed over with a note. (The reference passes over any missing key without a word.)
///
/// # Errors
/// [`Error::Io`] and [`Error::Checkpoint`] for a file that cannot be read; [`Error::Checkpoint`] listing what is
/// missing, unexpected and of the wrong shape; [`Error::Config`] if the heads cannot be told.
pub fn import(file: &Path, options: &ImportOptions) -> Result<Imported> {
    let (sha256, bytes) = sha256_of(file)?;
    let source = Source {
        file: file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        bytes,
        sha256,
    };
    let foreign = Foreign::read(file, options.from, options.optimizer)?;
    let in_file = |error: Error| match error {
        Error::Parameter { .. }
        | Error::Shape { .. }
        | Error::Config(_)
        | Error::NothingKept { .. } => Error::Checkpoint {
            path: file.to_owned(),
            problem: error.to_string(),
        },
        other => other,
    };
    let mut notes = foreign.notes;
    let damaged = |problem: String| Error::Checkpoint {
        path: file.to_owned(),
        problem,
    };

    let mut tensors = Tensors::new();
    for (name, tensor) in foreign.tensors {
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(damaged(format!("tensor {name} is in it twice")));
        }
    }
    if is_hugging_face(tensors.keys().map(String::as_str)) {
        tensors = from_hugging_face(&tensors).map_err(in_file)?;
        notes.push("Hugging Face's names turned into the reference's".to_owned());
    }
    drop_heads(&mut tensors, &mut notes);
    to_f32(&mut tensors, &mut notes).map_err(in_file)?;

    let base = foreign.metadata.get(MODEL_KEY);
    let base = base.map(|text| model_from_toml(text));
    let base = base
        .transpose()
        .map_err(|problem| damaged(format!("metadata {MODEL_KEY}: {problem}")))?;
    let told = sizes::Told {
        kind: options.kind,
        num_heads: options.num_heads,
        decoder_num_heads: options.decoder_num_heads,
    };
    let model = sizes::infer(&tensors, base, told, foreign.hints, &mut notes).map_err(in_file)?;
    let mut params = Params::new(options.seed, DType::F32, &Device::Cpu);
    models::build(&model, &mut params)?;
    account_for(&tensors, &params, options.allow_missing, &mut notes).map_err(damaged)?;
    let has_momentum = tensors.keys().any(|name| name.starts_with(MOMENTUM));
    params.load_partial(&tensors.into_iter().collect::<HashMap<_, _>>())?;
    if !has_momentum {
        params.follow(0.0)?; // a momentum branch that is made anew begins at these weights
    }

    let optimizer = match foreign.moments.map(|moments| moments.name(&params)) {
        Some(Ok(state)) => Some(state),
        Some(Err(problem)) => {
            notes.push(format!("the optimizer's state is left out: {problem}"));
            None
        }
        None => None,
    };
    let said = foreign
        .metadata
        .get(EPOCH_KEY)
        .and_then(|epoch| epoch.parse().ok());
    Ok(Imported {
        model,
        params,
        optimizer,
        epoch: foreign.epoch.or(said),
        source,
        notes,
    })
}

fn drop_heads(tensors: &mut Tensors, notes: &mut Vec<String>) {
    let heads: Vec<String> = tensors
        .keys()
        .filter(|name| HEADS.iter().any(|head| name.starts_with(head)))
        .cloned()
        .collect();
    for name in &heads {
        tensors.remove(name);
    }
    if !heads.is_empty() {
        notes.push(format!(
            "a classifier's head left out: {}",
            heads.join(", ")
        ));
    }
}

fn to_f32(tensors: &mut Tensors, notes: &mut Vec<String>) -> Result<()> {
    let mut converted = BTreeMap::<&str, usize>::new();
    for (name, tensor) in tensors {
        let dtype = tensor.dtype();
        match dtype {
            DType::F32 => continue,
            DType::F16 | DType::BF16 | DType::F64 => {}
            other => {
                let problem = format!("is {other:?}, expected f16, bf16, f32 or f64");
                return Err(Error::Parameter {
                    name: name.clone(),
                    problem,
                });
            }
        }
        *tensor = tensor.to_dtype(DType::F32)?;
        *converted.entry(dtype.as_str()).or_default() += 1;
    }
    for (dtype, n) in converted {
        let exactly = if dtype == "f64" { "rounded" } else { "exactly" };
        notes.push(format!(
            "{n} tensors converted from {dtype} to f32, {exactly}"
        ));
    }
    Ok(())
}

/// Compares the file with the model; a list of everything that does not fit if that is not allowed.
fn account_for(
    tensors: &Tensors,
    params: &Params,
    allow_missing: bool,
    notes: &mut Vec<String>,
) -> Result<(), String> {
    let encoder_alone = tensors.keys().all(|name| is_encoder(name));
    let mut missing: Vec<&str> = params
        .iter()
        .map(|p| p.name.as_str())
        .filter(|&n| !tensors.contains_key(n))
        .collect();
    if encoder_alone {
        let n = missing.len();
        missing.retain(|name| is_encoder(name));
        if n > missing.len() {
            notes.push(format!(
                "the file holds an encoder alone: {} other parameters keep initial values",
                n - missing.len()
            ));
        }
    }
    let known: BTreeSet<&str> = params.iter().map(|p| p.name.as_str()).collect();
    let unexpected: Vec<&str> = tensors
        .keys()
        .map(String::as_str)
        .filter(|name| !known.contains(name))
        .collect();
    let shapes: Vec<String> = params
        .iter()
        .filter_map(|p| {
            let tensor = tensors.get(&p.name)?;
            let (got, expected) = (tensor.dims(), p.var.dims());
            (got != expected).then(|| format!("{} is {got:?}, expected {expected:?}", p.name))
        })
        .collect();
    let mut problems = Vec::new();
    let lists = [
        (
            "missing (kept at initial values)",
            "missing",
            missing.join(", "),
        ),
        ("unexpected (left out)", "unexpected", unexpected.join(", ")),
    ];
    for (allowed, wrong, list) in lists {
        match (list.is_empty(), allow_missing) {
            (true, _) => {}
            (false, true) => notes.push(format!("{allowed}: {list}")),
            (false, false) => problems.push(format!("{wrong}: {list}")),
        }
    }
    if !shapes.is_empty() {
        problems.push(format!("of the wrong shape: {}", shapes.join(", ")));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(format!("does not fit the model: {}", problems.join("; ")))
    }
}

impl Imported {
    /// Writes a checkpoint folder: `model.safetensors`, `import.json` and, with the optimizer's state,
    /// `optim.safetensors`. The folder appears under its name when it is whole.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if `dst` is there already and not empty; [`Error::Io`].
    pub fn write(&self, dst: &Path) -> Result<()> {
        let folder = NewFolder::create(dst)?;
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut files = BTreeMap::new();
        let mut write = |name: &str, tensors: &Tensors| -> Result<()> {
            let path = folder.path(name);
            write_tensors(&path, tensors, &metadata)?;
            files.insert(name.to_owned(), FileSum::of(&path)?);
            Ok(())
        };
        write(MODEL_FILE, &self.tensors())?;
        if let Some(state) = &self.optimizer {
            let moments = [
                ("exp_avg", &state.exp_avg),
                ("exp_avg_sq", &state.exp_avg_sq),
            ];
            let named = |(kind, tensors): (&str, &Tensors)| {
                let name = |name: &String| format!("{kind}.{name}");
                let named = tensors.iter().map(|(n, tensor)| (name(n), tensor.clone()));
                named.collect::<Vec<_>>()
            };
            write(OPTIM_FILE, &moments.into_iter().flat_map(named).collect())?;
        }
        let card = ImportCard {
            format: IMPORT_FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            source: self.source.clone(),
            model: model_to_toml(&self.model)?,
            epoch: self.epoch,
            step: self.optimizer.as_ref().map(|state| state.steps),
            notes: self.notes.clone(),
            files,
        };
        write_json(&folder.path(IMPORT_FILE), &card)?;
        folder.commit()
    }

    /// All parameters and tables by name.
    pub fn tensors(&self) -> Tensors {
        self.params
            .iter()
            .map(|param| (param.name.clone(), param.var.as_tensor().clone()))
            .collect()
    }
}
