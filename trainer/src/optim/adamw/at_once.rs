//! A step of all parameters in one launch, with clipping that the host need not know of.

use super::AdamW;
use crate::error::Result;
use crate::optim::Gradients;
use crate::optim::clip::{self, GradNorms};

#[cfg(any(feature = "cuda", test))]
use super::{Coefficients, Moments};
#[cfg(any(feature = "cuda", test))]
use crate::ops::cuda;
#[cfg(any(feature = "cuda", test))]
use candle_core::{DType, Device, Tensor};

/// The norms of a step's gradients, perhaps still on the device.
#[derive(Debug)]
pub struct UnreadNorms(Kept);

#[derive(Debug)]
enum Kept {
    Host(GradNorms),
    #[cfg(any(feature = "cuda", test))]
    Device {
        /// Name of each parameter, and whether it had a gradient.
        names: Vec<(String, bool)>,
        norms: cuda::optim::Norms,
    },
}

impl UnreadNorms {
    /// The norms before clipping; waits for the device.
    pub fn read(self) -> Result<GradNorms> {
        match self.0 {
            Kept::Host(norms) => Ok(norms),
            #[cfg(any(feature = "cuda", test))]
            Kept::Device { names, norms } => {
                let squares = norms.squares.to_device(&Device::Cpu)?;
                let squares = squares.to_dtype(DType::F64)?.to_vec1::<f64>()?;
                let global = squares.iter().sum::<f64>().sqrt();
                let norm = |((name, has_one), square): ((String, bool), f64)| {
                    (name, has_one.then(|| square.sqrt()))
                };
                Ok(GradNorms {
                    per_param: names.into_iter().zip(squares).map(norm).collect(),
                    global,
                })
            }
        }
    }
}

impl AdamW {
    /// Clips the gradients to `clip_norm`, if there is one, and updates every parameter that has one.
    ///
    /// On a GPU nothing waits: norms stay there until they are read, and where one is not finite the step changes nothing
    /// but the count of steps.
    pub fn step_unread(
        &mut self,
        grads: &Gradients,
        clip_norm: Option<f64>,
        lr: f64,
    ) -> Result<UnreadNorms> {
        #[cfg(any(feature = "cuda", test))]
        if self.is_at_once() {
            let given: Vec<Option<Tensor>> = self.gradients_of_slots(grads)?;
            let norms = self.split()?.norms(&references(&given), clip_norm)?;
            self.update_at_once(&given, 1.0, Some(&norms), lr)?;
            let names = self.slots.iter().zip(&given);
            let names = names.map(|(slot, grad)| (slot.name.clone(), grad.is_some()));
            return Ok(UnreadNorms(Kept::Device {
                names: names.collect(),
                norms,
            }));
        }
        let norms = clip::norms(grads)?;
        let factor = clip_norm.map_or(1.0, |max_norm| clip::factor(&norms, max_norm));
        self.step_scaled(grads, factor, lr)?;
        Ok(UnreadNorms(Kept::Host(norms)))
    }

    /// Whether all parameters are updated in one launch.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn is_at_once(&self) -> bool {
        !self.slots.is_empty() && self.slots.iter().all(|slot| cuda::takes(&slot.var))
    }

    /// One launch. Gradients are those of the slots, times `factor`, and clipped by `norms`.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn update_at_once(
        &mut self,
        gradients: &[Option<Tensor>],
        factor: f64,
        norms: Option<&cuda::optim::Norms>,
        lr: f64,
    ) -> Result<()> {
        self.steps += 1;
        let (options, steps) = (self.options, self.steps);
        let coefficients = |decay: f64| Coefficients::new(&options, steps, factor, lr, decay);
        let shared = coefficients(0.0);
        let step = cuda::optim::Step {
            grad_scale: shared.grad_scale,
            one_minus_beta1: shared.one_minus_beta1,
            beta2: shared.beta2,
            one_minus_beta2: shared.one_minus_beta2,
            step_size: shared.step_size,
            bias_correction2_sqrt: shared.bias_correction2_sqrt,
            eps: shared.eps,
        };
        self.split()?;
        let Some(split) = &self.split else {
            return Ok(());
        };
        let entries = self.slots.iter().zip(gradients).map(|(slot, gradient)| {
            let (exp_avg, exp_avg_sq) = match &slot.moments {
                Moments::Device {
                    exp_avg,
                    exp_avg_sq,
                } => (Some(exp_avg), Some(exp_avg_sq)),
                Moments::Host { .. } => (None, None),
            };
            cuda::optim::Entry {
                weight: Some(slot.var.as_tensor()),
                exp_avg,
                exp_avg_sq,
                gradient: gradient.as_ref(),
                keep: coefficients(slot.weight_decay).keep,
            }
        });
        Ok(split.adamw(entries, step, norms)?)
    }

    /// The slots' gradients, in their order and without gaps.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn gradients_of_slots(&self, grads: &Gradients) -> Result<Vec<Option<Tensor>>> {
        let by_name: std::collections::HashMap<&str, Option<&Tensor>> = grads.iter().collect();
        let of = |name: &str| match by_name.get(name) {
            Some(Some(grad)) => Ok(Some(grad.contiguous()?)),
            _ => Ok(None),
        };
        self.slots.iter().map(|slot| of(&slot.name)).collect()
    }

    /// How the parameters are split over a launch.
    #[cfg(any(feature = "cuda", test))]
    fn split(&mut self) -> Result<&cuda::optim::Split> {
        let split = match self.split.take() {
            Some(split) => split,
            None => {
                let sizes = self.slots.iter().map(|slot| slot.var.elem_count());
                let device = self
                    .slots
                    .first()
                    .map_or(&Device::Cpu, |slot| slot.var.device());
                cuda::optim::Split::new(sizes.collect(), device)?
            }
        };
        Ok(self.split.insert(split))
    }
}

