//! Targets of the reconstruction, whose error is [`crate::ops::patch_mse`], and the contrastive loss.
//!
//! Letters: B batch, P values of a patch, Z width of a projection.

use candle_core::{D, Tensor};

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

/// What queries are compared with: one key for each sample of the batch over all ranks.
///
/// Over several ranks each has the queries of its own samples alone and the keys of all. Where keys take a gradient
/// (no predictor and no momentum branch), what a rank's loss gives to the keys of the others has to reach them: their
/// gradients are summed over the ranks and each rank adds its own rows' to what its queries got. Only then are the
/// gradients, averaged over ranks, those of the whole batch on one rank: a key is pushed by every rank's queries. (MoCo
/// v3's gather passes no gradient and needs none, because its keys are constants.)
#[derive(Debug, Clone)]
pub struct Keys {
    all: Tensor,
    first: usize,
}

impl Keys {
    /// The keys of a batch that is all on this rank, `[B, Z]`.
    pub fn local(keys: Tensor) -> Keys {
        Keys {
            all: keys,
            first: 0,
        }
    }

    /// The keys of all ranks in rank order, `[ranks * b, Z]`, for the `n_local` = b queries of `rank`.
    pub fn gathered(all: Tensor, rank: usize, n_local: usize) -> Keys {
        let first = rank * n_local;
        Keys { all, first }
    }
}

/// InfoNCE, one direction: each query's partner among the keys is the positive, all other keys are the negatives. The
/// mean over the queries.
///
/// * `queries`: unit vectors `[b, Z]`; the partner of query i is the key of sample i of this rank.
/// * `keys`: unit vectors.
///
/// # Errors
/// [`Error::Config`] if there is no negative (a single key); [`Error::Shape`] if the queries' partners are not among
/// the keys.
///
/// Source: MoCo v3, `moco/builder.py`, `contrastive_loss`, without its factor of twice the temperature.
pub fn info_nce(queries: &Tensor, keys: &Keys, temperature: f64) -> Result<Tensor> {
    let (n_queries, n_keys) = (queries.dim(0)?, keys.all.dim(0)?);
    if n_keys < 2 {
        return Err(Error::Config(format!(
            "batch of {n_keys} for the contrastive loss, expected at least 2 samples"
        )));
    }
    if keys.first + n_queries > n_keys {
        return Err(Error::Shape {
            what: "keys of all ranks".to_owned(),
            got: keys.all.dims().to_vec(),
            expected: format!("at least {} rows", keys.first + n_queries),
        });
    }
    let partners = keys.all.narrow(0, keys.first, n_queries)?;
    let logits = (queries.matmul(&keys.all.t()?)? / temperature)?; // [b, B]
    let positives = ((queries * partners)?.sum_all()? / temperature)?;
    Ok(((log_sum_exp(&logits)?.sum_all()? - positives)? / n_queries as f64)?)
}

/// Cross-entropy with soft targets, the mean over the batch.
///
/// * `logits`: `[B, C]`.
/// * `targets`: `[B, C]`, each row summing to 1.
///
/// # Errors
/// If the shapes differ.
///
/// Source: timm 0.4.5, `loss/cross_entropy.py`, `SoftTargetCrossEntropy`.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let n = logits.dim(0)? as f64;
    let chosen = (logits * targets)?.sum_all()?;
    Ok(((log_sum_exp(logits)?.sum_all()? - chosen)? / n)?)
}

