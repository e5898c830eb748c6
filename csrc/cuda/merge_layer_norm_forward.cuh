// Residual sum + weighted merge + LayerNorm on the GPU in one pass.
//
// Symbols: B images, N tokens, N' output rows, C channels; W and V as in merge_layer_norm_row.cuh.
//
// Per row: the weighted sum of x + residual over the tokens of its group in the order of the plan, in float32, rounded
// once; then mean and deviation of the stored row, in two passes over registers. A row of one token is neither
// multiplied nor divided.
#pragma once

#include "merge_layer_norm_row.cuh"

namespace alt::gpu {

struct NormForward {
  const void* x;  // [B, N, C], the last dimension contiguous
  const void* residual;
  const float* size;       // [B, N] or null
  const int32_t* indices;  // [B, N]
  const int32_t* offsets;  // [B, N' + 1]
  const void* weight;      // [C] or null
  const void* bias;        // [C] or null
  void* merged;            // [B, N', C]
  void* normed;
  float* merged_size;  // [B, N']
  float* mean;
  float* rstd;
  int64_t x_image, x_token, residual_image, residual_token;  // strides
  int64_t total;                                             // B N', fewer than 2^31
  int32_t tokens, rows, channels;
  Kind x_kind, residual_kind, out_kind, weight_kind, bias_kind;
  float eps;
};

template <typename X, typename Y, typename Out, int W, int V, bool Aligned>
ALT_KERNEL((RowShape<W, V>::block), (W == 1 ? 4 : 2))
merge_norm_forward(NormForward n) {
  using Shape = RowShape<W, V>;
  const int64_t at = block_index() * Shape::rows + Shape::row();
  if (at >= n.total) {
    return;  // a whole warp: the rows of a block share nothing
  }
  const int64_t image = image_of(at, n.rows);
  const int32_t* offsets = n.offsets + at + image;
  const int32_t first = offsets[0], last = offsets[1];
  const int32_t* indices = n.indices + image * n.tokens;
  const float* size = n.size == nullptr ? nullptr : n.size + image * n.tokens;
  const bool single = last - first == 1;

  float value[V][8];
  float total = 0.0f;
  for (int32_t place = first; place < last; ++place) {
    const int32_t token = indices[place];
    const float share = size == nullptr ? 1.0f : size[token];
    const int64_t x_row = image * n.x_image + token * n.x_token;
    const int64_t residual_row = image * n.residual_image + token * n.residual_token;
    total += share;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int channel = Shape::channel(v);
      float x[8], y[8];
      fetch<X, Aligned>(n.x, n.x_kind, x_row, channel, n.channels, x);
      fetch<Y, Aligned>(n.residual, n.residual_kind, residual_row, channel, n.channels, y);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float sum = x[k] + y[k];
        value[v][k] = single ? sum : place == first ? sum * share : fused_multiply_add(sum, share, value[v][k]);
      }
    }
  }
  if (!single) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        value[v][k] = total != 0.0f ? divide(value[v][k], total) : 0.0f;
      }
    }
  }

  const int64_t row = at * n.channels;
  float sum = 0.0f, nothing = 0.0f;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    keep<Out, Aligned>(n.merged, n.out_kind, row, Shape::channel(v), n.channels, value[v]);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sum += value[v][k];  // zero past the end of the row
    }
  }
  sum_row<W>(sum, nothing, 0);
  const float channels = static_cast<float>(n.channels);
  const float mean = divide(sum, channels);
  float square = 0.0f;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int channel = Shape::channel(v);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      value[v][k] = channel + k < n.channels ? value[v][k] - mean : 0.0f;
      square = fused_multiply_add(value[v][k], value[v][k], square);
    }
  }
  sum_row<W>(square, nothing, 1);
  const float rstd = divide(1.0f, square_root(divide(square, channels) + n.eps));
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int channel = Shape::channel(v);
    float scale[8], shift[8];
    if (n.weight != nullptr) {
      fetch_parameter<Aligned>(n.weight, n.weight_kind, channel, n.channels, scale);
    }
    if (n.bias != nullptr) {
      fetch_parameter<Aligned>(n.bias, n.bias_kind, channel, n.channels, shift);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float h = value[v][k] * rstd;
      const float w = n.weight != nullptr ? scale[k] : 1.0f;
      value[v][k] = n.bias != nullptr ? fused_multiply_add(h, w, shift[k]) : h * w;
    }
    keep<Out, Aligned>(n.normed, n.out_kind, row, channel, n.channels, value[v]);
  }
  if (thread_index() % Shape::threads == 0) {
    n.merged_size[at] = total;
    n.mean[at] = mean;
    n.rstd[at] = rstd;
  }
}

// ------------------------------------------------------------------------------------------ launching

template <typename X, typename Y, typename Out, bool Aligned>
void launch_norm_forward(const NormForward& n, void* stream) {
  with_row_shape(n.channels, Aligned, [&](auto shape) {
    using Shape = decltype(shape);
    constexpr int W = warps_of(Shape{}), V = vectors_of(Shape{});
    const Grid grid{(n.total + Shape::rows - 1) / Shape::rows, Shape::block, 4 * W * 4, stream};
    if constexpr (Aligned || V == 4) {
      launch<merge_norm_forward<X, Y, Out, W, V, Aligned>>(grid, n);
    }
  });
}

inline void launch_norm_forward(const NormForward& n, bool aligned, void* stream) {
  constexpr auto f = Kind::single;
  if (aligned && n.x_kind == n.residual_kind) {
    if (n.x_kind == f) {
      launch_norm_forward<float, float, float, true>(n, stream);
    } else if (n.x_kind == Kind::half) {
      launch_norm_forward<half_t, half_t, half_t, true>(n, stream);
    } else {
      launch_norm_forward<bfloat_t, bfloat_t, bfloat_t, true>(n, stream);
    }
  } else if (aligned && n.x_kind == f && n.residual_kind == Kind::half) {
    launch_norm_forward<float, half_t, float, true>(n, stream);
  } else if (aligned && n.x_kind == f && n.residual_kind == Kind::bfloat) {
    launch_norm_forward<float, bfloat_t, float, true>(n, stream);
  } else {
    launch_norm_forward<float, float, float, false>(n, stream);
  }
}

}  // namespace alt::gpu
