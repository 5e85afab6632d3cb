// What one call of an attention kernel works on.
//
// Letters: B batch, H heads, N queries, M keys, d elements of a head.
#pragma once
#include "common.cuh"

// Rows of all heads lie side by side: element (b, i, h, e) of the queries is `q[(b N + i) q_row + h d + e]`, keys and
// values alike with M and `kv_row`, result and its gradient with N and `y_row`. The gradients of queries, keys and
// values are laid out as these are, so that packed projections get packed gradients.
struct Attention {
  const void *q, *k, *v;
  void *y;
  const void *dy;
  void *dq, *dk, *dv;
  // `[B, H, N]` each: log2 of the sum of the row's exponentials, and the row's sum of dy * y.
  float *log_sum, *delta;
  // Dropout of the weights `[B, H, N, M]`: one bit an element, `words` 32-bit words a sample; or none.
  const uint32_t *keep;
  int64_t words;
  int64_t q_row, kv_row, y_row;
  int32_t batch, heads, n, m, d;
  // Of the scores (1 / sqrt(d)), and of the weights that survive dropout.
  float scale, keep_scale;
};

// One sample's head.
struct Head {
  int64_t q, kv, y;  // offsets of its first elements
  int64_t statistics;
  int64_t mask;  // index of its first weight in its sample's mask
  const uint32_t *keep;
};

__device__ __forceinline__ Head head_of(const Attention &a, int head, int sample) {
  Head of;
  of.q = (int64_t)sample * a.n * a.q_row + (int64_t)head * a.d;
  of.kv = (int64_t)sample * a.m * a.kv_row + (int64_t)head * a.d;
  of.y = (int64_t)sample * a.n * a.y_row + (int64_t)head * a.d;
  of.statistics = ((int64_t)sample * a.heads + head) * a.n;
  of.mask = (int64_t)head * a.n * a.m;
  of.keep = a.keep ? a.keep + sample * a.words : nullptr;
  return of;
}

// What dropout multiplies weight (row, column) with.
__device__ __forceinline__ float factor_of(const Attention &a, const Head &of, int row, int column) {
  if (!of.keep) return 1.f;
  const int64_t element = of.mask + (int64_t)row * a.m + column;
  return (of.keep[element / 32] >> (element % 32)) & 1u ? a.keep_scale : 0.f;
}

static const float LOG2_E = 1.44269504f;

int attention_forward_f32(const Attention &a, void *stream);
int attention_backward_f32(const Attention &a, void *stream);
int attention_forward_bf16(const Attention &a, void *stream);
int attention_backward_bf16(const Attention &a, void *stream);
