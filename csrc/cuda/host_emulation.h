// The layer of device.h on the host: every thread of a block is a fiber, and blocks run one after another.
//
// A fiber runs until a barrier of its block or its warp (a shuffle is a barrier of the warp), and continues when all
// threads of that block or warp have reached the same barrier. The program aborts with a message if a barrier is not
// reached by all threads from the same line, on writes past shared memory (initialised to NaN), on misaligned 16-byte
// accesses, and on oversized blocks or grids.
//
// `order` permutes the fibers between two barriers: a result that depends on it has a race. ThreadSanitizer sees each
// fiber as a thread, ordered only by the block's barriers, so it finds races within a block, within a warp and between
// blocks. A shuffle does not order memory there, as it does not on the GPU: shared memory that one lane writes and
// another reads after a shuffle alone is a race. `skipped` leaves one barrier out, which shows that tests notice it.
//
// Only a GPU shows whether a launch has enough registers, whether the extra shared memory was granted, which stream and
// device it runs on, and what the compiler makes of the same text (`tools/cuda_resources.py` reads that).
// ThreadSanitizer keeps four accesses per word, so it misses a race with an older access.
//
// For tests only: nothing of this is in the library that ships.
#pragma once

#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <string_view>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define ALT_TSAN(...) __VA_ARGS__
#define ALT_UNSEEN __attribute__((no_sanitize("thread"), noinline))  // the machinery's own accesses
#else
#define ALT_TSAN(...)
#define ALT_UNSEEN
#endif

#define ALT_DEVICE inline
#define ALT_KERNEL(threads, blocks) inline void

namespace alt::gpu::emulation {

[[noreturn]] inline void stop(const char* sentence) {
  std::fprintf(stderr, "emulated GPU: %s\n", sentence);
  std::abort();
}

enum class State : int { ready, at_warp, at_block, done };

struct Fiber {
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
  std::atomic<State> state{State::ready};
  int index = 0;
  uint32_t warp_barriers = 0, block_barriers = 0;  // how many this thread has reached
  std::atomic<const char*> file{nullptr};          // of the last one
  std::atomic<uint32_t> line{0};
  void* tsan = nullptr;
};

struct Warp {
  uint32_t value[2][kWarp];  // what lanes exchange; two alternating buffers, so that one barrier is enough
};

constexpr size_t kStack = 128 * 1024;
constexpr size_t kGuard = 1024;

// 0: ascending; 1: descending; above: the seed of a new shuffle for every step.
inline std::atomic<unsigned> order{0};
inline std::atomic<int64_t> launches{0};
// The line of a sync_block() that is skipped, and the end of its file's name.
inline std::atomic<uint32_t> skipped_line{0};
inline std::atomic<const char*> skipped_file{""};

inline bool skipped(const std::source_location& where) {
  if (where.line() != skipped_line) {
    return false;
  }
  const std::string_view file = where.file_name(), end = skipped_file.load();
  return file.size() >= end.size() && file.substr(file.size() - end.size()) == end;
}

// What lanes exchange in a shuffle is not memory on a GPU, so it is hidden from ThreadSanitizer.
ALT_UNSEEN inline void put(uint32_t& slot, uint32_t value) { slot = value; }
ALT_UNSEEN inline uint32_t take(const uint32_t& slot) { return slot; }

class Block {
 public:
  Block(const Grid& grid, int64_t index, const std::function<void()>& body)
      : index(index),
        body_(body),
        fibers_(static_cast<size_t>(grid.threads)),
        warps_(static_cast<size_t>(grid.threads / kWarp)),
        bytes_(static_cast<size_t>(grid.shared)) {
    if (grid.threads % kWarp != 0 || grid.threads > 1024 || grid.shared > 227 * 1024) {
      stop("a block has whole warps, at most 1,024 threads and 227 KB of shared memory");
    }
    shared_ = static_cast<unsigned char*>(std::aligned_alloc(1024, (bytes_ + kGuard + 1023) / 1024 * 1024));
    std::memset(shared_, 0xff, bytes_ + kGuard);
  }
  ~Block() {
    std::free(shared_);
    ALT_TSAN(for (Fiber& f : fibers_) { __tsan_destroy_fiber(f.tsan); })
  }

  void run(std::vector<std::unique_ptr<char[]>>& stacks, void* finished);
  void wait(State barrier, const std::source_location& where);
  uint32_t exchange(uint32_t value, int lane, const std::source_location& where);

