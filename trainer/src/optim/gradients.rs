//! The gradients of one optimizer step, by parameter, summed over its micro-batches.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::error::Result;

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

    /// Adds what one backward pass left; the caller has divided the loss by the number of micro-batches.
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

    /// The gradient of the parameter at this place in their order.
    pub(crate) fn at(&self, index: usize) -> Option<&Tensor> {
        self.entries.get(index)?.grad.as_ref()
    }

    /// Puts another gradient in the place of the parameter's.
    pub(crate) fn replace(&mut self, index: usize, grad: Tensor) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.grad = Some(grad);
        }
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for entry in &mut self.entries {
            if let Some(grad) = &entry.grad {
                entry.grad = Some(grad.affine(factor, 0.0)?);
            }
        }
        Ok(())
    }

    /// Forgets every gradient, for the next step.
    pub fn clear(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.grad = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        grads.scale(0.5).unwrap();
        assert_eq!(
            grads.get("a").unwrap().to_vec1::<f32>().unwrap(),
            [3.0, 3.0]
        );
        assert!(grads.get("b").is_none());
        grads.clear();
        assert!(grads.get("a").is_none());
    }
}
