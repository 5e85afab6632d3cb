//! The gradients of one optimizer step, by parameter, summed over its micro-batches.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, TensorId, Var};

use crate::error::{Error, Result};
use crate::ops;
use crate::tape::Tape;

/// One gradient for each parameter, in the order in which the parameters were given.
#[derive(Clone, Debug)]
pub struct Gradients {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    var: Var,
    grad: Option<Tensor>,
}

impl Gradients {
    /// No gradients yet, for these parameters.
    pub fn new(params: impl IntoIterator<Item = (String, Var)>) -> Self {
        let entries = params.into_iter().map(|(name, var)| Entry {
            name,
            var,
            grad: None,
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// Adds what one backward pass of candle's left; the caller has divided the loss by the number of micro-batches.
    pub fn accumulate(&mut self, mut store: GradStore) -> Result<()> {
        for entry in &mut self.entries {
            let Some(new) = store.remove(&entry.var) else {
                continue;
            };
            entry.grad = Some(match entry.grad.take() {
                Some(sum) => (sum + new)?,
                None => new.contiguous()?,
            });
        }
        Ok(())
    }

    /// Walks a tape back from `loss` and adds `factor` times the gradients of each parameter, calling `on_ready` with its
    /// name and sum as soon as that is final: from the parameters that were used last to those used first, in the same
    /// order in every run.
    ///
    /// * `factor`: one over the number of micro-batches.
    ///
    /// # Errors
    /// Whatever an operation or `on_ready` reports.
    pub fn backward(
        &mut self,
        tape: Tape,
        loss: &Tensor,
        factor: f64,
        on_ready: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let ids = self.entries.iter().enumerate();
        let places: HashMap<TensorId, usize> = ids.map(|(i, entry)| (entry.var.id(), i)).collect();
        tape.backward(loss, factor, &mut |id, new| {
            let Some(entry) = places.get(&id).map(|&i| &mut self.entries[i]) else {
                return Ok(());
            };
            let sum = match entry.grad.take() {
                Some(sum) => ops::add_into(new, &sum)?,
                None => new,
            };
            on_ready(&entry.name, &sum)?;
            entry.grad = Some(sum);
            Ok(())
        })
    }

    /// Puts another gradient in the place of a parameter's, such as its mean over all ranks.
    ///
    /// # Errors
    /// [`Error::Parameter`] if there is no such parameter, [`Error::Shape`] if it has another shape.
    pub fn set(&mut self, name: &str, grad: Tensor) -> Result<()> {
        let entry = self.entries.iter_mut().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| Error::Parameter {
            name: name.to_string(),
            problem: "is not among those that have gradients".to_string(),
        })?;
        if grad.dims() != entry.var.dims() {
            return Err(Error::Shape {
                what: format!("gradient of {name}"),
                got: grad.dims().to_vec(),
                expected: format!("{:?}", entry.var.dims()),
            });
        }
        entry.grad = Some(grad);
        Ok(())
    }

    /// Name and gradient of each parameter; `None` where no backward pass reached it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Tensor>)> {
        self.entries
            .iter()
            .map(|entry| (entry.name.as_str(), entry.grad.as_ref()))
    }

    /// The gradient of one parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)?
            .grad
            .as_ref()
    }

    /// Forgets every gradient, for the next step.
    pub fn clear(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.grad = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape;
    use candle_core::Device;

    #[test]
    fn micro_batches_add_up_and_unreached_parameters_stay_without() {
        let var = |values: &[f32]| Var::new(values, &Device::Cpu).unwrap();
        let (a, b) = (var(&[1.0, 2.0]), var(&[3.0]));
        let mut grads = Gradients::new([("a".to_string(), a.clone()), ("b".to_string(), b)]);
        for _ in 0..2 {
            let loss = (a.as_tensor() * 3.0).unwrap().sum_all().unwrap();
            grads.accumulate(loss.backward().unwrap()).unwrap();
        }
        assert_eq!(
            grads.get("a").unwrap().to_vec1::<f32>().unwrap(),
            [6.0, 6.0]
        );
        assert!(grads.get("b").is_none());
        grads.clear();
        assert!(grads.get("a").is_none());
    }

    #[test]
    fn a_tapes_gradients_add_up_and_are_told_of() {
        let var = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let mut grads = Gradients::new([("a".to_string(), var.clone())]);
        let mut told = Vec::new();
        for _ in 0..2 {
            let forward = || tape::composed(&[var.as_tensor()], |t| Ok(t[0].sqr()?.sum_all()?));
            let (loss, tape) = tape::record(forward).unwrap();
            let mut on_ready = |name: &str, sum: &Tensor| {
                told.push((name.to_string(), sum.to_vec1::<f32>().unwrap()));
                Ok(())
            };
            grads.backward(tape, &loss, 0.5, &mut on_ready).unwrap();
        }
        let told_of = |sum: [f32; 2]| ("a".to_string(), sum.to_vec());
        assert_eq!(told, [told_of([1.0, 2.0]), told_of([2.0, 4.0])]);
        grads.set("a", var.ones_like().unwrap()).unwrap();
        assert_eq!(grads.get("a").unwrap().to_vec1::<f32>().unwrap(), [1.0; 2]);
        assert!(matches!(
            grads.set("a", Tensor::new(1f32, &Device::Cpu).unwrap()),
            Err(Error::Shape { .. })
        ));
        assert!(grads.set("b", var.ones_like().unwrap()).is_err());
    }
}
