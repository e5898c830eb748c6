// Unit rows and packed unit columns for matching, one image at a time.
//
// Everything here and in best_match.h is a template that is inlined into a function compiled for one x86 level
// (see bipartite_soft_matching.cpp). The vector width and the register block are parameters, not preprocessor
// choices. T is the type of scores, float or double. Vectors are those of GCC and clang, so other processors
// work too.
#pragma once

#include <cmath>

#include "vectors.h"

namespace alt {
namespace {

// A register block: kRows rows of A times kVecs vectors of kBytes; the accumulators fill the register file.
template <int kBytes_, int kRows_, int kVecs_, bool kFma_>
struct RegisterBlock {
  static constexpr int kBytes = kBytes_;
  static constexpr int kRows = kRows_;
  static constexpr int kVecs = kVecs_;
  static constexpr bool kFma = kFma_;                // has fused multiply-add
  static constexpr int64_t kChunkRows = 8 * kRows_;  // rows that share one pass over the columns
  template <typename T>
  static constexpr int64_t lanes() {
    return kBytes_ / static_cast<int64_t>(sizeof(T));
  }
};

// True if a squared norm can be inverted within the range of T. Other rows take the slow path, and so do all rows of
// doubles, whose scores serve as a check and should not depend on a shortcut.
template <typename T>
ALT_INLINE bool ordinary(double squared_norm) {
  if constexpr (std::is_same_v<T, double>) {
    return false;
  } else {
    return squared_norm > 1e-60 && squared_norm < 1e60;
  }
}

// 1 / norm of kCount rows, each as an unevaluated sum of two T. A product with both parts and one fused rounding is
// as good as the quotient in double: rows that are multiples of one another come out equal, and ties stay ties.
// Without fused multiply-add the product is taken in double.
template <typename T, int kCount>
ALT_INLINE void reciprocals(const double* squared_norm, T* high, T* low) {
  double norm[kCount];
#pragma omp simd
  for (int j = 0; j < kCount; ++j) {
    norm[j] = __builtin_sqrt(squared_norm[j]);
  }
#pragma omp simd
  for (int j = 0; j < kCount; ++j) {
    const double inverse = 1.0 / norm[j];
    high[j] = static_cast<T>(inverse);
    low[j] = static_cast<T>(inverse - static_cast<double>(high[j]));
  }
}

template <typename T, bool kFma>
ALT_INLINE T times(T x, T high, T low) {
  if constexpr (kFma) {
    return std::fma(x, high, x * low);
  } else {
    return static_cast<T>(static_cast<double>(x) * (static_cast<double>(high) + static_cast<double>(low)));
  }
}

// dst = src / |src| for any row; zeros and false if the row is zero or not finite. Dividing by the largest magnitude
// first keeps every finite row in range and makes rows that are multiples of one another equal.
template <typename T, typename In>
bool unit_row_slowly(const In* src, T* dst, int64_t channels) {
  double peak = 0;
  bool finite = true;
  for (int64_t c = 0; c < channels; ++c) {
    const double v = std::fabs(load<double>(src[c]));
    finite &= v <= std::numeric_limits<double>::max();
    peak = std::max(peak, v);
  }
  if (!finite || peak == 0) {
    std::fill(dst, dst + channels, T(0));
    return false;
  }
  double sum = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double v = load<double>(src[c]) / peak;
    sum += v * v;
  }
  const double norm = std::sqrt(sum);
  for (int64_t c = 0; c < channels; ++c) {
    dst[c] = static_cast<T>(load<double>(src[c]) / peak / norm);
  }
  return true;
}

// Sum of squares in double: vectors of partial sums, added in a fixed order.
template <typename T, int kBytes, typename In>
ALT_INLINE double squared_norm(const In* ALT_RESTRICT src, int64_t channels) {
  constexpr int lanes = kBytes / static_cast<int>(sizeof(double));
  using D = Vec<double, kBytes>;
  D even{}, odd{};
  int64_t c = 0;
  for (; c + 2 * lanes <= channels; c += 2 * lanes) {
    alignas(64) double v[2 * lanes];
#pragma omp simd
    for (int l = 0; l < 2 * lanes; ++l) {
      v[l] = load<double>(src[c + l]);
    }
    const D first = *reinterpret_cast<const D*>(v);
    const D second = *reinterpret_cast<const D*>(v + lanes);
    even += first * first;
    odd += second * second;
  }
  even += odd;
  double sum = 0;
  for (; c < channels; ++c) {
    const double v = load<double>(src[c]);
    sum += v * v;
  }
  for (int l = 0; l < lanes; ++l) {
    sum += even[l];
  }
  return sum;
}

// The width of the panel that starts at `column`, in columns; the widths sum to padded_columns.
template <typename T, typename Block>
ALT_INLINE int64_t panel_width(int64_t column, int64_t columns) {
  constexpr int64_t lanes = Block::template lanes<T>();
  const int64_t left = columns - column;
  if (left >= Block::kVecs * lanes) {
    return Block::kVecs * lanes;
  }
  if (left >= lanes) {
    return left / lanes * lanes;
  }
  return lanes >= 4 && left <= lanes / 2 ? lanes / 2 : lanes;  // the last columns, at most one vector
}

template <typename T, typename Block>
ALT_INLINE int64_t padded_columns(int64_t columns) {
  constexpr int64_t lanes = Block::template lanes<T>();
  const int64_t tail = columns % lanes;
  return columns - tail + (tail == 0 ? 0 : lanes >= 4 && tail <= lanes / 2 ? lanes / 2 : lanes);
}

// The unprotected tokens of one parity: token i of the set is row first + 2 i of the image.
struct TokenSet {
  int64_t first, count;
};

// Unit rows of A, [rounded up rows, channels]; `valid` [count]. Rows past count are zero.
template <typename T, typename Block, typename In>
ALT_INLINE void prepare_rows(const In* image, int64_t token_stride, TokenSet set, int64_t channels, T* rows,
                             uint8_t* valid) {
  constexpr int group = static_cast<int>(Block::template lanes<T>());
  for (int64_t first = 0; first < set.count; first += group) {
    const int64_t count = std::min<int64_t>(group, set.count - first);
    const In* src = image + (set.first + 2 * first) * token_stride;
    double sum[group] = {};
    T high[group], low[group];
    for (int64_t j = 0; j < count; ++j) {
      sum[j] = squared_norm<T, Block::kBytes>(src + 2 * j * token_stride, channels);
    }
    reciprocals<T, group>(sum, high, low);
    for (int64_t j = 0; j < count; ++j) {
      const In* ALT_RESTRICT in = src + 2 * j * token_stride;
      T* ALT_RESTRICT out = rows + (first + j) * channels;
      valid[first + j] = 1;
      if (!ordinary<T>(sum[j])) {
        valid[first + j] = unit_row_slowly(in, out, channels);
        continue;
      }
      const T h = high[j], l = low[j];
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = times<T, Block::kFma>(load<T>(in[c]), h, l);
      }
    }
  }
  std::fill(rows + set.count * channels, rows + round_up(set.count, Block::kRows) * channels, T(0));
}

