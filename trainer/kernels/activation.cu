// What follows a matrix product: the bias, GELU, and the bias' gradient.
#include "common.cuh"

enum { PLAIN = 0, GELU = 1 };

static const int THREADS = 256;

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f + 0.5f * erff(x * 0.70710678f); }
__device__ __forceinline__ float gelu(float x) { return x * normal_cdf(x); }
__device__ __forceinline__ float gelu_slope(float x) {
  return normal_cdf(x) + x * 0.39894228f * expf(-0.5f * x * x);
}

// y = act(x + bias); bias may be missing, y may be x.
template <class T, int ACT>
__global__ void bias_act_forward_kernel(const T *x, const float *bias, T *y, int64_t n, int64_t width, bool whole) {
  const int64_t i = (block_x() * THREADS + threadIdx.x) * 4;
  if (i >= n) return;
  float v[4];
  load4(x, i, n, whole, v);
  // A 64-bit remainder costs more than all the rest of this kernel.
  const int64_t column = n <= 0xffffffffll ? (int64_t)((uint32_t)i % (uint32_t)width) : i % width;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (bias) v[j] += bias[column + j < width ? column + j : (column + j) % width];
    if (ACT == GELU) v[j] = gelu(v[j]);
  }
  store4(y, i, n, whole, v);
}

// dx = dy * act'(x + bias), and its sum over a chunk of rows. A block takes 128 columns, four a lane, and its eight
// warps every eighth row.
template <class T, int ACT>
__global__ void bias_act_backward_kernel(const T *x, const float *bias, const T *dy, T *dx, float *partial,
                                         int64_t rows, int64_t rows_per_chunk, int64_t width, bool whole) {
  SHARED(float, sums);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int64_t column = (int64_t)blockIdx.y * 4 * WARP + lane * 4;
  const int64_t first = block_x() * rows_per_chunk;
  const int64_t last = first + rows_per_chunk < rows ? first + rows_per_chunk : rows;
  float total[4] = {0.f, 0.f, 0.f, 0.f};
  if (column < width) {
    float b[4] = {0.f, 0.f, 0.f, 0.f};
    if (ACT == GELU && bias) load4(bias, column, width, whole, b);
    for (int64_t row = first + warp; row < last; row += THREADS / WARP) {
      float g[4];
      load4(dy + row * width, column, width, whole, g);
      if (ACT == GELU) {
        float v[4];
        load4(x + row * width, column, width, whole, v);
#pragma unroll
        for (int j = 0; j < 4; j++) g[j] *= gelu_slope(v[j] + b[j]);
        store4(dx + row * width, column, width, whole, g);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) total[j] += g[j];
    }
  }
  if (!partial) return;
#pragma unroll
  for (int j = 0; j < 4; j++) sums[warp * 4 * WARP + lane * 4 + j] = total[j];
  __syncthreads();
  const int64_t own = (int64_t)blockIdx.y * 4 * WARP + threadIdx.x;
  if (threadIdx.x < 4 * WARP && own < width) {
    float sum = 0.f;
    for (int other = 0; other < THREADS / WARP; other++) sum += sums[other * 4 * WARP + threadIdx.x];
    partial[block_x() * width + own] = sum;
  }
}

extern "C" int pairquet_bias_act_forward(int type, int act, const void *x, const float *bias, void *y, int64_t rows,
                                         int64_t width, void *stream) {
  const int64_t n = rows * width;
  if (n == 0) return 0;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    const unsigned blocks = (unsigned)ceil_div(n, 4 * THREADS);
    if (act == GELU)
      LAUNCH((bias_act_forward_kernel<T, GELU>), blocks, THREADS, 0, stream, (const T *)x, bias, (T *)y, n, width,
             in_fours(n));
    else
      LAUNCH((bias_act_forward_kernel<T, PLAIN>), blocks, THREADS, 0, stream, (const T *)x, bias, (T *)y, n, width,
             in_fours(n));
    return launch_result();
  });
}

// Without `partial` (`[chunks(rows), width]`) the bias' gradient is left out. Without GELU, dx is dy and not written.
extern "C" int pairquet_bias_act_backward(int type, int act, const void *x, const float *bias, const void *dy, void *dx,
                                          float *partial, float *dbias, int64_t rows, int64_t width, void *stream) {
  if (rows == 0 || width == 0) return INVALID_VALUE;
  const dim3 grid((unsigned)chunk_count(rows), (unsigned)ceil_div(width, 4 * WARP));
  const size_t shared = THREADS / WARP * 4 * WARP * sizeof(float);
  const int result = with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    if (act == GELU)
      LAUNCH((bias_act_backward_kernel<T, GELU>), grid, THREADS, shared, stream, (const T *)x, bias, (const T *)dy,
             (T *)dx, partial, rows, chunk_rows(rows), width, in_fours(width));
    else
      LAUNCH((bias_act_backward_kernel<T, PLAIN>), grid, THREADS, shared, stream, (const T *)x, bias, (const T *)dy,
             (T *)dx, partial, rows, chunk_rows(rows), width, in_fours(width));
    return launch_result();
  });
  if (result != 0 || !partial) return result;
  return sum_chunks(partial, chunk_count(rows), width, 0, width, dbias, stream);
}
