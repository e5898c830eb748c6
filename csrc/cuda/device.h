// A thin layer over the GPU in which the kernels of this folder are written. The same text also compiles for the host
// and runs there, thread by thread, without a GPU (host_emulation.h).
//
//   ALT_KERNEL(threads, blocks)  before a kernel, which takes one struct by value. `blocks` should fit a
//                                multiprocessor at once; without it the assembler saves registers until it spills.
//   ALT_DEVICE                   before everything that a kernel calls
//   thread_index(), block_index()
//   sync_block()                 barrier of the block, reached by all its threads
//   shuffle_xor(value, mask)     of a whole warp; float, int32_t or uint32_t
//   ballot(condition)            of a whole warp; only sync_block() orders accesses to memory
//   shared_memory()              the block's shared memory, 16-byte aligned, all of it dynamic
//   load16(p), store16(p, pack)  16 bytes, aligned
//   launch<kernel>(grid, argument)
//   half_t, bfloat_t, widen(x), narrow<T>(float)   storage types and their rounding, to nearest even
//
// A product that is rounded together with a sum is written as fused_multiply_add. Every other product is rounded on its
// own, here and on the host, because both are compiled without contraction (setup.py: -fmad=false). Divisions and roots
// are rounded to nearest. So the emulation must give the bits of the GPU, except for the payload of a NaN
// (tests/cuda/test_bits_of_the_gpu.py).
#pragma once

#include <cstdint>
#include <cstring>

namespace alt::gpu {

struct half_t {
  uint16_t bits;
};
struct bfloat_t {
  uint16_t bits;
};
// A storage type as a run-time value.
enum class Kind : int32_t { single, half, bfloat };

struct alignas(16) Pack {
  uint32_t word[4];
};

struct Grid {
  int64_t blocks;
  int threads;
  int shared;  // bytes
  void* stream;
};

constexpr int kWarp = 32;

}  // namespace alt::gpu

#if defined(ALT_HOST_EMULATION)

#include "host_emulation.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include <atomic>

#define ALT_DEVICE __device__ __forceinline__
#define ALT_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

namespace alt::gpu {

ALT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
ALT_DEVICE int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }
ALT_DEVICE void sync_block() { __syncthreads(); }

template <typename T>
ALT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
ALT_DEVICE uint32_t ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }
ALT_DEVICE int count_bits(uint32_t word) { return __popc(word); }

ALT_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char alt_shared[];
  return alt_shared;
}

ALT_DEVICE Pack load16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return Pack{{v.x, v.y, v.z, v.w}};
}
ALT_DEVICE void store16(void* p, const Pack& pack) {
  *static_cast<uint4*>(p) = make_uint4(pack.word[0], pack.word[1], pack.word[2], pack.word[3]);
}

ALT_DEVICE float bits_as_float(uint32_t bits) { return __uint_as_float(bits); }
ALT_DEVICE uint32_t float_as_bits(float value) { return __float_as_uint(value); }
ALT_DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
ALT_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
ALT_DEVICE float square_root(float a) { return __fsqrt_rn(a); }

ALT_DEVICE float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
ALT_DEVICE uint16_t float_to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }
ALT_DEVICE uint16_t float_to_bfloat(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

// The runtime is linked statically, so nobody else clears its last error.
inline void require(cudaError_t status) {
  if (status != cudaSuccess) {
    cudaGetLastError();
    STD_CUDA_CHECK(status);
  }
}

// Requests more than 48 KB of shared memory, once per kernel and device. This is no stream operation, so a graph may be
// captured around it. One bit per device is kept; requesting twice is harmless.
template <auto Kernel>
void allow_shared(int bytes) {
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  require(cudaGetDevice(&device));  // the one that torch's guard made current: all runtimes share contexts
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_acquire) & bit) == 0) {
    require(cudaFuncSetAttribute(reinterpret_cast<const void*>(Kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 bytes));
    allowed.fetch_or(bit, std::memory_order_release);
  }
}

