// The steps of attention (attention_rows.h) compiled for each instruction set, as sets of static functions.
//
// Operand is what a product broadcasts and multiplies: a float, or a pair of bfloat16 whose products are added.
// It holds kPair elements. A product takes kRows queries at once with up to kVecs vectors of kLanes keys or channels:
// 24 accumulators of the 32 registers of AVX-512, 12 of the 16 of AVX2.
//
//   product<kWide, kValues>  c [kRows, kWide vectors] = a [kRows, depth] b [depth, kWide vectors]; with keys or values
//   softmax         of raw products; writes the weights as Operand over the scores
//   pack            keys transposed in panels, values row by row (pairs along channels, and along keys)
//   load_queries    rows of queries as Operand
//   write           one row of results
//   Session         what a thread sets up before products of these depths, and puts back
#pragma once

#include "attention_rows.h"

#if ALT_HAS_MULTIVERSION
#include <immintrin.h>
#endif
#if ALT_HAS_MULTIVERSION && defined(__linux__)
#define ALT_HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define ALT_HAS_AMX 0
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

struct NoSession {
  NoSession(int64_t, int64_t) {}
};

#define ALT_ATTENTION_LEVEL(Name, bytes, block_rows, block_vecs, ...)                                                  \
  struct Name {                                                                                                        \
    using Operand = float;                                                                                             \
    using Session = NoSession;                                                                                         \
    static constexpr int kPair = 1, kRows = block_rows, kVecs = block_vecs, kLanes = bytes / 4;                        \
    template <int kWide, bool kValues>                                                                                 \
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
  using Session = NoSession;
  static constexpr int kPair = 2, kRows = 8, kVecs = 3, kLanes = 16;

  template <int kWide, bool kValues>
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
    softmax_pairs<kRows>(scores, padded, scale, bias, inverse, lse);
  }

  template <int kCount>
  ALT_TARGET_BF16 static void softmax_pairs(float* scores, int64_t padded, float scale, const float* bias,
                                            float* inverse, float* lse) {
    softmax_rows<64, kCount>(scores, padded, scale, bias, inverse, lse);
    for (int64_t n = 0; n < kCount * padded; n += 2 * kLanes) {  // reads stay ahead of writes
      const __m512 low = _mm512_loadu_ps(scores + n), high = _mm512_loadu_ps(scores + n + kLanes);
      _mm512_storeu_si512(scores + n / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }

  ALT_TARGET_BF16 static void pack(const BFloat16* k, int64_t k_stride, const BFloat16* v, int64_t v_stride,
                                   int64_t keys, int64_t depth, uint32_t* packed, uint32_t* values,
                                   uint32_t* /*buffer*/) {
    pack_pairs<kVecs>(k, k_stride, v, v_stride, keys, depth, packed, values);
  }

  template <int kPanel>
  ALT_TARGET_BF16 static void pack_pairs(const BFloat16* k, int64_t k_stride, const BFloat16* v, int64_t v_stride,
                                         int64_t keys, int64_t depth, uint32_t* packed, uint32_t* values) {
    const auto row_of = [&](int64_t n, int64_t) __attribute__((always_inline)) {
      return reinterpret_cast<const uint32_t*>(k + n * k_stride);
    };
    pack_transposed<uint32_t, kLanes, kPanel>(row_of, keys, depth / 2, packed);
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

#if ALT_HAS_AMX
#define ALT_TARGET_AMX __attribute__((target("arch=x86-64-v4,avx512bf16,amx-tile,amx-bf16")))

// Linux gives a process the tile registers when it asks. True if they may be used.
inline bool may_use_tiles() {
  constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool given = syscall(SYS_arch_prctl, request, tile_data) == 0;
  return given;
}

// The same with tile registers: 16 queries by 16 keys or channels, 16 pairs deep, in one instruction. Rounding and
// subnormals are those of vdpbf16ps. Tiles 0 and 1 hold sums, 2 and 3 whole steps of queries and keys; 4 and 5, and 6
// and 7, what is left of either depth.
struct AttentionAmx : AttentionBf16 {
  static constexpr int kRows = 16, kVecs = 2;
  static constexpr int64_t kStep = 16;  // pairs in a row of a tile

  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  // Other code of this thread may have set its own tiles.
  struct Session {
    Config before;

    ALT_TARGET_AMX Session(int64_t width, int64_t steps) {
      asm volatile("sttilecfg %0" : "=m"(before));
      Config own{};
      own.palette = 1;
      const int64_t deep[] = {kStep, width % kStep, steps % kStep};
      for (int t = 0; t < 2; ++t) {
        own.rows[t] = kRows;
        own.row_bytes[t] = 64;
      }
      for (int i = 0; i < 3; ++i) {
        const int64_t pairs = deep[i] == 0 ? kStep : deep[i];  // a tile without rows is no valid one
        own.rows[2 + 2 * i] = kRows;
        own.row_bytes[2 + 2 * i] = static_cast<uint16_t>(4 * pairs);
        own.rows[3 + 2 * i] = static_cast<uint8_t>(pairs);
        own.row_bytes[3 + 2 * i] = 64;
      }
      load(own);
    }

    ALT_TARGET_AMX ~Session() {
      if (before.palette == 0) {
        _tile_release();
      } else {
        load(before);
      }
    }

    // GCC's intrinsics do not tell that they read all 64 bytes.
    ALT_TARGET_AMX static void load(const Config& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

// Adds the products of one step. The numbers of tiles are part of the instructions.
#define ALT_TILE_STEP(left, right)                               \
  _tile_loadd(left, a + k, 4 * a_stride);                        \
  _tile_loadd(right, b + k * b_stride, 4 * b_stride);            \
  _tile_dpbf16ps(0, left, right);                                \
  if constexpr (kWide == 2) {                                    \
    _tile_loadd(right, b + k * b_stride + kLanes, 4 * b_stride); \
    _tile_dpbf16ps(1, left, right);                              \
  }

  // kValues: the product with values, whose depth has a rest of its own.
  template <int kWide, bool kValues>
  ALT_TARGET_AMX static void product(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                                     int64_t depth, float* c, int64_t c_stride) {
    asm volatile("" : : : "memory");  // nor do those that read tiles tell that they read memory
    _tile_zero(0);
    _tile_zero(1);
    int64_t k = 0;
    for (; k + kStep <= depth; k += kStep) {
      ALT_TILE_STEP(2, 3)
    }
    if (k < depth) {
      if constexpr (kValues) {
        ALT_TILE_STEP(6, 7)
      } else {
        ALT_TILE_STEP(4, 5)
      }
    }
    _tile_stored(0, c, 4 * c_stride);
    if constexpr (kWide == 2) {
      _tile_stored(1, c + kLanes, 4 * c_stride);
    }
  }
#undef ALT_TILE_STEP

  ALT_TARGET_AMX static void softmax(float* scores, int64_t padded, float scale, const float* bias, float* inverse,
                                     float* lse) {
    softmax_pairs<kRows>(scores, padded, scale, bias, inverse, lse);
  }

  ALT_TARGET_AMX static void pack(const BFloat16* k, int64_t k_stride, const BFloat16* v, int64_t v_stride,
                                  int64_t keys, int64_t depth, uint32_t* packed, uint32_t* values,
                                  uint32_t* /*buffer*/) {
    pack_pairs<kVecs>(k, k_stride, v, v_stride, keys, depth, packed, values);
  }
};
#endif

}  // namespace
}  // namespace alt
