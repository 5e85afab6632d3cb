//! Multi-head attention whose weights never reach memory: backward computes them again.
//!
//! Letters: B batch, N queries, M keys, D width, H heads.

use std::ffi::c_void;

use candle_core::{D, DType, Result, Tensor};

use super::abi;
use super::buffer::{Launch, Output, address, address_mut, none, type_code};
use super::node::{Keeps, node};
use super::random::keep_bits;
use crate::nn::dropout::KeepMask;

/// Elements of the widest head that the kernels take.
pub(crate) const MOST_HEAD_ELEMENTS: usize = 128;

/// Sizes, and the dropout of the weights.
#[derive(Clone)]
struct Call {
    batch: usize,
    n: usize,
    m: usize,
    width: usize,
    heads: usize,
    drop: Option<(Tensor, f32)>,
}

/// Where queries, keys and values lie: addresses of their first elements, and elements between rows.
struct Rows {
    q: *mut c_void,
    k: *mut c_void,
    v: *mut c_void,
    q_row: usize,
    kv_row: usize,
}

impl Call {
    fn new(
        q: &Tensor,
        m: usize,
        width: usize,
        heads: usize,
        drop: Option<&KeepMask>,
    ) -> Result<Call> {
        let drop = match drop {
            Some(mask) => Some((keep_bits(mask, q)?, mask.scale())),
            None => None,
        };
        Ok(Call {
            batch: q.dim(0)?,
            n: q.dim(1)?,
            m,
            width,
            heads,
            drop,
        })
    }

    /// Fields that forward and backward share.
    fn arguments(&self, rows: &Rows, y: *mut c_void, log_sum: *mut f32) -> Result<abi::Attention> {
        let head = self.width / self.heads;
        let (keep, words, keep_scale) = match &self.drop {
            Some((bits, scale)) => (address(bits)?, bits.dim(1)?, *scale),
            None => (none(), 0, 1.0),
        };
        Ok(abi::Attention {
            q: rows.q,
            k: rows.k,
            v: rows.v,
            y,
            dy: none(),
            dq: std::ptr::null_mut(),
            dk: std::ptr::null_mut(),
            dv: std::ptr::null_mut(),
            log_sum,
            delta: std::ptr::null_mut(),
            keep,
            words: words as i64,
            q_row: rows.q_row as i64,
            kv_row: rows.kv_row as i64,
            y_row: self.width as i64,
            batch: self.batch as i32,
            heads: self.heads as i32,
            n: self.n as i32,
            m: self.m as i32,
            d: head as i32,
            scale: 1.0 / (head as f32).sqrt(),
            keep_scale,
        })
    }

    /// The result `[B, N, D]` and the rows' log-sum-exps `[B, H, N]`.
    fn forward(&self, q: &Tensor, rows: &Rows) -> Result<(Output, Tensor)> {
        let mut y = Output::new((self.batch, self.n, self.width), q.dtype(), q.device())?;
        let mut log_sum = self.statistic(q)?;
        let arguments = self.arguments(rows, y.address()?, log_sum.address()?)?;
        let code = type_code(q)?;
        Launch::on(q.device())?.run("attention", |kernels, stream| {
            // SAFETY: every address is of a tensor of the sizes that are passed beside it.
            unsafe { (kernels.pairquet_attention_forward)(code, &arguments, stream) }
        })?;
        Ok((y, log_sum.into_tensor()))
    }

    fn backward(
        &self,
        rows: &Rows,
        gradients: &Rows,
        log_sum: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<()> {
        let mut delta = self.statistic(dy)?;
        let mut arguments = self.arguments(rows, address_mut(y)?, address_mut(log_sum)?)?;
        arguments.delta = delta.address()?;
        arguments.dy = address(dy)?;
        (arguments.dq, arguments.dk, arguments.dv) = (gradients.q, gradients.k, gradients.v);
        let code = type_code(dy)?;
        Launch::on(dy.device())?.run("attention's backward", |kernels, stream| {
            // SAFETY: as forward; gradients lie as what they are of.
            unsafe { (kernels.pairquet_attention_backward)(code, &arguments, stream) }
        })
    }

    fn statistic(&self, like: &Tensor) -> Result<Output> {
        Output::new((self.batch, self.heads, self.n), DType::F32, like.device())
    }
}

/// An address `elements` further on.
fn further(address: *mut c_void, elements: usize, dtype: DType) -> *mut c_void {
    address
        .cast::<u8>()
        .wrapping_add(elements * dtype.size_in_bytes())
        .cast()
}

fn packed_qkv(address: *mut c_void, width: usize, dtype: DType) -> Rows {
    Rows {
        q: address,
        k: further(address, width, dtype),
        v: further(address, 2 * width, dtype),
        q_row: 3 * width,
        kv_row: 3 * width,
    }
}

fn packed_kv(q: *mut c_void, kv: *mut c_void, width: usize, dtype: DType) -> Rows {
    Rows {
        q,
        k: kv,
        v: further(kv, width, dtype),
        q_row: width,
        kv_row: 2 * width,
    }
}

/// `qkv` `[B, N, 3 D]` to `[B, N, D]`.
pub(crate) fn self_attention(
    qkv: &Tensor,
    heads: usize,
    drop: Option<&KeepMask>,
) -> Result<Tensor> {
    let (width, dtype) = (qkv.dim(D::Minus1)? / 3, qkv.dtype());
    let call = Call::new(qkv, qkv.dim(1)?, width, heads, drop)?;
    let rows = packed_qkv(address_mut(qkv)?, width, dtype);
    let (y, log_sum) = call.forward(qkv, &rows)?;
    let saved = qkv.detach();
    node("self-attention", &[qkv], y, Keeps::Result, move |y, dy| {
        let mut dqkv = Output::like(&saved)?;
        let rows = packed_qkv(address_mut(&saved)?, width, dtype);
        let gradients = packed_qkv(dqkv.address()?, width, dtype);
        call.backward(&rows, &gradients, &log_sum, y, dy)?;
        Ok(vec![Some(dqkv.into_tensor())])
    })
}

/// `q` `[B, N, D]` and `kv` `[B, M, 2 D]` to `[B, N, D]`.
pub(crate) fn cross_attention(
    q: &Tensor,
    kv: &Tensor,
    heads: usize,
    drop: Option<&KeepMask>,
) -> Result<Tensor> {
    let (width, dtype) = (q.dim(D::Minus1)?, q.dtype());
    let call = Call::new(q, kv.dim(1)?, width, heads, drop)?;
    let rows = packed_kv(address_mut(q)?, address_mut(kv)?, width, dtype);
    let (y, log_sum) = call.forward(q, &rows)?;
    let (saved_q, saved_kv) = (q.detach(), kv.detach());
    node(
        "cross-attention",
        &[q, kv],
        y,
        Keeps::Result,
        move |y, dy| {
            let (mut dq, mut dkv) = (Output::like(&saved_q)?, Output::like(&saved_kv)?);
            let rows = packed_kv(
                address_mut(&saved_q)?,
                address_mut(&saved_kv)?,
                width,
                dtype,
            );
            let gradients = packed_kv(dq.address()?, dkv.address()?, width, dtype);
            call.backward(&rows, &gradients, &log_sum, y, dy)?;
            Ok(vec![Some(dq.into_tensor()), Some(dkv.into_tensor())])
        },
    )
}
