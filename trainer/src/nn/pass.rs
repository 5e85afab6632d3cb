//! What travels through a forward pass beside the tensors.

use std::cell::RefCell;

use candle_core::Tensor;
use pipeline::rng::Purpose;

use super::dropout::KeepMask;
use crate::error::Result;
use crate::masking::StepRandomness;
use crate::ops;

/// Collects intermediate results by name, for comparison with other implementations and for looking inside.
#[derive(Debug, Default)]
pub struct Probe {
    seen: RefCell<Vec<(String, Tensor)>>,
}

impl Probe {
    /// Everything seen, in order of computation. Names are parameter paths (`blocks.0`, `decoder_blocks.1.norm2`),
    /// with `view1.` or `view2.` in front where an encoder serves two views.
    pub fn into_seen(self) -> Vec<(String, Tensor)> {
        self.seen.into_inner()
    }
}

/// One forward pass: whether layers drop, where their draws come from, and who watches.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    randomness: Option<&'a StepRandomness>,
    probe: Option<&'a Probe>,
    view: &'static str,
}

impl<'a> Pass<'a> {
    /// With dropout and stochastic depth, drawn from `randomness`.
    pub fn training(randomness: &'a StepRandomness) -> Pass<'a> {
        Pass {
            randomness: Some(randomness),
            probe: None,
            view: "",
        }
    }

    /// Without dropout.
    pub fn evaluation() -> Pass<'static> {
        Pass {
            randomness: None,
            probe: None,
            view: "",
        }
    }

    /// The same pass with a watcher.
    pub fn watched(self, probe: &'a Probe) -> Pass<'a> {
        Pass {
            probe: Some(probe),
            ..self
        }
    }

    /// The same pass inside one view's branch (`"view1"`, `"view2"`).
    pub fn in_view(self, view: &'static str) -> Pass<'a> {
        Pass { view, ..self }
    }

    /// Shows `tensor` to the watcher under `path` or `path.part`; free if there is none.
    pub fn see(&self, path: &str, part: &str, tensor: &Tensor) {
        if let Some(probe) = self.probe {
            let name: Vec<&str> = [self.view, path, part]
                .into_iter()
                .filter(|piece| !piece.is_empty())
                .collect();
            probe
                .seen
                .borrow_mut()
                .push((name.join("."), tensor.clone()));
        }
    }

    /// The draw of a dropout layer over `per_sample` elements of each sample; `None` outside training or if `p` is 0.
    ///
    /// # Errors
    /// If `p` is not in `[0, 1)`.
    pub fn keep_mask(
        &self,
        path: &str,
        part: &str,
        per_sample: usize,
        p: f64,
    ) -> Result<Option<KeepMask>> {
        self.draw(Purpose::Dropout, path, part, per_sample, p)
    }

    /// Dropout of single elements of `x` `[B, ..]`.
    ///
    /// # Errors
    /// If `p` is not in `[0, 1)` or the batch is not the one of the pass's randomness.
    pub fn dropout(&self, path: &str, part: &str, x: Tensor, p: f64) -> Result<Tensor> {
        let per_sample = x.dims().iter().skip(1).product();
        match self.keep_mask(path, part, per_sample, p)? {
            Some(mask) => ops::dropout(&x, &mask),
            None => Ok(x),
        }
    }

    /// Stochastic depth: drops the whole branch `x` `[B, ..]` of a sample with probability `p`, scaling the others.
    ///
    /// # Errors
    /// As [`Pass::dropout`].
    ///
    /// Source: timm, `drop_path` with `scale_by_keep`.
    pub fn drop_path(&self, path: &str, part: &str, x: Tensor, p: f64) -> Result<Tensor> {
        match self.draw(Purpose::DropPath, path, part, 1, p)? {
            Some(mask) => {
                let mut shape = vec![1; x.rank()];
                shape[0] = x.dim(0)?;
                Ok(x.broadcast_mul(&mask.factors(&shape, &x)?)?)
            }
            None => Ok(x),
        }
    }

    fn draw(
        &self,
        purpose: Purpose,
        path: &str,
        part: &str,
        per_sample: usize,
        p: f64,
    ) -> Result<Option<KeepMask>> {
        match self.randomness {
            Some(step) if p != 0.0 => {
                let layer = format!("{}/{path}.{part}", self.view);
                KeepMask::draw(step, purpose, &layer, per_sample, p).map(Some)
            }
            _ => Ok(None),
        }
    }
}
