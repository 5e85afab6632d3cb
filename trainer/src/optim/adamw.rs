//! AdamW with parameter groups and a state that can be saved by name.
//!
//! candle's own has neither, and is many small passes over memory. Here the CPU path is one fused pass
//! over the raw slices, and a GPU's is one launch for all parameters. Moments are f32.
//!
//! Source: Loshchilov and Hutter, "Decoupled weight decay regularization"; `torch.optim.AdamW` for the
//! order of the arithmetic, which is followed operation by operation.

mod at_once;

pub use at_once::UnreadNorms;

use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use super::{Gradients, ParamGroup};
use crate::error::{Error, Result};
#[cfg(any(feature = "cuda", test))]
use crate::ops::cuda;
use crate::ops::kernels;
use crate::ops::storage::{slice, slice_mut};

/// Elements updated by one task.
const CHUNK: usize = 1 << 15;

/// Beside the root of the second moment, as in PyTorch and the reference.
const EPS: f64 = 1e-8;

/// What all groups share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the running mean of the gradient; 0.9 in the papers.
    pub beta1: f64,
    /// Decay of the running mean of its square; 0.95 in the papers.
    pub beta2: f64,
}

/// The optimizer: parameters, their moments and the number of steps made.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    steps: u64,
    slots: Vec<Slot>,
    /// How the parameters are split over a launch, once that is known.
    #[cfg(any(feature = "cuda", test))]
    split: Option<cuda::optim::Split>,
}

/// One parameter with its moments.
#[derive(Debug)]
struct Slot {
    name: String,
    weight_decay: f64,
    var: Var,
    moments: Moments,
}

/// Running means of the gradient and of its square.
#[derive(Debug)]
enum Moments {
    /// Plain buffers, for the fused pass.
    Host {
        exp_avg: Vec<f32>,
        exp_avg_sq: Vec<f32>,
    },
    /// Tensors beside the parameter.
    Device { exp_avg: Tensor, exp_avg_sq: Tensor },
}

impl AdamW {
    /// An optimizer at step 0 with zero moments for the parameters of these groups.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a parameter that is not f32.
    pub fn new(
        groups: impl IntoIterator<Item = ParamGroup>,
        options: AdamWOptions,
    ) -> Result<Self> {
        let mut slots = Vec::new();
        for group in groups {
            for (name, var) in group.params {
                if var.dtype() != DType::F32 {
                    let problem = format!("is {:?}, expected f32 master weights", var.dtype());
                    return Err(Error::Parameter { name, problem });
                }
                let moments = Moments::zeros(&var)?;
                slots.push(Slot {
                    name,
                    weight_decay: group.weight_decay,
                    var,
                    moments,
                });
            }
        }
        Ok(Self {
            options,
            steps: 0,
            slots,
            #[cfg(any(feature = "cuda", test))]
            split: None,
        })
    }

    /// Updates every parameter that has a gradient with learning rate `lr`.
    pub fn step(&mut self, grads: &Gradients, lr: f64) -> Result<()> {
        self.step_scaled(grads, 1.0, lr)
    }

    /// As [`AdamW::step`] with every gradient multiplied with `factor`, which costs no pass of its own over memory:
    /// what [`super::clip::factor`] gives.
    pub fn step_scaled(&mut self, grads: &Gradients, factor: f64, lr: f64) -> Result<()> {
        #[cfg(any(feature = "cuda", test))]
        if self.is_at_once() {
            let given = self.gradients_of_slots(grads)?;
            return self.update_at_once(&given, factor, None, lr);
        }
        self.steps += 1;
        let by_name: std::collections::HashMap<&str, &Tensor> = grads
            .iter()
            .filter_map(|(name, grad)| Some((name, grad?)))
            .collect();
        for slot in &mut self.slots {
            let Some(grad) = by_name.get(slot.name.as_str()) else {
                continue;
            };
            let coefficients =
                Coefficients::new(&self.options, self.steps, factor, lr, slot.weight_decay);
            slot.moments.update(&slot.var, grad, &coefficients)?;
        }
        Ok(())
    }

    /// Steps made so far, which the bias correction depends on.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments of every parameter as `exp_avg.<name>` and `exp_avg_sq.<name>`, in group order.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::with_capacity(2 * self.slots.len());
        for slot in &self.slots {
            let (exp_avg, exp_avg_sq) = slot.moments.tensors(slot.var.dims())?;
            state.push((format!("exp_avg.{}", slot.name), exp_avg));
            state.push((format!("exp_avg_sq.{}", slot.name), exp_avg_sq));
        }
        Ok(state)
    }

    /// Takes over saved moments and the number of steps that led to them.
    ///
    /// * `load`: gives the tensor of a name that [`AdamW::state`] used, on any device.
    ///
    /// # Errors
    /// Whatever `load` returns, and [`Error::Shape`] for a moment that does not fit its parameter.
    pub fn restore(
        &mut self,
        steps: u64,
        load: &mut dyn FnMut(&str) -> Result<Tensor>,
    ) -> Result<()> {
        for slot in &mut self.slots {
            let mut moment = |kind: &str| {
                let name = format!("{kind}.{}", slot.name);
                let tensor = load(&name)?;
                if tensor.dims() != slot.var.dims() {
                    let expected = format!("{:?}, as the parameter has", slot.var.dims());
                    return Err(Error::Shape {
                        what: name,
                        got: tensor.dims().to_vec(),
                        expected,
                    });
                }
                Ok(tensor.to_device(slot.var.device())?)
            };
            slot.moments = Moments::from_tensors(moment("exp_avg")?, moment("exp_avg_sq")?)?;
        }
        self.steps = steps;
        Ok(())
    }
}

