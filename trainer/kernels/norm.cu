// Layer normalisation, with the residual sum in front of it. One warp a row.
#include "common.cuh"

static const int ROWS_PER_BLOCK = 4;

// sum = x + residual (if there is one; rounded to T as it is kept), y = (sum - mean) * inverse_std * weight + bias.
template <class T>
__global__ void layer_norm_forward_kernel(const T *x, const T *residual, const float *weight, const float *bias, T *sum,
                                          T *y, float *mean_out, float *inverse_std_out, int64_t rows, int64_t width,
                                          float eps, bool whole) {
  const int lane = threadIdx.x % WARP;
  const int64_t row = block_x() * ROWS_PER_BLOCK + threadIdx.x / WARP;
  if (row >= rows) return;
  const T *from = x + row * width;
  float four[4];
  float total = 0.f;
  if (residual) {
    for (int64_t i = lane * 4; i < width; i += 4 * WARP) {
      float other[4];
      load4(x + row * width, i, width, whole, four);
      load4(residual + row * width, i, width, whole, other);
      for (int j = 0; j < 4; j++) {
        four[j] = to_float(from_float<T>(four[j] + other[j]));
        total += four[j];
      }
      store4(sum + row * width, i, width, whole, four);
    }
    from = sum + row * width;  // each lane reads back only what it wrote itself
  } else {
    for (int64_t i = lane * 4; i < width; i += 4 * WARP) {
      load4(from, i, width, whole, four);
      total += four[0] + four[1] + four[2] + four[3];
    }
  }
  const float mean = warp_sum(total) / (float)width;
  float squares = 0.f;
  for (int64_t i = lane * 4; i < width; i += 4 * WARP) {
    load4(from, i, width, whole, four);
    for (int j = 0; j < 4; j++)
      if (i + j < width) squares += (four[j] - mean) * (four[j] - mean);
  }
  const float inverse_std = 1.f / sqrtf(warp_sum(squares) / (float)width + eps);
  for (int64_t i = lane * 4; i < width; i += 4 * WARP) {
    float w[4], b[4];
    load4(from, i, width, whole, four);
    load4(weight, i, width, whole, w);
    load4(bias, i, width, whole, b);
    for (int j = 0; j < 4; j++) four[j] = (four[j] - mean) * inverse_std * w[j] + b[j];
    store4(y + row * width, i, width, whole, four);
  }
  if (lane == 0) {
    mean_out[row] = mean;
    inverse_std_out[row] = inverse_std;
  }
}

// A block takes a chunk of rows, its warps every n-th row of it. Each warp sums its gradients of weight and bias in its
// own part of shared memory; the block adds the parts up in order: `partial[chunk]` is the weight's sums, then the
// bias'.
template <class T>
__global__ void layer_norm_backward_kernel(const T *x, const T *dy, const float *weight, const float *mean_in,
                                           const float *inverse_std_in, T *dx, float *partial, int64_t rows,
                                           int64_t rows_per_chunk, int64_t width, bool whole) {
  SHARED(float, sums);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  float *dweight = sums + warp * 2 * width, *dbias = dweight + width;
  for (int64_t i = lane * 4; i < width; i += 4 * WARP)
    for (int j = 0; j < 4; j++)
      if (i + j < width) dweight[i + j] = dbias[i + j] = 0.f;

  const int64_t first = block_x() * rows_per_chunk;
  const int64_t last = first + rows_per_chunk < rows ? first + rows_per_chunk : rows;
  for (int64_t row = first + warp; row < last; row += warps) {
    const float mean = mean_in[row], inverse_std = inverse_std_in[row];
    float g[4], v[4], w[4];
    float sum_g = 0.f, sum_gx = 0.f;
    for (int64_t i = lane * 4; i < width; i += 4 * WARP) {
      load4(x + row * width, i, width, whole, v);
      load4(dy + row * width, i, width, whole, g);
      load4(weight, i, width, whole, w);
      for (int j = 0; j < 4; j++) {
        const float normed = (v[j] - mean) * inverse_std;
        sum_g += g[j] * w[j];
        sum_gx += g[j] * w[j] * normed;
        if (i + j < width) {
          dweight[i + j] += g[j] * normed;
          dbias[i + j] += g[j];
        }
      }
    }
    const float mean_g = warp_sum(sum_g) / (float)width, mean_gx = warp_sum(sum_gx) / (float)width;
    for (int64_t i = lane * 4; i < width; i += 4 * WARP) {
      load4(x + row * width, i, width, whole, v);
      load4(dy + row * width, i, width, whole, g);
      load4(weight, i, width, whole, w);
      for (int j = 0; j < 4; j++) {
        const float normed = (v[j] - mean) * inverse_std;
        v[j] = (g[j] * w[j] - mean_g - normed * mean_gx) * inverse_std;
      }
      store4(dx + row * width, i, width, whole, v);
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < 2 * width; i += blockDim.x) {
    float total = 0.f;
    for (int other = 0; other < warps; other++) total += sums[other * 2 * width + i];
    partial[block_x() * 2 * width + i] = total;
  }
}

extern "C" int pairquet_layer_norm_forward(int type, const void *x, const void *residual, const float *weight,
                                           const float *bias, void *sum, void *y, float *mean, float *inverse_std,
                                           int64_t rows, int64_t width, float eps, void *stream) {
  if (rows == 0 || width == 0) return 0;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(layer_norm_forward_kernel<T>, (unsigned)ceil_div(rows, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0, stream,
           (const T *)x, (const T *)residual, weight, bias, (T *)sum, (T *)y, mean, inverse_std, rows, width, eps,
           in_fours(width));
    return launch_result();
  });
}

// `partial` is `[chunks(rows), 2, width]`.
extern "C" int pairquet_layer_norm_backward(int type, const void *x, const void *dy, const float *weight,
                                            const float *mean, const float *inverse_std, void *dx, float *partial,
                                            float *dweight, float *dbias, int64_t rows, int64_t width, void *stream) {
  if (rows == 0 || width == 0) return INVALID_VALUE;
  const int64_t part = 2 * width * (int64_t)sizeof(float);
  const int warps = part * 4 <= 48 * 1024 ? 4 : part * 2 <= 96 * 1024 ? 2 : 1;
  const int64_t chunks = chunk_count(rows);
  const int result = with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    const int allowed = allow_shared(layer_norm_backward_kernel<T>, (size_t)(part * warps));
    if (allowed != 0) return allowed;
    LAUNCH(layer_norm_backward_kernel<T>, (unsigned)chunks, warps * WARP, (size_t)(part * warps), stream, (const T *)x,
           (const T *)dy, weight, mean, inverse_std, (T *)dx, partial, rows, chunk_rows(rows), width,
           in_fours(width));
    return launch_result();
  });
  if (result != 0) return result;
  const int first = sum_chunks(partial, chunks, 2 * width, 0, width, dweight, stream);
  return first != 0 ? first : sum_chunks(partial, chunks, 2 * width, width, width, dbias, stream);
}
