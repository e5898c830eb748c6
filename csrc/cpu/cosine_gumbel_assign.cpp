// alt_kernels::gumbel_assignment on the CPU: cosine logits with Gumbel noise, their argmax and log-sum-exp, and the
// chosen entities (hard) or the softmax-weighted ones.
//
//   x [M, d], entities [K, d] -> output [M, d], index [M] int64, log_normalizer [M]
//
// Hard mode keeps one chunk x tile of logits at a time and a running (max, argmax, sum) per row. Soft mode keeps
// the logits of one chunk of rows, because softmax needs the whole row. Argmax takes the lowest index among equals
// and skips NaN; log_normalizer is NaN where any logit is.
#include "cpu/cosine_gumbel_assign.h"

namespace alt {
namespace gumbel {
namespace {

// The running state of a row, or its value over one tile; sum is over exp(logit - max).
template <typename T>
struct Best {
  T max = -std::numeric_limits<T>::infinity();
  int64_t index = 0;
  double sum = 0.0;
};

template <typename T>
ALT_INLINE void score_block(T* ALT_RESTRICT z, const T* ALT_RESTRICT inverse_norm, const T* ALT_RESTRICT noise,
                            int64_t count, T tau, T* ALT_RESTRICT lane_max) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const T logit = z[j] * inverse_norm[j] / tau + noise[j];
    z[j] = logit;
    lane_max[j] = logit > lane_max[j] ? logit : lane_max[j];
  }
}

template <typename T>
ALT_INLINE double sum_of_exp(const T* z, int64_t count, T max) {
  constexpr int64_t step = 256;  // partial sums short enough for float32
  double total = 0.0;
  for (int64_t b = 0; b < count; b += step) {
    const int64_t end = std::min(count, b + step);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = b; j < end; ++j) {
      sum += vexp(z[j] - max);
    }
    total += static_cast<double>(sum);
  }
  return total;
}

// z [count]: dot products of a unit row of x with a tile's stored rows in, logits out.
template <typename T>
ALT_INLINE Best<T> score_row_body(T* z, const T* inverse_norm, int64_t count, T tau, const NoiseRow<T>& noise,
                                  int64_t first_column) {
  alignas(64) T drawn[kBlock];
  alignas(64) T lane_max[kBlock];
  for (T& lane : lane_max) {
    lane = -std::numeric_limits<T>::infinity();
  }
  for (int64_t b = 0; b < count; b += kBlock) {
    const int64_t left = count - b;
    noise_block(noise, first_column + b, b, std::min(left, kBlock), drawn);
    if (left >= kBlock) {
      score_block(z + b, inverse_norm + b, drawn, kBlock, tau, lane_max);
    } else {
      score_block(z + b, inverse_norm + b, drawn, left, tau, lane_max);
    }
  }
  Best<T> best;
  for (const T lane : lane_max) {
    best.max = lane > best.max ? lane : best.max;
  }
  best.index = first_column;
  if (!std::isfinite(best.max)) {  // infinite logits, or none that is a number above -inf
    bool nan = false;
    for (int64_t j = 0; j < count; ++j) {
      nan |= std::isnan(z[j]);
    }
    best.sum = nan ? std::numeric_limits<double>::quiet_NaN() : (best.max > T(0) ? 1.0 : 0.0);
  } else {
    best.sum = sum_of_exp(z, count, best.max);
  }
  if (best.max > -std::numeric_limits<T>::infinity()) {
    int64_t lowest = count;
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      if (lane_max[lane] == best.max) {
        int64_t j = lane;
        while (j < lowest && z[j] != best.max) {
          j += kBlock;
        }
        lowest = std::min(lowest, j);
      }
    }
    best.index = first_column + lowest;
  }
  return best;
}

ALT_MULTIVERSION Best<float> score_row(float* z, const float* inverse_norm, int64_t count, float tau,
                                       const NoiseRow<float>& noise, int64_t first_column) {
  return score_row_body(z, inverse_norm, count, tau, noise, first_column);
}

Best<double> score_row(double* z, const double* inverse_norm, int64_t count, double tau, const NoiseRow<double>& noise,
                       int64_t first_column) {
  return score_row_body(z, inverse_norm, count, tau, noise, first_column);
}

// z: logits in, softmax out, times the factor from a stored to a given entity row.
template <typename T>
ALT_INLINE void softmax_row_body(T* z, int64_t count, T log_normalizer, const T* value_scale) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    z[j] = vexp(z[j] - log_normalizer);
  }
  for (int64_t j = 0; value_scale != nullptr && j < count; ++j) {
    z[j] *= value_scale[j];
  }
}

ALT_MULTIVERSION void softmax_row(float* z, int64_t count, float log_normalizer, const float* value_scale) {
  softmax_row_body(z, count, log_normalizer, value_scale);
}

void softmax_row(double* z, int64_t count, double log_normalizer, const double* value_scale) {
  softmax_row_body(z, count, log_normalizer, value_scale);
}

