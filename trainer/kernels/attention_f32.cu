// Attention in f32, one thread a row: for checks and for runs without bf16. The scores never leave the registers.
#include "attention.cuh"

// Rows of a block, and rows of a tile in shared memory.
static const int ROWS = 64, TILE = 32;

// Rows `first` to `first + TILE` of `from` into `tile` `[TILE, D]`, zero past the last row and the head's width.
template <int D>
__device__ __forceinline__ void load_tile(float *tile, const float *from, int first, int rows, int64_t stride, int d) {
  for (int i = threadIdx.x; i < TILE * D; i += ROWS) {
    const int row = first + i / D, column = i % D;
    tile[i] = row < rows && column < d ? from[row * stride + column] : 0.f;
  }
}

template <int D>
__device__ __forceinline__ void load_row(float (&row)[D], const float *from, bool there, int d) {
#pragma unroll
  for (int i = 0; i < D; i++) row[i] = there && i < d ? from[i] : 0.f;
}

template <int D>
__device__ __forceinline__ void store_row(const float (&row)[D], float *to, bool there, int d) {
#pragma unroll
  for (int i = 0; i < D; i++)
    if (there && i < d) to[i] = row[i];
}

template <int D>
__device__ __forceinline__ float dot(const float (&a)[D], const float *b) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < D; i++) sum += a[i] * b[i];
  return sum;
}

template <int D>
__device__ __forceinline__ void add_scaled(float (&to)[D], float factor, const float *from) {
#pragma unroll
  for (int i = 0; i < D; i++) to[i] += factor * from[i];
}

template <int D>
__global__ void forward_kernel(Attention a) {
  SHARED(float, shared);
  float *keys = shared, *values = shared + TILE * D;
  const Head of = head_of(a, blockIdx.y, blockIdx.z);
  const int row = blockIdx.x * ROWS + threadIdx.x;
  const float *k = (const float *)a.k + of.kv, *v = (const float *)a.v + of.kv;
  float q[D], y[D];
  load_row<D>(q, (const float *)a.q + of.q + row * a.q_row, row < a.n, a.d);
#pragma unroll
  for (int i = 0; i < D; i++) y[i] = 0.f;
  float largest = -INFINITY, sum = 0.f;
  for (int first = 0; first < a.m; first += TILE) {
    __syncthreads();
    load_tile<D>(keys, k, first, a.m, a.kv_row, a.d);
    load_tile<D>(values, v, first, a.m, a.kv_row, a.d);
    __syncthreads();
    for (int i = 0; i < TILE && first + i < a.m && row < a.n; i++) {
      const float score = dot<D>(q, keys + i * D) * a.scale * LOG2_E;
      const float now = fmaxf(largest, score), shrink = exp2f(largest - now), p = exp2f(score - now);
      largest = now;
      sum = sum * shrink + p;
#pragma unroll
      for (int j = 0; j < D; j++) y[j] *= shrink;
      add_scaled<D>(y, p * factor_of(a, of, row, first + i), values + i * D);
    }
  }
  if (row >= a.n) return;
#pragma unroll
  for (int i = 0; i < D; i++) y[i] /= sum;
  store_row<D>(y, (float *)a.y + of.y + row * a.y_row, true, a.d);
  a.log_sum[of.statistics + row] = largest + log2f(sum);
}

