// Loops over one row of channels, shared by the kernels that merge tokens. Each is compiled once per x86 level.
//
// Acc is the accumulation type, float or double; T and U are stored types (double, float, half, bfloat16).
#pragma once

#include <cmath>

#include "common.h"

namespace alt {
namespace {

// acc = weight * x
template <typename Acc, typename T>
ALT_MULTIVERSION void row_scaled(const T* ALT_RESTRICT x, Acc weight, Acc* ALT_RESTRICT acc, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    acc[c] = weight * load<Acc>(x[c]);
  }
}

// acc += weight * x
template <typename Acc, typename T>
ALT_MULTIVERSION void row_add_scaled(const T* ALT_RESTRICT x, Acc weight, Acc* ALT_RESTRICT acc, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    acc[c] += weight * load<Acc>(x[c]);
  }
}

// out = acc / divisor, rounded once. A division keeps the mean of equal rows exact; a reciprocal would not.
template <typename Acc, typename T>
ALT_MULTIVERSION void row_divided(const Acc* ALT_RESTRICT acc, Acc divisor, T* ALT_RESTRICT out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = store<T>(acc[c] / divisor);
  }
}

// out = weight * x, rounded once to U.
template <typename Acc, typename T, typename U>
ALT_MULTIVERSION void row_times(const T* ALT_RESTRICT x, Acc weight, U* ALT_RESTRICT out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = store<U>(weight * load<Acc>(x[c]));
  }
}

// acc *= weight
template <typename Acc>
ALT_MULTIVERSION void row_scale_in_place(Acc* acc, Acc weight, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    acc[c] *= weight;
  }
}

// out = x in another type.
template <typename U, typename T>
ALT_MULTIVERSION void row_convert(const T* ALT_RESTRICT x, U* ALT_RESTRICT out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = store<U>(load<accumulate_t<U>>(x[c]));
  }
}

// s_i / S_j, the share of a token in its row; 0 where the sizes of the row sum to 0.
template <typename Acc>
inline Acc share(float size, float total) {
  return total != 0.0f ? static_cast<Acc>(size) / static_cast<Acc>(total) : Acc(0);
}

// S_j, the sum of the sizes of tokens[0, count) in float32, in ascending order of tokens. The row's own token comes
// first in the list and need not be the lowest. With one order, fractional sizes sum to the same float in every
// implementation.
inline float group_size(const float* sizes, const int32_t* tokens, int64_t count) {
  if (sizes == nullptr) {
    return static_cast<float>(count);
  }
  const int32_t own = tokens[0];
  float sum = 0.0f;
  int64_t k = 1;
  for (; k < count && tokens[k] < own; ++k) {
    sum += sizes[tokens[k]];
  }
  sum += sizes[own];
  for (; k < count; ++k) {
    sum += sizes[tokens[k]];
  }
  return sum;
}

// The checked token sizes [B, N] float32, contiguous, or none.
inline std::optional<Tensor> checked_size(const std::optional<Tensor>& size, const Plan& plan) {
  if (!size.has_value()) {
    return std::nullopt;
  }
  check_rank(*size, 2, "size");
  check_dtype(*size, ScalarType::Float, "size");
  check(size->size(0) == plan.batch && size->size(1) == plan.tokens, "size: expected shape [", plan.batch, ", ",
        plan.tokens, "], got [", size->size(0), ", ", size->size(1), "]");
  return as_contiguous(size);
}

// The checked sizes of the output rows [B, M] float32, contiguous.
inline Tensor checked_merged_size(const Tensor& merged_size, const Plan& plan) {
  check_rank(merged_size, 2, "merged_size");
  check_dtype(merged_size, ScalarType::Float, "merged_size");
  check(merged_size.size(0) == plan.batch && merged_size.size(1) == plan.rows, "merged_size: expected shape [",
        plan.batch, ", ", plan.rows, "], got [", merged_size.size(0), ", ", merged_size.size(1), "]");
  return as_contiguous(merged_size);
}

// A [C] parameter in Acc, or its neutral value where it is absent.
template <typename Acc>
Scratch<Acc> parameter(const std::optional<Tensor>& t, int64_t channels, Acc neutral, const char* name) {
  Scratch<Acc> values(channels);
  if (!t.has_value()) {
    std::fill(values.get(), values.get() + channels, neutral);
    return values;
  }
  check(t->dim() == 1 && t->size(0) == channels, name, ": expected shape [", channels, "]");
  const Tensor dense = as_contiguous(*t);
  dispatch_floating(dense.scalar_type(), name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* in = data<const T>(dense);
    for (int64_t c = 0; c < channels; ++c) {
      values[c] = load<Acc>(in[c]);
    }
  });
  return values;
}

// Raises unless `t` is [batch, rows, C], where rows are the plan's tokens or output rows.
inline void check_rows(const Tensor& t, int64_t batch, int64_t rows, const char* name) {
  check_rank(t, 3, name);
  check(t.size(0) == batch && t.size(1) == rows, name, ": expected shape [", batch, ", ", rows,
        ", C] to fit the plan, got [", t.size(0), ", ", t.size(1), ", ", t.size(2), "]");
}

// The strides between rows of a [B, R, C] tensor, in elements; the last dimension is contiguous.
struct RowStrides {
  int64_t batch, row;
  explicit RowStrides(const Tensor& t) : batch(t.stride(0)), row(t.stride(1)) {}
};

}  // namespace
}  // namespace alt
