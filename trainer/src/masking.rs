//! Which patches are hidden, and all other randomness of one training step.
//!
//! Letters: B batch, V masked views, N patches, K kept.

use candle_core::{DType, Device, Tensor};
use pipeline::rng::{Purpose, SampleRng};

use crate::error::{Error, Result};
use crate::ops;

/// What a step's random draws depend on: a sample's mask and dropout are the same in whatever batch it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRandomness {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The ids of the batch's samples, in batch order.
    pub samples: Vec<u64>,
}

impl StepRandomness {
    /// Uniform noise for masking, `[B, n_views * N]` row-major: a sample's views take consecutive stretches of its
    /// stream, so the first view's noise does not depend on the number of views.
    pub fn mask_noise(&self, n_views: usize, n_patches: usize) -> Vec<f32> {
        let mut noise = vec![0f32; self.samples.len() * n_views * n_patches];
        for (row, &sample) in noise
            .chunks_exact_mut((n_views * n_patches).max(1))
            .zip(&self.samples)
        {
            SampleRng::new(self.seed, self.epoch, sample, Purpose::Mask).fill_unit_f32(row);
        }
        noise
    }

    /// The masks of `n_views` views of `n_patches` patches each, drawn independently for each sample and view.
    ///
    /// # Errors
    /// As [`random_masking`].
    pub fn masks(&self, n_views: usize, n_patches: usize, mask_ratio: f64) -> Result<Vec<Masking>> {
        let noise = self.mask_noise(n_views, n_patches);
        (0..n_views)
            .map(|view| {
                let rows = noise.chunks_exact(n_views * n_patches);
                let of_view: Vec<f32> = rows
                    .flat_map(|row| &row[view * n_patches..(view + 1) * n_patches])
                    .copied()
                    .collect();
                random_masking(&of_view, n_patches, mask_ratio)
            })
            .collect()
    }
}

/// Number of patches kept of `n_patches`: `int(N * (1 - ratio))` in double arithmetic, as the reference (19, not 20,
/// of 196 at 0.9).
///
/// # Errors
/// [`Error::NothingKept`] if that is 0; [`Error::Config`] if the ratio is not in `[0, 1)`.
pub fn n_kept(n_patches: usize, mask_ratio: f64) -> Result<usize> {
    if !(0.0..1.0).contains(&mask_ratio) {
        return Err(Error::Config(format!(
            "mask_ratio is {mask_ratio}, expected 0 <= mask_ratio < 1"
        )));
    }
    match (n_patches as f64 * (1.0 - mask_ratio)) as usize {
        0 => Err(Error::NothingKept {
            mask_ratio,
            n_patches,
        }),
        n => Ok(n),
    }
}

/// The masks of one view of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Masking {
    batch: usize,
    n_patches: usize,
    n_kept: usize,
    ids_keep: Vec<u32>,
    ids_restore: Vec<u32>,
}

/// Keeps a random subset of the patches, drawn independently for each sample: those with the least noise.
///
/// * `noise`: `[B, N]` row-major.
/// * `mask_ratio`: share of patches removed, in `[0, 1)`. CropMAE uses 0.985, which keeps 2 of 196.
///
/// Equal noise values keep the order of the patches.
///
/// # Errors
/// [`Error::NothingKept`] if no patch would be kept; [`Error::Shape`] if `noise` is not whole rows.
///
/// Source: MAE, `models_mae.py`, `random_masking`.
pub fn random_masking(noise: &[f32], n_patches: usize, mask_ratio: f64) -> Result<Masking> {
    let n_kept = n_kept(n_patches, mask_ratio)?;
    if !noise.len().is_multiple_of(n_patches) {
        return Err(Error::Shape {
            what: "mask noise".to_owned(),
            got: vec![noise.len()],
            expected: format!("a multiple of {n_patches} patches"),
        });
    }
    let batch = noise.len() / n_patches;
    let mut ids_keep = Vec::with_capacity(batch * n_kept);
    let mut ids_restore = vec![0u32; noise.len()];
    for (row, restore) in noise
        .chunks_exact(n_patches)
        .zip(ids_restore.chunks_exact_mut(n_patches))
    {
        let mut ids_shuffle: Vec<u32> = (0..n_patches as u32).collect();
        ids_shuffle.sort_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
        for (place, &id) in ids_shuffle.iter().enumerate() {
            restore[id as usize] = place as u32;
        }
        ids_keep.extend_from_slice(&ids_shuffle[..n_kept]);
    }
    Ok(Masking {
        batch,
        n_patches,
        n_kept,
        ids_keep,
        ids_restore,
    })
}

