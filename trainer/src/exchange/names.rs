//! Parameter names of the formats that checkpoints move between.
//!
//! The reference layout (MAE, CropMAE, SiamMAE) is Pairquet's own. timm's `VisionTransformer` has the same names for the
//! encoder, because the reference subclasses it. Hugging Face's `ViT` and `ViTMAE` have other names and keep the packed
//! `qkv` as three matrices.
//!
//! Letters: D width.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{Error, Result};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Names of a block's parts: the reference's and Hugging Face's.
const BLOCK_PARTS: [(&str, &str); 5] = [
    ("norm1", "layernorm_before"),
    ("attn.proj", "attention.output.dense"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
];

/// Names outside of blocks that differ: the reference's and Hugging Face's.
const OTHER_NAMES: [(&str, &str); 12] = [
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    (
        "patch_embed.proj.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
    ),
    (
        "patch_embed.proj.bias",
        "vit.embeddings.patch_embeddings.projection.bias",
    ),
    ("norm.weight", "vit.layernorm.weight"),
    ("norm.bias", "vit.layernorm.bias"),
    ("mask_token", "decoder.mask_token"),
    ("decoder_pos_embed", "decoder.decoder_pos_embed"),
    ("decoder_embed.weight", "decoder.decoder_embed.weight"),
    ("decoder_embed.bias", "decoder.decoder_embed.bias"),
    ("decoder_norm.weight", "decoder.decoder_norm.weight"),
    ("decoder_norm.bias", "decoder.decoder_norm.bias"),
];

/// Stacks of blocks: the reference's prefix and Hugging Face's.
const STACKS: [(&str, &str); 2] = [
    ("blocks.", "vit.encoder.layer."),
    ("decoder_blocks.", "decoder.decoder_layers."),
];

const QKV: [&str; 3] = ["query", "key", "value"];

/// Whether a parameter belongs to the encoder: all that timm's `VisionTransformer` has.
pub fn is_encoder(name: &str) -> bool {
    ["cls_token", "pos_embed"].contains(&name)
        || ["patch_embed.", "blocks.", "norm."]
            .iter()
            .any(|p| name.starts_with(p))
}

/// Whether the names are Hugging Face's.
pub fn is_hugging_face<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| {
        ["vit.", "embeddings.", "encoder.layer.", "decoder.decoder_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    })
}

/// Renames from the reference layout to Hugging Face's `ViTMAEForPreTraining`, whose encoder part is `ViTModel` under
/// `vit.`; each packed `qkv` becomes query, key and value.
///
/// # Errors
/// [`Error::Parameter`] for a name that the format has no place for; [`Error::Shape`] if a `qkv` cannot be split.
pub fn to_hugging_face(tensors: &Tensors) -> Result<Tensors> {
    let mut renamed = Tensors::new();
    for (name, tensor) in tensors {
        if let Some((stack, index, part)) = split_block(name, |(reference, _)| reference) {
            let path = format!("{}{index}.", stack.1);
            if let Some(kind) = part.strip_prefix("attn.qkv.") {
                let rows = tensor.dim(0)?;
                if rows % 3 != 0 {
                    return Err(Error::Shape {
                        what: name.clone(),
                        got: tensor.dims().to_vec(),
                        expected: "three times the width first".to_owned(),
                    });
                }
                for (i, which) in QKV.iter().enumerate() {
                    let third = tensor.narrow(0, i * (rows / 3), rows / 3)?.contiguous()?;
                    renamed.insert(format!("{path}attention.attention.{which}.{kind}"), third);
                }
                continue;
            }
            let (owner, kind) = part.rsplit_once('.').unwrap_or((part, ""));
            let (_, theirs) = BLOCK_PARTS
                .iter()
                .find(|(ours, _)| *ours == owner)
                .ok_or_else(|| no_place(name))?;
            renamed.insert(format!("{path}{theirs}.{kind}"), tensor.clone());
            continue;
        }
        let theirs = match OTHER_NAMES.iter().find(|(ours, _)| ours == name) {
            Some((_, theirs)) => (*theirs).to_owned(),
            None if name.starts_with("decoder_pred.") => format!("decoder.{name}"),
            None => return Err(no_place(name)),
        };
        renamed.insert(theirs, tensor.clone());
    }
    Ok(renamed)
}

fn no_place(name: &str) -> Error {
    Error::Parameter {
        name: name.to_owned(),
        problem: "Hugging Face's layout has no place for it".to_owned(),
    }
}

/// Renames from Hugging Face's layout, with or without the `vit.` prefix, to the reference's, and packs query, key and
/// value again. Names that it does not know are kept, so that they show up as unexpected.
///
/// # Errors
/// [`Error::Parameter`] if a query has no key or value beside it, or two names become one.
pub fn from_hugging_face(tensors: &Tensors) -> Result<Tensors> {
    let prefixed: BTreeMap<String, &Tensor> = tensors
        .iter()
        .map(|(name, tensor)| {
            let bare = ["embeddings.", "encoder.", "layernorm.", "pooler."]
                .iter()
                .any(|p| name.starts_with(p));
            (
                if bare {
                    format!("vit.{name}")
                } else {
                    name.clone()
                },
                tensor,
            )
        })
        .collect();
    let mut renamed = Tensors::new();
    for (name, tensor) in &prefixed {
        let (ours, tensor) = if let Some((stack, index, part)) =
            split_block(name, |(_, theirs)| theirs)
        {
            let path = format!("{}{index}.", stack.0);
            if let Some(kind) = part.strip_prefix("attention.attention.query.") {
                let mut thirds = Vec::with_capacity(QKV.len());
                for which in QKV {
                    let third = format!("{}{index}.attention.attention.{which}.{kind}", stack.1);
                    thirds.push(*prefixed.get(&third).ok_or_else(|| Error::Parameter {
                        name: third.clone(),
                        problem: format!("missing beside {name}"),
                    })?);
                }
                (format!("{path}attn.qkv.{kind}"), Tensor::cat(&thirds, 0)?)
            } else if is_packed(&prefixed, stack.1, index, part) {
                continue;
            } else {
                let (owner, kind) = part.rsplit_once('.').unwrap_or((part, ""));
                match BLOCK_PARTS.iter().find(|(_, theirs)| *theirs == owner) {
                    Some((ours, _)) => (format!("{path}{ours}.{kind}"), (*tensor).clone()),
                    None => (name.clone(), (*tensor).clone()),
                }
            }
        } else if let Some((ours, _)) = OTHER_NAMES.iter().find(|(_, theirs)| theirs == name) {
            ((*ours).to_owned(), (*tensor).clone())
        } else if let Some(pred) = name
            .strip_prefix("decoder.")
            .filter(|rest| rest.starts_with("decoder_pred."))
        {
            (pred.to_owned(), (*tensor).clone())
        } else {
            (name.clone(), (*tensor).clone())
        };
        if renamed.insert(ours.clone(), tensor).is_some() {
            return Err(Error::Parameter {
                name: ours,
                problem: "met twice after renaming".to_owned(),
            });
        }
    }
    Ok(renamed)
}

/// Whether a key or value was packed together with its query.
fn is_packed(tensors: &BTreeMap<String, &Tensor>, stack: &str, index: &str, part: &str) -> bool {
    QKV[1..].iter().any(|which| {
        part.strip_prefix(&format!("attention.attention.{which}."))
            .is_some_and(|kind| {
                tensors.contains_key(&format!("{stack}{index}.attention.attention.query.{kind}"))
            })
    })
}

/// A block's parameter cut into its stack, its number and the name in the block.
fn split_block(
    name: &str,
    prefix: impl Fn(&(&'static str, &'static str)) -> &'static str,
) -> Option<((&'static str, &'static str), &str, &str)> {
    STACKS.iter().find_map(|stack| {
        let (index, part) = name.strip_prefix(prefix(stack))?.split_once('.')?;
        (!index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()))
            .then_some((*stack, index, part))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(shape: &[usize], from: u32) -> Tensor {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| (from as usize + i) as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn mae() -> Tensors {
        let mut names: Vec<(String, Vec<usize>)> = vec![
            ("cls_token".into(), vec![1, 1, 4]),
            ("pos_embed".into(), vec![1, 5, 4]),
            ("patch_embed.proj.weight".into(), vec![4, 3, 2, 2]),
            ("patch_embed.proj.bias".into(), vec![4]),
            ("mask_token".into(), vec![1, 1, 4]),
            ("decoder_pos_embed".into(), vec![1, 5, 4]),
        ];
        for end in ["weight", "bias"] {
            for stack in ["blocks.0", "blocks.11", "decoder_blocks.0"] {
                names.push((format!("{stack}.attn.qkv.{end}"), vec![12, 4]));
                for part in ["norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"] {
                    names.push((format!("{stack}.{part}.{end}"), vec![4]));
                }
            }
            for name in ["norm", "decoder_norm", "decoder_embed", "decoder_pred"] {
                names.push((format!("{name}.{end}"), vec![4]));
            }
        }
        names
            .into_iter()
            .enumerate()
            .map(|(i, (name, shape))| (name, numbers(&shape, 100 * i as u32)))
            .collect()
    }

    fn assert_same(a: &Tensors, b: &Tensors) {
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, tensor) in a {
            assert_eq!(tensor.dims(), b[name].dims(), "{name}");
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(tensor), values(&b[name]), "{name}");
        }
    }

    #[test]
    fn hugging_face_and_back_is_the_same() {
        let ours = mae();
        let theirs = to_hugging_face(&ours).unwrap();
        assert!(is_hugging_face(theirs.keys().map(String::as_str)));
        assert!(!is_hugging_face(ours.keys().map(String::as_str)));
        assert!(theirs.contains_key("vit.encoder.layer.11.attention.output.dense.weight"));
        assert!(theirs.contains_key("decoder.decoder_layers.0.layernorm_before.bias"));
        assert!(theirs.contains_key("decoder.decoder_pred.bias"));
        let value = theirs["vit.encoder.layer.0.attention.attention.value.weight"]
            .to_vec2::<f32>()
            .unwrap();
        let packed = ours["blocks.0.attn.qkv.weight"].to_vec2::<f32>().unwrap();
        assert_eq!(value, packed[8..]);
        assert_same(&ours, &from_hugging_face(&theirs).unwrap());

        let encoder: Tensors = theirs
            .into_iter()
            .filter_map(|(name, tensor)| {
                name.strip_prefix("vit.")
                    .map(|bare| (bare.to_owned(), tensor))
            })
            .collect();
        let back = from_hugging_face(&encoder).unwrap();
        assert_same(
            &ours
                .into_iter()
                .filter(|(name, _)| is_encoder(name))
                .collect(),
            &back,
        );
    }

    #[test]
    fn a_lost_key_and_a_foreign_name_are_found() {
        let mut theirs = to_hugging_face(&mae()).unwrap();
        theirs.insert("vit.pooler.dense.weight".to_owned(), numbers(&[1], 0));
        assert!(
            from_hugging_face(&theirs)
                .unwrap()
                .contains_key("vit.pooler.dense.weight")
        );
        theirs.remove("vit.encoder.layer.0.attention.attention.key.weight");
        let message = from_hugging_face(&theirs).unwrap_err().to_string();
        assert!(
            message.contains("vit.encoder.layer.0.attention.attention.key.weight"),
            "{message}"
        );

        let mut ours = mae();
        ours.insert("projector.0.weight".to_owned(), numbers(&[1], 0));
        assert!(
            to_hugging_face(&ours)
                .unwrap_err()
                .to_string()
                .contains("projector.0.weight")
        );
    }

    #[test]
    fn a_key_without_its_query_is_kept_as_it_is() {
        let name = "vit.encoder.layer.0.attention.attention.key.weight";
        let lonely: Tensors = [(name.to_owned(), numbers(&[2], 0))].into();
        assert!(from_hugging_face(&lonely).unwrap().contains_key(name));
    }
}
