// What all kernels share: element types, vectors of four, sums over a warp, and how a kernel is launched.
//
// The same sources compile as CUDA and, with emulation.h included first, as plain C++ that runs a block's threads as
// fibers; the tests of `trainer::ops` run them that way. What differs between the two is in this file and that one.
//
// Rules: sums are f32 (f64 for norms) whatever the element type; no atomics, and every split of work depends on sizes
// alone, never on the device, so that a result is the same bit for bit in every run; indices of elements are 64-bit.
#pragma once

#include <stdint.h>

#ifndef PAIRQUET_EMULATION
#include <cuda_bf16.h>
#include <cuda_runtime.h>

typedef __nv_bfloat16 bf16;

#define LAUNCH(kernel, grid, threads, shared_bytes, stream, ...) \
  kernel<<<(grid), (threads), (shared_bytes), (cudaStream_t)(stream)>>>(__VA_ARGS__)
// A block's shared memory; its size is the launch's.
#define SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char name##_[]; \
  type *name = (type *)name##_

static inline int launch_result() { return (int)cudaGetLastError(); }
// More than 48 KiB of shared memory has to be asked for.
template <class Kernel>
static inline int allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return 0;
  return (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}
#endif

enum { TYPE_F32 = 0, TYPE_BF16 = 1 };
// As cudaErrorInvalidValue.
enum { INVALID_VALUE = 1 };

static const int WARP = 32;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return __float2bfloat16(value);
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// Four elements from `start` on of a row of `width`, zero past its end. `whole` says that rows are multiples of four and
// aligned, so that one access does.
template <class T>
__device__ __forceinline__ void load4(const T *row, int64_t start, int64_t width, bool whole, float (&out)[4]) {
  if (whole) {
    const Four<T> four = *(const Four<T> *)(row + start);
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = to_float(four.at[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) out[i] = start + i < width ? to_float(row[start + i]) : 0.f;
}

template <class T>
__device__ __forceinline__ void store4(T *row, int64_t start, int64_t width, bool whole, const float (&in)[4]) {
  if (whole) {
    Four<T> four;
#pragma unroll
    for (int i = 0; i < 4; i++) four.at[i] = from_float<T>(in[i]);
    *(Four<T> *)(row + start) = four;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (start + i < width) row[start + i] = from_float<T>(in[i]);
}

// Whether rows of `width` elements of four or two bytes can be read in fours, their first element being at an address
// that the allocator made.
static inline bool in_fours(int64_t width) { return width % 4 == 0; }

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ __forceinline__ int64_t block_x() { return (int64_t)blockIdx.x; }

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows are summed in two stages: chunks of rows by one block each, then the chunks. Their number depends on the rows
// alone.
static const int64_t MOST_CHUNKS = 512;
static inline int64_t chunk_rows(int64_t rows) {
  const int64_t least = 32;
  const int64_t even = ceil_div(rows, MOST_CHUNKS);
  return even < least ? least : even;
}
static inline int64_t chunk_count(int64_t rows) { return ceil_div(rows, chunk_rows(rows)); }

// Second stage: `out[c] = sum over chunks of partial[chunk][c]`, columns `first` to `first + width` of rows of `stride`.
int sum_chunks(const float *partial, int64_t chunks, int64_t stride, int64_t first, int64_t width, float *out,
               void *stream);

// Calls `body` with a value of the element type.
template <class Body>
static inline int with_type(int type, Body body) {
  if (type == TYPE_F32) return body(float());
  if (type == TYPE_BF16) return body(bf16());
  return INVALID_VALUE;
}