/// The numbers of one step, as PyTorch computes them: in f64, rounded once.
pub(crate) struct Coefficients {
    pub grad_scale: f32,
    pub keep: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub step_size: f32,
    pub bias_correction2_sqrt: f32,
    pub eps: f32,
}

impl Coefficients {
    fn new(options: &AdamWOptions, step: u64, factor: f64, lr: f64, weight_decay: f64) -> Self {
        let bias_correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            grad_scale: factor as f32,
            keep: (1.0 - lr * weight_decay) as f32,
            one_minus_beta1: (1.0 - options.beta1) as f32,
            beta2: options.beta2 as f32,
            one_minus_beta2: (1.0 - options.beta2) as f32,
            step_size: (lr / bias_correction(options.beta1)) as f32,
            bias_correction2_sqrt: bias_correction(options.beta2).sqrt() as f32,
            eps: EPS as f32,
        }
    }
}

impl Moments {
    fn zeros(var: &Var) -> Result<Self> {
        if is_on_host(var) {
            let zeros = || vec![0.0; var.elem_count()];
            return Ok(Self::Host {
                exp_avg: zeros(),
                exp_avg_sq: zeros(),
            });
        }
        Ok(Self::Device {
            exp_avg: var.zeros_like()?,
            exp_avg_sq: var.zeros_like()?,
        })
    }

    fn from_tensors(exp_avg: Tensor, exp_avg_sq: Tensor) -> Result<Self> {
        if is_on_host(&exp_avg) {
            let values = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            return Ok(Self::Host {
                exp_avg: values(exp_avg)?,
                exp_avg_sq: values(exp_avg_sq)?,
            });
        }
        Ok(Self::Device {
            exp_avg,
            exp_avg_sq,
        })
    }

    fn tensors(&self, shape: &[usize]) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Host {
                exp_avg,
                exp_avg_sq,
            } => {
                let tensor = |values: &[f32]| Tensor::from_slice(values, shape, &Device::Cpu);
                Ok((tensor(exp_avg)?, tensor(exp_avg_sq)?))
            }
            Self::Device {
                exp_avg,
                exp_avg_sq,
            } => Ok((exp_avg.clone(), exp_avg_sq.clone())),
        }
    }

    fn update(&mut self, var: &Var, grad: &Tensor, c: &Coefficients) -> Result<()> {
        match self {
            Self::Host {
                exp_avg,
                exp_avg_sq,
            } => {
                let pass = FusedPass {
                    c,
                    moments: Mutex::new((exp_avg, exp_avg_sq)),
                };
                Ok(var.inplace_op2(&grad.contiguous()?, &pass)?)
            }
            Self::Device {
                exp_avg,
                exp_avg_sq,
            } => {
                let scaled = |tensor: &Tensor, factor: f32| tensor.affine(f64::from(factor), 0.0);
                let grad = &scaled(grad, c.grad_scale)?;
                *exp_avg = (&*exp_avg + scaled(&(grad - &*exp_avg)?, c.one_minus_beta1)?)?;
                *exp_avg_sq =
                    (scaled(exp_avg_sq, c.beta2)? + scaled(&grad.sqr()?, c.one_minus_beta2)?)?;
                let denominator = exp_avg_sq
                    .sqrt()?
                    .affine(1.0 / f64::from(c.bias_correction2_sqrt), f64::from(c.eps))?;
                let update = scaled(&(&*exp_avg / denominator)?, c.step_size)?;
                Ok(var.set(&(scaled(var, c.keep)? - update)?)?)
            }
        }
    }
}

/// Whether moments are plain buffers beside this tensor.
fn is_on_host(tensor: &Tensor) -> bool {
    #[cfg(test)]
    if cuda::takes(tensor) {
        return false;
    }
    tensor.device().is_cpu()
}