  Fiber& fiber() const { return *current_.load(std::memory_order_relaxed); }
  unsigned char* shared() const { return shared_; }
  const int64_t index;

 private:
  static void enter();
  static void prepare(Fiber& f);
  bool release();
  ALT_UNSEEN void resume(Fiber& f) {
    current_.store(&f, std::memory_order_relaxed);
    ALT_TSAN(__tsan_switch_to_fiber(f.tsan, __tsan_switch_to_fiber_no_sync);)
    swapcontext(&main_, &f.context);
  }
  ALT_UNSEEN void yield(Fiber& f) {
    ALT_TSAN(__tsan_switch_to_fiber(main_tsan_, __tsan_switch_to_fiber_no_sync);)
    swapcontext(&f.context, &main_);
  }

  const std::function<void()>& body_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  size_t bytes_;
  unsigned char* shared_ = nullptr;
  char passed_[2];
  ucontext_t main_{};
  void* main_tsan_ = nullptr;
  void* finished_ = nullptr;
  std::atomic<Fiber*> current_{nullptr};
};

inline thread_local std::atomic<Block*> current_block{nullptr};
inline Block& running() { return *current_block.load(std::memory_order_relaxed); }

inline void Block::enter() {
  Block& block = running();
  Fiber& f = block.fiber();
  block.body_();
  f.state.store(State::done, std::memory_order_relaxed);
  ALT_TSAN(__tsan_release(block.finished_);)  // the fiber's last event for ThreadSanitizer
  block.yield(f);
}

// A separate function, because a compiler must assume that getcontext returns twice.
inline void Block::prepare(Fiber& f) {
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.get();
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, &Block::enter, 0);
  ALT_TSAN(f.tsan = __tsan_create_fiber(0);)
}

inline void Block::wait(State barrier, const std::source_location& where) {
  Fiber& f = fiber();
  f.file.store(where.file_name(), std::memory_order_relaxed);
  f.line.store(where.line(), std::memory_order_relaxed);
  f.state.store(barrier, std::memory_order_relaxed);
  if (barrier == State::at_warp) {
    ++f.warp_barriers;
    yield(f);
  } else {
    char* passed = &passed_[f.block_barriers++ % 2];
    (void)passed;
    ALT_TSAN(__tsan_release(passed);)
    yield(f);
    ALT_TSAN(__tsan_acquire(passed);)
  }
}

// Every lane gives `value` and receives that of `lane`.
inline uint32_t Block::exchange(uint32_t value, int lane, const std::source_location& where) {
  Fiber& f = fiber();
  Warp& warp = warps_[static_cast<size_t>(f.index / kWarp)];
  uint32_t (&slot)[kWarp] = warp.value[f.warp_barriers % 2];
  put(slot[f.index % kWarp], value);
  wait(State::at_warp, where);
  return take(slot[lane]);
}

// Resumes the threads whose barrier is complete; false if there are none.
inline bool Block::release() {
  bool any = false;
  const auto all = [&](size_t begin, size_t end, State state) {
    const Fiber& first = fibers_[begin];
    for (size_t i = begin; i < end; ++i) {
      if (fibers_[i].state.load(std::memory_order_relaxed) != state) {
        return false;
      }
    }
    for (size_t i = begin; i < end; ++i) {
      if (fibers_[i].line.load() != first.line.load() || std::strcmp(fibers_[i].file.load(), first.file.load()) != 0) {
        stop("threads of one block or warp at different barriers");
      }
    }
    return true;
  };
  const auto free = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      fibers_[i].state.store(State::ready, std::memory_order_relaxed);
    }
    any = true;
  };
  for (size_t w = 0; w < warps_.size(); ++w) {
    if (all(w * kWarp, (w + 1) * kWarp, State::at_warp)) {
      free(w * kWarp, (w + 1) * kWarp);
    }
  }
  if (all(0, fibers_.size(), State::at_block)) {
    free(0, fibers_.size());
  }
  return any;
}