// Callers check that there are at most 2^31 - 1 blocks.
template <auto Kernel, typename Argument>
void launch(const Grid& grid, const Argument& argument) {
  if (grid.blocks == 0) {
    return;
  }
  if (grid.shared > 48 * 1024) {
    allow_shared<Kernel>(grid.shared);
  }
  // clang-format off: it takes >>> apart
  Kernel<<<static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.threads),
           static_cast<size_t>(grid.shared), static_cast<cudaStream_t>(grid.stream)>>>(argument);
  // clang-format on
  require(cudaGetLastError());
}

}  // namespace alt::gpu

#endif

namespace alt::gpu {

// ------------------------------------------------------------------------------------------- elements

ALT_DEVICE float widen(float x) { return x; }
ALT_DEVICE float widen(half_t x) { return half_to_float(x.bits); }
ALT_DEVICE float widen(bfloat_t x) { return bits_as_float(static_cast<uint32_t>(x.bits) << 16); }

template <typename T>
ALT_DEVICE T narrow(float x);
template <>
ALT_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
ALT_DEVICE half_t narrow<half_t>(float x) {
  return half_t{float_to_half(x)};
}
template <>
ALT_DEVICE bfloat_t narrow<bfloat_t>(float x) {
  return bfloat_t{float_to_bfloat(x)};
}

// Reads eight neighbours, widened. The address is a multiple of 16.
template <typename T>
ALT_DEVICE void read8(const T* p, float (&v)[8]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Pack pack = load16(p + 4 * i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        v[4 * i + k] = bits_as_float(pack.word[k]);
      }
    }
  } else {
    const Pack pack = load16(p);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      v[2 * k] = widen(T{static_cast<uint16_t>(pack.word[k] & 0xffffu)});
      v[2 * k + 1] = widen(T{static_cast<uint16_t>(pack.word[k] >> 16)});
    }
  }
}

// Rounds and stores v, and leaves the stored values in v.
template <typename T>
ALT_DEVICE void write8(T* p, float (&v)[8]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Pack pack;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        pack.word[k] = float_as_bits(v[4 * i + k]);
      }
      store16(p + 4 * i, pack);
    }
  } else {
    Pack pack;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T low = narrow<T>(v[2 * k]), high = narrow<T>(v[2 * k + 1]);
      v[2 * k] = widen(low);
      v[2 * k + 1] = widen(high);
      pack.word[k] = static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
    }
    store16(p, pack);
  }
}

// Element `at` of an array whose type is known at run time.
ALT_DEVICE float read_any(const void* p, int64_t at, Kind kind) {
  if (kind == Kind::single) {
    return static_cast<const float*>(p)[at];
  }
  const uint16_t bits = static_cast<const uint16_t*>(p)[at];
  return kind == Kind::half ? widen(half_t{bits}) : widen(bfloat_t{bits});
}

ALT_DEVICE float write_any(void* p, int64_t at, Kind kind, float value) {
  if (kind == Kind::single) {
    static_cast<float*>(p)[at] = value;
    return value;
  }
  const uint16_t bits = kind == Kind::half ? float_to_half(value) : float_to_bfloat(value);
  static_cast<uint16_t*>(p)[at] = bits;
  return kind == Kind::half ? widen(half_t{bits}) : widen(bfloat_t{bits});
}

ALT_DEVICE void read8_any(const void* p, int64_t at, Kind kind, float (&v)[8]) {
  if (kind == Kind::single) {
    read8(static_cast<const float*>(p) + at, v);
  } else if (kind == Kind::half) {
    read8(static_cast<const half_t*>(p) + at, v);
  } else {
    read8(static_cast<const bfloat_t*>(p) + at, v);
  }
}

// Sum of a warp (or of neighbouring groups of `Lanes`), the same bits in every lane.
template <int Lanes = kWarp>
ALT_DEVICE float sum_lanes(float value) {
#pragma unroll
  for (int mask = Lanes / 2; mask > 0; mask /= 2) {
    value += shuffle_xor(value, mask);
  }
  return value;
}

}  // namespace alt::gpu
