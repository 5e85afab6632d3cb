//! Multi-head attention whose weights never leave a thread's cache: backward computes them again.
//!
//! Letters: B batch, N queries, M keys, D width, H heads, d = D / H.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels;
use super::matmul::{Manner, Precision, Start, Threads, View, ViewMut, multiply};
use super::storage::{slice, tensor_like, with_slice};
use crate::nn::dropout::KeepMask;

/// Sizes of one sample's attention.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    m: usize,
    width: usize,
    heads: usize,
}

impl Sizes {
    fn head(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    fn weights(&self) -> usize {
        self.n * self.m
    }
}

/// Rows of queries, keys or values of all heads of one sample, `row_stride` apart.
#[derive(Clone, Copy)]
struct Packed<'a> {
    data: &'a [f32],
    row_stride: usize,
}

impl<'a> Packed<'a> {
    fn head(&self, head: usize, rows: usize, d: usize) -> View<'a> {
        View::new(&self.data[head * d..], rows, d, self.row_stride)
    }
}

/// What one sample attends with, and the part of the dropout mask that is its own.
#[derive(Clone, Copy)]
struct Sample<'a> {
    sizes: Sizes,
    q: Packed<'a>,
    k: Packed<'a>,
    v: Packed<'a>,
    drop: Option<(&'a [u8], f32)>,
    precision: Precision,
}

impl Sample<'_> {
    /// On this thread; the threads have samples of their own.
    fn manner(&self, factor: f32) -> Manner {
        Manner {
            factor,
            threads: Threads::One,
            ..Manner::of(self.precision)
        }
    }

    /// Softmax of the scaled scores of a head, `[N, M]`, before dropout.
    fn weights(&self, head: usize, p: &mut [f32]) {
        let Sizes { n, m, .. } = self.sizes;
        let d = self.sizes.head();
        let out = ViewMut {
            data: p,
            row_stride: m,
        };
        multiply(
            self.q.head(head, n, d),
            self.k.head(head, m, d).t(),
            out,
            Start::Zero,
            self.manner(self.sizes.scale()),
        );
        kernels::softmax_rows(p, m);
    }

    /// Applies the head's dropout mask in place.
    fn drop_weights(&self, head: usize, p: &mut [f32]) {
        if let Some((keep, scale)) = self.drop {
            kernels::drop_in_place(p, &keep[head * p.len()..][..p.len()], scale);
        }
    }

    /// `y` `[N, D]`; `p` is scratch for one head's weights.
    fn forward(&self, y: &mut [f32], p: &mut [f32]) {
        let Sizes { n, m, width, heads } = self.sizes;
        let d = self.sizes.head();
        for head in 0..heads {
            self.weights(head, p);
            self.drop_weights(head, p);
            let out = ViewMut {
                data: &mut y[head * d..],
                row_stride: width,
            };
            multiply(
                View::new(p, n, m, m),
                self.v.head(head, m, d),
                out,
                Start::Zero,
                self.manner(1.0),
            );
        }
    }

    /// Gradient of one head with respect to its values into `dv`; leaves in `scratch.dp` the gradient with respect to
    /// the scores, scale included.
    fn backward_head(&self, head: usize, dy: &[f32], dv: ViewMut, scratch: &mut Scratch) {
        let Sizes { n, m, width, .. } = self.sizes;
        let d = self.sizes.head();
        let dy = View::new(&dy[head * d..], n, d, width);
        let Scratch { p, dp } = scratch;
        self.weights(head, p);
        // The weights as the values met them. `dp` is free until its product below.
        let dropped: &[f32] = match self.drop {
            None => p,
            Some((keep, scale)) => {
                kernels::drop_into(p, &keep[head * p.len()..][..p.len()], scale, dp);
                dp
            }
        };
        multiply(
            View::new(dropped, n, m, m).t(),
            dy,
            dv,
            Start::Zero,
            self.manner(1.0),
        );
        let out = ViewMut {
            data: dp,
            row_stride: m,
        };
        multiply(
            dy,
            self.v.head(head, m, d).t(),
            out,
            Start::Zero,
            self.manner(1.0),
        );
        self.drop_weights(head, dp);
        kernels::softmax_backward_rows(p, dp, m, self.sizes.scale());
    }

    /// Gradient with respect to the head's queries.
    fn backward_q(&self, head: usize, dq: ViewMut, scratch: &Scratch) {
        let Sizes { n, m, .. } = self.sizes;
        let k = self.k.head(head, m, self.sizes.head());
        multiply(
            View::new(&scratch.dp, n, m, m),
            k,
            dq,
            Start::Zero,
            self.manner(1.0),
        );
    }

    /// Gradient with respect to the head's keys.
    fn backward_k(&self, head: usize, dk: ViewMut, scratch: &Scratch) {
        let Sizes { n, m, .. } = self.sizes;
        let q = self.q.head(head, n, self.sizes.head());
        multiply(
            View::new(&scratch.dp, n, m, m).t(),
            q,
            dk,
            Start::Zero,
            self.manner(1.0),
        );
    }
}

