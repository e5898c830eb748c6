// The search of matching for one image: the best column of every row, and the r rows with the highest best score.
//
// Operands come from unit_rows.h. Scores are dot products of unit vectors, kept in registers.
#pragma once

#include "unit_rows.h"

namespace alt {
namespace {

// One register block: scores of kRows rows against kVecs vectors of columns, folded into the running best of
// every lane. best and base are [kRows][lanes]: the best score of the lane so far and the first column of its
// vector. Columns come in ascending order and only a strictly better score replaces, so a lane keeps its lowest
// column.
template <typename T, int kBytes, int kRows, int kVecs>
ALT_INLINE void score_block(const T* ALT_RESTRICT rows, const T* ALT_RESTRICT panel, const T* ALT_RESTRICT bias,
                            int64_t channels, int64_t column, T* ALT_RESTRICT best, IndexOf<T>* ALT_RESTRICT base,
                            int64_t best_stride) {
  using V = Vec<T, kBytes>;
  using VI = Vec<IndexOf<T>, kBytes>;
  constexpr int64_t lanes = kBytes / static_cast<int64_t>(sizeof(T));
  V acc[kRows][kVecs];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kVecs; ++v) {
      acc[m][v] = *reinterpret_cast<const V*>(bias + v * lanes);  // -inf stays -inf
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    V b[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      b[v] = *reinterpret_cast<const V*>(panel + (c * kVecs + v) * lanes);
    }
    for (int m = 0; m < kRows; ++m) {
      const T a = rows[m * channels + c];
      for (int v = 0; v < kVecs; ++v) {
        acc[m][v] += a * b[v];
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    V value = *reinterpret_cast<const V*>(best + m * best_stride);
    VI where = *reinterpret_cast<const VI*>(base + m * best_stride);
    for (int v = 0; v < kVecs; ++v) {
      const VI here = VI{} + static_cast<IndexOf<T>>(column + v * lanes);
      const auto better = acc[m][v] > value;
      value = better ? acc[m][v] : value;
      where = better ? here : where;
    }
    *reinterpret_cast<V*>(best + m * best_stride) = value;
    *reinterpret_cast<VI*>(base + m * best_stride) = where;
  }
}

template <typename T, typename Block, int kVecs>
ALT_INLINE void score_panel(int64_t vecs, const T* rows, int64_t count, const T* panel, const T* bias, int64_t channels,
                            int64_t column, T* best, IndexOf<T>* base) {
  constexpr int64_t lanes = Block::template lanes<T>();
  if constexpr (kVecs > 0) {
    if (vecs == kVecs) {
      for (int64_t i = 0; i < count; i += Block::kRows) {
        score_block<T, Block::kBytes, Block::kRows, kVecs>(rows + i * channels, panel, bias, channels, column,
                                                           best + i * lanes, base + i * lanes, lanes);
      }
    } else {
      score_panel<T, Block, kVecs - 1>(vecs, rows, count, panel, bias, channels, column, best, base);
    }
  } else if constexpr (lanes >= 4) {  // half a vector
    for (int64_t i = 0; i < count; i += Block::kRows) {
      score_block<T, Block::kBytes / 2, Block::kRows, 1>(rows + i * channels, panel, bias, channels, column,
                                                         best + i * lanes, base + i * lanes, lanes);
    }
  }
}

// score[i] = max_j <a_i, b_j>, column[i] = the lowest j that reaches it, for rows [begin, end) of A; begin is
// a multiple of kRows. A row that is not valid scores -inf and points at column 0. Scores are sums over
// channels in ascending order whatever the blocking, so they do not depend on begin and end.
template <typename T, typename Block>
ALT_INLINE void best_columns(const T* rows, const uint8_t* valid, int64_t begin, int64_t end, const T* packed,
                             const T* bias, int64_t columns, int64_t channels, T* score, int32_t* column_of) {
  constexpr int64_t lanes = Block::template lanes<T>();
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  alignas(64) T best[Block::kChunkRows * lanes];
  alignas(64) IndexOf<T> base[Block::kChunkRows * lanes];
  for (int64_t chunk = begin; chunk < end; chunk += Block::kChunkRows) {
    const int64_t count = std::min(Block::kChunkRows, round_up(end - chunk, Block::kRows));
    std::fill(best, best + count * lanes, lowest);
    std::fill(base, base + count * lanes, IndexOf<T>(0));
    for (int64_t column = 0; column < columns;) {
      const int64_t width = panel_width<T, Block>(column, columns);
      score_panel<T, Block, Block::kVecs>(width / lanes, rows + chunk * channels, count, packed + column * channels,
                                          bias + column, channels, column, best, base);
      column += width;
    }
    for (int64_t i = 0; i < std::min(count, end - chunk); ++i) {
      T value = lowest;
      int64_t where = 0;
      for (int64_t l = 0; l < lanes; ++l) {
        const T v = best[i * lanes + l];
        const int64_t w = static_cast<int64_t>(base[i * lanes + l]) + l;
        if (v > value || (v == value && v != lowest && w < where)) {
          value = v;
          where = w;
        }
      }
      score[chunk + i] = valid[chunk + i] ? value : lowest;
      column_of[chunk + i] = valid[chunk + i] ? static_cast<int32_t>(where) : 0;
    }
  }
}

// merged[i] = 1 for the r rows with the highest score, ties to the lower i. A row's rank is the number of rows that
// beat it, so nothing is sorted and the result does not depend on the order of evaluation. Ranks are counted for a
// vector of rows at a time; score and merged have room for one more vector.
template <typename T, typename Block>
ALT_INLINE void choose_rows(T* score, int64_t rows, int64_t r, uint8_t* merged) {
  using V = Vec<T, Block::kBytes>;
  using VI = Vec<IndexOf<T>, Block::kBytes>;
  constexpr int64_t lanes = Block::template lanes<T>();
  // Selects, not arithmetic on masks, some of which GCC compiles lane by lane.
  const VI zero{}, one = zero + 1;
  VI lane;
  for (int64_t l = 0; l < lanes; ++l) {
    lane[l] = static_cast<IndexOf<T>>(l);
  }
  std::fill(score + rows, score + round_up(rows, lanes), T(0));  // ranked and ignored
  for (int64_t i = 0; i < rows; i += lanes) {
    const V own = *reinterpret_cast<const V*>(score + i);
    const int64_t after = std::min(rows, i + lanes);
    VI rank{};
    for (int64_t j = 0; j < i; ++j) {
      rank += V{} + score[j] >= own ? one : zero;
    }
    for (int64_t j = i; j < after; ++j) {
      const V other = V{} + score[j];
      const VI if_lower = other >= own ? one : zero;
      const VI if_higher = other > own ? one : zero;
      rank += lane > static_cast<IndexOf<T>>(j - i) ? if_lower : if_higher;
    }
    for (int64_t j = after; j < rows; ++j) {
      rank += V{} + score[j] > own ? one : zero;
    }
    for (int64_t l = 0; l < lanes; ++l) {
      merged[i + l] = rank[l] < r;
    }
  }
}

}  // namespace
}  // namespace alt
