// Loads the rows of A and of B that bipartite_soft_matching.cuh compares into shared memory, scaled, with their norms.
//
// Rows become float32, scaled exactly by a power of two to a largest magnitude in [1, 4), and 1 / norm is stored
// beside them. Keys of several heads are summed on the way: cosines are invariant to the factor H. The largest
// magnitude is compared as integer bits, where NaN > inf > finite, so a row without a direction is found without a
// floating-point comparison.
#pragma once

#include "device.h"

namespace alt::gpu {

constexpr int kMatchThreads = 256;
constexpr int kMatchTokens = 512;             // the most tokens that a block takes
constexpr int kMatchSide = kMatchTokens / 2;  // the most of A or of B
constexpr int kChannels = 64;                 // per tile
constexpr int kPitch = kChannels + 4;         // floats: 16 rows of a column lie in different banks
constexpr int kSide = 16;                     // threads along each side of a tile
constexpr int kRowLanes = kChannels / 8;      // threads that load a row

struct Match {
  const void* x;  // [B, H, N, C], the last dimension contiguous
  int32_t* indices;
  int32_t* offsets;
  int32_t* output_row;
  int64_t image_stride, head_stride, token_stride;  // elements
  int32_t tokens, channels, heads, r, num_protected;
};

// Tokens of A or of B: first, first + 2, ...
struct TokenSet {
  int first, count;
};

struct Sets {
  TokenSet a, b;
};

ALT_DEVICE Sets sets_of(int tokens, int num_protected) {
  const int even = (tokens + 1) / 2 - (num_protected + 1) / 2, odd = tokens / 2 - num_protected / 2;
  return {{num_protected + num_protected % 2, even}, {num_protected + 1 - num_protected % 2, odd}};
}

// Reads up to eight channels (`left`) of each of P tokens, zero-padded and summed over the heads. `p` must be readable
// even where nothing is left: without a branch several loads are in flight, and a small batch is bound by latency.
template <typename T, int P, int Heads, bool Aligned>
ALT_DEVICE void read_rows(const Match& m, const T* const (&p)[P], const int (&left)[P], float (&v)[P][8]) {
#pragma unroll
  for (int i = 0; i < P; ++i) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      v[i][k] = 0.0f;
    }
  }
#pragma unroll Heads
  for (int h = 0; h < m.heads; ++h) {
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const T* at = p[i] + h * m.head_stride;
      if constexpr (Aligned) {
        float more[8];
        read8(at, more);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          v[i][k] += more[k];
        }
      } else {
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          v[i][k] += k < left[i] ? widen(at[k]) : 0.0f;
        }
      }
    }
  }
  if constexpr (Aligned) {  // C is a multiple of eight: all or none are left
#pragma unroll
    for (int i = 0; i < P; ++i) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        v[i][k] = left[i] > 0 ? v[i][k] : 0.0f;
      }
    }
  }
}

template <typename T, bool Aligned>
ALT_DEVICE void read_row(const Match& m, const T* image, int token, int channel, float (&v)[8]) {
  const int left[1] = {m.channels - channel};
  const T* p[1] = {image + token * m.token_stride + (left[0] > 0 ? channel : 0)};
  float row[1][8];
  read_rows<T, 1, Aligned ? 4 : 1, Aligned>(m, p, left, row);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    v[k] = row[0][k];
  }
}

ALT_DEVICE uint32_t peak_of(const float (&v)[8]) {
  uint32_t peak = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const uint32_t bits = float_as_bits(v[k]) & 0x7fffffffu;
    peak = bits > peak ? bits : peak;
  }
  return peak;
}

ALT_DEVICE uint32_t peak_of_row(uint32_t peak) {
#pragma unroll
  for (int mask = kRowLanes / 2; mask > 0; mask /= 2) {
    const uint32_t other = shuffle_xor(peak, mask);
    peak = other > peak ? other : peak;
  }
  return peak;
}

ALT_DEVICE bool has_direction(uint32_t peak) { return peak > 0 && peak < 0x7f800000u; }

// 2^(127 - e) for the biased exponent e of the peak, kept a normal number.
ALT_DEVICE float scale_of(uint32_t peak) {
  int exponent = 254 - static_cast<int>(peak >> 23);
  exponent = exponent < 1 ? 1 : exponent > 254 ? 254 : exponent;
  return bits_as_float(static_cast<uint32_t>(exponent) << 23);
}

ALT_DEVICE float square_of(const float (&v)[8], float scale) {
  float square = 0.0f;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float x = v[k] * scale;
    square = fused_multiply_add(x, x, square);
  }
  return square;
}

