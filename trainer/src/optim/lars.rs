//! LARS: momentum, with each matrix's step as long as a share of the matrix itself, whatever its gradient's length.
//!
//! Source: You, Gitman and Ginsburg, "Large batch training of convolutional networks"; MAE, `util/lars.py` (after MoCo v3),
//! whose arithmetic this follows: parameters of one dimension take neither the trust ratio nor weight decay.

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use super::Gradients;
use crate::error::Result;

/// Share of the momentum that a step keeps.
const MOMENTUM: f64 = 0.9;

/// Length of a step of learning rate 1, as a share of the parameter's own length.
const TRUST_COEFFICIENT: f64 = 0.001;

/// The optimizer: parameters and their momentum.
#[derive(Debug)]
pub struct Lars {
    weight_decay: f64,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    mu: Tensor,
}

impl Lars {
    /// An optimizer without momentum yet.
    ///
    /// * `weight_decay`: added to the gradients of matrices before their length is taken; MAE's linear probe has 0.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(params: impl IntoIterator<Item = (String, Var)>, weight_decay: f64) -> Result<Self> {
        let slot = |(name, var): (String, Var)| -> Result<Slot> {
            let mu = var.zeros_like()?;
            Ok(Slot { name, var, mu })
        };
        Ok(Self {
            weight_decay,
            slots: params.into_iter().map(slot).collect::<Result<_>>()?,
        })
    }

    /// Updates every parameter that has a gradient.
    ///
    /// # Errors
    /// If a gradient does not have its parameter's shape.
    pub fn step(&mut self, grads: &Gradients, lr: f64) -> Result<()> {
        for slot in &mut self.slots {
            let Some(grad) = grads.get(&slot.name) else {
                continue;
            };
            let param = slot.var.as_detached_tensor();
            let update = match param.rank() {
                0 | 1 => grad.clone(),
                _ => {
                    let decayed = (grad + param.affine(self.weight_decay, 0.0)?)?;
                    let trust = match (norm(&param)?, norm(&decayed)?) {
                        (of_param, of_update) if of_param > 0.0 && of_update > 0.0 => {
                            TRUST_COEFFICIENT * of_param / of_update
                        }
                        _ => 1.0,
                    };
                    decayed.affine(trust, 0.0)?
                }
            };
            slot.mu = (slot.mu.affine(MOMENTUM, 0.0)? + update)?;
            slot.var.set(&(param - slot.mu.affine(lr, 0.0)?)?)?;
        }
        Ok(())
    }

    /// The momentum of every parameter as `mu.<name>`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |slot: &Slot| (mu_name(&slot.name), slot.mu.clone());
        self.slots.iter().map(named).collect()
    }

    /// Takes over saved momentum; parameters that `state` does not have begin without.
    ///
    /// # Errors
    /// If a tensor cannot be brought to its parameter's device.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for slot in &mut self.slots {
            slot.mu = match state.get(&mu_name(&slot.name)) {
                Some(mu) => mu.to_device(slot.var.device())?,
                None => slot.var.zeros_like()?,
            };
        }
        Ok(())
    }
}

fn mu_name(name: &str) -> String {
    format!("mu.{name}")
}

fn norm(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(
        tensor.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Weights and bias after two steps at a rate of 6.4 with gradients `x - 1`, by plain Python in double precision, for a
    /// decay of 0 and of 0.1.
    const EXPECTED: [(f64, [f32; 6]); 2] = [
        (
            0.0,
            [
                0.506_231_3,
                -0.234_421_74,
                1.0,
                0.012_462_605,
                0.753_115_65,
                -1.468_843_5,
            ],
        ),
        (
            0.1,
            [
                0.505_386_06,
                -0.234_739_45,
                0.998_803_1,
                0.011_969_057,
                0.752_094_6,
                -1.468_282,
            ],
        ),
    ];
    const BIAS: [f32; 2] = [-20.06, -27.08];

    fn step(lars: &mut Lars, params: &[(String, Var)]) {
        let mut grads = Gradients::new(params.iter().cloned());
        for (_, var) in params {
            let loss = (var.as_tensor() - 1.0).unwrap().sqr().unwrap();
            let loss = (loss.sum_all().unwrap() / 2.0).unwrap();
            grads.accumulate(loss.backward().unwrap()).unwrap();
        }
        lars.step(&grads, 6.4).unwrap();
    }

    fn params() -> Vec<(String, Var)> {
        let weight = Var::new(&[[0.5f32, -0.25, 1.0], [0.0, 0.75, -1.5]], &Device::Cpu).unwrap();
        let bias = Var::new(&[0.1f32, -0.2], &Device::Cpu).unwrap();
        vec![("head.weight".into(), weight), ("head.bias".into(), bias)]
    }

    fn values(var: &Var) -> Vec<f32> {
        var.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn steps_are_those_of_an_independent_computation() {
        for (weight_decay, expected) in EXPECTED {
            let params = params();
            let mut lars = Lars::new(params.iter().cloned(), weight_decay).unwrap();
            step(&mut lars, &params);
            // The second step after a save and a restore.
            let saved = lars.state().into_iter().collect();
            let mut lars = Lars::new(params.iter().cloned(), weight_decay).unwrap();
            lars.restore(&saved).unwrap();
            step(&mut lars, &params);
            let got = values(&params[0].1).into_iter().chain(values(&params[1].1));
            for (got, expected) in got.zip(expected.into_iter().chain(BIAS)) {
                assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}");
            }
        }
    }

    #[test]
    fn a_matrix_of_zeros_steps_by_its_gradient() {
        let var = Var::new(&[[0f32, 0.0]], &Device::Cpu).unwrap();
        let params = vec![("head.weight".to_string(), var.clone())];
        let mut lars = Lars::new(params.iter().cloned(), 0.0).unwrap();
        step(&mut lars, &params);
        assert_eq!(values(&var), [6.4, 6.4]);
    }
}
