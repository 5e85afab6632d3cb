// Pixels to patches, and encoded tokens to the decoder's input.
//
// Letters: B batch, N patches, K kept patches, D width.
#include "common.cuh"

static const int THREADS = 256;

// Bytes `[pictures, plane, 3]` to normalised planes `[pictures, 3, plane]`.
template <class T>
__global__ void normalise_kernel(const uint8_t *bytes, T *planes, int64_t plane, const float *mean, const float *std) {
  const int64_t pixel = block_x() * THREADS + threadIdx.x, picture = blockIdx.y;
  if (pixel >= plane) return;
#pragma unroll
  for (int channel = 0; channel < 3; channel++) {
    const float value = (float)bytes[(picture * plane + pixel) * 3 + channel] / 255.f;
    planes[(picture * 3 + channel) * plane + pixel] = from_float<T>((value - mean[channel]) / std[channel]);
  }
}

// Planes `[B, 3, rows * side, columns * side]`, samples `sample_stride` apart, to patches `[B, N, side, side, 3]`. One
// block a patch.
template <class T>
__global__ void patches_kernel(const T *planes, int64_t sample_stride, T *patches, int rows, int columns, int side) {
  const int64_t sample = blockIdx.y;
  const int patch = blockIdx.x;
  const int top = patch / columns * side, left = patch % columns * side;
  const int width = columns * side;
  const int64_t plane = (int64_t)rows * side * width;
  const int values = 3 * side * side;
  for (int i = threadIdx.x; i < values; i += THREADS) {
    const int channel = i % 3, x = i / 3 % side, y = i / 3 / side;
    patches[(sample * rows * columns + patch) * values + i] =
        planes[sample * sample_stride + channel * plane + (int64_t)(top + y) * width + left + x];
  }
}

// Row 0 of a sample is its first token, row 1 + n the kept token whose place `ids_restore` `[B, N]` gives, or the mask
// token where that is K or more; each plus its row of `positions` `[1 + N, D]`, if there are any.
template <class T>
__global__ void restore_forward_kernel(const T *tokens, const float *mask_token, const float *positions,
                                       const uint32_t *ids_restore, T *out, int n, int kept, int64_t width, bool whole) {
  const int64_t sample = blockIdx.y, row = blockIdx.x;
  const int64_t place = row == 0 ? 0 : 1 + (int64_t)ids_restore[sample * n + row - 1];
  const bool is_kept = place <= kept;
  for (int64_t i = threadIdx.x * 4; i < width; i += 4 * blockDim.x) {
    float v[4];
    if (is_kept)
      load4(tokens + (sample * (1 + kept) + place) * width, i, width, whole, v);
    else
      load4(mask_token, i, width, whole, v);
    if (positions) {
      float p[4];
      load4(positions + row * width, i, width, whole, p);
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] += p[j];
    }
    store4(out + (sample * (1 + n) + row) * width, i, width, whole, v);
  }
}

// The kept tokens' gradients are copied from where they went. The mask token's is summed over a chunk of all rows
// `[B (1 + N)]`; a block takes 128 columns of it, four a lane, and its eight warps every eighth row.
template <class T>
__global__ void restore_backward_kernel(const T *dout, const uint32_t *ids_restore, T *dtokens, float *partial,
                                        int64_t rows, int64_t rows_per_chunk, int n, int kept, int64_t width,
                                        bool whole) {
  SHARED(float, sums);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int64_t column = (int64_t)blockIdx.y * 4 * WARP + lane * 4;
  const int64_t first = block_x() * rows_per_chunk;
  const int64_t last = first + rows_per_chunk < rows ? first + rows_per_chunk : rows;
  float total[4] = {0.f, 0.f, 0.f, 0.f};
  if (column < width)
    for (int64_t at = first + warp; at < last; at += THREADS / WARP) {
      const int64_t sample = at / (1 + n), row = at % (1 + n);
      const int64_t place = row == 0 ? 0 : 1 + (int64_t)ids_restore[sample * n + row - 1];
      float g[4];
      load4(dout + at * width, column, width, whole, g);
      if (place <= kept) {
        store4(dtokens + (sample * (1 + kept) + place) * width, column, width, whole, g);
      } else {
#pragma unroll
        for (int j = 0; j < 4; j++) total[j] += g[j];
      }
    }
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

// Row 0 of a sample is the class token, row 1 + k its token k, each plus its row of `positions`, which are one table for
// all samples (`positions_stride` 0) or one for each.
template <class T>
__global__ void class_in_front_kernel(const T *tokens, const float *class_token, const float *positions,
                                      int64_t positions_stride, T *out, int kept, int64_t width, bool whole) {
  const int64_t sample = blockIdx.y, row = blockIdx.x;
  for (int64_t i = threadIdx.x * 4; i < width; i += 4 * blockDim.x) {
    float v[4], p[4];
    if (row == 0)
      load4(class_token, i, width, whole, v);
    else
      load4(tokens + (sample * kept + row - 1) * width, i, width, whole, v);
    load4(positions + sample * positions_stride + row * width, i, width, whole, p);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] += p[j];
    store4(out + (sample * (1 + kept) + row) * width, i, width, whole, v);
  }
}

