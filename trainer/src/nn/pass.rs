//! What travels through a forward pass beside the tensors.

use std::cell::RefCell;

use candle_core::Tensor;
use pipeline::rng::Purpose;

use super::dropout::KeepMask;
use crate::error::Result;
use crate::masking::StepRandomness;

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

/// What [`Pass::kept`] keeps.
#[derive(Debug, Clone)]
pub struct KeptPass {
    randomness: Option<StepRandomness>,
    view: &'static str,
}

impl KeptPass {
    /// The pass.
    pub fn pass(&self) -> Pass<'_> {
        Pass {
            randomness: self.randomness.as_ref(),
            probe: None,
            view: self.view,
        }
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

    /// The same pass with its own copy of the draws' keys, for a block that is computed again in the backward pass;
    /// nobody watches that.
    pub fn kept(&self) -> KeptPass {
        KeptPass {
            randomness: self.randomness.cloned(),
            view: self.view,
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

    /// The draw of stochastic depth, one element for each sample: whether its whole branch is dropped, with probability
    /// `p`, or scaled.
    ///
    /// # Errors
    /// As [`Pass::keep_mask`].
    ///
    /// Source: timm, `drop_path` with `scale_by_keep`.
    pub fn drop_path_mask(&self, path: &str, part: &str, p: f64) -> Result<Option<KeepMask>> {
        self.draw(Purpose::DropPath, path, part, 1, p)
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
