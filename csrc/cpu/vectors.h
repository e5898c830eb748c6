// Vectors of GCC and clang, transposition of rows, and the x86 level of this processor.
//
// Everything but cpu_level must be inlined into functions compiled for one x86 level. The vector types exist on
// other processors too.
#pragma once

#include <cstdlib>

#include "common.h"

namespace alt {
namespace {

// A vector of T that may be loaded from and stored to any address of a T.
template <typename T, int kBytes>
struct VecOf {
  typedef T type __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
};
template <typename T, int kBytes>
using Vec = typename VecOf<T, kBytes>::type;

// An integer as wide as T, so that compares of Vec<T> select Vec<IndexOf<T>>.
template <typename T>
using IndexOf = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

#if __has_builtin(__builtin_shufflevector)
// One step of a transposition by doubling: swaps, between rows i and i + kStep, the off-diagonal blocks of kStep lanes
// in every square of 2 kStep. After kStep = lanes / 2, ..., 1 row i holds what was column i.
template <int kStep, typename V, int... kLane>
ALT_INLINE void swap_blocks(V& a, V& b, std::integer_sequence<int, kLane...>) {
  constexpr int lanes = sizeof...(kLane);
  const V first = __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? lanes + kLane - kStep : kLane)...);
  b = __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? lanes + kLane : kLane + kStep)...);
  a = first;
}

template <int kStep, int kLanes, typename V>
ALT_INLINE void transpose_square(V* rows) {
  if constexpr (kStep > 0) {
    for (int i = 0; i < kLanes; ++i) {
      if ((i & kStep) == 0) {
        swap_blocks<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>{});
      }
    }
    transpose_square<kStep / 2, kLanes>(rows);
  }
}
#endif

// dst[c * dst_stride + j] = src[j][c] for kLanes rows of T; rows from `count` on count as zero.
template <typename T, int kLanes>
ALT_INLINE void transpose_rows(const T* const* src, int64_t count, int64_t channels, T* dst, int64_t dst_stride) {
  int64_t c = 0;
#if __has_builtin(__builtin_shufflevector)
  using V = Vec<T, kLanes* static_cast<int>(sizeof(T))>;
  typedef T Source __attribute__((vector_size(sizeof(V)), aligned(1), may_alias));  // may be elements of another type
  for (; c + kLanes <= channels; c += kLanes) {
    V square[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      square[j] = j < count ? *reinterpret_cast<const Source*>(src[j] + c) : V{};
    }
    transpose_square<kLanes / 2, kLanes>(square);
    for (int j = 0; j < kLanes; ++j) {
      *reinterpret_cast<V*>(dst + (c + j) * dst_stride) = square[j];
    }
  }
#endif
  for (; c < channels; ++c) {
    for (int j = 0; j < kLanes; ++j) {
      T value(0);
      if (j < count) {
        std::memcpy(&value, src[j] + c, sizeof(T));  // may be elements of another type
      }
      dst[c * dst_stride + j] = value;
    }
  }
}

// The x86 level of this processor (0: baseline, 1: AVX2, 2: AVX-512), capped by ATEN_CPU_CAPABILITY (default, avx2,
// avx512) as PyTorch's own kernels are.
inline int cpu_level() {
#if ALT_HAS_MULTIVERSION
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = cap == nullptr ? "" : cap;
  if (limit == "default") {
    return 0;
  }
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4") && limit != "avx2") {
    return 2;
  }
  return __builtin_cpu_supports("x86-64-v3") ? 1 : 0;
#else
  return 0;
#endif
}

}  // namespace
}  // namespace alt
