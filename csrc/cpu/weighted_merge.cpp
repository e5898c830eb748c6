// Weighted merge and unmerge on the CPU: gathers along a plan, one pass, no atomics.
//
//   weighted_merge(x [B, N, C], size [B, N]?, plan)          -> x' [B, M, C], S [B, M]  x'_j = sum s_i x_i / S_j
//   weighted_merge_backward(grad [B, M, C], size, S, plan)   -> [B, N, C]               dx_i = (s_i / S_j) dx'_j
//   unmerge(x [B, M, C], plan)                               -> [B, N, C]               y_i = x_j(i)
//   unmerge_backward(grad [B, N, C], plan)                   -> [B, M, C]               dx_j = sum dy_i
//
// Output rows of one token, nearly all of them, are copied bit for bit, whatever their size. The others accumulate in
// float (double for double) in the order of the plan and are rounded once. Threads take whole rows, so results do not
// depend on their number.

#include "row_ops.h"

namespace alt {
namespace {

// f(image, row) for every pair in [begin, end) of the flattened [batch, rows].
template <typename F>
ALT_INLINE void for_rows(int64_t begin, int64_t end, int64_t rows, const F& f) {
  int64_t image = begin / rows, row = begin % rows;
  for (int64_t i = begin; i < end; ++i) {
    f(image, row);
    if (++row == rows) {
      row = 0;
      ++image;
    }
  }
}

std::tuple<Tensor, Tensor> weighted_merge(const Tensor x_in, const std::optional<Tensor> size_in, const Tensor indices,
                                          const Tensor offsets, const Tensor output_row) {
  const Plan plan = make_plan(indices, offsets, output_row);
  check_rows(x_in, plan.batch, plan.tokens, "x");
  const std::optional<Tensor> size_tensor = checked_size(size_in, plan);
  const Tensor x = as_rows_contiguous(x_in);
  const int64_t channels = x.size(2);
  const Tensor merged = new_empty({plan.batch, plan.rows, channels}, x.scalar_type());
  const Tensor merged_size = new_empty({plan.batch, plan.rows}, ScalarType::Float);
  const float* size = data_or_null<const float>(size_tensor);
  float* total = data<float>(merged_size);
  const RowStrides stride(x);

  dispatch_floating(x.scalar_type(), "weighted_merge", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    const T* in = data<const T>(x);
    T* out = data<T>(merged);
    parallel_for(plan.batch * plan.rows, channels, [&](int64_t begin, int64_t end) {
      const Scratch<Acc> acc(channels);
      for_rows(begin, end, plan.rows, [&](int64_t image, int64_t row) {
        const int32_t* bounds = plan.offsets + image * (plan.rows + 1) + row;
        const int32_t* tokens = plan.indices + image * plan.tokens;
        const float* sizes = size == nullptr ? nullptr : size + image * plan.tokens;
        const T* source = in + image * stride.batch;
        T* target = out + (image * plan.rows + row) * channels;
        const int32_t own = tokens[bounds[0]];
        const float sum = group_size(sizes, tokens + bounds[0], bounds[1] - bounds[0]);
        total[image * plan.rows + row] = sum;
        if (bounds[1] - bounds[0] == 1) {
          std::memcpy(target, source + own * stride.row, static_cast<size_t>(channels) * sizeof(T));
          return;
        }
        const Acc own_weight = sizes == nullptr ? Acc(1) : static_cast<Acc>(sizes[own]);
        row_scaled<Acc>(source + own * stride.row, own_weight, acc.get(), channels);
        for (int32_t k = bounds[0] + 1; k < bounds[1]; ++k) {
          const Acc weight = sizes == nullptr ? Acc(1) : static_cast<Acc>(sizes[tokens[k]]);
          row_add_scaled<Acc>(source + tokens[k] * stride.row, weight, acc.get(), channels);
        }
        if (sum != 0.0f) {
          row_divided<Acc>(acc.get(), static_cast<Acc>(sum), target, channels);
        } else {
          std::fill(target, target + channels, store<T>(Acc(0)));
        }
      });
    });
  });
  return {merged, merged_size};
}

Tensor weighted_merge_backward(const Tensor grad_in, const std::optional<Tensor> size_in, const Tensor merged_size_in,
                               const Tensor indices, const Tensor offsets, const Tensor output_row) {
  const Plan plan = make_plan(indices, offsets, output_row);
  check_rows(grad_in, plan.batch, plan.rows, "grad");
  const std::optional<Tensor> size_tensor = checked_size(size_in, plan);
  const Tensor merged_size = checked_merged_size(merged_size_in, plan);
  const Tensor grad = as_rows_contiguous(grad_in);
  const int64_t channels = grad.size(2);
  const Tensor result = new_empty({plan.batch, plan.tokens, channels}, grad.scalar_type());
  const float* size = data_or_null<const float>(size_tensor);
  const float* total = data<const float>(merged_size);
  const RowStrides stride(grad);

  dispatch_floating(grad.scalar_type(), "weighted_merge_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    const T* in = data<const T>(grad);
    T* out = data<T>(result);
    parallel_for(plan.batch * plan.tokens, channels, [&](int64_t begin, int64_t end) {
      for_rows(begin, end, plan.tokens, [&](int64_t image, int64_t token) {
        const int64_t flat = image * plan.tokens + token;
        const int64_t row = plan.output_row[flat];
        const int32_t* bounds = plan.offsets + image * (plan.rows + 1) + row;
        const T* source = in + image * stride.batch + row * stride.row;
        T* target = out + flat * channels;
        if (bounds[1] - bounds[0] == 1) {
          std::memcpy(target, source, static_cast<size_t>(channels) * sizeof(T));
        } else {
          const float own = size == nullptr ? 1.0f : size[flat];
          row_times(source, share<Acc>(own, total[image * plan.rows + row]), target, channels);
        }
      });
    });
  });
  return result;
}

