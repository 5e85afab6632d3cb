//! The model's kind and sizes out of its tensors' names and shapes.
//!
//! Letters: D width, N patches, p side of a patch.

use super::foreign::Hints;
use super::names::Tensors;
use crate::error::{Error, Result};
use crate::masking::n_kept;
use crate::models::multi_view::MOMENTUM;
use crate::models::{EncoderPreset, ModelConfig, ModelKind};

/// Beyond these a file is damaged or hostile, and building the model would ask for absurd memory.
const MAX_WIDTH: usize = 1 << 14;
const MAX_GRID: usize = 1 << 8;
/// Of the width's square times the depth, for a decoder that is made anew: twice MAE's, with 12 to 16 times as many weights.
const MAX_NEW_VALUES: usize = 1 << 22;

/// Weights of a projector that is made anew: twice MoCo v3's.
const MAX_NEW_PROJECTOR_VALUES: usize = 1 << 23;

/// Width of a head in the encoders and the decoders of the papers.
const HEAD_WIDTH: usize = 64;
const DECODER_HEAD_WIDTH: usize = 32;

/// MoCo v3's, for a file that has a momentum branch and does not say.
const USUAL_MOMENTUM: f64 = 0.99;

/// Ratios tried, in turn, where the file's own would keep or remove nothing of so few patches.
const MASK_RATIOS: [f64; 2] = [0.75, 0.5];

/// What the caller knows and shapes do not tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    pub kind: Option<ModelKind>,
    pub num_heads: Option<usize>,
    pub decoder_num_heads: Option<usize>,
}

