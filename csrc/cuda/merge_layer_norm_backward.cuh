// The derivative of residual sum + weighted merge + LayerNorm on the GPU, in two launches.
//
// Symbols: B images, N tokens, N' output rows, C channels; W and V as in merge_layer_norm_row.cuh.
//
// Per row: h, g = dn w and their two sums; then dx', rounded as the reference rounds it, is written to every token of
// the group, times the token's share. Derivatives of weight and bias: the shapes alone decide the number of blocks,
// each block sums over its rows, and a second kernel adds those partial sums. So every sum has one order: there are no
// atomics and every run gives the same bits.
#pragma once

#include "merge_layer_norm_row.cuh"

namespace alt::gpu {

constexpr int64_t kMultiprocessors = 132;

struct NormBackward {
  const void* grad_merged;  // [B, N', C]
  const void* grad_normed;
  const void* merged;
  const float* mean;  // [B, N']
  const float* rstd;
  const void* weight;  // [C] or null
  const float* size;   // [B, N] or null
  const float* merged_size;
  const int32_t* indices;
  const int32_t* offsets;
  void* grad;             // [B, N, C]
  float* partial_weight;  // [blocks, C] or null
  float* partial_bias;
  int64_t total;  // B N', fewer than 2^31
  int32_t tokens, rows, channels, blocks;
  Kind kind, weight_kind;
};

struct NormSums {
  const float* partial[2];  // weight, bias: [blocks, C]
  float* grad[2];           // [C] or null
  int32_t channels, blocks;
};

// v += p
ALT_DEVICE void add8(const float* p, float (&v)[8]) {
  float more[8];
  read8(p, more);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    v[k] += more[k];
  }
}

// The number of blocks that a multiprocessor has registers for: a thread keeps four values per channel.
constexpr int resident_blocks(int warps, int vectors) {
  const int of_four_warps = vectors == 1 ? 6 : vectors == 2 ? 4 : vectors == 3 ? 3 : 2;
  return warps == 1 ? of_four_warps : of_four_warps / 2;
}

template <typename T, int W, int V, bool Aligned>
ALT_KERNEL((RowShape<W, V>::block), resident_blocks(W, V))
merge_norm_backward(NormBackward n) {
  using Shape = RowShape<W, V>;
  float sum_weight[V][8], sum_bias[V][8];
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sum_weight[v][k] = sum_bias[v][k] = 0.0f;
    }
  }
  const float inverse = divide(1.0f, static_cast<float>(n.channels));
  int turn = 0;
  for (int64_t at = block_index() * Shape::rows + Shape::row(); at < n.total;
       at += static_cast<int64_t>(n.blocks) * Shape::rows, ++turn) {
    const int64_t image = image_of(at, n.rows);
    const int64_t row = at * n.channels;
    const float mean = n.mean[at], rstd = n.rstd[at];
    const int32_t first = n.offsets[at + image], last = n.offsets[at + image + 1];
    const float total = n.merged_size[at];

    float h[V][8], g[V][8];  // past the end of the row g is 0, h is not
    float sum_g = 0.0f, sum_gh = 0.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int channel = Shape::channel(v);
      fetch<T, Aligned>(n.merged, n.kind, row, channel, n.channels, h[v]);
      fetch<T, Aligned>(n.grad_normed, n.kind, row, channel, n.channels, g[v]);
      float scale[8];
      if (n.weight != nullptr) {
        fetch_parameter<Aligned>(n.weight, n.weight_kind, channel, n.channels, scale);
      }
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        h[v][k] = (h[v][k] - mean) * rstd;
        sum_weight[v][k] = fused_multiply_add(g[v][k], h[v][k], sum_weight[v][k]);
        sum_bias[v][k] += g[v][k];
        if (n.weight != nullptr) {
          g[v][k] *= scale[k];
        }
        sum_g += g[v][k];
        sum_gh = fused_multiply_add(g[v][k], h[v][k], sum_gh);
      }
    }
    sum_row<W>(sum_g, sum_gh, turn);
    sum_g *= inverse;
    sum_gh *= inverse;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int channel = Shape::channel(v);
      float direct[8];
      fetch<T, Aligned>(n.grad_merged, n.kind, row, channel, n.channels, direct);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float along = fused_multiply_add(-h[v][k], sum_gh, g[v][k] - sum_g);
        g[v][k] = fused_multiply_add(along, rstd, direct[k]);
      }
    }
    for (int32_t place = first; place < last; ++place) {
      const int32_t token = n.indices[image * n.tokens + place];
      const float size = n.size == nullptr ? 1.0f : n.size[image * n.tokens + token];
      const float share = last - first == 1 ? 1.0f : total != 0.0f ? divide(size, total) : 0.0f;
      const int64_t target = (image * n.tokens + token) * n.channels;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float out[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          if constexpr (Aligned) {
            out[k] = widen(narrow<T>(g[v][k])) * share;
          } else {
            const float rounded = n.kind == Kind::single ? g[v][k]
                                  : n.kind == Kind::half ? widen(narrow<half_t>(g[v][k]))
                                                         : widen(narrow<bfloat_t>(g[v][k]));
            out[k] = rounded * share;
          }
        }
        keep<T, Aligned>(n.grad, n.kind, target, Shape::channel(v), n.channels, out);
      }
    }
  }

  // The block's sums, over its rows in order.
  if (n.partial_weight == nullptr && n.partial_bias == nullptr) {
    return;
  }
  const int64_t to = block_index() * n.channels;
  float* sums = reinterpret_cast<float*>(shared_memory());  // W = 1: [2][capacity]
  for (int row = 0; row < Shape::rows; ++row) {
    if (Shape::row() == row) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int channel = Shape::channel(v);
        if constexpr (Shape::rows > 1) {
          if (row > 0) {
            add8(sums + channel, sum_weight[v]);
            add8(sums + Shape::capacity + channel, sum_bias[v]);
          }
          if (row < Shape::rows - 1) {
            write8(sums + channel, sum_weight[v]);
            write8(sums + Shape::capacity + channel, sum_bias[v]);
          }
        }
        if (row == Shape::rows - 1) {
          if (n.partial_weight != nullptr) {
            keep<float, Aligned>(n.partial_weight, Kind::single, to, channel, n.channels, sum_weight[v]);
          }
          if (n.partial_bias != nullptr) {
            keep<float, Aligned>(n.partial_bias, Kind::single, to, channel, n.channels, sum_bias[v]);
          }
        }
      }
    }
    if constexpr (Shape::rows > 1) {
      sync_block();
    }
  }
}

