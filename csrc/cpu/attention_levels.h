// The steps of attention (attention_rows.h) compiled for each instruction set, as sets of static functions.
//
// Operand is what a product broadcasts and multiplies: a float, or a pair of bfloat16 whose products are added.
// It holds kPair elements. A product takes kRows queries at once with up to kVecs vectors of kLanes keys or channels:
// 24 accumulators of the 32 registers of AVX-512, 12 of the 16 of AVX2.
//
//   product<kWide>  c [kRows, kWide vectors] = a [kRows, depth] b [depth, kWide vectors]
//   softmax         of raw products; writes the weights as Operand over the scores
//   pack            keys transposed in panels, values row by row (pairs along channels, and along keys)
//   load_queries    rows of queries as Operand
//   write           one row of results
#pragma once

#include "attention_rows.h"

#if ALT_HAS_MULTIVERSION
#include <immintrin.h>
#endif

namespace alt {
namespace {

// Packs keys of any dtype as floats, transposed. buffer [lanes, depth] holds widened half-precision keys.
template <int kLanes, int kVecs, typename In>
ALT_INLINE void pack_float_keys(const In* k, int64_t stride, int64_t keys, int64_t depth, float* packed,
                                float* buffer) {
  const auto row_of = [&](int64_t n, int64_t j) __attribute__((always_inline)) {
    const In* row = k + n * stride;
    if constexpr (std::is_same_v<In, float>) {
      return row;
    } else {
      float* copy = buffer + j * depth;
#pragma omp simd
      for (int64_t d = 0; d < depth; ++d) {
        copy[d] = load<float>(row[d]);
      }
      return static_cast<const float*>(copy);
    }
  };
  pack_transposed<float, kLanes, kVecs>(row_of, keys, depth, packed);
}

template <typename In>
ALT_INLINE void copy_rows(const In* ALT_RESTRICT source, int64_t stride, int64_t rows, int64_t depth,
                          float* ALT_RESTRICT target) {
  for (int64_t n = 0; n < rows; ++n) {
#pragma omp simd
    for (int64_t d = 0; d < depth; ++d) {
      target[n * depth + d] = load<float>(source[n * stride + d]);
    }
  }
}

#define ALT_ATTENTION_LEVEL(Name, bytes, block_rows, block_vecs, ...)                                                  \
  struct Name {                                                                                                        \
    using Operand = float;                                                                                             \
    static constexpr int kPair = 1, kRows = block_rows, kVecs = block_vecs, kLanes = bytes / 4;                        \
    template <int kWide>                                                                                               \
    __VA_ARGS__ static void product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, \
                                    float* c, int64_t c_stride) {                                                      \
      float_product<bytes, kRows, kWide>(a, a_stride, b, b_stride, depth, c, c_stride);                                \
    }                                                                                                                  \
    __VA_ARGS__ static void softmax(float* scores, int64_t padded, float scale, const float* bias, float* inverse,     \
                                    float* lse) {                                                                      \
      softmax_rows<bytes, kRows>(scores, padded, scale, bias, inverse, lse);                                           \
    }                                                                                                                  \
    template <typename In>                                                                                             \
    __VA_ARGS__ static void pack(const In* k, int64_t k_stride, const In* v, int64_t v_stride, int64_t keys,           \
                                 int64_t depth, float* packed, float* values, float* buffer) {                         \
      pack_float_keys<kLanes, kVecs>(k, k_stride, keys, depth, packed, buffer);                                        \
      copy_rows(v, v_stride, keys, depth, values);                                                                     \
    }                                                                                                                  \
    template <typename In>                                                                                             \
    __VA_ARGS__ static void load_queries(const In* q, int64_t stride, int64_t rows, int64_t depth, float* queries) {   \
      copy_rows(q, stride, rows, depth, queries);                                                                      \
    }                                                                                                                  \
    template <typename In>                                                                                             \
    __VA_ARGS__ static void write(const float* ALT_RESTRICT sum, float inverse, int64_t depth, In* ALT_RESTRICT out) { \
      _Pragma("omp simd") for (int64_t d = 0; d < depth; ++d) { out[d] = store<In>(sum[d] * inverse); }                \
    }                                                                                                                  \
  };

ALT_ATTENTION_LEVEL(AttentionBaseline, 16, 4, 2, )
#if ALT_HAS_MULTIVERSION
ALT_ATTENTION_LEVEL(AttentionAvx2, 32, 6, 2, __attribute__((target("arch=x86-64-v3"))))
ALT_ATTENTION_LEVEL(AttentionAvx512, 64, 8, 3, __attribute__((target("arch=x86-64-v4"))))

#define ALT_TARGET_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16")))

// vdpbf16ps multiplies 16 pairs of bfloat16 with 16 others and adds both products to a float32. Subnormals count as
// zero. Weights are rounded to bfloat16 first, as in PyTorch's kernel; their sum is of the unrounded weights.
struct AttentionBf16 {
  using Operand = uint32_t;
  static constexpr int kPair = 2, kRows = 8, kVecs = 3, kLanes = 16;

