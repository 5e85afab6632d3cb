// Dropout, its draws being those of `trainer::nn::dropout::KeepMask` bit for bit.
#include "common.cuh"

static const int THREADS = 256;

__device__ __forceinline__ uint32_t rotated(uint32_t value, int by) { return (value << by) | (value >> (32 - by)); }

__device__ __forceinline__ void quarter(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d) {
  a += b, d = rotated(d ^ a, 16);
  c += d, b = rotated(b ^ c, 12);
  a += b, d = rotated(d ^ a, 8);
  c += d, b = rotated(b ^ c, 7);
}

// One ChaCha block (8 rounds, stream 0) makes 32 draws of 16 bits; draw i of a sample is the i-th of its stream. A
// thread makes one block and one word of the mask: bit j of word w is 1 where element 32 w + j survives.
__global__ void keep_bits_kernel(const uint64_t *samples, int64_t n_samples, int64_t words, int64_t per_sample,
                                 uint64_t seed, uint64_t epoch, uint64_t purpose, uint32_t threshold, uint32_t *bits) {
  const int64_t i = block_x() * THREADS + threadIdx.x;
  if (i >= n_samples * words) return;
  const uint64_t sample = samples[i / words], block = (uint64_t)(i % words);
  const uint32_t key[16] = {0x61707865u,      0x3320646eu,
                            0x79622d32u,      0x6b206574u,
                            (uint32_t)seed,   (uint32_t)(seed >> 32),
                            (uint32_t)epoch,  (uint32_t)(epoch >> 32),
                            (uint32_t)sample, (uint32_t)(sample >> 32),
                            (uint32_t)purpose, (uint32_t)(purpose >> 32),
                            (uint32_t)block,  (uint32_t)(block >> 32),
                            0u,               0u};
  uint32_t s[16];
#pragma unroll
  for (int j = 0; j < 16; j++) s[j] = key[j];
#pragma unroll
  for (int round = 0; round < 4; round++) {
    quarter(s[0], s[4], s[8], s[12]);
    quarter(s[1], s[5], s[9], s[13]);
    quarter(s[2], s[6], s[10], s[14]);
    quarter(s[3], s[7], s[11], s[15]);
    quarter(s[0], s[5], s[10], s[15]);
    quarter(s[1], s[6], s[11], s[12]);
    quarter(s[2], s[7], s[8], s[13]);
    quarter(s[3], s[4], s[9], s[14]);
  }
  uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 16; j++) {
    const uint32_t drawn = s[j] + key[j];
    word |= (uint32_t)((drawn & 0xffffu) >= threshold) << (2 * j);
    word |= (uint32_t)((drawn >> 16) >= threshold) << (2 * j + 1);
  }
  const int64_t rest = per_sample - (int64_t)block * 32;
  bits[i] = rest < 32 ? word & ((1u << rest) - 1u) : word;
}

// y = what is left of x, added to `to` if there is one. With `whole_samples` a sample's elements share its first bit.
template <class T>
__global__ void dropout_kernel(const T *x, const T *to, const uint32_t *bits, T *y, int64_t per_sample, int64_t words,
                               bool whole_samples, float scale, bool whole) {
  const int64_t sample = blockIdx.y, i = (block_x() * THREADS + threadIdx.x) * 4;
  if (i >= per_sample) return;
  uint32_t keep;
  if (whole_samples)
    keep = bits[sample] & 1u ? 0xfu : 0u;
  else
    keep = bits[sample * words + i / 32] >> (i % 32);
  float v[4], sum[4] = {0.f, 0.f, 0.f, 0.f};
  load4(x + sample * per_sample, i, per_sample, whole, v);
  if (to) load4(to + sample * per_sample, i, per_sample, whole, sum);
#pragma unroll
  for (int j = 0; j < 4; j++) v[j] = sum[j] + ((keep >> j) & 1u ? v[j] * scale : 0.f);
  store4(y + sample * per_sample, i, per_sample, whole, v);
}

// `bits` is `[n_samples, ceil(per_sample / 32)]`.
extern "C" int pairquet_keep_bits(const uint64_t *samples, int64_t n_samples, int64_t per_sample, uint64_t seed,
                                  uint64_t epoch, uint64_t purpose, uint32_t threshold, uint32_t *bits, void *stream) {
  const int64_t words = ceil_div(per_sample, 32);
  if (n_samples * words == 0) return 0;
  LAUNCH(keep_bits_kernel, (unsigned)ceil_div(n_samples * words, THREADS), THREADS, 0, stream, samples, n_samples,
         words, per_sample, seed, epoch, purpose, threshold, bits);
  return launch_result();
}

extern "C" int pairquet_dropout(int type, const void *x, const void *to, const uint32_t *bits, void *y,
                                int64_t n_samples, int64_t per_sample, int whole_samples, float scale, void *stream) {
  if (n_samples * per_sample == 0) return 0;
  if (n_samples > 65535) return INVALID_VALUE;
  return with_type(type, [&](auto zero) {
    typedef decltype(zero) T;
    const dim3 grid((unsigned)ceil_div(per_sample, 4 * THREADS), (unsigned)n_samples);
    LAUNCH(dropout_kernel<T>, grid, THREADS, 0, stream, (const T *)x, (const T *)to, bits, (T *)y, per_sample,
           ceil_div(per_sample, 32), whole_samples != 0, scale, in_fours(per_sample));
    return launch_result();
  });
}