/// The configuration that fits the tensors, with every size written out.
///
/// * `tensors`: in the reference's names.
/// * `base`: the configuration that the file carries, if any; its sizes are checked against the tensors.
/// * `notes`: gets a sentence for each guess.
///
/// # Errors
/// [`Error::Parameter`] naming the tensor that is missing or has an impossible shape, [`Error::Config`] if the heads
/// cannot be told or the file's own configuration does not fit.
pub(super) fn infer(
    tensors: &Tensors,
    base: Option<ModelConfig>,
    told: Told,
    hints: Hints,
    notes: &mut Vec<String>,
) -> Result<ModelConfig> {
    let [embed_dim, _, patch_size, _] =
        dims(tensors, "patch_embed.proj.weight", |[d, c, p, q]| {
            *c == 3 && p == q && *p > 0 && (1..=MAX_WIDTH).contains(d)
        })?;
    let [_, n_tokens, _] = dims(tensors, "pos_embed", |[one, n, d]| {
        *one == 1 && *n > 1 && *d == embed_dim
    })?;
    let grid = (n_tokens - 1).isqrt();
    if grid * grid != n_tokens - 1 || grid > MAX_GRID {
        let problem =
            format!("has {n_tokens} rows, expected one more than a square of at most {MAX_GRID}");
        return Err(Error::Parameter {
            name: "pos_embed".to_owned(),
            problem,
        });
    }
    let depth = count_blocks(
        tensors,
        "blocks",
        "attn.qkv.weight",
        [3 * embed_dim, embed_dim],
    )?;

    let file_kind = kind_by_names(tensors);
    let kind = match (told.kind.or(base.as_ref().map(|b| b.kind)), file_kind) {
        // Multi-View MAE's decoder is MAE's, and without its contrastive loss that is all it has.
        (Some(ModelKind::MultiView), Some(ModelKind::Mae)) => ModelKind::MultiView,
        (Some(wanted), Some(found)) if wanted != found => {
            return Err(Error::Config(format!(
                "model.kind is {wanted:?}, expected {found:?}, whose decoder the file has"
            )));
        }
        (wanted, found) => found.or(wanted).unwrap_or_default(),
    };
    let mut config = ModelConfig {
        kind,
        ..base.clone().unwrap_or_default()
    };
    if base.is_none() {
        config.norm_pix_loss = hints.norm_pix_loss.unwrap_or(config.norm_pix_loss);
        config.mask_ratio = hints.mask_ratio;
        config.encoder = nearest_preset(embed_dim, depth, patch_size);
    }
    let mut sizes = config.sizes();
    if let Some(base) = &base {
        let said = base.sizes();
        let (said, found) = (
            [said.embed_dim, said.depth, said.patch_size, said.img_size],
            [embed_dim, depth, patch_size, grid * patch_size],
        );
        if said != found {
            return Err(Error::Config(format!(
                "the file says its sizes are {said:?}, expected {found:?} by its tensors"
            )));
        }
    }
    sizes.num_heads = heads(
        "num_heads",
        embed_dim,
        HEAD_WIDTH,
        told.num_heads,
        base.as_ref().and(Some(sizes.num_heads)),
        notes,
    )?;
    let has_decoder = tensors.contains_key("decoder_embed.weight");
    if file_kind == Some(ModelKind::MultiView) && !has_decoder {
        config.reconstruction_weight = 0.0; // trained by the contrastive loss alone
        sizes.decoder_num_heads = told.decoder_num_heads.unwrap_or(sizes.decoder_num_heads);
    } else if file_kind.is_some() {
        let [width, _] = dims(tensors, "decoder_embed.weight", |[d, e]| {
            *e == embed_dim && (1..=MAX_WIDTH).contains(d)
        })?;
        let part = if kind == ModelKind::Siamese {
            "self_attn.in_proj_weight"
        } else {
            "attn.qkv.weight"
        };
        sizes.decoder_embed_dim = width;
        sizes.decoder_depth = count_blocks(tensors, "decoder_blocks", part, [3 * width, width])?;
        let said = hints
            .decoder_num_heads
            .or(base.as_ref().and(Some(sizes.decoder_num_heads)));
        sizes.decoder_num_heads = heads(
            "decoder_num_heads",
            width,
            DECODER_HEAD_WIDTH,
            told.decoder_num_heads,
            said,
            notes,
        )?;
    } else {
        // the decoder is made anew, in the sizes that the method or the file's own configuration asks for
        let values = sizes
            .decoder_embed_dim
            .checked_pow(2)
            .and_then(|n| n.checked_mul(sizes.decoder_depth));
        if sizes.decoder_embed_dim > MAX_WIDTH || values.is_none_or(|n| n > MAX_NEW_VALUES) {
            return Err(Error::Config(format!(
                "a new decoder of width {} and depth {} is asked for, expected at most {MAX_NEW_VALUES} for the width's \
                 square times the depth",
                sizes.decoder_embed_dim, sizes.decoder_depth
            )));
        }
        sizes.decoder_num_heads = told.decoder_num_heads.unwrap_or(sizes.decoder_num_heads);
    }
    if kind == ModelKind::MultiView {
        projector(tensors, embed_dim, &mut config)?;
    }
    let whole_is_fine = config.reconstruction_weight == 0.0;
    let fits = |ratio: f64| {
        n_kept(grid * grid, ratio).is_ok_and(|kept| kept < grid * grid || whole_is_fine)
    };
    if !fits(sizes.mask_ratio) {
        let ratio = MASK_RATIOS
            .into_iter()
            .find(|&ratio| fits(ratio))
            .unwrap_or(sizes.mask_ratio);
        notes.push(format!(
            "mask_ratio {} leaves nothing of {} patches to see; set to {ratio}",
            sizes.mask_ratio,
            grid * grid
        ));
        sizes.mask_ratio = ratio;
    }
    let img_size = grid * patch_size;
    ModelConfig {
        img_size: Some(img_size),
        patch_size: Some(patch_size),
        embed_dim: Some(embed_dim),
        depth: Some(depth),
        num_heads: Some(sizes.num_heads),
        decoder_embed_dim: Some(sizes.decoder_embed_dim),
        decoder_depth: Some(sizes.decoder_depth),
        decoder_num_heads: Some(sizes.decoder_num_heads),
        mask_ratio: Some(sizes.mask_ratio),
        ..config
    }
    .resolved(img_size)
}

/// The method by its decoder; none for an encoder alone.
fn kind_by_names(tensors: &Tensors) -> Option<ModelKind> {
    let any = |prefix: &str| tensors.keys().any(|name| name.starts_with(prefix));
    if any("projector.") {
        Some(ModelKind::MultiView)
    } else if any("decoder_blocks.0.multihead_attn.") {
        Some(ModelKind::Siamese)
    } else if any("decoder_blocks.") {
        Some(ModelKind::Mae)
    } else {
        None
    }
}

/// The shape of a tensor that must be there.
fn dims<const R: usize>(
    tensors: &Tensors,
    name: &str,
    fits: impl Fn(&[usize; R]) -> bool,
) -> Result<[usize; R]> {
    let wrong = |problem: String| Error::Parameter {
        name: name.to_owned(),
        problem,
    };
    let tensor = tensors
        .get(name)
        .ok_or_else(|| wrong("missing; without it the model's sizes cannot be told".to_owned()))?;
    <[usize; R]>::try_from(tensor.dims())
        .ok()
        .filter(&fits)
        .ok_or_else(|| {
            wrong(format!(
                "has shape {:?}, which no model here has",
                tensor.dims()
            ))
        })
}

