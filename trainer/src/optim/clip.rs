//! The size of the gradients: per parameter, over all, and the optional clipping to a maximum norm.
//!
//! The reference does not clip; the norm is measured every step all the same, because it is what shows
//! a run going wrong first, and because a NaN in it names the parameter.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::Gradients;
use crate::error::Result;
#[cfg(any(feature = "cuda", test))]
use crate::ops::cuda;
use crate::ops::kernels;
use crate::ops::storage::with_slice;

/// Elements summed by one task. Fixed, so that the sum does not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// Parameters whose gradient is zero but for rounding by nature: what a bias adds before a batch normalisation, the
/// normalisation takes away.
pub const ZERO_BY_NATURE: [&str; 2] = ["projector.fc1.bias", "predictor.fc1.bias"];

/// The l2 norms of one step's gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct GradNorms {
    /// Name and norm of each parameter's gradient; `None` where it has none.
    pub per_param: Vec<(String, Option<f64>)>,
    /// The norm over all parameters.
    pub global: f64,
}

impl GradNorms {
    /// The first parameter whose gradient holds a NaN or an infinity, with its norm.
    pub fn first_not_finite(&self) -> Option<(&str, f64)> {
        let norms = self
            .per_param
            .iter()
            .filter_map(|(name, norm)| Some((name.as_str(), (*norm)?)));
        norms.into_iter().find(|(_, norm)| !norm.is_finite())
    }

    /// Parameters without a finite non-zero gradient, each with what it has instead; those of [`ZERO_BY_NATURE`] may
    /// have zero.
    pub fn uncovered(&self) -> Vec<String> {
        let bad = self.per_param.iter().filter_map(|(name, norm)| match norm {
            None => Some(format!("{name} (none)")),
            Some(0.0) if ZERO_BY_NATURE.contains(&name.as_str()) => None,
            Some(0.0) => Some(format!("{name} (zero)")),
            Some(norm) if !norm.is_finite() => Some(format!("{name} ({norm})")),
            Some(_) => None,
        });
        bad.collect()
    }
}

/// Measures every gradient, summing squares in f64 in the parameters' order.
pub fn norms(grads: &Gradients) -> Result<GradNorms> {
    let present: Vec<&Tensor> = grads.iter().filter_map(|(_, grad)| grad).collect();
    let squares = if present
        .iter()
        .all(|grad| matches!(grad.device(), Device::Cpu))
    {
        let sums = present.into_iter().map(sum_of_squares);
        sums.collect::<Result<Vec<f64>>>()?
    } else {
        sums_on_device(&present)?
    };
    let global = squares.iter().sum::<f64>().sqrt();
    let mut squares = squares.into_iter();
    let per_param = grads
        .iter()
        .map(|(name, grad)| {
            (
                name.to_string(),
                grad.and_then(|_| squares.next()).map(f64::sqrt),
            )
        })
        .collect();
    Ok(GradNorms { per_param, global })
}

/// What the gradients are to be multiplied with so that their global norm is at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does (with its 1e-6 beside the norm); 1 if they are short enough.
pub fn factor(norms: &GradNorms, max_norm: f64) -> f64 {
    (max_norm / (norms.global + 1e-6)).min(1.0)
}

/// The sums of all parameters in one transfer: each would have the host wait for the device.
fn sums_on_device(grads: &[&Tensor]) -> Result<Vec<f64>> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(first) = grads.first()
        && grads
            .iter()
            .all(|grad| cuda::takes(grad) && grad.dtype() == DType::F32)
    {
        let sizes = grads.iter().map(|grad| grad.elem_count()).collect();
        let whole = grads.iter().map(|grad| grad.contiguous());
        let whole = whole.collect::<candle_core::Result<Vec<_>>>()?;
        let given: Vec<Option<&Tensor>> = whole.iter().map(Some).collect();
        let norms = cuda::optim::Split::new(sizes, first.device())?.norms(&given, None)?;
        return Ok(norms.squares.to_vec1()?);
    }
    let sum = |grad: &&Tensor| grad.to_dtype(DType::F32)?.sqr()?.sum_all();
    let sums = grads
        .iter()
        .map(sum)
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::stack(&sums, 0)?
        .to_vec1::<f32>()?
        .into_iter()
        .map(f64::from)
        .collect())
}

fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    let sum = |values: &[f32]| {
        let partial: Vec<f64> = values
            .par_chunks(CHUNK)
            .map(kernels::sum_of_squares)
            .collect();
        Ok(partial.iter().sum())
    };
    Ok(with_slice(&grad.to_dtype(DType::F32)?, sum)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    fn grads_of(values: &[f32]) -> Gradients {
        let var = Var::new(values, &Device::Cpu).unwrap();
        let idle = Var::new(&[0f32], &Device::Cpu).unwrap();
        let mut grads =
            Gradients::new([("w".to_string(), var.clone()), ("idle".to_string(), idle)]);
        let loss = var.sqr().unwrap().sum_all().unwrap();
        grads.accumulate(loss.backward().unwrap()).unwrap();
        grads
    }

    #[test]
    fn the_norm_is_the_root_of_the_sum_of_squares() {
        let norms = norms(&grads_of(&[1.5, 2.0])).unwrap();
        assert!((norms.global - 5.0).abs() < 1e-12);
        assert_eq!(
            norms.per_param,
            [("w".to_string(), Some(5.0)), ("idle".to_string(), None)]
        );
        assert_eq!(norms.uncovered(), ["idle (none)"]);
    }

    #[test]
    fn clipping_scales_only_what_is_too_long() {
        let norms = norms(&grads_of(&[1.5, 2.0])).unwrap();
        assert_eq!(factor(&norms, 6.0), 1.0);
        assert!((factor(&norms, 1.0) * norms.global - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_nan_names_its_parameter() {
        let norms = norms(&grads_of(&[f32::NAN, 1.0])).unwrap();
        assert_eq!(norms.first_not_finite().map(|(name, _)| name), Some("w"));
        assert_eq!(norms.uncovered(), ["w (NaN)", "idle (none)"]);
    }

    #[test]
    fn a_devices_sums_agree_with_the_hosts() {
        use crate::ops::cuda::emulation;
        let grads = grads_of(&[1.5, 2.0]);
        let grad = grads.get("w").unwrap();
        let expected = [sum_of_squares(grad).unwrap()];
        assert_eq!(sums_on_device(&[grad]).unwrap(), expected);
        if emulation::is_there("a_devices_sums_agree_with_the_hosts, by kernels") {
            let sums = emulation::instead(|| sums_on_device(&[grad])).unwrap();
            assert_eq!(sums, expected);
        }
    }

    #[test]
    fn the_sum_does_not_depend_on_the_threads() {
        let values: Vec<f32> = (0..300_001).map(|i| (i as f32 * 0.37).sin()).collect();
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| sum_of_squares(&tensor).unwrap())
        };
        assert_eq!(with(1).to_bits(), with(3).to_bits());
    }
}
