//! The gradients of all parameters, summed over the ranks in a few large pieces.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;

use super::Ranks;
use super::engine::Pending;
use crate::error::Result;
use crate::nn::params::Params;
use crate::optim::Gradients;

/// Values of a bucket, as far as whole parameters allow: 25 MiB of f32, PyTorch's default. Large enough that a request's
/// cost does not show, small enough that most of the gradients travel while the backward pass still runs.
const BUCKET_VALUES: usize = 25 * (1 << 20) / size_of::<f32>();

/// Sums gradients over the ranks, bucket by bucket.
///
/// Buckets depend on the parameters alone, so they are the same on every rank. They go from the last parameters to the
/// first, as a backward pass does, and are sent in that order.
#[derive(Debug)]
pub(crate) struct Buckets {
    ranks: Ranks,
    names: Vec<String>,
    places: HashMap<String, usize>,
    plan: Vec<Range<usize>>,
    /// Gradients that wait for the others of their bucket, in the parameters' order.
    waiting: Vec<Option<Tensor>>,
    sent: Vec<Sent>,
}

/// A bucket under way.
#[derive(Debug)]
struct Sent {
    /// Those of its parameters that have a gradient.
    members: Vec<usize>,
    /// The sums of their gradients, one after the other; `None` without any.
    sums: Option<Pending<Tensor>>,
}

impl Buckets {
    /// For the trainable ones of `params`.
    pub fn new(ranks: &Ranks, params: &Params) -> Buckets {
        let sizes = params.iter_trainable();
        let sizes = sizes.map(|param| (param.name.clone(), param.var.elem_count()));
        Buckets::with_limit(ranks, sizes, BUCKET_VALUES)
    }

    pub(super) fn with_limit(
        ranks: &Ranks,
        sizes: impl IntoIterator<Item = (String, usize)>,
        limit: usize,
    ) -> Buckets {
        let (names, sizes): (Vec<String>, Vec<usize>) = sizes.into_iter().unzip();
        let places = names.iter().enumerate();
        Buckets {
            ranks: ranks.clone(),
            places: places.map(|(i, name)| (name.clone(), i)).collect(),
            plan: plan(&sizes, limit),
            waiting: vec![None; names.len()],
            names,
            sent: Vec::new(),
        }
    }

    /// To be called during the last backward pass of a step, when a parameter's gradient is final. Sends the next buckets
    /// that are complete.
    ///
    /// # Errors
    /// If gradients cannot be brought into one piece.
    pub fn ready(&mut self, name: &str, grad: &Tensor) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        if let Some(&place) = self.places.get(name) {
            self.waiting[place] = Some(grad.clone());
        }
        while let Some(next) = self.plan.get(self.sent.len())
            && self.waiting[next.clone()].iter().all(Option::is_some)
        {
            self.send_next()?;
        }
        Ok(())
    }

    /// To be called after the last backward pass of a step: sends the buckets that are not yet on their way, those with
    /// parameters that it did not reach included, and puts the sums in the place of this rank's gradients.
    ///
    /// # Errors
    /// What the communication library reports.
    pub fn finish(&mut self, grads: &mut Gradients) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        let unsent = self.plan[self.sent.len()..].iter().cloned().flatten();
        for place in unsent {
            self.waiting[place] = grads.get(&self.names[place]).cloned();
        }
        while self.sent.len() < self.plan.len() {
            self.send_next()?;
        }
        for Sent { members, sums } in self.sent.drain(..) {
            let Some(sums) = sums else { continue };
            let (sums, mut start) = (sums.wait()?, 0);
            for place in members {
                let name = &self.names[place];
                let Some(shape) = grads.get(name).map(|grad| grad.shape().clone()) else {
                    continue;
                };
                let n_values = shape.elem_count();
                let sum = sums.narrow(0, start, n_values)?.reshape(shape)?;
                start += n_values;
                grads.set(name, sum)?;
            }
        }
        Ok(())
    }

    /// Parameters without a gradient have none on any rank: all compute the same graph.
    fn send_next(&mut self) -> Result<()> {
        let bucket = self.plan[self.sent.len()].clone();
        let (mut members, mut flat) = (Vec::new(), Vec::new());
        for place in bucket {
            if let Some(grad) = self.waiting[place].take() {
                members.push(place);
                flat.push(grad.flatten_all()?);
            }
        }
        let sums = match flat.is_empty() {
            true => None,
            false => Some(self.ranks.start_sum(&Tensor::cat(&flat, 0)?)?),
        };
        self.sent.push(Sent { members, sums });
        Ok(())
    }
}

/// Ranges of parameters with at least `limit` values each, but for the last one, from the last parameter to the first.
fn plan(sizes: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut plan = Vec::new();
    let (mut end, mut n_values) = (sizes.len(), 0);
    for (start, &size) in sizes.iter().enumerate().rev() {
        n_values += size;
        if n_values >= limit || start == 0 {
            plan.push(start..end);
            (end, n_values) = (start, 0);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_tile_the_parameters_from_the_last_to_the_first() {
        let sizes = [3, 9, 1, 1, 4, 12, 2];
        assert_eq!(plan(&sizes, 10), [5..7, 1..5, 0..1]);
        assert_eq!(plan(&sizes, 1), [6..7, 5..6, 4..5, 3..4, 2..3, 1..2, 0..1]);
        assert!(plan(&sizes, 1000).iter().eq([&(0..7)]));
        assert!(plan(&[], 10).is_empty());
    }
}