/// The matrix whose first element is `data[start]`.
fn rows_from(data: &mut [f32], start: usize, row_stride: usize) -> ViewMut<'_> {
    ViewMut {
        data: &mut data[start..],
        row_stride,
    }
}

/// One head's weights and their gradient.
struct Scratch {
    p: Vec<f32>,
    dp: Vec<f32>,
}

impl Scratch {
    fn new(sizes: Sizes) -> Scratch {
        Scratch {
            p: vec![0.0; sizes.weights()],
            dp: vec![0.0; sizes.weights()],
        }
    }
}

/// The mask of sample `b`, after a check of the whole mask's size.
fn sample_mask(drop: Option<&KeepMask>, sizes: Sizes, b: usize) -> Option<(&[u8], f32)> {
    let per_sample = sizes.heads * sizes.weights();
    drop.map(|mask| (&mask.keep()[b * per_sample..][..per_sample], mask.scale()))
}

fn check_mask(drop: Option<&KeepMask>, sizes: Sizes, batch: usize) -> Result<()> {
    match drop {
        Some(mask) if mask.keep().len() != batch * sizes.heads * sizes.weights() => {
            bail!(
                "dropout mask of {} elements for {batch} samples' attention weights",
                mask.keep().len()
            )
        }
        _ => Ok(()),
    }
}

/// Argument: `qkv` `[B, N, 3 D]`; result `[B, N, D]`.
pub(super) struct SelfAttention {
    pub heads: usize,
    pub drop: Option<KeepMask>,
    pub precision: Precision,
}

impl SelfAttention {
    fn sizes(&self, dims: &[usize]) -> Result<(usize, Sizes)> {
        match *dims {
            [batch, n, packed] => Ok((
                batch,
                Sizes {
                    n,
                    m: n,
                    width: packed / 3,
                    heads: self.heads,
                },
            )),
            _ => bail!("attention over {dims:?}, expected [B, N, 3 D]"),
        }
    }

    fn sample<'a>(&'a self, qkv: &'a [f32], sizes: Sizes, b: usize) -> Sample<'a> {
        let part = |i: usize| Packed {
            data: &qkv[i * sizes.width..],
            row_stride: 3 * sizes.width,
        };
        Sample {
            sizes,
            q: part(0),
            k: part(1),
            v: part(2),
            drop: sample_mask(self.drop.as_ref(), sizes, b),
            precision: self.precision,
        }
    }
}

impl CustomOp1 for SelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = slice(qkv, layout)?;
        let (batch, sizes) = self.sizes(layout.dims())?;
        check_mask(self.drop.as_ref(), sizes, batch)?;
        let Sizes { n, width, .. } = sizes;
        let mut y = vec![0f32; batch * n * width];
        y.par_chunks_mut(n * width)
            .zip(qkv.par_chunks(n * 3 * width))
            .enumerate()
            .for_each_init(
                || vec![0f32; sizes.weights()],
                |scratch, (b, (y, qkv))| self.sample(qkv, sizes, b).forward(y, scratch),
            );
        Ok((CpuStorage::F32(y), (batch, n, width).into()))
    }

    fn bwd(&self, qkv: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, sizes) = self.sizes(qkv.dims())?;
        let Sizes {
            n, width, heads, ..
        } = sizes;
        let d = sizes.head();
        let dqkv = with_slice(qkv, |qkv| {
            with_slice(dy, |dy| {
                let mut dqkv = vec![0f32; qkv.len()];
                let samples = qkv.par_chunks(n * 3 * width).zip(dy.par_chunks(n * width));
                dqkv.par_chunks_mut(n * 3 * width)
                    .zip(samples)
                    .enumerate()
                    .for_each_init(
                        || Scratch::new(sizes),
                        |scratch, (b, (dqkv, (qkv, dy)))| {
                            let sample = self.sample(qkv, sizes, b);
                            for head in 0..heads {
                                let start = |i: usize| i * width + head * d;
                                sample.backward_head(
                                    head,
                                    dy,
                                    rows_from(dqkv, start(2), 3 * width),
                                    scratch,
                                );
                                sample.backward_q(
                                    head,
                                    rows_from(dqkv, start(0), 3 * width),
                                    scratch,
                                );
                                sample.backward_k(
                                    head,
                                    rows_from(dqkv, start(1), 3 * width),
                                    scratch,
                                );
                            }
                        },
                    );
                Ok(dqkv)
            })
        })?;
        Ok(Some(tensor_like(dqkv, qkv)?))
    }
}