impl Masking {
    /// K, the same for every sample.
    pub fn n_kept(&self) -> usize {
        self.n_kept
    }

    /// B.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The kept patches of each sample in the order in which the encoder sees them, `[B, K]` row-major.
    pub fn ids_keep(&self) -> &[u32] {
        &self.ids_keep
    }

    /// For each patch its place in the shuffled order, `[B, N]` row-major; kept patches have places below K.
    pub fn ids_restore(&self) -> &[u32] {
        &self.ids_restore
    }

    /// `[B, N]`, 0 kept and 1 removed.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn mask(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let mask: Vec<f32> = self
            .ids_restore
            .iter()
            .map(|&place| {
                if (place as usize) < self.n_kept {
                    0.0
                } else {
                    1.0
                }
            })
            .collect();
        Ok(Tensor::from_vec(mask, (self.batch, self.n_patches), device)?.to_dtype(dtype)?)
    }

    /// The kept ones of `patches` `[B, N, P]` as `[B, K, P]`. Meant for constants: its backward would be slow.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn gather(&self, patches: &Tensor) -> Result<Tensor> {
        let (batch, n_patches, width) = patches.dims3()?;
        if (batch, n_patches) != (self.batch, self.n_patches) {
            return Err(Error::Shape {
                what: "patches to mask".to_owned(),
                got: patches.dims().to_vec(),
                expected: format!("[{}, {}, P]", self.batch, self.n_patches),
            });
        }
        let rows: Vec<u32> = self
            .ids_keep
            .iter()
            .enumerate()
            .map(|(i, &id)| (i / self.n_kept * self.n_patches) as u32 + id)
            .collect();
        let rows = Tensor::from_vec(rows, self.ids_keep.len(), patches.device())?;
        let flat = patches.reshape((batch * n_patches, width))?;
        Ok(flat
            .index_select(&rows, 0)?
            .reshape((batch, self.n_kept, width))?)
    }

    /// The removed patches of all samples, counted over `[B, N]`, in rising order.
    pub fn removed(&self) -> Vec<u32> {
        let places = self.ids_restore.iter().enumerate();
        let removed = places.filter(|(_, place)| **place as usize >= self.n_kept);
        removed.map(|(row, _)| row as u32).collect()
    }

    /// The same, counted over `[B, 1 + N]`, tokens with a class token in front.
    pub fn removed_tokens(&self) -> Vec<u32> {
        let n = self.n_patches as u32;
        let token = |row: u32| row / n * (1 + n) + 1 + row % n;
        self.removed().into_iter().map(token).collect()
    }

    /// The rows of a table `[1 + N, D]` that belong to the class token and the kept patches, `[B, 1 + K, D]`. Meant for
    /// constants.
    ///
    /// # Errors
    /// If the table has fewer than 1 + N rows.
    pub fn gather_table(&self, table: &Tensor) -> Result<Tensor> {
        let rows: Vec<u32> = self
            .ids_keep
            .chunks_exact(self.n_kept)
            .flat_map(|ids| std::iter::once(0).chain(ids.iter().map(|id| 1 + id)))
            .collect();
        let ids = Tensor::from_slice(&rows, rows.len(), table.device())?;
        let shape = (self.batch, 1 + self.n_kept, table.dim(1)?);
        Ok(table.index_select(&ids, 0)?.reshape(shape)?)
    }

    /// Puts the encoded tokens back in place, with `mask_token` where a patch was removed, and adds positions.
    ///
    /// * `tokens`: `[B, 1 + K, D]`, the class token first.
    /// * `mask_token`: `[1, 1, D]`.
    /// * `positions`: constants `[1, 1 + N, D]`.
    ///
    /// Returns `[B, 1 + N, D]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn restore(
        &self,
        tokens: &Tensor,
        mask_token: &Tensor,
        positions: &Tensor,
    ) -> Result<Tensor> {
        let (batch, n_tokens, width) = tokens.dims3()?;
        if (batch, n_tokens) != (self.batch, 1 + self.n_kept) {
            return Err(Error::Shape {
                what: "tokens to restore".to_owned(),
                got: tokens.dims().to_vec(),
                expected: format!("[{}, {}, D]", self.batch, 1 + self.n_kept),
            });
        }
        if positions.dims() != [1, 1 + self.n_patches, width] {
            return Err(Error::Shape {
                what: "positions of the decoder".to_owned(),
                got: positions.dims().to_vec(),
                expected: format!("[1, {}, {width}]", 1 + self.n_patches),
            });
        }
        ops::restore(tokens, mask_token, positions, &self.ids_restore)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kept_counts_are_the_papers() {
        for (ratio, kept) in [
            (0.985, 2),
            (0.99, 1),
            (0.95, 9),
            (0.9, 19),
            (0.75, 49),
            (0.0, 196),
        ] {
            assert_eq!(n_kept(196, ratio).unwrap(), kept, "ratio {ratio}");
        }
        assert!(matches!(n_kept(16, 0.985), Err(Error::NothingKept { .. })));
        for ratio in [1.0, -0.1, f64::NAN] {
            assert!(
                matches!(n_kept(196, ratio), Err(Error::Config(_))),
                "ratio {ratio}"
            );
        }
    }

    #[test]
    fn a_sample_has_the_same_mask_in_any_batch() {
        let step = |samples: &[u64]| StepRandomness {
            seed: 5,
            epoch: 2,
            samples: samples.to_vec(),
        };
        let many = step(&[10, 11, 12]).masks(2, 36, 0.75).unwrap();
        for (i, sample) in [10, 11, 12].into_iter().enumerate() {
            let alone = step(&[sample]).masks(2, 36, 0.75).unwrap();
            for view in 0..2 {
                assert_eq!(
                    alone[view].ids_keep(),
                    &many[view].ids_keep()[i * 9..(i + 1) * 9]
                );
            }
            assert_eq!(alone[0], step(&[sample]).masks(1, 36, 0.75).unwrap()[0]);
            assert_ne!(alone[0], alone[1]);
        }
        assert_ne!(many[0].ids_keep()[..9], many[0].ids_keep()[9..18]);
        let later = StepRandomness {
            seed: 5,
            epoch: 3,
            samples: vec![10, 11, 12],
        };
        assert_ne!(many, later.masks(2, 36, 0.75).unwrap());
    }

    #[test]
    fn noise_must_be_whole_rows() {
        assert!(matches!(
            random_masking(&[0.5; 17], 16, 0.5),
            Err(Error::Shape { .. })
        ));
    }

    proptest! {
        #[test]
        fn restore_undoes_gather(noise in proptest::collection::vec(0f32..1.0, 3 * 16), ratio in 0.0..0.93) {
            let masking = random_masking(&noise, 16, ratio).unwrap();
            let k = masking.n_kept();
            // Patch n of sample b is the number 100 b + n; the class token is -1 and the mask token -2.
            let patches: Vec<f32> = (0..48).map(|i| (100 * (i / 16) + i % 16) as f32).collect();
            let patches = Tensor::from_vec(patches, (3, 16, 1), &Device::Cpu).unwrap();
            let kept = masking.gather(&patches).unwrap();
            let class = Tensor::full(-1f32, (3, 1, 1), &Device::Cpu).unwrap();
            let token = Tensor::full(-2f32, (1, 1, 1), &Device::Cpu).unwrap();
            let positions = Tensor::zeros((1, 17, 1), DType::F32, &Device::Cpu).unwrap();
            let tokens = Tensor::cat(&[&class, &kept], 1).unwrap();
            let restored = masking.restore(&tokens, &token, &positions).unwrap();
            let restored = restored.reshape((3, 17)).unwrap().to_vec2::<f32>().unwrap();
            let mask = masking.mask(DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            for b in 0..3 {
                prop_assert_eq!(restored[b][0], -1.0);
                prop_assert_eq!(mask[b].iter().filter(|&&m| m == 0.0).count(), k);
                for n in 0..16 {
                    let want = if mask[b][n] == 0.0 { (100 * b + n) as f32 } else { -2.0 };
                    prop_assert_eq!(restored[b][n + 1], want);
                }
                let removed = (0..16u32).filter(|&n| mask[b][n as usize] == 1.0);
                let rows: Vec<u32> = masking.removed().into_iter().filter(|row| *row as usize / 16 == b).collect();
                prop_assert_eq!(&rows, &removed.map(|n| 16 * b as u32 + n).collect::<Vec<_>>());
                let tokens = masking.removed_tokens().into_iter().filter(|row| *row as usize / 17 == b);
                prop_assert_eq!(tokens.collect::<Vec<_>>(), rows.iter().map(|row| row + 1 + b as u32).collect::<Vec<_>>());
                let kept_noise = (0..16).filter(|&n| mask[b][n] == 0.0).map(|n| noise[b * 16 + n]);
                let removed_noise = (0..16).filter(|&n| mask[b][n] == 1.0).map(|n| noise[b * 16 + n]);
                prop_assert!(kept_noise.fold(0f32, f32::max) <= removed_noise.fold(1f32, f32::min));
            }
        }
    }
}