// 32 channels of one parameter's derivative: each of 32 warps adds every 32nd partial sum, then those 32 are added.
ALT_KERNEL(1024, 1)
sum_partials(NormSums n) {
  const int tiles = (n.channels + kWarp - 1) / kWarp;
  const int which = static_cast<int>(block_index()) / tiles;
  const int tile = static_cast<int>(block_index()) % tiles;
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  const float* partial = which == 0 ? n.partial[0] : n.partial[1];
  float* grad = which == 0 ? n.grad[0] : n.grad[1];
  if (grad == nullptr) {
    return;
  }
  float* sums = reinterpret_cast<float*>(shared_memory());  // [32][33]
  float sum = 0.0f;
  if (tile * kWarp + lane < n.channels) {
#pragma unroll 4
    for (int block = warp; block < n.blocks; block += kWarp) {
      sum += partial[static_cast<int64_t>(block) * n.channels + tile * kWarp + lane];
    }
  }
  sums[warp * (kWarp + 1) + lane] = sum;
  sync_block();
  sum = sum_lanes(sums[lane * (kWarp + 1) + warp]);
  if (lane == 0 && tile * kWarp + warp < n.channels) {
    grad[tile * kWarp + warp] = sum;
  }
}

// ------------------------------------------------------------------------------------------ launching

// The number of partial sums of the backward, which depends on the shapes and not on the GPU. It is what the 132
// multiprocessors of an H200 hold at once, so that no second wave is needed.
inline int32_t norm_blocks(int64_t total, int32_t channels) {
  int64_t blocks = 0;
  with_row_shape(channels, true, [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t most = kMultiprocessors * resident_blocks(warps_of(Shape{}), vectors_of(Shape{}));
    const int64_t wanted = (total + Shape::rows - 1) / Shape::rows;
    blocks = wanted < most ? wanted : most;
  });
  return static_cast<int32_t>(blocks);
}

template <typename T, bool Aligned>
void launch_norm_backward(const NormBackward& n, void* stream) {
  with_row_shape(n.channels, Aligned, [&](auto shape) {
    using Shape = decltype(shape);
    constexpr int W = warps_of(Shape{}), V = vectors_of(Shape{});
    const Grid grid{n.blocks, Shape::block, W == 1 ? 2 * Shape::capacity * 4 : 4 * W * 4, stream};
    if constexpr (Aligned || V == 4) {
      launch<merge_norm_backward<T, W, V, Aligned>>(grid, n);
    }
  });
}

inline void launch_norm_backward(const NormBackward& n, bool aligned, void* stream) {
  if (!aligned) {
    launch_norm_backward<float, false>(n, stream);
  } else if (n.kind == Kind::single) {
    launch_norm_backward<float, true>(n, stream);
  } else if (n.kind == Kind::half) {
    launch_norm_backward<half_t, true>(n, stream);
  } else {
    launch_norm_backward<bfloat_t, true>(n, stream);
  }
}

inline void launch_sum_partials(const NormSums& n, void* stream) {
  const int64_t tiles = (n.channels + kWarp - 1) / kWarp;
  launch<sum_partials>(Grid{2 * tiles, 1024, kWarp * (kWarp + 1) * 4, stream}, n);
}

}  // namespace alt::gpu
