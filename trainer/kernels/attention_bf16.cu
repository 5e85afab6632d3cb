// Attention in bf16 on the tensor cores (mma.sync m16n8k16, from sm_80 on): a warp has 16 rows in registers and goes over
// tiles of the other side in shared memory. Scores and weights never leave the registers.
//
// Backward needs every weight both by its query and by its key. Either side's sums belong to one warp, so there are two
// kernels, each of which makes the scores again: seven products in place of the five that atomic additions would allow,
// for sums in a fixed order.
//
// Source: Dao, "FlashAttention-2", for the softmax in tiles and for keeping log-sum-exp and delta.
//
// Fragments by the PTX manual, with g = lane / 4 and t = lane % 4: of the left operand a lane has (rows g and g + 8)
// x (columns 2t, 2t + 1, and these + 8), of the right one rows 2t, 2t + 1 and these + 8 of column g, of the result rows
// g and g + 8, columns 2t and 2t + 1.
#include "attention.cuh"

static const int WARPS = 4, ROWS = WARPS * 16, THREADS = WARPS * WARP;

#ifndef PAIRQUET_EMULATION
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void load_transposed(uint32_t (&out)[4], const bf16 *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"((uint32_t)__cvta_generic_to_shared(row))
               : "memory");
}
#else
using emulation::load_transposed;
using emulation::mma;
#endif

struct alignas(4) Pair {
  bf16 at[2];
};
struct alignas(16) Eight {
  uint32_t at[4];
};

__device__ __forceinline__ uint32_t packed(float low, float high) {
  Pair pair;
  pair.at[0] = from_float<bf16>(low);
  pair.at[1] = from_float<bf16>(high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// Elements `column` and `column + 1` of a row of `d`, zero past its end.
__device__ __forceinline__ uint32_t load_pair(const bf16 *row, int column, int d, bool aligned) {
  if (aligned && column + 1 < d) return *(const uint32_t *)(row + column);
  return packed(column < d ? to_float(row[column]) : 0.f, column + 1 < d ? to_float(row[column + 1]) : 0.f);
}

// The warp's 16 rows from `first` on as left operands, [D / 16] steps.
template <int D>
__device__ __forceinline__ void load_rows(uint32_t (&rows)[D / 16][4], const bf16 *from, int first, int n,
                                          int64_t stride, int d) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const bool aligned = d % 2 == 0 && stride % 2 == 0;
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int part = 0; part < 4; part++) {
      const int row = first + g + part % 2 * 8, column = k * 16 + part / 2 * 8 + 2 * t;
      rows[k][part] = row < n ? load_pair(from + row * stride, column, d, aligned) : 0u;
    }
}

// Rows of a tile are 16 bytes longer than they need be, so that eight of them lie in different banks.
template <int D>
struct Tile {
  static const int STRIDE = D + 8;
};

// Rows `first` to `first + COLUMNS` of `from`, zero past the last one and past the head's width.
template <int D, int COLUMNS>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *from, int first, int n, int64_t stride, int d) {
  const bool aligned = d % 8 == 0 && stride % 8 == 0;
  for (int i = threadIdx.x; i < COLUMNS * D / 8; i += THREADS) {
    const int row = i / (D / 8), column = i % (D / 8) * 8;
    const bf16 *source = from + (first + row) * stride + column;
    Eight eight = {{0u, 0u, 0u, 0u}};
    if (first + row < n) {
      if (aligned && column < d)
        eight = *(const Eight *)source;
      else
        for (int j = 0; j < 4; j++) eight.at[j] = load_pair(source, 2 * j, d - column, false);
    }
    *(Eight *)(tile + row * Tile<D>::STRIDE + column) = eight;
  }
}

// result [16, COLUMNS] = rows [16, D] tile^T.
template <int D, int COLUMNS>
__device__ __forceinline__ void times_transposed(float (&result)[COLUMNS / 8][4], const uint32_t (&rows)[D / 16][4],
                                                 const bf16 *tile) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
    for (int i = 0; i < 4; i++) result[j][i] = 0.f;
    const bf16 *column = tile + (j * 8 + g) * Tile<D>::STRIDE + 2 * t;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
      mma(result[j], rows[k], *(const uint32_t *)(column + k * 16), *(const uint32_t *)(column + k * 16 + 8));
  }
}

