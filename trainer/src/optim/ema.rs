//! A running mean of the weights, which often evaluates better than the last weights.
//!
//! Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", in the exponential form of
//! timm's `ModelEmaV2`: `mean = decay * mean + (1 - decay) * weights` after every optimizer step, from the initial
//! weights on.

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use crate::error::{Error, Result};
use crate::nn::params::Params;
use crate::ops;
#[cfg(any(feature = "cuda", test))]
use crate::ops::cuda;

/// The mean of every trained parameter; all others are carried along as they are, so that it is a whole model.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    slots: Vec<Slot>,
    /// How the means are split over a launch, once that is known.
    #[cfg(any(feature = "cuda", test))]
    split: Option<cuda::optim::Split>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    /// `None` for what is not trained.
    mean: Option<Tensor>,
}

impl Ema {
    /// Begins at the parameters' present values.
    ///
    /// * `decay`: share of the mean that a step keeps, at least 0 and less than 1.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        let slot = |param: &crate::nn::params::Param| -> Result<Slot> {
            Ok(Slot {
                name: param.name.clone(),
                var: param.var.clone(),
                mean: match param.trainable {
                    true => Some(param.var.as_detached_tensor().copy()?), // its storage is updated in place
                    false => None,
                },
            })
        };
        Ok(Self {
            decay,
            slots: params.iter().map(slot).collect::<Result<_>>()?,
            #[cfg(any(feature = "cuda", test))]
            split: None,
        })
    }

    /// Takes in the parameters as an optimizer step left them.
    pub fn update(&mut self) -> Result<()> {
        #[cfg(any(feature = "cuda", test))]
        if self.slots.iter().all(|slot| cuda::takes(&slot.var)) {
            return self.update_at_once();
        }
        for slot in &mut self.slots {
            if let Some(mean) = &mut slot.mean {
                let weights = slot.var.as_detached_tensor();
                *mean = ops::running_mean(mean.clone(), &weights, self.decay)?;
            }
        }
        Ok(())
    }

    /// All means in one launch, in place.
    #[cfg(any(feature = "cuda", test))]
    fn update_at_once(&mut self) -> Result<()> {
        let pair = |slot: &'_ Slot| Some((slot.mean.clone()?, slot.var.as_detached_tensor()));
        let pairs: Vec<(Tensor, Tensor)> = self.slots.iter().filter_map(pair).collect();
        let Some((first, _)) = pairs.first() else {
            return Ok(());
        };
        let split = match self.split.take() {
            Some(split) => split,
            None => {
                let sizes = pairs.iter().map(|(mean, _)| mean.elem_count());
                cuda::optim::Split::new(sizes.collect(), first.device())?
            }
        };
        let pairs = pairs.iter().map(|(mean, weights)| (mean, weights));
        Ok(self.split.insert(split).running_mean(pairs, self.decay)?)
    }

    /// The mean of every trained parameter, and all others as they are now, by name, in the model's order. They share
    /// memory with what the next step changes.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let now = |slot: &Slot| slot.var.as_detached_tensor();
        let named = |slot: &Slot| {
            (
                slot.name.clone(),
                slot.mean.clone().unwrap_or_else(|| now(slot)),
            )
        };
        self.slots.iter().map(named).collect()
    }

    /// Takes over a saved mean.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a parameter that `saved` lacks, [`Error::Shape`] for one of another shape; nothing is
    /// changed then.
    pub fn restore(&mut self, saved: &HashMap<String, Tensor>) -> Result<()> {
        let mut means = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let mean = saved.get(&slot.name).ok_or_else(|| Error::Parameter {
                name: slot.name.clone(),
                problem: "has no saved mean".to_string(),
            })?;
            if mean.dims() != slot.var.dims() {
                return Err(Error::Shape {
                    what: format!("mean of {}", slot.name),
                    got: mean.dims().to_vec(),
                    expected: format!("{:?}", slot.var.dims()),
                });
            }
            means.push(mean.to_device(slot.var.device())?);
        }
        for (slot, mean) in self.slots.iter_mut().zip(means) {
            slot.mean = slot.mean.is_some().then_some(mean);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::init::Init;
    use candle_core::{DType, Device};

    fn params() -> Params {
        let mut params = Params::new(1, DType::F32, &Device::Cpu);
        params.trainable("w", &[2], Init::Zeros).unwrap();
        let table = Tensor::new(&[7f32], &Device::Cpu).unwrap();
        params.frozen("table", &table).unwrap();
        params
    }

    fn set(params: &Params, values: [f32; 2]) {
        let values = Tensor::new(&values, &Device::Cpu).unwrap();
        params.get("w").unwrap().var.set(&values).unwrap();
    }

    fn mean(ema: &Ema) -> Vec<f32> {
        ema.tensors()[0].1.to_vec1().unwrap()
    }

    #[test]
    fn the_mean_follows_the_weights_and_leaves_them_alone() {
        let params = params();
        let mut ema = Ema::new(&params, 0.75).unwrap();
        set(&params, [4.0, -8.0]);
        assert_eq!(mean(&ema), [0.0, 0.0], "its own memory");
        ema.update().unwrap();
        assert_eq!(mean(&ema), [1.0, -2.0]);
        ema.update().unwrap();
        assert_eq!(mean(&ema), [1.75, -3.5]);
        let weights = params.get("w").unwrap().var.to_vec1::<f32>().unwrap();
        assert_eq!(weights, [4.0, -8.0]);
        assert_eq!(ema.tensors()[1].1.to_vec1::<f32>().unwrap(), [7.0]);
    }

    #[test]
    fn all_means_at_once_are_the_same() {
        use crate::ops::cuda::emulation;
        if !emulation::is_there("all_means_at_once_are_the_same") {
            return;
        }
        let params = params();
        let mut ema = Ema::new(&params, 0.75).unwrap();
        for (weights, expected) in [([4.0, -8.0], [1.0, -2.0]), ([4.0, -8.0], [1.75, -3.5])] {
            set(&params, weights);
            emulation::instead(|| ema.update()).unwrap();
            assert_eq!(mean(&ema), expected);
        }
    }

    #[test]
    fn a_saved_mean_comes_back_and_what_does_not_fit_is_named() {
        let params = params();
        let mut ema = Ema::new(&params, 0.9).unwrap();
        set(&params, [0.3, 0.7]);
        ema.update().unwrap();
        let mut saved: HashMap<_, _> = ema.tensors().into_iter().collect();
        let mut other = Ema::new(&params, 0.9).unwrap();
        other.restore(&saved).unwrap();
        assert_eq!(mean(&other), mean(&ema));
        saved.remove("w");
        let message = other.restore(&saved).unwrap_err().to_string();
        assert!(message.contains("parameter w"), "{message}");
        saved.insert("w".to_string(), saved["table"].clone());
        assert!(matches!(other.restore(&saved), Err(Error::Shape { .. })));
    }
}