Tensor unmerge(const Tensor x_in, const Tensor indices, const Tensor offsets, const Tensor output_row) {
  const Plan plan = make_plan(indices, offsets, output_row);
  check_rows(x_in, plan.batch, plan.rows, "x");
  const Tensor x = as_rows_contiguous(x_in);
  const int64_t channels = x.size(2);
  const Tensor result = new_empty({plan.batch, plan.tokens, channels}, x.scalar_type());
  const size_t element = x.element_size();
  const size_t bytes = static_cast<size_t>(channels) * element;
  const RowStrides stride(x);
  const char* in = static_cast<const char*>(x.const_data_ptr());
  char* out = static_cast<char*>(result.mutable_data_ptr());
  parallel_for(plan.batch * plan.tokens, channels, [&](int64_t begin, int64_t end) {
    for_rows(begin, end, plan.tokens, [&](int64_t image, int64_t token) {
      const int64_t flat = image * plan.tokens + token;
      const int64_t from = image * stride.batch + plan.output_row[flat] * stride.row;
      std::memcpy(out + static_cast<size_t>(flat) * bytes, in + static_cast<size_t>(from) * element, bytes);
    });
  });
  return result;
}

Tensor unmerge_backward(const Tensor grad_in, const Tensor indices, const Tensor offsets, const Tensor output_row) {
  const Plan plan = make_plan(indices, offsets, output_row);
  check_rows(grad_in, plan.batch, plan.tokens, "grad");
  const Tensor grad = as_rows_contiguous(grad_in);
  const int64_t channels = grad.size(2);
  const Tensor result = new_empty({plan.batch, plan.rows, channels}, grad.scalar_type());
  const RowStrides stride(grad);

  dispatch_floating(grad.scalar_type(), "unmerge_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = accumulate_t<T>;
    const T* in = data<const T>(grad);
    T* out = data<T>(result);
    parallel_for(plan.batch * plan.rows, channels, [&](int64_t begin, int64_t end) {
      const Scratch<Acc> acc(channels);
      for_rows(begin, end, plan.rows, [&](int64_t image, int64_t row) {
        const int32_t* bounds = plan.offsets + image * (plan.rows + 1) + row;
        const int32_t* tokens = plan.indices + image * plan.tokens;
        const T* source = in + image * stride.batch;
        T* target = out + (image * plan.rows + row) * channels;
        if (bounds[1] - bounds[0] == 1) {
          std::memcpy(target, source + tokens[bounds[0]] * stride.row, static_cast<size_t>(channels) * sizeof(T));
          return;
        }
        row_scaled<Acc>(source + tokens[bounds[0]] * stride.row, Acc(1), acc.get(), channels);
        for (int32_t k = bounds[0] + 1; k < bounds[1]; ++k) {
          row_add_scaled<Acc>(source + tokens[k] * stride.row, Acc(1), acc.get(), channels);
        }
        row_convert(acc.get(), target, channels);
      });
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alt_kernels, CPU, m) {
  m.impl("weighted_merge", TORCH_BOX(&weighted_merge));
  m.impl("weighted_merge_backward", TORCH_BOX(&weighted_merge_backward));
  m.impl("unmerge", TORCH_BOX(&unmerge));
  m.impl("unmerge_backward", TORCH_BOX(&unmerge_backward));
}

}  // namespace alt
