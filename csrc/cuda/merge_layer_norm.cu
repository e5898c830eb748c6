// Residual sum + weighted merge + LayerNorm on CUDA tensors, and its derivative.
//
//   merge_layer_norm_cuda(x, residual, size?, indices, offsets, output_row, weight?, bias?, eps)
//     -> merged, normed [B, N', C], merged_size, mean, rstd [B, N'] float32
//   merge_layer_norm_cuda_backward(grad_merged, grad_normed, merged, mean, rstd, weight?, has_bias, size?, merged_size,
//       indices, offsets, output_row) -> grad_input [B, N, C], grad_weight, grad_bias float32 [C] or [0]
//
// One launch forward, two backward, no synchronisation. The values of a plan are not checked: reading them back would
// stall the GPU. C up to 8,192.

#include "launch.h"
#include "merge_layer_norm_backward.cuh"
#include "merge_layer_norm_forward.cuh"

namespace alt {
namespace {

struct Plan3 {
  Tensor indices, offsets;
  int64_t batch, tokens, rows;
};

// Checks the types, shapes and device of a plan for `like`, [B, ?, C].
Plan3 plan_beside(const Tensor& like, const Tensor& indices, const Tensor& offsets, const Tensor& output_row) {
  struct Field {
    const Tensor& tensor;
    const char* name;
  };
  for (const Field& f : {Field{indices, "matching.indices"}, Field{offsets, "matching.offsets"},
                         Field{output_row, "matching.output_row"}}) {
    check_rank(f.tensor, 2, f.name);
    check_dtype(f.tensor, ScalarType::Int, f.name);
    check_beside(f.tensor, like, f.name);
    check(f.tensor.size(0) == like.size(0), f.name, ": expected ", like.size(0), " images, got ", f.tensor.size(0));
  }
  const int64_t tokens = indices.size(1), rows = offsets.size(1) - 1;
  check(output_row.size(1) == tokens && rows >= 0 && rows <= tokens, "matching.offsets: expected 1 to ", tokens + 1,
        " values an image and as many output rows as indices, got ", offsets.size(1), " and ", output_row.size(1));
  return {as_contiguous(indices), as_contiguous(offsets), like.size(0), tokens, rows};
}

// The checked float32 table [B, n], or none.
std::optional<Tensor> table(const std::optional<Tensor>& t, const Tensor& like, int64_t n, const char* name) {
  if (!t.has_value()) {
    return std::nullopt;
  }
  check_rank(*t, 2, name);
  check_dtype(*t, ScalarType::Float, name);
  check_beside(*t, like, name);
  check(t->size(0) == like.size(0) && t->size(1) == n, name, ": expected shape [", like.size(0), ", ", n, "], got [",
        t->size(0), ", ", t->size(1), "]");
  return as_contiguous(*t);
}

// The checked parameter [C], or none. `aligned` becomes false if it cannot be read 16 bytes at a time.
std::optional<Tensor> parameter(const std::optional<Tensor>& t, const Tensor& like, const char* name, bool& aligned) {
  if (!t.has_value()) {
    return std::nullopt;
  }
  const int64_t channels = like.size(2);
  check_rank(*t, 1, name);
  check_beside(*t, like, name);
  check(t->size(0) == channels, name, ": expected shape [", channels, "], got [", t->size(0), "]");
  const Tensor dense = as_contiguous(*t);
  aligned = aligned && multiple_of_16(dense.const_data_ptr());
  return dense;
}

int32_t channels_of(const Tensor& x, const char* name) {
  const int64_t channels = x.size(2);
  check(channels >= 1 && channels <= gpu::kNormChannels, name, ": the CUDA kernel takes 1 to ", gpu::kNormChannels,
        " channels, got ", channels, "; impl='triton' takes more");
  return static_cast<int32_t>(channels);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> merge_layer_norm_cuda(
    const Tensor x_in, const Tensor residual_in, const std::optional<Tensor> size_in, const Tensor indices,
    const Tensor offsets, const Tensor output_row, const std::optional<Tensor> weight_in,
    const std::optional<Tensor> bias_in, double eps) {
  check_rank(x_in, 3, "x");
  check_rank(residual_in, 3, "residual");
  check_beside(residual_in, x_in, "residual");
  for (int64_t d = 0; d < 3; ++d) {
    check(residual_in.size(d) == x_in.size(d), "residual: expected the shape of x, got ", residual_in.size(d),
          " instead of ", x_in.size(d), " in dimension ", d);
  }
  gpu::NormForward n{};
  n.x_kind = kind_of(x_in, "x");
  n.residual_kind = kind_of(residual_in, "residual");
  n.channels = channels_of(x_in, "x");
  const OnDevice here(x_in);
  const Plan3 plan = plan_beside(x_in, indices, offsets, output_row);
  check(plan.tokens == x_in.size(1), "matching: expected a plan of ", x_in.size(1), " tokens like x, got one of ",
        plan.tokens);
  const Tensor x = as_rows_contiguous(x_in), residual = as_rows_contiguous(residual_in);
  bool aligned = rows_aligned(x) && rows_aligned(residual);
  const std::optional<Tensor> size = table(size_in, x, plan.tokens, "size");
  const std::optional<Tensor> weight = parameter(weight_in, x, "weight", aligned);
  const std::optional<Tensor> bias = parameter(bias_in, x, "bias", aligned);

  const ScalarType out = promote(x.scalar_type(), residual.scalar_type());
  const Tensor merged = empty_beside(x, {plan.batch, plan.rows, n.channels}, out);
  const Tensor normed = empty_beside(x, {plan.batch, plan.rows, n.channels}, out);
  const Tensor merged_size = empty_beside(x, {plan.batch, plan.rows}, ScalarType::Float);
  const Tensor mean = empty_beside(x, {plan.batch, plan.rows}, ScalarType::Float);
  const Tensor rstd = empty_beside(x, {plan.batch, plan.rows}, ScalarType::Float);
  n.x = x.const_data_ptr();
  n.residual = residual.const_data_ptr();
  n.size = data_or_null<const float>(size);
  n.indices = data<const int32_t>(plan.indices);
  n.offsets = data<const int32_t>(plan.offsets);
  n.weight = weight.has_value() ? weight->const_data_ptr() : nullptr;
  n.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
  n.weight_kind = weight.has_value() ? kind_of(*weight, "weight") : gpu::Kind::single;
  n.bias_kind = bias.has_value() ? kind_of(*bias, "bias") : gpu::Kind::single;
  n.out_kind = kind_of(merged, "merged");
  n.merged = merged.mutable_data_ptr();
  n.normed = normed.mutable_data_ptr();
  n.merged_size = data<float>(merged_size);
  n.mean = data<float>(mean);
  n.rstd = data<float>(rstd);
  n.x_image = x.stride(0);
  n.x_token = x.stride(1);
  n.residual_image = residual.stride(0);
  n.residual_token = residual.stride(1);
  n.total = plan.batch * plan.rows;
  n.tokens = count32(plan.tokens, "x");
  n.rows = count32(plan.rows, "x");
  n.eps = static_cast<float>(eps);
  if (n.total > 0) {
    count32(n.total, "rows of all images");
    gpu::launch_norm_forward(n, aligned, here.stream());
  }
  return {merged, normed, merged_size, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> merge_layer_norm_cuda_backward(
    const Tensor grad_merged_in, const Tensor grad_normed_in, const Tensor merged_in, const Tensor mean_in,
    const Tensor rstd_in, const std::optional<Tensor> weight_in, bool has_bias, const std::optional<Tensor> size_in,
    const Tensor merged_size_in, const Tensor indices, const Tensor offsets, const Tensor output_row) {
  check_rank(merged_in, 3, "merged");
  gpu::NormBackward n{};
  n.kind = kind_of(merged_in, "merged");
  n.channels = channels_of(merged_in, "merged");
  const OnDevice here(merged_in);
  const Plan3 plan = plan_beside(merged_in, indices, offsets, output_row);
  check(plan.rows == merged_in.size(1), "matching: expected a plan of ", merged_in.size(1),
        " rows like merged, got one of ", plan.rows);
  for (const Tensor* grad : {&grad_merged_in, &grad_normed_in}) {
    check_rank(*grad, 3, "grad");
    check_dtype(*grad, merged_in.scalar_type(), "grad");
    check_beside(*grad, merged_in, "grad");
    check(grad->size(0) == plan.batch && grad->size(1) == plan.rows && grad->size(2) == n.channels,
          "grad: expected the shape of merged");
  }
  const Tensor merged = as_contiguous(merged_in), grad_merged = as_contiguous(grad_merged_in);
  const Tensor grad_normed = as_contiguous(grad_normed_in);
  bool aligned = rows_aligned(merged) && rows_aligned(grad_merged) && rows_aligned(grad_normed);
  const std::optional<Tensor> weight = parameter(weight_in, merged, "weight", aligned);
  const std::optional<Tensor> size = table(size_in, merged, plan.tokens, "size");
  const std::optional<Tensor> mean = table(mean_in, merged, plan.rows, "mean");
  const std::optional<Tensor> rstd = table(rstd_in, merged, plan.rows, "rstd");
  const std::optional<Tensor> merged_size = table(merged_size_in, merged, plan.rows, "merged_size");

  const bool has_weight = weight.has_value();
  const Tensor grad = empty_beside(merged, {plan.batch, plan.tokens, n.channels}, merged.scalar_type());
  const Tensor grad_weight = empty_beside(merged, {has_weight ? n.channels : 0}, ScalarType::Float);
  const Tensor grad_bias = empty_beside(merged, {has_bias ? n.channels : 0}, ScalarType::Float);
  n.total = plan.batch * plan.rows;
  n.blocks = gpu::norm_blocks(n.total, n.channels);
  const Tensor partial =
      empty_beside(merged, {int64_t{has_weight} + int64_t{has_bias}, n.blocks, n.channels}, ScalarType::Float);
  n.grad_merged = grad_merged.const_data_ptr();
  n.grad_normed = grad_normed.const_data_ptr();
  n.merged = merged.const_data_ptr();
  n.mean = data<const float>(*mean);
  n.rstd = data<const float>(*rstd);
  n.weight = has_weight ? weight->const_data_ptr() : nullptr;
  n.weight_kind = has_weight ? kind_of(*weight, "weight") : gpu::Kind::single;
  n.size = data_or_null<const float>(size);
  n.merged_size = data<const float>(*merged_size);
  n.indices = data<const int32_t>(plan.indices);
  n.offsets = data<const int32_t>(plan.offsets);
  n.grad = grad.mutable_data_ptr();
  n.partial_weight = has_weight ? data<float>(partial) : nullptr;
  n.partial_bias = has_bias ? data<float>(partial) + (has_weight ? int64_t{n.blocks} * n.channels : 0) : nullptr;
  n.tokens = count32(plan.tokens, "merged");
  n.rows = count32(plan.rows, "merged");
  if (n.total > 0) {
    count32(n.total, "rows of all images");
    gpu::launch_norm_backward(n, aligned, here.stream());
  }
  if (has_weight || has_bias) {
    gpu::NormSums sums{};
    sums.partial[0] = n.partial_weight;
    sums.partial[1] = n.partial_bias;
    sums.grad[0] = has_weight ? data<float>(grad_weight) : nullptr;
    sums.grad[1] = has_bias ? data<float>(grad_bias) : nullptr;
    sums.channels = n.channels;
    sums.blocks = n.blocks;
    gpu::launch_sum_partials(sums, here.stream());
  }
  return {grad, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ALT_GPU_LIBRARY, ALT_GPU_KEY, m) {
  m.impl("merge_layer_norm_cuda", TORCH_BOX(&merge_layer_norm_cuda));
  m.impl("merge_layer_norm_cuda_backward", TORCH_BOX(&merge_layer_norm_cuda_backward));
}

}  // namespace alt