// result [16, D] += left [16, COLUMNS] tile, the left operand being a result of the function above.
template <int D, int COLUMNS>
__device__ __forceinline__ void add_times(float (&result)[D / 8][4], const float (&left)[COLUMNS / 8][4],
                                          const bf16 *tile) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int k = 0; k < COLUMNS / 16; k++) {
    const uint32_t a[4] = {packed(left[2 * k][0], left[2 * k][1]), packed(left[2 * k][2], left[2 * k][3]),
                           packed(left[2 * k + 1][0], left[2 * k + 1][1]),
                           packed(left[2 * k + 1][2], left[2 * k + 1][3])};
    const bf16 *row = tile + (k * 16 + lane % 16) * Tile<D>::STRIDE + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
      uint32_t b[4];
      load_transposed(b, row + j * 16);
      mma(result[2 * j], a, b[0], b[1]);
      mma(result[2 * j + 1], a, b[2], b[3]);
    }
  }
}

// Over the four lanes that have a row of a result.
__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// The warp's result, each row times its factor.
template <int D>
__device__ __forceinline__ void store_rows(const float (&result)[D / 8][4], const float (&factor)[2], bf16 *to,
                                           int first, int n, int64_t stride, int d) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const bool aligned = d % 2 == 0 && stride % 2 == 0;
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + g + half * 8, column = j * 8 + 2 * t;
      if (row >= n) continue;
      const float low = result[j][half * 2] * factor[half], high = result[j][half * 2 + 1] * factor[half];
      bf16 *at = to + row * stride + column;
      if (aligned && column + 1 < d) {
        *(uint32_t *)at = packed(low, high);
      } else {
        if (column < d) at[0] = from_float<bf16>(low);
        if (column + 1 < d) at[1] = from_float<bf16>(high);
      }
    }
}

template <int D, int COLUMNS>
__global__ void __launch_bounds__(THREADS) forward_kernel(Attention a) {
  SHARED(bf16, shared);
  bf16 *keys = shared, *values = shared + COLUMNS * Tile<D>::STRIDE;
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * ROWS + threadIdx.x / WARP * 16;
  const Head of = head_of(a, blockIdx.y, blockIdx.z);
  uint32_t q[D / 16][4];
  load_rows<D>(q, (const bf16 *)a.q + of.q, first_row, a.n, a.q_row, a.d);
  float y[D / 8][4];
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) y[j][i] = 0.f;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  const float scale = a.scale * LOG2_E;

  for (int first = 0; first < a.m; first += COLUMNS) {
    __syncthreads();
    load_tile<D, COLUMNS>(keys, (const bf16 *)a.k + of.kv, first, a.m, a.kv_row, a.d);
    load_tile<D, COLUMNS>(values, (const bf16 *)a.v + of.kv, first, a.m, a.kv_row, a.d);
    __syncthreads();
    float p[COLUMNS / 8][4];
    times_transposed<D, COLUMNS>(p, q, keys);
    float now[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        p[j][i] = first + j * 8 + 2 * t + i % 2 < a.m ? p[j][i] * scale : -INFINITY;
        now[i / 2] = fmaxf(now[i / 2], p[j][i]);
      }
    float shrink[2], part[2] = {0.f, 0.f};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      now[half] = row_max(now[half]);  // finite: every tile has a key
      shrink[half] = exp2f(largest[half] - now[half]);
      largest[half] = now[half];
    }
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        p[j][i] = exp2f(p[j][i] - now[i / 2]);
        part[i / 2] += p[j][i];
      }
