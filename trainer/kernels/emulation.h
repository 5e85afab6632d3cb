// CUDA's language on a CPU, as far as the kernels here use it: enough to check their results where there is no GPU.
//
// A launch runs block after block on the calling thread. The threads of a block are fibers; each warp runs as far as it
// can before the next one, from the first to the last or the other way round (`pairquet_emulation_reverse`), so a missing
// barrier shows as a wrong result in one of the two orders. Shared memory is full of NaN at the start of each block. A barrier that
// some threads of a block or warp never reach ends the process with a message.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

#define PAIRQUET_EMULATION
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Round to nearest even, NaN kept quiet.
struct bf16 {
  uint16_t bits;
};
inline float __bfloat162float(bf16 value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
inline bf16 __float2bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (value != value) return bf16{0x7fff};
  return bf16{(uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

namespace emulation {

const int WARP_SIZE = 32;

struct Barrier {
  int size = 0, arrived = 0;
  long generation = 0;
};

// What the lanes of a warp show each other.
struct Warp {
  Barrier barrier;
  uint64_t shown[WARP_SIZE][8];
};

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  bool begun, done;
};

struct Block {
  ucontext_t scheduler_start;
  jmp_buf scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char> stacks;
  std::vector<unsigned char> shared;
  Barrier barrier;
  int current = 0;
  long progress = 0;
  void (*run)(void *) = nullptr;
  void *body = nullptr;
};

const size_t STACK_BYTES = 128 * 1024;

extern thread_local Block block;
extern thread_local dim3 thread_index, block_index, block_size, grid_size;

void run_block(int threads);
void wait(Barrier &barrier);

inline Warp &warp() { return block.warps[block.current / WARP_SIZE]; }
inline int lane() { return block.current % WARP_SIZE; }

// Every lane shows a value, then reads others'.
template <class Read>
inline auto exchange(const uint64_t *values, int n, Read read) {
  Warp &own = warp();
  for (int i = 0; i < n; i++) own.shown[lane()][i] = values[i];
  wait(own.barrier);
  auto result = read(own.shown);
  wait(own.barrier);
  return result;
}

template <class Body>
void launch(dim3 grid, dim3 threads, size_t shared_bytes, Body body) {
  const int n = (int)(threads.x * threads.y * threads.z);
  grid_size = grid;
  block_size = threads;
  block.body = &body;
  block.run = [](void *body) { (*(Body *)body)(); };
  // Aligned by hand: a vector of bytes promises nothing.
  block.shared.assign(shared_bytes + 16, 0xff);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        block_index = dim3(x, y, z);
        if (shared_bytes > 0) memset(block.shared.data(), 0xff, block.shared.size());
        run_block(n);
      }
}

inline void *shared() { return (void *)(((uintptr_t)block.shared.data() + 15) / 16 * 16); }

}  // namespace emulation

#define threadIdx (emulation::thread_index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

inline void __syncthreads() { emulation::wait(emulation::block.barrier); }

template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int offset) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  (void)mask;
  const int from = emulation::lane() ^ offset;
  const uint64_t got =
      emulation::exchange(&bits, 1, [&](const uint64_t(&shown)[32][8]) { return shown[from][0]; });
  T out;
  memcpy(&out, &got, sizeof(T));
  return out;
}

#define LAUNCH(kernel, grid, threads, shared_bytes, stream, ...) \
  ((void)(stream), emulation::launch((grid), (threads), (shared_bytes), [=] { kernel(__VA_ARGS__); }))
#define SHARED(type, name) type *name = (type *)emulation::shared()

static inline int launch_result() { return 0; }
template <class Kernel>
static inline int allow_shared(Kernel, size_t bytes) {
  return bytes <= 227 * 1024 ? 0 : 1;
}

// The tensor cores' instructions, by the layouts that the PTX manual gives for them.
namespace emulation {

inline float half_of(uint64_t pair, int which) { return __bfloat162float(bf16{(uint16_t)(pair >> (16 * which))}); }

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, c += a b.
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint64_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const int lane = emulation::lane();
  exchange(own, 6, [&](const uint64_t(&shown)[32][8]) {
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0.f;
      for (int k = 0; k < 16; k++) {
        const float left = half_of(shown[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
        const float right = half_of(shown[column * 4 + k % 8 / 2][4 + k / 8], k % 2);
        sum += left * right;
      }
      c[i] += sum;
    }
    return 0;
  });
}

// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16: lane i gives the address of row i % 8 of matrix i / 8, and gets of each
// matrix the elements (2 (lane % 4), lane / 4) and the one below.
inline void load_transposed(uint32_t (&out)[4], const bf16 *row) {
  const uint64_t own = (uint64_t)(uintptr_t)row;
  const int lane = emulation::lane();
  exchange(&own, 1, [&](const uint64_t(&shown)[32][8]) {
    for (int matrix = 0; matrix < 4; matrix++) {
      const bf16 *upper = (const bf16 *)(uintptr_t)shown[matrix * 8 + lane % 4 * 2][0];
      const bf16 *lower = (const bf16 *)(uintptr_t)shown[matrix * 8 + lane % 4 * 2 + 1][0];
      if ((uintptr_t)upper % 16 != 0 || (uintptr_t)lower % 16 != 0) {
        fprintf(stderr, "emulation: ldmatrix of a row that is not aligned to 16 bytes\n");
        abort();
      }
      out[matrix] = (uint32_t)upper[lane / 4].bits | (uint32_t)lower[lane / 4].bits << 16;
    }
    return 0;
  });
}

}  // namespace emulation