inline void Block::run(std::vector<std::unique_ptr<char[]>>& stacks, void* finished) {
  current_block.store(this, std::memory_order_relaxed);
  finished_ = finished;
  ALT_TSAN(main_tsan_ = __tsan_get_current_fiber();)
  std::vector<size_t> turn(fibers_.size());
  std::iota(turn.begin(), turn.end(), size_t{0});
  const unsigned kind = order.load();
  std::minstd_rand random(kind);
  if (kind == 1) {
    std::reverse(turn.begin(), turn.end());
  }
  for (size_t i = 0; i < fibers_.size(); ++i) {
    Fiber& f = fibers_[i];
    f.index = static_cast<int>(i);
    if (stacks.empty()) {
      f.stack.reset(new char[kStack]);
    } else {
      f.stack = std::move(stacks.back());
      stacks.pop_back();
    }
    prepare(f);
  }
  while (true) {
    if (kind > 1) {
      std::shuffle(turn.begin(), turn.end(), random);
    }
    for (const size_t i : turn) {
      if (fibers_[i].state.load(std::memory_order_relaxed) == State::ready) {
        resume(fibers_[i]);
      }
    }
    if (!release()) {
      break;
    }
  }
  for (Fiber& f : fibers_) {
    if (f.state.load(std::memory_order_relaxed) != State::done) {
      stop("a barrier that not all threads of its block or warp reach");
    }
    ALT_TSAN(continue;)  // a stack used twice would look like a race
    stacks.push_back(std::move(f.stack));
  }
  for (size_t i = 0; i < kGuard; ++i) {
    if (shared_[bytes_ + i] != 0xff) {
      stop("a write behind the shared memory");
    }
  }
}

}  // namespace alt::gpu::emulation

namespace alt::gpu {

ALT_DEVICE int thread_index() { return emulation::running().fiber().index; }
ALT_DEVICE int64_t block_index() { return emulation::running().index; }
ALT_DEVICE void sync_block(const std::source_location where = std::source_location::current()) {
  if (!emulation::skipped(where)) {
    emulation::running().wait(emulation::State::at_block, where);
  }
}

template <typename T>
ALT_DEVICE T shuffle_xor(T value, int mask, const std::source_location where = std::source_location::current()) {
  static_assert(sizeof(T) == 4);
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = emulation::running().exchange(word, (thread_index() % kWarp) ^ mask, where);
  std::memcpy(&value, &word, 4);
  return value;
}
ALT_DEVICE uint32_t ballot(bool condition, const std::source_location where = std::source_location::current()) {
  uint32_t word = condition ? 1u << (thread_index() % kWarp) : 0u;
  for (int mask = 1; mask < kWarp; mask *= 2) {
    word |= shuffle_xor(word, mask, where);
  }
  return word;
}
ALT_DEVICE int count_bits(uint32_t word) { return __builtin_popcount(word); }
ALT_DEVICE unsigned char* shared_memory() { return emulation::running().shared(); }

inline void check_alignment(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
    emulation::stop("16 bytes at an address that is no multiple of 16");
  }
}
ALT_DEVICE Pack load16(const void* p) {
  check_alignment(p);
  Pack pack;
  std::memcpy(&pack, p, sizeof(pack));
  return pack;
}
ALT_DEVICE void store16(void* p, const Pack& pack) {
  check_alignment(p);
  std::memcpy(p, &pack, sizeof(pack));
}

ALT_DEVICE float bits_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
ALT_DEVICE uint32_t float_as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
ALT_DEVICE float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
ALT_DEVICE float divide(float a, float b) { return a / b; }
ALT_DEVICE float square_root(float a) { return std::sqrt(a); }

ALT_DEVICE float half_to_float(uint16_t bits) {
  return static_cast<float>(torch::headeronly::Half(bits, torch::headeronly::Half::from_bits()));
}
ALT_DEVICE uint16_t float_to_half(float value) { return torch::headeronly::Half(value).x; }
ALT_DEVICE uint16_t float_to_bfloat(float value) {
  const uint32_t bits = float_as_bits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return nan ? 0x7fff : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <auto Kernel, typename Argument>
void launch(const Grid& grid, const Argument& argument) {
  ++emulation::launches;
  if (grid.blocks < 0 || grid.blocks > 0x7fffffff) {
    emulation::stop("a grid has at most 2^31 - 1 blocks");
  }
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<std::unique_ptr<emulation::Block>> blocks;
  char finished = 0;
  const std::function<void()> body = [&] { Kernel(argument); };
  ALT_TSAN(int alive = 0;)
  for (int64_t i = 0; i < grid.blocks; ++i) {
    blocks.push_back(std::make_unique<emulation::Block>(grid, i, body));
    blocks.back()->run(stacks, &finished);
    // Memory used twice would look like a race, but ThreadSanitizer has at most 8,128 threads.
    ALT_TSAN(alive += grid.threads; if (alive < 3072) { continue; } alive = 0; __tsan_acquire(&finished);)
    blocks.clear();
  }
  (void)finished;
  ALT_TSAN(__tsan_acquire(&finished);)
}

}  // namespace alt::gpu
