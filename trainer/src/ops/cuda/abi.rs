//! The entry points of `kernels/*.cu`: linked in with the feature `cuda`, and loaded from the emulation by the tests.
//!
//! All take sizes in elements, return 0 or an error number of CUDA's, and run on a stream of their caller's.

use std::ffi::{c_int, c_void};

/// One call of attention: `struct Attention` of `kernels/attention.cuh`.
#[repr(C)]
pub(super) struct Attention {
    pub q: *const c_void,
    pub k: *const c_void,
    pub v: *const c_void,
    pub y: *mut c_void,
    pub dy: *const c_void,
    pub dq: *mut c_void,
    pub dk: *mut c_void,
    pub dv: *mut c_void,
    pub log_sum: *mut f32,
    pub delta: *mut f32,
    pub keep: *const u32,
    pub words: i64,
    pub q_row: i64,
    pub kv_row: i64,
    pub y_row: i64,
    pub batch: i32,
    pub heads: i32,
    pub n: i32,
    pub m: i32,
    pub d: i32,
    pub scale: f32,
    pub keep_scale: f32,
}

/// The numbers of one step: `struct Step` of `kernels/optim.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Step {
    pub grad_scale: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub step_size: f32,
    pub bias_correction2_sqrt: f32,
    pub eps: f32,
}

macro_rules! kernels {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        /// A pointer to each entry point.
        pub(super) struct Kernels {
            $(pub $name: unsafe extern "C" fn($($arg: $type),*) -> $result,)*
        }

        #[cfg(feature = "cuda")]
        unsafe extern "C" {
            $(fn $name($($arg: $type),*) -> $result;)*
        }

        #[cfg(feature = "cuda")]
        pub(super) static LINKED: Kernels = Kernels { $($name,)* };

        #[cfg(test)]
        impl Kernels {
            /// From a library that was compiled from the same sources.
            pub fn load(mut address: impl FnMut(&str) -> *mut c_void) -> Kernels {
                // SAFETY: the library is built from the sources whose signatures are written down here, and a name that
                // it lacks does not come back from `address`.
                unsafe { Kernels { $($name: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> $result>(address(stringify!($name))),)* } }
            }
        }
    };
}

kernels! {
    fn pairquet_chunks(rows: i64) -> i64;
    fn pairquet_sum_rows(dtype: c_int, x: *const c_void, rows: i64, stride: i64, width: i64, out: *mut f32, stream: *mut c_void) -> c_int;
    fn pairquet_layer_norm_forward(
        dtype: c_int, x: *const c_void, residual: *const c_void, weight: *const f32, bias: *const f32, sum: *mut c_void,
        y: *mut c_void, mean: *mut f32, inverse_std: *mut f32, rows: i64, width: i64, eps: f32, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_layer_norm_backward(
        dtype: c_int, x: *const c_void, dy: *const c_void, weight: *const f32, mean: *const f32,
        inverse_std: *const f32, dx: *mut c_void, partial: *mut f32, dweight: *mut f32, dbias: *mut f32, rows: i64,
        width: i64, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_bias_act_forward(
        dtype: c_int, act: c_int, x: *const c_void, bias: *const f32, y: *mut c_void, rows: i64, width: i64,
        stream: *mut c_void,
    ) -> c_int;
    fn pairquet_bias_act_backward(
        dtype: c_int, act: c_int, x: *const c_void, bias: *const f32, dy: *const c_void, dx: *mut c_void,
        partial: *mut f32, dbias: *mut f32, rows: i64, width: i64, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_keep_bits(
        samples: *const i64, n_samples: i64, per_sample: i64, seed: u64, epoch: u64, purpose: u64, threshold: u32,
        bits: *mut u32, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_dropout(
        dtype: c_int, x: *const c_void, to: *const c_void, bits: *const u32, y: *mut c_void, n_samples: i64,
        per_sample: i64, whole_samples: c_int, scale: f32, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_attention_forward(dtype: c_int, attention: *const Attention, stream: *mut c_void) -> c_int;
    fn pairquet_attention_backward(dtype: c_int, attention: *const Attention, stream: *mut c_void) -> c_int;
    fn pairquet_normalise(
        dtype: c_int, bytes: *const u8, planes: *mut c_void, pictures: i64, plane: i64, mean: *const f32,
        std: *const f32, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_patches(
        dtype: c_int, planes: *const c_void, sample_stride: i64, patches: *mut c_void, batch: i64, rows: i64, columns: i64, side: i64, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_class_in_front(
        dtype: c_int, tokens: *const c_void, class_token: *const f32, positions: *const f32, positions_stride: i64,
        out: *mut c_void, batch: i64, kept: i64, width: i64, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_copy_rows(
        dtype: c_int, x: *const c_void, from_rows: *const u32, to_rows: *const u32, y: *mut c_void, rows: i64,
        width: i64, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_restore_forward(
        dtype: c_int, tokens: *const c_void, mask_token: *const f32, positions: *const f32, ids_restore: *const u32,
        out: *mut c_void, batch: i64, n: i64, kept: i64, width: i64, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_restore_backward(
        dtype: c_int, dout: *const c_void, ids_restore: *const u32, dtokens: *mut c_void, partial: *mut f32,
        dmask_token: *mut f32, batch: i64, n: i64, kept: i64, width: i64, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_patch_mse_forward(
        dtype: c_int, pred: *const c_void, target: *const f32, rows_of: *const u32, errors: *mut f32, loss: *mut f32,
        rows: i64, width: i64, normalised: c_int, eps: f32, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_patch_mse_backward(
        dtype: c_int, pred: *const c_void, target: *const f32, rows_of: *const u32, dloss: *const f32,
        dpred: *mut c_void, rows: i64, width: i64, normalised: c_int, eps: f32, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_part_elements() -> i64;
    fn pairquet_gradient_norms(
        parameters: *const i64, parts: *const i64, first_parts: *const i64, n_parameters: i64, n_parts: i64,
        max_norm: f32, squares: *mut f64, sums: *mut f64, norm_and_factor: *mut f32, stream: *mut c_void,
    ) -> c_int;
    fn pairquet_adamw(
        parameters: *const i64, parts: *const i64, n_parts: i64, step: *const Step, norm_and_factor: *const f32,
        stream: *mut c_void,
    ) -> c_int;
    fn pairquet_running_mean(
        parameters: *const i64, parts: *const i64, n_parts: i64, decay: f32, rest: f32, stream: *mut c_void,
    ) -> c_int;
}