/// Arguments: `q` `[B, N, D]`, `kv` `[B, M, 2 D]`; result `[B, N, D]`.
pub(super) struct CrossAttention {
    pub heads: usize,
    pub drop: Option<KeepMask>,
    pub precision: Precision,
}

impl CrossAttention {
    fn sizes(&self, q: &[usize], kv: &[usize]) -> Result<(usize, Sizes)> {
        match (q, kv) {
            (&[batch, n, width], &[kv_batch, m, packed])
                if batch == kv_batch && packed == 2 * width =>
            {
                Ok((
                    batch,
                    Sizes {
                        n,
                        m,
                        width,
                        heads: self.heads,
                    },
                ))
            }
            _ => bail!("attention of {q:?} to {kv:?}, expected [B, N, D] and [B, M, 2 D]"),
        }
    }

    fn sample<'a>(&'a self, q: &'a [f32], kv: &'a [f32], sizes: Sizes, b: usize) -> Sample<'a> {
        let part = |i: usize| Packed {
            data: &kv[i * sizes.width..],
            row_stride: 2 * sizes.width,
        };
        let q = Packed {
            data: q,
            row_stride: sizes.width,
        };
        Sample {
            sizes,
            q,
            k: part(0),
            v: part(1),
            drop: sample_mask(self.drop.as_ref(), sizes, b),
            precision: self.precision,
        }
    }
}

impl CustomOp2 for CrossAttention {
    fn name(&self) -> &'static str {
        "cross-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        kv: &CpuStorage,
        kv_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, kv) = (slice(q, q_layout)?, slice(kv, kv_layout)?);
        let (batch, sizes) = self.sizes(q_layout.dims(), kv_layout.dims())?;
        check_mask(self.drop.as_ref(), sizes, batch)?;
        let Sizes { n, m, width, .. } = sizes;
        let mut y = vec![0f32; batch * n * width];
        let samples = q.par_chunks(n * width).zip(kv.par_chunks(m * 2 * width));
        y.par_chunks_mut(n * width)
            .zip(samples)
            .enumerate()
            .for_each_init(
                || vec![0f32; sizes.weights()],
                |scratch, (b, (y, (q, kv)))| self.sample(q, kv, sizes, b).forward(y, scratch),
            );
        Ok((CpuStorage::F32(y), (batch, n, width).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, sizes) = self.sizes(q.dims(), kv.dims())?;
        let Sizes { n, m, width, heads } = sizes;
        let d = sizes.head();
        let (dq, dkv) = with_slice(q, |q| {
            with_slice(kv, |kv| {
                with_slice(dy, |dy| {
                    let (mut dq, mut dkv) = (vec![0f32; q.len()], vec![0f32; kv.len()]);
                    let samples = q.par_chunks(n * width).zip(kv.par_chunks(m * 2 * width));
                    let gradients = dq
                        .par_chunks_mut(n * width)
                        .zip(dkv.par_chunks_mut(m * 2 * width));
                    gradients
                        .zip(samples)
                        .zip(dy.par_chunks(n * width))
                        .enumerate()
                        .for_each_init(
                            || Scratch::new(sizes),
                            |scratch, (b, (((dq, dkv), (q, kv)), dy))| {
                                let sample = self.sample(q, kv, sizes, b);
                                for head in 0..heads {
                                    let start = |i: usize| i * width + head * d;
                                    sample.backward_head(
                                        head,
                                        dy,
                                        rows_from(dkv, start(1), 2 * width),
                                        scratch,
                                    );
                                    sample.backward_k(
                                        head,
                                        rows_from(dkv, start(0), 2 * width),
                                        scratch,
                                    );
                                    sample.backward_q(
                                        head,
                                        rows_from(dq, start(0), width),
                                        scratch,
                                    );
                                }
                            },
                        );
                    Ok((dq, dkv))
                })
            })
        })?;
        Ok((Some(tensor_like(dq, q)?), Some(tensor_like(dkv, kv)?)))
    }
}
