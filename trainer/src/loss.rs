//! The losses.
//!
//! Letters: B batch, N patches, P values of a patch.

use candle_core::{D, DType, Tensor};

use crate::error::{Error, Result};

/// Inside the root when patches are normalised.
pub(crate) const NORM_PIX_EPS: f64 = 1e-6;

/// Reconstruction targets: the patches themselves, or each patch minus its mean over the root of its unbiased variance
/// plus 1e-6.
///
/// # Errors
/// If the device is out of memory.
///
/// Source: MAE, `models_mae.py`, `forward_loss`; torch's `var` divides by P - 1.
pub fn pixel_targets(patches: &Tensor, norm_pix: bool) -> Result<Tensor> {
    if !norm_pix {
        return Ok(patches.clone());
    }
    let n_values = patches.dim(D::Minus1)?;
    let centred = patches.broadcast_sub(&patches.mean_keepdim(D::Minus1)?)?;
    let var = (centred.sqr()?.sum_keepdim(D::Minus1)? / (n_values as f64 - 1.0))?;
    Ok(centred.broadcast_div(&(var + NORM_PIX_EPS)?.sqrt()?)?)
}

/// Mean squared error of `pred` `[B, N, P]` against `target` over the removed patches (`mask` `[B, N]` is 1 there):
/// the mean over a patch's values, then the mean over all removed patches of the batch.
///
/// # Errors
/// If the shapes do not fit.
pub fn masked_patch_mse(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let per_patch = (pred - target)?.sqr()?.mean(D::Minus1)?; // [B, N]
    let n_removed = mask.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    Ok(((per_patch * mask)?.sum_all()? / n_removed)?)
}

/// Symmetric in-batch InfoNCE between two sets of unit vectors `[B, Z]`: each row's partner in the other set is the
/// positive, the other rows of that set are the negatives; mean of both directions.
///
/// # Errors
/// [`Error::Config`] if there is no negative (B below 2).
pub fn info_nce(z1: &Tensor, z2: &Tensor, temperature: f64) -> Result<Tensor> {
    let batch = z1.dim(0)?;
    if batch < 2 {
        return Err(Error::Config(format!(
            "batch of {batch} for the contrastive loss, expected at least 2 samples"
        )));
    }
    let logits = (z1.matmul(&z2.t()?)? / temperature)?; // [B, B]
    let positives = ((z1 * z2)?.sum_all()? / temperature)?;
    let normalisers =
        (log_sum_exp(&logits)?.sum_all()? + log_sum_exp(&logits.t()?.contiguous()?)?.sum_all()?)?;
    Ok(((normalisers * 0.5)?.sub(&positives)? / batch as f64)?)
}

/// Over the rows of `[B, B]`.
fn log_sum_exp(logits: &Tensor) -> Result<Tensor> {
    // The largest is a constant here: the function does not depend on what is subtracted and added again.
    let largest = logits.max_keepdim(1)?.detach();
    let sums = logits.broadcast_sub(&largest)?.exp()?.sum_keepdim(1)?;
    Ok((sums.log()? + largest)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn only_removed_patches_count() {
        let pred = Tensor::new(
            &[[[1f32, 1.0], [5.0, 7.0]], [[0.0, 2.0], [9.0, 9.0]]],
            &Device::Cpu,
        )
        .unwrap();
        let target = pred.zeros_like().unwrap();
        let mask = Tensor::new(&[[1f32, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let loss = masked_patch_mse(&pred, &target, &mask)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert_eq!(loss, (1.0 + 2.0) / 2.0);
    }

    #[test]
    fn flat_patches_normalise_to_zero() {
        let patches = Tensor::new(&[[[3f32, 3.0, 3.0], [1.0, 2.0, 3.0]]], &Device::Cpu).unwrap();
        let targets = pixel_targets(&patches, true)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        assert_eq!(targets[0], [0.0; 3]);
        assert!(
            (targets[1][2] - 1.0).abs() < 1e-6,
            "variance of 1, 2, 3 is 1: {targets:?}"
        );
    }

    #[test]
    fn info_nce_matches_a_direct_sum() {
        let z1 = [[0.6f64, 0.8], [1.0, 0.0], [0.0, -1.0]];
        let z2 = [[0.8f64, 0.6], [0.0, 1.0], [-0.6, -0.8]];
        let dot = |a: [f64; 2], b: [f64; 2]| (a[0] * b[0] + a[1] * b[1]) / 0.2;
        let mut want = 0.0;
        for i in 0..3 {
            let forth: f64 = (0..3).map(|j| dot(z1[i], z2[j]).exp()).sum();
            let back: f64 = (0..3).map(|j| dot(z1[j], z2[i]).exp()).sum();
            want -= (dot(z1[i], z2[i]).exp() / forth).ln() + (dot(z1[i], z2[i]).exp() / back).ln();
        }
        let tensor = |z: &[[f64; 2]]| {
            Tensor::from_slice(z.as_flattened(), (z.len(), 2), &Device::Cpu).unwrap()
        };
        let got = info_nce(&tensor(&z1), &tensor(&z2), 0.2)
            .unwrap()
            .to_scalar::<f64>()
            .unwrap();
        assert!((got - want / 6.0).abs() < 1e-12, "{got} {want}");
        assert!(info_nce(&tensor(&z1[..1]), &tensor(&z2[..1]), 0.2).is_err());
    }
}