  template <int kWide>
  ALT_TARGET_BF16 static void product(const uint32_t* ALT_RESTRICT a, int64_t a_stride, const uint32_t* ALT_RESTRICT b,
                                      int64_t b_stride, int64_t depth, float* ALT_RESTRICT c, int64_t c_stride) {
    __m512 sum[kRows][kWide];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < kWide; ++v) {
        sum[m][v] = _mm512_setzero_ps();
      }
    }
    for (int64_t k = 0; k < depth; ++k) {
      __m512bh right[kWide];
#pragma GCC unroll 8
      for (int v = 0; v < kWide; ++v) {
        right[v] = (__m512bh)_mm512_loadu_si512(b + k * b_stride + v * kLanes);
      }
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[m * a_stride + k]));
#pragma GCC unroll 8
        for (int v = 0; v < kWide; ++v) {
          sum[m][v] = _mm512_dpbf16_ps(sum[m][v], left, right[v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < kWide; ++v) {
        _mm512_storeu_ps(c + m * c_stride + v * kLanes, sum[m][v]);
      }
    }
  }

  ALT_TARGET_BF16 static void softmax(float* scores, int64_t padded, float scale, const float* bias, float* inverse,
                                      float* lse) {
    softmax_rows<64, kRows>(scores, padded, scale, bias, inverse, lse);
    for (int64_t n = 0; n < kRows * padded; n += 2 * kLanes) {  // reads stay ahead of writes
      const __m512 low = _mm512_loadu_ps(scores + n), high = _mm512_loadu_ps(scores + n + kLanes);
      _mm512_storeu_si512(scores + n / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }

  ALT_TARGET_BF16 static void pack(const BFloat16* k, int64_t k_stride, const BFloat16* v, int64_t v_stride,
                                   int64_t keys, int64_t depth, uint32_t* packed, uint32_t* values,
                                   uint32_t* /*buffer*/) {
    const auto row_of = [&](int64_t n, int64_t) __attribute__((always_inline)) {
      return reinterpret_cast<const uint32_t*>(k + n * k_stride);
    };
    pack_transposed<uint32_t, kLanes, kVecs>(row_of, keys, depth / 2, packed);
    for (int64_t n = 0; n < keys; n += 2) {
      const bool whole = n + 1 < keys;  // otherwise the pair is one key and zeros
      const uint32_t mask = whole ? 0xffff0000u : 0u;
      const BFloat16* ALT_RESTRICT first = v + n * v_stride;
      const BFloat16* ALT_RESTRICT second = whole ? first + v_stride : first;
      uint32_t* ALT_RESTRICT pairs = values + n / 2 * depth;
#pragma omp simd
      for (int64_t d = 0; d < depth; ++d) {
        pairs[d] = first[d].x | (static_cast<uint32_t>(second[d].x) << 16 & mask);
      }
    }
  }

  ALT_TARGET_BF16 static void load_queries(const BFloat16* q, int64_t stride, int64_t rows, int64_t depth,
                                           uint32_t* queries) {
    for (int64_t m = 0; m < rows; ++m) {
      std::memcpy(queries + m * depth / 2, q + m * stride, static_cast<size_t>(depth) * sizeof(BFloat16));
    }
  }

  ALT_TARGET_BF16 static void write(const float* sum, float inverse, int64_t depth, BFloat16* out) {
    for (int64_t d = 0; d < depth; d += kLanes) {
      const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(sum + d), _mm512_set1_ps(inverse));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), (__m256i)_mm512_cvtneps_pbh(value));
    }
  }
};
#endif

}  // namespace
}  // namespace alt
