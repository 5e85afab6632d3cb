// The scheduler of emulation.h.
#include "emulation.h"

namespace emulation {

thread_local Block block;
thread_local dim3 thread_index, block_index, block_size, grid_size;

static thread_local bool reversed = false;

// Contexts are made by makecontext and switched by setjmp, which asks the kernel nothing.
static void fiber_main() {
  block.run(block.body);
  block.fibers[block.current].done = true;
  block.progress++;
  _longjmp(block.scheduler, 1);
}

static void yield() {
  if (_setjmp(block.fibers[block.current].at) == 0) _longjmp(block.scheduler, 1);
}

void wait(Barrier &barrier) {
  const long generation = barrier.generation;
  block.progress++;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    barrier.generation++;
    return;
  }
  while (barrier.generation == generation) yield();
  block.progress++;
}

static void resume(int index) {
  Fiber &fiber = block.fibers[index];
  block.current = index;
  thread_index = dim3(index % block_size.x, index / block_size.x % block_size.y, index / block_size.x / block_size.y);
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

void run_block(int threads) {
  if (threads % WARP_SIZE != 0) {
    fprintf(stderr, "emulation: a block of %d threads, expected whole warps\n", threads);
    abort();
  }
  block.stacks.resize(threads * STACK_BYTES);
  block.fibers.resize(threads);
  block.warps.assign(threads / WARP_SIZE, Warp());
  for (Warp &warp : block.warps) warp.barrier.size = WARP_SIZE;
  block.barrier = Barrier();
  block.barrier.size = threads;
  for (int i = 0; i < threads; i++) {
    Fiber &fiber = block.fibers[i];
    fiber.begun = fiber.done = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = block.stacks.data() + i * STACK_BYTES;
    fiber.start.uc_stack.ss_size = STACK_BYTES;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
  }
  for (bool running = true; running;) {
    running = false;
    const long before = block.progress;
    // Each warp runs as far as it can before the next one, which is where warps that must wait for each other fail.
    for (int i = 0; i < threads / WARP_SIZE; i++) {
      const int first = (reversed ? threads / WARP_SIZE - 1 - i : i) * WARP_SIZE;
      for (long last = -1; last != block.progress;) {
        last = block.progress;
        for (int lane = 0; lane < WARP_SIZE; lane++) {
          const int index = first + (reversed ? WARP_SIZE - 1 - lane : lane);
          if (!block.fibers[index].done) resume(index);
        }
      }
    }
    for (const Fiber &fiber : block.fibers) running = running || !fiber.done;
    if (running && block.progress == before) {
      fprintf(stderr, "emulation: a barrier that not all threads of a block or warp reach\n");
      abort();
    }
  }
}

}  // namespace emulation

// Whether the threads of a block run from the last to the first, in launches of this thread.
extern "C" void pairquet_emulation_reverse(int reverse) { emulation::reversed = reverse != 0; }
