// Residual sum, weighted merge and LayerNorm on the CPU, in one pass over the tokens.
//
//   merge_layer_norm(x [B, N, C], residual [B, N, C], size [B, N]?, plan, weight [C]?, bias [C]?, eps)
//     -> x' [B, M, C], normed [B, M, C], S [B, M] float32, mean [B, M], rstd [B, M]
//
// x'_j = sum s_i (x_i + residual_i) / S_j
//
// is summed in float (double for double) and rounded once to the promoted dtype of x and residual. normed is the
// LayerNorm of x' as stored. A row stays in the first-level cache from its sum to its norm. The variance is taken
// about the mean, so a large mean loses no digits. Threads take whole rows.

#include <cmath>

#include "row_ops.h"

namespace alt {
namespace {

// Sixty-four bytes of Acc: one AVX-512 register, two of AVX2, four of the baseline.
template <typename Acc>
struct WideOf {
  typedef Acc type __attribute__((vector_size(64), aligned(alignof(Acc)), may_alias));
};
template <typename Acc>
using Wide = typename WideOf<Acc>::type;
template <typename Acc>
constexpr int kWide = 64 / static_cast<int>(sizeof(Acc));

template <typename Acc>
ALT_INLINE Acc sum_lanes(const Wide<Acc>& v) {
  Acc lanes[kWide<Acc>];
  std::memcpy(lanes, &v, sizeof(lanes));
  for (int half = kWide<Acc> / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      lanes[l] += lanes[l + half];
    }
  }
  return lanes[0];
}

// out = x + residual, rounded once to T.
template <typename T>
ALT_MULTIVERSION void row_sum(const T* ALT_RESTRICT x, const T* ALT_RESTRICT residual, T* ALT_RESTRICT out,
                              int64_t channels) {
  using Acc = accumulate_t<T>;
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = store<T>(load<Acc>(x[c]) + load<Acc>(residual[c]));
  }
}

// Mean and 1 / sqrt(variance + eps) of a row. The mean difference from a first estimate corrects both.
template <typename Acc>
ALT_MULTIVERSION void row_moments(const Acc* ALT_RESTRICT x, int64_t channels, double eps, Acc* mean, Acc* rstd) {
  constexpr int wide = kWide<Acc>;
  Wide<Acc> even{}, odd{}, v;
  int64_t c = 0;
  for (; c + 2 * wide <= channels; c += 2 * wide) {
    v = *reinterpret_cast<const Wide<Acc>*>(x + c);
    even += v;
    v = *reinterpret_cast<const Wide<Acc>*>(x + c + wide);
    odd += v;
  }
  even += odd;
  Acc sum = sum_lanes<Acc>(even);
  for (; c < channels; ++c) {
    sum += x[c];
  }
  const Acc first = sum / static_cast<Acc>(channels);

  Wide<Acc> difference{}, square_even{}, square_odd{};
  for (c = 0; c + 2 * wide <= channels; c += 2 * wide) {
    v = *reinterpret_cast<const Wide<Acc>*>(x + c);
    v -= first;
    difference += v;
    square_even += v * v;
    v = *reinterpret_cast<const Wide<Acc>*>(x + c + wide);
    v -= first;
    difference += v;
    square_odd += v * v;
  }
  square_even += square_odd;
  Acc correction = sum_lanes<Acc>(difference);
  Acc squares = sum_lanes<Acc>(square_even);
  for (; c < channels; ++c) {
    const Acc d = x[c] - first;
    correction += d;
    squares += d * d;
  }
  correction /= static_cast<Acc>(channels);
  const double variance = static_cast<double>(squares) / static_cast<double>(channels) -
                          static_cast<double>(correction) * static_cast<double>(correction);
  *mean = first + correction;
  // Not std::max, which would turn a NaN into 0.
  *rstd = static_cast<Acc>(1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + eps));
}