#pragma unroll
    for (int half = 0; half < 2; half++) sum[half] = sum[half] * shrink[half] + row_sum(part[half]);
    if (of.keep) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = first_row + g + i / 2 * 8, column = first + j * 8 + 2 * t + i % 2;
          if (row < a.n && column < a.m) p[j][i] *= factor_of(a, of, row, column);
        }
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) y[j][i] *= shrink[i / 2];
    add_times<D, COLUMNS>(y, p, values);
  }
  const float inverse[2] = {1.f / sum[0], 1.f / sum[1]};
  store_rows<D>(y, inverse, (bf16 *)a.y + of.y, first_row, a.n, a.y_row, a.d);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first_row + g + half * 8;
    if (t == 0 && row < a.n) a.log_sum[of.statistics + row] = largest[half] + log2f(sum[half]);
  }
}

// Rows are queries, tiles are keys and values.
template <int D, int COLUMNS>
__global__ void __launch_bounds__(THREADS) backward_queries_kernel(Attention a) {
  SHARED(bf16, shared);
  bf16 *keys = shared, *values = shared + COLUMNS * Tile<D>::STRIDE;
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * ROWS + threadIdx.x / WARP * 16;
  const Head of = head_of(a, blockIdx.y, blockIdx.z);
  uint32_t q[D / 16][4], dy[D / 16][4];
  load_rows<D>(q, (const bf16 *)a.y + of.y, first_row, a.n, a.y_row, a.d);
  load_rows<D>(dy, (const bf16 *)a.dy + of.y, first_row, a.n, a.y_row, a.d);
  float delta[2] = {0.f, 0.f}, log_sum[2];
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int part = 0; part < 4; part++) {
      Pair y, g2;
      memcpy(&y, &q[k][part], 4);
      memcpy(&g2, &dy[k][part], 4);
      delta[part % 2] += to_float(y.at[0]) * to_float(g2.at[0]) + to_float(y.at[1]) * to_float(g2.at[1]);
    }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first_row + g + half * 8;
    delta[half] = row_sum(delta[half]);
    log_sum[half] = row < a.n ? a.log_sum[of.statistics + row] : 0.f;
    if (t == 0 && row < a.n) a.delta[of.statistics + row] = delta[half];
  }
  load_rows<D>(q, (const bf16 *)a.q + of.q, first_row, a.n, a.q_row, a.d);
  float dq[D / 8][4];
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) dq[j][i] = 0.f;
  const float scale = a.scale * LOG2_E;

  for (int first = 0; first < a.m; first += COLUMNS) {
    __syncthreads();
    load_tile<D, COLUMNS>(keys, (const bf16 *)a.k + of.kv, first, a.m, a.kv_row, a.d);
    load_tile<D, COLUMNS>(values, (const bf16 *)a.v + of.kv, first, a.m, a.kv_row, a.d);
    __syncthreads();
    float p[COLUMNS / 8][4], dp[COLUMNS / 8][4];
    times_transposed<D, COLUMNS>(p, q, keys);
    times_transposed<D, COLUMNS>(dp, dy, values);
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = first_row + g + i / 2 * 8, column = first + j * 8 + 2 * t + i % 2;
        const bool there = row < a.n && column < a.m;
        const float weight = there ? exp2f(p[j][i] * scale - log_sum[i / 2]) : 0.f;
        const float factor = there ? factor_of(a, of, row, column) : 0.f;
        dp[j][i] = weight * (dp[j][i] * factor - delta[i / 2]) * a.scale;
      }
    add_times<D, COLUMNS>(dq, dp, keys);
  }
  const float one[2] = {1.f, 1.f};
  store_rows<D>(dq, one, (bf16 *)a.dq + of.q, first_row, a.n, a.q_row, a.d);
}

