//! Which parameters the weight decay touches.
//!
//! Source: timm 0.9.16, `optim_factory.py`, `param_groups_weight_decay`, as MAE and CropMAE call it.

use candle_core::Var;

/// Parameters that share a weight decay.
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// Decoupled weight decay of the group, per unit of learning rate.
    pub weight_decay: f64,
    /// Name and variable of each parameter, in the model's registration order.
    pub params: Vec<(String, Var)>,
}

/// Whether weight decay spares a parameter: everything of at most one dimension, and every `*.bias`.
///
/// `cls_token` and `mask_token` have three dimensions and **are** decayed, as in the reference.
pub fn spared_from_decay(name: &str, n_dims: usize) -> bool {
    n_dims <= 1 || name.ends_with(".bias")
}

/// Splits parameters in two groups, the one without decay first (as timm does: the order of the groups
/// is the order of the state in the reference's checkpoints).
///
/// * `params`: name and variable, in registration order, which each group keeps.
/// * `weight_decay`: decay of the second group; the papers use 0.05.
pub fn param_groups(
    params: impl IntoIterator<Item = (String, Var)>,
    weight_decay: f64,
) -> [ParamGroup; 2] {
    let (spared, decayed) = params
        .into_iter()
        .partition(|(name, var)| spared_from_decay(name, var.rank()));
    [
        ParamGroup {
            weight_decay: 0.0,
            params: spared,
        },
        ParamGroup {
            weight_decay,
            params: decayed,
        },
    ]
}

/// Parameters of a layer, for an optimizer of its own.
#[derive(Clone, Debug)]
pub struct LayerGroups {
    /// What the learning rate is multiplied with.
    pub lr_scale: f64,
    /// As [`param_groups`] splits them.
    pub groups: [ParamGroup; 2],
}

/// Splits the parameters of a vision transformer by layer, the first ones learning slowest: layer `i` of `depth + 2` (the
/// tokens and the patch embedding, the blocks, the rest) at `layer_decay` to the power of `depth + 1 - i`. Parameters of one
/// dimension, `pos_embed` and `cls_token` are spared from weight decay.
///
/// * `depth`: blocks of the encoder.
///
/// Source: MAE, `util/lr_decay.py`, `param_groups_lrd`, with `models_vit.py`'s `no_weight_decay`.
pub fn layer_groups(
    params: impl IntoIterator<Item = (String, Var)>,
    depth: usize,
    layer_decay: f64,
    weight_decay: f64,
) -> Vec<LayerGroups> {
    let mut layers: Vec<LayerGroups> = (0..depth + 2)
        .map(|layer| LayerGroups {
            lr_scale: layer_decay.powi((depth + 1 - layer) as i32),
            groups: param_groups([], weight_decay),
        })
        .collect();
    for (name, var) in params {
        let is_spared = var.rank() == 1 || matches!(name.as_str(), "pos_embed" | "cls_token");
        let [spared, decayed] = &mut layers[layer_of(&name, depth)].groups;
        let group = if is_spared { spared } else { decayed };
        group.params.push((name, var));
    }
    layers
}

/// 0 to `depth + 1`.
fn layer_of(name: &str, depth: usize) -> usize {
    let block = name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    match block {
        Some(block) => (block + 1).min(depth + 1),
        None if matches!(name, "cls_token" | "pos_embed") || name.starts_with("patch_embed") => 0,
        None => depth + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn norms_and_biases_are_spared_and_tokens_are_not() {
        assert!(spared_from_decay("norm.weight", 1));
        assert!(spared_from_decay("blocks.0.attn.qkv.bias", 1));
        assert!(spared_from_decay("odd.bias", 2));
        assert!(!spared_from_decay("cls_token", 3));
        assert!(!spared_from_decay("mask_token", 3));
        assert!(!spared_from_decay("patch_embed.proj.weight", 4));
    }

    #[test]
    fn the_group_without_decay_comes_first_and_order_is_kept() {
        let var = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let params = [
            ("cls_token".to_string(), var(&[1, 1, 4])),
            ("b.bias".to_string(), var(&[4])),
            ("a.weight".to_string(), var(&[4, 4])),
            ("norm.weight".to_string(), var(&[4])),
        ];
        let [spared, decayed] = param_groups(params, 0.05);
        let names = |group: &ParamGroup| {
            group
                .params
                .iter()
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&spared), ["b.bias", "norm.weight"]);
        assert_eq!(names(&decayed), ["cls_token", "a.weight"]);
        assert_eq!((spared.weight_decay, decayed.weight_decay), (0.0, 0.05));
    }

    /// MAE's `param_groups_lrd` for ViT-B with a layer decay of 0.65: `0.65 ** (13 - i)` of layers 0 to 13, by Python.
    const VIT_B_SCALES: [f64; 14] = [
        0.003_697_205_891_018_715,
        0.005_688_009_063_105_715,
        0.008_750_783_174_008_792,
        0.013_462_743_344_628_911,
        0.020_711_912_837_890_63,
        0.031_864_481_289_062_51,
        0.049_022_278_906_250_015,
        0.075_418_890_625_000_01,
        0.116_029_062_500_000_02,
        0.178_506_250_000_000_03,
        0.274_625,
        0.422_500_000_000_000_04,
        0.65,
        1.0,
    ];

    #[test]
    fn layers_decay_as_maes() {
        let var = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let mut params = vec![
            ("cls_token".to_string(), var(&[1, 1, 4])),
            ("pos_embed".to_string(), var(&[1, 5, 4])),
            ("patch_embed.proj.weight".to_string(), var(&[4, 3, 2, 2])),
            ("patch_embed.proj.bias".to_string(), var(&[4])),
        ];
        for block in 0..12 {
            params.push((format!("blocks.{block}.attn.qkv.weight"), var(&[12, 4])));
            params.push((format!("blocks.{block}.norm1.weight"), var(&[4])));
        }
        params.push(("fc_norm.weight".to_string(), var(&[4])));
        params.push(("head.weight".to_string(), var(&[10, 4])));
        let layers = layer_groups(params, 12, 0.65, 0.05);
        assert_eq!(layers.len(), 14);
        let of = |name: &str| {
            let of_layer = |layer: &LayerGroups| {
                let has = |group: &&ParamGroup| group.params.iter().any(|(n, _)| n == name);
                let group = layer.groups.iter().find(has)?;
                Some((layer.lr_scale, group.weight_decay))
            };
            layers.iter().find_map(of_layer).unwrap()
        };
        let close = |(scale, decay): (f64, f64), layer: usize, expected: f64| {
            assert!((scale - VIT_B_SCALES[layer]).abs() < 1e-12, "{scale}");
            assert_eq!(decay, expected);
        };
        close(of("cls_token"), 0, 0.0);
        close(of("pos_embed"), 0, 0.0);
        close(of("patch_embed.proj.weight"), 0, 0.05);
        close(of("patch_embed.proj.bias"), 0, 0.0);
        for block in 0..12 {
            let name = format!("blocks.{block}.attn.qkv.weight");
            close(of(&name), block + 1, 0.05);
            close(of(&format!("blocks.{block}.norm1.weight")), block + 1, 0.0);
        }
        close(of("fc_norm.weight"), 13, 0.0);
        close(of("head.weight"), 13, 0.05);
    }
}