/// Decay, moments and update of one parameter in one pass over memory.
struct FusedPass<'a> {
    c: &'a Coefficients,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp2 for FusedPass<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        params: &mut CpuStorage,
        params_layout: &Layout,
        grads: &CpuStorage,
        grads_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (params, grads) = (
            slice_mut(params, params_layout)?,
            slice(grads, grads_layout)?,
        );
        let Ok(mut moments) = self.moments.lock() else {
            candle_core::bail!("adamw: a thread of an update died")
        };
        let (exp_avg, exp_avg_sq) = &mut *moments;
        let c = self.c;
        let chunks = params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK));
        let moments = exp_avg
            .par_chunks_mut(CHUNK)
            .zip(exp_avg_sq.par_chunks_mut(CHUNK));
        chunks
            .zip(moments)
            .for_each(|((params, grads), (exp_avg, exp_avg_sq))| {
                kernels::adamw(params, grads, exp_avg, exp_avg_sq, c);
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::param_groups;

    const OPTIONS: AdamWOptions = AdamWOptions {
        beta1: 0.9,
        beta2: 0.95,
    };

    /// `loss = sum((x - target)^2) / 2`, so the gradient is `x - target`.
    fn grads_towards(var: &Var, name: &str, target: f64) -> Gradients {
        let mut grads = Gradients::new([(name.to_string(), var.clone())]);
        let loss = (var.as_tensor() - target)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .affine(0.5, 0.0)
            .unwrap();
        grads.accumulate(loss.backward().unwrap()).unwrap();
        grads
    }

    fn optimizer(var: &Var, name: &str) -> AdamW {
        AdamW::new(
            param_groups([(name.to_string(), var.clone())], 0.05),
            OPTIONS,
        )
        .unwrap()
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate_and_decays() {
        let var = Var::new(&[[1.0f32, -1.0]], &Device::Cpu).unwrap();
        optimizer(&var, "w")
            .step(&grads_towards(&var, "w", 0.0), 0.1)
            .unwrap();
        // Bias correction makes the first update lr * sign(gradient); decay takes 0.1 * 0.05 off before it.
        for (got, expected) in var.to_vec2::<f32>().unwrap()[0].iter().zip([0.895, -0.895]) {
            assert!((got - expected).abs() < 1e-6, "{got}");
        }
    }

    #[test]
    fn a_rate_of_zero_changes_moments_but_no_parameter() {
        let var = Var::new(&[[1.0f32, 2.0]], &Device::Cpu).unwrap();
        let mut optim = optimizer(&var, "w");
        optim.step(&grads_towards(&var, "w", 0.0), 0.0).unwrap();
        assert_eq!(var.to_vec2::<f32>().unwrap(), [[1.0, 2.0]]);
        assert_eq!(
            optim.state().unwrap()[0].1.to_vec2::<f32>().unwrap(),
            [[0.1, 0.2]]
        );
    }

    #[test]
    fn saved_and_restored_in_the_middle_goes_on_bit_for_bit() {
        let start: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
        let run = |save_at: Option<u64>| {
            let var = Var::from_slice(&start, (10, 100), &Device::Cpu).unwrap();
            let mut optim = optimizer(&var, "w");
            for step in 0..6 {
                if save_at == Some(step) {
                    let saved: std::collections::HashMap<_, _> =
                        optim.state().unwrap().into_iter().collect();
                    let steps = optim.steps();
                    optim = optimizer(&var, "w");
                    optim
                        .restore(steps, &mut |name| Ok(saved[name].clone()))
                        .unwrap();
                }
                optim.step(&grads_towards(&var, "w", 0.3), 1e-2).unwrap();
            }
            var.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(run(None), run(Some(3)));
    }

    #[test]
    fn the_fused_pass_agrees_with_tensor_operations() {
        let start: Vec<f32> = (0..100_000).map(|i| (i as f32 * 0.7).sin()).collect();
        let fused = Var::from_slice(&start, (100, 1000), &Device::Cpu).unwrap();
        let plain = Var::from_slice(&start, (100, 1000), &Device::Cpu).unwrap();
        let mut on_host = Moments::zeros(&fused).unwrap();
        let zeros = || plain.zeros_like().unwrap();
        let mut on_device = Moments::Device {
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
        };
        for step in 1..5 {
            let c = Coefficients::new(&OPTIONS, step, 0.5, 1e-2, 0.05);
            on_host
                .update(&fused, &(fused.as_tensor() - 0.3).unwrap(), &c)
                .unwrap();
            on_device
                .update(&plain, &(plain.as_tensor() - 0.3).unwrap(), &c)
                .unwrap();
        }
        let gap = (fused.as_tensor() - plain.as_tensor())
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-6);
    }

    #[test]
    fn moments_of_another_shape_are_refused() {
        let var = Var::new(&[[1.0f32, 2.0]], &Device::Cpu).unwrap();
        let other = Tensor::zeros((3, 3), DType::F32, &Device::Cpu).unwrap();
        let error = optimizer(&var, "w")
            .restore(1, &mut |_| Ok(other.clone()))
            .unwrap_err();
        assert!(error.to_string().contains("exp_avg.w"), "{error}");
    }

    #[test]
    fn half_precision_parameters_are_refused() {
        let var = Var::zeros((2, 2), DType::BF16, &Device::Cpu).unwrap();
        assert!(AdamW::new(param_groups([("w".to_string(), var)], 0.05), OPTIONS).is_err());
    }
}