// Rows are keys and values, tiles are queries and the result's gradients.
template <int D, int COLUMNS>
__global__ void __launch_bounds__(THREADS) backward_keys_kernel(Attention a) {
  SHARED(bf16, shared);
  bf16 *queries = shared, *gradients = shared + COLUMNS * Tile<D>::STRIDE;
  float *log_sum = (float *)(shared + 2 * COLUMNS * Tile<D>::STRIDE), *delta = log_sum + COLUMNS;
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * ROWS + threadIdx.x / WARP * 16;
  const Head of = head_of(a, blockIdx.y, blockIdx.z);
  uint32_t k[D / 16][4], v[D / 16][4];
  load_rows<D>(k, (const bf16 *)a.k + of.kv, first_row, a.m, a.kv_row, a.d);
  load_rows<D>(v, (const bf16 *)a.v + of.kv, first_row, a.m, a.kv_row, a.d);
  float dk[D / 8][4], dv[D / 8][4];
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) dk[j][i] = dv[j][i] = 0.f;
  const float scale = a.scale * LOG2_E;

  for (int first = 0; first < a.n; first += COLUMNS) {
    __syncthreads();
    load_tile<D, COLUMNS>(queries, (const bf16 *)a.q + of.q, first, a.n, a.q_row, a.d);
    load_tile<D, COLUMNS>(gradients, (const bf16 *)a.dy + of.y, first, a.n, a.y_row, a.d);
    for (int i = threadIdx.x; i < COLUMNS && first + i < a.n; i += THREADS) {
      log_sum[i] = a.log_sum[of.statistics + first + i];
      delta[i] = a.delta[of.statistics + first + i];
    }
    __syncthreads();
    float p[COLUMNS / 8][4], dp[COLUMNS / 8][4];
    times_transposed<D, COLUMNS>(p, k, queries);
    times_transposed<D, COLUMNS>(dp, v, gradients);
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int key = first_row + g + i / 2 * 8, column = j * 8 + 2 * t + i % 2;
        const bool there = key < a.m && first + column < a.n;
        const float weight = there ? exp2f(p[j][i] * scale - log_sum[column]) : 0.f;
        const float factor = there ? factor_of(a, of, first + column, key) : 0.f;
        dp[j][i] = there ? weight * (dp[j][i] * factor - delta[column]) * a.scale : 0.f;
        p[j][i] = weight * factor;
      }
    add_times<D, COLUMNS>(dv, p, gradients);
    add_times<D, COLUMNS>(dk, dp, queries);
  }
  const float one[2] = {1.f, 1.f};
  store_rows<D>(dk, one, (bf16 *)a.dk + of.kv, first_row, a.m, a.kv_row, a.d);
  store_rows<D>(dv, one, (bf16 *)a.dv + of.kv, first_row, a.m, a.kv_row, a.d);
}

static dim3 grid_of(const Attention &a, int rows) {
  return dim3((unsigned)ceil_div(rows, ROWS), (unsigned)a.heads, (unsigned)a.batch);
}

template <int D, int COLUMNS>
static size_t shared_bytes() {
  return 2 * COLUMNS * Tile<D>::STRIDE * sizeof(bf16) + 2 * COLUMNS * sizeof(float);
}

template <int D, int COLUMNS>
static int forward(const Attention &a, void *stream) {
  LAUNCH((forward_kernel<D, COLUMNS>), grid_of(a, a.n), THREADS, (shared_bytes<D, COLUMNS>()), stream, a);
  return launch_result();
}

template <int D, int COLUMNS>
static int backward(const Attention &a, void *stream) {
  const size_t shared = shared_bytes<D, COLUMNS>();
  LAUNCH((backward_queries_kernel<D, COLUMNS>), grid_of(a, a.n), THREADS, shared, stream, a);  // makes delta
  LAUNCH((backward_keys_kernel<D, COLUMNS>), grid_of(a, a.m), THREADS, shared, stream, a);
  return launch_result();
}

// Tiles are the larger the fewer registers a row of the head takes.
int attention_forward_bf16(const Attention &a, void *stream) {
  return a.d <= 32   ? forward<32, 64>(a, stream)
         : a.d <= 64 ? forward<64, 64>(a, stream)
                     : forward<128, 32>(a, stream);
}

int attention_backward_bf16(const Attention &a, void *stream) {
  return a.d <= 32   ? backward<32, 64>(a, stream)
         : a.d <= 64 ? backward<64, 32>(a, stream)
                     : backward<128, 16>(a, stream);
}
