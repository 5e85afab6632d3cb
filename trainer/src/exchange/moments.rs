//! AdamW's state out of a PyTorch checkpoint.
//!
//! PyTorch files the state under numbers: the place of a parameter in its groups. The reference makes two groups, the
//! one without weight decay first, each in the model's order, so the numbers become names again.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::names::Tensors;
use super::pickle::{Id, Value};
use super::pth::PthFile;
use crate::error::Result;
use crate::nn::params::Params;
use crate::optim::param_groups::spared_from_decay;

/// The moments of every trainable parameter.
#[derive(Debug, Clone)]
pub struct OptimizerState {
    /// Optimizer steps made.
    pub steps: u64,
    /// Running mean of the gradient, by parameter.
    pub exp_avg: Tensors,
    /// Running mean of its square, by parameter.
    pub exp_avg_sq: Tensors,
}

/// The state as the file has it.
pub(super) struct RawMoments {
    /// Numbers of the parameters in each group.
    groups: Vec<Vec<usize>>,
    slots: BTreeMap<usize, RawSlot>,
}

struct RawSlot {
    step: f64,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl RawMoments {
    /// Reads the optimizer's state dict at `id`; none if it has no steps or is not Adam's.
    ///
    /// # Errors
    /// A sentence if a tensor of it cannot be read.
    pub(super) fn read(file: &mut PthFile, id: Id) -> Result<Option<RawMoments>, String> {
        let pickle = file.pickle();
        let (Some(state), Some(groups)) =
            (pickle.entry(id, "state"), pickle.entry(id, "param_groups"))
        else {
            return Ok(None);
        };
        let Value::List(group_ids) = pickle.get(groups) else {
            return Ok(None);
        };
        let mut groups = Vec::with_capacity(group_ids.len());
        for &group in group_ids {
            let Some(Value::List(numbers)) = pickle.entry(group, "params").map(|id| pickle.get(id))
            else {
                return Ok(None);
            };
            let Some(numbers) = numbers
                .iter()
                .map(|&n| pickle.size(n))
                .collect::<Option<Vec<usize>>>()
            else {
                return Ok(None);
            };
            groups.push(numbers);
        }
        let mut slots = BTreeMap::new();
        for (number, slot) in pickle.entries(state).unwrap_or_default() {
            let pickle = file.pickle();
            let Some(number) = pickle.size(number) else {
                return Ok(None);
            };
            let parts = ["step", "exp_avg", "exp_avg_sq"].map(|part| pickle.entry(slot, part));
            let [Some(step), Some(exp_avg), Some(exp_avg_sq)] = parts else {
                return Ok(None);
            };
            // a tensor since PyTorch 1.12, a number before
            let step = match *pickle.get(step) {
                Value::Int(step) => step as f64,
                Value::Float(step) => step,
                _ => {
                    let step = file
                        .tensor(step)
                        .map_err(|e| format!("step of {number}: {e}"))?;
                    let scalar =
                        step.and_then(|t| t.to_dtype(DType::F64).ok()?.to_scalar::<f64>().ok());
                    scalar.ok_or_else(|| format!("step of {number} is not a number"))?
                }
            };
            let mut moment = |id: Id, what: &str| -> Result<Tensor, String> {
                let tensor = file
                    .tensor(id)
                    .map_err(|e| format!("{what} of {number}: {e}"))?;
                let tensor = tensor.ok_or_else(|| format!("{what} of {number} is not a tensor"))?;
                tensor
                    .to_dtype(DType::F32)
                    .map_err(|e| format!("{what} of {number}: {e}"))
            };
            let slot = RawSlot {
                step,
                exp_avg: moment(exp_avg, "exp_avg")?,
                exp_avg_sq: moment(exp_avg_sq, "exp_avg_sq")?,
            };
            slots.insert(number, slot);
        }
        Ok((!slots.is_empty()).then_some(RawMoments { groups, slots }))
    }

    /// Names the state by the parameters of the model, in the model's order.
    ///
    /// # Errors
    /// A sentence saying where the file's groups and the model part; the state is of no use then.
    pub(super) fn name(mut self, params: &Params) -> Result<OptimizerState, String> {
        let (without, with): (Vec<_>, Vec<_>) = params
            .iter_trainable()
            .partition(|param| spared_from_decay(&param.name, param.var.rank()));
        let expected = [without, with];
        let sizes = |n: &mut dyn Iterator<Item = usize>| {
            n.map(|n| n.to_string()).collect::<Vec<_>>().join(" and ")
        };
        if self.groups.len() != 2 || (0..2).any(|g| self.groups[g].len() != expected[g].len()) {
            return Err(format!(
                "its groups have {} parameters, expected {}",
                sizes(&mut self.groups.iter().map(Vec::len)),
                sizes(&mut expected.iter().map(Vec::len))
            ));
        }
        let mut state = OptimizerState {
            steps: 0,
            exp_avg: Tensors::new(),
            exp_avg_sq: Tensors::new(),
        };
        let mut steps = None;
        for (numbers, params) in self.groups.iter().zip(&expected) {
            for (number, param) in numbers.iter().zip(params) {
                let name = &param.name;
                let slot = self
                    .slots
                    .remove(number)
                    .ok_or_else(|| format!("{name} (number {number}) has no state"))?;
                for moment in [&slot.exp_avg, &slot.exp_avg_sq] {
                    if moment.dims() != param.var.dims() {
                        return Err(format!(
                            "{name} (number {number}): shape {:?}, expected {:?}",
                            moment.dims(),
                            param.var.dims()
                        ));
                    }
                }
                if *steps.get_or_insert(slot.step) != slot.step
                    || slot.step < 0.0
                    || slot.step.fract() != 0.0
                {
                    return Err(format!(
                        "{name} (number {number}) has made {} steps, unlike the others",
                        slot.step
                    ));
                }
                state.exp_avg.insert(name.clone(), slot.exp_avg);
                state.exp_avg_sq.insert(name.clone(), slot.exp_avg_sq);
            }
        }
        if let Some(number) = self.slots.keys().next() {
            return Err(format!("number {number} belongs to no group"));
        }
        state.steps = steps.unwrap_or_default() as u64;
        Ok(state)
    }
}