#[cfg(any(feature = "cuda", test))]
fn references(tensors: &[Option<Tensor>]) -> Vec<Option<&Tensor>> {
    tensors.iter().map(Option::as_ref).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::emulation;
    use crate::optim::{AdamWOptions, param_groups};
    use candle_core::Var;

    /// Some parameters' values and moments after steps by `make_step`, which is given the optimizer, gradients and the
    /// number of the step.
    fn after_steps(
        make_step: &dyn Fn(&mut AdamW, &Gradients, u64),
    ) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let params: Vec<(String, Var)> = [(3, 40), (1, 9000), (7, 1)]
            .iter()
            .enumerate()
            .map(|(i, &(rows, columns))| {
                let values: Vec<f32> = (0..rows * columns)
                    .map(|j| ((i + j) as f32).sin())
                    .collect();
                let var = Var::from_slice(&values, (rows, columns), &Device::Cpu).unwrap();
                (format!("p{i}"), var)
            })
            .collect();
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.95,
        };
        let mut optim = AdamW::new(param_groups(params.clone(), 0.05), options).unwrap();
        for step in 1..4 {
            let mut grads = Gradients::new(params.clone());
            for (_, var) in &params[..2] {
                let loss = (var.as_tensor() - 0.3)
                    .unwrap()
                    .sqr()
                    .unwrap()
                    .sum_all()
                    .unwrap();
                grads.accumulate(loss.backward().unwrap()).unwrap();
            }
            make_step(&mut optim, &grads, step);
        }
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let state = optim.state().unwrap();
        (
            params.iter().map(|(_, var)| values(var)).collect(),
            state.iter().map(|(_, tensor)| values(tensor)).collect(),
        )
    }

    #[test]
    fn all_at_once_is_one_after_the_other() {
        if !emulation::is_there("all_at_once_is_one_after_the_other") {
            return;
        }
        for clip_norm in [None, Some(5.0), Some(1e6)] {
            let step = |optim: &mut AdamW, grads: &Gradients, step: u64| {
                let norms = optim.step_unread(grads, clip_norm, 1e-2).unwrap();
                let host = clip::norms(grads).unwrap();
                let read = norms.read().unwrap();
                assert!((read.global / host.global - 1.0).abs() < 1e-9);
                assert_eq!(read.per_param[2], ("p2".to_owned(), None));
                assert_eq!(optim.steps(), step);
            };
            let read_first = |optim: &mut AdamW, grads: &Gradients, _: u64| {
                let norms = clip::norms(grads).unwrap();
                let factor = clip_norm.map_or(1.0, |max_norm| clip::factor(&norms, max_norm));
                optim.step_scaled(grads, factor, 1e-2).unwrap();
            };
            let host = after_steps(&step);
            for (way, got) in [
                ("unread", emulation::instead(|| after_steps(&step))),
                (
                    "read first",
                    emulation::instead(|| after_steps(&read_first)),
                ),
            ] {
                let all = |state: &(Vec<Vec<f32>>, Vec<Vec<f32>>)| {
                    [state.0.concat(), state.1.concat()].concat()
                };
                for (got, want) in all(&got).iter().zip(all(&host)) {
                    assert!((got - want).abs() < 2e-6, "{way}: {got}, expected {want}");
                }
            }
        }
    }
}