// out = (x - mean) rstd weight + bias
template <typename T, typename Acc>
ALT_MULTIVERSION void row_normalise(const Acc* ALT_RESTRICT x, Acc mean, Acc rstd, const Acc* ALT_RESTRICT weight,
                                    const Acc* ALT_RESTRICT bias, T* ALT_RESTRICT out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = store<T>((x[c] - mean) * rstd * weight[c] + bias[c]);
  }
}

// The arguments of an output row. X and R are the dtypes of x and residual, T that of the result.
template <typename X, typename R, typename T>
struct Forward {
  using Acc = accumulate_t<T>;
  const Plan& plan;
  const X* x;
  const R* residual;
  RowStrides x_stride, residual_stride;
  const float* size;  // [B, N] or nullptr
  const Acc *weight, *bias;
  T *merged, *normed;
  float* total;
  Acc *mean, *rstd;
  int64_t channels;
  double eps;

  // acc = or += w (x_i + residual_i)
  template <bool kFirst>
  void add_token(int64_t image, int64_t token, Acc w, Acc* acc, Acc* one) const {
    row_scaled<Acc>(x + image * x_stride.batch + token * x_stride.row, Acc(1), kFirst ? acc : one, channels);
    row_add_scaled<Acc>(residual + image * residual_stride.batch + token * residual_stride.row, Acc(1),
                        kFirst ? acc : one, channels);
    if (!kFirst) {
      row_add_scaled<Acc>(one, w, acc, channels);
    } else if (w != Acc(1)) {
      row_scale_in_place(acc, w, channels);
    }
  }

  // Prefetches the source of an output row while the row before it is normalised. The rows of one set are every
  // other token, a pattern that hardware prefetchers miss.
  void prefetch(int64_t image, int64_t j) const {
#if defined(__GNUC__)
    const int64_t own = plan.indices[image * plan.tokens + plan.offsets[image * (plan.rows + 1) + j]];
    const char* a = reinterpret_cast<const char*>(x + image * x_stride.batch + own * x_stride.row);
    const char* b = reinterpret_cast<const char*>(residual + image * residual_stride.batch + own * residual_stride.row);
    for (int64_t byte = 0; byte < channels * static_cast<int64_t>(sizeof(X)); byte += 64) {
      __builtin_prefetch(a + byte);
    }
    for (int64_t byte = 0; byte < channels * static_cast<int64_t>(sizeof(R)); byte += 64) {
      __builtin_prefetch(b + byte);
    }
#endif
  }

