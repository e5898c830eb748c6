// The steps of attention from a block of queries to all keys of one head, inlined into functions compiled for one
// x86 level (attention_levels.h). Vectors are passed by reference, so that signatures do not depend on the level.
//
// Per block of kRows queries: products with all keys into scores [kRows, padded keys], softmax in place,
// product with all values. Keys are packed transposed in panels of a few vectors, values row by row, once
// per head.
#pragma once

#include "vec_math.h"
#include "vectors.h"

namespace alt {
namespace {

// Splits `vecs` vectors into groups of at most `most` and similar width, and calls f(first vector, count) for each.
template <typename F>
ALT_INLINE void for_groups(int64_t vecs, int64_t most, const F& f) {
  for (int64_t first = 0, groups = (vecs + most - 1) / most; groups > 0; --groups) {
    const int64_t count = (vecs - first + groups - 1) / groups;
    f(first, count);
    first += count;
  }
}

// c[m][0 .. kVecs vectors) = sum_k a[m][k] b[k][...], in registers.
template <int kBytes, int kRows, int kVecs>
ALT_INLINE void float_product(const float* ALT_RESTRICT a, int64_t a_stride, const float* ALT_RESTRICT b,
                              int64_t b_stride, int64_t depth, float* ALT_RESTRICT c, int64_t c_stride) {
  using V = Vec<float, kBytes>;
  constexpr int lanes = kBytes / 4;
  V sum[kRows][kVecs] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V right[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      right[v] = *reinterpret_cast<const V*>(b + k * b_stride + v * lanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const float left = a[m * a_stride + k];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        sum[m][v] += left * right[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      *reinterpret_cast<V*>(c + m * c_stride + v * lanes) = sum[m][v];
    }
  }
}

// Replaces x by e^x, for x <= 0 and NaN: the polynomial of vexp, 0 below -87.3.
template <int kBytes>
ALT_INLINE void exp_nonpositive(Vec<float, kBytes>& x) {
  using V = Vec<float, kBytes>;
  using VI = Vec<int32_t, kBytes>;
  const V lowest = V{} - 87.3f;
  const V c = x < lowest ? lowest : x;
  const V shifted = c * 1.44269504f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = V{} + 0.0013814467f;
  p = p * r + 0.0083687808f;
  p = p * r + 0.0416683927f;
  p = p * r + 0.1666651964f;
  p = p * r + 0.4999999404f;
  p = p * (r * r) + r + 1.0f;
  const V y = reinterpret_cast<V>(reinterpret_cast<VI>(p) + (reinterpret_cast<VI>(shifted) << 23));
  const V kept = x < lowest ? V{} : y;
  x = x == x ? kept : x;
}

struct Add {
  template <typename V>
  ALT_INLINE static void into(V& a, const V& b) {
    a += b;
  }
};

struct Max {
  template <typename V>
  ALT_INLINE static void into(V& a, const V& b) {
    a = b > a ? b : a;
  }
};

// Reduces the lanes of a vector to one number by folding halves.
template <typename Fold, int kBytes>
ALT_INLINE float folded(const Vec<float, kBytes>& x) {
  if constexpr (kBytes == 4) {
    return x[0];
  } else {
    Vec<float, kBytes / 2> half[2];
    std::memcpy(half, &x, sizeof(x));
    Fold::into(half[0], half[1]);
    return folded<Fold, kBytes / 2>(half[0]);
  }
}

// Softmax of kRows rows of raw products [kRows, padded]. It replaces them by weights e^(score - largest), and writes
// the inverse of each row's sum and lse, the log-sum-exp. bias [padded] holds log s, and -inf past the last key.
// A row without keys has weights 0, inverse 1 and lse 0, as PyTorch's kernel has it and its backward expects.
template <int kBytes, int kRows>
ALT_INLINE void softmax_rows(float* ALT_RESTRICT scores, int64_t padded, float scale, const float* ALT_RESTRICT bias,
                             float* ALT_RESTRICT inverse, float* ALT_RESTRICT lse) {
  using V = Vec<float, kBytes>;
  constexpr int lanes = kBytes / 4;
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  float total[kRows], shift[kRows];
  for (int m = 0; m < kRows; ++m) {
    float* row = scores + m * padded;
    V peak = V{} + lowest;
    for (int64_t n = 0; n < padded; n += lanes) {
      const V s = *reinterpret_cast<const V*>(row + n) * scale + *reinterpret_cast<const V*>(bias + n);
      *reinterpret_cast<V*>(row + n) = s;
      Max::into(peak, s);  // never NaN; the weight of a NaN is NaN whatever the largest is
    }
    const float largest = folded<Max, kBytes>(peak);
    shift[m] = largest == lowest ? 0.0f : largest;
  }
  for (int m = 0; m < kRows; ++m) {
    float* row = scores + m * padded;
    V sum{};
    for (int64_t n = 0; n < padded; n += lanes) {
      V e = *reinterpret_cast<const V*>(row + n) - shift[m];
      exp_nonpositive<kBytes>(e);
      *reinterpret_cast<V*>(row + n) = e;
      sum += e;
    }
    total[m] = folded<Add, kBytes>(sum);
  }
  for (int m = 0; m < kRows; ++m) {
    const bool any = total[m] != 0.0f;  // true for NaN
    inverse[m] = any ? 1.0f / total[m] : 1.0f;
    const float log_total = total[m] == total[m] ? vlog(total[m]) : total[m];
    lse[m] = any ? shift[m] + log_total : 0.0f;
  }
}

// Keys transposed in panels: that of vectors [first, first + count) starts at first * kLanes * depth and is
// [depth, count * kLanes]. The last key is repeated as padding, which the bias masks. Zeros as padding would turn an
// infinite query into NaN where the formula does not.
template <typename T, int kLanes, int kVecs, typename RowOf>
ALT_INLINE void pack_transposed(const RowOf& row_of, int64_t rows, int64_t depth, T* packed) {
  const auto pack = [&](int64_t first, int64_t count) __attribute__((always_inline)) {
    T* panel = packed + first * kLanes * depth;
    for (int64_t v = 0; v < count; ++v) {
      const T* source[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        source[j] = row_of(std::min((first + v) * kLanes + j, rows - 1), j);
      }
      transpose_rows<T, kLanes>(source, kLanes, depth, panel + v * kLanes, count * kLanes);
    }
  };
  for_groups((rows + kLanes - 1) / kLanes, kVecs, pack);
}

}  // namespace
}  // namespace alt