/// Over the rows of `[b, B]`.
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
        let queries = [[0.6f64, 0.8], [1.0, 0.0], [0.0, -1.0]];
        let keys = [[0.8f64, 0.6], [0.0, 1.0], [-0.6, -0.8]];
        let dot = |a: [f64; 2], b: [f64; 2]| (a[0] * b[0] + a[1] * b[1]) / 0.2;
        let want: f64 = (0..3)
            .map(|i| {
                let all: f64 = (0..3).map(|j| dot(queries[i], keys[j]).exp()).sum();
                -(dot(queries[i], keys[i]).exp() / all).ln()
            })
            .sum();
        let tensor = |z: &[[f64; 2]]| {
            Tensor::from_slice(z.as_flattened(), (z.len(), 2), &Device::Cpu).unwrap()
        };
        let loss = |queries: &[[f64; 2]], keys| info_nce(&tensor(queries), &keys, 0.2);
        let got = loss(&queries, Keys::local(tensor(&keys))).unwrap();
        let got = got.to_scalar::<f64>().unwrap();
        assert!((got - want / 3.0).abs() < 1e-12, "{got} {want}");
        assert!(matches!(
            loss(&queries[..1], Keys::local(tensor(&keys[..1]))),
            Err(Error::Config(_))
        ));
        assert!(matches!(
            loss(&queries[..2], Keys::gathered(tensor(&keys), 1, 2)),
            Err(Error::Shape { .. })
        ));
    }

    /// Each rank computes with its own slice and a copy of all keys, as after a gather; what its loss gives to the keys
    /// is summed over the ranks and goes back to their owners.
    #[test]
    fn ranks_with_gathered_keys_make_the_loss_and_the_gradients_of_the_whole_batch() {
        use candle_core::Var;
        let (n_ranks, local, width, temperature) = (3, 2, 4, 0.3);
        let whole = |phase: f64| {
            let n = n_ranks * local * width;
            let values: Vec<f64> = (0..n).map(|i| (1.7 * i as f64 + phase).sin()).collect();
            Var::from_vec(values, (n_ranks * local, width), &Device::Cpu).unwrap()
        };
        let both = |z1: &Tensor, k2: &Keys, z2: &Tensor, k1: &Keys| {
            let forth = info_nce(z1, k2, temperature).unwrap();
            ((forth + info_nce(z2, k1, temperature).unwrap()).unwrap() * 0.5).unwrap()
        };
        let scalar = |loss: &Tensor| loss.to_scalar::<f64>().unwrap();
        let [z1, z2] = [whole(0.2), whole(0.9)];
        let keys = |z: &Var| Keys::local(z.as_tensor().clone());
        let loss = both(&z1, &keys(&z2), &z2, &keys(&z1));
        let gradients = loss.backward().unwrap();
        let expected = [&z1, &z2].map(|z| gradients.get(z).unwrap().to_vec2::<f64>().unwrap());

        let mut mean = 0.0;
        let mut of_queries = [Vec::new(), Vec::new()];
        let mut of_keys = [&z1, &z2].map(|z| z.zeros_like().unwrap());
        for rank in 0..n_ranks {
            let slice = |z: &Var| {
                let rows = z.as_detached_tensor().narrow(0, rank * local, local);
                Var::from_tensor(&rows.unwrap().copy().unwrap()).unwrap()
            };
            let copy = |z: &Var| Var::from_tensor(&z.as_detached_tensor().copy().unwrap()).unwrap();
            let (queries, all) = ([slice(&z1), slice(&z2)], [copy(&z1), copy(&z2)]);
            let gathered =
                |which: usize| Keys::gathered(all[which].as_tensor().clone(), rank, local);
            let loss = both(&queries[0], &gathered(1), &queries[1], &gathered(0));
            mean += scalar(&loss) / n_ranks as f64;
            let gradients = loss.backward().unwrap();
            for which in 0..2 {
                of_queries[which].push(gradients.get(&queries[which]).unwrap().clone());
                let given = gradients.get(&all[which]).unwrap();
                of_keys[which] = (&of_keys[which] + given).unwrap();
            }
        }
        assert!((mean - scalar(&loss)).abs() < 1e-12, "{mean}");
        for which in 0..2 {
            let own = Tensor::cat(&of_queries[which], 0).unwrap();
            let apart = own.to_vec2::<f64>().unwrap();
            let got = ((own + &of_keys[which]).unwrap() / n_ranks as f64).unwrap();
            let got = got.to_vec2::<f64>().unwrap();
            let gap = |a: &[Vec<f64>], b: &[Vec<f64>]| {
                let pairs = a.iter().flatten().zip(b.iter().flatten());
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
            };
            assert!(gap(&got, &expected[which]) < 1e-12, "view {which}");
            assert!(
                gap(&apart, &expected[which]) > 1e-3,
                "the keys' share matters"
            );
        }
    }

    #[test]
    fn soft_targets_weigh_the_log_probabilities() {
        let logits = Tensor::new(&[[1f32, 2.0, 0.5], [100.0, -100.0, 0.0]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[[0.7f32, 0.2, 0.1], [0.0, 0.5, 0.5]], &Device::Cpu).unwrap();
        let loss = soft_cross_entropy(&logits, &targets).unwrap();
        // ln(e + e^2 + e^0.5) = 2.464369; 2.464369 - (0.7 + 0.4 + 0.05) and 100 - (-50), halved.
        let expected = (1.314_369 + 150.0) / 2.0;
        assert!((loss.to_scalar::<f32>().unwrap() - expected).abs() < 1e-4);
    }
}