/// Number of blocks from 0 on that have `part` in the shape that the width asks for.
fn count_blocks(tensors: &Tensors, stack: &str, part: &str, shape: [usize; 2]) -> Result<usize> {
    let mut n = 0;
    while let Some(tensor) = tensors.get(&format!("{stack}.{n}.{part}")) {
        if tensor.dims() != shape {
            return Err(Error::Shape {
                what: format!("{stack}.{n}.{part}"),
                got: tensor.dims().to_vec(),
                expected: format!("{shape:?}"),
            });
        }
        n += 1;
    }
    if n == 0 {
        let problem = "missing; without it the model's sizes cannot be told".to_owned();
        return Err(Error::Parameter {
            name: format!("{stack}.0.{part}"),
            problem,
        });
    }
    Ok(n)
}

/// The number of heads: as told, as the file says, or by the papers' width of a head.
fn heads(
    what: &str,
    width: usize,
    head_width: usize,
    told: Option<usize>,
    said: Option<usize>,
    notes: &mut Vec<String>,
) -> Result<usize> {
    if let Some(told) = told {
        return match told > 0 && width.is_multiple_of(told) {
            true => Ok(told),
            false => Err(Error::Config(format!(
                "{what} is {told}, expected a divisor of the width, {width}"
            ))),
        };
    }
    if let Some(said) = said.filter(|&said| said > 0 && width.is_multiple_of(said)) {
        return Ok(said);
    }
    let presets = [
        EncoderPreset::VitH14,
        EncoderPreset::VitL16,
        EncoderPreset::VitB16,
        EncoderPreset::VitS16,
    ];
    let preset = presets
        .into_iter()
        .map(EncoderPreset::sizes)
        .find(|(dim, ..)| *dim == width && head_width == HEAD_WIDTH);
    let guess = match preset {
        Some((_, _, heads, _)) => heads,
        None if width.is_multiple_of(head_width) => width / head_width,
        None => {
            return Err(Error::Config(format!(
                "{what} cannot be told from tensors, and the width {width} is not a multiple of {head_width}; give {what}"
            )));
        }
    };
    notes.push(format!(
        "{what} is taken to be {guess}, as the papers have it for a width of {width}"
    ));
    Ok(guess)
}

fn nearest_preset(embed_dim: usize, depth: usize, patch_size: usize) -> EncoderPreset {
    let all = [
        EncoderPreset::VitTi16,
        EncoderPreset::VitS16,
        EncoderPreset::VitB16,
        EncoderPreset::VitL16,
        EncoderPreset::VitH14,
    ];
    let distance = |preset: &EncoderPreset| {
        let (dim, n, _, patch) = preset.sizes();
        (
            dim.abs_diff(embed_dim),
            n.abs_diff(depth),
            patch.abs_diff(patch_size),
        )
    };
    all.into_iter().min_by_key(distance).unwrap_or_default()
}

/// Sizes of Multi-View MAE's projector and predictor.
fn projector(tensors: &Tensors, embed_dim: usize, config: &mut ModelConfig) -> Result<()> {
    let contrastive = &mut config.contrastive;
    if !tensors.contains_key("projector.fc1.weight") {
        let (hidden, out) = (contrastive.projector_hidden_dim, contrastive.projector_dim);
        let values = out
            .checked_add(embed_dim)
            .and_then(|n| n.checked_mul(hidden));
        return match values {
            Some(..=MAX_NEW_PROJECTOR_VALUES) => Ok(()),
            _ => Err(Error::Config(format!(
                "a new projector of {hidden} and {out} on a width of {embed_dim} is asked for, expected one of at most \
                 {MAX_NEW_PROJECTOR_VALUES} weights"
            ))),
        };
    }
    let bounded = |n: &usize| (1..=MAX_WIDTH).contains(n);
    let [hidden, _] = dims(tensors, "projector.fc1.weight", |[h, d]| {
        bounded(h) && *d == embed_dim
    })?;
    let [out, _] = dims(tensors, "projector.fc2.weight", |[o, h]| {
        bounded(o) && *h == hidden
    })?;
    contrastive.projector_hidden_dim = hidden;
    contrastive.projector_dim = out;
    contrastive.predictor = tensors.contains_key("predictor.fc1.weight");
    let has_momentum = tensors.contains_key(&format!("{MOMENTUM}.projector.fc1.weight"));
    contrastive.momentum = match contrastive.momentum {
        _ if !has_momentum => None,
        None => Some(USUAL_MOMENTUM),
        said => said,
    };
    contrastive.momentum_rises &= has_momentum;
    if contrastive.weight == 0.0 {
        contrastive.weight = crate::models::ContrastiveConfig::default().weight;
    }
    Ok(())
}
