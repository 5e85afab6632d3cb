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
}
