// Second stages of sums over rows.
#include "common.cuh"

// A block sums 32 columns: its 32 rows of threads take every 32nd chunk, then the first row adds up the threads' sums in
// their order.
static const int LINES = 32;

template <class T>
__global__ void sum_rows_kernel(const T *partial, int64_t chunks, int64_t stride, int64_t width, float *out) {
  SHARED(float, sums);
  const int lane = threadIdx.x % WARP, line = threadIdx.x / WARP;
  const int64_t column = block_x() * WARP + lane;
  float sum = 0.f;
  if (column < width)
    for (int64_t chunk = line; chunk < chunks; chunk += LINES) sum += to_float(partial[chunk * stride + column]);
  sums[line * WARP + lane] = sum;
  __syncthreads();
  if (line == 0 && column < width) {
    float total = 0.f;
    for (int i = 0; i < LINES; i++) total += sums[i * WARP + lane];
    out[column] = total;
  }
}

int sum_chunks(const float *partial, int64_t chunks, int64_t stride, int64_t first, int64_t width, float *out,
               void *stream) {
  if (width == 0) return 0;
  LAUNCH(sum_rows_kernel<float>, (unsigned)ceil_div(width, WARP), LINES * WARP, LINES * WARP * sizeof(float), stream,
         partial + first, chunks, stride, width, out);
  return launch_result();
}

// `out[c] = sum over rows of x[row][c]`, rows `stride` apart; for few rows.
extern "C" int pairquet_sum_rows(int type, const void *x, int64_t rows, int64_t stride, int64_t width, float *out,
                                 void *stream) {
  if (width == 0) return 0;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    LAUNCH(sum_rows_kernel<T>, (unsigned)ceil_div(width, WARP), LINES * WARP, LINES * WARP * sizeof(float), stream,
           (const T *)x, rows, stride, width, out);
    return launch_result();
  });
}

// How many chunks a sum over `rows` rows has: the first dimension of the scratch that the callers allocate.
extern "C" int64_t pairquet_chunks(int64_t rows) { return chunk_count(rows); }
