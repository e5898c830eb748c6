// Backward of residual sum + weighted merge + LayerNorm on the CPU.
//
//   merge_layer_norm_backward(grad_merged [B, M, C], grad_normed [B, M, C], merged [B, M, C], mean [B, M],
//                             rstd [B, M], weight [C]?, has_bias, size [B, N]?, merged_size [B, M], offsets,
//                             output_row)
//     -> grad_input [B, N, C] (of x and of residual), grad_weight [C] or [0], grad_bias [C] or [0]
//
// With h = (x' - mean) rstd and g = dn w:
//
//   dx'  = dm + rstd (g - mean_C(g) - h mean_C(g h))
//   dx_i = (s_i / S_j) dx'_j
//   dw   = sum dn h,  db = sum dn
//
// dx' stays in float (double for double) until it is written to its tokens.
//
// dw and db: the flattened [B, M] rows are cut into blocks whose length depends only on B M. A block sums its rows in
// order, then the blocks are added in order, in double. So the sums are the same for any number of threads.

#include "row_ops.h"

namespace alt {
namespace {

// One row: sums[0] = sum g, sums[1] = sum g h; dw and db (where not null) gain this row's share.
template <typename T, typename Acc>
ALT_MULTIVERSION void row_sums(const T* ALT_RESTRICT x, const T* ALT_RESTRICT dn, Acc mean, Acc rstd,
                               const Acc* ALT_RESTRICT weight, Acc* ALT_RESTRICT dw, Acc* ALT_RESTRICT db,
                               int64_t channels, Acc* ALT_RESTRICT sums) {
  constexpr int lanes = 32;  // independent partial sums, so that additions overlap
  Acc sum_g[lanes] = {}, sum_gh[lanes] = {};
  for (int64_t start = 0; start < channels; start += lanes) {
    const int64_t count = std::min<int64_t>(lanes, channels - start);
    if (count == lanes) {
#pragma omp simd
      for (int l = 0; l < lanes; ++l) {
        const Acc h = (load<Acc>(x[start + l]) - mean) * rstd;
        const Acc g = load<Acc>(dn[start + l]) * weight[start + l];
        sum_g[l] += g;
        sum_gh[l] += g * h;
      }
    } else {
      for (int64_t l = 0; l < count; ++l) {
        const Acc h = (load<Acc>(x[start + l]) - mean) * rstd;
        const Acc g = load<Acc>(dn[start + l]) * weight[start + l];
        sum_g[l] += g;
        sum_gh[l] += g * h;
      }
    }
  }
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      sum_g[l] += sum_g[l + half];
      sum_gh[l] += sum_gh[l + half];
    }
  }
  sums[0] = sum_g[0];
  sums[1] = sum_gh[0];
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const Acc d = load<Acc>(dn[c]);
    dw[c] += d * ((load<Acc>(x[c]) - mean) * rstd);
    db[c] += d;
  }
}

// dx = dm + rstd (g - mean_g - h mean_gh)
template <typename T, typename Acc>
ALT_MULTIVERSION void row_gradient(const T* ALT_RESTRICT x, const T* ALT_RESTRICT dn, const T* ALT_RESTRICT dm,
                                   Acc mean, Acc rstd, const Acc* ALT_RESTRICT weight, Acc mean_g, Acc mean_gh,
                                   Acc* ALT_RESTRICT dx, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const Acc h = (load<Acc>(x[c]) - mean) * rstd;
    const Acc g = load<Acc>(dn[c]) * weight[c];
    dx[c] = load<Acc>(dm[c]) + rstd * (g - mean_g - h * mean_gh);
  }
}

// out += x
template <typename Acc>
ALT_MULTIVERSION void row_accumulate(const Acc* ALT_RESTRICT x, double* ALT_RESTRICT out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    out[c] += static_cast<double>(x[c]);
  }
}

// The tokens of every output row, ascending: [B, N] at the places that offsets gives. Raises if output_row and offsets
// do not belong to one plan, so no row is written twice or left out.
Scratch<int32_t> tokens_by_row(const Plan& plan) {
  Scratch<int32_t> tokens(plan.batch * plan.tokens);
  Scratch<int32_t> next(plan.rows);
  bool bad = false;
  for (int64_t image = 0; image < plan.batch && !bad; ++image) {
    const int32_t* bounds = plan.offsets + image * (plan.rows + 1);
    std::copy(bounds, bounds + plan.rows, next.get());
    for (int64_t i = 0; i < plan.tokens && !bad; ++i) {
      const int32_t row = plan.output_row[image * plan.tokens + i];
      bad = next[row] == bounds[row + 1];
      if (!bad) {
        tokens[image * plan.tokens + next[row]++] = static_cast<int32_t>(i);
      }
    }
  }
  check(!bad,
        "matching: expected output_row to have as many tokens in every row as offsets has, got more in some "
        "row");
  return tokens;
}