// y[to_rows ? to_rows[r] : r] = x[from_rows ? from_rows[r] : r].
template <class T>
__global__ void copy_rows_kernel(const T *x, const uint32_t *from_rows, const uint32_t *to_rows, T *y, int64_t width,
                                 bool whole) {
  const int64_t row = block_x();
  const int64_t from = from_rows ? from_rows[row] : row, to = to_rows ? to_rows[row] : row;
  for (int64_t i = threadIdx.x * 4; i < width; i += 4 * blockDim.x) {
    float v[4];
    load4(x + from * width, i, width, whole, v);
    store4(y + to * width, i, width, whole, v);
  }
}

extern "C" int pairquet_class_in_front(int type, const void *tokens, const float *class_token, const float *positions,
                                       int64_t positions_stride, void *out, int64_t batch, int64_t kept, int64_t width,
                                       void *stream) {
  if (batch * width == 0) return 0;
  if (batch > 65535) return INVALID_VALUE;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(class_in_front_kernel<T>, dim3((unsigned)(1 + kept), (unsigned)batch), 2 * WARP, 0, stream,
           (const T *)tokens, class_token, positions, positions_stride, (T *)out, (int)kept, width, in_fours(width));
    return launch_result();
  });
}

// Either of `from_rows` and `to_rows` `[rows]` may be missing; the rows of `to_rows` differ from each other.
extern "C" int pairquet_copy_rows(int type, const void *x, const uint32_t *from_rows, const uint32_t *to_rows, void *y,
                                  int64_t rows, int64_t width, void *stream) {
  if (rows * width == 0) return 0;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(copy_rows_kernel<T>, (unsigned)rows, 2 * WARP, 0, stream, (const T *)x, from_rows, to_rows, (T *)y, width,
           in_fours(width));
    return launch_result();
  });
}

extern "C" int pairquet_normalise(int type, const uint8_t *bytes, void *planes, int64_t pictures, int64_t plane,
                                  const float *mean, const float *std, void *stream) {
  if (pictures * plane == 0) return 0;
  if (pictures > 65535) return INVALID_VALUE;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    const dim3 grid((unsigned)ceil_div(plane, THREADS), (unsigned)pictures);
    LAUNCH(normalise_kernel<T>, grid, THREADS, 0, stream, bytes, (T *)planes, plane, mean, std);
    return launch_result();
  });
}

extern "C" int pairquet_patches(int type, const void *planes, int64_t sample_stride, void *patches, int64_t batch,
                                int64_t rows, int64_t columns, int64_t side, void *stream) {
  if (batch * rows * columns == 0) return 0;
  if (batch > 65535 || side < 1) return INVALID_VALUE;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(patches_kernel<T>, dim3((unsigned)(rows * columns), (unsigned)batch), THREADS, 0, stream,
           (const T *)planes, sample_stride, (T *)patches, (int)rows, (int)columns, (int)side);
    return launch_result();
  });
}

extern "C" int pairquet_restore_forward(int type, const void *tokens, const float *mask_token, const float *positions,
                                        const uint32_t *ids_restore, void *out, int64_t batch, int64_t n, int64_t kept,
                                        int64_t width, void *stream) {
  if (batch * width == 0) return 0;
  if (batch > 65535) return INVALID_VALUE;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(restore_forward_kernel<T>, dim3((unsigned)(1 + n), (unsigned)batch), 2 * WARP, 0, stream, (const T *)tokens,
           mask_token, positions, ids_restore, (T *)out, (int)n, (int)kept, width, in_fours(width));
    return launch_result();
  });
}

// `partial` is `[chunks(B (1 + N)), D]`.
extern "C" int pairquet_restore_backward(int type, const void *dout, const uint32_t *ids_restore, void *dtokens,
                                         float *partial, float *dmask_token, int64_t batch, int64_t n, int64_t kept,
                                         int64_t width, void *stream) {
  const int64_t rows = batch * (1 + n);
  if (rows * width == 0) return INVALID_VALUE;
  const dim3 grid((unsigned)chunk_count(rows), (unsigned)ceil_div(width, 4 * WARP));
  const int result = with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(restore_backward_kernel<T>, grid, THREADS, THREADS * 4 * sizeof(float), stream, (const T *)dout,
           ids_restore, (T *)dtokens, partial, rows, chunk_rows(rows), (int)n, (int)kept, width, in_fours(width));
    return launch_result();
  });
  return result != 0 ? result : sum_chunks(partial, chunk_count(rows), width, 0, width, dmask_token, stream);
}
