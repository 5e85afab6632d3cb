// Mean squared error of predicted patches against f32 pixels, each patch normalised by its own mean and deviation.
#include "common.cuh"

static const int ROWS_PER_BLOCK = 4;
static const int THREADS = 256;

struct Patch {
  float mean, inverse_std;
};

// Mean of a patch and 1 / sqrt(unbiased variance + eps), by a warp; 0 and 1 if patches are not normalised.
__device__ __forceinline__ Patch patch_of(const float *target, int64_t width, int lane, bool normalised, float eps) {
  Patch patch = {0.f, 1.f};
  if (!normalised) return patch;
  float sum = 0.f;
  for (int64_t i = lane; i < width; i += WARP) sum += target[i];
  patch.mean = warp_sum(sum) / (float)width;
  float squares = 0.f;
  for (int64_t i = lane; i < width; i += WARP) {
    const float centred = target[i] - patch.mean;
    squares += centred * centred;
  }
  patch.inverse_std = 1.f / sqrtf(warp_sum(squares) / ((float)width - 1.f) + eps);
  return patch;
}

// The mean squared error of each prediction; `rows_of` names the row of the targets that it is of.
template <class T>
__global__ void patch_mse_forward_kernel(const T *pred, const float *target, const uint32_t *rows_of, float *errors,
                                         int64_t rows, int64_t width, bool normalised, float eps) {
  const int lane = threadIdx.x % WARP;
  const int64_t row = block_x() * ROWS_PER_BLOCK + threadIdx.x / WARP;
  if (row >= rows) return;
  target += (int64_t)rows_of[row] * width;
  const Patch patch = patch_of(target, width, lane, normalised, eps);
  float sum = 0.f;
  for (int64_t i = lane; i < width; i += WARP) {
    const float gap =
        to_float(pred[row * width + i]) - (target[i] - patch.mean) * patch.inverse_std;
    sum += gap * gap;
  }
  sum = warp_sum(sum);
  if (lane == 0) errors[row] = sum / (float)width;
}

// The mean of the predictions' errors, by one block in a fixed order.
__global__ void mean_of_errors_kernel(const float *errors, float *loss, int64_t rows) {
  SHARED(double, sums);
  double sum = 0.0;
  for (int64_t row = threadIdx.x; row < rows; row += THREADS) sum += (double)errors[row];
  sums[threadIdx.x] = sum;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *loss = (float)(sums[0] / (double)rows);
}

template <class T>
__global__ void patch_mse_backward_kernel(const T *pred, const float *target, const uint32_t *rows_of,
                                          const float *dloss, T *dpred, int64_t rows, int64_t width, bool normalised,
                                          float eps) {
  const int lane = threadIdx.x % WARP;
  const int64_t row = block_x() * ROWS_PER_BLOCK + threadIdx.x / WARP;
  if (row >= rows) return;
  target += (int64_t)rows_of[row] * width;
  const Patch patch = patch_of(target, width, lane, normalised, eps);
  const float factor = (float)(2.0 * (double)*dloss / ((double)rows * (double)width));
  for (int64_t i = lane; i < width; i += WARP) {
    const float gap =
        to_float(pred[row * width + i]) - (target[i] - patch.mean) * patch.inverse_std;
    dpred[row * width + i] = from_float<T>(gap * factor);
  }
}

// `rows_of` `[rows]`; `errors` `[rows]` is scratch.
extern "C" int pairquet_patch_mse_forward(int type, const void *pred, const float *target, const uint32_t *rows_of,
                                          float *errors, float *loss, int64_t rows, int64_t width, int normalised,
                                          float eps, void *stream) {
  if (rows == 0 || width == 0) return INVALID_VALUE;
  const int result = with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(patch_mse_forward_kernel<T>, (unsigned)ceil_div(rows, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0, stream,
           (const T *)pred, target, rows_of, errors, rows, width, normalised != 0, eps);
    return launch_result();
  });
  if (result != 0) return result;
  LAUNCH(mean_of_errors_kernel, 1, THREADS, THREADS * sizeof(double), stream, errors, loss, rows);
  return launch_result();
}

extern "C" int pairquet_patch_mse_backward(int type, const void *pred, const float *target, const uint32_t *rows_of,
                                           const float *dloss, void *dpred, int64_t rows, int64_t width, int normalised,
                                           float eps, void *stream) {
  if (rows == 0 || width == 0) return INVALID_VALUE;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(patch_mse_backward_kernel<T>, (unsigned)ceil_div(rows, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0, stream,
           (const T *)pred, target, rows_of, dloss, (T *)dpred, rows, width, normalised != 0, eps);
    return launch_result();
  });
}
