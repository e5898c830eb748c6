// Bipartite soft matching on CUDA tensors, for images of up to 512 tokens.
//
//   bipartite_matching_cuda(metric [B, N, C], r, num_protected)
//   bipartite_matching_from_keys_cuda(k [B, H, N, D], r, num_protected): the same for the mean of k over its heads,
//       in float32; k has any strides, such as those of packed QKV
//     -> indices int32 [B, N], offsets int32 [B, N - r + 1], output_row int32 [B, N]
//
// One launch, no synchronisation.

#include "bipartite_soft_matching.cuh"
#include "launch.h"

namespace alt {
namespace {

using Plan3 = std::tuple<Tensor, Tensor, Tensor>;

// x: [B, H, N, C] if it has heads, else [B, N, C].
Plan3 match(const Tensor& x_in, bool has_heads, int64_t r, int64_t num_protected, const char* name) {
  const gpu::Kind kind = kind_of(x_in, name);
  const int64_t rank = has_heads ? 4 : 3;
  check_rank(x_in, rank, name);
  const int64_t batch = x_in.size(0), heads = has_heads ? x_in.size(1) : 1;
  const int64_t tokens = x_in.size(rank - 2), channels = x_in.size(rank - 1);
  count32(batch, "images");
  check(heads >= 1, name, ": expected at least one head, got 0");
  check(num_protected >= 0 && num_protected <= tokens, "num_protected: expected 0 to ", tokens, ", got ",
        num_protected);
  const int64_t limit = (tokens - num_protected) / 2;
  check(r >= 0 && r <= limit, "r: expected 0 to ", limit, ", half of the unprotected tokens, got ", r);
  check(r == 0 || tokens <= gpu::kMatchTokens, name, ": the CUDA kernel takes up to ", gpu::kMatchTokens,
        " tokens, got ", tokens, "; impl='triton' takes more");

  const OnDevice here(x_in);
  const Tensor indices = empty_beside(x_in, {batch, tokens}, ScalarType::Int);
  const Tensor offsets = empty_beside(x_in, {batch, tokens - r + 1}, ScalarType::Int);
  const Tensor output_row = empty_beside(x_in, {batch, tokens}, ScalarType::Int);
  const Plan3 plan{indices, offsets, output_row};
  if (r == 0) {
    gpu::Identity d{};
    d.indices = data<int32_t>(indices);
    d.offsets = data<int32_t>(offsets);
    d.output_row = data<int32_t>(output_row);
    d.total = batch * (tokens + 1);
    d.tokens = count32(tokens, name);
    gpu::launch_identity(d, here.stream());
    return plan;
  }
  const Tensor x = as_rows_contiguous(x_in);
  gpu::Match m{};
  m.x = x.const_data_ptr();
  m.indices = data<int32_t>(indices);
  m.offsets = data<int32_t>(offsets);
  m.output_row = data<int32_t>(output_row);
  m.image_stride = x.stride(0);
  m.head_stride = has_heads ? x.stride(1) : 0;
  m.token_stride = x.stride(rank - 2);
  m.tokens = static_cast<int32_t>(tokens);
  m.channels = count32(channels, name);
  m.heads = count32(heads, name);
  m.r = static_cast<int32_t>(r);
  m.num_protected = static_cast<int32_t>(num_protected);
  const bool aligned = channels > 0 && rows_aligned(x);
  if (kind == gpu::Kind::single) {
    gpu::launch_match<float>(m, batch, aligned, here.stream());
  } else if (kind == gpu::Kind::half) {
    gpu::launch_match<gpu::half_t>(m, batch, aligned, here.stream());
  } else {
    gpu::launch_match<gpu::bfloat_t>(m, batch, aligned, here.stream());
  }
  return plan;
}

Plan3 bipartite_matching_cuda(const Tensor metric, int64_t r, int64_t num_protected) {
  return match(metric, false, r, num_protected, "metric");
}

Plan3 bipartite_matching_from_keys_cuda(const Tensor k, int64_t r, int64_t num_protected) {
  return match(k, true, r, num_protected, "k");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ALT_GPU_LIBRARY, ALT_GPU_KEY, m) {
  m.impl("bipartite_matching_cuda", TORCH_BOX(&bipartite_matching_cuda));
  m.impl("bipartite_matching_from_keys_cuda", TORCH_BOX(&bipartite_matching_from_keys_cuda));
}

}  // namespace alt