// Stores eight channels of a row. Half of a row's lanes store their second four first, so that the eight lanes that
// store together use 32 banks, not 16.
ALT_DEVICE void store_row(float* at, const float (&v)[8], float scale, bool keep) {
  const bool second = thread_index() % kRowLanes >= kRowLanes / 2;
#pragma unroll
  for (int turn = 0; turn < 2; ++turn) {
    Pack pack;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float x = second ? v[4 - 4 * turn + k] : v[4 * turn + k];
      pack.word[k] = keep ? float_as_bits(x * scale) : 0u;
    }
    store16(at + 4 * (second ? 1 - turn : turn), pack);
  }
}

// Loads rows [begin, begin + Rows) of a set, which fit one tile of channels: one read, scaling and inverse norms.
template <typename T, int Rows, bool Aligned>
ALT_DEVICE void load_whole_rows(const Match& m, const T* image, TokenSet set, int begin, float* tile, float* inverse) {
  constexpr int at_once = kMatchThreads / kRowLanes, parts = (Rows + at_once - 1) / at_once;
  static_assert(Rows % (kWarp / kRowLanes) == 0);  // shuffles need whole warps
  const int lane = thread_index() % kRowLanes, first = thread_index() / kRowLanes;
  const T* p[parts];
  int left[parts];
  float v[parts][8];
#pragma unroll
  for (int i = 0; i < parts; ++i) {
    const int row = first + at_once * i;
    const bool live = row < Rows && begin + row < set.count;
    left[i] = live ? m.channels - 8 * lane : 0;
    p[i] = image + (set.first + 2 * (live ? begin + row : 0)) * m.token_stride + (left[i] > 0 ? 8 * lane : 0);
  }
  // The number of heads read at once: as many as every GPU has registers for.
  constexpr int heads = !Aligned || Rows > 7 * kSide ? 1 : sizeof(T) == 4 && parts > 2 ? 2 : 4;
  read_rows<T, parts, heads, Aligned>(m, p, left, v);
#pragma unroll
  for (int i = 0; i < parts; ++i) {
    const int row = first + at_once * i;
    if (row < Rows) {
      const uint32_t peak = peak_of_row(peak_of(v[i]));
      const bool valid = has_direction(peak);
      const float scale = scale_of(peak);
      const float square = sum_lanes<kRowLanes>(square_of(v[i], scale));
      store_row(tile + row * kPitch + 8 * lane, v[i], scale, valid);
      if (lane == 0) {
        inverse[row] = valid ? divide(1.0f, square_root(square)) : 0.0f;
      }
    }
  }
}

// For wider rows: first the scale and the norm, in two passes over the row ...
template <typename T, bool Aligned>
ALT_DEVICE void measure_rows(const Match& m, const T* image, TokenSet set, int begin, int rows, float* scales,
                             float* inverse) {
  const int lane = thread_index() % kRowLanes;
  for (int row = thread_index() / kRowLanes; row < rows; row += kMatchThreads / kRowLanes) {
    const bool live = begin + row < set.count;
    const int token = set.first + 2 * (live ? begin + row : 0);
    const int channels = live ? m.channels : 0;
    float v[8];
    uint32_t peak = 0;
    for (int channel = 8 * lane; channel < channels; channel += kChannels) {
      read_row<T, Aligned>(m, image, token, channel, v);
      const uint32_t more = peak_of(v);
      peak = more > peak ? more : peak;
    }
    peak = peak_of_row(peak);
    const float scale = scale_of(peak);
    float square = 0.0f;
    for (int channel = 8 * lane; channel < channels; channel += kChannels) {
      read_row<T, Aligned>(m, image, token, channel, v);
      square += square_of(v, scale);
    }
    square = sum_lanes<kRowLanes>(square);
    if (lane == 0) {
      scales[row] = scale;
      inverse[row] = has_direction(peak) ? divide(1.0f, square_root(square)) : 0.0f;
    }
  }
}

// ... then the channels of one tile.
template <typename T, bool Aligned>
ALT_DEVICE void load_part_of_rows(const Match& m, const T* image, TokenSet set, int begin, int rows, int channel,
                                  float* tile, const float* scales, const float* inverse) {
  const int lane = thread_index() % kRowLanes;
  for (int row = thread_index() / kRowLanes; row < rows; row += kMatchThreads / kRowLanes) {
    const bool live = begin + row < set.count;
    float v[8];
    read_row<T, Aligned>(m, image, set.first + 2 * (live ? begin + row : 0), live ? channel + 8 * lane : m.channels, v);
    store_row(tile + row * kPitch + 8 * lane, v, scales[row], inverse[row] > 0.0f);
  }
}

}  // namespace alt::gpu