// One vector of columns: kLanes tokens of B from `token` on, transposed into `panel` (row stride `width`) and
// scaled to unit columns. bias [kLanes]: 0 where the column is a candidate, else -inf. Norms are summed lane by lane.
template <typename T, int kLanes, bool kFma, typename In>
ALT_INLINE void prepare_vector(const In* image, int64_t token_stride, int64_t token, int64_t count, int64_t channels,
                               T* ALT_RESTRICT panel, int64_t width, T* bias, T* buffer) {
  const T* rows[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) {
    const In* row = image + (token + 2 * std::min(j, count - 1)) * token_stride;
    if constexpr (std::is_same_v<T, In>) {
      rows[j] = row;
    } else {
      rows[j] = buffer + j * channels;
      for (int64_t c = 0; j < count && c < channels; ++c) {
        buffer[j * channels + c] = load<T>(row[c]);
      }
    }
  }
  transpose_rows<T, kLanes>(rows, count, channels, panel, width);

  double sum[kLanes] = {};
  for (int64_t c = 0; c < channels; ++c) {
    for (int j = 0; j < kLanes; ++j) {
      const double v = static_cast<double>(panel[c * width + j]);
      sum[j] += v * v;
    }
  }
  T high[kLanes], low[kLanes];
  reciprocals<T, kLanes>(sum, high, low);
  for (int64_t c = 0; c < channels; ++c) {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      panel[c * width + j] = times<T, kFma>(panel[c * width + j], high[j], low[j]);
    }
  }
  for (int64_t j = 0; j < kLanes; ++j) {
    bool candidate = j < count;
    if (candidate && !ordinary<T>(sum[j])) {
      candidate = unit_row_slowly(image + (token + 2 * j) * token_stride, buffer, channels);
      for (int64_t c = 0; c < channels; ++c) {
        panel[c * width + j] = buffer[c];
      }
    } else if (!candidate) {
      for (int64_t c = 0; c < channels; ++c) {
        panel[c * width + j] = T(0);  // 0 * (1 / 0) above
      }
    }
    bias[j] = candidate ? T(0) : -std::numeric_limits<T>::infinity();
  }
}

// Unit rows of B, transposed into panels: the panel that starts at column j lies at packed + j * channels and
// is [channels, width]. bias [padded columns] is 0, or -inf where the column is no candidate.
template <typename T, typename Block, typename In>
ALT_INLINE void prepare_columns(const In* image, int64_t token_stride, TokenSet set, int64_t channels, T* packed,
                                T* bias, T* buffer) {
  constexpr int lanes = static_cast<int>(Block::template lanes<T>());
  for (int64_t column = 0; column < set.count;) {
    const int64_t width = panel_width<T, Block>(column, set.count);
    T* panel = packed + column * channels;
    for (int64_t inside = 0; inside < width; inside += lanes) {
      const int64_t first = column + inside;
      const int64_t token = set.first + 2 * first;
      if (width - inside >= lanes) {
        prepare_vector<T, lanes, Block::kFma>(image, token_stride, token, std::min<int64_t>(lanes, set.count - first),
                                              channels, panel + inside, width, bias + first, buffer);
      } else if constexpr (lanes >= 4) {
        prepare_vector<T, lanes / 2, Block::kFma>(image, token_stride, token, set.count - first, channels,
                                                  panel + inside, width, bias + first, buffer);
      }
    }
    column += width;
  }
}

}  // namespace
}  // namespace alt