template <typename Acc>
Tensor summed(const Scratch<Acc>& partial, int64_t blocks, int64_t first, int64_t channels, bool wanted) {
  const Tensor out = new_empty({wanted ? channels : 0}, scalar_type_of<Acc>());
  if (wanted) {
    const Scratch<double> total(channels);
    std::fill(total.get(), total.get() + channels, 0.0);
    for (int64_t block = 0; block < blocks; ++block) {
      row_accumulate(partial.get() + (2 * block + first) * channels, total.get(), channels);
    }
    row_convert(total.get(), data<Acc>(out), channels);
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> merge_layer_norm_backward(const Tensor grad_merged_in, const Tensor grad_normed_in,
                                                             const Tensor merged_in, const Tensor mean_in,
                                                             const Tensor rstd_in, const std::optional<Tensor> weight,
                                                             bool has_bias, const std::optional<Tensor> size_in,
                                                             const Tensor merged_size_in, const Tensor indices,
                                                             const Tensor offsets, const Tensor output_row) {
  const Plan plan = make_plan(indices, offsets, output_row);
  const ScalarType dtype = merged_in.scalar_type();
  check_rows(merged_in, plan.batch, plan.rows, "merged");
  const int64_t channels = merged_in.size(2);
  for (const auto& [grad, name] :
       {std::pair(&grad_merged_in, "grad_merged"), std::pair(&grad_normed_in, "grad_normed")}) {
    check_rows(*grad, plan.batch, plan.rows, name);
    check(grad->size(2) == channels, name, ": expected the ", channels, " channels of merged, got ", grad->size(2));
    check_dtype(*grad, dtype, name);
  }
  for (const auto& [t, name] : {std::pair(&mean_in, "mean"), std::pair(&rstd_in, "rstd")}) {
    check_rank(*t, 2, name);
    check_dtype(*t, accumulate_type(dtype), name);
    check(t->size(0) == plan.batch && t->size(1) == plan.rows, name, ": expected shape [", plan.batch, ", ", plan.rows,
          "]");
  }
  const std::optional<Tensor> size_tensor = checked_size(size_in, plan);
  const Tensor merged_size = checked_merged_size(merged_size_in, plan);
  const Tensor merged = as_rows_contiguous(merged_in), mean = as_contiguous(mean_in), rstd = as_contiguous(rstd_in);
  const Tensor grad_merged = as_rows_contiguous(grad_merged_in), grad_normed = as_rows_contiguous(grad_normed_in);
  const Tensor grad_input = new_empty({plan.batch, plan.tokens, channels}, dtype);
  const Scratch<int32_t> tokens = tokens_by_row(plan);
  const float* size = data_or_null<const float>(size_tensor);
  const float* total = data<const float>(merged_size);
  const RowStrides merged_stride(merged), dm_stride(grad_merged), dn_stride(grad_normed);

  const int64_t rows = plan.batch * plan.rows;
  const int64_t block_rows = std::max<int64_t>(32, (rows + 255) / 256);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  Tensor grad_weight, grad_bias;

  dispatch_floating(dtype, "merge_layer_norm_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    const Scratch<Acc> scale = parameter<Acc>(weight, channels, Acc(1), "weight");
    const Scratch<Acc> partial(2 * blocks * channels);
    const T *x = data<const T>(merged), *dm = data<const T>(grad_merged), *dn = data<const T>(grad_normed);
    const Acc *mu = data<const Acc>(mean), *r = data<const Acc>(rstd);
    T* out = data<T>(grad_input);

    const auto one_row = [&](int64_t flat, Acc* dw, Acc* db, Acc* dx) {
      const int64_t image = flat / plan.rows, row = flat % plan.rows;
      const T* x_row = x + image * merged_stride.batch + row * merged_stride.row;
      const T* dn_row = dn + image * dn_stride.batch + row * dn_stride.row;
      const T* dm_row = dm + image * dm_stride.batch + row * dm_stride.row;
      Acc sums[2];
      row_sums(x_row, dn_row, mu[flat], r[flat], scale.get(), dw, db, channels, sums);
      const Acc n = static_cast<Acc>(channels);
      row_gradient(x_row, dn_row, dm_row, mu[flat], r[flat], scale.get(), sums[0] / n, sums[1] / n, dx, channels);
      const int32_t* bounds = plan.offsets + image * (plan.rows + 1) + row;
      for (int32_t k = bounds[0]; k < bounds[1]; ++k) {
        const int64_t token = image * plan.tokens + tokens[image * plan.tokens + k];
        if (bounds[1] - bounds[0] == 1) {
          row_convert(static_cast<const Acc*>(dx), out + token * channels, channels);
        } else {
          const Acc w = share<Acc>(size == nullptr ? 1.0f : size[token], total[flat]);
          row_times(static_cast<const Acc*>(dx), w, out + token * channels, channels);
        }
      }
    };
    parallel_for(blocks, 8 * block_rows * channels, [&](int64_t begin, int64_t end) {
      const Scratch<Acc> dx(channels);
      for (int64_t block = begin; block < end; ++block) {
        Acc* dw = partial.get() + 2 * block * channels;
        std::fill(dw, dw + 2 * channels, Acc(0));
        for (int64_t flat = block * block_rows; flat < std::min(rows, (block + 1) * block_rows); ++flat) {
          one_row(flat, dw, dw + channels, dx.get());
        }
      }
    });
    grad_weight = summed(partial, blocks, 0, channels, weight.has_value());
    grad_bias = summed(partial, blocks, 1, channels, has_bias);
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alt_kernels, CPU, m) {
  m.impl("merge_layer_norm_backward", TORCH_BOX(&merge_layer_norm_backward));
}

}  // namespace alt