template <int D>
__global__ void backward_queries_kernel(Attention a) {
  SHARED(float, shared);
  float *keys = shared, *values = shared + TILE * D;
  const Head of = head_of(a, blockIdx.y, blockIdx.z);
  const int row = blockIdx.x * ROWS + threadIdx.x;
  const bool there = row < a.n;
  const float *k = (const float *)a.k + of.kv, *v = (const float *)a.v + of.kv;
  float q[D], dy[D], dq[D];
  load_row<D>(dq, (const float *)a.y + of.y + row * a.y_row, there, a.d);
  load_row<D>(dy, (const float *)a.dy + of.y + row * a.y_row, there, a.d);
  const float delta = dot<D>(dy, dq);
  load_row<D>(q, (const float *)a.q + of.q + row * a.q_row, there, a.d);
#pragma unroll
  for (int i = 0; i < D; i++) dq[i] = 0.f;
  const float log_sum = there ? a.log_sum[of.statistics + row] : 0.f;
  for (int first = 0; first < a.m; first += TILE) {
    __syncthreads();
    load_tile<D>(keys, k, first, a.m, a.kv_row, a.d);
    load_tile<D>(values, v, first, a.m, a.kv_row, a.d);
    __syncthreads();
    for (int i = 0; i < TILE && first + i < a.m && there; i++) {
      const float p = exp2f(dot<D>(q, keys + i * D) * a.scale * LOG2_E - log_sum);
      const float dp = dot<D>(dy, values + i * D) * factor_of(a, of, row, first + i);
      add_scaled<D>(dq, p * (dp - delta) * a.scale, keys + i * D);
    }
  }
  if (!there) return;
  store_row<D>(dq, (float *)a.dq + of.q + row * a.q_row, true, a.d);
  a.delta[of.statistics + row] = delta;
}

template <int D>
__global__ void backward_keys_kernel(Attention a) {
  SHARED(float, shared);
  float *queries = shared, *gradients = shared + TILE * D;
  const Head of = head_of(a, blockIdx.y, blockIdx.z);
  const int row = blockIdx.x * ROWS + threadIdx.x;
  const bool there = row < a.m;
  const float *q = (const float *)a.q + of.q, *g = (const float *)a.dy + of.y;
  float k[D], v[D], dk[D], dv[D];
  load_row<D>(k, (const float *)a.k + of.kv + row * a.kv_row, there, a.d);
  load_row<D>(v, (const float *)a.v + of.kv + row * a.kv_row, there, a.d);
#pragma unroll
  for (int i = 0; i < D; i++) dk[i] = dv[i] = 0.f;
  for (int first = 0; first < a.n; first += TILE) {
    __syncthreads();
    load_tile<D>(queries, q, first, a.n, a.q_row, a.d);
    load_tile<D>(gradients, g, first, a.n, a.y_row, a.d);
    __syncthreads();
    for (int i = 0; i < TILE && first + i < a.n && there; i++) {
      const int64_t query = of.statistics + first + i;
      const float p = exp2f(dot<D>(k, queries + i * D) * a.scale * LOG2_E - a.log_sum[query]);
      const float factor = factor_of(a, of, first + i, row);
      add_scaled<D>(dv, p * factor, gradients + i * D);
      const float dp = dot<D>(v, gradients + i * D) * factor;
      add_scaled<D>(dk, p * (dp - a.delta[query]) * a.scale, queries + i * D);
    }
  }
  store_row<D>(dk, (float *)a.dk + of.kv + row * a.kv_row, there, a.d);
  store_row<D>(dv, (float *)a.dv + of.kv + row * a.kv_row, there, a.d);
}

static dim3 grid_of(const Attention &a, int rows) {
  return dim3((unsigned)ceil_div(rows, ROWS), (unsigned)a.heads, (unsigned)a.batch);
}

template <int D>
static int forward(const Attention &a, void *stream) {
  LAUNCH(forward_kernel<D>, grid_of(a, a.n), ROWS, 2 * TILE * D * sizeof(float), stream, a);
  return launch_result();
}

template <int D>
static int backward(const Attention &a, void *stream) {
  const size_t shared = 2 * TILE * D * sizeof(float);
  LAUNCH(backward_queries_kernel<D>, grid_of(a, a.n), ROWS, shared, stream, a);  // makes delta
  LAUNCH(backward_keys_kernel<D>, grid_of(a, a.m), ROWS, shared, stream, a);
  return launch_result();
}

int attention_forward_f32(const Attention &a, void *stream) {
  return a.d <= 32 ? forward<32>(a, stream) : a.d <= 64 ? forward<64>(a, stream) : forward<128>(a, stream);
}

int attention_backward_f32(const Attention &a, void *stream) {
  return a.d <= 32 ? backward<32>(a, stream) : a.d <= 64 ? backward<64>(a, stream) : backward<128>(a, stream);
}
