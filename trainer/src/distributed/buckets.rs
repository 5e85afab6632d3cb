//! The gradients of all parameters, summed over the ranks in a few large pieces.

use std::ops::Range;

use candle_core::Tensor;

use super::Ranks;
use super::engine::Pending;
use crate::error::Result;
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
    plan: Vec<Range<usize>>,
    /// Parameters of each bucket whose gradient is still to come in this backward pass.
    missing: Vec<usize>,
    /// `None` for a bucket without a gradient.
    under_way: Vec<Option<Pending<Tensor>>>,
}

impl Buckets {
    /// * `sizes`: values of each parameter, in the order of the gradients.
    pub fn new(ranks: &Ranks, sizes: &[usize]) -> Buckets {
        Buckets::with_limit(ranks, sizes, BUCKET_VALUES)
    }

    pub(super) fn with_limit(ranks: &Ranks, sizes: &[usize], limit: usize) -> Buckets {
        let plan = plan(sizes, limit);
        Buckets {
            ranks: ranks.clone(),
            missing: plan.iter().map(Range::len).collect(),
            plan,
            under_way: Vec::new(),
        }
    }

    /// To be called during the last backward pass of a step, when the gradient of parameter `index` is final. Sends the
    /// next buckets that are complete.
    ///
    /// # Errors
    /// If a gradient cannot be brought into one piece with the others.
    pub fn ready(&mut self, index: usize, grads: &Gradients) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        // Buckets run backwards: the first whose start is not beyond the parameter holds it.
        let bucket = self.plan.partition_point(|bucket| bucket.start > index);
        self.missing[bucket] -= 1;
        while self.missing.get(self.under_way.len()) == Some(&0) {
            self.send_next(grads)?;
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
        while self.under_way.len() < self.plan.len() {
            self.send_next(grads)?;
        }
        for (bucket, pending) in self.plan.iter().zip(self.under_way.drain(..)) {
            let Some(pending) = pending else {
                continue;
            };
            let sums = pending.wait()?;
            let mut start = 0;
            for index in bucket.clone() {
                let Some(grad) = grads.at(index) else {
                    continue;
                };
                let (n_values, shape) = (grad.elem_count(), grad.shape().clone());
                let sum = sums.narrow(0, start, n_values)?.reshape(shape)?;
                start += n_values;
                grads.replace(index, sum);
            }
        }
        self.missing = self.plan.iter().map(Range::len).collect();
        Ok(())
    }

    /// Parameters without a gradient have none on any rank: all compute the same graph.
    fn send_next(&mut self, grads: &Gradients) -> Result<()> {
        let bucket = self.plan[self.under_way.len()].clone();
        let flat = bucket
            .filter_map(|index| grads.at(index))
            .map(Tensor::flatten_all)
            .collect::<candle_core::Result<Vec<_>>>()?;
        self.under_way.push(match flat.is_empty() {
            true => None,
            false => Some(self.ranks.start_sum(&Tensor::cat(&flat, 0)?)?),
        });
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
        assert_eq!(plan(&sizes, 1000), [0..7]);
        assert!(plan(&[], 10).is_empty());
    }
}