  void row(int64_t image, int64_t j, Acc* acc, Acc* one) const {
    const int32_t* bounds = plan.offsets + image * (plan.rows + 1) + j;
    const int32_t* tokens = plan.indices + image * plan.tokens;
    const float* sizes = size == nullptr ? nullptr : size + image * plan.tokens;
    const int64_t flat = image * plan.rows + j;
    T* out = merged + flat * channels;
    const int32_t own = tokens[bounds[0]];
    const float sum = group_size(sizes, tokens + bounds[0], bounds[1] - bounds[0]);
    if (bounds[1] - bounds[0] == 1) {
      if constexpr (std::is_same_v<X, R>) {
        row_sum(x + image * x_stride.batch + own * x_stride.row,
                residual + image * residual_stride.batch + own * residual_stride.row, out, channels);
      } else {
        add_token<true>(image, own, Acc(1), acc, one);
        row_convert(acc, out, channels);
      }
    } else {
      add_token<true>(image, own, sizes == nullptr ? Acc(1) : static_cast<Acc>(sizes[own]), acc, one);
      for (int32_t k = bounds[0] + 1; k < bounds[1]; ++k) {
        const Acc w = sizes == nullptr ? Acc(1) : static_cast<Acc>(sizes[tokens[k]]);
        add_token<false>(image, tokens[k], w, acc, one);
      }
      if (sum != 0.0f) {
        row_divided<Acc>(acc, static_cast<Acc>(sum), out, channels);
      } else {
        std::fill(out, out + channels, store<T>(Acc(0)));
      }
    }
    total[flat] = sum;
    if (j + 1 < plan.rows) {
      prefetch(image, j + 1);
    }
    // The rounded row is widened once, in the cache: vectors put together from halves for every pass stall on memory.
    const Acc* rounded = acc;
    if constexpr (std::is_same_v<T, Acc>) {
      rounded = out;
    } else {
      row_convert(out, acc, channels);
    }
    row_moments(rounded, channels, eps, mean + flat, rstd + flat);
    row_normalise(rounded, mean[flat], rstd[flat], weight, bias, normed + flat * channels, channels);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> merge_layer_norm(const Tensor x_in, const Tensor residual_in,
                                                                    const std::optional<Tensor> size_in,
                                                                    const Tensor indices, const Tensor offsets,
                                                                    const Tensor output_row,
                                                                    const std::optional<Tensor> weight,
                                                                    const std::optional<Tensor> bias, double eps) {
  const Plan plan = make_plan(indices, offsets, output_row);
  check_rows(x_in, plan.batch, plan.tokens, "x");
  check_rows(residual_in, plan.batch, plan.tokens, "residual");
  check(x_in.size(2) == residual_in.size(2), "residual must have the channels of x (", x_in.size(2), "), got ",
        residual_in.size(2));
  check(is_floating(x_in.scalar_type()) && is_floating(residual_in.scalar_type()),
        "x, residual: expected floating point tensors");
  const std::optional<Tensor> size = checked_size(size_in, plan);
  const Tensor x = as_rows_contiguous(x_in), residual = as_rows_contiguous(residual_in);
  const int64_t channels = x.size(2);
  const ScalarType dtype = promote(x.scalar_type(), residual.scalar_type());
  const ScalarType statistic = accumulate_type(dtype);
  const Tensor merged = new_empty({plan.batch, plan.rows, channels}, dtype);
  const Tensor normed = new_empty({plan.batch, plan.rows, channels}, dtype);
  const Tensor merged_size = new_empty({plan.batch, plan.rows}, ScalarType::Float);
  const Tensor mean = new_empty({plan.batch, plan.rows}, statistic);
  const Tensor rstd = new_empty({plan.batch, plan.rows}, statistic);

  dispatch_floating(x.scalar_type(), "merge_layer_norm", [&](auto x_tag) {
    dispatch_floating(residual.scalar_type(), "merge_layer_norm", [&](auto residual_tag) {
      using X = typename decltype(x_tag)::type;
      using R = typename decltype(residual_tag)::type;
      constexpr bool is_double = std::is_same_v<X, double> || std::is_same_v<R, double>;
      using T = std::conditional_t<std::is_same_v<X, R>, X, std::conditional_t<is_double, double, float>>;
      using Acc = accumulate_t<T>;
      const Scratch<Acc> scale = parameter<Acc>(weight, channels, Acc(1), "weight");
      const Scratch<Acc> shift = parameter<Acc>(bias, channels, Acc(0), "bias");
      const Forward<X, R, T> forward{plan,
                                     data<const X>(x),
                                     data<const R>(residual),
                                     RowStrides(x),
                                     RowStrides(residual),
                                     data_or_null<const float>(size),
                                     scale.get(),
                                     shift.get(),
                                     data<T>(merged),
                                     data<T>(normed),
                                     data<float>(merged_size),
                                     data<Acc>(mean),
                                     data<Acc>(rstd),
                                     channels,
                                     eps};
      parallel_for(plan.batch * plan.rows, 4 * channels, [&](int64_t begin, int64_t end) {
        const Scratch<Acc> memory(2 * channels);
        for (int64_t i = begin; i < end; ++i) {
          forward.row(i / plan.rows, i % plan.rows, memory.get(), memory.get() + channels);
        }
      });
    });
  });
  return {merged, normed, merged_size, mean, rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alt_kernels, CPU, m) { m.impl("merge_layer_norm", TORCH_BOX(&merge_layer_norm)); }

}  // namespace alt