// Merges a later tile into a row's state. A strict comparison keeps the lowest index.
template <typename T>
void merge(Best<T>& row, const Best<T>& tile) {
  const bool larger = tile.max > row.max;
  const T low = larger ? row.max : tile.max, high = larger ? tile.max : row.max;
  // With low = -inf its sum is 0 or NaN, which no factor may change; equal infinities must not give NaN.
  const double factor = low == high || std::isinf(low) ? 1.0 : std::exp(static_cast<double>(low) - high);
  row.sum = larger ? row.sum * factor + tile.sum : row.sum + tile.sum * factor;
  if (larger) {
    row.max = tile.max;
    row.index = tile.index;
  }
}

template <typename T>
void assign(const Problem& p, const Tensor& x, const Tensor& entities, const std::optional<Tensor>& noise, bool hard,
            const Tensor& output, const Tensor& index, const Tensor& log_normalizer) {
  EntityTiles<T> tiles(p, entities);
  ChunkNoise<T> chunk_noise(p, noise);
  const auto tau = static_cast<T>(p.tau);
  const int64_t kept = hard ? tiles.tile_width() : p.entities;  // logits of a row that live at once
  const int64_t chunk = rows_per_chunk(p, kept + 2 * p.width);
  Scratch<T> logits(chunk * kept), unit(chunk * p.width), mixed(hard ? 0 : chunk * p.width);
  Scratch<double> inverse_norm(chunk);
  std::vector<Best<T>> best(static_cast<size_t>(chunk));
  int64_t* index_out = data<int64_t>(index);
  T* normalizer_out = data<T>(log_normalizer);

  for (int64_t i0 = 0; i0 < p.rows; i0 += chunk) {
    const int64_t rows = std::min(chunk, p.rows - i0);
    const Tensor unit_rows = matrix_over(unit.get(), rows, p.width);
    copy_into(unit_rows, rows_of(x, i0, rows));
    normalise_rows(unit.get(), rows, p.width, inverse_norm.get());
    std::fill(best.begin(), best.end(), Best<T>{});
    for (int64_t t = 0; t < tiles.tiles(); ++t) {
      const int64_t columns = tiles.size(t), first = tiles.first(t);
      T* z = logits.get() + (hard ? 0 : rows * first);
      mm_out(matrix_over(z, rows, columns), unit_rows, transposed(tiles.tile(t)));
      chunk_noise.select(i0, rows, first, columns);
      parallel_for(rows, 4 * columns, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          merge(best[static_cast<size_t>(i)],
                score_row(z + i * columns, tiles.inverse_norm(t), columns, tau, chunk_noise.row(i), first));
        }
      });
    }
    for (int64_t i = 0; i < rows; ++i) {
      const Best<T>& row = best[static_cast<size_t>(i)];
      index_out[i0 + i] = row.index;
      normalizer_out[i0 + i] = static_cast<T>(static_cast<double>(row.max) + std::log(row.sum));
    }
    if (hard) {
      continue;
    }
    const Tensor mixed_rows = matrix_over(mixed.get(), rows, p.width);
    std::fill_n(mixed.get(), rows * p.width, T(0));
    for (int64_t t = 0; t < tiles.tiles(); ++t) {
      const int64_t columns = tiles.size(t);
      T* z = logits.get() + rows * tiles.first(t);
      parallel_for(rows, columns, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          softmax_row(z + i * columns, columns, normalizer_out[i0 + i], tiles.value_scale(t));
        }
      });
      addmm_into(mixed_rows, matrix_over(z, rows, columns), tiles.tile(t));
    }
    copy_into(rows_of(output, i0, rows), mixed_rows);
  }
}

Tensor gather_rows(const Tensor& source, const Tensor& index) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(source), torch::stable::detail::from(int64_t{0}),
                                    torch::stable::detail::from(index)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

std::tuple<Tensor, Tensor, Tensor> gumbel_assignment(Tensor x, Tensor entities, Tensor tau, std::optional<Tensor> noise,
                                                     std::optional<Tensor> seed, bool hard) {
  const Problem p = make_problem(x, entities, tau, noise, seed);
  Tensor index = new_empty({p.rows}, ScalarType::Long);
  Tensor log_normalizer = new_empty({p.rows}, p.accumulate);
  Tensor output = hard ? index : new_empty({p.rows, p.width}, p.output);
  if (p.accumulate == ScalarType::Double) {
    assign<double>(p, x, entities, noise, hard, output, index, log_normalizer);
  } else {
    assign<float>(p, x, entities, noise, hard, output, index, log_normalizer);
  }
  if (hard) {
    output = gather_rows(entities, index);
    if (output.scalar_type() != p.output) {
      output = torch::stable::to(output, p.output);
    }
  }
  return {output, index, log_normalizer};
}

}  // namespace
}  // namespace gumbel
}  // namespace alt

STABLE_TORCH_LIBRARY_IMPL(alt_kernels, CPU, m) {
  m.impl("gumbel_assignment", TORCH_BOX(&alt::gumbel::gumbel_assignment));
}
